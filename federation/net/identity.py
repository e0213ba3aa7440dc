"""Identities: an Ed25519 key and nothing else, checked on the bytes before any library sees a key.

libp2p has several kinds of keys, and a program that reads them all pays for the slowest: an "RSA key" of 4 kB, a private one
with huge factors, takes its thread for 9 s. Every version of this program makes Ed25519 identities in one form, so this
module reads no key, peer id or signature of any other form.

    public key    08 01 12 20, then 32 bytes       (libp2p's protobuf: type Ed25519, data)
    peer id       00 24, then the public key       (multihash: identity); in base58 12D3KooW..., 52 characters

All versions check signatures by one routine. With a less strict routine (OpenSSL takes keys of small order) this node would
pass on messages that its neighbours call forgeries, and they would cut it off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.crypto.ed25519 import Ed25519PublicKey
from libp2p.peer.id import ID
from libp2p.security.noise.pb.noise_pb2 import NoiseHandshakePayload

from federation.errors import ProtocolViolation
from federation.units import is_peer_id

if TYPE_CHECKING:
    from libp2p.crypto.keys import KeyPair

KEY_BYTES = 32
SIGNATURE_BYTES = 64
KEY_PREFIX = b"\x08\x01\x12\x20"
ID_PREFIX = b"\x00\x24" + KEY_PREFIX
ID_BYTES = len(ID_PREFIX) + KEY_BYTES
STATIC_KEY_PREFIX = b"noise-libp2p-static-key:"

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def key_in(encoded: bytes) -> bytes | None:
    """The 32 bytes of a public key as libp2p writes it; None for any other kind or form."""
    return _after(KEY_PREFIX, encoded)


def key_of(peer_id: bytes) -> bytes | None:
    """The public key inside a binary peer id; None if the id has not our one form."""
    return _after(ID_PREFIX, peer_id)


def _after(prefix: bytes, data: bytes) -> bytes | None:
    return data[len(prefix) :] if len(data) == len(prefix) + KEY_BYTES and data.startswith(prefix) else None


def peer_id(key: bytes) -> ID:
    """The peer id of a public key of 32 bytes."""
    return ID(ID_PREFIX + key)


def peer_id_of(seed: bytes) -> str:
    """The peer id, as text, of the node whose Ed25519 seed this is."""
    return str(peer_id(Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()))


def read_peer_id(text: str) -> ID:
    """Read a peer id as text. Raises ValueError if no node can have it."""
    if not is_peer_id(text):
        raise ValueError("not the id of a node")
    number = 0
    for character in text:
        number = number * len(_BASE58) + _BASE58.index(character)
    data = number.to_bytes(ID_BYTES + 1, "big")[1:]
    if key_of(data) is None:  # in the right form, but beyond the largest key
        raise ValueError("not the id of a node")
    return ID(data)


def is_signed(data: bytes, signature: bytes, key: bytes) -> bool:
    """Whether the owner of `key`, 32 bytes, signed `data`. Takes 0.1 ms and a hash of `data`, whatever the bytes."""
    if len(signature) != SIGNATURE_BYTES:
        return False
    return Ed25519PublicKey.from_bytes(key).verify(data, signature)


# In a Noise handshake


def write_payload(key_pair: KeyPair, static_key: bytes) -> bytes:
    """A node's handshake payload: its identity, and its signature of the handshake's static key."""
    return NoiseHandshakePayload(
        identity_key=key_pair.public_key.serialize(), identity_sig=key_pair.private_key.sign(STATIC_KEY_PREFIX + static_key)
    ).SerializeToString()


def read_payload(payload: bytes, static_key: bytes) -> ID:
    """The identity that signed `static_key`, the handshake's key. Ignores extensions, which other versions may send.

    The caller bounds `payload`. Raises ProtocolViolation, whatever the bytes.
    """
    try:
        said = NoiseHandshakePayload.FromString(payload)
    except Exception:  # noqa: BLE001  # the protobuf runtime that is installed decides on the class
        raise ProtocolViolation("a handshake without an identity") from None
    key = key_in(said.identity_key)
    if key is None:
        raise ProtocolViolation("an identity that is not an Ed25519 key")
    if not is_signed(STATIC_KEY_PREFIX + static_key, said.identity_sig, key):
        raise ProtocolViolation("a handshake that its identity did not sign")
    return peer_id(key)
