"""The models that users may choose: those that are offered, and the choice that a message brings.

`is_usable` is the one function that decides, for pages, sockets, forms and estimates. A user's groups are
read only for a restricted model. There are no plans yet: access is given by groups, as to assistants.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING
from uuid import UUID

from django.conf import settings
from django.contrib.auth.models import Group
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone
from django.utils.translation import gettext as _
from msgspec import UNSET, UnsetType

from billing import credits
from billing.metering import pricing
from billing.models import ModelPrice
from chat.errors import ChatError
from chat.models import Assistant, ChatPreference, Conversation, LanguageModel, Provider
from chat.models.catalogue import ModelKind
from chatproject.lib.db import prepared

if TYPE_CHECKING:
    from accounts.models import User

# An English word has about four thirds of a token, by the published figures of OpenAI and Google.
TOKENS_PER_1000_WORDS = 1_333


@dataclass(frozen=True, slots=True)
class Choice:
    """The model, its settings and the assistant that a request names.

    UNSET leaves a value as the conversation has it; None returns to that of the assistant or the model.
    Assistant, project and `temporary` count only for a new conversation.
    """

    model_id: int | UnsetType | None = UNSET
    effort: str | UnsetType | None = UNSET
    temperature: float | UnsetType | None = UNSET
    assistant_id: int | None = None
    project_id: UUID | None = None
    temporary: bool = False


UNCHANGED = Choice()


@dataclass(frozen=True, slots=True)
class Offer:
    """A model that a user may choose, with its price (None where messages are free)."""

    model: LanguageModel
    price: ModelPrice | None

    @property
    def words_in(self) -> str:
        """Credits for 1,000 words that the model reads, as pages write them; "" if free."""
        return _per_1000_words(self.price.in_per_m) if self.price else ""

    @property
    def words_out(self) -> str:
        """Credits for 1,000 words that the model writes, as pages write them; "" if free."""
        return _per_1000_words(self.price.out_per_m) if self.price else ""


def _per_1000_words(per_million_tokens: int) -> str:
    amount = -(-per_million_tokens * TOKENS_PER_1000_WORDS // pricing.MILLION)
    return credits.show(amount) if amount else ""


@dataclass(frozen=True, slots=True)
class ProviderOffers:
    """The offers of one provider, by name."""

    name: str
    offers: list[Offer]


# In plain SQL, as each page needs it: see lib.db.prepared. `granted` is the rule for groups.
OFFERED = f"""
SELECT {prepared.columns(LanguageModel, "model")}, {prepared.columns(Provider, "provider")},
  {prepared.columns(ModelPrice, "price")}
FROM chat_languagemodel model LEFT JOIN chat_provider provider ON provider.id = model.provider_id
LEFT JOIN LATERAL (
  SELECT * FROM billing_modelprice
  WHERE %(billing)s AND model = model.provider_model AND effective_from <= %(now)s
  ORDER BY effective_from DESC LIMIT 1
) price ON true
WHERE model.enabled AND COALESCE(provider.enabled, true) AND model.kind = %(kind)s AND (
  %(is_staff)s OR NOT model.restricted OR EXISTS (
    SELECT 1 FROM chat_languagemodel_groups granted
    JOIN accounts_user_groups own ON own.group_id = granted.group_id
    WHERE granted.languagemodel_id = model.id AND own.user_id = %(user)s
  )
)
ORDER BY provider.name, model.name
"""  # noqa: S608 # of names alone


def offered(user: User, kind: ModelKind = ModelKind.CHAT) -> list[Offer]:
    """Return the models of a kind that a user may use, by provider and name; one query.

    They and their providers are enabled, have a price, and are not restricted to other groups.
    """
    values = {
        "user": user.pk,
        "kind": kind.value,
        "is_staff": user.is_staff,
        "billing": settings.BILLING,
        "now": timezone.now(),
    }
    found = []
    for model, provider, price in prepared.each(
        OFFERED, values, LanguageModel, Provider, ModelPrice
    ):
        model.provider = provider
        if price or not settings.BILLING:
            found.append(Offer(model, price))
    return found


def by_provider(offers: list[Offer]) -> list[ProviderOffers]:
    """Group offers, which are sorted by provider, by the names of their providers."""
    return [
        ProviderOffers(name, list(found))
        for name, found in groupby(offers, lambda offer: str(offer.model.provider or ""))
    ]


def is_usable(user: User, model: LanguageModel) -> bool:
    """Return whether a user's message may be answered by a model; one query for a restricted one.

    A model of a disabled provider is usable if it has a fallback. The price is checked by the quote.
    """
    provider = model.provider
    is_served = provider is None or provider.enabled or model.fallback_id is not None
    if not model.enabled or not is_served or model.kind != ModelKind.CHAT:
        return False
    return is_granted(user, model)


def may_embed(user: User, model: LanguageModel) -> bool:
    """Return whether a user may ask a model for embeddings; no other model replaces it."""
    is_served = model.provider is None or model.provider.enabled
    is_offered = model.enabled and is_served and model.kind == ModelKind.EMBEDDING
    return is_offered and is_granted(user, model)


def is_granted(user: User, row: LanguageModel | Assistant) -> bool:
    """Return whether a row is not restricted to groups that the user is in none of."""
    return not row.restricted or user.is_staff or row.groups.filter(user=user).exists()


def granted(user: User, table: type[LanguageModel | Assistant]) -> Q:
    """Return `is_granted` as a condition of a query of a table."""
    if user.is_staff:
        return Q()
    own = Group.objects.filter(user=user, pk=OuterRef("group_id"))
    key = f"{table._meta.model_name}_id"
    groups = table.groups.through.objects.filter(Exists(own), **{key: OuterRef("pk")})
    return Q(restricted=False) | Q(Exists(groups))


def unavailable(user: User, model: LanguageModel | None = None) -> ChatError:
    """Return the refusal of a model, which names another one that the user may choose."""
    other = next((one.model for one in offered(user) if one.model != model), None)
    words = {"model": model, "other": other}
    if model is None:
        text = _("This model is not available to you.")
    else:
        text = _("The model %(model)s is not available to you at the moment.") % words
    if other is None:
        advice = _("Nothing was sent. Try again later, or contact the staff.")
    else:
        advice = _("Nothing was sent. Choose another model, for example %(other)s.") % words
    return ChatError("model_unavailable", f"{text} {advice}")


def chosen(user: User, model_id: int) -> LanguageModel:
    """Return the model with this id. Raises ChatError `model_unavailable` unless it is usable."""
    model = LanguageModel.objects.select_related("provider").filter(pk=model_id).first()
    if model is None or not is_usable(user, model):
        raise unavailable(user, model)
    return model


def apply_settings(conversation: Conversation, choice: Choice) -> None:
    """Set the effort and the temperature of a choice in a conversation, which is not stored here.

    Raises ChatError `bad_setting` for an effort that the conversation's model does not have.
    """
    if choice.effort is not UNSET:
        efforts = conversation.chosen_model.offered_efforts
        if choice.effort and choice.effort not in efforts:
            raise ChatError("bad_setting")
        conversation.reasoning_effort = choice.effort or ""
    if choice.temperature is not UNSET:
        if choice.temperature is not None and not 0 <= choice.temperature <= 2:
            raise ChatError("bad_setting")
        conversation.temperature = choice.temperature


def preferred(user: User, model_id: int | None) -> LanguageModel | None:
    """Return a user's model for new conversations; None without one that is offered now."""
    if model_id is None:
        return None
    model = LanguageModel.objects.select_related("provider").filter(pk=model_id).first()
    if model is None or not is_usable(user, model):
        return None
    is_priced = not settings.BILLING or pricing.in_force(model.provider_model) is not None
    return model if is_priced else None


def prefer(*, user: User, model_id: int | None) -> None:
    """Store the model for a user's new conversations; None returns to that of the assistant.

    Raises ChatError `model_unavailable`.
    """
    model = None if model_id is None else chosen(user, model_id)
    ChatPreference.objects.update_or_create(user=user, defaults={"model": model})
