"""Relays that bring other members to this node: which ones may, how fast, and the price when those members break the rules.

A relay sees sealed records, so it cannot answer for its members; but a malicious relay can invent members at the far end of
its link for nothing. So this node takes circuits only from relays where it has a reservation, at a pace, and pauses for a
while after more than a few offenders came by way of one relay. The link to that relay and the circuits already there stay:
an honest relay loses nothing, and its members come by another relay.

Rule 1: no clock; callers pass `now`, seconds of a monotonic one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from federation.net.admission.quarantine import Quarantine
from federation.ratelimit import Buckets

if TYPE_CHECKING:
    from federation.net.link.link import Link
    from federation.net.link.mux import Channel

# Of one member by one relay, so that it does not use up the relay's share at the gate (gate.py); a redial takes seconds.
SOURCE_RATE = 1.0  # a second
SOURCE_BURST = 16.0
# Offences of members that one relay brought: so many cost the relay nothing, and one more every FORGIVEN_A_SECOND.
FREE_OFFENCES = 4.0
FORGIVEN_A_SECOND = 1 / 900
MAX_SOURCES = 4096
MAX_CARRIERS = 1024


class Carriers:
    """Reservations at relays, and the relays' paces and offences."""

    def __init__(self) -> None:
        self._places: dict[Link, Channel] = {}  # our reservations, by the link to their relay
        self._sources = Buckets[tuple[str, str]](SOURCE_RATE, SOURCE_BURST, max_keys=MAX_SOURCES)
        self._offences = Buckets[str](FORGIVEN_A_SECOND, FREE_OFFENCES, max_keys=MAX_CARRIERS)
        self._avoided = Quarantine()

    def took_place(self, link: Link, channel: Channel) -> None:
        self._places[link] = channel

    def forget(self, link: Link) -> None:
        """The link has ended."""
        self._places.pop(link, None)

    def has_place(self, link: Link) -> bool:
        place = self._places.get(link)
        return place is not None and not place.closed

    def may_carry(self, carrier: str, source: str, now: float) -> bool:
        """Whether `carrier` may bring one more circuit, which it says is from `source`."""
        return not self._avoided.holds(carrier, now) and self._sources.of((carrier, source)).take(now)

    def carried_offender(self, carrier: str, now: float) -> bool:
        """A member that came by way of `carrier` broke the rules. Returns whether `carrier` is refused for a while."""
        if self._offences.of(carrier).take(now):
            return False
        self._avoided.add(carrier, now)
        return True
