"""Peer addresses as values: read from text that people type or peers announce, and only those that can be dialled."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from federation.errors import UsageError
from federation.units import is_peer_id

MAX_TEXT = 256  # as long as an address in a token

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_DIGITS = re.compile(r"[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """A TCP address and, if known, the peer that answers there. `str()` is its multiaddr."""

    host: str  # IPv4, IPv6 (compressed, no zone) or DNS name (lower case)
    port: int
    peer_id: str | None = None

    @classmethod
    def parse(cls, text: str) -> PeerAddress:
        """Read `/ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT[/p2p/ID]` or `HOST:PORT`; UsageError names the mistake.

        The three DNS forms are one here: the resolver decides on the family.
        """
        try:
            if len(text) > MAX_TEXT:
                raise ValueError(f"it is longer than {MAX_TEXT} characters")
            return cls._from_multiaddr(text) if text.startswith("/") else cls._from_host_port(text)
        except ValueError as error:
            shown = text if len(text) <= 80 else text[:77] + "..."
            raise UsageError(
                f"{shown!r} is not a peer address: {error} (write /ip4/192.0.2.1/tcp/4484 or HOST:PORT)"
            ) from None

    @classmethod
    def _from_multiaddr(cls, text: str) -> PeerAddress:
        match text.split("/")[1:]:
            case [protocol, host, "tcp", port]:
                return cls(_host(protocol, host), _port(port))
            case [protocol, host, "tcp", port, "p2p", peer_id]:
                if not is_peer_id(peer_id):
                    raise ValueError(f"{peer_id[:80]!r} is not a peer id")
                return cls(_host(protocol, host), _port(port), peer_id)
        raise ValueError("only plain TCP addresses can be dialled")

    @classmethod
    def _from_host_port(cls, text: str) -> PeerAddress:
        host, colon, port = text.rpartition(":")
        if not colon:
            raise ValueError("the port is missing")
        if host.startswith("[") and host.endswith("]"):
            return cls(_host("ip6", host[1:-1]), _port(port))
        if ":" in host:
            raise ValueError("an IPv6 address with a port goes in brackets, [2001:db8::1]:4484")
        return cls(_host("ip4" if _looks_like_ipv4(host) else "dns", host), _port(port))

    @property
    def ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The address as a number; None for a DNS name."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    @property
    def is_loopback(self) -> bool:
        return self.host == "localhost" or (self.ip is not None and self.ip.is_loopback)

    def __str__(self) -> str:
        ip = self.ip
        text = f"/{f'ip{ip.version}' if ip else 'dns'}/{self.host}/tcp/{self.port}"
        return text if self.peer_id is None else f"{text}/p2p/{self.peer_id}"


def ip_address(host: str, port: int) -> PeerAddress | None:
    """Read an IP address without a zone, and a port, as a remote names them; None for anything else. Commands contain it."""
    try:
        address = PeerAddress.parse(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except UsageError:
        return None
    return address if address.ip is not None else None


def _host(protocol: str, text: str) -> str:
    match protocol:
        case "ip4":
            ip: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.IPv4Address(text)
        case "ip6" if "%" in text:
            raise ValueError("an address with a zone means something on one machine only")
        case "ip6":
            ip = ipaddress.IPv6Address(text)
        case "dns" | "dns4" | "dns6":
            return _dns_name(text)
        case _:
            raise ValueError(f"{protocol!r} is not one of ip4, ip6, dns, dns4, dns6")
    if ip.is_unspecified or ip.is_multicast:
        raise ValueError(f"{ip} is no one machine's address")
    return str(ip)


def _dns_name(text: str) -> str:
    name = text.lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > 253 or _looks_like_ipv4(name) or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"{text[:80]!r} is not a host name")
    return name


def _looks_like_ipv4(text: str) -> bool:
    """No top-level domain is a number: such a name is an IPv4 address, or a misspelt one (RFC 3696, section 2)."""
    return text.rpartition(".")[2].isdecimal()


def _port(text: str) -> int:
    if not _DIGITS.fullmatch(text) or not 1 <= int(text) <= 65535:
        raise ValueError("the port must be 1 to 65535")
    return int(text)
