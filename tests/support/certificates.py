"""Helpers for tests of TLS: self-signed certificates, and a client's side of a connection."""

from __future__ import annotations

import ssl
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.duplex import TcpSide

if TYPE_CHECKING:
    import socket
    from pathlib import Path


class Pair(NamedTuple):
    cert: Path
    key: Path


def self_signed(directory: Path, name: str = "server", *, days: int = 30, passphrase: bytes = b"") -> Pair:
    """For localhost and 127.0.0.1. `days`: until it expires; in the past where negative."""
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(timezone.utc)
    cert = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=100))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    pair = Pair(directory / f"{name}.pem", directory / f"{name}.key")
    pair.cert.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    how = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    pair.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how))
    return pair


def trusting(cert: Path, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """A client's context that trusts that certificate alone."""
    context = ssl.create_default_context(cafile=str(cert))
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


class TlsSide(TcpSide):
    """The test's side of a TLS connection: a client. `how` it ended: EOF behind a close_notify, RST, or CUT: EOF without."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(sock)
        sock.setblocking(False)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname="localhost")
        self.is_ready = False
        self.has_ended = False  # the socket
        self._unsent = b""

    def say(self, data: bytes) -> None:
        self._words.append(lambda _sock: self.tls.write(data))  # type: ignore[arg-type,return-value]

    def say_eof(self) -> None:
        def say(_sock: object) -> None:
            with suppress(ssl.SSLError):  # it wants to read the other side's
                self.tls.unwrap()

        self._words.append(say)

    def move(self) -> None:
        assert self.sock is not None
        if self.sock.fileno() < 0:
            return
        if not self.is_stopped:
            self._receive()
        if not self.is_ready:
            try:
                self.tls.do_handshake()
                self.is_ready = True
            except ssl.SSLWantReadError:
                pass
        if self.is_ready and not self.is_stopped:
            self._decrypt()
        if self.is_ready:
            words, self._words = self._words, []
            for word in words:
                if self.sock.fileno() >= 0:
                    word(self.sock)
        self._send()

    def _receive(self) -> None:
        assert self.sock is not None
        try:
            while not self.has_ended and (data := self.sock.recv(1 << 20)):
                self._in.write(data)
            self.has_ended = True
            self._in.write_eof()
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self.has_ended, self.how = True, self.how or "RST"

    def _decrypt(self) -> None:
        try:
            while not self.how and (data := self.tls.read(1 << 20)):
                self.read += data
            self.how = self.how or "EOF"
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.how = "EOF"
        except ssl.SSLError:
            self.how = "CUT"

    def _send(self) -> None:
        assert self.sock is not None
        self._unsent += self._out.read()
        if self._unsent and self.sock.fileno() >= 0:
            with suppress(BlockingIOError, ConnectionError):
                self._unsent = self._unsent[self.sock.send(self._unsent) :]
