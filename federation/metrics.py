"""Counters of the data path as plain numbers, and the text that Prometheus scrapes.

Names follow Prometheus: base units, `_total` for counters that only rise. The help text of each says which events it counts
and which not. Of a remote's texts only names of models become labels, MAX_MODELS at most: services are this node's own,
results and reasons are closed sets, peers appear while they are known or hold connections, and names of client keys while
the key is valid, at most MAX_KEYS.

prometheus-client's own counters take a lock and a look-up each, which for a short connection is some percent of all that
it costs. Here counting is adding to an int (one thread does it); the scrape reads values that the parts keep anyway
(`Snapshot`). The first scrape imports prometheus-client, with a web server and a client of its own: most nodes have none.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from federation import __version__
from federation.units import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )

MAX_KEYS = 64
Direction = Literal["in", "out"]
Result = Literal["ok", "error", "turned_away"]
RetryReason = Literal["unreachable", "refused", "timeout", "lost", "answer"]
TokenKind = Literal["in", "out", "cached"]  # in the order of usage.Tokens

# From one round trip on a LAN to the default --hold; and from a cached answer to a day of streaming.
_OPEN_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_FIRST_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_DURATION_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 86400)

MAX_MODELS = 100  # of which each has 24 series; a network's clients use a handful
MAX_LABEL = 200  # characters of a model's name
OTHER = "other"  # all models beyond MAX_MODELS, and names that no backend has answered to
_NEWEST = 32


class Distribution:
    """A histogram: the number of values up to each bound, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Buckets as Prometheus has them: cumulative, the last one without a bound."""
        names = [*(str(float(bound)) for bound in self.bounds), "+Inf"]
        return [(name, float(count)) for name, count in zip(names, accumulate(self.counts), strict=True)]


@dataclass(slots=True)
class OfModel:
    """Requests of this entry's clients for one model. Of the newest streams, `newest`: seconds until the first content;
    `paces`: tokens a second from there."""

    requests: Counter[Result] = field(default_factory=Counter)
    retries: int = 0
    queued_s: float = 0.0
    tokens: Counter[TokenKind] = field(default_factory=Counter)
    first: Distribution = field(default_factory=lambda: Distribution(_FIRST_BUCKETS_S))
    newest: deque[float] = field(default_factory=lambda: deque(maxlen=_NEWEST))
    paces: deque[float] = field(default_factory=lambda: deque(maxlen=_NEWEST))

    def heard_first(self, seconds: float) -> None:
        self.first.observe(seconds)
        self.newest.append(seconds)


@dataclass(frozen=True)
class Snapshot:
    """Values that are read at the scrape. VRAM in bytes."""

    received: int = 0  # bytes from clients, of ended and open connections
    delivered: int = 0
    open: int = 0
    waiting: int = 0
    in_flight: Mapping[str, int] = field(default_factory=dict)  # peer id -> connections that this entry holds there
    serving: int = 0
    backends: Mapping[str, bool] = field(default_factory=dict)  # service -> whether one answers
    peers: Mapping[str, int] = field(default_factory=dict)  # state -> how many
    ledger_records: int = 0
    total_vram: int = 0
    available_vram: int = 0
    draining: bool = False
    key_requests: Mapping[str, int] = field(default_factory=dict)  # name of a client's key -> requests
    key_refusals: Mapping[str, int] = field(default_factory=dict)  # reason -> requests


class Metrics:
    """All metrics of one node. The node sets `snapshot`, which returns a Snapshot."""

    def __init__(self) -> None:
        self.started: Counter[str] = Counter()  # by service
        self.finished: Counter[tuple[str, Result]] = Counter()
        self.retries: Counter[RetryReason] = Counter()
        self.picks: Counter[str] = Counter()  # by tier
        self.picked_again = 0
        self.models: dict[str, OfModel] = {}  # by name, at most MAX_MODELS and OTHER
        self.gossip_messages: Counter[Direction] = Counter()
        self.gossip_bytes: Counter[Direction] = Counter()
        self.opens = Distribution(_OPEN_BUCKETS_S)
        self.durations = Distribution(_DURATION_BUCKETS_S)
        self.snapshot: Callable[[], Snapshot] = Snapshot
        self._registry: CollectorRegistry | None = None

    def of_model(self, name: str, *, is_known: bool) -> OfModel:
        """`is_known`: a backend has answered well to that name; a client may make up others without end."""
        name = name[:MAX_LABEL]
        if name not in self.models and (not is_known or len(self.models) >= MAX_MODELS):
            name = OTHER
        found = self.models.get(name)
        if found is None:
            found = self.models[name] = OfModel()
        return found

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """The answer to a scraper that sent this Accept header, and its content type."""
        from prometheus_client import CollectorRegistry, ProcessCollector
        from prometheus_client.exposition import choose_encoder

        if self._registry is None:
            self._registry = CollectorRegistry(auto_describe=False)
            self._registry.register(cast("Any", self))
            ProcessCollector(registry=self._registry)  # its CPU time, memory and descriptors, where /proc has them
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def collect(self) -> Iterator[Metric]:
        now = self.snapshot()
        info = _of_prometheus().InfoMetricFamily("federation_build", "The version that runs.")
        info.add_metric([], {"version": __version__})
        yield info
        yield from self._connections(now)
        yield from self._requests()
        yield from _keys(now)
        yield from self._gossip()
        yield from _node(now)

    def _connections(self, now: Snapshot) -> Iterator[Metric]:
        yield _counter(
            "federation_connections_started",
            "Clients accepted at this entry, those turned away later among them. "
            "Not: connections that other entries send to this node's backend.",
            ["service"],
            (([service], count) for service, count in self.started.items()),
        )
        yield _counter(
            "federation_connections_finished",
            "Clients of this entry whose connection is over. ok: both directions ended in order. error: reset by either "
            "side, or cut when the node stopped. turned_away: no peer took it, or it is a web page's that may not ask. "
            "Not: attempts, however many it took.",
            ["service", "result"],
            (([service, result], self.finished[service, result]) for service in self.started for result in get_args(Result)),
        )
        yield _gauge(
            "federation_connections_open",
            "Clients of this entry now, those that wait for a peer included. "
            "Not: connections that other entries send to this node's backend.",
            now.open,
        )
        yield _gauge(
            "federation_connections_waiting",
            "Clients of this entry that no peer can take now. Not: those whose peer has not answered yet.",
            now.waiting,
        )
        in_flight = _of_prometheus().GaugeMetricFamily(
            "federation_connections_in_flight",
            "Connections that this entry holds open to the peer, from the pick on, this node's own backend included. "
            "Not: connections of other entries to the same peer.",
            labels=["peer"],
        )
        for peer_id, count in now.in_flight.items():
            in_flight.add_metric([peer_id], count)
        yield in_flight
        yield _counter(
            "federation_retries",
            "Attempts that failed and whose connection went on to another peer or waited for one. unreachable: no "
            "connection to the peer. refused: its backend did not take it. timeout: no answer within --open-timeout, or to "
            "a PING. lost: the peer or its backend went away before the first byte. Not: failures that the client saw.",
            ["reason"],
            (([reason], self.retries[reason]) for reason in get_args(RetryReason)),
        )
        yield _counter(
            "federation_picks_again",
            "Picks that the peer sent back, since it had more in flight than this entry believed: the entry picked again. "
            "Not: retries, which federation_retries_total has.",
            [],
            [([], self.picked_again)],
        )
        yield _counter(
            "federation_bytes",
            "Payload moved for clients of this entry, once even where a retry sent it twice; connections that are still "
            "open included. in: from clients to backends. out: from backends to clients. "
            "Not: framing, gossip, what this node carries for other entries.",
            ["direction"],
            [(["in"], now.received), (["out"], now.delivered)],
        )
        yield _counter(
            "federation_picks_sampled",
            "Picks of a peer by the tier in which the chosen was ahead of the runner-up, looked at once a second. "
            "Not: of more than 256 picks in a second those before the last 256.",
            ["tier"],
            (([tier], count) for tier, count in self.picks.items()),
        )
        yield _histogram(
            "federation_open_seconds",
            "From a client's connect until a peer's backend had accepted it, waiting and failed attempts included. "
            "Not: clients turned away, and connections that this node's own backend took.",
            self.opens,
        )
        yield _histogram(
            "federation_connection_seconds",
            "From a client's connect until its connection was over. Not: connections that are still open.",
            self.durations,
        )

    def _requests(self) -> Iterator[Metric]:
        models = [(visible(name), counts) for name, counts in self.models.items()]
        yield _counter(
            "federation_model_requests",
            "HTTP requests of this entry's clients that named the model and are over; results as in "
            "federation_connections_finished_total, which counts them too. Not: requests of other entries' clients.",
            ["model", "result"],
            (([name, result], counts.requests[result]) for name, counts in models for result in get_args(Result)),
        )
        yield _counter(
            "federation_model_retries",
            "Attempts of these requests beyond the first one. Not: picks that a peer sent back for its load.",
            ["model"],
            (([name], counts.retries) for name, counts in models),
        )
        yield _counter(
            "federation_model_queue_seconds",
            "Seconds that these requests waited here, since no peer could take them. Not: in a backend's own queue.",
            ["model"],
            (([name], counts.queued_s) for name, counts in models),
        )
        yield _counter(
            "federation_model_tokens",
            "Tokens as the answers to these requests say. in: of prompts. out: generated. cached: those of `in` that the "
            "server found in its cache. Not: of answers that do not say, as streams that were not asked to.",
            ["model", "kind"],
            (([name, kind], counts.tokens[kind]) for name, counts in models for kind in get_args(TokenKind)),
        )
        first = _of_prometheus().HistogramMetricFamily(
            "federation_model_first_token_seconds",
            "From a request until the first content of its answer, waiting and failed attempts included. "
            "Not: answers that are no streams.",
            labels=["model"],
        )
        for name, counts in models:
            first.add_metric([name], buckets=counts.first.buckets(), sum_value=counts.first.sum)
        yield first

    def _gossip(self) -> Iterator[Metric]:
        yield _counter(
            "federation_gossip_messages",
            "Announcements of records. out: this node's own. in: those of others, each once, refused ones included. "
            "Not: forwarding, and the exchange of whole ledgers when two nodes connect.",
            ["direction"],
            (([direction], self.gossip_messages[direction]) for direction in get_args(Direction)),
        )
        yield _counter(
            "federation_gossip_bytes",
            "Signed bytes of the announcements that federation_gossip_messages_total counts. Not: the copies that a mesh "
            "sends, encryption and framing.",
            ["direction"],
            (([direction], self.gossip_bytes[direction]) for direction in get_args(Direction)),
        )


def _keys(now: Snapshot) -> Iterator[Metric]:
    yield _counter(
        "federation_key_requests",
        'Requests that a client\'s key let in at this entry, by valid keys: the most used ones, and "other". '
        "Not: requests without a key, and those of other entries.",
        ["key"],
        (([name], count) for name, count in _most_used(now.key_requests).items()),
    )
    yield _counter(
        "federation_key_refusals",
        "Requests that this entry refused by their key. missing, wrong, expired, revoked: 401. model: 403. rate: 429. "
        "Not: web pages that may not ask.",
        ["reason"],
        (([reason], count) for reason, count in now.key_refusals.items()),
    )


def _node(now: Snapshot) -> Iterator[Metric]:
    yield _gauge(
        "federation_serving",
        "Connections that this node's backends serve now, for all entries. Not: those that are still being dialled.",
        now.serving,
    )
    up = _of_prometheus().GaugeMetricFamily(
        "federation_backend_up",
        "1: a backend of this node answers for the service. Not: other nodes' backends.",
        labels=["service"],
    )
    for service, is_up in now.backends.items():
        up.add_metric([service], is_up)
    yield up
    peers = _of_prometheus().GaugeMetricFamily(
        "federation_peers", "Nodes of the network by state, this one included. Not: those forgotten.", labels=["state"]
    )
    for state, count in now.peers.items():
        peers.add_metric([state], count)
    yield peers
    yield _gauge(
        "federation_ledger_records",
        "Nodes in this node's ledger: itself, those offline and those that left, until they are forgotten.",
        now.ledger_records,
    )
    yield _gauge("federation_vram_size_bytes", "VRAM of this node's GPUs. Not: other nodes'.", now.total_vram)
    yield _gauge(
        "federation_vram_available_bytes", "VRAM of this node's GPUs that is free. Not: other nodes'.", now.available_vram
    )
    yield _gauge("federation_draining", "1: this node's backends take no new connections. Not: its own ports.", now.draining)


def _most_used(requests: Mapping[str, int]) -> dict[str, int]:
    ranked = sorted(requests.items(), key=lambda row: (-row[1], row[0]))
    rest = sum(count for _, count in ranked[MAX_KEYS:])
    return dict(ranked[:MAX_KEYS]) | ({"other": rest} if rest else {})


def _of_prometheus() -> Any:
    from prometheus_client import core

    return core


def _counter(name: str, text: str, labels: list[str], series: Iterable[tuple[list[str], float]]) -> CounterMetricFamily:
    family: CounterMetricFamily = _of_prometheus().CounterMetricFamily(name, text, labels=labels)
    for values, count in series:
        family.add_metric(values, count)
    return family


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    family: GaugeMetricFamily = _of_prometheus().GaugeMetricFamily(name, text, value=float(value))
    return family


def _histogram(name: str, text: str, distribution: Distribution) -> HistogramMetricFamily:
    buckets, total = distribution.buckets(), distribution.sum
    family: HistogramMetricFamily = _of_prometheus().HistogramMetricFamily(name, text, buckets=buckets, sum_value=total)
    return family
