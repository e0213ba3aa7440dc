"""The handshake with a newcomer: Noise XX as between members, then a proof of an invite's key instead of the token's.

The newcomer, who is the initiator, sends the invite's id and HMAC-SHA256(invite's key, "newcomer" || handshake hash); the
node that made the invite answers with HMAC(key, "inviter" || hash), or with zeros if it does not know it. So each side knows
that the other one has the code, and the proofs are bound to this very session: nobody in between can use or pass them on.

It is a security protocol of its own. A member never offers it to another member, and an older node refuses it at once.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

import trio
from libp2p.io.exceptions import IOException
from libp2p.network.connection.exceptions import RawConnError

from federation.errors import HandshakeFailed, InviteUnknown
from federation.net import wire
from federation.net.link.handshake import PROOF_BYTES, REFUSED, SecureConn, TokenNoise

if TYPE_CHECKING:
    from collections.abc import Callable

    from libp2p.abc import IRawConnection
    from libp2p.crypto.keys import KeyPair

PROTOCOL_ID = "/federation/invite/1"
INVITE_ID_BYTES = 16
MAX_NEWCOMER_BYTES = 4096  # from a newcomer behind its proof; ours send below 200
# A message is one row of three plain values: its kind, a text, a number. A side passes over kinds that it does not know.
MAX_MESSAGE_BYTES = 16384  # from the inviter: the token
MAX_HELLO_BYTES = 512
_NOBODYS_KEY = bytes(32)


class InviteNoise(TokenNoise):
    """The inviter's side: `key_of` gives the key of an invite's id, `may_try` says whether this remote may try a code."""

    def __init__(
        self,
        key_pair: KeyPair,
        *,
        key_of: Callable[[bytes], bytes | None],
        may_try: Callable[[IRawConnection], bool] = lambda _conn: True,
        static: KeyPair | None = None,
    ) -> None:
        super().__init__(key_pair, tuple, static=static)
        self._key_of = key_of
        self._may_try = may_try

    async def secure_inbound(self, conn: IRawConnection) -> SecureConn:
        if not self._may_try(conn):
            raise HandshakeFailed("too many wrong invite codes from there")
        return await super().secure_inbound(conn)

    async def _judge(self, conn: SecureConn, digest: bytes, peer_id: str) -> bytes:
        message = await wire.read_exactly(conn.read, INVITE_ID_BYTES + PROOF_BYTES)
        invite_id, proof = message[:INVITE_ID_BYTES], message[INVITE_ID_BYTES:]
        key = self._key_of(invite_id)
        is_right = hmac.compare_digest(proof, _proof(key or _NOBODYS_KEY, b"newcomer", digest))
        if key is None or not is_right:
            await conn.write(REFUSED)
            raise InviteUnknown(f"peer {peer_id}")
        await conn.write(_proof(key, b"inviter", digest))
        conn.invite = invite_id
        return invite_id


class CodeNoise(TokenNoise):
    """The newcomer's side, with the id and the key of its code."""

    def __init__(self, key_pair: KeyPair, invite_id: bytes, key: bytes) -> None:
        super().__init__(key_pair, tuple)
        self._invite_id = invite_id
        self._key = key

    async def _offer(self, conn: SecureConn, digest: bytes, peer_id: str) -> bytes:
        await conn.write(self._invite_id + _proof(self._key, b"newcomer", digest))
        answer = await wire.read_exactly(conn.read, PROOF_BYTES)
        if not hmac.compare_digest(answer, _proof(self._key, b"inviter", digest)):
            raise InviteUnknown
        conn.invite = self._invite_id
        return self._invite_id


class Talk:
    """Messages over a connection behind this handshake. A connection that ends raises BrokenResourceError."""

    def __init__(self, conn: SecureConn) -> None:
        self._conn = conn

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            return await self._conn.read(max_bytes)
        except (IOException, RawConnError, HandshakeFailed) as error:  # the last: more than its ration
            raise trio.BrokenResourceError(str(error)) from error

    async def send(self, kind: str, text: str = "", number: int = 0) -> None:
        try:
            await self._conn.write(wire.packed([[kind, text, number]]))
        except (IOException, RawConnError) as error:
            raise trio.BrokenResourceError(str(error)) from error

    async def receive(self, *, at_most: int) -> tuple[str, str, int]:
        """The next message. Raises ProtocolViolation, whatever the bytes, and BrokenResourceError at the end."""
        rows = await wire.receive_rows(self, at_most=at_most, rows=1, fields=3)
        kind, text, number = rows[0] if rows else ("", "", 0)
        return (
            kind if isinstance(kind, str) else "",
            text if isinstance(text, str) else "",
            number if isinstance(number, int) else 0,
        )


def _proof(key: bytes, role: bytes, digest: bytes) -> bytes:
    return hmac.digest(key, b"invite " + role + digest, "sha256")
