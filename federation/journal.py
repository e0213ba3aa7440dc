"""One line a connection, at level info: who, where, how much, how long, why it ended.

Thousands may end in a second, so the data path only hands the facts over; they become lines a few times a second, all of
a batch in one write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from federation import logs

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from federation.forwarder import Ending

BATCH_S = 0.25


class Journal:
    """`ended` is for the forwarder; `name_of` knows peers' names, `utc_of` turns trio's seconds into UTC."""

    def __init__(self, *, name_of: Callable[[str], str], utc_of: Callable[[float], datetime]) -> None:
        self._name_of = name_of
        self._utc_of = utc_of
        self._new: list[Ending] = []
        self._news = trio.Event()

    def ended(self, ending: Ending) -> None:
        self._new.append(ending)
        if len(self._new) == 1:
            self._news.set()

    async def run(self) -> None:
        """Write until cancelled, and then what is still to be written."""
        try:
            while True:
                await self._news.wait()
                await trio.sleep(BATCH_S)
                self.write()
        finally:
            self.write()

    def write(self) -> None:
        new, self._new = self._new, []
        self._news = trio.Event()
        logs.write_connections([self._event(ending) for ending in new])

    def _event(self, ending: Ending) -> dict[str, Any]:
        return {
            "timestamp": f"{self._utc_of(ending.ended_at).isoformat(timespec='milliseconds')[:-6]}Z",
            "level": "info",
            "event": "connection",
            "id": ending.connection,
            "client": ending.client,
            "service": ending.service,
            "peer": ending.peer_id,
            "name": self._name_of(ending.peer_id),
            "attempts": ending.attempts,
            "received": ending.received,
            "delivered": ending.delivered,
            "seconds": round(ending.seconds, 3),
            "why": ending.error or "done",
        }
