"""The picker of the composer: the models that it offers, and the choice that it shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chat.conversations import offers
from chat.conversations.offers import Offer, ProviderOffers
from chat.models import Assistant, Conversation, LanguageModel
from chat.web.choices import effort_choices, temperature_choices
from chat.web.forms import MessageForm

if TYPE_CHECKING:
    from accounts.models import User


@dataclass(frozen=True, slots=True)
class Picker:
    """Offers by provider, and the chosen model, effort and temperature ("" for the defaults).

    `is_offered` is false for a chosen model that the user may not use any longer. `efforts` has the efforts of
    all offered models, for browsers without scripts.
    """

    providers: list[ProviderOffers]
    chosen: LanguageModel
    is_offered: bool
    effort: str
    efforts: list[tuple[str, Any]]
    temperature: str
    temperatures: list[tuple[str, Any]]

    @property
    def shown_settings(self) -> list[Any]:
        """The words of the settings that are not the default, as the chosen model has them."""
        found = []
        if self.effort in self.chosen.offered_efforts:
            found += [words for effort, words in self.efforts if effort == self.effort]
        if self.chosen.takes_temperature:
            found += [words for step, words in self.temperatures if step == self.temperature]
        return found

    @property
    def has_others(self) -> bool:
        """Whether there is another model than the chosen one."""
        return any(offer.model != self.chosen for one in self.providers for offer in one.offers)


def picker(
    user: User,
    form: MessageForm,
    *,
    conversation: Conversation | None = None,
    assistant: Assistant | None = None,
) -> Picker | None:
    """Return the picker of a conversation, or of a new one with `assistant`; None without any model.

    A refused form keeps the choice that was posted with it.
    """
    found = offers.offered(user)
    by_id = {one.model.pk: one for one in found}
    shown = _shown(form, by_id, conversation, assistant)
    if shown is None:
        return None
    stored = conversation.temperature if conversation else None
    temperature = form.initial.get("temperature", "" if stored is None else f"{stored:g}")
    efforts = {effort for one in found for effort in one.model.offered_efforts}
    return Picker(
        providers=offers.by_provider(found),
        chosen=shown,
        is_offered=shown.pk in by_id,
        effort=form.initial.get("effort", conversation.reasoning_effort if conversation else ""),
        efforts=effort_choices(efforts),
        temperature=temperature,
        temperatures=temperature_choices(temperature),
    )


def _shown(
    form: MessageForm,
    by_id: dict[int, Offer],
    conversation: Conversation | None,
    assistant: Assistant | None,
) -> LanguageModel | None:
    posted = form.initial.get("model", "")
    if posted.isdecimal() and int(posted) in by_id:
        return by_id[int(posted)].model
    if conversation is not None:
        key = conversation.chosen_model_id
        return by_id[key].model if key in by_id else conversation.chosen_model
    if assistant is None:
        return None
    preferred = by_id.get(getattr(assistant, "preferred_model_id", None) or 0)
    return preferred.model if preferred else assistant.model
