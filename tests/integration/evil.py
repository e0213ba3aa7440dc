"""A member gone bad: `python evil.py TOKEN_FILE MULTIADDR MODE...`; for each a line of JSON: who it was and what came of it.

It holds the token and uses our own code, bent. Each mode is another identity. `cut`: the victim ended the connection.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import rsa_keys
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.rsa import RSAPrivateKey
from libp2p.peer.id import ID
from libp2p.peer.peerstore import create_signed_peer_record
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils import encode_varint_prefixed
from multiaddr import Multiaddr

from federation import logs
from federation.mesh.tokens import Token
from federation.net import pubsub, wire
from federation.net.dial.address import PeerAddress
from federation.net.dial.book import AddressBook
from federation.net.host import Host
from federation.net.link.frames import ANY_LOAD, CREDIT, DATA, NUMBER, OPEN, PING, RST
from federation.net.pubsub import Topic
from federation.reactor.loop import Reactor

MODE_S = 15.0  # most are cut off long before; on a busy machine a flood takes its time
BRIEF_S = 1.5  # for those that are borne
INVENTED, INVENTED_A_MESSAGE = 100_000, 50
RSA_KEYS: list[RSAPrivateKey] = []  # made when they are needed
RSA_MESSAGES = 24  # of each


class Nobody:
    """The host's events, a tunnel's opener, and its local end: none of it matters here."""

    def __getattr__(self, name: str):
        return lambda *_: 1 << 30


class Member:
    """A host of its own identity, with a link to the victim and what it needs to misbehave on it."""

    def __init__(self, token: Token, reactor: Reactor, address: PeerAddress) -> None:
        self.token = token
        self.reactor = reactor
        self.address = address
        self.keys = create_new_key_pair()
        seed = self.keys.private_key.to_bytes()[:32]
        self.host = Host(
            seed=seed, reactor=reactor, events=Nobody(), book=AddressBook(), admission_keys=lambda: [token.admission_key()]
        )
        self.topic = Topic(self.host, token.topic(), lambda *_: False)
        self.sent = 0
        self.noted: object = None  # what came of it beside the link

    def record(self, **fields) -> bytes:
        import msgpack

        now = int(time.time())
        return msgpack.packb({"peer_id": self.host.peer_id, "name": "evil", "incarnation": now, "seq": 1} | fields)

    async def say(self, *datas: bytes) -> None:
        """Signed announcements, on the gossip stream."""
        await self.send(*[self.topic.sign(data) for data in datas])

    async def send(self, *signed: rpc_pb2.Message) -> None:
        await self.stream.send_all(encode_varint_prefixed(rpc_pb2.RPC(publish=signed).SerializeToString()))
        self.sent += len(signed)

    async def control(self, **parts) -> None:
        await self.rpc(rpc_pb2.RPC(control=rpc_pb2.ControlMessage(**parts)))

    async def rpc(self, rpc: rpc_pb2.RPC) -> None:
        await self.stream.send_all(encode_varint_prefixed(rpc.SerializeToString()))
        self.sent += 1

    def frames(self, *frames: tuple[int, int, bytes]) -> None:
        """Raises trio.ClosedResourceError once the victim has had enough."""
        if self.link.is_closed:
            raise trio.ClosedResourceError
        for kind, channel, payload in frames:
            self.link.mux.control(kind, channel, payload)
        self.sent += len(frames)

    async def flushed(self) -> None:
        while not self.link.is_flushed and not self.link.is_closed:  # noqa: ASYNC110
            await trio.sleep(0.001)  # the reactor sends

    async def run(self, mode: str, seconds: float) -> dict:
        async with self.host.running(), self.topic.running():
            self.link = await self.host.connect(self.address)
            self.link.mux._check_known = lambda _channel: None  # answers to frames that our own side knows nothing of
            self.stream = await self.host.open_stream(self.link.peer_id, pubsub.PROTOCOL_ID)
            began = time.monotonic()
            with (
                trio.move_on_after(seconds),
                suppress(Exception),
            ):  # whatever our own code says of what it is made to do
                await MODES[mode](self)
                if mode not in DONE:
                    await self.link._closed.wait()
            with trio.move_on_after(0.2):  # its streams are gone before we hear of the link
                await self.link._closed.wait()
            lasted = time.monotonic() - began
            cut = self.link.is_closed
            comes_back = None
            if cut:
                try:
                    comes_back = not (await self.host.connect(self.address)).is_closed
                except Exception:  # noqa: BLE001
                    comes_back = False
        return {
            "mode": mode, "peer_id": self.host.peer_id, "cut": cut, "lasted_s": round(lasted, 2), "sent": self.sent,
            "comes_back": comes_back, "noted": self.noted,
        }  # fmt: skip


def invented(member: Member, keys: KeyPair | None = None, number: bytes = bytes(8)) -> rpc_pb2.Message:
    keys = keys or create_new_key_pair()
    peer = ID.from_pubkey(keys.public_key)
    data = member.record(peer_id=str(peer), name="invented", addresses=["/ip4/127.0.0.1/tcp/9"], services={"default": True})
    message = rpc_pb2.Message(data=data, topicIDs=[member.topic.name], from_id=peer.to_bytes(), seqno=number)
    message.signature = keys.private_key.sign(b"libp2p-pubsub:" + message.SerializeToString())
    return message


async def speaks_for_another(member: Member) -> None:
    await member.say(member.record(peer_id=member.link.peer_id, in_flight=10_000))


async def forges(member: Member) -> None:
    message = member.topic.sign(member.record())
    message.signature = b"s" * 64
    await member.send(message)


async def hands_over_a_forgery(member: Member) -> None:
    message = member.topic.sign(member.record(peer_id=member.link.peer_id, left=True))
    stream = await member.host.open_stream(member.link.peer_id, member.token.ledger_protocol())
    await wire.send(stream, [])
    await wire.send(stream, [[message.SerializeToString(), 0]])


async def highest_numbers(member: Member) -> None:
    """Beyond what a record can carry, then as far as it goes: its own row is all it can spoil."""
    await member.say(member.record(seq=2**63), member.record(seq=2**63 - 1, incarnation=2**63 - 1))
    await member.say(member.record(seq=1, last_seen="9999-12-31T00:00:00Z", incarnation=2**62))


async def megabyte_record(member: Member) -> None:
    await member.say(member.record(name="x" * 1024 * 1024))


async def megabyte_row(member: Member) -> None:
    stream = await member.host.open_stream(member.link.peer_id, member.token.ledger_protocol())
    await wire.send(stream, [[str(n), 1, 1] for n in range(100_000)])
    await wire.send(stream, [[bytes(8 * 1024 * 1024), 0]])
    member.sent += 1


async def thousand_a_second(member: Member) -> None:
    began = trio.current_time()
    for n in range(100_000):
        await member.say(member.record(seq=n + 1, in_flight=n))
        if (ahead := n / 1000 - (trio.current_time() - began)) > 0.01:
            await trio.sleep(ahead)


async def invents_peers(member: Member) -> None:
    """All of a ledger at once, and as fast as it can sign for them by gossip."""
    page = [[invented(member).SerializeToString(), 0] for _ in range(64)]
    stream = await member.host.open_stream(member.link.peer_id, member.token.ledger_protocol())
    await wire.send(stream, [])
    async with trio.open_nursery() as nursery:

        async def sync() -> None:
            with suppress(trio.BrokenResourceError):  # the victim has had enough of it
                while True:
                    await wire.send(stream, page)

        nursery.start_soon(sync)
        for _ in range(INVENTED // INVENTED_A_MESSAGE):
            await member.send(*[invented(member) for _ in range(INVENTED_A_MESSAGE)])
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


async def opens_and_takes_back(member: Member) -> None:
    for channel in range(10_001, 2**31, 2):
        member.frames((OPEN, channel, NUMBER.pack(ANY_LOAD) + b"default"), (RST, channel, b""))
        if channel % 500 == 1:
            await member.flushed()


async def opens_what_is_not_there(member: Member) -> None:
    for channel in range(10_001, 2**31, 2):
        member.frames((OPEN, channel, NUMBER.pack(ANY_LOAD) + b"no such service"))
        if channel % 500 == 1:
            await member.flushed()


async def grants_too_much(member: Member) -> None:
    channel = member.link.open_tunnel("default", Nobody(), Nobody())
    member.frames((CREDIT, channel.id, b"\xff" * 4))


async def sends_ungranted(member: Member) -> None:
    channel = member.link.open_tunnel("default", Nobody(), Nobody())
    member.frames(*[(DATA, channel.id, bytes(60_000))] * 3)


async def speaks_of_unknown_streams(member: Member) -> None:
    member.frames((DATA, 99_999, b"hello"))


async def never_reads(member: Member) -> None:
    """It makes the victim answer, and lets the answers lie."""
    member.reactor.change(member.link.carrier.sock.fileno(), 4)
    for _ in range(200):
        member.frames(*[(PING, 0, bytes(8))] * 500)
        await member.flushed()


async def never_reads_tunnels(member: Member) -> None:
    """It asks for much and takes nothing of it."""
    for _ in range(300):
        channel = member.link.open_tunnel("default", Nobody(), Nobody())
        channel.send(b"GET /evil HTTP/1.1\r\n\r\n")
        member.sent += 1
    await member.flushed()
    member.reactor.change(member.link.carrier.sock.fileno(), 0)


async def hands_over_padded_records(member: Member) -> None:
    """Genuine, with what their signatures do not cover: more than the victim's neighbours read, then less."""
    stream = await member.host.open_stream(member.link.peer_id, member.token.ledger_protocol())
    await wire.send(stream, [])
    for number, padding in enumerate((100_000, 20_000)):
        message = member.topic.sign(member.record(seq=number + 1))
        message.key = bytes(padding)
        await wire.send(stream, [[message.SerializeToString(), 0]])
        member.sent += 1
    await wire.send(stream, [])


async def rsa_identities(member: Member) -> None:
    """Four, each says something four times a second, and whoever reads it needs 0.1 s."""
    for n in range(RSA_MESSAGES):
        for key in RSA_KEYS:
            public = key.get_public_key()
            public.impl = key.impl  # all of the private key
            peer = ID.from_pubkey(public)
            data = member.record(peer_id=str(peer), seq=n + 1)
            message = rpc_pb2.Message(data=data, topicIDs=[member.topic.name], from_id=peer.to_bytes(), seqno=os.urandom(8))
            message.signature = key.sign(b"libp2p-pubsub:" + message.SerializeToString())
            message.key = rsa_keys.called_public(key)
            await member.send(message)
        await trio.sleep(0.25)


async def exchanges_peers(member: Member) -> None:
    """It names another peer at an address of its own, and counts who comes."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    other = create_new_key_pair()
    peer = ID.from_pubkey(other.public_key)
    addresses = [Multiaddr(f"/ip4/127.0.0.1/tcp/{port}")]
    record = create_signed_peer_record(peer, addresses, other.private_key).marshal_envelope()
    own = create_signed_peer_record(member.topic._pubsub.my_id, addresses, member.keys.private_key).marshal_envelope()
    member.noted = 0

    async def serve(stream: trio.SocketStream) -> None:
        member.noted += 1
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        named = rpc_pb2.PeerInfo(peerID=peer.to_bytes(), signedPeerRecord=record)
        packet = rpc_pb2.RPC(senderRecord=own)
        packet.control.prune.append(rpc_pb2.ControlPrune(topicID=member.topic.name, peers=[named]))
        while True:
            await member.rpc(packet)
            await trio.sleep(0.25)


async def prunes_other_topics(member: Member) -> None:
    while True:
        await member.control(prune=[rpc_pb2.ControlPrune(topicID=os.urandom(15_000).hex())])


async def has_of_other_topics(member: Member) -> None:
    while True:
        await member.control(ihave=[rpc_pb2.ControlIHave(topicID=os.urandom(6).hex()) for _ in range(1500)])


async def has_without_end(member: Member) -> None:
    """IHAVE of what is not there, in as many parts as an RPC holds."""
    ids = [member.topic._pubsub.my_id.to_bytes() + os.urandom(8) for _ in range(60)]
    parts = [rpc_pb2.ControlIHave(topicID=member.topic.name, messageIDs=ids[n : n + 4]) for n in range(0, 60, 4)] * 6
    while True:
        await member.control(ihave=parts)


async def wants_without_end(member: Member) -> None:
    """What it just said itself, and whatever else is remembered, a hundred times in each RPC."""
    message = member.topic.sign(member.record(name="x" * 60, addresses=["/dns/" + "x" * 240] * 32))
    await member.send(message)
    ids = [message.from_id + message.seqno] * 100
    while True:
        await member.control(iwant=[rpc_pb2.ControlIWant(messageIDs=ids)] * 5)


async def subscribes_without_end(member: Member) -> None:
    """Each time it is handed all that was said lately."""
    flips = [rpc_pb2.RPC.SubOpts(subscribe=n % 2 == 1, topicid=member.topic.name) for n in range(200)]
    while True:
        await member.rpc(rpc_pb2.RPC(subscriptions=flips))


async def long_numbers(member: Member) -> None:
    """Genuine messages of nodes that it invented, with numbers of 30 kB: each node remembers them for two minutes."""
    signers = [create_new_key_pair() for _ in range(100)]
    for _ in range(30):
        for keys in signers:
            await member.send(invented(member, keys, os.urandom(30_000)))


async def digests_of_nothing(member: Member) -> None:
    """A megabyte of empty lists each, which is a million objects."""
    nothing: list[list] = [[]] * 1_000_000
    for _ in range(12):
        stream = await member.host.open_stream(member.link.peer_id, member.token.ledger_protocol())
        with suppress(trio.BrokenResourceError):
            await wire.send(stream, nothing)
            member.sent += 1


async def announces_a_gigabyte(member: Member) -> None:
    """In the negotiation of each stream, and sends as much of it as the victim takes."""

    async def announce() -> None:
        stream = await member.link.open_stream()
        with suppress(Exception):  # the victim resets it
            await stream.write(b"\x80\x80\x80\x80\x04")
            while True:
                await stream.write(bytes(60_000))
                member.sent += 1

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(announce)
        await trio.sleep_forever()


MODES = {
    mode.__name__: mode
    for mode in (
        speaks_for_another, forges, hands_over_a_forgery, highest_numbers, megabyte_record, megabyte_row, thousand_a_second,
        invents_peers, opens_and_takes_back, opens_what_is_not_there, grants_too_much, sends_ungranted,
        speaks_of_unknown_streams, never_reads, never_reads_tunnels, hands_over_padded_records, rsa_identities,
        exchanges_peers, prunes_other_topics, has_of_other_topics, has_without_end, wants_without_end,
        subscribes_without_end, announces_a_gigabyte, long_numbers, digests_of_nothing,
    )
}  # fmt: skip
DONE = {"invents_peers", "rsa_identities"}  # when it has done it
BRIEF = {"highest_numbers", "megabyte_row", "invents_peers", "never_reads_tunnels"}


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("token_file", type=Path)
    parser.add_argument("address")
    parser.add_argument("modes", nargs="*", default=list(MODES))
    parser.add_argument("--seconds", type=float, help="for each mode, instead of the usual ones")
    options = parser.parse_args()
    logs.configure("error", "console", stream=sys.stderr)
    token = Token.decode(options.token_file.read_text())
    if "rsa_identities" in options.modes:
        RSA_KEYS.extend(rsa_keys.huge_exponents(4))
    for mode in options.modes:
        reactor = Reactor()
        async with trio.open_nursery() as nursery:
            await nursery.start(reactor.run)
            seconds = options.seconds or (BRIEF_S if mode in BRIEF else MODE_S)
            result = await Member(token, reactor, PeerAddress.parse(options.address)).run(mode, seconds)
            nursery.cancel_scope.cancel()
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    trio.run(main)
