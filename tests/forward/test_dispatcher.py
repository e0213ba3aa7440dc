"""The node's dispatcher over a made-up roster: what it picks is counted, and who waits is sent on. No sockets."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.config import Replay, Settings
from federation.errors import BackendUnavailable
from federation.forward.attempts import Attempts, State
from federation.forward.counters import Counters, Flow
from federation.forward.dispatcher import BROKE_OFF_PENALTY_S, QUESTIONS_AT_ONCE, RosterDispatcher
from federation.forward.http.conversation import NO_KEYS, Keys
from federation.forward.http.ids import digest_of
from federation.forward.route import Route
from federation.forward.selection import BACK_A_SECOND, BACK_AT_ONCE, LONGEST_REST_S, Policy, Selector
from federation.forward.warmth import WARM_SLACK
from federation.mesh.models import Model
from federation.metrics import Metrics
from federation.net.link.frames import FULL
from federation.net.link.mux import Load
from tests.support.links import End

if TYPE_CHECKING:
    from collections.abc import Callable

ROUTE = Route("default")


class World:
    """The dispatcher, and all that it stands on: `peers` may serve, what was queued for the flush runs by `flush`."""

    def __init__(self, *peers: str, capacity: int = 0) -> None:
        self.own_id = "own"
        self.capacity = capacity
        self.links: dict[str, Link] = {}
        self.peers = list(peers)
        self.models: dict[str, Model] = {}
        self.penalties: list[tuple[str, float]] = []
        self.queued: list[Callable[[], None]] = []
        self.timers: list[Any] = []
        self.load = Load()
        self.looks: list[Route] = []
        self.clock = 5.0
        self.counters = Counters(Metrics())
        self.selector = Selector(Policy.LEAST_LOADED, entry_id="own", rng=random.Random(1))
        self.dispatcher = RosterDispatcher(
            self, Settings(name="x", hold_s=3.0), roster=self, selector=self.selector, backends=self, counters=self.counters  # type: ignore[arg-type]
        )  # fmt: skip

    @property
    def in_flight(self) -> int:
        return self.load.in_flight

    @in_flight.setter
    def in_flight(self, connections: int) -> None:
        self.load.in_flight = connections

    # The roster

    def eligible(self, route: Route) -> list[Any]:
        """A peer serves one service if its name says so: "speech/a"."""
        self.looks.append(route)
        return [
            SimpleNamespace(peer_id=peer, available_vram=0, capacity=self.capacity)
            for peer in self.peers
            if peer.rpartition("/")[0] in ("", route.service)
        ]

    def distant(self, _route: Route) -> frozenset[str]:
        return frozenset()

    def catalogs(self, _service: str) -> list[Any]:
        return []

    def models_at(self, _route: Route) -> dict[str, Any]:
        return self.models

    def is_known(self, target: str) -> bool:
        return target in self.links

    def lacks(self, _route: Route, _peer_id: str) -> None: ...

    def is_unheard_of(self, _route: Route) -> bool:
        return False

    def link(self, peer_id: str) -> Any:
        return self.links.get(peer_id)

    def penalize(self, peer_id: str, seconds: float) -> None:
        self.penalties.append((peer_id, seconds))

    # The backends

    def choose(self, service: str, entry_id: str = "") -> Any:
        raise BackendUnavailable(f"no backend of {service}")

    # The reactor

    def now(self) -> float:
        return self.clock

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Any:
        timer = SimpleNamespace(ring=callback, cancel=lambda: timer in self.timers and self.timers.remove(timer))
        self.timers.append(timer)
        return timer

    def flush_soon(self, callback: Callable[[], None]) -> None:
        self.queued.append(callback)

    def flush(self) -> None:
        queued, self.queued = self.queued, []
        for callback in queued:
            callback()


class Link:
    """To one peer; nothing is answered."""

    def __init__(self) -> None:
        self.opened: list[Attempts] = []
        self.looks: list[tuple[str, float]] = []

    def open_request(self, _service: str, observer: Attempts, _other: Any, _believed: int) -> End:
        self.opened.append(observer)
        return End()

    def watch(self, now: float) -> bool:
        return True

    def unwatch(self) -> None: ...

    def look(self, service: str, now: float) -> None:
        self.looks.append((service, now))


class Request:
    """Ends where it is rejected."""

    client_name = "client"
    keys = NO_KEYS
    takes_kept = None
    is_kept_on = is_unheard = False
    replay = Replay.OPENED

    def __init__(self, world: World, number: int = 7, route: Route = ROUTE, started_at: float = 0.0) -> None:
        self.why = ""
        self.flow, self.route, self.started_at = Flow(number), route, started_at
        self.attempts = Attempts(self, world.dispatcher)  # type: ignore[arg-type]

    @property
    def state(self) -> State:
        return self.attempts.state

    def upstream_side(self) -> Any:
        return self

    def connected(self, upstream: Any) -> None: ...

    def disconnected(self, reason: str) -> None: ...

    def flush_replay(self) -> None: ...

    def rejected(self, why: str) -> None:
        self.why = why


def test_a_pick_is_counted_and_remembered_until_it_is_released() -> None:
    world = World("a", "b")
    request: Any = Request(world)
    first = world.dispatcher.pick(request, set(), 1)
    second = world.dispatcher.pick(request, {first.peer_id}, 2, 1)  # type: ignore[union-attr]
    assert first is not None
    assert second is not None
    assert {first.peer_id, second.peer_id} == {"a", "b"}
    assert world.dispatcher.pick(request, {"a", "b"}, 3) is None
    assert [world.selector.own_in_flight(peer) for peer in ("a", "b")] == [1, 1]
    assert [(d.pick.chosen, d.attempt, d.flow, d.again) for d in world.counters.decisions] == [
        (first, 1, Flow(7), 0), (second, 2, Flow(7), 1),
    ]  # fmt: skip
    for peer in ("a", "b"):
        world.dispatcher.release(peer)
    assert [world.selector.own_in_flight(peer) for peer in ("a", "b")] == [0, 0]


def test_a_model_is_loaded_in_one_place_and_then_used_there() -> None:
    world = World("a", "b", "c")
    route = Route("default", "m")
    request: Any = Request(world, route=route)
    world.models = {peer: Model("m") for peer in world.peers}
    homes = {world.dispatcher.pick(request, set(), 1).peer_id for _ in range(6)}  # type: ignore[union-attr]
    assert len(homes) == 1
    assert world.counters.decisions[-1].pick.tier == "cold"
    (warm,) = homes
    for _ in range(6):
        world.dispatcher.release(warm)
    world.models[warm] = Model("m", warm=True)
    picked = [world.dispatcher.pick(request, set(), 1) for _ in range(WARM_SLACK + 3)]
    assert [pick.peer_id == warm for pick in picked] == [True] * (WARM_SLACK + 1) + [False] * 2  # type: ignore[union-attr]
    assert len({pick.peer_id for pick in picked}) == 2, "one more place is enough"  # type: ignore[union-attr]
    for pick in picked:
        world.dispatcher.release(pick.peer_id)  # type: ignore[union-attr]


def test_the_home_of_a_conversation_is_a_warm_one() -> None:
    world = World(*"abcdef")
    world.models = {peer: Model("m", warm=peer in "ef") for peer in world.peers}
    homes = set()
    for n in range(20):
        request: Any = Request(world, route=Route("default", "m"))
        request.keys = Keys(b"%d" % n, b"%d" % n)
        pick = world.dispatcher.pick(request, set(), 1)
        homes.add(pick.peer_id)  # type: ignore[union-attr]
        world.dispatcher.release(pick.peer_id)  # type: ignore[union-attr]
    assert homes == {"e", "f"}


def test_a_node_whose_backend_lacks_its_model_is_to_look() -> None:
    world, own = World("a"), []
    world.links["a"] = Link()
    world.dispatcher.look_for_models = own.append
    for peer in ("a", "gone", "own"):
        world.dispatcher.look(ROUTE, peer)
    assert world.links["a"].looks == [("default", 5.0)]
    assert own == ["default"]


def test_a_request_goes_to_the_node_that_made_the_thing() -> None:
    world = World("a", "b")
    route = Route("default", "m")
    assert world.dispatcher.route_to(route, "responses/r") is None
    world.dispatcher.made(route, "responses/r", "b")
    assert world.dispatcher.route_to(route, "responses/r") == Route("default", "m", "b")
    assert world.dispatcher.route_to(Route("tts"), "responses/r") is None, "another service's"
    world.peers = ["a"]
    assert world.dispatcher.route_to(route, "files/f") == route, "who else"


def test_others_are_asked_for_a_thing_at_a_pace() -> None:
    world = World("a", "b")
    world.links["b"] = Link()
    asked: list[bytes] = []
    found: list[Route | None] = []

    def ask(digest: bytes, told: Any) -> None:
        asked.append(digest)
        told("b" if digest == digest_of("default", "responses/r") else "a stranger" if len(asked) == 2 else "")

    world.dispatcher.ask_others = ask
    world.dispatcher.find_maker(ROUTE, "responses/r", found.append)
    assert world.dispatcher.route_to(ROUTE, "responses/r") == found.pop() == ROUTE._replace(target="b")
    assert world.dispatcher.maker_by(digest_of("default", "responses/r")) == "b"
    for i in range(2 * int(QUESTIONS_AT_ONCE)):
        world.dispatcher.find_maker(ROUTE, f"responses/{i}", found.append)
    assert set(found) == {None}
    assert len(asked) == QUESTIONS_AT_ONCE


def test_the_own_load_is_told_to_the_selector_once_for_many_changes() -> None:
    world = World("own", "a")
    told: list[tuple[str, int]] = []
    world.selector.told = lambda peer, load: told.append((peer, load))  # type: ignore[method-assign,assignment]
    request: Any = Request(world)
    world.load.change("", 2)  # which the selector counts itself
    world.load.change("another", 4)
    world.dispatcher.own_load_is_news = True
    world.dispatcher.pick(request, set(), 1)
    world.dispatcher.pick(request, set(), 1)
    assert told == [("own", 4)]


def test_who_waits_looks_again_once_for_many_changes() -> None:
    world = World()
    request = Request(world)
    request.attempts.start()
    assert list(world.dispatcher.waiting) == [request.attempts]
    for _ in range(3):
        world.dispatcher.look_again()
    assert len(world.queued) == 1
    world.flush()
    assert list(world.dispatcher.waiting) == [request.attempts]  # there is still nobody
    world.dispatcher.reject_waiting("this node is shutting down")
    assert (world.dispatcher.waiting, request.attempts.state) == ({}, State.REJECTED)
    assert request.why == "this node is shutting down"
    world.dispatcher.look_again()
    assert world.queued == []


def test_a_request_that_was_rejected_before_the_flush_is_left_alone() -> None:
    world = World()
    request = Request(world)
    request.attempts.start()
    world.dispatcher.look_again()
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
    world = World("own")
    with pytest.raises(BackendUnavailable, match="no backend of default"):
        world.dispatcher.dial(ROUTE, lambda *_: None)


def test_an_own_dial_that_comes_to_nothing_leaves_no_load_behind() -> None:
    world = World("own", capacity=9)
    for n in range(5):
        request = Request(world, n)
        request.attempts.start()
        request.attempts.close()
    assert world.selector.own_in_flight("own") == 0
    world.dispatcher.pick(Request(world), set(), 1)  # type: ignore[arg-type]
    assert world.counters.decisions[-1].pick.chosen.in_flight == 0


# Those who wait


SPEECH = Route("speech")


def full(*peers: str) -> World:
    """Peers of one place each, which is taken, as they say."""
    world = World(*peers, capacity=1)
    for peer in peers:
        world.links[peer] = Link()
        world.selector.told(peer, 1)
    return world


def comes(world: World, number: int, route: Route = ROUTE) -> Request:
    request = Request(world, number, route, started_at=float(number))
    request.attempts.start()
    return request


def has_room(world: World, peer: str) -> None:
    """Whoever was there has gone."""
    for attempts in world.links[peer].opened:
        if attempts.peer_id == peer:
            attempts.close()
    world.selector.told(peer, 0)
    world.dispatcher.look_again()


def numbers(requests: list[Request], state: State = State.OPENING) -> list[int]:
    return [request.flow.connection for request in requests if request.state is state]


def test_one_place_that_gets_free_wakes_the_first_and_nobody_else() -> None:
    world = full("a")
    requests = [comes(world, n) for n in range(5)]
    assert numbers(requests, State.WAITING) == [0, 1, 2, 3, 4]
    world.flush()
    for n in range(5):
        has_room(world, "a")
        world.looks.clear()
        world.flush()
        assert (numbers(requests), numbers(requests, State.WAITING)) == ([n], list(range(n + 1, 5)))
        assert len(world.looks) == min(2, 5 - n)  # of the one that goes, and of the first that finds none
    assert world.dispatcher.waiting == {}


def test_places_that_get_free_together_are_taken_in_order() -> None:
    world = full("a", "b", "c")
    requests = [comes(world, n) for n in range(5)]
    for peer in ("a", "b", "c"):
        has_room(world, peer)
    assert len(world.queued) == 1
    world.flush()
    assert numbers(requests) == [0, 1, 2]
    assert numbers(requests, State.WAITING) == [3, 4]


def test_a_newcomer_is_behind_those_who_wait_though_there_is_room() -> None:
    world = full("a")
    waiting = comes(world, 1)
    world.selector.told("a", 0)
    newcomer = comes(world, 2)
    assert (waiting.state, newcomer.state) == (State.WAITING, State.WAITING)
    world.flush()  # the newcomer brought it up
    assert (waiting.state, newcomer.state) == (State.OPENING, State.WAITING)
    has_room(world, "a")
    world.flush()
    assert (waiting.state, newcomer.state) == (State.CLOSED, State.OPENING)


def test_who_is_sent_back_keeps_its_place() -> None:
    """It found a place, another entry's request was faster: it is not to wait behind those who came after it."""
    world = full("a")
    first, second = comes(world, 1), comes(world, 2)
    has_room(world, "a")
    world.flush()
    assert (first.state, second.state) == (State.OPENING, State.WAITING)
    comes(world, 3)
    first.attempts.busier(FULL)
    assert first.state is State.WAITING
    for request in (first, second):
        has_room(world, "a")
        world.flush()
        assert request.state is State.OPENING
        assert world.links["a"].opened[-1] is request.attempts


def test_a_place_that_we_give_back_wakes_the_first_before_the_peer_says_anything() -> None:
    world = full("a")
    has_room(world, "a")
    first, second, third = (comes(world, n) for n in range(3))
    assert [request.state for request in (first, second, third)] == [State.OPENING, State.WAITING, State.WAITING]
    first.attempts.close()
    world.flush()
    assert (second.state, third.state) == (State.OPENING, State.WAITING)


def test_a_peer_that_says_it_is_full_is_not_asked_again_for_a_place_that_we_give_back() -> None:
    """It says when there is room: others wait there as well."""
    world = full("a")
    world.capacity = 2
    world.selector.told("a", 0)
    first, second, third = (comes(world, n) for n in range(3))
    assert third.state is State.WAITING
    second.attempts.busier(FULL)
    first.attempts.close()
    world.flush()
    assert (second.state, third.state) == (State.WAITING, State.WAITING)
    world.selector.told("a", 1)
    world.dispatcher.look_again()
    world.flush()
    assert (second.state, third.state) == (State.OPENING, State.WAITING)


def test_a_peer_that_cannot_be_opened_is_not_asked_without_end() -> None:
    """The place that a failed attempt gives back wakes nobody who has just failed himself."""
    world = World("a", "own")  # no link, no backend
    requests = [comes(world, n) for n in range(3)]
    for _ in range(3):
        world.dispatcher.look_again()
        world.flush()
        assert (numbers(requests, State.WAITING), world.queued) == ([0, 1, 2], [])


def test_waiting_for_one_service_holds_up_no_other() -> None:
    world = full("default/a", "speech/b")
    default = [comes(world, n) for n in (1, 2)]
    speech = [comes(world, n, SPEECH) for n in (3, 4)]
    world.selector.told("speech/b", 0)
    world.dispatcher.look_again()
    world.flush()
    assert (numbers(default), numbers(speech)) == ([], [3])
    world.links["speech/c"] = Link()
    world.peers.append("speech/c")
    world.selector.told("speech/c", 0)
    speech[1].attempts.close()
    assert comes(world, 5, SPEECH).state is State.OPENING  # nobody waits for that any more


@pytest.mark.parametrize("how", ["reject", "close", "its time is over"])
def test_who_leaves_while_it_waits_leaves_nothing(how: str) -> None:
    world = full("a")
    requests = [comes(world, n) for n in range(3)]
    world.flush()
    for request in requests:
        if how == "reject":
            request.attempts.reject("unwanted")
        elif how == "close":
            request.attempts.close()
        else:
            world.timers[0].ring()
    full_up = "no peer is available: all are at their capacity"
    why = {"reject": "unwanted", "close": ""}.get(how, full_up)
    assert {(request.why or "").partition(",")[0] for request in requests} == {why}
    assert (world.dispatcher.waiting, world.dispatcher._queues, world.timers) == ({}, {}, [])
    has_room(world, "a")
    assert world.queued == []
    assert comes(world, 9).state is State.OPENING


def test_a_client_that_finds_no_peer_hears_why() -> None:
    """On layer 4 a connection that its client only keeps looks like one that is served: that may be all there is."""
    world = full("a")
    layer_4, http = comes(world, 1), comes(world, 2)
    http.takes_kept = True
    kept = ", where a connection that its client only keeps (idle, keep-alive) counts too"
    why = world.dispatcher.why_none
    assert why(layer_4) == f"no peer is available: all are at their capacity{kept}"
    assert why(http) == "no peer is available: all are at their capacity"
    world.peers.clear()
    assert why(layer_4) == "no peer is available"
    for request in (layer_4, http):
        request.attempts.close()


def test_who_leaves_in_the_middle_of_the_queue_holds_nobody_up() -> None:
    world = full("a")
    requests = [comes(world, n) for n in range(4)]
    requests[0].attempts.close()
    requests[2].attempts.reject("unwanted")
    for n in (1, 3):
        has_room(world, "a")
        world.flush()
        assert requests[n].state is State.OPENING


def test_nobody_is_woken_once_all_were_forgotten() -> None:
    world = full("a")
    requests = [comes(world, n) for n in range(3)]
    world.dispatcher.look_again()
    world.dispatcher.forget_waiting()
    world.flush()
    world.dispatcher.reject_waiting("this node stops")
    for request in requests:
        assert request.state is State.WAITING
        request.attempts.close()
    assert (world.dispatcher.waiting, world.dispatcher._queues, world.timers) == ({}, {}, [])


courses = st.lists(
    st.tuples(st.sampled_from(["comes", "room", "busier", "opened", "close", "reject", "flush"]), st.integers(0, 9)),
    max_size=50,
)


@given(courses)
def test_whatever_happens_everybody_waits_in_order(course: list[tuple[str, int]]) -> None:
    """`waiting` and the queues agree, the older one is ahead, and nothing is left in the end."""
    world = full("a", "b", "speech/c")
    requests: list[Request] = []
    for step, n in course:
        here = [request for request in requests if request.state not in (State.CLOSED, State.REJECTED)]
        request = here[n % len(here)] if here else None
        if step == "comes":
            requests.append(comes(world, len(requests), SPEECH if n % 3 == 0 else ROUTE))
        elif step == "room":
            has_room(world, ("a", "b", "speech/c")[n % 3])
        elif step == "flush":
            world.flush()
        elif request is not None and step in ("close", "reject"):
            request.attempts.reject("unwanted") if step == "reject" else request.attempts.close()
        elif request is not None and request.state is State.OPENING:
            if step == "busier" and n % 2:
                world.selector.told(request.attempts.peer_id, 1)
            getattr(request.attempts, step)(*[1 if n % 2 else FULL] * (step == "busier"))
        waiting = {request.attempts for request in requests if request.state is State.WAITING}
        assert set(world.dispatcher.waiting) == waiting
        queues = world.dispatcher._queues
        assert sum(map(len, queues.values())) == len(waiting)
        assert all(queue and queue == sorted(queue) for queue in queues.values())
    for request in requests:
        if request.state is not State.CLOSED:
            request.attempts.close()
    assert (world.dispatcher.waiting, world.dispatcher._queues, world.timers) == ({}, {}, [])
    assert [world.selector.own_in_flight(peer) for peer in world.peers] == [0, 0, 0]


# A peer that sends everything back, and whose turn it is


def test_a_peer_that_sends_all_requests_back_is_asked_more_and_more_rarely() -> None:
    """Or else one that always tells of a free place would have this entry ask without end."""
    world = World("a")
    request: Any = Request(world)
    for n in range(50):
        world.dispatcher.pick(request, set(), 1)
        world.dispatcher.sent_back("a", is_full=False)
        assert len(world.penalties) == max(0, n + 1 - BACK_AT_ONCE)
    assert [seconds for _, seconds in world.penalties] == pytest.approx([n / BACK_A_SECOND for n in range(1, 19)])
    for _ in range(1000):
        world.dispatcher.sent_back("a", is_full=False)
    assert world.penalties[-1] == ("a", LONGEST_REST_S)
    world.penalties.clear()
    world.dispatcher.accepted("a")
    world.dispatcher.sent_back("a", is_full=False)
    for _ in range(1000):  # of an honest one, where others are faster
        world.clock += 1.01 / BACK_A_SECOND
        world.dispatcher.sent_back("a", is_full=False)
    assert world.penalties == []


def freed(world: World, entry_id: str = "") -> bool:
    """A place of this node gets free while a client waits. Whether own clients may look at once."""
    world.queued.clear()
    world.dispatcher._retry_is_queued = False
    world.in_flight = 1
    world.dispatcher.own_load_changed(entry_id)
    world.queued.clear()
    world.dispatcher._retry_is_queued = False
    world.in_flight = 0
    world.dispatcher.own_load_changed("")
    return bool(world.queued)


def test_a_free_place_is_the_own_clients_or_the_others_by_chance() -> None:
    world = World()
    request: Any = Request(world)
    request.attempts.start()
    assert all(freed(world) for _ in range(20))  # nobody else looks at this node
    world.dispatcher.ways_of_others = lambda: [0.001, 0.002]
    turns = 0
    for _ in range(300):
        timers = len(world.timers)
        if freed(world):
            continue
        turns += 1
        world.in_flight = 1
        world.dispatcher.own_load_changed("other")  # it takes its turn
        assert not world.queued
        world.timers.pop().ring()
        assert len(world.timers) == timers
        assert world.queued  # and then it is the own clients' turn
    assert 150 < turns < 250  # two of three entries


def test_turns_that_nobody_takes_get_rare() -> None:
    world = World()
    request: Any = Request(world)
    request.attempts.start()
    world.dispatcher.ways_of_others = lambda: [0.001]
    turns = 0
    for _ in range(640):
        if not freed(world):
            turns += 1
            world.timers.pop().ring()
    assert 3 < turns < 60  # one of 32


def test_during_a_turn_of_others_the_own_place_is_not_seen() -> None:
    world = World("own", capacity=1)
    world.links["own"] = Link()
    request: Any = Request(world)
    world.in_flight = 1
    world.dispatcher.own_load_changed("")
    request.attempts.start()
    assert request.attempts in world.dispatcher.waiting
    world.dispatcher.ways_of_others = lambda: [0.001] * 10**6
    assert not freed(world)
    turn = world.timers[-1]
    world.dispatcher.look_again()
    world.flush()
    assert request.attempts in world.dispatcher.waiting
    assert not world.counters.decisions
    turn.ring()
    world.flush()
    assert [decision.pick.chosen.peer_id for decision in world.counters.decisions] == ["own"]
