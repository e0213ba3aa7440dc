"""Rotation without a network: hosts in memory, trio's clock jumps, real state directories."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from federation.errors import PeerUnavailable, StateDirUnusable
from federation.keyring import MAX_MEMBERS, Keyring
from federation.rotation import MAX_MESSAGE_BYTES, SETTLE_S, TELL_AGAIN_S, TELL_TIMEOUT_S, Rotation
from federation.state import StateDir
from federation.tokens import Token

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
FIRST = Token(b"f" * 32, "lab")
HOUR = timedelta(hours=1)
NO_GRACE = timedelta(0)


@dataclass
class FakeLink:
    peer: str
    admission_key: bytes


@dataclass
class FakeHost:
    """`silent`: peers to whom no stream opens. What is `cut` is gone here and there."""

    name: str
    net: dict[str, Member]
    links: dict[str, FakeLink] = field(default_factory=dict)
    cuts: list[str] = field(default_factory=list)
    silent: set[str] = field(default_factory=set)
    handler: Callable[..., Any] | None = None

    def handle_stream(self, _protocol: str, handler: Callable[..., Any]) -> None:
        self.handler = handler

    async def open_stream(self, peer: str, _protocol: str) -> trio.abc.HalfCloseableStream:
        await trio.lowlevel.checkpoint()
        if peer not in self.links or peer in self.silent:
            raise PeerUnavailable("no connection to it")
        ours, theirs = trio.testing.memory_stream_pair()
        other = self.net[peer]
        other.nursery.start_soon(other.host.handler, other.host.links[self.name], theirs)
        return ours

    def cut(self, peer: str, _reason: str) -> None:
        if self.links.pop(peer, None) is not None:
            self.cuts.append(peer)
            self.net[peer].host.links.pop(self.name, None)


class Member:
    def __init__(self, name: str, net: dict[str, Member], directory: Path, nursery: trio.Nursery) -> None:
        self.name = name
        self.nursery = nursery
        self.host = FakeHost(name, net)
        self.state = StateDir(directory / name)
        self.state.lock()
        self.changes = 0
        self.start()
        self.state.save_token(self.rotation.keyring.token.encode())
        net[name] = self

    def start(self) -> None:
        """Also what a restart makes of what is kept."""
        text = self.state.load_token()
        token = FIRST if text is None else Token.decode(text)
        self.rotation = Rotation(
            host=self.host, keyring=Keyring.from_saved(token, self.state.load_rotation()), state=self.state,
            utc_now=lambda: START + timedelta(seconds=trio.current_time()), on_change=self._changed,
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
        return await self.rotation.rotate(grace=grace, members=members)


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
def clock(autojump_clock: trio.testing.MockClock) -> trio.testing.MockClock:
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
        await trio.sleep(2 * SETTLE_S)
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


async def test_without_a_grace_members_get_a_moment_to_take_it(clock: Any, tmp_path: Path) -> None:
    async with network(tmp_path, "ab") as net:
        net.link("a", "b")
        net.a.host.silent.add("b")
        await net.a.rotates("a", "b", grace=NO_GRACE)
        assert net.a.host.cuts == []
        await trio.sleep(SETTLE_S - TELL_TIMEOUT_S + 0.1)
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


async def test_whom_a_rotation_left_out_cannot_answer_with_its_own(clock: Any, tmp_path: Path) -> None:
    async with network(tmp_path, "abx") as net:
        net.link("a", "b", "x")
        await net.a.rotates("a", "b")
        ours = net.a.token
        with capture_logs() as logs:
            twice = FIRST.rotated().rotated()
            assert not net.a.rotation._hear("x", message(twice))
        assert [entry["peer"] for entry in logs if "left out" in entry["event"]] == ["x"]
        assert net.have(ours) == "ab"
        assert net.a.rotation._hear("b", message(twice))  # from a member it would count


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


def message(token: Token, grace_ms: Any = 1000, members: Any = ("a", "b")) -> list[Any]:
    return [token.encode(), grace_ms, list(members)]


@pytest.mark.parametrize(
    "said",
    [
        None,
        [],
        [1, 2, []],
        ["fed1_x", 0, []],
        message(FIRST.rotated(), -1),
        message(FIRST.rotated(), 2**60),
        message(FIRST.rotated(), 0.5),
        message(FIRST.rotated(), 0, [1]),
        message(FIRST.rotated(), 0, [""]),
        message(FIRST.rotated(), 0, ["x" * 129]),
        message(FIRST.rotated(), 0, ["x"] * (MAX_MEMBERS + 1)),
        message(Token(b"o" * 32).rotated()),
        b"\xc1",
        b"\x00\x00\x00\x10abc",
        (MAX_MESSAGE_BYTES + 1).to_bytes(4, "big"),
        b"",
    ],
    ids=range(16),  # the tokens are random: their texts would be other tests in each worker
)
async def test_nonsense_changes_nothing(clock: Any, tmp_path: Path, said: Any) -> None:
    async with network(tmp_path, "ab") as net:
        net.link("a", "b")
        stream = await net.b.host.open_stream("a", "")
        if not isinstance(said, bytes):
            packed = msgpack.packb(said)
            said = len(packed).to_bytes(4, "big") + packed
        await stream.send_all(said)
        await stream.send_eof()  # type: ignore[attr-defined]
        answer = b""
        while chunk := await stream.receive_some():
            answer += chunk
        assert answer == b""
        assert (net.a.token, net.a.changes) == (FIRST, 0)


async def test_an_older_token_and_the_present_one_change_nothing(clock: Any, tmp_path: Path) -> None:
    async with network(tmp_path, "ab") as net:
        net.link("a", "b")
        await net.a.rotates("a", "b")
        ring = net.a.rotation.keyring
        assert net.a.rotation._hear("b", message(net.b.token))
        assert not net.a.rotation._hear("b", message(FIRST))
        assert net.a.rotation.keyring is ring
        assert json.loads((tmp_path / "a/rotation.json").read_text())["members"] == ["a", "b"]


async def test_the_log_holds_no_token(clock: Any, tmp_path: Path) -> None:
    async with network(tmp_path, "abx") as net:
        net.link("a", "b", "x")
        with capture_logs() as logs:
            await net.a.rotates("a", "b")
            await trio.sleep(2 * HOUR.total_seconds())
        assert logs
        assert "fed" not in str(logs)
        assert net.a.token.secret.hex() not in str(logs)
