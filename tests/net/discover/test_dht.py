"""One look into a DHT: which keys of strangers are read, what is taken of an answer, and the process that bounds it all."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from Crypto.PublicKey import RSA
from Crypto.Util.asn1 import DerSequence
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from libp2p.crypto import serialization
from libp2p.crypto.keys import KeyType
from libp2p.crypto.rsa import RSAPrivateKey, RSAPublicKey
from libp2p.peer.id import ID

from federation.errors import FederationError
from federation.net.discover import dht
from federation.net.discover.dht import PROVIDED_LOOKS, BoundedRSA, _provide, usable

PRIME = 7 * 2**15494 + 1  # tested for being one, it takes pycryptodome 9 s
KEY = rsa.generate_private_key(65537, 2048)
SPKI = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def public(n: int, e: int) -> bytes:
    der: bytes = DerSequence([n, e]).encode()
    return der


N2048 = KEY.private_numbers().public_numbers.n
KEYS_THAT_TAKE_LONG = {
    "a private key with a large factor": DerSequence([0, 3 * PRIME, 5, 2, PRIME, 3, 0, 0, 0]).encode(),
    "a private key": KEY.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption()),
    "a private key in PKCS8": KEY.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
    "a huge exponent": public(N2048, (1 << 2040) | 1),
    "an exponent of 33 bits": public(N2048, 2**32 + 1),
    "16 kbit": public((1 << 16383) | 1, 65537),
    "4104 bit": public((1 << 4103) | 1, 65537),
    "512 bit": public((1 << 511) | 1, 65537),
}


class TestKeys:
    def test_reads_what_libp2p_writes(self) -> None:
        ours, theirs = BoundedRSA.from_bytes(SPKI), RSAPublicKey.from_bytes(SPKI)
        assert ours.to_bytes() == theirs.to_bytes() == SPKI
        assert ID.from_pubkey(ours) == ID.from_pubkey(theirs)
        assert BoundedRSA.from_bytes(public(N2048, 65537)).to_bytes() == SPKI
        signature = RSAPrivateKey(RSA.import_key(KEYS_THAT_TAKE_LONG["a private key"])).sign(b"data")
        assert ours.verify(b"data", signature)
        assert not ours.verify(b"date", signature)
        assert not ours.verify(b"data", b"")

    @pytest.mark.parametrize("data", KEYS_THAT_TAKE_LONG.values(), ids=KEYS_THAT_TAKE_LONG)
    def test_nothing_that_takes_long_is_read(self, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(RSA, "import_key", None)
        began = time.process_time()
        with pytest.raises(ValueError):  # noqa: PT011  # OpenSSL's own words
            BoundedRSA.from_bytes(data)
        assert time.process_time() - began < 1  # the first took 9 s

    @given(st.binary(max_size=1200))
    def test_any_bytes_are_read_or_refused(self, data: bytes) -> None:
        with pytest.raises(ValueError):  # noqa: PT011
            BoundedRSA.from_bytes(data)

    def test_it_is_the_reader_for_all_of_libp2p(self, monkeypatch: pytest.MonkeyPatch) -> None:
        readers = dict(serialization.key_type_to_public_key_deserializer)
        monkeypatch.setattr(serialization, "key_type_to_public_key_deserializer", readers)
        monkeypatch.setattr(dht, "key_type_to_public_key_deserializer", readers)
        dht.bound_keys()
        encoded = b"\x08\x00\x12" + bytes([0xA6, 0x02]) + SPKI
        assert isinstance(serialization.deserialize_public_key(encoded), BoundedRSA)
        assert dht.key_type_to_public_key_deserializer[KeyType.RSA.value] == BoundedRSA.from_bytes


def test_what_cannot_be_dialled_is_passed_over() -> None:
    words = [
        "/ip4/192.0.2.1/tcp/4484/p2p/x",
        "/ip4/192.0.2.1/udp/1",
        "nonsense",
        "/ip6/2001:db8::1/tcp/2",
        "/ip4/192.0.2.9/tcp/1",
    ]
    provider: Any = SimpleNamespace(addrs=words)
    assert usable(provider) == ["/ip4/192.0.2.1/tcp/4484", "/ip6/2001:db8::1/tcp/2"]


@pytest.mark.parametrize("kept_after", [0, 2, PROVIDED_LOOKS])
async def test_what_was_left_is_looked_for(kept_after: int, autojump_clock: trio.testing.MockClock) -> None:
    """A DHT acknowledges nothing; what we noted down ourselves is no proof."""
    looks: list[int] = []

    class Store:
        local_peer_id = "us"

        def __init__(self) -> None:
            self.providers: dict[bytes, Any] = {}

        async def provide(self, key: bytes) -> None:
            self.providers[key] = "noted"

        async def find_providers(self, key: bytes, _count: int) -> list[Any]:
            looks.append(len(looks))
            found = ["other", "us"] if key in self.providers or len(looks) > kept_after else ["other"]
            return [SimpleNamespace(peer_id=peer) for peer in found]

    server: Any = SimpleNamespace(provider_store=Store())
    if kept_after < PROVIDED_LOOKS:
        await _provide(server, b"key")
        assert len(looks) == kept_after + 1
    else:
        with pytest.raises(FederationError, match="did not keep"):
            await _provide(server, b"key")
        assert len(looks) == PROVIDED_LOOKS


# The process


def run(code: str) -> subprocess.CompletedProcess[str]:
    """What becomes of `code` in such a process."""
    bounds = "from federation.net.discover import dht; dht.MAX_CPU_S = 5; dht.bound_process()\n"
    return subprocess.run([sys.executable, "-c", bounds + code], capture_output=True, text=True, timeout=110, check=False)


def test_it_ends_by_itself_whatever_holds_its_thread() -> None:
    done = run("sum(i * i for i in range(10**11))")
    assert done.returncode < 0


def test_it_gets_no_more_than_its_share_of_memory() -> None:
    done = run(f"bytearray({dht.MAX_MEMORY})")
    assert "MemoryError" in done.stderr


def test_it_is_of_a_low_priority_and_its_limits_can_be_lower_already() -> None:
    code = "import os, resource; print(os.nice(0), resource.getrlimit(resource.RLIMIT_CPU)[1])\n"
    niceness = min(os.nice(0) + dht.NICE, 19)  # the tests may run under `nice` themselves
    assert run(code + "dht.MAX_CPU_S = 9; dht.bound_process()").stdout.split() == [str(niceness), "5"]
