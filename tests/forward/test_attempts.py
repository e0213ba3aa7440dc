"""Attempts without a socket and without a loop: the test is the request, the peers and the clock."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from federation.config import Replay
from federation.errors import BackendUnavailable, PeerUnavailable
from federation.forward.attempts import FOLLOWS, REFUSED_PENALTY_S, SILENT_PENALTY_S, Attempts, State
from federation.forward.counters import Counters, Failure, Flow
from federation.forward.retry_budget import RetryBudget
from federation.forward.route import Route
from federation.forward.selection import Candidate
from federation.metrics import Metrics
from federation.net.link.frames import ANY_LOAD, FULL
from tests.support.links import End

if TYPE_CHECKING:
    from collections.abc import Callable, Set

OWN = "own"


@dataclass(eq=False)
class Alarm:
    when: float
    ring: Callable[[], None]
    alarms: set[Alarm]

    def cancel(self) -> bool:
        is_pending = self in self.alarms
        self.alarms.discard(self)
        return is_pending


@dataclass
class Link:
    """To one peer. What an attempt opens is the latest of `tunnels`."""

    is_closed: bool = False
    suspect: bool = False
    pings: int = 0
    tunnels: list[End] = field(default_factory=list)
    arrived: Callable[[], None] = lambda: None  # what lies in its socket

    believed: list[int] = field(default_factory=list)

    def open_request(self, service: str, observer: Attempts, other: Any, believed: int, /) -> Any:
        if self.is_closed:
            raise PeerUnavailable("the connection is closed")
        self.believed.append(believed)
        self.tunnels.append(End())
        return self.tunnels[-1]

    def read(self) -> None:
        self.arrived()

    def ping(self) -> None:
        self.pings += 1

    def watch(self, now: float) -> bool:
        return True

    def unwatch(self) -> None: ...


class Dial:
    def __init__(self, done: Callable[[Any, str], None]) -> None:
        self.done = done
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class BackendEnd(End):
    """The socket to our own backend, connected."""

    def start(self) -> None:
        self.heard.append("started")


class Dispatcher:
    """The peers in the order in which they are picked, without those that were penalized."""

    own_id = OWN
    hold_s = 10.0
    open_timeout_s = 3.0
    replay_buffer_bytes = 1000

    def __init__(self, *peers: str, replay: str = "opened") -> None:
        self.replay = Replay(replay)
        self.retries = RetryBudget()
        self.counters = Counters(Metrics())
        self.clock = 0.0
        self.alarms: set[Alarm] = set()
        self.links = {peer: Link() for peer in peers if peer != OWN}
        self.peers = list(peers)
        self.in_flight: Counter[str] = Counter()
        self.penalties: list[tuple[str, float]] = []
        self.accepts: list[str] = []
        self.refusals: list[str] = []  # of the kind that is no failure
        self.waiting: set[Attempts] = set()
        self.others = 0  # as the entry believes; what is its own comes on top
        self.full: list[str] = []
        self.picks: list[tuple[str, int, int]] = []
        self.dials: list[Dial] = []
        self.backend_is_full = False

    def now(self) -> float:
        return self.clock

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Any:
        alarm = Alarm(self.clock + delay_s, callback, self.alarms)
        self.alarms.add(alarm)
        return alarm

    def pick(self, request: Any, tried: Set[str], attempt: int, again: int) -> Candidate | None:
        peer = next((peer for peer in self.peers if peer not in tried), None)
        if peer is None:
            return None
        self.picks.append((peer, attempt, again))
        self.in_flight[peer] += 1
        return Candidate(peer, self.in_flight[peer] - 1 + self.others, 0.0, 0, others=self.others)

    def release(self, peer_id: str) -> None:
        self.in_flight[peer_id] -= 1

    def has_other(self, route: Route, tried: Set[str]) -> bool:
        return any(peer not in tried for peer in self.peers)

    def link(self, peer_id: str) -> Any:
        return self.links.get(peer_id)

    def dial(self, route: Route, done: Callable[[Any, str], None], *, takes_kept: bool | None = None) -> Dial:
        if self.backend_is_full:
            raise BackendUnavailable("this node is at its capacity")
        self.dials.append(Dial(done))
        return self.dials[-1]

    def accepted(self, peer_id: str) -> None:
        self.accepts.append(peer_id)

    def sent_back(self, peer_id: str, *, is_full: bool) -> None:
        self.refusals.append(peer_id)
        if is_full:
            self.full.append(peer_id)
            if peer_id in self.peers:
                self.peers.remove(peer_id)

    def penalize(self, peer_id: str, seconds: float) -> None:
        self.penalties.append((peer_id, seconds))
        if peer_id in self.peers:
            self.peers.remove(peer_id)

    def broke_off(self, route: Route, peer_id: str) -> None: ...

    def why_none(self, _request: Request) -> str:
        return "no peer is available"

    def wait(self, attempts: Attempts, _route: Route) -> None:
        self.waiting.add(attempts)

    def stop_waiting(self, attempts: Attempts) -> None:
        self.waiting.discard(attempts)

    # For the test

    def passes(self, seconds: float) -> None:
        until = self.clock + seconds
        while due := sorted((a for a in self.alarms if a.when <= until), key=lambda alarm: alarm.when):
            self.clock = max(self.clock, due[0].when)
            due[0].cancel()
            due[0].ring()
        self.clock = until

    def changes(self, *peers: str) -> None:
        """The roster: these peers are there now."""
        self.peers = list(peers)
        for peer in peers:
            self.links.setdefault(peer, Link())
        waiting, self.waiting = self.waiting, set()
        for attempts in waiting:
            attempts.try_again()

    def busy(self) -> dict[str, int]:
        return {peer: count for peer, count in self.in_flight.items() if count}


class Request:
    """Records what it hears, and resets its upstream as it has to."""

    is_kept_on = is_unheard = False

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self.flow = Flow(7)
        self.route = Route("default")
        self.replay = dispatcher.replay
        self.client_name = "a client"
        self.takes_kept: bool | None = None
        self.started_at = dispatcher.now()
        self.heard: list[str] = []
        self.upstream: Any = None
        self.attempts = Attempts(self, dispatcher)
        self.attempts.start()

    @property
    def state(self) -> State:
        return self.attempts.state

    @property
    def failures(self) -> list[tuple[str, str]]:
        return [(failure.peer_id, failure.why) for failure in self.dispatcher.counters.failures]

    def upstream_side(self) -> Any:
        return self

    def connected(self, upstream: Any) -> None:
        assert self.upstream is None
        self.upstream = upstream

    def flush_replay(self) -> None:
        self.heard.append("accepted")

    def disconnected(self, reason: str) -> None:
        if self.upstream is not None:
            self.upstream.abort(reason)
            self.upstream = None

    def rejected(self, why: str) -> None:
        self.heard.append(f"rejected: {why}")

    def broken(self, reason: str) -> None:
        self.heard.append(f"broken: {reason}")

    def leaves(self) -> None:
        self.disconnected("the client has gone")
        self.attempts.close()


def test_every_state_has_a_row_and_every_row_ends() -> None:
    assert set(FOLLOWS) == set(State)
    for state, followers in FOLLOWS.items():
        assert (State.CLOSED in followers) == (state not in (State.IDLE, State.CLOSED))
        assert state not in followers


def test_what_may_not_follow_is_an_error() -> None:
    request = Request(Dispatcher("a"))
    with pytest.raises(AssertionError, match="opening -> streaming"):
        request.attempts.to(State.STREAMING)


# Picking


@pytest.mark.parametrize("replay", ["opened", "never"])
def test_the_plain_way(replay: str) -> None:
    dispatcher = Dispatcher("a", replay=replay)
    request = Request(dispatcher)
    assert (request.state, request.upstream) == (State.OPENING, dispatcher.links["a"].tunnels[0])
    assert dispatcher.busy() == {"a": 1}
    request.attempts.opened()
    assert (request.state, request.heard, dispatcher.alarms) == (State.COMMITTED, ["accepted"], set())
    request.leaves()
    assert (request.state, dispatcher.busy()) == (State.CLOSED, {})


def test_with_first_byte_it_is_opened_until_it_is_committed() -> None:
    request = Request(Dispatcher("a", replay="first-byte"))
    request.attempts.opened()
    assert request.state is State.OPENED
    request.attempts.commit()
    assert request.state is State.COMMITTED
    request.attempts.commit()
    assert request.state is State.COMMITTED


@pytest.mark.parametrize("missing", ["link", "open link"])
@pytest.mark.parametrize("replay", ["opened", "never"])
def test_a_peer_without_a_connection_is_passed_over(missing: str, replay: str) -> None:
    dispatcher = Dispatcher("a", "b", replay=replay)
    if missing == "link":
        del dispatcher.links["a"]
    else:
        dispatcher.links["a"].is_closed = True
    request = Request(dispatcher)
    assert dispatcher.penalties == []
    assert [peer for peer, _ in request.failures] == ["a"]
    if replay == "never":
        assert (request.state, request.heard) == (State.REJECTED, ["rejected: the peer could not take the connection"])
        assert dispatcher.busy() == {}
    else:
        assert (request.attempts.peer_id, dispatcher.busy()) == ("b", {"b": 1})


def test_each_peer_is_tried_once_then_the_request_waits_for_news() -> None:
    dispatcher = Dispatcher("a", "b", "c")
    request = Request(dispatcher)
    for _ in range(3):
        request.attempts.refused("no")
    assert request.failures == [("a", "no"), ("b", "no"), ("c", "no")]
    assert (request.state, dispatcher.waiting, dispatcher.busy()) == (State.WAITING, {request.attempts}, {})
    dispatcher.changes("b")
    assert (request.state, request.attempts.peer_id, request.attempts.count) == (State.OPENING, "b", 4)
    assert dispatcher.counters.totals.retried == 3


def test_news_that_help_nobody_leave_the_deadline_as_it_was() -> None:
    dispatcher = Dispatcher()
    request = Request(dispatcher)
    for _ in range(9):
        dispatcher.passes(1.0)
        dispatcher.changes()
    assert request.state is State.WAITING
    dispatcher.passes(1.0)
    assert request.heard == ["rejected: no peer is available"]
    assert not dispatcher.waiting


def test_patience_is_for_waiting_and_an_attempt_takes_none_of_it() -> None:
    """Or else the longest attempt, which is the one that has waited for a slow model, would never be retried."""
    dispatcher = Dispatcher("a")
    dispatcher.hold_s = 2.0
    request = Request(dispatcher)
    dispatcher.passes(3.0)  # nobody answers
    assert request.state is State.WAITING
    dispatcher.passes(1.9)
    assert request.state is State.WAITING
    dispatcher.passes(0.2)
    assert request.state is State.REJECTED


def test_a_request_that_nobody_wants_is_released_wherever_it_is() -> None:
    for peers in ((), ("a",), (OWN,)):
        dispatcher = Dispatcher(*peers)
        request = Request(dispatcher)
        request.attempts.reject("this node is shutting down")
        assert request.heard == ["rejected: this node is shutting down"]
        assert (dispatcher.busy(), dispatcher.alarms, dispatcher.waiting) == ({}, set(), set())
        assert [dial.is_cancelled for dial in dispatcher.dials] == [True] * len(dispatcher.dials)
        request.leaves()


# How an attempt fails


@pytest.mark.parametrize("replay", ["opened", "first-byte", "never"])
@pytest.mark.parametrize("how", ["refused", "lost", "timeout"])
def test_the_next_peer(replay: str, how: str) -> None:
    dispatcher = Dispatcher("a", "b", replay=replay)
    request = Request(dispatcher)
    first = dispatcher.links["a"]
    if how == "timeout":
        dispatcher.passes(3.0)
    else:
        getattr(request.attempts, how)("gone")
    reason = "no answer within 3 s" if how == "timeout" else "gone"
    assert first.pings == (how == "timeout")
    assert first.tunnels[0].heard == [f"RST {reason}"]
    assert dispatcher.penalties == [("a", SILENT_PENALTY_S if how == "timeout" else REFUSED_PENALTY_S)]
    assert list(dispatcher.counters.failures) == [Failure(Flow(7), 1, "a", reason)]
    if replay == "never":
        assert (request.state, request.heard) == (State.REJECTED, [f"rejected: {reason}"])
        assert (dispatcher.busy(), dispatcher.counters.totals.retried) == ({}, 0)
    else:
        assert (request.state, dispatcher.busy()) == (State.OPENING, {"b": 1})
        assert dispatcher.counters.totals.retried == 1


def test_every_attempt_has_its_own_time() -> None:
    dispatcher = Dispatcher("a", "b")
    request = Request(dispatcher)
    dispatcher.passes(2.9)
    request.attempts.refused("no")
    dispatcher.passes(2.9)
    assert (request.state, request.attempts.peer_id) == (State.OPENING, "b")
    dispatcher.passes(0.2)
    assert (request.state, request.failures[1]) == (State.WAITING, ("b", "no answer within 3 s"))


def test_an_answer_stops_the_clock() -> None:
    dispatcher = Dispatcher("a", "b")
    request = Request(dispatcher)
    dispatcher.passes(2.9)
    request.attempts.opened()
    dispatcher.passes(1000)
    assert (request.state, dispatcher.penalties) == (State.COMMITTED, [])


@pytest.mark.parametrize("how", ["opened", "refused", "lost"])
def test_what_has_arrived_by_the_time_of_the_timeout_counts(how: str) -> None:
    """On a busy machine the timer may come first: an OPENED in the socket means that the backend is being served."""
    dispatcher = Dispatcher("a", "b")
    request = Request(dispatcher)
    answer = getattr(request.attempts, how)
    dispatcher.links["a"].arrived = answer if how == "opened" else lambda: answer("no")
    dispatcher.passes(3.0)
    assert dispatcher.links["a"].pings == 0
    assert request.attempts.peer_id == ("a" if how == "opened" else "b")
    assert dispatcher.penalties == ([] if how == "opened" else [("a", REFUSED_PENALTY_S)])


@pytest.mark.parametrize("how", ["refused", "lost", "timeout"])
def test_what_failed_on_a_link_that_was_replaced_says_nothing_of_the_peer(how: str) -> None:
    """A laptop that moved: it is here by a new link, and who waited for it on the old one must not bar it."""
    dispatcher = Dispatcher("a", "b")
    request = Request(dispatcher)
    dispatcher.links["a"] = Link()
    if how == "timeout":
        dispatcher.passes(3.0)
    else:
        getattr(request.attempts, how)("gone")
    assert (request.attempts.peer_id, dispatcher.penalties) == ("b", [])


def test_after_the_commit_the_client_hears_of_it() -> None:
    dispatcher = Dispatcher("a", "b")
    request = Request(dispatcher)
    request.attempts.opened()
    request.attempts.lost("the peer died")
    assert request.heard == ["accepted", "broken: the peer died"]
    assert (dispatcher.busy(), dispatcher.penalties) == ({"a": 1}, [])


@pytest.mark.parametrize(
    ("replay", "others", "moves"),
    [("first-byte", ["b"], True), ("first-byte", [], False), ("opened", ["b"], False), ("never", ["b"], False)],
)
def test_an_end_without_an_answer_moves_where_it_may(replay: str, others: list[str], moves: bool) -> None:
    dispatcher = Dispatcher("a", *others, replay=replay)
    request = Request(dispatcher)
    request.attempts.opened()
    assert request.attempts.ended_without_answer() is moves
    assert request.attempts.peer_id == ("b" if moves else "a")


# A peer that is busier than this entry believed


def sent_back(dispatcher: Dispatcher) -> list[tuple[int, int, int | None, int]]:
    return [(row.attempt, row.again, row.had, row.believed) for row in dispatcher.counters.busier]


@pytest.mark.parametrize("replay", ["opened", "first-byte", "never"])
def test_a_request_that_is_sent_back_is_picked_again_as_if_nothing_had_been(replay: str) -> None:
    dispatcher = Dispatcher("a", "b", replay=replay)
    dispatcher.others = 2
    request = Request(dispatcher)
    tunnel = request.upstream
    dispatcher.peers, dispatcher.others = ["b", "a"], 3
    request.attempts.busier(5)
    assert (request.state, request.attempts.peer_id, request.attempts.count) == (State.OPENING, "b", 1)
    assert tunnel.heard == ["RST "]  # which a mux does not send any more
    assert (dispatcher.busy(), dispatcher.penalties, request.failures) == ({"b": 1}, [], [])
    assert (dispatcher.counters.totals.retried, len(dispatcher.alarms)) == (0, 1)
    assert sent_back(dispatcher) == [(1, 0, 5, 2)]
    assert dispatcher.picks == [("a", 1, 0), ("b", 1, 1)]
    request.attempts.opened()
    assert request.heard == ["accepted"]


def test_a_peer_that_sent_a_request_back_may_be_picked_again() -> None:
    dispatcher = Dispatcher("a")
    request = Request(dispatcher)
    request.attempts.busier(5)
    assert (request.state, request.attempts.peer_id) == (State.OPENING, "a")
    assert dispatcher.busy() == {"a": 1}


def test_after_two_times_the_peer_is_not_asked_to_compare() -> None:
    dispatcher = Dispatcher("a", "b")
    dispatcher.others = 4
    request = Request(dispatcher)
    for others in (5, 6):
        request.attempts.busier(others)
    assert dispatcher.links["a"].believed == [4, 4, ANY_LOAD]
    request.attempts.opened()
    assert (request.state, request.attempts.count) == (State.COMMITTED, 1)


@pytest.mark.parametrize("replay", ["opened", "never"])
def test_a_peer_that_compares_a_third_time_is_passed_over(replay: str) -> None:
    """It was not asked to. That is no failure either; nor does a peer that always says so turn a request in circles."""
    dispatcher = Dispatcher("a", "b", replay=replay)
    request = Request(dispatcher)
    for _ in range(3):
        request.attempts.busier(9)
    assert (request.attempts.peer_id, request.attempts.count, dispatcher.busy()) == ("b", 1, {"b": 1})
    assert dispatcher.links["b"].believed == [ANY_LOAD]
    request.attempts.busier(9)
    assert (request.state, dispatcher.busy(), dispatcher.waiting) == (State.WAITING, {}, {request.attempts})
    assert (request.failures, dispatcher.penalties, dispatcher.counters.totals.retried) == ([], [], 0)
    assert len(sent_back(dispatcher)) == 4
    assert dispatcher.refusals == ["a", "a", "a", "b"]
    dispatcher.changes("b")
    request.attempts.opened()
    assert dispatcher.accepts == ["b"]


def test_only_what_others_have_there_is_compared_and_both_are_told_with_our_own() -> None:
    dispatcher = Dispatcher("a")
    dispatcher.others = 2
    for _ in range(3):
        Request(dispatcher)
    request = Request(dispatcher)
    request.attempts.busier(5)
    assert dispatcher.links["a"].believed == [2] * 5
    assert sent_back(dispatcher) == [(1, 0, 3 + 5, 3 + 2)]


@pytest.mark.parametrize("replay", ["opened", "first-byte", "never"])
def test_a_full_peer_is_passed_over_and_that_is_no_failure(replay: str) -> None:
    dispatcher = Dispatcher("a", "b", replay=replay)
    dispatcher.others = 2
    request = Request(dispatcher)
    request.attempts.busier(FULL)
    assert dispatcher.full == ["a"]
    assert (request.attempts.peer_id, request.attempts.count, dispatcher.busy()) == ("b", 1, {"b": 1})
    assert (request.failures, dispatcher.penalties, dispatcher.counters.totals.retried) == ([], [], 0)
    assert sent_back(dispatcher) == [(1, 0, None, 2)]
    request.attempts.opened()
    assert request.heard == ["accepted"]


def test_where_all_are_full_the_request_waits_for_room() -> None:
    dispatcher = Dispatcher("a", "b", replay="never")
    request = Request(dispatcher)
    for _ in range(2):
        request.attempts.busier(FULL)
    assert (request.state, dispatcher.full, dispatcher.busy()) == (State.WAITING, ["a", "b"], {})
    dispatcher.changes("b")
    assert (request.state, request.attempts.peer_id, request.failures) == (State.OPENING, "b", [])


def test_a_full_peer_does_not_use_up_the_comparisons() -> None:
    dispatcher = Dispatcher("a", "b", "c", "d")
    request = Request(dispatcher)
    for _ in range(3):
        request.attempts.busier(FULL)
    assert dispatcher.links["d"].believed == [0]
    for _ in range(2):
        request.attempts.busier(1)
    assert dispatcher.links["d"].believed == [0, 0, ANY_LOAD]
    request.attempts.busier(FULL)  # which it may say whether it compares or not
    assert (request.state, request.failures) == (State.WAITING, [])


def test_a_request_that_waited_may_be_sent_back_again() -> None:
    """Where all are full, a request runs for each slot that gets free, and some other entry's request is often faster."""
    dispatcher = Dispatcher("a", replay="never")
    request = Request(dispatcher)
    for n in range(6):
        request.attempts.busier(FULL)
        assert (request.state, request.attempts.count) == (State.WAITING, 0)
        dispatcher.changes("a")
        assert (request.state, request.attempts.count) == (State.OPENING, 1)
        assert dispatcher.picks[-1] == ("a", 1, n + 1)
    assert (request.failures, dispatcher.penalties) == ([], [])
    assert ANY_LOAD not in dispatcher.links["a"].believed
    assert [row[:2] for row in sent_back(dispatcher)] == [(1, n) for n in range(6)]  # each is told apart
    request.attempts.opened()
    assert request.state is State.COMMITTED


def test_the_way_to_a_peer_and_back_takes_of_a_requests_patience() -> None:
    """Or else a peer that says it has room, and has none, could keep a request for ever."""
    dispatcher = Dispatcher("a")
    request = Request(dispatcher)
    for n in range(100):
        assert n < 5, "it goes on for ever"
        dispatcher.passes(2.5)
        request.attempts.busier(FULL)
        if request.state is State.REJECTED:
            break
        dispatcher.changes("a")
    assert dispatcher.clock == dispatcher.hold_s
    assert request.heard == ["rejected: no peer is available"]
    assert (dispatcher.busy(), dispatcher.alarms, dispatcher.waiting) == ({}, set(), set())


# A suspect peer


@pytest.mark.parametrize(
    ("replay", "is_open", "others", "moves"),
    [
        ("opened", False, ["b"], True),
        ("opened", False, [], False),  # it may only have paused
        ("opened", True, ["b"], False),  # its backend has the request
        ("first-byte", False, ["b"], True),
        ("first-byte", False, [], False),
        ("first-byte", True, ["b"], True),
        ("never", False, ["b"], False),
        ("never", True, ["b"], False),
    ],
)
def test_a_suspect_peer(replay: str, is_open: bool, others: list[str], moves: bool) -> None:
    dispatcher = Dispatcher("a", *others, replay=replay)
    request = Request(dispatcher)
    if is_open:
        request.attempts.opened()
    dispatcher.links["a"].suspect = True
    request.attempts.peer_suspect()
    assert request.attempts.peer_id == ("b" if moves else "a")
    assert dispatcher.penalties == ([("a", SILENT_PENALTY_S)] if moves else [])


def test_another_link_of_the_suspect_peer_is_another_matter() -> None:
    dispatcher = Dispatcher("a", "b")
    request = Request(dispatcher)
    dispatcher.links["a"] = Link(suspect=True)
    request.attempts.peer_suspect()
    assert request.attempts.peer_id == "a"


def test_who_waits_on_a_link_that_was_replaced_leaves_it_when_it_is_suspect() -> None:
    """It waited for the whole of --open-timeout: nobody told it."""
    dispatcher = Dispatcher("a", "b")
    request = Request(dispatcher)
    dispatcher.links["a"].suspect = True
    dispatcher.links["a"] = Link()
    request.attempts.peer_suspect()
    assert request.attempts.peer_id == "b"
    assert dispatcher.penalties == []  # the peer itself has come back


def _kept_on(*peers: str, replay: str = "opened") -> tuple[Dispatcher, Request]:
    dispatcher = Dispatcher(*peers, replay=replay)
    request = Request(dispatcher)
    request.is_kept_on = True
    request.attempts.opened()
    return dispatcher, request


def test_what_was_opened_moves_if_its_link_ends_before_a_byte_has_arrived() -> None:
    dispatcher, request = _kept_on("a", "b")
    assert request.state is State.OPENED
    del dispatcher.links["a"]
    request.is_unheard = True
    request.attempts.lost("the link is gone")
    assert (request.state, request.attempts.peer_id) == (State.OPENING, "b")
    assert request.heard == ["accepted"]


def test_what_was_opened_stays_if_a_byte_may_have_arrived() -> None:
    _, request = _kept_on("a", "b")
    request.attempts.lost("the link is gone")
    assert (request.state, request.attempts.peer_id) == (State.STREAMING, "a")
    assert request.heard == ["accepted", "broken: the link is gone"]


def test_what_was_opened_once_stays_with_a_suspect_peer() -> None:
    dispatcher, request = _kept_on("a", "b")
    dispatcher.links["a"].suspect = True
    request.attempts.peer_suspect()
    assert (request.state, request.attempts.peer_id) == (State.OPENED, "a")
    assert not request.attempts.answered_badly("503")
    request.attempts.commit()
    assert request.state is State.COMMITTED


def test_with_one_attempt_nothing_is_kept_on() -> None:
    _, request = _kept_on("a", "b", replay="never")
    assert request.state is State.COMMITTED


# Our own backend


def test_the_own_backend_is_dialled_and_gets_what_was_sent_once_it_has_accepted() -> None:
    dispatcher = Dispatcher(OWN)
    request = Request(dispatcher)
    assert (request.state, request.upstream) == (State.DIALLING, None)
    end = BackendEnd()
    dispatcher.dials[0].done(end, "")
    assert (request.state, request.upstream, end.other) == (State.COMMITTED, end, request)
    assert end.heard == ["started"]
    assert dispatcher.alarms == set()


def test_an_own_backend_that_refuses_is_like_any_other() -> None:
    dispatcher = Dispatcher(OWN, "a")
    request = Request(dispatcher)
    dispatcher.dials[0].done(None, "Connection refused")
    assert (request.attempts.peer_id, dispatcher.penalties) == ("a", [(OWN, REFUSED_PENALTY_S)])


def test_an_own_backend_without_room_is_passed_over() -> None:
    dispatcher = Dispatcher(OWN, "a")
    dispatcher.backend_is_full = True
    request = Request(dispatcher)
    assert (request.attempts.peer_id, dispatcher.penalties) == ("a", [])
    assert request.failures == [(OWN, "this node is at its capacity")]


def test_a_client_that_leaves_during_the_dial_ends_it() -> None:
    dispatcher = Dispatcher(OWN)
    Request(dispatcher).leaves()
    assert dispatcher.dials[0].is_cancelled
    assert dispatcher.busy() == {}


# Whatever happens


class AnyCourse(RuleBasedStateMachine):
    """Requests and peers do anything they can; when all have left, no counter, timer, dial or wait is left."""

    @initialize(replay=st.sampled_from(["opened", "first-byte", "never"]))
    def begin(self, replay: str) -> None:
        self.dispatcher = Dispatcher(OWN, "a", "b", replay=replay)
        self.requests: list[Request] = []
        self.dice = 0

    def one_of(self, states: Set[State]) -> Request | None:
        found = [request for request in self.requests if request.state in states]
        self.dice += 1
        return found[self.dice % len(found)] if found else None

    @rule()
    def comes(self) -> None:
        self.requests.append(Request(self.dispatcher))

    @rule(how=st.sampled_from(["opened", "refused", "lost"]))
    def peer_answers(self, how: str) -> None:
        if request := self.one_of({State.OPENING}):
            getattr(request.attempts, how)(*([] if how == "opened" else ["no"]))

    @rule(others=st.one_of(st.integers(0, 9), st.just(FULL)))
    def peer_is_busier(self, others: int) -> None:
        if request := self.one_of({State.OPENING}):
            count, failures = request.attempts.count, len(self.dispatcher.counters.failures)
            request.attempts.busier(others)
            if len(self.dispatcher.counters.failures) == failures:
                assert request.attempts.count == count - (request.state in (State.WAITING, State.REJECTED))

    @rule(is_up=st.booleans())
    def own_backend_answers(self, is_up: bool) -> None:
        open_dials = [dial for dial in self.dispatcher.dials if not dial.is_cancelled]
        if open_dials:
            self.dispatcher.dials.remove(open_dials[0])
            open_dials[0].done(BackendEnd() if is_up else None, "no")

    @rule(is_full=st.booleans())
    def own_backend_changes(self, is_full: bool) -> None:
        self.dispatcher.backend_is_full = is_full

    @rule(how=st.sampled_from(["lost", "commit", "ended_without_answer", "peer_suspect"]))
    def open_one(self, how: str) -> None:
        if request := self.one_of({State.OPENED, State.COMMITTED}):
            getattr(request.attempts, how)(*(["gone"] if how == "lost" else []))

    @rule()
    def streams(self) -> None:
        if request := self.one_of({State.COMMITTED}):
            request.attempts.to(State.STREAMING)

    @rule(peers=st.lists(st.sampled_from([OWN, "a", "b", "c"]), unique=True))
    def roster_changes(self, peers: list[str]) -> None:
        self.dispatcher.changes(*peers)

    @rule(peer=st.sampled_from(["a", "b", "c"]), is_closed=st.booleans())
    def link_changes(self, peer: str, is_closed: bool) -> None:
        self.dispatcher.links[peer] = Link(is_closed)

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0, 10.0]))
    def time_passes(self, seconds: float) -> None:
        self.dispatcher.passes(seconds)

    @rule()
    def is_rejected(self) -> None:
        if request := self.one_of(set(State) - {State.REJECTED, State.CLOSED}):
            request.attempts.reject("unwanted")

    @rule()
    def leaves(self) -> None:
        if request := self.one_of(set(State) - {State.CLOSED}):
            request.leaves()

    @invariant()
    def the_books_are_right(self) -> None:
        dispatcher = self.dispatcher
        held = Counter(request.attempts.peer_id for request in self.requests if request.attempts.peer_id)
        assert dispatcher.busy() == held
        for request in self.requests:
            has_peer = request.state not in (State.WAITING, State.REJECTED, State.CLOSED)
            assert bool(request.attempts.peer_id) == has_peer
            assert (request.attempts in dispatcher.waiting) == (request.state is State.WAITING)
            assert sum(word.startswith("rejected") for word in request.heard) <= 1
        waits = sum(request.state in (State.WAITING, State.OPENING) for request in self.requests)
        assert len(dispatcher.alarms) == waits

    def teardown(self) -> None:
        for request in getattr(self, "requests", []):
            if request.state is not State.CLOSED:
                request.leaves()
        if hasattr(self, "dispatcher"):
            assert self.dispatcher.busy() == {}
            assert (self.dispatcher.alarms, self.dispatcher.waiting) == (set(), set())
            assert all(dial.is_cancelled for dial in self.dispatcher.dials)


TestAnyCourse = AnyCourse.TestCase
