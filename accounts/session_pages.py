"""The page of a user's sessions: where they are signed in, and signing out elsewhere."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from accounts import sessions
from chatproject.lib.http import Request


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def session_list(request: Request) -> HttpResponse:
    """List the user's sessions; end the one that a form names, or all others."""
    key = request.session.session_key
    if request.method != "POST":
        listed = sessions.listed(request.user)
        context = {
            "current": next((one for one in listed if one.key == key), None),
            "others": [one for one in listed if one.key != key],
            "page": "settings",
        }
        return render(request, "usersessions/usersession_list.html", context)
    given = request.POST.get("session", "")
    if given == "others":
        count = sessions.end_others(request.user, key)
        text = ngettext(
            "Signed out %(count)s other session.", "Signed out %(count)s other sessions.", count
        )
        messages.success(request, text % {"count": count})
    elif given.isascii() and given.isdigit() and len(given) < 19:
        if sessions.end(request.user, int(given)):
            messages.success(request, _("The session is signed out."))
        else:
            messages.info(request, _("That session had already ended."))
    return redirect("usersessions_list")
