"""TLS on a client's socket: a filter between the socket (SocketDuplex, which carries records) and the end joined to it.

    socket  --records-->  _Records -> TlsDuplex  --plain bytes-->  other
    socket  <--records--  TlsDuplex              <--plain bytes--  other

Rule 1: bytes that `other` does not take yet stay encrypted, one CHUNK of them; then the socket is read no more.
Rule 2: what the other side sends is acknowledged when its records have left this process.
Rule 3: EOF is TLS's close_notify, both ways, and one direction goes on behind the other's. A socket that ends without it has
been cut: that is a reset. Rule 4: a handshake has HANDSHAKE_S. What is plain HTTP gets one line that says so.
"""

from __future__ import annotations

import ssl
from collections import deque
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from federation.errors import ConfigError
from federation.reactor.duplex import NullDuplex
from federation.reactor.sockets import CHUNK, SocketDuplex

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from cryptography.x509 import Certificate as Certificate509

    from federation.reactor.duplex import Duplex
    from federation.reactor.loop import Reactor, Timer

log = structlog.get_logger(__name__)

HANDSHAKE_S = 10.0
RECORD = 16 * 1024  # the most that one record carries
SOON = timedelta(days=7)
LEAVE_S = 2.0  # for a client to close its socket behind both close_notify
EARLY = 64 * 1024  # plain bytes for a client whose handshake is not over
_HANDSHAKE = b"\x16"  # the first byte of a TLS client
_PLAIN_TEXT = b"federation: this port speaks TLS; use https://\n"
PLAIN_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
    % (
        len(_PLAIN_TEXT),
        _PLAIN_TEXT,
    )
)
_NO_OTHER = NullDuplex()


class Certificate:
    """This node's certificate and key, for all its TLS ports. `context`: for connections that come now; None without TLS.
    `names`: the hosts that the certificate is for, names first."""

    def __init__(self) -> None:
        self.context: ssl.SSLContext | None = None
        self.names: tuple[str, ...] = ()

    def load(self, cert: Path | None, key: Path | None, now: datetime) -> None:
        """Read the files, also again. Raises ConfigError and changes nothing where they cannot be used."""
        if cert is None or key is None:
            self.context, self.names = None, ()
            return
        from cryptography.x509 import load_pem_x509_certificate  # 3 MB, for those who have a certificate

        context = server_context(cert, key)
        certificate = load_pem_x509_certificate(cert.read_bytes())
        ends = certificate.not_valid_after_utc
        if ends <= now:
            log.warning("the TLS certificate has expired: clients will refuse it", file=str(cert), since=ends.isoformat())
        elif ends <= now + SOON:
            log.warning("the TLS certificate expires soon", file=str(cert), at=ends.isoformat())
        self.context, self.names = context, _names(certificate)


def _names(certificate: Certificate509) -> tuple[str, ...]:
    from cryptography.x509 import DNSName, ExtensionNotFound, IPAddress, SubjectAlternativeName

    try:
        names = certificate.extensions.get_extension_for_class(SubjectAlternativeName).value
    except (ExtensionNotFound, ValueError):  # clients of today refuse it, whatever its common name says
        return ()
    return (*names.get_values_for_type(DNSName), *map(str, names.get_values_for_type(IPAddress)))


def server_context(cert: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 and later, HTTP/1.1. Raises ConfigError, in one line, where the files are no pair that can be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        for path in (cert, key):
            path.read_bytes()
    except OSError as error:
        flag = "--tls-cert" if path == cert else "--tls-key"
        raise ConfigError(f"{flag} {path}: {error.strerror or error}") from None
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"--tls-key {key} is not the key of --tls-cert {cert}") from None
        raise ConfigError(f"--tls-cert {cert} and --tls-key {key}: no certificate and key in PEM form") from None
    except ValueError:
        raise ConfigError(f"--tls-key {key} has a passphrase; give one without: openssl pkey -in KEY -out PLAIN") from None
    return context


def _no_password() -> str:
    raise ValueError("nobody is there to type it")


class _Records:
    """What the socket is joined to."""

    __slots__ = ("_tls",)

    def __init__(self, tls: TlsDuplex) -> None:
        self._tls = tls

    def writable(self) -> int:
        return self._tls.wants()

    def send(self, data: bytes | memoryview) -> None:
        self._tls.on_records(data)

    def send_eof(self) -> None:
        self._tls.on_cut()

    def abort(self, reason: str) -> None:
        self._tls.on_broken(reason)

    def acknowledge(self, n: int) -> None:
        self._tls.on_left(n)

    def resume_writing(self) -> None:
        self._tls.on_room()


class TlsDuplex:
    """As SocketDuplex, for the server's side of TLS. Counts plain bytes."""

    __slots__ = (
        "_early", "_eof_queued", "_eof_seen", "_eof_sent", "_former", "_has_begun", "_has_notice", "_in", "_is_passing",
        "_is_ready", "_is_refused", "_on_close", "_out", "_plain", "_reactor", "_timer", "_tls", "_under_way", "_wire",
        "closed", "delivered", "error", "other", "received", "sock", "was_aborted",
    )  # fmt: skip

    other: Duplex
    is_unheard = False

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.SocketType,
        on_close: Callable[[TlsDuplex], None],
        context: ssl.SSLContext,
    ) -> None:
        self.sock = sock
        self.other = _NO_OTHER
        self._former: Duplex = _NO_OTHER  # what was joined when the socket closed
        self._reactor = reactor
        self._on_close = on_close
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)
        self._plain = b""  # decrypted ahead of its time, and not passed on yet
        self._early = bytearray()  # for the client, from before the end of its handshake
        self._under_way: deque[tuple[int, int]] = deque()  # records that the socket has: their bytes, and what they carry
        self._has_begun = self._is_ready = self._is_refused = self._is_passing = False
        self._has_notice = False  # the client's close_notify was decrypted
        self._eof_seen = self._eof_queued = self._eof_sent = False
        self.received = self.delivered = 0
        self.error: str | None = None
        self.was_aborted = self.closed = False
        self._timer: Timer | None = reactor.call_later(HANDSHAKE_S, lambda: self._cut("no TLS handshake"))
        self._wire = SocketDuplex(reactor, sock, self._closed)
        self._wire.other = _Records(self)

    def start(self, *, read: bool = True) -> None:
        self._wire.start(read=read)

    def hand_over(self, on_close: Callable[[TlsDuplex], None]) -> None:
        """Another owner takes it from here, and hears of its end."""
        self._on_close = on_close

    # Duplex: towards the client

    def writable(self) -> int:
        return self._wire.writable() if self._is_ready else EARLY - len(self._early)

    def send(self, data: bytes | memoryview) -> None:
        if self.closed or self._is_refused:
            return
        if self._is_ready:
            self._encrypt(data)
        else:
            self._early += data

    def send_eof(self) -> None:
        self._eof_queued = True
        if self._is_ready:
            self._say_eof()

    def abort(self, reason: str) -> None:
        if not self.closed:
            self.was_aborted = True
            self._wire.abort(reason)

    def leave(self) -> None:
        """Close behind the EOF, without waiting for the other side's. Nothing happens while bytes wait here."""
        self._wire.leave()

    def acknowledge(self, n: int) -> None:
        """Reads are paced by `other.writable()`."""

    def resume_writing(self) -> None:
        if not self.closed and not self._is_passing:
            if self._is_ready:
                self._pass_on()
            self._wire.resume_writing()

    # The client's records

    def wants(self) -> int:
        """How many bytes of records may come now."""
        if not self._is_ready or self._eof_seen:
            return CHUNK
        return 0 if self._plain or self._in.pending > CHUNK or self.other.writable() <= 0 else CHUNK

    def on_records(self, data: bytes | memoryview) -> None:
        if self._is_refused or self._eof_seen:
            return
        if not self._has_begun:
            self._has_begun = True
            if data[:1] != _HANDSHAKE:
                self._refuse("it speaks no TLS", PLAIN_ANSWER if bytes(data[:1]).isalpha() else b"")
                return
        self._in.write(data)
        if not self._is_ready:
            self._shake_hands()
        if self._is_ready:
            self._pass_on()

    def on_cut(self) -> None:
        """The socket ends."""
        if self._is_refused or self._eof_seen:
            return
        if self._eof_sent:  # it heard ours, and most clients answer that so
            self._eof_seen = True
            self.other.send_eof()
        else:
            self._cut("the client left without a word")

    def on_broken(self, reason: str) -> None:
        """The socket is reset or gone."""
        former, self._former = self._former, _NO_OTHER
        former.abort(reason)

    def on_left(self, n: int) -> None:
        """The socket has passed on so many bytes of records."""
        carried = 0
        while n and self._under_way:
            size, plain = self._under_way.popleft()
            if size > n:
                self._under_way.appendleft((size - n, plain))
                break
            n -= size
            carried += plain
        if carried:
            self.delivered += carried
            self.other.acknowledge(carried)

    def on_room(self) -> None:
        if self._is_ready:
            self.other.resume_writing()

    # TLS

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as error:
            self._flush()  # an alert
            self._refuse(f"no TLS handshake: {_said(error)}")
            return
        self._is_ready = True
        self._stop_timer()
        self._flush()
        if self._early:
            early, self._early = self._early, bytearray()
            self._encrypt(early)
            self.other.resume_writing()
        if self._eof_queued:
            self._say_eof()

    def _refuse(self, why: str, answer: bytes = b"") -> None:
        """The client reads why; then it or the timer ends the connection."""
        self._is_refused = True
        self.error = why
        log.debug("a client's TLS was refused", why=why)
        if answer:
            self._under_way.append((len(answer), 0))
            self._wire.send(answer)
        self._wire.send_eof()

    def _pass_on(self) -> None:
        """What can be decrypted, as far as `other` takes it."""
        if self._is_passing:
            return
        self._is_passing = True
        while not self.closed and not self._eof_seen and (room := self.other.writable()) > 0:
            data, self._plain = self._plain[:room], self._plain[room:]
            if not data and not self._has_notice:
                data = self._decrypt(min(room, CHUNK))
            if data:
                self.received += len(data)
                self.other.send(data)
            elif self._has_notice:
                self._eof_seen = True
                self.other.send_eof()
                self._finish()
            else:
                break
        self._is_passing = False

    def _decrypt(self, most: int) -> bytes:
        """Plain bytes; none if there are none yet, or no more (`_has_notice`), or if what came is not TLS (closed)."""
        try:
            data = self._tls.read(most)
        except ssl.SSLWantReadError:
            return b""
        except ssl.SSLZeroReturnError:
            data = b""
        except ssl.SSLError as error:
            self._flush()
            self._cut(_said(error))
            return b""
        self._has_notice = not data
        return data

    def _encrypt(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        records = []
        for at in range(0, len(view), RECORD):
            part = view[at : at + RECORD]
            try:
                self._tls.write(part)
            except ssl.SSLError as error:
                self._cut(_said(error))
                return
            records.append(self._out.read())
            self._under_way.append((len(records[-1]), len(part)))
        self._wire.send(records[0] if len(records) == 1 else b"".join(records))

    def _flush(self) -> None:
        """What TLS itself has to say."""
        if said := self._out.read():
            self._under_way.append((len(said), 0))
            self._wire.send(said)

    def _say_eof(self) -> None:
        if self._eof_sent or self.closed:
            return
        while not self._has_notice and not self.closed and (data := self._decrypt(CHUNK)):
            self._plain += data  # OpenSSL loses what was not read before the close_notify
        if self.closed:
            return
        self._eof_sent = True
        with suppress(ssl.SSLError):  # it wants to read the other side's
            self._tls.unwrap()
        self._flush()
        self._wire.send_eof()
        self._finish()

    def _finish(self) -> None:
        """Both have said that nothing follows, and need not hear the socket's own EOF for long."""
        if self._eof_seen and self._eof_sent and not self.closed:
            self._wire.leave()
            if not self.closed:
                self._timer = self._reactor.call_later(LEAVE_S, self._finish)

    def _cut(self, reason: str) -> None:
        """The client broke: what is joined hears a reset."""
        if self.closed:
            return
        self.error = self.error or reason
        self._wire.abort(reason)
        self.on_broken(reason)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _closed(self, wire: SocketDuplex) -> None:
        self._stop_timer()
        self.closed = True
        self.error = self.error or wire.error
        on_close, self._on_close = self._on_close, _noop
        self._former, self.other = self.other, _NO_OTHER
        on_close(self)
        if self.was_aborted or (wire.error is None and not self._is_refused):
            self._former = _NO_OTHER
        elif wire.error is None:
            self.on_broken(self.error or "")


def _noop(_end: TlsDuplex) -> None:
    """Replaces `on_close` after it has been called."""


def _said(error: ssl.SSLError) -> str:
    return (error.reason or type(error).__name__).replace("_", " ").lower()
