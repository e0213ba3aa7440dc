"""Whether a backend that nobody called HTTP speaks it and keeps connections: told by an exchange that passes by anyway.

A backend written HOST:PORT may be a web server or a database; the node sends neither a question (model_watch.py has that
rule). But its clients tell, without a word of ours:

    first words                                     what they tell
    GET / HTTP/1.1 ... HTTP/1.1 200 OK, and both    it speaks HTTP, and its clients keep connections. Later ones are cut
    are going to keep the connection                into requests: an idle one counts nowhere and holds up no drain
    HTTP, and the connection ends with the answer   nothing: on layer 4 it is served as well
    101 Switching Protocols, no answer              nothing
    CONNECT h:443, GET http://h/, whatever follows  nothing: a proxy's clients, whose requests no entry takes apart
    anything else that the backend answers          it does not; after MOST_DENIALS nobody listens any more

The backend has to be silent until its client has sent a whole head, or its answer is to something else.

Only connections to a backend that is not known yet have a listener, and of many that told nothing a few, so all others cost
what they did. What a backend is known for stands while the node runs, until another server takes its place: after it was
down its clients are heard anew.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.reactor.sockets import SocketDuplex

MOST_DENIALS = 8  # answers in another protocol: one may be a scanner's bytes, and what a server says to these
# Exchanges in HTTP that told nothing, one after the other; from then on one connection of LOOK_RARELY is heard.
MOST_LOOKS = 64
LOOK_RARELY = 16
HEAD = 8192  # bytes of a head, which most servers refuse beyond: a longer one is no evidence

_REQUEST = re.compile(rb"[A-Z]{3,16} ([!-~]+) HTTP/1\.([01])\r?\n")
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])[ \r\n]")
_STATUS_SIZE = len(b"HTTP/1.1 200 ")
_HEAD_END = re.compile(rb"\n\r?\n")
_CLOSES = re.compile(rb"\nconnection[ \t]*:[^\n]*\b(?:close|upgrade)\b", re.IGNORECASE)
_IS_FRAMED = re.compile(rb"\n(?:content-length[ \t]*:|transfer-encoding[ \t]*:[^\n]*chunked)", re.IGNORECASE)


class Protocol(Enum):
    UNKNOWN = "unknown"
    HTTP = "http"
    OTHER = "other"


class Repute:
    """What its clients' first words told of one backend. `on_change()` is called when it is known to speak HTTP, and when
    it turns out not to any more."""

    __slots__ = ("_denials", "_looks", "_on_change", "is_open", "speaks")

    def __init__(self, on_change: Callable[[], None], *, is_open: bool) -> None:
        """`is_open`: nobody has said what it speaks."""
        self._on_change = on_change
        self._denials = self._looks = 0
        self.is_open = is_open  # connections are to be heard
        self.speaks = Protocol.UNKNOWN

    def listens(self) -> bool:
        """Whether to the next connection. While `is_open`."""
        if self._looks < MOST_LOOKS:
            return True
        self._looks += 1
        return self._looks % LOOK_RARELY == 0

    def again(self) -> None:
        """Another server may have taken its place."""
        self._denials = self._looks = 0
        self.is_open = True

    def heard(self, asked: bytes, answered: bytes) -> None:
        if not self.is_open:
            return
        if _STATUS.match(answered) is None:
            self._denials += 1
            if self.speaks is Protocol.HTTP or self._denials >= MOST_DENIALS:
                self._is(Protocol.OTHER)
        elif are_going_to_keep(asked, answered):
            self._is(Protocol.HTTP)
        else:
            self._looks += 1

    def _is(self, speaks: Protocol) -> None:
        before, self.speaks, self.is_open = self.speaks, speaks, False
        if (before is Protocol.HTTP) != (speaks is Protocol.HTTP):
            self._on_change()


def are_going_to_keep(asked: bytes, answered: bytes) -> bool:
    """Whether both heads are whole ones of HTTP/1.1 whose connection goes on behind this answer, for another request."""
    request, status = _REQUEST.match(asked), _STATUS.match(answered)
    ends = _HEAD_END.search(asked), _HEAD_END.search(answered)
    if request is None or status is None or ends[0] is None or ends[1] is None or request[2] + status[1] != b"11":
        return False
    if not request[1].startswith((b"/", b"*")):  # a proxy's client, whose requests no entry takes apart
        return False
    heads = asked[: ends[0].end()], answered[: ends[1].end()]
    has_end = status[2] in (b"204", b"304") or request[0].startswith(b"HEAD ") or _IS_FRAMED.search(heads[1])
    return status[2][:1] != b"1" and bool(has_end) and not any(_CLOSES.search(head) for head in heads)


class FirstWords:
    """The listener at a backend's socket: the first words of both directions go to the backend's repute."""

    __slots__ = ("_answer", "_asked", "_end", "_repute")

    def __init__(self, end: SocketDuplex, repute: Repute) -> None:
        self._end = end
        self._repute = repute
        self._asked = b""
        self._answer = b""

    def on_sent(self, data: bytes | memoryview) -> None:
        if not self._answer and len(self._asked) < HEAD:
            self._asked += data[: HEAD - len(self._asked)]

    def on_received(self, data: bytes) -> None:
        """Bytes of the backend, until its first head is here."""
        self._answer += data[: HEAD - len(self._answer)]
        answer = self._answer
        if len(answer) < _STATUS_SIZE:
            is_enough = not b"HTTP/1.".startswith(answer[:7])
        else:
            is_enough = _STATUS.match(answer) is None or len(answer) == HEAD or _HEAD_END.search(answer) is not None
        if is_enough:
            self._end.listener = None
            self._repute.heard(self._asked, answer)

    def on_close(self) -> None:
        self._end.listener = None  # no cycle is left
        if self._asked and not _REQUEST.match(self._asked):
            self._repute.heard(self._asked, b"")
