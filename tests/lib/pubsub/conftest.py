"""Every asynchronous test here runs in asyncio's own event loop and in uvloop's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import pytest
import pytest_asyncio
import uvloop

from chatproject.lib.pubsub.hosts import Host
from chatproject.lib.pubsub.layer import PubSubChannelLayer

MakeLayer = Callable[..., PubSubChannelLayer]


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest_asyncio.fixture
async def make_layer(valkey_url: str) -> AsyncIterator[MakeLayer]:
    """Makes layers, by default on this process's Valkey, and flushes them at the end."""
    layers = []

    def make(hosts: Sequence[Host] | None = None, **options: Any) -> PubSubChannelLayer:
        layer = PubSubChannelLayer(hosts=hosts or [valkey_url], **options)
        layers.append(layer)
        return layer

    yield make
    async with asyncio.timeout(10):
        for layer in layers:
            await layer.flush()


@pytest.fixture
def layer(make_layer: MakeLayer) -> PubSubChannelLayer:
    return make_layer()


@pytest.fixture
def other_layer(make_layer: MakeLayer) -> PubSubChannelLayer:
    """A second layer on the same Valkey, as another process has one."""
    return make_layer()
