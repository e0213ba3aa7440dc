"""Which bytes are an identity, a peer id, a signature: one form, and nothing else meets a library."""

from __future__ import annotations

from itertools import product

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from libp2p.crypto import serialization
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.secp256k1 import create_new_key_pair as create_new_secp256k1_key_pair
from libp2p.peer.id import ID
from libp2p.security.noise.messages import NoiseExtensions, NoiseHandshakePayload, make_handshake_payload_sig
from libp2p.security.noise.pb import noise_pb2

from federation.errors import ProtocolViolation
from federation.net.identity import (
    ID_PREFIX,
    KEY_PREFIX,
    is_signed,
    key_in,
    key_of,
    peer_id,
    read_payload,
    read_peer_id,
    write_payload,
)

KEYS = create_new_key_pair(b"i" * 32)
OTHER = create_new_key_pair(b"o" * 32)
STATIC = b"s" * 32
RAW = KEYS.public_key.to_bytes()
SECP256K1 = create_new_secp256k1_key_pair(b"\x01" * 32).public_key


@pytest.fixture(autouse=True)
def no_library_reads_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(_data: bytes) -> None:
        raise AssertionError("a key was read that is not Ed25519")

    for kind in (0, 2):
        monkeypatch.setitem(serialization.key_type_to_public_key_deserializer, kind, read)


@given(st.binary(min_size=32, max_size=32))
def test_one_form_of_a_key_and_of_an_id_and_it_is_libp2ps(seed: bytes) -> None:
    public = create_new_key_pair(seed).public_key
    found = ID.from_pubkey(public)
    assert key_in(public.serialize()) == key_of(found.to_bytes()) == public.to_bytes()
    assert peer_id(public.to_bytes()) == found == read_peer_id(str(found))


NO_KEYS = {
    "nothing": b"",
    "type alone": KEY_PREFIX,
    "RSA": b"\x08\x00\x12\x20" + RAW,
    "secp256k1": SECP256K1.serialize(),
    "ECDSA": b"\x08\x03\x12\x20" + RAW,
    "a byte short": KEY_PREFIX + RAW[1:],
    "a byte long": KEY_PREFIX + RAW + b"\x00",
    "64 bytes": b"\x08\x01\x12\x40" + RAW + RAW,
    "the other way round": b"\x12\x20" + RAW + b"\x08\x01",
    "type twice": b"\x08\x01" + KEY_PREFIX + RAW,
    "a longer varint": b"\x08\x81\x00\x12\x20" + RAW[:31],
}


@pytest.mark.parametrize("data", NO_KEYS.values(), ids=NO_KEYS)
def test_anything_else_is_no_key_and_no_id(data: bytes) -> None:
    assert key_in(data) is None
    assert key_of(b"\x00" + bytes([len(data)]) + data) is None
    assert key_of(b"\x12\x20" + bytes(32)) is None
    assert key_of(data) is None


@given(st.binary(max_size=80))
def test_no_other_bytes_are_one(data: bytes) -> None:
    assert key_in(data) is None or data[:4] == KEY_PREFIX
    assert key_of(data) is None or data[:6] == ID_PREFIX


NO_IDS = {
    "nothing": "",
    "RSA": "QmNnooDu7bfjPFoTZYxMNLWUQJyrVwtbZg5gBMjTezGAJN",
    "secp256k1": str(ID.from_pubkey(SECP256K1)),
    "beyond the largest key": "12D3KooW" + "z" * 44,
    "before the smallest key": "12D3KooW" + "1" * 44,
    "too long": f"{ID.from_pubkey(KEYS.public_key)}1",
    "a line behind it": f"{ID.from_pubkey(KEYS.public_key)}\n",
    "no base58": "12D3KooW" + "0" * 44,
    "multibase": f"z{ID.from_pubkey(KEYS.public_key)}",
    "endless": "12D3KooW" + "z" * 1_000_000,
}


@pytest.mark.parametrize("text", NO_IDS.values(), ids=NO_IDS)
def test_what_no_node_is_called(text: str) -> None:
    with pytest.raises(ValueError, match="not the id of a node"):
        read_peer_id(text)


@given(st.text("123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz", min_size=44, max_size=44))
def test_a_text_is_one_id_or_none(rest: str) -> None:
    text = "12D3KooW" + rest
    try:
        found = read_peer_id(text)
    except ValueError:
        assert key_of(ID.from_base58(text).to_bytes()) is None
    else:
        assert str(found) == text
        assert found == ID.from_base58(text)


# Signatures


def test_a_signature() -> None:
    signature = KEYS.private_key.sign(b"data")
    assert is_signed(b"data", signature, RAW)
    assert not is_signed(b"date", signature, RAW)
    assert not is_signed(b"data", signature, OTHER.public_key.to_bytes())
    assert not is_signed(b"data", signature[:-1], RAW)
    assert not is_signed(b"data", signature + b"\x00", RAW)
    assert not is_signed(b"data", b"", RAW)


def test_a_key_that_anybody_can_sign_for_is_refused_as_former_versions_do() -> None:
    """OpenSSL takes it, and this node would pass on what f919b4d calls a forgery."""
    everybody = b"\x01" + bytes(31)
    signature = everybody + bytes(32)
    Ed25519PublicKey.from_public_bytes(everybody).verify(signature, b"data")  # raises nothing
    assert not is_signed(b"data", signature, everybody)


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=64, max_size=64))
def test_any_bytes_are_no_signature(key: bytes, signature: bytes) -> None:
    assert not is_signed(b"data", signature, key)


# Handshakes


def test_a_payload_is_libp2ps() -> None:
    payload = write_payload(KEYS, STATIC)
    theirs = NoiseHandshakePayload.deserialize(payload)
    assert theirs.id_pubkey == KEYS.public_key
    assert read_payload(payload, STATIC) == read_payload(theirs.serialize(), STATIC) == ID.from_pubkey(KEYS.public_key)


def test_extensions_are_passed_over() -> None:
    class Static:
        def to_bytes(self) -> bytes:
            return STATIC

    theirs = NoiseHandshakePayload(
        KEYS.public_key,
        make_handshake_payload_sig(KEYS.private_key, Static()),  # type: ignore[arg-type]
        NoiseExtensions(stream_muxers=["/yamux/1.0.0"], early_data=b"early"),
    ).serialize()
    assert read_payload(theirs, STATIC) == ID.from_pubkey(KEYS.public_key)


def payload(**fields: bytes) -> bytes:
    genuine = {
        "identity_key": KEYS.public_key.serialize(),
        "identity_sig": KEYS.private_key.sign(b"noise-libp2p-static-key:" + STATIC),
    }
    return noise_pb2.NoiseHandshakePayload(**{**genuine, **fields}).SerializeToString()


NO_PAYLOADS = {
    "nothing": b"",
    "no protobuf": b"\xff\xff",
    "another's key": payload(identity_key=OTHER.public_key.serialize()),
    "another's signature": payload(identity_sig=OTHER.private_key.sign(b"noise-libp2p-static-key:" + STATIC)),
    "for another session": payload(identity_sig=KEYS.private_key.sign(b"noise-libp2p-static-key:" + b"t" * 32)),
    "no signature": payload(identity_sig=b""),
    **{name: payload(identity_key=data) for name, data in NO_KEYS.items()},
}


@pytest.mark.parametrize("data", NO_PAYLOADS.values(), ids=NO_PAYLOADS)
def test_what_is_no_identity(data: bytes) -> None:
    assert read_payload(payload(), STATIC)
    with pytest.raises(ProtocolViolation):
        read_payload(data, STATIC)


@given(st.binary(max_size=300))
def test_any_bytes_are_no_identity(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        read_payload(data, STATIC)


def test_every_kind_of_key_that_libp2p_reads_is_refused() -> None:
    kinds = set(serialization.key_type_to_public_key_deserializer)
    assert len(kinds) >= 3
    for kind, length in product(kinds - {1}, (31, 32, 33, 65)):
        assert key_in(bytes([8, kind, 0x12, length]) + bytes(length)) is None
