"""Peers that run twice: a machine was copied after its first start, and both copies have one identity.

The process that is linked stays, and the other one is refused while the first one is there: else the two would take each
other's place without end, and cut each other's clients off. A process is known by the key that it made for its handshakes
at its start (`run`), so a peer that restarted is no copy. Rule 1: no clock; callers pass `now`, seconds of a monotonic one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

KEEP_S = 120.0  # after the first one has gone: a break of its network, or its restart, changes nothing
TOLD_S = 300.0  # after the last refusal; a copy tries again every half minute
MAX_PEERS = 64  # beyond that the one that was refused longest ago is forgotten
MAX_RUNS = 8  # of one peer


@dataclass(slots=True)
class _Copied:
    refused: deque[bytes] = field(default_factory=lambda: deque(maxlen=MAX_RUNS))
    refused_at: float = 0.0
    first_left_at: float | None = None  # None: it is here


class Copies:
    def __init__(self) -> None:
        self._of: dict[str, _Copied] = {}  # in the order of the latest refusal

    def refuse(self, peer_id: str, run: bytes, now: float) -> bool:
        """Note that `run` is a second process of a peer that is here. Returns True for the first one in TOLD_S."""
        copied = self._of.pop(peer_id, None)
        is_news = copied is None or now - copied.refused_at > TOLD_S
        copied = copied or _Copied()
        if len(self._of) >= MAX_PEERS:
            del self._of[next(iter(self._of))]
        if run not in copied.refused:
            copied.refused.append(run)
        copied.refused_at, copied.first_left_at = now, None
        self._of[peer_id] = copied
        return is_news

    def is_refused(self, peer_id: str, run: bytes, now: float) -> bool:
        """Whether `run` was refused, and the first process is here or was until a moment ago."""
        copied = self._of.get(peer_id)
        if copied is None or run not in copied.refused:
            return False
        if copied.first_left_at is not None and now - copied.first_left_at > KEEP_S:
            return False
        copied.refused_at = now
        return True

    def left(self, peer_id: str, now: float) -> None:
        """The peer's process that was linked has gone."""
        if copied := self._of.get(peer_id):
            copied.first_left_at = now

    def came(self, peer_id: str) -> None:
        if copied := self._of.get(peer_id):
            copied.first_left_at = None

    def present(self, now: float) -> list[str]:
        """The peers of which a second process was refused lately."""
        return [peer_id for peer_id, copied in self._of.items() if now - copied.refused_at <= TOLD_S]
