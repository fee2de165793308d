"""The tool `current_time`."""

from __future__ import annotations

from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from django.utils import timezone
from django.utils.translation import gettext_lazy
from msgspec import Meta

from chat.tools.registry import ToolContext, ToolError, ToolResult, tool
from chatproject.lib import languages


@tool(
    name="current_time",
    title=gettext_lazy("Current time"),
    progress=gettext_lazy("Looking at the clock…"),
)
def current_time(
    context: ToolContext,
    zone: Annotated[
        str, Meta(max_length=64, description='Time zone, such as "Europe/Berlin"; UTC without one')
    ] = "UTC",
) -> ToolResult:
    """Return the present date, time and day of the week."""
    try:
        now = timezone.now().astimezone(ZoneInfo(zone))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ToolError(
            gettext_lazy("There is no time zone %(zone)s."),
            zone=zone,
            detail="Use a name of the IANA database.",
        ) from None
    return ToolResult(
        text=f"{now:%A}, {now:%Y-%m-%d %H:%M:%S} {now:%Z} (UTC{now:%z})",
        summary=languages.day(now.replace(tzinfo=None), "j F Y, H:i"),
    )
