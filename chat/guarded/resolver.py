"""The resolver of aiohttp for guarded requests."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

from aiohttp.abc import AbstractResolver, ResolveResult

from chat.guarded.addresses import Network, is_permitted

# Of their own: a name server that does not answer must not take the threads of other work.
LOOKUPS = 32


class GuardedResolver(AbstractResolver):
    """Resolves names to permitted addresses; a name with another one cannot be contacted.

    `hosts`, with or without their port, may have any address. Others have addresses of the `networks` or, with
    `public`, public ones.
    """

    def __init__(
        self,
        *,
        hosts: Collection[str] = (),
        networks: Collection[Network] = (),
        public: bool = True,
    ) -> None:
        self._hosts = hosts
        self._networks = networks
        self._public = public

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a host. Raises OSError for one with an address that is not permitted."""
        look_up = partial(
            socket.getaddrinfo,
            host,
            port,
            family=family,
            type=socket.SOCK_STREAM,
            flags=socket.AI_ADDRCONFIG,
        )
        infos = await asyncio.get_running_loop().run_in_executor(_lookups(), look_up)
        is_excepted = host in self._hosts or f"{host}:{port}" in self._hosts
        found = []
        for one_family, _type, protocol, _name, address in infos:
            number = str(address[0])
            if not is_excepted and not is_permitted(number, self._networks, public=self._public):
                raise OSError(f"{host} has the address {number}, which is not permitted")
            found.append(
                ResolveResult(
                    hostname=host,
                    host=number,
                    port=int(address[1]),
                    family=one_family,
                    proto=protocol,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
            )
        return found

    async def close(self) -> None:
        """Release nothing: the threads are shared."""


@cache
def _lookups() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=LOOKUPS, thread_name_prefix="lookup")
