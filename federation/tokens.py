"""The network token: one secret, printable as one line, that makes everybody who holds it a network.

Text: ``fed1_`` and, as unpadded base64url, payload and checksum. The payload is the secret followed by UTF-8 lines: the
network's name, then one bootstrap address a line. The checksum tells a damaged copy from another network's token; it
protects nothing, the secret does.

Only the secret makes the network: name and addresses may differ from copy to copy. Whatever leaves the machine is
derived from the secret by HKDF, with a label of its own, so that no use of it reveals another.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from federation.errors import TokenChecksumWrong, TokenError, TokenMalformed, TokenTooNew

if TYPE_CHECKING:
    from collections.abc import Iterable

VERSION = 1
SECRET_BYTES = 32
CHECKSUM_BYTES = 4
MAX_NAME_CHARS = 64
MAX_ADDRESSES = 32
MAX_ADDRESS_CHARS = 256

_TEXT = re.compile(r"fed([1-9][0-9]{0,3})_(.+)")
_BODY = re.compile(r"[A-Za-z0-9_-]+")
# One line, and nothing that moves a terminal's cursor: no control characters, line separators or surrogates.
_NAME = re.compile(rf"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{{0,{MAX_NAME_CHARS}}}")
_ADDRESS = re.compile(rf"[!-~]{{1,{MAX_ADDRESS_CHARS}}}")


@dataclass(frozen=True, slots=True)
class Token:
    """A network's secret, with its name and bootstrap addresses (multiaddrs; checked by whoever dials them)."""

    secret: bytes = field(repr=False)
    name: str = ""
    addresses: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.secret) != SECRET_BYTES:
            raise TokenError(f"a secret has {SECRET_BYTES} bytes")
        if not _NAME.fullmatch(self.name):
            raise TokenError(f"a network's name has at most {MAX_NAME_CHARS} characters and no control characters")
        if len(self.addresses) > MAX_ADDRESSES:
            raise TokenError(f"it carries at most {MAX_ADDRESSES} addresses")
        if not all(map(_ADDRESS.fullmatch, self.addresses)):
            raise TokenError(f"an address has 1 to {MAX_ADDRESS_CHARS} printable ASCII characters and no space")

    @classmethod
    def new(cls, name: str = "", addresses: Iterable[str] = ()) -> Token:
        """Start a network: a fresh secret from the system's source of randomness."""
        return cls(secrets.token_bytes(SECRET_BYTES), name, tuple(addresses))

    @classmethod
    def decode(cls, text: str) -> Token:
        """Read a token as a person pasted it; a terminal or mail may have wrapped the line.

        Raises TokenMalformed, TokenTooNew or TokenChecksumWrong. None of them repeats the text.
        """
        text = "".join(text.split())
        match = _TEXT.fullmatch(text)
        if match is None:
            raise TokenMalformed
        version, body = match.groups()
        if int(version) > VERSION:
            raise TokenTooNew
        if not _BODY.fullmatch(body):
            raise TokenMalformed
        try:
            payload = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))[:-CHECKSUM_BYTES]
        except ValueError:  # a length that base64 cannot have: cut short
            raise TokenChecksumWrong from None
        if _seal(payload) != text:  # whole text, so that a token has one spelling
            raise TokenChecksumWrong
        try:
            name, *addresses = payload[SECRET_BYTES:].decode().split("\n")
            return cls(payload[:SECRET_BYTES], name, tuple(addresses))
        except (UnicodeDecodeError, TokenError):
            raise TokenMalformed from None

    def encode(self) -> str:
        """The token as one line of URL-safe text."""
        return _seal(self.secret + "\n".join((self.name, *self.addresses)).encode())

    def with_addresses(self, addresses: Iterable[str]) -> Token:
        """The same network with these bootstrap addresses instead."""
        return replace(self, addresses=tuple(addresses))

    def is_same_network(self, text: str) -> bool:
        """Whether `text` is a token with this secret, whatever its name and addresses."""
        try:
            return Token.decode(text).secret == self.secret
        except TokenError:
            return False

    @property
    def network_id(self) -> str:
        """Names the network to people; tells nothing about the secret."""
        return self._derive("network id", 8).hex()

    def admission_key(self) -> bytes:
        """The key with which both sides of a handshake prove that they hold the token (32 bytes)."""
        return self._derive("admission", 32)

    def topic(self) -> str:
        """The pubsub topic that carries the network's records."""
        return f"/federation/{VERSION}/records/{self._derive('topic', 16).hex()}"

    def ledger_protocol(self) -> str:
        """The libp2p protocol id of ledger anti-entropy."""
        return f"/federation/{VERSION}/ledger/{self._derive('ledger', 16).hex()}"

    def rendezvous(self) -> str:
        """The name under which members look for each other on a local network (32 hex digits)."""
        return self._derive("rendezvous", 16).hex()

    def _derive(self, label: str, length: int) -> bytes:
        info = f"federation/{VERSION} {label}".encode()
        return HKDF(SHA256(), length, salt=None, info=info).derive(self.secret)


def _seal(payload: bytes) -> str:
    prefix = f"fed{VERSION}_"
    checksum = hashlib.sha256(prefix.encode() + payload).digest()[:CHECKSUM_BYTES]
    return prefix + base64.urlsafe_b64encode(payload + checksum).decode().rstrip("=")
