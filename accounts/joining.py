"""Permission to create an account, by the setting SIGNUP: for all, by invitation, or for none; and approval by staff.

A user who waits for approval is not active, so that no session, socket or key of the account works.
"""

from __future__ import annotations

from allauth.account.adapter import get_adapter
from allauth.account.models import EmailAddress
from allauth.core.exceptions import ImmediateHttpResponse
from django.conf import settings
from django.contrib import messages
from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.models import Permission
from django.core.mail import send_mail
from django.db import transaction
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from accounts import invitations, signup
from accounts.models import Invitation, InvitationUse, User
from chatproject.lib import languages, rate_limits
from chatproject.lib.rate_limits import RateLimited

SESSION_KEY = "invitation"  # the hash of a token
MOST_NOTIFIED = 20  # members of staff who get a mail


def is_open(request: HttpRequest) -> bool:
    """Return whether a visitor may create an account."""
    if settings.SIGNUP in ("open", "approval"):
        return True
    return settings.SIGNUP == "invitation" and invitation_of(request) is not None


def closed_page(request: HttpRequest) -> HttpResponse:
    """Return the page of a visitor who may not create an account."""
    context = {"by_invitation": settings.SIGNUP == "invitation"}
    return render(request, "account/signup_closed.html", context, status=403)


def invitation_of(request: HttpRequest) -> Invitation | None:
    """Return the usable invitation whose link the visitor has opened."""
    digest = request.session.get(SESSION_KEY)
    return invitations.usable(digest) if digest and settings.SIGNUP != "closed" else None


def begin(request: HttpRequest, user: AbstractBaseUser) -> None:
    """Let a new user wait for approval, if the site asks for it and the user has no invitation."""
    if settings.SIGNUP == "approval" and invitation_of(request) is None:
        user.is_active = False
        user.awaits_approval = True  # type: ignore[attr-defined] # a User


def finish(request: HttpRequest, user: User) -> None:
    """Use the invitation of a new user, or notify staff; call it in the transaction that makes the user."""
    found = invitation_of(request)
    if found is None:
        is_let_in = settings.SIGNUP == "approval" and not user.awaits_approval
        if settings.SIGNUP == "invitation" or is_let_in:
            _refuse(request)  # the invitation ended since the page was opened, or since `begin`
        if user.awaits_approval:
            transaction.on_commit(notify_staff)
        return
    try:
        invitations.use(found, user)
    except invitations.NotUsable:
        _refuse(request)
    if found.is_mailed and found.email.lower() == user.email.lower():
        address = EmailAddress.objects.filter(user=user, email__iexact=user.email).first()
        if address is not None and address.set_verified():
            signup.entitle(user, address.email)
    del request.session[SESSION_KEY]


def _refuse(request: HttpRequest) -> None:
    raise ImmediateHttpResponse(_ended(request, request.session.get(SESSION_KEY, ""), 403))


def _ended(request: HttpRequest, digest: str, status: int) -> HttpResponse:
    if settings.SIGNUP == "closed":
        refusal = _("Sign-up is closed. Accounts are created by the operator of this site.")
    else:
        refusal = invitations.refusal(digest)
    context = {"refusal": refusal}
    return render(request, "account/invitation_ended.html", context, status=status)


@require_safe
@never_cache
def invitation(request: HttpRequest, token: str) -> HttpResponse:
    """Keep the invitation of a link for the sign-up page."""
    digest = invitations.hash_of(token)
    user = request.user
    if user.is_authenticated and InvitationUse.objects.filter(
        user=user.pk, invitation__hash=digest
    ):
        return redirect("chat:new")
    if settings.SIGNUP == "closed" or invitations.usable(digest) is None:
        return _ended(request, digest, 404)
    if user.is_authenticated:
        messages.info(
            request,
            _(
                "You are signed in as %(email)s. To use the invitation for another account, sign out and open its"
                " link again."
            )
            % {"email": f"\u2068{user.get_username()}\u2069"},
        )
        return redirect("chat:new")
    request.session[SESSION_KEY] = digest
    return redirect("account_signup")


@require_POST
def decline(request: HttpRequest) -> HttpResponse:
    """Forget the invitation whose link the visitor has opened, which stays usable, and show the sign-up page."""
    request.session.pop(SESSION_KEY, None)
    return redirect("account_signup")


@require_safe
@never_cache
def waiting(request: HttpRequest) -> HttpResponse:
    """Explain to a new user that the account waits for approval."""
    return render(request, "account/waiting.html")


def notify_staff() -> None:
    """Write to the staff who may approve that accounts wait; at most as often as `approval_notices` permits."""
    try:
        rate_limits.hit("approval_notices", reported=False)
    except RateLimited:
        return
    approval = Permission.objects.filter(
        content_type__app_label="accounts", codename="approve_user"
    )
    may_approve = (
        Q(is_superuser=True)
        | Q(user_permissions__in=approval)
        | Q(groups__permissions__in=approval)
    )
    members = User.objects.filter(may_approve, is_staff=True, is_active=True).distinct()
    staff = list(members.order_by("pk")[:MOST_NOTIFIED])
    path = reverse("admin:accounts_user_changelist")
    context = {
        "site_name": settings.SITE_NAME,
        "count": User.objects.filter(awaits_approval=True).count(),
        "link": f"{settings.SITE_URL}{path}?awaits_approval__exact=1",
    }
    for user in staff:
        with languages.use(user.language):
            subject = _("Accounts wait for approval")
            body = render_to_string("account/email/approval_due.txt", context)
            send_mail(f"{settings.SITE_NAME}: {subject}", body, None, [user.email])


def decide(user: User, *, is_approved: bool) -> bool:
    """Approve or refuse a user who waits, and write to the user; return False if the user does not wait."""
    waits = User.objects.select_for_update().filter(pk=user.pk, awaits_approval=True).first()
    if waits is None:
        return False
    waits.awaits_approval = False
    waits.is_active = is_approved
    waits.save(update_fields=["awaits_approval", "is_active"])
    name = "account_approved" if is_approved else "account_refused"
    link = f"{settings.SITE_URL}{reverse('account_login')}"
    get_adapter().send_mail(
        f"account/email/{name}",
        waits.email,
        {"user": waits, "link": link, "site_name": settings.SITE_NAME},
    )
    return True
