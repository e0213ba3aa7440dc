"""Wrong invite codes: how many one machine may try. Nobody guesses 128 bits; a flood of tries shall cost us no handshakes.

Rule 1: no clock; callers pass `now`, seconds of a monotonic one.
"""

from __future__ import annotations

from federation.ratelimit import Buckets

WRONG_AT_ONCE = 8.0  # a person who mixes up codes, and a few machines behind one NAT
FORGIVEN_A_SECOND = 1 / 30
MAX_MACHINES = 4096


class Guesses:
    """`machine`: of units.machine_of."""

    def __init__(self) -> None:
        self._wrong: Buckets[str] = Buckets(FORGIVEN_A_SECOND, WRONG_AT_ONCE, max_keys=MAX_MACHINES)

    def may_try(self, machine: str, now: float) -> bool:
        return machine not in self._wrong or self._wrong.of(machine).left(now) >= 1

    def was_wrong(self, machine: str, now: float) -> None:
        self._wrong.of(machine).take(now)
