"""Helpers for tests: the mux's frames, written and read by hand."""

from __future__ import annotations

import struct
from typing import Any

from federation.net.link.frames import (
    BUSIER,
    CREDIT,
    DATA,
    FIN,
    HEADER,
    HEADER_BYTES,
    LOAD,
    LOOK,
    NUMBER,
    OPEN,
    OPENED,
    PING,
    PONG,
    REFUSED,
    RST,
    STREAM,
    WATCH,
)

NAMES = {
    STREAM: "STREAM", OPEN: "OPEN", OPENED: "OPENED", REFUSED: "REFUSED", DATA: "DATA",
    FIN: "FIN", RST: "RST", CREDIT: "CREDIT", PING: "PING", PONG: "PONG", LOAD: "LOAD", WATCH: "WATCH", BUSIER: "BUSIER",
    LOOK: "LOOK",
}  # fmt: skip


def frame(kind: int, channel: int = 0, payload: bytes = b"") -> bytes:
    return HEADER.pack(kind, channel, len(payload)) + payload


def frames(record: bytes) -> list[Any]:
    """A record as a transcript: [("DATA", 1, b"hello"), ...]."""
    said = []
    while record:
        kind, channel, length = HEADER.unpack_from(record)
        assert len(record) >= HEADER_BYTES + length
        said.append((NAMES[kind], channel, record[HEADER_BYTES : HEADER_BYTES + length]))
        record = record[HEADER_BYTES + length :]
    return said


def credit(n: int) -> bytes:
    return struct.pack(">I", n)


def load(others: int) -> bytes:
    """The payload of a LOAD."""
    return NUMBER.pack(others)
