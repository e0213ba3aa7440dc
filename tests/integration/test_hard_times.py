"""A small part of the fault suite (tests/faults, scripts/faults), quick enough for every run: no descriptors, damaged
files, a full or read-only disk, and a cut network. The last two need root.
"""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import topology
from harness import http_get, wait_until
from load import Load
from netfleet import NetFleet

from federation.reactor.fdlimit import RESERVED_SHARE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fleet import Fleet
    from harness import Daemon

NO_FILES = 128
CROWD = 140
RESERVE = NO_FILES // RESERVED_SHARE


@pytest.fixture(scope="module")
def pair(fleet: Fleet) -> tuple[Daemon, Daemon]:
    """Both serve; `tight` is the one that gets into trouble."""
    other = fleet.daemon("other", backend=fleet.backend("http", "other"))
    tight = fleet.daemon("tight", backend=fleet.backend("http", "tight"), peer=other)
    wait_whole(other, tight)
    return other, tight


def wait_whole(*daemons: Daemon) -> None:
    names = {daemon.name for daemon in daemons}
    wait_until(lambda: all(daemon.offers() == names for daemon in daemons), within=40, what="all offer all")


def test_without_descriptors_nobody_is_lost(pair, figure) -> None:
    """Idle clients take all that the daemon may have. Others are served elsewhere, its own wait, and nothing leaks."""
    other, tight = pair
    limits = resource.prlimit(tight.pid, resource.RLIMIT_NOFILE)
    before = tight.open_files()
    resource.prlimit(tight.pid, resource.RLIMIT_NOFILE, (NO_FILES, limits[1]))
    crowd = [socket.create_connection(tight.entry(), timeout=5) for _ in range(CROWD)]
    try:
        wait_until(lambda: tight.open_files() >= NO_FILES - RESERVE, within=10, what="all but the reserve are taken")
        with Load(other.entry(), clients=2) as load:
            wait_until(lambda: len(load.requests) >= 100, within=20, what="a hundred requests")
        assert load.failed == []
        waits = socket.create_connection(tight.entry(), timeout=5)  # the kernel takes it
        waits.sendall(b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
    finally:
        for client in crowd:
            client.close()
    with waits:
        waits.settimeout(10)
        assert waits.recv(100).startswith(b"HTTP/1.1 200")
    wait_until(lambda: tight.open_files() <= before, within=10, what="all descriptors are back")
    resource.prlimit(tight.pid, resource.RLIMIT_NOFILE, limits)
    wait_whole(other, tight)
    figure("out of descriptors", f"{len(load.requests)} requests through the other entry, 0 failed")


@contextmanager
def damaged(state_dir: Path) -> Iterator[None]:
    """All but the identity and the token, without which it is nobody."""
    for name, data in (("incarnation", b""), ("peers.json", os.urandom(200)), ("daemon.json", b'{"pid": ')):
        (state_dir / name).write_bytes(data)
    yield


@contextmanager
def disk(state_dir: Path, *, read_only: bool) -> Iterator[None]:
    """The state directory on a small disk of its own."""
    if os.geteuid() != 0:
        pytest.skip("to mount a small disk takes root")
    files = {path.name: path.read_bytes() for path in state_dir.iterdir() if path.is_file()}
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "none", str(state_dir)], check=False)
    if mounted.returncode != 0:
        pytest.skip("nothing can be mounted here")
    try:
        for name, data in files.items():
            (state_dir / name).write_bytes(data)
            (state_dir / name).chmod(0o600)
        if read_only:
            subprocess.run(["mount", "-o", "remount,ro", str(state_dir)], check=True)
        else:
            with (state_dir / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
                while True:
                    filler.write(bytes(4096))
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(state_dir)], check=True)


@pytest.mark.parametrize("trouble", ["damaged", "full", "read-only"])
def test_a_restart_with_a_bad_disk(pair, trouble: str) -> None:
    other, tight = pair
    peer_id = tight.peer_id
    tight.kill()
    lives = tight.log().count("ready:")
    bad = damaged(tight.state_dir) if trouble == "damaged" else disk(tight.state_dir, read_only=trouble == "read-only")
    with bad:
        tight.launch()
        # Its daemon.json may be that of its last life, whose ports it has again.
        wait_until(lambda: tight.log().count("ready:") > lives, within=20, what="it is ready")
        wait_whole(other, tight)
        assert tight.peer_id == peer_id
        assert http_get(tight.entry()).status == 200


def test_a_cut_network_heals_by_itself(tmp_path_factory: pytest.TempPathFactory, figure) -> None:
    if why := topology.why_not():
        pytest.skip(why)
    with topology.Topology() as net:
        lan = net.lan("lan")
        fleet = NetFleet(tmp_path_factory.mktemp("cut"))
        try:
            hosts = [net.host(lan, name) for name in ("left", "right")]
            left = fleet.node("left", hosts[0], backend=fleet.server("http", hosts[0]))
            right = fleet.node("right", hosts[1], backend=fleet.server("http", hosts[1]), peer=left)
            wait_whole(left, right)
            lan.run("ip", "link", "set", "p2", "down")
            cut = time.monotonic()
            wait_until(lambda: left.offers() == {"left"} and right.offers() == {"right"}, within=10, what="each is alone")
            out_s = time.monotonic() - cut
            for node in (left, right):
                assert node.get().status == 200  # its own backend serves
            lan.run("ip", "link", "set", "p2", "up")
            healed = time.monotonic()
            wait_whole(left, right)
            figure("network cut", f"noticed after {out_s:.1f} s, whole {time.monotonic() - healed:.1f} s after it healed")
        finally:
            wrong = fleet.close()
    assert not wrong, "\n".join(wrong)
