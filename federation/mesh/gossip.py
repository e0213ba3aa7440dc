"""Gossip: this node's record to all others, and theirs into the ledger.

Records travel three ways under one rule: a record counts only with its own node's signature.

* The topic carries each announcement to all nodes: every `announce_interval_s`, stretched with the number of nodes, and at
  once when something that matters to selection changed, at most four times a second. Links tell which nodes are alive, so
  records need renewing only now and then: in a large network they say how rarely (`announce_every_s`), and last as long.
* On a new link both sides exchange digests and hand over the rows that the other side lacks (anti-entropy), so a newcomer
  knows all nodes in one round trip. Records that are new and online are republished on the topic. With many links, a node
  syncs with a random sample only.
* Leaving publishes a tombstone.

Ledger sync, on a libp2p stream; each message is 4 bytes of length and msgpack:
    dialler:  [[peer_id, incarnation, seq], ...]
    listener: its own, then pages [[signed, age in ms], ...] and an empty page
    dialler:  its pages and an empty page
"""

from __future__ import annotations

import math
import random
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog
import trio

from federation.errors import PeerUnavailable, ProtocolViolation, RecordForged, RecordInvalid
from federation.mesh.ledger import MAX_ROWS, NO_AGE, Change, Ledger
from federation.mesh.records import (
    ANNOUNCEMENTS_A_WINDOW,
    NODE_ONLINE_WINDOW,
    RAREST_ANNOUNCE_S,
    NodeData,
    decode,
    encode,
    fitting,
)
from federation.net import wire
from federation.net.admission.warnings import REMIND_EVERY_S
from federation.net.pubsub import Topic
from federation.net.wire import MAX_RECORD_BYTES
from federation.ratelimit import Buckets

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from trio_typing import TaskStatus

    from federation.mesh.tokens import Token
    from federation.metrics import Metrics
    from federation.net.host import Host
    from federation.net.link.link import Link
    from federation.net.streams import TrioStream

log = structlog.get_logger(__name__)

FASTEST_S = 0.25  # four announcements a second
# An announcement costs each node about 3.6 kB, in and out together (540 bytes a copy, three copies each way, and IHAVE
# lists): 0.75 a second from all nodes together leave room for the PINGs of 1,000 links in a budget of 5 kB/s.
NODES_AT_BASE = 3  # so many nodes announce at the base interval; more stretch it in proportion
SLOWEST_S = float(RAREST_ANNOUNCE_S)
JITTER = 0.1  # share of a stretched interval that is random: nodes that started together do not announce together
NODES_AT_FASTEST = 16  # so many nodes may tell of their load every LOAD_EVERY_S; more do so more rarely, in proportion
# For people who look, and for entries that have not picked for a while: the others hear of load by their links.
LOAD_EVERY_S = 2.0
SYNCED_LINKS = 24  # of the links of a node: a digest has 65 bytes a node, so all with all would cost the square
VRAM_STEP = 0.01  # a smaller change of free VRAM can wait for the next announcement
EXPIRE_S = 5.0
HEAR_AGAIN_S = 300.0  # for the network to come up, and ten of the dialler's longest pauses
GOODBYE_S = 0.5  # for the tombstone to get past neighbours that do not read, and as long for peers that sync
TOLD_BY_SYNC = 3  # of the tombstone; they tell the others
SYNC_TIMEOUT_S = 10.0
PAGE = 64  # records: at most 1 MiB
MAX_SYNC_BYTES = PAGE * (MAX_RECORD_BYTES + 256)  # a row has some 220 bytes beside the record; test_gossip.py adds it up
MAX_DIGEST_BYTES = MAX_ROWS * 160  # the longest peer id has 128; all that are have 52
MAX_PAGES = MAX_ROWS // PAGE + 1
SYNCS_A_SECOND, SYNCS_AT_ONCE = 0.2, 8.0  # asked for by one peer; an honest one asks once a link
SYNCS_OF_A_PEER = 2  # under way; each may hold a page of 1 MiB that has not arrived whole
ROWS_A_SECOND, ROWS_AT_ONCE = 50.0, 2.0 * MAX_ROWS  # handed over by one peer
_QUIET = {"seq", "last_seen", "gpus", "announce_every_s"}
_LOAD = {"in_flight", "available_vram"}


def announce_interval(base_s: float, nodes: int) -> float:
    """Seconds between two announcements of a node in a network of `nodes`: idle traffic grows no faster than the network."""
    return max(base_s, min(base_s * nodes / NODES_AT_BASE, SLOWEST_S))


def load_interval(nodes: int, *, all_hear: bool = True) -> float:
    """Seconds at least between two announcements because of load alone. `all_hear`: it is no peer's only news of load."""
    return (LOAD_EVERY_S if all_hear else FASTEST_S) * max(1.0, nodes / NODES_AT_FASTEST)


def is_urgent(before: NodeData | None, after: NodeData) -> bool:
    """Whether more than load has changed: a client sent to that node now may be refused."""
    ignored = _QUIET | _LOAD
    return before is None or before.model_dump(exclude=ignored) != after.model_dump(exclude=ignored)


def matters(before: NodeData | None, after: NodeData) -> bool:
    """Whether entries should hear of the change before the next announcement is due."""
    if before is None or before.in_flight != after.in_flight:
        return True
    step = max(before.available_vram, after.available_vram) * VRAM_STEP
    return abs(after.available_vram - before.available_vram) > step or is_urgent(before, after)


class Gossip:
    """Announces this node and fills the ledger. `describe()` returns this node's record as of now (seq is set here);
    `on_change` gets each change of the ledger."""

    def __init__(
        self,
        *,
        host: Host,
        token: Token,
        ledger: Ledger,
        describe: Callable[[], NodeData],
        utc_now: Callable[[], datetime],
        on_change: Callable[[Change], None],
        interval_s: float,
        metrics: Metrics,
        rng: random.Random | None = None,
    ) -> None:
        self._host = host
        self._ledger = ledger
        self._describe = describe
        self._utc_now = utc_now
        self._on_change = on_change
        self._interval_s = interval_s
        self._metrics = metrics
        self._rng = rng or random.Random()
        self._protocol = token.ledger_protocol()
        self._topic = Topic(host, token.topic(), self._accept)
        self._syncs = Buckets[str](SYNCS_A_SECOND, SYNCS_AT_ONCE, max_keys=MAX_ROWS)
        self._syncing: Counter[str] = Counter()
        self._rows = Buckets[str](ROWS_A_SECOND, ROWS_AT_ONCE, max_keys=MAX_ROWS)
        self._seq = 0
        self._announced: NodeData | None = None
        self._announced_at = 0.0
        self._renew_after = 0.0
        self._stir = trio.Event()
        self._left = False
        host.handle_stream(self._protocol, self._answer_sync)

    # Ours

    def stir(self) -> None:
        """Look at this node's record soon, and announce it if it changed."""
        self._stir.set()

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Announce until cancelled."""
        async with self._topic.running(), trio.open_nursery() as nursery:
            await self.announce(self._describe())
            nursery.start_soon(self._expire)
            task_status.started()
            await self._announce_forever()

    async def _announce_forever(self) -> None:
        looked_at = trio.current_time()
        load_due = math.inf  # when a load that has changed may be told
        while True:
            # The promise of the last announcement holds, however much the network has grown since.
            due = self._announced_at + min(self._renew_after, announce_interval(self._interval_s, len(self._ledger)))
            with trio.CancelScope(deadline=min(due, load_due)):
                await self._stir.wait()
            await trio.sleep_until(looked_at + FASTEST_S)
            if self._left:
                return
            looked_at = trio.current_time()
            self._stir = trio.Event()
            record = self._describe()
            load_due = math.inf
            if looked_at < due and not is_urgent(self._announced, record):
                if not matters(self._announced, record):
                    continue
                may = self._announced_at + load_interval(len(self._ledger), all_hear=self._all_hear_load())
                if looked_at < may:
                    load_due = may
                    continue
            await self.announce(record)

    def _all_hear_load(self) -> bool:
        """Whether all links tell this node's load; those of a former version do not."""
        return all(link.mux.tells_load for link in self._host.links.values())

    async def announce(self, record: NodeData) -> None:
        self._seq += 1
        interval = announce_interval(self._interval_s, len(self._ledger))
        is_rare = ANNOUNCEMENTS_A_WINDOW * interval > NODE_ONLINE_WINDOW.total_seconds()
        record = fitting(
            record.model_copy(update={"seq": self._seq, "announce_every_s": math.ceil(interval) if is_rare else 0})
        )
        self._renew_after = interval * (1.0 - JITTER * self._rng.random()) if interval > self._interval_s else interval
        self._announced = record
        self._announced_at = trio.current_time()
        signed = await self._topic.publish(encode(record))
        self._metrics.gossip_messages["out"] += 1
        self._metrics.gossip_bytes["out"] += len(signed)
        self._ledger.merge(record, signed=signed, now=self._utc_now())

    async def leave(self) -> None:
        """Publish a tombstone. Announce nothing afterwards, or other nodes would think that this node came back."""
        self._left = True
        await self.announce(self._describe().model_copy(update={"left": True, "draining": True}))
        await self._topic.flushed(GOODBYE_S)
        # A node that has just come may have no neighbour on the topic yet: then nobody has heard it.
        links = [link for link in self._host.links.values() if not link.suspect]
        with trio.move_on_after(GOODBYE_S):
            async with trio.open_nursery() as nursery:
                for link in self._rng.sample(links, min(len(links), TOLD_BY_SYNC)):
                    nursery.start_soon(self._exchange, link)

    async def _expire(self) -> None:
        """Forget nodes that are gone. After a sleep all seem so: they are dialled and heard first."""
        begun, begun_s = self._utc_now(), trio.current_time()
        spared_until = -math.inf
        while True:
            await trio.sleep(EXPIRE_S)
            asleep_s = (self._utc_now() - begun).total_seconds() - (trio.current_time() - begun_s)
            begun, begun_s = self._utc_now(), trio.current_time()
            if asleep_s > EXPIRE_S:
                log.info("this machine slept; nodes are given time to be heard", hours=round(asleep_s / 3600, 1))
                spared_until = begun_s + HEAR_AGAIN_S
            if begun_s < spared_until:
                continue
            for change in self._ledger.expire(self._utc_now()):
                self._on_change(change)
                self.stir()  # a smaller network announces sooner

    # Theirs

    def _accept(self, signer: str, data: bytes, signed: bytes) -> bool:
        """Take a message of the topic. Returns whether to forward it. Never raises."""
        self._metrics.gossip_messages["in"] += 1
        self._metrics.gossip_bytes["in"] += len(signed)
        try:
            return self._merge(signer, data, signed, None)
        except RecordForged as error:
            self._host.report_violation(signer, f"it signs a record that is not its own ({error.detail})")
        except RecordInvalid as error:  # by a newer version, perhaps
            self._host.warn("a node's record is refused", signer, REMIND_EVERY_S, why=error.detail)
        return False

    def _merge(self, signer: str, data: bytes, signed: bytes, age: timedelta | None) -> bool:
        """Take in a record whose signature was checked; whether it is the newest. Raises RecordInvalid.

        `age` is None for topic messages (age 0). If this version is known already, its first arrival time stands: any member
        can repeat a record.
        """
        now = self._utc_now()
        record = decode(data, received_at=now)
        if record.peer_id != signer:
            raise RecordForged("it speaks for somebody else")
        if record.peer_id == self._host.peer_id:
            self._notice_impostor(record)
            return False
        known = self._ledger.get(signer)
        if known is not None and known.version == (record.incarnation, record.seq):
            age = now - known.record.last_seen
        change = self._ledger.merge(record, signed=signed, now=now, age=NO_AGE if age is None else age)
        if change is not None:
            self._on_change(change)
        row = self._ledger.get(record.peer_id)
        if row is None and len(self._ledger) >= MAX_ROWS:
            self._host.warn("the network has too many nodes: newcomers are left out", "ledger", REMIND_EVERY_S)
        return row is not None and row.signed == signed

    def _notice_impostor(self, record: NodeData) -> None:
        ours = self._announced
        if ours is not None and record.incarnation > ours.incarnation:
            self._host.report_copied()

    # Anti-entropy

    async def sync(self, link: Link) -> None:
        """Exchange ledgers with a peer that this node dialled. After a failure the next announcement repairs the gap.

        With more than SYNCED_LINKS links, it does so with that many of them on average: after a join or a healed partition
        that is enough for both sides to know all, since new records are republished on the topic.
        """
        if self._rng.random() * len(self._host.links) < SYNCED_LINKS:
            await self._exchange(link)

    async def _exchange(self, link: Link) -> None:
        try:
            with trio.fail_after(SYNC_TIMEOUT_S):
                stream = await self._host.open_stream(link.peer_id, self._protocol)
                async with stream:
                    await wire.send(stream, self._digest())
                    theirs = await _receive_digest(stream)
                    await self._take_pages(stream, link.peer_id)
                    await self._send_pages(stream, theirs)
                    await stream.send_eof()
                    await stream.receive_some(1)  # until the other side has read it all
        except (PeerUnavailable, ProtocolViolation, trio.BrokenResourceError, trio.TooSlowError) as error:
            log.debug("ledger sync failed", peer=link.peer_id, why=str(error) or type(error).__name__)

    async def _answer_sync(self, link: Link, stream: TrioStream) -> None:
        peer_id = link.peer_id
        if self._syncing[peer_id] >= SYNCS_OF_A_PEER or not self._syncs.of(peer_id).take(trio.current_time()):
            self._host.warn("a peer asks for the whole ledger again and again; it has to wait", peer_id)
            await stream.aclose()
            return
        self._syncing[peer_id] += 1
        try:
            with trio.fail_after(SYNC_TIMEOUT_S):
                async with stream:
                    theirs = await _receive_digest(stream)
                    await wire.send(stream, self._digest())
                    await self._send_pages(stream, theirs)
                    await self._take_pages(stream, peer_id)
                    await stream.send_eof()
        except (ProtocolViolation, trio.BrokenResourceError, trio.TooSlowError) as error:
            log.debug("ledger sync failed", peer=peer_id, why=str(error) or type(error).__name__)
        finally:
            self._syncing -= Counter([peer_id])  # no peer stays at 0

    def _digest(self) -> list[tuple[str, int, int]]:
        return [(peer_id, *version) for peer_id, version in self._ledger.digest().items()]

    async def _send_pages(self, stream: TrioStream, theirs: dict[str, tuple[int, int]]) -> None:
        now = self._utc_now()
        rows = [
            (row.signed, int((now - row.record.last_seen) / timedelta(milliseconds=1)))
            for row in self._ledger.missing(theirs)
            if row.signed
        ]
        for at in range(0, len(rows), PAGE):
            await wire.send(stream, rows[at : at + PAGE])
        await wire.send(stream, [])

    async def _take_pages(self, stream: TrioStream, peer_id: str) -> None:
        for _ in range(MAX_PAGES):
            page = await wire.receive_rows(stream, at_most=MAX_SYNC_BYTES, rows=PAGE, fields=2)
            if not page:
                return
            if not self._rows.of(peer_id).take(trio.current_time(), len(page)):
                self._host.warn("a peer hands over records without end; it has to wait", peer_id)
                raise ProtocolViolation("records without end")
            async with self._topic.turn as turn:
                for row in page:
                    await self._take_row(row, peer_id)
                    await turn.pause()
        raise ProtocolViolation("too many records")

    async def _take_row(self, row: object, peer_id: str) -> None:
        match row:
            case [bytes(signed), int(age_ms)] if 0 <= age_ms < 2**40:
                pass
            case _:
                raise ProtocolViolation("a row is a signed record and its age")
        try:
            signer, data, signed = self._topic.open_signed(signed)  # without fields that a former version lets others add
            before = self._ledger.get(signer)
            newest = self._merge(signer, data, signed, timedelta(milliseconds=age_ms))
        except RecordForged as error:
            self._host.report_violation(peer_id, f"it hands over a record that is not genuine ({error.detail})")
            raise ProtocolViolation("a record that is not genuine") from None
        except RecordInvalid as error:  # by a newer version, perhaps
            self._host.warn("a node's record is refused", peer_id, REMIND_EVERY_S, why=error.detail)
            return
        known = self._ledger.get(signer)
        if not newest or known is None:
            return
        if before is None:  # the topic carries no age: an offline node would come back by it
            is_news = known.record.is_online_at(self._utc_now())
        else:
            is_news = known.record.left and not before.record.left
        if is_news:
            await self._topic.forward(peer_id, signed)


async def _receive_digest(stream: TrioStream) -> dict[str, tuple[int, int]]:
    digest: dict[str, tuple[int, int]] = {}
    for row in await wire.receive_rows(stream, at_most=MAX_DIGEST_BYTES, rows=MAX_ROWS, fields=3):
        match row:
            case [str(peer_id), int(incarnation), int(seq)]:
                digest[peer_id] = (incarnation, seq)
            case _:
                raise ProtocolViolation("a digest's row is a peer, its incarnation and its seq")
    return digest
