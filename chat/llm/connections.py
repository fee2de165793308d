"""The connections of this process to the providers: one `Provider` for each row that is in use.

They belong to an event loop, are opened at first use, and are replaced when their row has changed: a
reply that is being generated ends on the connections that it began with. Connections that no reply has
used for IDLE_SECONDS are closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from django.core.exceptions import ImproperlyConfigured

from chat.llm.address import malformed
from chat.llm.errors import ProviderRefused, Refusal
from chatproject.lib import encryption

if TYPE_CHECKING:
    from chat.llm.provider import Provider

IDLE_SECONDS = 600.0

UNDECRYPTABLE = (
    "the secrets of provider {name} cannot be decrypted: ENCRYPTION_KEYS or SECRET_KEY has changed. Add"
    " the earlier value to ENCRYPTION_KEYS or SECRET_KEY_FALLBACKS, or enter the key again in the admin"
)
DISABLED = "provider {name} is disabled in the admin"


class Row(Protocol):
    """A provider's row: chat.models.Provider, which this folder does not import."""

    name: str
    enabled: bool
    first_byte_seconds: int
    silence_seconds: int

    @property
    def pk(self) -> int | None: ...
    @property
    def connection_terms(self) -> tuple[object, ...]: ...
    @property
    def address(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def proxy(self) -> str: ...


class Connections:
    """The open connections of one event loop."""

    def __init__(self) -> None:
        self._open: dict[int | None, Connection] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._idle_timer: asyncio.TimerHandle | None = None

    @contextmanager
    def use(self, row: Row) -> Iterator[Provider]:
        """Yield the provider of a row, and keep its connections open meanwhile.

        Raises ProviderRefused for a row that is disabled or whose secrets cannot be decrypted.
        """
        connection = self._of(row)
        connection.users += 1
        try:
            yield connection.provider
        finally:
            connection.users -= 1
            connection.used_at = asyncio.get_running_loop().time()
            if connection.is_replaced and not connection.users:
                self._close(connection)
            elif self._idle_timer is None:
                self._plan_closing()

    def open(self, row: Row) -> Provider:
        """Return the provider of a row, opened if it is not; raises like `use`."""
        return self._of(row).provider

    def _of(self, row: Row) -> Connection:
        if not row.enabled:
            raise ProviderRefused(DISABLED.format(name=row.name), Refusal("model"))
        terms = row.connection_terms
        found = self._open.get(row.pk)
        if found is not None and found.terms == terms:
            return found
        made = Connection(terms, opened(row))
        if found is not None:
            found.is_replaced = True
            if not found.users:
                self._close(found)
        self._open[row.pk] = made
        return made

    def _plan_closing(self) -> None:
        self._idle_timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._close_idle)

    def _close_idle(self) -> None:
        self._idle_timer = None
        before = asyncio.get_running_loop().time() - IDLE_SECONDS
        for pk, connection in [*self._open.items()]:
            if not connection.users and connection.used_at <= before:
                del self._open[pk]
                self._close(connection)
        if self._open:
            self._plan_closing()

    def _close(self, connection: Connection) -> None:
        closing = asyncio.create_task(connection.provider.close(), name="close a provider")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close all connections; no reply may use them any longer."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        for connection in self._open.values():
            self._close(connection)
        self._open.clear()
        await asyncio.gather(*self._closing)


class Connection:
    """A provider, the terms of the row that it was opened from, and the number of its users."""

    def __init__(self, terms: tuple[object, ...], provider: Provider) -> None:
        self.terms = terms
        self.provider = provider
        self.users = 0
        self.used_at = asyncio.get_running_loop().time()
        self.is_replaced = False


def opened(row: Row, **limits: Any) -> Provider:
    """Return a provider with the address, secrets and limits of a row; the caller closes it.

    `limits` are arguments of Provider that replace the row's. Raises ProviderRefused if the secrets
    cannot be read, or if no request can be made of them.
    """
    # Not at the start of each process: openai takes half a second and 30 MB, which only workers need.
    from chat.llm.provider import Provider

    try:
        key, headers, proxy = row.key, row.headers, row.proxy
    except encryption.Undecryptable:
        raise ProviderRefused(UNDECRYPTABLE.format(name=row.name), Refusal("key")) from None
    except ImproperlyConfigured as error:  # the file of a variable
        raise ProviderRefused(f"provider {row.name}: {error}", Refusal("key")) from None
    if not (key.isascii() and key.isprintable()):
        detail = f"the key of provider {row.name} has a character that no HTTP header can have"
        raise ProviderRefused(detail, Refusal("key"))
    if fault := malformed(row.address):
        raise ProviderRefused(f"provider {row.name}: {fault}", Refusal("address"))
    return Provider(
        base_url=row.address,
        api_key=key,
        name=row.name or "environment",
        headers=headers,
        proxy=proxy,
        **{
            "first_token_timeout": row.first_byte_seconds,
            "silence_timeout": row.silence_seconds,
            "wait_limit": max(300.0, row.first_byte_seconds, row.silence_seconds),
        }
        | limits,
    )


def load() -> None:
    """Import the client and read the certificates: in a thread, where an event loop must not wait for them."""
    from chat.llm.provider import ssl_context

    ssl_context()


_connections: dict[asyncio.AbstractEventLoop, Connections] = {}


def current_connections() -> Connections:
    """Return the connections of the running event loop: await `close_connections` before it ends."""
    loop = asyncio.get_running_loop()
    if loop not in _connections:
        _connections[loop] = Connections()
    return _connections[loop]


async def close_connections() -> None:
    """Close the connections of the running event loop, if there are any."""
    found = _connections.pop(asyncio.get_running_loop(), None)
    if found is not None:
        await found.close()
