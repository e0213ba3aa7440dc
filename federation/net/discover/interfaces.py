"""This machine's network interfaces: addresses of its listeners, its subnets, interfaces for multicast DNS."""

from __future__ import annotations

import ipaddress
import re
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import ifaddr

from federation.net.dial.address import PeerAddress
from federation.net.dial.book import MAX_ADDRESSES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_WILDCARDS = ("", "0.0.0.0", "::")
# Of containers, virtual machines and clusters: they come and go, are alike on every machine, and lead nowhere but to guests
# of this one. docker's own are br- and twelve hex digits: br-lan is a router's LAN, and bridge0 on macOS is Thunderbolt.
_VIRTUAL = re.compile(
    r"br-[0-9a-f]{12}$|bridge[1-9]|antrea|cali|cbr|cilium|cni|docker|dummy|flannel|incusbr|kube-|lxc|lxdbr|nodelocaldns"
    r"|podman|tunl|vboxnet|ve-|veth|virbr|vmnet|vnet|vxlan|weave"
)
MAX_MULTICAST = 16  # of IPv4: a socket of Linux joins 20 groups (net.ipv4.igmp_max_memberships), and mDNS takes some


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

    A listener on a concrete host is reached there only, while this machine has that address. One on all interfaces (0.0.0.0
    and :: both mean both families) is reached at the private addresses of the LAN, then at public ones, IPv4 before IPv6,
    then at those of tunnels, which have no network around them (/32). Link-local ones are left out: they mean nothing on the
    next link, or without a zone; so are those of bridges and clusters, and private ones of loopback interfaces, which only
    this machine reaches. All of these count only where there is nothing else: then all peers are on this very machine.
    """
    if listen_host not in _WILDCARDS:
        text = str(PeerAddress.parse(f"[{listen_host}]:{port}" if ":" in listen_host else f"{listen_host}:{port}"))
        own = interface_ips(adapters=adapters)
        try:
            is_gone = bool(own) and not _is_loopback(listen_host) and str(ipaddress.ip_address(listen_host)) not in own
        except ValueError:  # a name
            is_gone = False
        return [] if is_gone else [text]
    found = [(_rank(adapter, entry), _ip(entry)) for adapter in adapters() for entry in adapter.ips]
    found = [(rank, ip) for rank, ip in found if not ip.is_link_local]
    outside = [(rank, ip) for rank, ip in found if rank < _HERE]
    some = outside or [(rank, ip) for rank, ip in found if not ip.is_loopback] or found
    ranked = sorted(some, key=lambda item: (item[0], item[1].version, item[1].is_private == (item[0] == _TUNNEL)))
    distinct = dict.fromkeys(str(PeerAddress(str(ip), port)) for _, ip in ranked)
    return list(distinct)[:MAX_ADDRESSES]


_LAN, _TUNNEL, _ROUTED, _HERE = range(4)


def _rank(adapter: ifaddr.Adapter, entry: ifaddr.IP) -> int:
    """How far an address is reached: from its network, by a tunnel, by a route (a public one on lo), from here."""
    ip = _ip(entry)
    if _VIRTUAL.match(adapter.name):
        return _HERE
    if any(_ip(other).is_loopback for other in adapter.ips):
        return _HERE if ip.is_private or ip.is_loopback else _ROUTED
    return _TUNNEL if ip.version == 4 and entry.network_prefix == 32 else _LAN


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def interface_ips(*, adapters: Callable[[], Iterable[ifaddr.Adapter]] = interfaces) -> set[str]:
    """This machine's addresses, all of them."""
    return {str(_ip(entry)) for adapter in adapters() for entry in adapter.ips}


def lasting_ips(*, adapters: Callable[[], Iterable[ifaddr.Adapter]] = interfaces) -> set[str]:
    """Those of them that say where this machine is: not the ones that come and go with containers, or are link-local."""
    return {
        str(ip)
        for adapter in adapters()
        if not _VIRTUAL.match(adapter.name)
        for ip in map(_ip, adapter.ips)
        if not ip.is_link_local
    }


def local_networks(
    *, adapters: Callable[[], Iterable[ifaddr.Adapter]] = interfaces, bridges: bool = True
) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """The subnets that this machine is in; those of bridges to its own containers too, unless told otherwise."""
    return [
        ipaddress.ip_network((ip, entry.network_prefix), strict=False)
        for adapter in adapters()
        if bridges or not _VIRTUAL.match(adapter.name)
        for entry in adapter.ips
        for ip in (_ip(entry),)
    ]


def multicast_interfaces(
    addresses: Iterable[PeerAddress], *, adapters: Callable[[], Iterable[ifaddr.Adapter]] = interfaces
) -> list[str | int]:
    """The interfaces for mDNS, as zeroconf wants them: IPv4 addresses, and indexes of interfaces for IPv6.

    Loopback among them, since neighbours on this machine may listen there alone; not those of containers, which come and go:
    a change begins a new session. A node that itself listens on loopback alone has nothing to say elsewhere.
    """
    if all(address.is_loopback for address in addresses):
        return ["127.0.0.1"]
    interfaces = [adapter for adapter in adapters() if not _VIRTUAL.match(adapter.name)]
    every = sorted((_rank(a, entry), str(ip)) for a in interfaces for entry in a.ips if (ip := _ip(entry)).version == 4)
    ipv4 = list(dict.fromkeys(ip for rank, ip in every if rank < _HERE))[: MAX_MULTICAST - 1]
    ipv4 += [ip for _, ip in every if _is_loopback(ip)][:1]
    if sys.platform != "linux":  # elsewhere zeroconf's one IPv6 socket hears no IPv4 (home-assistant/core#56584)
        return sorted(ipv4)
    ipv6 = {a.index for a in interfaces for ip in map(_ip, a.ips) if ip.version == 6 and not ip.is_loopback}
    return sorted({*ipv4, *sorted(index for index in ipv6 if index is not None)[:MAX_MULTICAST]}, key=str)


def _ip(entry: ifaddr.IP) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(entry.ip if isinstance(entry.ip, str) else entry.ip[0])
