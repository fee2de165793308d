"""The errors of sandboxed functions, on both sides."""

from __future__ import annotations

from typing import Any


class Refused(Exception):
    """Raised by a sandboxed function to end its call with a code of its own, and details that JSON can hold."""

    def __init__(self, code: str, **details: Any) -> None:
        super().__init__(code)
        self.code = code
        self.details = details


class SandboxError(Exception):
    """A call did not succeed.

    `code` is `too_slow`, `too_much_memory`, `too_much_output`, `crashed`, or `failed` when the function raised
    Refused, whose code is the `reason`. The reason of a crash is the place in the code or the signal, never
    a text of the user.
    """

    def __init__(self, code: str, reason: str = "", details: dict[str, Any] | None = None) -> None:
        super().__init__(f"{code}: {reason}" if reason else code)
        self.code = code
        self.reason = reason
        self.details = details or {}
