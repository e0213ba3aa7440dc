"""scripts/demo does what the README says of it, on its own and with nothing left behind."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def processes_of(directory: Path) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it ended while we looked
            continue
        if str(directory) in command:
            found.append(command)
    return found


def test_demo(tmp_path: Path) -> None:
    environ = {**os.environ, "TMPDIR": str(tmp_path)}  # others on this machine may run it, too
    # From another directory: it is the path to the script that counts.
    done = subprocess.run([ROOT / "scripts" / "demo"], cwd="/", env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    share = r"athens (\d+), bergen (\d+), cusco (\d+)"
    forty, before, after = ([int(n) for n in found] for found in re.findall(share, done.stdout))
    assert sum(forty) == 40
    assert min(forty) >= 10
    assert min(before) > 0
    assert min(after[:2]) > 0
    requests = re.search(r"(\d+) requests, 0 failed", done.stdout)
    assert requests, done.stdout
    assert int(requests[1]) == sum(before) + sum(after)
    assert "No request failed." in done.stdout
    assert processes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
