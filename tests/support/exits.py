"""Helpers for tests of the exit: backends on a reactor, and tunnels from a real link to them."""

from __future__ import annotations

import socket
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from federation.config import Settings
from federation.forward.backends import Backend, Backends
from federation.forward.exit import Serving, serve_tunnel
from federation.net.link.frames import ANY_LOAD
from federation.net.link.mux import Load
from tests.support.links import End, link_pair, until
from tests.support.sockets import CountingReactor, Listener

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from federation.net.link.channel import Channel
    from federation.net.link.link import Link

SLOW_S = 3600.0  # a health check that comes by itself would come too late for a test


@dataclass
class Exit:
    """Backends under test, and what they told their node."""

    backends: Backends
    reactor: CountingReactor
    changes: list[dict[str, bool]] = field(default_factory=list)
    loads: list[int] = field(default_factory=list)

    @property
    def backend(self) -> Backend:
        return self.backends.all[0]


def make_exit(*addresses: str, reactor: CountingReactor | None = None, **settings: Any) -> Exit:
    reactor = CountingReactor() if reactor is None else reactor  # an empty one is false
    settings = {"health_interval_s": SLOW_S, **settings}
    made: Exit
    backends = Backends(
        reactor,
        Settings(backends=addresses, **settings),
        on_change=lambda: made.changes.append(made.backends.services()),
        on_load=lambda _entry_id: made.loads.append(made.backends.in_flight),
    )
    made = Exit(backends, reactor)
    return made


@asynccontextmanager
async def checking(exit_: Exit) -> AsyncIterator[None]:
    """Health checks run; the first one is over."""
    async with trio.open_nursery() as nursery:
        await nursery.start(exit_.backends.run)
        yield
        nursery.cancel_scope.cancel()


def believe(exit_: Exit, listener: Listener) -> None:
    """As if a check had just said so."""
    exit_.backend.healthy = True
    exit_.backend.target = (socket.AF_INET, (listener.host, listener.port))


@dataclass
class Tunnels:
    exit: Exit
    listener: Listener
    link: Link  # the entry's end
    exit_link: Link
    told: list[int]  # to the entry: the load by others
    servers: list[trio.SocketStream] = field(default_factory=list)  # which the backend has accepted by `accept`

    def open(self, service: str = "default", *, believed: int = ANY_LOAD) -> tuple[Channel, End]:
        """As an entry does; `End.heard` tells what came back."""
        end = End()
        channel = self.link.open_request(service, end, end, believed)
        end.other = channel
        return channel, end

    async def accept(self) -> trio.SocketStream:
        """The next connection at the backend; it is closed when the test is over."""
        self.servers.append(await self.listener.accept())
        return self.servers[-1]

    def request(self, *, takes_kept: bool = True) -> tuple[Channel, End]:
        """One of HTTP, whose end the entry knows. With `tunnels(keeps=True)`."""
        end = End()
        end.other = self.link.open_exchange("default", end, end, ANY_LOAD, takes_kept=takes_kept)
        return end.other, end

    async def exchange(self, server: trio.SocketStream | None = None, *, takes_kept: bool = True) -> trio.SocketStream:
        """A request that is answered in order, and kept as far as the entry can tell. Returns the connection at the backend;
        `server` is one that it may already have."""
        channel, end = self.request(takes_kept=takes_kept)
        channel.send(b"question")
        server = server or await self.accept()
        while not (heard := await server.receive_some()):  # a check's
            server = await self.accept()
        assert heard == b"question"
        await server.send_all(b"answer")
        await until(lambda: end.data == b"answer")
        channel.keep(len(end.data))
        await until(lambda: self.exit.backends.in_flight == 0)
        return server


@asynccontextmanager
async def tunnels(
    *, backlog: int = 16, listening: bool = True, tells_load: bool = False, keeps: bool = False, **settings: Any
) -> AsyncIterator[Tunnels]:
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(Listener(backlog=backlog, listening=listening))
        reactor = CountingReactor()
        exit_ = make_exit(listener.address, reactor=reactor, **settings)
        believe(exit_, listener)
        loads = (Load(), exit_.backends.load) if tells_load or keeps else None
        pair = link_pair(reactor=reactor, loads=loads, keeps=keeps)
        entry_link, exit_link, heard, events = await stack.enter_async_context(pair)
        events.tunnel_opened = partial(serve_tunnel, exit_.backends)  # type: ignore[method-assign]
        made = Tunnels(exit_, listener, entry_link, exit_link, heard.told)
        yield made
        for server in made.servers:
            server.socket.close()
        entry_link.fail("the test is over")
        exit_.backends.kept.drop_all()
        await until(lambda: len(reactor) == 0)  # no descriptor is left in the set, whatever the test did
        assert exit_.backends.in_flight == 0
        assert exit_.backends.idle.is_set()


def serve(
    backends: Backends, service: str, done: Callable[[Any, str], None], *, entry_id: str = "", takes_kept: bool | None = None
) -> Serving:
    """As own clients and tunnels are served; with `takes_kept`, as a request."""
    backend, keeps = backends.choose(service, entry_id), takes_kept is not None
    return Serving(backends, backend, done, entry_id, keeps=keeps, takes_kept=bool(takes_kept))
