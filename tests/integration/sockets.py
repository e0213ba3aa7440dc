"""What the kernel says of the TCP connections between two processes (Linux: /proc)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

LISTEN = "0A"


class Row(NamedTuple):
    local: str
    remote: str
    state: str


def sockets_of(pid: int) -> list[Row]:
    """All TCP sockets that the process holds, listeners aside."""
    held = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(fd))
        except OSError:  # closed meanwhile
            continue
        if found:
            held.add(found[1])
    rows = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in held and fields[3] != LISTEN:
                rows.append(Row(fields[1], fields[2], fields[3]))
    return rows


def between(pid: int, other: int) -> list[Row]:
    """Those of the one process whose other end is a socket of the other one."""
    ends = {row.local for row in sockets_of(other)}
    return [row for row in sockets_of(pid) if row.remote in ends]
