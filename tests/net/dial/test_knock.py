"""A newcomer's call: what it says of whatever answers, and that nothing stays open."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from federation.errors import HandshakeFailed, InviteUnknown, PeerUnavailable
from federation.net.dial import knock as module
from federation.net.dial.address import PeerAddress
from federation.net.dial.knock import hang_up, knock
from tests.support.inviters import Newcomer, inviting

if TYPE_CHECKING:
    from pathlib import Path


async def test_both_sides_know_whom_they_met(tmp_path: Path) -> None:
    async with inviting(tmp_path) as inviter:
        code = await inviter.invite()
        conn = await knock(inviter.peer.address, seed=Newcomer(2).seed, invite_id=code.id, key=code.key)
        assert str(conn.get_remote_peer()) == inviter.peer.id
        assert str(conn.get_local_peer()) == Newcomer(2).id
        await hang_up(conn)
        with pytest.raises(InviteUnknown):
            await knock(inviter.peer.address, seed=Newcomer(2).seed, invite_id=code.id, key=bytes(32))


async def test_a_port_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_S", 0.05)
    ended = trio.Event()

    async def hush(stream: trio.SocketStream) -> None:
        async with stream:
            while await stream.receive_some(4096):
                pass
        ended.set()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, hush, 0, host="127.0.0.1"))
        address = PeerAddress("127.0.0.1", listener.socket.getsockname()[1])
        with pytest.raises((PeerUnavailable, HandshakeFailed)):
            await knock(address, seed=bytes(32), invite_id=bytes(16), key=bytes(32))
        with trio.fail_after(20):
            await ended.wait()
        nursery.cancel_scope.cancel()


async def test_a_name_that_nobody_has() -> None:
    with pytest.raises(PeerUnavailable):
        await knock(PeerAddress("nobody.invalid", 1), seed=bytes(32), invite_id=bytes(16), key=bytes(32))
