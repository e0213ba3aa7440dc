"""The entry's side: accept a client, pick a peer, open a tunnel, and go to the next peer if that one fails.

A connection's life is a small state machine on the reactor, without a task of its own:

    waiting --pick--> opening --OPENED--> opened --first byte--> joined --> closed
       ^                 |  refused, reset, timeout  |
       +-----------------+---------------------------+   while what the client sent can still be replayed

With `--replay opened` (default) "opened" and "joined" are one: the backend has seen nothing before OPENED, so nothing is
done twice. With `first-byte` the client's bytes are kept until the backend's first byte, unless they outgrow
`replay_buffer_bytes`: then, once opened, the connection is joined and can no longer move. With `never` a connection is
tried once. The pick, and the counter it raises, come before anything else happens.
"""

from __future__ import annotations

import errno
import json
import re
import socket
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Protocol

import structlog
import trio

from federation.backends import Dialled
from federation.config import Replay
from federation.errors import ListenFailed, PeerUnavailable, listen_problem
from federation.reactor import READ, Duplex, Reactor, Timer
from federation.splice import SocketEnd, join

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.backends import Backends, Serving
    from federation.config import Endpoint, Settings
    from federation.metrics import Metrics
    from federation.net.link import Link
    from federation.net.mux import Channel
    from federation.records import NodeData
    from federation.selection import Pick, Selector

log = structlog.get_logger(__name__)

# How long a peer that failed is left alone. It said no: long enough for its backend's next check, and for the news to
# come by gossip. It said nothing: longer than one open timeout, so that clients do not queue at it.
REFUSED_PENALTY_S = 1.0
SILENT_PENALTY_S = 5.0
EMFILE_PAUSE_S = 0.1  # the kernel has no descriptor for us: closing ones will free some
LINGER_S = 2.0  # for a client to read why it was turned away
BACKLOG = 1024
ACCEPTS_A_TURN = 64
DECISIONS = 256  # kept for `explain`
_OUT_OF_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_HTTP = re.compile(rb"[A-Z]{3,16} [^\s]+ HTTP/1\.[01]\r?\n")


class Roster(Protocol):
    """Who may serve now; written by node.py over ledger, links, health and penalties."""

    own_id: str

    def eligible(self, service: str) -> Sequence[NodeData]: ...
    def link(self, peer_id: str) -> Link | None: ...
    def penalize(self, peer_id: str, seconds: float) -> None: ...


class Decision(NamedTuple):
    """One pick, for `explain`. `at`: trio time in seconds."""

    at: float
    service: str
    client: str
    pick: Pick
    attempt: int


class Counts:
    """Connections of clients at this entry since its start. `failed`: the client was turned away."""

    def __init__(self) -> None:
        self.total = self.failed = self.retried = 0


class _Reply:
    """The tunnel's peer until the connection is joined."""

    __slots__ = ("_entry",)

    def __init__(self, entry: Entry) -> None:
        self._entry = entry

    def send(self, data: bytes | memoryview) -> None:
        entry = self._entry
        entry.join()
        entry.client.send(data)

    def send_eof(self) -> None:
        self._entry.ended_early()

    def abort(self, reason: str) -> None:
        self._entry.failed(reason)

    def resume(self) -> None:
        self._entry.client.resume()

    def taken(self, n: int) -> None:
        """The socket paces what it reads by room()."""

    def room(self) -> int:
        return 1


class Entry:
    """One client. It is its socket's peer until the connection is joined, and the opener of its tunnels."""

    __slots__ = (
        "_channel", "_eof", "_forwarder", "_kept", "_kept_size", "_opened", "_serving", "_timer", "_tried", "attempts",
        "client", "client_name", "joined", "peer_id", "service", "started_at",
    )  # fmt: skip

    def __init__(self, forwarder: Forwarder, sock: socket.socket, service: str, client_name: str) -> None:
        self._forwarder = forwarder
        self.service = service
        self.client_name = client_name
        self.client = SocketEnd(forwarder.reactor, sock, self._closed)
        self.client.peer = self
        self.started_at = trio.current_time()
        self.attempts = 0
        self.peer_id = ""  # whose counter we hold
        self.joined = False
        self._kept: list[bytes] = []
        self._kept_size = 0
        self._eof = False
        self._opened = False
        self._tried: set[str] = set()
        self._channel: Channel | None = None
        self._serving: Serving | None = None
        self._timer: Timer | None = None

    # Picking

    def attempt(self) -> None:
        """Go to the best peer that was not tried; without one, wait for the roster to change."""
        forwarder = self._forwarder
        while not self.client.closed:
            peer_id = forwarder.pick(self, self._tried)
            if peer_id is None:
                self._wait()
                return
            self.peer_id = peer_id
            self._tried.add(peer_id)
            self.attempts += 1
            try:
                self._open()
            except (PeerUnavailable, Dialled) as error:
                log.debug("peer cannot take the connection", peer=peer_id, why=error.detail)
                self._let_go()
                if forwarder.replay is Replay.NEVER:
                    self.turn_away("the peer could not take the connection")
                    return
                continue
            return

    def _open(self) -> None:
        """Raises PeerUnavailable or Dialled."""
        forwarder = self._forwarder
        if self.peer_id == forwarder.roster.own_id:
            self._serving = forwarder.backends.serve(self.service, self._dialled)
            return
        link = forwarder.roster.link(self.peer_id)
        if link is None:
            raise PeerUnavailable("no connection to it")
        channel = link.open_tunnel(self.service, self, _Reply(self))
        self._channel = channel
        for chunk in self._kept:
            channel.send(chunk)
        if self._eof:
            channel.send_eof()
        self._timer = forwarder.reactor.call_later(forwarder.open_timeout_s, self._on_timeout)

    def _wait(self) -> None:
        forwarder = self._forwarder
        left = self.started_at + forwarder.hold_s - trio.current_time()
        if left <= 0:
            self.turn_away("no peer is available")
            return
        forwarder.held.add(self)
        self._timer = forwarder.reactor.call_later(left, self._on_hold_over)

    def try_again(self) -> None:
        """The roster changed while we waited."""
        self._stop_timer()
        self._tried.clear()
        self.attempt()

    def _on_hold_over(self) -> None:
        self._forwarder.held.discard(self)
        self.turn_away("no peer is available")

    # How an attempt goes

    def opened(self) -> None:
        self._stop_timer()
        forwarder = self._forwarder
        forwarder.opened_after(trio.current_time() - self.started_at)
        self._opened = True
        if forwarder.replay is Replay.FIRST_BYTE:
            forwarder.unanswered.setdefault(self.peer_id, set()).add(self)
            self.client.resume()
        else:
            self.join()

    def refused(self, reason: str) -> None:
        self._channel = None
        self.failed(reason)

    def _dialled(self, end: SocketEnd | None, reason: str) -> None:
        """Our own backend, without a detour through the network."""
        self._serving = None
        if end is None:
            self.failed(reason)
        elif self.client.closed:
            end.abort("the client has gone")
        else:
            self._opened = True
            self._join_with(end)
            end.start()

    def _on_timeout(self) -> None:
        forwarder = self._forwarder
        link = forwarder.roster.link(self.peer_id)
        if link is not None:
            link.ping()
        self.failed(f"no answer within {forwarder.open_timeout_s:g} s", penalty_s=SILENT_PENALTY_S)

    def failed(self, reason: str, *, penalty_s: float = REFUSED_PENALTY_S) -> None:
        """This attempt is over; nothing of it reached the client."""
        forwarder = self._forwarder
        self._stop_timer()
        if self._channel is not None:
            self._channel.abort(reason)  # RST behind OPEN: an exit that wakes up late never dials
            self._channel = None
        forwarder.roster.penalize(self.peer_id, penalty_s)
        log.debug("attempt failed", peer=self.peer_id, service=self.service, why=reason, attempt=self.attempts)
        self._let_go()
        self._opened = False
        if self.client.closed:
            return
        if forwarder.replay is Replay.NEVER:
            self.turn_away(reason)
            return
        forwarder.retried(reason)
        self.attempt()

    def ended_early(self) -> None:
        """The backend finished without a byte. If the client has not finished either, that is how a dying backend looks."""
        if not self._eof and self._forwarder.has_other(self):
            self.failed("the backend closed the connection without an answer")
            return
        self.join()
        self.client.send_eof()

    # Joined

    def join(self) -> None:
        """Nothing will be replayed any more: socket and tunnel talk to each other from here on."""
        channel, self._channel = self._channel, None
        if channel is not None:
            self._join_with(channel)
            self.client.resume()

    def _join_with(self, other: Duplex) -> None:
        kept, self._kept = self._kept, []
        self._forget_unanswered()
        self.joined = True
        join(self.client, other)
        if isinstance(other, SocketEnd):  # a tunnel has had its copy already
            for chunk in kept:
                other.send(chunk)
            if self._eof:
                other.send_eof()
            self.client.resume()

    # Duplex, for the client's socket until the connection is joined

    def room(self) -> int:
        room = self._forwarder.replay_buffer_bytes - self._kept_size
        if room <= 0 and self._opened:
            self.join()
            return self.client.peer.room()
        return room if self._channel is None else min(room, self._channel.room())

    def send(self, data: bytes | memoryview) -> None:
        chunk = bytes(data)
        self._kept.append(chunk)
        self._kept_size += len(chunk)
        if self._channel is not None:
            self._channel.send(chunk)

    def send_eof(self) -> None:
        self._eof = True
        if self._channel is not None:
            self._channel.send_eof()

    def abort(self, reason: str) -> None:
        """The client broke off: `_closed` has been called and cleans up."""

    def taken(self, n: int) -> None:
        """Nothing was delivered yet."""

    def resume(self) -> None:
        """Nothing was sent to the client yet."""

    # The end

    def turn_away(self, why: str) -> None:
        """The client gets an error: 503 if it speaks HTTP/1, else the end of the connection."""
        forwarder = self._forwarder
        forwarder.counts.failed += 1
        log.warning("client turned away", service=self.service, why=why, attempts=self.attempts)
        client = self.client
        if _HTTP.match(b"".join(self._kept)):
            client.send(_unavailable(why))
        client.peer = _Discard()
        client.send_eof()
        if not client.closed:
            client.resume()
            self._timer = forwarder.reactor.call_later(LINGER_S, lambda: client.abort("turned away"))

    def _let_go(self) -> None:
        """The attempt holds its peer's counter no longer."""
        self._forget_unanswered()
        if self.peer_id:
            self._forwarder.selector.release(self.peer_id)
            self.peer_id = ""

    def _forget_unanswered(self) -> None:
        waiting = self._forwarder.unanswered.get(self.peer_id)
        if waiting is not None:
            waiting.discard(self)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _closed(self, client: SocketEnd) -> None:
        self._stop_timer()
        if self._channel is not None:
            self._channel.abort("the client has gone")
            self._channel = None
        if self._serving is not None:
            self._serving.cancel()
            self._serving = None
        peer_id = self.peer_id
        self._let_go()
        self._forwarder.finished(self, peer_id)


class _Discard:
    """The peer of a socket whose bytes nobody wants any more."""

    def room(self) -> int:
        return 65536

    def send(self, data: bytes | memoryview) -> None: ...
    def send_eof(self) -> None: ...
    def abort(self, reason: str) -> None: ...
    def taken(self, n: int) -> None: ...
    def resume(self) -> None: ...


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
    ) -> None:
        self.reactor = reactor
        self.roster = roster
        self.selector = selector
        self.backends = backends
        self.hold_s = settings.hold_s
        self.open_timeout_s = settings.open_timeout_s
        self.replay = settings.replay
        self.replay_buffer_bytes = settings.replay_buffer_bytes
        self.counts = Counts()
        self.active: set[Entry] = set()
        self.held: set[Entry] = set()
        self.unanswered: dict[str, set[Entry]] = {}  # by peer: opened, and no byte from its backend yet
        self.decisions: deque[Decision] = deque(maxlen=DECISIONS)
        self.idle = trio.Event()
        self.idle.set()
        self._max_connections = settings.max_connections
        self._metrics = metrics
        self._listeners: list[socket.socket] = []
        self._retry_queued = False

    # Listening

    def listen(self, endpoint: Endpoint) -> tuple[str, int]:
        """Serve clients of `endpoint.service` there; returns the address bound. Raises ListenFailed."""
        address = endpoint.address
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address.host, address.port))
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            raise ListenFailed(listen_problem("clients", str(address), "--listen", error)) from error
        sock.setblocking(False)
        self._listeners.append(sock)
        service = endpoint.service
        self.reactor.add(sock.fileno(), READ, lambda _mask: self._accept(sock, service))
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

    def _accept(self, listener: socket.socket, service: str) -> None:
        for _ in range(ACCEPTS_A_TURN):
            try:
                sock, address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF_DESCRIPTORS:
                    raise
                log.warning("no descriptor left for a client; accepting pauses", limit="ulimit -n")
                self.reactor.change(listener.fileno(), 0)
                self.reactor.call_later(EMFILE_PAUSE_S, lambda: self._accept_again(listener))
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._start(sock, service, f"{address[0]}:{address[1]}")

    def _accept_again(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            self.reactor.change(listener.fileno(), READ)

    def _start(self, sock: socket.socket, service: str, client_name: str) -> None:
        entry = Entry(self, sock, service, client_name)
        if not self.active:
            self.idle = trio.Event()
        self.active.add(entry)
        self.counts.total += 1
        self._metrics.started(service).inc()
        if len(self.active) > self._max_connections:
            entry.turn_away(f"this entry is at its limit of {self._max_connections} connections")
        else:
            entry.attempt()
        if not entry.client.closed:
            entry.client.start()

    def abort_all(self, reason: str) -> None:
        """The drain is over."""
        for entry in list(self.active):
            entry.client.abort(reason)

    # What an entry asks and tells

    def pick(self, entry: Entry, tried: set[str]) -> str | None:
        nodes = self.roster.eligible(entry.service)
        if tried:
            nodes = [node for node in nodes if node.peer_id not in tried]
        now = trio.current_time()
        pick = self.selector.pick(nodes, now=now)
        if pick is None:
            return None
        self.decisions.append(Decision(now, entry.service, entry.client_name, pick, entry.attempts + 1))
        return pick.chosen.peer_id

    def has_other(self, entry: Entry) -> bool:
        return self.replay is Replay.FIRST_BYTE and any(
            node.peer_id not in entry._tried for node in self.roster.eligible(entry.service)
        )

    def opened_after(self, seconds: float) -> None:
        self._metrics.open_seconds.observe(seconds)

    def retried(self, reason: str) -> None:
        self.counts.retried += 1
        self._metrics.retried().inc()

    def finished(self, entry: Entry, peer_id: str) -> None:
        self.active.discard(entry)
        self.held.discard(entry)
        if not self.active:
            self.idle.set()
        client = entry.client
        self._metrics.finished(entry.service, "error" if client.error else "ok").inc()
        log.debug(
            "connection closed", service=entry.service, client=entry.client_name, peer=peer_id, received=client.received,
            delivered=client.delivered, attempts=entry.attempts, why=client.error or "done",
        )  # fmt: skip

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
        """It answers no PING: whom it owes a first byte goes elsewhere."""
        for entry in list(self.unanswered.get(peer_id, ())):
            entry.failed("the peer does not answer", penalty_s=SILENT_PENALTY_S)


def _unavailable(why: str) -> bytes:
    body = json.dumps({"error": {"message": f"federation: {why}", "type": "service_unavailable", "code": 503}}).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 5\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
