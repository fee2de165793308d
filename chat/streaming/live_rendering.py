"""Renders the blocks of a reply as they end, in the tick that writes the text after them.

Rendering many blocks, or code, takes longer than the event loop of hundreds of runs may wait: then a thread
renders, one for all runs of the process, and the loop publishes the HTML when it is done.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from chat.rendering.document import Change, Document, is_light
from chat.rendering.splitter import Block

logger = logging.getLogger(__name__)

_thread = ThreadPoolExecutor(1, thread_name_prefix="rendering")


class NoRendering:
    """In place of the HTML of a reply that no page shows."""

    def add(self, text: str) -> None:
        """Add text to the reply."""

    async def finish(self, text: str) -> str:
        """Return the HTML of the reply: none."""
        return ""

    async def add_line(self, slot: str, html: str) -> int:
        """Add the line of a tool's call."""
        return 0

    def replace_line(self, number: int, html: str) -> None:
        """Replace the line of a tool's call."""

    def close(self) -> None:
        """End the rendering."""


class LiveRendering:
    """The HTML of one reply so far.

    `publish` is called with each change, and with the length of the text that the blocks then show, in
    UTF-16 code units; `notify` after changes that come from the thread.
    """

    def __init__(self, publish: Callable[[Change, int], None], notify: Callable[[], None]) -> None:
        self._document = Document()
        self._publish = publish
        self._notify = notify
        self._waiting: list[Block] = []
        self._task: asyncio.Task[None] | None = None  # while the thread renders
        self._is_closed = False
        # Of all before the present document: its HTML, blocks, characters and UTF-16 code units.
        self._before: list[str] = []
        self._blocks = self._length = self._units = 0

    def add(self, text: str) -> None:
        """Add text to the reply, and render the blocks that have ended."""
        self._waiting += self._document.split(text)
        if not self._waiting or self._task is not None:
            return
        if is_light(self._waiting):
            blocks, self._waiting = self._waiting, []
            self._document.render(blocks)
            self._publish_changes(self._document.split_length)
        else:
            self._task = asyncio.get_running_loop().create_task(self._render_in_thread())

    async def _render_in_thread(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                blocks, self._waiting = self._waiting, []
                length = self._document.split_length
                await loop.run_in_executor(_thread, self._document.render, blocks)
                if not self._is_closed:
                    self._publish_changes(length)
                    self._notify()
        finally:
            self._task = None

    def _publish_changes(self, length: int) -> None:
        for first, blocks in self._document.take_changes():
            self._publish(Change(self._blocks + first, blocks), self._units + length)

    async def finish(self, text: str) -> str | None:
        """Render the rest of a reply that is complete, and return its HTML.

        None if `text` is not the text that was added: then it must be rendered anew.
        """
        await self._render_rest()
        if self._length + self._document.length != len(text):
            return None
        self._publish_changes(self._document.split_length)
        return "".join(self._before) + self._document.html()

    async def _render_rest(self) -> None:
        if self._task is not None:
            await self._task
        blocks = self._document.split_rest()
        if is_light(blocks):
            self._document.render(blocks)
            self._document.settle()
        else:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(_thread, self._document.render, blocks)
            await loop.run_in_executor(_thread, self._document.settle)

    async def add_line(self, slot: str, html: str) -> int:
        """Add a line that is no text, such as a tool's call, after all text so far; return its number.

        It is published as the block `html`; the HTML of the reply has `slot` in its place.
        """
        if self._document.length:
            await self._render_rest()
            self._publish_changes(self._document.units)
            self._before.append(self._document.html())
            self._blocks += self._document.count
            self._length += self._document.length
            self._units += self._document.units
            self._document = Document()
        number = self._blocks
        self._before.append(slot)
        self._blocks += 1
        self.replace_line(number, html)
        return number

    def replace_line(self, number: int, html: str) -> None:
        """Publish another form of a line."""
        self._publish(Change(number, [html]), self._units)

    def close(self) -> None:
        """Publish nothing from now on: the reply is replaced."""
        self._is_closed = True
