"""A node of a public Kademlia DHT, as strangers run it: `python dht_server.py PORT` prints its peer id."""

from __future__ import annotations

import sys

import trio
from libp2p import new_host
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr


async def main(port: int) -> None:
    host = new_host()
    running = host.run(listen_addrs=[Multiaddr(f"/ip4/0.0.0.0/tcp/{port}")])
    async with running, background_trio_service(KadDHT(host, DHTMode.SERVER)):
        sys.stdout.write(f"{host.get_id().to_base58()}\n")
        sys.stdout.flush()
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]))
