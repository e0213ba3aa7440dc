"""Newcomers at the node that made their invite, over real connections: who gets the token, who does not, and what stays."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
import trio

from federation.errors import InviteRefused, InviteUnknown, NotDone, NotFound, StateDirUnusable, TokenTooNew
from federation.mesh import newcomers, redeeming
from federation.mesh.invite_codes import InviteCode
from federation.mesh.newcomers import MAX_WAITING_BY_ONE
from federation.net.admission.guesses import WRONG_AT_ONCE
from federation.net.dial.knock import hang_up, knock
from federation.net.link.newcomer import MAX_MESSAGE_BYTES, MAX_NEWCOMER_BYTES, Talk
from tests.support.inviters import TOKEN, Inviter, Newcomer, inviting
from tests.support.links import until
from tests.support.secret_parts import found_in, of_token

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from federation.net.link.handshake import SecureConn


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redeeming, "AGAIN_S", 0.05)
    monkeypatch.setattr(newcomers, "SAY_EVERY_S", 0.05)


@asynccontextmanager
async def knocked(inviter: Inviter, code: InviteCode, newcomer: Newcomer) -> AsyncIterator[SecureConn]:
    """A newcomer's connection behind the proof, for a test to say what it likes."""
    conn = await knock(inviter.peer.address, seed=newcomer.seed, invite_id=code.id, key=code.key)
    try:
        yield conn
    finally:
        await hang_up(conn)


async def heard(talk: Talk) -> tuple[str, str, int]:
    with trio.fail_after(20):
        return await talk.receive(at_most=MAX_MESSAGE_BYTES)


def on_disk(inviter: Inviter) -> dict[str, Any]:
    rows: list[dict[str, Any]] = json.loads((inviter.state.path / "invites.json").read_text())["rows"]
    return rows[-1]


async def test_the_token_is_handed_over_once(tmp_path: Path) -> None:
    async with inviting(tmp_path) as inviter:
        code = await inviter.invite()
        first = await Newcomer(2).come(code)
        assert (first.token, first.error) == (TOKEN, None)
        await until(lambda: inviter.row(code).state(inviter.door.now_ms) == "used")
        await until(lambda: list(on_disk(inviter)["used"]) == [first.id] and on_disk(inviter)["used"][first.id][2])
        second = await Newcomer(3).come(code)
        assert second.token is None
        assert isinstance(second.error, InviteRefused)
        assert "used as often as it may be" in str(second.error)
        assert "used this invite already" in str((await Newcomer(2).come(code)).error)
        assert not inviter.peer.host.links, "no link comes of it"


async def test_of_newcomers_that_race_one_gets_it(tmp_path: Path) -> None:
    async with inviting(tmp_path) as inviter:
        for _ in range(3):
            code = await inviter.invite()
            racers = [Newcomer(n) for n in range(2, 10)]
            async with trio.open_nursery() as nursery:
                for racer in racers:
                    nursery.start_soon(racer.come, code)
            assert sum(racer.token == TOKEN for racer in racers) == 1
            assert sum("used as often" in str(racer.error) for racer in racers) == 7
            assert len(inviter.row(code).used) == 1


async def test_the_use_is_on_the_disk_before_the_token_leaves(tmp_path: Path) -> None:
    async with inviting(tmp_path) as inviter:
        code = await inviter.invite()
        newcomer, seen = Newcomer(2), []
        real = inviter.door._token

        def token() -> str:
            seen.append(list(on_disk(inviter)["used"]))
            return real()

        inviter.door._token = token
        await newcomer.come(code)
        assert seen == [[newcomer.id]]


@pytest.mark.parametrize("last", ["hello", "ready"])
async def test_a_use_is_not_burnt_by_a_newcomer_that_goes_before_the_token(tmp_path: Path, last: str) -> None:
    async with inviting(tmp_path) as inviter:
        code = await inviter.invite()
        async with knocked(inviter, code, Newcomer(2)) as conn:
            talk = Talk(conn)
            await talk.send("hello", "quitter")
            if last == "ready":
                assert (await heard(talk))[0] == "go"
        assert (await Newcomer(3).come(code)).token == TOKEN


async def test_a_token_that_was_sent_and_not_confirmed_is_for_the_same_machine_alone(tmp_path: Path) -> None:
    async with inviting(tmp_path) as inviter:
        code = await inviter.invite()
        broken = Newcomer(2)

        def full_disk(_token: object) -> None:
            raise StateDirUnusable("full")

        broken.keep = full_disk
        assert isinstance((await broken.come(code)).error, StateDirUnusable)
        assert list(inviter.row(code).used) == [broken.id]
        assert not inviter.row(code).used[broken.id].confirmed
        inviter.restart()
        assert "used as often" in str((await Newcomer(3).come(code)).error)
        again = await Newcomer(2).come(code)
        assert again.token == TOKEN
        await until(lambda: inviter.row(code).used[broken.id].confirmed)


async def test_who_never_confirms_does_not_get_the_tokens_of_later_rotations(tmp_path: Path) -> None:
    async with inviting(tmp_path) as inviter:
        code = await inviter.invite(lifetime_s=86400)
        silent = Newcomer(2)

        def full_disk(_token: object) -> None:
            raise StateDirUnusable("full")

        silent.keep = full_disk
        await silent.come(code)
        inviter.later(601)
        inviter.token = TOKEN.rotated()
        again = await Newcomer(2).come(code)
        assert (again.token, str(again.error).partition(";")[0]) == (None, "this machine has used this invite already")


async def test_a_member_has_the_token_whatever_became_of_its_confirmation(tmp_path: Path) -> None:
    async with inviting(tmp_path) as inviter:
        code = await inviter.invite()
        inviter.door.invites.take(inviter.row(code), "12D3KooW" + "a" * 44, "a", 1)

        class Link:
            peer_id = "12D3KooW" + "a" * 44

        inviter.door.peer_up(Link())  # type: ignore[arg-type]
        assert inviter.row(code).state(inviter.door.now_ms) == "used"
        await until(lambda: on_disk(inviter)["used"].get(Link.peer_id, [0, 0, False])[2])


async def test_an_inviter_that_cannot_write_lets_nobody_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with inviting(tmp_path) as inviter:
        code = await inviter.invite()

        def full(*_: object) -> None:
            raise StateDirUnusable("full")

        with monkeypatch.context() as patch:
            patch.setattr(inviter.state, "save_invites", full)
            assert "cannot write to its disk" in str((await Newcomer(2).come(code)).error)
            with pytest.raises(StateDirUnusable):
                await inviter.invite()
            assert [invite.id for invite in inviter.door.invites] == [code.id]
        assert (await Newcomer(3).come(code)).token == TOKEN, "nothing was burnt"


async def test_expiry_revocation_and_a_restart(tmp_path: Path) -> None:
    async with inviting(tmp_path) as inviter:
        brief, long, gone = [await inviter.invite(lifetime_s=s) for s in (60, 3600, 3600)]
        await inviter.door.revoke(gone.id.hex()[:8])
        inviter.later(61)
        inviter.restart()
        for code, why in ((brief, "expired"), (gone, "revoked")):
            newcomer = await Newcomer(2).come(code)
            assert newcomer.token is None
            assert why in str(newcomer.error)
        assert (await Newcomer(2).come(long)).token == TOKEN
        with pytest.raises(NotDone, match="revoked"):
            await inviter.door.revoke(gone.id.hex())


async def test_the_present_token_is_handed_over_not_that_of_the_day_of_the_invite(tmp_path: Path) -> None:
    async with inviting(tmp_path) as inviter:
        code = await inviter.invite()
        inviter.token = TOKEN.rotated()
        assert (await Newcomer(2).come(code)).token == inviter.token


@pytest.mark.parametrize(("why", "said"), [("banned", "has banned"), ("left out", "last rotation"), ("copy", "copy of")])
async def test_who_is_barred_gets_nothing(tmp_path: Path, why: Any, said: str) -> None:
    async with inviting(tmp_path) as inviter:
        code = await inviter.invite()
        inviter.barred[Newcomer(2).id] = why
        newcomer = await Newcomer(2).come(code)
        assert newcomer.token is None
        assert said in str(newcomer.error)
        assert inviter.row(code).used == {}


async def test_a_wrong_code_is_refused_and_paid_for(tmp_path: Path) -> None:
    async with inviting(tmp_path) as inviter:
        right = await inviter.invite()
        for _ in range(int(WRONG_AT_ONCE)):
            wrong = InviteCode.new(0, (inviter.peer.address,))
            assert isinstance((await Newcomer(2).come(wrong)).error, InviteUnknown)
        assert inviter.peer.host.rejected["wrong invite"] == WRONG_AT_ONCE
        newcomer = await Newcomer(3).come(right)
        assert newcomer.token is None, "for a while nobody from that address is heard"
        assert "hung up" in str(newcomer.error)
        assert "after several wrong codes it answers nobody of that address for half a minute" in str(newcomer.error)


async def test_a_made_up_token_from_the_inviter_is_not_kept(tmp_path: Path) -> None:
    async with inviting(tmp_path) as inviter:
        code = await inviter.invite()
        inviter.door._token = lambda: "fed4_newer"
        newcomer = await Newcomer(2).come(code)
        assert isinstance(newcomer.error, TokenTooNew)
        assert not inviter.row(code).used[newcomer.id].confirmed


# Somebody's yes


async def waiting(inviter: Inviter, *newcomers: Newcomer) -> None:
    await until(lambda: set(inviter.door.waiting) == {newcomer.id for newcomer in newcomers})


async def test_a_newcomer_waits_for_a_yes(tmp_path: Path) -> None:
    async with inviting(tmp_path) as inviter, trio.open_nursery() as nursery:
        code = await inviter.invite(uses=2, approve=True)
        yes, no = Newcomer(2), Newcomer(3)
        for newcomer in (yes, no):
            nursery.start_soon(newcomer.come, code)
        await waiting(inviter, yes, no)
        await until(lambda: len(yes.waited_for) > 2)
        assert set(yes.waited_for) == {"ada"}
        row = inviter.door.waiting[yes.id]
        assert (row.name, row.address.split(":")[0], row.peer_id) == ("machine2", "127.0.0.1", yes.id)
        for nobody in ("machine4", Newcomer(4).id):
            with pytest.raises(NotFound):
                await inviter.door.approve(nobody)
        await inviter.door.approve("machine2")
        await inviter.door.refuse(no.id)
        for newcomer in (yes, no):
            await newcomer.over.wait()
        assert yes.token == TOKEN
        assert "said no" in str(no.error)
        assert "said no" in str((await Newcomer(3).come(code)).error), "the same answer whenever it comes again"
        assert inviter.door.waiting == {}
        assert (await inviter.door.revoke("all"))[0].used[yes.id].name == "machine2"


async def test_the_last_use_goes_to_whom_a_person_said_yes_first(tmp_path: Path) -> None:
    async with inviting(tmp_path) as inviter, trio.open_nursery() as nursery:
        code = await inviter.invite(approve=True)
        first, second = Newcomer(2), Newcomer(3)
        for newcomer in (first, second):
            nursery.start_soon(newcomer.come, code)
        await waiting(inviter, first, second)
        await inviter.door.approve(first.id)
        await first.over.wait()
        await second.over.wait()
        assert first.token == TOKEN
        assert "used as often" in str(second.error), "it does not wait for what cannot come"


async def test_who_goes_away_waits_no_more_and_burns_nothing(tmp_path: Path) -> None:
    async with inviting(tmp_path) as inviter:
        code = await inviter.invite(approve=True)
        gone = Newcomer(2)
        async with knocked(inviter, code, gone) as conn:
            await Talk(conn).send("hello", "gone")
            await waiting(inviter, gone)
        await waiting(inviter)
        assert inviter.row(code).used == {}


async def test_the_same_machine_that_comes_again_waits_once(tmp_path: Path) -> None:
    async with inviting(tmp_path) as inviter, trio.open_nursery() as nursery:
        code = await inviter.invite(approve=True)
        async with knocked(inviter, code, Newcomer(2)) as stale:
            await Talk(stale).send("hello", "first")
            await until(lambda: len(inviter.door.waiting) == 1)
            again = Newcomer(2)
            nursery.start_soon(again.come, code)
            await until(lambda: [one.name for one in inviter.door.waiting.values()] == ["machine2"])
            await inviter.door.approve(again.id)
            await again.over.wait()
            assert again.token == TOKEN


async def test_a_yes_holds_over_a_restart_and_so_does_the_waiting(tmp_path: Path) -> None:
    async with inviting(tmp_path) as inviter, trio.open_nursery() as nursery:
        code = await inviter.invite(approve=True)
        newcomer = Newcomer(2)
        nursery.start_soon(newcomer.come, code)
        await waiting(inviter, newcomer)
        old = inviter.door
        inviter.restart()
        old.waiting[newcomer.id].scope.cancel()  # its process has ended
        await waiting(inviter, newcomer)
        assert newcomer.breaks == 1
        inviter.door.waiting[newcomer.id].invite.approved.append(newcomer.id)
        await inviter.door._save()
        inviter.restart()
        assert not inviter.row(code).needs_yes(newcomer.id)
        assert (await Newcomer(2).come(code)).token == TOKEN
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("end", ["expired", "revoked", "banned"])
async def test_whoever_waits_hears_of_the_end(tmp_path: Path, end: str) -> None:
    async with inviting(tmp_path) as inviter, trio.open_nursery() as nursery:
        code = await inviter.invite(approve=True, lifetime_s=600)
        newcomer = Newcomer(2)
        nursery.start_soon(newcomer.come, code)
        await waiting(inviter, newcomer)
        if end == "revoked":
            await inviter.door.revoke("all")
        elif end == "banned":
            inviter.barred[newcomer.id] = "banned"
        else:
            inviter.later(601)
        await newcomer.over.wait()
        assert end in str(newcomer.error)


async def test_so_many_may_wait_and_the_next_tries_again(tmp_path: Path) -> None:
    async with inviting(tmp_path) as inviter, trio.open_nursery() as nursery:
        code = await inviter.invite(approve=True, uses=20)
        crowd = [Newcomer(n) for n in range(2, 2 + MAX_WAITING_BY_ONE)]
        for newcomer in crowd:
            nursery.start_soon(newcomer.come, code)
        await waiting(inviter, *crowd)
        late = Newcomer(99)
        nursery.start_soon(late.come, code)
        await until(lambda: late.breaks > 1)
        await inviter.door.approve(crowd[0].id)
        await until(lambda: late.id in inviter.door.waiting)
        nursery.cancel_scope.cancel()


async def test_a_crowd_that_is_refused_ends_the_invite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newcomers, "MAX_REFUSED", 2)
    async with inviting(tmp_path) as inviter, trio.open_nursery() as nursery:
        code = await inviter.invite(approve=True)
        for n in (2, 3):
            newcomer = Newcomer(n)
            nursery.start_soon(newcomer.come, code)
            await waiting(inviter, newcomer)
            await inviter.door.refuse(newcomer.id)
            await newcomer.over.wait()
        assert inviter.row(code).state(inviter.door.now_ms) == "revoked"


# What a holder of a code sends


def message(value: object) -> bytes:
    data = msgpack.packb(value)
    return len(data).to_bytes(4, "big") + data


@pytest.mark.parametrize(
    "sent",
    [
        b"\xff\xff\xff\xff", message([["hello"]]), message({}), message([]), message([["ready", "", 0]]),
        b"\x00\x00\x00\x03xyz",
        message([["hello", [[]] * 50, 0]]), message([["hello", "n", 0]] * 2),
    ],
    ids=range(8),
)  # fmt: skip
async def test_nonsense_is_the_end_of_its_own_connection(tmp_path: Path, sent: bytes) -> None:
    async with inviting(tmp_path) as inviter:
        code = await inviter.invite()
        async with knocked(inviter, code, Newcomer(2)) as conn:
            await conn.write(sent)
            with pytest.raises(trio.BrokenResourceError):
                await heard(Talk(conn))
        assert (await Newcomer(3).come(code)).token == TOKEN


async def test_more_bytes_than_a_newcomer_has_to_say_are_not_read(tmp_path: Path) -> None:
    async with inviting(tmp_path) as inviter:
        code = await inviter.invite()
        async with knocked(inviter, code, Newcomer(2)) as conn:
            talk = Talk(conn)
            await talk.send("hello", "flood")
            assert (await heard(talk))[0] == "go"
            with pytest.raises(trio.BrokenResourceError):
                for _ in range(10 * MAX_NEWCOMER_BYTES // 100):
                    await talk.send("unknown", "x" * 60)
                while True:
                    await heard(talk)
        assert inviter.row(code).used == {}


async def test_kinds_that_this_version_does_not_know_are_passed_over(tmp_path: Path) -> None:
    async with inviting(tmp_path) as inviter:
        code = await inviter.invite()
        async with knocked(inviter, code, Newcomer(2)) as conn:
            talk = Talk(conn)
            await talk.send("hello", "n\x1b[31m\u202eame" + "x" * 100, 2)
            assert (await heard(talk))[0] == "go"
            await talk.send("later", "?", 9)
            await talk.send("ready")
            kind, text, _ = await heard(talk)
            assert (kind, text) == ("token", TOKEN.encode())
            await talk.send("later")
            await talk.send("kept")
        await until(lambda: inviter.row(code).state(inviter.door.now_ms) == "used")
        (use,) = inviter.row(code).used.values()
        assert use.name.isprintable()
        assert len(use.name) <= 64


async def test_no_secret_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: Any) -> None:
    async with inviting(tmp_path) as inviter:
        code = await inviter.invite()
        await Newcomer(2).come(code)
        await Newcomer(3).come(code)
        said = caplog.text + "".join(capsys.readouterr()) + repr(inviter.row(code)) + repr(code)
    secrets = {**of_token(TOKEN), "the code": code.encode()[7:30], "its secret": code.secret, "its key": code.key}
    assert found_in(said, secrets) == []
    assert "was given the network's token" in said


async def test_a_damaged_file_is_as_if_there_were_no_invites(tmp_path: Path) -> None:
    async with inviting(tmp_path) as inviter:
        code = await inviter.invite()
        (inviter.state.path / "invites.json").write_text(json.dumps({"network": TOKEN.network_id, "rows": [{"id": 5}]}))
        inviter.restart()
        assert isinstance((await Newcomer(2).come(code)).error, InviteUnknown)
        assert (await Newcomer(2).come(await inviter.invite())).token == TOKEN
