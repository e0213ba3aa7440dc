"""Hypercorn's HTTP/1.1 and HTTP/2 over one listening socket, under limits of ours; the only module that knows hypercorn.

Its own `serve` will not do: it writes under a shield and without a deadline, so that one client that does not read
keeps the daemon from ending, and it takes any number of connections.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

import structlog
import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app

from federation.accepting import Accepting

if TYPE_CHECKING:
    import socket

    from hypercorn.typing import Framework
    from starlette.types import ASGIApp

log = structlog.get_logger(__name__)

MAX_CONNECTIONS = 256  # people, browsers and scripts on one machine; more are closed as they come
MAX_HEADER_BYTES = 16 * 1024
CHUNK = 64 * 1024
PATIENCE_S = 10.0  # for a client to take one chunk: a phone at the end of a bad link does


async def serve(app: ASGIApp, listener: socket.socket) -> None:
    """Serve until cancelled; then every connection ends at once. Takes over `listener`, which listens already."""
    config = Config()
    config.errorlog = logging.getLogger("hypercorn.error")  # by default it sets up a handler of its own
    config.accesslog = None
    config.h11_max_incomplete_size = MAX_HEADER_BYTES
    config.h2_max_header_list_size = MAX_HEADER_BYTES
    config.h2_max_concurrent_streams = 16
    config.include_server_header = False
    wrapped = wrap_app(cast("Framework", app), 0, "asgi")
    context = WorkerContext(None)
    streams: set[_PatientStream] = set()

    async def handle(stream: trio.SocketStream) -> None:
        if len(streams) >= MAX_CONNECTIONS:
            await stream.aclose()
            return
        patient = _PatientStream(stream)
        streams.add(patient)
        try:
            await _Connection(wrapped, config, context, ConnectionState({}), cast("Any", patient)).run()
        except Exception:  # one connection must not end the daemon; requests' own errors do not come here
            log.exception("a control connection failed")
        finally:
            streams.discard(patient)
            patient.socket.close()

    async with trio.open_nursery() as nursery:
        try:
            async with trio.SocketListener(trio.socket.from_stdlib_socket(listener)) as ours:
                accepting = Accepting("a client of the API")
                while True:
                    nursery.start_soon(handle, await accepting.next(ours))
        finally:
            for stream in streams:
                stream.socket.close()  # which also ends writes that no cancellation reaches


class _Connection(TCPServer):
    async def _read_data(self) -> None:
        await super()._read_data()
        await self.idle_task.stop()  # the client has gone: no reason to wait for its next request


class _PatientStream:
    """What TCPServer uses of a stream; a client that takes nothing for PATIENCE_S is cut off."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.socket = stream.socket

    async def send_all(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        for start in range(0, len(view), CHUNK):
            with trio.move_on_after(PATIENCE_S) as patience:
                await self._stream.send_all(view[start : start + CHUNK])
            if patience.cancelled_caught:
                self.socket.close()  # a chunk cut in two: nothing more can be said here
                raise trio.BrokenResourceError("the client does not read")

    async def receive_some(self, max_bytes: int) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()
