"""The keyboard shortcuts of the chat pages: listed by the help sheet and the settings, carried out by chat-keys.

A single key works only outside of text fields, so it takes no key from a screen reader's typing, and users can
switch these off. In fields only Ctrl or ⌘ with K, "/" or "." is used, which browsers leave to pages.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy


@dataclass(frozen=True)
class Shortcut:
    """A named action of static/js/elements/chat_keys.js and its keys, as `KeyboardEvent.key` has them."""

    action: str
    label: Promise
    key: str  # without a modifier; empty: none
    command_key: str = ""  # with Ctrl, or ⌘ on a Mac
    icon: str = ""  # in the command palette; empty: the action is not offered there


SHORTCUTS = (
    Shortcut("palette", _("Search chats and commands"), "", "k"),
    Shortcut("search", _("Search your chats"), "/", icon="search"),
    Shortcut("new", _("New chat"), "n", icon="new"),
    Shortcut("next", _("Next chat"), "j", icon="down"),
    Shortcut("previous", _("Previous chat"), "k", icon="up"),
    Shortcut("list", _("Go to the list of chats"), "s", icon="chats"),
    Shortcut("write", pgettext_lazy("shortcut", "Write a message"), "m", icon="edit"),
    Shortcut("send", _("Send the message"), "Enter"),
    Shortcut("stop", _("Stop the reply"), "", ".", "stop"),
    Shortcut("edit", _("Edit your last message"), "e", icon="edit"),
    Shortcut("copy", _("Copy the last reply"), "c", icon="copy"),
    Shortcut("leave", _("Leave the message field"), "Escape"),
    Shortcut("help", _("Keyboard shortcuts"), "?", "/", "keyboard"),
)
