"""Calls of tools: coroutines in the event loop, plain functions in a bounded pool of threads."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from functools import cache
from typing import Any

from django.conf import settings
from django.db import connections
from django.utils.translation import gettext_lazy

from chat.tools.registry import Tool, ToolContext, ToolError, ToolResult
from chatproject.lib import db, languages

logger = logging.getLogger(__name__)

TOO_SLOW = gettext_lazy("The tool took longer than %(seconds)s seconds.")
FAILED = gettext_lazy("The tool failed. This has been logged.")


async def call(tool: Tool, context: ToolContext, arguments: Mapping[str, Any]) -> ToolResult:
    """Call a tool within its time. Raises ToolError for any failure, and db.UNREACHABLE.

    A plain function that is too slow ends in its thread, and its result is dropped.
    """
    context = replace(context, deadline=min(context.deadline, time.monotonic() + tool.seconds))
    try:
        async with asyncio.timeout(context.deadline - time.monotonic()):
            if not tool.is_async:
                return await asyncio.get_running_loop().run_in_executor(
                    _threads(), copy_context().run, _call_in_thread, tool, context, arguments
                )
            with languages.use(context.language):
                return await tool.call(context, arguments)  # type: ignore[misc,no-any-return]
    except (ToolError, *db.UNREACHABLE):
        raise
    except TimeoutError:
        raise ToolError(TOO_SLOW, seconds=round(tool.seconds)) from None
    except Exception:
        logger.exception("the tool %s of run %s failed", tool.name, context.run_id)
        raise ToolError(FAILED) from None


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(settings.TOOL_THREADS, thread_name_prefix="tool")


def _call_in_thread(tool: Tool, context: ToolContext, arguments: Mapping[str, Any]) -> ToolResult:
    try:
        with languages.use(context.language):
            return tool.call(context, arguments)  # type: ignore[return-value] # not a coroutine function
    finally:
        connections.close_all()
