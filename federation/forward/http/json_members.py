"""The members of one JSON object, found while its bytes come. No I/O; no value is built, and memory is bounded.

Rule 1: only the outermost object's members count; a "model" inside of a message or a tool is text.
Rule 2: of two members with one key the last one wins, as in Python and Go.
Rule 3: a wanted value is kept as it was written, up to a cap; any other value is passed over, at about 2 GB/s.
Rule 4: what is passed over is not judged. JSON that is whole may come with values that a strict parser refuses: lone
surrogates, NaN, 100,000 brackets. Clients send such bodies, and some backends take them.
Rule 5: the work is bounded too: MAX_MEMBERS members, MAX_STEPS brackets that have to be looked at one by one.

    feed(b'{"messages": [{"content": "\\"model\\"')     AFTER nothing, IN a value
    feed(b':1"}], "mod\\u0065l"  : "llama3"')           kept: {"messages": ..., "model": b'"llama3"'}
    feed(b'}')                                         ENDED
    feed(b' {')                                        BROKEN: there is more behind the object

How a value is passed over: escapes are blanked (`\\\\`, then `\\"`), so that each quote that is left begins or ends a
string; strings are cut out; of the rest only brackets stay, and pairs of them vanish. If fewer closing ones are left than
are open, then the value does not end in this piece. Each of these steps is one call into C for up to PIECE bytes. A piece
in which the value does end is halved, until it is small enough to look at each bracket.
"""

from __future__ import annotations

import json
import re
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PIECE = 64 * 1024  # looked at in one go: what is built for it stays below 4 MiB, whatever it holds
SMALL = 512  # looked at bracket by bracket
ROUNDS = 16  # of removing pairs: messages nest four deep, the schema of a tool may nest a dozen
MAX_KEY = 256  # bytes as written; six for each letter of the longest key that is asked for
MAX_MEMBERS = 4096  # 3 us each
MAX_STEPS = 1 << 16  # 0.25 us each; a chat of 1 MiB takes 200

_SPACE = re.compile(rb"[ \t\r\n]*")
_SCALAR = re.compile(rb"[-+.0-9A-Za-z]*")
_TOKEN = re.compile(rb'["\[\]{}]')
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_OTHERS = bytes(set(range(256)) - set(b"[]{}"))


class State(Enum):
    BEFORE = "nothing but space has come"
    FIRST = "behind {"
    KEY = "behind a comma"
    IN_KEY = "in a key"
    COLON = "behind a key"
    VALUE = "behind a colon"
    IN_STRING = "in a value that is a string"
    IN_SCALAR = "in a number, true, false or null"
    NESTED = "in a value that is an object or an array"
    AFTER = "behind a value"
    ENDED = "the object is whole"
    BROKEN = "not an object, or not JSON"


class Members:
    """`kept`: key -> the value as written, at most as long as `cap_of` said for the key; 0: not wanted."""

    def __init__(self, cap_of: Callable[[str], int]) -> None:
        self.kept: dict[str, bytearray] = {}
        self.state = State.BEFORE
        self._cap_of = cap_of
        self._members = self._steps = 0
        self._key = bytearray()
        self._value: bytearray | None = None  # of a wanted one
        self._cap = 0
        self._depth = 0  # brackets open inside of the value, its own among them
        self._in_string = False  # inside of NESTED
        self._is_escaped = False  # the last byte was a backslash that escapes the next one

    def feed(self, data: bytes) -> State:
        for at in range(0, len(data), PIECE):
            if self.state is State.BROKEN:
                break
            self._piece(data if len(data) <= PIECE else data[at : at + PIECE])
        return self.state

    def _piece(self, piece: bytes) -> None:
        plain = self._without_escapes(piece)
        at = 0
        while at < len(piece) and self.state is not State.BROKEN:
            at = _STEPS[self.state](self, piece, plain, at)

    def _without_escapes(self, piece: bytes) -> bytes:
        """Blank the quotes within strings, so that each one left begins or ends a string. A backslash at the end escapes
        the byte that comes next."""
        plain = piece
        if self._is_escaped and piece[:1] in (b'"', b"\\"):  # as below: no other escape is blanked
            plain = b"_" + piece[1:]
        if b"\\" not in plain:
            self._is_escaped = False
            return plain
        plain = plain.replace(b"\\\\", b"__")
        self._is_escaped = plain.endswith(b"\\")
        return plain.replace(b'\\"', b"__")

    # One step for each state: takes bytes from `at` on, and returns the place of the first one that it did not take.

    def _space(self, piece: bytes, plain: bytes, at: int) -> int:
        """One byte that is no space decides what comes."""
        at = _SPACE.match(piece, at).end()  # type: ignore[union-attr]  # matches always
        if at == len(piece):
            return at
        following = _FOLLOWING[self.state].get(piece[at], State.BROKEN)
        if following is State.IN_KEY:
            self._key.clear()
            self._members += 1
            if self._members > MAX_MEMBERS:
                following = State.BROKEN
        elif self.state is State.VALUE and following is not State.BROKEN:
            self._begin(piece[at : at + 1])
            self._depth, self._in_string = 1, False
            if following is State.IN_SCALAR:
                self.state = following
                return self._in_scalar(piece, plain, at, skip=1)
        self.state = following
        return at + 1

    def _in_key(self, piece: bytes, plain: bytes, at: int) -> int:
        end = plain.find(b'"', at)
        until = len(piece) if end < 0 else end
        if len(self._key) <= MAX_KEY:
            self._key += piece[at : min(until, at + MAX_KEY + 1)]
        if end < 0:
            return until
        self.state = State.COLON
        return end + 1

    def _begin(self, first: bytes) -> None:
        """A value begins: find out whether it is wanted."""
        self._value, self._cap = None, 0
        key = text_of(b'"' + self._key + b'"') if len(self._key) <= MAX_KEY else None
        if key is not None:
            self._cap = self._cap_of(key)
            if self._cap:
                self._value = self.kept[key] = bytearray(first)

    def _keep(self, piece: bytes, at: int, end: int) -> None:
        if self._value is not None:
            room = self._cap - len(self._value)
            if room > 0:
                self._value += piece[at : min(end, at + room)]

    def _in_value_string(self, piece: bytes, plain: bytes, at: int) -> int:
        end = plain.find(b'"', at) + 1
        if end:
            self.state = State.AFTER
        else:
            end = len(piece)
        self._keep(piece, at, end)
        return end

    def _in_scalar(self, piece: bytes, plain: bytes, at: int, skip: int = 0) -> int:
        end = _SCALAR.match(piece, at).end()  # type: ignore[union-attr]  # matches always
        self._keep(piece, at + skip, end)
        if end < len(piece):
            self.state = State.AFTER
        return end

    def _nested(self, piece: bytes, plain: bytes, at: int) -> int:
        begin, size = at, len(piece) - at
        while at < len(piece) and self.state is State.NESTED:
            if self._in_string:
                quote = plain.find(b'"', at)
                at = len(piece) if quote < 0 else quote + 1
                self._in_string = quote < 0
                size = min(2 * size, len(piece) - at)
                continue
            size = min(size, len(piece) - at)
            if self._stays_nested(plain, at, at + size):
                at += size
                size *= 2
            elif size > SMALL:
                size //= 2
            else:
                at = self._look(plain, at, at + size)
                size *= 2
        self._keep(piece, begin, at)
        return at

    def _stays_nested(self, plain: bytes, at: int, end: int) -> bool:
        """Whether the value goes on behind these bytes as far as can be told at once; then they are counted."""
        parts = plain[at:end].split(b'"')
        brackets = b"".join(parts[::2]).translate(_BRACKETS, _OTHERS)
        for _ in range(ROUNDS):
            if b"[]" not in brackets:
                break
            brackets = brackets.replace(b"[]", b"")
        closing = brackets.count(b"]")
        if closing >= self._depth:
            return False
        self._depth += len(brackets) - 2 * closing
        self._in_string = len(parts) % 2 == 0
        return True

    def _look(self, plain: bytes, at: int, end: int) -> int:
        """Bracket by bracket. Stops behind the one that ends the value."""
        while (token := _TOKEN.search(plain, at, end)) is not None:
            at = token.end()
            match plain[at - 1]:
                case 0x22:
                    quote = plain.find(b'"', at)
                    if quote < 0:
                        self._in_string = True
                        return len(plain)
                    at = quote + 1
                case 0x5B | 0x7B:
                    self._depth += 1
                case _:
                    self._depth -= 1
                    if not self._depth:
                        self.state = State.AFTER
                        return at
            self._steps += 1
            if self._steps > MAX_STEPS:
                self.state = State.BROKEN
                return at
        return max(at, end)


def text_of(written: bytes | bytearray) -> str | None:
    """A string's value; None if it is no string, or none that can be encoded again (half of a surrogate pair)."""
    try:
        value = json.loads(written.decode()) if written.startswith(b'"') else None
        if isinstance(value, str):
            value.encode()
            return value
    except (ValueError, RecursionError):
        pass
    return None


_SCALARS = dict.fromkeys(b"-0123456789tfnNI", State.IN_SCALAR)
_FOLLOWING: dict[State, dict[int, State]] = {
    State.BEFORE: {0x7B: State.FIRST},
    State.FIRST: {0x22: State.IN_KEY, 0x7D: State.ENDED},
    State.KEY: {0x22: State.IN_KEY},
    State.COLON: {0x3A: State.VALUE},
    State.VALUE: {0x22: State.IN_STRING, 0x7B: State.NESTED, 0x5B: State.NESTED, **_SCALARS},
    State.AFTER: {0x2C: State.KEY, 0x7D: State.ENDED},
    State.ENDED: {},
}
_STEPS: dict[State, Callable[[Members, bytes, bytes, int], int]] = {
    **dict.fromkeys(_FOLLOWING, Members._space),
    State.IN_KEY: Members._in_key,
    State.IN_STRING: Members._in_value_string,
    State.IN_SCALAR: Members._in_scalar,
    State.NESTED: Members._nested,
}
