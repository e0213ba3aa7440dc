"""What a newcomer does where its call leads nowhere. What it does with an inviter is in test_newcomers.py."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, get_args

import pytest
import trio

from federation.errors import InviterUnreachable, InviteTooNew, InviteUnknown
from federation.mesh import redeeming
from federation.mesh.invite_codes import InviteCode
from federation.mesh.invites import Refusal
from federation.net.dial import knock
from federation.net.dial.address import PeerAddress
from federation.net.link import newcomer as protocol
from tests.support.inviters import TOKEN, Newcomer, inviting
from tests.support.links import until

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAUSE_S", "AGAIN_S"):
        monkeypatch.setattr(redeeming, name, 0.01)


async def closed_port() -> PeerAddress:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    return PeerAddress("127.0.0.1", port)


async def test_nobody_answers() -> None:
    code = InviteCode.new(1000, (await closed_port(), await closed_port()))
    error = (await Newcomer(2).come(code, now_s=999)).error
    assert isinstance(error, InviterUnreachable)
    assert all(f"127.0.0.1:{address.port}" in str(error) for address in code.addresses)
    assert "has to run" in str(error)
    assert "has expired anyway" in str((await Newcomer(2).come(code, now_s=1000)).error)
    assert "holds no address" in str((await Newcomer(2).come(replace(code, addresses=()))).error)


async def test_the_address_that_answers_is_enough(tmp_path: Path) -> None:
    async with inviting(tmp_path) as inviter:
        code = await inviter.invite()
        several = replace(code, addresses=(await closed_port(), *code.addresses, *code.addresses))
        assert (await Newcomer(2).come(several)).token == TOKEN
        assert len(inviter.row(code).used) == 1


async def test_another_node_there_does_not_hide_the_right_one(tmp_path: Path) -> None:
    async with inviting(tmp_path / "a") as right, inviting(tmp_path / "b") as other:
        code = await right.invite()
        both = replace(code, addresses=(other.peer.address, *code.addresses))
        assert (await Newcomer(2).come(both)).token == TOKEN
        only_other = replace(code, addresses=(other.peer.address,))
        assert isinstance((await Newcomer(3).come(only_other)).error, InviteUnknown)


async def test_an_older_version_is_named_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with inviting(tmp_path) as inviter:
        code = await inviter.invite()
        monkeypatch.setattr(knock.newcomer, "PROTOCOL_ID", "/federation/invite/0")
        assert isinstance((await Newcomer(2).come(code)).error, InviteTooNew)


@pytest.mark.parametrize("says", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"\x13/multistream/1.0.0\n\xff\xff\xff\xff\xff\x0f"])
async def test_another_program_answers(says: bytes) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(says)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        code = InviteCode.new(0, (PeerAddress("127.0.0.1", listener.socket.getsockname()[1]),))
        error = (await Newcomer(2).come(code)).error
        assert isinstance(error, InviterUnreachable | InviteTooNew), repr(error)
        nursery.cancel_scope.cancel()


async def test_it_gives_up_on_an_inviter_that_went_away_when_the_code_has_expired(tmp_path: Path) -> None:
    newcomer = Newcomer(2)
    async with inviting(tmp_path) as inviter, trio.open_nursery() as nursery:
        code = await inviter.invite(approve=True)
        late = float(code.expires_at)

        async def come() -> None:
            await newcomer.come(code, now_s=late)

        nursery.start_soon(come)
        await until(lambda: newcomer.id in inviter.door.waiting)
        await inviter.peer.host.stop_listening()
        inviter.door.waiting[newcomer.id].scope.cancel()
        await newcomer.over.wait()
    assert "has expired meanwhile" in str(newcomer.error)


async def test_reasons_of_a_newer_inviter_are_shown_harmless(tmp_path: Path) -> None:
    async with inviting(tmp_path) as inviter:
        code = await inviter.invite()
        newcomer = Newcomer(2)
        inviter.barred[newcomer.id] = "full\x1b[31m moon"  # type: ignore[assignment]
        await newcomer.come(code)
        assert "says: full?[31m moon" in str(newcomer.error)


def test_every_reason_has_words() -> None:
    assert set(get_args(Refusal)) == {*redeeming.REASONS, redeeming._AGAIN}
    assert 4 * len(TOKEN.encode()) < protocol.MAX_MESSAGE_BYTES
