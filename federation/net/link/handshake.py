"""Security of a peer connection: libp2p Noise XX, then a proof of the network's token, then sealed records (link/seal.py).

Handshake: Noise XX with the identity payload of libp2p's Noise spec, but each message is bounded and only Ed25519 identities
are read (net/identity.py). Then the initiator, and after it the responder, sends HMAC-SHA256(admission key, role ||
handshake hash) as its first sealed message. The handshake hash binds the proof to this very session, so a proof can be
neither replayed nor passed on. A wrong one is answered by a refusal, so that both sides can tell "another network" from
"the line broke". It is offered under an id of its own and alone: no plaintext, no TLS, no secio.

While a token is being rotated two keys are valid, so the initiator's message holds a proof for each key that it has. The
responder tells a holder of a retired key, and a banned peer, why it refuses: each answer is a MAC with that key.

The protocol id settles the cipher of the records: a node whose processor has instructions for AES offers AES-GCM first
(five times as fast as ChaCha20-Poly1305 with them, and five times as slow without).
"""

from __future__ import annotations

import hmac
import struct
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from libp2p.abc import ISecureConn, ISecureTransport
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.io.exceptions import IOException
from libp2p.network.connection.exceptions import RawConnError
from libp2p.peer.id import ID
from noise.connection import Keypair, NoiseConnection
from noise.exceptions import NoiseHandshakeError, NoiseInvalidMessage, NoiseValueError

from federation.errors import (
    AnotherPeer,
    BannedByPeer,
    HandshakeFailed,
    IdentityCopied,
    PeerBanned,
    PeerCopied,
    ProtocolViolation,
    TokenOutdated,
    TokenRefused,
    TokenRetired,
)
from federation.net import identity, wire
from federation.net.link.seal import MAX_CIPHERTEXT, MAX_PLAINTEXT, Sealer, Unsealer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from libp2p.abc import IRawConnection
    from libp2p.connection_types import ConnectionType
    from libp2p.crypto.keys import KeyPair, PrivateKey, PublicKey
    from multiaddr import Multiaddr
    from noise.state import HandshakeState

    from federation.net.link.seal import Aead

log = structlog.get_logger(__name__)

PROTOCOL_ID = "/federation/noise/1"  # ChaCha20-Poly1305, which everybody speaks
AES_PROTOCOL_ID = "/federation/noise-aes/1"
HANDSHAKE_TIMEOUT_S = 5.0
MAX_HANDSHAKE_BYTES = 4096  # from a stranger, up to its proof; an honest handshake takes below 1 KiB
NOISE = b"Noise_XX_25519_ChaChaPoly_SHA256"
MAX_MESSAGE_BYTES = 1024  # of the handshake's three; ours have 32, 202 and 170
PROOF_BYTES = 32
REFUSED = b"\x00" * PROOF_BYTES  # no HMAC is all zeros but with probability 2^-256
MAX_PROOFS = 16  # in one message; more keys than these are not offered

_LENGTH = struct.Struct(">H")


class _Ended(IOException):
    """The peer closed the connection."""


def is_end(error: BaseException | None) -> bool:
    """Whether that the peer hung up is at the bottom of it."""
    while error is not None and not isinstance(error, _Ended | RawConnError | OSError | trio.BrokenResourceError):
        error = error.__cause__ or error.__context__
    return error is not None


@dataclass(frozen=True, slots=True)
class Session:
    """Who met whom in a handshake."""

    local: ID
    remote: ID
    is_initiator: bool

    def get_local_peer(self) -> ID:
        return self.local

    def get_remote_peer(self) -> ID:
        return self.remote


class SecureConn(ISecureConn):
    """A connection behind the handshake. libp2p negotiates the muxer over it; then the link takes both keys over."""

    def __init__(self, raw: IRawConnection, session: Session, sealer: Sealer, unsealer: Unsealer) -> None:
        self.raw = raw
        self.digest = b""  # the handshake's hash: both sides can name this connection by it
        self.session = session
        self.sealer = sealer
        self.unsealer = unsealer
        self.is_initiator = session.is_initiator
        self.run = b""  # the remote process's key for handshakes, made at its start: a restart or a copy has another one
        self.admission_key = b""  # with which the two proved the token to each other
        self.invite = b""  # the id of the invite that a newcomer proved to know; no member's (newcomer.py)
        self.pending: deque[bytes] = deque()  # plaintexts not read yet

    async def read_records(self) -> None:
        """Wait for at least one more record. Raises IOException at the end of the connection."""
        while True:
            data = await self.raw.read(MAX_CIPHERTEXT)
            if not data:
                raise _Ended("the peer closed the connection")
            plaintexts = self.unsealer.feed(data)
            if plaintexts:
                self.pending.extend(plaintexts)
                return

    async def read(self, n: int | None = None) -> bytes:
        while not self.pending:
            await self.read_records()
        chunk = self.pending.popleft()
        if n is not None and len(chunk) > n:
            self.pending.appendleft(chunk[n:])
            chunk = chunk[:n]
        return chunk

    async def write(self, data: bytes) -> None:
        for at in range(0, len(data), MAX_PLAINTEXT):
            await self.raw.write(self.sealer.seal(data[at : at + MAX_PLAINTEXT]))

    async def close(self) -> None:
        await self.raw.close()

    def get_remote_peer(self) -> ID:
        return self.session.get_remote_peer()

    def get_local_peer(self) -> ID:
        return self.session.get_local_peer()

    def get_local_private_key(self) -> PrivateKey:
        raise NotImplementedError  # of libp2p's interface; nobody asks

    def get_remote_public_key(self) -> PublicKey:
        raise NotImplementedError

    def get_remote_address(self) -> tuple[str, int] | None:
        return self.raw.get_remote_address()

    def get_transport_addresses(self) -> list[Multiaddr]:
        return self.raw.get_transport_addresses()

    def get_connection_type(self) -> ConnectionType:
        return self.raw.get_connection_type()


def protocols() -> dict[str, Aead]:
    """What this machine speaks, in the order in which it offers them."""
    everybody: dict[str, Aead] = {PROTOCOL_ID: ChaCha20Poly1305}
    return {AES_PROTOCOL_ID: AESGCM, **everybody} if _seconds(AESGCM) < _seconds(ChaCha20Poly1305) else everybody


def _seconds(aead: Aead) -> float:
    """The best of three for 16 KiB: some 2 us with instructions for it, 10 to 200 us without."""
    encrypt, data, times = aead(bytes(32)).encrypt, bytes(16 * 1024), []
    for n in range(3):
        start = time.perf_counter()
        encrypt(n.to_bytes(12, "big"), data, None)
        times.append(time.perf_counter() - start)
    return min(times)


async def _never(_peer: str, _run: bytes) -> bool:
    return False


class TokenNoise(ISecureTransport):
    """The security transport. `admission_keys` gives the keys that are valid now, the newest first; `retired_keys` those
    that this network no longer takes, the last retired first; `is_banned` says of a peer id whether it is kept away, and
    `is_copy` of a peer id and a `run` whether another process of that peer is here."""

    def __init__(
        self,
        key_pair: KeyPair,
        admission_keys: Callable[[], Sequence[bytes]],
        *,
        retired_keys: Callable[[], Sequence[bytes]] = tuple,
        is_banned: Callable[[str], bool] = lambda _peer: False,
        is_copy: Callable[[str, bytes], Awaitable[bool]] = _never,
        static: KeyPair | None = None,
        aead: Aead = ChaCha20Poly1305,
    ) -> None:
        self._aead = aead
        self._is_copy = is_copy
        self._local_peer = ID.from_pubkey(key_pair.public_key)
        static = static or create_new_x25519_key_pair()
        self._static_key = static.private_key.to_bytes()
        self._payload = identity.write_payload(key_pair, static.public_key.to_bytes())
        self._admission_keys = admission_keys
        self._retired_keys = retired_keys
        self._is_banned = is_banned

    async def secure_inbound(self, conn: IRawConnection) -> SecureConn:
        return await self._handshake(conn, None, initiator=False)

    async def secure_outbound(self, conn: IRawConnection, peer_id: ID | None) -> SecureConn:
        """`peer_id` None: whoever answers; an address without an id is dialled so."""
        return await self._handshake(conn, peer_id, initiator=True)

    async def _handshake(self, conn: IRawConnection, libp2p_id: ID | None, *, initiator: bool) -> SecureConn:
        """Raises HandshakeFailed, or what says more: AnotherPeer, TokenRefused and its kinds, PeerBanned, BannedByPeer."""
        try:
            with trio.fail_after(HANDSHAKE_TIMEOUT_S):
                noise = NoiseConnection.from_name(NOISE)
                noise.set_keypair_from_private_bytes(Keypair.STATIC, self._static_key)
                if initiator:
                    remote, run = await self._call(conn, noise, libp2p_id)
                else:
                    remote, run = await self._answer(conn, noise)
                return await self._prove(conn, noise, Session(self._local_peer, remote, initiator), run)
        except trio.TooSlowError:
            raise HandshakeFailed(f"no answer within {HANDSHAKE_TIMEOUT_S:g} s") from None
        except (NoiseHandshakeError, NoiseInvalidMessage, NoiseValueError, InvalidTag, ProtocolViolation) as error:
            raise HandshakeFailed(f"the other side does not speak it ({type(error).__name__})") from error
        except (IOException, RawConnError, ValueError, AttributeError) as error:  # AttributeError: a read of nothing
            raise HandshakeFailed("the other side hung up or sent nonsense") from error

    async def _call(self, conn: IRawConnection, noise: NoiseConnection, libp2p_id: ID | None) -> tuple[ID, bytes]:
        """The initiator's side of Noise XX; returns the peer that answers, and its run."""
        noise.set_as_initiator()
        noise.start_handshake()
        state = noise.noise_protocol.handshake_state
        await _say(conn, noise, b"")
        message = await _hear(conn, noise)
        remote, run = identity.read_payload(message, _static_key(state)), _static_key(state)
        if libp2p_id is not None and remote != libp2p_id:
            raise AnotherPeer
        await _say(conn, noise, self._payload)
        return remote, run

    async def _answer(self, conn: IRawConnection, noise: NoiseConnection) -> tuple[ID, bytes]:
        """The responder's side; returns the peer that called, and its run."""
        noise.set_as_responder()
        noise.start_handshake()
        state = noise.noise_protocol.handshake_state  # which `noise` lets go of with the last message
        await _hear(conn, noise)
        await _say(conn, noise, self._payload)
        message = await _hear(conn, noise)
        return identity.read_payload(message, _static_key(state)), _static_key(state)

    async def _prove(self, conn: IRawConnection, noise: NoiseConnection, session: Session, run: bytes) -> SecureConn:
        digest = noise.get_handshake_hash()
        protocol = noise.noise_protocol
        secured = SecureConn(
            conn,
            session,
            Sealer(protocol.cipher_state_encrypt.k, protocol.cipher_state_encrypt.n, self._aead),
            Unsealer(protocol.cipher_state_decrypt.k, protocol.cipher_state_decrypt.n, self._aead),
        )
        prove = self._offer if session.is_initiator else self._judge
        secured.digest = digest
        secured.run = run
        secured.admission_key = await prove(secured, digest, str(session.get_remote_peer()))
        return secured

    async def _offer(self, conn: SecureConn, digest: bytes, peer_id: str) -> bytes:
        """The initiator's side; returns the key that both hold."""
        if self._is_banned(peer_id):
            raise PeerBanned(f"peer {peer_id}")
        keys = self._admission_keys()[:MAX_PROOFS]
        proofs = [_proof(key, b"initiator", digest) for key in keys]
        proofs += [_proof(key, b"initiator: retired", digest) for key in self._retired_keys()[: MAX_PROOFS - len(keys)]]
        await conn.write(b"".join(proofs))
        answer = await wire.read_exactly(conn.read, PROOF_BYTES)
        for key in keys:
            if hmac.compare_digest(answer, _proof(key, b"responder", digest)):
                return key
            if key == keys[0] and hmac.compare_digest(answer, _proof(key, b"responder: retired", digest)):
                raise TokenRetired(f"peer {peer_id}")
            if hmac.compare_digest(answer, _proof(key, b"responder: banned", digest)):
                raise BannedByPeer(f"peer {peer_id}")
            if hmac.compare_digest(answer, _proof(key, b"responder: copy", digest)):
                raise IdentityCopied(f"peer {peer_id}")
        raise TokenRefused(f"peer {peer_id}")

    async def _judge(self, conn: SecureConn, digest: bytes, peer_id: str) -> bytes:
        """The responder's side; returns the key that both hold."""
        message = await wire.read_exactly(conn.read, PROOF_BYTES)
        message += b"".join(conn.pending)  # of the same record: it is not followed by another before the answer
        conn.pending.clear()
        offered = [message[at : at + PROOF_BYTES] for at in range(0, MAX_PROOFS * PROOF_BYTES, PROOF_BYTES)]
        answer = REFUSED
        outcome: HandshakeFailed = TokenRefused(f"peer {peer_id}")
        keys = self._admission_keys()
        for key in keys:
            if _holds(offered, key, b"initiator", digest):
                if self._is_banned(peer_id):
                    answer, outcome = _proof(key, b"responder: banned", digest), PeerBanned(f"peer {peer_id}")
                elif await self._is_copy(peer_id, conn.run):
                    answer, outcome = _proof(key, b"responder: copy", digest), PeerCopied(f"peer {peer_id}")
                else:
                    await conn.write(_proof(key, b"responder", digest))
                    return key
                break
            if key == keys[0] and _holds(offered, key, b"initiator: retired", digest):  # it had it, and took a newer one
                outcome = TokenRetired(f"peer {peer_id}")
        else:
            for key in self._retired_keys():
                if _holds(offered, key, b"initiator", digest):
                    answer, outcome = _proof(key, b"responder: retired", digest), TokenOutdated(f"peer {peer_id}")
                    break
        await conn.write(answer)
        raise outcome


async def _say(conn: IRawConnection, noise: NoiseConnection, payload: bytes) -> None:
    message = bytes(noise.write_message(payload))
    await conn.write(_LENGTH.pack(len(message)) + message)


async def _hear(conn: IRawConnection, noise: NoiseConnection) -> bytes:
    """The payload of the other side's next message. Raises ProtocolViolation before it reads one that is too long."""
    read = partial(_read, conn)
    (length,) = _LENGTH.unpack(await wire.read_exactly(read, _LENGTH.size))
    if length > MAX_MESSAGE_BYTES:
        raise ProtocolViolation("a message of the handshake that is too long")
    return bytes(noise.read_message(await wire.read_exactly(read, length)))


async def _read(conn: IRawConnection, n: int) -> bytes:
    if not (data := await conn.read(n)):
        raise _Ended("the peer closed the connection")
    return data


def _static_key(state: HandshakeState) -> bytes:
    """The other side's, which it has proved to hold."""
    key: bytes = state.rs.public.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return key


def _proof(key: bytes, role: bytes, digest: bytes) -> bytes:
    return hmac.digest(key, role + digest, "sha256")


def _holds(offered: Sequence[bytes], key: bytes, role: bytes, digest: bytes) -> bool:
    proof = _proof(key, role, digest)
    return any(hmac.compare_digest(one, proof) for one in offered)
