"""A libp2p host that does not hold the token: `python stranger.py none|other|mute MULTIADDR TIMES`; a line a try."""

from __future__ import annotations

import argparse
import os
import sys

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from federation.errors import HandshakeFailed
from federation.net.link.handshake import PROTOCOL_ID, TokenNoise

TRY_TIMEOUT_S = 6.0


class MuteNoise(TokenNoise):
    """Goes through the Noise handshake as a member would, and then never proves anything."""

    async def _prove(self, conn, session):
        if not await conn.read(1):
            raise HandshakeFailed("hung up on")
        return await super()._prove(conn, session)


def host_of(kind: str):
    if kind == "none":
        return new_host()
    key_pair = create_new_key_pair()
    noise = {"other": TokenNoise, "mute": MuteNoise}[kind](key_pair, lambda: [os.urandom(32)])
    return new_host(key_pair=key_pair, sec_opt={PROTOCOL_ID: noise})


async def attempt(host, address: Multiaddr, peer_id: ID) -> str:
    with trio.move_on_after(TRY_TIMEOUT_S):
        try:
            await host.get_network().dial_addr(address, peer_id)
        except SwarmException:
            return "refused"
        return "connected"
    return "refused"  # libp2p tries again behind our back


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["none", "other", "mute"])
    parser.add_argument("address")
    parser.add_argument("times", type=int)
    options = parser.parse_args()
    address = Multiaddr(options.address)
    peer_id = ID.from_base58(address.get_peer_id())
    host = host_of(options.kind)
    limit = trio.CapacityLimiter(100)

    async def one() -> None:
        async with limit:
            sys.stdout.write(await attempt(host, address, peer_id) + "\n")

    async with host.run([]), trio.open_nursery() as nursery:
        for _ in range(options.times):
            nursery.start_soon(one)


if __name__ == "__main__":
    trio.run(main)
