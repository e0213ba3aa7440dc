"""A member gone bad as many identities at once: `python horde.py TOKEN_FILE MULTIADDR MODE IDENTITIES`; a line of JSON.

All of it is signed and waits before the first byte goes; the victim hears it at one moment.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import struct
import sys
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import msgpack
import trio
from evil import Member
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils import encode_varint_prefixed

from federation import logs
from federation.mesh.tokens import Token
from federation.net import pubsub
from federation.net.dial.address import PeerAddress
from federation.net.streams import TrioStream
from federation.reactor.loop import Reactor

SIGNERS, MESSAGES_OF_ONE = 50, 30  # each identity introduces so many
ROWS = 64
SYNCS = 8
_prepared = itertools.count()


def messages(member: Member, signers: int, of_one: int, **fields) -> list[rpc_pb2.Message]:
    made = []
    for _ in range(signers):
        keys = create_new_key_pair()
        peer = ID.from_pubkey(keys.public_key)
        for n in range(of_one):
            data = member.record(peer_id=str(peer), name="invented", seq=n + 1, **fields)
            message = rpc_pb2.Message(data=data, topicIDs=[member.topic.name], from_id=peer.to_bytes(), seqno=os.urandom(8))
            message.signature = keys.private_key.sign(b"libp2p-pubsub:" + message.SerializeToString())
            made.append(message)
    return made


def prepare_gossip(member: Member) -> list[bytes]:
    made = messages(member, SIGNERS, MESSAGES_OF_ONE, services={"default": True}, addresses=["/ip4/127.0.0.1/tcp/9"])
    return [
        encode_varint_prefixed(rpc_pb2.RPC(publish=made[at : at + 80]).SerializeToString()) for at in range(0, len(made), 80)
    ]


async def gossip(member: Member, prepared: list[bytes]) -> None:
    for rpc in prepared:
        await member.stream.send_all(rpc)
        member.sent += 1


def prepare_sync(member: Member) -> list[bytes]:
    gpus = [{"name": "x" * 64, "total_vram": 2**62, "available_vram": 2**62} for _ in range(64)]
    rows = [[message.SerializeToString(), 0] for message in messages(member, ROWS, 1, gpus=gpus)]
    page = msgpack.packb(rows)
    return [struct.pack(">I", len(page)) + page]


async def sync(member: Member, prepared: list[bytes]) -> None:
    async def one() -> None:
        stream = await member.host.open_stream(member.link.peer_id, member.token.ledger_protocol())
        digest = msgpack.packb([])
        await stream.send_all(struct.pack(">I", len(digest)) + digest)
        nursery.start_soon(quietly, read_all, stream)
        await stream.send_all(prepared[0])
        member.sent += 1

    async with trio.open_nursery() as nursery:
        for _ in range(SYNCS):
            nursery.start_soon(quietly, one)
        await trio.sleep(5)
        nursery.cancel_scope.cancel()


def prepare_deaf(member: Member) -> list[bytes]:
    """One in six speaks, at length."""
    if next(_prepared) % 6:
        return []
    gpus = [{"name": "x" * 64, "total_vram": 2**62, "available_vram": 2**62} for _ in range(64)]
    made = messages(member, 100, 10, gpus=gpus)
    return [encode_varint_prefixed(rpc_pb2.RPC(publish=[message]).SerializeToString()) for message in made]


async def deaf(member: Member, prepared: list[bytes]) -> None:
    """Each is a neighbour of the victim's that does not read what it is told."""
    topic = member.topic.name
    hello = rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=topic)])
    hello.control.graft.append(rpc_pb2.ControlGraft(topicID=topic))
    await member.rpc(hello)
    await trio.sleep(2)  # all are neighbours
    for rpc in prepared:
        await member.stream.send_all(rpc)
        member.sent += 1
    await trio.sleep(15)


async def read_all(stream: TrioStream) -> None:
    while await stream.receive_some():
        pass


def prepare_grafts(member: Member) -> list[bytes]:
    topic = member.topic.name
    parts = rpc_pb2.ControlMessage(
        graft=[rpc_pb2.ControlGraft(topicID=topic)] * 200, prune=[rpc_pb2.ControlPrune(topicID=topic, backoff=60)] * 200
    )
    return [encode_varint_prefixed(rpc_pb2.RPC(control=parts).SerializeToString())] * 12


def prepare_heavy(member: Member) -> list[bytes]:
    """4,096 nodes with 64 GPUs each, of which a record of 2.5 kB tells."""
    gpus = [{"name": "", "total_vram": 0, "available_vram": 0}] * 64
    rows = [[message.SerializeToString(), 0] for message in messages(member, 4096, 1, gpus=gpus)]
    pages = [msgpack.packb(rows[at : at + ROWS]) for at in range(0, len(rows), ROWS)]
    return [struct.pack(">I", len(page)) + page for page in [msgpack.packb([]), *pages]]


async def heavy(member: Member, prepared: list[bytes]) -> None:
    stream = await member.host.open_stream(member.link.peer_id, member.token.ledger_protocol())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(quietly, read_all, stream)
        for page in prepared:
            await stream.send_all(page)
            member.sent += 1
        await stream.send_eof()
        await trio.sleep(3)
        nursery.cancel_scope.cancel()


async def never(_stream: object) -> None:
    await trio.sleep_forever()


async def quietly(what, *args) -> None:
    with suppress(Exception):
        await what(*args)


MODES = {
    "gossip": (prepare_gossip, gossip),
    "sync": (prepare_sync, sync),
    "deaf": (prepare_deaf, deaf),
    "heavy": (prepare_heavy, heavy),
    "grafts": (prepare_grafts, gossip),
}


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("token_file", type=Path)
    parser.add_argument("address")
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("identities", type=int)
    options = parser.parse_args()
    logs.configure("error", "console", stream=sys.stderr)
    token, address = Token.decode(options.token_file.read_text()), PeerAddress.parse(options.address)
    prepare, attack = MODES[options.mode]
    reactor = Reactor()
    async with trio.open_nursery() as nursery:
        await nursery.start(reactor.run)
        members = [Member(token, reactor, address) for _ in range(options.identities)]
        prepared = {member: prepare(member) for member in members}
        async with AsyncExitStack() as stack:
            for member in members:
                if options.mode == "deaf":
                    member.topic._pubsub.continuously_read_stream = never
                await stack.enter_async_context(member.host.running())
                await stack.enter_async_context(member.topic.running())
                member.link = await member.host.connect(address)
                member.stream = await member.host.open_stream(member.link.peer_id, pubsub.PROTOCOL_ID)
            began = time.monotonic()
            with trio.move_on_after(30):
                async with trio.open_nursery() as attackers:
                    for member in members:
                        attackers.start_soon(quietly, attack, member, prepared[member])
            await trio.sleep(1)
            cut = sum(member.link.is_closed for member in members)
            result = {"began": began, "sent": sum(m.sent for m in members), "lasted_s": time.monotonic() - began, "cut": cut}
            sys.stdout.write(json.dumps(result) + "\n")
            sys.stdout.flush()
            os._exit(0)  # all its links end at once


if __name__ == "__main__":
    trio.run(main)
