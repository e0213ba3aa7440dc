"""Rotation without a network: hosts in memory, trio's clock jumps, real state directories."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from federation.errors import NotDone, PeerUnavailable, StateDirUnusable
from federation.mesh.keyring import Keyring
from federation.mesh.owner import MAX_ORDER_BYTES, OwnerKey, order_of
from federation.mesh.rotation import (
    HEARINGS_AT_ONCE,
    LOOK_AGAIN_S,
    MAX_AHEAD,
    PREPARED_S,
    ROTATED_AT_ONCE,
    TAKEN_AT_ONCE,
    TELL_AGAIN_S,
    TELL_TIMEOUT_S,
    UNTOLD_STAY_S,
    Prepared,
    Rotation,
)
from federation.mesh.tokens import Token
from federation.state import StateDir

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
KEY, EVE = OwnerKey(b"o" * 32), OwnerKey(b"e" * 32)
FIRST = Token(b"f" * 32, "lab", owner=KEY.public)
HOUR = timedelta(hours=1)
NO_GRACE = timedelta(0)


@dataclass
class FakeLink:
    peer_id: str
    admission_key: bytes


@dataclass
class FakeHost:
    """`silent`: peers to whom no stream opens. What is `cut` is gone here and there."""

    name: str
    net: dict[str, Member]
    links: dict[str, FakeLink] = field(default_factory=dict)
    cuts: list[str] = field(default_factory=list)
    silent: set[str] = field(default_factory=set)
    offences: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    handler: Callable[..., Any] | None = None
    protocol: str = ""

    @property
    def peer_id(self) -> str:
        return self.name

    def knows(self, link: FakeLink) -> bool:
        return self.links.get(link.peer_id) is link

    def report_violation(self, peer_id: str, what: str) -> None:
        self.offences.append((peer_id, what))
        self.cut(peer_id, what)

    def warn(self, event: str, _where: str, _every_s: float | None = None) -> None:
        self.warnings.append(event)

    def handle_stream(self, protocol: str, handler: Callable[..., Any]) -> None:
        self.handler, self.protocol = handler, protocol

    async def open_stream(self, peer_id: str, _protocol: str) -> trio.abc.HalfCloseableStream:
        await trio.lowlevel.checkpoint()
        if peer_id not in self.links or peer_id in self.silent:
            raise PeerUnavailable("no connection to it")
        ours, theirs = trio.testing.memory_stream_pair()
        other = self.net[peer_id]
        ours.link = self.links[peer_id]  # type: ignore[attr-defined]
        other.nursery.start_soon(other.host.handler, other.host.links[self.name], theirs)
        return ours

    def cut(self, peer_id: str, _reason: str) -> None:
        if self.links.pop(peer_id, None) is not None:
            self.cuts.append(peer_id)
            self.net[peer_id].host.links.pop(self.name, None)


async def told(teller: Member, peer_id: str, data: bytes) -> bytes:
    stream = await teller.host.open_stream(peer_id, "")
    answer = b""
    with suppress(trio.BrokenResourceError), trio.move_on_after(1):
        await stream.send_all(data)
        await stream.send_eof()
        while chunk := await stream.receive_some():
            answer += chunk
    await trio.testing.wait_all_tasks_blocked()
    return answer


class Member:
    def __init__(self, name: str, net: dict[str, Member], directory: Path, nursery: trio.Nursery) -> None:
        self.name = name
        self.nursery = nursery
        self.host = FakeHost(name, net)
        self.state = StateDir(directory / name)
        self.state.lock()
        self.changes = 0
        self.asleep = NO_GRACE
        self.start()
        self.state.save_token(self.rotation.keyring.token.encode())
        net[name] = self

    def start(self) -> None:
        """Also what a restart makes of what is kept."""
        text = self.state.load_token()
        token = FIRST if text is None else Token.decode(text)
        self.rotation = Rotation(
            host=self.host, keyring=Keyring.from_saved(token, self.state.load_rotation()), state=self.state,
            utc_now=lambda: START + self.asleep + timedelta(seconds=trio.current_time()), on_change=self._changed,
        )  # fmt: skip

    def _changed(self) -> None:
        self.changes += 1

    @property
    def token(self) -> Token:
        return self.rotation.keyring.token

    def admits(self, other: Member) -> bool:
        """Whether the two would come through a handshake."""
        return bool(set(self.rotation.valid_keys()) & set(other.rotation.valid_keys()))

    async def rotates(self, *members: str, grace: timedelta = HOUR) -> list[str]:
        prepared = self.rotation.prepare(grace=grace, members=members)
        return await self.rotation.carry_out(prepared, KEY.sign(prepared.order.encode()))

    async def hears(self, peer_id: str, data: bytes) -> bytes:
        """What `peer_id`, another member, gets for an answer."""
        return await told(self.host.net[peer_id], self.name, data)


@dataclass
class Net:
    members: dict[str, Member]

    def __getattr__(self, name: str) -> Member:
        return self.members[name]

    def link(self, *names: str) -> None:
        """All with all; with the newest key that both have."""
        for name in names:
            for other in names:
                if name != other:
                    one, two = self.members[name], self.members[other]
                    key = next(key for key in one.rotation.valid_keys() if key in two.rotation.valid_keys())
                    one.host.links[other] = FakeLink(other, key)
        for name in names:
            for other in names:
                if name != other:
                    self.members[name].rotation.peer_up(self.members[name].host.links[other])  # type: ignore[arg-type]

    def have(self, token: Token) -> str:
        return "".join(sorted(name for name, member in self.members.items() if member.token.secret == token.secret))


@asynccontextmanager
async def network(directory: Path, names: str) -> AsyncIterator[Net]:
    async with trio.open_nursery() as nursery:
        members: dict[str, Member] = {}
        for name in names:
            Member(name, members, directory, nursery)
        for member in members.values():
            nursery.start_soon(member.rotation.run)
        yield Net(members)
        nursery.cancel_scope.cancel()
    for member in members.values():
        member.state.unlock()


@pytest.fixture
def clock(autojump_clock: trio.testing.MockClock, on_thread: list[str]) -> trio.testing.MockClock:
    return autojump_clock


async def test_all_that_are_linked_have_it_at_once_and_the_former_key_admits_for_the_grace(
    clock: Any, tmp_path: Path
) -> None:
    async with network(tmp_path, "abc") as net:
        net.link("a", "b", "c")
        assert await net.a.rotates("a", "b", "c") == []
        assert trio.current_time() == 0
        assert net.have(net.a.token) == "abc"
        assert net.a.token.supersedes(FIRST)
        assert (net.a.changes, net.b.changes) == (1, 1)
        await trio.sleep(HOUR.total_seconds() - 1)
        assert net.b.rotation.valid_keys() == [net.a.token.admission_key(), FIRST.admission_key()]
        await trio.sleep(2)
        for member in net.members.values():
            assert member.rotation.valid_keys() == [net.a.token.admission_key()]
            assert member.rotation.retired_keys() == [FIRST.admission_key()]
            assert member.host.cuts == []


async def test_it_is_passed_on_to_whom_the_first_does_not_know(clock: Any, tmp_path: Path) -> None:
    async with network(tmp_path, "abcd") as net:
        for pair in ("ab", "bc", "cd"):
            net.link(*pair)
        await net.a.rotates("a", "b", "c", "d", grace=NO_GRACE)
        await trio.sleep(1)
        assert net.have(net.a.token) == "abcd"
        await trio.sleep(2 * UNTOLD_STAY_S)
        assert all(member.host.cuts == [] for member in net.members.values())


async def test_who_is_left_out_is_told_by_nobody_and_cut_off_by_all_at_the_end(clock: Any, tmp_path: Path) -> None:
    async with network(tmp_path, "abx") as net:
        net.link("a", "b", "x")
        await net.a.rotates("a", "b")
        await trio.sleep(60)
        assert net.x.token == FIRST
        assert net.a.rotation.left_out() == net.b.rotation.left_out() == ["x"]
        assert net.a.rotation.untold() == []
        assert set(net.x.host.links) == {"a", "b"}
        assert net.a.admits(net.x)
        await trio.sleep(HOUR.total_seconds())
        assert net.x.host.links == {}
        assert (net.a.host.cuts, net.b.host.cuts) == (["x"], ["x"])
        assert not net.a.admits(net.x)


async def test_without_a_grace_it_is_cut_off_at_once(clock: Any, tmp_path: Path) -> None:
    async with network(tmp_path, "abx") as net:
        net.link("a", "b", "x")
        await net.a.rotates("a", "b", grace=NO_GRACE)
        await trio.testing.wait_all_tasks_blocked()
        assert trio.current_time() == 0
        assert net.x.host.links == {}
        assert set(net.a.host.links) == {"b"}


async def test_a_new_name_with_the_former_token_is_not_told_either(clock: Any, tmp_path: Path) -> None:
    """It may be the one that is left out."""
    async with network(tmp_path, "abx") as net:
        net.link("a", "b")
        await net.a.rotates("a", "b")
        with capture_logs() as logs:
            net.link("a", "x")
        assert [entry["peer"] for entry in logs if "not told" in entry["event"]] == ["x"]
        await trio.sleep(60)
        assert net.x.token == FIRST


async def test_who_comes_back_within_the_grace_is_told_by_whomever_it_meets(clock: Any, tmp_path: Path) -> None:
    async with network(tmp_path, "abc") as net:
        net.link("a", "b")
        await net.a.rotates("a", "b", "c")
        await trio.sleep(600)
        net.link("b", "c")
        await trio.sleep(1)
        assert net.have(net.a.token) == "abc"
        left = net.c.rotation.keyring.grace_end(START)
        assert left is not None
        assert abs(left - START - HOUR) < timedelta(seconds=2)  # of the same grace, not of one of its own


async def test_all_of_it_outlasts_a_restart(clock: Any, tmp_path: Path) -> None:
    async with network(tmp_path, "abx") as net:
        net.link("a", "b", "x")
        await net.a.rotates("a", "b")
        before = net.b.rotation.keyring
        net.b.start()
        assert net.b.rotation.keyring == before
        assert Token.decode((tmp_path / "b/token").read_text()).secret == net.a.token.secret
        assert FIRST.encode() in (tmp_path / "b/token.previous").read_text()
        for name in ("token", "rotation.json"):
            assert (tmp_path / "b" / name).stat().st_mode & 0o077 == 0


async def test_after_a_restart_it_is_handed_on_still_signed(clock: Any, tmp_path: Path) -> None:
    """Who rotated is gone; who was off then comes back and meets a member that restarted meanwhile."""
    async with network(tmp_path, "abc") as net:
        net.link("a", "b")
        await net.a.rotates("a", "b", "c")
        net.b.host.cut("a", "gone")
        net.b.start()
        net.b.nursery.start_soon(net.b.rotation.run)
        net.link("b", "c")
        await trio.sleep(1)
        assert net.have(net.a.token) == "abc"
        assert net.c.rotation.keyring.order == net.a.rotation.keyring.order


async def test_a_token_that_a_person_gave_is_not_handed_on(clock: Any, tmp_path: Path) -> None:
    """Without the owner's signature beside it, it is that person's affair alone."""
    async with network(tmp_path, "ab") as net:
        net.link("a", "b")
        net.a.rotation.keyring = Keyring(FIRST.rotated(), net.a.rotation.keyring.former)
        net.a.rotation._wake.set()
        await trio.testing.wait_all_tasks_blocked()
        assert net.a.rotation.untold() == []
        assert net.b.token == FIRST


async def test_who_does_not_answer_is_tried_again_and_cut_off_when_the_time_is_over(clock: Any, tmp_path: Path) -> None:
    async with network(tmp_path, "ab") as net:
        net.link("a", "b")
        net.a.host.silent.add("b")
        assert await net.a.rotates("a", "b", grace=timedelta(seconds=60)) == ["b"]
        assert trio.current_time() == TELL_TIMEOUT_S
        await trio.sleep(10)
        assert net.b.token == FIRST
        net.a.host.silent.clear()
        await trio.sleep(TELL_AGAIN_S + 1)
        assert net.have(net.a.token) == "ab"
        net.a.host.silent.add("b")
        net.b.host.silent.add("a")
        await net.a.rotates("a", "b", grace=timedelta(seconds=60))
        await trio.sleep(54)
        assert net.a.host.cuts == []
        await trio.sleep(2)
        assert net.a.host.cuts == ["b"]


async def test_a_grace_goes_on_while_the_machine_sleeps(clock: Any, tmp_path: Path) -> None:
    async with network(tmp_path, "ab") as net:
        net.link("a", "b")
        net.a.host.silent.add("b")
        await net.a.rotates("a", "b", grace=HOUR)
        await trio.sleep(60)
        net.a.asleep = timedelta(hours=8)  # trio's clock stood still
        assert not net.a.admits(net.b)
        await trio.sleep(LOOK_AGAIN_S)
        assert net.a.host.cuts == ["b"]


async def test_without_a_grace_members_get_a_moment_to_take_it(clock: Any, tmp_path: Path) -> None:
    async with network(tmp_path, "ab") as net:
        net.link("a", "b")
        net.a.host.silent.add("b")
        await net.a.rotates("a", "b", grace=NO_GRACE)
        assert net.a.host.cuts == []
        await trio.sleep(UNTOLD_STAY_S - TELL_TIMEOUT_S + 0.1)
        assert net.a.host.cuts == ["b"]


async def test_whom_a_rotation_left_out_the_next_one_within_its_grace_does_not_take_in(clock: Any, tmp_path: Path) -> None:
    async with network(tmp_path, "abx") as net:
        net.link("a", "b", "x")
        await net.a.rotates("a", "b")
        await net.b.rotates("a", "b", "x")
        await trio.sleep(10)
        assert net.have(net.b.token) == "ab"
        assert net.x.token == FIRST
        assert net.a.rotation.left_out() == ["x"]


async def test_a_member_cannot_rotate_whoever_it_is(clock: Any, tmp_path: Path) -> None:
    """One that is left out, its deputy, or any other: without the owner's signature nobody changes anything."""
    async with network(tmp_path, "abx") as net:
        net.link("a", "b", "x")
        await net.a.rotates("a", "b")
        ours = net.a.token
        for teller in "bx":
            assert await net.a.hears(teller, message(ours.rotated(), key=EVE)) == b""
            assert net.a.host.offences.pop() == (teller, "a rotation that the network's owner did not sign")
            assert teller not in net.a.host.links
        assert net.have(ours) == "ab"
        net.link("a", "b")
        assert await net.a.hears("b", message(ours.rotated())) == b"\x01"


async def test_it_is_taken_over_a_link_that_is_here(clock: Any, tmp_path: Path) -> None:
    """What a peer sent before it hung up is read when its link is gone already."""
    async with network(tmp_path, "ab") as net:
        net.link("a", "b")
        ours, theirs = trio.testing.memory_stream_pair()
        link = net.a.host.links.pop("b")
        assert net.a.host.handler is not None
        net.a.nursery.start_soon(net.a.host.handler, link, theirs)
        await ours.send_all(message(FIRST.rotated()))
        assert await ours.receive_some(1) == b"\x00"
        assert net.a.token == FIRST
        assert net.a.host.offences == []


async def test_whoever_hands_it_on_changes_nothing(clock: Any, tmp_path: Path) -> None:
    async with network(tmp_path, "abx") as net:
        net.link("a", "b", "x")
        new = FIRST.rotated()
        genuine = message(new, members=("a", "b"))
        for forgery in (
            message(new, members=("a", "b", "x"), signature=genuine[32:96]),
            message(new, grace=HOUR * 2, signature=genuine[32:96]),
            b"s" * 32 + genuine[32:],
            message(Token(b"o" * 32, owner=KEY.public).rotated()),
        ):
            assert await net.a.hears("b", forgery) == b""
            assert len(net.a.host.offences) == 1
            net.a.host.offences.clear()
            net.link("a", "b")
        assert (net.a.token, net.a.changes) == (FIRST, 0)
        assert await net.a.hears("b", genuine) == b"\x01"


async def test_whom_the_owner_left_out_takes_it_from_nobody(clock: Any, tmp_path: Path) -> None:
    async with network(tmp_path, "ax") as net:
        net.link("a", "x")
        assert await net.x.hears("a", message(FIRST.rotated(), members=("a",))) == b"\x00"
        assert net.x.token == FIRST


async def test_an_older_one_is_refused_and_who_is_behind_takes_the_newest(clock: Any, tmp_path: Path) -> None:
    async with network(tmp_path, "ab") as net:
        net.link("a", "b")
        one = FIRST.rotated()
        five = one.rotated(rotations=5)
        assert await net.a.hears("b", message(five)) == b"\x01"
        assert await net.a.hears("b", message(one)) == b"\x00"
        assert net.a.token.rotations == 5
        assert net.a.host.offences == []


async def test_of_two_with_one_number_all_take_the_same(clock: Any, tmp_path: Path) -> None:
    async with network(tmp_path, "ab") as net:
        net.link("a", "b")
        low, high = (FIRST.rotated(byte * 32) for byte in (b"1", b"2"))
        assert await net.a.hears("b", message(low)) == b"\x01"
        assert await net.a.hears("b", message(high)) == b"\x01"
        assert await net.a.hears("b", message(low)) == b"\x00"
        assert net.a.token.secret == high.secret


async def test_there_are_no_more_than_a_few_in_a_minute(clock: Any, tmp_path: Path) -> None:
    async with network(tmp_path, "ab") as net:
        net.link("a", "b")
        token, taken = FIRST, 0
        for _ in range(30):
            token = token.rotated()
            taken += await net.a.hears("b", message(token)) == b"\x01"
            await trio.sleep(1)
        assert (taken, net.a.changes) == (TAKEN_AT_ONCE, TAKEN_AT_ONCE)
        assert set(net.a.host.warnings) == {"a rotation of the network's token is not taken: too many, or too far ahead"}
        await trio.sleep(61)
        assert await net.a.hears("b", message(token)) == b"\x01"


async def test_the_owner_may_correct_itself_at_once_and_then_has_to_wait(clock: Any, tmp_path: Path) -> None:
    async with network(tmp_path, "ab") as net:
        net.link("a", "b")
        for _ in range(ROTATED_AT_ONCE):
            assert await net.a.rotates("a", "b") == []
        with pytest.raises(NotDone, match="rotated 2 times in a minute; run it again in 60 s"):
            await net.a.rotates("a", "b")
        assert net.have(net.a.token) == "ab"
        await trio.sleep(60)
        assert await net.a.rotates("a", "b") == []


@pytest.mark.parametrize("number", [2 + MAX_AHEAD, 2**32 - 1])
async def test_one_that_is_far_ahead_ends_nothing(clock: Any, tmp_path: Path, number: int) -> None:
    async with network(tmp_path, "ab") as net:
        net.link("a", "b")
        await net.a.rotates("a", "b")
        assert await net.a.hears("b", message(FIRST.rotated(rotations=number))) == b"\x00"
        assert net.a.token.rotations == 1
        assert await net.a.rotates("a", "b") == []


async def test_a_number_that_has_no_next_is_said(clock: Any, tmp_path: Path) -> None:
    async with network(tmp_path, "a") as net:
        net.a.rotation.keyring = Keyring(FIRST.rotated(rotations=2**32 - 1))
        with pytest.raises(NotDone, match="begin a new network"):
            net.a.rotation.prepare(grace=HOUR, members=[])


async def test_the_owners_signature_is_asked_for_and_nothing_has_changed_before(clock: Any, tmp_path: Path) -> None:
    async with network(tmp_path, "ab") as net:
        net.link("a", "b")
        prepared = net.a.rotation.prepare(grace=HOUR, members=["b"])
        assert prepared.order.members == {"a", "b"}  # whoever rotates is a member
        for signature in (EVE.sign(prepared.order.encode()), b"", b"s" * 64):
            with pytest.raises(NotDone, match="not the signature of the network's owner"):
                await net.a.rotation.carry_out(prepared, signature)
        late = Prepared(prepared.token, prepared.order, -PREPARED_S - 1)
        with pytest.raises(NotDone, match="prepared more than 60 s ago"):
            await net.a.rotation.carry_out(late, KEY.sign(prepared.order.encode()))
        other = net.a.rotation.prepare(grace=HOUR, members=["b"])
        assert net.have(FIRST) == "ab"
        higher, lower = sorted((prepared, other), key=lambda it: it.token.secret, reverse=True)
        assert await net.a.rotation.carry_out(higher, KEY.sign(higher.order.encode())) == []
        with pytest.raises(NotDone, match="rotated meanwhile"):
            await net.a.rotation.carry_out(lower, KEY.sign(lower.order.encode()))


async def test_one_hearing_at_a_time_from_a_peer(clock: Any, tmp_path: Path) -> None:
    async with network(tmp_path, "ab") as net:
        net.link("a", "b")
        first = await net.b.host.open_stream("a", "")
        await first.send_all(b"half")
        await trio.testing.wait_all_tasks_blocked()
        second = await net.b.host.open_stream("a", "")
        assert await second.receive_some(1) == b""
        await trio.sleep(TELL_TIMEOUT_S + 1)
        assert await net.a.hears("b", message(FIRST.rotated())) == b"\x01"


async def test_the_disk_is_waited_for_on_a_thread(clock: Any, tmp_path: Path, on_thread: list[str]) -> None:
    async with network(tmp_path, "ab") as net:
        net.link("a", "b")
        await net.a.rotates("a", "b")
        assert on_thread == ["_keep", "_keep"]


class TestWithoutAnOwner:
    """A network from before there were owners."""

    async def test_it_is_not_rotated_and_what_is_handed_over_is_refused(self, clock: Any, tmp_path: Path) -> None:
        async with network(tmp_path, "ab") as net:
            old = Token(b"f" * 32, "lab")
            net.a.state.save_token(old.encode())
            net.a.start()
            with pytest.raises(NotDone, match=r"has no owner key, so it cannot be rotated.*federation token new"):
                net.a.rotation.prepare(grace=HOUR, members=["a", "b"])
            assert net.a.host.protocol == old.rotation_protocol()
            ours, theirs = trio.testing.memory_stream_pair()
            with trio.fail_after(1):
                await net.a.host.handler(FakeLink("b", old.admission_key()), theirs)  # type: ignore[misc]
                assert await ours.receive_some() == b""
            assert net.a.host.warnings == ["a member rotated the network's token; not taken, since it has no owner"]
            assert net.a.token == old
            assert net.a.rotation.untold() == []


async def test_two_rotations_at_once_end_in_one_token(clock: Any, tmp_path: Path) -> None:
    async with network(tmp_path, "abcd") as net:
        net.link("a", "b", "c", "d")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(net.a.rotates, "a", "b", "c", "d")
            nursery.start_soon(net.b.rotates, "a", "b", "c", "d")
        await trio.sleep(3 * TELL_AGAIN_S)
        assert net.have(net.a.token) == "abcd"
        await trio.sleep(2 * HOUR.total_seconds())
        assert all(member.host.cuts == [] for member in net.members.values())


async def test_what_cannot_be_kept_is_not_taken(clock: Any, tmp_path: Path) -> None:
    async with network(tmp_path, "ab") as net:
        net.link("a", "b")
        (tmp_path / "b/rotation.json").mkdir()
        (tmp_path / "b/rotation.json/in-the-way").touch()
        with capture_logs() as logs:
            assert await net.a.rotates("a", "b") == ["b"]
        assert any(entry["log_level"] == "error" and "cannot keep" in entry["event"] for entry in logs)
        assert (net.b.token, net.b.changes) == (FIRST, 0)
        with pytest.raises(StateDirUnusable):
            await net.b.rotates("a", "b")
        assert net.b.token == FIRST


async def test_addresses_stay_ones_own(clock: Any, tmp_path: Path) -> None:
    async with network(tmp_path, "ab") as net:
        net.link("a", "b")
        own = FIRST.with_addresses(["/ip4/192.0.2.2/tcp/1"])
        net.b.rotation.keyring = Keyring(own)
        await net.a.rotates("a", "b")
        assert net.b.token.addresses == own.addresses


def message(
    token: Token,
    *,
    grace: timedelta = HOUR,
    members: tuple[str, ...] = ("a", "b"),
    key: OwnerKey = KEY,
    signature: bytes | None = None,
) -> bytes:
    """As a member hands it on."""
    issued_ms = int(START.timestamp() * 1000)
    order = order_of(token.names, token.rotations, token.secret, issued_ms=issued_ms, grace=grace, members=members).encode()
    return token.secret + (key.sign(order) if signature is None else signature) + len(order).to_bytes(4, "big") + order


@pytest.mark.parametrize(
    ("said", "is_offence"),
    [
        (b"", False),
        (b"abc", False),
        (bytes(96) + b"\x00\x00\x00\x10abc", False),
        (bytes(96) + (MAX_ORDER_BYTES + 1).to_bytes(4, "big"), True),
        (bytes(96) + b"\x00\x00\x01\x00" + b"\x01" * 256, True),
    ],
    ids=range(5),
)
async def test_nonsense_changes_nothing(clock: Any, tmp_path: Path, said: bytes, is_offence: bool) -> None:
    async with network(tmp_path, "ab") as net:
        net.link("a", "b")
        assert await net.a.hears("b", said) == b""
        assert bool(net.a.host.offences) == is_offence
        assert (net.a.token, net.a.changes) == (FIRST, 0)


@pytest.mark.parametrize("said", [bytes(100), bytes(96) + b"\x00\x00\x00\x10" + bytes(16)], ids=range(2))
async def test_what_is_older_is_not_looked_into(clock: Any, tmp_path: Path, said: bytes) -> None:
    """A number that is none is an old one: its signature is not even checked."""
    async with network(tmp_path, "ab") as net:
        net.link("a", "b")
        assert await net.a.hears("b", said) == b"\x00"
        assert (net.a.token, net.a.host.offences) == (FIRST, [])


async def test_one_peer_is_not_heard_without_end(clock: Any, tmp_path: Path) -> None:
    async with network(tmp_path, "ab") as net:
        net.link("a", "b")
        answers = [await net.a.hears("b", message(FIRST)) for _ in range(100)]
        assert answers == [b"\x01"] * int(HEARINGS_AT_ONCE) + [b""] * (100 - int(HEARINGS_AT_ONCE))
        await trio.sleep(1.5)
        assert await net.a.hears("b", message(FIRST)) == b"\x01"


async def test_the_present_token_changes_nothing(clock: Any, tmp_path: Path) -> None:
    async with network(tmp_path, "ab") as net:
        net.link("a", "b")
        await net.a.rotates("a", "b")
        ring = net.a.rotation.keyring
        assert await net.a.hears("b", message(replace(net.a.token, name="another"))) == b"\x01"
        assert net.a.rotation.keyring is ring
        assert net.a.host.offences == []


async def test_the_log_holds_no_token(clock: Any, tmp_path: Path) -> None:
    async with network(tmp_path, "abx") as net:
        net.link("a", "b", "x")
        with capture_logs() as logs:
            await net.a.rotates("a", "b")
            await trio.sleep(2 * HOUR.total_seconds())
        assert logs
        assert "fed" not in str(logs)
        assert net.a.token.secret.hex() not in str(logs)
