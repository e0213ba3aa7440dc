"""The topic over real hosts on loopback: what arrives, what is refused and by whom, and that no message ends a host."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from libp2p.crypto import serialization
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.rsa import create_new_key_pair as create_new_rsa_key_pair
from libp2p.host.exceptions import StreamFailure
from libp2p.network.stream.exceptions import StreamReset
from libp2p.peer.id import ID
from libp2p.peer.peerstore import create_signed_peer_record
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.pubsub.validators import signature_validator
from libp2p.utils import encode_varint_prefixed
from multiaddr import Multiaddr
from structlog.testing import capture_logs

from federation.errors import RecordForged, RecordInvalid
from federation.mesh import gossip
from federation.mesh.tokens import Token
from federation.net import pubsub as pubsub_module
from federation.net.pubsub import (
    BYTES_AN_RPC,
    DEGREE,
    DEGREE_HIGH,
    EXCHANGE_S,
    LAZY_PEERS,
    MAX_BACKOFF_S,
    MAX_FORMER_BYTES,
    MAX_MESSAGE_BYTES,
    MESSAGE_ID_BYTES,
    PROTOCOL_ID,
    SPARE_PEERS,
    WANTED_AT_ONCE,
    Topic,
    _Router,
    canonical,
    is_genuine,
)
from federation.net.wire import MAX_RECORD_BYTES
from tests.support.gossip import NAME, foreign_topic
from tests.support.hosts import Peer, new_peer, peers, reactor_running, seed
from tests.support.links import PEERS, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from federation.net.streams import TrioStream


@pytest.fixture(autouse=True)
def unrationed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SIGNED_AT_ONCE", "NEW_AT_ONCE"):
        monkeypatch.setattr(pubsub_module, name, 1e9)


class Heard:
    """What one node's topic accepted, and what it says to new messages."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.messages: list[tuple[str, bytes, bytes]] = []
        self.answer = True
        self.topic = Topic(peer.host, NAME, self._accept)

    def _accept(self, signer: str, data: bytes, signed: bytes) -> bool:
        self.messages.append((signer, data, signed))
        return self.answer

    @property
    def data(self) -> list[bytes]:
        return [data for _, data, _ in self.messages]


@asynccontextmanager
async def members(count: int, *lines: tuple[int, int]) -> AsyncIterator[list[Heard]]:
    """So many nodes on one topic; `lines` says who dials whom."""
    async with peers(count) as hosts, AsyncExitStack() as stack:
        found = [Heard(peer) for peer in hosts]
        for member in found:
            await stack.enter_async_context(member.topic.running())
        neighbours = defaultdict(set)
        for a, b in lines:
            hosts[a].knows(hosts[b])
            neighbours[a].add(b)
            neighbours[b].add(a)
        for n, member in enumerate(found):
            ids = {hosts[k].id for k in neighbours[n]}
            await until(lambda member=member, ids=ids: {str(p) for p in mesh(member)} == ids == caught_up(member))
        yield found


def mesh(member: Heard) -> set[ID]:
    return member.topic._router.mesh.get(NAME, set())


def caught_up(member: Heard) -> set[str]:
    """Who was handed the recent messages, as newcomers are: what is said from now on reaches them by the mesh alone."""
    return {str(peer) for peer, topics in member.topic._pubsub._replayed_recent_topics.items() if NAME in topics}


class TestSpread:
    async def test_to_everybody_with_its_signer(self) -> None:
        async with members(3, (0, 1), (1, 2)) as (a, b, c):
            signed = await a.topic.publish(b"hello")
            await until(lambda: b.messages and c.messages)
            assert b.messages == c.messages == [(a.peer.id, b"hello", signed)]
            assert a.messages == []  # nobody asks a node about its own words
            assert c.topic.open_signed(signed) == (a.peer.id, b"hello", signed)

    async def test_what_is_not_accepted_goes_no_further(self) -> None:
        async with members(3, (0, 1), (1, 2)) as (a, b, c):
            b.answer = False
            await a.topic.publish(b"old news")
            await until(lambda: b.data == [b"old news"])
            b.answer = True
            await a.topic.publish(b"news")
            await until(lambda: c.data)
            assert c.data == [b"news"]

    async def test_a_message_is_accepted_once_however_many_bring_it(self) -> None:
        async with members(3, (0, 1), (1, 2), (0, 2)) as (a, b, c):
            for n in range(10):
                await a.topic.publish(b"%d" % n)
            await until(lambda: len(b.data) >= 10 and len(c.data) >= 10)
            for n in range(10):
                await c.topic.publish(b"c%d" % n)
            await until(lambda: len(b.data) >= 20)
            assert sorted(b.data) == sorted({*b.data})
            assert len(c.data) == 10

    @pytest.mark.parametrize("burst", [33, 300])
    async def test_a_burst(self, burst: int) -> None:
        """py-libp2p's queues hold 32 messages, and drop the rest without a word."""
        async with members(2, (0, 1)) as (a, b):
            for n in range(burst):
                await a.topic.publish(b"%d" % n)
            await until(lambda: len(b.data) >= burst)
            assert set(b.data) == {b"%d" % n for n in range(burst)}

    async def test_a_burst_of_what_is_passed_on(self) -> None:
        """As after a sync that brought many nodes at once; and the next one passes them on in turn."""
        async with members(3, (0, 1), (1, 2)) as (a, b, c):
            absent, elsewhere = foreign_topic(), foreign_topic(78)._host.peer_id
            messages = [absent.sign(b"%d" % n).SerializeToString() for n in range(300)]
            for signed in messages:
                await a.topic.forward(elsewhere, signed)
            await until(lambda: len(b.data) >= len(messages) and len(c.data) >= len(messages), seconds=15)
            assert {signed for _, _, signed in c.messages} == set(messages)

    async def test_passed_on_to_all_but_who_brought_it(self) -> None:
        async with members(3, (0, 1), (1, 2)) as (a, b, c):
            absent = foreign_topic()
            signed = absent.sign(b"from afar").SerializeToString()
            await b.topic.forward(a.peer.id, signed)
            await until(lambda: c.messages)
            assert c.messages == [(absent._host.peer_id, b"from afar", signed)]
            await b.topic.publish(b"last")  # arrives behind it, had it been sent
            await until(lambda: b"last" in a.data)
            assert a.data == [b"last"]

    async def test_nobody_subscribes_in_vain(self, caplog: pytest.LogCaptureFixture) -> None:
        """Nobody reads py-libp2p's subscription: past its 32 messages each one would be a warning in the log."""
        async with members(2, (0, 1)) as (a, b):
            for n in range(50):
                await a.topic.publish(b"%d" % n)
            await until(lambda: len(b.data) == 50)
        assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == []

    async def test_keeps_nothing_for_each_message(self) -> None:
        async with members(2, (0, 1)) as (a, b):
            for n in range(50):
                await a.topic.publish(b"%d" % n)
            await until(lambda: len(b.data) == 50)
            for member in (a, b):
                assert sum(map(len, member.topic._router.recent_message_deliveries.values())) == 0
                assert not member.topic._router.equivocation_detection


class TestGrowth:
    """What a node sends does not grow with the number of its links."""

    def router(self, neighbours: int, *mesh: int) -> tuple[_Router, list[ID]]:
        peers = [ID(bytes([n]) * 34) for n in range(neighbours)]
        router = _Router()
        router.pubsub = SimpleNamespace(peer_topics={NAME: set(peers)})  # type: ignore[assignment]
        router.peer_protocol = dict.fromkeys(peers, PROTOCOL_ID)  # type: ignore[arg-type]
        router.mesh[NAME] = {peers[n] for n in mesh}
        return router, peers

    def test_few_neighbours_are_asked_for(self) -> None:
        router, _ = self.router(40)
        for _ in range(10):
            router.mesh_heartbeat()
            assert len(router.mesh[NAME]) == DEGREE

    def test_who_asks_is_kept(self) -> None:
        """The leaves of a star have nobody else."""
        router, peers = self.router(DEGREE_HIGH, *range(DEGREE_HIGH))
        for _ in range(10):
            grafted, pruned = router.mesh_heartbeat()
            assert not grafted
            assert not pruned
        assert router.mesh[NAME] == set(peers)

    def test_past_the_most_only_what_is_too_many_is_sent_away(self) -> None:
        router, _ = self.router(DEGREE_HIGH + 3, *range(DEGREE_HIGH + 3))
        assert len(router.mesh_heartbeat()[1]) == 3
        assert len(router.mesh[NAME]) == DEGREE_HIGH

    def test_who_came_first_gives_way_when_there_is_a_choice(self) -> None:
        router, peers = self.router(2 + SPARE_PEERS, 0, 1)
        router._hasty = {peers[0]}
        grafted, pruned = router.mesh_heartbeat()
        assert list(pruned) == [peers[0]]
        (chosen,) = grafted
        assert router.mesh[NAME] == {peers[1], chosen}
        assert not any(router.mesh_heartbeat())

    def test_the_last_neighbour_may_be_gone_while_it_is_in_the_mesh(self) -> None:
        """What leaves the heartbeat ends the node."""
        router, peers = self.router(1, 0)
        router._hasty = {peers[0]}
        del router.pubsub.peer_topics[NAME]  # type: ignore[union-attr]
        assert not any(router.mesh_heartbeat())

    def test_who_came_first_stays_where_there_is_no_choice(self) -> None:
        router, peers = self.router(1 + SPARE_PEERS, 0, 1)
        router._hasty = {peers[0]}
        assert not any(router.mesh_heartbeat())
        assert router.mesh[NAME] == set(peers[:2])

    def test_who_was_asked_is_exchanged_now_and_then_and_who_asked_is_not(self) -> None:
        router, peers = self.router(40)
        router.mesh_heartbeat()
        asked = set(router.mesh[NAME])
        router.mesh[NAME].update(peers[:20])  # they asked
        exchanged = [was for _ in range(3 * EXCHANGE_S) for was in router.mesh_heartbeat()[1]]
        assert 2 <= len(exchanged) <= 4
        assert exchanged[0] in asked
        assert set(peers[:20]) - asked <= router.mesh[NAME]

    def test_who_was_exchanged_and_asks_later_is_kept(self) -> None:
        router, _ = self.router(40)
        router._exchange_in = 1
        _, pruned = router.mesh_heartbeat()
        (was,) = pruned
        router.mesh[NAME].add(was)  # it asks
        exchanged = [was for _ in range(3 * EXCHANGE_S) for was in router.mesh_heartbeat()[1]]
        assert exchanged
        assert was not in exchanged
        assert was in router.mesh[NAME]

    def test_few_are_told_of_what_is_new_and_once(self) -> None:
        router, peers = self.router(40, 0, 1)
        message = foreign_topic().sign(b"news")
        router.mcache.put(message)
        told = router.gossip_heartbeat()
        assert len(told) == LAZY_PEERS
        assert not {peers[0], peers[1]} & set(told)
        router.mcache.shift()
        assert router.gossip_heartbeat() == {}
        assert router.mcache.window(NAME)  # who joins now is handed it

    async def test_no_message_carries_its_senders_addresses(self) -> None:
        sent = []
        async with members(2, (0, 1)) as (a, b):
            write = b.topic._pubsub.write_msg

            async def spy(stream, rpc):
                written = await write(stream, rpc)
                sent.append(rpc.HasField("senderRecord"))
                return written

            b.topic._pubsub.write_msg = spy  # type: ignore[method-assign]
            await b.topic.publish(b"hello")
            await until(lambda: b"hello" in a.data)
        assert sent
        assert not any(sent)


class TestLinksComeAndGo:
    async def test_a_restart_with_the_same_key_is_heard_at_once(self) -> None:
        """Its numbers must not begin where its former life's were."""
        async with reactor_running() as reactor:
            a, b = await new_peer(1, reactor), await new_peer(2, reactor)
            heard = Heard(a)
            async with a.host.running(), heard.topic.running():
                for life in range(2):
                    again = b if life == 0 else await new_peer(2, reactor)
                    former = Heard(again)
                    async with again.host.running(), former.topic.running():
                        again.knows(a)
                        await until(lambda former=former: mesh(former))
                        for n in range(20):
                            await former.topic.publish(b"life %d %d" % (life, n))
                        await until(lambda life=life: b"life %d 19" % life in heard.data)
                    await until(lambda: not mesh(heard))
            assert len(heard.data) == 40

    @pytest.mark.parametrize("_again", range(6))
    async def test_a_duplicate_link_that_ends_takes_no_message_with_it(self, _again: int) -> None:
        """Both dial at once. The streams of the link that goes were the topic's, on either side or on both."""
        async with members(2) as (a, b):
            a.peer.knows(b.peer)
            b.peer.knows(a.peer)
            await until(lambda: a.peer.has(b.peer) and b.peer.has(a.peer))
            sent = 0
            settled = None
            while settled is None or trio.current_time() < settled + 0.3:
                await a.topic.publish(b"%d" % sent)
                await b.topic.publish(b"%d" % sent)
                sent += 1
                if settled is None and all(len(m.peer.host.swarm.get_connections()) == 1 for m in (a, b)):
                    settled = trio.current_time()
                await trio.sleep(0.02)
            await until(lambda: len(set(a.data)) == len(set(b.data)) == sent)

    @pytest.mark.parametrize("_again", range(3))
    async def test_a_duplicate_link_leaves_no_task_behind(self, _again: int) -> None:
        """Both dial at once, so that each hears of the other twice."""
        async with members(2) as (a, b):
            a.peer.knows(b.peer)
            b.peer.knows(a.peer)
            await until(lambda: a.peer.has(b.peer) and b.peer.has(a.peer) and mesh(a) and mesh(b))
            await until(lambda: all(len(m.peer.host.swarm.get_connections()) == 1 for m in (a, b)))
            await until(lambda: senders() == 2, seconds=2)
            assert not a.topic._pubsub._registering

    @pytest.mark.parametrize("fails_at", ["new_stream", "hello"])
    async def test_a_first_stream_that_fails_in_whichever_way_is_not_the_last(
        self, monkeypatch: pytest.MonkeyPatch, fails_at: str
    ) -> None:
        """The peer is still starting: it resets what it has no use for yet."""
        async with members(2) as (a, b):
            host = a.topic._pubsub.host
            really_new_stream, opened = host.new_stream, 0

            async def new_stream(*args: Any) -> Any:
                nonlocal opened
                opened += 1
                if opened == 1 and fails_at == "new_stream":
                    raise StreamFailure("reset")
                stream = await really_new_stream(*args)
                if opened == 1:
                    await stream.reset()
                    monkeypatch.setattr(stream, "write", write_fails)
                return stream

            async def write_fails(_data: bytes) -> None:
                raise StreamReset

            monkeypatch.setattr(host, "new_stream", new_stream)
            a.peer.knows(b.peer)
            await until(lambda: mesh(a) and mesh(b))
            assert opened >= 2
            await a.topic.publish(b"heard")
            await until(lambda: b"heard" in b.data)

    async def test_a_stream_that_breaks_again_and_again_leaves_no_task_behind(self) -> None:
        async with members(2, (0, 1)) as (a, b):
            pubsub, peer = a.topic._pubsub, ID.from_base58(b.peer.id)
            sent = 0

            async def breaks() -> None:
                """Its sender finds out with the next message."""
                nonlocal sent
                before = pubsub.peers[peer]
                await before.muxed_stream.reset()  # type: ignore[attr-defined]
                await a.topic.publish(b"%d" % (sent := sent + 1))
                await until(lambda: pubsub.peers.get(peer) not in (None, before))

            await breaks()
            await trio.testing.wait_all_tasks_blocked(0.05)
            tasks = trio.lowlevel.current_statistics().tasks_living
            for _ in range(5):
                await breaks()
            await until(lambda: trio.lowlevel.current_statistics().tasks_living <= tasks, seconds=2)
            assert senders() == 2

    async def test_a_stream_that_breaks_is_replaced_and_loses_nothing(self) -> None:
        async with members(2, (0, 1)) as (a, b):
            for member, other in ((a, b), (b, a)):
                pubsub = member.topic._pubsub
                await pubsub.peers[ID.from_base58(other.peer.id)].reset()
            for n in range(20):
                await a.topic.publish(b"%d" % n)
                await b.topic.publish(b"%d" % n)
                await trio.sleep(0.01)
            await until(lambda: len(set(a.data)) == len(set(b.data)) == 20)


def senders() -> int:
    """Tasks that wait for messages to send to a peer, of all nodes here."""

    def count(task: trio.lowlevel.Task) -> int:
        children = [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        return ("handle_sending_messages" in task.name) + sum(map(count, children))

    root = trio.lowlevel.current_root_task()
    assert root is not None
    return count(root)


def unsigned(data: bytes = b"x", topics: tuple[str, ...] = (NAME,), signer: Topic | None = None) -> rpc_pb2.Message:
    signer = signer or foreign_topic()
    return rpc_pb2.Message(
        data=data, topicIDs=topics, from_id=ID.from_base58(signer._host.peer_id).to_bytes(), seqno=bytes(8)
    )


def sign(message: rpc_pb2.Message, n: int = 77) -> rpc_pb2.Message:
    """`message`, signed by that node's key whatever it says."""
    message.ClearField("signature")
    message.signature = create_new_key_pair(seed(n)).private_key.sign(b"libp2p-pubsub:" + message.SerializeToString())
    return message


def tampered(**fields: object) -> rpc_pb2.Message:
    message = sign(unsigned(b"genuine"))
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def keyed(key: bytes) -> rpc_pb2.Message:
    """A sender whose id is only a hash of its key, which comes along."""
    message = rpc_pb2.Message(data=b"x", topicIDs=[NAME], from_id=b"\x12\x20" + bytes(32), seqno=bytes(8), key=key)
    message.signature = b"s" * 64
    return message


def padded(message: rpc_pb2.Message, size: int = 1000) -> rpc_pb2.Message:
    """With a key and a field of no version, neither of which the signature covers."""
    return rpc_pb2.Message.FromString(
        message.SerializeToString() + b"\x32\x04abcd" + b"\xfa\x7f" + encode_varint_prefixed(bytes(size))
    )


def rsa_signed() -> rpc_pb2.Message:
    """As f919b4d accepts it: the id is the hash of the key, which comes along."""
    keys = create_new_rsa_key_pair(2048)
    message = rpc_pb2.Message(data=b"x", topicIDs=[NAME], from_id=ID.from_pubkey(keys.public_key).to_bytes(), seqno=bytes(8))
    message.signature = keys.private_key.sign(b"libp2p-pubsub:" + message.SerializeToString())
    message.key = keys.public_key.serialize()
    assert signature_validator(message), "no test of anything"
    return message


RSA_SIGNED = rsa_signed()

FORGERIES = {
    "no signature": lambda: unsigned(),
    "other data": lambda: tampered(data=b"forged"),
    "other number": lambda: tampered(seqno=b"\x01" * 8),
    "other signature": lambda: tampered(signature=b"s" * 64),
    "short signature": lambda: tampered(signature=b"s"),
    "another's key": lambda: sign(unsigned(), 78),
    "another as its sender": lambda: tampered(from_id=ID.from_base58(foreign_topic(78)._host.peer_id).to_bytes()),
    "another topic": lambda: sign(unsigned(topics=("/federation/other",))),
    "one topic more": lambda: sign(unsigned(topics=(NAME, "/federation/other"))),
    "the topic twice": lambda: sign(unsigned(topics=(NAME, NAME))),
    "no topic": lambda: sign(unsigned(topics=())),
    "no sender": lambda: tampered(from_id=b""),
    "a sender that is no id": lambda: tampered(from_id=b"\xff\x00nonsense"),
    "a key that is none": lambda: keyed(b"\xff\xff\xff"),
    "no key": lambda: keyed(b""),
    "a key of no known kind": lambda: keyed(b"\x08\x63\x12\x02ab"),
    "an RSA key that is none": lambda: keyed(b"\x08\x00\x12\x04abcd"),
}


class TestOpenSigned:
    topic = foreign_topic(1)

    def test_what_its_signature_does_not_cover_is_left_out(self) -> None:
        message = foreign_topic().sign(b"data")
        signed = message.SerializeToString()
        assert self.topic.open_signed(padded(message).SerializeToString()) == (
            foreign_topic()._host.peer_id,
            b"data",
            signed,
        )

    def test_the_largest_record_is_taken_and_a_larger_one_is_no_offence(self) -> None:
        signer, largest = foreign_topic(), bytes(MAX_RECORD_BYTES)
        assert self.topic.open_signed(signer.sign(largest).SerializeToString()).data == largest
        for message in (signer.sign(largest + b"x"), padded(signer.sign(b"x"), MAX_MESSAGE_BYTES)):
            with pytest.raises(RecordInvalid) as refused:
                self.topic.open_signed(message.SerializeToString())
            assert not isinstance(refused.value, RecordForged)

    def test_a_page_of_the_largest_rows_is_read(self) -> None:
        """Whatever members announce, a ledger can be handed over."""
        host = foreign_topic()._host
        signed = Topic(host, Token(b"s" * 32).topic(), lambda *_: True).sign(bytes(MAX_RECORD_BYTES)).SerializeToString()
        page = msgpack.packb([(signed, 2**40 - 1)] * gossip.PAGE)
        assert gossip.MAX_SYNC_BYTES - 64 * 100 < len(page) <= gossip.MAX_SYNC_BYTES

    @pytest.mark.parametrize("seqno", [b"", b"1234567", b"123456789"])
    def test_numbers_of_another_length_are_no_offence(self, seqno: bytes) -> None:
        """They would be kept for two minutes, whatever their length. A former version takes them."""
        message = unsigned()
        message.seqno = seqno
        with pytest.raises(RecordInvalid) as refused:
            self.topic.open_signed(sign(message).SerializeToString())
        assert not isinstance(refused.value, RecordForged)

    @given(st.binary(max_size=60), st.integers(0, 2**64 - 1))
    def test_what_is_taken_is_what_a_former_version_takes(self, data: bytes, number: int) -> None:
        message = unsigned(data)
        message.seqno = number.to_bytes(8, "big")
        opened = self.topic.open_signed(padded(sign(message)).SerializeToString())
        again = rpc_pb2.Message.FromString(opened.signed)
        assert signature_validator(again)
        assert canonical(again) == again

    def test_what_a_node_signed(self) -> None:
        signer = foreign_topic()
        message = signer.sign(b"data").SerializeToString()
        assert self.topic.open_signed(message) == (signer._host.peer_id, b"data", message)

    def test_numbers_never_repeat(self) -> None:
        signer = foreign_topic()
        assert len({signer.sign(b"same").seqno for _ in range(100)}) == 100

    @pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES)
    def test_refuses(self, forgery) -> None:
        with pytest.raises(RecordInvalid):
            self.topic.open_signed(forgery().SerializeToString())

    @given(st.binary(max_size=300))
    def test_refuses_any_other_bytes(self, data: bytes) -> None:
        with pytest.raises(RecordInvalid):
            self.topic.open_signed(data)

    @given(st.integers(0, 10_000), st.integers(1, 255))
    def test_refuses_any_changed_byte_or_says_the_same(self, at: int, change: int) -> None:
        signer = foreign_topic()
        signed = signer.sign(b"some data").SerializeToString()
        genuine = bytearray(signed)
        genuine[at % len(genuine)] ^= change
        try:
            opened = self.topic.open_signed(bytes(genuine))
        except RecordInvalid:
            return
        assert opened == (signer._host.peer_id, b"some data", signed)


async def gossip_stream(evil: Heard, victim: Heard) -> TrioStream:
    return await evil.peer.host.open_stream(victim.peer.id, PROTOCOL_ID)


def rpc(*messages: rpc_pb2.Message) -> bytes:
    return encode_varint_prefixed(rpc_pb2.RPC(publish=messages).SerializeToString())


async def assert_works(a: Heard, b: Heard, note: bytes = b"still there") -> None:
    """Both ways; a forged message neither went through nor stopped anything."""
    await a.topic.publish(note)
    await b.topic.publish(note)
    await until(lambda: note in b.data and note in a.data)
    for member in (a, b):
        assert set(member.data) == {note}
        assert member.topic._pubsub.manager.is_running
        assert member.peer.host.swarm.manager.is_running
        assert member.peer.events.down == []


class TestAMembersMessages:
    """Trap A, and that nobody speaks for another. Who offends is noted here; test_host.py has what comes of it."""

    @pytest.fixture(autouse=True)
    def offences(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        monkeypatch.setattr("federation.net.host.Host.report_violation", lambda _, peer, what: found.append((peer, what)))
        return found

    @pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES)
    async def test_a_forged_one_is_refused(self, forgery, offences: list[tuple[str, str]]) -> None:
        async with members(2, (0, 1)) as (victim, evil):
            async with await gossip_stream(evil, victim) as stream:
                await stream.send_all(rpc(forgery(), foreign_topic().sign(b"behind it")))
                await until(lambda: b"behind it" in victim.data)
            assert victim.data == [b"behind it"]
            victim.messages.clear()
            await until(lambda: evil.data in ([], [b"behind it"]))
            evil.messages.clear()
            await assert_works(victim, evil)
            message = canonical(forgery())  # None: a former version may have let it pass
            forged = message is not None and NAME in message.topicIDs and not is_genuine(message)
            assert offences == [(evil.peer.id, "it passes on a message with a wrong signature")] * forged

    async def test_a_forgery_does_not_keep_the_genuine_one_out(self) -> None:
        """Numbers can be guessed: nothing is remembered of a message before its signature was checked."""
        async with members(2, (0, 1)) as (victim, evil):
            genuine = foreign_topic().sign(b"genuine")
            forged = rpc_pb2.Message.FromString(genuine.SerializeToString())
            forged.data = b"forged"
            async with await gossip_stream(evil, victim) as stream:
                await stream.send_all(rpc(forged, forged, genuine))
                await until(lambda: victim.data)
            assert victim.data == [b"genuine"]

    async def test_one_in_our_own_name_is_for_accept_to_judge(self) -> None:
        """A copied identity; gossip warns of it. It is not passed on."""
        async with members(3, (0, 1), (1, 2)) as (far, victim, evil):
            ours = victim.topic.sign(b"not from here")
            victim.answer = False
            async with await gossip_stream(evil, victim) as stream:
                await stream.send_all(rpc(ours))
                await until(lambda: victim.data)
            assert victim.messages[0][:2] == (victim.peer.id, b"not from here")
            await victim.topic.publish(b"really")
            await until(lambda: far.data)
            assert far.data == [b"really"]

    @pytest.mark.parametrize(
        "data",
        [
            encode_varint_prefixed(b"\xff\xff\xff"),
            encode_varint_prefixed(b"\x0a\x7f"),
            b"\xff" * 12,
            encode_varint_prefixed(rpc_pb2.RPC(senderRecord=b"\xff\xff").SerializeToString()),
            encode_varint_prefixed(b"\x0a\x05\xff\xff\xff\xff\xff"),
            encode_varint_prefixed(bytes(MAX_FORMER_BYTES + 1)),
            b"\x80\x80\x80\x80\x10",
            b"\x05ab",
        ],
        ids=["no protobuf", "cut short", "varint", "record", "nested", "too large", "4 GiB announced", "EOF"],
    )
    async def test_malformed_ones_end_nothing_but_their_stream(
        self, data: bytes, offences: list[tuple[str, str]], request: pytest.FixtureRequest
    ) -> None:
        async with members(2, (0, 1)) as (victim, evil):
            for _ in range(3):
                async with await gossip_stream(evil, victim) as stream:
                    with trio.move_on_after(5), suppress(trio.BrokenResourceError):  # it may not read to the end
                        await stream.send_all(data)
                        await stream.send_eof()
            await assert_works(victim, evil)
            expected = 0 if request.node.callspec.id in ("record", "EOF") else 3
            await until(lambda: len(offences) == expected)

    async def test_a_malformed_one_resets_its_stream(self) -> None:
        """Or the sender would go on speaking to nobody."""
        async with members(2, (0, 1)) as (victim, evil):
            stream = await gossip_stream(evil, victim)
            await stream.send_all(encode_varint_prefixed(b"\xff\xff\xff"))
            with pytest.raises(trio.BrokenResourceError), trio.fail_after(20):
                await stream.receive_some(1)

    @pytest.mark.parametrize("size", [MAX_MESSAGE_BYTES + 1, MAX_FORMER_BYTES])
    async def test_one_that_only_a_former_version_sends_is_passed_over(
        self, size: int, offences: list[tuple[str, str]]
    ) -> None:
        """It may be honest: somebody padded what it passes on. What comes behind is heard."""
        async with members(2, (0, 1)) as (victim, evil):
            padded = sign(unsigned(b"padded"))
            padded.key = bytes(size - rpc_pb2.RPC(publish=[padded]).ByteSize() - 10)
            packet = rpc_pb2.RPC(publish=[padded]).SerializeToString()
            packet += b"\x12" + bytes([size - len(packet) - 2]) + bytes(size - len(packet) - 2)  # to the byte
            assert len(packet) == size
            async with await gossip_stream(evil, victim) as stream:
                await stream.send_all(encode_varint_prefixed(packet))
                await stream.send_all(rpc(foreign_topic().sign(b"behind it")))
                await until(lambda: victim.data)
            assert victim.data == [b"behind it"]
            assert offences == []

    async def test_one_larger_than_any_record_is_left_out(self, offences: list[tuple[str, str]]) -> None:
        async with members(2, (0, 1)) as (victim, evil):
            signer, largest = foreign_topic(), bytes(MAX_RECORD_BYTES)
            async with await gossip_stream(evil, victim) as stream:
                await stream.send_all(rpc(signer.sign(largest + b"x")) + rpc(signer.sign(largest)))
                await until(lambda: victim.data)
            assert victim.data == [largest]
            assert offences == []

    async def test_what_its_signature_does_not_cover_is_left_out(self, offences: list[tuple[str, str]]) -> None:
        """Or a neighbour takes offence at the size of what this node passes on."""
        async with members(3, (0, 1), (1, 2)) as (far, victim, evil):
            genuine = foreign_topic().sign(b"genuine")
            async with await gossip_stream(evil, victim) as stream:
                await stream.send_all(rpc(padded(genuine)))
                await until(lambda: far.data)
            expected = (foreign_topic()._host.peer_id, b"genuine", genuine.SerializeToString())
            assert far.messages == victim.messages == [expected]
            assert offences == []

    async def test_another_kind_of_identity_is_not_even_looked_at(
        self, monkeypatch: pytest.MonkeyPatch, offences: list[tuple[str, str]]
    ) -> None:
        """A former version passes it on, so it is no offence."""
        read: list[bytes] = []
        monkeypatch.setitem(serialization.key_type_to_public_key_deserializer, 0, read.append)
        async with members(2, (0, 1)) as (victim, evil):
            async with await gossip_stream(evil, victim) as stream:
                await stream.send_all(rpc(RSA_SIGNED, foreign_topic().sign(b"behind it")))
                await until(lambda: victim.data)
            assert victim.data == [b"behind it"]
            assert offences == []
            with pytest.raises(RecordInvalid) as refused:
                victim.topic.open_signed(RSA_SIGNED.SerializeToString())
            assert not isinstance(refused.value, RecordForged)
        assert read == []

    async def test_control_messages_of_nonsense(self, offences: list[tuple[str, str]]) -> None:
        control = rpc_pb2.ControlMessage(
            ihave=[rpc_pb2.ControlIHave(topicID=NAME, messageIDs=[b"\xff", b"zz", b""])],
            iwant=[rpc_pb2.ControlIWant(messageIDs=[b"\xff", b"zz", b""])],
            idontwant=[rpc_pb2.ControlIDontWant(messageIDs=[b"\xff" * 1000])],
        )
        subscriptions = [rpc_pb2.RPC.SubOpts(subscribe=True, topicid=f"t{n}") for n in range(200)]
        async with members(2, (0, 1)) as (victim, evil):
            async with await gossip_stream(evil, victim) as stream:
                packet = rpc_pb2.RPC(control=control, subscriptions=subscriptions)
                await stream.send_all(encode_varint_prefixed(packet.SerializeToString()))
            await assert_works(victim, evil)
            assert set(victim.topic._pubsub.peer_topics) == {NAME}  # no memory for topics of no network
            assert not any(victim.topic._router.dont_send_message_ids.values())
            assert offences == []

    @pytest.mark.parametrize(
        "control",
        [
            rpc_pb2.ControlMessage(graft=[rpc_pb2.ControlGraft(topicID=NAME), rpc_pb2.ControlGraft(topicID="other")]),
            rpc_pb2.ControlMessage(prune=[rpc_pb2.ControlPrune(topicID="other")]),
            rpc_pb2.ControlMessage(ihave=[rpc_pb2.ControlIHave(topicID="other")]),
            rpc_pb2.ControlMessage(graft=[rpc_pb2.ControlGraft()]),
        ],
        ids=["graft", "prune", "ihave", "none"],
    )
    async def test_speaking_of_another_topic_is_an_offence(
        self, control: rpc_pb2.ControlMessage, offences: list[tuple[str, str]]
    ) -> None:
        async with members(2, (0, 1)) as (victim, evil):
            async with await gossip_stream(evil, victim) as stream:
                await stream.send_all(encode_varint_prefixed(rpc_pb2.RPC(control=control).SerializeToString()))
                await until(lambda: offences)
            assert offences == [(evil.peer.id, "it speaks of a topic that this network does not have")]
            router = victim.topic._router
            kept: list[Any] = [router.back_off, router.ihave_message_limits, router.graft_flood_tracking]
            assert "other" not in repr([[*part, *part.values()] for part in kept])
            assert not any("other" in topics for part in kept[1:] for topics in part.values())

    async def test_whom_it_names_nobody_dials(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Peer exchange, and the signed record of a sender's addresses."""
        dialled: list[object] = []
        consumed: list[object] = []
        monkeypatch.setattr("libp2p.host.basic_host.BasicHost.connect", lambda _, info: dialled.append(info))
        monkeypatch.setattr("libp2p.peer.peerstore.PeerStore.consume_peer_record", lambda *a, **_: consumed.append(a))
        third = create_new_key_pair(seed(9))
        record = create_signed_peer_record(
            ID.from_pubkey(third.public_key), [Multiaddr("/ip4/127.0.0.1/tcp/9")], third.private_key
        ).marshal_envelope()
        named = rpc_pb2.PeerInfo(peerID=ID.from_pubkey(third.public_key).to_bytes(), signedPeerRecord=record)
        prune = rpc_pb2.ControlPrune(topicID=NAME, backoff=2**63, peers=[named])
        async with members(2, (0, 1)) as (victim, evil):
            packet = rpc_pb2.RPC(control=rpc_pb2.ControlMessage(prune=[prune]), senderRecord=record)
            async with await gossip_stream(evil, victim) as stream:
                await stream.send_all(encode_varint_prefixed(packet.SerializeToString()))
                await until(lambda: not mesh(victim))
            (until_s,) = victim.topic._router.back_off[NAME].values()
            assert until_s <= time.time() + MAX_BACKOFF_S
        assert dialled == consumed == []

    async def test_pubsub_does_not_dial_who_is_gone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with members(2, (0, 1)) as (a, _):
            gone = foreign_topic()._host
            asked: list[object] = []
            monkeypatch.setattr(a.topic._pubsub.host, "new_stream", lambda *args: asked.append(args))
            await a.topic._pubsub._handle_new_peer_with_retry(ID.from_base58(gone.peer_id))
            assert asked == []

    async def test_nothing_is_noted_of_who_is_gone_when_its_last_words_are_read(self) -> None:
        """Each message would be queued for it, for good."""
        subscription = rpc_pb2.RPC.SubOpts(subscribe=True, topicid=NAME)
        said = rpc_pb2.RPC(
            subscriptions=[subscription], control=rpc_pb2.ControlMessage(prune=[rpc_pb2.ControlPrune(topicID=NAME)])
        )
        async with members(2, (0, 1)) as (victim, other):
            topic = victim.topic
            gone = ID.from_base58(foreign_topic()._host.peer_id)
            await topic._pubsub._take(gone, said)
            await topic.publish(b"news")
            assert topic._pubsub.peer_topics[NAME] == {ID.from_base58(other.peer.id)}
            assert gone not in topic._router._pending_messages
            assert gone not in topic._router.graft_flood_tracking
            assert gone not in topic._router.back_off.get(NAME, {})

    async def test_who_subscribes_again_and_again_is_handed_nothing_twice(self) -> None:
        async with members(2, (0, 1)) as (victim, evil):
            await victim.topic.publish(b"recent")
            sent: list[ID] = []

            async def send_recent_messages(peer: ID, _topic: str) -> None:
                sent.append(peer)

            victim.topic._router.send_recent_messages = send_recent_messages  # type: ignore[method-assign]
            flips = [rpc_pb2.RPC.SubOpts(subscribe=n % 2 == 1, topicid=NAME) for n in range(100)]
            async with await gossip_stream(evil, victim) as stream:
                await stream.send_all(encode_varint_prefixed(rpc_pb2.RPC(subscriptions=flips).SerializeToString()))
                await evil.topic.publish(b"behind it")
                await until(lambda: b"behind it" in victim.data)
            assert sent == []

    async def test_accept_that_fails_ends_nothing(self) -> None:
        async with members(2, (0, 1)) as (a, b):
            gate = b.topic._pubsub.gate
            accept = gate._accept

            def fail(*_: object) -> bool:
                gate._accept = accept
                raise ValueError("on purpose")

            gate._accept = fail
            await a.topic.publish(b"trigger")
            await until(lambda: gate._accept is accept)
            await assert_works(a, b)


class TestRations:
    """A member may say as much as it likes; the others hear, and pass on, no more than they can bear."""

    @pytest.fixture(autouse=True)
    def offences(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        monkeypatch.setattr("federation.net.host.Host.report_violation", lambda _, peer, what: found.append((peer, what)))
        return found

    async def test_of_a_signer_and_what_is_beyond_goes_no_further(
        self, monkeypatch: pytest.MonkeyPatch, offences: list[tuple[str, str]]
    ) -> None:
        monkeypatch.setattr(pubsub_module, "SIGNED_AT_ONCE", 5.0)
        monkeypatch.setattr(pubsub_module, "SIGNED_A_SECOND", 0.01)
        monkeypatch.setattr(pubsub_module, "EXCESS_AT_ONCE", 10.0)
        monkeypatch.setattr(pubsub_module, "EXCESS_A_SECOND", 0.01)
        async with members(3, (0, 1), (1, 2)) as (far, near, loud):
            for n in range(15):
                await loud.topic.publish(b"%d" % n)
            await far.topic.publish(b"last")  # other signers are heard all the same
            await until(lambda: b"last" in near.data and b"last" in loud.data)
            await until(lambda: near.topic._pubsub.gate._signers.of(ID.from_base58(loud.peer.id).to_bytes()).left(0) < 1)
            assert [d for d in near.data if d != b"last"] == [b"%d" % n for n in range(5)]
            assert set(far.data) <= {b"%d" % n for n in range(5)}
            assert offences == []
            await loud.topic.publish(b"one too many")
            await until(lambda: offences)
            assert offences == [(loud.peer.id, "it gossips without end")]

    async def test_of_a_signer_are_not_used_up_by_who_only_claims_to_be_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pubsub_module, "SIGNED_AT_ONCE", 2.0)
        monkeypatch.setattr(pubsub_module, "SIGNED_A_SECOND", 0.01)
        async with members(2, (0, 1)) as (victim, evil):
            absent = foreign_topic()
            async with await gossip_stream(evil, victim) as stream:
                await stream.send_all(rpc(absent.sign(b"first")))
                await stream.send_all(rpc(*[tampered(seqno=bytes([n]) * 8) for n in range(1, 21)], absent.sign(b"second")))
                await until(lambda: len(victim.data) == 2)
            assert victim.data == [b"first", b"second"]

    async def test_of_signers_that_a_neighbour_introduces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pubsub_module, "NEW_AT_ONCE", 3.0)
        monkeypatch.setattr(pubsub_module, "NEW_A_SECOND", 0.01)
        async with members(2, (0, 1)) as (victim, evil):
            invented = [foreign_topic(100 + n).sign(b"%d" % n) for n in range(6)]
            known = foreign_topic(100).sign(b"again")
            with capture_logs() as logs:
                async with await gossip_stream(evil, victim) as stream:
                    await stream.send_all(rpc(*invented, known))
                    await until(lambda: b"again" in victim.data)
            assert victim.data == [b"0", b"1", b"2", b"again"]
            said = [entry for entry in logs if entry["log_level"] == "warning"]
            assert [(entry["event"], entry["where"]) for entry in said] == [
                ("a peer introduces nodes without end; some are left out for now", evil.peer.id)
            ]

    async def test_reads_at_a_pace_and_forgets_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pubsub_module, "RPCS_AT_ONCE", 5.0)
        monkeypatch.setattr(pubsub_module, "RPCS_A_SECOND", 50.0)
        async with members(2, (0, 1)) as (a, b):
            began = trio.current_time()
            for n in range(30):
                await a.topic.publish(b"%d" % n)
            await until(lambda: len(b.data) == 30)
            assert trio.current_time() - began > 0.4

    async def test_control_messages_cost_by_what_they_name(self) -> None:
        gate = foreign_topic()._pubsub.gate
        peer = ID.from_base58(foreign_topic(78)._host.peer_id)
        wants = rpc_pb2.ControlMessage(iwant=[rpc_pb2.ControlIWant(messageIDs=[b"00"] * 640)])
        await gate.pace(peer, rpc_pb2.RPC(control=wants), 0)
        left = gate._paces.of(peer).left(trio.current_time())
        assert left == pytest.approx(pubsub_module.RPCS_AT_ONCE - 11, abs=1)

    @pytest.mark.parametrize(
        ("packet", "size", "cost"),
        [
            (rpc_pb2.RPC(), 2, 1),
            (rpc_pb2.RPC(publish=[rpc_pb2.Message()] * 3), 600, 3),
            (rpc_pb2.RPC(publish=[rpc_pb2.Message()]), 8 * BYTES_AN_RPC, 8),
            (rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts()] * 70), 200, 70),
            (rpc_pb2.RPC(control=rpc_pb2.ControlMessage(ihave=[rpc_pb2.ControlIHave()] * 50)), 100, 50),
            (rpc_pb2.RPC(control=rpc_pb2.ControlMessage(iwant=[rpc_pb2.ControlIWant()] * 50)), 100, 50),
        ],
        ids=["empty", "messages", "bytes", "subscriptions", "ihave", "iwant"],
    )
    async def test_everything_in_an_rpc_costs(self, packet: rpc_pb2.RPC, size: int, cost: int) -> None:
        gate, peer = foreign_topic()._pubsub.gate, PEERS[0]
        spent: list[float] = []

        async def spend(_peer: ID, n: float) -> None:
            spent.append(n)

        gate._spend = spend  # type: ignore[method-assign]
        await gate.pace(peer, packet, size)
        assert spent == [cost]


class TestAsking:
    """IHAVE and IWANT: what is asked for is bounded, and so is the answer."""

    def router(self) -> tuple[_Router, list[tuple[ID, rpc_pb2.RPC]]]:
        topic = foreign_topic()
        router, sent = topic._router, []
        router.send_rpc = lambda peer, rpc, priority=False: sent.append((peer, rpc))  # type: ignore[method-assign]
        return router, sent

    async def test_no_answer_to_it_is_larger_than_what_is_read(self) -> None:
        """f919b4d answers each IWANT in one RPC."""
        router, sent = self.router()
        ids = [n.to_bytes(MESSAGE_ID_BYTES, "big") for n in range(1000)]
        await router.handle_ihave(
            rpc_pb2.ControlIHave(topicID=NAME, messageIDs=[*ids, *ids, b"short", b"x" * 1000]), PEERS[0]
        )
        ((_, packet),) = sent
        wanted = [list(part.messageIDs) for part in packet.control.iwant]
        assert [mid for part in wanted for mid in part] == ids[:WANTED_AT_ONCE]
        assert len(wanted) <= 10  # f919b4d reads no more in a second
        assert max(map(len, wanted)) * 1300 < MAX_MESSAGE_BYTES  # a record with every field in use has 1.2 kB, signed

    async def test_what_was_seen_is_not_asked_for(self) -> None:
        router, sent = self.router()
        known = foreign_topic().sign(b"known")
        assert router.pubsub is not None
        router.pubsub._mark_msg_seen(known)
        await router.handle_ihave(rpc_pb2.ControlIHave(messageIDs=[known.from_id + known.seqno]), PEERS[0])
        assert sent == []

    async def test_each_is_handed_to_a_neighbour_once(self) -> None:
        router, sent = self.router()
        messages = [foreign_topic().sign(b"%d" % n) for n in range(3)]
        ids = [message.from_id + message.seqno for message in messages]
        for message in messages:
            router.mcache.put(message)
        for _ in range(3):
            await router.handle_iwant(rpc_pb2.ControlIWant(messageIDs=[*ids[:2], *ids[:2], b"?"]), PEERS[0])
        await router.handle_iwant(rpc_pb2.ControlIWant(messageIDs=ids), PEERS[0])
        await router.handle_iwant(rpc_pb2.ControlIWant(messageIDs=ids), PEERS[1])
        handed = [(peer, [message.data for message in packet.publish]) for peer, packet in sent]
        assert handed == [(PEERS[0], [b"0", b"1"]), (PEERS[0], [b"2"]), (PEERS[1], [b"0", b"1", b"2"])]

    async def test_what_is_noted_of_it_goes_with_the_messages_and_with_the_neighbour(self) -> None:
        router, _ = self.router()
        message = foreign_topic().sign(b"x")
        router.mcache.put(message)
        for peer in PEERS:
            await router.handle_iwant(rpc_pb2.ControlIWant(messageIDs=[message.from_id + message.seqno]), peer)
        router.remove_peer(PEERS[0])
        router.gossip_heartbeat()
        assert set(router._handed) == {PEERS[1]}
        for _ in range(router.mcache.window_size + 5):
            router.mcache.shift()
        router.gossip_heartbeat()
        assert router._handed == {}

    async def test_an_answer_is_cut_to_what_a_neighbour_reads(self) -> None:
        """Records of 16 KiB, and more of them than an RPC holds."""
        async with members(2, (0, 1)) as (a, b):
            signers = [foreign_topic(100 + n) for n in range(5)]
            messages = [signer.sign(bytes(MAX_RECORD_BYTES)) for signer in signers]
            for message in messages:
                a.topic._router.mcache.put(message)
            wanted = rpc_pb2.ControlIWant(messageIDs=[message.from_id + message.seqno for message in messages])
            await a.topic._router.handle_iwant(wanted, ID.from_base58(b.peer.id))
            await until(lambda: len(b.data) == len(messages))
            assert {signer for signer, _, _ in b.messages} == {signer._host.peer_id for signer in signers}

    async def test_nothing_too_large_is_sent(self) -> None:
        """Whatever made it: the neighbour would cut this node off."""
        async with members(2, (0, 1)) as (a, b):
            with capture_logs() as logs:
                stream = a.topic._pubsub.peers[ID.from_base58(b.peer.id)]
                huge = rpc_pb2.RPC(publish=[rpc_pb2.Message(data=bytes(MAX_MESSAGE_BYTES))])
                assert await a.topic._pubsub.write_msg(stream, huge)
            assert [entry["event"] for entry in logs] == ["a gossip message is too large to be sent"]
            await assert_works(a, b)

    def test_backoffs_that_are_over_are_forgotten(self) -> None:
        router, _ = self.router()
        router.back_off = {NAME: {PEERS[0]: 1, PEERS[1]: 2**40}}
        router.gossip_heartbeat()
        assert router.back_off == {NAME: {PEERS[1]: 2**40}}

    async def test_a_hello_has_no_addresses(self) -> None:
        async with members(1) as (a,):
            hello = a.topic._pubsub.get_hello_packet()
        assert [subscription.topicid for subscription in hello.subscriptions] == [NAME]
        assert not hello.HasField("senderRecord")


@pytest.fixture(autouse=True)
def no_shout(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "libp2p")


def test_a_queue_for_a_peer_is_bounded_in_messages_and_in_bytes() -> None:
    queues = pubsub_module._Queues()
    queues[ID(b"deaf")] = queue = RpcQueue()
    large = rpc_pb2.RPC(publish=[rpc_pb2.Message(data=bytes(MAX_RECORD_BYTES))])
    pushed = 0
    while queue.push(large):
        pushed += 1
    assert pushed * large.ByteSize() == pytest.approx(pubsub_module.QUEUED_BYTES, rel=0.05)
    assert queue._queue.pop() == large
    assert queue.push(large)
    small = RpcQueue()
    queues[ID(b"other")] = small
    for _ in range(pubsub_module.QUEUED):
        assert small.push(rpc_pb2.RPC())
    assert not small.push(rpc_pb2.RPC())
