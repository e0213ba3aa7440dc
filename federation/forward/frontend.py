"""The clients' ports: listen, accept, limit, drain. l4.py has one client, l7.py one of an HTTP service.

Which of the two a connection becomes is decided when it is accepted. `--listen http://` and `tcp://` say it; so does the
`--backend tcp://` of this node for its service. Else it is HTTP if a node of the network says that the service speaks it:
a server that was found to be one of models a moment ago is one for all connections from now on. HTTP's servers never speak
first, so a silent client of such a service waits for itself; a service whose servers do is no HTTP service, and where its
name stands for both, tcp:// at the port says so.
"""

from __future__ import annotations

import socket
from itertools import count
from typing import TYPE_CHECKING, Literal, NamedTuple

import structlog
import trio

from federation.errors import ListenFailed, listen_problem
from federation.forward import web_pages
from federation.forward.attempts import State
from federation.forward.counters import Counters
from federation.forward.dispatcher import RosterDispatcher
from federation.forward.l4 import L4Client
from federation.forward.l7 import HttpClient
from federation.forward.route import Route
from federation.reactor import fdlimit, listening
from federation.reactor.accepting import PAUSE_S, Accepting
from federation.reactor.loop import READ, Reactor
from federation.reactor.tls import Certificate, TlsDuplex
from federation.units import ANY_ORIGIN, HostPort

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from federation.config import Endpoint, Settings
    from federation.forward.backends import Backends
    from federation.forward.client_keys import ClientKeys
    from federation.forward.dispatcher import Roster
    from federation.forward.selection import Selector
    from federation.metrics import Metrics
    from federation.units import Place

log = structlog.get_logger(__name__)

SILENT_S = 5.0  # when descriptors run out, clients that moved no byte for so long may be closed
ENDED_AT_ONCE = 32  # of these clients
BACKLOG = 1024
ACCEPTS_A_TURN = 64


class Port(NamedTuple):
    """What a port is to clients; `tcp`: it is said to be for no HTTP."""

    scheme: Literal["http", "https", "tcp"]
    asks_key: bool


class Frontend:
    """All clients of this node, their shared `dispatcher`, and the records of them (`counters`)."""

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
        name_of: Callable[[str], str] = str,
        keys: ClientKeys | None = None,
        certificate: Certificate | None = None,
    ) -> None:
        """`host_name`: this machine's, by which pages may know it. `certificate`: for ports that speak TLS."""
        self._certificate = certificate or Certificate()
        self.keys = keys
        self.reactor = reactor
        self.counters = Counters(metrics)
        self.dispatcher = RosterDispatcher(
            reactor,
            settings,
            roster=roster,
            selector=selector,
            backends=backends,
            counters=self.counters,
            name_of=name_of,
        )
        self.active: set[L4Client | HttpClient] = set()
        self.rejected_clients: set[L4Client | HttpClient] = set()  # of the active: here only to read why
        self.idle = trio.Event()
        self.idle.set()
        self._own_names = web_pages.own_names(host_name)
        self._roster = roster
        self._never_http = {backend.service for backend in settings.backends if backend.protocol == "tcp"}
        self._listeners: list[socket.socket] = []
        self._ports: dict[Place, Callable[[], Port]] = {}
        self._numbers = count(1)  # of connections
        self._accepting = Accepting("a client", reactor.now)
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Set limits for connections that come from now on, and for the next step of those that are here."""
        self.dispatcher.configure(settings)
        self._max_connections = settings.max_connections
        if self.keys is not None:
            self.keys.require = settings.require_key
        origins = frozenset(settings.allow_origins)
        is_on = settings.browser_check and ANY_ORIGIN not in origins
        self._rules: dict[bool | None, web_pages.Rules] = {
            on_loopback: web_pages.Rules(origins, self._own_names, on_loopback=on_loopback, is_on=is_on)
            for on_loopback in (True, False)
        }
        # Of Unix sockets: no browser reaches a path by itself.
        self._rules[None] = web_pages.Rules(origins, self._own_names, on_loopback=True, is_on=False)

    # Listening

    def listen(self, endpoint: Endpoint) -> list[Place]:
        """Serve clients of `endpoint.service` there; returns the addresses bound. Raises ListenFailed."""
        try:
            sockets = listening.listen(endpoint.address, BACKLOG)
        except OSError as error:
            raise ListenFailed(listen_problem("clients", str(endpoint.address), "--listen", error)) from error
        for sock in sockets:
            sock.setblocking(False)
            self._listeners.append(sock)
            self._serve(sock, endpoint)
        return [listening.place_of(sock) for sock in sockets]

    def port_at(self, place: Place) -> Port:
        """How clients speak there, now."""
        return self._ports[place]()

    def _serve(self, sock: socket.socket, endpoint: Endpoint) -> None:
        route, address, protocol = Route(endpoint.service), endpoint.address, endpoint.protocol
        on_loopback = address.is_loopback if isinstance(address, HostPort) else None
        speaks_tls = protocol == "https" or (protocol != "tcp" and on_loopback is False)  # if there is a certificate
        if not protocol and endpoint.service in self._never_http:
            protocol = "tcp"

        def accept(_mask: int) -> None:
            is_said = self._is_said_http(protocol, on_loopback=on_loopback is not False)
            is_http = is_said or (not protocol and self._roster.speaks_http(route.service))
            tls = self._certificate.context if speaks_tls else None
            self._accept(sock, route, on_loopback, is_http, tls, is_said=is_said)

        def port() -> Port:
            tls = speaks_tls and self._certificate.context is not None
            asks = self.keys is not None and self.keys.asks(on_loopback=on_loopback is not False)
            return Port("tcp", asks_key=False) if protocol == "tcp" else Port("https" if tls else "http", asks_key=asks)

        self._ports[listening.place_of(sock)] = port
        self.reactor.add(sock.fileno(), READ, accept)

    def _is_said_http(self, protocol: str, *, on_loopback: bool) -> bool:
        """Whether a person says it of the port; one that asks for keys is HTTP's: nothing else can show one."""
        if protocol:
            return protocol != "tcp"
        return self.keys is not None and self.keys.asks(on_loopback=on_loopback)

    def stop_listening(self) -> None:
        for sock in self._listeners:
            self.reactor.drop(sock.fileno())
            listening.close(sock)
        self._listeners.clear()
        self.dispatcher.reject_waiting("this node is shutting down")
        for client in list(self.active):
            client.wind_down()

    def _accept(
        self,
        listener: socket.socket,
        route: Route,
        on_loopback: bool | None = True,
        is_http: bool = False,
        tls: ssl.SSLContext | None = None,
        *,
        is_said: bool = True,
    ) -> None:
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
            if not address or isinstance(address, bytes):  # of a Unix socket: a client has no name there
                family, client_name = socket.AF_UNIX, "unix"
            else:
                family = socket.AF_INET6 if len(address) > 2 else socket.AF_INET
                host, port = address[:2]
                client_name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            sock = socket.SocketType(family, socket.SOCK_STREAM, 0, fd)
            sock.setblocking(False)
            try:
                self._start(sock, route, client_name, self._rules[on_loopback], is_http=is_http, tls=tls, is_said=is_said)
            except Exception:  # a bug of ours costs this client: the reactor would drop the listener for it
                log.exception("a client could not be served", client=client_name)
                self._discard(sock)
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
            self.dispatcher.spare_descriptors()
        if not fdlimit.are_left(listener.fileno()):
            self._end_silent_clients()
        if fdlimit.are_left(listener.fileno()):
            self.reactor.change(listener.fileno(), READ)
        else:
            self.reactor.call_later(PAUSE_S, lambda: self._accept_again(listener))

    def _end_silent_clients(self) -> None:
        """Clients that have been here for a while, and neither said nor heard anything, give way to those that wait for a
        descriptor; the oldest first."""
        before = trio.current_time() - SILENT_S
        silent = [c for c in self.active if c.started_at < before and not c.socket.received and not c.socket.delivered]
        for client in sorted(silent, key=lambda client: client.flow)[:ENDED_AT_ONCE]:
            client.end("it said nothing, and others need its descriptor")

    def _start(
        self,
        sock: socket.SocketType,
        route: Route,
        client_name: str,
        rules: web_pages.Rules,
        *,
        is_http: bool = False,
        tls: ssl.SSLContext | None = None,
        is_said: bool = True,
    ) -> None:
        """`is_http`: each request of the client goes its own way, and is counted by itself. `is_said`: by a person."""
        carrier = sock if tls is None else TlsDuplex(self.reactor, sock, lambda _end: None, tls)
        client: L4Client | HttpClient
        if is_http:
            client = HttpClient(
                self.reactor, self.dispatcher, self, carrier,
                route=route, client_name=client_name, number=next(self._numbers), rules=rules, keys=self.keys,
                is_said=is_said,
            )  # fmt: skip
        else:
            self.counters.started(route)
            client = L4Client(
                self.reactor, self.dispatcher, self, carrier,
                route=route, client_name=client_name, number=next(self._numbers), rules=rules,
            )  # fmt: skip
        if not self.active:
            self.idle = trio.Event()
        self.active.add(client)
        if len(self.active) - len(self.rejected_clients) > self._max_connections:
            client.reject(f"this entry is at its limit of {self._max_connections} connections")
        else:
            client.begin()
        if not client.socket.closed:
            client.socket.start()

    def _discard(self, sock: socket.SocketType) -> None:
        for client in [client for client in self.active if client.socket.sock is sock]:
            client.end("an error of this entry")
        self.reactor.close(sock)

    def abort_all(self, reason: str) -> None:
        """End all clients, because the drain is over."""
        for client in list(self.active):
            client.end(reason)

    # ClientEvents

    def is_layer_4(self, client: HttpClient, seen: bytes) -> None:
        """A client of an HTTP service that speaks something else: a tunnel, with the bytes that came in it."""
        self.active.discard(client)
        self.counters.started(client.route)
        taken = L4Client(
            self.reactor, self.dispatcher, self, client.socket,
            route=client.route, client_name=client.client_name, number=client.flow.connection, rules=client.rules,
        )  # fmt: skip
        self.active.add(taken)
        taken.begin()
        if not taken.socket.closed:
            taken.socket.other.send(seen)

    def rejected(self, client: L4Client | HttpClient) -> None:
        self.rejected_clients.add(client)

    def closed(self, client: L4Client | HttpClient) -> None:
        self.active.discard(client)
        self.rejected_clients.discard(client)
        if not self.active:
            self.idle.set()

    # Questions and news

    @property
    def busy(self) -> int:
        """Clients without those that are between two requests: they lose nothing when this node stops."""
        return sum(client.state is not State.IDLE for client in self.active)

    def bytes_moved(self) -> tuple[int, int]:
        """The bytes from clients to backends, and back: of connections that ended, and so far of those that are open."""
        active, totals = self.active, self.counters.totals
        return (
            totals.received + sum(client.moved[0] for client in active),
            totals.delivered + sum(client.moved[1] for client in active),
        )

    def peer_suspect(self, peer_id: str) -> None:
        """The peer answers no PING: its clients that still wait for an answer go elsewhere."""
        for client in [client for client in self.active if client.peer_id == peer_id]:
            client.peer_suspect()
