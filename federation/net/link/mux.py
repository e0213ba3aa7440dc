"""Stream multiplexing for one peer connection, sans-IO: frames in, frames out.

Rule 1: no I/O and no clock. Plaintext records go in by `feed`, plaintext records come out by `next_record`; `wake` says
that there is something to take out.
Rule 2: credit. A side sends no more on a channel than the other has granted; who receives grants again what left its
buffers. So a slow reader stops its sender and nobody else, and memory is bounded by the windows.
Rule 3: turns. Each channel with bytes to send gets QUANTUM of them, then the next one; control frames go first, then the
channels that send little (`channel.LIGHT_BYTES`).
Rule 4: the remote's breach of the rules raises ProtocolViolation, which costs it this connection and nothing else.

A record holds whole frames: 1 byte type, 4 bytes channel, 2 bytes length (big endian), then the payload.

    STREAM   -                 open a libp2p stream; libp2p negotiates its protocol inside
    OPEN     service name      open a tunnel; with loads, 4 bytes before the name: the load by others that the opener
                               believes this node to have, or ANY_LOAD
    OPENED   -                 the exit reached its backend
    REFUSED  reason            it did not, and no byte went anywhere; the channel is gone
    DATA     bytes             at least one, at most what was granted; not before OPENED from the side that was asked; in a
                               record, no other one of the channel follows one below QUANTUM
    FIN      -                 no more DATA in this direction
    RST      reason            the channel is gone in both directions
    CREDIT   4 bytes           so many more bytes are granted, at least one
    PING     8 bytes           channel 0; answered by PONG with the same bytes
    LOAD     4 bytes           channel 0; the sender's load by others: all that it serves, but for the receiver's requests
    WATCH    1 byte            channel 0; tell the sender of each change of load for so many seconds
    BUSIER   4 bytes           the answer to OPEN: the node has this load by others, more than was believed; or FULL, and a
                               LOAD follows when it has room. No byte went anywhere
    LOOK     service name      channel 0; a backend of the service said that it lacks a model that its node announces
    REQUEST  service name      as OPEN, for one request and its answer; before the name the load as there, and 1 byte:
                               whether it may go on a connection of the backend that the exit kept from an earlier one
    KEEP     4 bytes           ends the tunnel of a REQUEST in both directions, in order: its answer had so many bytes,
                               modulo 2**32. If the exit has had as many from the backend, it may keep the connection

LOAD, WATCH, BUSIER and the 4 bytes of OPEN are spoken only where both ends negotiated them (`load` is given): then frame
types from FIRST_OPTIONAL on are passed over if they are not known, so that a later version may add to them. REQUEST and KEEP
are spoken where both ends negotiated these as well (`keeps`). A LOAD goes in the
next record whatever that carries, if the load changed since the last one; `tell_load` sends one for its own sake. What the
receiver itself has in flight it knows better: requests on their way there, and those that have just ended.

The side that dialled opens odd channels, the other one even ones, each upwards. Every channel starts with INITIAL_WINDOW
in each direction; a channel whose reader keeps up is granted more, up to MAX_WINDOW, while `window_growth` of the connection
lasts. Worst case for memory: MAX_CHANNELS * INITIAL_WINDOW + GROWTH_BUDGET per connection, if the remote fills them all.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from federation.errors import PeerUnavailable, ProtocolViolation
from federation.net.link.channel import CONNECTION_BUFFER, INITIAL_WINDOW, MAX_WINDOW, TELLING_COSTS, Channel
from federation.net.link.frames import (
    ANY_LOAD,
    BUSIER,
    CREDIT,
    DATA,
    FIN,
    FIRST_OPTIONAL,
    FLAG,
    HEADER,
    HEADER_BYTES,
    KEEP,
    LOAD,
    LOAD_BYTES,
    LOOK,
    MAX_REASON,
    NUMBER,
    OPEN,
    OPENED,
    PING,
    PONG,
    REFUSED,
    REQUEST,
    RST,
    STREAM,
    WATCH,
)
from federation.net.link.seal import MAX_PLAINTEXT, SEALING_BYTES
from federation.units import visible

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.reactor.duplex import Duplex

MAX_CHANNELS = 4096  # opened by the remote, at once
MAX_STREAMS = 64  # of them libp2p streams: a healthy peer has about six
QUANTUM = 16 * 1024  # one turn: 16 KiB take 0.1 ms at 150 MB/s
# What a remote may do in vain, each costing us more than it: opens that are refused or taken back unanswered, PINGs, PONGs
# that answer nothing, grants too small to be worth a frame, frames for channels that are gone, bytes of one channel in more
# frames than they need, LOADs and what asks for them, frames that we do not know. An honest crowd of clients that leaves at
# once stays below; `tick` gives it back.
ABUSE_BUDGET = 32_768
ABUSE_REFILL = 512
STREAM_COSTS = 32  # which libp2p negotiates
SERVICE_COSTS = 16  # of this node itself, which do more than refuse
# What was on its way when we closed a channel: a few frames each, so of 3,000 tunnels a second a healthy link has thousands.
STRAY_COSTS = 1 / 8
LEAST_CREDIT = 4096  # we grant half a window at a time; by single bytes a remote would have us send one in a frame each
MAX_CONTROL = 16_384  # control frames unsent: a remote that makes us answer and never reads
MAX_ID = 2**32 - 1  # reached after eight days of 3000 tunnels a second


@dataclass(slots=True)
class Load:
    """The connections that this node's backends serve now: `in_flight` of all entries, `by_entry` of each peer id. The own
    clients of the node are "" there."""

    in_flight: int = 0
    by_entry: dict[str, int] = field(default_factory=dict)

    def by_others(self, entry_id: str) -> int:
        return self.in_flight - self.by_entry.get(entry_id, 0)

    def change(self, entry_id: str, by: int) -> None:
        self.in_flight += by
        left = self.by_entry.get(entry_id, 0) + by
        if left:
            self.by_entry[entry_id] = left
        else:
            del self.by_entry[entry_id]


class Handler(Protocol):
    """What a mux tells its owner."""

    def tunnel_opened(self, channel: Channel, service: str, believed: int) -> None:
        """The remote asks for `service`. Answer with `accept` or `refuse`, now or later; set `channel.other` now.

        `believed`: the load of this node by others, as the remote sees it. ANY_LOAD where there is nothing to compare."""

    def load_told(self, others: int) -> None:
        """The remote's load, but for what it serves for this node."""

    def watched(self, seconds: int) -> None:
        """The remote wants to hear of each change of load for that long, from now on. 0: no more."""

    def look_wanted(self, service: str) -> None:
        """A backend of this node said that it lacks a model that this node announces."""

    def stream_opened(self, channel: Channel) -> None:
        """The remote opened a libp2p stream. Set `channel.other` now."""

    def pong(self, payload: bytes) -> None: ...


class TunnelObserver(Protocol):
    """The opener of a tunnel hears here how it went: one of the two, or `other.abort` if the connection broke."""

    def opened(self) -> None: ...

    def refused(self, reason: str) -> None: ...


class RequestObserver(TunnelObserver, Protocol):
    """The opener of a request may hear a third answer."""

    def busier(self, others: int) -> None:
        """The remote has more in flight by others than was believed, or is FULL, and did nothing."""


class Mux:
    """The frames of one connection. `wake` is called when `next_record` may have something that it had not before, and
    `wake_late` where nobody waits for it."""

    def __init__(
        self,
        *,
        initiator: bool,
        handler: Handler,
        wake: Callable[[], None],
        wake_late: Callable[[], None] | None = None,
        load: Load | None = None,
        entry_id: str = "",
        keeps: bool = False,
    ) -> None:
        """`load`: told to the remote, whose peer id is `entry_id`. None where the remote would not understand.
        `keeps`: whether it understands REQUEST and KEEP."""
        assert load is not None or not keeps
        self._handler = handler
        self.wake = wake
        self.wake_late = wake_late or wake
        self.send_queue: deque[Channel] = deque()
        self.light_queue: deque[Channel] = deque()  # goes before it: one turn for each, then the rest waits there
        self.ticks = 0
        self.channels: dict[int, Channel] = {}
        self.starved: dict[Channel, None] = {}  # channels that wait because all together hold too much, in their order
        self.out_size = 0
        self.out_bytes = 0  # sealed, or about to be, since the connection began
        self.beginners: list[Channel] = []  # whose first DATA goes with the record that is being made
        self.arrived: int | None = None  # how many of them have, at its end; None: not known
        self.window_growth = 0
        self.tunnels = 0
        self._streams = 0
        self._remote_channels = 0
        self._control: deque[bytes] = deque()
        self._next_id = 1 if initiator else 2
        self._last_remote_id = 0
        self._remote_parity = 0 if initiator else 1
        self.closed = False
        self._abuse_left = float(ABUSE_BUDGET)
        self._pings = 0  # not answered yet
        self._records = 0  # fed
        self._load = load
        self.keeps = keeps
        self._entry_id = entry_id
        self._told = 0  # the load by others, as the remote heard it last
        self._is_to_tell = False
        self.overrun = False  # the remote makes us answer and does not read: `feed` raises, frames were lost

    # Ours

    @property
    def is_answering(self) -> bool:
        """Whether answers wait to go. A LOAD would go before them."""
        return bool(self._control)

    @property
    def tells_load(self) -> bool:
        """Whether both ends speak of their load."""
        return self._load is not None

    def open_tunnel(self, service: str, opener: TunnelObserver, other: Duplex) -> Channel:
        """OPEN goes out before any byte sent on the channel. Raises PeerUnavailable when the connection is gone."""
        return self._open_tunnel(service, ANY_LOAD, opener, other)

    def open_request(self, service: str, opener: RequestObserver, other: Duplex, believed: int) -> Channel:
        """A tunnel that will be a part of the remote's load. Raises PeerUnavailable when the connection is gone.

        `believed`: the load of the remote by others, as this node sees it, for the remote to compare; or ANY_LOAD."""
        channel = self._open_tunnel(service, believed, opener, other)
        if self._load is not None:
            channel.is_request = True
        return channel

    def open_exchange(
        self, service: str, opener: RequestObserver, other: Duplex, believed: int, *, takes_kept: bool
    ) -> Channel:
        """A request whose end the opener will know (`Channel.keep`), where both ends can keep connections.

        `takes_kept`: whether a connection of the backend that the remote has kept will do."""
        if not self.keeps:
            return self.open_request(service, opener, other, believed)
        channel = self._open(REQUEST, NUMBER.pack(believed) + FLAG.pack(takes_kept) + service.encode(), tunnel=True)
        channel.opener = opener
        channel.other = other
        channel.is_request = channel.keeps = True
        return channel

    def _open_tunnel(self, service: str, believed: int, opener: TunnelObserver, other: Duplex) -> Channel:
        name = service.encode()
        channel = self._open(OPEN, name if self._load is None else NUMBER.pack(believed) + name, tunnel=True)
        channel.opener = opener
        channel.other = other
        return channel

    def open_stream(self) -> Channel:
        """The caller sets `other` before it lets go of the thread."""
        return self._open(STREAM, b"", tunnel=False)

    def _open(self, kind: int, payload: bytes, *, tunnel: bool) -> Channel:
        if self.closed:
            raise PeerUnavailable("the connection is closed")
        if self.used_up:
            raise PeerUnavailable("the connection has no channel numbers left")
        channel = Channel(self, self._next_id, tunnel=tunnel, remote=False)
        self._next_id += 2
        self.channels[channel.id] = channel
        self.tunnels += tunnel
        self.control(kind, channel.id, payload)
        return channel

    @property
    def used_up(self) -> bool:
        """No channel can be opened on this connection any more; the next one has numbers again."""
        return self._next_id > MAX_ID

    def ping(self, payload: bytes) -> None:
        self._pings += 1
        self.control(PING, 0, payload)

    def tell_load(self, *, again: bool = False) -> bool:
        """Send a LOAD though nothing else goes, if the remote has not heard of the load as it is, or `again`. Whether so."""
        if again:
            self._told = -1
        if self.closed or self._load is None or self._is_to_tell or self._told == self._load.by_others(self._entry_id):
            return False
        self._is_to_tell = True
        self.wake()
        return True

    def watch(self, seconds: int) -> None:
        """Ask to be told of the remote's load for so long, at most 255 s; 0: no more. Only where both ends `tells_load`."""
        self.control(WATCH, 0, bytes((seconds,)))

    def look(self, service: str) -> None:
        """Have the remote ask its backends for their models. Only where both ends `tells_load`."""
        self.control(LOOK, 0, service.encode())

    def tick(self) -> None:
        """To be called a few times a second."""
        self.ticks += 1
        self._abuse_left = min(ABUSE_BUDGET, self._abuse_left + ABUSE_REFILL)

    def charge(self, cost: float = 1) -> None:
        """Charge the abuse budget of the remote. `feed` closes the link after the record that exhausts it."""
        self._abuse_left -= cost

    def control(self, kind: int, channel_id: int, payload: bytes = b"", *, late: bool = False) -> None:
        """`late`: nobody waits for it."""
        if self.closed:
            return
        if len(self._control) < MAX_CONTROL:
            self._control.append(HEADER.pack(kind, channel_id, len(payload)) + payload)
        else:
            self.overrun = True
        if late:
            self.wake_late()
        else:
            self.wake()

    def forget(self, channel: Channel) -> None:
        if self.channels.pop(channel.id, None) is not None:
            self.tunnels -= channel.tunnel
            self.window_growth -= channel.window - INITIAL_WINDOW
            if channel.remote:
                self._remote_channels -= 1
                self._streams -= not channel.tunnel
            self.starved.pop(channel, None)
            if len(self.light_queue) + len(self.send_queue) > 2 * len(self.channels) + 64:
                for queue in (self.light_queue, self.send_queue):  # closed ones: the remote does not read, no turn comes
                    turns = [waiting for waiting in queue if not waiting.closed]
                    queue.clear()
                    queue.extend(turns)

    def abort(self, reason: str) -> None:
        """The connection is gone: every channel's other end hears it."""
        if self.closed:
            return
        self.closed = True
        self._control.clear()
        self.send_queue.clear()
        self.light_queue.clear()
        for channel in list(self.channels.values()):
            channel.closed = True
            channel.other.abort(reason)
        self.channels.clear()
        self.starved.clear()
        self._is_to_tell = False

    # Out

    @property
    def is_empty(self) -> bool:
        return not (self._control or self.light_queue or self.send_queue or self._is_to_tell)

    def next_record(self) -> bytes | None:
        """The plaintext of the next record, 1 to MAX_PLAINTEXT bytes, or None."""
        if self.starved and self.out_size < CONNECTION_BUFFER // 2:
            starved, self.starved = self.starved, {}
            for channel in starved:
                channel.unblock()
        control, load = self._control, self._load
        parts: list[bytes | memoryview] = []
        room = MAX_PLAINTEXT
        if load is not None and (control or self.light_queue or self.send_queue or self._is_to_tell):
            self._is_to_tell = False
            others = load.in_flight - load.by_entry.get(self._entry_id, 0)
            if others != self._told:
                self._told = others
                parts.append(HEADER.pack(LOAD, 0, NUMBER.size) + NUMBER.pack(others))
                room -= LOAD_BYTES
        while control and len(control[0]) <= room:
            room -= len(control[0])
            parts.append(control.popleft())
        taken: list[Channel] = []
        if not control:
            room = self._next_data(parts, room, taken)
        if room == MAX_PLAINTEXT:
            return None
        self.out_bytes += MAX_PLAINTEXT - room + SEALING_BYTES
        while self.beginners:
            self.beginners.pop().first_out = self.out_bytes
        for channel in taken:
            channel.unblock()
        return b"".join(parts)

    def _next_data(self, parts: list[bytes | memoryview], room: int, taken: list[Channel]) -> int:
        light, queue = self.light_queue, self.send_queue
        while room > HEADER_BYTES and (light or queue):
            channel = light.popleft() if light else queue.popleft()
            if channel.out_size:
                limit = room - HEADER_BYTES
                room -= HEADER_BYTES + channel.take(min(limit, QUANTUM) if light or queue else limit, parts)
                if channel.waiting:
                    taken.append(channel)
            if channel.out_size:
                queue.append(channel)
                continue
            if channel.fin_queued and not channel.fin_sent and not channel.closed:
                if room < HEADER_BYTES:
                    queue.appendleft(channel)
                    break
                parts.append(HEADER.pack(FIN, channel.id, 0))
                room -= HEADER_BYTES
                channel.fin_sent = True
                channel._finish()
            channel.queued = False
        return room

    # In

    def feed(self, record: bytes) -> None:
        """One record's plaintext. Raises ProtocolViolation."""
        at, end = 0, len(record)
        view = memoryview(record)
        unpack = HEADER.unpack_from
        channels = self.channels
        number = self._records = self._records + 1
        while at < end:
            if end - at < HEADER_BYTES:
                raise ProtocolViolation("half a frame header")
            kind, channel_id, length = unpack(record, at)
            at += HEADER_BYTES
            stop = at + length
            if stop > end:
                raise ProtocolViolation("half a frame")
            if kind == DATA:
                channel = channels.get(channel_id)
                if channel is None:
                    self._check_known(channel_id)
                else:
                    channel.granted -= length
                    if channel.granted < 0 or channel.fin_received or not length:
                        raise ProtocolViolation("DATA that was not granted, or none")
                    if channel.opener is not None:
                        raise ProtocolViolation("DATA before OPENED")
                    if channel.small_in == number:  # our `take` joins all that waits
                        self.charge()
                    elif length < QUANTUM:
                        channel.small_in = number
                    channel.other.send(view[at:stop])
            else:
                self._feed_control(kind, channel_id, record[at:stop])
            at = stop
        self._check_budget()

    def _check_budget(self) -> None:
        if self.overrun:
            raise ProtocolViolation("the peer makes us answer and does not read")
        if self._abuse_left < 0:
            raise ProtocolViolation("it floods: opens, PINGs or streams without end")

    def _feed_control(self, kind: int, channel_id: int, payload: bytes) -> None:
        if kind in (OPEN, STREAM) or (kind == REQUEST and self.keeps):
            self._remote_opens(kind, channel_id, payload)
            return
        if kind in (PING, PONG):
            self._pinged(kind, channel_id, payload)
            return
        if not (OPENED <= kind <= CREDIT or (kind == BUSIER and self.tells_load) or (kind == KEEP and self.keeps)):
            self._feed_other(kind, channel_id, payload)
            return
        channel = self.channels.get(channel_id)
        if channel is None:
            self._check_known(channel_id)
            return
        if kind == CREDIT:
            self._credited(channel, payload)
        elif kind == FIN:
            if channel.fin_received or channel.opener is not None:
                raise ProtocolViolation("a second FIN, or one before OPENED")
            channel.fin_received = True
            channel.other.send_eof()
            channel._finish()
        elif kind == RST:
            self.charge(not channel.answered)
            channel._close()
            channel.other.abort(_text(payload))
        elif kind == KEEP:
            self._kept(channel, payload)
        else:
            self._answered(channel, kind, payload)

    def _pinged(self, kind: int, channel_id: int, payload: bytes) -> None:
        if len(payload) != 8 or channel_id:
            raise ProtocolViolation("a malformed PING")
        if kind == PING:
            self.charge()
            self.control(PONG, 0, payload)
        else:
            if self._pings:
                self._pings -= 1
            else:
                self.charge()
            self._handler.pong(payload)

    def _feed_other(self, kind: int, channel_id: int, payload: bytes) -> None:
        """Frames of the whole connection, and those that this version does not know."""
        if self._load is None or (kind < FIRST_OPTIONAL and kind not in (LOAD, WATCH)):
            raise ProtocolViolation(f"an unknown frame type {kind}")
        if kind == LOAD:
            self._load_told(channel_id, payload)
            return
        self.charge()
        if kind == WATCH:
            if len(payload) != 1 or channel_id:
                raise ProtocolViolation("a malformed WATCH")
            self._handler.watched(payload[0])
        elif kind == LOOK:
            self._handler.look_wanted(_text(payload))

    def _load_told(self, channel_id: int, payload: bytes) -> None:
        if len(payload) != NUMBER.size or channel_id:
            raise ProtocolViolation("a malformed LOAD")
        self.charge(TELLING_COSTS)
        self._handler.load_told(*NUMBER.unpack(payload))

    def _credited(self, channel: Channel, payload: bytes) -> None:
        if len(payload) != 4:
            raise ProtocolViolation("a malformed CREDIT")
        (grant,) = NUMBER.unpack(payload)
        channel.credit += grant
        channel.has_credit = True
        if not grant or channel.credit > 2 * MAX_WINDOW:
            raise ProtocolViolation("more CREDIT than a window holds" if grant else "CREDIT for nothing")
        if grant < LEAST_CREDIT:
            self.charge()
        channel.unblock()

    def _kept(self, channel: Channel, payload: bytes) -> None:
        if len(payload) != NUMBER.size or not (channel.keeps and channel.remote and channel.answered):
            raise ProtocolViolation("a malformed KEEP, or one for no request that was answered")
        if channel.fin_received:
            raise ProtocolViolation("KEEP behind FIN")
        channel._close()
        if channel.on_keep is None:
            channel.other.abort("the answer came before the request's end")
        else:
            channel.on_keep(*NUMBER.unpack(payload))

    def _answered(self, channel: Channel, kind: int, payload: bytes) -> None:
        opener, channel.opener = channel.opener, None
        if opener is None:
            raise ProtocolViolation("an answer to what nobody asked")
        if kind == BUSIER and (len(payload) != NUMBER.size or not channel.is_request):
            raise ProtocolViolation("a malformed BUSIER, or one to a tunnel that is no request")
        if kind == OPENED:
            opener.opened()
            return
        channel._close()
        if kind == REFUSED:
            opener.refused(_text(payload))
        else:
            opener.busier(*NUMBER.unpack(payload))  # type: ignore[attr-defined]  # it is a RequestObserver

    def _remote_opens(self, kind: int, channel_id: int, payload: bytes) -> None:
        if channel_id <= self._last_remote_id or channel_id & 1 != self._remote_parity:
            raise ProtocolViolation("a channel number that is not the remote's next")
        self._last_remote_id = channel_id
        if self.closed:  # by a frame before this one
            return
        tunnel, believed, takes_kept = kind != STREAM, ANY_LOAD, False
        if not tunnel:
            self.charge(STREAM_COSTS)
        elif self._load is not None:
            if len(payload) < NUMBER.size:
                raise ProtocolViolation("an OPEN without a load")
            (believed,) = NUMBER.unpack_from(payload)
            payload = payload[NUMBER.size :]
            if kind == REQUEST:
                if not payload or payload[0] > 1:
                    raise ProtocolViolation("a malformed REQUEST")
                takes_kept, payload = payload[0] == 1, payload[1:]
        if self._remote_channels >= MAX_CHANNELS or (not tunnel and self._streams >= MAX_STREAMS):
            self.charge()
            self.control(REFUSED if tunnel else RST, channel_id, b"too many at once")
            return
        channel = Channel(self, channel_id, tunnel=tunnel, remote=True)
        channel.keeps, channel.takes_kept = kind == REQUEST, takes_kept
        self.channels[channel_id] = channel
        self._remote_channels += 1
        if tunnel:
            self.tunnels += 1
            self._handler.tunnel_opened(channel, _text(payload), believed)
        else:
            self._streams += 1
            self._handler.stream_opened(channel)

    def _check_known(self, channel_id: int) -> None:
        """Frames may still arrive for a channel that we closed; never for one that nobody opened."""
        ours = channel_id & 1 != self._remote_parity
        if not channel_id or (channel_id >= self._next_id if ours else channel_id > self._last_remote_id):
            raise ProtocolViolation("a frame for a channel that was never opened")
        self.charge(STRAY_COSTS)


def _text(payload: bytes) -> str:
    """The remote's words, made fit for a log line."""
    return visible(payload[:MAX_REASON].decode("utf-8", "replace"))
