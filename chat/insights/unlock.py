"""Buying the insights of a category, and trying failed ones again.

However often it is asked for, from however many processes: one job, one hold. The document's row is locked, the job
is unique, and the hold is made in the same money transaction.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from django.db.models import F
from django.utils import timezone
from django.utils.translation import get_language, gettext_lazy
from django.utils.translation import gettext as _

from billing.credits import show
from billing.metering import limits, products, settlement
from chat import access
from chat.documents.models import Document
from chat.errors import ChatError, Missing
from chat.insights import offers, queue
from chat.insights.models import Insight, InsightJob
from chat.models import new_id
from chatproject.lib import db
from chatproject.lib.log_events import log_event

if TYPE_CHECKING:
    from accounts.models import User

logger = logging.getLogger(__name__)

# A job ends before its hold does: see chat.insights.recovery.
HOLD_TIME = timedelta(hours=3)
RETRIES = 5  # of one insight, since we pay for them

FROZEN = gettext_lazy("Your account is frozen, so you cannot buy insights. Contact the staff.")
IN_DEBT = gettext_lazy(
    "You owe {debt} credits for a payment that was reversed. Buy credits to continue."
)
TOO_LITTLE = gettext_lazy(
    "This costs {required} credits and you have {available}. Buy {missing} more."
)


def unlock(
    *, user: User, document_id: UUID, slug: str, price: int | None = None
) -> tuple[InsightJob, bool]:
    """Buy a category for a document; return its job, and whether it is new.

    `price` is the price that the user has seen, in micro-credits: another one is refused with `price_changed`.
    Raises ChatError `not_found`, `unavailable`, `insufficient_credits`, `limit_reached` and `busy`.
    """
    settlement.account_of(user.pk)  # opened in a transaction of its own
    try:
        job, is_new = db.money_transaction(_unlock, user, document_id, slug, price)
    except db.MoneyBusy as error:
        raise ChatError("busy", retry_after=1) from error
    except settlement.InsufficientCredits as error:
        raise ChatError(
            "insufficient_credits",
            str(TOO_LITTLE).format(
                required=show(error.required),
                available=show(error.available),
                missing=show(error.missing),
            ),
            credits=Missing(error.required, error.available, error.missing),
        ) from error
    except settlement.AccountFrozen as error:
        raise ChatError("insufficient_credits", FROZEN) from error
    except settlement.AccountInDebt as error:
        raise ChatError(
            "insufficient_credits", str(IN_DEBT).format(debt=show(error.debt))
        ) from error
    except limits.LimitReached as error:
        raise ChatError("limit_reached", error.message) from error
    if is_new:
        queue.enqueue(job.insights.all())
        log_event(
            "insights_unlocked",
            job_id=job.pk,
            user_id=user.pk,
            category=slug,
            price_microcredits=job.price,
        )
    return job, is_new


def _unlock(user: User, document_id: UUID, slug: str, price: int | None) -> tuple[InsightJob, bool]:
    document = access.owned(user, Document, document_id, lock=True)
    offer = offers.of_category(user, document, slug)
    if offer.job is not None:
        return offer.job, False
    if offer.reason:
        raise ChatError("unavailable", offer.reason)
    if price is not None and price != offer.price:
        raise ChatError(
            "price_changed",
            _("The price is now %(price)s credits. Nothing was bought. Look at it again.")
            % {"price": show(offer.price)},
        )
    model = offers.model_of(user, offer.category)
    assert model is not None  # there is a reason otherwise
    job = InsightJob.objects.create(
        id=new_id(),
        owner=user,
        document=document,
        category=offer.category,
        model=model,
        language=get_language() or "en",
        price=offer.price,
        is_held=not offer.is_free,
        total=len(offer.types),
    )
    Insight.objects.bulk_create(
        Insight(
            job=job,
            type=one,
            key=one.key,
            name=one.name,
            position=position,
            prompt=one.prompt,
            keywords=one.keywords,
            schema=one.schema,
        )
        for position, one in enumerate(offer.types)
    )
    if job.is_held:  # last, as it locks the account
        products.hold(
            account_id=settlement.account_of(user.pk).pk,
            user_id=user.pk,
            id=job.pk,
            kind="insight",
            model=model.provider_model,
            amount=job.price,
            time=HOLD_TIME,
        )
    return job, True


def retry(*, user: User, insight_id: UUID) -> Insight:
    """Try a failed insight again, within its paid job; one that goes on or is done stays as it is.

    Raises ChatError `not_found`, and `limit_reached` after RETRIES tries.
    """
    one = of_user(user, insight_id)
    failed = Insight.objects.filter(pk=one.pk, status=Insight.Status.FAILED)
    if one.status == Insight.Status.FAILED and one.retries >= RETRIES:
        raise ChatError(
            "limit_reached",
            _("This was tried %(count)d times. Contact the staff.") % {"count": one.retries + 1},
        )
    if one.job.status not in offers.KEPT:
        raise ChatError("not_found")
    changed = failed.filter(retries__lt=RETRIES).update(
        status=Insight.Status.QUEUED,
        error="",
        lost=0,
        retries=F("retries") + 1,
        beat_at=timezone.now(),
        ended_at=None,
    )
    one.refresh_from_db()
    if changed:
        queue.enqueue([one])
    return one


def of_user(user: User, insight_id: UUID) -> Insight:
    """Return an insight into a document of the user. Raises ChatError `not_found`."""
    one = (
        Insight.objects.select_related("job__document", "job__category")
        .filter(pk=insight_id, job__owner=user.pk)
        .first()
    )
    if one is None or access.decide(user, one.job.document) is not access.Access.WRITE:
        raise ChatError("not_found")
    return one
