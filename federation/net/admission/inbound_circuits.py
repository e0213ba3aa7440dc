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
    from federation.net.link.channel import Channel
    from federation.net.link.link import Link

# Of one member by one relay, so that it does not use up the relay's share at the gate (gate.py); a redial takes seconds.
SOURCE_RATE = 1.0  # a second
SOURCE_BURST = 16.0
# Offences of members that one relay brought: so many cost the relay nothing, and one more every FORGIVEN_A_SECOND.
FREE_OFFENCES = 4.0
FORGIVEN_A_SECOND = 1 / 900
MAX_SOURCES = 4096
MAX_RELAYS = 1024


class InboundCircuits:
    """This node's reservations at relays; how fast each relay brings members, and how many of these broke the rules."""

    def __init__(self) -> None:
        self._reservations: dict[Link, Channel] = {}  # by the link to their relay
        self._sources = Buckets[tuple[str, str]](SOURCE_RATE, SOURCE_BURST, max_keys=MAX_SOURCES)
        self._offences = Buckets[str](FORGIVEN_A_SECOND, FREE_OFFENCES, max_keys=MAX_RELAYS)
        self._avoided = Quarantine()

    def reserved(self, link: Link, channel: Channel) -> None:
        """`channel` is the tunnel of a reservation that this node asked for."""
        self._reservations[link] = channel

    def forget(self, link: Link) -> None:
        """The link has ended."""
        self._reservations.pop(link, None)

    def has_reservation(self, link: Link) -> bool:
        channel = self._reservations.get(link)
        return channel is not None and not channel.closed

    def may_bring(self, relay_id: str, source_id: str, now: float) -> bool:
        """Whether this relay may bring one more circuit, which it says is from `source_id`."""
        return not self._avoided.holds(relay_id, now) and self._sources.of((relay_id, source_id)).take(now)

    def brought_offender(self, relay_id: str, now: float) -> bool:
        """A member that came by way of this relay broke the rules. Returns whether the relay's circuits are now refused."""
        if self._offences.of(relay_id).take(now):
            return False
        self._avoided.add(relay_id, now)
        return True
