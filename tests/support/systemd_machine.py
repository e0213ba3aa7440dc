"""A machine with a real systemd, for tests: namespaces of its own over a copy-on-write view of this machine's files.

It needs root, systemd, and the hierarchy of cgroup v2. It has no network but its own loopback, and nothing that it writes
outside of `share` outlives it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKOUT = Path(__file__).resolve().parents[2]
SYSTEMD = Path("/lib/systemd/systemd")
START_S = 120.0
# The disk is there for several boots.
DISK = r"""
set -e
mount --make-rprivate /
mount -t tmpfs -o size=1G,mode=755 tmpfs "$1/upper"
mkdir "$1/upper/files" "$1/upper/work"
while :; do
    setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child --net --uts --ipc --cgroup sh -c "$2" boot "$1" || :
    sleep 0.2  # a boot that fails at once is no load
done
"""
BOOT = r"""
set -e
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper/files,workdir=$1/upper/work" "$1/root"
cd "$1/root"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom tty; do touch dev/$device; mount --bind /dev/$device dev/$device; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mkdir -p "./$1/share"
mount --bind "$1/share" "./$1/share"
mount -t tmpfs -o mode=700 tmpfs root
ip link set lo up
hostname testmachine
echo 0123456789abcdef0123456789abcdef > etc/machine-id
if [ ! -e etc/testmachine ]; then
    rm -rf etc/systemd/system/*.wants var/log/journal var/lib/systemd/linger
    touch etc/testmachine
fi
for unit in lib/systemd/system/multi-user.target.wants/* lib/systemd/system/timers.target.wants/*; do
    case "$unit" in *dbus*|*logind*|*user-sessions*) ;; *) ln -sf /dev/null "etc/systemd/system/${unit##*/}";; esac
done
exec env -i container=lxc PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    chroot . /lib/systemd/systemd --system --unit=multi-user.target --log-target=journal --show-status=0
"""


def lacking() -> str | None:
    """Why there can be no such machine here; None if there can."""
    if os.geteuid():
        return "needs root"
    if not SYSTEMD.exists() or shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return "needs systemd, unshare and nsenter"
    if _cgroups() is None:
        return "needs cgroup v2"
    if CHECKOUT.parts[1] in ("tmp", "root"):  # which the machine has of its own
        return f"needs a checkout outside of /{CHECKOUT.parts[1]}"
    return None


def _cgroups() -> Path | None:
    """Where the second version's hierarchy is, if this process may make groups there."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup2" and "rw" in options.split(","):
            return Path(place)
    return None


class Machine:
    def __init__(self, share: Path, outer: subprocess.Popen[bytes]) -> None:
        self.share = share
        self._outer = outer
        self.init = 0

    def wait_for_boot(self) -> None:
        """Wait until systemd has started everything, with another process than before."""
        deadline = time.monotonic() + START_S
        before = self.init
        while time.monotonic() < deadline and self._outer.poll() is None:
            init = next(iter(_children(_children(self._outer.pid))), 0)
            if init and init != before:
                self.init = init
                said = self.run("systemctl", "is-system-running", check=False).stdout.strip()
                if said in ("running", "degraded"):
                    return
            time.sleep(0.2)
        raise AssertionError(f"systemd does not start: {(self.share.parent / 'boot.log').read_text()[-2000:]}")

    def reboot(self) -> None:
        self.run("systemctl", "reboot", check=False)  # the answer may be lost with the machine
        self.wait_for_boot()

    def run(self, *words: str, given: str = "", check: bool = True, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command as root there."""
        done = subprocess.run(
            [
                *("nsenter", f"--target={self.init}", "--mount", "--uts", "--ipc", "--net", "--pid", "--root"),
                *("env", "-i", "-C", "/", "HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
                *(f"{name}={value}" for name, value in environ.items()),
                *words,
            ],
            input=given, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"{' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def run_as(
        self, user: str, uid: int, *words: str, given: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a user who is logged in."""
        environ = {
            "XDG_RUNTIME_DIR": f"/run/user/{uid}",
            "HOME": f"/home/{user}",
            "PATH": f"/home/{user}/.local/bin:/usr/bin:/bin",
        }
        told = [f"{name}={value}" for name, value in environ.items()]
        return self.run("runuser", "-u", user, "--", "env", *told, *words, given=given, check=check)


def _children(of: int | list[int]) -> list[int]:
    found: list[int] = []
    for process in [of] if isinstance(of, int) else of:
        with suppress(OSError):
            found += map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())
    return found


@contextmanager
def machine(work: Path) -> Iterator[Machine]:
    cgroups = _cgroups()
    assert cgroups is not None
    group = cgroups / f"federation-test-{os.getpid()}-{work.name}"
    for name in ("upper", "root", "share"):
        (work / name).mkdir(parents=True, exist_ok=True)
    group.mkdir()
    with (work / "boot.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *("sh", "-c", 'echo $$ > "$0/cgroup.procs"; exec "$@"', str(group)),
                *("unshare", "--mount", "sh", "-c", DISK, "disk", str(work), BOOT),
            ],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    there = Machine(work / "share", process)
    try:
        there.wait_for_boot()
        yield there
    finally:
        process.send_signal(signal.SIGKILL)  # and with it the machine's init, and all that runs there
        process.wait()
        _remove(group)


def _remove(group: Path) -> None:
    deadline = time.monotonic() + 20
    while group.exists() and time.monotonic() < deadline:
        for folder, _, _ in os.walk(group, topdown=False):
            with suppress(OSError):  # its last process is about to end
                os.rmdir(folder)
        time.sleep(0.1)
