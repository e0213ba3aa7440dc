"""What others say of where peers are: which of it is dialled at all, and how often. No I/O and no clock.

Members announce addresses of their choice, and all nodes hear of them: without a rule here a member could have everybody
knock at third parties, at what only this machine or this network reaches, and, if it heard what came of it, look for open
ports. What a person gave (the token, --peer) is not hearsay. An address where a member has proved itself is none any more
as to how often it is dialled.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import TYPE_CHECKING

from federation.ratelimit import Bucket, Buckets
from federation.units import machine_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from federation.net.dial.address import PeerAddress
    from federation.units import HostPort

Ip = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DIALS_A_SECOND, DIALS_AT_ONCE = 10.0, 100.0  # to all that is hearsay; one that finds a member does not count
# To one host, or one /64. Thirty members behind one NAT are reached at once; a host that is none hears a connect a second.
HOST_A_SECOND, HOST_AT_ONCE = 1.0, 32.0
MAX_HOSTS = 4096  # that are remembered: more are not dialled in the time that a bucket takes to fill up

PRIVATE: tuple[Network, ...] = tuple(
    map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"))
)
# Nobody is there, or somebody else on each link or machine; in IPv6 also what has an IPv4 address inside.
_NOWHERE: tuple[Network, ...] = tuple(
    map(
        ipaddress.ip_network,
        ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24",
         "224.0.0.0/3", "2001::/32", "2001:db8::/32", "2002::/16", "3fff::/20"),
    )
)  # fmt: skip
_GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")


@lru_cache(maxsize=MAX_HOSTS)
def private_block(ip: Ip) -> Network | None:
    """The range for private networks in which `ip` is; None: the internet, or nowhere."""
    return next((block for block in PRIVATE if ip in block), None)


@lru_cache(maxsize=MAX_HOSTS)
def is_somewhere(ip: Ip) -> bool:
    """Whether one machine may be there, and one that others can mean: no loopback, link-local, multicast, documentation."""
    if private_block(ip) is not None:
        return True
    return not any(ip in network for network in _NOWHERE) and (ip.version == 4 or ip in _GLOBAL_IPV6)


class Surroundings:
    """This machine's place in the world, as far as it decides on what is dialled.

    `addresses()`: those that this node announces. `own_ports()`: where it listens, whatever for. `remote_hosts()`: the other
    ends of its links. `see` tells of the interfaces, `linked` of a new link.
    """

    def __init__(
        self,
        *,
        addresses: Callable[[], Iterable[PeerAddress]],
        own_ports: Callable[[], Iterable[HostPort]],
        remote_hosts: Callable[[], Iterable[str]],
    ) -> None:
        self._addresses = addresses
        self._own_ports = own_ports
        self._remote_hosts = remote_hosts
        self._networks: Sequence[Network] = ()
        self._own_ips: frozenset[str] = frozenset()
        self._blocks: set[Network] = set()

    def see(self, networks: Sequence[Network], *, lasting: Iterable[Network], own_ips: Iterable[str]) -> None:
        """The subnets of this machine, those of them that are not bridges to its own containers, and its addresses."""
        self._networks = networks
        self._own_ips = frozenset(own_ips)
        self._blocks = {block for network in lasting for block in PRIVATE if _is_within(network, block)}
        for host in self._remote_hosts():
            self.linked(host)

    def linked(self, host: str) -> bool:
        """A member is connected from or at `host`, so packets find their way there; whether that opens more to dial."""
        block = private_block(ipaddress.ip_address(host))
        if block is None or block in self._blocks:
            return False
        self._blocks.add(block)
        return True

    def may_dial(self, address: PeerAddress, trusted: bool) -> bool:
        """Whether this makes sense from here. `trusted`: a member proved itself there, in this life or an earlier one."""
        ip = address.ip
        if ip is None:
            return trusted  # a name leads wherever its owner says, at each dial anew
        if self._is_own(address, ip):
            return False
        if ip.is_loopback:
            return trusted or self._is_all_here()
        if not is_somewhere(ip):
            return False
        block = private_block(ip)
        return block is None or block in self._blocks or any(ip in network for network in self._networks)

    def _is_own(self, address: PeerAddress, ip: Ip) -> bool:
        is_here = ip.is_loopback or address.host in self._own_ips
        return is_here and any(
            at.port == address.port and (at.is_wildcard or at.host == address.host) for at in self._own_ports()
        )

    def _is_all_here(self) -> bool:
        """Whether the network is one of daemons on this very machine, as far as this one can tell."""
        return all(address.is_loopback for address in self._addresses()) and all(
            host in self._own_ips or ipaddress.ip_address(host).is_loopback for host in self._remote_hosts()
        )


def _is_within(network: Network, block: Network) -> bool:
    return network.version == block.version and network.network_address in block


class Pace:
    """How often what is hearsay is dialled: over all, and to one host over all peers that are said to be there."""

    def __init__(self) -> None:
        self._all = Bucket(DIALS_A_SECOND, DIALS_AT_ONCE)
        self._hosts: Buckets[str] = Buckets(HOST_A_SECOND, HOST_AT_ONCE, max_keys=MAX_HOSTS)

    def take(self, host: str, now: float) -> bool:
        """Whether that host may be dialled now. A name counts for nothing: it is trusted, or not dialled."""
        try:
            key = _host_key(host)
        except ValueError:
            return True
        return self._all.left(now) >= 1 and self._hosts.of(key).take(now) and self._all.take(now)

    def found(self, host: str, now: float) -> None:
        """A member is there: give back what its dial took."""
        try:
            key = _host_key(host)
        except ValueError:
            return
        for bucket in (self._all, self._hosts.of(key)):
            bucket.spend(now, -1.0)


def _host_key(host: str) -> str:
    """Raises ValueError for a name."""
    ipaddress.ip_address(host)
    return machine_of(host)
