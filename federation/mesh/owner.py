"""The owner's key, which alone may give a network a new token and orders to its nodes (remote.py), and the rotation orders
that it signs.

A network that has an owner carries the public half in its token (tokens.py). The private half stays where the network was
made, or in a file; as text it is ``fedkey1_`` and, as unpadded base64url, the Ed25519 seed and a checksum.

An order contains all that the owner decided about one rotation. Members pass it on unchanged, since its bytes are signed.
Big endian: the network's names (40), the rotation's number (4), a hash of the new secret (32), the time of signing
(ms since 1970, 8), the grace in ms (8), and the ids of the members that may receive it, sorted, a newline between two.

Rule: no I/O and no clock.
"""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from federation.errors import OwnerKeyWrong, ProtocolViolation
from federation.units import pasted

if TYPE_CHECKING:
    from collections.abc import Iterable

SEED_BYTES = 32
PUBLIC_BYTES = 32
SIGNATURE_BYTES = 64
CHECKSUM_BYTES = 4
MAX_MEMBERS = 8192  # twice a ledger
MAX_ID_CHARS = 128
MAX_ORDER_BYTES = 1024 * 1024  # MAX_MEMBERS ids of 52 characters have 430 kB
MAX_GRACE = timedelta(days=30)
MAX_NUMBER = 2**32 - 1
MAX_ISSUED_MS = 2**42  # the year 2109: with a grace behind it still a date that Python has

_PREFIX = "fedkey1_"
# What the key signs begins with one of these, so no signature counts for another purpose.
ROTATION, REMOTE_ORDER = b"federation/1 rotation\0", b"federation/1 remote order\0"
_HEAD = struct.Struct(">40sI32sQQ")
_IDS = re.compile(rb"[!-~]{1,128}(?:\n[!-~]{1,128})*")


@dataclass(frozen=True, slots=True)
class OwnerKey:
    """The private half of the key. Its holder decides which nodes are members."""

    seed: bytes = field(repr=False)

    @classmethod
    def new(cls) -> OwnerKey:
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def decode(cls, text: str) -> OwnerKey:
        """Read a key as a person pasted it. Raises OwnerKeyWrong, which does not repeat the text."""
        text = pasted("".join(text.split()))
        if not text.startswith(_PREFIX):
            raise OwnerKeyWrong
        try:
            data = base64.urlsafe_b64decode(text[len(_PREFIX) :] + "=" * (-(len(text) - len(_PREFIX)) % 4))
        except ValueError:
            raise OwnerKeyWrong("it was damaged on the way; copy it again") from None
        key = cls(data[:SEED_BYTES])
        if len(data) != SEED_BYTES + CHECKSUM_BYTES or key.encode() != text:
            raise OwnerKeyWrong("it was damaged on the way; copy it again")
        return key

    def encode(self) -> str:
        """The key as one line of text. A secret."""
        checksum = hashlib.sha256(_PREFIX.encode() + self.seed).digest()[:CHECKSUM_BYTES]
        return _PREFIX + base64.urlsafe_b64encode(self.seed + checksum).decode().rstrip("=")

    @property
    def public(self) -> bytes:
        return Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw()

    def sign(self, order: bytes, purpose: bytes = ROTATION) -> bytes:
        """Sign the bytes of an Order, or of another order."""
        return Ed25519PrivateKey.from_private_bytes(self.seed).sign(purpose + order)


@dataclass(frozen=True, slots=True)
class Order:
    """All that the owner decided about one rotation. `issued_ms`: since 1970, UTC, by the signer's clock."""

    names: bytes
    number: int
    secret_hash: bytes
    issued_ms: int
    grace_ms: int
    members: frozenset[str]

    def encode(self) -> bytes:
        head = _HEAD.pack(self.names, self.number, self.secret_hash, self.issued_ms, self.grace_ms)
        return head + "\n".join(sorted(self.members)).encode("ascii")

    @classmethod
    def decode(cls, data: bytes) -> Order:
        """Read an order. Raises ProtocolViolation, whatever the bytes."""
        if not _HEAD.size <= len(data) <= MAX_ORDER_BYTES:
            raise ProtocolViolation("a rotation that is too short or too long")
        names, number, secret_hash, issued_ms, grace_ms = _HEAD.unpack_from(data)
        ids = data[_HEAD.size :]
        if not 0 < number <= MAX_NUMBER or issued_ms > MAX_ISSUED_MS or grace_ms > MAX_GRACE // timedelta(milliseconds=1):
            raise ProtocolViolation("a rotation whose numbers are out of bounds")
        if ids.count(b"\n") >= MAX_MEMBERS or not _IDS.fullmatch(ids):
            raise ProtocolViolation("a rotation's members are peer ids")
        order = cls(names, number, secret_hash, issued_ms, grace_ms, frozenset(ids.decode("ascii").split("\n")))
        if order.encode() != data:
            raise ProtocolViolation("a rotation that is not spelt as it should be")
        return order


@dataclass(frozen=True, slots=True)
class SignedOrder:
    """An order with the owner's signature, as nodes keep it and hand it on."""

    order: Order
    signature: bytes

    @classmethod
    def check(cls, owner: bytes, data: bytes, signature: bytes) -> SignedOrder:
        """Verify the signature, then read the order: unsigned bytes are not parsed. Raises ProtocolViolation."""
        if len(data) > MAX_ORDER_BYTES:
            raise ProtocolViolation("a rotation that is too long")
        if not is_signed(owner, data, signature, ROTATION):
            raise ProtocolViolation("a rotation that the network's owner did not sign")
        return cls(Order.decode(data), signature)


def is_signed(owner: bytes, data: bytes, signature: bytes, purpose: bytes) -> bool:
    """Whether that owner signed these bytes for that purpose."""
    try:
        Ed25519PublicKey.from_public_bytes(owner).verify(signature, purpose + data)
    except (InvalidSignature, ValueError):
        return False
    return True


def order_of(names: bytes, number: int, secret: bytes, *, issued_ms: int, grace: timedelta, members: Iterable[str]) -> Order:
    grace_ms = min(max(grace, timedelta(0)), MAX_GRACE) // timedelta(milliseconds=1)
    return Order(names, number, hash_of(secret), issued_ms, grace_ms, frozenset(members))


def number_of(order: bytes) -> int:
    """The rotation's number in an order's bytes, unchecked; 0 if they are too short."""
    return int.from_bytes(order[40:44], "big") if len(order) >= _HEAD.size else 0


def hash_of(secret: bytes) -> bytes:
    """Identifies the secret of an order without revealing it: a secret is 32 random bytes."""
    return hashlib.sha256(b"federation/1 rotated secret" + secret).digest()
