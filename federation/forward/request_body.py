"""The body of one HTTP request as it comes from its client: what it asks for, what is kept of it, and how long it may take.

    is_sought      kept whole, at most --http-buffer bytes, until its model is known for sure
    asked for      kept for a retry (`replay`), while its owner passes it on
    too long       it goes with the model that it has named so far, and breaks off if another one comes behind; a model
                   behind more than --http-buffer bytes is not found

All bodies of an entry together have a bound (kept_bodies.py). Where it is reached this one is not read for a while, at most
--hold; then its owner hears `waited_too_long`. A client that stops in the middle of a body has so long for its next bytes:
less where it takes the room of others. Nothing here knows the client's socket, nor where the request goes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from federation.forward.http.asks import Peek
from federation.forward.http.framing import Kind, body_of
from federation.forward.http.kept_bodies import FREE
from federation.forward.replay_buffer import ReplayBuffer

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.forward.http.asks import Asked
    from federation.forward.http.head import RequestHead
    from federation.forward.http.kept_bodies import KeptBodies
    from federation.reactor.loop import Timer

QUIET_S = 30.0  # as for a head; nobody writes a body by hand
SMALL_QUIET_S = 300.0  # of one that takes no room of others: an idle connection costs as much; nginx waits a fifth


class Entry(Protocol):
    """The dispatcher, as a body uses it."""

    bodies: KeptBodies
    hold_s: float

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer: ...


class Owner(Protocol):
    """The request of a body."""

    def asked_for(self, asked: Asked) -> None:
        """The body has told its model: send the request on its way."""

    def refuse_body(self, status: int, why: str) -> None: ...

    def may_grow(self) -> None:
        """There is room again: read the client."""

    def give_up_retry(self) -> None:
        """Others need the room; see kept_bodies.Keeper."""

    def waited_too_long(self) -> None:
        """There was no room for --hold."""


class RequestBody:
    """`received`: bytes so far. `is_whole`: all of it has come. `replay`: what is kept, with the head before it from the
    pick on. `is_sought`: what it asks for is not known yet."""

    __slots__ = (
        "_entry", "_framing", "_is_chunked", "_is_counted", "_is_over", "_late", "_owner", "_peek", "_quiet", "_wait",
        "is_whole", "received", "replay",
    )  # fmt: skip

    def __init__(self, entry: Entry, owner: Owner, head: RequestHead) -> None:
        self._entry = entry
        self._owner = owner
        self._framing = body_of(head.framing)
        self._is_chunked = head.framing.kind is Kind.CHUNKED
        self.is_whole = self._framing.is_over
        self.received = 0
        self.replay = ReplayBuffer()
        self._peek: Peek | None = Peek(
            head.method, head.target,
            content_type=head.get(b"content-type") or b"", content_encoding=head.get(b"content-encoding") or b"",
            session=head.get(b"x-session-id") or b"",
        )  # fmt: skip
        self._late: Peek | None = None  # of a body that is too long
        self._wait: Timer | None = None  # for room
        self._quiet: Timer | None = None  # for the next bytes
        self._is_counted = False  # among the bodies that are kept
        self._is_over = False

    @property
    def is_sought(self) -> bool:
        return self._peek is not None

    @property
    def waits(self) -> bool:
        """Whether there is no room for more of it."""
        return self._wait is not None

    @property
    def room_for_retry(self) -> int:
        """How many more bytes may be kept, although what it asks for is known."""
        bodies, size = self._entry.bodies, self.replay.size
        return min(bodies.each - size, bodies.room(self, size))

    def room(self) -> int:
        """How many bytes may come now, while `is_sought`. Without room it waits."""
        entry = self._entry
        room = entry.bodies.room(self, self.replay.size)
        if room <= 0 and self._wait is None:
            entry.bodies.wait(self)
            self._wait = entry.call_later(entry.hold_s, self._waited_too_long)
            self._expect_more()
        return room

    def feed(self, data: bytes) -> bytes:
        """Bytes of the client. Returns those that are of this body; the owner has heard `asked_for`, if that is known now.
        Raises HttpInvalid."""
        is_sought = self._peek is not None
        content: list[memoryview] | None = [] if is_sought else None
        used = self._framing.feed(data, content)
        self.received += used
        self.is_whole = self._framing.is_over
        chunk = data[:used]
        if is_sought:
            if chunk:
                self.replay.add(chunk)
            self._seek(b"".join(content or ()) if self._is_chunked else chunk)
        return chunk

    def _seek(self, chunk: bytes) -> None:
        assert self._peek is not None
        asked = self._peek.feed(chunk)
        if self.is_whole:
            asked = self._peek.finish()
        if asked is None:
            most = self._entry.bodies.each
            if self.replay.size < most:
                return
            asked, self._late = self._peek.so_far, self._peek
            if not asked.model and not asked.trouble:
                why = f"the model is not among the first {most} bytes of the body, which --http-buffer sets"
                self._owner.refuse_body(413, why)
                return
        self._peek = None
        if asked.trouble:
            self._owner.refuse_body(400, asked.trouble)
            return
        self._owner.asked_for(asked)

    def trouble_behind(self, chunk: bytes, model: str) -> str:
        """Read on in a body that was too long to be kept and named `model` before. Returns why it breaks off, if so."""
        if self._late is None:
            return ""
        asked = self._late.feed(chunk)
        if self.is_whole:
            asked = self._late.finish()
        if asked is None or (not asked.trouble and asked.model == model):
            return ""
        return asked.trouble or "the body names another model behind its first one"

    def count(self) -> None:
        """Tell what is kept, once it is more than counts as nothing."""
        if self._is_over:
            return
        held = self.replay.held
        if held > FREE or self._is_counted:
            self._is_counted = held > FREE
            self._entry.bodies.keeps(self, held, grows=self.is_sought)
        if self.is_sought or self._quiet is not None:
            self._expect_more()

    def drop(self) -> None:
        """The request is over."""
        self._is_over = True
        for timer in (self._wait, self._quiet):
            if timer is not None:
                timer.cancel()
        self._wait = self._quiet = None
        self._entry.bodies.drops(self)

    def _expect_more(self) -> None:
        if self._quiet is not None:
            self._quiet.cancel()
        is_expected = self.is_sought and self._wait is None
        quiet_s = QUIET_S if self._is_counted else SMALL_QUIET_S
        self._quiet = self._entry.call_later(quiet_s, self._was_quiet) if is_expected else None

    def _was_quiet(self) -> None:
        self._quiet = None
        self._owner.refuse_body(408, "the rest of the body is late")

    def _waited_too_long(self) -> None:
        self._wait = None
        self._owner.waited_too_long()

    # kept_bodies.Keeper

    def may_grow(self) -> None:
        if self._wait is not None:
            self._wait.cancel()
            self._wait = None
        self._expect_more()
        self._owner.may_grow()

    def give_up_retry(self) -> None:
        self._owner.give_up_retry()
