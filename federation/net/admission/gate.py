"""Limits before the proof of the token: how often one address may connect, and how many handshakes run at once.

An outsider costs this node at most one of MAX_HANDSHAKES places for UPGRADE_TIMEOUT_S, and then loses its connection.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from federation.ratelimit import Buckets

if TYPE_CHECKING:
    from collections.abc import Iterator

UPGRADE_TIMEOUT_S = 5.0  # from accept to an admitted, multiplexed connection
MAX_HANDSHAKES = 128  # at once; the node hangs up on further ones
MAX_HANDSHAKES_PER_ADDRESS = 32
EVICT_AFTER_S = 1.0  # if all places are taken, a handshake that lasts longer gives way to a newcomer
# Connects from one address: a site whose hundred machines restart behind one NAT gets in at once; an address that goes on
# like that costs a tenth of a core at most. IPv6 addresses count by the /64 that one machine has to itself.
ACCEPT_RATE = 20.0  # a second
ACCEPT_BURST = 256.0
MAX_PACED_ADDRESSES = 4096


class HandshakeGate:
    """Handshakes under way, and each address's rate. `where` is the remote's address, or the relay that brings it."""

    def __init__(self) -> None:
        self._paces: Buckets[str] = Buckets(ACCEPT_RATE, ACCEPT_BURST, max_keys=MAX_PACED_ADDRESSES)
        self._begun: Counter[str] = Counter()
        self._waiting: dict[str, dict[trio.CancelScope, None]] = {}  # the oldest first

    def __len__(self) -> int:
        return self._begun.total()

    def count(self, where: str) -> int:
        """Number of handshakes under way from `where`."""
        return self._begun[where]

    def may_connect(self, machine: str, now: float) -> bool:
        """`machine`: of units.machine_of."""
        return self._paces.of(machine).take(now)

    def evict_slowest(self, where: str, now: float) -> bool:
        """Whether one more handshake may begin. If need be, ends the slowest of this address or of the busiest one."""
        if self._begun[where] < MAX_HANDSHAKES_PER_ADDRESS:
            if len(self) < MAX_HANDSHAKES:
                return True
            where = max(self._waiting, key=lambda address: len(self._waiting[address]), default=where)
        slowest = next(iter(self._waiting.get(where, ())), None)
        if slowest is None or slowest.deadline - now > UPGRADE_TIMEOUT_S - EVICT_AFTER_S:
            return False
        del self._waiting[where][slowest]  # already now, so that the next newcomer does not count on it as well
        slowest.cancel()
        return True

    def reserve(self, where: str) -> None:
        """Take a place; the task that holds `slot` gives it back."""
        self._begun[where] += 1

    @contextmanager
    def slot(self, where: str) -> Iterator[None]:
        """Run a handshake after `reserve`. Raises trio.TooSlowError when its time is over, or when it gave way."""
        waiting = self._waiting.setdefault(where, {})
        try:
            with trio.fail_after(UPGRADE_TIMEOUT_S) as scope:
                waiting[scope] = None
                yield
        finally:
            waiting.pop(scope, None)
            if not waiting and self._waiting.get(where) is waiting:
                del self._waiting[where]
            self._begun[where] -= 1
            if not self._begun[where]:
                del self._begun[where]
