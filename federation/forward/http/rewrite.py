"""The heads that an entry sends: a client's request to the backend, and the backend's answer to the client. Bodies pass as
they are (framing.py). Sans-IO.

Rule 1: a connection's own fields go no further (RFC 9110, section 7.6.1): Connection and the fields that it names,
Keep-Alive, Proxy-*, TE, Upgrade. The entry sets Connection, for its own connection. What Connection names among KEPT
stays: a client must not make a backend forget the host, the length or the key of a request.
Rule 2: framing is written by the entry from what it has read: Content-Length or Transfer-Encoding, once.
Rule 3: everything else keeps its order, case and value.

    from the client                       to the backend
    POST /v1/chat/completions HTTP/1.1    POST /v1/chat/completions HTTP/1.1
    host: box:8484                        host: box:8484
    Connection: close, X-Hop              -
    X-Hop: 1                              -
    Expect: 100-continue                  -                                     the entry answers that
    Content-Length: 4                     Content-Length: 4
    X-Forwarded-For: 10.0.0.9             -                                     goes on at the end, with the client's address
                                          X-Forwarded-For: 10.0.0.9, 192.0.2.7
                                          X-Forwarded-Proto: http
                                          X-Forwarded-Host: box:8484
                                          Connection: keep-alive                the entry's word, to its exit's backend

An HTTP/1.0 request stays one, and its answer is never chunked: where the backend chunks all the same, the entry passes the
content alone and closes behind it (`is_unchunked`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from federation.forward.http.framing import Kind

if TYPE_CHECKING:
    from federation.forward.http.head import RequestHead, ResponseHead

MAX_FORWARDED = 512  # bytes of X-Forwarded-For, the latest of them: some thirty hops

# The framing among them is set anew.
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization proxy-authentication-info te "
    b"upgrade http2-settings transfer-encoding content-length".split()
)
_NOT_TO_BACKENDS = HOP_BY_HOP | {b"expect", b"x-forwarded-for"}
_NOT_TO_CLIENTS = HOP_BY_HOP | {b"x-federation-node"}
KEPT = frozenset(
    b"host authorization x-api-key api-key cookie set-cookie content-type content-encoding content-range origin location "
    b"retry-after www-authenticate trailer x-forwarded-proto x-forwarded-host x-federation-target x-federation-via "
    b"x-session-id".split()
)
_ORDINARY = frozenset((b"keep-alive", b"close", b"upgrade", b"te", b"http2-settings", b""))  # are dropped anyway


def backend_head(
    request: RequestHead, client: str, *, is_tls: bool = False, keep_alive: bool = True,
    without: frozenset[bytes] = frozenset(), more: bytes = b"",
) -> bytes:  # fmt: skip
    """The request's head for the backend. `client` is the client's IP address. `without` are lower-case names that stay
    here (the client's key), `more` whole lines that are added."""
    dropped = _dropped(_NOT_TO_BACKENDS, request.options) | without
    lines = [f"{request.method} {request.target} HTTP/{request.version}".encode()]
    for key, name, value in request.fields:
        if key not in dropped or key == b"content-length":
            lines.append(b"%b: %b" % (name, value))
        elif key == b"transfer-encoding":
            lines.append(b"%b: chunked" % name)
    lines += _forwarded(request, client.encode(), is_tls=is_tls)
    if request.upgrade is not None:
        lines.append(b"Connection: Upgrade\r\nUpgrade: " + request.upgrade)
    else:
        lines.append(b"Connection: keep-alive" if keep_alive and request.version == "1.1" else b"Connection: close")
    return b"\r\n".join(lines) + b"\r\n" + more + b"\r\n"


def client_head(answer: ResponseHead, request: RequestHead, node: str, *, keep_alive: bool, more: bytes = b"") -> bytes:
    """The answer's head for the client. `node` is the serving node's name, `keep_alive` whether the entry reads another
    request on this connection: only if `may_keep_alive`. `more` are whole lines that are added."""
    dropped = _dropped(_NOT_TO_CLIENTS, answer.options)
    status, kind = answer.status, answer.framing.kind
    lines = [b"HTTP/1.1 %d %b" % (status, answer.reason)]
    is_framed = status < 200 or status == 204  # or by a field that was written
    for key, name, value in answer.fields:
        if key not in dropped:
            lines.append(b"%b: %b" % (name, value))
        elif is_framed:
            continue
        elif key == b"content-length":  # not two, if the backend had two
            is_framed = True
            lines.append(b"%b: %b" % (name, value.partition(b",")[0].rstrip()))
        elif key == b"transfer-encoding" and kind is Kind.CHUNKED and request.version == "1.1":
            is_framed = True
            lines.append(b"%b: chunked" % name)
    if status >= 200 or status == 101:
        lines.append(b"X-Federation-Node: " + _visible(node))
        if status == 101:
            upgrade = answer.get(b"upgrade") or request.upgrade or b""
            lines.append(b"Connection: Upgrade\r\nUpgrade: " + upgrade)
        else:
            lines.append(b"Connection: keep-alive" if keep_alive else b"Connection: close")
    return b"\r\n".join(lines) + b"\r\n" + more + b"\r\n"


def may_keep_alive(answer: ResponseHead, request: RequestHead) -> bool:
    """Whether the client can tell where this answer ends, and wants to go on."""
    return request.keep_alive and answer.framing.kind is not Kind.EOF and not is_unchunked(answer, request)


def is_unchunked(answer: ResponseHead, request: RequestHead) -> bool:
    """Whether the client gets the content of a chunked body alone, since HTTP/1.0 knows no chunks."""
    return answer.framing.kind is Kind.CHUNKED and request.version == "1.0"


def is_for_client(answer: ResponseHead, request: RequestHead) -> bool:
    """Interim answers are no answers of HTTP/1.0; and the entry itself says 100 to a client that expects it."""
    return answer.status >= 200 or (answer.status != 100 and request.version == "1.1")


def _dropped(base: frozenset[bytes], options: frozenset[bytes]) -> frozenset[bytes]:
    return base if options <= _ORDINARY else base | (options - KEPT)


def _forwarded(request: RequestHead, client: bytes, *, is_tls: bool) -> list[bytes]:
    present = {key for key, _, _ in request.fields}
    chain = client
    if b"x-forwarded-for" in present:
        chain = b", ".join([*request.all(b"x-forwarded-for"), client])
        if len(chain) > MAX_FORWARDED:
            chain = chain[-MAX_FORWARDED:].partition(b",")[2].lstrip() or client
    lines = [b"X-Forwarded-For: " + chain]
    if b"x-forwarded-proto" not in present:
        lines.append(b"X-Forwarded-Proto: https" if is_tls else b"X-Forwarded-Proto: http")
    if b"x-forwarded-host" not in present and (host := request.get(b"host")):
        lines.append(b"X-Forwarded-Host: " + host)
    return lines


def _visible(name: str) -> bytes:
    data = name.encode()
    return data if name.isascii() and name.isprintable() else bytes(c if 0x20 < c < 0x7F else 0x3F for c in data)
