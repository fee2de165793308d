"""Quotes and holds for runs: the maximum cost of a reply, and its maximum length.

This module only translates between runs and billing.metering.settlement: a prompt into tokens, and the
ledger's refusals into sentences for the user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.conf import settings
from django.db.models import F, Q, Sum
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from msgspec.structs import asdict

from accounts import api_keys
from accounts.models import ApiKey
from billing import credits
from billing.metering import limits, pricing, settlement, usage
from billing.metering.settlement import AccountFrozen, AccountInDebt, InsufficientCredits
from billing.models import ModelPrice
from chat import access
from chat.attachments import uploads
from chat.conversations import api_prompt, assistants, lifecycle, notes, offers, prompt_builder
from chat.errors import ChatError, Missing, sentence
from chat.models import Assistant, LanguageModel, Message, Project, Run
from chat.runs import finish, steps
from chatproject.lib import languages

if TYPE_CHECKING:
    from accounts.models import User


class FilesTooLong(Exception):
    """The files of a message do not fit into the context window of a model: `str` is the sentence for users."""


REFUSALS = (
    FilesTooLong,
    InsufficientCredits,
    AccountFrozen,
    AccountInDebt,
    limits.LimitReached,
    settlement.NotPriced,
)

KEY_LIMIT = gettext_lazy(
    "This request could cost {most} credits, more than the spending limit of the API key leaves. "
    "Ask for a shorter reply, or raise the limit."
)
NOT_PRICED = gettext_lazy("This model has no price yet and cannot be used. Contact the staff.")
FROZEN = gettext_lazy("Your account is frozen, so you cannot send messages. Contact the staff.")
IN_DEBT = gettext_lazy(
    "You owe {debt} credits for a payment that was reversed. Buy credits to continue."
)
SHORTENED = gettext_lazy("Your balance covers a reply of up to {tokens} tokens.")
LIMITED = gettext_lazy(
    "A spending limit of the account is reached. Wait for its next period, or ask for a shorter reply."
)
TOO_LITTLE = gettext_lazy(
    "This message may cost {required} credits and you have {available}. "
    "Buy {missing} more, or send less."
)


def apply_quotes(runs: Sequence[Run]) -> None:
    """Fix price, cap and maximum cost of runs that are not stored yet and begin together.

    Each may use its part of the credits that the ones before it have left. Call it inside the money
    transaction that stores the runs. Raises one of REFUSALS.
    """
    reserved = 0
    for number, run in enumerate(runs):
        parts = len(runs) - number
        try:
            apply_quote(run, reserved=reserved, parts=parts)
        except InsufficientCredits as error:
            if len(runs) == 1:
                raise
            required = reserved + parts * error.required
            raise InsufficientCredits(
                required=required, available=min(required - 1, reserved + parts * error.available)
            ) from error
        reserved += run.most


def apply_quote(run: Run, *, reserved: int = 0, parts: int = 1) -> None:
    """Fix the price, cap and maximum cost of a run that is not stored yet.

    It may use one of `parts` of the user's credits, less `reserved` micro-credits. Raises one of
    REFUSALS.
    """
    prompt = api_prompt.prompt_of(run)
    _check_files(run, prompt)
    quoted = settlement.quote(
        user_id=run.user_id,
        model=run.model.provider_model,
        prompt_tokens=prompt.token_upper_bound,
        max_tokens=prompt.max_tokens,
        fee=run.assistant.message_fee if run.api is None else 0,
        reserved=reserved,
        parts=parts,
    )
    run.price_id = quoted.price_id
    run.fee = quoted.fee
    run.prompt_estimate = prompt.tokens
    run.max_tokens = quoted.max_tokens
    run.shortened = quoted.shortened
    run.most = quoted.amount
    run.quote = quoted


def _check_files(run: Run, prompt: prompt_builder.Prompt) -> None:
    """Raise FilesTooLong for a message with files that leaves no room for a reply."""
    asked = run.message.parent
    if asked is None or not asked.attached or not prompt.is_single:
        return
    window = run.model.context_tokens
    if prompt.size + prompt_builder.SMALLEST_REPLY > window:
        raise FilesTooLong(
            _(
                "The files have about %(tokens)s tokens, and %(model)s reads %(most)s. Nothing was sent."
                " Remove a file, or choose a model with a larger context."
            )
            % {"tokens": f"{prompt.tokens:,}", "model": run.model, "most": f"{window:,}"}
        )


def hold(run: Run) -> None:
    """Hold the maximum cost of a run: the last statement before the COMMIT.

    Raises one of REFUSALS, or settlement.BalanceChanged when a new quote could still be paid.
    """
    if run.quote is None:
        raise ValueError("the run has no quote yet")
    settlement.hold(
        run.quote,
        user_id=run.user_id,
        run_id=run.pk,
        model=run.model.provider_model,
        conversation=run.conversation_id,
        count_unheld=lambda since: (
            Run.objects.active()
            .filter(user_id=run.user_id, most=0, queued_at__gte=since)
            .exclude(pk=run.pk)
            .count()
        ),
    )


def is_charged(run: Run) -> bool:
    """Return whether the user of a run pays for it, or the operator."""
    return bool(settings.BILLING) and not settlement.is_free(is_staff=run.user.is_staff)


def enlarge(run: Run, amount: int) -> None:
    """Hold `amount` micro-credits more for a running run that goes on with a further step.

    Call it in a money transaction. Raises one of REFUSALS, and LostRun if another process has the run.
    """
    ours = Run.objects.filter(pk=run.pk, attempt=run.attempt, status=Run.Status.RUNNING)
    if not ours.update(most=F("most") + amount):
        raise steps.LostRun
    settlement.enlarge(finish.call_of(run), amount=amount, held=run.most)
    if run.api_key_id is not None:
        key = ApiKey.objects.filter(pk=run.api_key_id).first()
        if key is not None:
            check_key(key, run.most + amount)


class KeyLimitReached(ChatError):
    """A request that could exceed the spending limit of its key."""

    def __init__(self, most: int) -> None:
        super().__init__("limit_reached", str(KEY_LIMIT).format(most=credits.show(most)))


def check_key(key: ApiKey, most: int) -> None:
    """Raise KeyLimitReached if `most` micro-credits, which were just held, may exceed the spending limits of a key.

    The hold has locked the account, so requests of its user come here one after the other.
    """
    if not api_keys.has_limit(key):
        return
    of_key = Q(model_snapshot__api__key=key.pk) | Q(model_snapshot__api_key=key.pk)
    active = Run.objects.active().filter(of_key, user=key.user)
    reserved = active.aggregate(Sum("most"))["most__sum"] or 0
    reserved += settlement.held_under(key.user_id, hold_prefix(key))
    if not api_keys.may_spend(key, reserved, timezone.now()):
        raise KeyLimitReached(most)


def hold_prefix(key: ApiKey) -> str:
    """Return the beginning of the keys of holds for embeddings, which have no run."""
    return f"embed:{key.pk}:"


@dataclass(frozen=True, slots=True)
class Estimate:
    """The usual and the maximum cost of a message, in micro-credits.

    `problem` is a sentence when it could not be sent, `note` one when its reply would be shortened.
    """

    usual: int = 0
    most: int = 0
    problem: str = ""
    note: str = ""

    @property
    def shown(self) -> str:
        if not self.most:
            return ""
        return _("About %(usual)s, at most %(most)s credits") % {
            "usual": credits.show(self.usual),
            "most": credits.show(self.most),
        }


def estimate(
    *,
    user: User,
    text: str,
    conversation_id: UUID | None = None,
    model_id: int | None = None,
    attachment_ids: Sequence[UUID] = (),
    assistant_id: int | None = None,
    project_id: UUID | None = None,
) -> Estimate | None:
    """Estimate the cost of a message before it is sent; None where messages are free.

    `model_id` names another model than the one that the message would have, `assistant_id` and `project_id` the
    assistant and the project of a new conversation. Raises ChatError `not_found` or `model_unavailable`.
    """
    assistant, parent, model, instructions = _place(user, conversation_id, assistant_id, project_id)
    if model_id is not None:
        model = offers.chosen(user, model_id)
    elif conversation_id is None:
        model = offers.preferred(user, getattr(assistant, "preferred_model_id", None))
    attached = uploads.described(user, attachment_ids)
    return _estimate(user, assistant, parent, text, model, attached, instructions)


def estimate_each(
    *,
    user: User,
    text: str,
    conversation_id: UUID | None = None,
    attachment_ids: Sequence[UUID] = (),
    assistant_id: int | None = None,
    project_id: UUID | None = None,
) -> dict[int, Estimate]:
    """Estimate the cost of a message with each model that a user may choose, by their keys.

    `assistant_id` names the assistant of a new conversation. Empty where messages are free. The number of
    queries does not depend on the number of models. Raises ChatError `not_found`.
    """
    assistant, parent, _model, instructions = _place(
        user, conversation_id, assistant_id, project_id
    )
    if assistant is None or not settings.BILLING or settlement.is_free(is_staff=user.is_staff):
        return {}
    found = {one.model.pk: one for one in offers.offered(user)}
    fee = assistant.message_fee
    attached = uploads.described(user, attachment_ids)
    run = _made_up(user, assistant, parent, text, None, attached, instructions)
    prompts = prompt_builder.build_each(run, [one.model for one in found.values()])
    wanted = {
        key: settlement.Wanted(
            one.price, prompts[key].token_upper_bound, prompts[key].max_tokens, fee
        )
        for key, one in found.items()
        if one.price is not None
    }
    outputs = usage.typical_outputs(user.pk, {one.price.model for one in wanted.values()})
    estimates = {}
    for key, quoted in settlement.quote_each(user_id=user.pk, wanted=wanted).items():
        run.model = found[key].model
        problem = _problem_with_files(run, prompts[key], attached)
        if problem:
            estimates[key] = Estimate(problem=problem)
        elif isinstance(quoted, settlement.Quote):
            price, tokens = wanted[key].price, prompts[key].tokens
            output = min(outputs[price.model], quoted.max_tokens)
            estimates[key] = _priced(price, tokens, output, quoted, fee)
        else:
            estimates[key] = Estimate(problem=refusal(quoted).message)
    return estimates


def _place(
    user: User, conversation_id: UUID | None, assistant_id: int | None, project_id: UUID | None
) -> tuple[Assistant | None, Message | None, LanguageModel | None, str]:
    """Return assistant, message before, model and instructions of a message that would be sent.

    The model of a new conversation is None, and so is one that is the assistant's. Raises ChatError `not_found`.
    """
    if conversation_id is not None:
        conversation = access.conversation(user, conversation_id, write=True)
        instructions = prompt_builder.instructions_of(conversation)
        if not conversation.temporary:
            model = conversation.chosen_model
            instructions = prompt_builder.with_notes([instructions], notes.of_user(user.pk), model)
        return conversation.assistant, conversation.leaf, conversation.model, instructions
    project = None if project_id is None else access.project(user, project_id)
    if assistant_id is not None:
        assistant: Assistant | None = assistants.chosen(user, assistant_id)
    else:
        assistant = lifecycle.default_assistant(user, project)
    instructions = project.instructions if project else ""
    if assistant is not None:
        found = notes.of_user(user.pk)
        instructions = prompt_builder.with_notes([instructions], found, assistant.model)
    return assistant, None, None, instructions


def _problem_with_files(
    run: Run, prompt: prompt_builder.Prompt, attached: list[dict[str, Any]] | None
) -> str:
    """Return why the model of a run cannot answer a message with files; "" if it can."""
    try:
        uploads.check_model(run.model, attached or ())
        _check_files(run, prompt)
    except (ChatError, FilesTooLong) as error:
        return refusal(error).message
    return ""


def _priced(
    price: ModelPrice, prompt_tokens: int, output: int, quoted: settlement.Quote, fee: int
) -> Estimate:
    note = SHORTENED.format(tokens=languages.number(quoted.max_tokens)) if quoted.shortened else ""
    tokens = pricing.Tokens(input=prompt_tokens, output=output)
    return Estimate(pricing.cost(price, tokens, fee=fee), quoted.amount, note=note)


def usual_cost(
    *,
    user: User,
    assistant: Assistant | None,
    model: LanguageModel | None = None,
    project: Project | None = None,
) -> str:
    """Return the usual cost of one of an assistant's suggestions as pages write it; "" if free.

    `model` answers instead of the assistant's.
    """
    if assistant is None or not assistant.first_questions:
        return ""
    found = _estimate(
        user,
        assistant,
        None,
        assistant.first_questions[0],
        model,
        instructions=project.instructions if project else "",
    )
    return credits.show(found.usual) if found and found.usual else ""


def _estimate(
    user: User,
    assistant: Assistant | None,
    parent: Message | None,
    text: str,
    chosen: LanguageModel | None = None,
    attached: list[dict[str, Any]] | None = None,
    instructions: str = "",
) -> Estimate | None:
    if assistant is None or not settings.BILLING or settlement.is_free(is_staff=user.is_staff):
        return None
    settlement.account_of(user.pk)  # opens it, which `quote` could not outside a money transaction
    run = _made_up(user, assistant, parent, text, chosen, attached, instructions)
    try:
        uploads.check_model(run.model, attached or ())
        apply_quote(run)
    except (ChatError, *REFUSALS) as error:
        return Estimate(problem=refusal(error).message)
    model = run.model.provider_model
    price = pricing.in_force(model)
    if price is None or not run.most or run.quote is None:
        return None
    output = min(usage.typical_output(user.pk, model), run.max_tokens or 0)
    return _priced(price, run.prompt_estimate, output, run.quote, assistant.message_fee)


def _made_up(
    user: User,
    assistant: Assistant,
    parent: Message | None,
    text: str,
    chosen: LanguageModel | None = None,
    attached: list[dict[str, Any]] | None = None,
    instructions: str = "",
) -> Run:
    """Return the run of a message as it would be; none of it is stored.

    `instructions` are those of its project and its conversation.
    """
    sent = Message(parent=parent, role=Message.Role.USER, text=text, attached=attached or None)
    reply = Message(parent=sent, role=Message.Role.ASSISTANT)
    run = Run(message=reply, user=user, assistant=assistant, model=chosen or assistant.model)
    run.instructions = instructions
    return run


def refusal(error: Exception) -> ChatError:
    """Return the error that the user sees for one of REFUSALS."""
    if isinstance(error, ChatError):
        return error
    if isinstance(error, FilesTooLong):
        return ChatError("text_too_long", str(error))
    if isinstance(error, InsufficientCredits):
        figures = Missing(error.required, error.available, error.missing)
        shown = {name: credits.show(amount) for name, amount in asdict(figures).items()}
        general = sentence("insufficient_credits")
        return ChatError(
            "insufficient_credits", TOO_LITTLE.format(**shown), credits=figures, general=general
        )
    if isinstance(error, AccountInDebt):
        debt = IN_DEBT.format(debt=credits.show(error.debt))
        return ChatError("insufficient_credits", debt, general=sentence("insufficient_credits"))
    if isinstance(error, AccountFrozen):
        return ChatError("not_allowed", FROZEN)
    if isinstance(error, settlement.NotPriced):
        return ChatError("unavailable", NOT_PRICED)
    has_figures = isinstance(error, limits.LimitReached) and error.period != limits.MESSAGES
    return ChatError("limit_reached", str(error), general=LIMITED if has_figures else "")
