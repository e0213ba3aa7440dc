"""The cost of an idle node: start, memory, installed size; a table, this checkout beside another one.

    scripts/footprint                          this checkout alone
    scripts/footprint --before ../old          both in turns; `scripts/setup` has run there

The processor's time does not depend on what else the machine does, as the time until ready does. A node's memory is that of
the first of LINKS + 1 nodes: with its links, and with connections of its clients open to another node's backend.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent.parent
PATIENCE_S = 900.0  # a machine that others use
SETTLE_S = 6.0  # what a start leaves for later is over by then
TICK = os.sysconf("SC_CLK_TCK")


class Daemon:
    def __init__(self, checkout: Path, home: Path, name: str, token: str, *options: str) -> None:
        self.federation = checkout / ".venv/bin/federation"
        self.state = home / name
        self.environment = {"HOME": str(home), "PATH": os.environ["PATH"]}
        self.log = home / f"{name}.log"
        ports = ("--listen=127.0.0.1:0", "--p2p-listen=127.0.0.1:0", "--control=127.0.0.1:0", "--no-detect")
        begun = time.monotonic()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [self.federation, "join", f"--state-dir={self.state}", f"--name={name}", "--token-file=-", *ports, *options],
                env=self.environment, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=home,
            )  # fmt: skip
        assert self.process.stdin is not None
        self.process.stdin.write(token.encode())
        self.process.stdin.close()
        wait_for(lambda: b"ready: " in self.log.read_bytes(), self)
        self.ready_s = time.monotonic() - begun
        self.cpu_s = self.cpu()
        self.facts: dict[str, Any] = json.loads((self.state / "daemon.json").read_text())

    def cpu(self) -> float:
        """Processor time until now, in seconds, the kernel's included."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def memory(self) -> dict[str, float]:
        """MiB. rss: as `ps` says. pss: shared pages by halves. own: what this process alone has."""
        rollup = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        sizes = {name: int(size) / 1024 for name, size in re.findall(r"^(\w+): +(\d+) kB", rollup, re.M)}
        return {"rss": sizes["Rss"], "pss": sizes["Pss"], "own": sizes["Private_Clean"] + sizes["Private_Dirty"]}

    def asked(self, *command: str) -> Any:
        """The answer of a command with --json. The daemon has all of its API then."""
        return json.loads(self.run(*command, f"--state-dir={self.state}", "--json"))

    def run(self, *command: str) -> str:
        return subprocess.run(
            [self.federation, *command], env=self.environment, capture_output=True, text=True, check=True, timeout=PATIENCE_S
        ).stdout

    def links(self) -> int:
        return sum(bool(peer["path"]) and not peer["self"] for peer in self.asked("peers")["peers"])


def wait_for(condition: Any, daemon: Daemon | None = None) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline or (daemon is not None and daemon.process.poll() is not None):
            said = f": a node ended with {daemon.process.poll()} and said:\n{daemon.log.read_text()}" if daemon else ""
            sys.exit(f"footprint: it did not come{said}")
        time.sleep(0.01)


@contextmanager
def running(*arguments: Any) -> Iterator[Daemon]:
    daemon = Daemon(*arguments)
    try:
        yield daemon
    finally:
        daemon.process.terminate()
        try:
            daemon.process.wait(60)
        except subprocess.TimeoutExpired:
            daemon.process.kill()
            daemon.process.wait()


def command_of(checkout: Path, *command: str) -> tuple[float, float]:
    """Seconds of a command until its end, and of the processor."""
    before, begun = os.times(), time.monotonic()
    subprocess.run([checkout / ".venv/bin/federation", *command], check=True, capture_output=True, timeout=PATIENCE_S)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.monotonic() - begun, cpu


def start(checkout: Path) -> dict[str, float]:
    """A node alone: with all defaults but ports, and multicast on loopback, so that no other machine hears it."""
    said, cpu = command_of(checkout, "--version")
    with tempfile.TemporaryDirectory() as home, running(checkout, Path(home), "alone", new_token(checkout)) as node:
        node.asked("status")
        time.sleep(SETTLE_S)
        return {
            "version_s": said, "version_cpu_s": cpu, "ready_s": node.ready_s, "ready_cpu_s": node.cpu_s,
            **{f"idle_{kind}": size for kind, size in node.memory().items()},
        }  # fmt: skip


def new_token(checkout: Path) -> str:
    with tempfile.TemporaryDirectory() as home:
        return subprocess.run(
            [checkout / ".venv/bin/federation", "token", "new"], env={"HOME": home, "PATH": os.environ["PATH"]},
            capture_output=True, text=True, check=True, timeout=PATIENCE_S,
        ).stdout  # fmt: skip


class Holder:
    """A backend that takes connections and says `k` in each."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.held: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            client.sendall(b"k")
            self.held.append(client)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.listener.getsockname()[1]}"


def linked(checkout: Path, links: int, connections: int) -> dict[str, float]:
    """A node with links, then with connections through it to one of its peers."""
    holder, found = Holder(), {}
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        home, token = Path(directory), new_token(checkout)
        entry = stack.enter_context(running(checkout, home, "n0", token, "--no-mdns"))
        for number in range(1, links + 1):
            offers = [f"--backend=tcp://{holder.address}" if has_protocols(checkout) else f"--backend={holder.address}"]
            peer = f"--peer={entry.facts['p2p']}"
            stack.enter_context(
                running(checkout, home, f"n{number}", token, "--no-mdns", peer, *(offers if number == 1 else ()))
            )
        wait_for(lambda: entry.links() == links)
        time.sleep(SETTLE_S)
        found |= {f"links_{kind}": size for kind, size in entry.memory().items()}
        clients = []
        host, _, port = entry.facts["listens"]["default"].rpartition(":")
        for _ in range(connections):
            client = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
            client.sendall(b"hello")
            clients.append(client)
        for client in clients:
            if client.recv(1) != b"k":
                sys.exit("footprint: a connection did not reach the backend")
        time.sleep(SETTLE_S)
        found |= {f"connections_{kind}": size for kind, size in entry.memory().items()}
        for client in (*clients, *holder.held, holder.listener):
            client.close()
    return found


def has_protocols(checkout: Path) -> bool:
    """Whether tcp:// can be written before an address: f919b4d and older have no HTTP services."""
    return (checkout / "federation/forward/http").is_dir()


def installed(checkout: Path) -> dict[str, float]:
    """Packages of requirements.lock that are in the checkout's environment, and the MiB of all files that they brought."""
    (packages,) = (checkout / ".venv/lib").glob("python3*/site-packages")
    lock = (checkout / "requirements.lock").read_text()
    wanted = {name.replace("_", "-").lower() for name in re.findall(r"^([\w.-]+)==", lock, re.M)}
    count = size = 0
    for path in packages.glob("*.dist-info"):
        distribution = PathDistribution(path)
        if distribution.metadata["Name"].replace("_", "-").replace(".", "-").lower() in wanted:
            count += 1
            files = [Path(str(file.locate())) for file in distribution.files or ()]
            size += sum(file.stat().st_size for file in files if file.exists() and file.suffix != ".pyc")
    ours = sum(
        file.stat().st_size for file in (checkout / "federation").rglob("*") if file.suffix != ".pyc" and file.is_file()
    )
    return {"packages": count, "installed": (size + ours) / 1024**2}


ROWS = (
    ("`--version`, s", "version_s", 2),
    ("  its processor time, s", "version_cpu_s", 2),
    ("start until ready, s", "ready_s", 2),
    ("  its processor time, s", "ready_cpu_s", 2),
    ("idle, API asked: RSS, MiB", "idle_rss", 1),
    ("  PSS", "idle_pss", 1),
    ("  of its own", "idle_own", 1),
    ("{links} links: RSS, MiB", "links_rss", 1),
    ("  of its own", "links_own", 1),
    ("{connections} connections: RSS, MiB", "connections_rss", 1),
    ("  of its own", "connections_own", 1),
    ("packages installed", "packages", 0),
    ("installed, MiB (without byte code)", "installed", 1),
)


def table(before: dict[str, list[float]], now: dict[str, list[float]], arguments: argparse.Namespace) -> Iterator[str]:
    yield "| | before | now | now / before |" if before else "| | now |"
    yield "|---|---|---|---|" if before else "|---|---|"
    for text, key, digits in ROWS:
        if key not in now:
            continue
        new = statistics.median(now[key])
        cells = [text.format(links=arguments.links, connections=f"{arguments.connections:,}").replace("  ", "&emsp;")]
        if before:
            old = statistics.median(before[key])
            cells += [f"{old:.{digits}f}", f"{new:.{digits}f}", f"{new / old:.2f}x"]
        else:
            cells += [f"{new:.{digits}f}"]
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="measure this one, too, in turns")
    parser.add_argument("--rounds", type=int, default=5, help="starts of each [5]")
    parser.add_argument("--links", type=int, default=10, help="links of the node; 0: leave this and the next out [10]")
    parser.add_argument("--connections", type=int, default=1000, help="connections through the node [1000]")
    arguments = parser.parse_args()
    checkouts = [path.resolve() for path in (arguments.before, HERE) if path is not None]
    found: dict[Path, dict[str, list[float]]] = {checkout: {} for checkout in checkouts}

    def keep(checkout: Path, values: dict[str, float]) -> None:
        print(
            f"{checkout.name}: " + ", ".join(f"{name} {value:.2f}" for name, value in values.items()),
            file=sys.stderr,
            flush=True,
        )
        for name, value in values.items():
            found[checkout].setdefault(name, []).append(value)

    for number in range(arguments.rounds + 1):
        for checkout in checkouts if number % 2 else reversed(checkouts):
            values = start(checkout)
            if number:  # the first start of each only brings its files into memory
                keep(checkout, values)
    if arguments.links:
        for checkout in checkouts:
            keep(checkout, linked(checkout, arguments.links, arguments.connections))
    for checkout in checkouts:
        keep(checkout, installed(checkout))
    print("\n".join(table(found[checkouts[0]] if len(checkouts) > 1 else {}, found[HERE], arguments)))


if __name__ == "__main__":
    main()
