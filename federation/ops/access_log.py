"""The access log: one line a connection, or an HTTP request, at level info, with client, peer, bytes, seconds, and why it
ended; of a request also its model, status, the time until its first content, and tokens.

Thousands of connections may end in a second, so the data path only hands over the facts; a few times a second they become
lines, a batch in one write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import trio

from federation import logs
from federation.metrics import TokenKind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from federation.forward.counters import Ending

BATCH_S = 0.1  # 500 lines of a node at its limit take a millisecond


class AccessLog:
    """`ended` is for the entry's counters; `name_of` knows peers' names, `utc_of` turns trio's seconds into UTC."""

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
        """Write until cancelled, and then all that is left."""
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
        logs.write_connections(_Ended(new, self._name_of, self._utc_of))


class _Ended:
    """A batch. Peers are called as they are now, when this is made."""

    __slots__ = ("_endings", "_ms", "_names", "_text", "_utc_of")

    def __init__(
        self, endings: Sequence[Ending], name_of: Callable[[str], str], utc_of: Callable[[float], datetime]
    ) -> None:
        self._endings = endings
        self._names = {peer: logs.harmless(name_of(peer)) for peer in {ending.peer_id for ending in endings}}
        self._utc_of = utc_of
        self._ms = -1  # the millisecond of `_text`: many end in the same one
        self._text = ""

    def __len__(self) -> int:
        return len(self._endings)

    def line(self, at: int) -> str:
        end = self._endings[at]
        event = "connection" if end.answer is None else "request   "
        more = "".join(f" {key}={_word(str(value))}" for key, value in _of_request(end).items())
        return (
            f"{self._time(end)} [info     ] {event}                     id={end.flow.connection} client={end.client}"
            f" service={end.route.service} name={_word(self._names[end.peer_id])} attempts={end.attempts}"
            f" received={end.received} delivered={end.delivered} seconds={round(end.seconds, 3)}{more}"
            f" why={_word(_why(end))}"
        )

    def event(self, at: int) -> dict[str, Any]:
        end = self._endings[at]
        return {
            "timestamp": self._time(end),
            "level": "info",
            "event": "connection" if end.answer is None else "request",
            "id": end.flow.connection,
            "request": end.flow.request,
            "client": end.client,
            "service": end.route.service,
            "peer": end.peer_id,
            "name": self._names[end.peer_id],
            "attempts": end.attempts,
            "received": end.received,
            "delivered": end.delivered,
            "seconds": round(end.seconds, 3),
            **_of_request(end),
            "why": _why(end),
        }

    def _time(self, end: Ending) -> str:
        ms = int(end.ended_at * 1000)
        if ms != self._ms:
            self._ms, self._text = ms, f"{self._utc_of(end.ended_at).isoformat(timespec='milliseconds')[:-6]}Z"
        return self._text


def _of_request(end: Ending) -> dict[str, Any]:
    """What only an HTTP request has, as far as it is known."""
    answer = end.answer
    if answer is None:
        return {}
    told: dict[str, Any] = {"request": end.flow.request}
    if end.route.model:
        told["model"] = logs.harmless(end.route.model)
    told["status"] = answer.status
    if answer.queued_s:
        told["queued"] = round(answer.queued_s, 3)
    if answer.first_s is not None:
        told["first" if answer.is_stream else "answered"] = round(answer.first_s, 3)
    if answer.tokens is not None:
        told |= {f"tokens_{k}": n for k, n in zip(get_args(TokenKind), answer.tokens, strict=True) if n is not None}
    return told


def _why(end: Ending) -> str:
    return logs.harmless(end.error) if end.error else "done"


def _word(text: str) -> str:
    return repr(text) if " " in text else text
