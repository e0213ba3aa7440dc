"""The entry's side: clients' ports, the connections they bring, and what these share. entry.py has one connection."""

from __future__ import annotations

import socket
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Protocol

import trio

from federation.errors import ListenFailed, listen_problem
from federation.forward import browsers
from federation.forward.l4 import Entry
from federation.reactor import fdlimit
from federation.reactor.accepting import PAUSE_S, Accepting
from federation.reactor.loop import READ, Reactor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence, Set

    from federation.config import Endpoint, Settings
    from federation.forward.backends import Backends
    from federation.forward.selection import Pick, Selector
    from federation.mesh.records import NodeData
    from federation.metrics import Metrics, Result, RetryReason
    from federation.net.link.link import Link

SILENT_S = 5.0  # without a byte either way, and a client gives way if need be: as long as a stranger has for a handshake
GIVE_WAY = 32  # at once
BROKE_OFF_PENALTY_S = 1.0
BACKLOG = 1024
ACCEPTS_A_TURN = 64
DECISIONS = 256  # kept for `explain`, and as many attempts that failed
ENDINGS = 2048  # kept for the log and for `explain`: a quarter of a second of the most that one node can do


class Roster(Protocol):
    """Who may serve now; see roster.py, over ledger, links, health and penalties."""

    own_id: str

    def eligible(self, service: str) -> Sequence[NodeData]: ...
    def far(self, service: str) -> Set[str]: ...
    def link(self, peer_id: str) -> Link | None: ...
    def penalize(self, peer_id: str, seconds: float) -> None: ...


class Decision(NamedTuple):
    """One pick, for `explain`. `at`: trio time in seconds."""

    at: float
    service: str
    client: str
    pick: Pick
    attempt: int
    connection: int = 0  # its number at this entry, from 1


class Failure(NamedTuple):
    """One attempt that came to nothing."""

    connection: int
    attempt: int
    peer_id: str
    why: str


class Ending(NamedTuple):
    """How a client's connection ended. `ended_at`: trio time in seconds; `error` is None where both sides finished."""

    connection: int
    service: str
    client: str
    peer_id: str  # "" where nobody had it at the end
    attempts: int
    ended_at: float
    seconds: float
    received: int  # bytes from the client
    delivered: int  # bytes to the client
    error: str | None


class Counts:
    """Connections of clients at this entry since its start. `failed`: the client was turned away."""

    def __init__(self) -> None:
        self.total = self.failed = self.retried = 0
        self.received = self.delivered = 0  # bytes, of connections that ended


class Forwarder:
    """All clients of this node."""

    def __init__(
        self,
        reactor: Reactor,
        settings: Settings,
        *,
        roster: Roster,
        selector: Selector,
        backends: Backends,
        metrics: Metrics,
        host_name: str = "",
    ) -> None:
        """`host_name`: this machine's, by which pages may know it."""
        self.reactor = reactor
        self.roster = roster
        self.selector = selector
        self.backends = backends
        self._own_names = browsers.own_names(host_name)
        self.configure(settings)
        self.counts = Counts()
        self.active: set[Entry] = set()
        self.held: set[Entry] = set()
        self.turned_away: set[Entry] = set()  # still here to read why
        self.own_load_is_news = False  # the own backends' load changed since the selector heard of it
        self.decisions: deque[Decision] = deque(maxlen=DECISIONS)
        self.failures: deque[Failure] = deque(maxlen=DECISIONS)
        self.endings: deque[Ending] = deque(maxlen=ENDINGS)
        self.on_ending: Callable[[Ending], None] | None = None
        self.idle = trio.Event()
        self.idle.set()
        self._metrics = metrics
        self._listeners: list[socket.socket] = []
        self._retry_queued = False
        self._accepting = Accepting("a client", reactor.now)
        self._counted: Decision | None = None  # the newest of them

    def configure(self, settings: Settings) -> None:
        """For connections that come from now on, and for the next step of those that are here."""
        self.hold_s = settings.hold_s
        self.open_timeout_s = settings.open_timeout_s
        self.replay = settings.replay
        self.replay_buffer_bytes = settings.replay_buffer_bytes
        self._max_connections = settings.max_connections
        origins = frozenset(settings.allow_origins)
        is_on = settings.browser_check and browsers.ANY not in origins
        self._rules = {
            on_loopback: browsers.Rules(origins, self._own_names, on_loopback=on_loopback, is_on=is_on)
            for on_loopback in (True, False)
        }

    # Listening

    def listen(self, endpoint: Endpoint) -> tuple[str, int]:
        """Serve clients of `endpoint.service` there; returns the address bound. Raises ListenFailed."""
        address = endpoint.address
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # clients' sockets inherit it
            sock.bind((address.host, address.port))
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            raise ListenFailed(listen_problem("clients", str(address), "--listen", error)) from error
        sock.setblocking(False)
        self._listeners.append(sock)
        service, on_loopback = endpoint.service, address.is_loopback
        self.reactor.add(sock.fileno(), READ, lambda _mask: self._accept(sock, service, on_loopback))
        bound = sock.getsockname()
        return bound[0], bound[1]

    def stop_listening(self) -> None:
        for sock in self._listeners:
            self.reactor.drop(sock.fileno())
            sock.close()
        self._listeners.clear()
        for entry in list(self.held):
            self.held.discard(entry)
            entry.turn_away("this node is shutting down")

    def _accept(self, listener: socket.socket, service: str, on_loopback: bool = True) -> None:
        for _ in range(ACCEPTS_A_TURN):
            try:
                fd, address = listener._accept()  # type: ignore[attr-defined]  # accept() makes two enums a client: 4 % CPU
            except BlockingIOError:
                return
            except OSError as error:
                if pause_s := self._accepting.pause_after(error):
                    self._pause(listener, pause_s)
                    return
                continue
            is_last = fdlimit.is_reserve(fd)
            # The family is said, not asked for: macOS does not tell it of a client that is gone again.
            sock = socket.SocketType(socket.AF_INET6 if len(address) > 2 else socket.AF_INET, socket.SOCK_STREAM, 0, fd)
            sock.setblocking(False)
            host, port = address[:2]
            client_name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            self._start(sock, service, client_name, self._rules[on_loopback])
            if is_last:
                self._pause(listener, self._accepting.out_of_descriptors())
                return

    def _pause(self, listener: socket.socket, pause_s: float) -> None:
        """The next clients wait in the kernel's queue."""
        self.reactor.change(listener.fileno(), 0)
        self.reactor.call_later(pause_s, lambda: self._accept_again(listener))

    def _accept_again(self, listener: socket.socket) -> None:
        if listener not in self._listeners:
            return
        if not fdlimit.are_left(listener.fileno()):
            self._make_room()
        if fdlimit.are_left(listener.fileno()):
            self.reactor.change(listener.fileno(), READ)
        else:
            self.reactor.call_later(PAUSE_S, lambda: self._accept_again(listener))

    def _make_room(self) -> None:
        """Who has been here for a while, and neither said nor heard anything, gives way to those who wait; oldest first."""
        before = trio.current_time() - SILENT_S
        silent = [e for e in self.active if e.started_at < before and not e.client.received and not e.client.delivered]
        for entry in sorted(silent, key=lambda entry: entry.number)[:GIVE_WAY]:
            _end(entry, "it said nothing, and others need its descriptor")

    def _start(self, sock: socket.SocketType, service: str, client_name: str, rules: browsers.Rules) -> None:
        self.counts.total += 1
        entry = Entry(self, sock, service, client_name, self.counts.total, rules)
        if not self.active:
            self.idle = trio.Event()
        self.active.add(entry)
        self._metrics.started[service] += 1
        if len(self.active) - len(self.turned_away) > self._max_connections:
            entry.turn_away(f"this entry is at its limit of {self._max_connections} connections")
        else:
            entry.attempt()
        if not entry.client.closed:
            entry.client.start()

    def abort_all(self, reason: str) -> None:
        """The drain is over."""
        for entry in list(self.active):
            _end(entry, reason)

    # What an entry asks and tells

    def pick(self, entry: Entry, tried: set[str]) -> str | None:
        nodes = self.roster.eligible(entry.service)
        if tried:
            nodes = [node for node in nodes if node.peer_id not in tried]
        if self.own_load_is_news:
            self.own_load_is_news = False
            self.selector.report(self.roster.own_id, self.backends.in_flight)
        now = self.reactor.now()
        pick = self.selector.pick(nodes, now=now, service=entry.service, far=self.roster.far(entry.service))
        if pick is None:
            return None
        self.decisions.append(Decision(now, entry.service, entry.client_name, pick, entry.attempts + 1, entry.number))
        return pick.chosen.peer_id

    def count_picks(self) -> None:
        """Once a second: by which tier they were decided. Too much to find out at every pick."""
        newest = self.decisions[-1] if self.decisions else None
        for decision in reversed(self.decisions):
            if decision is self._counted:
                break
            self._metrics.picks[decision.pick.tier] += 1
        self._counted = newest

    def has_other(self, entry: Entry) -> bool:
        """Whether there is a peer that this entry has not tried."""
        return any(node.peer_id not in entry.tried for node in self.roster.eligible(entry.service))

    def bytes_moved(self) -> tuple[int, int]:
        """From clients to backends, and back: by connections that ended, and so far by those that are open."""
        active = self.active
        return (
            self.counts.received + sum(entry.client.received for entry in active),
            self.counts.delivered + sum(entry.client.delivered for entry in active),
        )

    def opened_after(self, seconds: float) -> None:
        self._metrics.opens.observe(seconds)

    def attempt_failed(self, entry: Entry, why: str) -> None:
        """Call it while the entry still knows whose attempt it was."""
        self.failures.append(Failure(entry.number, entry.attempts, entry.peer_id, why))

    def retried(self, reason: RetryReason) -> None:
        self.counts.retried += 1
        self._metrics.retries[reason] += 1

    def finished(self, entry: Entry, peer_id: str) -> None:
        self.active.discard(entry)
        self.held.discard(entry)
        if not self.active:
            self.idle.set()
        client = entry.client
        self.counts.received += client.received
        self.counts.delivered += client.delivered
        result: Result = "error" if client.error else "ok"
        if entry in self.turned_away:
            self.turned_away.discard(entry)
            result = "turned_away"
        elif client.was_aborted and entry.joined and not entry.dismissed:
            self._broke_off(entry.service, peer_id)
        now = self.reactor.now()
        self._metrics.finished[entry.service, result] += 1
        self._metrics.durations.observe(now - entry.started_at)
        ending = Ending(
            entry.number, entry.service, entry.client_name, peer_id, entry.attempts, now, now - entry.started_at,
            client.received, client.delivered, client.error,
        )  # fmt: skip
        self.endings.append(ending)
        if self.on_ending is not None:
            self.on_ending(ending)

    def _broke_off(self, service: str, peer_id: str) -> None:
        """In the middle. Whose backend does so at once is always the least loaded, and would draw everybody."""
        eligible = [node.peer_id for node in self.roster.eligible(service)]
        if peer_id in eligible and len(eligible) > 1:
            self.roster.penalize(peer_id, BROKE_OFF_PENALTY_S)

    # What the roster tells

    def roster_changed(self) -> None:
        """Those who wait for a peer look again, once for many changes."""
        if self.held and not self._retry_queued:
            self._retry_queued = True
            self.reactor.flush_soon(self._retry_held)

    def _retry_held(self) -> None:
        self._retry_queued = False
        held, self.held = self.held, set()
        for entry in held:
            entry.try_again()

    def peer_suspect(self, peer_id: str) -> None:
        """It answers no PING: whom it owes an answer goes elsewhere."""
        for entry in [entry for entry in self.active if entry.peer_id == peer_id]:
            entry.peer_suspect()


def _end(entry: Entry, reason: str) -> None:
    """Both sides hear a reset; neither is to blame."""
    entry.dismissed = True
    far = entry.client.other
    entry.client.abort(reason)
    far.abort(reason)
