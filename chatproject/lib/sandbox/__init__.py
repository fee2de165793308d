"""A sandbox for work on files of users: one function in a child process of its own, with limits.

The child has no secret in its environment, an empty working directory, and limits of memory, time, output and
files; where the kernel has Landlock, it reads no other files than the installed packages and those
that the call names, and opens no TCP connection. It ends with its call, and with its parent.

Functions of the sandbox are named as `module:function` and must not need Django's settings. Their modules import
this package for `Refused` alone.
"""

from __future__ import annotations

from chatproject.lib.sandbox.errors import Refused, SandboxError
from chatproject.lib.sandbox.process import Limits, call, lines

__all__ = ["Limits", "Refused", "SandboxError", "call", "lines"]
