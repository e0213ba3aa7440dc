"""One request of a client, and its answer. It is what its attempts serve (attempts.py), and knows no socket of the client.

The request's head as the backend is to have it, and its body as it came, are kept until nothing is replayed any more; the
answer's head is rewritten, and its body passed on as it comes, until its framing ends. Then the upstream has ended too: each
request has a tunnel of its own.

    READING ---- what is asked for is known ----> attempts: WAITING ... COMMITTED, STREAMING ----> over
       |                                             |  no peer: 503, in the dialect of the path
       +-- it cannot be understood: 400              |  the upstream broke before the answer: another peer, or 502
                                                     +  in the middle of it: said in the stream's own way, or a reset

A body is kept whole until its model is known for sure, at most `http_buffer` bytes. A longer one goes with the model that it
has named so far, and breaks off if another one comes behind; a model behind more than that is not found.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

import structlog

from federation.errors import HttpInvalid
from federation.forward.attempts import FINAL, Attempts, State
from federation.forward.counters import Ending as Ended
from federation.forward.http import lists
from federation.forward.http.asks import Peek
from federation.forward.http.conversation import NO_KEYS
from federation.forward.http.dialects import TAIL, Dialect, dialect_of, error_answer, stream_error
from federation.forward.http.framing import Kind, body_of
from federation.forward.http.head import HeadBuffer, parse_response
from federation.forward.http.lists import is_list
from federation.forward.http.rewrite import backend_head, client_head, is_for_client, is_unchunked, may_keep_alive
from federation.forward.replay_buffer import ReplayBuffer
from federation.forward.route import Route
from federation.reactor.duplex import NullDuplex
from federation.units import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.forward.attempts import Dispatcher
    from federation.forward.counters import Flow
    from federation.forward.http.framing import Body
    from federation.forward.http.head import RequestHead, ResponseHead
    from federation.mesh.models import Catalog
    from federation.metrics import Result
    from federation.reactor.duplex import Duplex, Joinable
    from federation.reactor.loop import Reactor
    from federation.reactor.sockets import SocketDuplex

log = structlog.get_logger(__name__)

HTTP_BUFFER = 64 * 1024 * 1024
BEHIND_S = 2.0  # for a backend to close its connection behind its answer
RETRY_AFTER_S = 5
# To a client that has said FIN before its answer. One that has gone says RST to it, and its generation ends now; one that
# only sends no more skips it, as any interim answer.
STILL_THERE = b"HTTP/1.1 102 Processing\r\n\r\n"


class Client(Protocol):
    """The connection that a request came on; see client.py."""

    flow: Flow
    route: Route
    client_name: str
    socket: SocketDuplex
    has_ended: bool  # it sends no more

    def write(self, data: bytes | memoryview, upstream: Joinable | None = None) -> None:
        """Bytes for the client: of that upstream, or the entry's own."""

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
    """attempts.Request of one HTTP request. `is_whole`: all of the request has come."""

    __slots__ = (
        "_answer", "_answer_body", "_answer_head", "_answered_by", "_began_answer", "_body", "_delivered", "_dispatcher",
        "_is_over", "_keep_alive", "_late", "_peek", "_reactor", "_received", "_replay", "_request", "_side", "_tail",
        "_upstream", "attempts", "client", "client_name", "flow", "is_upgraded", "is_whole", "keys", "route", "started_at",
    )  # fmt: skip

    def __init__(self, reactor: Reactor, dispatcher: Dispatcher, client: Client, head: RequestHead) -> None:
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
        self._body: Body = body_of(head.framing)
        self.is_whole = self._body.is_over
        self.is_upgraded = False
        self._peek: Peek | None = Peek(
            head.method, head.target,
            content_type=head.get(b"content-type") or b"", content_encoding=head.get(b"content-encoding") or b"",
            session=head.get(b"x-session-id") or b"",
        )  # fmt: skip
        self._late: Peek | None = None  # of a body too long to be kept: it is under way with the model that it named so far
        self._replay = ReplayBuffer()  # of the body; with the head before it from the pick on
        self._upstream: Joinable | None = None
        self._side: _AnswerSide | None = None
        self._answer_head = HeadBuffer()
        self._answer: ResponseHead | None = None
        self._answer_body: Body | None = None
        self._began_answer = False  # the client has a part of its head
        self._keep_alive = False  # that head said so
        self._tail = b""  # of a stream
        self._received = self._delivered = 0
        self._is_over = False
        self._answered_by = ""  # this node, where it asks no other
        dispatcher.counters.started(self.route)

    @property
    def moved(self) -> tuple[int, int]:
        """Bytes of the request's and of the answer's body so far."""
        return self._received, self._delivered

    # From the client

    @property
    def takes_more(self) -> bool:
        """Whether the client's bytes are this request's still."""
        return not self.is_whole or self.is_upgraded

    def writable(self) -> int:
        """How much of the body may come now."""
        replay, upstream = self._replay, self._upstream
        if self._peek is not None:
            return HTTP_BUFFER - replay.size
        if replay.pending:
            return 0  # `flush_replay` reads on
        if self.is_upgraded or (self.attempts.state in FINAL and upstream is not None):
            return 0 if upstream is None else upstream.writable()
        room = self._dispatcher.replay_buffer_bytes - replay.size
        if room <= 0 and self.attempts.state is State.OPENED:
            self._commit()
            return 0 if self._upstream is None else self._upstream.writable()
        return room if upstream is None else min(room, upstream.writable())

    def feed(self, data: bytes) -> int:
        """Bytes of the client; how many of them are this request's."""
        if self.is_upgraded:
            self._received += len(data)
            if self._upstream is not None:
                self._upstream.send(data)
            return len(data)
        content: list[memoryview] | None = [] if self._peek is not None else None
        try:
            used = self._body.feed(data, content)
        except HttpInvalid as error:
            self._refuse(400, error.detail)
            return len(data)
        self._received += used
        self.is_whole = self._body.is_over
        chunk = data[:used]
        if self._peek is not None:
            if chunk:
                self._replay.add(chunk)
            self._look(b"".join(content or ()) if self._request.framing.kind is Kind.CHUNKED else chunk)
        elif chunk:
            if self._late is not None and not self._is_as_asked(chunk):
                return len(data)
            if self.attempts.state not in FINAL:
                self._replay.add(chunk)
            if self._upstream is not None and not self._replay.pending:
                self._upstream.send(chunk)
        return used

    def _look(self, chunk: bytes) -> None:
        """Find out what is asked for, and go."""
        assert self._peek is not None
        asked = self._peek.feed(chunk)
        if self.is_whole:
            asked = self._peek.finish()
        if asked is None:
            if self._replay.size < HTTP_BUFFER:
                return
            asked, self._late = self._peek.so_far, self._peek
            if not asked.model and not asked.trouble:
                self._refuse(413, f"the model is not among the first {HTTP_BUFFER} bytes of the body")
                return
        self._peek = None
        if asked.trouble:
            self._refuse(400, asked.trouble)
            return
        request, dispatcher = self._request._replace(target=asked.target), self._dispatcher
        if is_list(request.method, request.target) and (catalogs := dispatcher.catalogs(self.route.service)):
            self._tell_models(request, catalogs)
            return
        self.route, self.keys = Route(self.route.service, asked.model), asked.keys
        if asked.model and dispatcher.is_unheard_of(self.route):
            self._refuse(404, f"no node has the model {visible(asked.model)}", code="model_not_found", param="model")
            return
        head, body = backend_head(request, _address_of(self.client_name), keep_alive=False), self._replay.whole()
        self._replay.clear()
        self._replay.add(head)
        self._replay.add(body)
        self.attempts.start()

    def _is_as_asked(self, chunk: bytes) -> bool:
        """The rest of a long body; else the request is at its end."""
        assert self._late is not None
        asked = self._late.feed(chunk)
        if self.is_whole:
            asked = self._late.finish()
        if asked is None or (not asked.trouble and asked.model == self.route.model):
            return True
        why = asked.trouble or "the body names another model behind its first one"
        self._reset_upstream(why)
        if self._began_answer:
            self.client.socket.abort(why)
        else:
            self._refuse(400, why)
        return False

    def _tell_models(self, request: RequestHead, catalogs: Sequence[Catalog]) -> None:
        """A list of models: no node is asked."""
        is_anthropic = request.get(b"anthropic-version") is not None
        said = lists.answer(request.target, catalogs, is_anthropic=is_anthropic)
        if said is None:
            self._refuse(404, "no node has that model", code="model_not_found", param="model")
            return
        body, keep_alive = lists.encoded(said), request.keep_alive and self.is_whole
        connection = b"keep-alive" if keep_alive else b"close"
        self.client.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: %b\r\n\r\n%b"
            % (len(body), connection, b"" if request.method == "HEAD" else body)
        )
        self._answered_by = self._dispatcher.own_id
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
        if self.is_whole and not self._began_answer and not self.is_upgraded and self._request.version == "1.1":
            self.client.write(STILL_THERE)
        return self.is_whole

    # Request, for the attempts

    def upstream_side(self) -> Duplex:
        self._side = _AnswerSide(self)
        return self._side

    def connected(self, upstream: Joinable) -> None:
        self._upstream = upstream
        self._replay.rewind()
        self.flush_replay()

    def flush_replay(self) -> None:
        replay, is_final = self._replay, self.attempts.state in FINAL
        if is_final:
            replay.commit()
        while replay.pending and self._upstream is not None:
            room = self._upstream.writable()
            if room <= 0:
                return  # it calls again
            self._upstream.send(replay.take(room))
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
        self._answer_head = HeadBuffer()

    def rejected(self, why: str) -> None:
        self._dispatcher.counters.totals.failed += 1
        self.client.is_rejected()
        log.warning("request turned away", service=self.route.service, model=self.route.model, why=why)
        self._refuse(503, why, retry_after_s=RETRY_AFTER_S)

    def broken(self, reason: str) -> None:
        """Tell the client, as far as its answer still can."""
        self._reset_upstream(reason)
        self._dispatcher.broke_off(self.route, self.attempts.peer_id)
        answer, body = self._answer, self._answer_body
        if not self._began_answer:
            self._refuse(502, f"the node that took the request lost its backend: {reason}")
            return
        ending = None
        if answer is not None and body is not None:
            content = stream_error(self._dialect, answer, self._tail)
            if content is not None:
                ending = content if is_unchunked(answer, self._request) else body.ending(content)
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
            view = view[self._on_head_bytes(view) if self._answer_body is None else self._on_body_bytes(view) :]

    def _on_head_bytes(self, view: memoryview) -> int:
        try:
            used, raw = self._answer_head.feed(view)
            if self._upstream is not None:
                self._upstream.acknowledge(used)
            if raw is not None:
                self._answer_head = HeadBuffer()
                self._on_head(parse_response(raw, self._request))
        except HttpInvalid as error:
            self._fail(f"the backend's answer is no HTTP: {error.detail}")
            return len(view)
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
            self._answer = answer
            self._answer_body = body_of(answer.framing)
        self.client.write(client_head(answer, request, self._node, keep_alive=keep_alive))
        if answer.status == 101:
            self.is_upgraded = True
            replay = self._replay
            behind = self.client.upgraded()
            self._received += len(behind)
            kept = bytes(replay.pending) + behind
            replay.clear()
            replay.add(kept)
            replay.rewind()
            self.flush_replay()
        elif not is_interim and self._answer_body is not None and self._answer_body.is_over:
            self._finish(keep_alive=keep_alive)

    def _on_body_bytes(self, view: memoryview) -> int:
        body, answer, upstream = self._answer_body, self._answer, self._upstream
        assert body is not None
        assert answer is not None
        content: list[memoryview] | None = [] if self._is_stream or is_unchunked(answer, self._request) else None
        try:
            used = body.feed(view, content)
        except HttpInvalid as error:
            self._fail(f"the backend's answer is malformed: {error.detail}")
            return len(view)
        if content is not None and self._is_stream:
            self._tail = (self._tail + b"".join(content[-8:]))[-TAIL:]
        if is_unchunked(answer, self._request):
            for part in content or ():
                self._pass_on(part, None)
            if upstream is not None:
                upstream.acknowledge(used)
        else:
            self._pass_on(view[:used], upstream)
        if body.is_over and not self._is_over:
            self._finish(keep_alive=self._keep_alive)
        return used

    def _pass_on(self, data: memoryview, upstream: Joinable | None) -> None:
        self._delivered += len(data)
        self.client.write(data, upstream)

    def on_answer_eof(self) -> None:
        if self._is_over:
            return
        if self.is_upgraded:
            self.client.socket.send_eof()
        elif self._answer_body is None:
            self._fail("the backend closed the connection without an answer")
        elif self._answer_body.eof():
            self._finish(keep_alive=False, has_ended=True)
        else:
            self._fail("the backend closed the connection in the middle of its answer")

    def on_answer_abort(self, side: _AnswerSide, reason: str) -> None:
        if side is self._side and not self._is_over:
            self._upstream = None
            self.attempts.lost(reason)

    def _fail(self, why: str) -> None:
        """The upstream is of no use: another attempt, or `broken`."""
        self.attempts.lost(why)

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
        is_head = self._request.method == "HEAD"
        keep_alive = self.is_whole and self._request.keep_alive and status == HTTPStatus.NOT_FOUND
        self.client.write(
            error_answer(
                self._dialect, status, why, code=code, param=param,
                retry_after_s=retry_after_s, keep_alive=keep_alive, is_head=is_head,
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
                else:
                    Behind(self._reactor, upstream)
            else:
                upstream.abort("the answer came before the request's end")
        result: Result = "ok" if error is None else "turned_away" if self.attempts.state is State.REJECTED else "error"
        self._end(error, result=result)
        self.client.over(keep_alive=keep_alive)

    def _end(self, error: str | None, *, result: Result) -> None:
        self._is_over = True
        peer_id, now = self.attempts.peer_id or self._answered_by, self._reactor.now()
        self._reset_upstream(error or "")
        self.attempts.close()
        self._dispatcher.counters.ended(
            Ended(
                self.flow, self.route, self.client_name, peer_id, self.attempts.count, now, now - self.started_at,
                self._received, self._delivered, error,
            ),
            result,
        )  # fmt: skip

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
    def _is_stream(self) -> bool:
        kind = (self._answer.get(b"content-type") or b"") if self._answer is not None else b""
        return kind.startswith((b"text/event-stream", b"application/x-ndjson", b"application/ndjson", b"application/jsonl"))

    @property
    def _node(self) -> str:
        return self._dispatcher.name_of(self.attempts.peer_id)


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
