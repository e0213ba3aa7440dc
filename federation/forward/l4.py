"""One TCP client: its bytes are kept and passed on until client and upstream are spliced, or until it is turned away.

The client is the other end of its socket, and serves as the request of its attempts (attempts.py). An upstream is a
tunnel, or the socket to our own backend. It takes the kept bytes at its own pace; until it has all, the client stays between
its socket and the upstream, even when it is settled that nothing will be replayed any more. Then the two are joined.

Whatever the state, no byte of the client goes on before its first ones were judged (web_pages.py); a server's first bytes go
to the client meanwhile. A browser's connection is never spliced: the client looks at the head of each request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import structlog

from federation.config import Replay
from federation.forward.attempts import FINAL, Attempts, State
from federation.forward.counters import Ending, Flow
from federation.forward.http.conversation import NO_KEYS
from federation.forward.reject import REJECT_LINGER_S, Rejection
from federation.forward.replay_buffer import ReplayBuffer
from federation.forward.web_pages import MAX_HEAD, METHOD_WAIT_S, Heard, Refusal, Request
from federation.reactor.duplex import join
from federation.reactor.sockets import SocketDuplex
from federation.reactor.tls import TlsDuplex

if TYPE_CHECKING:
    import socket

    from federation.forward.attempts import Dispatcher
    from federation.forward.route import Route
    from federation.forward.web_pages import Rules
    from federation.metrics import Result
    from federation.reactor.duplex import Duplex, Joinable
    from federation.reactor.loop import Reactor, Timer

log = structlog.get_logger(__name__)

_TAKEN_OVER = (SocketDuplex, TlsDuplex)


class ClientEvents(Protocol):
    """A client's events, for the frontend."""

    def rejected(self, client: L4Client) -> None:
        """The client stays only to read the reason."""

    def closed(self, client: L4Client) -> None: ...


class _UpstreamSide:
    """The end that an upstream is joined to until it is spliced with the client's socket."""

    __slots__ = ("_client", "_is_broken")

    def __init__(self, client: L4Client) -> None:
        self._client = client
        self._is_broken = False

    def writable(self) -> int:
        return self._client.socket.writable()

    def send(self, data: bytes | memoryview) -> None:
        self._client.on_upstream_data(data)

    def send_eof(self) -> None:
        self._client.on_upstream_eof()

    def abort(self, reason: str) -> None:
        if not self._is_broken:  # a second time would cost the next attempt
            self._is_broken = True
            self._client.attempts.lost(reason)

    def acknowledge(self, n: int) -> None:
        """Do nothing: writable() paces the socket's reads."""

    def resume_writing(self) -> None:
        self._client.flush_replay()


class L4Client:
    """One client, and the one request that its connection is."""

    keys = NO_KEYS
    takes_kept: bool | None = None

    __slots__ = (
        "_dispatcher",
        "_eof",
        "_events",
        "_is_judged",
        "_left",
        "_method_timer",
        "_reactor",
        "_rejection",
        "_replay",
        "_rules",
        "_upstream",
        "_upstream_eof",
        "attempts",
        "client_name",
        "flow",
        "route",
        "socket",
        "started_at",
    )  # fmt: skip

    def __init__(
        self,
        reactor: Reactor,
        dispatcher: Dispatcher,
        events: ClientEvents,
        sock: socket.SocketType | SocketDuplex | TlsDuplex,
        *,
        route: Route,
        client_name: str,
        number: int,
        rules: Rules,
    ) -> None:
        """`number`: of this connection at this entry, for people. A Duplex is taken over from its owner."""
        self._reactor = reactor
        self._dispatcher = dispatcher
        self._events = events
        self._rules = rules
        self.flow = Flow(number)
        self.route = route
        self.client_name = client_name
        self.socket: SocketDuplex | TlsDuplex
        if isinstance(sock, _TAKEN_OVER):
            self.socket = sock
            sock.hand_over(self._closed)
        else:
            self.socket = SocketDuplex(reactor, sock, self._closed)
        self.socket.other = self
        self.started_at = reactor.now()
        self.attempts = Attempts(self, dispatcher)
        self._replay = ReplayBuffer()
        self._eof = False  # the client has finished
        self._upstream: Joinable | None = None  # of this attempt, until it is spliced
        self._upstream_eof = False  # the upstream has finished, and the client is to hear of that
        self._is_judged = not rules.is_on  # the client's bytes may go on
        self._left: int | None = None  # of a browser's request, to come; None: the client is not watched
        self._method_timer: Timer | None = None  # for the rest of a method
        self._rejection: Rejection | None = None

    # For the frontend

    @property
    def peer_id(self) -> str:
        return self.attempts.peer_id

    @property
    def attempts_made(self) -> int:
        return self.attempts.count

    @property
    def state(self) -> State:
        return self.attempts.state

    @property
    def replay(self) -> Replay:
        return self._dispatcher.replay.of(names_model=False)

    @property
    def is_kept_on(self) -> bool:
        return self._left is None  # a browser's next request is to be judged

    @property
    def is_unheard(self) -> bool:
        return self._upstream is not None and self._upstream.is_unheard

    @property
    def moved(self) -> tuple[int, int]:
        """Bytes from and to the client so far; they are in the totals when it has ended."""
        return self.socket.received, self.socket.delivered

    def begin(self) -> None:
        self.attempts.start()

    def reject(self, why: str) -> None:
        self.attempts.reject(why)

    def peer_suspect(self) -> None:
        self.attempts.peer_suspect()

    def wind_down(self) -> None:
        """The node leaves: the client may finish."""

    # Request, for the attempts

    def upstream_side(self) -> Duplex:
        return _UpstreamSide(self)

    def connected(self, upstream: Joinable) -> None:
        self._upstream = upstream
        self._replay.rewind()
        self.flush_replay()

    def disconnected(self, reason: str) -> None:
        self._reset_upstream(reason)
        self._replay.interrupt()

    def broken(self, reason: str) -> None:
        self.socket.abort(reason)

    def rejected(self, why: str) -> None:
        self._stop_method_timer()
        self._dispatcher.counters.totals.failed += 1
        self._events.rejected(self)
        log.warning("client turned away", service=self.route.service, why=why, attempts=self.attempts.count)
        client, replay = self.socket, self._replay
        client.error = why
        self._rejection = client.other = Rejection(self._reactor, client, self._rules, why)
        has_just_come = not replay and not self._eof and self._reactor.now() - self.started_at < REJECT_LINGER_S
        self._rejection.begin(replay.whole(), wait=has_just_come)
        client.resume_writing()

    # The answer, until client and upstream are spliced

    def flush_replay(self) -> None:
        """Give the upstream the pending bytes of the replay buffer, as far as it has room; then go on reading the client."""
        if not self._is_judged:
            self._pass_answer()
            return
        replay, is_final = self._replay, self.attempts.state in FINAL
        if is_final:
            replay.commit()
        while replay.pending and self._upstream is not None:
            room = self._upstream.writable()
            if room <= 0:
                return  # the upstream calls again
            self._upstream.send(replay.take(room))  # an own backend may break here: then this is another attempt, or none
        if self._upstream is None:
            return
        if self._eof:
            self._upstream.send_eof()
        if is_final:
            self._splice()
            if self._upstream_eof:
                self.socket.send_eof()
        self.socket.resume_writing()

    def _pass_answer(self) -> None:
        """Pass a server's EOF on and keep reading the client, whose bytes are not judged yet: none go to the upstream."""
        if self.attempts.state is State.COMMITTED:
            self.attempts.to(State.STREAMING)
        if self._upstream_eof:
            self.socket.send_eof()
        self.socket.resume_writing()

    def on_upstream_data(self, data: bytes | memoryview) -> None:
        if self.attempts.state is not State.STREAMING:
            self._commit()
        self.socket.send(data)

    def on_upstream_eof(self) -> None:
        if not self._eof and self.attempts.ended_without_answer():
            return
        self._upstream_eof = True
        self._commit()

    def _commit(self) -> None:
        """Commit: nothing will be replayed any more. As soon as all is passed on, this object steps aside."""
        self.attempts.commit()
        self.flush_replay()

    def _splice(self) -> None:
        """Socket and upstream talk to each other from here on; with a browser, through this object."""
        if self._upstream is None:
            return
        if self.attempts.state is State.COMMITTED:
            self.attempts.to(State.STREAMING)
        if self._left is None:
            upstream, self._upstream = self._upstream, None
            join(self.socket, upstream)

    # Duplex, for the client's socket until it is spliced

    def writable(self) -> int:
        replay, upstream, attempts = self._replay, self._upstream, self.attempts
        if not self._is_judged and replay.size:  # a head may be longer than the replay buffer
            return max(self._dispatcher.replay_buffer_bytes, MAX_HEAD) - replay.size
        if replay.pending:
            return 0  # `flush_replay` resumes
        if attempts.state in FINAL and upstream is not None:
            return upstream.writable()
        room = self._dispatcher.replay_buffer_bytes - replay.size
        if room <= 0 and attempts.state is State.OPENED:
            if upstream is None or upstream.writable() <= 0:
                return 0  # the peer has not said that it got any of this: it calls again
            self._commit()
            return self.socket.other.writable()
        return room if upstream is None else min(room, upstream.writable())

    def send(self, data: bytes | memoryview) -> None:
        chunk = bytes(data)
        if self._is_judged:
            if self._left is not None:
                chunk = self._follow(chunk)
                if not chunk:
                    return
        elif not self._replay.size and self.attempts.state not in FINAL:
            self._is_judged = self._rules.judge(chunk) is Heard.GO_ON  # mostly: then nothing needs to go back and forth
        self._replay.add(chunk)
        if not self._is_judged:
            self._judge()
        elif self._upstream is not None:
            self._upstream.send(chunk)

    def send_eof(self) -> None:
        self._eof = True
        if not self._is_judged:
            self._judge()
        elif self._upstream is not None:
            self._upstream.send_eof()

    def abort(self, reason: str) -> None:
        """The client broke off: `_closed` has been called and cleans up."""

    def acknowledge(self, n: int) -> None:
        if self._upstream is not None:
            self._upstream.acknowledge(n)

    def resume_writing(self) -> None:
        if self._upstream is not None:
            self._upstream.resume_writing()

    # Web pages

    def _judge(self) -> None:
        """Decide whether the client's bytes may go on."""
        data = self._replay.whole()
        verdict = self._rules.judge(data, is_all=self._eof)
        if isinstance(verdict, Refusal):
            self._reset_upstream("the client may not ask here")
            self.attempts.reject(verdict.why)
        elif isinstance(verdict, Request):
            self._left = verdict.size - len(data) if len(data) <= verdict.size else None
            if self._left is not None and self.replay is Replay.OPENED:
                self.attempts.commit()  # see `is_kept_on`
            self._let_go_on()
        elif verdict is Heard.GO_ON:
            self._left = None
            self._let_go_on()
        elif verdict is Heard.MORE:
            self._stop_method_timer()
        elif self._method_timer is None:
            self._method_timer = self._reactor.call_later(METHOD_WAIT_S, self._let_go_on)

    def _let_go_on(self) -> None:
        self._is_judged = True
        self._stop_method_timer()
        if self._upstream is not None:
            self._replay.rewind()
        self.flush_replay()

    def _follow(self, chunk: bytes) -> bytes:
        """Pass on a browser's request. Returns the bytes still to handle, which may begin the next one."""
        assert self._left is not None
        left, self._left = self._left, max(0, self._left - len(chunk))
        if self.attempts.state not in FINAL:  # it is still kept for a retry
            if len(chunk) > left:
                self._left = None  # sent ahead of the answer, as no browser does
            return chunk
        if left and self._upstream is not None:
            self._upstream.send(chunk[:left])
        if len(chunk) > left:
            self._is_judged = False
            self._replay.clear()
        return chunk[left:]

    # The end

    def end(self, reason: str) -> None:
        """End the client by this node's decision: both sides hear a reset, and neither is to blame."""
        upstream, attempts = self.socket.other, self.attempts
        if attempts.state not in (State.REJECTED, State.CLOSED):
            attempts.to(State.CLOSED)
        self.socket.abort(reason)
        upstream.abort(reason)

    def _closed(self, client: SocketDuplex | TlsDuplex) -> None:
        attempts = self.attempts
        state, peer_id = attempts.state, attempts.peer_id
        if self._method_timer is not None:
            self._stop_method_timer()
        if self._rejection is not None:
            self._rejection.cancel()
        if client.error is None and not self._replay.pending:
            self._upstream = None  # both directions have ended; a reset would overtake the client's last bytes and EOF
        else:
            self._reset_upstream("the client has gone")
        attempts.close()
        result: Result = "turned_away" if state is State.REJECTED else "error" if client.error else "ok"
        if client.was_aborted and state is State.STREAMING:
            self._dispatcher.broke_off(self.route, peer_id)
        self._events.closed(self)
        now = self._reactor.now()
        self._dispatcher.counters.ended(
            Ending(
                self.flow, self.route, self.client_name, peer_id, attempts.count, now, now - self.started_at,
                client.received, client.delivered, client.error,
            ),
            result,
        )  # fmt: skip

    def _reset_upstream(self, reason: str) -> None:
        if self._upstream is not None:
            self._upstream.abort(reason)
            self._upstream = None

    def _stop_method_timer(self) -> None:
        if self._method_timer is not None:
            self._method_timer.cancel()
            self._method_timer = None
