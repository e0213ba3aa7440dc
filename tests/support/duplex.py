"""Helpers for tests: a Duplex that records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class End:
    """A Duplex that records what it hears. `space` is its room; `credit` False keeps what arrives unacknowledged."""

    heard: list[Any] = field(default_factory=list)
    space: int = 1 << 30
    credit: bool = True
    other: Any = None

    def room(self) -> int:
        return self.space

    def send(self, data: bytes | memoryview) -> None:
        self.heard.append(bytes(data))
        if self.credit and self.other is not None:
            self.other.taken(len(data))

    def send_eof(self) -> None:
        self.heard.append("EOF")

    def abort(self, reason: str) -> None:
        self.heard.append(f"RST {reason}")

    def taken(self, n: int) -> None: ...

    def resume(self) -> None:
        self.heard.append("resume")

    def opened(self) -> None:
        self.heard.append("OPENED")

    def refused(self, reason: str) -> None:
        self.heard.append(f"REFUSED {reason}")

    @property
    def data(self) -> bytes:
        return b"".join(item for item in self.heard if isinstance(item, bytes))
