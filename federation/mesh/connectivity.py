"""The ways to this node and from it: its addresses, whether other nodes can dial them, relays where they cannot, and which
addresses that other nodes announce make sense from here.

This module watches the machine's interfaces. When they change, it closes at once all links on an address that is gone (the
peer would notice much later), announces all addresses anew, and asks members again how they see this node.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import structlog
import trio

from federation.mesh.gaps import Gaps
from federation.net.dial.address import PeerAddress
from federation.net.dial.book import MAX_ADDRESSES
from federation.net.dial.hearsay import Surroundings, is_somewhere
from federation.net.discover.interfaces import interface_ips, lasting_ips, local_addresses, local_networks
from federation.net.nat.holepunch import Puncher
from federation.net.nat.mapping import PortMapping, Way
from federation.net.nat.natpmp import map_port
from federation.net.nat.reachability import Reachability, is_outside, network_of
from federation.net.nat.relay import RelayLimits
from federation.net.nat.upnp import Upnp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from federation.config import Settings
    from federation.mesh.ledger import Ledger
    from federation.mesh.records import NodeData
    from federation.net.host import Host
    from federation.net.link.link import Link
    from federation.units import HostPort

log = structlog.get_logger(__name__)

RESOLVE_EVERY_S, RESOLVE_TIMEOUT_S = 60.0, 10.0  # names of dynamic addresses live as long
LOOK_EVERY_S = 2.0  # how old a change of this machine's addresses may get: it is announced within 5 s


def relay_limits(settings: Settings) -> RelayLimits | None:
    if not settings.relay:
        return None
    return RelayLimits(settings.relay_reservations, settings.relay_circuits, settings.relay_rate_bytes)


class Connectivity:
    """Calls `on_change()` when this node's record changed. Call `listens` before any other method."""

    def __init__(
        self,
        host: Host,
        ledger: Ledger,
        settings: Settings,
        *,
        on_change: Callable[[], None],
        utc_now: Callable[[], datetime],
        own_ports: Callable[[], Iterable[HostPort]] = tuple,
        is_banned: Callable[[str], bool] = lambda _peer: False,
    ) -> None:
        """`own_ports()` returns the ports on which this node listens besides its p2p port."""
        self.addresses: list[PeerAddress] = []
        self._resolved: list[PeerAddress] = []  # the addresses behind the names among our own
        self._host = host
        self._ledger = ledger
        self._announce = settings.announce
        self._wants_mapping = settings.port_mapping
        self.mapping: PortMapping | None = None  # while this node runs and wants one
        self._on_change = on_change
        self._utc_now = utc_now
        self._is_banned = is_banned
        self._listen = settings.p2p_listen
        self.surroundings = Surroundings(
            addresses=lambda: self.addresses, own_ports=lambda: (self._listen, *own_ports()), remote_hosts=self._remote_hosts
        )
        self._gaps = Gaps()
        self._is_between = False
        self._look_around()
        self.reachability = Reachability(
            host, relays=self.is_relay, networks=lambda: self._networks, on_change=self._reachability_changed,
            may_dial=self._may_dial,
        )  # fmt: skip
        self.puncher = Puncher(
            host, mapped_address=self.reachability.mapped_address, own_hosts=self._own_hosts,
            is_outside=lambda ip: is_outside(ip, self._networks), may_dial=self._may_dial,
        )  # fmt: skip
        host.dial_loop.routes = self.routes
        host.book.is_near = self._is_near
        host.book.may_dial = self._may_dial

    def _look_around(self) -> None:
        self._networks = local_networks()
        self._ips, self._lasting = interface_ips(), lasting_ips()
        self.surroundings.see(self._networks, lasting=local_networks(bridges=False), own_ips=self._ips)

    def _may_dial(self, address: PeerAddress, trusted: bool) -> bool:
        return self.surroundings.may_dial(address, trusted)

    def _remote_hosts(self) -> list[str]:
        return [link.remote_address[0] for link in self._host.links.values() if link.remote_address is not None]

    # Our record

    @property
    def relays(self) -> bool:
        """Whether other members may ask this node to relay: one that members outside can dial, or one that has members on
        several networks of its own, which may have no other way to each other."""
        return self._host.relay.limits is not None and (self.reachability.dialable is True or self._is_between)

    def listens(self, at: HostPort) -> None:
        self._listen = at
        self.read()

    def read(self) -> bool:
        """Read this node's addresses. Returns whether those that it announces changed."""
        if self._announce:
            texts = [address.multiaddr for address in self._announce]
        else:
            texts = local_addresses(self._listen.host, self._listen.port)
        own = [PeerAddress(a.host, a.port, self._host.peer_id) for a in map(PeerAddress.parse, texts)]
        learnt = [PeerAddress(host, port, self._host.peer_id) for host, port in self.reachability.public]
        addresses = list(dict.fromkeys((*own, *self._resolved, *learnt)))[:MAX_ADDRESSES]
        before, self.addresses = self.addresses, addresses
        return before != addresses

    def _is_near(self, address: PeerAddress) -> bool:
        return address.ip is not None and not address.is_loopback and not is_outside(address.host, self._networks)

    def _own_hosts(self) -> list[str]:
        return [address.host for address in self.addresses if address.ip and not address.is_loopback]

    def _reachability_changed(self) -> None:
        self.read()
        self._on_change()

    # Others

    def is_relay(self, peer_id: str) -> bool:
        """Whether that member relays for others."""
        row = self._ledger.get(peer_id)
        return row is not None and row.record.relays and not row.record.left

    def routes(self, peer_id: str) -> list[str]:
        """The connected relays that lead to `peer_id`, the nearest first."""
        row = self._ledger.get(peer_id)
        links = self._host.links
        if row is None or row.record.left:
            return []
        near = [relay for relay in row.record.via if relay in links and links[relay].path != "relayed"]
        return sorted(near, key=lambda relay: links[relay].rtt_s or 0.0)

    def peer_up(self, link: Link) -> None:
        self.reachability.peer_up(link)
        self.puncher.peer_up(link)
        if link.path == "relayed":
            return
        if link.remote_address is not None and self.surroundings.linked(link.remote_address[0]):
            self._host.book.wake_all()
            self._host.look_at_book()
        waiting = [record.peer_id for record in self._ledger.records() if link.peer_id in record.via]
        for peer in waiting:
            self._host.book.refresh(peer)
        if waiting:
            self._host.dial_loop.routes_changed()
            self._host.look_at_book()

    def record_changed(self, record: NodeData, before: NodeData | None) -> bool:
        """Take in a peer's record. Returns whether there is a new way to the peer."""
        self.reachability.look()
        if before is not None and before.addresses != record.addresses:
            self._peer_moved(record, before)
            self.puncher.reset_backoff()
        if before is not None and (before.via == record.via or before.incarnation > record.incarnation):
            return False
        if not record.via:
            return False
        self._host.book.refresh(record.peer_id)
        self._host.dial_loop.routes_changed()
        return True

    def _peer_moved(self, record: NodeData, before: NodeData) -> None:
        """The addresses of the peer's machine changed. Close links to an address on this node's own network that the peer no
        longer has: no machine hears them, and the peer cannot say so there. A PING tests links by way of a NAT."""
        link = self._host.links.get(record.peer_id)
        if link is None or link.remote_address is None or record.left:
            return
        at = PeerAddress(link.remote_address[0], 0)
        host = str(at).removesuffix("0")  # /ip4/HOST/tcp/: an address of a newer version may be one that we cannot parse
        had, has = (any(text.startswith(host) for text in known.addresses) for known in (before, record))
        if had and not has and self._is_near(at):
            link.fail("the peer no longer has the address of this connection")
        else:
            link.ping()

    # Background tasks

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.reachability.run, self._listen)
            nursery.start_soon(self.puncher.run, self._listen)
            nursery.start_soon(self._watch)
            if names := [address for address in self.addresses if address.ip is None]:
                nursery.start_soon(self._resolve_forever, names)
            if self._wants_mapping:
                ways = Way("NAT-PMP", map_port), Way("UPnP", Upnp().map_port)
                self.mapping = PortMapping(self._listen.port, self._forwarded, ways)
                nursery.start_soon(self.mapping.run)

    def _forwarded(self, port: int | None) -> None:
        """Take the port that the router named. It counts only once members have reached this node there."""
        self.reachability.forwarded = port
        self.reachability.moved()

    async def _resolve_forever(self, names: Sequence[PeerAddress]) -> None:
        """Announce the addresses behind our names: no member dials a name of another machine, and these may change."""
        while True:
            found = [PeerAddress(a.host, a.port, self._host.peer_id) for name in names for a in await self._stands_for(name)]
            if not found and not self._resolved:
                self._host.warn("a name to announce stands for no address here, and others do not dial names", str(names[0]))
            if found and found != self._resolved:  # if resolving fails, the last result stands
                self._resolved = found
                self._reachability_changed()
            await trio.sleep(RESOLVE_EVERY_S)

    async def _stands_for(self, name: PeerAddress) -> list[PeerAddress]:
        answers: list[Any] = []
        with suppress(OSError, UnicodeError), trio.move_on_after(RESOLVE_TIMEOUT_S):
            answers = await trio.socket.getaddrinfo(name.host, name.port, type=trio.socket.SOCK_STREAM)
        ips = [ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers]
        if ips and all(ip.is_loopback for ip in ips):  # as Debian has it of the machine's own name
            return [PeerAddress.parse(text) for text in local_addresses("", name.port)]
        return [PeerAddress(str(ip), name.port) for ip in ips if is_somewhere(ip)]

    def _look_at_links(self) -> None:
        """See whether this node is between networks of members, and whether it misses a member."""
        links = self._host.links
        hosts = {link.remote_address[0] for link in links.values() if link.path == "direct" and link.remote_address}
        networks = {network for host in hosts if (network := network_of(host, self._networks))}
        is_between = any(count > 1 for count in Counter(network.version for network in networks).values())
        if is_between != self._is_between:
            self._is_between = is_between
            self._on_change()
        unlinked = {
            record.peer_id: (record.incarnation, record.seq)
            for record in self._ledger.online(self._utc_now())
            if not (record.peer_id in links or record.peer_id == self._host.peer_id or self._is_banned(record.peer_id))
        }
        if self._gaps.look(trio.current_time(), unlinked):
            self.reachability.cut_off()

    async def _watch(self) -> None:
        while True:
            await trio.sleep(LOOK_EVERY_S)
            self._look_at_links()
            before, where = self._ips, self._lasting
            if interface_ips() == before:
                continue
            self._look_around()
            gone = before - self._ips
            for link in list(self._host.links.values()):
                if link.local_host in gone:
                    link.fail("this machine no longer has the address that it used")
            if self._lasting == where and not self.read():  # containers come and go: no move
                continue
            self.reachability.moved()
            self._gaps.forget()
            self.puncher.reset_backoff()
            self.read()
            log.info("this machine's addresses changed", addresses=[str(address) for address in self.addresses])
            self._host.dial_loop.start_over()
            self._host.book.wake_all()
            self._host.look_at_book()
            self._on_change()
