"""The handshake of a newcomer: both sides prove the invite's key, in this session and no other."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection

from federation.errors import HandshakeFailed, InviteUnknown, ProtocolViolation
from federation.net import wire
from federation.net.link.handshake import PROOF_BYTES, REFUSED, SecureConn, TokenNoise
from federation.net.link.newcomer import INVITE_ID_BYTES, MAX_HELLO_BYTES, CodeNoise, InviteNoise, Talk

INVITER, NEWCOMER = (create_new_key_pair(bytes([n]) * 32) for n in (1, 2))
ID, KEY = b"i" * INVITE_ID_BYTES, b"k" * 32


async def meet(inviter: Any, newcomer: Any) -> tuple[Any, Any]:
    """What each makes of the other: a connection, or an error."""
    streams = trio.testing.memory_stream_pair()
    found: list[Any] = [None, None]

    async def side(at: int, shake: Any, *args: Any) -> None:
        try:
            found[at] = await shake(RawConnection(TrioTCPStream(streams[at]), bool(args)), *args)
        except HandshakeFailed as error:
            found[at] = error
            await streams[at].aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(side, 0, inviter.secure_inbound)
        nursery.start_soon(side, 1, newcomer.secure_outbound, None)
    return found[0], found[1]


def inviter(keys: dict[bytes, bytes], **how: Any) -> InviteNoise:
    return InviteNoise(INVITER, key_of=keys.get, **how)


async def test_both_prove_the_code_and_talk() -> None:
    here, there = await meet(inviter({ID: KEY}), CodeNoise(NEWCOMER, ID, KEY))
    assert isinstance(here, SecureConn)
    assert isinstance(there, SecureConn)
    assert here.invite == there.invite == ID
    assert here.digest == there.digest
    assert here.get_remote_peer() == there.get_local_peer()
    await Talk(there).send("hello", "bergen", 7)
    assert await Talk(here).receive(at_most=MAX_HELLO_BYTES) == ("hello", "bergen", 7)
    await there.close()
    with pytest.raises(trio.BrokenResourceError):
        await Talk(here).receive(at_most=MAX_HELLO_BYTES)


@pytest.mark.parametrize("keys", [{}, {ID: b"x" * 32}, {b"j" * INVITE_ID_BYTES: KEY}])
async def test_a_code_that_the_inviter_does_not_know(keys: dict[bytes, bytes]) -> None:
    here, there = await meet(inviter(keys), CodeNoise(NEWCOMER, ID, KEY))
    assert isinstance(here, InviteUnknown)
    assert isinstance(there, InviteUnknown)


async def test_an_inviter_that_does_not_know_the_code_learns_nothing_and_is_not_believed() -> None:
    """It sends back what it heard."""

    class Mirror(TokenNoise):
        async def _judge(self, conn: SecureConn, digest: bytes, peer_id: str) -> bytes:
            message = await wire.read_exactly(conn.read, INVITE_ID_BYTES + PROOF_BYTES)
            assert KEY not in message
            await conn.write(message[INVITE_ID_BYTES:])
            return b""

    _, there = await meet(Mirror(INVITER, tuple), CodeNoise(NEWCOMER, ID, KEY))
    assert isinstance(there, InviteUnknown)


async def test_a_member_with_its_token_is_no_newcomer() -> None:
    here, there = await meet(inviter({ID: KEY}), TokenNoise(NEWCOMER, lambda: [KEY]))
    assert isinstance(here, HandshakeFailed)
    assert isinstance(there, HandshakeFailed)


async def test_who_was_wrong_too_often_is_not_read() -> None:
    here, there = await meet(inviter({ID: KEY}, may_try=lambda _conn: False), CodeNoise(NEWCOMER, ID, KEY))
    assert isinstance(here, HandshakeFailed)
    assert isinstance(there, HandshakeFailed)
    assert not isinstance(there, InviteUnknown)


async def test_a_refusal_tells_nothing() -> None:
    answers = []

    class Listener(CodeNoise):
        async def _offer(self, conn: SecureConn, digest: bytes, peer_id: str) -> bytes:
            await conn.write(ID + bytes(PROOF_BYTES))
            answers.append(await wire.read_exactly(conn.read, PROOF_BYTES))
            raise InviteUnknown

    for keys in ({}, {ID: KEY}):
        await meet(inviter(keys), Listener(NEWCOMER, ID, KEY))
    assert answers == [REFUSED, REFUSED]


class Bytes:
    """A connection that has these bytes and no more."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def read(self, n: int | None = None) -> bytes:
        chunk, self.data = self.data[:n], self.data[n:]
        return chunk


@given(st.binary(max_size=64))
def test_whatever_a_newcomer_sends(data: bytes) -> None:
    async def read() -> None:
        kind, text, number = await Talk(Bytes(data)).receive(at_most=MAX_HELLO_BYTES)  # type: ignore[arg-type]
        assert (type(kind), type(text)) == (str, str)
        assert isinstance(number, int)

    for given_bytes in (data, len(data).to_bytes(4, "big") + data):
        data = given_bytes
        try:
            trio.run(read)
        except (ProtocolViolation, trio.BrokenResourceError):
            continue


async def test_a_message_that_is_too_long_is_not_read() -> None:
    conn = Bytes((MAX_HELLO_BYTES + 1).to_bytes(4, "big") + b"x" * 1000)
    with pytest.raises(ProtocolViolation):
        await Talk(conn).receive(at_most=MAX_HELLO_BYTES)  # type: ignore[arg-type]
    assert len(conn.data) == 1000
