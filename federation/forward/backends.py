"""The local servers that this node offers: whether they answer, and how busy they are. exit.py has the connections."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import structlog
import trio

from federation.config import AUTO_CAPACITY
from federation.errors import BackendUnavailable
from federation.forward.kept import Kept
from federation.forward.models.asking import open_place
from federation.forward.models.overhearing import Repute
from federation.net.link.mux import Load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from trio_typing import TaskStatus

    from federation.config import Endpoint, Settings
    from federation.reactor.loop import Reactor

log = structlog.get_logger(__name__)

HEALTH_TIMEOUT_S = 2.0
NEAR_S = 0.05  # a request's first answered byte takes a model about as long at the least
FIRST_HOLD_S = 1.0  # before any connection has ended
NEWEST_WEIGHT = 1 / 32
MOST_IDLE = 1 / 8  # of the time that a connection lasts: for a longer way no place is kept free
OUTSIDE = "outside"  # stands for them among the entries that this node's load is of
RECHECK_S = 0.2  # after a refused dial: is it down, or was it one hiccup?


def _noop(_backend: Backend) -> None:
    """Until somebody wants to hear of it."""


class Backend:
    """One local server. `healthy`: the result of the last check or dial; None before the first."""

    def __init__(self, endpoint: Endpoint, on_repute: Callable[[Backend], None] = _noop) -> None:
        """`on_repute(backend)`: its clients have told that it speaks HTTP, or that it does not any more."""
        self.endpoint = endpoint
        self.repute = Repute(lambda: on_repute(self), is_open=not endpoint.protocol)
        self.healthy: bool | None = None
        self.why = "not checked yet"
        self.in_flight = 0
        self.slots = 0  # as the server says; 0: it does not
        self.outside = 0  # requests that it has from others than this network, as far as it says
        self.target: tuple[int, Any] | None = None  # resolved by the health check
        self.recheck = trio.Event()
        self.came_up = trio.Event()  # it answers again, or somebody asks for its models: see model_watch.py


class Backends:
    """All local servers of this node.

    `on_change()` is called when a service's health changed; `on_load(entry_id)` when the load did, by a connection of that
    peer, or of this node's own clients ("").
    """

    def __init__(
        self,
        reactor: Reactor,
        settings: Settings,
        *,
        on_change: Callable[[], None],
        on_load: Callable[[str], None],
        load: Load | None = None,
    ) -> None:
        """`load`: where the number of connections is kept, for the links to tell."""
        self.reactor = reactor
        self.configure(settings)
        self._on_change = on_change
        self._on_load = on_load
        self.on_repute: Callable[[Backend], None] = _noop  # see Backend; model_watch.py says so
        self.all = [Backend(endpoint, self._repute_changed) for endpoint in settings.backends]
        self.load = load or Load()
        self.refused_as_full: set[str] = set()  # entries that are to hear when there is room, by peer id; pushing.py does
        self.hands_out = False  # entries are about to hear that there is room; until then nobody has it. pushing.py says so
        self.hold_s = FIRST_HOLD_S  # how long a connection lasts here: moving average
        self.kept = Kept(reactor)
        self.draining = False
        # Requests that the backends have from elsewhere: these count as load, and hold up no drain.
        self.outside = 0
        self._least = 0  # of in_flight since the last sample
        self.idle = trio.Event()
        self.idle.set()
        self._checks: trio.Nursery | None = None

    def configure(self, settings: Settings) -> None:
        """Limits and health checks, from the next connection and the next check on; the servers stay those of the start."""
        self._settings = settings
        self._capacity = settings.capacity

    @property
    def are_checked_by_http(self) -> bool:
        """Whether a person said so of all of them: --health-path."""
        return self._settings.health_path is not None

    def offer(self, endpoint: Endpoint) -> Backend:
        """Offer one more server, from its first good check on. While `run` runs."""
        backend = Backend(endpoint, self._repute_changed)
        self.all.append(backend)
        assert self._checks is not None
        backend.recheck.set()
        self._checks.start_soon(self._check_forever, backend)
        return backend

    # The offer

    def services(self) -> dict[str, bool]:
        """Service -> whether one of its backends answers."""
        offered: dict[str, bool] = {}
        for backend in self.all:
            name = backend.endpoint.service
            offered[name] = offered.get(name, False) or bool(backend.healthy)
        return offered

    def choose(self, service: str, entry_id: str = "") -> Backend:
        """The least busy healthy backend of `service`. Raises BackendUnavailable.

        `entry_id`: the peer that asks; empty for this node's own clients.
        """
        limit = self._settings.max_connections_per_peer
        if entry_id and self.load.by_entry.get(entry_id, 0) >= limit:
            raise BackendUnavailable(f"this node takes {limit} connections from one peer")
        if self.draining:
            raise BackendUnavailable("this node is draining")
        if self.is_full:
            raise BackendUnavailable("this node is at its capacity")
        backends = [b for b in self.all if b.endpoint.service == service]
        if not backends:
            raise BackendUnavailable("this node does not offer that service")
        healthy = [b for b in backends if b.healthy and b.target is not None]
        if not healthy:
            raise BackendUnavailable(f"the backend is down: {backends[0].why}")
        return min(healthy, key=lambda b: b.in_flight)

    # Load

    @property
    def in_flight(self) -> int:
        """Connections that the backends serve for this network."""
        return self.load.in_flight - self.outside

    @property
    def capacity(self) -> int:
        """How many they take at once; 0: no limit."""
        if self._capacity != AUTO_CAPACITY:
            return self._capacity
        slots = [backend.slots for backend in self.all if backend.healthy is not False]
        return sum(slots) if all(slots) else 0

    def has_outside(self, backend: Backend, requests: int) -> None:
        """So many requests of others does the backend have now."""
        by, backend.outside = requests - backend.outside, requests
        if by:
            self.outside += by
            self.load.change(OUTSIDE, by)
            self._on_load(OUTSIDE)

    def is_busier(self, entry_id: str, believed: int, rtt_s: float) -> bool:
        """Whether to send a request back to its entry, which believed that this node has less in flight by others.

        It costs the client a round trip. What it saves: among `load` that share this node a request takes 1/load longer
        for each one more. Below NEAR_S nobody notices a round trip, and even load is worth it.
        """
        load = self.load.in_flight
        more = self.load.by_others(entry_id) - believed
        return more > 0 and (rtt_s <= NEAR_S or more / load * self.hold_s > rtt_s)

    @property
    def bearable_way_s(self) -> float:
        """The longest round trip for which a free place may lie idle."""
        return max(NEAR_S, self.hold_s * MOST_IDLE)

    @property
    def is_full(self) -> bool:
        return self._capacity != 0 and 0 < self.capacity <= self.load.in_flight

    def took(self, backend: Backend, entry_id: str) -> None:
        """The backend is asked to serve one more."""
        backend.in_flight += 1
        self._load_changed(1, entry_id)

    def released(self, backend: Backend, entry_id: str, seconds: float | None) -> None:
        """The backend serves one less; it had it for so long. None: it never had it."""
        backend.in_flight -= 1
        if seconds is not None:
            self.hold_s += (seconds - self.hold_s) * NEWEST_WEIGHT
        self._load_changed(-1, entry_id)

    def _load_changed(self, by: int, entry_id: str) -> None:
        self.load.change(entry_id, by)
        served = self.in_flight
        if served < self._least:
            self._least = served
        if not served:
            self.idle.set()
        elif self.idle.is_set():
            self.idle = trio.Event()
        self._on_load(entry_id)

    def sample_load(self) -> int:
        """The least in flight since the last sample: the load that lasts. A short request's blip between two reports would
        only send others away from a node that is free again."""
        least, self._least = self._least, self.in_flight
        return least

    # Health

    def refused(self, backend: Backend, reason: str) -> None:
        self._set_health(backend, False, reason)
        backend.recheck.set()

    def _repute_changed(self, backend: Backend) -> None:
        self.on_repute(backend)

    def _set_health(self, backend: Backend, healthy: bool, why: str) -> None:
        was, backend.healthy, backend.why = backend.healthy, healthy, why
        if not healthy:
            self.has_outside(backend, 0)
            self.kept.drop(backend)
        if was == healthy:
            return
        endpoint = backend.endpoint
        if healthy:
            backend.came_up.set()
            if not endpoint.protocol:
                backend.repute.again()
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
            self._checks = loops
            for backend in self.all:
                loops.start_soon(self._check_forever, backend)
            await trio.sleep_forever()  # more may be offered

    async def _check_forever(self, backend: Backend) -> None:
        while True:
            with trio.move_on_after(self._settings.health_interval_s):
                await backend.recheck.wait()
                await trio.sleep(RECHECK_S)
            backend.recheck = trio.Event()  # before the check: a refusal during the check causes another one
            await self._check(backend)

    async def _check(self, backend: Backend) -> None:
        address = backend.endpoint.address
        try:
            with trio.fail_after(HEALTH_TIMEOUT_S):
                stream = await open_place(address)
                async with stream:
                    target = (stream.socket.family, _peer_of(stream))
                    if target != backend.target:
                        self.kept.drop(backend)
                    backend.target = target
                    if self._settings.health_path is not None:
                        await _expect_http_ok(stream, address.authority, self._settings.health_path)
        except trio.TooSlowError:
            self._set_health(backend, False, f"no answer within {HEALTH_TIMEOUT_S:g} s")
        except OSError as error:
            self._set_health(backend, False, _plain(error))
        except (trio.BrokenResourceError, BackendUnavailable) as error:
            self._set_health(backend, False, getattr(error, "detail", "") or "it hung up")
        else:
            self._set_health(backend, True, "")


def _peer_of(stream: trio.SocketStream) -> Any:
    try:
        return stream.socket.getpeername()
    except OSError:  # it accepted and reset
        raise BackendUnavailable("it hung up") from None


async def _expect_http_ok(stream: trio.SocketStream, host: str, path: str) -> None:
    """Check by HTTP. Raises BackendUnavailable unless GET `path` answers 2xx or 3xx."""
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
        raise BackendUnavailable(f"GET {path} answered {seen!r}")


def _plain(error: OSError) -> str:
    """trio wraps one error per address; the last one says enough."""
    causes: Iterable[BaseException] = getattr(error.__cause__, "exceptions", ()) or (error.__cause__ or error,)
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno) if cause.errno > 0 else str(cause.strerror)
    return str(error)
