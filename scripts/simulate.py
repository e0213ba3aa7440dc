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
import itertools
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

from federation.forward.attempts import MOST_BUSIER
from federation.forward.pushing import COALESCE_S
from federation.forward.selection import Selector
from federation.forward.watching import Watching
from federation.mesh import gossip
from federation.mesh.ledger import MAX_ROWS, Ledger
from federation.mesh.records import Gpu, NodeData, encode
from federation.mesh.tokens import Token
from federation.metrics import Metrics
from federation.net.host import MAX_LINKS, TICK_S
from federation.net.link.frames import HEADER_BYTES, LOAD_BYTES
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
WARM_UP_S = 2 * HOLD_S  # 86 % of the load is there then
WAY_S = 0.01  # between any two nodes, one way
LOAD_RECORD_BYTES = LOAD_BYTES + 2 + TAG


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
    links = dict.fromkeys(range(network.nodes - 1), SimpleNamespace(mux=SimpleNamespace(tells_load=True)))
    host = SimpleNamespace(
        number=n, network=network, peer_id=peer_name(n), links=links, handle_stream=lambda *_: None,
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


class Spread(NamedTuple):
    """`most`: connections on a node over the mean, averaged over time. `load_bytes_s`: what a node says of its load by
    frames for their own sake, in and out. `again`: how many picks a connection were sent back."""

    most: float
    load_bytes_s: float
    again: float


class _Entry:
    """One entry: the real selector, over links that are times and numbers."""

    def __init__(self, n: int, peers: Spreading) -> None:
        self.number = n
        self.peer_id = peer_name(n)
        self.selector = Selector(entry_id=self.peer_id, rng=random.Random(n))
        self.watching = Watching(
            self.peer_id, self.selector, lambda peer_id: _SimLink(self, peers.index[peer_id], peers), peers.rng
        )
        self.served = Counter[int]()  # node -> this entry's connections that it serves, as the node counts them


class _SimLink(NamedTuple):
    entry: _Entry
    node: int
    peers: Spreading

    def watch(self, now: float) -> bool:
        watchers = self.peers.watchers[self.node]
        if self.entry.number in watchers:
            return True
        watchers.add(self.entry.number)
        self.peers.frames += 2  # WATCH, and the load in return
        self.peers.later(now + 2 * self.peers.way_s, self.peers.hear, self.entry, self.node)
        return False

    def unwatch(self) -> None:
        self.peers.frames += 1
        self.peers.watchers[self.node].discard(self.entry.number)


class Spreading:
    """Exponential arrivals and durations over `nodes`, of which `entries` take clients. Dice would have the busiest at about
    1 + 2/sqrt(CLIENTS_A_NODE) times the mean, and more with more nodes."""

    def __init__(self, nodes: int, entries: int, seed: int, way_s: float = WAY_S) -> None:
        self.rng = random.Random(seed)
        self.way_s = way_s
        self.records = [new_record(n) for n in range(nodes)]
        self.index = {record.peer_id: n for n, record in enumerate(self.records)}
        self.open_now = [0] * nodes
        self.watchers: list[set[int]] = [set() for _ in range(nodes)]
        self.entries = [_Entry(n, self) for n in range(entries)]
        self.arrivals_s = nodes * CLIENTS_A_NODE / HOLD_S
        self.seconds = max(5 * HOLD_S, min(10 * HOLD_S, 24_000 / self.arrivals_s))
        self.frames = self.asked = self.again = 0
        self._events: list[tuple[float, int, Any, tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self._pushing: set[int] = set()
        self._most = _Most(nodes)

    def later(self, at: float, what: Any, *arguments: Any) -> None:
        heapq.heappush(self._events, (at, next(self._numbers), what, arguments))

    def run(self) -> Spread:
        self.later(0.0, self.arrive)
        samples, began = [], 0
        while self._events:
            now, _, what, arguments = heapq.heappop(self._events)
            if now > self.seconds:
                break
            what(now, *arguments)
            if now > WARM_UP_S:
                began = began or self.frames
                samples.append(self._most.now * len(self.records) / max(1, self._most.total))
        frames_s = (self.frames - began) / (self.seconds - WARM_UP_S)
        return Spread(mean(samples), 2 * frames_s * LOAD_RECORD_BYTES / len(self.records), self.again / self.asked)

    def arrive(self, now: float) -> None:
        self.later(now + self.rng.expovariate(self.arrivals_s), self.arrive)
        self.asked += 1
        self.pick(now, self.rng.choice(self.entries), 0)

    def pick(self, now: float, entry: _Entry, again: int) -> None:
        seen = entry.watching.look("default", self.records, now)
        pick = entry.selector.pick(seen, now=now)
        assert pick is not None
        node = self.index[pick.chosen.peer_id]
        if node == entry.number:
            self.opens(now, entry, node, pick.chosen.others, again)
        else:
            self.later(now + self.way_s, self.opens, entry, node, pick.chosen.others, again)

    def opens(self, now: float, entry: _Entry, node: int, believed: int, again: int) -> None:
        is_own = node == entry.number
        if not is_own and again < MOST_BUSIER and self.open_now[node] - entry.served[node] > believed:
            self.again += 1
            self.later(now + self.way_s, self.sent_back, entry, node, again)
            return
        self.changed(now, entry, node, 1)
        self.later(now + self.rng.expovariate(1 / HOLD_S), self.ends, entry, node)
        if not is_own:
            self.later(now + self.way_s, self.hear, entry, node)  # with OPENED

    def sent_back(self, now: float, entry: _Entry, node: int, again: int) -> None:
        self.hear(now, entry, node)
        entry.selector.release(self.records[node].peer_id)
        self.pick(now, entry, again + 1)

    def ends(self, now: float, entry: _Entry, node: int) -> None:
        self.changed(now, entry, node, -1)
        self.later(now + (0 if node == entry.number else self.way_s), self.ended, entry, node)

    def ended(self, now: float, entry: _Entry, node: int) -> None:
        entry.selector.release(self.records[node].peer_id)
        self.hear(now, entry, node)

    def hear(self, now: float, entry: _Entry, node: int) -> None:
        """The load by others arrives, as it is now: that real ones are some way old makes little difference here."""
        del now
        is_fresh = entry.number in self.watchers[node] or node == entry.number
        others = self.open_now[node] - entry.served[node]
        entry.selector.told(self.records[node].peer_id, others, is_fresh=is_fresh)

    def changed(self, now: float, entry: _Entry, node: int, by: int) -> None:
        entry.served[node] += by
        self._most.change(self.open_now[node], by)
        self.open_now[node] += by
        if node < len(self.entries):
            own = self.entries[node]
            own.selector.told(self.records[node].peer_id, self.open_now[node] - own.served[node])
        if node not in self._pushing:
            self._pushing.add(node)
            self.later(now + COALESCE_S, self.push, node)

    def push(self, now: float, node: int) -> None:
        self._pushing.discard(node)
        for number in self.watchers[node]:
            self.frames += 1
            self.later(now + self.way_s, self.hear, self.entries[number], node)


class _Most:
    """The most of many counters that go up and down by one, without looking at all of them."""

    def __init__(self, count: int) -> None:
        self._having = Counter({0: count})
        self.now = self.total = 0

    def change(self, value: int, by: int) -> None:
        self._having[value] -= 1
        self._having[value + by] += 1
        self.total += by
        self.now = max(self.now, value + by)
        while self.now and not self._having[self.now]:
            self.now -= 1


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
        for name, entries in (("1 entry", 1), ("8 entries", 8), ("all entries", nodes)):
            spread = Spreading(nodes, entries, seed).run()
            row[f"max/mean, {name}"] = spread.most
        row |= {"load frames kB/s, all entries": spread.load_bytes_s / 1e3, "picked again, all entries": spread.again}
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
        rows.append(one_size(nodes, options.seed, picks=not options.no_picks))
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
