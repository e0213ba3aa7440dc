"""A member that has others dial: `python evil_guide.py TOKEN_FILE MULTIADDR MODE HOST [...]`; a line of JSON at the end.

It is at HOST. `between A...`: an invented peer at a port of HOST, at A..., and at a second port of HOST; when these two
were dialled. `crowd A`: a hundred invented peers, each at sixteen ports of A. `punch A`: meetings at twelve ports of A, as
many as it can get, over its own link or, with --relay MULTIADDR, over one through that member. `honest`: thirty members,
each at a port of HOST, none of which dials; after how many seconds each was dialled.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import trio
from evil import Member
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2

from federation import logs
from federation.mesh.tokens import Token
from federation.net import pubsub, wire
from federation.net.dial.address import PeerAddress
from federation.net.nat.holepunch import PROTOCOL as PUNCH
from federation.reactor.loop import Reactor
from federation.units import HostPort

PEERS, PORTS, FIRST_PORT = 100, 16, 20_000
MEETING_PORT = 40_000
ENDPOINTS, HONEST = 12, 30
PAUSE_S = 0.05


def invented(member: Member, addresses: list[str]) -> rpc_pb2.Message:
    keys = create_new_key_pair()
    peer = ID.from_pubkey(keys.public_key)
    data = member.record(peer_id=str(peer), name="invented", addresses=addresses, services={"default": True})
    message = rpc_pb2.Message(data=data, topicIDs=[member.topic.name], from_id=peer.to_bytes(), seqno=bytes(8))
    message.signature = keys.private_key.sign(b"libp2p-pubsub:" + message.SerializeToString())
    return message


async def between(member: Member, options: argparse.Namespace) -> dict:
    dialled: list[tuple[str, int, float]] = []
    listeners = [(await trio.open_tcp_listeners(0, host=options.host))[0] for _ in range(2)]

    async def note(which: int) -> None:
        while True:
            stream = await listeners[which].accept()
            dialled.append((stream.socket.getpeername()[0], which, trio.current_time()))
            await trio.aclose_forcefully(stream)

    own = [f"/ip4/{options.host}/tcp/{listener.socket.getsockname()[1]}" for listener in listeners]
    async with trio.open_nursery() as nursery:
        for which in (0, 1):
            nursery.start_soon(note, which)
        await member.send(invented(member, [own[0], *options.addresses, own[1]]))
        await trio.sleep(options.seconds)
        nursery.cancel_scope.cancel()
    return {"dialled": dialled}


async def crowd(member: Member, options: argparse.Namespace) -> dict:
    (host,) = options.addresses
    for n in range(PEERS):
        first = FIRST_PORT + n * PORTS
        await member.send(invented(member, [f"/ip4/{host}/tcp/{first + port}" for port in range(PORTS)]))
        await trio.sleep(PAUSE_S / 10)
    await trio.sleep(options.seconds)
    return {"peers": PEERS}


async def punch(member: Member, options: argparse.Namespace) -> dict:
    (host,) = options.addresses
    endpoints = [[host, MEETING_PORT + n] for n in range(ENDPOINTS)]
    meetings = refused = 0
    with trio.move_on_after(options.seconds):
        while True:
            try:
                async with await member.host.open_stream(member.victim, PUNCH) as stream:
                    await wire.send(stream, endpoints)
                    await wire.receive(stream, at_most=4096)
                    await wire.send(stream, "when")
                    await wire.receive(stream, at_most=4096)
                    await wire.send(stream, "go")
                    await stream.send_eof()
                meetings += 1
            except Exception:  # noqa: BLE001  # it is refused, one way or the other
                refused += 1
                await trio.sleep(PAUSE_S)
    return {"meetings": meetings, "refused": refused}


async def honest(member: Member, options: argparse.Namespace) -> dict:
    reached: dict[str, float] = {}
    async with AsyncExitStack() as stack:
        others = [Member(member.token, member.reactor, member.address) for _ in range(HONEST)]
        ports = {}
        for other in others:
            ports[other] = (await other.host.listen(HostPort(options.host, 0))).port
            await stack.enter_async_context(other.host.running())
            await stack.enter_async_context(other.topic.running())
        began = trio.current_time()
        for other in others:
            record = other.record(name="honest", addresses=[f"/ip4/{options.host}/tcp/{ports[other]}"])
            await member.send(other.topic.sign(record))
        while len(reached) < HONEST and trio.current_time() - began < options.seconds:
            await trio.sleep(PAUSE_S)
            now = trio.current_time()
            reached.update({o.host.peer_id: now - began for o in others if o.host.links and o.host.peer_id not in reached})
    return {"reached": sorted(reached.values())}


MODES = {mode.__name__: mode for mode in (between, crowd, punch, honest)}


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("token_file", type=Path)
    parser.add_argument("address")
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("host")
    parser.add_argument("addresses", nargs="*")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--relay")
    options = parser.parse_args()
    logs.configure("error", "console", stream=sys.stderr)
    token, address = Token.decode(options.token_file.read_text()), PeerAddress.parse(options.address)
    reactor = Reactor()
    async with trio.open_nursery() as nursery:
        await nursery.start(reactor.run)
        member = Member(token, reactor, address)
        async with member.host.running(), member.topic.running():
            if options.relay is None:
                link = await member.host.connect(address)
                member.stream = await member.host.open_stream(link.peer_id, pubsub.PROTOCOL_ID)
            else:
                relay = await member.host.connect(PeerAddress.parse(options.relay))
                link = await member.host.connect_via_relay(relay.peer_id, str(address.peer_id))
            member.victim = link.peer_id
            result = await MODES[options.mode](member, options)
            sys.stdout.write(json.dumps(result) + "\n")
            sys.stdout.flush()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
