"""One request of a client, and its answer. It is what its attempts serve (attempts.py), and knows no socket of the client.

The request's head as the backend is to have it, and its body as it came, are kept until nothing is replayed any more; the
answer's head is rewritten, and its body passed on as it comes, until its framing ends. Then the upstream has ended too: each
request has a tunnel of its own. The exit keeps the backend's connection for the next request, where it can, and where the
answer has left it clean (exit.py).

    READING ---- what is asked for is known ----> attempts: WAITING ... COMMITTED, STREAMING ----> over
       |                                             |  no peer: 503, in the dialect of the path
       +-- it cannot be understood: 400              |  the upstream broke before the answer: another peer, or 502
                                                     +  in the middle of it: said in the stream's own way, or a reset

request_body.py has the rules for the body: until when it is kept whole, and for how long a client may be silent.

An answer that says that its backend cannot serve this now (BUSY, or 404 for a model that its node announces) goes to the
client only if no other peer may do better. Every other answer is the backend's own.

A client that has ended its side behind its request has gone, or only sends no more: both look alike until something is
written to it. So the entry writes, from PROBE_S on, what the answer allows and readers skip: 100 Continue before the answer,
a comment in a stream of server-sent events. One that has gone says RST to it, and its generation ends.
"""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

import structlog

from federation.config import Replay
from federation.errors import HttpInvalid
from federation.forward import web_pages
from federation.forward.attempts import FINAL, Attempts, State
from federation.forward.client_keys import fields_with_keys
from federation.forward.counters import Answer
from federation.forward.counters import Ending as Ended
from federation.forward.exit import HELD
from federation.forward.http import lists
from federation.forward.http.answer import AnswerReader
from federation.forward.http.conversation import NO_KEYS
from federation.forward.http.dialects import Dialect, dialect_of, error_answer
from federation.forward.http.framing import Kind
from federation.forward.http.kept_bodies import FREE
from federation.forward.http.lists import is_list
from federation.forward.http.paths import kind_of
from federation.forward.http.rewrite import backend_head, client_head, is_for_client, may_keep_alive
from federation.forward.http.usage import is_stream
from federation.forward.models.asking import OWN_AGENTS
from federation.forward.request_body import RequestBody
from federation.forward.route import Route
from federation.reactor.duplex import Keepable, NullDuplex
from federation.reactor.tls import TlsDuplex
from federation.units import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.forward.attempts import Dispatcher
    from federation.forward.client_keys import ClientKeys, Grant
    from federation.forward.counters import Flow
    from federation.forward.http.asks import Asked
    from federation.forward.http.head import RequestHead, ResponseHead
    from federation.mesh.models import Catalog
    from federation.metrics import Result
    from federation.reactor.duplex import Duplex, Joinable
    from federation.reactor.loop import Reactor, Timer
    from federation.reactor.sockets import SocketDuplex

log = structlog.get_logger(__name__)

BEHIND_S = 2.0  # for a backend to close its connection behind its answer
RETRY_AFTER_S = 5
NOT_KNOWN = (
    "{0} lives on the node that made it, and no entry that could be asked now has passed that on: name the node in a header "
    "X-Federation-Target, as X-Federation-Node named it"
)
BUSY = frozenset((429, 502, 503))
# Some servers leave other bodies unread (http.server, cpp-httplib), and take them for the next request of the connection:
# one of the client's own making, and another client would get its answer.
BODIES_ARE_READ = frozenset(("POST", "PUT", "PATCH"))
IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"))  # RFC 9110 9.2.2
MOST_LOSSES = 3  # backends that break over one request
MAX_DOUBTED = 4096  # bytes of a 404 that are read before the client has it
PROBE_S = 0.5  # most clients that end their side have their answer by then, and see nothing of it
PROBE_AGAIN_S = 5.0
# Of all interim answers, Python's http.client skips only this one.
STILL_THERE = b"HTTP/1.1 100 Continue\r\n\r\n"
LOOP = b"x-federation-via"  # the entries that a request has come through
MAX_VIA = 1024  # bytes, the latest: some twenty entries
TARGET = b"x-federation-target"
UNBUFFERED = b"x-accel-buffering"  # nginx before an entry keeps a stream until its end, unless the stream says no to that
_STAY_HERE = frozenset((LOOP, TARGET))


class Client(Protocol):
    """The connection that a request came on; see client.py."""

    flow: Flow
    route: Route
    client_name: str
    socket: SocketDuplex | TlsDuplex
    has_ended: bool  # it sends no more
    keys: ClientKeys | None
    grant: Grant | None  # by the key of this request

    def write(self, data: bytes | memoryview, upstream: Joinable | None = None, *, head: bytes = b"") -> None:
        """Bytes for the client: of that upstream, or the entry's own. `head`: of the entry's own, before them."""

    def over(self, *, keep_alive: bool) -> None:
        """The answer has ended."""

    def upgraded(self) -> bytes:
        """A 101 went to the client. Returns what it has sent behind its request."""

    def is_rejected(self) -> None:
        """No peer took the request."""


class _AnswerSide(NullDuplex):
    """What an upstream is joined to."""

    __slots__ = ("_exchange",)

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def writable(self) -> int:
        return self._exchange.client.socket.writable()

    def send(self, data: bytes | memoryview) -> None:
        self._exchange.on_answer(data)

    def send_eof(self) -> None:
        self._exchange.on_answer_eof()

    def abort(self, reason: str) -> None:
        self._exchange.on_answer_abort(self, reason)

    def resume_writing(self) -> None:
        self._exchange.flush_replay()


class Exchange:
    """attempts.Request of one HTTP request."""

    is_kept_on = False
    is_unheard = False

    __slots__ = (
        "_answer", "_answered_by", "_began_answer", "_body", "_delivered", "_dispatcher", "_doubted", "_grant",
        "_head_to_write", "_is_over", "_keep_alive", "_keeper", "_losses", "_page", "_probe", "_reactor", "_replay",
        "_request", "_side", "_status", "_to_backend", "_upstream", "_via", "attempts", "client", "client_name", "flow",
        "is_upgraded", "keys", "route", "started_at",
    )  # fmt: skip

    def __init__(
        self, reactor: Reactor, dispatcher: Dispatcher, client: Client, head: RequestHead, *, page: str = ""
    ) -> None:
        """`page`: the origin of a web page that may read the answer."""
        self._page = page
        self._probe: Timer | None = None  # whether a client that sends no more is still there
        self._reactor = reactor
        self._dispatcher = dispatcher
        self.client = client
        self.flow = client.flow
        self.route = client.route
        self.keys = NO_KEYS
        self.client_name = client.client_name
        self.started_at = reactor.now()
        self.attempts = Attempts(self, dispatcher)
        self._request = head
        self._grant = client.grant
        self.is_upgraded = False
        self._body = RequestBody(dispatcher, self, head)
        self._replay = self._body.replay
        self._to_backend = head  # with the target as the backend is to have it
        self._via = b""  # the line that says which entries it came through
        self._upstream: Joinable | None = None
        self._keeper: Keepable | None = None  # the upstream, if the backend may keep its connection
        self._side: _AnswerSide | None = None
        self._doubted: Doubted | None = None
        self._answer = AnswerReader(head)  # of the present upstream
        self._began_answer = False  # the client has a part of its head
        self._keep_alive = False  # that head said so
        self._head_to_write = b""  # the answer's, which leaves with what comes behind it in one read
        self._status = 0  # of the answer
        self._delivered = 0
        self._losses = 0
        self._is_over = False
        self._answered_by = ""  # this node, where it asks no other
        dispatcher.counters.started(self.route)

    @property
    def replay(self) -> Replay:
        return self._dispatcher.replay.of(names_model=bool(self.route.model))

    @property
    def moved(self) -> tuple[int, int]:
        """Bytes of the request's and of the answer's body so far."""
        return self._body.received, self._delivered

    @property
    def is_whole(self) -> bool:
        """Whether all of the request has come."""
        return self._body.is_whole

    @property
    def takes_kept(self) -> bool:
        """A connection that was kept may break, and the exit repeats what it has sent there: not a long request, and none
        that does a second thing where its backend had begun with the first."""
        request, replay = self._request, self.replay
        if replay is Replay.NEVER or (replay is not Replay.FIRST_BYTE and request.method not in IDEMPOTENT):
            return False
        framing = request.framing
        size = self._replay.size if self.is_whole else framing.length if framing.kind is Kind.LENGTH else HELD
        return size < HELD // 2 and request.upgrade is None

    # From the client

    @property
    def takes_more(self) -> bool:
        """Whether the client's bytes are this request's still."""
        return not self.is_whole or self.is_upgraded

    def writable(self) -> int:
        """How much of the body may come now."""
        replay, upstream = self._replay, self._upstream
        if self._body.is_sought:
            return self._body.room()
        if replay.pending:
            return 0  # `flush_replay` reads on
        if self.is_upgraded or (self.attempts.state in FINAL and upstream is not None):
            return 0 if upstream is None else upstream.writable()
        if self.replay is Replay.FIRST_BYTE:
            room = self._body.room_for_retry
        else:
            room = self._dispatcher.replay_buffer_bytes - replay.size
        if room <= 0 and self.attempts.state is State.OPENED:
            if upstream is not None and upstream.writable() <= 0:
                return 0  # the peer has not said that it got any of this; `flush_replay` reads on
            self._commit()
            return 0 if self._upstream is None else self._upstream.writable()
        return room if upstream is None else min(room, upstream.writable())

    def feed(self, data: bytes) -> int:
        """Bytes of the client; how many of them are this request's."""
        body = self._body
        if self.is_upgraded:
            body.received += len(data)
            if self._upstream is not None:
                self._upstream.send(data)
            return len(data)
        is_sought = body.is_sought
        try:
            chunk = body.feed(data)
        except HttpInvalid as error:
            self._refuse(400, error.detail)
            return len(data)
        if chunk and not is_sought:
            if trouble := body.trouble_behind(chunk, self.route.model):
                self._break_off(trouble)
                return len(data)
            if self.attempts.state not in FINAL:
                self._replay.add(chunk)
            if self._upstream is not None and not self._replay.pending:
                self._upstream.send(chunk)
        body.count()
        return len(chunk)

    def _break_off(self, why: str) -> None:
        """The request is at its end, wherever it has got to."""
        self._reset_upstream(why)
        if self._began_answer:
            self.client.socket.abort(why)
        else:
            self._refuse(400, why)

    def asked_for(self, asked: Asked) -> None:
        """Answer here what needs no node, and send the rest on its way."""
        request, dispatcher, service = self._request, self._dispatcher, self.route.service
        if asked.target != request.target:
            request = self._to_backend = request._replace(target=asked.target)
        target = (request.get(TARGET) or b"").decode("utf-8", "replace")
        own_id, via = dispatcher.own_id.encode(), b", ".join(request.all(LOOP))
        if own_id in via:
            self._refuse(508, "this request came through this node before: a backend of the network is an entry of it")
        elif request.get(b"user-agent") in OWN_AGENTS:
            self._refuse(404, "an entry of a federation is no model server")
        elif self._page and request.method == "OPTIONS" and (method := request.get(b"access-control-request-method")):
            headers = b", ".join(request.all(b"access-control-request-headers"))
            self._answer_itself(web_pages.preflight_answer(self._page, method, headers))
        elif target and not dispatcher.is_known(target):
            self._refuse(404, f"no node is called {visible(target)[:128]} (X-Federation-Target)", code="node_not_found")
        elif not target and is_list(request.method, request.target) and (catalogs := dispatcher.catalogs(service)):
            self._tell_models(request, catalogs if self._grant is None else self._grant.catalogs(catalogs))
        elif self._grant is not None and (why := self._grant.refusal(asked.target, asked.model)):
            self._refuse_model(why)
        else:
            kind = "" if asked.model else kind_of(request.method, request.target)
            self.route, self.keys = Route(service, asked.model, target, kind), asked.keys
            via = via[-MAX_VIA:] + b", " + own_id if via else own_id
            self._via = b"X-Federation-Via: " + via + b"\r\n"
            self._go(asked.id)

    def _go(self, thing: str) -> None:
        """`thing`: what lives on the node that made it, if the request is about one; see http/ids.py."""
        dispatcher = self._dispatcher
        if thing and not self.route.target:
            route = dispatcher.route_to(self.route, thing)
            if route is None:
                dispatcher.find_maker(self.route, thing, partial(self._found, thing))
                return
            self.route = route
        self._start()

    def _found(self, thing: str, route: Route | None) -> None:
        """Another entry knows where it is, or none does."""
        if self._is_over:
            return
        if route is None:
            self._refuse(404, NOT_KNOWN.format(visible(thing)), code="not_found")
            return
        self.route = route
        self._start()

    def _start(self) -> None:
        dispatcher, model = self._dispatcher, self.route.model
        if model and not self.route.target and dispatcher.is_unheard_of(self.route):
            self._refuse(404, f"no node has the model {visible(model)}", code="model_not_found", param="model")
            return
        self.attempts.start()

    def _refuse_model(self, why: str) -> None:
        refusal = self.client.keys.not_covered(why) if self.client.keys is not None else None
        self._refuse(403 if refusal is None else refusal.status, why, code="model_not_allowed", param="model")

    # Owner of its body

    def refuse_body(self, status: int, why: str) -> None:
        self._refuse(status, why)

    def may_grow(self) -> None:
        self.client.socket.resume_writing()

    def give_up_retry(self) -> None:
        if self.attempts.state is State.OPENED:
            self._commit()

    def waited_too_long(self) -> None:
        self.attempts.reject("this entry keeps as many bodies of requests as it may (--http-buffer)")

    def _tell_models(self, request: RequestHead, catalogs: Sequence[Catalog]) -> None:
        """A list of models: no node is asked."""
        is_anthropic = request.get(b"anthropic-version") is not None
        said = lists.answer(request.target, catalogs, is_anthropic=is_anthropic)
        if said is None:
            self._refuse(404, "no node has that model", code="model_not_found", param="model")
            return
        body = lists.encoded(said)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
        self._answer_itself(head + web_pages.readable(self._page), b"" if request.method == "HEAD" else body)

    def _answer_itself(self, head: bytes, body: bytes = b"") -> None:
        """An answer for which no node is asked; `head` is without its last fields."""
        keep_alive = self._request.keep_alive and self.is_whole
        connection = b"Connection: keep-alive\r\n\r\n" if keep_alive else b"Connection: close\r\n\r\n"
        self.client.write(head + connection + body)
        self._answered_by, self._status = self._dispatcher.own_id, int(head[9:12])
        self._finish(keep_alive=keep_alive)

    def client_takes_more(self) -> None:
        """The client's socket has room again."""
        if self._upstream is not None:
            self._upstream.resume_writing()

    def client_ended(self) -> bool:
        """The client sends no more. Whether the request goes on."""
        if self.is_upgraded and self._upstream is not None and not self._replay.pending:
            self._upstream.send_eof()
            return True
        if self.is_whole and not self.is_upgraded and self._probe is None:
            self._probe = self._dispatcher.call_later(PROBE_S, self._is_client_there)
        return self.is_whole

    def _is_client_there(self) -> None:
        """Write what an answer may have here. A client that has gone resets the connection."""
        if not self._began_answer:
            if self._request.version == "1.1":
                self.client.write(STILL_THERE)
        elif comment := self._answer.comment():
            self.client.write(comment)
        if not self._is_over:
            self._probe = self._dispatcher.call_later(PROBE_AGAIN_S, self._is_client_there)

    # Request, for the attempts

    def upstream_side(self) -> Duplex:
        self._side = _AnswerSide(self)
        return self._side

    def connected(self, upstream: Joinable) -> None:
        self._upstream = upstream
        request = self._to_backend
        self._keeper = upstream if isinstance(upstream, Keepable) and upstream.keeps else None
        has_body = request.framing.kind is Kind.CHUNKED or request.framing.length > 0
        is_read = request.method in BODIES_ARE_READ and bool(self.route.model)  # for its model
        if request.version == "1.0" or (has_body and not is_read):
            self._keeper = None
        head = backend_head(
            request, _address_of(self.client_name), is_tls=isinstance(self.client.socket, TlsDuplex),
            keep_alive=self._keeper is not None, more=self._via,
            without=_STAY_HERE if self._grant is None else _STAY_HERE | fields_with_keys(request),
        )  # fmt: skip
        self._replay.rewind(head)
        self.flush_replay()

    def flush_replay(self) -> None:
        if self.attempts.state is State.OPENED and self._dispatcher.bodies.is_tight and self._replay.size > FREE:
            self.attempts.commit()
        replay, is_final = self._replay, self.attempts.state in FINAL
        if is_final:
            replay.commit()
        while replay.pending and self._upstream is not None:
            room = self._upstream.writable()
            if room <= 0:
                break  # it calls again
            self._upstream.send(replay.take(room))
        self._body.count()
        if replay.pending:
            return
        if self._upstream is None:
            return
        if is_final and self.attempts.state is State.COMMITTED:
            self.attempts.to(State.STREAMING)
        if self.is_upgraded and self.client.has_ended:
            self._upstream.send_eof()
        self.client.socket.resume_writing()

    def disconnected(self, reason: str) -> None:
        self._reset_upstream(reason)
        self._replay.interrupt()
        self._answer, self._doubted = AnswerReader(self._request), None

    def rejected(self, why: str) -> None:
        self._dispatcher.counters.totals.failed += 1
        self.client.is_rejected()
        log.warning("request turned away", service=self.route.service, model=self.route.model, why=why)
        self._refuse(503, why, retry_after_s=RETRY_AFTER_S)

    def broken(self, reason: str) -> None:
        """Tell the client, as far as its answer still can."""
        self._reset_upstream(reason)
        self._dispatcher.broke_off(self.route, self.attempts.peer_id)
        self._write_head()
        if not self._began_answer:
            self._refuse(502, f"the node that took the request lost its backend: {reason}")
            return
        ending = self._answer.last_words(self._dialect)
        if ending is None:
            self.client.socket.abort(reason)
            return
        self.client.write(ending)
        self._finish(keep_alive=False, error=reason)

    # The answer

    def on_answer(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while len(view) and not self._is_over:
            if self.is_upgraded:
                self._delivered += len(view)
                self.client.write(view, self._upstream)
                return
            if self._doubted is not None:
                used = self._on_doubted_bytes(self._doubted, view)
            else:
                used = self._on_head_bytes(view) if self._answer.body is None else self._on_body_bytes(view)
            view = view[used:]
        self._write_head()

    def _write_head(self) -> None:
        head, self._head_to_write = self._head_to_write, b""
        if head:
            self.client.write(head)

    def _on_head_bytes(self, view: memoryview) -> int:
        try:
            used, answer = self._answer.feed_head(view)
            if self._upstream is not None:
                self._upstream.acknowledge(used)
            if answer is not None:
                if answer.status in BUSY and self.attempts.answered_badly(f"the backend answered {answer.status}"):
                    return len(view)
                if answer.status == HTTPStatus.NOT_FOUND and self.route.model:
                    self._dispatcher.look(self.route, self.attempts.peer_id)
                if self._may_lack_the_model(answer):
                    self._doubted = Doubted(answer)
                else:
                    self._on_head(answer)
        except HttpInvalid as error:
            self._fail(f"the backend's answer is no HTTP: {error.detail}")
            return len(view)
        return used

    def _may_lack_the_model(self, answer: ResponseHead) -> bool:
        """Whether the body of this 404 is worth to be read before it is passed on: another peer may have the model. One 404
        moves a request, not two."""
        framing, route, attempts = answer.framing, self.route, self.attempts
        is_short = framing.kind is Kind.LENGTH and 0 < framing.length <= MAX_DOUBTED
        is_of_announced = route.model and not route.target and attempts.state is State.OPENED and attempts.count == 1
        return answer.status == HTTPStatus.NOT_FOUND and is_short and bool(is_of_announced)

    def _on_doubted_bytes(self, doubted: Doubted, view: memoryview) -> int:
        """The body of a 404: is it the model that the backend does not find, or the path?"""
        used = min(len(view), doubted.answer.framing.length - len(doubted.body))
        doubted.body += view[:used]
        if len(doubted.body) < doubted.answer.framing.length:
            return used
        self._doubted = None
        if b"model" in doubted.body.lower() or self.route.model.encode("utf-8", "replace") in doubted.body:
            self._dispatcher.lacks(self.route, self.attempts.peer_id)
            if self.attempts.answered_badly("the backend has no such model", penalty_s=0):
                return len(view)
        self._on_head(doubted.answer)
        if not self._is_over:
            self._on_body_bytes(memoryview(bytes(doubted.body)))
        return used

    def _on_head(self, answer: ResponseHead) -> None:
        request = self._request
        if not is_for_client(answer, request):
            return
        is_interim = answer.status < 200 and answer.status != 101
        self._commit()
        if self._is_over:
            return
        keep_alive = may_keep_alive(answer, request) and self.is_whole and not is_interim
        if not is_interim:
            self._began_answer, self._keep_alive = True, keep_alive
            self._status = answer.status
            self._answer.begin_body(answer, names_model=bool(self.route.model), target=self._to_backend.target)
        more = b""
        if self._page and not is_interim and answer.get(b"access-control-allow-origin") is None:
            more = web_pages.readable(self._page)
        if not is_interim and is_stream(answer) and answer.get(UNBUFFERED) is None:
            more += b"X-Accel-Buffering: no\r\n"
        self._head_to_write = client_head(answer, request, self._node, keep_alive=keep_alive, more=more)
        body = self._answer.body
        has_body = body is not None and not body.is_over
        if is_interim or not has_body:
            self._write_head()
        if answer.status == 101:
            self.is_upgraded = True
            behind = self.client.upgraded()
            self._body.received += len(behind)
            self._replay.push(behind)
            self.flush_replay()
        elif not is_interim and not has_body:
            self._finish(keep_alive=keep_alive)

    def _on_body_bytes(self, view: memoryview) -> int:
        reader, upstream = self._answer, self._upstream
        try:
            used, content, made = reader.feed_body(view, self._reactor.now())
        except HttpInvalid as error:
            self._fail(f"the backend's answer is malformed: {error.detail}")
            return len(view)
        if made:
            self._dispatcher.made(self.route, made, self.attempts.peer_id)
        if reader.is_unchunked:
            for part in content:
                self._pass_on(part, None)
            if upstream is not None:
                upstream.acknowledge(used)
        else:
            self._pass_on(view[:used], upstream)
        if reader.body is not None and reader.body.is_over and not self._is_over:
            self._finish(keep_alive=self._keep_alive)
        return used

    def _pass_on(self, data: memoryview, upstream: Joinable | None) -> None:
        self._delivered += len(data)
        head, self._head_to_write = self._head_to_write, b""
        self.client.write(data, upstream, head=head)

    def on_answer_eof(self) -> None:
        if self._is_over:
            return
        if self.is_upgraded:
            self.client.socket.send_eof()
        elif self._answer.body is None:
            self._fail("the backend closed the connection without an answer")
        elif self._answer.body.eof():
            self._finish(keep_alive=False, has_ended=True)
        else:
            self._fail("the backend closed the connection in the middle of its answer")

    def on_answer_abort(self, side: _AnswerSide, reason: str) -> None:
        if side is self._side and not self._is_over:
            self._upstream = None
            self._fail(reason)

    def _fail(self, why: str) -> None:
        """The upstream is of no use: another attempt, or `broken`. A backend that had the request and broke may have broken
        of it: there is no second time at one backend, and no more than MOST_LOSSES at all."""
        attempts = self.attempts
        if attempts.state is State.OPENED and attempts.is_linked:
            self._losses += 1
            if self._losses >= MOST_LOSSES or not self._dispatcher.has_other(self.route, attempts.tried):
                attempts.commit()
        attempts.lost(why)

    def _commit(self) -> None:
        self.attempts.commit()
        self.flush_replay()

    # The end

    def client_gone(self, error: str | None) -> None:
        """The client's connection is closed: whatever is under way for it ends at once."""
        if self._is_over:
            return
        if self.is_upgraded and error is None and not self._replay.pending:
            self._upstream = None  # both directions have ended; a reset would overtake the client's last bytes and EOF
            self._end(None, result="ok")
            return
        self._end(error or "the client went away", result="turned_away" if self._has_no_peer else "error")

    def _refuse(
        self, status: int, why: str, *, retry_after_s: int | None = None, code: str | None = None, param: str | None = None
    ) -> None:
        """An answer of the entry's own. The connection ends with it, unless the whole request was read."""
        if self._is_over:
            return
        if self._began_answer:
            self.client.socket.abort(why)  # it would read the refusal as a part of the answer
            return
        self._status, is_head = status, self._request.method == "HEAD"
        keep_alive = self.is_whole and self._request.keep_alive and status == HTTPStatus.NOT_FOUND
        self.client.write(
            error_answer(
                self._dialect, status, why, code=code, param=param,
                retry_after_s=retry_after_s, keep_alive=keep_alive, is_head=is_head, more=web_pages.readable(self._page),
            )
        )  # fmt: skip
        self._finish(keep_alive=keep_alive, error=why)

    def _finish(self, *, keep_alive: bool, error: str | None = None, has_ended: bool = False) -> None:
        """`has_ended`: the upstream sends no more."""
        if self._is_over:
            return
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            if self.is_whole and not self._replay.pending:
                if has_ended:
                    upstream.send_eof()
                elif self._keeper is not None and self._leaves_a_clean_connection:
                    self._keeper.keep(self._answer.size)
                else:
                    Behind(self._reactor, upstream)
            else:
                upstream.abort("the answer came before the request's end")
        result: Result = "ok" if error is None else "turned_away" if self.attempts.state is State.REJECTED else "error"
        self._end(error, result=result)
        self.client.over(keep_alive=keep_alive)

    @property
    def _leaves_a_clean_connection(self) -> bool:
        """An error or a redirect may have come before its backend has read the body, which it would then take for the next
        request."""
        answer = self._answer.head
        return answer is not None and answer.keep_alive and (answer.status < 300 or not self._body.received)

    def _end(self, error: str | None, *, result: Result) -> None:
        self._is_over = True
        if self._probe is not None:
            self._probe.cancel()
        self._body.drop()
        peer_id, now = self.attempts.peer_id or self._answered_by, self._reactor.now()
        self._reset_upstream(error or "")
        self.attempts.close()
        self._dispatcher.counters.ended(
            Ended(
                self.flow, self.route, self.client_name, peer_id, self.attempts.count, now, now - self.started_at,
                self._body.received, self._delivered, error, self._told(), "" if self._grant is None else self._grant.name,
            ),
            result,
        )  # fmt: skip

    def _told(self) -> Answer:
        meter, queued_s = self._answer.meter, self.attempts.waited_s
        if meter is None:
            return Answer(self._status, queued_s)
        first_s = None if meter.first_at is None else meter.first_at - self.started_at
        return Answer(self._status, queued_s, first_s, meter.is_stream, meter.tokens())

    def _reset_upstream(self, reason: str) -> None:
        upstream, self._upstream = self._upstream, None
        self._side = None
        if upstream is not None:
            upstream.abort(reason)

    @property
    def _has_no_peer(self) -> bool:
        return self.attempts.state in (State.WAITING, State.REJECTED)

    @property
    def _dialect(self) -> Dialect:
        return dialect_of(self._request.target, is_anthropic=self._request.get(b"anthropic-version") is not None)

    @property
    def _node(self) -> str:
        return self._dispatcher.name_of(self.attempts.peer_id)


class Doubted:
    """A 404 that the client has not had. `body`: what came of it."""

    __slots__ = ("answer", "body")

    def __init__(self, answer: ResponseHead) -> None:
        self.answer = answer
        self.body = bytearray()


class Behind(NullDuplex):
    """What an upstream is joined to behind its answer, until its backend has closed: then both directions have ended."""

    __slots__ = ("_timer", "_upstream")

    def __init__(self, reactor: Reactor, upstream: Joinable) -> None:
        self._upstream = upstream
        self._timer = reactor.call_later(BEHIND_S, lambda: upstream.abort("the backend does not close its connection"))
        upstream.other = self
        upstream.send_eof()

    def writable(self) -> int:
        return 1  # to hear of the end

    def send(self, data: bytes | memoryview) -> None:
        """Bytes behind an answer are nobody's."""
        self._timer.cancel()
        self._upstream.abort("bytes behind the answer")

    def send_eof(self) -> None:
        self._timer.cancel()

    def abort(self, reason: str) -> None:
        self._timer.cancel()


def _address_of(client_name: str) -> str:
    """192.0.2.7:49152 -> 192.0.2.7"""
    return client_name.rpartition(":")[0].strip("[]") or client_name  # "unix" has no port
