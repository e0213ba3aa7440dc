"""Real daemons and real servers as processes, on 127.0.0.1 only; fleet.py starts and ends them.

Waits are for conditions with a deadline.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

T = TypeVar("T")
Address = tuple[str, int]

POLL_S = 0.02
# The suite runs several files at a time on two cores, next to whatever else the machine does. What is promised in seconds
# is asserted with this much room; `figure` prints what it took, scripts/faults and scripts/bench hold it to the letter.
SLACK = 3.0
START_S = 20.0  # a daemon imports for 1 to 4 s; several start at once on two cores
END_S = 20.0 * SLACK
LOG_TAIL_LINES = 60
ANY_PORT = "127.0.0.1:0"


def wait_until(condition: Callable[[], T], *, within: float, what: str, since: float | None = None) -> T:
    """The first true value of `condition()`, `within` seconds and the slack; `since`: on time.monotonic(), else now."""
    deadline = (time.monotonic() if since is None else since) + within * SLACK
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {SLACK:g} x {within:g} s: {what}"
        time.sleep(POLL_S)
    return value


def free_port() -> int:
    """A port nobody listens on, from below the range that the kernel hands out by itself."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def parse_address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def accepts(address: Address) -> bool:
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Response:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def http_get(address: Address, path: str = "/", *, timeout: float = 30.0) -> Response:
    """One request on a connection of its own. Header names are lower-case."""
    connection = http.client.HTTPConnection(*address, timeout=timeout)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        return Response(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def clean_environment(home: Path) -> dict[str, str]:
    """Ours without anything that would configure a daemon behind the test's back."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FEDERATION_", "XDG_", "PYTEST_"))}
    # Not to find servers of other tests, or of this machine, on the usual ports.
    kept["FEDERATION_DETECT"] = "no"
    return {**kept, "HOME": str(home), "XDG_CONFIG_HOME": str(home / "config"), "PYTHONUNBUFFERED": "1"}


def federation(*arguments: str, home: Path, given: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs one command of the command line to its end. `given`: its standard input."""
    done = subprocess.run(
        [sys.executable, "-m", "federation", *arguments],
        env=clean_environment(home),
        cwd=home,
        input=given,
        capture_output=True,
        text=True,
        timeout=START_S * SLACK,
    )
    assert not check or done.returncode == 0, f"federation {' '.join(arguments)}: {done.stderr}"
    return done


class Process:
    """A command in a directory of its own; its output, over all its runs, is in `log_path`."""

    def __init__(self, name: str, directory: Path, command: list[str], environment: Mapping[str, str]) -> None:
        directory.mkdir(parents=True)
        self.name = name
        self.directory = directory
        self.command = command
        self.environment = environment
        self.log_path = directory / "log"
        self.running: subprocess.Popen[bytes] | None = None
        self.sessions: list[int] = []

    def surroundings(self) -> Mapping[str, str]:
        return self.environment

    def spawn(self) -> None:
        with self.log_path.open("ab") as log:
            self.running = subprocess.Popen(
                self.command,
                cwd=self.directory,
                env=self.surroundings(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.sessions.append(self.running.pid)

    @property
    def pid(self) -> int:
        assert self.running, f"{self.name} does not run"
        return self.running.pid

    @property
    def alive(self) -> bool:
        return self.running is not None and self.running.poll() is None

    def signal(self, number: int) -> None:
        assert self.alive, f"{self.name} does not run"
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    def wait(self, within: float = END_S) -> int:
        """The exit code."""
        assert self.running
        return self.running.wait(within)

    def stop(self, within: float = END_S) -> int:
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        return self.wait(within)

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def log_tail(self) -> str:
        return "\n".join(self.log().splitlines()[-LOG_TAIL_LINES:])

    def left_behind(self) -> list[int]:
        """Live processes of the sessions that this one led."""
        left = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:  # it ended while we looked
                continue
            if int(fields[3]) in self.sessions and fields[0] != "Z":
                left.append(int(stat.parent.name))
        return left

    def cpu_s(self) -> float:
        """User and system time of all its threads until now."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_bytes(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


class Server(Process):
    """A backend that listens on `address`."""

    address: Address

    def start(self) -> None:
        self.spawn()
        wait_until(lambda: accepts(self.address) or not self.alive, within=START_S, what=f"{self.name} listens")
        assert self.alive, f"{self.name} ended:\n{self.log_tail()}"

    @property
    def journal(self) -> Path:
        return self.directory / "journal"

    def events(self) -> list[tuple[float, str]]:
        """What the backend wrote down: (monotonic time, what)."""
        if not self.journal.exists():
            return []
        lines = self.journal.read_text().splitlines()
        return [(float(when), what) for when, _, what in (line.partition(" ") for line in lines)]

    def seen(self) -> list[str]:
        return [what for _, what in self.events()]


class Daemon(Process):
    """`federation join`. Ports are the kernel's choice at the first start and stay the same afterwards."""

    folder = ""  # of the package that daemons run; empty: the checkout

    def __init__(
        self, name: str, directory: Path, options: list[str], services: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        super().__init__(name, directory, [], environment)
        self.state_dir = directory / "state"
        self.options = options
        self.facts: dict[str, Any] = {
            "listens": dict.fromkeys(services, ANY_PORT),
            "p2p": ANY_PORT,
            "control": ANY_PORT,
        }

    def surroundings(self) -> Mapping[str, str]:
        package = {"PYTHONPATH": str(Path(self.folder).absolute())} if self.folder else {}
        return {**package, **self.environment}

    def start(self) -> None:
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start without waiting."""
        listens = [f"--listen={service}={address}" for service, address in self.facts["listens"].items()]
        self.command = [
            *(sys.executable, "-m", "federation", "join", "--no-mdns", "--name", self.name),
            *(
                "--state-dir",
                str(self.state_dir),
                "--control",
                self.facts["control"],
                "--p2p-listen",
                self.facts["p2p"],
            ),
            *listens,
            *self.options,
        ]
        self.spawn()

    def _read_facts(self) -> dict[str, Any] | None:
        try:
            facts: dict[str, Any] = json.loads((self.state_dir / "daemon.json").read_text())
        except (OSError, ValueError):
            return None
        return facts if facts["pid"] == self.pid else None  # a killed one leaves its file

    def wait_ready(self, within: float = START_S) -> float:
        """Until it serves; when that was."""
        facts = wait_until(lambda: self._read_facts() or not self.alive, within=within, what=f"{self.name} is ready")
        assert isinstance(facts, dict), f"{self.name} ended with {self.wait()}:\n{self.log_tail()}"
        self.facts = facts
        return time.monotonic()

    def entry(self, service: str = "default") -> Address:
        """Where clients connect."""
        return parse_address(self.facts["listens"][service])

    @property
    def control(self) -> Address:
        return parse_address(self.facts["control"])

    @property
    def p2p(self) -> Address:
        return parse_address(self.facts["p2p"])

    @property
    def peer_id(self) -> str:
        return str(self.status()["node"]["peer_id"])

    @property
    def multiaddr(self) -> str:
        host, port = self.p2p
        return f"/ip4/{host}/tcp/{port}/p2p/{self.peer_id}"

    def api(self, path: str) -> Any:
        response = http_get(self.control, f"/api/v1/{path}", timeout=END_S)
        assert response.status == 200, response
        return response.json()

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.api("status")
        return status

    def peers(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.api("peers")["peers"]
        return rows

    def sees(self) -> set[str]:
        """Names of the nodes that it takes for online, itself included."""
        return {row["name"] for row in self.peers() if row["online"]}

    def offers(self) -> set[str]:
        """Names of the nodes that it would send a connection to."""
        return {row["name"] for row in self.peers() if row["state"] == "online"}
