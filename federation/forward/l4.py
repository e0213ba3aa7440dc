"""One client's connection at the entry: pick a peer, open a tunnel, and go to the next peer if that one fails.

A small state machine on the reactor, without a task of its own:

    waiting --pick--> opening --OPENED--> opened --first byte--> joined --> closed
       ^                 |  refused, reset, timeout, |
       |                 |  the peer is suspect      |
       +-----------------+---------------------------+   while what the client sent can still be replayed

With `--replay opened` (default) "opened" and "joined" are one: the backend has seen nothing before OPENED, so nothing
is done twice. With `first-byte` the client's bytes are kept until the backend's first byte, unless they outgrow
`replay_buffer_bytes`: then, once opened, the connection is joined and can no longer move. With `never` a connection
is tried once. The pick, and the counter it raises, come before anything else happens.

Whatever the stage, no byte of the client goes on before its first ones were judged (browsers.py); what a server says first
goes to the client meanwhile. A browser's connection is never joined: the entry looks at the head of each request.

The far end of an attempt is a tunnel, or the socket to our own backend. It takes what was kept at its own pace; until it
has all, the entry stays between it and the client, even when it is settled that nothing will be replayed any more.

Longer than our other modules: the states of one connection are read together or not at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
import trio

from federation.config import Replay
from federation.errors import PeerUnavailable
from federation.forward.backends import Dialled
from federation.forward.browsers import MAX_HEAD, PATIENCE_S, Heard, Refusal, Request
from federation.reactor.duplex import join
from federation.reactor.sockets import SocketDuplex

if TYPE_CHECKING:
    import socket

    from federation.forward.backends import Serving
    from federation.forward.browsers import Rules
    from federation.forward.frontend import Forwarder
    from federation.metrics import RetryReason
    from federation.net.link.link import Link
    from federation.reactor.duplex import Joinable
    from federation.reactor.loop import Timer

log = structlog.get_logger(__name__)

# How long a peer that failed is left alone. It said no: long enough for its backend's next check, and for the news to
# come by gossip. It said nothing: until the PING that goes with it has made it suspect (2.25 s at most) or has been
# answered.
REFUSED_PENALTY_S = 1.0
SILENT_PENALTY_S = 2.5
LINGER_S = 2.0  # for a client to read why it was turned away


class _Reply:
    """The far end's peer until the connection is joined."""

    __slots__ = ("_entry",)

    def __init__(self, entry: Entry) -> None:
        self._entry = entry

    def send(self, data: bytes | memoryview) -> None:
        self._entry.answer(data)

    def send_eof(self) -> None:
        self._entry.ended()

    def abort(self, reason: str) -> None:
        self._entry.failed(reason, "lost")

    def resume(self) -> None:
        self._entry.pass_on()

    def taken(self, n: int) -> None:
        """The socket paces what it reads by room()."""

    def room(self) -> int:
        return self._entry.client.room()


class Entry:
    """One client. It is its socket's peer until the connection is joined, and the opener of its tunnels."""

    __slots__ = (
        "_eof",
        "_far",
        "_forwarder",
        "_has_ended",
        "_held_s",
        "_held_since",
        "_is_final",
        "_is_judged",
        "_kept",
        "_kept_size",
        "_left",
        "_link",
        "_opened",
        "_patience",
        "_rest",
        "_rules",
        "_serving",
        "_timer",
        "attempts",
        "client",
        "client_name",
        "dismissed",
        "joined",
        "number",
        "peer_id",
        "service",
        "started_at",
        "tried",
    )  # fmt: skip

    def __init__(
        self, forwarder: Forwarder, sock: socket.SocketType, service: str, client_name: str, number: int, rules: Rules
    ) -> None:
        self._forwarder = forwarder
        self._rules = rules
        self._is_judged = not rules.is_on  # what the client sent may go on
        self._left: int | None = None  # of a browser's request, to come; None: whoever it is, it is not watched
        self._patience: Timer | None = None  # with what may be a part of a method
        self.number = number  # of this client at this entry, for people
        self.service = service
        self.client_name = client_name
        self.client = SocketDuplex(forwarder.reactor, sock, self._closed)
        self.client.other = self
        self.started_at = forwarder.reactor.now()
        self.attempts = 0
        self.peer_id = ""  # whose counter we hold
        self.joined = False
        self.dismissed = False  # this node ends it
        self._kept: list[bytes] = []
        self._kept_size = 0
        self._rest = memoryview(b"")  # of what was kept: what this attempt has not had yet
        self._eof = False
        self._opened = False
        self._is_final = False  # nothing will be replayed any more
        self._held_s = self._held_since = 0.0
        self._has_ended = False  # the far end: the client is to hear of it
        self.tried: set[str] = set()
        self._far: Joinable | None = None  # of this attempt, until it is joined
        self._serving: Serving | None = None
        self._link: Link | None = None  # of this attempt; None: our own backend
        self._timer: Timer | None = None

    # Picking

    def attempt(self) -> None:
        """Go to the best peer that was not tried; without one, wait for the roster to change."""
        forwarder = self._forwarder
        while not self.client.closed:
            peer_id = forwarder.pick(self, self.tried)
            if peer_id is None:
                self._wait()
                return
            self.peer_id = peer_id
            self.tried.add(peer_id)
            self.attempts += 1
            try:
                self._open()
            except (PeerUnavailable, Dialled) as error:
                log.debug("peer cannot take the connection", peer=peer_id, why=error.detail)
                forwarder.attempt_failed(self, error.detail)
                self._let_go()
                if forwarder.replay is Replay.NEVER:
                    self.turn_away("the peer could not take the connection")
                    return
                forwarder.retried("unreachable" if isinstance(error, PeerUnavailable) else "refused")
                continue
            return

    def _open(self) -> None:
        """Raises PeerUnavailable or Dialled."""
        forwarder = self._forwarder
        if self.peer_id == forwarder.roster.own_id:
            self._link = None
            self._serving = forwarder.backends.serve(self.service, self._dialled)
            return
        link = self._link = forwarder.roster.link(self.peer_id)
        if link is None:
            raise PeerUnavailable("no connection to it")
        self._far = link.open_tunnel(self.service, self, _Reply(self))
        self._timer = forwarder.reactor.call_later(forwarder.open_timeout_s, self._on_timeout)
        self._rest = memoryview(b"".join(self._kept))
        self.pass_on()

    def pass_on(self) -> None:
        """Give the far end what it has not had of what was kept, as far as it has room; then the client is read on."""
        if not self._is_judged:
            self.joined = self._is_final  # as good as: only the client's bytes are looked at
            if self._has_ended:
                self.client.send_eof()
            self.client.resume()
            return
        while self._rest and self._far is not None:
            room = self._far.room()
            if room <= 0:
                return  # it calls again
            chunk, self._rest = self._rest[:room], self._rest[room:]
            self._far.send(chunk)  # an own backend may break here: then this is another attempt, or none
        if self._far is None:
            return
        if self._eof:
            self._far.send_eof()
        if self._is_final:
            self._join()
            if self._has_ended:
                self.client.send_eof()
        self.client.resume()

    def _wait(self) -> None:
        forwarder = self._forwarder
        left = forwarder.hold_s - self._held_s  # attempts do not count: a long one may be the first that fails
        if left <= 0:
            self.turn_away("no peer is available")
            return
        self._held_since = trio.current_time()
        forwarder.held.add(self)
        self._timer = forwarder.reactor.call_later(left, self._on_hold_over)

    def try_again(self) -> None:
        """The roster changed while we waited."""
        self._held_s += trio.current_time() - self._held_since
        self._stop_timer()
        self.tried.clear()
        self.attempt()

    def _on_hold_over(self) -> None:
        self._forwarder.held.discard(self)
        self.turn_away("no peer is available")

    # How an attempt goes

    def opened(self) -> None:
        self._stop_timer()
        self._forwarder.opened_after(self._forwarder.reactor.now() - self.started_at)
        self._accepted()

    def refused(self, reason: str) -> None:
        self.failed(reason)

    def _dialled(self, end: SocketDuplex | None, reason: str) -> None:
        """Our own backend, without a detour through the network."""
        self._serving = None
        if end is None:
            self.failed(reason)
            return
        self._far = end
        end.other = _Reply(self)
        self._rest = memoryview(b"".join(self._kept))
        self._accepted()
        end.start()

    def _accepted(self) -> None:
        """The backend has accepted."""
        forwarder = self._forwarder
        self._opened = True
        if forwarder.replay is Replay.FIRST_BYTE:
            self.pass_on()
        else:
            self._settle()

    def peer_suspect(self) -> None:
        """Its link was read: no PONG. Who waits for OPENED waits on where nobody else is, as it may only have paused."""
        forwarder = self._forwarder
        link = self._link
        if link is None or link is not forwarder.roster.link(self.peer_id) or self._far is None or self._is_final:
            return
        if self._opened or (forwarder.replay is not Replay.NEVER and forwarder.has_other(self)):
            self.failed("the peer does not answer", "timeout")

    def _on_timeout(self) -> None:
        forwarder = self._forwarder
        link = self._link
        if link is not None:
            attempt = self._timer
            link.read()  # OPENED may lie there: then the backend has what we would send to another one
            if self._timer is not attempt:
                return
            link.ping()
        self.failed(f"no answer within {forwarder.open_timeout_s:g} s", "timeout")

    def failed(self, reason: str, kind: RetryReason = "refused") -> None:
        """This attempt is over; unless it got too far, there is another one."""
        if self._is_final:
            self.client.abort(reason)
            return
        forwarder = self._forwarder
        self._stop_timer()
        if self._far is not None:
            self._far.abort(reason)  # RST behind OPEN: an exit that wakes up late never dials
            self._far = None
        self._rest = memoryview(b"")
        if forwarder.roster.link(self.peer_id) is self._link:  # else it is here anew, and that it was lost is no fault of it
            forwarder.roster.penalize(self.peer_id, SILENT_PENALTY_S if kind == "timeout" else REFUSED_PENALTY_S)
        log.debug("attempt failed", peer=self.peer_id, service=self.service, why=reason, attempt=self.attempts)
        forwarder.attempt_failed(self, reason)
        self._let_go()
        self._opened = False
        if forwarder.replay is Replay.NEVER:
            self.turn_away(reason)
            return
        forwarder.retried(kind)
        self.attempt()

    def answer(self, data: bytes | memoryview) -> None:
        self._settle()
        self.client.send(data)

    def ended(self) -> None:
        """If neither a byte came nor has the client finished, that is how a dying backend looks."""
        forwarder = self._forwarder
        may_move = forwarder.replay is Replay.FIRST_BYTE and not self._is_final and not self._eof
        if may_move and forwarder.has_other(self):
            self.failed("the backend closed the connection without an answer", "lost")
            return
        self._has_ended = True
        self._settle()

    # Joined

    def _settle(self) -> None:
        """Nothing will be replayed any more. As soon as all is passed on, the entry steps aside."""
        self._is_final = True
        if self._is_judged:
            self._kept = []
        self.pass_on()

    def _join(self) -> None:
        """Socket and far end talk to each other from here on; with a browser, through the entry."""
        self.joined = self.joined or self._far is not None
        if self._left is None and self._far is not None:
            far, self._far = self._far, None
            join(self.client, far)

    # Duplex, for the client's socket until the connection is joined

    def room(self) -> int:
        if not self._is_judged and self._kept:  # a head may be longer than what is kept for a retry
            return max(self._forwarder.replay_buffer_bytes, MAX_HEAD) - self._kept_size
        if self._rest:
            return 0  # `pass_on` resumes
        if self._is_final and self._far is not None:
            return self._far.room()
        room = self._forwarder.replay_buffer_bytes - self._kept_size
        if room <= 0 and self._opened:
            self._settle()
            return self.client.other.room()
        return room if self._far is None else min(room, self._far.room())

    def send(self, data: bytes | memoryview) -> None:
        chunk = bytes(data)
        if self._is_judged and self._left is not None:
            chunk = self._follow(chunk)
            if not chunk:
                return
        self._kept.append(chunk)
        self._kept_size += len(chunk)
        if not self._is_judged:
            self._judge()
        elif self._far is not None:
            self._far.send(chunk)

    def _follow(self, chunk: bytes) -> bytes:
        """Through a browser's request; returns what is left to do with, which may be the beginning of the next one."""
        assert self._left is not None
        left, self._left = self._left, max(0, self._left - len(chunk))
        if not self._is_final:  # it is still kept for a retry
            if len(chunk) > left:
                self._left = None  # sent ahead of the answer, as no browser does
            return chunk
        if left and self._far is not None:
            self._far.send(chunk[:left])
        if len(chunk) > left:
            self._is_judged = False
            self._kept, self._kept_size = [], 0
        return chunk[left:]

    def send_eof(self) -> None:
        self._eof = True
        if not self._is_judged:
            self._judge()
        elif self._far is not None:
            self._far.send_eof()

    def _judge(self) -> None:
        """May what the client has sent go on?"""
        data = b"".join(self._kept)
        self._kept = [data]  # one piece, however many it came in
        verdict = self._rules.judge(data, is_all=self._eof)
        if isinstance(verdict, Refusal):
            self._drop_attempt("the client may not ask here")
            self._let_go()
            self._forwarder.held.discard(self)
            self.turn_away(verdict.why)
        elif isinstance(verdict, Request):
            self._left = verdict.size - len(data) if len(data) <= verdict.size else None
            self._judged()
        elif verdict is Heard.GO_ON:
            self._left = None
            self._judged()
        elif verdict is Heard.MORE:
            self._stop_patience()
        elif self._patience is None:
            self._patience = self._forwarder.reactor.call_later(PATIENCE_S, self._judged)

    def _judged(self) -> None:
        self._is_judged = True
        self._stop_patience()
        if self._far is not None:
            self._rest = memoryview(b"".join(self._kept))
        if self._is_final:
            self._kept = []
        self.pass_on()

    def abort(self, reason: str) -> None:
        """The client broke off: `_closed` has been called and cleans up."""

    def taken(self, n: int) -> None:
        if self._far is not None:
            self._far.taken(n)

    def resume(self) -> None:
        if self._far is not None:
            self._far.resume()

    # The end

    def turn_away(self, why: str) -> None:
        """The client gets an error, 503 or 403, if it speaks HTTP/1, else the end of the connection."""
        forwarder = self._forwarder
        self._stop_timer()
        self._stop_patience()
        forwarder.counts.failed += 1
        forwarder.turned_away.add(self)
        log.warning("client turned away", service=self.service, why=why, attempts=self.attempts)
        client = self.client
        client.error = why
        farewell = client.other = _Farewell(client, self._rules, why)
        self._timer = forwarder.reactor.call_later(LINGER_S, lambda: self._show_out(farewell))
        if self._kept or self._eof or trio.current_time() - self.started_at >= LINGER_S:  # else it has only just come
            farewell.say(b"".join(self._kept))
        client.resume()

    def _show_out(self, farewell: _Farewell) -> None:
        if farewell.is_said:
            self.client.abort("turned away")
            return
        self._timer = self._forwarder.reactor.call_later(LINGER_S, lambda: self._show_out(farewell))
        farewell.say(b"")

    def _let_go(self) -> None:
        """The attempt holds its peer's counter no longer."""
        if self.peer_id:
            self._forwarder.selector.release(self.peer_id)
            self.peer_id = ""

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _drop_attempt(self, why: str) -> None:
        if self._far is not None:
            self._far.abort(why)
            self._far = None
        if self._serving is not None:
            self._serving.cancel()
            self._serving = None

    def _closed(self, client: SocketDuplex) -> None:
        self._stop_timer()
        self._stop_patience()
        self._drop_attempt("the client has gone")
        peer_id = self.peer_id
        self._let_go()
        self._forwarder.finished(self, peer_id)


class _Farewell:
    """The peer of a client that is turned away: as soon as it has shown what it speaks it hears why. More is not read."""

    __slots__ = ("_client", "_rules", "_why", "is_said")

    def __init__(self, client: SocketDuplex, rules: Rules, why: str) -> None:
        self._client = client
        self._rules = rules
        self._why = why
        self.is_said = False

    def say(self, seen: bytes) -> None:
        self.is_said = True
        if reply := self._rules.reply(seen, self._why):
            self._client.send(reply)
        self._client.send_eof()

    def room(self) -> int:
        return 65536

    def send(self, data: bytes | memoryview) -> None:
        if not self.is_said:
            self.say(bytes(data))

    def send_eof(self) -> None:
        if not self.is_said:
            self.say(b"")

    def abort(self, reason: str) -> None: ...
    def taken(self, n: int) -> None: ...
    def resume(self) -> None: ...
