"""Hearsay, the addresses that other nodes name: which of them this node dials, and how often. No I/O and no clock.

Members announce addresses of their choice to all nodes. Without a rule here a member could have every node dial third
parties, or addresses that only this machine or network reaches; and a member that learnt the results could scan for open
ports. An address that a person gave (the token, --peer) is not hearsay. The pace does not apply to an address where a member
has proved itself.
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

DIALS_A_SECOND, DIALS_AT_ONCE = 10.0, 100.0  # to all hearsay; a dial that finds a member does not count
# To one host, or one /64: thirty members behind one NAT are reached at once, a foreign host gets one connect a second.
HOST_A_SECOND, HOST_AT_ONCE = 1.0, 32.0
MAX_HOSTS = 4096  # remembered: in the time that a host's bucket takes to fill up, the node dials fewer

PRIVATE: tuple[Network, ...] = tuple(
    map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"))
)
# No machine is there, or another one on each link or machine; IPv6 addresses with an IPv4 address inside, too.
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
    """The range for private networks that contains `ip`; None on the internet, and where no machine can be."""
    return next((block for block in PRIVATE if ip in block), None)


@lru_cache(maxsize=MAX_HOSTS)
def is_somewhere(ip: Ip) -> bool:
    """Whether `ip` can be one machine's for several others: no loopback, link-local, multicast, documentation."""
    if private_block(ip) is not None:
        return True
    return not any(ip in network for network in _NOWHERE) and (ip.version == 4 or ip in _GLOBAL_IPV6)


class Surroundings:
    """This machine's networks and neighbours, by which `may_dial` decides.

    `addresses()`: those that this node announces. `own_ports()`: all that this node listens on. `remote_hosts()`: the other
    ends of its links. Call `see` with the interfaces, and `linked` for each new link.
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
        """Take in this machine's subnets (`lasting`: without bridges to its own containers) and addresses."""
        self._networks = networks
        self._own_ips = frozenset(own_ips)
        self._blocks = {block for network in lasting for block in PRIVATE if _is_within(network, block)}
        for host in self._remote_hosts():
            self.linked(host)

    def linked(self, host: str) -> bool:
        """Note a link with a member at `host`, so its range has a route. Returns whether more addresses make sense now."""
        block = private_block(ipaddress.ip_address(host))
        if block is None or block in self._blocks:
            return False
        self._blocks.add(block)
        return True

    def may_dial(self, address: PeerAddress, trusted: bool) -> bool:
        """Whether a dial makes sense from here. `trusted`: a member proved itself there, in this run or an earlier one."""
        ip = address.ip
        if ip is None:
            return trusted  # the owner of a name may lead each dial elsewhere
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
        """Whether, as far as this node can tell, all nodes of the network run on this very machine."""
        own = list(self._addresses())  # none: the address that it listens on is gone for now
        return (
            bool(own)
            and all(address.is_loopback for address in own)
            and all(host in self._own_ips or ipaddress.ip_address(host).is_loopback for host in self._remote_hosts())
        )


def _is_within(network: Network, block: Network) -> bool:
    return network.version == block.version and network.network_address in block


class Pace:
    """Limits dials to hearsay: in all, and to one host, over all peers that are said to be there."""

    def __init__(self) -> None:
        self._all = Bucket(DIALS_A_SECOND, DIALS_AT_ONCE)
        self._hosts: Buckets[str] = Buckets(HOST_A_SECOND, HOST_AT_ONCE, max_keys=MAX_HOSTS)

    def take(self, host: str, now: float) -> bool:
        """Count a dial to `host`. Returns whether it is allowed now. Names are exempt: only trusted ones are dialled."""
        try:
            key = _host_key(host)
        except ValueError:
            return True
        return self._all.left(now) >= 1 and self._hosts.of(key).take(now) and self._all.take(now)

    def found(self, host: str, now: float) -> None:
        """A member answered at `host`: give back what the dial took."""
        try:
            key = _host_key(host)
        except ValueError:
            return
        for bucket in (self._all, self._hosts.of(key)):
            bucket.spend(now, -1.0)


def _host_key(host: str) -> str:
    """The bucket's key of a host. Raises ValueError for a name."""
    ipaddress.ip_address(host)
    return machine_of(host)
