"""The page of a user's plan: its end, the next credits and the limits; and the other plans of the site."""

from __future__ import annotations

from typing import NamedTuple

from django.conf import settings
from django.http import HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from billing import credits
from billing.ledger import allowances, plans
from billing.ledger.signup import account_of
from billing.metering import limits, plan_limits
from billing.models import Plan
from chatproject.lib import languages
from chatproject.lib.env import Limit
from chatproject.lib.http import Request


class Fact(NamedTuple):
    """A line of a plan: its name, and the value in words."""

    name: str
    value: str


class Offer(NamedTuple):
    """Another plan that users may read about."""

    plan: Plan
    facts: list[Fact]


@require_safe
@never_cache
def plan(request: Request) -> HttpResponse:
    """Show the plan of the user, and the other plans that the site lists."""
    account = account_of(request.user.pk)
    own, default = plans.plan_of(account), Plan.objects.filter(is_default=True).first()
    quota = limits.quota(account)
    listed = Plan.objects.filter(is_shown=True)
    context = {
        "page": "settings",
        "plan": own,
        "membership": plans.membership_of(account),
        "default": default,
        "next_grant": allowances.next_grant(account, timezone.now()) if settings.BILLING else None,
        "quota": quota,
        "facts": facts_of(own),
        "offers": [Offer(one, facts_of(one)) for one in listed if one != own],
    }
    return render(request, "settings/plan.html", context)


def facts_of(plan: Plan | None) -> list[Fact]:
    """Return what a plan gives, with the limits of the site where it has none of its own."""
    found: list[Fact] = []
    if plan is not None and settings.BILLING and plan.monthly_credits:
        found.append(Fact(_("Credits each month"), credits.show(plan.monthly_credits)))
    if plan is not None and plan.monthly_messages is not None:
        found.append(Fact(_("Messages each month"), languages.number(plan.monthly_messages)))
    plan_id = plan.pk if plan is not None else None
    space = plan_limits.upload_bytes(plan_id)
    at_once = plan_limits.parallel_runs(plan_id)
    found += [
        Fact(_("Messages"), words(plan_limits.limit_of("messages", plan_id))),
        Fact(_("Replies at the same time"), languages.number(at_once)),
        Fact(_("Space for files"), languages.size(space)),
        Fact(_("Uploads"), words(plan_limits.limit_of("uploads", plan_id))),
        Fact(_("Requests of each API key"), words(plan_limits.limit_of("api_requests", plan_id))),
    ]
    if settings.SHARE_WITH_USERS or settings.SHARE_BY_LINK:
        found.append(Fact(_("New shares of chats"), words(plan_limits.limit_of("shares", plan_id))))
    return found


def words(limit: Limit) -> str:
    """Return a limit in words: "30 per minute, 200 per day"."""
    if not limit.rates:
        return _("No limit")
    return ", ".join(_rate(amount, seconds) for amount, seconds in limit.rates)


def _rate(amount: int, seconds: int) -> str:
    shown = {"amount": languages.number(amount)}
    if seconds % 86400 == 0:
        count = seconds // 86400
        text = ngettext("%(amount)s per day", "%(amount)s in %(count)s days", count)
    elif seconds % 3600 == 0:
        count = seconds // 3600
        text = ngettext("%(amount)s per hour", "%(amount)s in %(count)s hours", count)
    elif seconds % 60 == 0:
        count = seconds // 60
        text = ngettext("%(amount)s per minute", "%(amount)s in %(count)s minutes", count)
    else:
        count = seconds
        text = ngettext("%(amount)s per second", "%(amount)s in %(count)s seconds", count)
    return text % {**shown, "count": languages.number(count)}
