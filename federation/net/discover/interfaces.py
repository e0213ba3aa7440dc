"""This machine's network interfaces: addresses of its listeners, its subnets, interfaces for multicast DNS."""

from __future__ import annotations

import ipaddress
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import ifaddr

from federation.net.dial.address import PeerAddress
from federation.net.dial.book import MAX_ADDRESSES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_WILDCARDS = ("", "0.0.0.0", "::")
# Bridges to containers and virtual machines: reachable from this machine alone, and alike on every machine.
_BRIDGES = (
    "br-",
    "bridge",
    "cbr",
    "cni",
    "docker",
    "flannel",
    "lxcbr",
    "lxdbr",
    "podman",
    "vboxnet",
    "veth",
    "virbr",
    "vmnet",
)


class _Interfaces:
    """Returns the interfaces as of now; the last known ones while no descriptor is left to ask the kernel with."""

    def __init__(self) -> None:
        self._last: list[ifaddr.Adapter] = []

    def __call__(self) -> list[ifaddr.Adapter]:
        with suppress(OSError):
            self._last = list(ifaddr.get_adapters())
        return self._last


interfaces = _Interfaces()


def local_addresses(
    listen_host: str, port: int, *, adapters: Callable[[], Iterable[ifaddr.Adapter]] = interfaces
) -> list[str]:
    """The multiaddrs under which a listener is reached, best first, at most MAX_ADDRESSES.

    A listener on a concrete host is reached there only. One on all interfaces (0.0.0.0 and :: both mean both families)
    is reached at the private addresses of the LAN, then at public ones, IPv4 before IPv6, and last at those of bridges
    on this machine. Link-local ones are left out: they mean nothing on the next link, or without a zone. Loopback
    counts only where there is no other interface: then all peers are daemons on this very machine.
    """
    if listen_host not in _WILDCARDS:
        return [str(PeerAddress.parse(f"[{listen_host}]:{port}" if ":" in listen_host else f"{listen_host}:{port}"))]
    found = [
        (adapter.name.startswith(_BRIDGES), ip)
        for adapter in adapters()
        for ip in (_ip(entry) for entry in adapter.ips)
        if not ip.is_link_local
    ]
    outside = [(bridge, ip) for bridge, ip in found if not ip.is_loopback]
    ranked = sorted(outside or found, key=lambda item: (item[0], item[1].version, not item[1].is_private))
    distinct = dict.fromkeys(str(PeerAddress(str(ip), port)) for _, ip in ranked)
    return list(distinct)[:MAX_ADDRESSES]


def interface_ips(*, adapters: Callable[[], Iterable[ifaddr.Adapter]] = interfaces) -> set[str]:
    """This machine's addresses, all of them."""
    return {str(_ip(entry)) for adapter in adapters() for entry in adapter.ips}


def local_networks(
    *, adapters: Callable[[], Iterable[ifaddr.Adapter]] = interfaces, bridges: bool = True
) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """The subnets that this machine is in; those of bridges to its own containers too, unless told otherwise."""
    return [
        ipaddress.ip_network((ip, entry.network_prefix), strict=False)
        for adapter in adapters()
        if bridges or not adapter.name.startswith(_BRIDGES)
        for entry in adapter.ips
        for ip in (_ip(entry),)
    ]


def multicast_interfaces(
    addresses: Iterable[PeerAddress], *, adapters: Callable[[], Iterable[ifaddr.Adapter]] = interfaces
) -> list[str | int]:
    """The interfaces for mDNS, as zeroconf wants them: IPv4 addresses, and indexes of interfaces for IPv6.

    All interfaces, loopback among them, since neighbours on this machine may listen there alone. A node that itself
    listens on loopback alone has nothing to say elsewhere.
    """
    if all(address.is_loopback for address in addresses):
        return ["127.0.0.1"]
    interfaces = list(adapters())
    ipv4: list[str | int] = [str(ip) for a in interfaces for ip in map(_ip, a.ips) if ip.version == 4]
    if sys.platform != "linux":  # elsewhere zeroconf's one IPv6 socket hears no IPv4 (home-assistant/core#56584)
        return sorted(set(ipv4), key=str)
    ipv6 = {a.index for a in interfaces for ip in map(_ip, a.ips) if ip.version == 6 and not ip.is_loopback}
    return sorted({*ipv4, *(index for index in ipv6 if index is not None)}, key=str)


def _ip(entry: ifaddr.IP) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(entry.ip if isinstance(entry.ip, str) else entry.ip[0])
