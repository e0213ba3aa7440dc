"""Web pages at a client's port: which pages may ask, and the answer to a rejected client. No I/O, no clock.

A browser connects to this machine for any page that it shows, and a backend that trusts all its clients would serve
that page. So the entry gives no byte of a client to a backend before `Rules.judge` has seen the head of its first
request. A page cannot choose the headers that count: browsers write `Host`, `Origin` and `Sec-Fetch-Site` themselves.

* `Host`, at a listener on loopback: a page whose own name was made to resolve to this machine (DNS rebinding) shows that
  name. Addresses pass, and names that no public name server answers for: localhost, this machine's own, those without
  a dot, and those below .internal (host.docker.internal). Off loopback any name may be this machine's.
* `Origin`: pages of this machine pass, whatever their port: of localhost, of its own name, of the host that `Host` names.
  Origins that are neither http nor https are no web page's (chrome-extension://, vscode-webview://, tauri://, file://)
  and pass. `null` does not: any page can have it, by a sandboxed frame.
* `Sec-Fetch-Site: cross-site` counts where there is no `Origin`: a link, an image, a form of another site.

Later requests of a browser's connection are judged too: a page of another site can get hold of one that the user's own
page opened (a link or a form is sent where the user's own would be). They begin where `Request.size` ends. No browser
sends requests that cannot be followed so, pipelined or chunked; after an upgrade the protocol is another one.

Bytes that do not look like HTTP/1 go on at once. Bytes that may become a request line wait for the rest: a head goes on
whole, and one that is not complete at MAX_HEAD bytes gets 431. A page may choose a method that is longer than any buffer,
so MAX_HEAD bytes without a space or a line's end count as one. Reading is as lenient as the most lenient backend: bare
line feeds, folded lines, names in any case, several of one header (then each has to pass).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import Enum, auto
from ipaddress import ip_address
from typing import NamedTuple

from federation.units import ANY_ORIGIN, ORIGIN

MAX_HEAD = 16 * 1024  # as Node, and more than nginx or Apache take of one line
PREFLIGHT_S = 600  # for browsers to remember its answer; after a reload of the settings nobody waits long
METHOD_WAIT_S = 1.0  # for the rest of bytes that may be a method: a browser writes its head at once

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_REQUEST_LINE = re.compile(_TOKEN + rb"+ [^\s]+ HTTP/1\.[01]\r?\n")
_BEGUN_LINE = re.compile(_TOKEN + rb"+ /[^\s]*(?: ([^\n]{0,9}))?\Z")
_BEGUN_METHOD = re.compile(_TOKEN + rb"{65,}\Z")  # a page's own: a shorter one comes with the bytes behind it
_VERSIONS = (b"HTTP/1.1\r", b"HTTP/1.0\r")
_METHODS = (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"PATCH ", b"DELETE ", b"OPTIONS ")
_HEAD_END = re.compile(rb"\n\r?\n")
_FOLD = re.compile(rb"\r?\n[ \t]+")
_HEADER = re.compile(rb"\n(host|origin|sec-fetch-site)[ \t]*:([^\r\n]*)", re.IGNORECASE)
_BROWSER = re.compile(rb"\n(?:origin|sec-fetch-|user-agent[ \t]*:[^\r\n]*mozilla/)", re.IGNORECASE)
_FRAMING = re.compile(rb"\n(content-length|transfer-encoding|upgrade)[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE)
_PLAIN_HOST = re.compile(rb" ?(?:127\.0\.0\.1|localhost|\[::1\])(?::[0-9]+)?")
# A whole head with nothing to judge, as programs write it; by whether its host has to be one of _PLAIN_HOST.
_PLAIN = {
    on_loopback: re.compile(
        _TOKEN + rb"+ /[^\s]* HTTP/1\.[01]\r\nhost:" + (_PLAIN_HOST.pattern if on_loopback else rb"[^\r\n]*")
        + rb"\r\n(?:(?!host|origin|sec-fetch-|user-agent[^\n]*mozilla|[ \t])[^\r\n]+\r\n)*\r\n",
        re.IGNORECASE,
    )
    for on_loopback in (True, False)
}  # fmt: skip
_PREFLIGHT = re.compile(rb"\n(access-control-request-(?:method|headers))[ \t]*:([^\r\n]*)", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # a name whose last label is one is an IPv4 address, as the URL standard has it
_SHOWN = re.compile(r"[a-z0-9_.:/+\[\]-]{1,100}")  # in a command that people paste: nothing that a shell obeys


class Heard(Enum):
    """The kind of a client's first bytes, as far as they go."""

    GO_ON = auto()  # another protocol, or a request that may be served
    MORE = auto()  # a part of a request's head
    PERHAPS = auto()  # a part of a method, or a word of another protocol: worth METHOD_WAIT_S


class Request(NamedTuple):
    """A browser's request that may be served."""

    size: int  # bytes of head and body


class Refusal(NamedTuple):
    status: int
    why: str


_TOO_LONG = Refusal(
    431,
    f"a request's head has at most {MAX_HEAD} bytes here, to tell web pages by it; --no-browser-check lifts that",
)


class _Asked(NamedTuple):
    """The checked headers of one head. Values are lower-case and without spaces around them."""

    hosts: list[str]
    origins: list[str]
    is_cross_site: bool


@dataclass(frozen=True)
class Rules:
    """The rules of one listener. `origins` are --allow-origin's, `names` this machine's own; not `is_on`: everybody."""

    origins: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    on_loopback: bool = True
    is_on: bool = True

    def judge(self, data: bytes, *, is_all: bool = False) -> Heard | Request | Refusal:
        """`data` is all that came so far; with `is_all` nothing will follow."""
        return Heard.GO_ON if _PLAIN[self.on_loopback].match(data) else self._judge(data, is_all=is_all)

    def _judge(self, data: bytes, *, is_all: bool) -> Heard | Request | Refusal:
        line = _REQUEST_LINE.match(data)
        if line is None:
            so_far = _begun(data)
            if so_far is not Heard.GO_ON and len(data) >= MAX_HEAD:
                return _TOO_LONG
            return Heard.GO_ON if is_all else so_far
        end = _HEAD_END.search(data, line.end() - 1)
        if end is None:
            if len(data) >= MAX_HEAD:
                return _TOO_LONG
            if not is_all:
                return Heard.MORE
        head = data[: end.start()] if end else data
        found = _HEADER.findall(head)
        is_bare = len(found) == 1 and len(found[0][0]) == 4 and b" /" in line[0]  # a Host, and nothing else to judge
        if not is_bare or (self.on_loopback and not _PLAIN_HOST.fullmatch(found[0][1])):
            refusal = self._refusal(_asked(head))
            if refusal is not None:
                return refusal
        if end is None or not _BROWSER.search(head):
            return Heard.GO_ON
        body = _body_size(head)
        return Heard.GO_ON if body is None else Request(end.end() + body)

    def reply(self, seen: bytes, why: str) -> bytes:
        """The answer to a rejected client; empty if the client does not speak HTTP/1.

        403 for a page that may not ask. Else 503, and a page that may ask can read it: scripts on it see status and
        Retry-After, and a preflight lets them get that far.
        """
        verdict = self.judge(seen, is_all=True) if self.is_on else Heard.GO_ON
        if isinstance(verdict, Refusal):
            return _answer(seen, verdict.status, verdict.why)
        line = _REQUEST_LINE.match(seen)
        if line is None:
            return b""
        end = _HEAD_END.search(seen, line.end() - 1)
        head = seen[: end.start()] if end else seen
        origins = _asked(head).origins
        if len(origins) != 1 or not _SHOWN.fullmatch(origins[0]):
            return _answer(seen, 503, why)
        readable = f"Access-Control-Allow-Origin: {origins[0]}\r\nVary: Origin\r\n"
        preflight: dict[bytes, bytes] = {name.lower(): value.strip() for name, value in _PREFLIGHT.findall(head)}
        method = preflight.get(b"access-control-request-method")
        if not seen.startswith(b"OPTIONS ") or not method:
            return _answer(seen, 503, why, f"{readable}Access-Control-Expose-Headers: Retry-After\r\n")
        headers = preflight.get(b"access-control-request-headers", b"")
        return (
            f"HTTP/1.1 204 No Content\r\n{readable}Access-Control-Allow-Methods: ".encode() + method
            + b"\r\nAccess-Control-Allow-Headers: " + headers + b"\r\nConnection: close\r\n\r\n"
        )  # fmt: skip

    def readable_by(self, head: bytes) -> str:
        """The origin of the page that asks, if it may read the answer although the backend says nothing of it: one of
        --allow-origin, or a web page of this machine. Else nothing. `head` was judged."""
        asked = _asked(head)
        if len(asked.origins) != 1 or not _SHOWN.fullmatch(asked.origins[0]):
            return ""
        origin = asked.origins[0]
        if origin in self.origins or ANY_ORIGIN in self.origins:
            return origin
        is_judged = self.is_on and origin.startswith(("http://", "https://"))
        return origin if is_judged and self._may_ask(origin, {_name(host) for host in asked.hosts}) else ""

    def _refusal(self, asked: _Asked) -> Refusal | None:
        for host in asked.hosts if self.on_loopback else ():
            if not self._is_ours(_name(host)):
                shown = host if _SHOWN.fullmatch(host) else "that name"
                return Refusal(
                    403,
                    f"this port is not served under the name {shown}: a web page could have made its own name lead here. "
                    f"Use localhost or 127.0.0.1, or start this node with --allow-origin http://{shown}",
                )
        hosts = {_name(host) for host in asked.hosts}
        for origin in asked.origins:
            if not self._may_ask(origin, hosts):
                shown = origin if _SHOWN.fullmatch(origin) else "ORIGIN"
                return Refusal(
                    403, f"web pages of {shown} may not ask here; to let them, start this node with --allow-origin {shown}"
                )
        if asked.is_cross_site and not asked.origins:
            return Refusal(
                403,
                "a web page of another site led here and may not; open this address by itself, or start this node "
                "with --no-browser-check",
            )
        return None

    def _is_ours(self, name: str) -> bool:
        if name in self.names or name == "localhost" or "." not in name or _is_address(name):
            return True
        if name.endswith((".localhost", ".internal")):
            return True
        return any(name == _name(origin.partition("://")[2]) for origin in self.origins)

    def _may_ask(self, origin: str, hosts: set[str]) -> bool:
        if origin in self.origins:
            return True
        match = ORIGIN.fullmatch(origin)
        if match is None:
            return False  # null among them
        scheme, authority = match.groups()
        if scheme not in ("http", "https"):
            return True
        name = _name(authority)
        if name in self.names or name == "localhost" or name.endswith(".localhost") or (name and name in hosts):
            return True
        try:
            address = ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or address.is_unspecified


def readable(origin: str) -> bytes:
    """The lines of an answer that let the page read it; nothing for no page."""
    if not origin:
        return b""
    exposed = "X-Federation-Node, Retry-After"
    return f"Access-Control-Allow-Origin: {origin}\r\nAccess-Control-Expose-Headers: {exposed}\r\nVary: Origin\r\n".encode()


def preflight_answer(origin: str, method: bytes, headers: bytes) -> bytes:
    """To a browser that asks whether a page that may ask here may do so with this method and these headers: all of them. The
    head, without its last fields."""
    return (
        f"HTTP/1.1 204 No Content\r\nAccess-Control-Allow-Origin: {origin}\r\nVary: Origin\r\n".encode()
        + b"Access-Control-Allow-Methods: " + method
        + (b"\r\nAccess-Control-Allow-Headers: " + headers if headers else b"")
        + f"\r\nAccess-Control-Max-Age: {PREFLIGHT_S}\r\n".encode()
    )  # fmt: skip


def own_names(host_name: str) -> frozenset[str]:
    """The names under which browsers may know a machine of this host name."""
    name = host_name.lower().rstrip(".")
    short = name.partition(".")[0]
    return frozenset({name, short, f"{short}.local"} if short else ())


def _begun(data: bytes) -> Heard:
    """The kind of bytes that end before a request line does."""
    match = _BEGUN_LINE.match(data)
    if match is not None:
        version = match[1] or b""
        return Heard.MORE if any(v.startswith(version) for v in _VERSIONS) else Heard.GO_ON
    if (len(data) <= 8 and any(method.startswith(data) for method in _METHODS)) or _BEGUN_METHOD.match(data):
        return Heard.PERHAPS
    return Heard.GO_ON


def _asked(head: bytes) -> _Asked:
    """Read a head, given without the empty line at its end."""
    if b"\n " in head or b"\n\t" in head:
        head = _FOLD.sub(b" ", head)
    hosts, origins, is_cross_site = [], [], False
    for key, value in _HEADER.findall(head):
        text = value.strip().lower().decode("latin-1")
        if len(key) == 4:
            hosts.append(text)
        elif len(key) == 6:
            origins.append(text)
        elif text == "cross-site":
            is_cross_site = True
    target = head[: head.find(b"\n")].split(b" ", 2)[1]
    if b"://" in target and not target.startswith(b"/"):  # its host counts before the header
        hosts.append(re.split(r"[/?#]", target.partition(b"://")[2].lower().decode("latin-1"), maxsplit=1)[0])
    return _Asked(hosts, origins, is_cross_site)


def _body_size(head: bytes) -> int | None:
    """The size of a request's body; None if it cannot be told."""
    framing = {name.lower(): value.strip() for name, value in _FRAMING.findall(head)}
    length: bytes = framing.pop(b"content-length", b"0")
    return int(length) if not framing and length.isdigit() and len(length) < 16 else None


def _name(authority: str) -> str:
    """The host of "user@host:port", without brackets, zone and last dot."""
    authority = authority.rpartition("@")[2]
    if authority.startswith("["):
        return authority[1:].partition("]")[0].partition("%")[0]
    return authority.partition(":")[0].removesuffix(".")


def _is_address(name: str) -> bool:
    """Whether a browser takes the name for an IP address, in any spelling: then it asks no name server."""
    return ":" in name or _NUMBER.fullmatch(name.rpartition(".")[2]) is not None


_STATUS = {403: ("Forbidden", "forbidden"), 431: ("Request Header Fields Too Large", "request_too_large")}
_UNAVAILABLE = ("Service Unavailable", "service_unavailable")


def _answer(seen: bytes, status: int, why: str, more: str = "") -> bytes:
    phrase, kind = _STATUS.get(status, _UNAVAILABLE)
    body = json.dumps({"error": {"message": f"federation: {why}", "type": kind, "code": status}}).encode()
    retry = "Retry-After: 5\r\n" if status == 503 else ""
    head = (
        f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/json\r\n{retry}{more}"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if seen.startswith(b"HEAD ") else body)
