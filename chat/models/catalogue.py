"""The catalogue: providers, the language models that they serve, and the assistants that use them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, gettext_noop

from chatproject.lib import encryption, env
from chatproject.lib.hosts import has_valid_host

HTTP_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")  # RFC 9110, 5.6.2
HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,3998}[\x21-\x7e])?")

# Headers that the request itself sets: the body's framing, the connection, the format of the reply.
RESERVED_HEADERS = frozenset(
    (
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)

# Of the first assistant, which `create_catalogue` makes.
SUGGESTIONS = (
    gettext_noop("Explain how a rainbow comes about, in three sentences."),
    gettext_noop("Write a short, friendly note to a new neighbour."),
    gettext_noop("Give me five ideas for a rainy Sunday afternoon."),
)


def validate_base_url(value: str) -> None:
    """Raise ValidationError unless a value is the address of an API, such as https://host/v1."""
    parts = _url_parts(value, ("http", "https"))
    if parts.username is not None or parts.password is not None:
        raise ValidationError("Leave out the user and password; enter a key below instead.")
    if parts.query or parts.fragment or "?" in value or "#" in value:
        raise ValidationError(_("Leave out everything from the ? or # on."))
    if parts.path.rstrip("/").endswith("/chat/completions"):
        raise ValidationError(_("Leave out /chat/completions: it is added to each request."))


def validate_proxy(value: str) -> None:
    """Raise ValidationError unless a value is the address of an HTTP proxy."""
    parts = _url_parts(value, ("http", "https"))
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValidationError(_("Write only scheme, host and port, for example http://proxy:3128."))
    if ":" in unquote(parts.username or ""):
        raise ValidationError(_("A colon is not allowed in the user of a proxy."))


def _url_parts(value: str, schemes: tuple[str, ...]) -> Any:
    example = _("Write an address that begins with %(schemes)s.") % {
        "schemes": " or ".join(f"{one}://" for one in schemes)
    }
    if any(not "\x21" <= character <= "\x7e" for character in value):
        raise ValidationError(
            f"{example} It has a space or a character that addresses cannot have."
        )
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise ValidationError(
            _("The host or port is not valid: a port is a number up to 65535.")
        ) from None
    if parts.scheme not in schemes or not parts.hostname or port == 0:
        raise ValidationError(example)
    if not has_valid_host(parts):
        raise ValidationError(
            _("The host is neither a name nor an IP address. Check its spelling.")
        )
    return parts


def validate_headers(headers: Mapping[str, str]) -> None:
    """Raise ValidationError unless an HTTP request may have these names and values."""
    for name, value in headers.items():
        if not HTTP_TOKEN.fullmatch(name):
            raise ValidationError(f"{name[:50]!r} is not the name of a header.")
        if name.lower() in RESERVED_HEADERS:
            raise ValidationError(f"{name} is set by each request itself. Remove it.")
        if not HEADER_VALUE.fullmatch(value):
            raise ValidationError(
                _("The value of %(name)s is empty, too long, or has characters other than ASCII.")
                % {"name": name}
            )
    if len({name.lower() for name in headers}) < len(headers):
        raise ValidationError(_("A header is named twice."))


class Provider(models.Model):
    """A server with OpenAI's chat completions API, and the limits of requests to it.

    A row without a base URL is the environment's provider: its address and key are OPENAI_BASE_URL and
    OPENAI_API_KEY of the process. The key, the extra headers and the proxy's address may contain
    secrets and are encrypted (chatproject.lib.encryption); the properties `key`, `headers` and `proxy`
    decrypt them, raising encryption.Undecryptable, and encrypt what is assigned.
    """

    name = models.CharField(
        max_length=100,
        unique=True,
        help_text=gettext_lazy("The heading of its models in the list of models."),
    )
    base_url = models.CharField(
        "base URL",
        max_length=500,
        blank=True,
        default="",
        validators=[validate_base_url],
        help_text=gettext_lazy(
            "For example https://api.example.com/v1. Empty: OPENAI_BASE_URL and OPENAI_API_KEY "
            "of the environment."
        ),
    )
    key_variable = models.CharField(
        gettext_lazy("variable of the key"),
        max_length=100,
        blank=True,
        default="",
        # Not any variable: staff could send SECRET_KEY or DATABASE_URL to a server of their choice.
        validators=[
            RegexValidator(
                r"^[A-Z][A-Z0-9_]*_API_KEY\Z",
                gettext_lazy(
                    "Write the name of a variable that ends in _API_KEY, for example MISTRAL_API_KEY."
                ),
            )
        ],
        help_text=gettext_lazy(
            "Instead of a stored key: the environment variable of the workers that has it, or "
            "with _FILE appended names its file. Its name must end in _API_KEY."
        ),
    )
    encrypted_key = models.TextField(blank=True, default="", editable=False)
    encrypted_headers = models.TextField(blank=True, default="", editable=False)
    encrypted_proxy = models.TextField(blank=True, default="", editable=False)
    first_byte_seconds = models.PositiveIntegerField(
        gettext_lazy("first byte limit"),
        default=300,
        validators=[MinValueValidator(1)],
        help_text=gettext_lazy(
            "Seconds without a first byte of the reply after which a request is given up and "
            "tried again, within the time limit of a reply (RUN_SECONDS)."
        ),
    )
    silence_seconds = models.PositiveIntegerField(
        "silence limit",
        default=120,
        validators=[MinValueValidator(1)],
        help_text=gettext_lazy("Seconds without a further byte after which a reply has failed."),
    )
    concurrency = models.PositiveIntegerField(
        "concurrency limit",
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text="Replies that all workers together request at the same time; further ones wait in "
        "the queue. Empty: no limit.",
    )
    notes = models.TextField(blank=True, default="")
    enabled = models.BooleanField(default=True)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    # In SQL, the key of the provider of a chat_languagemodel named `model`.
    OF_MODEL = "COALESCE(model.provider_id, (SELECT id FROM chat_provider WHERE base_url = ''))"

    # The columns that `manage.py rotate_keys` encrypts anew.
    ENCRYPTED = ("encrypted_key", "encrypted_headers", "encrypted_proxy")

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(
                fields=["base_url"],
                condition=Q(base_url=""),
                name="provider_one_of_the_environment",
                violation_error_message=gettext_lazy(
                    "Another provider already is the environment's: enter a base URL."
                ),
            ),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def is_environment(self) -> bool:
        return not self.base_url

    @property
    def address(self) -> str:
        """The base URL that requests go to."""
        return self.base_url or settings.OPENAI_BASE_URL

    @property
    def key(self) -> str:
        """The API key: of the row, of the variable that it names, or the environment's; "" without one."""
        if self.is_environment:
            return str(settings.OPENAI_API_KEY)
        if self.key_variable:
            return env.secret(self.key_variable)
        return encryption.decrypt(self.encrypted_key)

    @key.setter
    def key(self, key: str) -> None:
        self.encrypted_key = encryption.encrypt(key)

    @property
    def headers(self) -> dict[str, str]:
        """Extra headers of each request."""
        text = encryption.decrypt(self.encrypted_headers)
        return msgspec.json.decode(text, type=dict[str, str]) if text else {}

    @headers.setter
    def headers(self, headers: Mapping[str, str]) -> None:
        text = msgspec.json.encode(dict(headers)).decode() if headers else ""
        self.encrypted_headers = encryption.encrypt(text)

    @property
    def proxy(self) -> str:
        """The address of the proxy for requests; "": the environment's HTTP_PROXY and HTTPS_PROXY."""
        return encryption.decrypt(self.encrypted_proxy)

    @proxy.setter
    def proxy(self, proxy: str) -> None:
        self.encrypted_proxy = encryption.encrypt(proxy)

    @property
    def connection_terms(self) -> tuple[object, ...]:
        """All that connections are opened from, still encrypted: another value opens others."""
        environment = (settings.OPENAI_BASE_URL, settings.OPENAI_API_KEY)
        return (
            self.name,
            self.base_url or environment,
            self.key_variable,
            self.encrypted_key,
            self.encrypted_headers,
            self.encrypted_proxy,
            self.first_byte_seconds,
            self.silence_seconds,
        )

    def clean(self) -> None:
        self.base_url = self.base_url.rstrip("/")
        if self.is_environment and (self.key_variable or self.encrypted_key):
            raise ValidationError(
                _(
                    "The environment's provider has its key in OPENAI_API_KEY. Enter a base URL, or no key."
                )
            )
        if self.key_variable and self.encrypted_key:
            raise ValidationError(_("Enter either a key or the name of its variable."))


class Continuation(models.TextChoices):
    """Request format that makes a model continue a partial reply; empty when it cannot."""

    PREFILL = (
        "prefill",
        gettext_lazy("The last message is the beginning (Anthropic, llama.cpp, OpenRouter)"),
    )
    PREFIX = "prefix", gettext_lazy("The last message is marked as prefix (Mistral, DeepSeek)")
    VLLM = "vllm", "continue_final_message (vLLM, SGLang)"


# Words for `reasoning_effort`, from the least to the most, as the known servers take them.
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def validate_efforts(value: Any) -> None:
    """Raise ValidationError unless a value is a list of EFFORTS, each once."""
    if not isinstance(value, list) or not all(
        isinstance(one, str) and one in EFFORTS and value.count(one) == 1 for one in value
    ):
        raise ValidationError(
            _("Write each of these at most once: %(efforts)s.") % {"efforts": ", ".join(EFFORTS)}
        )


MOST_TOOLS = 64  # of an assistant


def validate_tools(value: Any) -> None:
    """Raise ValidationError unless a value is a list of names of tools."""
    if (
        not isinstance(value, list)
        or len(value) > MOST_TOOLS
        or not all(isinstance(one, str) and 0 < len(one) <= 100 for one in value)
    ):
        raise ValidationError(_("Choose at most %(most)s tools.") % {"most": MOST_TOOLS})


class ModelKind(models.TextChoices):
    """The work of a model: replies, or vectors for texts, which the API alone offers."""

    CHAT = "chat", gettext_lazy("replies")
    EMBEDDING = "embedding", gettext_lazy("embeddings")


MOST_INPUTS = 2_048  # of a request for embeddings, as OpenAI's
MOST_DIMENSIONS = 4_000  # of a vector in pgvector's index of half-precision vectors


class LanguageModel(models.Model):
    """A model that a provider serves; one without a provider belongs to the environment's.

    (During a rolling upgrade the previous release still inserts models without a provider.)
    """

    provider = models.ForeignKey(
        Provider, null=True, on_delete=models.PROTECT, related_name="models"
    )
    name = models.CharField(max_length=100, help_text=gettext_lazy("What people see."))
    provider_model = models.CharField(
        max_length=200,
        help_text=gettext_lazy("The name that the provider knows it by, for example gpt-4o-mini."),
    )
    # Defaults of the database here and below: during a rolling upgrade the previous release still inserts rows.
    kind = models.CharField(
        max_length=9,
        choices=ModelKind,
        default=ModelKind.CHAT,
        db_default=ModelKind.CHAT,
        help_text=gettext_lazy("Models for embeddings are offered by the API alone."),
    )
    dimensions = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(16_384)],
        help_text=gettext_lazy("Of a model for embeddings: the numbers of a vector."),
    )
    max_inputs = models.PositiveIntegerField(
        gettext_lazy("inputs"),
        default=MOST_INPUTS,
        db_default=MOST_INPUTS,
        validators=[MinValueValidator(1), MaxValueValidator(10_000)],
        help_text=gettext_lazy("Of a model for embeddings: the texts of a request at most."),
    )
    documents = models.BooleanField(
        gettext_lazy("for documents"),
        default=False,
        db_default=False,
        help_text=gettext_lazy(
            "Of a model for embeddings: questions over documents find passages by its vectors, too. One model"
            " at most; another one makes all vectors anew."
        ),
    )
    query_prefix = models.CharField(
        max_length=200,
        blank=True,
        default="",
        db_default="",
        help_text=gettext_lazy(
            "Of a model for documents: before each question, such as “query: ” for E5, with its space."
        ),
    )
    passage_prefix = models.CharField(
        max_length=200,
        blank=True,
        default="",
        db_default="",
        help_text=gettext_lazy(
            "Of a model for documents: before each passage, such as “passage: ” for E5, with its space."
        ),
    )
    min_similarity = models.FloatField(
        gettext_lazy("least similarity"),
        null=True,
        blank=True,
        validators=[MinValueValidator(0.0), MaxValueValidator(1.0)],
        help_text=gettext_lazy(
            "Of a model for documents: passages less similar to a question (cosine, 0 to 1) do not count"
            " as found by their meaning. Empty: all count."
        ),
    )
    context_tokens = models.PositiveIntegerField(
        default=128_000,
        validators=[MinValueValidator(512)],
        help_text=gettext_lazy(
            "Size of the context window: prompt and reply together; of a model for embeddings, one text."
        ),
    )
    max_output_tokens = models.PositiveIntegerField(
        default=4_096,
        validators=[MinValueValidator(16)],
        help_text=gettext_lazy("The longest reply that is asked for."),
    )
    continuation = models.CharField(
        max_length=7,
        blank=True,
        default="",
        db_default="",
        choices=Continuation,
        help_text=gettext_lazy(
            "How it is asked to go on with a reply that lost its worker. If unsure, leave it: "
            "the reply then begins anew."
        ),
    )
    fallback = models.ForeignKey(
        "self",
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="+",
        help_text=gettext_lazy(
            "The model that is asked when this one's provider fails before the first word: "
            "best one of another provider."
        ),
    )
    # The vocabulary is that of chat.llm.quirks, which ignores anything else.
    quirks = models.JSONField(
        default=dict,
        db_default={},
        blank=True,
        help_text="What its server refuses, one for each line, such as temperature: left out. Replies"
        " add what they meet; remove a line, and the next reply tries again.",
    )
    # Shown to users when they choose a model.
    description = models.CharField(
        max_length=200,
        blank=True,
        default="",
        db_default="",
        help_text=gettext_lazy("What it is good for, in one sentence for users."),
    )
    vision = models.BooleanField(
        default=False, db_default=False, help_text=gettext_lazy("It reads images.")
    )
    image_tokens = models.PositiveIntegerField(
        null=True,
        blank=True,
        help_text="Tokens of an image of 1024 by 1024 pixels, as its provider counts them; empty: 1,400."
        " (gpt-4o-mini counts 25,500.)",
    )
    tools = models.BooleanField(
        default=False, db_default=False, help_text=gettext_lazy("It can call tools.")
    )
    reasoning = models.BooleanField(
        default=False, db_default=False, help_text=gettext_lazy("It reasons before it answers.")
    )
    efforts = models.JSONField(
        "reasoning efforts",
        default=list,
        db_default=[],
        blank=True,
        validators=[validate_efforts],
        help_text=gettext_lazy(
            "The values of reasoning_effort that users may choose, one for each line, such as"
            " low, medium and high. Empty: no choice."
        ),
    )
    restricted = models.BooleanField(
        default=False,
        db_default=False,
        help_text=gettext_lazy("Only staff and the groups below may use it."),
    )
    groups = models.ManyToManyField(
        "auth.Group",
        blank=True,
        related_name="+",
        help_text=gettext_lazy("Used only if it is restricted."),
    )
    enabled = models.BooleanField(default=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(
                fields=["provider", "name"],
                nulls_distinct=False,
                name="model_name_once_per_provider",
                violation_error_message=gettext_lazy(
                    "This provider already has a model of that name."
                ),
            ),
            models.UniqueConstraint(
                fields=["documents"],
                condition=Q(documents=True),
                name="model_one_for_documents",
                violation_error_message=gettext_lazy(
                    "Another model is for documents already: clear its mark first."
                ),
            ),
            models.CheckConstraint(
                condition=Q(kind=ModelKind.EMBEDDING)
                | Q(max_output_tokens__lt=models.F("context_tokens")),
                name="model_reply_fits_context",
                violation_error_message=gettext_lazy(
                    "The longest reply must be smaller than the context window."
                ),
            ),
        ]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        # A form may leave these two out.
        self.kind = self.kind or ModelKind.CHAT
        self.max_inputs = self.max_inputs or MOST_INPUTS
        if self.kind == ModelKind.EMBEDDING and not self.dimensions:
            raise ValidationError({"dimensions": _("Enter the size of its vectors.")})
        if self.documents and self.kind != ModelKind.EMBEDDING:
            raise ValidationError(
                {"documents": _("Only a model of the kind embeddings makes vectors.")}
            )
        if self.documents and (self.dimensions or 0) > MOST_DIMENSIONS:
            raise ValidationError(
                {"dimensions": _("The index of documents takes vectors of 4,000 numbers at most.")}
            )
        if self.pk is None:
            return  # no other model can have it as its fallback yet
        if self.kind == ModelKind.EMBEDDING and self.assistants.exists():
            raise ValidationError(
                {"kind": _("Assistants reply with this model. Change them first.")}
            )
        seen, fallback = {self.pk}, self.fallback
        while fallback is not None:
            if fallback.pk in seen:
                raise ValidationError({"fallback": _("This model would fall back to itself.")})
            seen.add(fallback.pk)
            fallback = fallback.fallback

    @property
    def takes_temperature(self) -> bool:
        """Whether requests have a temperature: its server has not refused the field (chat.llm.quirks)."""
        return "temperature" not in self.quirks

    @property
    def context_thousands(self) -> int:
        """The context window in thousands of tokens, as pages write it."""
        return max(1, self.context_tokens // 1_000)

    @property
    def offered_efforts(self) -> list[str]:
        """The reasoning efforts that users may choose, without values that no request can have."""
        return [one for one in texts_in(self.efforts) if one in EFFORTS]


# The pictures of assistants: symbols of static/icons/assistants.svg.
ICONS = (
    *("spark", "pen", "book", "code", "chart", "language", "lamp", "flask", "briefcase", "heart"),
    *(
        "globe",
        "music",
        "camera",
        "cooking",
        "plant",
        "compass",
        "shield",
        "scales",
        "puzzle",
        "cap",
    ),
)


class Assistant(models.Model):
    """A model with a system prompt; each conversation has one assistant.

    Staff's have no owner. A personal one belongs to its owner, and is an orphan once the owner is deleted.
    chat.conversations.assistants decides which ones a user's new conversations may have.
    """

    slug = models.SlugField(unique=True)
    name = models.CharField(max_length=100)
    # Defaults of the database: during a rolling upgrade the previous release still inserts rows.
    icon = models.CharField(
        max_length=20,
        blank=True,
        default="",
        db_default="",
        choices=[(icon, icon) for icon in ICONS],
        help_text=gettext_lazy("Chats with an assistant that has one show it beside their title."),
    )
    description = models.CharField(
        max_length=200,
        blank=True,
        default="",
        db_default="",
        help_text=gettext_lazy("What it is for, in one sentence for users."),
    )
    system_prompt = models.TextField(blank=True)
    model = models.ForeignKey(LanguageModel, on_delete=models.PROTECT, related_name="assistants")
    temperature = models.FloatField(
        null=True,
        blank=True,
        validators=[MinValueValidator(0.0), MaxValueValidator(2.0)],
        help_text="From 0 to 2; empty leaves it to the provider.",
    )
    reasoning_effort = models.CharField(
        max_length=10,
        blank=True,
        default="",
        db_default="",
        choices=[(effort, effort) for effort in EFFORTS],
        help_text="Used if the model has it; empty leaves it to the model.",
    )
    suggestions = models.JSONField(
        default=list,
        blank=True,
        help_text=gettext_lazy("First questions that a new chat offers: a list of texts."),
    )
    tools = models.JSONField(
        default=list,
        db_default=[],
        blank=True,
        validators=[validate_tools],
        help_text=gettext_lazy(
            "What its model may do while it answers, if it can call tools. Chats with documents have the tools"
            " for documents in any case."
        ),
    )
    message_fee = models.PositiveBigIntegerField(
        default=0,
        help_text="Micro-credits for each message, on top of the model's price; for what its tools cost.",
    )
    restricted = models.BooleanField(
        default=False,
        db_default=False,
        help_text=gettext_lazy("Only staff and the groups below may use it."),
    )
    groups = models.ManyToManyField(
        "auth.Group",
        blank=True,
        related_name="+",
        help_text=gettext_lazy("Used only if it is restricted."),
    )
    personal = models.BooleanField(
        default=False, db_default=False, editable=False, help_text=gettext_lazy("A user made it.")
    )
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        editable=False,
        on_delete=models.SET_NULL,
        related_name="assistants",
    )
    shared = models.BooleanField(
        default=False,
        db_default=False,
        editable=False,
        help_text=gettext_lazy("All users of the site may use a personal one."),
    )
    deleted_at = models.DateTimeField(null=True, blank=True, editable=False)
    enabled = models.BooleanField(default=True)
    position = models.PositiveSmallIntegerField(
        default=0, help_text=gettext_lazy("The lowest is the default.")
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["position", "name"]
        indexes = [
            models.Index(
                fields=["name", "id"],
                name="assistant_shared",
                condition=Q(shared=True, deleted_at=None),
            ),
            models.Index(
                fields=["id"],
                name="assistant_to_purge",
                condition=Q(Q(deleted_at__isnull=False) | Q(owner=None), personal=True),
            ),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(personal=True) | Q(owner=None, shared=False, deleted_at=None),
                name="assistant_owned_if_personal",
            ),
        ]

    def __str__(self) -> str:
        # The name of a user's own is private: the admin names rows so.
        return f"assistant {self.pk}" if self.is_private else self.name

    @property
    def is_private(self) -> bool:
        """Whether it belongs to a user who does not share it."""
        return self.personal and not self.shared

    @property
    def first_questions(self) -> list[str]:
        """The suggestions, without values that are no text: the column holds any JSON.

        The suggestions of the first assistant are in the active language, as long as staff leave them as they are.
        """
        texts = texts_in(self.suggestions)
        return [_(text) if text in SUGGESTIONS else text for text in texts]


def texts_in(value: Any) -> list[str]:
    """Return the texts of a stored list, as lines without surrounding spaces; none of any other value."""
    if not isinstance(value, list):
        return []
    lines = [" ".join(text.split()) for text in value if isinstance(text, str)]
    return [line for line in lines if line]
