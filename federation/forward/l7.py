"""One client connection of an HTTP service: it is cut into requests, which are served one after the other (exchange.py).

    client's bytes        head of a request    -> Exchange: pick, open, forward, answer
                          its body             -> the exchange, for the upstream
                          what comes behind    kept (pipelined), up to PIPELINED bytes, until the answer has ended
    the answer's end      another request, or the end of the connection where either side wants that

Rule 1: what is no sound HTTP/1 gets 400 and the end of the connection; no backend has seen a byte of it. What is no HTTP/1
at all becomes a layer-4 client with the bytes that came (frontend.py). So does a connection that begins with HTTP of
another kind (CONNECT, a proxy's GET http://...), unless a person said that the port is HTTP's, or the service has models.
Rule 2: a web page that may not ask gets 403; each head of a connection is judged (web_pages.py).
Rule 3: bytes to the client leave in the callback that brought them. The upstream is granted as many again when they have
left this node, and none for bytes of the entry's own.
Rule 4: a request that was pipelined is looked at when the answers before it have left, in a turn of its own.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

import structlog

from federation.errors import HttpInvalid, HttpUnserved
from federation.forward import web_pages
from federation.forward.attempts import State
from federation.forward.client_keys import Refusal as KeyRefusal
from federation.forward.counters import Ending, Flow
from federation.forward.exchange import RETRY_AFTER_S, Exchange
from federation.forward.http.dialects import dialect_of, error_answer
from federation.forward.http.head import HeadBuffer, Opening, opening, parse_request
from federation.forward.web_pages import Refusal
from federation.reactor.sockets import SocketDuplex
from federation.reactor.tls import TlsDuplex

if TYPE_CHECKING:
    import socket

    from federation.forward.attempts import Dispatcher
    from federation.forward.client_keys import ClientKeys, Grant
    from federation.forward.http.head import RequestHead
    from federation.forward.route import Route
    from federation.forward.web_pages import Rules
    from federation.reactor.duplex import Joinable
    from federation.reactor.loop import Reactor, Timer

log = structlog.get_logger(__name__)

PIPELINED = 64 * 1024  # bytes behind a request that wait for its answer
HEAD_WITHIN_S = 30.0  # from its first byte on
LINGER_S = 2.0  # for a client to close its connection behind the last answer
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class HttpClientEvents(Protocol):
    """The events of a client, for the frontend."""

    def is_layer_4(self, client: HttpClient, seen: bytes) -> None:
        """It speaks no HTTP/1: take its socket over, with the bytes that came."""

    def rejected(self, client: HttpClient) -> None: ...
    def closed(self, client: HttpClient) -> None: ...


class HttpClient:
    """One client, a Duplex for its socket. `exchange`: the request that is being served, if there is one."""

    __slots__ = (
        "_begun", "_dispatcher", "_events", "_head", "_is_asking", "_is_closing", "_is_first", "_is_going_on", "_is_last",
        "_is_said", "_reactor", "_rest", "_timer", "_written", "client_name", "exchange", "flow", "grant", "has_ended",
        "keys", "route", "rules", "socket", "started_at",
    )  # fmt: skip

    def __init__(
        self,
        reactor: Reactor,
        dispatcher: Dispatcher,
        events: HttpClientEvents,
        sock: socket.SocketType | TlsDuplex,
        *,
        route: Route,
        client_name: str,
        number: int,
        rules: Rules,
        keys: ClientKeys | None = None,
        is_said: bool = True,
    ) -> None:
        """`number`: of this connection at this entry, for people. `keys`: where requests may have to show one. `is_said`: by
        a person, that the port is HTTP's; else nodes say it of the service, and a proxy's clients may come, too."""
        self._reactor = reactor
        self._dispatcher = dispatcher
        self._events = events
        self.rules = rules
        self.keys = keys
        self._is_said = is_said
        self.grant: Grant | None = None  # by the key of the present request
        self.flow = Flow(number, 0)  # of the present request, or of the last one
        self.route = route
        self.client_name = client_name
        self.started_at = reactor.now()
        self.exchange: Exchange | None = None
        self.socket: SocketDuplex | TlsDuplex
        if isinstance(sock, TlsDuplex):
            self.socket = sock
            sock.hand_over(self._closed)
        else:
            self.socket = SocketDuplex(reactor, sock, self._closed)
        self.socket.other = self
        self._head = HeadBuffer()
        self._rest = b""  # came behind the present request
        self._begun = b""  # of the connection, until its protocol is known
        self._is_first = True
        self.has_ended = False  # the client sends no more
        self._is_closing = False  # the last answer is on its way
        self._is_going_on = False  # with bytes that had to wait
        self._is_last = False  # no request after the present one
        self._is_asking = False  # `_rest` is not yet what is behind the present request
        self._timer: Timer | None = None
        # What the socket was given and has not passed on: bytes, and whose they are; None: the entry's own.
        self._written: deque[tuple[int, Joinable | None]] = deque()

    # For the frontend

    @property
    def peer_id(self) -> str:
        return "" if self.exchange is None else self.exchange.attempts.peer_id

    @property
    def attempts_made(self) -> int:
        return 0 if self.exchange is None else self.exchange.attempts.count

    @property
    def state(self) -> State:
        if self.exchange is not None:
            return self.exchange.attempts.state
        return State.REJECTED if self._is_closing else State.IDLE

    @property
    def moved(self) -> tuple[int, int]:
        """Bytes of the present request and its answer so far; they are in the totals when it has ended."""
        return (0, 0) if self.exchange is None else self.exchange.moved

    def begin(self) -> None:
        """Nothing is picked before there is a request."""

    def reject(self, why: str) -> None:
        counters, now = self._dispatcher.counters, self._reactor.now()
        counters.started(self.route)
        counters.totals.failed += 1
        log.warning("client turned away", service=self.route.service, why=why)
        self._events.rejected(self)
        counters.ended(Ending(self.flow, self.route, self.client_name, "", 0, now, 0.0, 0, 0, why), "turned_away")
        self._answer_error(503, why, "/", retry_after_s=RETRY_AFTER_S)

    def peer_suspect(self) -> None:
        if self.exchange is not None:
            self.exchange.attempts.peer_suspect()

    def end(self, reason: str) -> None:
        """This node ends the connection."""
        self.socket.abort(reason)

    # Duplex, for the client's socket

    def writable(self) -> int:
        exchange = self.exchange
        if self._is_going_on or self._is_asking:
            return 0  # or newer bytes would come before those that are being handled
        if exchange is not None and exchange.takes_more:
            return exchange.writable()
        if exchange is None and not self._is_closing and self.socket.writable() <= 0:
            return 0  # a client that does not read its answers asks for no more of them; `resume_writing` goes on
        return PIPELINED - len(self._rest)

    def send(self, data: bytes | memoryview) -> None:
        if not self._is_closing:
            self._take(bytes(data))

    def send_eof(self) -> None:
        self.has_ended = True
        begun, self._begun = self._begun, b""
        if begun and b" " not in begun:  # no request line has begun: a word of another protocol, and its end
            self._stop_timer()
            if self._may_be_layer_4(begun):
                self.socket.other.send_eof()
        elif not self._is_closing:
            self._end_in_order()

    def abort(self, reason: str) -> None:
        """The client broke off: `_closed` has been called and cleans up."""

    def acknowledge(self, n: int) -> None:
        written = self._written
        while n and written:
            size, upstream = written[0]
            part = min(n, size)
            n -= part
            if part == size:
                written.popleft()
            else:
                written[0] = (size - part, upstream)
            if upstream is not None:
                upstream.acknowledge(part)

    def resume_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.client_takes_more()
        elif self._rest or self.has_ended:
            self._go_on()
        elif not self.socket.closed:
            self.socket.resume_writing()

    # For the exchange

    def write(self, data: bytes | memoryview, upstream: Joinable | None = None, *, head: bytes = b"") -> None:
        """Bytes for the client: of that upstream, or the entry's own. `head`: of the entry's own, before them."""
        if head:
            self._written.append((len(head), None))
        self._written.append((len(data), upstream))
        self.socket.send(b"".join((head, data)) if head else data)

    def over(self, *, keep_alive: bool) -> None:
        """The answer has ended. What the client has sent meanwhile is the next request."""
        self.exchange = None
        if self.socket.closed:
            return
        if not keep_alive or self._is_last:
            self._close_soon()
            return
        self._head = HeadBuffer()
        if self._rest or self.has_ended:
            self._reactor.flush_soon(self._go_on)  # not deeper and deeper, with many that are pipelined
        else:
            self.socket.resume_writing()

    def _go_on(self) -> None:
        """The next request, if it is here and the client reads its answers."""
        if self.exchange is not None or self._is_closing or self.socket.closed or self.socket.writable() <= 0:
            return
        if self._rest:
            rest, self._rest = self._rest, b""
            self._is_going_on = True
            self._take(rest)
            self._is_going_on = False
        if self.has_ended and not self._is_closing and not self.socket.closed:
            self._end_in_order()
        self.socket.resume_writing()

    def _end_in_order(self) -> None:
        """The client sends no more: answer what it has asked for."""
        if self.exchange is not None:
            if not self.exchange.client_ended():
                self.end("the client ended in the middle of a request")
        elif not self._rest:
            self.socket.send_eof()

    def upgraded(self) -> bytes:
        """A 101 went to the client. Returns what it has sent behind its request: bytes of the other protocol."""
        rest, self._rest = self._rest, b""
        return rest

    def is_rejected(self) -> None:
        """No peer took the request: the client is here only to read why."""
        self._events.rejected(self)

    def wind_down(self) -> None:
        """The node leaves: no request after the present one."""
        self._is_last = True
        if self.exchange is None and not self._is_closing:
            self._close_soon()
            self._stop_timer()
            self._leave()  # nothing was asked for: the node's end need not wait for the client's

    # Heads

    def _take(self, data: bytes) -> None:
        if self.socket.closed or self._is_closing:
            return
        if self._rest:  # of a flush that is to come
            self._rest += data
            return
        if self.exchange is not None:
            used = self.exchange.feed(data) if self.exchange.takes_more else 0
            self._rest += data[used:]
            if self.exchange is None and self._rest:
                self._reactor.flush_soon(self._go_on)  # the answer came before this: `over` did not see what is behind
            return
        if self._is_first:
            data, self._begun = self._begun + data, b""
            kind = opening(data)
            if kind is Opening.OTHER:
                self._stop_timer()
                self._may_be_layer_4(data)
                return
            if kind is Opening.MORE:
                self._begun = data
                self._wait_for_head()
                return
            self._is_first = False
        self._feed_head(data)

    def _may_be_layer_4(self, seen: bytes) -> bool:
        """The client speaks no HTTP/1, so it can show no key. Whether it is a layer-4 client now."""
        if self.keys is not None and self.keys.asks(on_loopback=self.rules.on_loopback):
            self._answer_error(400, "this port asks for a client key, which only HTTP/1 can show", "/")
            return False
        self._events.is_layer_4(self, seen)
        return True

    def _feed_head(self, data: bytes) -> None:
        target, used, raw = "/", 0, None
        try:
            used, raw = self._head.feed(data)
            if raw is None:
                self._wait_for_head()
                return
            self._stop_timer()
            head = parse_request(raw)
            target = head.target
        except HttpInvalid as error:
            self._stop_timer()
            if isinstance(error, HttpUnserved) and self._may_be_a_proxys():
                self._events.is_layer_4(self, (raw or b"") + data[used:])
            else:
                self._answer_error(error.status, error.detail, target)
            return
        verdict = self.rules.judge(raw, is_all=True) if self.rules.is_on else None
        if isinstance(verdict, Refusal):
            self._answer_error(verdict.status, verdict.why, target)
            return
        page = self.rules.readable_by(raw) if head.get(b"origin") is not None else ""
        self.grant = None
        if self.keys is not None and not (page and _is_preflight(head)):  # which shows no key
            judged = self.keys.judge(head, on_loopback=self.rules.on_loopback, client=self.client_name)
            if isinstance(judged, KeyRefusal):
                self._refuse_key(judged, head, page)
                return
            self.grant = judged
        self._ask(head, data[used:], page)

    def _may_be_a_proxys(self) -> bool:
        """Whether the service may have more than HTTP cut into requests: nobody said so, and it has no models."""
        return not self._is_said and self.flow.request == 0 and not self._dispatcher.catalogs(self.route.service)

    def _refuse_key(self, refusal: KeyRefusal, head: RequestHead, page: str) -> None:
        dialect = dialect_of(head.target, is_anthropic=head.get(b"anthropic-version") is not None)
        self.write(
            error_answer(
                dialect, refusal.status, refusal.why, retry_after_s=refusal.retry_after_s, is_head=head.method == "HEAD",
                more=refusal.more + web_pages.readable(page),
            )
        )  # fmt: skip
        self._close_soon()

    def _ask(self, head: RequestHead, behind: bytes, page: str = "") -> None:
        self.flow = Flow(self.flow.connection, self.flow.request + 1)
        exchange = self.exchange = Exchange(self._reactor, self._dispatcher, self, head, page=page)
        if head.expects_continue and not exchange.is_whole:
            self.write(CONTINUE)
        self._is_asking = True
        used = exchange.feed(behind)  # nothing, too: it may be whole
        self._is_asking = False
        if self._is_closing or self.socket.closed:
            return
        self._rest += behind[used:]
        if self.exchange is None and self._rest:
            self._reactor.flush_soon(self._go_on)
        elif self.exchange is not None:
            self.socket.resume_writing()

    def _wait_for_head(self) -> None:
        if self.has_ended:  # there is no more of it
            self._close_soon()
        elif self._timer is None:
            self._timer = self._reactor.call_later(
                HEAD_WITHIN_S, lambda: self._answer_error(408, "the request is late", "/")
            )

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # The end

    def _answer_error(self, status: int, why: str, target: str, *, retry_after_s: int | None = None) -> None:
        self.write(error_answer(dialect_of(target), status, why, retry_after_s=retry_after_s))
        self._close_soon()

    def _close_soon(self) -> None:
        """FIN behind the last answer; the client may have bytes on their way, which must not make it a reset."""
        self._is_closing = True
        self._rest = b""
        self._stop_timer()
        self.socket.send_eof()
        if not self.socket.closed:
            self._timer = self._reactor.call_later(LINGER_S, self._leave)
            self.socket.resume_writing()

    def _leave(self) -> None:
        """Close, unless a slow reader has not had all of the answer yet."""
        self.socket.leave()
        if not self.socket.closed:
            self._timer = self._reactor.call_later(LINGER_S, self._leave)

    def _closed(self, client: SocketDuplex | TlsDuplex) -> None:
        self._stop_timer()
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_gone(client.error)
        self._written.clear()
        self._events.closed(self)


def _is_preflight(head: RequestHead) -> bool:
    return head.method == "OPTIONS" and bool(head.get(b"access-control-request-method"))
