"""The peers to which large packets get lost on the way. No I/O; the time is passed in."""

from __future__ import annotations

from federation.ratelimit import Buckets

# A link that is stuck says so five times a second for some 5 s, and its remote may be pretending and have us dial others.
TRIES_A_SECOND, TRIES_AT_ONCE = 0.5, 2.0
KEPT_S = 3600.0  # then a dial tries large ones again: paths change, and small packets cost processor time
MAX_PEERS = 4096


class SmallPaths:
    """`begin` and `ended` enclose a dial with small packets: one a peer at a time, and seldom."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._dialling: set[str] = set()
        self._tries: Buckets[str] = Buckets(TRIES_A_SECOND, TRIES_AT_ONCE, max_keys=MAX_PEERS)

    def begin(self, peer_id: str, now: float) -> bool:
        if peer_id in self._dialling or not self._tries.of(peer_id).take(now):
            return False
        self._dialling.add(peer_id)
        return True

    def ended(self, peer_id: str) -> None:
        self._dialling.discard(peer_id)

    def add(self, peer_id: str, now: float) -> None:
        """Small packets reach the peer, and large ones do not."""
        if len(self._until) >= MAX_PEERS:
            self._until = {peer: until for peer, until in self._until.items() if until > now}
        if len(self._until) < MAX_PEERS:
            self._until[peer_id] = now + KEPT_S

    def holds(self, peer_id: str, now: float) -> bool:
        return self._until.get(peer_id, 0.0) > now
