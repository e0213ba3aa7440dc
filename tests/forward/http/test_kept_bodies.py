"""The bytes that all bodies may have together. Clients are the test's, and send as much as they may."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from federation.forward.http.kept_bodies import BUFFERS, FREE, KeptBodies

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
EACH = 4 * MIB


@dataclass(eq=False)
class Client:
    """It sends `length` bytes; `is_kept`: its backend has not answered yet."""

    world: World
    length: int
    size: int = 0
    may_retry: bool = True
    waits: bool = False
    is_over: bool = False

    def send(self, n: int = 1 << 40) -> None:
        bodies = self.world.bodies
        while n > 0 and self.size < self.length and not self.waits and not self.is_over:
            room = bodies.room(self, self.size)
            if room <= 0:
                self.waits = True
                bodies.wait(self)
                return
            part = min(n, room, self.length - self.size, FREE)
            n -= part
            self.size += part
            bodies.keeps(self, self.size, grows=self.size < self.length)

    def may_grow(self) -> None:
        self.waits = False
        self.world.told.append(self)
        self.send()

    def give_up_retry(self) -> None:
        self.may_retry = False
        self.world.bodies.keeps(self, 0, grows=False)

    def leave(self) -> None:
        self.is_over = True
        self.world.bodies.drops(self)


@dataclass
class World:
    turns: list[Callable[[], None]] = field(default_factory=list)
    told: list[Client] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bodies = KeptBodies(EACH, self.turns.append)

    def turn(self) -> None:
        while self.turns:
            self.turns.pop(0)()


def test_small_bodies_do_not_count_and_never_wait() -> None:
    world = World()
    big = [Client(world, EACH) for _ in range(BUFFERS)]
    for client in big:
        client.send(EACH - 1)
    assert world.bodies.is_tight
    small = [Client(world, FREE) for _ in range(100)]
    for client in small:
        client.send()
        assert client.size == FREE
    assert not any(client.waits for client in small)
    for client in (*big, *small):
        client.leave()
    assert (world.bodies.used, len(world.bodies)) == (0, 0)


def test_bodies_that_wait_for_each_other_are_finished_one_after_the_other() -> None:
    world = World()
    clients = [Client(world, EACH) for _ in range(50)]
    for _ in range(EACH // MIB):
        for client in clients:
            client.send(MIB)
    assert world.bodies.used <= world.bodies.most
    assert all(client.waits for client in clients[1:])
    world.turn()
    assert [client.size for client in clients] == [EACH] * 50, "each is finished, and not kept for a retry"
    assert not world.bodies.is_tight


def test_what_is_kept_for_a_retry_alone_gives_way() -> None:
    world = World()
    done = [Client(world, EACH) for _ in range(BUFFERS - 1)]
    for client in done:
        client.send()
    assert all(client.may_retry for client in done)
    late = Client(world, EACH)
    late.send()
    world.turn()
    assert late.size == EACH
    assert not any(client.may_retry for client in done)


def test_the_oldest_goes_on_though_it_came_when_it_was_tight() -> None:
    world = World()
    first, *others = [Client(world, 2 * EACH) for _ in range(BUFFERS)]
    for client in (first, *others):
        client.send(EACH - 1)
    last = Client(world, EACH)
    last.send()
    assert last.waits
    for client in (first, *others):
        client.leave()
    world.turn()
    assert last.size == EACH


def test_a_smaller_limit_holds_from_the_next_byte_on() -> None:
    world = World()
    client = Client(world, EACH)
    client.send(2 * MIB)
    world.bodies.each = MIB
    assert world.bodies.room(client, client.size) == 0


class AnyUse(RuleBasedStateMachine):
    """Clients come, send, stop, leave: the books are right, nobody waits where there is room, and all get through."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.clients: list[Client] = []

    @rule(length=st.integers(1, EACH))
    def come(self, length: int) -> None:
        self.clients.append(Client(self.world, length))

    @rule(data=st.data(), n=st.integers(1, EACH))
    def send(self, data: st.DataObject, n: int) -> None:
        if self.clients:
            data.draw(st.sampled_from(self.clients)).send(n)

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.clients:
            client = data.draw(st.sampled_from(self.clients))
            self.clients.remove(client)
            client.leave()

    @rule()
    def turn(self) -> None:
        self.world.turn()

    @invariant()
    def the_books_are_right(self) -> None:
        bodies = self.world.bodies
        kept = sum(max(0, client.size - FREE) for client in self.clients if client.may_retry)
        assert bodies.used == kept <= bodies.most
        if not self.world.turns:
            waiting = [client for client in self.clients if client.waits]
            assert not waiting or bodies.room(waiting[0], max(FREE, waiting[0].size)) == 0 or bodies.is_tight

    def teardown(self) -> None:
        for client in self.clients:
            client.send()
        for _ in range(3 * len(self.clients)):
            self.world.turn()
            for client in self.clients:
                if client.size == client.length:
                    client.leave()
                else:
                    client.send()
        self.world.turn()
        assert all(client.size == client.length for client in self.clients), "all get through"
        assert (self.world.bodies.used, len(self.world.bodies)) == (0, 0)


TestAnyUse = AnyUse.TestCase
