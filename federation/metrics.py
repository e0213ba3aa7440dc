"""Counters and gauges of the data path, on a registry that is passed in.

Names follow Prometheus: base units, `_total` for what only rises. The help text of each says what is counted, and what
is not. Nothing a remote chooses becomes a label: services are this node's own, results and reasons are closed sets, and
a peer's series goes when the peer is forgotten.

For hot paths: a method returns the child of its labels, to be kept by whoever counts often. `inc()` on a child is an
addition under a lock, and no look-up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from prometheus_client import Counter, Gauge, Histogram, Info

from federation import __version__

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

Direction = Literal["in", "out"]
Result = Literal["ok", "error"]
RetryReason = Literal["unreachable", "refused", "timeout", "lost", "other"]

# From one round trip on a LAN to the default --hold.
_OPEN_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """All metrics of one node. A second node in the same process needs a registry of its own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._started = Counter(
            "federation_connections_started_total",
            "Clients accepted at this entry, those turned away later among them. "
            "Not: connections that other entries send to this node's backend.",
            ["service"],
            registry=registry,
        )
        self._finished = Counter(
            "federation_connections_finished_total",
            "Clients of this entry whose connection is over. ok: both directions ended in order. error: reset by "
            "either side, turned away, or cut when the node stopped. Not: attempts, however many it took.",
            ["service", "result"],
            registry=registry,
        )
        self._in_flight = Gauge(
            "federation_connections_in_flight",
            "Connections that this entry holds open to the peer, from the pick on, this node's own backend included. "
            "Not: connections of other entries to the same peer.",
            ["peer"],
            registry=registry,
        )
        self._retries = Counter(
            "federation_retries_total",
            "Attempts that failed and whose connection went on to another peer or waited for one. unreachable: no "
            "connection to the peer. refused: its backend did not take it. timeout: no answer within --open-timeout. "
            "lost: the peer or its backend went away before the first byte. Not: failures that the client saw.",
            ["reason"],
            registry=registry,
        )
        self._bytes = Counter(
            "federation_bytes_total",
            "Payload moved for clients of this entry, once even where a retry sent it twice. in: from clients to "
            "backends. out: from backends to clients. Not: framing, gossip, what this node carries for other entries.",
            ["direction"],
            registry=registry,
        )
        self._gossip_messages = Counter(
            "federation_gossip_messages_total",
            "Announcements of records. out: this node's own. in: those of others, each once, refused ones included. "
            "Not: forwarding, and the exchange of whole ledgers when two nodes connect.",
            ["direction"],
            registry=registry,
        )
        self.ledger_records = Gauge(
            "federation_ledger_records",
            "Nodes in this node's ledger: itself, those offline and those that left, until they are forgotten.",
            registry=registry,
        )
        self.open_seconds = Histogram(
            "federation_open_seconds",
            "From a client's connect until a peer's backend had accepted it, waiting and failed attempts included. "
            "Not: clients turned away, and connections that this node's own backend took.",
            buckets=_OPEN_BUCKETS_S,
            registry=registry,
        )
        Info("federation_build", "The version that runs.", registry=registry).info({"version": __version__})
        for direction in get_args(Direction):  # a series that is 0 from the start is one whose first rise is seen
            self.bytes_moved(direction)
            self.gossip_messages(direction)
        for reason in get_args(RetryReason):
            self.retried(reason)

    def started(self, service: str) -> Counter:
        return self._started.labels(service)

    def finished(self, service: str, result: Result) -> Counter:
        return self._finished.labels(service, result)

    def in_flight(self, peer_id: str) -> Gauge:
        return self._in_flight.labels(peer_id)

    def retried(self, reason: RetryReason = "other") -> Counter:
        return self._retries.labels(reason)

    def bytes_moved(self, direction: Direction) -> Counter:
        return self._bytes.labels(direction)

    def gossip_messages(self, direction: Direction) -> Counter:
        return self._gossip_messages.labels(direction)

    def forget_peer(self, peer_id: str) -> None:
        """Drop the peer's series, or networks that come and go would leave theirs for good."""
        self._in_flight.remove(peer_id)
