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
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from federation.errors import BackendUnavailable
from federation.net.link.frames import ANY_LOAD, FULL
from federation.reactor import fdlimit
from federation.reactor.connect import Connect
from federation.reactor.duplex import NullDuplex, join
from federation.reactor.sockets import SocketDuplex

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from federation.forward.backends import Backend, Backends
    from federation.net.link.channel import Channel
    from federation.net.link.link import Link

LOOK_AGAIN_S = 0.05  # far below any open timeout; a dial on this machine takes a tenth of a millisecond


class Serving:
    """One connection that a backend serves or is asked to; `done(end, reason)` says how that went.

    `cancel` before it is connected; afterwards its end does it. `entry_id`: the peer that asks, empty for own clients.
    """

    __slots__ = ("_backends", "_connect", "_done", "_entry_id", "_is_released", "_since", "backend")

    def __init__(
        self, backends: Backends, backend: Backend, done: Callable[[SocketDuplex | None, str], None], entry_id: str = ""
    ) -> None:
        assert backend.target is not None
        self._backends = backends
        self._entry_id = entry_id
        self.backend = backend
        self._done = done
        self._is_released = False
        self._since = backends.reactor.now()
        backends.took(backend, entry_id)
        self._connect: Connect | None = Connect(backends.reactor, backend.target, self._on_connect)

    def cancel(self) -> None:
        if self._connect is not None:
            self._connect.cancel()
        self._release(is_served=False)

    def _on_connect(self, sock: socket.SocketType | None, reason: str) -> None:
        self._connect = None
        if sock is None:
            self._release(is_served=False)
            if reason != fdlimit.REASON:  # a lack of descriptors is not the backend's fault
                self._backends.refused(self.backend, reason)
            self._done(None, f"backend {self.backend.endpoint.address}: {reason}")
            return
        self._done(SocketDuplex(self._backends.reactor, sock, lambda _end: self._release()), "")

    def _release(self, *, is_served: bool = True) -> None:
        if not self._is_released:
            self._is_released = True
            backends = self._backends
            backends.released(self.backend, self._entry_id, backends.reactor.now() - self._since if is_served else None)


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
        self._end: SocketDuplex | None = None

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
            self._serving = Serving(backends, backend, self._on_backend, link.peer_id)
        except BackendUnavailable as error:
            self._channel.refuse(error.detail)

    def _on_backend(self, end: SocketDuplex | None, reason: str) -> None:
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
