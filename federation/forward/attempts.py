"""One request's way to a backend: pick a peer, open an upstream, and go to the next peer if that one fails.

A small state machine on the reactor, without a task of its own. It knows no client socket and no byte: the request keeps
its client's bytes (replay_buffer.py), hands them to each upstream, and says when it has got too far to move.

    WAITING --pick--> OPENING, DIALLING --accepted--> OPENED --commit--> COMMITTED --all passed on--> STREAMING
       ^                 |  refused, reset, timeout,    |
       |                 |  the peer is suspect         |
       +-----------------+------------------------------+   REJECTED: no peer is left, or the request is unwanted

An exit that has more in flight than this entry believed says BUSIER: nothing was done, and the entry picks again. That is no
failure: no penalty, and no attempt that counts. After MOST_BUSIER of them the exit is not asked to compare any more, until
the request has waited; from one that compares even then the request goes to the others, or waits. One that says FULL is
left alone until it tells its load. A request that is sent back keeps its place among those that wait, and its patience runs
on.

With `--replay opened` a request is committed as soon as a backend has accepted: no backend has seen a byte before, so
nothing is done twice. A layer-4 client's bytes are kept a little longer, until its backend answers or they outgrow the
replay buffer: if the link ends meanwhile, and not a byte had arrived, it moves like one that was never opened. With
`first-byte` it stays OPENED until the backend's first byte, or until it has outgrown the replay buffer; then it may
move although a backend has had it, within the entry's budget (retry_budget.py). With `never` there is one attempt.
`auto` (default) is one of the first two; the request knows which. The pick, and the counter it raises, come before
anything else happens.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Protocol

import structlog

from federation.config import Replay
from federation.errors import BackendUnavailable, PeerUnavailable
from federation.forward.counters import Busier, Failure
from federation.forward.watching import WatchableLink
from federation.net.link.frames import ANY_LOAD, FULL

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence, Set

    from federation.forward.counters import Counters, Flow
    from federation.forward.exit import BackendEnd, Done
    from federation.forward.http.conversation import Keys
    from federation.forward.http.kept_bodies import KeptBodies
    from federation.forward.retry_budget import RetryBudget
    from federation.forward.route import Route
    from federation.forward.selection import Candidate
    from federation.mesh.models import Catalog
    from federation.metrics import RetryReason
    from federation.reactor.duplex import Duplex, Joinable
    from federation.reactor.loop import Timer

log = structlog.get_logger(__name__)

# How long a peer that failed is left alone. It said no: long enough for its backend's next check, and for the news to
# come by gossip. It said nothing: until the PING that goes with it has made it suspect (2.25 s at most) or has been
# answered.
REFUSED_PENALTY_S = 1.0
SILENT_PENALTY_S = 2.5

MOST_BUSIER = 2  # each costs a round trip, and the third exit that looks idle is as good as any


class State(str, Enum):
    IDLE = "idle"  # a connection between two requests, which has no attempts
    WAITING = "waiting"  # no peer: for the roster to change, or for the pick
    DIALLING = "dialling"  # our own backend is being connected
    OPENING = "opening"  # a tunnel was asked for; the client's bytes follow the OPEN
    OPENED = "opened"  # the backend has accepted, and the request may still move
    COMMITTED = "committed"  # it stays there: nothing is replayed any more. The replay buffer is still being passed on
    STREAMING = "streaming"  # all that was kept is passed on: client and upstream talk to each other
    REJECTED = "rejected"  # the client is told why
    CLOSED = "closed"


FINAL = (State.COMMITTED, State.STREAMING)  # the request stays with its peer, whatever happens
_ANY_TIME = (State.REJECTED, State.CLOSED)
FOLLOWS: dict[State, tuple[State, ...]] = {
    State.IDLE: (),
    State.WAITING: (State.DIALLING, State.OPENING, *_ANY_TIME),
    State.DIALLING: (State.COMMITTED, State.OPENED, State.WAITING, *_ANY_TIME),
    State.OPENING: (State.COMMITTED, State.OPENED, State.WAITING, *_ANY_TIME),
    State.OPENED: (State.COMMITTED, State.WAITING, *_ANY_TIME),
    State.COMMITTED: (State.STREAMING, *_ANY_TIME),
    State.STREAMING: _ANY_TIME,  # REJECTED: a web page's next request, which may not ask
    State.REJECTED: (State.CLOSED,),
    State.CLOSED: (),
}


class Request(Protocol):
    """The subject of attempts: a layer-4 client, or one request of many on a connection."""

    flow: Flow
    route: Route
    keys: Keys  # of its conversation; none on layer 4
    client_name: str
    started_at: float

    @property
    def takes_kept(self) -> bool | None:
        """Whether a connection that its backend has kept will do. None on layer 4."""

    @property
    def replay(self) -> Replay:
        """How far it may be retried; never AUTO."""

    @property
    def is_unheard(self) -> bool:
        """Whether not a byte of it has arrived at its peer, whose link has ended."""

    @property
    def is_kept_on(self) -> bool:
        """Whether its bytes are kept until that cannot be any more."""

    def upstream_side(self) -> Duplex:
        """The end that a new upstream is to be joined to: it brings the answer, and calls `Attempts.lost` when it breaks."""

    def connected(self, upstream: Joinable) -> None:
        """Give the upstream all that the client has sent so far, and all that follows."""

    def flush_replay(self) -> None:
        """The backend behind the upstream has accepted: see if that commits, and give the upstream all that is pending."""

    def disconnected(self, reason: str) -> None:
        """The attempt is over: reset its upstream, if there was one already."""

    def rejected(self, why: str) -> None:
        """There will be no other attempt."""

    def broken(self, reason: str) -> None:
        """The upstream broke after the commit: the client is to hear a reset."""


class PeerLink(WatchableLink, Protocol):
    """A link, as an attempt uses it; net.link.link.Link implements this."""

    suspect: bool
    """It does not answer, or what is sent on it does not arrive."""

    def open_request(self, service: str, observer: Attempts, other: Duplex, believed: int, /) -> Joinable:
        """`believed`: the load of the peer by others, for it to compare, or ANY_LOAD. Raises PeerUnavailable."""

    def open_exchange(
        self, service: str, observer: Attempts, other: Duplex, believed: int, /, *, takes_kept: bool
    ) -> Joinable:
        """As `open_request`, for a request that may end by `Keepable.keep`."""

    def read(self) -> None:
        """Handle the bytes in its socket now."""

    def ping(self) -> None: ...

    def look(self, service: str, now: float) -> None:
        """Have the peer ask its backends for their models."""


class Dialling(Protocol):
    """A connect to our own backend."""

    def cancel(self) -> None: ...


class Dispatcher(Protocol):
    """The node, as attempts and the requests that they serve use it; see dispatcher.py. Settings may change any time."""

    own_id: str
    name_of: Callable[[str], str]
    hold_s: float
    open_timeout_s: float
    replay: Replay
    replay_buffer_bytes: int
    retries: RetryBudget
    bodies: KeptBodies
    counters: Counters

    def now(self) -> float: ...
    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer: ...

    def pick(self, request: Request, tried: Set[str], attempt: int, again: int) -> Candidate | None:
        """The peer for this attempt, for which one was picked `again` times before. The candidate is as it was before this
        request, which counts there until `release`. None where no other is left, where all are full, and where others wait
        already."""

    def release(self, peer_id: str) -> None: ...

    def catalogs(self, service: str) -> Sequence[Catalog]:
        """The models that nodes announce."""

    def is_unheard_of(self, route: Route) -> bool:
        """Whether no node of the network has the model."""

    def look(self, route: Route, peer_id: str) -> None:
        """The peer's backend answered 404 to a request that names a model: that node is to look at its models again."""

    def lacks(self, route: Route, peer_id: str) -> None:
        """The peer's backend says that it has no such model, which its node announces: ask it last for a
        while."""

    def made(self, route: Route, name: str, peer_id: str) -> None:
        """The peer's backend has made that thing; see http/ids.py."""

    def route_to(self, route: Route, name: str) -> Route | None:
        """The route to that thing; None if one of several nodes has it, and this entry does not know which."""

    def find_maker(self, route: Route, name: str, done: Callable[[Route | None], None]) -> None:
        """Ask other entries for that route; `done` follows, perhaps before this returns."""

    def is_known(self, target: str) -> bool:
        """Whether a node of the network has that name or peer id."""

    def has_other(self, route: Route, tried: Set[str]) -> bool:
        """Whether there is a peer that was not tried."""

    def link(self, peer_id: str) -> PeerLink | None: ...

    def dial(self, route: Route, done: Done, *, takes_kept: bool | None = None) -> Dialling:
        """Connect to our own backend; `done(end, reason)` follows, not before this returns. Raises BackendUnavailable.
        `takes_kept`: as of the request."""

    def accepted(self, peer_id: str) -> None:
        """The peer's backend has a request."""

    def sent_back(self, peer_id: str, *, is_full: bool) -> None:
        """The peer said BUSIER. One that does so again and again is asked more rarely. From one that is full a load follows
        when it has room."""

    def penalize(self, peer_id: str, seconds: float) -> None:
        """Send no request to the peer for that long."""

    def broke_off(self, route: Route, peer_id: str) -> None:
        """The peer, or its backend, reset a committed request."""

    def why_none(self, request: Request) -> str:
        """Why there was no peer for it, for people."""

    def wait(self, attempts: Attempts, request: Request) -> None:
        """Call `attempts.try_again()` when the roster or a load has changed, until `stop_waiting`."""

    def stop_waiting(self, attempts: Attempts) -> None: ...


class Attempts:
    """All attempts of one request. `peer_id` is the peer of the present one, whose counter it holds; else empty."""

    __deletable__ = ("_request",)  # by `close`; mypyc asks for this
    __slots__ = (
        "_again", "_believed", "_busier", "_dialling", "_dispatcher", "_link", "_others", "_request", "_since", "_timer",
        "_waited_s", "count", "peer_id", "state", "tried",
    )  # fmt: skip

    def __init__(self, request: Request, dispatcher: Dispatcher) -> None:
        self._request = request
        self._dispatcher = dispatcher
        self.state = State.WAITING
        self.count = 0
        self.peer_id = ""
        self.tried: set[str] = set()
        self._link: PeerLink | None = None  # of this attempt; None: our own backend
        self._dialling: Dialling | None = None
        self._believed = self._others = 0  # load of the peer before this attempt, and what of it is not this entry's
        self._again = 0  # how often a peer sent this request back for its load
        self._busier = 0  # how often since it waited last
        self._timer: Timer | None = None  # of the tunnel to open, or of the wait for a peer
        self._waited_s = self._since = 0.0  # since when it waits, or asks for a tunnel

    @property
    def waited_s(self) -> float:
        """How long it has waited for a peer: with those attempts that a peer sent back."""
        waits = self._timer is not None and self.state is State.WAITING
        return self._waited_s + (self._dispatcher.now() - self._since if waits else 0.0)

    def to(self, state: State) -> None:
        assert state in FOLLOWS[self.state], f"{self.state.value} -> {state.value}"
        self.state = state

    @property
    def is_linked(self) -> bool:
        """Whether the peer's link is the one that the upstream began on. A new one means that the peer came back."""
        return self._dispatcher.link(self.peer_id) is self._link

    # Picking

    def start(self) -> None:
        """Go to the best peer that was not tried; without one, wait for the roster to change."""
        dispatcher = self._dispatcher
        if not (self.count or self._again or self._waited_s):
            dispatcher.retries.request()
        while True:
            chosen = dispatcher.pick(self._request, self.tried, self.count + 1, self._again)
            if chosen is None:
                self._wait()
                return
            self.peer_id, self._believed, self._others = chosen.peer_id, chosen.in_flight, chosen.others
            self.tried.add(self.peer_id)
            self.count += 1
            try:
                upstream = self._open()
            except (PeerUnavailable, BackendUnavailable) as error:
                log.debug("peer cannot take the connection", peer=self.peer_id, why=error.detail)
                self._is_over(error.detail)
                if self._request.replay is Replay.NEVER:
                    self.reject("the peer could not take the connection")
                    return
                dispatcher.counters.retried("unreachable" if isinstance(error, PeerUnavailable) else "refused")
                continue
            if upstream is not None:
                self._request.connected(upstream)
            return

    def _open(self) -> Joinable | None:
        """The tunnel; None while our own backend is dialled. Raises PeerUnavailable or BackendUnavailable."""
        dispatcher, request = self._dispatcher, self._request
        if self.peer_id == dispatcher.own_id:
            self._link = None
            self._dialling = dispatcher.dial(request.route, self._on_backend, takes_kept=request.takes_kept)
            self.to(State.DIALLING)
            return None
        link = self._link = dispatcher.link(self.peer_id)
        if link is None:
            raise PeerUnavailable("no connection to it")
        believed = self._others if self._busier < MOST_BUSIER else ANY_LOAD
        service, side, takes_kept = request.route.service, request.upstream_side(), request.takes_kept
        if takes_kept is None:
            upstream = link.open_request(service, self, side, believed)
        else:
            upstream = link.open_exchange(service, self, side, believed, takes_kept=takes_kept)
        self._timer = dispatcher.call_later(dispatcher.open_timeout_s, self._on_timeout)
        self._since = dispatcher.now()
        self.to(State.OPENING)
        return upstream

    def _wait(self) -> None:
        dispatcher = self._dispatcher
        left = dispatcher.hold_s - self._waited_s  # attempts do not count: a long one may be the first that fails
        if left <= 0:
            self._give_up()
            return
        self._since = dispatcher.now()
        self._timer = dispatcher.call_later(left, self._give_up)
        dispatcher.wait(self, self._request)

    def _give_up(self) -> None:
        self.reject(self._dispatcher.why_none(self._request))

    def try_again(self) -> None:
        """The roster or a load changed while this request waited."""
        self._waited_s += self._dispatcher.now() - self._since
        self._stop_timer()
        self.tried.clear()
        self._busier = 0
        self.start()
        if self.state is not State.WAITING:
            self._dispatcher.stop_waiting(self)

    # How an attempt goes

    def opened(self) -> None:
        """The peer's backend has accepted."""
        self._stop_timer()
        self._dispatcher.accepted(self.peer_id)
        self._dispatcher.counters.opened_after(self._dispatcher.now() - self._request.started_at)
        self._accepted()
        self._request.flush_replay()

    def refused(self, reason: str) -> None:
        self.failed(reason)

    def busier(self, others: int) -> None:
        """The peer has more in flight by others than this entry believed, or is full: pick again, with what it has told."""
        dispatcher, request = self._dispatcher, self._request
        self._stop_timer()
        request.disconnected("")
        self.to(State.WAITING)
        had = None if others == FULL else self._believed - self._others + others
        dispatcher.counters.picked_again(Busier(request.flow, self.count, self._again, had, self._believed))
        dispatcher.sent_back(self.peer_id, is_full=others == FULL)
        compares_unasked = others != FULL and self._busier == MOST_BUSIER
        if not compares_unasked:
            self.tried.discard(self.peer_id)
            self._busier += others != FULL
        self._again += 1
        self._waited_s += dispatcher.now() - self._since
        self._release_counter()
        self.count -= 1
        self.start()

    def lost(self, reason: str) -> None:
        """The upstream broke. Once the request is over, nothing depends on the upstream."""
        if self.state not in _ANY_TIME:
            self.failed(reason, "lost")

    def _on_backend(self, end: BackendEnd | None, reason: str) -> None:
        """Our own backend, without a detour through the network."""
        self._dialling = None
        if end is None:
            self.failed(reason)
            return
        end.other = self._request.upstream_side()
        self._accepted()
        self._request.connected(end)
        end.start()

    def _accepted(self) -> None:
        request = self._request
        waits = request.replay is Replay.OPENED and self._link is not None and request.is_kept_on
        self.to(State.OPENED if waits or request.replay is Replay.FIRST_BYTE else State.COMMITTED)

    def commit(self) -> None:
        """Nothing will be replayed any more: the backend has answered, or there is more than may be kept."""
        if self.state is State.OPENED:
            self.to(State.COMMITTED)

    def ended_without_answer(self) -> bool:
        """The upstream ended before its first byte, while the client has not finished: that is how a dying backend looks.
        Whether the request has moved on."""
        dispatcher = self._dispatcher
        if self.state in FINAL or self._request.replay is not Replay.FIRST_BYTE:
            return False
        if not dispatcher.has_other(self._request.route, self.tried):
            return False
        self.failed("the backend closed the connection without an answer", "lost")
        return True

    def answered_badly(self, reason: str, *, penalty_s: float = REFUSED_PENALTY_S) -> bool:
        """By the head of its answer, the backend cannot serve this now, and another peer may. Whether the request has moved
        on; else the answer is what there is."""
        dispatcher = self._dispatcher
        if self.state is not State.OPENED or not dispatcher.has_other(self._request.route, self.tried):
            return False
        if self._request.replay is not Replay.FIRST_BYTE or not dispatcher.retries.take():
            return False
        self.failed(reason, "answer", penalty_s=penalty_s)
        return True

    def peer_suspect(self) -> None:
        """The link was read and held no PONG. A request in OPENING moves only if another peer is eligible: this one may
        only have paused."""
        dispatcher = self._dispatcher
        if self.state not in (State.OPENING, State.OPENED):
            return
        if self._link is None or not self._link.suspect:  # another one of this peer's, then
            return
        may_move = self._request.replay is not Replay.NEVER and dispatcher.has_other(self._request.route, self.tried)
        if self.state is State.OPENED and self._request.replay is not Replay.FIRST_BYTE:
            return  # until it is known whether that backend has a byte of it
        if self.state is State.OPENED or may_move:
            self.failed("the peer does not answer", "timeout")

    def _on_timeout(self) -> None:
        link = self._link
        if link is not None:
            attempt = self._timer
            link.read()  # OPENED may lie there: then that backend has the bytes that we would send to another one
            if self._timer is not attempt:
                return
            link.ping()
        self.failed(f"no answer within {self._dispatcher.open_timeout_s:g} s", "timeout")

    def failed(self, reason: str, kind: RetryReason = "refused", *, penalty_s: float | None = None) -> None:
        """End this attempt and start another one, unless the request got too far, or there were too many retries."""
        request, dispatcher = self._request, self._dispatcher
        if self.state is State.OPENED and request.replay is Replay.OPENED and not request.is_unheard:
            self.to(State.COMMITTED)
            self.to(State.STREAMING)
        if self.state in FINAL:
            request.broken(reason)
            return
        self._stop_timer()
        request.disconnected(reason)  # RST behind OPEN: an exit that wakes up late never dials
        if penalty_s is None:
            penalty_s = SILENT_PENALTY_S if kind == "timeout" else REFUSED_PENALTY_S
        is_linked = self.is_linked
        if is_linked and penalty_s:
            dispatcher.penalize(self.peer_id, penalty_s)
        log.debug(
            "attempt failed", peer=self.peer_id, service=request.route.service, why=reason, attempt=self.count
        )  # fmt: skip
        self.to(State.WAITING)
        self._is_over(reason)
        is_storm = kind == "lost" and is_linked and not dispatcher.retries.take()
        if request.replay is Replay.NEVER or is_storm:
            self.reject(reason)
            return
        dispatcher.counters.retried(kind)
        self.start()

    def _is_over(self, why: str) -> None:
        self._dispatcher.counters.failures.append(Failure(self._request.flow, self.count, self.peer_id, why))
        self._release_counter()

    # The end

    def reject(self, why: str) -> None:
        """No attempt any more; the client is told why."""
        self._stop()
        self.to(State.REJECTED)
        self._request.rejected(why)

    def close(self) -> None:
        """The client has gone, or has been told to."""
        self._stop()
        if self.state is not State.CLOSED:
            self.to(State.CLOSED)
        del self._request  # it holds us: thousands of requests a second must leave no cycles to the garbage collector

    def _stop(self) -> None:
        if self._timer is not None:  # a wait has one
            self._waited_s = self.waited_s
            self._stop_timer()
            self._dispatcher.stop_waiting(self)
        if self._dialling is not None:
            self._dialling.cancel()
            self._dialling = None
        self._release_counter()

    def _release_counter(self) -> None:
        if self.peer_id:
            self._dispatcher.release(self.peer_id)
            self.peer_id = ""

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
