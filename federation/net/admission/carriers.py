"""Relays that bring others to this node: which may, how fast, and what it costs them when those others break the rules.

A relay sees sealed records, so it cannot answer for what its members do inside; but one who bends it can invent members at
the far end of its link, for nothing. So circuits are taken from a relay only where this node has a place, at a pace, and not
for a while after more than a few of those that came by it were put out. The link to the relay itself, and the circuits that
are there, stay: an honest relay loses nothing by it, and its members come by another one.

Rule 1: no clock; callers pass `now`, seconds of a monotonic one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from federation.net.admission.quarantine import Quarantine
from federation.ratelimit import Buckets

if TYPE_CHECKING:
    from federation.net.link.link import Link
    from federation.net.link.mux import Channel

# One member by one relay, so that it does not use up what all by that relay have (strangers.py); a redial takes seconds.
SOURCE_RATE = 1.0  # a second
SOURCE_BURST = 16.0
# Offences of those that one relay carries: so many are theirs alone, and one more every now and then.
FREE_OFFENCES = 4.0
FORGIVEN_A_SECOND = 1 / 900
MAX_SOURCES = 4096
MAX_CARRIERS = 1024


class Carriers:
    def __init__(self) -> None:
        self._places: dict[Link, Channel] = {}  # our reservations, by the link to their relay
        self._sources = Buckets[tuple[str, str]](SOURCE_RATE, SOURCE_BURST, max_keys=MAX_SOURCES)
        self._offences = Buckets[str](FORGIVEN_A_SECOND, FREE_OFFENCES, max_keys=MAX_CARRIERS)
        self._avoided = Quarantine()

    def took_place(self, link: Link, channel: Channel) -> None:
        self._places[link] = channel

    def forget(self, link: Link) -> None:
        """It has ended."""
        self._places.pop(link, None)

    def has_place(self, link: Link) -> bool:
        place = self._places.get(link)
        return place is not None and not place.closed

    def may_carry(self, carrier: str, source: str, now: float) -> bool:
        """Whether `carrier` may bring one more circuit, which it says is from `source`."""
        return not self._avoided.holds(carrier, now) and self._sources.of((carrier, source)).take(now)

    def carried_offender(self, carrier: str, now: float) -> bool:
        """Somebody who came by way of `carrier` broke the rules. Whether from now on nobody may for a while."""
        if self._offences.of(carrier).take(now):
            return False
        self._avoided.add(carrier, now)
        return True
