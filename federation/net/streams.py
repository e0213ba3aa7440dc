"""The async face of a mux channel: libp2p's stream, and a trio stream for our own protocols and tests."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING

import trio
from libp2p.abc import IMuxedStream
from libp2p.stream_muxer.exceptions import MuxedStreamClosed, MuxedStreamEOF, MuxedStreamReset

if TYPE_CHECKING:
    from types import TracebackType

    from federation.net.link.channel import Channel
    from federation.net.link.link import Link

MAX_CHUNK = 64 * 1024


class MuxStream(IMuxedStream):
    """One libp2p stream. Its channel holds it as `other`: received bytes wait here, within the channel's window."""

    def __init__(self, channel: Channel, link: Link) -> None:
        self.channel = channel
        self.link, self.muxed_conn = link, link.muxed_conn
        channel.other = self
        self._in = bytearray()  # not a queue of chunks: a remote that sends by twos would have us hold 40 bytes for each
        self._arrived = trio.Event()
        self._writable = trio.Event()
        self._eof = False
        self._reset: str | None = None
        self._write_closed = False
        self._read_closed = False
        self._timeout_s = math.inf

    # Duplex, towards the channel

    def writable(self) -> int:
        return MAX_CHUNK

    def send(self, data: bytes | memoryview) -> None:
        if self._read_closed:
            self.channel.abort("nobody reads here any more")
            return
        self._in += data
        self._arrived.set()

    def send_eof(self) -> None:
        self._eof = True
        self._arrived.set()

    def abort(self, reason: str) -> None:
        self._reset = reason
        self.wake()

    def acknowledge(self, n: int) -> None:
        """Do nothing: the channel counts credit."""

    def resume_writing(self) -> None:
        self._writable.set()

    # libp2p

    async def read(self, n: int | None = None) -> bytes:
        """Read at least one byte and at most `n`. Raises MuxedStreamEOF, MuxedStreamReset or TooSlowError (set_deadline).

        No caller of ours waits for more than MAX_CHUNK at once. A caller that asks for more believes a length that the peer
        wrote, as multistream does, and would collect that much outside the channel's window.
        """
        if n is not None and n > MAX_CHUNK:
            raise MuxedStreamReset("the peer announces more than anybody reads")
        with trio.fail_after(self._timeout_s):
            while not self._in:
                if self._eof:
                    raise MuxedStreamEOF("the other side has finished")
                self._raise_if_reset()
                if self._read_closed:
                    raise MuxedStreamClosed("this side has closed")
                self._arrived = trio.Event()
                await self._arrived.wait()
        size = len(self._in) if n is None or n < 0 else n
        chunk = bytes(self._in[:size])
        del self._in[:size]
        self.channel.acknowledge(len(chunk))
        return chunk

    async def write(self, data: bytes) -> None:
        """Return when all bytes are queued within the credit. After a cancel some may have gone, but never half a record."""
        view = memoryview(data)
        with trio.fail_after(self._timeout_s):
            while view:
                self._raise_if_reset()
                if self._write_closed:
                    raise MuxedStreamClosed("this side has finished")
                room = self.channel.writable()
                if room:
                    self.channel.send(view[:room])
                    view = view[room:]
                else:
                    self._writable = trio.Event()
                    await self._writable.wait()

    async def close(self) -> None:
        """Send FIN; the other side may go on."""
        if not self._write_closed:
            self._write_closed = True
            self.channel.send_eof()

    async def close_both(self) -> None:
        """Send FIN, and stop reading: a remote that sends more gets a reset, as with TCP."""
        if self._in:
            await self.reset()
        else:
            self._read_closed = True
            await self.close()

    async def close_write(self) -> None:
        await self.close()

    async def reset(self) -> None:
        if self._reset is None:
            self._reset = "reset here"
            self.channel.abort("reset")
            self.wake()

    def take_unread(self) -> tuple[bytes, str | None]:
        """The bytes not read yet, and the reason if nothing follows (None: more may). For the channel's next `other`."""
        unread = bytes(self._in)
        self._in.clear()
        return unread, self._reset or ("the other side has finished" if self._eof else None)

    def wake(self) -> None:
        """Wake the tasks that wait, so that they look again."""
        self._arrived.set()
        self._writable.set()

    def set_deadline(self, ttl: int) -> None:
        if ttl < 0:
            raise ValueError("a deadline lies in the future")
        self._timeout_s = float(ttl) if ttl else math.inf

    def get_remote_address(self) -> tuple[str, int] | None:
        return self.link.remote_address

    async def __aenter__(self) -> MuxStream:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    def _raise_if_reset(self) -> None:
        if self._reset is not None:
            raise MuxedStreamReset(self._reset)


class _OneTask:
    """trio's rule that two tasks never send, or receive, on one stream at once."""

    def __init__(self, message: str) -> None:
        self._message = message
        self._held = False

    def __enter__(self) -> None:
        if self._held:
            raise trio.BusyResourceError(self._message)
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False


class TrioStream(trio.abc.HalfCloseableStream):
    """A MuxStream as a trio stream: checkpoints, EOF as b"", trio's exceptions. What a link brought ends with it."""

    def __init__(self, stream: MuxStream) -> None:
        self.link = stream.link
        self._stream = stream
        self._sending = _OneTask("another task is sending")
        self._receiving = _OneTask("another task is receiving")
        self._closed = False
        self._eof_sent = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with self._sending:
            self._check_open()
            if self._eof_sent:
                raise trio.ClosedResourceError("EOF was sent")
            await trio.lowlevel.checkpoint()
            try:
                await self._stream.write(bytes(data))
            except (MuxedStreamReset, MuxedStreamClosed) as error:
                self._check_open()
                raise trio.BrokenResourceError(str(error)) from error

    async def wait_send_all_might_not_block(self) -> None:
        with self._sending:
            self._check_open()
            await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be at least 1")
        with self._receiving:
            self._check_open()
            await trio.lowlevel.checkpoint()
            try:
                data = await self._stream.read(MAX_CHUNK if max_bytes is None else min(max_bytes, MAX_CHUNK))
            except MuxedStreamEOF:
                return b""
            except (MuxedStreamReset, MuxedStreamClosed) as error:
                self._check_open()
                raise trio.BrokenResourceError(str(error)) from error
            if self.link.is_closed:  # a peer that was put out is not heard any more, even with bytes that it sent before
                raise trio.BrokenResourceError("the connection is closed")
            return data

    async def send_eof(self) -> None:
        with self._sending:
            self._check_open()
            self._eof_sent = True
            await self._stream.close()
            await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            await self._stream.close_both()
            self._stream.wake()
        await trio.lowlevel.checkpoint()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError
