"""A member that tries to be where it is not known: `python intruder.py TOKEN_FILE MULTIADDR MODE`; lines of JSON tell.

It holds the token and uses our own code, bent, as evil.py does. What stays until the test says so ends with standard input.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import multiaddr
import trio
from evil import Member, Nobody
from libp2p.peer.envelope import seal_record
from libp2p.peer.id import ID
from libp2p.peer.peer_record import PeerRecord
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils import encode_varint_prefixed

from federation import logs
from federation.mesh.tokens import Token
from federation.net import pubsub, wire
from federation.net.dial.address import PeerAddress
from federation.net.dial.book import AddressBook
from federation.net.dial.tcp import tcp_connection
from federation.net.host import Host
from federation.net.link import mux
from federation.net.nat.circuit import CircuitConn
from federation.reactor.loop import Reactor
from federation.units import HostPort

FLOOD_S = 8.0
PATIENCE_S = 10.0
IDENTITIES = 60
REQUEST = b"GET /intruder HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def tell(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


async def told_to_end() -> None:
    await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)


@asynccontextmanager
async def here(member: Member):
    async with member.host.running(), member.topic.running():
        member.link = await member.host.connect(member.address)
        member.link.mux._check_known = lambda _channel: None
        member.stream = await member.host.open_stream(member.link.peer_id, pubsub.PROTOCOL_ID)
        yield


async def running(member: Member, stack: AsyncExitStack) -> None:
    """With its topic: a pubsub that exists and does not run lets nobody connect."""
    await stack.enter_async_context(member.host.running())
    await stack.enter_async_context(member.topic.running())


class Answer(Nobody):
    """A tunnel's local end that keeps what comes."""

    def __init__(self) -> None:
        self.got = b""
        self.over = trio.Event()

    def send(self, data) -> None:
        self.got += bytes(data)

    def send_eof(self) -> None:
        self.over.set()

    def abort(self, reason: str) -> None:
        self.over.set()

    refused = abort


async def served(link) -> bool:
    """Whether the victim's backend answers on this link."""
    answer = Answer()
    with trio.move_on_after(PATIENCE_S), suppress(Exception):
        link.open_tunnel("default", answer, answer).send(REQUEST)
        await answer.over.wait()
    return b"200" in answer.got


def pruned(member: Member, other: Member, at: HostPort) -> rpc_pb2.RPC:
    """A PRUNE that says: `other` is a good neighbour, connect to it there."""
    where = multiaddr.Multiaddr(f"/ip4/{at.host}/tcp/{at.port}")
    peer = ID.from_base58(other.host.peer_id)
    envelope = seal_record(PeerRecord(peer, [where]), other.keys.private_key)
    info = rpc_pb2.PeerInfo(peerID=peer.to_bytes(), signedPeerRecord=envelope.marshal_envelope())
    prune = rpc_pb2.ControlPrune(topicID=member.topic.name, peers=[info], backoff=60)
    return rpc_pb2.RPC(control=rpc_pb2.ControlMessage(prune=[prune]))


async def halfway(member: Member) -> None:
    """Connections that prove themselves and then say nothing, one after the other, until the victim ends the link."""
    host = member.host
    async with trio.open_nursery() as nursery:

        async def one() -> None:
            with suppress(Exception):
                stream = await trio.open_tcp_stream(member.address.host, member.address.port)
                raw = tcp_connection(stream, initiator=True)
                await host.swarm.upgrader.security_multistream.secure_outbound(raw, ID.from_base58(member.link.peer_id))
                await stream.wait_send_all_might_not_block()
                await trio.sleep(60)  # the victim ends it before that

        while not member.link.is_closed:
            nursery.start_soon(one)
            await trio.sleep(0.3)
        await trio.sleep_forever()


async def stays(member: Member, stack: AsyncExitStack, new) -> None:
    """Every kind of connection that a member can have to the victim; then the victim puts both identities out."""
    other: Member = new()
    at = await other.host.listen(HostPort("127.0.0.1", 0))
    await running(other, stack)
    await stack.enter_async_context(here(member))
    await member.say(member.record(services={}))
    # A duplicate: carries a tunnel, so that it is not closed as such.
    first = member.link
    kept = Answer()
    first.open_tunnel("default", kept, kept).send(REQUEST[:-2])
    member.link = await member.host.connect(member.address)
    # One that the victim is to dial itself, with another identity.
    await member.stream.send_all(encode_varint_prefixed(pruned(member, other, at).SerializeToString()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(halfway, member)
        with trio.move_on_after(2.0):
            while member.link.peer_id not in other.host.links:  # noqa: ASYNC110
                await trio.sleep(0.02)
        unknown = other.host.links.get(member.link.peer_id)
        tell(
            ready=True, peer_ids=[member.host.peer_id, other.host.peer_id], victim_dialled=unknown is not None,
            unknown_served=unknown is not None and await served(unknown),
        )  # fmt: skip
        await told_to_end()
        tell(
            links_open=sum(not link.is_closed for link in {first, member.link, unknown} - {None}),
            unknown_served=unknown is not None and await served(unknown),
        )
        nursery.cancel_scope.cancel()


async def prunes(member: Member, stack: AsyncExitStack, new) -> None:
    """Has the victim dial an address that it names."""
    other: Member = new()
    at = await other.host.listen(HostPort("127.0.0.1", 0))
    await running(other, stack)
    await stack.enter_async_context(here(member))
    await member.stream.send_all(encode_varint_prefixed(pruned(member, other, at).SerializeToString()))
    with trio.move_on_after(3.0):
        while member.link.peer_id not in other.host.links:  # noqa: ASYNC110
            await trio.sleep(0.02)
    tell(victim_dialled=member.link.peer_id in other.host.links)


async def pads(member: Member, stack: AsyncExitStack, _new) -> None:
    """A genuine record, with 100 kB in a field that its signature does not cover, handed over as a row of the ledger."""
    await stack.enter_async_context(here(member))
    message = member.topic.sign(member.record(services={}))
    message.key = bytes(100_000)
    stream = await member.host.open_stream(member.link.peer_id, member.token.ledger_protocol())
    await wire.send(stream, [])
    await wire.send(stream, [[message.SerializeToString(), 0]])
    await wire.send(stream, [])
    tell(sent=True)
    await told_to_end()
    tell(cut=member.link.is_closed)


async def seals_nothing(member: Member, stack: AsyncExitStack, _new) -> None:
    """Records with no frame in them, as fast as they go."""
    await stack.enter_async_context(here(member))
    link = member.link
    began, sent = time.monotonic(), 0
    while time.monotonic() - began < FLOOD_S and not link.is_closed:
        if link.carrier._unsent is None:
            link.carrier._unsent = memoryview(b"".join(link.carrier._sealer.seal(b"") for _ in range(2000)))
            link.carrier._want(5)
            sent += 2000
        await trio.sleep(0.001)
    tell(sent=sent, cut=link.is_closed, lasted_s=round(time.monotonic() - began, 2), peer_ids=[member.host.peer_id])


def flood(frames):
    async def mode(member: Member, stack: AsyncExitStack, _new) -> None:
        await stack.enter_async_context(here(member))
        link, began, sent = member.link, time.monotonic(), 0
        channel, gone = [link.open_tunnel("default", Nobody(), Nobody()) for _ in range(2)]
        await trio.sleep(0.2)
        gone.abort("")
        await trio.sleep(0.2)
        while time.monotonic() - began < FLOOD_S and not link.is_closed:
            for kind, number, payload in frames(channel, gone):
                link.mux._control.append(mux.HEADER.pack(kind, number, len(payload)) + payload)
                sent += 1
            link.mux.wake()
            while not link.is_flushed and not link.is_closed:  # noqa: ASYNC110
                await trio.sleep(0.001)
        tell(sent=sent, cut=link.is_closed, lasted_s=round(time.monotonic() - began, 2), peer_ids=[member.host.peer_id])

    return mode


async def crumbles(member: Member, stack: AsyncExitStack, _new) -> None:
    """A backend's bytes one by one, thousands to a record: the victim hands each over with a system call of its own."""
    await stack.enter_async_context(here(member))
    link, began, sent = member.link, time.monotonic(), 0
    while time.monotonic() - began < FLOOD_S and not link.is_closed:
        channel = link.open_tunnel("default", Nobody(), Nobody())
        byte = mux.HEADER.pack(mux.DATA, channel.id, 1) + b"x"
        for _ in range(8):
            link.mux._control.extend([byte] * 7000)
            link.mux.wake()
            sent += 7000
            while not link.is_flushed and not link.is_closed:  # noqa: ASYNC110
                await trio.sleep(0.001)
        channel.abort("")
    tell(sent=sent, cut=link.is_closed, lasted_s=round(time.monotonic() - began, 2), peer_ids=[member.host.peer_id])


async def carries(member: Member, stack: AsyncExitStack, new) -> None:
    """One connection, and on it as many members as it likes, none of which has a socket. Then each of them offends."""
    await stack.enter_async_context(here(member))
    began, links = time.monotonic(), []
    for number in range(IDENTITIES):
        if member.link.is_closed:
            break
        other: Member = new()
        await running(other, stack)
        with suppress(Exception), trio.fail_after(2.0):
            end = Answer()
            channel = member.link.open_tunnel(f"/circuit/1/x{number}", end, Nobody())
            conn = CircuitConn(member.link, channel, initiator=True, on_end=end.abort)
            while channel.opener is not None:  # not answered  # noqa: ASYNC110
                await trio.sleep(0.001)
            if channel.closed:  # refused
                continue
            links.append(await other.host.upgrade(conn, ID.from_base58(member.link.peer_id)))
    admitted = sum(not link.is_closed for link in links)
    tell(identities=IDENTITIES, admitted=admitted, lasted_s=round(time.monotonic() - began, 2), cut=member.link.is_closed)


async def says_it_is_retired(member: Member, _stack: AsyncExitStack, _new) -> None:
    """Of the token that everybody has."""
    key = member.token.admission_key()
    host = Host(
        seed=member.keys.private_key.to_bytes()[:32], reactor=member.reactor, events=Nobody(), book=AddressBook(),
        admission_keys=lambda: [b"x" * 32], retired_keys=lambda: [key],
    )  # fmt: skip
    async with host.running():
        try:
            await host.connect(member.address)
        except Exception as error:  # noqa: BLE001
            tell(answer=type(error).__name__)


MODES = {
    "stays": stays,
    "prunes": prunes,
    "pads": pads,
    "seals_nothing": seals_nothing,
    "carries": carries,
    "crumbles": crumbles,
    "says_it_is_retired": says_it_is_retired,
    "grants_nothing": flood(lambda channel, _gone: [(mux.CREDIT, channel.id, bytes(4))] * 2000),
    "grants_a_byte": flood(lambda channel, _gone: [(mux.CREDIT, channel.id, b"\0\0\0\1")] * 2000),
    "answers_no_ping": flood(lambda *_: [(mux.PONG, 0, bytes(8))] * 2000),
    "speaks_of_what_is_gone": flood(lambda _channel, gone: [(mux.FIN, gone.id, b"")] * 4000),
}


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("token_file", type=Path)
    parser.add_argument("address")
    parser.add_argument("modes", nargs="+", choices=MODES)
    options = parser.parse_args()
    logs.configure("error", "console", stream=sys.stderr)
    token = Token.decode(options.token_file.read_text())
    for mode in options.modes:
        reactor = Reactor()
        async with trio.open_nursery() as nursery:
            await nursery.start(reactor.run)
            address = PeerAddress.parse(options.address)

            def new() -> Member:
                return Member(token, reactor, address)  # noqa: B023

            async with AsyncExitStack() as stack:
                await MODES[mode](new(), stack, new)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
