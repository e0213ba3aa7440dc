"""One look into a public DHT, in a process of its own (look.py): JSON in, JSON out.

A look exposes all of py-libp2p to foreign nodes: keys of every kind, identify, peer records, multiaddrs, Yamux. None of that
may take the time or the memory of a node that serves, so this process does it: at a low priority, with a limit on memory, on
processor time and on elapsed time, which hold for every parser. A failure costs one look.

Each look is made under a new libp2p identity, by a host that lives for seconds and does not listen. RSA keys, which real DHT
nodes have, are read by `cryptography` within bounds (trap O), so that one node with a bad one does not cost the look either.
"""

from __future__ import annotations

import json
import os
import resource
import secrets
import signal
import sys
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import trio
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyType, PublicKey
from libp2p.crypto.serialization import key_type_to_public_key_deserializer
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from federation.errors import FederationError
from federation.net.dial.address import PeerAddress

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from libp2p.peer.peerinfo import PeerInfo

LOOK_TIMEOUT_S = 30.0
START_S = 30  # for all but the look itself, on a busy machine
MAX_CPU_S = 30  # the imports take 3 of them
MAX_MEMORY = 1024**3  # bytes; a look needs some 150 MiB
NICE = 10  # it gets a tenth of a busy core
CONNECT_TIMEOUT_S = 5.0
MAX_PROVIDERS = 32
MAX_ADDRESSES = 4  # of one provider
PROVIDED_LOOKS, PROVIDED_PAUSE_S = 5, 0.5
MAX_RSA_BYTES = 1024  # of DER; a key of 4096 bits has 550
RSA_BITS = range(2048, 4097)
MAX_RSA_EXPONENT = 2**32 - 1  # all that are in use are 65537 or less; the time of a check grows with it


@dataclass
class Look:
    """A look's task: DHT nodes to begin with (multiaddrs), keys (hex of multihashes), addresses of this node."""

    bootstraps: list[str]
    keys: list[str]  # the look finds addresses under each
    provided: list[str]  # those of them under which the look leaves `ours`
    ours: list[str]


@dataclass
class Found:
    """Addresses of providers. `problem`: the reason of a failure, for a person; empty after a success."""

    addresses: list[str] = field(default_factory=list)
    problem: str = ""


class BoundedRSA(PublicKey):
    """A public RSA key, bounded in size and exponent: reading and using one takes little time."""

    def __init__(self, key: rsa.RSAPublicKey) -> None:
        self._key = key

    @classmethod
    def from_bytes(cls, data: bytes) -> BoundedRSA:
        """Read a key. Raises ValueError, and `cryptography`'s errors for DER that is no public key."""
        if len(data) > MAX_RSA_BYTES:
            raise ValueError("an RSA key that is too long")
        key = load_der_public_key(data)
        if not isinstance(key, rsa.RSAPublicKey) or key.key_size not in RSA_BITS:
            raise ValueError("not an RSA key of a usual size")
        if key.public_numbers().e > MAX_RSA_EXPONENT:
            raise ValueError("an RSA key with a huge exponent")
        return cls(key)

    def to_bytes(self) -> bytes:
        return self._key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def get_type(self) -> KeyType:
        return KeyType.RSA

    def verify(self, data: bytes, signature: bytes) -> bool:
        try:
            self._key.verify(signature, data, padding.PKCS1v15(), SHA256())
        except InvalidSignature:
            return False
        return True


def bound_keys() -> None:
    """Bound the RSA keys that any code of this process reads."""
    key_type_to_public_key_deserializer[KeyType.RSA.value] = BoundedRSA.from_bytes


def bound_process() -> None:
    signal.alarm(START_S + int(LOOK_TIMEOUT_S))  # also where the node that started it is gone
    for what, most in ((resource.RLIMIT_CPU, MAX_CPU_S), (resource.RLIMIT_DATA, MAX_MEMORY)):
        allowed = resource.getrlimit(what)[1]
        most = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
        resource.setrlimit(what, (most, most))
    os.nice(NICE)


async def look(task: Look) -> Found:
    """Look once. Never raises, but for a defect."""
    found = Found()
    try:
        with trio.fail_after(LOOK_TIMEOUT_S):
            await _look(task, found)
    except trio.TooSlowError:
        found.problem = f"the DHT did not answer within {LOOK_TIMEOUT_S:g} s"
    except Exception as error:  # noqa: BLE001  # foreign bytes can raise anything in py-libp2p; only the look is lost
        cause = _innermost(error)
        found.problem = (cause.detail if isinstance(cause, FederationError) else str(cause)) or type(cause).__name__
    return found


async def _look(task: Look, found: Found) -> None:
    key_pair = create_new_key_pair(secrets.token_bytes(32))
    noise = NoiseTransport(key_pair, create_new_x25519_key_pair().private_key)
    host = new_host(key_pair=key_pair, sec_opt={NOISE_ID: noise}, announce_addrs=[Multiaddr(text) for text in task.ours])
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(host.run(listen_addrs=[]))
        stack.push_async_callback(host.close)
        dht = KadDHT(host, DHTMode.CLIENT, enable_values=True)
        await stack.enter_async_context(background_trio_service(dht))
        await _connect(task.bootstraps, host.connect, dht)
        for key in task.keys:
            for provider in await dht.provider_store.find_providers(bytes.fromhex(key), MAX_PROVIDERS):
                if provider.peer_id != host.get_id():
                    found.addresses += usable(provider)
            if task.ours and key in task.provided:
                await _provide(dht, bytes.fromhex(key))


async def _connect(bootstraps: list[str], connect: Callable[[PeerInfo], Awaitable[None]], dht: KadDHT) -> None:
    """Connect to one bootstrap node at least. Raises FederationError."""
    problems = []
    for text in bootstraps:
        peer = info_from_p2p_addr(Multiaddr(text))
        try:
            with trio.fail_after(CONNECT_TIMEOUT_S):
                await connect(peer)
            await dht.add_peer(peer.peer_id, skip_server_mode_check=True)
        except Exception as error:  # noqa: BLE001  # as above; one that is down must not cost the others
            problems.append(str(error) or type(error).__name__)
    if len(problems) == len(bootstraps):
        raise FederationError(f"no bootstrap node answers ({problems[0][:80]})")


def usable(provider: PeerInfo) -> list[str]:
    """The provider's first addresses, without those that cannot be dialled: any node may have written them."""
    found = []
    for text in [str(address) for address in provider.addrs[:MAX_ADDRESSES]]:
        try:
            found.append(str(PeerAddress.parse(text.partition("/p2p/")[0])))
        except FederationError:  # noqa: PERF203
            continue
    return found


async def _provide(dht: KadDHT, key: bytes) -> None:
    """Leave our address under `key`. No node acknowledges it, and the closing connection may lose a message: so look the
    address up. Raises FederationError if it is not found."""
    store = dht.provider_store
    await store.provide(key)
    for _ in range(PROVIDED_LOOKS):
        store.providers.pop(key, None)  # else our own store would answer
        if any(found.peer_id == store.local_peer_id for found in await store.find_providers(key, MAX_PROVIDERS)):
            return
        await trio.sleep(PROVIDED_PAUSE_S)
    raise FederationError("it did not keep this node's address")


def _innermost(error: BaseException) -> BaseException:
    while inside := getattr(error, "exceptions", ()):  # a group of trio's
        error = inside[0]
    return error


def main() -> None:
    bound_process()
    bound_keys()
    found = trio.run(look, Look(**json.load(sys.stdin)))
    sys.stdout.write(json.dumps(asdict(found)))
