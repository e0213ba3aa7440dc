"""The exit's side of one connection: from a tunnel's OPEN to a backend that serves it.

A tunnel's OPEN is answered only when the backend has accepted: OPENED, or REFUSED with the reason, so that the entry can
go elsewhere. The client's bytes wait here meanwhile, within the channel's first window. Between any two steps
this process may have been stopped for so long that the entry gave up. Its RST then waits in the link's socket, so the exit
takes three hops before a byte reaches the backend, and looks for an RST before each:

    entry                          exit                                              backend
    OPEN, "POST ..."          ->   keeps the bytes
                                   1. link read until empty: RST? else _dial   ->    SYN
                                   2. connected: RST? else _accept             <-    SYN-ACK
    may not replay any more   <-   OPENED
                                   3. OPENED is on its way: RST? else _deliver ->    "POST ..."
                              <-              spliced                          <-    "HTTP/1.1 200 ..."

A look is skipped where the last one is less than LOOK_AGAIN_S old.

A request of HTTP may go on a connection that an earlier one has left (kept.py): then step 1 connects nothing. The backend
may be closing that connection at this very moment. So the exit keeps what it sends there until the first byte of the answer
(`RequestEnd`), and if the connection ends before, within STALE_S, connects once and sends it again. No entry hears of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from federation.errors import BackendUnavailable
from federation.forward.models.overhearing import FirstWords
from federation.net.link.frames import ANY_LOAD, FULL
from federation.reactor import fdlimit
from federation.reactor.connect import Connect
from federation.reactor.duplex import Keepable, NullDuplex, join
from federation.reactor.sockets import SocketDuplex

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import TypeAlias

    from federation.forward.backends import Backend, Backends
    from federation.net.link.channel import Channel
    from federation.net.link.link import Link
    from federation.reactor.duplex import Duplex

    BackendEnd: TypeAlias = "SocketDuplex | RequestEnd"
    Done: TypeAlias = Callable[["BackendEnd | None", str], None]

LOOK_AGAIN_S = 0.05  # far below any open timeout; a dial on this machine takes a tenth of a millisecond
# A backend that closes a kept connection so soon behind a request, without a byte, has not looked at it; one that dies later
# may have worked on it.
STALE_S = 1.0
HELD = 1024 * 1024  # bytes of a request on a kept connection: a longer one goes on a connection of its own


_NOBODY = NullDuplex()  # the `other` of an end that is over


def _nothing(_end: BackendEnd | None, _reason: str) -> None:
    """In place of a `done` that was called."""


class Serving:
    """One connection or request that a backend serves or is asked to; `done(end, reason)` says how that went.

    `cancel` before it is connected; afterwards its end does it. `entry_id`: the peer that asks, empty for own clients.
    `keeps`: it is a request, whose end is a RequestEnd; `takes_kept`: a connection that was kept will do.
    """

    __slots__ = ("_backends", "_connect", "_done", "_entry_id", "_is_released", "_keeps", "_kept", "_since", "backend")

    def __init__(
        self, backends: Backends, backend: Backend, done: Done, entry_id: str = "", *,
        keeps: bool = False, takes_kept: bool = False,
    ) -> None:  # fmt: skip
        assert backend.target is not None
        self._backends = backends
        self._entry_id = entry_id
        self.backend = backend
        self._done = done
        self._is_released = False
        self._since = backends.reactor.now()
        self._keeps = keeps
        backends.took(backend, entry_id)
        self._connect: Connect | None = None
        self._kept: SocketDuplex | None = backends.kept.take(backend, entry_id) if takes_kept else None
        if self._kept is None:
            self._connect = Connect(backends.reactor, backend.target, self._on_connect)
        else:
            self._kept.other = _NOBODY
            backends.reactor.flush_soon(self._on_kept)

    def cancel(self) -> None:
        if self._connect is not None:
            self._connect.cancel()
        kept, self._kept = self._kept, None
        if kept is not None and not self.keep(kept):
            kept.abort("the request went away")
        self.release(is_served=False)

    def _on_kept(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            self._tell(RequestEnd(self, self._backends, kept, is_kept=True), "")

    def _tell(self, end: BackendEnd | None, reason: str) -> None:
        done, self._done = self._done, _nothing  # which has this object: no cycle is left
        done(end, reason)

    def _on_connect(self, sock: socket.SocketType | None, reason: str) -> None:
        self._connect = None
        if sock is None:
            self._tell(None, self.refused(reason))
            return
        reactor, repute = self._backends.reactor, self.backend.repute
        end = SocketDuplex(reactor, sock, lambda _end: self.release())
        if repute.is_open and repute.listens():
            end.listener = FirstWords(end, repute)
        self._tell(RequestEnd(self, self._backends, end) if self._keeps else end, "")

    def refused(self, reason: str) -> str:
        """The backend could not be connected; returns the reason for others."""
        self.release(is_served=False)
        if reason == fdlimit.REASON:  # which is not the backend's fault
            self._backends.kept.drop_all()
        else:
            self._backends.refused(self.backend, reason)
        return f"backend {self.backend.endpoint.address}: {reason}"

    def keep(self, end: SocketDuplex) -> bool:
        """Leave its connection to the next request, if it is fit for that; returns whether so."""
        backends, backend = self._backends, self.backend
        if backends.draining or not backend.healthy:
            return False
        return backends.kept.add(backend, self._entry_id, end)

    def release(self, *, is_served: bool = True) -> None:
        if not self._is_released:
            self._is_released = True
            backends = self._backends
            backends.released(self.backend, self._entry_id, backends.reactor.now() - self._since if is_served else None)


class RequestEnd(Keepable):
    """The backend's end of one request. It may have begun on a kept connection, and may leave one."""

    keeps = True

    __slots__ = (
        "_backends", "_connect", "_end", "_eof", "_heard", "_held", "_held_size", "_is_watched", "_other", "_passed",
        "_resent", "_sent_at", "_serving",
    )  # fmt: skip

    def __init__(self, serving: Serving, backends: Backends, end: SocketDuplex, *, is_kept: bool = False) -> None:
        self._serving = serving
        self._backends = backends
        self._end: SocketDuplex | None = end
        self._connect: Connect | None = None  # in place of a kept connection that was closed
        self._heard = end.received  # before this request
        self._other: Duplex = _NOBODY
        self._held: list[bytes] | None = None  # what was sent; of a kept connection, until the answer begins
        self._held_size = 0
        self._sent_at: float | None = None  # the first of it
        self._passed = 0  # bytes that the backend's socket has taken, while they were held
        self._resent = 0  # of them to come a second time
        self._eof = False
        self._is_watched = is_kept  # by an _Unanswered
        end.hand_over(self._on_close)
        if is_kept:
            self._held = []
            end.other = _Unanswered(self)
        else:
            end.other = self._other

    # For the entry's side

    @property
    def other(self) -> Duplex:
        return self._other

    @other.setter
    def other(self, other: Duplex) -> None:
        self._other = other
        if self._end is not None and not self._is_watched:
            self._end.other = other

    def start(self, *, read: bool = True) -> None:
        end = self._end
        if end is not None:
            end.start(read=read)
            if self._end is end:  # not over, nor connected again
                end.resume_writing()

    def writable(self) -> int:
        return HELD - self._held_size if self._end is None else self._end.writable()

    def send(self, data: bytes | memoryview) -> None:
        if self._held is not None:
            self._hold(bytes(data))
        if self._end is not None:
            self._end.send(data)

    def send_eof(self) -> None:
        self._eof = True
        if self._end is not None:
            self._end.send_eof()

    def abort(self, reason: str) -> None:
        self._held = None
        self._is_watched = False
        connect, self._connect = self._connect, None
        if connect is not None:
            connect.cancel()
            self._serving.release()
            self._other = _NOBODY
        if self._end is not None:
            self._end.abort(reason)

    def acknowledge(self, n: int) -> None:
        if self._end is not None:
            self._end.acknowledge(n)

    def resume_writing(self) -> None:
        if self._end is not None:
            self._end.resume_writing()

    def keep(self, answered: int) -> None:
        end = self._end
        if end is None:
            self.abort("the answer came from nowhere")
            return
        self._other = _NOBODY
        if (end.received - self._heard) % 2**32 == answered and self._serving.keep(end):
            self._end = None
            self._serving.release()
            return
        end.other = self._other
        end.send_eof()
        end.leave()
        end.abort("bytes behind the answer")  # if something waits there still

    # A kept connection, until it has answered

    def _hold(self, data: bytes) -> None:
        assert self._held is not None
        if self._sent_at is None:
            self._sent_at = self._backends.reactor.now()
        self._held.append(data)
        self._held_size += len(data)
        if self._held_size > HELD and self._end is not None:
            self._held = None

    def answered(self) -> None:
        """The first bytes of the answer are here: from now on this is a connection like any other."""
        self._held = None
        if self._end is None:
            return
        self._end.acknowledge_now()
        if not self._resent:
            self._is_watched = False
            self._end.other = self._other

    def passed(self, n: int) -> None:
        """The socket has taken so many bytes; the other side hears of each byte once."""
        again = min(n, self._resent)
        self._resent -= again
        self._passed += n - again
        if n > again:
            self._other.acknowledge(n - again)

    def ended(self, reason: str | None) -> None:
        """The backend has ended the connection before its first byte. `reason`: it was reset."""
        end, held, self._held = self._end, self._held, None
        if end is None:
            return
        now = self._backends.reactor.now()
        if held is not None and (self._sent_at is None or now - self._sent_at < STALE_S):
            target = self._serving.backend.target
            assert target is not None
            self._end = None
            end.abort("it is stale")
            self._resent = self._passed
            self._held = held
            self._connect = Connect(self._backends.reactor, target, self._on_connect)
            return
        self._is_watched = False
        end.other = self._other
        if reason is None:
            self._other.send_eof()
            return
        self._serving.release()
        self._break_off(reason)

    def _break_off(self, reason: str) -> None:
        other, self._other = self._other, _NOBODY
        other.abort(reason)

    def _on_connect(self, sock: socket.SocketType | None, reason: str) -> None:
        self._connect = None
        held, self._held = self._held, None
        if sock is None:
            self._break_off(self._serving.refused(reason))
            return
        end = self._end = SocketDuplex(self._backends.reactor, sock, self._on_close)
        self._heard = 0
        end.other = _Unanswered(self)
        for data in held or ():
            end.send(data)
        if self._eof:
            end.send_eof()
        end.start()
        self._other.resume_writing()

    def _on_close(self, end: SocketDuplex) -> None:
        if end is self._end and self._held is None:  # else `ended` follows
            self._serving.release()
            if not self._is_watched:
                self._other = _NOBODY


class _Unanswered(NullDuplex):
    """The other end of a backend's socket until the first byte of the answer."""

    __slots__ = ("_request",)

    def __init__(self, request: RequestEnd) -> None:
        self._request = request

    def writable(self) -> int:
        return self._request.other.writable()

    def send(self, data: bytes | memoryview) -> None:
        self._request.answered()
        self._request.other.send(data)

    def send_eof(self) -> None:
        self._request.ended(None)

    def abort(self, reason: str) -> None:
        self._request.ended(reason)

    def acknowledge(self, n: int) -> None:
        self._request.passed(n)

    def resume_writing(self) -> None:
        self._request.other.resume_writing()


def serve_tunnel(backends: Backends, link: Link, channel: Channel, service: str, believed: int = ANY_LOAD) -> None:
    """A remote entry asks for `service`; `believed`: this node's load by others, as that entry knows it, or ANY_LOAD."""
    flow = ExitFlow(backends, link, channel, service, believed)
    channel.other = flow
    link.when_read_empty(flow.dial)


class ExitFlow(NullDuplex):
    """A tunnel on its way to the backend: the channel's other end until the backend has its first bytes."""

    __slots__ = (
        "_backends", "_believed", "_channel", "_early", "_end", "_eof", "_gone", "_link", "_looked_at", "_service",
        "_serving",
    )  # fmt: skip

    def __init__(self, backends: Backends, link: Link, channel: Channel, service: str, believed: int = ANY_LOAD) -> None:
        self._backends = backends
        self._believed = believed
        self._link = link
        self._channel = channel
        self._service = service
        self._early: list[bytes] = []
        self._eof = False
        self._gone = False
        self._looked_at = backends.reactor.now()  # when the link was last read empty, or nearly so
        self._serving: Serving | None = None
        self._end: BackendEnd | None = None

    def dial(self) -> None:
        """Called when everything that the entry had sent was read: if it gave up, nothing is dialled.

        The load is compared with the entry's belief and raised in one step, here, where the counter lives.
        """
        if self._gone:
            return
        link, backends = self._link, self._backends
        self._looked_at = backends.reactor.now()
        if link.mux.tells_load:
            if backends.is_full or backends.hands_out:
                backends.refused_as_full.add(link.peer_id)
                self._channel.refuse_as_busier(FULL)
                return
            if self._believed != ANY_LOAD and backends.is_busier(link.peer_id, self._believed, link.least_rtt_s or 0.0):
                self._channel.refuse_as_busier(backends.load.by_others(link.peer_id))
                return
        try:
            backend = backends.choose(self._service, link.peer_id)
            self._serving = Serving(
                backends, backend, self._on_backend, link.peer_id,
                keeps=self._channel.keeps, takes_kept=self._channel.takes_kept,
            )  # fmt: skip
        except BackendUnavailable as error:
            self._channel.refuse(error.detail)

    def _on_backend(self, end: BackendEnd | None, reason: str) -> None:
        if end is None:
            self._channel.refuse(reason)
            return
        self._end = end
        self._if_wanted(self._accept)

    def _accept(self) -> None:
        self._channel.accept()
        # Behind OPENED only: no backend sees bytes that the entry may still replay.
        self._backends.reactor.flush_soon(lambda: self._if_wanted(self._deliver))

    def _deliver(self) -> None:
        end = self._end
        assert end is not None
        join(end, self._channel)
        if isinstance(end, RequestEnd):
            self._channel.on_keep = end.keep
        early, self._early = self._early, []
        for chunk in early:
            end.send(chunk)
        if self._eof:
            end.send_eof()
        end.start(read=False)

    def _if_wanted(self, step: Callable[[], None]) -> None:
        """Take the next step, unless the entry has given up."""
        now = self._backends.reactor.now()
        if self._gone:
            return
        if now - self._looked_at > LOOK_AGAIN_S:
            self._looked_at = now
            self._link.read_until_empty(lambda: self._if_wanted(step))
        else:
            step()

    # Duplex, for the channel: nothing was sent to it yet, so it asks for no more than this

    def send(self, data: bytes | memoryview) -> None:
        self._early.append(bytes(data))

    def send_eof(self) -> None:
        self._eof = True

    def abort(self, reason: str) -> None:
        self._gone = True
        if self._end is not None:
            self._end.abort(reason)
        elif self._serving is not None:
            self._serving.cancel()
