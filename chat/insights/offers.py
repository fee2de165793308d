"""Offers for a document: its categories with the types that fit it, the price, and the state of a purchase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from django.db.models import Count, Prefetch, Q
from django.utils.translation import gettext as _

from billing.metering import products
from chat.conversations import lifecycle
from chat.documents.models import Block, Document
from chat.errors import ChatError
from chat.insights.models import Category, Insight, InsightJob, InsightType
from chat.models import LanguageModel
from chat.models.catalogue import ModelKind

if TYPE_CHECKING:
    from accounts.models import User

KEPT = (InsightJob.Status.ACTIVE, InsightJob.Status.DONE, InsightJob.Status.PARTIAL)
PAIR = 2  # people of a chat that is no group


@dataclass(frozen=True, slots=True)
class Offer:
    """A category for one document. `price` is in micro-credits, 0 for a user who pays nothing.

    `job` is what the user has bought of it; else `reason` says why it cannot be bought now, if so.
    """

    category: Category
    types: list[InsightType]
    price: int
    is_free: bool
    job: InsightJob | None
    reason: str

    @property
    def is_offered(self) -> bool:
        """Whether it can be bought now."""
        return self.job is None and not self.reason

    @property
    def ready(self) -> int:
        """How many of the bought insights are done."""
        done = Insight.Status.DONE
        return sum(one.status == done for one in self.job.insights.all()) if self.job else 0

    @property
    def examples(self) -> list[InsightType]:
        """The types with an example."""
        return [one for one in self.types if one.example is not None]


def of_document(user: User, document: Document) -> list[Offer]:
    """Return the offers for a document of the user, and what was bought, also of categories no longer sold."""
    jobs = {job.category_id: job for job in _jobs(document)}
    types = InsightType.objects.filter(active=True)
    found = Category.objects.prefetch_related(Prefetch("types", queryset=types))
    found = found.select_related("model__provider").filter(kind=document.kind)
    people = None
    offers = []
    for category in found:
        job = jobs.get(category.pk)
        if not category.active and job is None:
            continue
        if people is None:
            people = count_people(document)
        offers.append(_offer(user, document, category, job, people))
    return [one for one in offers if one.types or one.job]


def of_category(user: User, document: Document, slug: str) -> Offer:
    """Return the offer of one category for a document. Raises ChatError `not_found`."""
    for offer in of_document(user, document):
        if offer.category.slug == slug:
            return offer
    raise ChatError("not_found")


def preview(category: Category) -> Offer:
    """Return the offer that staff look at: for a document that all types fit, and a user who pays."""
    types = [one for one in category.types.all() if one.active]
    return Offer(category, types, category.price, is_free=False, job=None, reason="")


def _jobs(document: Document) -> list[InsightJob]:
    insights = Insight.objects.order_by("position")
    return list(
        InsightJob.objects.filter(document=document, status__in=KEPT)
        .select_related("category")
        .prefetch_related(Prefetch("insights", queryset=insights))
    )


def _offer(
    user: User, document: Document, category: Category, job: InsightJob | None, people: int
) -> Offer:
    all_types = list(category.types.all())
    types = [one for one in all_types if one.groups or people <= PAIR]
    price = products.share(category.price, len(types), len(all_types))
    is_free = products.is_free(price, is_staff=user.is_staff)
    reason = "" if job is not None else _reason(user, document, category)
    return Offer(category, types, 0 if is_free else price, is_free, job, reason)


def _reason(user: User, document: Document, category: Category) -> str:
    """Return why a category cannot be bought now, in words; empty if it can."""
    if document.status == Document.Status.FAILED:
        return _("The document could not be read, so there is nothing to look into.")
    if document.status != Document.Status.READY:
        return _("The document is still being read. Come back when it is ready.")
    if model_of(user, category) is None:
        return _("No model is available for insights right now. Try again later.")
    if not document.blocks.filter(kind__in=READ).exists():
        return _("The document has no text that a model could read.")
    return ""


def counts(documents: Sequence[Document]) -> dict[UUID, int]:
    """Return how many insights are ready, by document; one without any purchase is absent."""
    jobs = InsightJob.objects.filter(document__in=documents, status__in=KEPT).order_by()
    done = Count("insights", filter=Q(insights__status=Insight.Status.DONE))
    return dict(jobs.values_list("document").annotate(done=done))


# Blocks that a model reads.
READ = (
    Block.Kind.MESSAGE, Block.Kind.POLL, Block.Kind.HEADING, Block.Kind.PARAGRAPH, Block.Kind.TABLE,
)  # fmt: skip


def model_of(user: User, category: Category) -> LanguageModel | None:
    """Return the model of a category: its own, or that of the user's new chats; None without an enabled one."""
    model = category.model
    if model is None:
        assistant = lifecycle.default_assistant(user)
        model = assistant.model if assistant else None
    if model is None or not model.enabled or model.kind != ModelKind.CHAT:
        return None
    return model


def count_people(document: Document) -> int:
    """Return how many people a chat has, up to one more than a pair; 0 for other documents."""
    if document.kind != Document.Kind.CHAT:
        return 0
    senders = document.blocks.filter(kind=Block.Kind.MESSAGE).exclude(sender="").order_by()
    return len(senders.values_list("sender").distinct()[: PAIR + 1])
