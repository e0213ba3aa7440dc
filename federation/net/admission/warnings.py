"""Warnings about outsiders and peers: the node logs each one, and none so often that an outsider can fill the disk."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import structlog
import trio

log = structlog.get_logger(__name__)

WARN_EVERY_S = 10.0  # the same warning is logged at most so often,
REMIND_EVERY_S = 3600.0  # and one that a person knows about and has to act on at most so often: a banned peer, an old token
MAX_WARNINGS = 1000  # so many different warnings in that time
REFUSALS_KEPT = 64  # for `federation doctor`


class Refusal(NamedTuple):
    """A handshake that failed here or at the remote: when (trio's time `at`), with which remote, and why."""

    at: float
    where: str
    what: str


class Warnings:
    """Logs within limits, and keeps the latest `refusals`."""

    def __init__(self) -> None:
        self.refusals: deque[Refusal] = deque(maxlen=REFUSALS_KEPT)
        self._said_at: dict[tuple[str, str], float] = {}

    def warn(self, event: str, where: str, every_s: float | None = None, **details: object) -> None:
        """Log `event` about `where`, an address or a peer, unless the same pair was logged less than `every_s` ago."""
        now = trio.current_time()
        if now - self._said_at.get((event, where), -1e9) < (every_s or WARN_EVERY_S):
            return
        if len(self._said_at) >= MAX_WARNINGS:
            self._said_at = {key: at for key, at in self._said_at.items() if now - at < WARN_EVERY_S}
            if len(self._said_at) >= MAX_WARNINGS:  # one outsider has many addresses
                return
        self._said_at[event, where] = now
        self.refusals.append(Refusal(now, where, f"{event} ({details['why']})" if "why" in details else event))
        log.warning(event, where=where, **details)
