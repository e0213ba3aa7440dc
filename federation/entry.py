"""One client's connection at the entry: pick a peer, open a tunnel, and go to the next peer if that one fails.

A small state machine on the reactor, without a task of its own:

    waiting --pick--> opening --OPENED--> opened --first byte--> joined --> closed
       ^                 |  refused, reset, timeout  |
       +-----------------+---------------------------+   while what the client sent can still be replayed

With `--replay opened` (default) "opened" and "joined" are one: the backend has seen nothing before OPENED, so nothing
is done twice. With `first-byte` the client's bytes are kept until the backend's first byte, unless they outgrow
`replay_buffer_bytes`: then, once opened, the connection is joined and can no longer move. With `never` a connection
is tried once. The pick, and the counter it raises, come before anything else happens.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import structlog
import trio

from federation.backends import Dialled
from federation.config import Replay
from federation.errors import PeerUnavailable
from federation.splice import SocketEnd, join

if TYPE_CHECKING:
    import socket

    from federation.backends import Serving
    from federation.forwarder import Forwarder
    from federation.metrics import RetryReason
    from federation.net.mux import Channel
    from federation.reactor import Duplex, Timer

log = structlog.get_logger(__name__)

# How long a peer that failed is left alone. It said no: long enough for its backend's next check, and for the news to
# come by gossip. It said nothing: until the PING that goes with it has made it suspect (2.25 s at most) or has been
# answered.
REFUSED_PENALTY_S = 1.0
SILENT_PENALTY_S = 2.5
LINGER_S = 2.0  # for a client to read why it was turned away
_HTTP = re.compile(rb"[A-Z]{3,16} [^\s]+ HTTP/1\.[01]\r?\n")


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
        self._entry.failed(reason, "lost")

    def resume(self) -> None:
        self._entry.client.resume()

    def taken(self, n: int) -> None:
        """The socket paces what it reads by room()."""

    def room(self) -> int:
        return 1


class Entry:
    """One client. It is its socket's peer until the connection is joined, and the opener of its tunnels."""

    __slots__ = (
        "_channel",
        "_eof",
        "_forwarder",
        "_kept",
        "_kept_size",
        "_opened",
        "_serving",
        "_timer",
        "attempts",
        "client",
        "client_name",
        "joined",
        "peer_id",
        "service",
        "started_at",
        "tried",
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
        self.tried: set[str] = set()
        self._channel: Channel | None = None
        self._serving: Serving | None = None
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
        self.tried.clear()
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
        self.failed(f"no answer within {forwarder.open_timeout_s:g} s", "timeout")

    def failed(self, reason: str, kind: RetryReason = "refused") -> None:
        """This attempt is over; nothing of it reached the client."""
        forwarder = self._forwarder
        self._stop_timer()
        if self._channel is not None:
            self._channel.abort(reason)  # RST behind OPEN: an exit that wakes up late never dials
            self._channel = None
        forwarder.roster.penalize(self.peer_id, SILENT_PENALTY_S if kind == "timeout" else REFUSED_PENALTY_S)
        log.debug("attempt failed", peer=self.peer_id, service=self.service, why=reason, attempt=self.attempts)
        self._let_go()
        self._opened = False
        if self.client.closed:
            return
        if forwarder.replay is Replay.NEVER:
            self.turn_away(reason)
            return
        forwarder.retried(kind)
        self.attempt()

    def ended_early(self) -> None:
        """The backend finished without a byte. If the client has not finished either, that is how a dying backend looks."""
        if not self._eof and self._forwarder.has_other(self):
            self.failed("the backend closed the connection without an answer", "lost")
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


def _unavailable(why: str) -> bytes:
    body = json.dumps({"error": {"message": f"federation: {why}", "type": "service_unavailable", "code": 503}}).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 5\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
