"""A member that wants the network for itself: `python rotator.py TOKEN_FILE SEED MODE [MULTIADDR...]`; a line of JSON.

It hands over rotations of its own making, in each spelling that there is: as versions before owners did, and, where the
network has an owner, signed with a key of its own, or with the owner's (--owner-key). "reached" counts the messages
that left as a whole: a victim that it cannot reach is not taken for one that refuses. SEED (a number) is its identity. It
takes `tests/integration` alone, and whatever version of federation the interpreter has.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from contextlib import suppress
from itertools import repeat
from pathlib import Path

import msgpack
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from federation import logs
from federation.mesh.tokens import Token
from federation.net.dial.address import PeerAddress
from federation.net.dial.book import AddressBook
from federation.net.host import Host
from federation.reactor.loop import Reactor

ANSWER_S = 3.0
FLOOD, FLOOD_S = 300, 6.0
HIGHEST = 2**32 - 1


class Nobody:
    """The host's events: none of it matters here."""

    def __getattr__(self, name: str):
        return lambda *_: None


class Rotator:
    def __init__(self, token: Token, seed: int, reactor: Reactor, owner_key: str = "") -> None:
        self.token = token
        self.owner_key = owner_key
        self.reached = 0
        self.host = Host(
            seed=bytes([seed]) * 32, reactor=reactor, events=Nobody(), book=AddressBook(),
            admission_keys=lambda: [token.admission_key()],
        )  # fmt: skip

    def messages(self, token: Token, members: list[str], grace_ms: int = 0):
        """(protocol, bytes) of each spelling."""
        path = self.token.ledger_protocol().rpartition("/")[2]
        packed = msgpack.packb([token.encode(), grace_ms, sorted(members)])
        yield f"/federation/1/token/{path}", len(packed).to_bytes(4, "big") + packed
        if getattr(token, "owner", b""):
            from federation.mesh.owner import OwnerKey, order_of

            issued_ms = int(time.time() * 1000)
            order = order_of(
                token.names, token.rotations, token.secret, issued_ms=issued_ms, grace=grace(grace_ms), members=members
            )
            key = OwnerKey.decode(self.owner_key) if self.owner_key else OwnerKey(b"m" * 32)
            signature = key.sign(order.encode())
            data = token.secret + signature + len(order.encode()).to_bytes(4, "big") + order.encode()
            yield f"/federation/1/rotation/{path}", data

    async def tell(self, link, token: Token, members: list[str], grace_ms: int = 0) -> bool:
        """Whether the other side says that it took it, in whatever spelling."""
        taken = False
        for protocol, data in self.messages(token, members, grace_ms):
            with suppress(Exception), trio.move_on_after(ANSWER_S):  # whatever our own code says of what it is made to do
                async with await self.host.open_stream(link.peer_id, protocol) as stream:
                    await stream.send_all(data)
                    await self.flush(link)
                    answer = await stream.receive_some(16)
                    taken = taken or answer in (b"\x00\x00\x00\x01\xc3", b"\x01")
        return taken

    async def flush(self, link) -> None:
        """Returns when the kernel has all of the message. Raises trio.BrokenResourceError if the link ends before."""
        while not link.is_flushed:
            if link.is_closed:
                raise trio.BrokenResourceError
            await trio.sleep(0.001)  # the reactor sends
        self.reached += 1

    async def tell_and_hang_up(self, address: PeerAddress, pid: int, token: Token, members: list[str]) -> None:
        """The other side finds message and end of the connection together when it is let go on."""
        for protocol, data in self.messages(token, members):
            with suppress(Exception):
                link = await self.host.connect(address)
                stream = await self.host.open_stream(link.peer_id, protocol)
                os.kill(pid, signal.SIGSTOP)
                try:
                    await stream.send_all(data)
                    await stream.send_eof()
                    await self.flush(link)
                    link.fail("it hangs up")
                    await trio.sleep(0.2)
                finally:
                    os.kill(pid, signal.SIGCONT)


def grace(ms: int):
    from datetime import timedelta

    return timedelta(milliseconds=ms)


def successor(token: Token, number: int, secret: bytes | None = None) -> Token:
    """Of the attacker's making: of the same network, as far as that goes without its owner."""
    made = token.rotated()
    fields = {name: getattr(made, name) for name in made.__dataclass_fields__}
    return Token(**{**fields, "rotations": number, "secret": secret or os.urandom(32)})


async def attack(rotator: Rotator, mode: str, addresses: list[PeerAddress], pid: int, grace_ms: int) -> dict:
    token, own = rotator.token, rotator.host.peer_id
    ids = [address.peer_id for address in addresses]
    number = token.rotations + 5
    if mode == "hangs_up":
        for address in addresses:
            await rotator.tell_and_hang_up(address, pid, successor(token, number), [own, *ids])
        return {"reached": rotator.reached}
    links = [await rotator.host.connect(address) for address in addresses]
    if mode != "flood":
        tokens = {
            "foreign": repeat(successor(token, number)),
            "highest": repeat(successor(token, HIGHEST, b"\xff" * 32)),
            "one_each": (successor(token, number) for _ in links),
        }[mode]
        members = [own] if mode == "one_each" else [own, *ids]
        taken = [await rotator.tell(link, new, members, grace_ms) for link, new in zip(links, tokens, strict=False)]
        return {"taken": taken, "reached": rotator.reached}
    began, taken, sent = time.monotonic(), 0, 0
    for n in range(FLOOD):
        if time.monotonic() - began > FLOOD_S or links[0].is_closed:
            break
        sent += 1
        taken += await rotator.tell(links[0], successor(token, number + n), [own, *ids], grace_ms)
    return {"taken": taken, "sent": sent, "reached": rotator.reached, "seconds": round(time.monotonic() - began, 2)}


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("token_file", type=Path)
    parser.add_argument("seed", type=int)
    parser.add_argument("mode", choices=("id", "foreign", "highest", "one_each", "flood", "hangs_up"))
    parser.add_argument("addresses", nargs="*")
    parser.add_argument("--pid", type=int, default=0, help="of the node to hang up on")
    parser.add_argument("--grace-ms", type=int, default=0)
    parser.add_argument("--owner-key", type=Path, help="a file, as `federation token new --owner-key` makes it")
    options = parser.parse_args()
    if options.mode == "id":
        result = {"peer_id": str(ID.from_pubkey(create_new_key_pair(bytes([options.seed]) * 32).public_key))}
    else:
        logs.configure("error", "console", stream=sys.stderr)
        token = Token.decode(options.token_file.read_text())
        reactor = Reactor()
        async with trio.open_nursery() as nursery:
            await nursery.start(reactor.run)
            rotator = Rotator(token, options.seed, reactor, options.owner_key.read_text() if options.owner_key else "")
            async with rotator.host.running():
                addresses = [PeerAddress.parse(text) for text in options.addresses]
                result = await attack(rotator, options.mode, addresses, options.pid, options.grace_ms)
                await trio.sleep(0.5)
            nursery.cancel_scope.cancel()
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    trio.run(main)
