"""Discovery: what is in the book at the start, what is saved, and what multicast and the DHT add."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio
from structlog.testing import capture_logs

from federation.config import Settings
from federation.mesh import discovery
from federation.mesh.discovery import MAX_REMEMBERED, SAVE_AFTER_S, SAVE_EVERY_S, Discovery, parsed
from federation.mesh.tokens import Token
from federation.net.dial.address import PeerAddress
from federation.net.dial.book import AddressBook
from federation.state import StateDir

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock
    from trio_typing import TaskStatus

OWN = "12D3KooW" + "A" * 44


def peer(n: int) -> str:
    return "12D3KooW" + "B" * 40 + "BCDEFGHJKLMNPQRSTUVWXYZ"[n // 23 % 23] + "BCDEFGHJKLMNPQRSTUVWXYZ"[n % 23] + "CC"


def address(n: int) -> str:
    return f"/ip4/192.0.2.{n % 250 + 1}/tcp/4484/p2p/{peer(n)}"


class World:
    """A node's surroundings; `records` are the ledger's."""

    def __init__(self, directory: Path, *, addresses: tuple[str, ...] = (), **settings: Any) -> None:
        self.state = StateDir(directory)
        self.looks = 0
        self.book = AddressBook()
        self.links: dict[str, object] = {}
        self.records: list[Any] = []
        self.token = Token(b"f" * 32, "net", addresses)
        self.settings = Settings(mdns=False, **settings)

    def look_at_book(self) -> None:
        self.looks += 1

    def find(self) -> Discovery:
        host: Any = SimpleNamespace(book=self.book, links=self.links, peer_id=OWN, look_at_book=self.look_at_book)
        ledger: Any = SimpleNamespace(records=lambda: self.records)
        return Discovery(host, ledger, self.settings, self.state, token=lambda: self.token, addresses=list)

    def knows(self, n: int, *, left: bool = False) -> None:
        self.records.append(SimpleNamespace(peer_id=peer(n), left=left))
        self.book.add(PeerAddress.parse(address(n)), source="record")


def test_the_book_at_the_start(tmp_path: Path) -> None:
    world = World(tmp_path, addresses=(address(1),), peers=(address(2),))
    world.state.save_peers({peer(3): [address(3), "nonsense"]})
    with capture_logs() as logs:
        world.find()
    assert set(world.book) == {peer(1), peer(2), peer(3)}
    assert [entry["whose"] for entry in logs] == ["remembered"]


async def test_saved_are_those_that_are_there_and_those_that_were(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.state.save_peers({peer(9): [address(9)]})
    it = world.find()
    world.knows(1)
    world.knows(2, left=True)
    world.knows(3)
    world.links[peer(1)] = object()
    await it.save()
    assert list(world.state.load_peers()) == [peer(9), peer(3), peer(1)]  # who is linked is forgotten last


async def test_no_more_are_saved_than_so_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "MAX_REMEMBERED", 2)
    world = World(tmp_path)
    for n in range(4):
        world.knows(n)
    world.links[peer(0)] = object()
    await world.find().save()
    assert list(world.state.load_peers()) == [peer(3), peer(0)]


async def test_several_that_join_are_one_write(tmp_path: Path, mock_clock: MockClock, on_thread: list[str]) -> None:
    world = World(tmp_path)
    it = world.find()
    async with trio.open_nursery() as nursery:
        await nursery.start(it.run)
        for n in range(3):
            world.knows(n)
            it.learnt()
        await trio.testing.wait_all_tasks_blocked()
        assert world.state.load_peers() == {}
        mock_clock.jump(SAVE_AFTER_S)
        await trio.testing.wait_all_tasks_blocked()
        assert len(world.state.load_peers()) == 3
        # Members may invent news without end: the disk has a second between two writes, and no connection waits for it.
        world.knows(3)
        it.learnt()
        mock_clock.jump(SAVE_AFTER_S)
        await trio.testing.wait_all_tasks_blocked()
        assert len(world.state.load_peers()) == 3
        mock_clock.jump(SAVE_EVERY_S)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(SAVE_AFTER_S)
        await trio.testing.wait_all_tasks_blocked()
        assert len(world.state.load_peers()) == 4
        assert on_thread == ["save_peers", "save_peers"]
        nursery.cancel_scope.cancel()


class FakeMdns:
    """In place of mdns.Mdns: those that run, by their rendezvous."""

    running: dict[str, FakeMdns]

    def __init__(self, *, rendezvous: str, on_found: Any, **_: object) -> None:
        self.rendezvous, self.on_found = rendezvous, on_found

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self.running[self.rendezvous] = self
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            del self.running[self.rendezvous]


@pytest.fixture
def mdns_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    async def multicast() -> SimpleNamespace:
        return SimpleNamespace(Mdns=FakeMdns)

    monkeypatch.setattr(discovery, "multicast", multicast)
    FakeMdns.running = {}
    world = World(tmp_path)
    world.settings = Settings(mdns=True)
    return world


async def test_a_new_token_is_multicast_at_once_and_the_old_one_while_it_is_good(
    mdns_world: World, mock_clock: MockClock
) -> None:
    world = mdns_world
    it = world.find()
    async with trio.open_nursery() as nursery:
        await nursery.start(it.run)
        old = world.token.rendezvous()
        world.token = world.token.rotated()
        new = world.token.rendezvous()
        assert set(FakeMdns.running) == {old} != {new}
        it.token_changed(60.0)
        await trio.testing.wait_all_tasks_blocked()
        assert set(FakeMdns.running) == {old, new}
        mock_clock.jump(61.0)
        await trio.testing.wait_all_tasks_blocked()
        assert set(FakeMdns.running) == {new}
        nursery.cancel_scope.cancel()


async def test_there_are_two_sessions_at_most(mdns_world: World, mock_clock: MockClock) -> None:
    """Whatever the graces: each has sockets and threads."""
    world = mdns_world
    it = world.find()
    async with trio.open_nursery() as nursery:
        await nursery.start(it.run)
        for _ in range(5):
            former = world.token.rendezvous()
            world.token = world.token.rotated()
            it.token_changed(2_592_000.0)
            await trio.testing.wait_all_tasks_blocked()
            assert set(FakeMdns.running) == {former, world.token.rendezvous()}
        nursery.cancel_scope.cancel()


async def test_who_multicasts_is_dialled(mdns_world: World, mock_clock: MockClock) -> None:
    world = mdns_world
    it = world.find()
    async with trio.open_nursery() as nursery:
        await nursery.start(it.run)
        (mdns,) = FakeMdns.running.values()
        for text in (address(1), address(1), f"/ip4/192.0.2.9/tcp/1/p2p/{OWN}", "/ip4/192.0.2.9/tcp/2"):
            mdns.on_found(PeerAddress.parse(text))
        assert it.mdns_seen == {peer(1)}
        assert list(world.book) == [peer(1)]
        assert world.looks
        for n in range(MAX_REMEMBERED + 10):
            mdns.on_found(PeerAddress("192.0.2.1", 4484, peer(n)))
        assert len(it.mdns_seen) <= MAX_REMEMBERED
        nursery.cancel_scope.cancel()


def test_parsed_leaves_out_what_is_none() -> None:
    with capture_logs() as logs:
        assert [str(a) for a in parsed([address(1), "x", address(2)], whose="mine")] == [address(1), address(2)]
    assert [entry["whose"] for entry in logs] == ["mine"]
