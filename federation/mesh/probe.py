"""Questions to a peer that no backend sees: how good is the way there, and does the peer's clock agree with ours?

They use a libp2p stream of the link, so they travel as all traffic between the two nodes does. A request begins with one
byte; a stream of echoes may hold many, the others hold one.

    e + 16 bytes              -> the same 16 bytes
    t                         -> message {"utc": seconds since 1970, "version": text, "seen": [host, port]}
    u + bytes until EOF       -> 8 bytes: how many came
    d + 8 bytes: how many     -> so many zeros, then EOF
"""

from __future__ import annotations

import math
import os
import struct
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
import trio

from federation import __version__
from federation.errors import PeerUnavailable, ProbeFailed, ProtocolViolation
from federation.net import wire
from federation.net.dial.address import ip_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from federation.net.host import Host
    from federation.net.link.link import Link
    from federation.net.streams import TrioStream

log = structlog.get_logger(__name__)

PROTOCOL = "/federation/probe/1"
ECHO_BYTES = 16
MAX_ECHOES = 100  # a stream
MAX_BULK_BYTES = 256 * 1024**2
MAX_BULK_S = 10.0  # whichever comes first; then the rate is known well enough
MAX_BULKS = 2  # at once, over all peers: it is a measurement, and clients come first
CHUNK = 64 * 1024
ANSWER_S = 5.0
MAX_TOLD_BYTES = 1024
_LONG = struct.Struct(">Q")


class Told(NamedTuple):
    """A peer's answer. `ahead_s`: how far its wall clock is ahead of ours; `seen`: the address from which it sees us,
    checked to be an IP address without a zone."""

    ahead_s: float
    rtt_s: float
    version: str
    seen: tuple[str, int] | None


class Moved(NamedTuple):
    """Bytes that went through, and the time that they took."""

    bytes: int
    seconds: float


class Probe:
    """Asks peers and answers them. Raises ProbeFailed if asking fails. `wall()`: the wall clock, in seconds since 1970."""

    def __init__(self, host: Host, *, wall: Callable[[], float] = time.time) -> None:
        self._host = host
        self._wall = wall
        self._bulks = 0
        host.handle_stream(PROTOCOL, self._answer)

    # Asking

    async def echo(self, peer_id: str, count: int) -> list[float]:
        """Measure `count` round trips, one after the other, in seconds."""
        times = []
        async with await self._open(peer_id) as stream:
            with _failing_well(ANSWER_S):
                for _ in range(count):
                    sent = os.urandom(ECHO_BYTES)
                    begun = trio.current_time()
                    await stream.send_all(b"e" + sent)
                    if await wire.read_exactly(stream.receive_some, ECHO_BYTES) != sent:
                        raise ProbeFailed("it answered with other bytes than it was sent")
                    times.append(trio.current_time() - begun)
                await stream.send_eof()
        return times

    async def tell(self, peer_id: str) -> Told:
        async with await self._open(peer_id) as stream:
            with _failing_well(ANSWER_S):
                begun = trio.current_time()
                await stream.send_all(b"t")
                answer = await wire.receive(stream, at_most=MAX_TOLD_BYTES)
                rtt_s = trio.current_time() - begun
        match answer:
            case {"utc": float(utc), "version": str(version), "seen": [str(host), int(port)]} if math.isfinite(utc):
                address = ip_address(host, port)
                seen = None if address is None else (address.host, address.port)
                return Told(utc + rtt_s / 2 - self._wall(), rtt_s, version[:64], seen)
            case {"utc": float(utc), "version": str(version)} if math.isfinite(utc):
                return Told(utc + rtt_s / 2 - self._wall(), rtt_s, version[:64], None)
        raise ProbeFailed("its answer makes no sense")

    async def send(self, peer_id: str, limit: int, seconds: float) -> Moved:
        """Send at most `limit` bytes for at most `seconds`. Counts the bytes that the peer received."""
        chunk = bytes(CHUNK)
        async with await self._open(peer_id) as stream:
            with _failing_well(seconds + ANSWER_S):
                begun = trio.current_time()
                await stream.send_all(b"u")
                sent = 0
                while sent < limit and trio.current_time() - begun < seconds:
                    await stream.send_all(chunk[: limit - sent])
                    sent += min(CHUNK, limit - sent)
                await stream.send_eof()
                (arrived,) = _LONG.unpack(await wire.read_exactly(stream.receive_some, _LONG.size))
                return Moved(min(arrived, sent), trio.current_time() - begun)

    async def fetch(self, peer_id: str, limit: int, seconds: float) -> Moved:
        """Receive at most `limit` bytes for at most `seconds`."""
        async with await self._open(peer_id) as stream:
            with _failing_well(seconds + ANSWER_S):
                begun = trio.current_time()
                await stream.send_all(b"d" + _LONG.pack(limit))
                arrived = 0
                while arrived < limit and trio.current_time() - begun < seconds:
                    chunk = await stream.receive_some(CHUNK)
                    if not chunk:
                        break
                    arrived += len(chunk)
                if not arrived:
                    raise ProbeFailed("it sends nothing; it may be busy with other measurements")
                return Moved(arrived, trio.current_time() - begun)

    async def _open(self, peer_id: str) -> TrioStream:
        with _failing_well(ANSWER_S):
            try:
                return await self._host.open_stream(peer_id, PROTOCOL)
            except PeerUnavailable as error:
                raise ProbeFailed(error.detail) from None

    # Answering

    async def _answer(self, link: Link, stream: TrioStream) -> None:
        async with stream:
            try:
                await self._serve(link, stream)
            except (ProbeFailed, trio.BrokenResourceError, trio.TooSlowError) as error:
                log.debug("a probe was not answered", peer=link.peer_id, why=str(error) or type(error).__name__)

    async def _serve(self, link: Link, stream: TrioStream) -> None:
        for _ in range(MAX_ECHOES):
            with trio.fail_after(ANSWER_S):
                what = await stream.receive_some(1)
            if what == b"e":
                with trio.fail_after(ANSWER_S):
                    await stream.send_all(await wire.read_exactly(stream.receive_some, ECHO_BYTES))
                continue
            if what == b"t":
                answer: dict[str, Any] = {"utc": self._wall(), "version": __version__}
                if link.remote_address is not None:
                    answer["seen"] = list(link.remote_address[:2])
                await wire.send(stream, answer)
            elif what in (b"u", b"d") and self._bulks < MAX_BULKS:
                self._bulks += 1
                try:
                    with trio.fail_after(MAX_BULK_S + ANSWER_S):
                        await (_discard(stream) if what == b"u" else _fill(stream))
                finally:
                    self._bulks -= 1
            elif what:
                raise ProbeFailed("not served here, or not now")
            await stream.send_eof()
            return


async def _discard(stream: TrioStream) -> None:
    arrived = 0
    while arrived < MAX_BULK_BYTES:
        chunk = await stream.receive_some(CHUNK)
        if not chunk:
            break
        arrived += len(chunk)
    await stream.send_all(_LONG.pack(arrived))


async def _fill(stream: TrioStream) -> None:
    (wanted,) = _LONG.unpack(await wire.read_exactly(stream.receive_some, _LONG.size))
    chunk = bytes(CHUNK)
    left = min(wanted, MAX_BULK_BYTES)
    while left > 0:
        await stream.send_all(chunk[:left])
        left -= CHUNK


@contextmanager
def _failing_well(seconds: float) -> Iterator[None]:
    """Turn every failure on the way into ProbeFailed."""
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise ProbeFailed(f"no answer within {seconds:g} s") from None
    except (trio.BrokenResourceError, ProtocolViolation) as error:
        why = f"it broke off ({error}); it may run an older version, or be busy with other measurements"
        raise ProbeFailed(why) from None
