"""Disks, clocks and descriptors."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from switch import inside, run

if TYPE_CHECKING:
    from lab import Box

NO_FILES = 128
CROWD = 200


@contextlib.contextmanager
def full_disk(box: Box):
    filler = box.state_dir / "filler"
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT)
    try:
        with pytest.raises(OSError, match="No space"):
            while True:
                os.write(fd, bytes(4096))
        yield
    finally:
        os.close(fd)
        filler.unlink()


@contextlib.contextmanager
def read_only(box: Box):
    run("mount", "--bind", str(box.state_dir), str(box.state_dir))
    run("mount", "-o", "remount,bind,ro", str(box.state_dir))
    try:
        yield
    finally:
        run("umount", "--lazy", str(box.state_dir))  # the daemon that runs now has files open there


@pytest.mark.parametrize("disk", [full_disk, read_only])
def test_disk(lab, trial, disk) -> None:
    """A member joins (another one loses its state), so that there is something to save; then the victim itself restarts."""
    box, newcomer = lab["exit"], lab["third"]
    with trial(f"{disk.__name__.replace('_', ' ')}, restart", "exit") as it, disk(box):
        with it.away("third"):
            newcomer.kill()
            newcomer.lose_state()
            newcomer.start()
        lab.wait_whole()
        with it.away("exit"):
            it.strike(box.kill)
            it.wait_out()
            it.restart(box)
            it.wait_back()


@pytest.mark.parametrize("damage", ["truncated", "garbage"])
def test_corrupt_state(lab, trial, damage) -> None:
    """All but the identity and the token, which stop the start in plain words (tests/test_state.py)."""
    box = lab["exit"]
    with trial(f"state files {damage}", "exit") as it, it.away("exit"):
        it.strike(box.kill)
        it.wait_out()
        for name in ("incarnation", "peers.json", "daemon.json"):
            path = box.state_dir / name
            path.write_bytes(path.read_bytes()[:1] if damage == "truncated" else os.urandom(300))
        it.restart(box)
        it.wait_back()


def test_no_descriptors(lab, trial) -> None:
    """Clients that say nothing take all of the 128 descriptors that the daemon may have."""
    box = lab["exit"]
    before = resource.prlimit(box.pid, resource.RLIMIT_NOFILE)
    crowd: list[socket.socket] = []

    def exhaust() -> None:
        resource.prlimit(box.pid, resource.RLIMIT_NOFILE, (NO_FILES, before[1]))
        for port in (8484, 4484):
            with inside("exit"):
                crowd.extend(socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(CROWD // 2))

    def leave() -> None:
        for client in crowd:
            client.close()

    with trial(f"{NO_FILES} descriptors") as it:
        it.strike(exhaust)
        it.last(lab.seconds(20, 8))  # its own clients wait in the kernel until somebody leaves
        it.cure(leave)
        it.wait_back()
        resource.prlimit(box.pid, resource.RLIMIT_NOFILE, before)


def test_clock_steps(lab, trial) -> None:
    """The wall clock of a running daemon, an hour forwards and two back."""
    box = lab["exit"]
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
    offset = lab.directory / "offset"
    offset.write_text("+0")
    plain = box.environment
    box.stop(within=45)
    box.environment = {
        **plain, "LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1",
    }  # fmt: skip
    box.start()
    with trial("clock +1 h, -1 h") as it:
        it.strike(offset.write_text, "+1h")
        it.last(lab.seconds(10, 4))
        offset.write_text("-1h")
        it.last(lab.seconds(20, 8))
        it.cure(offset.write_text, "+0")
        it.wait_back()
    box.stop(within=45)
    box.environment = plain
    box.start()
