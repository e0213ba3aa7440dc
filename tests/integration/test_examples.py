"""What examples/ and the README show runs as it stands."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from harness import END_S, http_get, wait_until

ROOT = Path(__file__).parents[2]


def free_offset() -> int:
    """An offset at which all of the example's ports are free now."""
    for offset in range(2000, 20000, 37):
        try:
            for port in (8001, 8002, 4484, 8484, 8485, 4494, 8494, 8495):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port + offset))
        except OSError:
            continue
        return offset
    raise AssertionError("no free ports")


def test_two_nodes(tmp_path: Path) -> None:
    offset = free_offset()
    command = tmp_path / "federation"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m federation "$@"\n')
    command.chmod(0o755)
    environ = {**os.environ, "FEDERATION": str(command), "PORT_OFFSET": str(offset), "HOME": str(tmp_path)}
    with (tmp_path / "log").open("wb") as log:
        script = subprocess.Popen(
            [ROOT / "examples/two-nodes.sh"], env=environ, stdout=log, stderr=log, start_new_session=True
        )
    try:

        def both_answer() -> bool:
            try:
                answers = {http_get(("127.0.0.1", port + offset)).body for port in (8484, 8494) for _ in range(4)}
            except OSError:
                return False
            return answers == {b"answered by a\n", b"answered by b\n"}

        wait_until(both_answer, within=30, what="both nodes answer on both ports")
    finally:
        script.send_signal(signal.SIGTERM)
        script.wait(END_S)
    assert "Traceback" not in (tmp_path / "log").read_text()
