"""Hypercorn's HTTP/1.1 over one listening socket, under limits of ours; the only module that knows hypercorn.

Its own `serve` will not do: it writes under a shield and without a deadline, so that one client that does not read
keeps the daemon from ending, and takes any number of connections. HTTP/2 is off, with TLS too.
"""

from __future__ import annotations

import logging
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import structlog
import trio
from h11 import IDLE, SEND_BODY, Request
from hypercorn.config import Config
from hypercorn.events import Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app

from federation.reactor.accepting import Accepting
from federation.reactor.tls import HANDSHAKE_S, PLAIN_ANSWER

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from hypercorn.events import Event
    from hypercorn.typing import Framework
    from starlette.types import ASGIApp

log = structlog.get_logger(__name__)

MAX_CONNECTIONS = 256  # people, browsers and scripts on one machine; a further one replaces one whose client is idle
MAX_HEADER_BYTES = 16 * 1024
CHUNK = 64 * 1024
WRITE_TIMEOUT_S = 10.0  # for a client to take one chunk: a phone at the end of a bad link does


async def serve(
    app: ASGIApp,
    listener: socket.socket,
    *,
    admits: Callable[[trio.socket.SocketType], bool] = lambda _: True,
    tls: Callable[[], ssl.SSLContext | None] = lambda: None,
) -> None:
    """Serve until cancelled; then every connection ends at once. Takes over `listener`, which listens already.

    `admits`: whether to read a client's requests at all. `tls`: asked at each connection; None: plain HTTP.
    """
    config = Config()
    config.errorlog = logging.getLogger("hypercorn.error")  # by default it sets up a handler of its own
    config.accesslog = None
    config.h11_max_incomplete_size = MAX_HEADER_BYTES
    config.include_server_header = False
    wrapped = wrap_app(cast("Framework", app), 0, "asgi")
    context = WorkerContext(None)
    streams: dict[_TimedStream, None] = {}  # in the order in which they became idle, or came

    async def handle(stream: trio.SocketStream) -> None:
        if not admits(stream.socket) or (len(streams) >= MAX_CONNECTIONS and not _evict_waiting(streams)):
            await stream.aclose()
            return

        def has_ended_a_request() -> None:
            if streams.pop(timed, timed) is None:
                streams[timed] = None

        ssl_context = tls()
        carrier: trio.SocketStream | trio.SSLStream = stream
        if ssl_context is not None:
            carrier = trio.SSLStream(stream, ssl_context, server_side=True, https_compatible=True)
        timed = _TimedStream(stream, has_ended_a_request, carrier)
        streams[timed] = None
        try:
            if isinstance(carrier, trio.SSLStream) and not await _shakes_hands(stream, carrier):
                return
            await _Connection(wrapped, config, context, ConnectionState({}), cast("Any", timed)).run()
        except Exception as error:  # one connection must not end the daemon; requests' own errors do not come here
            log.warning("a control connection failed", why=type(error).__name__)  # one line, whatever a stranger sends
            log.debug("a control connection failed", exc_info=True)
        finally:
            streams.pop(timed, None)
            timed.socket.close()

    async with trio.open_nursery() as nursery:
        try:
            async with trio.SocketListener(trio.socket.from_stdlib_socket(listener)) as ours:
                accepting = Accepting("a client of the API")
                while True:
                    nursery.start_soon(handle, await accepting.next(ours))
        finally:
            for stream in streams:
                stream.socket.close()  # which also ends writes that no cancellation reaches


async def _shakes_hands(stream: trio.SocketStream, tls: trio.SSLStream) -> bool:
    """Plain HTTP gets a line that says so."""
    with trio.move_on_after(HANDSHAKE_S), suppress(trio.BrokenResourceError, OSError):
        if (await stream.socket.recv(1, socket.MSG_PEEK)).isalpha():
            await stream.receive_some(MAX_HEADER_BYTES)
            await stream.send_all(PLAIN_ANSWER)
            await stream.send_eof()
            return False
        await tls.do_handshake()
        return True
    return False


def _evict_waiting(streams: dict[_TimedStream, None]) -> bool:
    """Close the connection whose last answer is the oldest among those that wait for their client, if there is one."""
    waiting = next((stream for stream in streams if stream.keeps_waiting()), None)
    if waiting is None:
        return False
    del streams[waiting]
    waiting.socket.close()
    return True


class _Connection(TCPServer):
    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, Updated) and event.idle:
            cast("_TimedStream", self.stream).has_ended_a_request()
        await super().protocol_send(event)

    async def _read_data(self) -> None:
        made = self.protocol
        protocol = made.protocol = _H11(
            made.app, made.config, made.context, made.task_group, made.state, made.ssl, made.client, made.server, made.send
        )  # in place of hypercorn's own
        # The request is not complete: nothing yet, half a head, half a body.
        cast("_TimedStream", self.stream).awaits_request = lambda: protocol.connection.their_state in (IDLE, SEND_BODY)
        await super()._read_data()
        await self.idle_task.stop()  # the client has gone: no reason to wait for its next request


class _H11(H11Protocol):
    async def _check_protocol(self, event: Request) -> None:
        """Ignore `Upgrade: h2c`, as HTTP allows: no connection becomes one of HTTP/2."""

    async def _create_stream(self, request: Request) -> None:
        """Ignore `Upgrade: websocket`: hypercorn would put another protocol in this one's place."""
        headers = [(name, value) for name, value in request.headers if name != b"upgrade"]
        await super()._create_stream(
            Request(method=request.method, target=request.target, headers=headers, http_version=request.http_version)
        )


class _TimedStream:
    """The methods of a stream that TCPServer uses. The server cuts off a client that takes nothing for WRITE_TIMEOUT_S."""

    def __init__(
        self,
        stream: trio.SocketStream,
        has_ended_a_request: Callable[[], None],
        carrier: trio.SocketStream | trio.SSLStream | None = None,
    ) -> None:
        """`carrier`: the TLS around `stream`, if there is one."""
        self._stream = carrier or stream
        self.has_ended_a_request = has_ended_a_request
        self.awaits_request: Callable[[], bool] = lambda: True
        self._awaits_reader = False
        self._ends = False
        self.socket = stream.socket

    def keeps_waiting(self) -> bool:
        """Whether the server waits for the client: for its request, or for it to read an answer."""
        return self._awaits_reader or self.awaits_request()

    async def send_all(self, data: bytes | memoryview) -> None:
        if self._ends:
            raise trio.BrokenResourceError("the client has gone")
        view = memoryview(data)
        for start in range(0, len(view), CHUNK):
            self._awaits_reader = True
            with trio.move_on_after(WRITE_TIMEOUT_S) as waiting:
                await self._stream.send_all(view[start : start + CHUNK])
            self._awaits_reader = False
            if waiting.cancelled_caught:
                self.socket.close()  # a chunk is cut in two, so no further answer can follow
                raise trio.BrokenResourceError("the client does not read")

    async def receive_some(self, max_bytes: int) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        self._ends = True  # set first: an answer that was on its way would collide with this
        if isinstance(self._stream, trio.SocketStream):  # TLS has one end for both directions: `aclose`
            await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()
