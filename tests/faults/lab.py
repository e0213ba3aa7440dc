"""Five machines: four serve (one of them is the others' bootstrap address), one is an entry only. All have clients.

`second` and `entry` replay until the first byte, the others have the default. `exit` and `second` ask their backends for
/health, the others only connect.
"""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleet import complaints_about, end_all
from harness import Daemon, Process, Server, accepts, clean_environment, federation, wait_until
from switch import Switch, inside, run

if TYPE_CHECKING:
    pass

HERE = Path(__file__).parent
ADDRESSES = {
    "boot": "10.77.0.11",
    "exit": "10.77.0.12",
    "second": "10.77.0.13",
    "third": "10.77.0.14",
    "entry": "10.77.0.15",
}
OPTIONS = {
    "boot": [],
    "exit": ["--health-path", "/health"],
    "second": ["--health-path", "/health", "--replay", "first-byte"],
    "third": [],
    "entry": ["--replay", "first-byte"],
}
SERVES = frozenset({"boot", "exit", "second", "third"})
NAMES = frozenset(ADDRESSES)
BACKEND_PORT = 9000
STATE_BYTES = 128 * 1024  # a disk of its own for each state directory, soon full
READY = "ready: "
READY_S = 60.0  # on a machine that does other things too
WHOLE_S = 60.0
TAKES_PART = ("online", "no backend")


class Backend(Server):
    """server.py on machine `name`."""

    def __init__(self, name: str, directory: Path) -> None:
        command = [sys.executable, str(HERE / "server.py"), "--port", str(BACKEND_PORT), "--name", name]
        super().__init__(
            f"backend-{name}", directory, [*command, "--directory", str(directory)], clean_environment(directory)
        )
        self.machine = name
        self.address = ("127.0.0.1", BACKEND_PORT)
        self.be("ok")

    def be(self, mode: str) -> None:
        (self.directory / "mode").write_text(mode)

    def start(self) -> None:
        with inside(self.machine):
            self.spawn()
            wait_until(lambda: accepts(self.address), within=20, what=f"{self.name} listens")


class Box(Daemon):
    """The daemon on machine `name`."""

    def __init__(self, name: str, directory: Path, options: list[str]) -> None:
        super().__init__(name, directory, options, ["default"], clean_environment(directory))
        self.facts = {"listens": {"default": "127.0.0.1:8484"}, "p2p": "0.0.0.0:4484", "control": "127.0.0.1:8485"}
        self.state_dir.mkdir()
        run("mount", "-t", "tmpfs", "-o", f"size={STATE_BYTES},mode=700", "none", str(self.state_dir))

    def spawn(self) -> None:
        with inside(self.name):
            super().spawn()

    def api(self, path: str) -> Any:
        with inside(self.name):
            return super().api(path)

    def launch(self) -> None:
        self._lives = self.log().count(READY)
        super().launch()

    def wait_ready(self, within: float = READY_S) -> float:
        """By its own words: on a full disk there is no daemon.json, and its ports are known anyhow."""
        wait_until(
            lambda: self.log().count(READY) > self._lives or not self.alive, within=within, what=f"{self.name} is ready"
        )
        assert self.alive, f"{self.name} ended with {self.wait()}:\n{self.log_tail()}"
        return time.monotonic()

    def view(self) -> dict[str, str]:
        """Name -> state of each node as this one sees it. Who lost its identity has two rows: the better counts."""
        states: dict[str, str] = {}
        for row in self.peers():
            if states.get(row["name"]) not in TAKES_PART:
                states[row["name"]] = row["state"]
        return states

    def takes_part(self) -> set[str]:
        """Names of the nodes that this one would work with now; empty if it does not answer."""
        try:
            return {name for name, state in self.view().items() if state in TAKES_PART}
        except (OSError, AssertionError, ValueError):
            return set()

    def lose_state(self) -> None:
        for path in self.state_dir.iterdir():
            path.unlink()

    def vitals(self) -> Vitals:
        """At rest: the least of a few looks, since a health check or an announcement may be on its way in any of them.
        `tasks_at_most`: the most, for what a task that comes and goes may add later."""
        looks = []
        for _ in range(5):
            tasks = self.status()["node"]["tasks"]
            time.sleep(0.1)  # our own question's socket is gone
            looks.append((self.open_files(), tasks))
        open_files, tasks = zip(*looks, strict=True)
        return {
            "pid": self.pid, "fds": min(open_files), "rss": self.rss_bytes(),
            "tasks": min(tasks), "tasks_at_most": max(tasks),
        }  # fmt: skip


Vitals = dict[str, int]


class Lab:
    def __init__(self, directory: Path, *, quick: bool) -> None:
        self.directory = directory
        self.quick = quick
        self.switch = Switch(ADDRESSES)
        self.backends = {name: Backend(name, directory / f"backend-{name}") for name in SERVES}
        for backend in self.backends.values():
            backend.start()
        token = directory / "token"
        token.write_text(federation("token", "new", "--name", "faults", home=directory).stdout)
        self.boxes: dict[str, Box] = {}
        boot = self._box("boot", token)
        boot.start()
        invited = directory / "invited"  # the others come as people come: with what `federation invite` says
        with inside("boot"):
            invited.write_text(federation("invite", "--state-dir", str(boot.state_dir), home=directory).stdout)
        for name in ("exit", "second", "third", "entry"):
            self._box(name, invited).start()  # one by one: the machine may be busy
        self.wait_whole()

    def _box(self, name: str, token: Path) -> Box:
        options = ["--token-file", str(token), "--vram", "8GiB", *OPTIONS[name]]
        options += ["--drain-timeout", f"{self.seconds(30, 3):g}s"]  # the default, or nobody waits for streams
        if name in SERVES:
            options += ["--backend", f"127.0.0.1:{BACKEND_PORT}"]
        box = self.boxes[name] = Box(name, self.directory / name, options)
        return box

    def __getitem__(self, name: str) -> Box:
        return self.boxes[name]

    def others(self, *names: str) -> list[Box]:
        return [box for name, box in self.boxes.items() if name not in names]

    def is_whole(self) -> bool:
        return all(box.takes_part() == NAMES for box in self.boxes.values())

    def wait_whole(self, within: float = WHOLE_S) -> None:
        wait_until(self.is_whole, within=within, what="all see all")

    def seconds(self, full: float, quick: float) -> float:
        """How long a fault lasts."""
        return quick if self.quick else full

    def quiet(self, within: float = 30.0) -> dict[str, int]:
        """Wait until no connection is open anywhere; name -> how many stay."""

        def open_now() -> dict[str, int]:
            statuses = {name: box.status() for name, box in self.boxes.items()}
            return {n: s["connections"]["now"] + s["node"]["in_flight"] for n, s in statuses.items()}

        with contextlib.suppress(AssertionError):
            wait_until(lambda: not any(open_now().values()), within=within, what="no connection is open")
        return {name: count for name, count in open_now().items() if count}

    def vitals(self) -> dict[str, Vitals]:
        return {name: box.vitals() for name, box in self.boxes.items()}

    def repair(self) -> None:
        """Whatever the last fault left: all is as it was at first."""
        self.switch.repair()
        for backend in self.backends.values():
            backend.be("ok")
            if not backend.alive:
                backend.start()
        for box in self.boxes.values():
            if not box.alive:
                box.start()
        self.wait_whole()

    def close(self) -> list[str]:
        """Ends everything; says what was wrong."""
        processes: list[Process] = [*self.boxes.values(), *self.backends.values()]
        wrong = [
            *end_all(list(self.boxes.values())),
            *end_all(processes[len(self.boxes) :]),
            *[complaint for box in self.boxes.values() for complaint in complaints_about(box)],
        ]
        return wrong
