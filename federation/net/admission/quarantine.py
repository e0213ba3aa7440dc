"""Members that broke the rules: this node refuses each for a while, longer each further time, and forgives in the end.

A fault of ours must not part two nodes for good. Rule 1: no clock; callers pass `now`, seconds of a monotonic one.
"""

from __future__ import annotations

from dataclasses import dataclass

KEEP_AWAY_S = 5.0
KEEP_AWAY_MAX_S = 600.0
FORGIVE_S = 3600.0
MAX_OFFENDERS = 1024  # beyond that the node forgets the one that offended longest ago


@dataclass(slots=True)
class _Offender:
    times: int = 0
    until: float = 0.0


class Quarantine:
    def __init__(self) -> None:
        self._of: dict[str, _Offender] = {}  # in the order of their latest offence

    def __len__(self) -> int:
        return len(self._of)

    def add(self, peer_id: str, now: float) -> bool:
        """Note an offence of `peer_id`. Returns True for its first one, or its first one after FORGIVE_S."""
        offender = self._of.pop(peer_id, None)
        is_first = offender is None or now - offender.until > FORGIVE_S
        if offender is None or is_first:
            offender = _Offender()
        if len(self._of) >= MAX_OFFENDERS:
            del self._of[next(iter(self._of))]
        offender.times += 1
        offender.until = now + min(KEEP_AWAY_S * 2.0 ** min(offender.times - 1, 16), KEEP_AWAY_MAX_S)
        self._of[peer_id] = offender
        return is_first

    def holds(self, peer_id: str, now: float) -> bool:
        offender = self._of.get(peer_id)
        return offender is not None and now < offender.until

    def any_back(self, since: float, now: float) -> bool:
        """Whether the quarantine of any peer ended between `since` and `now`."""
        return any(since <= offender.until < now for offender in self._of.values())
