"""Warnings about strangers and peers: each is said, none so often that somebody outside can fill the disk with it."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import structlog
import trio

log = structlog.get_logger(__name__)

COMPLAIN_EVERY_S = 10.0  # the same one is logged at most so often,
REMIND_EVERY_S = 3600.0  # and that of what a person knows and has to see to: a peer that is banned, a token that is old
MAX_COMPLAINTS = 1000  # so many different ones in that time
REFUSALS_KEPT = 64  # for `federation doctor`


class Refusal(NamedTuple):
    """A handshake that failed, at this node or elsewhere: at trio's time `at`, with whom, and why."""

    at: float
    where: str
    what: str


class Complaints:
    def __init__(self) -> None:
        self.refusals: deque[Refusal] = deque(maxlen=REFUSALS_KEPT)
        self._said_at: dict[tuple[str, str], float] = {}

    def say(self, event: str, where: str, every_s: float | None = None, **details: object) -> None:
        """`where`: an address or a peer; the same `event` about it is a complaint of its own."""
        now = trio.current_time()
        if now - self._said_at.get((event, where), -1e9) < (every_s or COMPLAIN_EVERY_S):
            return
        if len(self._said_at) >= MAX_COMPLAINTS:
            self._said_at = {key: at for key, at in self._said_at.items() if now - at < COMPLAIN_EVERY_S}
            if len(self._said_at) >= MAX_COMPLAINTS:  # one stranger has many addresses
                return
        self._said_at[event, where] = now
        self.refusals.append(Refusal(now, where, f"{event} ({details['why']})" if "why" in details else event))
        log.warning(event, where=where, **details)
