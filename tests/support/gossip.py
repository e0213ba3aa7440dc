"""Helpers for tests: gossip without a network: a topic and streams in memory, trio's clock; and a topic to sign with."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgpack
import trio

from federation.errors import PeerUnavailable, RecordForged
from federation.mesh.gossip import Gossip
from federation.mesh.ledger import Change, Ledger
from federation.mesh.records import NodeData, encode
from federation.mesh.tokens import Token
from federation.metrics import Metrics
from federation.net.dial.book import AddressBook
from federation.net.host import Host
from federation.net.pubsub import Opened, Topic, Turn
from federation.reactor.loop import Reactor
from tests.support.hosts import KEY, HostEvents, seed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
TOKEN = Token(b"t" * 32)
BASE = NodeData(peer_id="me", last_seen=START, available_vram=10_000, in_flight=3, services={"default": True})
NAME = "/federation/test"


def sign(signer: str, data: bytes) -> bytes:
    return signer.encode() + b"|" + data


def read(data: bytes) -> NodeData:
    return NodeData.model_validate(msgpack.unpackb(data) | {"last_seen": START})


def record(peer_id: str, **fields: Any) -> NodeData:
    return NodeData(peer_id=peer_id, last_seen=START, **{"incarnation": 1, "seq": 1, **fields})


class FakeTopic:
    """Signs as `<signer>|<data>`; what is published stays here, with its time."""

    def __init__(self, host: FakeHost, name: str, accept: Callable[[str, bytes, bytes], bool]) -> None:
        self.host = host
        self.accept = accept
        self.turn = Turn()
        self.published: list[tuple[float, NodeData]] = []
        self.forwarded: list[tuple[str, bytes]] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield

    async def publish(self, data: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        self.published.append((trio.current_time(), read(data)))
        return sign(self.host.peer_id, data)

    async def forward(self, peer_id: str, signed: bytes) -> None:
        signer, data, signed = self.open_signed(signed)
        if self.accept(signer, data, signed):
            self.forwarded.append((peer_id, signed))

    async def flushed(self, timeout_s: float) -> None: ...

    def open_signed(self, signed: bytes) -> Opened:
        signer, bar, data = signed.partition(b"|")
        if not bar or not signer.isalnum():
            raise RecordForged("forged")
        return Opened(signer.decode(), data, signed)

    @property
    def times(self) -> list[float]:
        return [time for time, _ in self.published]


class FakeHost:
    """`others` are reached by streams in memory."""

    def __init__(self, peer_id: str) -> None:
        self.peer_id = peer_id
        self.others: dict[str, FakeHost] = {}
        self.tells_load = True  # so is its `mux`, to those who have it among their links
        self.mux = self
        self.nursery: trio.Nursery | None = None
        self.handlers: dict[str, Callable[..., Any]] = {}
        self.offences: list[tuple[str, str]] = []
        self.warnings: list[tuple[str, str]] = []

    def report_violation(self, peer_id: str, what: str) -> None:
        self.offences.append((peer_id, what))

    def report_copied(self) -> None:
        self.warnings.append(("copied", self.peer_id))

    def warn(self, event: str, where: str, every_s: float | None = None, **details: object) -> None:
        self.warnings.append((event, where))

    @property
    def links(self) -> dict[str, FakeHost]:
        return self.others

    def handle_stream(self, protocol: str, handler: Callable[..., Any]) -> None:
        self.handlers[protocol] = handler

    async def open_stream(self, peer_id: str, protocol: str) -> trio.abc.HalfCloseableStream:
        await trio.lowlevel.checkpoint()
        if peer_id not in self.others:
            raise PeerUnavailable("no connection to it")
        ours, theirs = trio.testing.memory_stream_pair()
        assert self.nursery is not None
        self.nursery.start_soon(self.others[peer_id].handlers[protocol], SimpleNamespace(peer_id=self.peer_id), theirs)
        return ours


@dataclass
class Member:
    """One node's gossip. `record` is what it says of itself; `ahead` is how wrong its clock is."""

    name: str
    ahead: timedelta = timedelta(0)
    record: NodeData = BASE
    changes: list[Change] = field(default_factory=list)
    described: int = 0

    def __post_init__(self) -> None:
        self.host = FakeHost(self.name)
        self.record = self.record.model_copy(update={"peer_id": self.name})
        self.ledger = Ledger()
        self.gossip = Gossip(
            host=self.host, token=TOKEN, ledger=self.ledger, describe=self.describe, utc_now=self.now,
            on_change=self.changes.append, interval_s=5.0, metrics=Metrics(),
        )  # fmt: skip
        self.topic: FakeTopic = self.gossip._topic  # type: ignore[assignment]

    def now(self) -> datetime:
        return START + self.ahead + timedelta(seconds=trio.current_time())

    def describe(self) -> NodeData:
        self.described += 1
        return self.record.model_copy(update={"last_seen": self.now()})

    def becomes(self, **change: Any) -> None:
        self.record = self.record.model_copy(update=change)
        self.gossip.stir()

    def has_link(self, peer_id: str, *, tells_load: bool = True) -> None:
        self.host.others[peer_id] = FakeHost(peer_id)
        self.host.others[peer_id].tells_load = tells_load

    def hears(self, record: NodeData, signer: str | None = None) -> bool:
        """By the topic."""
        data, signer = encode(record), signer or record.peer_id
        return self.topic.accept(signer, data, sign(signer, data))

    def knows(self, record: NodeData, age: timedelta = timedelta(0)) -> None:
        self.ledger.merge(record, signed=sign(record.peer_id, encode(record)), now=self.now(), age=age)

    def age_of(self, peer_id: str) -> float:
        row = self.ledger.get(peer_id)
        assert row is not None
        return (self.now() - row.record.last_seen).total_seconds()


def foreign_topic(n: int = 77) -> Topic:
    """Of a node that is not here, to sign with."""
    host = Host(seed=seed(n), reactor=Reactor(), events=HostEvents(), book=AddressBook(), admission_keys=lambda: [KEY])
    return Topic(host, NAME, lambda *_: True)
