"""The gossip topic: GossipSub, hardened, with every message signed by its node.

A message is one node's bytes. The topic first checks its signature, then `accept` decides whether the message is news. The
topic passes on nothing else. A node can keep the signed form and hand it to other nodes later (anti-entropy): `open_signed`
checks that form by the same rules, so no node can speak for another, whichever way a message came.

A message is its canonical bytes: the signed fields, and the signature. The topic leaves out everything else in it (a
key, fields of no version), so a node keeps and passes on bounded messages, and no neighbour takes offence. Former versions
pass on more: RPCs of up to 1 MiB, padded messages, other kinds of identities. The topic ignores these, and they cost no
link: the node that sends them may be honest.

No member can drown the others in messages. The topic reads each neighbour at a pace: that neighbour's queue fills up, not
ours. It drops a signer's messages beyond the signer's ration before it checks their signatures, and messages of unknown
signers beyond the number that a neighbour may introduce. An honest node passes on no forged message and publishes no faster
than its ration, so a node that does either is an offender.

Every node has a link to every other, so the mesh is as thin as reaches all nodes: a message costs a node as many copies as
it has mesh neighbours, not links (docs/reliability.md, "Growth", has the arithmetic and the runs).
"""

from __future__ import annotations

import random
import time
from collections import defaultdict, deque
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
import trio
from google.protobuf.message import DecodeError
from libp2p.exceptions import ParseError
from libp2p.io.exceptions import IncompleteReadError, IOException, MessageTooLarge
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import PriorityQueue
from libp2p.pubsub.validators import PUBSUB_SIGNING_PREFIX
from libp2p.tools.anyio_service import LifecycleError, background_trio_service
from libp2p.utils.varint import decode_uvarint_from_stream

from federation.errors import RecordForged, RecordInvalid
from federation.net import identity
from federation.net.admission.warnings import REMIND_EVERY_S
from federation.net.wire import MAX_RECORD_BYTES
from federation.ratelimit import Buckets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from libp2p.abc import INetStream
    from libp2p.pubsub.rpc_queue import RpcQueue

    from federation.net.host import Host

log = structlog.get_logger(__name__)

PROTOCOL_ID = "/meshsub/1.1.0"
HEARTBEAT_S = 1
# A node asks two others to be its mesh neighbours and is asked by two on average: four copies of each message. A graph in
# which every node chose two at random is connected; lazy peers tell the nodes that it still misses.
DEGREE = DEGREE_LOW = 2
DEGREE_HIGH = 100  # above the number of neighbours: the hub of a star is the only neighbour that its leaves have
EXCHANGE_S = 300  # after which a neighbour that this node asked is exchanged, or the oldest nodes would be asked most
SPARE_PEERS = 4  # with so many more to choose from, a neighbour that only came first gives way
LAZY_PEERS = 2  # hear of new messages each second and ask for those they lack; py-libp2p tells a quarter of all peers
LAZY_HEARTBEATS = 1  # a lazy peer hears of each message once
# An RPC, sent or read. A record has 16 KiB at most; GossipSub's control messages ride along. Every version cuts off a
# neighbour that sends more. f919b4d, though honest, does send more: messages that another node padded.
MAX_MESSAGE_BYTES = 32 * 1024
MAX_FORMER_BYTES = 1024 * 1024  # f919b4d sends no RPC above this; the topic does not parse an RPC between the two
SEQNO_BYTES = 8
MESSAGE_ID_BYTES = identity.ID_BYTES + SEQNO_BYTES
PRUNE_BACKOFF_S = 5
MAX_BACKOFF_S = 60  # that a neighbour may ask for
RPCS_A_SECOND, RPCS_AT_ONCE = 500.0, 2000.0  # read from one neighbour; 100 nodes under load say 400 a second together
IDS_AN_RPC = 64  # so many message ids in control messages count as one RPC more
BYTES_AN_RPC = 4096  # a larger one counts as several; an announcement has 540 bytes
# Asked for in answer to one IHAVE, and in one IWANT: f919b4d answers each IWANT in one RPC, and reads ten in a second.
WANTED_AT_ONCE, WANTED_AN_IWANT = 192, 24
TURN_S = 0.002  # of the thread, for one neighbour's messages; then clients have theirs
SIGNED_A_SECOND, SIGNED_AT_ONCE = 8.0, 40.0  # by one node; gossip.py says at most four a second
NEW_A_SECOND, NEW_AT_ONCE = 20.0, 300.0  # signers introduced by one neighbour; those left out announce themselves again
EXCESS_A_SECOND, EXCESS_AT_ONCE = 50.0, 500.0  # own messages beyond its ration; further ones make the neighbour an offender
MAX_SIGNERS = 8192  # that rations are kept for; a few MB
QUEUED = 1024  # messages for one peer; theirs drops the 33rd without a word, and one sync brings more
QUEUED_BYTES = 1024 * 1024  # so many announcements of the usual size have less


class _Router(GossipSub):
    """py-libp2p's router, but its traffic grows neither with the number of links nor with a neighbour's requests."""

    def __init__(self) -> None:
        super().__init__(
            protocols=[PROTOCOL_ID],  # type: ignore[list-item]
            degree=DEGREE, degree_low=DEGREE_LOW, degree_high=DEGREE_HIGH,
            heartbeat_interval=HEARTBEAT_S, prune_back_off=PRUNE_BACKOFF_S,
            adaptive_gossip_enabled=False, spam_protection_enabled=False, eclipse_protection_enabled=False,
        )  # fmt: skip
        self.scorer = None  # py-libp2p's scorer grafts neighbours every second until every peer is one
        # Theirs notes the time of each message for ever, and reads the list only for adaptive gossip.
        self.recent_message_deliveries = defaultdict(lambda: deque(maxlen=0))  # type: ignore[arg-type,return-value]
        self._asked: set[ID] = set()  # mesh neighbours that this node asked
        self._hasty: set[ID] = set()  # of them: to be exchanged, at first because they were taken for coming first
        self._exchange_in = random.randrange(EXCHANGE_S)  # heartbeats; not all nodes at once
        self._handed: dict[ID, set[bytes]] = {}  # of the cached messages, those that a neighbour asked for and got

    def _check_equivocation(self, msg: rpc_pb2.Message) -> bool:
        """Pass: py-libp2p keeps up to 1,000 messages, over a megabyte, to compare with. `push_msg` takes no number twice."""
        return True

    def _get_adaptive_gossip_peers_count(self, topic: str, total_peers: int) -> int:
        return LAZY_PEERS

    async def handle_ihave(self, ihave_msg: rpc_pb2.ControlIHave, sender_peer_id: ID) -> None:
        """Ask for a part only: py-libp2p asks for all in one IWANT, and the answer may exceed an RPC."""
        assert self.pubsub is not None
        seen = self.pubsub.seen_messages
        ids = dict.fromkeys(mid for mid in ihave_msg.messageIDs if len(mid) == MESSAGE_ID_BYTES and not seen.has(mid))
        wanted = list(ids)[:WANTED_AT_ONCE]
        if wanted:
            parts = [wanted[at : at + WANTED_AN_IWANT] for at in range(0, len(wanted), WANTED_AN_IWANT)]
            control = rpc_pb2.ControlMessage(iwant=[rpc_pb2.ControlIWant(messageIDs=part) for part in parts])
            await self.emit_control_message(control, sender_peer_id)

    async def handle_iwant(self, iwant_msg: rpc_pb2.ControlIWant, sender_peer_id: ID) -> None:
        """Hand a message once to each neighbour: py-libp2p does so as often as it is asked, 16 KiB for 46 bytes."""
        handed = self._handed.setdefault(sender_peer_id, set())
        wanted = [mid for mid in dict.fromkeys(iwant_msg.messageIDs) if mid in self.mcache.msgs and mid not in handed]
        if wanted:
            handed.update(wanted)
            self.send_rpc(sender_peer_id, rpc_pb2.RPC(publish=[self.mcache.msgs[mid] for mid in wanted]))

    async def handle_prune(self, prune_msg: rpc_pb2.ControlPrune, sender_peer_id: ID) -> None:
        """Drop the named peers and bound the backoff: py-libp2p dials the peers, and believes any backoff."""
        known = rpc_pb2.ControlPrune(topicID=prune_msg.topicID, backoff=min(prune_msg.backoff, MAX_BACKOFF_S))
        await super().handle_prune(known, sender_peer_id)

    async def handle_idontwant(self, idontwant_msg: rpc_pb2.ControlIDontWant, sender_peer_id: ID) -> None:
        """Ignore this part of GossipSub 1.2, which no version here uses: py-libp2p keeps ids of any length."""

    def remove_peer(self, peer_id: ID) -> None:
        super().remove_peer(peer_id)
        self._handed.pop(peer_id, None)

    def gossip_heartbeat(self) -> defaultdict[ID, dict[str, list[bytes]]]:
        cached = self.mcache.msgs.keys()
        self._handed = {peer: kept for peer, handed in self._handed.items() if (kept := handed & cached)}
        now = time.time()
        self.back_off = {  # theirs keeps that of a peer which does not come back for ever
            topic: {peer: until for peer, until in peers.items() if until > now} for topic, peers in self.back_off.items()
        }
        whole, self.mcache.window_size = self.mcache.window_size, LAZY_HEARTBEATS  # newcomers are handed all of it
        try:
            return super().gossip_heartbeat()
        finally:
            self.mcache.window_size = whole

    def _select_peers_for_pruning(self, topic: str, num_to_prune: int) -> list[ID]:
        """Prune few: py-libp2p prunes down to `degree`, too many leaves of a large star at once."""
        return super()._select_peers_for_pruning(topic, len(self.mesh[topic]) - DEGREE_HIGH)

    async def on_peer_subscribed(self, peer_id: ID, topic: str) -> None:
        before = set(self.mesh.get(topic, ()))
        await super().on_peer_subscribed(peer_id, topic)
        asked = self.mesh.get(topic, set()) - before
        self._asked |= asked
        self._hasty |= asked

    def mesh_heartbeat(self) -> tuple[defaultdict[ID, list[str]], defaultdict[ID, list[str]]]:
        """Exchange the first neighbours for ones chosen from all nodes: the few that all nodes meet first carried it all."""
        to_graft, to_prune = super().mesh_heartbeat()
        self._exchange_in -= 1
        for topic, mesh in self.mesh.items():
            self._asked = (self._asked | set(to_graft)) & mesh
            if self._exchange_in <= 0:
                self._exchange_in = EXCHANGE_S // HEARTBEAT_S
                self._hasty |= set(list(self._asked)[:1])
            self._hasty &= mesh
            others: list[ID] = []
            if self._hasty and self.pubsub is not None and topic in self.pubsub.peer_topics:  # the last of them may be gone
                others = self._get_in_topic_gossipsub_peers_from_minus(topic, SPARE_PEERS, mesh, True)
            if len(others) == SPARE_PEERS:
                was, becomes = self._hasty.pop(), others[0]
                mesh.remove(was)
                mesh.add(becomes)
                to_prune[was].append(topic)
                to_graft[becomes].append(topic)
                self._asked.discard(was)  # who asks us from now on is no one that we asked
                self._asked.add(becomes)
        return to_graft, to_prune


class _Queue(PriorityQueue):
    """Theirs counts RPCs, whatever their size: a neighbour that does not read would have us hold 16 MiB."""

    def __init__(self) -> None:
        super().__init__(QUEUED)
        self._bytes = 0

    def push(self, rpc: rpc_pb2.RPC, priority: bool = False) -> bool:
        if self._bytes >= QUEUED_BYTES or not super().push(rpc, priority):
            return False
        self._bytes += rpc.ByteSize()
        return True

    def pop(self) -> rpc_pb2.RPC | None:
        rpc = super().pop()
        if rpc is not None:
            self._bytes -= rpc.ByteSize()
        return rpc


class _Queues(dict[ID, "RpcQueue"]):
    """Queues of messages on their way to each peer, split to the size that it reads."""

    def __setitem__(self, peer: ID, queue: RpcQueue) -> None:
        queue.max_message_size = MAX_MESSAGE_BYTES
        queue._queue = _Queue()
        super().__setitem__(peer, queue)


class _GuardedPubsub(Pubsub):
    """py-libp2p's pubsub, but no message can end it (trap A) or cause a dial (trap P)."""

    _writing = 0
    _wrote = trio.Event()
    gate: _Gate

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.peer_queues = _Queues()
        self._registering: defaultdict[ID, trio.Lock] = defaultdict(trio.Lock)

    async def _handle_new_peer(self, peer_id: ID) -> None:
        """Open a stream to the peer, once. Two nodes that dial each other have two links at first, and py-libp2p, called for
        both, opens two streams and leaves a task behind for good that waits on the queue of the first.

        It also tries again after two kinds of errors only: if a peer that is still starting reset the stream, none of our
        messages would reach it by this link.
        """
        lock = self._registering[peer_id]
        try:
            async with lock:
                if not self._peer_is_connected(peer_id):  # py-libp2p has the swarm dial the peer
                    raise SwarmException("no connection to it")
                await super()._handle_new_peer(peer_id)
        except Exception as error:
            raise SwarmException("the gossip stream was not opened") from error
        finally:
            if not lock.locked():  # else it was handed to the next in line
                self._registering.pop(peer_id, None)

    def _schedule_peer_stream_retry(self, peer_id: ID) -> None:
        """Start the new sender apart: as a child of the one that failed it would leave two tasks more for each failure."""
        trio.lowlevel.current_trio_token().run_sync_soon(self._retry_at_the_root, peer_id)

    def _retry_at_the_root(self, peer_id: ID) -> None:
        with suppress(LifecycleError):  # it is ending
            super()._schedule_peer_stream_retry(peer_id)

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        """Check without a cache: py-libp2p caches verdicts by an id that any node can guess before the signer used it."""
        try:
            if self._is_msg_seen(msg):
                return
            if not is_genuine(msg):
                self.gate.forged(msg_forwarder)
                return
            self._mark_msg_seen(msg)
            if self.gate.accepts(msg_forwarder, msg):
                await self.router.publish(msg_forwarder, msg)
        except Exception as error:  # noqa: BLE001  # no message ends the host
            log.debug("a gossip message failed", peer=str(msg_forwarder), why=type(error).__name__)

    async def continuously_read_stream(self, stream: INetStream) -> None:
        """Read one message after the other: py-libp2p begins a task for each and checks a signed address record in it."""
        peer = stream.muxed_conn.peer_id
        try:
            while self.manager.is_running:
                length = await decode_uvarint_from_stream(stream)
                if length > MAX_FORMER_BYTES:
                    raise MessageTooLarge
                if length > MAX_MESSAGE_BYTES:
                    await self.gate.pass_over(peer, length)
                    await _read_over(stream, length)
                    continue
                rpc = rpc_pb2.RPC.FromString(await _read(stream, length))
                await self.gate.pace(peer, rpc, length)
                async with self.gate.turn:
                    await self._take(peer, rpc)
        except (MessageTooLarge, DecodeError, ParseError) as error:
            self.gate.nonsense(peer, type(error).__name__)
        except (StreamError, IOException):
            pass  # it ended
        except Exception as error:  # noqa: BLE001  # the peer's stream ends, not the host
            log.debug("a gossip stream failed", why=type(error).__name__)
        with suppress(Exception):  # gone already; if not, so that the peer opens a new one
            await stream.reset()

    async def _take(self, peer: ID, rpc: rpc_pb2.RPC) -> None:
        for message in map(canonical, rpc.publish):
            if message is None or not self._is_subscribed_to_msg(message) or self._is_msg_seen(message):
                continue
            if self.gate.rations(peer, message):
                await self.push_msg(peer, message)
            await self.gate.turn.pause()
        if not self._peer_is_connected(peer):  # it is forgotten already; a note of it now would stay for ever
            return
        if len(rpc.subscriptions) <= self.max_subscriptions_per_rpc:
            for subscription in rpc.subscriptions:
                self.handle_subscription(peer, subscription)
        if rpc.HasField("control") and self.gate.knows_topics(peer, rpc.control):
            rpc.ClearField("senderRecord")  # py-libp2p dials the addresses in it
            del rpc.control.graft[1:], rpc.control.prune[1:]  # there is one topic, and py-libp2p answers each
            await self.router.handle_rpc(rpc, peer)

    def handle_subscription(self, origin_id: ID, sub_message: rpc_pb2.RPC.SubOpts) -> None:
        """Take a subscription, and no end of one: a node that subscribed again would get all recent messages again."""
        if sub_message.subscribe:
            super().handle_subscription(origin_id, sub_message)

    def get_hello_packet(self) -> rpc_pb2.RPC:
        """The hello without our addresses, which py-libp2p adds."""
        return rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=topic) for topic in self.topic_ids])

    async def write_msg(self, stream: INetStream, rpc_msg: rpc_pb2.RPC) -> bool:
        # Its own addresses, signed: 200 bytes of each message, checked by each receiver, and records have them already.
        rpc_msg.ClearField("senderRecord")
        if rpc_msg.ByteSize() > MAX_MESSAGE_BYTES:  # it would cost us the link; nothing that we make is as large
            log.error("a gossip message is too large to be sent", size=rpc_msg.ByteSize())
            return True
        self._writing += 1
        try:
            return await super().write_msg(stream, rpc_msg)
        finally:
            self._writing -= 1
            self._wrote.set()

    async def flushed(self) -> None:
        """Wait until all that was queued for peers has been written."""
        while self._writing or any(map(len, self.peer_queues.values())):
            self._wrote = trio.Event()
            await self._wrote.wait()

    async def handle_dead_peer_queue(self) -> None:
        """Notice the end of each stream: py-libp2p ignores the end of a connection while the peer has another one."""
        async with self.dead_peer_receive_channel:
            self.event_handle_dead_peer_queue_started.set()
            async for peer_id in self.dead_peer_receive_channel:
                stream = self.peers.get(peer_id)
                if stream is None or stream.muxed_conn.is_closed:
                    self._handle_dead_peer(peer_id)

    async def _send_recent_messages_to_new_peer(self, peer_id: ID) -> None:
        """The stream to the peer is open. A peer that subscribed before joins the mesh now, not at the next heartbeat."""
        for topic in [topic for topic, peers in self.peer_topics.items() if peer_id in peers]:
            await self.router.on_peer_subscribed(peer_id, topic)
        await super()._send_recent_messages_to_new_peer(peer_id)

    def _forget_all_subscriptions(self, peer_id: ID) -> None:
        """Keep them while there is a link: py-libp2p forgets them when a stream fails, but a peer sends them only once."""
        if self._peer_is_connected(peer_id):
            self._replayed_recent_topics.pop(peer_id, None)  # the new stream repeats messages that the old one may have lost
        else:
            super()._forget_all_subscriptions(peer_id)

    def notify_subscriptions(self, publish_message: rpc_pb2.Message) -> None:
        """Do nothing: `accept` has the message already, and the subscription's queue, which has no reader, would fill up."""


def canonical(message: rpc_pb2.Message) -> rpc_pb2.Message | None:
    """`message` reduced to its signature and the signed fields; nodes pass on these bytes.

    None if no version of this program signs such a message.
    """
    if (
        identity.key_of(message.from_id) is None
        or len(message.seqno) != SEQNO_BYTES
        or len(message.data) > MAX_RECORD_BYTES
        or len(message.topicIDs) > 1
    ):
        return None
    try:
        return rpc_pb2.Message(
            from_id=message.from_id, data=message.data, seqno=message.seqno, topicIDs=message.topicIDs,
            signature=message.signature,
        )  # fmt: skip
    except UnicodeDecodeError:  # of the topic
        return None


def is_genuine(message: rpc_pb2.Message) -> bool:
    """Whether the named signer signed the message."""
    key = identity.key_of(message.from_id)
    if key is None:
        return False
    signed = rpc_pb2.Message(
        data=message.data, topicIDs=message.topicIDs, from_id=message.from_id, seqno=message.seqno
    ).SerializeToString()
    return identity.is_signed(PUBSUB_SIGNING_PREFIX.encode() + signed, message.signature, key)


async def _read(stream: INetStream, n: int) -> bytes:
    data = bytearray()
    while len(data) < n:
        if not (chunk := await stream.read(n - len(data))):
            raise IncompleteReadError("the stream ended in the middle of a message")
        data += chunk
    return bytes(data)


async def _read_over(stream: INetStream, n: int) -> None:
    while n:
        n -= len(await _read(stream, min(n, 4096)))


class Turn:
    """One task at a time takes in members' messages, and lets the others run every TURN_S.

    trio runs every task that can run before it looks at a socket: many members that speak at one moment would hold up all
    clients for as long as it takes to hear them all.
    """

    def __init__(self) -> None:
        self._lock = trio.Lock()
        self._ends = 0.0

    async def __aenter__(self) -> Turn:
        await self._lock.acquire()
        self._ends = time.perf_counter() + TURN_S
        return self

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()

    async def pause(self) -> None:
        """Between two pieces of work; the turn goes on."""
        if time.perf_counter() > self._ends:
            await trio.lowlevel.checkpoint()
            self._ends = time.perf_counter() + TURN_S


class _Gate:
    """The checks of a message: rations, its signature, and the caller's `accept`."""

    def __init__(self, host: Host, name: str, accept: Callable[[str, bytes, bytes], bool]) -> None:
        self._host = host
        self._name = name
        self._accept = accept
        self.turn = Turn()
        self._paces = Buckets[ID](RPCS_A_SECOND, RPCS_AT_ONCE, max_keys=MAX_SIGNERS)
        self._introductions = Buckets[ID](NEW_A_SECOND, NEW_AT_ONCE, max_keys=MAX_SIGNERS)
        self._excess = Buckets[ID](EXCESS_A_SECOND, EXCESS_AT_ONCE, max_keys=MAX_SIGNERS)
        self._signers = Buckets[bytes](SIGNED_A_SECOND, SIGNED_AT_ONCE, max_keys=MAX_SIGNERS)

    async def pace(self, peer: ID, rpc: rpc_pb2.RPC, size: int) -> None:
        control = rpc.control
        named = (*control.ihave, *control.iwant, *control.idontwant)
        ids = sum(len(part.messageIDs) for part in named)  # type: ignore[misc,attr-defined]  # of three kinds
        parts = len(rpc.publish) + len(rpc.subscriptions) + len(named) + len(control.graft) + len(control.prune)
        await self._spend(peer, max(1, parts + ids / IDS_AN_RPC, size / BYTES_AN_RPC))

    async def pass_over(self, peer: ID, size: int) -> None:
        self._host.warn("a peer's gossip is too large to be read", str(peer), REMIND_EVERY_S)
        await self._spend(peer, size / BYTES_AN_RPC)

    async def _spend(self, peer: ID, cost: float) -> None:
        wait_s = self._paces.of(peer).spend(trio.current_time(), cost)
        if wait_s:
            await trio.sleep(wait_s)

    def knows_topics(self, peer: ID, control: rpc_pb2.ControlMessage) -> bool:
        """Whether a neighbour's control message names this topic alone. A network has one topic, through all rotations."""
        named = (*control.ihave, *control.graft, *control.prune)
        if all(part.topicID == self._name for part in named):  # type: ignore[attr-defined]  # of three kinds
            return True
        self._host.report_violation(str(peer), "it speaks of a topic that this network does not have")
        return False

    def rations(self, peer: ID, message: rpc_pb2.Message) -> bool:
        """Whether the signer has any ration left. The name is still a claim, so this takes nothing from the ration."""
        now = trio.current_time()
        if message.from_id not in self._signers:
            if self._introductions.of(peer).take(now):
                return True
            self._host.warn("a peer introduces nodes without end; some are left out for now", str(peer))
            return False
        if self._signers.of(message.from_id).left(now) >= 1:
            return True
        if message.from_id == peer.to_bytes() and not self._excess.of(peer).take(now):
            self._host.report_violation(str(peer), "it gossips without end")
        return False

    def accepts(self, forwarder: ID, message: rpc_pb2.Message) -> bool:
        """Whether a genuine message of our topic is news, to be passed on."""
        if forwarder.to_base58() == self._host.peer_id:
            return True
        if not self._signers.of(message.from_id).take(trio.current_time()):
            return False
        return self._accept(str(ID(message.from_id)), message.data, message.SerializeToString())

    def forged(self, peer: ID) -> None:
        self._host.report_violation(str(peer), "it passes on a message with a wrong signature")

    def nonsense(self, peer: ID, what: str) -> None:
        self._host.report_violation(str(peer), f"its gossip cannot be read ({what})")


class Opened(NamedTuple):
    """A message whose signature was checked."""

    signer: str
    data: bytes
    signed: bytes  # its canonical bytes, which nodes keep and pass on


class Topic:
    """One topic of the network. `accept(signer, data, signed) -> bool` says whether a message is news; it never raises."""

    def __init__(self, host: Host, name: str, accept: Callable[[str, bytes, bytes], bool]) -> None:
        self.name = name
        self._host = host
        self._router = _Router()
        self._pubsub = _GuardedPubsub(host.libp2p, self._router, allowed_topics={name})
        # Milliseconds of a restart apart or many messages a second: numbers never repeat, so none is taken for an old one.
        self._pubsub.counter = time.time_ns()
        self._pubsub.gate = _Gate(host, name, accept)
        self.turn = self._pubsub.gate.turn

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the topic. Enter this inside `host.running()`, before the first peer connects."""
        async with background_trio_service(self._pubsub), background_trio_service(self._router):
            await self._pubsub.wait_until_ready()
            await self._pubsub.subscribe(self.name)
            try:
                yield
            finally:
                self._pubsub.seen_messages.stop()  # its thread

    async def publish(self, data: bytes) -> bytes:
        """Sign `data` and send it to all nodes. Returns the signed message."""
        message = self.sign(data)
        await self._pubsub.push_msg(self._pubsub.my_id, message)
        return message.SerializeToString()

    async def forward(self, peer_id: str, signed: bytes) -> None:
        """Pass on a message that `peer_id` handed over outside the topic. `signed` comes from `open_signed`."""
        await self._pubsub.push_msg(identity.read_peer_id(peer_id), rpc_pb2.Message.FromString(signed))
        await trio.lowlevel.checkpoint()  # a sync calls this many times in a row: let the peers' queues drain

    async def flushed(self, timeout_s: float) -> None:
        """Wait until all published messages are on the links, `timeout_s` at most."""
        with trio.move_on_after(timeout_s):
            await self._pubsub.flushed()

    def sign(self, data: bytes) -> rpc_pb2.Message:
        pubsub = self._pubsub
        pubsub.counter += 1
        message = rpc_pb2.Message(
            data=data, topicIDs=[self.name], from_id=pubsub.my_id.to_bytes(), seqno=pubsub.counter.to_bytes(8, "big")
        )
        assert pubsub.sign_key is not None
        message.signature = pubsub.sign_key.sign(PUBSUB_SIGNING_PREFIX.encode() + message.SerializeToString())
        return message

    def open_signed(self, signed: bytes) -> Opened:
        """Check a signed message of this topic. Raises RecordForged if no honest node can have sent it, whatever the bytes,
        and RecordInvalid if an honest node of a former version can."""
        if len(signed) > MAX_MESSAGE_BYTES:
            raise RecordInvalid(f"it has {len(signed)} bytes with its signature")
        try:
            found = rpc_pb2.Message.FromString(signed)
        except Exception:  # noqa: BLE001  # the protobuf runtime that is installed decides on the class
            raise RecordForged("not a signed message") from None
        message = canonical(found)
        if message is None:
            raise RecordInvalid("it is not signed in the way that this version knows")
        if list(message.topicIDs) != [self.name] or not is_genuine(message):
            raise RecordForged("its signature is wrong, or it is another network's")
        return Opened(str(ID(message.from_id)), message.data, message.SerializeToString())
