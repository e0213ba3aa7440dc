"""One stock py-libp2p host (its own Noise and yamux), as entry or exit of stream forwards. Only the bench uses it."""

from __future__ import annotations

import json
import logging
import sys
from functools import partial
from typing import Any

import trio
from libp2p import new_host
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.peerinfo import info_from_p2p_addr
from multiaddr import Multiaddr

_READ_BYTES = 65536
_BROKEN = (BaseLibp2pError, EOFError, OSError, trio.BrokenResourceError, trio.ClosedResourceError)


def protocol(service: str) -> TProtocol:
    return TProtocol(f"/bench/{service}/1.0.0")


async def splice(sock: trio.SocketStream, stream: Any) -> None:
    async def send() -> None:
        async for data in sock:
            await stream.write(data)
        await stream.close()

    async def receive() -> None:
        while data := await stream.read(_READ_BYTES):
            await sock.send_all(data)
        await sock.send_eof()

    async def quietly(direction: Any) -> None:
        # An exception that leaves a stream handler ends the whole host.
        try:
            await direction()
        except _BROKEN:
            nursery.cancel_scope.cancel()

    async with sock, trio.open_nursery() as nursery:
        nursery.start_soon(quietly, send)
        nursery.start_soon(quietly, receive)


async def to_backend(port: int, stream: Any) -> None:
    try:
        sock = await trio.open_tcp_stream("127.0.0.1", port)
    except OSError:
        await stream.reset()
        return
    await splice(sock, stream)


async def to_exit(host: Any, peer: Any, service: str, sock: trio.SocketStream) -> None:
    try:
        stream = await host.new_stream(peer, [protocol(service)])
    except _BROKEN:
        await sock.aclose()
        return
    await splice(sock, stream)


async def run(role: str, given: dict[str, Any]) -> None:
    host = new_host()
    async with host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]), trio.open_nursery() as nursery:
        said: dict[str, Any] = {}
        if role == "exit":
            for service, port in given["backends"].items():
                host.set_stream_handler(protocol(service), partial(to_backend, port))
            said = {"address": str(host.get_addrs()[0]), "services": list(given["backends"])}
        else:
            peer = info_from_p2p_addr(Multiaddr(given["exit"]["address"]))
            await host.connect(peer)
            said["listens"] = {}
            for service in given["exit"]["services"]:
                serve = partial(trio.serve_tcp, partial(to_exit, host, peer.peer_id, service), 0, host="127.0.0.1")
                listeners = await nursery.start(serve)
                said["listens"][service] = listeners[0].socket.getsockname()[1]
        print(json.dumps(said), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


def main() -> None:
    logging.basicConfig(level=logging.CRITICAL)
    trio.run(run, sys.argv[1], json.loads(sys.argv[3]))


if __name__ == "__main__":
    main()
