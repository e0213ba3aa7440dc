"""Relaying for other members: any member can reach, through this node, a member that holds a reservation here.

Both services are ordinary tunnels on members' links, so there is nothing to renew or to expire:

    OPEN /reserve/1          a reservation, while the tunnel is open; no byte ever flows on it
    OPEN /relay/1/PEER       a circuit to PEER, if PEER has a reservation: the relay opens its half,
    OPEN /circuit/1/FROM     at PEER, and joins the two. REFUSED says why not.

The two ends do their own handshake inside (circuit.py): a relay sees sealed records, the two ids, and the amount of bytes.
A service's name has no slash, so no service can have one of these names.

The tunnels' credit bounds the memory of a circuit: the relay grants bytes again when they are on their way to the other
side. Only members can relay, since only members have a link. One member gets a quarter of the circuits at most.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
import trio

from federation.errors import PeerUnavailable
from federation.net.admission.inbound_circuits import MAX_SOURCES, SOURCE_BURST, SOURCE_RATE
from federation.ratelimit import Buckets
from federation.reactor.duplex import NullDuplex

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from federation.net.link.channel import Channel
    from federation.net.link.link import Link
    from federation.reactor.loop import Reactor, Timer

log = structlog.get_logger(__name__)

RESERVE = "/reserve/1"
RELAY = "/relay/1"
CIRCUIT = "/circuit/1"

# One member asks for so many circuits; an honest one dials a peer again after seconds, and a hundred peers when it starts.
ASKED_A_SECOND, ASKED_AT_ONCE = 4.0, 256.0
MAX_ASKERS = 4096
SHARE = 4  # one member has at most this part of the circuits
BURST_S = 0.25  # the bytes that a circuit may send at once, as a time at its rate
LEAST_BURST = 64 * 1024  # one record; else a low rate would never send it


@dataclass(frozen=True)
class RelayLimits:
    """`rate`: bytes per second of one circuit, both directions together; 0: no limit."""

    reservations: int = 128
    circuits: int = 512
    rate: int = 0


class Relay:
    """`links` are this node's; `warn(event, where, **details)` logs within limits. `limits` None: no relaying here."""

    def __init__(
        self,
        reactor: Reactor,
        links: Mapping[str, Link],
        limits: RelayLimits | None,
        warn: Callable[..., None],
    ) -> None:
        self.limits = limits
        self._reactor = reactor
        self._links = links
        self._warn = warn
        self._reservations: dict[str, _Reservation] = {}
        self._circuits: Counter[str] = Counter()  # by the member that asked
        self._asked = Buckets[str](ASKED_A_SECOND, ASKED_AT_ONCE, max_keys=MAX_ASKERS)
        self._asked_for = Buckets[tuple[str, str]](SOURCE_RATE, SOURCE_BURST, max_keys=MAX_SOURCES)
        self.bytes_relayed = 0

    @property
    def reserved(self) -> list[str]:
        """Peer ids of the members that have a reservation here."""
        return list(self._reservations)

    @property
    def circuits(self) -> int:
        return self._circuits.total()

    def close(self) -> None:
        """End all reservations, because this node is about to stop. Circuits last as long as the node does."""
        self.limits = None
        for reservation in list(self._reservations.values()):
            reservation.channel.abort("the relay stops")
        self._reservations.clear()

    # Reservations

    def reserve(self, link: Link, channel: Channel, _rest: str) -> None:
        reservation = channel.other = _Reservation(self, link, channel)
        if self.limits is None:
            channel.refuse("this node does not relay")
        elif link.path == "relayed":
            channel.refuse("the relay itself is reached through a relay")
        elif len(self._reservations) >= self.limits.reservations and link.peer_id not in self._reservations:
            self._warn("a reservation was refused, all places are taken", link.peer_id, limit=self.limits.reservations)
            channel.refuse("all places are taken")
        else:
            old = self._reservations.get(link.peer_id)
            self._reservations[link.peer_id] = reservation
            if old is not None:
                old.channel.abort("there is a newer reservation")
            channel.accept()

    def forget(self, reservation: _Reservation) -> None:
        if self._reservations.get(reservation.link.peer_id) is reservation:
            del self._reservations[reservation.link.peer_id]

    # Circuits

    def connect(self, link: Link, channel: Channel, target: str) -> None:
        """Open a circuit to `target` for the peer of `link`."""
        circuit = _Circuit(self, self._reactor, link.peer_id, self.limits.rate if self.limits else 0)
        channel.other = circuit.there
        why = self._why_not(link.peer_id, target)
        reservation = self._reservations.get(target)
        if why or reservation is None:
            channel.refuse(why or "the peer has no place here")
            return
        try:
            far = reservation.link.open_tunnel(f"{CIRCUIT}/{link.peer_id}", circuit, circuit.back)
        except PeerUnavailable as error:
            channel.refuse(error.detail)
            return
        self._circuits[link.peer_id] += 1
        circuit.start(channel, far)

    def _why_not(self, source: str, target: str) -> str:
        if self.limits is None:
            return "this node does not relay"
        if target not in self._reservations or target == source:
            return "the peer has no place here"
        if self.circuits >= self.limits.circuits or self._circuits[source] >= max(1, self.limits.circuits // SHARE):
            self._warn("a circuit was refused, the limit is reached", source, limit=self.limits.circuits)
            return "too many circuits"
        now = trio.current_time()  # no more often than the target lets the member in, or it blames the relay
        if not (self._asked.of(source).take(now) and self._asked_for.of((source, target)).take(now)):
            self._warn("a member asks for circuits without end; some are refused", source)
            return "too often"
        return ""

    def ended(self, source: str) -> None:
        self._circuits[source] -= 1
        if not self._circuits[source]:
            del self._circuits[source]


class _Reservation(NullDuplex):
    """The relay's end of a reservation."""

    def __init__(self, relay: Relay, link: Link, channel: Channel) -> None:
        self._relay = relay
        self.link = link
        self.channel = channel

    def send(self, data: bytes | memoryview) -> None:
        self.send_eof()

    def send_eof(self) -> None:
        self.channel.abort("given back")
        self._relay.forget(self)

    def abort(self, reason: str) -> None:
        self._relay.forget(self)


class _Circuit:
    """Two joined tunnels. Waits for the target's tunnel to open; then each `_Way` moves one direction."""

    def __init__(self, relay: Relay, reactor: Reactor, source: str, rate: int) -> None:
        self._relay = relay
        self._reactor = reactor
        self._source = source
        self._rate = rate
        self._burst = max(LEAST_BURST, rate * BURST_S)
        self._allowance = self._burst
        self._allowed_at = trio.current_time()
        self._timer: Timer | None = None
        self._near: Channel | None = None
        self._far: Channel | None = None
        self.there, self.back = _Way(self), _Way(self)
        self._over = False

    def start(self, near: Channel, far: Channel) -> None:
        self._near, self._far = near, far
        self.there.joins(near, far, self.back)
        self.back.joins(far, near, self.there)

    # The observer of the far tunnel

    def opened(self) -> None:
        if self._near is not None:
            self._near.accept()

    def refused(self, reason: str) -> None:
        self._far = None
        if self._near is not None:
            self._near.refuse(reason)
        self.over()

    # For its ways

    def allowance(self) -> int:
        """Bytes that may move now. If there are none, both ways try again as soon as there are."""
        if not self._rate:
            return 1 << 30
        now = trio.current_time()
        self._allowance = min(self._burst, self._allowance + (now - self._allowed_at) * self._rate)
        self._allowed_at = now
        if self._allowance >= 1:
            return int(self._allowance)
        if self._timer is None:
            self._timer = self._reactor.call_later(LEAST_BURST / 4 / self._rate, self._try_again)
        return 0

    def moved(self, n: int) -> None:
        self._allowance -= n
        self._relay.bytes_relayed += n

    def _try_again(self) -> None:
        self._timer = None
        self.there.move()
        self.back.move()

    def finished(self) -> None:
        if self.there.is_finished and self.back.is_finished:
            self.over()

    def broke(self, way: _Way, reason: str) -> None:
        """The tunnel that brings `way` broke. Once both ways have ended, each tunnel still delivers what it was given."""
        if self._over:
            return
        other = self._far if way is self.there else self._near
        self.there.stop()
        self.back.stop()
        if other is not None:
            other.abort(reason)
        self.over()

    def over(self) -> None:
        if not self._over:
            self._over = True
            self._relay.ended(self._source)
            if self._timer is not None:
                self._timer.cancel()


class _Way:
    """One direction of a circuit: bytes of one tunnel on their way into the other."""

    __slots__ = ("_back", "_circuit", "_eof", "_from", "_held", "_to", "is_finished")

    def __init__(self, circuit: _Circuit) -> None:
        self._circuit = circuit
        self._from: Channel | None = None
        self._to: Channel | None = None
        self._back: _Way | None = None
        self._held: deque[bytes] = deque()
        self._eof = self.is_finished = False

    def joins(self, source: Channel, to: Channel, back: _Way) -> None:
        self._from, self._to, self._back = source, to, back
        self.move()

    def move(self) -> None:
        """Move as many bytes as the other tunnel has room for and the circuit's rate allows."""
        source, to, held = self._from, self._to, self._held
        if source is None or to is None or self.is_finished:
            return
        while held:
            n = min(len(held[0]), to.writable(), self._circuit.allowance())
            if n <= 0:
                return
            chunk = held.popleft()
            if n < len(chunk):
                held.appendleft(chunk[n:])
                chunk = chunk[:n]
            to.send(chunk)
            self._circuit.moved(n)
            source.acknowledge(n)
        if self._eof:
            self.is_finished = True
            to.send_eof()
            self._circuit.finished()

    def stop(self) -> None:
        self.is_finished = True
        self._held.clear()

    # Duplex, for the tunnel that brings it

    def writable(self) -> int:
        return 0

    def send(self, data: bytes | memoryview) -> None:
        self._held.append(bytes(data))
        self.move()

    def send_eof(self) -> None:
        self._eof = True
        self.move()

    def abort(self, reason: str) -> None:
        self._circuit.broke(self, reason)

    def acknowledge(self, n: int) -> None: ...

    def resume_writing(self) -> None:
        """The tunnel that brings this way's bytes takes bytes again: the other way writes there."""
        if self._back is not None:
            self._back.move()
