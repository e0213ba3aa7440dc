"""One channel of a link, a tunnel or a libp2p stream: its credit, its window, and what waits to be sent.

The Mux has all channels of its link, gives them their turns and feeds them; mux.py has the rules and the frames.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from federation.net.link.frames import BUSIER, CREDIT, DATA, HEADER, KEEP, MAX_REASON, NUMBER, OPENED, REFUSED, RST
from federation.reactor.duplex import Keepable

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.net.link.mux import Mux, TunnelObserver
    from federation.reactor.duplex import Duplex

INITIAL_WINDOW = 64 * 1024
MAX_WINDOW = 1024 * 1024  # 1 MiB in flight is 80 MB/s at 12 ms, 10 MB/s at 100 ms
GROWTH_BUDGET = 32 * 1024 * 1024  # granted beyond INITIAL_WINDOW, all channels of a connection together
CHANNEL_BUFFER = 128 * 1024  # what a channel holds of ours before its source must wait
CONNECTION_BUFFER = 1024 * 1024  # the same for all channels together, so that 1000 busy ones stay small
# A channel that sends less than this between two ticks of the mux (a quarter of a second) is light, like a stream of tokens:
# it waits neither for the bulk channels' turns, nor for room that they have taken.
LIGHT_BYTES = 16 * 1024
LIGHT_ROOM = 4096  # what it may hold though all channels together hold CONNECTION_BUFFER
# A LOAD or a BUSIER takes so much of the abuse budget (mux.py): an honest link carries four of them for a request that the
# exit sends back once, and 3,000 requests a second.
TELLING_COSTS = 1 / 8


class Channel(Keepable):
    """One stream of a connection; a Duplex whose other side is the remote. `other` is the local end joined to it."""

    __slots__ = (
        "_out", "answered", "closed", "credit", "fin_queued", "fin_received", "fin_sent", "first_out", "granted",
        "has_credit", "id", "is_request", "keeps", "mux", "on_keep", "opener", "other", "out_size", "queued", "remote",
        "small_in", "taken", "takes_kept", "ticks", "tunnel", "unacknowledged", "waiting", "window",
    )  # fmt: skip

    other: Duplex

    def __init__(self, mux: Mux, channel_id: int, *, tunnel: bool, remote: bool) -> None:
        self.mux = mux
        self.id = channel_id
        self.tunnel = tunnel
        self.remote = remote  # who opened it
        self.opener: TunnelObserver | None = None
        self.is_request = False  # ours, and the remote may be too busy for it
        self.keeps = False  # opened by REQUEST: the opener may end it with KEEP
        self.takes_kept = False  # the remote's, which may begin on a connection that was kept
        self.on_keep: Callable[[int], None] | None = None  # what KEEP does here; without it, a reset
        self.credit = INITIAL_WINDOW  # what we may still send, less what is in `_out`
        self.granted = INITIAL_WINDOW  # what the remote may still send
        self.window = INITIAL_WINDOW  # what `granted` is brought back to
        self.unacknowledged = 0  # delivered here, not granted again yet
        self.out_size = 0
        self._out: deque[bytes | memoryview] = deque()
        self.queued = False  # in the send queue of the mux
        self.waiting = False  # told its source to wait; owes it a `resume_writing()`
        self.answered = not (tunnel and remote)
        self.small_in = 0  # number of the record with its latest small DATA
        self.first_out = 0  # of the connection's bytes, how many end the record with its first DATA; 0: none has gone
        self.has_credit = False  # the remote has granted something: its reader had half a window
        self.taken = 0  # sent since the mux had counted so many `ticks`
        self.ticks = mux.ticks
        self.fin_queued = self.fin_sent = self.fin_received = self.closed = False

    # Duplex

    def writable(self) -> int:
        room = CHANNEL_BUFFER - self.out_size
        if self.credit < room:
            room = self.credit
        if room > 0 and not self.closed:
            if self.mux.out_size < CONNECTION_BUFFER:
                return room
            if not (self.waiting or self.out_size) and self._is_light():
                return min(room, LIGHT_ROOM)
            self.mux.starved[self] = None
        self.waiting = True
        return 0

    def send(self, data: bytes | memoryview) -> None:
        if self.closed or not data:
            return
        n = len(data)
        self._out.append(data if isinstance(data, bytes) else bytes(data))
        self.credit -= n
        self.out_size += n
        self.mux.out_size += n
        self._queue()

    def send_eof(self) -> None:
        if not self.fin_queued and not self.closed:
            self.fin_queued = True
            self._queue(late=self.fin_received)  # the remote has already sent FIN, so this FIN is not urgent

    def abort(self, reason: str) -> None:
        if not self.closed:
            self.mux.control(RST, self.id, reason.encode()[:MAX_REASON])
            self._close()

    def keep(self, answered: int) -> None:
        if self.closed:
            return
        if self.out_size or self.fin_queued or self.fin_received:
            self.abort("the answer came before the request's end")
            return
        self.mux.control(KEEP, self.id, NUMBER.pack(answered % 2**32), late=True)  # with the next request, if there is one
        self._close()

    def acknowledge(self, n: int) -> None:
        """Grant again in large steps: half a window at a time. The window of a reader that keeps up is doubled."""
        self.unacknowledged += n
        if self.unacknowledged * 2 < self.window or self.closed or self.fin_received:
            return
        grant = self.unacknowledged
        unread = self.window - self.granted - self.unacknowledged  # arrived, and the reader has not got to it
        if unread * 4 <= self.window < MAX_WINDOW and self.mux.window_growth + self.window <= GROWTH_BUDGET:
            grant += self.window  # the reader keeps up: if anything holds the sender back, it is the window
            self.mux.window_growth += self.window
            self.window *= 2
        self.granted += grant
        self.unacknowledged = 0
        self.mux.control(CREDIT, self.id, NUMBER.pack(grant))

    def resume_writing(self) -> None:
        """The local reader takes bytes again: `acknowledge` grants the remote as many, so there is nothing to do here."""

    # Tunnels

    def accept(self) -> None:
        if not self.closed:
            self.answered = True
            self.mux.control(OPENED, self.id)

    def refuse(self, reason: str) -> None:
        if not self.closed:
            self.mux.charge()
            self.mux.control(REFUSED, self.id, reason.encode()[:MAX_REASON])
            self._close()

    def refuse_as_busier(self, others: int) -> None:
        """`others`: this node's load but for the opener's; or FULL. Only with a mux that `tells_load`."""
        if not self.closed:
            self.mux.charge(TELLING_COSTS)
            self.mux.control(BUSIER, self.id, NUMBER.pack(others))
            self._close()

    @property
    def is_unheard(self) -> bool:
        """Whether the connection has ended, and not a byte of this channel has arrived."""
        mux = self.mux
        if not mux.closed or self.has_credit:
            return False
        return not self.first_out or (mux.arrived is not None and mux.arrived < self.first_out)  # half a record is none

    # Inside

    def _queue(self, *, late: bool = False) -> None:
        if not self.queued:
            self.queued = True
            (self.mux.light_queue if self._is_light() else self.mux.send_queue).append(self)
            if late:
                self.mux.wake_late()
            else:
                self.mux.wake()

    def _is_light(self) -> bool:
        if self.ticks != self.mux.ticks:
            self.ticks = self.mux.ticks
            self.taken = 0
        return self.taken < LIGHT_BYTES

    def take(self, limit: int, parts: list[bytes | memoryview]) -> int:
        """Append one DATA frame with at most `limit` bytes of payload to `parts`; return the size of the payload."""
        n = min(limit, self.out_size)
        if not self.first_out:
            self.mux.beginners.append(self)
        self.taken += n
        parts.append(HEADER.pack(DATA, self.id, n))
        left, out = n, self._out
        while left:
            chunk = out.popleft()
            if len(chunk) > left:
                view = memoryview(chunk)
                out.appendleft(view[left:])
                chunk = view[:left]
            parts.append(chunk)
            left -= len(chunk)
        self.out_size -= n
        self.mux.out_size -= n
        return n

    def unblock(self) -> None:
        """Tell a source that waits that there is room again, if there is."""
        if self.waiting and self.credit > 0 and self.out_size < CHANNEL_BUFFER and not self.closed:
            if self.mux.out_size >= CONNECTION_BUFFER:
                self.mux.starved[self] = None
                return
            self.waiting = False
            self.other.resume_writing()

    def _finish(self) -> None:
        """Both directions have ended in order."""
        if self.fin_sent and self.fin_received and not self.closed:
            self._close()

    def _close(self) -> None:
        self.closed = True
        self.mux.out_size -= self.out_size
        self.out_size = 0
        self._out.clear()
        self.mux.forget(self)
