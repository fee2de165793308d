"""The memory of a process that the bodies of requests share."""

from __future__ import annotations

import asyncio

from chat.api.errors import ApiError

PATIENCE = 10.0  # seconds for room in the memory
RETRY_AFTER = 5

NO_ROOM = "Too many large requests are being read right now. Try again in a moment."


class Budget:
    """A number of bytes that the requests of this process share, and each user's part of it."""

    def __init__(self, total: int, most_of_user: int) -> None:
        self.free = total
        self._most_of_user = most_of_user
        self._of_users: dict[int, int] = {}
        self._waiting: list[asyncio.Future[None]] = []

    async def reserve(self, size: int, user: int) -> Reservation:
        """Reserve bytes as soon as they are free. Raises ApiError 503 if they are not within PATIENCE."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not self._has_room(size, user):
                    freed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._waiting.append(freed)
                    await freed
        except TimeoutError:
            raise ApiError(503, NO_ROOM, code="busy", retry_after=RETRY_AFTER) from None
        self._add(size, user)
        return Reservation(self, size, user)

    def _has_room(self, size: int, user: int) -> bool:
        return size <= self.free and size + self._of_users.get(user, 0) <= self._most_of_user

    def _add(self, size: int, user: int) -> None:
        self.free -= size
        self._of_users[user] = self._of_users.get(user, 0) + size
        if not self._of_users[user]:
            del self._of_users[user]

    def release(self, size: int, user: int) -> None:
        """Return bytes, and let all that wait look again."""
        self._add(-size, user)
        waiting, self._waiting = self._waiting, []
        for freed in waiting:
            if not freed.done():
                freed.set_result(None)


class Reservation:
    """Bytes of a budget, until they are released; a second release does nothing."""

    def __init__(self, budget: Budget, size: int, user: int) -> None:
        self._budget: Budget | None = budget
        self._size = size
        self._user = user

    def release(self) -> None:
        if self._budget is not None:
            self._budget.release(self._size, self._user)
            self._budget = None
