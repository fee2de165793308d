"""The terms on which a run is made: what it may cost, and how long its reply may be.

Between a run and billing.metering.settlement stand only these few translations: of a prompt into tokens, and
of the ledger's refusals into words for the user.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from django.conf import settings

from billing import credits
from billing.metering import limits, pricing, settlement, usage
from billing.metering.settlement import AccountFrozen, AccountInDebt, InsufficientCredits
from chat import access
from chat.conversations import lifecycle, prompt_builder
from chat.errors import ChatError, Missing
from chat.models import Assistant, Message, Run

if TYPE_CHECKING:
    from accounts.models import User

REFUSALS = (
    InsufficientCredits,
    AccountFrozen,
    AccountInDebt,
    limits.LimitReached,
    settlement.NotPriced,
)

NOT_PRICED = "This model has no price yet and cannot be used. Tell the staff."
FROZEN = "Your account is frozen, so nothing can be sent. Ask the staff why."
IN_DEBT = "You owe {debt} credits for a payment that was taken back. Buy credits to go on."
SHORTENED = "Your balance allows a reply of {tokens:,} tokens."
TOO_LITTLE = (
    "This message may cost {required} credits and you have {available}. "
    "Buy {missing} more, or send less."
)


def apply_quote(run: Run) -> None:
    """Fix the terms of a run that is not stored yet.

    Raises one of REFUSALS. Call it inside the money transaction that stores the run.
    """
    prompt = prompt_builder.build(run)
    agreed = settlement.quote(
        user_id=run.user_id,
        model=run.model.provider_model,
        prompt_tokens=prompt.token_upper_bound,
        max_tokens=prompt.max_tokens,
        fee=run.assistant.message_fee,
    )
    run.price_id = agreed.price_id
    run.fee = agreed.fee
    run.prompt_estimate = prompt.tokens
    run.max_tokens = agreed.max_tokens
    run.shortened = agreed.shortened
    run.most = agreed.amount
    run.terms = agreed


def hold(run: Run) -> None:
    """Hold what a run may cost: the last statement before the COMMIT. Raises one of REFUSALS."""
    if run.terms is None:
        raise ValueError("the run has no terms: agree on them first")
    settlement.hold(
        run.terms,
        user_id=run.user_id,
        run_id=run.pk,
        model=run.model.provider_model,
        conversation=run.conversation_id,
    )


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a message would cost, in micro-credits: usually, and at most.

    `problem` says in words why it could not be sent; `note` that its reply would be shortened.
    """

    usual: int
    most: int
    problem: str = ""
    note: str = ""

    @property
    def shown(self) -> str:
        if not self.most:
            return ""
        return f"About {credits.show(self.usual)}, at most {credits.show(self.most)} credits"


def estimate(*, user: User, text: str, conversation_id: UUID | None = None) -> Estimate | None:
    """What a message would cost before it is sent; None where nothing costs anything.

    Raises ChatError `not_found`.
    """
    if conversation_id is None:
        assistant, parent = lifecycle.default_assistant(), None
    else:
        conversation = access.conversation(user, conversation_id)
        assistant, parent = conversation.assistant, conversation.leaf
    if assistant is None:
        return None
    return _estimate(user, assistant, parent, text)


def _estimate(
    user: User, assistant: Assistant, parent: Message | None, text: str
) -> Estimate | None:
    if not settings.BILLING:
        return None
    if settlement.is_free(is_staff=user.is_staff):
        return None
    settlement.account_of(user.pk)  # opens it, which `quote` could not outside a money transaction
    prompt = prompt_builder.build(_imagined(user, assistant, parent, text))
    try:
        agreed = settlement.quote(
            user_id=user.pk,
            model=assistant.model.provider_model,
            prompt_tokens=prompt.token_upper_bound,
            max_tokens=prompt.max_tokens,
            fee=assistant.message_fee,
        )
    except REFUSALS as error:
        return Estimate(0, 0, problem=refusal(error).message)
    price = pricing.in_force(assistant.model.provider_model)
    if price is None or not agreed.amount:
        return None
    output = min(usage.typical_output(user.pk, assistant.model.provider_model), agreed.max_tokens)
    tokens = pricing.Tokens(input=prompt.tokens, output=output)
    note = SHORTENED.format(tokens=agreed.max_tokens) if agreed.shortened else ""
    return Estimate(
        usual=pricing.cost(price, tokens, fee=assistant.message_fee), most=agreed.amount, note=note
    )


def usual_cost(*, user: User, assistant: Assistant | None) -> str:
    """What one of an assistant's suggestions usually costs, as pages say it; empty if nothing."""
    if assistant is None or not assistant.suggestions:
        return ""
    found = _estimate(user, assistant, None, str(assistant.suggestions[0]))
    return credits.show(found.usual) if found and found.usual else ""


def _imagined(user: User, assistant: Assistant, parent: Message | None, text: str) -> Run:
    """A run as it would be for a text, of which nothing is stored."""
    sent = Message(parent=parent, role=Message.Role.USER, text=text)
    reply = Message(parent=sent, role=Message.Role.ASSISTANT)
    return Run(message=reply, user=user, assistant=assistant, model=assistant.model)


def refusal(error: Exception) -> ChatError:
    """One of REFUSALS in words for the user."""
    if isinstance(error, InsufficientCredits):
        return ChatError(
            "insufficient_credits",
            TOO_LITTLE.format(
                required=credits.show(error.required),
                available=credits.show(error.available),
                missing=credits.show(error.missing),
            ),
            credits=Missing(error.required, error.available, error.missing),
        )
    if isinstance(error, AccountInDebt):
        return ChatError("insufficient_credits", IN_DEBT.format(debt=credits.show(error.debt)))
    if isinstance(error, AccountFrozen):
        return ChatError("not_allowed", FROZEN)
    if isinstance(error, settlement.NotPriced):
        return ChatError("unavailable", NOT_PRICED)
    return ChatError("limit_reached", str(error))
