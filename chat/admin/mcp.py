"""Admin of MCP servers: their addresses and secrets, and which of their tools are allowed."""

from __future__ import annotations

from typing import Any

import redis
from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Count, Q
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.urls import URLPattern, path, reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_POST

from chat.admin.catalogue import HIDDEN, LOST, hidden
from chat.models.catalogue import validate_headers
from chat.runs import queue
from chat.tools.mcp import authorization
from chat.tools.models import McpConnection, McpServer, McpTool
from chatproject.lib import encryption
from chatproject.lib.admin import BaseAdmin, MergedForm, MergingAdmin


class McpServerForm(MergedForm):
    """A server, whose secrets are written and never shown: a form that is saved unchanged keeps them."""

    merged_fields = ("header_lines",)

    header_lines = forms.CharField(
        label=gettext_lazy("Headers"),
        required=False,
        max_length=20_000,
        widget=forms.Textarea(attrs={"rows": 3, "class": "vLargeTextField"}),
        help_text=gettext_lazy(
            "One a line, for example Authorization: Bearer abc. They are stored encrypted."
        ),
    )
    client_id = forms.CharField(
        label=gettext_lazy("Client ID"),
        required=False,
        max_length=500,
        widget=forms.TextInput(attrs={"class": "vTextField", "autocomplete": "off"}),
        help_text=gettext_lazy(
            "With OAuth: of a client that you registered there. Empty: this site registers itself."
        ),
    )
    new_client_secret = forms.CharField(
        label=gettext_lazy("Client secret"),
        required=False,
        max_length=4_000,
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password", "class": "vTextField"}),
        help_text=gettext_lazy("Stored encrypted, and not shown again. Leave it empty to keep it."),
    )

    class Meta:
        model = McpServer
        fields = (
            *("name", "slug", "url", "auth", "groups", "seconds"),
            *("allows_new_tools", "enabled"),
        )

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        try:
            lines = [f"{name}: {hidden(value)}" for name, value in self.instance.headers.items()]
            self.initial["header_lines"] = "\n".join(lines)
        except encryption.Undecryptable:
            self.fields["header_lines"].help_text = LOST.format(what="headers")
        try:
            known = self.instance.client
        except encryption.Undecryptable:
            known = {}
        if known.get("source") == "staff":
            self.initial["client_id"] = known["client_id"]

    def clean_header_lines(self) -> dict[str, str] | None:
        """Return the headers; None for unchanged ones."""
        if "header_lines" not in self.changed_data:
            return None
        headers: dict[str, str] = {}
        for line in str(self.cleaned_data["header_lines"]).splitlines():
            name, colon, value = (part.strip() for part in line.partition(":"))
            if not line.strip():
                continue
            if not colon or name in headers:
                words = _("Write one header a line, as Name: value. Not: %(name)s")
                raise ValidationError(words % {"name": name[:50]})
            headers[name] = self._kept(name, value) if value.startswith(HIDDEN) else value
        validate_headers(headers)
        return headers

    def _kept(self, name: str, shown: str) -> str:
        try:
            value = self.instance.headers.get(name, "")
        except encryption.Undecryptable:
            value = ""
        if not value or hidden(value) != shown:
            raise ValidationError(_("Write the value of %(name)s.") % {"name": name})
        return str(value)

    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean()
        data, server = self.cleaned_data, self.instance
        if data.get("header_lines") is not None:
            server.headers = data["header_lines"]
        self._take_client(data.get("client_id") or "", data.get("new_client_secret") or "")
        if {"url", "auth"} & set(self.changed_data) and server.pk:
            # Another server: what was discovered of the one before does not hold.
            server.oauth, server.problem, server.protocol = {}, "", ""
        return cleaned

    def _take_client(self, client_id: str, secret: str) -> None:
        """Set the client that staff registered; without an ID, forget it."""
        server = self.instance
        try:
            known = server.client
        except encryption.Undecryptable:
            known = {}
        is_staffs = known.get("source") == "staff"
        if not client_id:
            if is_staffs:
                server.client = {}
            return
        secret = secret or (known.get("client_secret", "") if is_staffs else "")
        made = {
            "client_id": client_id,
            "source": "staff",
            "redirect_uri": authorization.redirect_uri(),
        }
        if secret:
            made |= {"client_secret": secret, "method": "client_secret_basic"}
        if made != known:
            server.client = made


class McpToolInline(admin.TabularInline):  # type: ignore[type-arg] # not generic at run time
    """The tools that a server listed last."""

    model = McpTool
    fields = ("name", "description", "read_only", "allowed", "approval", "missing_since")
    readonly_fields = ("name", "description", "read_only", "missing_since")
    extra = 0
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(McpServer)
class McpServerAdmin(MergingAdmin):
    form = McpServerForm
    inlines = [McpToolInline]
    filter_horizontal = ["groups"]
    list_display = ["name", "slug", "url", "auth", "tools_count", "listed_at", "problem", "enabled"]
    search_fields = ["name", "slug", "url"]
    ordering = ["name"]
    readonly_fields = ["problem", "checked_at", "listed_at", "protocol"]
    fieldsets = [
        (None, {"fields": ["name", "slug", "url", "enabled"]}),
        (
            gettext_lazy("Authorisation"),
            {"fields": ["auth", "header_lines", "client_id", "new_client_secret"]},
        ),
        (gettext_lazy("Use"), {"fields": ["groups", "seconds", "allows_new_tools"]}),
        (gettext_lazy("State"), {"fields": ["problem", "checked_at", "listed_at", "protocol"]}),
    ]
    change_form_template = "admin/tools/mcpserver/change_form.html"

    def get_queryset(self, request: HttpRequest) -> Any:
        allowed = Count("tools", filter=Q(tools__allowed=True, tools__missing_since=None))
        return super().get_queryset(request).annotate(tools_count=allowed)

    @admin.display(description=gettext_lazy("allowed tools"), ordering="tools_count")
    def tools_count(self, server: Any) -> int:
        """Return how many tools of the server are allowed."""
        return int(server.tools_count)

    def get_urls(self) -> list[URLPattern]:
        return [
            path(
                "<int:pk>/refresh/",
                self.admin_site.admin_view(require_POST(self.refresh)),
                name="tools_mcpserver_refresh",
            ),
            *super().get_urls(),
        ]

    def refresh(self, request: HttpRequest, pk: int) -> HttpResponse:
        """List the tools of a server anew, by a job."""
        server = get_object_or_404(McpServer, pk=pk)
        if not self.has_change_permission(request, server):
            raise PermissionDenied
        self._enqueue(request, server)
        return HttpResponseRedirect(reverse("admin:tools_mcpserver_change", args=[pk]))

    def _enqueue(self, request: HttpRequest, server: McpServer) -> None:
        try:
            queue.enqueue_mcp("refresh", server_id=server.pk)
        except redis.RedisError:
            words = _("The queue cannot be reached. Refresh the tools in a moment.")
            self.message_user(request, words, messages.WARNING)
            return
        words = _("The tools are being listed. Reload this page for the result.")
        self.message_user(request, words, messages.INFO)

    def response_post_save_add(self, request: HttpRequest, obj: McpServer) -> HttpResponseRedirect:
        """List the tools of a new server, and lead to its page."""
        self._enqueue(request, obj)
        return HttpResponseRedirect(reverse("admin:tools_mcpserver_change", args=[obj.pk]))


@admin.register(McpConnection)
class McpConnectionAdmin(BaseAdmin):
    """The connections of users, without their tokens: staff see who is connected, and end a connection."""

    fields = readonly_fields = (
        *("server", "user", "scope", "connected_at", "expires_at", "problem"),
    )
    list_display = ["server", "user", "connected_at", "problem"]
    list_select_related = ["server", "user"]
    search_fields = ["user__email", "server__name"]
    sortable_by = ()

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
