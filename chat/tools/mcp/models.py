"""MCP servers, the tools that they offer, and users' authorisations at them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec
from django.conf import settings
from django.contrib.auth.models import Group
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from chat.models import new_id
from chat.models.catalogue import validate_base_url
from chatproject.lib import encryption


class McpServer(models.Model):
    """A server that offers tools by the Model Context Protocol (streamable HTTP).

    Its headers and the OAuth client's secret are encrypted; the properties decrypt them, raising
    encryption.Undecryptable. `oauth` has what a worker has discovered of its authorization server
    (mcp.discovery.Endpoints); `encrypted_client` the client that this site is there.
    """

    class Auth(models.TextChoices):
        NONE = "none", gettext_lazy("none, or the headers below")
        OAUTH = "oauth", gettext_lazy("each user connects an account (OAuth)")

    name = models.CharField(
        max_length=60,
        unique=True,
        help_text=gettext_lazy("What people see beside its tools."),
    )
    slug = models.CharField(
        gettext_lazy("prefix"),
        max_length=20,
        unique=True,
        validators=[
            RegexValidator(
                r"^[a-z][a-z0-9]*\Z",
                gettext_lazy("Write small letters and digits, a letter first."),
            )
        ],
        help_text=gettext_lazy("The names of its tools begin with it, for example github."),
    )
    url = models.CharField(
        gettext_lazy("address"),
        max_length=500,
        validators=[validate_base_url],
        help_text=gettext_lazy("Its endpoint, for example https://mcp.example.com/mcp."),
    )
    auth = models.CharField(
        gettext_lazy("authorisation"), max_length=5, choices=Auth, default=Auth.NONE
    )
    encrypted_headers = models.TextField(blank=True, default="", editable=False)
    encrypted_client = models.TextField(blank=True, default="", editable=False)
    oauth = models.JSONField(default=dict, blank=True, editable=False)
    groups = models.ManyToManyField(
        Group,
        blank=True,
        help_text=gettext_lazy("Groups that may use its tools. Empty: all users."),
    )
    seconds = models.PositiveIntegerField(
        gettext_lazy("time limit"),
        default=30,
        validators=[MinValueValidator(1), MaxValueValidator(300)],
        help_text=gettext_lazy("Seconds of one call."),
    )
    allows_new_tools = models.BooleanField(
        gettext_lazy("allow new tools"),
        default=False,
        help_text=gettext_lazy(
            "Tools that it offers later are allowed at once. Otherwise only those of the first list."
        ),
    )
    enabled = models.BooleanField(gettext_lazy("enabled"), default=True)
    listed_at = models.DateTimeField(null=True, blank=True, editable=False)
    checked_at = models.DateTimeField(null=True, blank=True, editable=False)
    problem = models.CharField(max_length=500, blank=True, default="", editable=False)
    # Of the last list: a session begins with it, which saves a request.
    protocol = models.CharField(max_length=20, blank=True, default="", editable=False)
    created_at = models.DateTimeField(auto_now_add=True)

    # The columns that `manage.py rotate_keys` encrypts anew.
    ENCRYPTED = ("encrypted_headers", "encrypted_client")

    class Meta:
        verbose_name = gettext_lazy("MCP server")
        verbose_name_plural = gettext_lazy("MCP servers")
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    @property
    def source(self) -> str:
        """Its name among the tools that an assistant offers: all of its tools."""
        return f"mcp:{self.slug}"

    @property
    def needs_connection(self) -> bool:
        return self.auth == self.Auth.OAUTH

    @property
    def headers(self) -> dict[str, str]:
        """Headers of each request, such as an API key."""
        return _decoded(self.encrypted_headers)

    @headers.setter
    def headers(self, headers: Mapping[str, str]) -> None:
        self.encrypted_headers = _encoded(headers)

    @property
    def client(self) -> dict[str, str]:
        """This site as a client of the authorization server: `client_id`, `client_secret` and the like."""
        return _decoded(self.encrypted_client)

    @client.setter
    def client(self, client: Mapping[str, str]) -> None:
        self.encrypted_client = _encoded(client)

    def clean(self) -> None:
        try:
            has_header = any(name.lower() == "authorization" for name in self.headers)
        except encryption.Undecryptable:
            has_header = False
        if self.needs_connection and has_header:
            raise ValidationError(
                _("Remove the header Authorization: the token of each user takes its place.")
            )


def _encoded(values: Mapping[str, str]) -> str:
    return encryption.encrypt(msgspec.json.encode(dict(values)).decode() if values else "")


def _decoded(token: str) -> dict[str, str]:
    text = encryption.decrypt(token)
    return msgspec.json.decode(text, type=dict[str, str]) if text else {}


class McpTool(models.Model):
    """A tool as its server listed it last, and the decision of staff about it."""

    class Approval(models.TextChoices):
        DEFAULT = "default", gettext_lazy("unless it only reads")
        ALWAYS = "always", gettext_lazy("for each call")
        NEVER = "never", gettext_lazy("never")

    server = models.ForeignKey(McpServer, on_delete=models.CASCADE, related_name="tools")
    name = models.CharField(max_length=128)
    title = models.CharField(max_length=128, blank=True, default="")
    description = models.TextField(blank=True, default="")
    schema = models.JSONField(default=dict)
    read_only = models.BooleanField(
        gettext_lazy("only reads"),
        default=False,
        help_text=gettext_lazy("The server says that a call changes nothing."),
    )
    allowed = models.BooleanField(gettext_lazy("allowed"), default=True)
    approval = models.CharField(
        gettext_lazy("approval of the user"),
        max_length=7,
        choices=Approval,
        default=Approval.DEFAULT,
    )
    missing_since = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name = gettext_lazy("tool")
        verbose_name_plural = gettext_lazy("tools")
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(fields=["server", "name"], name="mcp_tool_named_once"),
        ]

    def __str__(self) -> str:
        return self.title or self.name

    @property
    def needs_approval(self) -> bool:
        """Whether the user allows each call."""
        if self.approval == self.Approval.DEFAULT:
            return not self.read_only
        return self.approval == self.Approval.ALWAYS


class McpConnection(models.Model):
    """A user's authorisation at a server. With tokens its tools can be used.

    A user who connects is sent to the authorization server with `state`, of which the hash is kept, and comes back
    with a code, which a worker exchanges. The code, the verifier of PKCE and the tokens are encrypted.
    """

    class Step(models.TextChoices):
        NONE = ""
        ASKED = "asked"  # the user was sent to the authorization server
        EXCHANGING = "exchanging"  # a worker fetches the tokens
        ENDING = "ending"  # a worker revokes the tokens, then deletes the row

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    server = models.ForeignKey(McpServer, on_delete=models.CASCADE, related_name="connections")
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="mcp_connections"
    )
    step = models.CharField(max_length=10, choices=Step, default=Step.NONE, blank=True)
    state_hash = models.CharField(max_length=64, blank=True, default="")
    encrypted_verifier = models.TextField(blank=True, default="")
    encrypted_code = models.TextField(blank=True, default="")
    encrypted_tokens = models.TextField(blank=True, default="")
    scope = models.CharField(max_length=1_000, blank=True, default="")
    expires_at = models.DateTimeField(null=True, blank=True)  # of the access token
    asked_at = models.DateTimeField(null=True, blank=True)
    connected_at = models.DateTimeField(null=True, blank=True)
    # Until then one worker alone refreshes the tokens: a refresh token is good for one use.
    refreshed_until = models.DateTimeField(null=True, blank=True)
    problem = models.CharField(max_length=300, blank=True, default="")

    # The columns that `manage.py rotate_keys` encrypts anew.
    ENCRYPTED = ("encrypted_verifier", "encrypted_code", "encrypted_tokens")

    class Meta:
        verbose_name = gettext_lazy("connection")
        verbose_name_plural = gettext_lazy("connections")
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(fields=["server", "user"], name="mcp_connected_once"),
        ]
        indexes = [
            models.Index(
                fields=["state_hash"], name="mcp_connection_asked", condition=~Q(state_hash="")
            ),
        ]

    def __str__(self) -> str:
        return f"connection {self.pk}"

    @property
    def is_connected(self) -> bool:
        return bool(self.encrypted_tokens) and self.step != self.Step.ENDING

    @property
    def tokens(self) -> dict[str, str]:
        """`access_token` and, if there is one, `refresh_token`."""
        return _decoded(self.encrypted_tokens)

    def store_tokens(self, tokens: Mapping[str, str], *, expires_at: datetime | None) -> None:
        """Set the tokens; the caller saves the row."""
        self.encrypted_tokens, self.expires_at = _encoded(tokens), expires_at
        self.problem = ""


def usable_servers(user_id: int) -> models.QuerySet[McpServer]:
    """Return the servers whose tools a user may use, connected or not."""
    of_groups = Q(groups=None) | Q(groups__user=user_id)
    return McpServer.objects.filter(of_groups, enabled=True).distinct()


def stored(values: Mapping[str, Any]) -> dict[str, str]:
    """Return those of the values that are texts, for an encrypted column."""
    return {name: value for name, value in values.items() if isinstance(value, str) and value}
