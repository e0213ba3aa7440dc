"""A member that invents others by multicast: `python inventor.py TOKEN_FILE COUNT`; a line when all are announced.

Each is said to be where somebody accepts connections and says nothing. It ends with standard input.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID
from zeroconf import ServiceInfo
from zeroconf.asyncio import AsyncZeroconf

from federation.mesh.tokens import Token
from federation.net.dial.address import PeerAddress
from federation.net.discover.mdns import encode_txt, instance_name, service_name

HOSTS = 8


def invented(rendezvous: str, at: tuple[str, int]) -> ServiceInfo:
    peer_id = str(ID.from_pubkey(create_new_key_pair().public_key))
    address = PeerAddress(*at)
    return ServiceInfo(
        service_name(rendezvous), instance_name(rendezvous, peer_id), port=at[1],
        properties=encode_txt(rendezvous, peer_id, [address], nonce=secrets.token_hex(8)),
        addresses=[ipaddress.ip_address(at[0]).packed],
    )  # fmt: skip


async def main(token: Token, count: int, silent: list[socket.socket]) -> None:
    zeroconf = AsyncZeroconf(interfaces=["127.0.0.1"])
    try:
        services = [invented(token.rendezvous(), silent[n % HOSTS].getsockname()) for n in range(count)]
        announced = [await zeroconf.async_register_service(info, cooperating_responders=True) for info in services]
        await asyncio.gather(*announced)
        sys.stdout.write("announced\n")
        sys.stdout.flush()
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    finally:
        await zeroconf.async_close()


if __name__ == "__main__":
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server((f"127.0.1.{n + 1}", 0), backlog=1024)) for n in range(HOSTS)]
        asyncio.run(main(Token.decode(Path(sys.argv[1]).read_text()), int(sys.argv[2]), listeners))
