"""Values as people write them: addresses, sizes, durations. A ValueError names the mistake in plain words.

No pydantic here: the command line needs these and has to answer at once.
"""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Collection

DEFAULT_SERVICE = "default"
BACKEND_PROTOCOLS = ("http", "tcp")
REDACTED = "[redacted]"
ANY_ORIGIN = "*"
ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([!-.0-~]*)")  # scheme and authority; no slash behind ://

_SERVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?")
_TOKEN = re.compile(r"fed(?:(?:key)?[0-9]{1,4}|k)_[A-Za-z0-9_-]{8,}")
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:[0-9]{1,5})?")
_PEER_ID = re.compile(r"12D3KooW[1-9A-HJ-NP-Za-km-z]{44}")  # base58 of an Ed25519 key; see net/identity.py
_PORT = re.compile(r"[0-9]{1,5}")
_NUMBER = r"([0-9]{1,20}(?:\.[0-9]{1,9})?)"
_SIZE = re.compile(rf"{_NUMBER}\s*([KMGT]i?B|B)?", re.IGNORECASE)
_DURATION = re.compile(rf"{_NUMBER}\s*(ms|s|m|h)?", re.IGNORECASE)

_DAYS = re.compile(rf"{_NUMBER}\s*(d|w)", re.IGNORECASE)
_RATE = re.compile(r"([0-9]{1,7})\s*/\s*(s|m|h|d)", re.IGNORECASE)

_RATE_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZE_FACTORS = {"b": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}
_UNIX = re.compile(r"unix:(?://)?(/.+)", re.DOTALL)
MAX_UNIX_PATH_BYTES = 100  # the kernel's field has 104 on macOS and 108 on Linux, a closing zero in it

_DURATION_FACTORS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600)}


@dataclass(frozen=True, slots=True)
class HostPort:
    """A listener's place: `host` is an IP address without brackets, or a name."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str, default_port: int | None = None) -> HostPort:
        """Read "host:port", or "host" where there is a default port. IPv6 addresses need brackets."""
        text = pasted(text)
        if "://" in text:
            raise ValueError("write HOST:PORT, without a scheme such as http://")
        if text.startswith("["):
            host, bracket, rest = text[1:].partition("]")
            if not bracket or (rest and not rest.startswith(":")):
                raise ValueError("write an IPv6 address as [ADDRESS]:PORT")
            port = rest[1:] if rest else None
        elif text.count(":") > 1:
            raise ValueError("an IPv6 address needs brackets: [ADDRESS]:PORT")
        else:
            host, colon, after = text.partition(":")
            port = after if colon else None
        if port is None and default_port is None and host:
            raise ValueError("the port is missing; write HOST:PORT")
        _check_host(host, bracketed=text.startswith("["))
        if port is None:
            return cls(host, default_port or 0)
        if not _PORT.fullmatch(port) or int(port) > 65535:
            raise ValueError("a port is a number from 0 to 65535")
        return cls(host, int(port))

    @property
    def authority(self) -> str:
        """As a Host header has it: a zone means something on this machine only."""
        host = self.host.partition("%")[0]
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def _is_localhost(self) -> bool:
        return self.host.lower().rstrip(".") == "localhost"

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts that a listener binds: `localhost` is an address of either family, and programs try both."""
        return ("127.0.0.1", "::1") if self._is_localhost else (self.host,)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self._is_localhost:
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def is_ip(self) -> bool:
        """Whether it is an address and not a name."""
        try:
            ip_address(self.host)
        except ValueError:
            return False
        return True

    @property
    def is_wildcard(self) -> bool:
        """Whether it stands for every interface of the machine."""
        try:
            return ip_address(self.host).is_unspecified
        except ValueError:
            return False

    @property
    def multiaddr(self) -> str:
        """The address as libp2p writes it: /ip4/192.0.2.1/tcp/4484."""
        try:
            kind = f"ip{ip_address(self.host).version}"
        except ValueError:
            kind = "dns"
        return f"/{kind}/{self.host}/tcp/{self.port}"


@dataclass(frozen=True, slots=True)
class UnixPath:
    """The place of a Unix socket, for a HostPort: this machine alone reaches it, at no port."""

    path: str
    host: ClassVar[str] = ""
    port: ClassVar[int] = 0
    authority: ClassVar[str] = "localhost"
    is_loopback: ClassVar[bool] = True
    is_wildcard: ClassVar[bool] = False

    def __str__(self) -> str:
        return f"unix:{self.path}"

    @classmethod
    def parse(cls, text: str) -> UnixPath | None:
        """Read "unix:/path" or "unix:///path"; None for a text of another kind."""
        text = text.strip()
        if text.startswith("/"):
            raise ValueError("write the path of a Unix socket as unix:/path")
        if not text.lower().startswith("unix:"):
            return None
        match = _UNIX.fullmatch(f"unix:{text[5:]}")
        if match is None:
            raise ValueError("write a Unix socket as unix:/path, with the whole path")
        if len(os.fsencode(match[1])) > MAX_UNIX_PATH_BYTES:
            raise ValueError(f"the path of a Unix socket has {MAX_UNIX_PATH_BYTES} bytes at most")
        if not match[1].isprintable():
            raise ValueError("the path of a Unix socket has printable characters only")
        return cls(match[1])


Place = HostPort | UnixPath


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A service and the local address of its backend or of its clients' port.

    `protocol`: what a person says that the backend speaks, "http" or "tcp" (anything but HTTP); empty: nothing said.
    """

    service: str
    address: Place
    protocol: str = ""

    def __str__(self) -> str:
        return f"{self.service}={self.protocol}{'://' if self.protocol else ''}{self.address}"

    @classmethod
    def parse(cls, text: str, *, protocols: Collection[str] = ()) -> Endpoint:
        """Read "[NAME=][PROTOCOL://]HOST:PORT", or unix:/path for the last part; without a name the service is "default"."""
        service, equals, address = pasted(text).rpartition("=")
        if not equals:
            service = DEFAULT_SERVICE
        if not _SERVICE.fullmatch(service):
            raise ValueError("a service's name has 1 to 64 letters, digits, dots, dashes and underscores")
        protocol, mark, rest = address.strip().partition("://")
        if mark and protocol.lower() in protocols:
            return cls(service, _place(rest.removesuffix("/")), protocol.lower())
        return cls(service, _place(address))


def _place(text: str) -> Place:
    return UnixPath.parse(text) or HostPort.parse(text)


def parse_size(value: object) -> int:
    """Bytes from 8000000000, "24GiB" (1024 based) or "24GB" (1000 based)."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(_SIZE_HELP)
    match = _SIZE.fullmatch(pasted(str(value)))
    if match is None:
        raise ValueError(_SIZE_HELP)
    number, unit = match.groups()
    return int(Decimal(number) * _SIZE_FACTORS[(unit or "b").lower()])


def parse_duration(value: object) -> float:
    """Seconds from 10, 0.5, "10s", "500ms", "1m" or "1h"."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(_DURATION_HELP)
    match = _DURATION.fullmatch(pasted(str(value)))
    if match is None:
        raise ValueError(_DURATION_HELP)
    number, unit = match.groups()
    return float(Decimal(number) * _DURATION_FACTORS[(unit or "s").lower()])


def parse_lifetime(text: str) -> float:
    """Seconds from "30d", "2w", and what parse_duration reads."""
    match = _DAYS.fullmatch(text.strip())
    if match is None:
        try:
            return parse_duration(text)
        except ValueError:
            raise ValueError("write days, or another unit: 30d, 2w, 12h, 90m") from None
    return float(Decimal(match[1]) * (86400 if match[2].lower() == "d" else 7 * 86400))


def parse_rate(text: str) -> tuple[int, int]:
    """A number, and the seconds in which there may be so many, from "60/m", "5/s", "1000/h" or "1000/d"."""
    match = _RATE.fullmatch(text.strip())
    if match is None or not int(match[1]):
        raise ValueError("write a number of requests in a time: 60/m, 5/s, 1000/h, 1000/d")
    return int(match[1]), _RATE_SECONDS[match[2].lower()]


def is_peer_id(text: str) -> bool:
    """Whether `text` is a whole peer id: 52 characters, of which the first eight say that it is an Ed25519 key's."""
    return _PEER_ID.fullmatch(text) is not None


def machine_of(host: str) -> str:
    """The machine behind an address: IPv4 as it is, IPv6 by its /64, since a machine gets a /64 for the asking."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    return host if address.version == 4 else str(ip_network((address, 64), strict=False))


def parse_webhook(text: str) -> str:
    """Check the address that a notice is sent to. Raises ValueError, which repeats nothing of it: it may hold a secret."""
    from urllib.parse import urlsplit  # 10 ms that the command line does without

    text = pasted(text)
    problem = "write http://HOST/PATH or https://HOST/PATH (its text is not shown: it may be a secret)"
    if not 1 <= len(text) <= 2048 or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(problem)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(problem) from None
    if parts.scheme not in ("http", "https", "ntfy+http", "ntfy+https") or not parts.hostname or port == 0:
        raise ValueError(problem)
    return text


def parse_origin(text: str) -> str:
    """A web page's origin as browsers write it: https://chat.example. ANY_ORIGIN and "null" pass."""
    origin = pasted(text).lower()
    if origin in (ANY_ORIGIN, "null"):
        return origin
    match = ORIGIN.fullmatch(origin.removesuffix("/"))
    if match is None or not _AUTHORITY.fullmatch(match[2]):
        raise ValueError("write an origin, scheme and host: https://chat.example, http://box:3000; or * for every page")
    scheme, authority = match.groups()
    default = {"http": ":80", "https": ":443"}.get(scheme)
    return f"{scheme}://{authority.removesuffix(default) if default else authority}"


def pasted(text: str) -> str:
    """A value of one line as a person meant it: without what editors, chats and web pages put around or into it. That is a
    byte order mark, other invisible characters, spaces of all kinds at the ends, and one pair of quotes.
    """
    text = "".join(c for c in text if unicodedata.category(c) != "Cf").strip()
    for opening, closing in ('""', "''", "``", "\u201c\u201d", "\u201e\u201c", "\u2018\u2019", "\u00ab\u00bb"):
        if len(text) > 1 and text.startswith(opening) and text.endswith(closing):
            return text[1:-1].strip()
    return text


def decoded(data: bytes) -> str:
    """The text of a file that a person saved: UTF-8, or UTF-16 as Windows' Notepad and PowerShell write it, which begins
    with a byte order mark. Raises UnicodeDecodeError.
    """
    return data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")


def without_tokens(text: str) -> str:
    """`text` with all parts replaced that look like a network's token, its owner's key, or a client's key."""
    return _TOKEN.sub(REDACTED, text)


def visible(text: str) -> str:
    """`text` with a ? for each character that is invisible, or moves or turns other characters: control characters, bidi
    overrides, zero widths, line separators. `api/dashboard/format.js` has this rule for the page.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


_SIZE_HELP = "write bytes, or a unit: 24GiB (1024 based), 24GB (1000 based)"
_DURATION_HELP = "write seconds, or a unit: 10s, 500ms, 1m, 1h"


def _check_host(host: str, *, bracketed: bool) -> None:
    if not host:
        raise ValueError("the host is missing; 0.0.0.0 means every interface")
    try:
        version = ip_address(host).version
    except ValueError:
        # A name of digits and dots only is a mistyped IPv4 address.
        if bracketed or host.replace(".", "").isdigit() or not _HOST_NAME.fullmatch(host):
            raise ValueError("the host is neither an IP address nor a host name") from None
    else:
        if bracketed and version == 4:
            raise ValueError("only an IPv6 address is written in brackets")
