"""Helpers for tests: the two sides of a mux, and what goes between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from federation.net.link.channel import (
    CHANNEL_BUFFER,
    GROWTH_BUDGET,
    INITIAL_WINDOW,
    MAX_WINDOW,
    Channel,
)
from federation.net.link.frames import (
    ANY_LOAD,
    CREDIT,
    OPENED,
)
from federation.net.link.mux import (
    MAX_CHANNELS,
    MAX_STREAMS,
    Load,
    Mux,
)
from federation.net.link.seal import MAX_PLAINTEXT
from tests.support.duplex import End
from tests.support.frames import credit, frame, frames

KB = 1024


@dataclass
class Side:
    """A mux, and what it tells its owner. What the remote opens is joined to an End."""

    initiator: bool = True
    tunnels: list[tuple[Channel, str]] = field(default_factory=list)
    streams: list[Channel] = field(default_factory=list)
    pongs: list[bytes] = field(default_factory=list)
    wakes: int = 0
    accepts: bool = True
    takes: bool = True  # remote channels' readers give credit at once
    load: Load | None = None
    believed: list[int] = field(default_factory=list)
    told: list[int] = field(default_factory=list)
    watched_s: list[int] = field(default_factory=list)
    looks: list[str] = field(default_factory=list)
    keeps: bool = False

    def __post_init__(self) -> None:
        self.mux = Mux(
            initiator=self.initiator, handler=self, wake=self._wake, load=self.load, entry_id="entry", keeps=self.keeps
        )  # fmt: skip

    def _wake(self) -> None:
        self.wakes += 1

    def tunnel_opened(self, channel: Channel, service: str, believed: int) -> None:
        channel.other = End(credit=self.takes, other=channel)
        self.believed.append(believed)
        self.tunnels.append((channel, service))
        if self.accepts:
            channel.accept()

    def load_told(self, others: int) -> None:
        self.told.append(others)

    def watched(self, seconds: int) -> None:
        self.watched_s.append(seconds)

    def look_wanted(self, service: str) -> None:
        self.looks.append(service)

    def stream_opened(self, channel: Channel) -> None:
        channel.other = End(credit=self.takes, other=channel)
        self.streams.append(channel)

    def pong(self, payload: bytes) -> None:
        self.pongs.append(payload)

    def open(self, service: str = "default", *, takes: bool = True) -> tuple[Channel, End]:
        end = End(credit=takes)
        end.other = self.mux.open_tunnel(service, end, end)
        return end.other, end

    def request(self, believed: int = ANY_LOAD) -> tuple[Channel, End]:
        """A tunnel that counts for the remote's load."""
        end = End()
        end.other = self.mux.open_request("default", end, end, believed)
        return end.other, end

    def exchange(self, *, takes_kept: bool = True) -> tuple[Channel, End]:
        """A request whose end we will know."""
        end = End()
        end.other = self.mux.open_exchange("default", end, end, ANY_LOAD, takes_kept=takes_kept)
        return end.other, end

    def opened(self) -> tuple[Channel, End]:
        """A tunnel that the remote has answered, with the frames of that out of the way."""
        channel, end = self.open()
        self.said()
        self.mux.feed(frame(OPENED, channel.id))
        end.heard.clear()
        return channel, end

    def records(self) -> list[bytes]:
        said = []
        while (record := self.mux.next_record()) is not None:
            assert 1 <= len(record) <= MAX_PLAINTEXT
            said.append(record)
        return said

    def said(self) -> list[Any]:
        return [item for record in self.records() for item in frames(record)]

    def check(self) -> None:
        """The sums that the mux keeps are the sums of what it has."""
        mux = self.mux
        channels = mux.channels.values()
        assert mux.out_size == sum(c.out_size for c in channels)
        assert mux.window_growth == sum(c.window - INITIAL_WINDOW for c in channels) <= GROWTH_BUDGET
        assert mux.tunnels == sum(c.tunnel for c in channels)
        assert mux._remote_channels == sum(c.remote for c in channels) <= MAX_CHANNELS
        assert mux._streams == sum(c.remote and not c.tunnel for c in channels) <= MAX_STREAMS
        for channel in channels:
            assert not channel.closed
            assert 0 <= channel.granted <= channel.window <= MAX_WINDOW
            assert 0 <= channel.unacknowledged <= channel.window
            assert channel.out_size <= CHANNEL_BUFFER
            assert channel.out_size == sum(map(len, channel._out))


def pair(**b: Any) -> tuple[Side, Side]:
    return Side(initiator=True), Side(initiator=False, **b)


def loaded_pair(**b: Any) -> tuple[Side, Side]:
    """Both ends speak of their load."""
    return Side(initiator=True, load=Load()), Side(initiator=False, load=Load(), **b)


def keeping_pair(**b: Any) -> tuple[Side, Side]:
    """Both ends can keep connections of backends."""
    return Side(initiator=True, load=Load(), keeps=True), Side(initiator=False, load=Load(), keeps=True, **b)


def pump(a: Side, b: Side) -> list[Any]:
    """Carry records to and fro until both have said all; returns what was said as (who, frame)."""
    said = []
    while True:
        quiet = True
        for name, here, there in (("a", a, b), ("b", b, a)):
            for record in here.records():
                quiet = False
                said += [(name, *item) for item in frames(record)]
                there.mux.feed(record)
        if quiet:
            return said


def pour(channel: Channel, data: bytes) -> int:
    """What a source does: as much as there is room for. Returns how much went."""
    at = 0
    while at < len(data) and (room := channel.writable()):
        channel.send(data[at : at + room])
        at += min(room, len(data) - at)
    return at


def granted(a: Side, n: int) -> list[tuple[Channel, End]]:
    """Channels whose remote grants as much as may be."""
    channels = [a.opened() for _ in range(n)]
    for channel, _ in channels:
        a.mux.feed(frame(CREDIT, channel.id, credit(MAX_WINDOW)))
    return channels
