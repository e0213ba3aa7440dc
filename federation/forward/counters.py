"""Counters and records of this entry: picks, failed attempts, endings, totals; for `explain`, the log, API and metrics.

A connection is one request today. Whatever is recorded names its Flow, so that a connection may bring several requests.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple, get_args

from federation.metrics import TokenKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.forward.http.usage import Tokens
    from federation.forward.route import Route
    from federation.forward.selection import Pick
    from federation.metrics import Metrics, Result, RetryReason

DECISIONS = 256  # kept for `explain`, and as many attempts that failed
ENDINGS = 2048  # kept for the log and for `explain`: a quarter of a second of the most that one node can do


class Flow(NamedTuple):
    """One request of one connection."""

    connection: int = 0  # its number at this entry, from 1
    request: int = 1  # its number on that connection; a layer-4 connection is one request


class Decision(NamedTuple):
    """One pick, for `explain`. `at`: trio time in seconds."""

    at: float
    route: Route
    client: str
    pick: Pick
    attempt: int
    flow: Flow = Flow()
    again: int = 0  # how often this request was sent back before, see Busier

    @property
    def key(self) -> tuple[Flow, int, int]:
        return self.flow, self.attempt, self.again


class Failure(NamedTuple):
    """One attempt that came to nothing."""

    flow: Flow
    attempt: int
    peer_id: str
    why: str


class Busier(NamedTuple):
    """One pick that its peer sent back, as it had more in flight than this entry believed; cf. Decision."""

    flow: Flow
    attempt: int
    again: int
    had: int | None  # None: it was full
    believed: int


class Answer(NamedTuple):
    """The end of one HTTP request. `queued_s`: of its time it waited for a peer; `first_s`: until the first content of the
    answer, None where there was none that is read (usage.py)."""

    status: int = 0  # 0: none was begun
    queued_s: float = 0.0
    first_s: float | None = None
    is_stream: bool = False
    tokens: Tokens | None = None


class Ending(NamedTuple):
    """The end of a flow. `ended_at`: trio time in seconds; `error` is None where both sides finished."""

    flow: Flow
    route: Route
    client: str
    peer_id: str  # "" where no peer had it at the end
    attempts: int
    ended_at: float
    seconds: float
    received: int  # bytes from the client
    delivered: int  # bytes to the client
    error: str | None
    answer: Answer | None = None  # of an HTTP request
    key: str = ""  # the name of the client's key


class Totals:
    """Connections of clients at this entry since its start. `failed`: the client was turned away."""

    def __init__(self) -> None:
        self.started = self.failed = self.retried = 0
        self.received = self.delivered = 0  # bytes, of connections that ended


class Counters:
    """The newest of everything, and `totals` since the start. `on_ending` hears of every ending."""

    def __init__(self, metrics: Metrics) -> None:
        self.totals = Totals()
        self.decisions: deque[Decision] = deque(maxlen=DECISIONS)
        self.failures: deque[Failure] = deque(maxlen=DECISIONS)
        self.busier: deque[Busier] = deque(maxlen=DECISIONS)
        self.endings: deque[Ending] = deque(maxlen=ENDINGS)
        self.on_ending: Callable[[Ending], None] | None = None
        self._metrics = metrics
        self._counted: Decision | None = None  # the newest whose tier is in the metrics

    def started(self, route: Route) -> None:
        self.totals.started += 1
        self._metrics.started[route.service] += 1

    def opened_after(self, seconds: float) -> None:
        self._metrics.opens.observe(seconds)

    def retried(self, reason: RetryReason) -> None:
        self.totals.retried += 1
        self._metrics.retries[reason] += 1

    def picked_again(self, busier: Busier) -> None:
        self._metrics.picked_again += 1
        self.busier.append(busier)

    def ended(self, ending: Ending, result: Result) -> None:
        self.totals.received += ending.received
        self.totals.delivered += ending.delivered
        self._metrics.finished[ending.route.service, result] += 1
        self._metrics.durations.observe(ending.seconds)
        if ending.answer is not None and ending.route.model:
            self._count_model(ending, ending.answer, result)
        self.endings.append(ending)
        if self.on_ending is not None:
            self.on_ending(ending)

    def _count_model(self, ending: Ending, answer: Answer, result: Result) -> None:
        model = self._metrics.of_model(ending.route.model, is_known=200 <= answer.status < 300)
        model.requests[result] += 1
        model.retries += max(0, ending.attempts - 1)
        model.queued_s += answer.queued_s
        if answer.is_stream and answer.first_s is not None:
            model.heard_first(answer.first_s)
            rest_s = ending.seconds - answer.first_s
            if answer.tokens is not None and (answer.tokens.made or 0) > 1 and rest_s > 0:
                model.paces.append(((answer.tokens.made or 0) - 1) / rest_s)
        if answer.tokens is not None:
            for kind, count in zip(get_args(TokenKind), answer.tokens, strict=True):
                model.tokens[kind] += count or 0

    def count_picks(self) -> None:
        """Add the tiers of the newest picks to the metrics. Once a second: finding the tier costs too much at every pick."""
        newest = self.decisions[-1] if self.decisions else None
        for decision in reversed(self.decisions):
            if decision is self._counted:
                break
            self._metrics.picks[decision.pick.tier] += 1
        self._counted = newest
