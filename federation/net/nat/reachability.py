"""Can other members dial this node? If not, the node reserves at relays, so that they reach it all the same.

Members of other networks than ours tell. An inbound connection from one is a yes. On request such a member dials back at
the address from which it sees the asker, and says whether the asker answered. It dials no other host; and since several
machines may share that address, its answer takes as long for a closed port as for a silent one. A node that members outside
its LAN can dial relays for others (unless told not to). A node that they cannot dial takes reservations at up to two
relays, the nearest first, and announces them. So does any node that has no way to some member that is there: the two may be
in networks of which neither leads to the other, with a relay in both.

A reservation is an open tunnel to the relay (relay.py): it lasts as long as the link, and the node takes it anew with the
next link.

    question:  [[port, ...], hash]      ports to try, at the address from which the asker is connected; the handshake of a
                                        connection that it has just made from the port where it listens, or nil
    answer:    [seen, mapped, ports]    that address; the one from which that connection came, or nil; those that worked
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
import trio

from federation.errors import FederationError, PeerUnavailable, ProtocolViolation
from federation.net import wire
from federation.net.dial.address import PeerAddress, ip_address
from federation.net.dial.hearsay import Pace
from federation.net.dial.tcp import open_from_port
from federation.net.link.link import talk
from federation.reactor.duplex import NullDuplex

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from federation.net.host import Host
    from federation.net.link.link import Link
    from federation.net.streams import TrioStream
    from federation.units import HostPort

log = structlog.get_logger(__name__)

PROTOCOL = "/federation/reach/1"
WANTED_RELAYS = 2
ASKED_AT_ONCE = 3  # members outside our LAN that the node asks; more would tell no more
ASK_AGAIN_S = 300.0  # port forwardings come and go
ASK_TIMEOUT_S = 6.0
DIAL_BACK_S = 2.5  # a NAT that drops says nothing
ANSWER_EVERY_S = 1.0  # one member may make this node dial no more often
MAX_PORTS = 4
REFUSED_S = 30.0  # the node does not ask a relay that refused again before that
RTT_STEP_S = 0.01  # relays that differ by less are equally near; chance spreads nodes over them
MAX_MESSAGE = 1024
MAX_SEEN = 16

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass
class Verdicts:
    """Results of members of other networks: which reached this node, and which did not. Sans-IO."""

    by_peer: dict[str, bool] = field(default_factory=dict)

    @property
    def dialable(self) -> bool | None:
        """Whether members can dial this node; None: none could tell yet. A tie is a no: a needless reservation is cheap."""
        if not self.by_peer:
            return None
        yes = sum(self.by_peer.values())
        return yes * 2 > len(self.by_peer)


def network_of(host: str, networks: Sequence[Network]) -> Network | None:
    """The smallest of these networks that this address is in."""
    ip = ipaddress.ip_address(host)
    return max((n for n in networks if ip.version == n.version and ip in n), key=lambda n: n.prefixlen, default=None)


def is_outside(host: str, networks: Sequence[Network]) -> bool:
    """Whether an address is in another network than ours, so that a node there sees this one as the world does."""
    ip = ipaddress.ip_address(host)
    return not ip.is_loopback and not ip.is_link_local and network_of(host, networks) is None


class Seen(NamedTuple):
    """How one member sees this node. `port`: of a NAT for the port where this node listens; None: it was not shown."""

    host: str
    port: int | None
    reached: bool  # it has dialled that port as it is


class Reachability:
    """`relays(peer)`: whether that member relays. `networks()`: this machine's subnets. Calls `on_change()`."""

    def __init__(
        self,
        host: Host,
        *,
        relays: Callable[[str], bool],
        networks: Callable[[], Sequence[Network]],
        on_change: Callable[[], None],
        may_dial: Callable[[PeerAddress, bool], bool] = lambda _address, _trusted: True,
    ) -> None:
        """`may_dial(address, trusted)`: whether an address makes sense from here."""
        self._host = host
        self._may_dial = may_dial
        self._pace = Pace()
        self._relays = relays
        self._networks = networks
        self._on_change = on_change
        self._listen: HostPort | None = None
        self.verdicts = Verdicts()
        self.public: dict[tuple[str, int], None] = {}  # where members outside reached this node, in their order
        self._named: dict[str, list[tuple[str, int]]] = {}  # of these addresses, those that each member named
        self.seen: dict[str, Seen] = {}  # how the members outside that were asked last see this node
        self.forwarded: int | None = None  # a port that the router says it forwards to us
        self._asked: dict[str, float] = {}
        self._asking = 0
        self._answered: dict[str, float] = {}
        self._reservations: dict[str, _HeldReservation] = {}
        self._refused: dict[str, float] = {}
        self._is_cut_off = False
        self._look = trio.Event()
        self._nursery: trio.Nursery | None = None
        host.handle_stream(PROTOCOL, self._answer)

    # For our record

    @property
    def dialable(self) -> bool | None:
        return self.verdicts.dialable

    @property
    def via(self) -> tuple[str, ...]:
        """The relays where this node has a reservation, nearest first."""
        held = [peer for peer, reservation in self._reservations.items() if reservation.granted]
        return tuple(sorted(held, key=self._nearness))

    # Events from the node

    def look(self) -> None:
        """Look anew: a link or a record has come or gone."""
        self._look.set()

    def cut_off(self) -> None:
        """A member is there to which this node has no way: take places at relays, whatever members outside say."""
        if not self._is_cut_off:
            self._is_cut_off = True
            log.info("a member is there that this node has no way to; others may relay")
            self._look.set()

    def moved(self) -> None:
        """Forget all results: this machine's addresses changed."""
        self._is_cut_off = False
        self.verdicts = Verdicts()
        self.public.clear()
        self._named.clear()
        self.seen.clear()
        self._asked.clear()
        self._look.set()

    def peer_up(self, link: Link) -> None:
        if link.path == "direct" and not link.is_initiator and self._is_outside(link):
            self._judge(link.peer_id, reached=True)
        self._refused.pop(link.peer_id, None)
        self._look.set()

    async def run(self, listen: HostPort) -> None:
        self._listen = listen
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            while True:
                self._look = trio.Event()
                now = trio.current_time()
                self._ask_some(now)
                self._make_reservations(now)
                with trio.move_on_after(ASK_AGAIN_S / 10):
                    await self._look.wait()

    # Asking

    def _ask_some(self, now: float) -> None:
        assert self._nursery is not None
        self._asked = {peer: at for peer, at in self._asked.items() if now - at < ASK_AGAIN_S}
        for peer, link in self._host.links.items():
            if self._asking + len(self.verdicts.by_peer) >= ASKED_AT_ONCE and peer not in self.verdicts.by_peer:
                continue
            if peer not in self._asked and link.path == "direct" and self._is_outside(link):
                self._asked[peer] = now
                self._asking += 1
                self._nursery.start_soon(talk, link, self._ask)

    def _is_outside(self, link: Link) -> bool:
        return link.remote_address is not None and is_outside(link.remote_address[0], self._networks())

    async def _ask(self, link: Link) -> None:
        try:
            with trio.fail_after(ASK_TIMEOUT_S):
                assert self._listen is not None
                shown = await self._show_port(link, self._listen)
                likely = [self._listen.port, *([self.forwarded] if self.forwarded is not None else [])]
                seen, mapped, ports = await self._question(link, likely, shown)
        except (FederationError, OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
            log.debug("a member did not say how it sees us", peer=link.peer_id, why=str(error) or type(error).__name__)
            return
        finally:
            self._asking -= 1
        log.debug("a member says how it sees us", peer=link.peer_id, seen=seen, mapped=mapped, ports=ports)
        self.seen[link.peer_id] = Seen(seen[0], None if mapped is None else mapped[1], self._listen.port in ports)
        while len(self.seen) > MAX_SEEN:
            del self.seen[next(iter(self.seen))]
        asked_for = {*likely, *([mapped[1]] if mapped is not None else [])}
        self._named[link.peer_id] = [(seen[0], port) for port in ports if port in asked_for]
        self._believe_most()
        self._judge(link.peer_id, reached=bool(self._named[link.peer_id]))
        self._look.set()

    def _believe_most(self) -> None:
        """Keep the addresses that most members name: one member that lies must not have all others dial a third party."""
        named = [addresses for addresses in self._named.values() if addresses]
        count = Counter(address for addresses in named for address in dict.fromkeys(addresses))
        self.public.clear()
        self.public.update(dict.fromkeys(address for address in count if count[address] * 2 >= len(named)))

    async def mapped_address(self, listen: HostPort) -> tuple[str, int] | None:
        """The address that outsiders see for a port of ours, by the nearest of them. None: none can tell."""
        outside = [
            link for link in self._host.links.values()
            if link.path == "direct" and link.is_initiator and self._is_outside(link)
        ]  # fmt: skip
        for link in sorted(outside, key=lambda link: self._nearness(link.peer_id))[:2]:
            try:
                with trio.fail_after(ASK_TIMEOUT_S / 2):
                    shown = await self._show_port(link, listen)
                    if shown is not None:
                        return (await self._question(link, [], shown))[1]
            except (FederationError, OSError, trio.BrokenResourceError, trio.TooSlowError) as error:  # noqa: PERF203
                log.debug("a member did not say how it sees us", peer=link.peer_id, why=str(error) or type(error).__name__)
        return None

    async def _question(
        self, link: Link, ports: list[int], shown: bytes | None
    ) -> tuple[tuple[str, int], tuple[str, int] | None, list[int]]:
        stream = await self._host.open_stream(link.peer_id, PROTOCOL)
        async with stream:
            await wire.send(stream, [ports, shown])
            return _read_answer(await wire.receive(stream, at_most=MAX_MESSAGE))

    async def _show_port(self, link: Link, listen: HostPort) -> bytes | None:
        """Make a short connection from that port, so that the member sees the address that a NAT gives it."""
        if not link.is_initiator or link.remote_address is None:
            return None
        try:
            stream = await open_from_port(listen, *link.remote_address, within_s=DIAL_BACK_S)
            return await self._host.probe(stream, link.peer_id)
        except Exception as error:  # noqa: BLE001  # as in Host._admit; what is not learnt here only costs a hole punched
            log.debug("our own port was not shown", peer=link.peer_id, why=str(error) or type(error).__name__)
            return None

    def _judge(self, peer_id: str, *, reached: bool) -> None:
        before = self.dialable
        link = self._host.links.get(peer_id)
        if not reached and self.verdicts.by_peer.get(peer_id) and link is not None and not link.is_initiator:
            return  # it has reached this node before, and may be too busy to do so again
        self.verdicts.by_peer[peer_id] = reached
        if self.dialable != before:
            log.info("others can dial this node" if self.dialable else "others cannot dial this node, it needs a relay")
        self._on_change()

    # Answering

    async def _answer(self, link: Link, stream: TrioStream) -> None:
        peer_id = link.peer_id
        now = trio.current_time()
        async with stream:
            ports, shown = _read_question(await wire.receive(stream, at_most=MAX_MESSAGE))
            if link.remote_address is None:
                return
            if ports:
                if now - self._answered.get(peer_id, -1e9) < ANSWER_EVERY_S:
                    return
                self._answered[peer_id] = now
            host = link.remote_address[0]
            mapped = None if shown is None else self._host.seen_from.get(shown)
            if mapped is not None and mapped[0] != host:
                mapped = None
            found: list[int] = []
            to_dial = list(dict.fromkeys((*ports, *((mapped[1],) if mapped and ports else ()))))
            async with trio.open_nursery() as nursery:
                for port in to_dial:
                    nursery.start_soon(self._dial_back, host, port, peer_id, found)
            if len(found) < len(to_dial):
                await trio.sleep_until(now + DIAL_BACK_S)  # closed and silent look alike
            await wire.send(stream, [link.remote_address, mapped, found])
            await stream.send_eof()

    async def _dial_back(self, host: str, port: int, peer_id: str, found: list[int]) -> None:
        """Dial the asker at the address from which it is connected, so no member can make this node dial other hosts."""
        now = trio.current_time()
        if not self._may_dial(PeerAddress(host, port), False) or not self._pace.take(host, now):
            return
        try:
            with trio.fail_after(DIAL_BACK_S):
                await self._host.probe(await trio.open_tcp_stream(host, port), peer_id)
        except Exception as error:  # noqa: BLE001  # as in Host._admit: any program may answer there
            log.debug("a member cannot be dialled", peer=peer_id, port=port, why=str(error) or type(error).__name__)
        else:
            self._pace.found(host, now)
            found.append(port)

    # Reservations at relays

    def _make_reservations(self, now: float) -> None:
        links = self._host.links
        for peer, reservation in list(self._reservations.items()):
            if links.get(peer) is not reservation.link or (self.dialable and not self._is_cut_off):
                del self._reservations[peer]
                reservation.channel.abort("no longer needed")
                self._on_change()
        if self.dialable is not False and not self._is_cut_off:
            return
        serving = [peer for peer in self._reservations if self._relays(peer)]  # a relay that is about to stop does not count
        candidates = [
            peer
            for peer, link in links.items()
            if peer not in self._reservations
            and (link.path == "punched" or (link.path == "direct" and link.is_initiator))  # a relay may have met us
            and self._relays(peer)
            and self._refused.get(peer, -1e9) < now - REFUSED_S
        ]
        for peer in sorted(candidates, key=self._nearness)[: WANTED_RELAYS - len(serving)]:
            with suppress(PeerUnavailable):
                self._reservations[peer] = _HeldReservation(self, self._host, links[peer])

    def _nearness(self, peer_id: str) -> tuple[int, bytes]:
        link = self._host.links.get(peer_id)
        rtt_s = link.rtt_s if link is not None and link.rtt_s is not None else 0.0
        return int(rtt_s / RTT_STEP_S), blake2b(f"{self._host.peer_id} {peer_id}".encode(), digest_size=8).digest()

    def granted(self, reservation: _HeldReservation) -> None:
        log.info("reachable through a relay", relay=reservation.link.peer_id)
        self._on_change()

    def lost(self, reservation: _HeldReservation, reason: str, *, refused: bool) -> None:
        peer_id = reservation.link.peer_id
        if self._reservations.get(peer_id) is reservation:
            del self._reservations[peer_id]
            log.info(
                "no longer reachable through a relay" if reservation.granted else "a relay has no place",
                relay=peer_id,
                why=reason,
            )
            if refused:
                self._refused[peer_id] = trio.current_time()
            self._on_change()
            self._look.set()


class _HeldReservation(NullDuplex):
    """This node's end of a reservation."""

    def __init__(self, reachability: Reachability, host: Host, link: Link) -> None:
        self._reachability = reachability
        self.link = link
        self.granted = False
        self.channel = host.reserve(link, self, self)

    def opened(self) -> None:
        self.granted = True
        self._reachability.granted(self)

    def refused(self, reason: str) -> None:
        self._reachability.lost(self, reason, refused=True)

    def abort(self, reason: str) -> None:
        self._reachability.lost(self, reason, refused=not self.link.is_closed)

    def send_eof(self) -> None:
        self.channel.abort("given back")
        self.abort("the relay gave it up")


def _read_question(message: Any) -> tuple[list[int], bytes | None]:
    match message:
        case [ports, (bytes() | None) as shown]:
            return _read_ports(ports), shown
    raise ProtocolViolation("not a question about an address")


def _read_ports(message: Any) -> list[int]:
    if not isinstance(message, list) or len(message) > MAX_PORTS or not all(map(_is_port, message)):
        raise ProtocolViolation("not a list of ports")
    return message


def _is_port(value: Any) -> bool:
    return type(value) is int and 0 < value < 65536


def _read_answer(message: Any) -> tuple[tuple[str, int], tuple[str, int] | None, list[int]]:
    match message:
        case [seen, mapped, ports]:
            return _read_address(seen), None if mapped is None else _read_address(mapped), _read_ports(ports)
    raise ProtocolViolation("not an answer about an address")


def _read_address(value: Any) -> tuple[str, int]:
    match value:
        case [str(host), int(port)] if _is_port(port) and ip_address(host, port) is not None:
            return host, port
    raise ProtocolViolation("not an address")
