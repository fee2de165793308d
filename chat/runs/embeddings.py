"""The money of a call for embeddings: held before the provider is asked, charged after its answer.

Such a call has no run, since a web process waits for the answer and no other one can go on with it. If that
process is killed, nothing was delivered: the clock releases the hold HOLD_TIME after it was made.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from django.utils import timezone

from accounts import api_keys
from accounts.models import ApiKey
from billing.metering import settlement
from billing.metering.pricing import Tokens
from billing.models import Hold, ModelPrice, UsageRecord
from billing.models.usage import Purpose
from chat.conversations import offers
from chat.models import LanguageModel, new_id
from chat.runs import cost, start
from chat.runs.api_calls import ASSISTANT
from chatproject.lib import db

HOLD_TIME = timedelta(minutes=10)  # longer than any call


@dataclass(frozen=True, slots=True)
class EmbeddingCall:
    """A call whose maximum cost is held under its id."""

    id: UUID
    key: ApiKey
    model: LanguageModel
    price_id: int | None
    is_held: bool


def begin(key: ApiKey, model: LanguageModel, most_tokens: int) -> EmbeddingCall:
    """Hold the cost of at most so many tokens. Raises ChatError and cost.KeyLimitReached; then nothing is held."""
    call: EmbeddingCall = start.in_money_transaction(key.user, _hold, key, model, most_tokens)
    return call


def _hold(key: ApiKey, model: LanguageModel, most_tokens: int) -> EmbeddingCall:
    if not offers.may_embed(key.user, model):
        raise offers.unavailable(key.user, model)
    quoted = settlement.quote(
        user_id=key.user_id, model=model.provider_model, prompt_tokens=most_tokens, max_tokens=0
    )
    call = EmbeddingCall(new_id(), key, model, quoted.price_id, is_held=quoted.amount > 0)
    settlement.hold(
        quoted,
        user_id=key.user_id,
        run_id=call.id,
        model=model.provider_model,
        conversation=None,
        count_unheld=None,
        key=f"{cost.hold_prefix(key)}{call.id}",
        time=HOLD_TIME,
    )
    cost.check_key(key, quoted.amount)
    return call


def end(
    call: EmbeddingCall,
    tokens: Tokens | None,
    source: UsageRecord.Source = UsageRecord.Source.PROVIDER,
) -> int | None:
    """Charge a call for its tokens; with None it has no answer, and its hold is released.

    Returns the micro-credits that were charged; None without a price. Raises db.MoneyBusy.
    """
    charged: int | None = db.money_transaction(_end, call, tokens, source)
    return charged


def _end(call: EmbeddingCall, tokens: Tokens | None, source: UsageRecord.Source) -> int | None:
    price = None if call.price_id is None else ModelPrice.objects.get(pk=call.price_id)
    charge = settlement.charge(
        settlement.Call(
            run_id=call.id,
            attempt=1,
            user_id=call.key.user_id,
            price=price,
            fee=0,
            is_held=call.is_held,
            model=call.model.provider_model,
            assistant=ASSISTANT,
            conversation=None,
            api_key=call.key.pk,
            purpose=Purpose.EMBED,
        ),
        tokens=tokens,
        source=source,
        finish=UsageRecord.Finish.COMPLETE,
        by=Hold.Resolver.WORKER,
    )
    if charge is None:
        return None
    api_keys.spend(call.key.pk, charge.charged, timezone.now())
    return charge.charged
