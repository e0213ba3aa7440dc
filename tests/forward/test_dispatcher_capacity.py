"""Entries and exits in one process, of real dispatchers, muxes and backends: two machines of 2 and 8 places, and a crowd.

The network between them is a delay; what a backend does is the test's own. No socket, no loop, and a clock that jumps.
"""

from __future__ import annotations

import heapq
import random
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from federation.config import Settings
from federation.forward import exit as exit_module
from federation.forward.attempts import Attempts, State
from federation.forward.backends import Backends
from federation.forward.counters import Counters, Flow
from federation.forward.dispatcher import RosterDispatcher
from federation.forward.exit import serve_tunnel
from federation.forward.http.conversation import NO_KEYS
from federation.forward.pushing import Pushing
from federation.forward.route import Route
from federation.forward.selection import Policy, Selector
from federation.metrics import Metrics
from federation.net.link.mux import Load, Mux
from federation.reactor.duplex import NullDuplex

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.net.link.channel import Channel
    from federation.net.link.mux import RequestObserver
    from federation.reactor.duplex import Duplex

ROUTE = Route("default")
CAPACITIES = {"two": 2, "eight": 8}
WATCH_S = 30


class World:
    """The reactor, and the clock."""

    def __init__(self) -> None:
        self.clock = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def now(self) -> float:
        return self.clock

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Any:
        is_on = [True]
        self.at(self.clock + delay_s, lambda: is_on[0] and callback())
        return SimpleNamespace(cancel=lambda: is_on.__setitem__(0, False))

    def flush_soon(self, callback: Callable[[], None]) -> None:
        self.at(self.clock, callback)

    def at(self, when: float, callback: Callable[[], Any]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), callback))

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self.clock, _, callback = heapq.heappop(self._events)
            callback()
        self.clock = until


class Served(NullDuplex):
    """In place of exit.Serving: a backend that accepts at once, and serves until the entry resets."""

    def __init__(
        self, backends: Backends, backend: Any, done: Callable[[Any, str], None], entry_id: str = "", **_layer_7: bool
    ) -> None:
        self._backends, self._backend, self._entry_id = backends, backend, entry_id
        self._since = backends.reactor.now()
        self._is_over = False
        backends.took(backend, entry_id)
        backends.reactor.flush_soon(lambda: self._is_over or done(self, ""))

    def start(self, *, read: bool = True) -> None: ...

    def abort(self, reason: str) -> None:
        self.cancel()

    def cancel(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._backends.released(self._backend, self._entry_id, self._backends.reactor.now() - self._since)


class End:
    """One end of a link: the mux and what its owner, entry or exit, knows of the link."""

    least_rtt_s = 0.0

    def __init__(self, world: World, peer_id: str, owner: Any, load: Load, delay_s: float, *, initiator: bool) -> None:
        self.peer_id = peer_id
        self.far: End | None = None
        self._world, self._owner, self._delay_s = world, owner, delay_s
        self._is_queued = False
        self._watching_until = 0.0
        self._unread: list[Callable[[], None]] = []
        self.mux = Mux(initiator=initiator, handler=self, wake=self._wake, load=load, entry_id=peer_id)  # type: ignore[arg-type]

    def _wake(self) -> None:
        if not self._is_queued:
            self._is_queued = True
            self._world.flush_soon(self._write)

    def _write(self) -> None:
        self._is_queued = False
        while record := self.mux.next_record():
            self._world.call_later(self._delay_s, lambda record=record: self.far.read_record(record))

    def read_record(self, record: bytes) -> None:
        self.mux.feed(record)
        unread, self._unread = self._unread, []
        for callback in unread:
            callback()

    # For attempts, watching and the exit's flow

    def open_request(self, service: str, observer: RequestObserver, other: Duplex, believed: int) -> Channel:
        return self.mux.open_request(service, observer, other, believed)

    def when_read_empty(self, callback: Callable[[], None]) -> None:
        self._unread.append(callback)

    def watch(self, now: float) -> bool:
        was_watching = now < self._watching_until
        if self._watching_until - now < WATCH_S / 2:
            self._watching_until = now + WATCH_S
            self.mux.watch(WATCH_S)
        return was_watching

    def unwatch(self) -> None:
        self._watching_until = 0.0
        self.mux.watch(0)

    # The mux's handler

    def tunnel_opened(self, channel: Channel, service: str, believed: int) -> None:
        if self._owner.is_liar:
            channel.other = NullDuplex()
            channel.refuse_as_busier(1)
            return
        serve_tunnel(self._owner.backends, self, channel, service, believed)  # type: ignore[arg-type]

    def load_told(self, others: int) -> None:
        self._owner.selector.told(self.peer_id, others, is_fresh=self._world.now() < self._watching_until)
        self._owner.dispatcher.look_again()

    def watched(self, seconds: int) -> None:
        self._owner.pushing.watched(self, seconds)

    def look_wanted(self, service: str) -> None:
        raise AssertionError


class Exit:
    is_liar = False  # it tells of no load, and sends everything back

    def __init__(self, world: World, capacity: int) -> None:
        self.most = 0
        self.load = Load()
        self.links: dict[str, End] = {}
        self.backends = Backends(
            world, Settings(backends=("127.0.0.1:1",), capacity=capacity),  # type: ignore[arg-type]
            on_change=lambda: None, on_load=self._on_load, load=self.load,
        )  # fmt: skip
        self.pushing = Pushing(world, self.links.get, self.backends, random.Random(capacity))  # type: ignore[arg-type]
        self.backends.all[0].healthy, self.backends.all[0].target = True, (0, ())

    def _on_load(self, _entry_id: str) -> None:
        self.most = max(self.most, self.load.in_flight)
        self.pushing.changed()


class Entry:
    """Its own roster."""

    def __init__(self, world: World, number: int, exits: dict[str, Exit], delay_s: float, replay: str) -> None:
        self.own_id = f"entry{number}"
        self.selector = Selector(Policy.LEAST_LOADED, entry_id=self.own_id, rng=random.Random(number))
        self.metrics = Metrics()
        self.counters = Counters(self.metrics)
        self.penalties: list[str] = []
        self.in_flight = 0  # as the own backends have it
        self.links: dict[str, End] = {}
        self.opened: list[int] = []
        self._world = world
        self._nodes = [SimpleNamespace(peer_id=name, available_vram=0, capacity=CAPACITIES.get(name, 0)) for name in exits]
        self._rests: dict[str, float] = {}
        for name, exit_ in exits.items():
            ours = End(world, name, self, Load(), delay_s, initiator=True)
            theirs = End(world, self.own_id, exit_, exit_.load, delay_s, initiator=False)
            ours.far, theirs.far = theirs, ours
            self.links[name], exit_.links[self.own_id] = ours, theirs
        self.link = self.links.get
        self.dispatcher = RosterDispatcher(
            world, Settings(hold_s=60.0, replay=replay), roster=self, selector=self.selector,  # type: ignore[arg-type]
            backends=self, counters=self.counters, rng=random.Random(number),  # type: ignore[arg-type]
        )  # fmt: skip

    def eligible(self, _route: Route) -> list[Any]:
        resting = {peer_id for peer_id, until in self._rests.items() if until > self._world.now()}
        return [node for node in self._nodes if node.peer_id not in resting] if resting else self._nodes

    def distant(self, _route: Route) -> frozenset[str]:
        return frozenset()

    def catalogs(self, _service: str) -> list[Any]:
        return []

    def models_at(self, _route: Route) -> dict[str, Any]:
        return {}

    def is_known(self, _target: str) -> bool:
        return False

    def lacks(self, _route: Route, _peer_id: str) -> None: ...

    def is_unheard_of(self, _route: Route) -> bool:
        return False

    def penalize(self, peer_id: str, seconds: float) -> None:
        self.penalties.append(peer_id)
        self._rests[peer_id] = self._world.now() + seconds
        self._world.call_later(seconds, self.dispatcher.look_again)


class Request(NullDuplex):
    """Holds its backend for a while once it has one, then goes."""

    client_name, route, keys = "a client", ROUTE, NO_KEYS
    takes_kept = None
    is_kept_on = is_unheard = False

    def __init__(self, world: World, entry: Entry, number: int, hold_s: float) -> None:
        self._world, self._entry, self._hold_s = world, entry, hold_s
        self.flow, self.started_at, self.replay = Flow(number), world.now(), entry.dispatcher.replay
        self.why = ""
        self.upstream: Any = None
        self.attempts = Attempts(self, entry.dispatcher)
        self.attempts.start()

    def upstream_side(self) -> Any:
        return self

    def connected(self, upstream: Any) -> None:
        self.upstream = upstream

    def disconnected(self, reason: str) -> None:
        self.upstream.abort(reason)

    def flush_replay(self) -> None:
        self._entry.opened.append(self.flow.connection)
        self._world.call_later(self._hold_s, self._ends)

    def rejected(self, why: str) -> None:
        self.why = why

    def broken(self, reason: str) -> None:
        self.why = reason

    def _ends(self) -> None:
        self.upstream.abort("done")
        self.attempts.close()


@pytest.mark.parametrize("replay", ["opened", "never"])
@pytest.mark.parametrize("delay_s", [0.0003, 0.015])
async def test_nobody_is_over_capacity_and_everybody_waits_in_order(
    monkeypatch: pytest.MonkeyPatch, delay_s: float, replay: str
) -> None:
    """In trio, as backends have events. 300 requests of half a second come within 5 s at three entries: 30 for 10 places."""
    monkeypatch.setattr(exit_module, "Serving", Served)
    world, dice = World(), random.Random(7)
    exits = {name: Exit(world, capacity) for name, capacity in CAPACITIES.items()}
    entries = [Entry(world, n, exits, delay_s, replay) for n in range(3)]
    requests: list[Request] = []
    for _ in range(300):
        world.at(
            dice.uniform(0, 5.0),
            lambda: requests.append(Request(world, dice.choice(entries), len(requests), dice.uniform(0.3, 0.7))),
        )
    world.run(4.0)
    assert {name: exit_.load.in_flight for name, exit_ in exits.items()} == pytest.approx(CAPACITIES, abs=1)
    assert all(len(entry.dispatcher.waiting) > 10 for entry in entries)
    assert min(len(entry.opened) for entry in entries) > max(len(entry.opened) for entry in entries) / 3  # no entry starves
    world.run(60.0)
    assert {name: exit_.most for name, exit_ in exits.items()} == CAPACITIES
    assert [(request.why, request.attempts.state) for request in requests] == [("", State.CLOSED)] * 300
    for entry in entries:
        behind = [sum(other > number for other in entry.opened[:at]) for at, number in enumerate(entry.opened)]
        assert max(behind) <= 3, "somebody was overtaken"  # by those who were sent to the other machine meanwhile
        assert entry.penalties == []
        assert not entry.counters.failures
        assert not entry.dispatcher.waiting
        assert [entry.selector.own_in_flight(name) for name in exits] == [0, 0]
    assert [exit_.load.in_flight for exit_ in exits.values()] == [0, 0]


@pytest.mark.parametrize("replay", ["opened", "never"])
async def test_a_peer_that_sends_everything_back_keeps_nobody_from_the_others(
    monkeypatch: pytest.MonkeyPatch, replay: str
) -> None:
    """Nor does it make the entries ask without end, though many wait and it always seems to be idle."""
    monkeypatch.setattr(exit_module, "Serving", Served)
    world, dice = World(), random.Random(7)
    exits = {name: Exit(world, capacity) for name, capacity in {**CAPACITIES, "liar": 0}.items()}
    exits["liar"].is_liar = True
    entries = [Entry(world, n, exits, 0.0003, replay) for n in range(2)]
    requests: list[Request] = []
    for _ in range(200):
        world.at(
            dice.uniform(0, 5.0),
            lambda: requests.append(Request(world, dice.choice(entries), len(requests), dice.uniform(0.3, 0.7))),
        )
    world.run(30.0)
    assert {name: exit_.most for name, exit_ in exits.items()} == {**CAPACITIES, "liar": 0}
    assert [(request.why, request.attempts.state) for request in requests] == [("", State.CLOSED)] * 200
    for entry in entries:
        assert set(entry.penalties) == {"liar"}
        assert not entry.counters.failures
        assert entry.metrics.picked_again < 30 * 110  # a second, and what one may at once
        assert [entry.selector.own_in_flight(name) for name in exits] == [0, 0, 0]
