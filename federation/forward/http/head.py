"""Heads of HTTP/1 messages: cut off the bytes that came, bounded, parsed strictly. Sans-IO.

Rule 1: bounds come first. A head ends at its blank line, within MAX_HEAD bytes, or it is refused unread.
Rule 2: two readers have to agree. `httptools` (llhttp, no leniency) parses a request's head, and this module reads its
request line, line ends and framing again, more strictly than llhttp. What either refuses, no backend sees a byte of.
Rule 3: nothing is repaired. A head that another server might read differently is refused (RFC 9112, section 11.2).
Rule 4: `feed` has the same result however the bytes are split.

    a client's bytes                              status  a request is refused because
    no blank line within 64 KiB; 101 fields       431     it is too large
    a request line beyond 16 KiB                  414     its target is too long
    CR or LF alone; NUL, control bytes            400     servers end lines, and values, at different bytes
    a line that begins with a blank (obs-fold)    400     some servers append it to the line before
    `Name : value`, or no name                    400     some servers know the field, some do not
    GET  /, GET /#x, http://h/, h:1, \\xff         400     a target is a path, of visible ASCII, or * with OPTIONS
    CONNECT, TRACE, BREW                          501     a backend of models has no use for these methods
    HTTP/2.0                                      505     (HTTP/1.2 and HTTP/0.9 too)
    no Host, two, one with a slash                400     it names the virtual host that is asked
    Content-Length and Transfer-Encoding          400     the classic of request smuggling
    two Content-Length, +1, 0x1, "1, 1", Content_Length   400     and so are these
    a Content-Length of 19 digits                 413     no body is as long
    Transfer-Encoding: gzip, chunked              501     RFC 9112, section 6.1
    Transfer-Encoding in HTTP/1.0                 400     an old server in between has ignored it
    Expect: x                                     417     RFC 9110, section 10.1.1

Answers come from a member's backend, which may be any server: `parse_response` allows what real ones do (no reason phrase,
Content-Length twice with one value, `chunked` twice), and reads by lines, since llhttp refuses such. An answer that could
end in two places is refused all the same.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import NamedTuple

import httptools

from federation.errors import HttpInvalid, HttpUnserved
from federation.forward.http.framing import CHUNKED, NO_BODY, UNTIL_EOF, Bytes, Framing, Kind

MAX_HEAD = 64 * 1024  # as h11; the largest real ones carry cookies of 8 KiB
MAX_REQUEST_LINE = 16 * 1024
MAX_FIELDS = 100  # official clients send 17
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
METHODS |= {"PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "REPORT", "SEARCH"}  # of WebDAV
# Not h2c: a client could send requests behind it that no entry reads.
UPGRADES = frozenset((b"websocket",))
MAX_LENGTH_DIGITS = 18  # below 2**63

_END = b"\r\n\r\n"
_VISIBLE = bytes(range(0x21, 0x7F))
_TEXT = b"\t " + _VISIBLE + bytes(range(0x80, 0x100))
_TOKEN = b"!#$%&'*+-.^_`|~" + bytes(c for c in range(128) if chr(c).isalnum())
_BARE = re.compile(rb"\r(?!\n|\Z)|(?<!\r)\n")  # a CR at the end of all that came may still be of a CRLF
_TCHAR = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
# A method that is no token, as G(T, is one for some servers.
_METHOD = rb"(?:" + _TCHAR + rb"[!-~]*)"
_BEGUN = re.compile(_METHOD + rb"?(?:[ \t\v\f][^\n]*)?\r?")
_LINE_OF_HTTP = re.compile(_METHOD + rb"[ \t\v\f]+(?:/|.* HTTP/)", re.IGNORECASE)
_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+;=%:\[\]-]*")
# The last two are read as lengths by servers that make variables of fields (CGI, WSGI).
_DECIDING = frozenset(
    b"content-length transfer-encoding host connection upgrade expect content_length transfer_encoding".split()
)
_LLHTTP = (("Invalid method", 501), ("`Transfer-Encoding`", 501), ("Content-Length overflow", 413))
_VERSION = re.compile(r"HTTP/[0-9]\.[0-9]")
_STATUS_LINE = re.compile(rb"(HTTP/1\.[01]) ([1-9][0-9][0-9])(?: ([^\r\n]*))?")

Field = tuple[bytes, bytes, bytes]  # name in lower case, name as it came, value


class RequestHead(NamedTuple):
    method: str
    target: str
    version: str  # "1.0" or "1.1"
    fields: tuple[Field, ...]
    framing: Framing
    keep_alive: bool
    options: frozenset[bytes] = frozenset()  # what Connection says, in lower case: names of fields that go no further
    upgrade: bytes | None = None  # one of UPGRADES, if the client asks for it and sends no body
    expects_continue: bool = False

    def get(self, name: bytes) -> bytes | None:
        """The value of the first field of this lower-case name."""
        for key, _, value in self.fields:  # a generator would cost twice as much
            if key == name:
                return value
        return None

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, _, value in self.fields if key == name]


class ResponseHead(NamedTuple):
    status: int
    reason: bytes
    version: str
    fields: tuple[Field, ...]
    framing: Framing
    keep_alive: bool  # by the backend, if the body ends before the connection does
    options: frozenset[bytes] = frozenset()

    def get(self, name: bytes) -> bytes | None:
        for key, _, value in self.fields:  # a generator would cost twice as much
            if key == name:
                return value
        return None

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, _, value in self.fields if key == name]


class Opening(Enum):
    """What a connection begins with."""

    HTTP = auto()
    OTHER = auto()  # TLS, HTTP/2 with prior knowledge, any other protocol
    MORE = auto()  # cannot be told yet


def opening(data: bytes) -> Opening:
    """The kind of a client's first bytes. All that a lenient server would take for HTTP/1 is HTTP, to be refused later: a
    tunnel is no way round the entry's rules."""
    if data[:1] in (b"\r", b"\n", b" ", b"\t"):
        return Opening.HTTP  # some servers skip blank lines
    if data.startswith(b"PRI * HTTP/2.0\r\n"):
        return Opening.OTHER
    end = data.find(b"\n", 0, MAX_REQUEST_LINE)
    if end >= 0:
        return Opening.HTTP if _LINE_OF_HTTP.match(data[:end]) else Opening.OTHER
    if not _BEGUN.fullmatch(data, 0, MAX_REQUEST_LINE):  # a line may end behind it
        return Opening.OTHER
    return Opening.HTTP if len(data) >= MAX_REQUEST_LINE else Opening.MORE


class HeadBuffer:
    """Cuts one head off the bytes that come: a request's, or with `is_answer` a backend's. A new one for each message."""

    __slots__ = ("_data", "_is_answer")

    def __init__(self, *, is_answer: bool = False) -> None:
        self._data = bytearray()
        self._is_answer = is_answer

    def __len__(self) -> int:
        return len(self._data)

    def feed(self, view: Bytes) -> tuple[int, bytes | None]:
        """How many bytes of `view` belong to the head, and the whole head with its blank line once that came.

        Raises HttpInvalid for a head that can no longer become sound."""
        try:
            return self._cut(view)
        except HttpInvalid as error:
            if self._is_answer:
                error.status = 502
            raise

    def _cut(self, view: Bytes) -> tuple[int, bytes | None]:
        data = self._data
        had = len(data)
        room = MAX_HEAD + 1 - had
        data += view if len(view) <= room else memoryview(view)[:room]
        end = data.find(_END, max(0, had - 3))
        if end < 0:
            _check_begun(data, had)
            return len(view), None
        size = end + 4
        head = bytes(data[:size])
        data.clear()
        if size > MAX_HEAD or head.find(b"\n") >= MAX_REQUEST_LINE:
            _check_begun(head)
        return size - had, head


def parse_request(head: bytes) -> RequestHead:
    """Read a head that HeadBuffer cut off. Raises HttpInvalid with the status of the answer."""
    _check_bytes(head)
    method, target, version = _request_line(head[: head.find(b"\r")])
    heard = _Heard()
    parser = httptools.HttpRequestParser(heard)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade as upgrade:
        if upgrade.args[0] != len(head):
            raise HttpInvalid("the head ends in two places") from None
    except httptools.HttpParserError as error:
        why = str(error)
        raise HttpInvalid(why, next((status for said, status in _LLHTTP if said in why), 400)) from None
    if not heard.is_whole or heard.url.decode("latin-1") != target:
        raise HttpInvalid("the request line can be read in two ways")
    deciding = heard.deciding
    framing = _request_framing(deciding, version)
    hosts = deciding.get(b"host", ())
    if len(hosts) != 1 and (hosts or version == "1.1"):
        raise HttpInvalid("a request has one Host")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise HttpInvalid("Host is no name of a host")
    options = _tokens(deciding.get(b"connection"))
    upgrade_to = None
    if b"upgrade" in deciding and b"upgrade" in options and framing is NO_BODY and method == "GET" and version == "1.1":
        upgrade_to = next((name for name in _tokens(deciding[b"upgrade"]) if name in UPGRADES), None)
    expectation = b"".join(deciding.get(b"expect", ())).lower()
    if expectation not in (b"", b"100-continue"):
        raise HttpInvalid("only 100-continue can be expected", 417)
    return RequestHead(
        method, target, version, tuple(heard.fields), framing, _keeps_alive(options, version), frozenset(options),
        upgrade_to, expectation != b"" and version == "1.1",
    )  # fmt: skip


def parse_response(head: bytes, request: RequestHead) -> ResponseHead:
    """Read a backend's answer to this request. Raises HttpInvalid with status 502."""
    try:
        return _response(head, request)
    except HttpInvalid as error:
        error.status = 502
        raise


def _response(head: bytes, request: RequestHead) -> ResponseHead:
    _check_bytes(head)
    lines = head[:-4].split(b"\r\n")
    match = _STATUS_LINE.fullmatch(lines[0])
    if match is None:
        raise HttpInvalid("no status line")
    status, version = int(match[2]), "1.1" if match[1] == b"HTTP/1.1" else "1.0"
    if status == 101 and request.upgrade is None:
        raise HttpInvalid("the backend changes to a protocol that nobody asked for")
    heard = _Heard()
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        name = name.rstrip(b"\t ")
        if not colon or not name or name.translate(None, _TOKEN):
            raise HttpInvalid("a line of the head is no field")
        heard.on_header(name, value)
    options = _tokens(heard.deciding.get(b"connection"))
    framing = _response_framing(heard.deciding, status, request.method)
    is_kept = framing.kind is not Kind.EOF and _keeps_alive(options, version) and status != 101
    if framing is CHUNKED and version == "1.0":
        is_kept = False  # the backend does not know the version that it speaks
    fields = tuple(heard.fields)
    return ResponseHead(status, match[3] or b"", version, fields, framing, is_kept, frozenset(options))


class _Heard:
    """What a parser tells of a head."""

    __slots__ = ("deciding", "fields", "is_whole", "url")

    def __init__(self) -> None:
        self.url = b""
        self.fields: list[Field] = []
        self.deciding: dict[bytes, list[bytes]] = {}  # the values of _DECIDING
        self.is_whole = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.lower()
        value = value.strip(b"\t ")
        self.fields.append((key, name, value))
        if key in _DECIDING:
            self.deciding.setdefault(key, []).append(value)

    def on_headers_complete(self) -> None:
        self.is_whole = True


def _check_begun(data: Bytes, since: int = 0) -> None:
    """Refuse a head whose end has not come, or came too late. Bytes before `since` were checked."""
    is_long_line = data.find(b"\n", 0, MAX_REQUEST_LINE) < 0 and len(data) > MAX_REQUEST_LINE  # type: ignore[union-attr]
    if _BARE.search(data, max(0, since - 1), MAX_REQUEST_LINE if is_long_line else MAX_HEAD):
        raise HttpInvalid("a CR or LF stands alone")
    if is_long_line:
        raise HttpInvalid(f"a request line has at most {MAX_REQUEST_LINE} bytes here", 414)
    if len(data) > MAX_HEAD:
        raise HttpInvalid(f"a head has at most {MAX_HEAD} bytes here", 431)


def _check_bytes(head: bytes) -> None:
    lines = head.count(b"\r\n")
    if head.translate(None, _TEXT) != b"\r\n" * lines:
        raise HttpInvalid("a CR or LF stands alone" if _BARE.search(head) else "a control character")
    if b"\r\n " in head or b"\r\n\t" in head:
        raise HttpInvalid("a folded line")
    if lines - 2 > MAX_FIELDS:
        raise HttpInvalid(f"a head has at most {MAX_FIELDS} fields here", 431)


def _request_line(line: bytes) -> tuple[str, str, str]:
    if line.translate(None, _VISIBLE) != b"  ":
        raise HttpInvalid("a request line is a method, a target in ASCII and a version, with single spaces between them")
    method, target, version = line.decode("ascii").split(" ")
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        if _VERSION.fullmatch(version):
            raise HttpInvalid("HTTP/1.1 and HTTP/1.0 are spoken here", 505)
        raise HttpInvalid("no version of HTTP")
    if method not in METHODS:
        if not method or method.encode().translate(None, _TOKEN):
            raise HttpInvalid("no method")
        raise HttpUnserved("no backend of models knows this method", 501)
    if not target.startswith("/") and not (target == "*" and method == "OPTIONS"):
        raise HttpUnserved("a target begins with a slash; this port is no forward proxy")
    if "#" in target:
        raise HttpInvalid("a target has no fragment")
    return method, target, version[5:]


def _request_framing(deciding: dict[bytes, list[bytes]], version: str) -> Framing:
    lengths, codings = deciding.get(b"content-length"), deciding.get(b"transfer-encoding")
    if b"content_length" in deciding or b"transfer_encoding" in deciding:
        raise HttpInvalid("a field that gateways may take for the body's length")
    if codings:
        if lengths:
            raise HttpInvalid("Content-Length and Transfer-Encoding in one request")
        if version == "1.0":
            raise HttpInvalid("Transfer-Encoding in HTTP/1.0")
        if len(codings) != 1 or codings[0].lower() != b"chunked":
            raise HttpInvalid("Transfer-Encoding is `chunked` or absent", 501)
        return CHUNKED
    if not lengths:
        return NO_BODY
    if len(lengths) != 1 or not lengths[0].isdigit():
        raise HttpInvalid("Content-Length is one number")
    if len(lengths[0]) > MAX_LENGTH_DIGITS:
        raise HttpInvalid("the body is too long", 413)
    return Framing(Kind.LENGTH, int(lengths[0]))


def _response_framing(deciding: dict[bytes, list[bytes]], status: int, method: str) -> Framing:
    if status < 200 or status == 204:
        return NO_BODY
    lengths = {part.strip(b"\t ") for value in deciding.get(b"content-length", ()) for part in value.split(b",")}
    codings = {value.lower() for value in deciding.get(b"transfer-encoding", ())}
    if lengths and codings:
        raise HttpInvalid("Content-Length and Transfer-Encoding in one answer")
    if codings - {b"chunked"}:
        raise HttpInvalid("Transfer-Encoding is `chunked` or absent")
    length = lengths.pop() if lengths else b""
    if lengths or (length and not (length.isdigit() and len(length) <= MAX_LENGTH_DIGITS)):
        raise HttpInvalid("Content-Length is one number")
    if method == "HEAD" or status == 304:
        return NO_BODY
    if codings:
        return CHUNKED
    return Framing(Kind.LENGTH, int(length)) if length else UNTIL_EOF


def _tokens(values: list[bytes] | None) -> list[bytes]:
    """The parts of a comma-separated list, in lower case."""
    return [part.strip(b"\t ") for value in values for part in value.lower().split(b",")] if values else []


def _keeps_alive(options: list[bytes], version: str) -> bool:
    return b"close" not in options and (version == "1.1" or b"keep-alive" in options)
