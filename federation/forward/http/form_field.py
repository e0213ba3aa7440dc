"""One field of an upload, found while its bytes come: multipart/form-data of RFC 7578. No I/O, bounded memory.

Rule 1: only a part whose Content-Disposition has this one name and no file name is the field.
Rule 2: CRLF ends lines, as the RFC says. Where a lenient server reads more parts than we do, the field is not found.
Rule 3: parts and the heads of parts are bounded. A file is passed over at the speed of bytes.find.

    --b\\r\\n
    Content-Disposition: form-data; name="file"; filename="speech.wav"\\r\\n
    \\r\\n
    RIFF....                                                            passed over
    \\r\\n--b\\r\\n
    Content-Disposition: form-data; name="model"\\r\\n
    \\r\\n
    whisper-1                                                           values == [b"whisper-1"]
    \\r\\n--b--\\r\\n                                                     is_whole
"""

from __future__ import annotations

import re

MAX_HEAD = 8192  # of one part
MAX_PARTS = 1000  # 5 us each
MAX_VALUE = 1024
MAX_CONTENT_TYPE = 1024

_BOUNDARY = re.compile(
    rb'[^;]*;(?:[^"]*;)?\s*boundary\s*=\s*(?:"([^"\\]{1,70})"|([^\s";,]{1,70}))\s*(?:;.*)?', re.IGNORECASE
)
_DISPOSITION = re.compile(rb"^content-disposition:[ \t]*form-data[ \t]*((?:;[^\r\n]*)?)\r?$", re.IGNORECASE | re.MULTILINE)
_NAME = re.compile(rb';[ \t]*name[ \t]*=[ \t]*(?:"([^"]*)"|([^\s";]*))', re.IGNORECASE)
_FILE_NAME = re.compile(rb";[ \t]*filename\*?[ \t]*=", re.IGNORECASE)


def boundary_of(content_type: bytes) -> bytes | None:
    """The boundary of a multipart form; None if it is none, or has no boundary that the RFC allows."""
    if len(content_type) > MAX_CONTENT_TYPE or not content_type.lower().startswith(b"multipart/form-data"):
        return None
    found = _BOUNDARY.fullmatch(content_type)
    return (found[1] or found[2]) if found else None


class FormField:
    """`values`: all that the field was given, whole ones. `is_broken`: this is no form, or one beyond the bounds."""

    def __init__(self, boundary: bytes, name: bytes) -> None:
        self.values: list[bytes] = []
        self.is_whole = self.is_broken = False
        self._name = name
        self._delimiter = b"\r\n--" + boundary
        self._kept = b"\r\n"  # the first delimiter needs none before it
        self._in_head = False
        self._value: bytearray | None = None  # of the field; None in any other part
        self._parts = 0

    def feed(self, data: bytes) -> None:
        if self.is_whole or self.is_broken:
            return
        data = self._kept + data
        at = 0
        while not (self.is_whole or self.is_broken):
            after = self._head(data, at) if self._in_head else self._body(data, at)
            if after < 0:
                break
            at = after
        self._kept = data[at:] if self._in_head else data[max(at, len(data) - self._tail(data, at)) :]

    def _tail(self, data: bytes, at: int) -> int:
        """What may be a delimiter's beginning, with the two bytes behind it that say whether it is the last one."""
        most = len(self._delimiter) + 1
        found = data.find(self._delimiter, max(at, len(data) - most))
        return len(data) - found if found >= 0 else min(most - 2, len(data) - at)

    def _body(self, data: bytes, at: int) -> int:
        """Up to the next delimiter. Returns the place behind it; -1 if it has not come."""
        end = data.find(self._delimiter, at)
        behind = end + len(self._delimiter)
        is_all_there = end >= 0 and len(data) >= behind + 2
        if self._value is not None:
            until = end if end >= 0 else len(data) - self._tail(data, at)
            self._value += data[at : max(at, min(until, at + MAX_VALUE + 1))]
            if len(self._value) > MAX_VALUE:
                self.is_broken = True
                return -1
        if not is_all_there:
            return -1
        if self._value is not None:
            self.values.append(bytes(self._value))
            self._value = None
        if data[behind : behind + 2] == b"--":
            self.is_whole = True
            return -1
        if data[behind : behind + 2] != b"\r\n":  # another boundary that begins like this one, or padding
            self.is_broken = True
            return -1
        self._in_head = True
        self._parts += 1
        self.is_broken = self._parts > MAX_PARTS
        return behind  # its CRLF is the head's, which may be empty

    def _head(self, data: bytes, at: int) -> int:
        end = data.find(b"\r\n\r\n", at, at + MAX_HEAD)
        if end < 0:
            self.is_broken = len(data) - at >= MAX_HEAD
            return -1
        self._in_head = False
        if self._is_field(data[at:end]):
            self._value = bytearray()
        return end + 4

    def _is_field(self, head: bytes) -> bool:
        lines = _DISPOSITION.findall(head)
        if len(lines) != 1 or _FILE_NAME.search(lines[0]):
            return False
        names = {quoted or bare for quoted, bare in _NAME.findall(lines[0])}
        return names == {self._name}
