"""Connections whose remote has not proved yet that it is a member: how often one address may connect, and how many
handshakes there are at once.

Whatever a stranger does costs it its connection, and this node one of MAX_HANDSHAKES places for UPGRADE_TIMEOUT_S at most.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from federation.ratelimit import Buckets

if TYPE_CHECKING:
    from collections.abc import Iterator

UPGRADE_TIMEOUT_S = 5.0  # from accept to an admitted, multiplexed connection
MAX_HANDSHAKES = 128  # at once; strangers beyond that are hung up on
MAX_HANDSHAKES_PER_ADDRESS = 32
PATIENCE_S = 1.0  # while handshakes are all taken, one that lasts longer gives way to a newcomer
# Connects from one address: a site whose hundred machines restart behind one NAT is let in at once; who goes on like that
# costs us a tenth of a core at most. IPv6 addresses count by the /64 that one machine has to itself.
ACCEPT_RATE = 20.0  # a second
ACCEPT_BURST = 256.0
MAX_PACED_ADDRESSES = 4096


class HandshakeGate:
    """`where` is the remote's address, or the relay that it comes through."""

    def __init__(self) -> None:
        self._paces: Buckets[str] = Buckets(ACCEPT_RATE, ACCEPT_BURST, max_keys=MAX_PACED_ADDRESSES)
        self._begun: Counter[str] = Counter()
        self._waiting: dict[str, dict[trio.CancelScope, None]] = {}  # the oldest first

    def __len__(self) -> int:
        return self._begun.total()

    def count(self, where: str) -> int:
        """Handshakes under way."""
        return self._begun[where]

    def may_connect(self, host: str, now: float) -> bool:
        return self._paces.of(machine_of(host)).take(now)

    def evict_slowest(self, where: str, now: float) -> bool:
        """Whether one more handshake may begin; if need be the slowest, of this address or of the busiest one, is ended."""
        if self._begun[where] < MAX_HANDSHAKES_PER_ADDRESS:
            if len(self) < MAX_HANDSHAKES:
                return True
            where = max(self._waiting, key=lambda address: len(self._waiting[address]), default=where)
        slowest = next(iter(self._waiting.get(where, ())), None)
        if slowest is None or slowest.deadline - now > UPGRADE_TIMEOUT_S - PATIENCE_S:
            return False
        del self._waiting[where][slowest]  # here already, so that the next newcomer does not count on it as well
        slowest.cancel()
        return True

    def reserve(self, where: str) -> None:
        """Take a place; the task that `slot` is held in gives it back."""
        self._begun[where] += 1

    @contextmanager
    def slot(self, where: str) -> Iterator[None]:
        """Begun before. Raises trio.TooSlowError when its time is over, or when it gave way."""
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


def machine_of(host: str) -> str:
    """The address, or of an IPv6 address the /64: a machine has that many for the asking."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    return host if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))
