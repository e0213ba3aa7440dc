"""An invite's code: a one-time secret and where the node that made it answers, as one line. Not the network's token.

Text: ``fed100_`` and, as unpadded base64url: the secret (16 bytes), when it expires (4, seconds since 1970), the addresses,
and a checksum (4). An address: its kind (4, 6, or 0 for a name), the IP or a length and a name, the port (2).

The secret is random and has 128 bits, so nobody finds it by trying offline against a recorded exchange: what SPAKE2 gives to
short codes would add nothing. Id and key are derived from it by HKDF with a label each. The maker's peer id is not in the
code: both sides prove the key (net/link/newcomer.py), which says more.

The number is far above those of tokens: a version that knows no invites says of such a code that a newer version made it.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import struct
from dataclasses import dataclass, field
from ipaddress import ip_address

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from federation.errors import TokenChecksumWrong, TokenMalformed, UsageError
from federation.net.dial.address import PeerAddress
from federation.units import pasted

PREFIX = "fed100_"
SECRET_BYTES = 16
ID_BYTES, KEY_BYTES = 16, 32
CHECKSUM_BYTES = 4
MAX_ADDRESSES = 6
MAX_CODE_CHARS = 4096
SHORT = 8  # digits of an id that people see

_NAME, _IP4, _IP6 = 0, 4, 6
_PORT = struct.Struct(">H")
_TIME = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class InviteCode:
    """`expires_at`: seconds since 1970, by the clock of the node that made it, which alone decides."""

    secret: bytes = field(repr=False)
    expires_at: int
    addresses: tuple[PeerAddress, ...]

    @classmethod
    def new(cls, expires_at: int, addresses: tuple[PeerAddress, ...]) -> InviteCode:
        return cls(secrets.token_bytes(SECRET_BYTES), expires_at, addresses[:MAX_ADDRESSES])

    @classmethod
    def decode(cls, text: str) -> InviteCode:
        """Read a code as a person pasted it. Raises TokenMalformed or TokenChecksumWrong, which do not repeat it."""
        text = pasted("".join(text.split()))
        if not text.startswith(PREFIX) or len(text) > MAX_CODE_CHARS:
            raise TokenMalformed
        body = text[len(PREFIX) :]
        try:
            data = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        except ValueError:
            raise TokenChecksumWrong from None
        payload = data[:-CHECKSUM_BYTES]
        if _sealed(payload) != text:
            raise TokenChecksumWrong
        try:
            (expires_at,) = _TIME.unpack_from(payload, SECRET_BYTES)
            addresses = tuple(_addresses(payload[SECRET_BYTES + _TIME.size :]))
        except (struct.error, IndexError, ValueError, UsageError):  # a newer version's, or nobody's
            raise TokenMalformed from None
        return cls(payload[:SECRET_BYTES], expires_at, addresses)

    def encode(self) -> str:
        """The code as one line of URL-safe text. A secret."""
        return _sealed(self.secret + _TIME.pack(self.expires_at) + b"".join(map(_packed, self.addresses)))

    @property
    def id(self) -> bytes:
        """Names the invite to the node that made it, and reveals nothing about the secret."""
        return _derived(self.secret, "id", ID_BYTES)

    @property
    def short(self) -> str:
        return shown(self.id)

    @property
    def key(self) -> bytes:
        """With which both sides prove that they know the code."""
        return _derived(self.secret, "proof", KEY_BYTES)


def is_code(text: str) -> bool:
    """Whether `text` is meant as an invite's code; it may be damaged."""
    return pasted("".join(text.split())).startswith(PREFIX)


def shown(invite_id: bytes) -> str:
    """An invite's id as people see and type it."""
    return invite_id.hex()[:SHORT]


def _sealed(payload: bytes) -> str:
    checksum = hashlib.sha256(PREFIX.encode() + payload).digest()[:CHECKSUM_BYTES]
    return PREFIX + base64.urlsafe_b64encode(payload + checksum).decode().rstrip("=")


def _derived(secret: bytes, label: str, length: int) -> bytes:
    return HKDF(SHA256(), length, salt=None, info=f"federation/1 invite {label}".encode()).derive(secret)


def _packed(address: PeerAddress) -> bytes:
    if address.ip is None:
        name = address.host.encode("ascii")
        return bytes([_NAME, len(name)]) + name + _PORT.pack(address.port)
    return bytes([address.ip.version]) + address.ip.packed + _PORT.pack(address.port)


def _addresses(data: bytes) -> list[PeerAddress]:
    """Raises IndexError, struct.error, ValueError or UsageError for bytes that are no addresses."""
    found: list[PeerAddress] = []
    while data:
        if len(found) == MAX_ADDRESSES:
            raise ValueError("too many addresses")
        kind, data = data[0], data[1:]
        if kind == _NAME:
            size, data = data[0], data[1:]
            host = data[:size].decode("ascii")
        elif kind in (_IP4, _IP6):
            size = 4 if kind == _IP4 else 16
            if len(data) < size:
                raise ValueError("an address that is cut short")
            host = str(ip_address(data[:size]))
        else:
            raise ValueError("an address of another kind")
        (port,) = _PORT.unpack_from(data, size)
        found.append(PeerAddress.parse(f"[{host}]:{port}" if ":" in host else f"{host}:{port}"))
        data = data[size + _PORT.size :]
    return found
