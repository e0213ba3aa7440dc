"""How federation grows: networks of 10 to 5,000 nodes in memory, seeded, on trio's jumping clock. Run by scripts/simulate.

Real: ledger, gossip.Gossip with its rules and records, their encoded and signed size, selection.Selector, and the constants
of mesh, lazy gossip and PINGs. Modelled: the mesh (everybody asks DEGREE others, chosen at random from all, as
net/pubsub.py comes to within minutes; messages take about 20 ms a hop) and the links (all with all, up to
MAX_LINKS).

Sampling: OBSERVERS nodes are whole (their ledgers would not fit into memory otherwise); the others announce by the same
rule, pass messages on and are counted, but keep no ledger. With up to OBSERVERS nodes, all are whole.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import sys
import time
import tracemalloc
from collections import Counter
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from statistics import mean
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import trio
import trio.testing
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2

from federation.forward.selection import Selector
from federation.mesh import gossip
from federation.mesh.ledger import MAX_ROWS, Ledger
from federation.mesh.records import Gpu, NodeData, encode
from federation.mesh.tokens import Token
from federation.metrics import Metrics
from federation.net.host import MAX_LINKS, TICK_S
from federation.net.link.frames import HEADER_BYTES
from federation.net.link.liveness import SUSPECT_AFTER_S, ping_interval
from federation.net.link.seal import TAG
from federation.net.pubsub import DEGREE, DEGREE_LOW, HEARTBEAT_S, LAZY_PEERS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

SIZES = (10, 100, 1000, 5000)
OBSERVERS = 24
HOP_S = (0.005, 0.035)
BASE_S = 5.0  # --announce-interval
IDLE_S, BUSY_S = 60.0, 5.0
PING_BYTES = HEADER_BYTES + 8 + 2 + TAG
START = datetime(2026, 1, 1, tzinfo=timezone.utc)
TOKEN = Token(b"t" * 32)
CLIENTS_A_NODE = 4  # in flight, on average
HOLD_S = 2.0


class Sizes(NamedTuple):
    """Bytes on the wire: one copy of an announcement; a lazy message without its ids; an id in it."""

    copy: int
    lazy: int
    an_id: int


def peer_name(n: int) -> str:
    return f"12D3KooW{n:044d}"


def new_record(n: int, **fields: Any) -> NodeData:
    """As a box with one GPU and two addresses has it."""
    return NodeData(
        peer_id=peer_name(n), name=f"gpu-box-{n}", version="0.3.0", incarnation=1_790_000_000, last_seen=START,
        available_vram=20 << 30, total_vram=24 << 30, services={"default": True}, **{"seq": 1, **fields},
        gpus=(Gpu(name="NVIDIA GeForce RTX 4090", total_vram=24 << 30, available_vram=20 << 30),),
        addresses=("/ip4/192.168.1.17/tcp/4484", "/ip4/100.64.3.7/tcp/4484"),
    )  # fmt: skip


def wire_sizes(nodes: int) -> Sizes:
    """Measured on real messages, signed with a real key."""
    key = create_new_key_pair(b"k" * 32)
    every_s = math.ceil(gossip.announce_interval(BASE_S, nodes))
    message = rpc_pb2.Message(
        data=encode(new_record(1, announce_every_s=every_s)), topicIDs=[TOKEN.topic()],
        from_id=ID.from_pubkey(key.public_key).to_bytes(), seqno=bytes(8),
    )  # fmt: skip
    message.signature = key.private_key.sign(message.SerializeToString())
    frame = 2 + HEADER_BYTES + 2 + TAG  # varint, mux, record: alone in it

    def lazy(ids: int) -> int:
        ihave = rpc_pb2.ControlIHave(topicID=TOKEN.topic(), messageIDs=[b"00" * 46] * ids)
        return rpc_pb2.RPC(control=rpc_pb2.ControlMessage(ihave=[ihave])).ByteSize()

    return Sizes(rpc_pb2.RPC(publish=[message]).ByteSize() + frame, lazy(1) * 2 - lazy(2) + frame, lazy(2) - lazy(1))


class Network:
    """The mesh, and what it costs. A message's whole spreading is computed when it is published."""

    def __init__(self, nodes: int, rng: random.Random) -> None:
        self.nodes = nodes
        self.rng = rng
        self.sizes = wire_sizes(nodes)
        self.mesh: list[set[int]] = [set() for _ in range(nodes)]
        for n in rng.sample(range(nodes), nodes):
            self.ask(n, DEGREE)
        self.observers: dict[int, gossip.Gossip] = {}
        self.topics: dict[int, SimTopic] = {}
        self.nursery: trio.Nursery | None = None
        self.copies = 0
        self.reached: list[float] = []  # of each message: the share of the nodes
        self.reset()

    def reset(self) -> None:
        self.bytes = [0] * self.nodes  # in and out
        self.copies = 0
        self.lazy_rpcs: set[tuple[int, int]] = set()
        self.reached = []

    def ask(self, n: int, count: int) -> None:
        """`n` gets so many more neighbours."""
        others = [m for m in range(self.nodes) if m != n and m not in self.mesh[n]]
        for m in self.rng.sample(others, min(len(others), count)):
            self.mesh[n].add(m)
            self.mesh[m].add(n)

    def remove(self, n: int) -> None:
        neighbours, self.mesh[n] = self.mesh[n], set()
        for m in neighbours:
            self.mesh[m].discard(n)
        for m in neighbours:
            if len(self.mesh[m]) < DEGREE_LOW:
                self.ask(m, DEGREE - len(self.mesh[m]))

    def flood(self, origin: int, now: float) -> dict[int, float]:
        """When each node has it: by the mesh at once, by lazy gossip after the next heartbeat."""
        rng, sizes, moved, arrived = self.rng, self.sizes, self.bytes, dict[int, float]()
        heap = [(now, False, origin, origin)]  # when, whether it is only told of, to whom, by whom
        copies = 0
        while heap:
            at, is_told, node, sender = heapq.heappop(heap)
            if is_told:
                if node not in arrived:  # it asks, and is given it
                    heapq.heappush(heap, (at + rng.uniform(*HOP_S) + rng.uniform(*HOP_S), False, node, sender))
                continue
            if node != sender:
                copies += 1
                moved[node] += sizes.copy
                moved[sender] += sizes.copy
            if node in arrived:
                continue
            arrived[node] = at
            for neighbour in self.mesh[node] - {sender, origin}:
                heapq.heappush(heap, (at + rng.uniform(*HOP_S), False, neighbour, node))
            beat = math.ceil((at - self._phase(node)) / HEARTBEAT_S)
            spare = self.nodes - 1 - len(self.mesh[node])
            for told in rng.sample(range(self.nodes), min(LAZY_PEERS, max(0, spare))):
                cost = sizes.an_id + (sizes.lazy if (node, beat) not in self.lazy_rpcs else 0)
                moved[node] += cost
                moved[told] += cost
                heapq.heappush(heap, (beat * HEARTBEAT_S + self._phase(node) + rng.uniform(*HOP_S), True, told, node))
            self.lazy_rpcs.add((node, beat))
        self.copies += copies
        self.reached.append(len(arrived) / self.nodes)
        return arrived

    def _phase(self, node: int) -> float:
        return (node * 0.618034) % HEARTBEAT_S

    def publish(self, origin: int, signed: bytes, data: bytes) -> None:
        arrived = self.flood(origin, trio.current_time())
        assert self.nursery is not None
        for n, topic in self.topics.items():
            if n != origin and n in arrived:
                self.nursery.start_soon(topic.receive, arrived[n], origin, data, signed)

    def ping_bytes_s(self) -> float:
        """A node's PINGs and PONGs, in and out."""
        links = min(self.nodes - 1, MAX_LINKS)
        return links * 2 * PING_BYTES / ping_interval(links)


class SimTopic:
    """net.pubsub.Topic over a Network."""

    def __init__(self, host: Any, name: str, accept: Any) -> None:
        self._host, self._accept = host, accept
        host.network.topics[host.number] = self

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield

    async def publish(self, data: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        signed = bytes(self._host.network.sizes.copy - len(data)) + data  # as long as a signed one
        self._host.network.publish(self._host.number, signed, data)
        return signed

    async def receive(self, at: float, origin: int, data: bytes, signed: bytes) -> None:
        await trio.sleep_until(at)
        self._accept(peer_name(origin), data, signed)

    async def flushed(self, timeout_s: float) -> None: ...


def new_observer(network: Network, n: int, ledger: Ledger, describe: Any) -> gossip.Gossip:
    host = SimpleNamespace(
        number=n, network=network, peer_id=peer_name(n), links=range(network.nodes - 1), handle_stream=lambda *_: None,
        warn=lambda *_, **__: None, report_violation=lambda *_: None,
    )  # fmt: skip
    return gossip.Gossip(
        host=host, token=TOKEN, ledger=ledger, describe=describe, utc_now=utc_now, on_change=lambda _: None,
        interval_s=BASE_S, metrics=Metrics(), rng=random.Random(n),
    )  # type: ignore[arg-type]  # fmt: skip


def utc_now() -> datetime:
    return START + timedelta(seconds=trio.current_time())


def filled(nodes: int, *, signed_bytes: int) -> Ledger:
    ledger = Ledger()
    for n in range(nodes):
        ledger.merge(new_record(n, announce_every_s=2**20), signed=bytes(signed_bytes), now=START)
    return ledger


class Traffic(NamedTuple):
    bytes_s: float  # a node, in and out, PINGs included
    most_bytes_s: float
    copies_s: float  # gossip messages that a node gets
    reached: float  # the least share of the nodes that a message reached


async def traffic(nodes: int, seed: int, *, busy: bool) -> Traffic:
    """`busy`: the load of every node changes all the time."""
    network = Network(nodes, random.Random(seed))
    whole = random.Random(seed).sample(range(nodes), min(nodes, OBSERVERS))
    template = [(n, new_record(n, announce_every_s=2**20)) for n in range(min(nodes, MAX_ROWS))]
    known = min(nodes, MAX_ROWS)
    seconds, settle = (
        (BUSY_S, 1.0) if busy else (max(IDLE_S, 2 * gossip.announce_interval(BASE_S, known) * (nodes < 200)), 11.0)
    )
    in_flight = Counter[int]()

    async with trio.open_nursery() as nursery:
        network.nursery = nursery
        for n in whole:
            ledger = Ledger()
            for _, record in template:
                ledger.merge(record, signed=b"", now=START)

            def describe(n: int = n) -> NodeData:
                return new_record(n, in_flight=in_flight[n])

            network.observers[n] = observer = new_observer(network, n, ledger, describe)
            nursery.start_soon(observer.run)

        async def change_load() -> None:
            while busy:
                for n, observer in network.observers.items():
                    in_flight[n] += 1
                    observer.stir()
                await trio.sleep(0.05)

        async def crowd() -> None:
            """Those without a ledger, at the pace that gossip.py has for them."""
            interval = (
                max(gossip.load_interval(known), gossip.FASTEST_S) if busy else gossip.announce_interval(BASE_S, known)
            )
            shrunk = 1.0 if busy else 1.0 - gossip.JITTER / 2
            rest = sorted(set(range(nodes)) - set(whole))
            due = [(network.rng.uniform(0, interval * shrunk), n) for n in rest]
            heapq.heapify(due)
            while due:
                at, n = heapq.heappop(due)
                await trio.sleep_until(at)
                record = new_record(n, seq=int(at * 1000) + 2, in_flight=int(at * 10), announce_every_s=math.ceil(interval))
                network.publish(n, bytes(500), encode(record))
                heapq.heappush(due, (at + interval * shrunk, n))

        nursery.start_soon(change_load)
        nursery.start_soon(crowd)
        await trio.sleep(settle)
        network.reset()
        await trio.sleep(seconds)
        nursery.cancel_scope.cancel()
    # What newly started observers say in their first ten seconds is over; they now are as rare as the crowd.
    gossip_s = [moved / seconds for moved in network.bytes]
    return Traffic(
        mean(gossip_s) + network.ping_bytes_s(), max(gossip_s) + network.ping_bytes_s(),
        network.copies / nodes / seconds, min(network.reached, default=1.0),
    )  # fmt: skip


def percentile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


def newcomer(nodes: int, seed: int) -> float:
    """Seconds until 99 % know it: the worst of 20. Its first words go out to whom it knows first, its mesh neighbours."""
    network = Network(nodes, random.Random(seed))
    worst = 0.0
    for _ in range(20):
        n = network.rng.randrange(nodes)
        network.remove(n)
        network.ask(n, DEGREE)
        arrived = network.flood(n, 0.0)
        times = [arrived.get(m, math.inf) for m in range(nodes)]
        worst = max(worst, percentile(times, 0.99))
    return worst


def deaths(nodes: int, seed: int) -> tuple[float, float]:
    """Seconds until 99 % send nobody there: of a killed process (its links close), and of a machine that lost power."""
    rng = random.Random(seed)
    links = min(nodes - 1, MAX_LINKS)
    closed = [rng.uniform(*HOP_S) for _ in range(links)]
    every = ping_interval(links)
    silent = [rng.uniform(0, every) + rng.uniform(0, TICK_S) * 2 + SUSPECT_AFTER_S for _ in range(links)]
    return percentile(closed, 0.99), percentile(silent, 0.99)


def imbalance(  # noqa: C901  # four kinds of events, side by side
    nodes: int, entries: int, seed: int, delay_s: tuple[float, float] = (0.1, 2.0)
) -> float:
    """Most connections on a node over the mean, averaged over time: exponential arrivals and durations, reports at the pace
    of gossip.py, late by `delay_s`. Dice would have it at about 1 + 2/sqrt(CLIENTS_A_NODE) and more with more nodes."""
    rng = random.Random(seed)
    records = [new_record(n) for n in range(nodes)]
    selectors = [Selector(entry_id=peer_name(10**6 + n), rng=random.Random(n)) for n in range(entries)]
    pace = max(gossip.load_interval(nodes), gossip.FASTEST_S)
    index = {record.peer_id: n for n, record in enumerate(records)}
    open_now = [0] * nodes
    arrivals_s = nodes * CLIENTS_A_NODE / HOLD_S
    seconds = max(3 * HOLD_S, min(10 * HOLD_S, 12_000 / arrivals_s))
    events: list[tuple[float, int, str, Any]] = []
    numbers = iter(range(10**9))

    def push(at: float, kind: str, what: Any) -> None:
        heapq.heappush(events, (at, next(numbers), kind, what))

    push(0.0, "arrive", None)
    for n in range(nodes):
        push(rng.uniform(0, pace), "say", n)
    samples = []
    while events:
        at, _, kind, what = heapq.heappop(events)
        if at > seconds:
            break
        if kind == "arrive":
            selector = rng.choice(selectors)
            pick = selector.pick(records, now=at)
            assert pick is not None
            n = index[pick.chosen.peer_id]
            open_now[n] += 1
            push(at + rng.expovariate(1 / HOLD_S), "end", (selector, n))
            push(at + rng.expovariate(arrivals_s), "arrive", None)
            if at > seconds / 3:
                samples.append(max(open_now) / max(1e-9, mean(open_now)))
        elif kind == "end":
            selector, n = what
            selector.release(records[n].peer_id)
            open_now[n] -= 1
        elif kind == "say":
            if entries > 1:
                push(at + rng.uniform(*delay_s), "hear", (what, open_now[what]))
            push(at + pace, "say", what)
        else:
            n, load = what
            for selector in selectors:
                selector.observe_load(records[n].peer_id, load)
    return mean(samples)


def ledger_bytes(nodes: int) -> int:
    signed = wire_sizes(nodes).copy
    tracemalloc.start()
    ledger = filled(nodes, signed_bytes=signed)
    found = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(ledger) == min(nodes, MAX_ROWS)
    return found


def exponent(points: list[tuple[int, float]]) -> float:
    """b of a * nodes**b, by least squares of the logarithms."""
    xs, ys = [math.log(n) for n, _ in points], [math.log(max(v, 1e-9)) for _, v in points]
    x, y = mean(xs), mean(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


def one_size(nodes: int, seed: int, *, picks: bool) -> dict[str, float]:
    def run(busy: bool) -> Traffic:
        return trio.run(lambda: traffic(nodes, seed, busy=busy), clock=trio.testing.MockClock(autojump_threshold=0))  # type: ignore[no-any-return]

    idle, busy = run(False), run(True)
    killed, dark = deaths(nodes, seed)
    row = {
        "announce every, s": gossip.announce_interval(BASE_S, min(nodes, MAX_ROWS)),
        "idle kB/s": idle.bytes_s / 1e3, "idle kB/s, most": idle.most_bytes_s / 1e3, "idle messages/s": idle.copies_s,
        "busy kB/s": busy.bytes_s / 1e3, "busy messages/s": busy.copies_s,
        "least reach": min(idle.reached, busy.reached),
        "newcomer known, s": newcomer(nodes, seed), "killed known, s": killed, "power loss known, s": dark,
        "ledger MB": ledger_bytes(nodes) / 1e6,
    }  # fmt: skip
    if picks:
        row |= {f"max/mean, {name}": imbalance(nodes, entries, seed) for name, entries in (("1 entry", 1), ("8 entries", 8))}
        row["max/mean, all entries"] = imbalance(nodes, nodes, seed) if nodes <= 100 else math.nan
    return row


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/simulate", description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=list(SIZES), help=f"default {' '.join(map(str, SIZES))}")
    parser.add_argument("--seed", type=int, default=1, help="the same one gives the same numbers (default 1)")
    parser.add_argument("--no-picks", action="store_true", help="leave selection out, which takes most of the time")
    options = parser.parse_args()
    if min(options.nodes) < 4:
        parser.error("--nodes: at least 4")
    gossip.Topic = SimTopic  # type: ignore[misc,assignment]
    rows = []
    for nodes in options.nodes:
        began = time.monotonic()
        rows.append(one_size(nodes, options.seed, picks=not options.no_picks and nodes <= MAX_ROWS // 4))
        print(f"{nodes} nodes: done in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    names = list(dict.fromkeys(name for row in rows for name in row))
    print("| |" + "".join(f" {n:,} |" for n in options.nodes) + " grows as |")
    print("|---|" + "---|" * (len(rows) + 1))
    for name in names:
        points = [
            (n, row[name]) for n, row in zip(options.nodes, rows, strict=True) if not math.isnan(row.get(name, math.nan))
        ]
        cells = "".join(f" {row[name]:.3g} |" if not math.isnan(row.get(name, math.nan)) else " - |" for row in rows)
        print(f"| {name} |{cells} {f'n^{exponent(points):.2f}' if len(points) > 1 else '-'} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
