"""The network token: one secret, printable as one line. All nodes that hold it are one network.

Text: ``fed1_`` and, as unpadded base64url, payload and checksum. The payload is the secret followed by UTF-8 lines: the
network's name, then one bootstrap address a line. The checksum tells a damaged copy from another network's token; it
protects nothing, the secret does.

Secret and owner make the network; name and addresses may differ from copy to copy. Every value that leaves the machine is
derived by HKDF with a label of its own, so that no value reveals another.

A network with an owner (owner.py) is written as ``fed3_``: behind the secret are the owner's public key (32 bytes), the
number of rotations (4, big endian) and, if that is not 0, the network's root (16). The root comes from the first secret
and goes along when the secret changes; root and owner together give the network's names (id, topic and protocols),
and these names are part of the admission key. So no member can exchange the owner: with another owner it is another network,
whatever the secret.

Networks from before there were owners go on with ``fed1_``, and ``fed2_`` where an earlier version rotated the token: behind
the secret are the number of rotations and the network's names themselves (40 bytes). This version does not rotate them.
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
from federation.units import pasted

if TYPE_CHECKING:
    from collections.abc import Iterable

VERSION = 1  # of the derivation
ROTATED = 2  # the format of a token without owner that was rotated
OWNED = 3  # the format of a token with an owner
SECRET_BYTES = 32
NETWORK_ID_BYTES = 8
PATH_BYTES = 16  # of topic and protocol each
NAMES_BYTES = NETWORK_ID_BYTES + 2 * PATH_BYTES
OWNER_BYTES = 32
ROOT_BYTES = 16  # a second root that gives the same names takes 2^128 tries
MAX_ROTATIONS = 2**32 - 1
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
    """A network's secret, with its name and bootstrap addresses (multiaddrs; the dialler checks them)."""

    secret: bytes = field(repr=False)
    name: str = ""
    addresses: tuple[str, ...] = ()
    rotations: int = 0
    owner: bytes = b""  # the public half of the key that may rotate it; empty in networks from before there were owners
    origin: bytes = field(default=b"", repr=False)  # once rotated: the network's root; without an owner, its names

    def __post_init__(self) -> None:
        if len(self.secret) != SECRET_BYTES:
            raise TokenError(f"a secret has {SECRET_BYTES} bytes")
        if len(self.owner) not in (0, OWNER_BYTES):
            raise TokenError(f"an owner's public key has {OWNER_BYTES} bytes")
        if not 0 <= self.rotations <= MAX_ROTATIONS:
            raise TokenError(f"a token was rotated {MAX_ROTATIONS} times at most")
        if len(self.origin) != ((ROOT_BYTES if self.owner else NAMES_BYTES) if self.rotations else 0):
            raise TokenError("a token says where its network's names come from when it was rotated, and only then")
        if not _NAME.fullmatch(self.name):
            raise TokenError(f"a network's name has at most {MAX_NAME_CHARS} characters and no control characters")
        if len(self.addresses) > MAX_ADDRESSES:
            raise TokenError(f"it carries at most {MAX_ADDRESSES} addresses")
        if not all(map(_ADDRESS.fullmatch, self.addresses)):
            raise TokenError(f"an address has 1 to {MAX_ADDRESS_CHARS} printable ASCII characters and no space")

    @classmethod
    def new(cls, name: str = "", addresses: Iterable[str] = (), *, owner: bytes = b"") -> Token:
        """Start a network: a fresh secret from the system's source of randomness. `owner`: see OwnerKey.public."""
        return cls(secrets.token_bytes(SECRET_BYTES), name, tuple(addresses), owner=owner)

    @classmethod
    def decode(cls, text: str) -> Token:
        """Read a token as a person pasted it; a terminal or mail may have wrapped the line, a chat put quotes around it.

        Raises TokenMalformed, TokenTooNew or TokenChecksumWrong. None of them repeats the text.
        """
        text = pasted("".join(text.split()))
        match = _TEXT.fullmatch(text)
        if match is None:
            raise TokenMalformed
        version, body = int(match[1]), match[2]
        if version > OWNED:
            raise TokenTooNew
        if not _BODY.fullmatch(body):
            raise TokenMalformed
        try:
            payload = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))[:-CHECKSUM_BYTES]
        except ValueError:  # a length that base64 cannot have: cut short
            raise TokenChecksumWrong from None
        if _seal(version, payload) != text:  # whole text, so that a token has one spelling
            raise TokenChecksumWrong
        secret, rest = payload[:SECRET_BYTES], payload[SECRET_BYTES:]
        owner, rest = (rest[:OWNER_BYTES], rest[OWNER_BYTES:]) if version == OWNED else (b"", rest)
        number, rest = (rest[:4], rest[4:]) if version > VERSION else (b"", rest)
        rotations = int.from_bytes(number, "big")
        start = (ROOT_BYTES if owner else NAMES_BYTES) if rotations else 0
        if len(number) != (0 if version == VERSION else 4) or (version == ROTATED and not rotations):
            raise TokenMalformed
        try:
            name, *addresses = rest[start:].decode().split("\n")
            return cls(secret, name, tuple(addresses), rotations, owner, rest[:start])
        except (UnicodeDecodeError, TokenError):
            raise TokenMalformed from None

    def encode(self) -> str:
        """The token as one line of URL-safe text."""
        text = "\n".join((self.name, *self.addresses)).encode()
        number = self.rotations.to_bytes(4, "big")
        if self.owner:
            return _seal(OWNED, self.secret + self.owner + number + self.origin + text)
        if self.rotations:
            return _seal(ROTATED, self.secret + number + self.origin + text)
        return _seal(VERSION, self.secret + text)

    def rotated(self, secret: bytes | None = None, rotations: int | None = None) -> Token:
        """This network's token with another secret: by default a fresh one, of the next rotation. Raises TokenError."""
        return replace(
            self,
            secret=secrets.token_bytes(SECRET_BYTES) if secret is None else secret,
            rotations=self.rotations + 1 if rotations is None else rotations,
            origin=self._root() if self.owner else self.names,
        )

    def with_addresses(self, addresses: Iterable[str]) -> Token:
        """This token with other bootstrap addresses."""
        return replace(self, addresses=tuple(addresses))

    def is_same_network(self, text: str) -> bool:
        """Whether `text` is a token of this network, be it rotated or not, whatever its name and addresses."""
        try:
            return Token.decode(text).names_the_network_of(self)
        except TokenError:
            return False

    def names_the_network_of(self, other: Token) -> bool:
        return self.owner == other.owner and self.names == other.names

    def supersedes(self, other: Token) -> bool:
        """Whether this is the newer of two tokens of one network. All members agree, also on two rotations at once."""
        newer = (self.rotations, self.secret) > (other.rotations, other.secret)
        return newer and self.names_the_network_of(other)

    @property
    def network_id(self) -> str:
        """Names the network to people and reveals nothing about the secret."""
        return self.names[:NETWORK_ID_BYTES].hex()

    def admission_key(self) -> bytes:
        """The key with which both sides of a handshake prove that they hold the token (32 bytes)."""
        return self._derive("admission", 32)

    def topic(self) -> str:
        """The pubsub topic that carries the network's records."""
        return f"/federation/{VERSION}/records/{self._path('topic').hex()}"

    def ledger_protocol(self) -> str:
        """The libp2p protocol id of ledger anti-entropy."""
        return f"/federation/{VERSION}/ledger/{self._path('ledger').hex()}"

    def keys_protocol(self) -> str:
        """The libp2p protocol id of client keys."""
        return f"/federation/{VERSION}/keys/{self._path('ledger').hex()}"

    def orders_protocol(self) -> str:
        """The libp2p protocol id of the owner's orders to one node."""
        return f"/federation/{VERSION}/orders/{self._path('ledger').hex()}"

    def rotation_protocol(self) -> str:
        """The libp2p protocol id of rotations. Without an owner: the id that earlier versions use."""
        return f"/federation/{VERSION}/{'rotation' if self.owner else 'token'}/{self._path('ledger').hex()}"

    def dht_key(self, hour: int) -> bytes:
        """The key under which members look for each other in a public DHT in that hour since 1970: an opaque multihash."""
        return b"\x12\x20" + self._derive(f"dht {hour}", 32)

    def rendezvous(self) -> str:
        """The name under which members look for each other on a local network (32 hex digits)."""
        return self._derive("rendezvous", 16).hex()

    def _path(self, which: str) -> bytes:
        start = NETWORK_ID_BYTES + ("topic", "ledger").index(which) * PATH_BYTES
        return self.names[start : start + PATH_BYTES]

    @property
    def names(self) -> bytes:
        """The network's names over all rotations: its id, and the ends of topic and protocols."""
        if self.owner:
            return _hkdf(self._root(), "names", NAMES_BYTES, salt=self.owner)
        if self.rotations:
            return self.origin
        return b"".join(
            _hkdf(self.secret, label, size)
            for label, size in (("network id", NETWORK_ID_BYTES), ("topic", PATH_BYTES), ("ledger", PATH_BYTES))
        )

    def _root(self) -> bytes:
        return self.origin or _hkdf(self.secret, "root", ROOT_BYTES)

    def _derive(self, label: str, length: int) -> bytes:
        return _hkdf(self.secret, label, length, salt=self.names if self.owner else None)


def _hkdf(key: bytes, label: str, length: int, *, salt: bytes | None = None) -> bytes:
    return HKDF(SHA256(), length, salt=salt, info=f"federation/{VERSION} {label}".encode()).derive(key)


def _seal(version: int, payload: bytes) -> str:
    prefix = f"fed{version}_"
    checksum = hashlib.sha256(prefix.encode() + payload).digest()[:CHECKSUM_BYTES]
    return prefix + base64.urlsafe_b64encode(payload + checksum).decode().rstrip("=")
