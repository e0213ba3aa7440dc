"""The node's dispatcher over a made-up roster: what it picks is counted, and who waits is sent on. No sockets."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from federation.config import Settings
from federation.errors import BackendUnavailable
from federation.forward.attempts import Attempts, State
from federation.forward.counters import Counters, Flow
from federation.forward.dispatcher import BROKE_OFF_PENALTY_S, RosterDispatcher
from federation.forward.route import Route
from federation.forward.selection import Policy, Selector
from federation.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable

ROUTE = Route("default")


class World:
    """The dispatcher, and all that it stands on: `peers` may serve, what was queued for the flush runs by `flush`."""

    def __init__(self, *peers: str) -> None:
        self.own_id = "own"
        self.peers = list(peers)
        self.penalties: list[tuple[str, float]] = []
        self.queued: list[Callable[[], None]] = []
        self.in_flight = 0
        self.clock = 5.0
        self.counters = Counters(Metrics())
        self.selector = Selector(Policy.LEAST_LOADED, entry_id="own", rng=random.Random(1))
        self.dispatcher = RosterDispatcher(
            self, Settings(name="x", hold_s=3.0), roster=self, selector=self.selector, backends=self, counters=self.counters  # type: ignore[arg-type]
        )  # fmt: skip

    # The roster

    def eligible(self, _route: Route) -> list[Any]:
        return [SimpleNamespace(peer_id=peer, available_vram=0, capacity=0) for peer in self.peers]

    def distant(self, _route: Route) -> frozenset[str]:
        return frozenset()

    def link(self, peer_id: str) -> None:
        return None

    def penalize(self, peer_id: str, seconds: float) -> None:
        self.penalties.append((peer_id, seconds))

    # The backends

    def choose(self, service: str, entry_id: str = "") -> Any:
        raise BackendUnavailable(f"no backend of {service}")

    # The reactor

    def now(self) -> float:
        return self.clock

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Any:
        return SimpleNamespace(cancel=lambda: None)

    def flush_soon(self, callback: Callable[[], None]) -> None:
        self.queued.append(callback)

    def flush(self) -> None:
        queued, self.queued = self.queued, []
        for callback in queued:
            callback()


class Request:
    """Ends where it is rejected."""

    flow, route, client_name, started_at = Flow(7), ROUTE, "client", 0.0

    def __init__(self, world: World) -> None:
        self.why = ""
        self.attempts = Attempts(self, world.dispatcher)  # type: ignore[arg-type]

    def rejected(self, why: str) -> None:
        self.why = why


def test_a_pick_is_counted_and_remembered_until_it_is_released() -> None:
    world = World("a", "b")
    request: Any = Request(world)
    first = world.dispatcher.pick(request, set(), 1)
    second = world.dispatcher.pick(request, {first}, 2)
    assert {first, second} == {"a", "b"}
    assert world.dispatcher.pick(request, {"a", "b"}, 3) is None
    assert [world.selector.own_in_flight(peer) for peer in ("a", "b")] == [1, 1]
    assert [(d.pick.chosen.peer_id, d.attempt, d.flow) for d in world.counters.decisions] == [
        (first, 1, Flow(7)), (second, 2, Flow(7)),
    ]  # fmt: skip
    for peer in ("a", "b"):
        world.dispatcher.release(peer)
    assert [world.selector.own_in_flight(peer) for peer in ("a", "b")] == [0, 0]


def test_the_own_load_is_told_to_the_selector_once_for_many_changes() -> None:
    world = World("own", "a")
    told: list[tuple[str, int]] = []
    world.selector.observe_load = lambda peer, load: told.append((peer, load))  # type: ignore[method-assign]
    request: Any = Request(world)
    world.in_flight = 4
    world.dispatcher.own_load_is_news = True
    world.dispatcher.pick(request, set(), 1)
    world.dispatcher.pick(request, set(), 1)
    assert told == [("own", 4)]


def test_who_waits_looks_again_once_for_many_changes() -> None:
    world = World()
    request = Request(world)
    request.attempts.start()
    assert world.dispatcher.waiting == {request.attempts}
    for _ in range(3):
        world.dispatcher.roster_changed()
    assert len(world.queued) == 1
    world.flush()
    assert world.dispatcher.waiting == {request.attempts}  # there is still nobody
    world.dispatcher.reject_waiting("this node is shutting down")
    assert (world.dispatcher.waiting, request.attempts.state) == (set(), State.REJECTED)
    assert request.why == "this node is shutting down"
    world.dispatcher.roster_changed()
    assert world.queued == []


def test_a_request_that_was_rejected_before_the_flush_is_left_alone() -> None:
    world = World()
    request = Request(world)
    request.attempts.start()
    world.dispatcher.roster_changed()
    request.attempts.reject("its time is over")
    world.flush()
    assert request.why == "its time is over"


@pytest.mark.parametrize(
    ("peers", "penalties"), [(("a", "b"), [("a", BROKE_OFF_PENALTY_S)]), (("a",), []), (("b", "c"), [])]
)
def test_a_peer_that_breaks_off_is_left_alone_if_another_is_there(peers: tuple[str, ...], penalties: list[Any]) -> None:
    world = World(*peers)
    world.dispatcher.broke_off(ROUTE, "a")
    assert world.penalties == penalties


def test_settings_hold_for_the_next_step() -> None:
    world = World()
    assert world.dispatcher.hold_s == 3.0
    world.dispatcher.configure(Settings(name="x", hold_s=0.0))
    assert world.dispatcher.hold_s == 0.0


def test_without_a_backend_a_dial_says_so() -> None:
    with pytest.raises(BackendUnavailable, match="no backend of default"):
        World("own").dispatcher.dial(ROUTE, lambda *_: None)
