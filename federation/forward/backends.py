"""The exit's side: the local servers that this node offers, whether they answer, and the connections they serve.

A tunnel's OPEN is answered only when the backend has accepted: OPENED, or REFUSED with the reason, so that the entry can
go elsewhere. What the client sent in the meantime waits here, within the channel's first window.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import structlog
import trio

from federation.errors import FederationError
from federation.reactor import fdlimit
from federation.reactor.connect import Connect
from federation.reactor.duplex import join
from federation.reactor.sockets import SocketDuplex

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from trio_typing import TaskStatus

    from federation.config import Endpoint, Settings
    from federation.net.link.link import Link
    from federation.net.link.mux import Channel
    from federation.reactor.duplex import Duplex
    from federation.reactor.loop import Reactor

log = structlog.get_logger(__name__)

STALE_S = 0.05  # far below any open timeout; a dial on this machine takes a tenth of a millisecond
HEALTH_TIMEOUT_S = 2.0
RECHECK_S = 0.2  # after a refused dial: is it down, or was it one hiccup?


class Dialled(FederationError):
    """The backend was not reached"""


class Backend:
    """One local server. `healthy` is what the last check or dial said; None before the first."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.healthy: bool | None = None
        self.why = "not checked yet"
        self.in_flight = 0
        self.target: tuple[int, Any] | None = None  # resolved by the health check
        self.recheck = trio.Event()


class Serving:
    """One connection that a backend serves or is asked to. `cancel` before it is connected; afterwards its end does it."""

    __slots__ = ("_backends", "_dial", "_done", "_entry", "_released", "backend")

    def __init__(
        self, backends: Backends, backend: Backend, done: Callable[[SocketDuplex | None, str], None], entry: str
    ) -> None:
        self._backends = backends
        self._entry = entry
        self.backend = backend
        self._done = done
        self._released = False
        backend.in_flight += 1
        backends.load_changed(1)
        if entry:
            backends.by_entry[entry] += 1
        self._dial: Connect | None = None
        target = backend.target
        assert target is not None
        self._dial = Connect(backends.reactor, target, self._dialled)

    def cancel(self) -> None:
        if self._dial is not None:
            self._dial.cancel()
        self._release()

    def _dialled(self, sock: socket.SocketType | None, reason: str) -> None:
        self._dial = None
        if sock is None:
            self._release()
            if reason != fdlimit.REASON:  # which is not its fault
                self._backends.refused(self.backend, reason)
            self._done(None, f"backend {self.backend.endpoint.address}: {reason}")
            return
        self._done(SocketDuplex(self._backends.reactor, sock, lambda _end: self._release()), "")

    def _release(self) -> None:
        if not self._released:
            self._released = True
            self.backend.in_flight -= 1
            self._backends.load_changed(-1)
            if self._entry:
                self._backends.entry_released(self._entry)


class ExitFlow:
    """A tunnel on its way to the backend: the channel's peer until the backend accepted.

    Between any two steps this process may have been stopped for long enough that the entry gave up. Its RST is then
    waiting in the link's socket, so a step that comes late first reads what is there.
    """

    __slots__ = ("_backends", "_channel", "_early", "_end", "_eof", "_gone", "_link", "_looked_at", "_service", "_serving")

    def __init__(self, backends: Backends, link: Link, channel: Channel, service: str) -> None:
        self._backends = backends
        self._link = link
        self._channel = channel
        self._service = service
        self._early: list[bytes] = []
        self._eof = False
        self._gone = False
        self._looked_at = backends.reactor.now()  # when the link was last read empty, or nearly so
        self._serving: Serving | None = None
        self._end: SocketDuplex | None = None

    def dial(self) -> None:
        """Called when everything that the entry had sent was read: if it gave up, nothing is dialled."""
        if self._gone:
            return
        self._looked_at = self._backends.reactor.now()
        try:
            self._serving = self._backends.serve(self._service, self._dialled, entry=self._link.peer)
        except Dialled as error:
            self._channel.refuse(error.detail)

    def _dialled(self, end: SocketDuplex | None, reason: str) -> None:
        if end is None:
            self._channel.refuse(reason)
            return
        self._end = end
        self._if_wanted(self._accept)

    def _accept(self) -> None:
        self._channel.accept()
        # Behind OPENED: what the entry may still replay, no backend has seen.
        self._backends.reactor.flush_soon(lambda: self._if_wanted(self._deliver))

    def _deliver(self) -> None:
        end = self._end
        assert end is not None
        join(end, self._channel)
        early, self._early = self._early, []
        for chunk in early:
            end.send(chunk)
        if self._eof:
            end.send_eof()
        end.start(read=False)

    def _if_wanted(self, step: Callable[[], None]) -> None:
        """Take the next step, unless the entry has given up."""
        now = self._backends.reactor.now()
        if self._gone:
            return
        if now - self._looked_at > STALE_S:
            self._looked_at = now
            self._link.drain(lambda: self._if_wanted(step))
        else:
            step()

    # Duplex, for the channel

    def send(self, data: bytes | memoryview) -> None:
        self._early.append(bytes(data))

    def send_eof(self) -> None:
        self._eof = True

    def abort(self, reason: str) -> None:
        self._gone = True
        if self._end is not None:
            self._end.abort(reason)
        elif self._serving is not None:
            self._serving.cancel()

    def room(self) -> int:
        return 0

    def taken(self, n: int) -> None:
        """Nothing was sent yet."""

    def resume(self) -> None:
        """Nothing was sent yet."""


class Backends:
    """All local servers of this node. `on_change()` is called when a service's health changed, `on_load()` with the load."""

    def __init__(
        self, reactor: Reactor, settings: Settings, *, on_change: Callable[[], None], on_load: Callable[[], None]
    ) -> None:
        self.reactor = reactor
        self._settings = settings
        self._on_change = on_change
        self._on_load = on_load
        self.all = [Backend(endpoint) for endpoint in settings.backends]
        self.in_flight = 0
        self.by_entry: Counter[str] = Counter()  # those of other entries, by peer id
        self.draining = False
        self._least = 0  # of in_flight since the last sample
        self.idle = trio.Event()
        self.idle.set()

    def configure(self, settings: Settings) -> None:
        """Limits and health checks, from the next connection and the next check on; the servers stay those of the start."""
        self._settings = settings

    # What is offered

    def services(self) -> dict[str, bool]:
        """Service -> whether one of its backends answers."""
        offered: dict[str, bool] = {}
        for backend in self.all:
            name = backend.endpoint.service
            offered[name] = offered.get(name, False) or bool(backend.healthy)
        return offered

    def tunnel_opened(self, link: Link, channel: Channel, service: str) -> None:
        """A remote entry asks for `service`."""
        flow = ExitFlow(self, link, channel, service)
        channel.other = flow
        link.when_drained(flow.dial)

    def serve(self, service: str, done: Callable[[SocketDuplex | None, str], None], *, entry: str = "") -> Serving:
        """Connect to the least busy healthy backend of `service`; `done(end, reason)` follows. Raises Dialled.

        `entry`: the peer that asks; empty for this node's own clients.
        """
        limit = self._settings.max_connections_per_peer
        if entry and self.by_entry[entry] >= limit:
            raise Dialled(f"this node takes {limit} connections from one peer")
        if self.draining:
            raise Dialled("this node is draining")
        if 0 < self._settings.capacity <= self.in_flight:
            raise Dialled("this node is at its capacity")
        backends = [b for b in self.all if b.endpoint.service == service]
        if not backends:
            raise Dialled("this node does not offer that service")
        healthy = [b for b in backends if b.healthy and b.target is not None]
        if not healthy:
            raise Dialled(f"the backend is down: {backends[0].why}")
        return Serving(self, min(healthy, key=lambda b: b.in_flight), done, entry)

    # Load

    def entry_released(self, entry: str) -> None:
        self.by_entry[entry] -= 1
        if not self.by_entry[entry]:
            del self.by_entry[entry]

    def load_changed(self, by: int) -> None:
        self.in_flight += by
        if self.in_flight < self._least:
            self._least = self.in_flight
        if not self.in_flight:
            self.idle.set()
        elif self.idle.is_set():
            self.idle = trio.Event()
        self._on_load()

    def sample_load(self) -> int:
        """The least in flight since the last sample: the load that lasts. A short request's blip between two reports would
        only send others away from a node that is free again."""
        least, self._least = self._least, self.in_flight
        return least

    # Health

    def refused(self, backend: Backend, reason: str) -> None:
        self._set_health(backend, False, reason)
        backend.recheck.set()

    def _set_health(self, backend: Backend, healthy: bool, why: str) -> None:
        was, backend.healthy, backend.why = backend.healthy, healthy, why
        if was == healthy:
            return
        endpoint = backend.endpoint
        if healthy:
            log.info("backend answers, offered", service=endpoint.service, backend=str(endpoint.address))
        else:
            log.warning(
                "backend does not answer, not offered until it does",
                service=endpoint.service, backend=str(endpoint.address), why=why,
            )  # fmt: skip
        self._on_change()

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Check every backend now and then every `health_interval_s`. Started when each was checked once."""
        async with trio.open_nursery() as checks:
            for backend in self.all:
                checks.start_soon(self._check, backend)
        task_status.started()
        async with trio.open_nursery() as loops:
            for backend in self.all:
                loops.start_soon(self._check_forever, backend)

    async def _check_forever(self, backend: Backend) -> None:
        while True:
            with trio.move_on_after(self._settings.health_interval_s):
                await backend.recheck.wait()
                await trio.sleep(RECHECK_S)
            backend.recheck = trio.Event()  # before the check: what is refused during it is looked at again
            await self._check(backend)

    async def _check(self, backend: Backend) -> None:
        address = backend.endpoint.address
        try:
            with trio.fail_after(HEALTH_TIMEOUT_S):
                stream = await trio.open_tcp_stream(address.host, address.port)
                async with stream:
                    backend.target = (stream.socket.family, _peer_of(stream))
                    if self._settings.health_path is not None:
                        await _expect_http_ok(stream, str(address), self._settings.health_path)
        except trio.TooSlowError:
            self._set_health(backend, False, f"no answer within {HEALTH_TIMEOUT_S:g} s")
        except OSError as error:
            self._set_health(backend, False, _plain(error))
        except (trio.BrokenResourceError, Dialled) as error:
            self._set_health(backend, False, getattr(error, "detail", "") or "it hung up")
        else:
            self._set_health(backend, True, "")


def _peer_of(stream: trio.SocketStream) -> Any:
    try:
        return stream.socket.getpeername()
    except OSError:  # it accepted and reset
        raise Dialled("it hung up") from None


async def _expect_http_ok(stream: trio.SocketStream, host: str, path: str) -> None:
    """Raises Dialled unless GET `path` answers 2xx or 3xx."""
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nUser-Agent: federation-health\r\n\r\n"
    await stream.send_all(request.encode())
    answer = b""
    while b"\r\n" not in answer and len(answer) < 256:
        chunk = await stream.receive_some(256)
        if not chunk:
            break
        answer += chunk
    words = answer.split(b"\r\n")[0].split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or words[1][:1] not in (b"2", b"3"):
        seen = answer[:40].decode("latin-1").split("\r\n")[0]
        raise Dialled(f"GET {path} answered {seen!r}")


def _plain(error: OSError) -> str:
    """trio wraps one error per address; the last one says enough."""
    causes: Iterable[BaseException] = getattr(error.__cause__, "exceptions", ()) or (error.__cause__ or error,)
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno) if cause.errno > 0 else str(cause.strerror)
    return str(error)


_: type[Duplex] = ExitFlow
