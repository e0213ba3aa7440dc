"""One answer of a backend, cut into its head and its body as its bytes come. Sans-IO.

    feed_head(view) -> used, head       until the final head came; interim ones come as well
    begin_body(head, ...)               that head is the final one
    feed_body(view, now) -> used, content, made

`content` is the body without its framing, where anything reads that: a stream's last words, tokens, the id of what was made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from federation.forward.http.dialects import TAIL, is_between_events, stream_error
from federation.forward.http.framing import body_of
from federation.forward.http.head import HeadBuffer, parse_response
from federation.forward.http.ids import maker_of
from federation.forward.http.rewrite import is_unchunked
from federation.forward.http.usage import is_stream, meter_of

if TYPE_CHECKING:
    from federation.forward.http.dialects import Dialect
    from federation.forward.http.framing import Body
    from federation.forward.http.head import RequestHead, ResponseHead
    from federation.forward.http.ids import Maker
    from federation.forward.http.usage import Meter

COMMENT = b":\n\n"


class AnswerReader:
    """The answer of one upstream to `request`. `head`, `body`: the final ones, once they began. `size`: bytes read."""

    __slots__ = ("_buffer", "_is_stream", "_maker", "_request", "_tail", "body", "head", "is_unchunked", "meter", "size")

    def __init__(self, request: RequestHead) -> None:
        self._request = request
        self._buffer = HeadBuffer(is_answer=True)
        self.head: ResponseHead | None = None
        self.body: Body | None = None
        self.size = 0
        self.is_unchunked = False  # the client gets the content alone
        self._is_stream = False
        self._tail = b""  # of a stream
        self.meter: Meter | None = None  # of an answer to a request that names a model
        self._maker: Maker | None = None  # of an answer to a request that makes something

    def feed_head(self, view: memoryview) -> tuple[int, ResponseHead | None]:
        """How many bytes are a head's, and the head if it is whole. Raises HttpInvalid."""
        used, raw = self._buffer.feed(view)
        self.size += used
        if raw is None:
            return used, None
        self._buffer = HeadBuffer(is_answer=True)
        return used, parse_response(raw, self._request)

    def begin_body(self, head: ResponseHead, *, names_model: bool, target: str) -> None:
        """The final head came. `target`: of the request, as its backend got it."""
        self.head = head
        self.meter = meter_of(head) if names_model else None
        self._maker = maker_of(self._request.method, target, head)
        self.body = body_of(head.framing)
        self._is_stream = is_stream(head)
        self.is_unchunked = is_unchunked(head, self._request)

    def feed_body(self, view: memoryview, now: float) -> tuple[int, list[memoryview], str]:
        """How many bytes are the body's; its content, where it is read; and the name of the thing that was made, once, as
        soon as the body has said it. Raises HttpInvalid."""
        body, meter, made = self.body, self.meter, ""
        assert body is not None
        is_read = meter is not None or self._maker is not None or self._is_stream or self.is_unchunked
        content: list[memoryview] = []
        used = body.feed(view, content if is_read else None)
        self.size += used
        if content:
            if meter is not None:
                meter.feed(content, now)
            if self._maker is not None and (made := self._maker.feed(content)):
                self._maker = None
            if self._is_stream:
                self._tail = (self._tail + b"".join(content[-8:]))[-TAIL:]
        return used, content, made

    def last_words(self, dialect: Dialect) -> bytes | None:
        """The end of a body that its backend cannot end: an error for the stream's reader. None where there is no place for
        one."""
        content = stream_error(dialect, self.head, self._tail) if self.head is not None else None
        if content is None or self.body is None:
            return None
        return content if self.is_unchunked else self.body.ending(content)

    def comment(self) -> bytes:
        """Bytes that the reader of this body skips, if it may have some now."""
        if self.head is None or self.body is None or not is_between_events(self.head, self._tail):
            return b""
        return COMMENT if self.is_unchunked else self.body.extra(COMMENT)
