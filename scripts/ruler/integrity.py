"""What corrupts bytes is not measured: first, another client than the bench's own must see the same ones both ways."""

from __future__ import annotations

import hashlib
import subprocess
from typing import TYPE_CHECKING

from .backends import BODY, file_in
from .procs import StartFailed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .targets import Target

_SIZE = 3_000_001  # many records, and a last one that is not full
_CURL = ("curl", "-sS", "--fail", "--max-time", "20", "--noproxy", "*", "-H", "Expect:")


def check_integrity(target: Target, directory: Path) -> None:
    """Raises StartFailed. `directory` holds the file that nginx serves."""
    with file_in(directory).open("rb") as source:
        data = source.read(_SIZE)
    part = directory / "part"
    part.write_bytes(data)
    web = f"http://127.0.0.1:{target.entry['web']}"
    arrived = (
        _output([*_CURL, f"{web}/body"]),
        _output([*_CURL, "-r", f"0-{_SIZE - 1}", f"{web}/file"]),
        _output([*_CURL, "-T", str(part), f"http://127.0.0.1:{target.entry['sink']}/sha256"]),
    )
    if arrived != (BODY.encode(), data, hashlib.sha256(data).hexdigest().encode()):
        raise StartFailed("the bytes that arrive are not those that were sent")


def _output(command: Sequence[str]) -> bytes:
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise StartFailed(done.stderr.decode(errors="replace").strip()[-300:])
    return done.stdout
