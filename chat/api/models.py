"""The models of the API, by the names that its clients use.

A model is named as its provider names it. Of several with one name the first has it alone, and each can be named
with its provider before it: `openrouter/gpt-4o`.
"""

from __future__ import annotations

from collections.abc import Iterator

from django.utils.text import slugify

from accounts.models import User
from chat import protocol
from chat.api.errors import ApiError
from chat.conversations import offers
from chat.models import LanguageModel
from chat.models.catalogue import ModelKind

OTHER_KIND = {
    ModelKind.CHAT: "The model '{name}' makes no embeddings. GET /v1/models lists all models.",
    ModelKind.EMBEDDING: "The model '{name}' makes embeddings alone: use /v1/embeddings for it.",
}


def named(user: User) -> Iterator[tuple[str, LanguageModel]]:
    """Yield the models that a user may use, with their names, oldest first."""
    seen: set[str] = set()
    found = [one.model for kind in ModelKind for one in offers.offered(user, kind)]
    for model in sorted(found, key=lambda model: model.pk):
        name = model.provider_model
        if name in seen:
            name = full_name(model)
        seen.add(name)
        yield name, model


def full_name(model: LanguageModel) -> str:
    """Return the name of a model with that of its provider."""
    provider = slugify(str(model.provider or "default")) or str(model.provider_id)
    return f"{provider}/{model.provider_model}"


def find(user: User, name: str, kind: ModelKind | None = None) -> LanguageModel:
    """Return the model with a name, that of `named`, the full one or the one of pages, and of a kind.

    Raises ApiError.
    """
    if not protocol.is_storable(name):  # Postgres refuses to look for it
        raise not_found(name)
    models = LanguageModel.objects.select_related("provider").filter(enabled=True).order_by("pk")
    plain = name.partition("/")[2]
    found = [
        model
        for model in models.filter(provider_model__in=[name, plain])
        if name in (model.provider_model, full_name(model))
    ] or list(models.filter(name=name))
    usable = [
        model for model in found if offers.is_usable(user, model) or offers.may_embed(user, model)
    ]
    for model in usable:
        if kind is None or model.kind == kind:
            return model
    if usable:
        words = OTHER_KIND[ModelKind(usable[0].kind)].format(name=name[:200])
        raise ApiError(400, words, code="model_not_supported", param="model")
    raise not_found(name)


def not_found(name: str) -> ApiError:
    """Return the error for a model that does not exist, or that the user may not use."""
    return ApiError(
        404,
        f"The model '{name[:200]}' does not exist or you do not have access to it.",
        code="model_not_found",
        param="model",
    )


def described(name: str, model: LanguageModel) -> dict[str, object]:
    """Return a model as lists show it."""
    return {
        "id": name,
        "object": "model",
        "created": int(model.created_at.timestamp()),
        "owned_by": str(model.provider or "default"),
    }
