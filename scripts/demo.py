"""What federation does, in half a minute: run by scripts/demo.

Three nodes with a small HTTP backend each, all on this machine. Forty requests through one port; then one node is
killed with SIGKILL while clients keep connecting. Everything started here is ended here, and nothing is left on disk.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

FEDERATION = [sys.executable, "-m", "federation"]
NAMES = ("athens", "bergen", "cusco")
REQUESTS = 40
CLIENTS = 4
PAUSE_S = 0.02  # between two connections of a client
TRAFFIC_BEFORE_S, TRAFFIC_AFTER_S = 2.0, 4.0
DEADLINE_S = 60.0


def say(text: str) -> None:
    print(text, flush=True)


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise SystemExit(f"demo: gave up waiting until {what}")
        time.sleep(0.05)
    return value


def start_backend(name: str) -> ThreadingHTTPServer:
    """An HTTP server that answers with its name, after the 20 ms that real work would take at the least."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(0.02)
            self.send_response(200)
            self.send_header("Content-Length", str(len(name)))
            self.end_headers()
            self.wfile.write(name.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):  # its node was killed: so the demo wants it
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@dataclass
class Node:
    name: str
    state_dir: Path
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, name: str, directory: Path, token: str, backend: int | None, scheme: str = "") -> Node:
        """`backend`: its port; None for an entry only. `scheme`: of what it serves, "http://" where each request counts."""
        state_dir = directory / name
        options = ["--name", name, "--replay", "first-byte", "--no-mdns", "--no-detect"]
        options += [] if backend is None else ["--backend", f"{scheme}127.0.0.1:{backend}"]
        options += ["--listen", f"{scheme}127.0.0.1:0", "--p2p-listen", "127.0.0.1:0", "--control", "127.0.0.1:0"]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("FEDERATION_")}
        with (directory / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [*FEDERATION, "join", "--state-dir", str(state_dir), *options],
                env={**environment, "FEDERATION_TOKEN": token, "XDG_CONFIG_HOME": str(directory)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return cls(name, state_dir, process)

    def facts(self) -> dict[str, Any] | None:
        if self.process.poll() is not None:
            log = self.state_dir.parent / f"{self.name}.log"
            raise SystemExit(f"demo: node {self.name} ended:\n{log.read_text()}")
        try:
            facts: dict[str, Any] = json.loads((self.state_dir / "daemon.json").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return facts

    def wait_ready(self) -> None:
        facts = wait_for(self.facts, f"node {self.name} is ready")
        self.entry: str = facts["listens"]["default"]
        self.control: str = facts["control"]

    def api(self, path: str) -> Any:
        return json.loads(get(self.control, f"/api/v1/{path}"))

    def ready_names(self) -> set[str]:
        return {row["name"] for row in self.api("peers")["peers"] if row["state"] == "online"}

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def command(*arguments: str) -> str:
    """What `federation ...` prints."""
    return subprocess.run([*FEDERATION, *arguments], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def get(address: str, path: str = "/") -> str:
    """The body of a 200 answer, on a connection of its own."""
    connection = http.client.HTTPConnection(address, timeout=DEADLINE_S)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        body = answer.read().decode()
        if answer.status != 200:
            raise http.client.HTTPException(f"{answer.status} {body}")
        return body
    finally:
        connection.close()


@dataclass
class Traffic:
    """Clients that make one new connection after the other."""

    address: str
    answered: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest_s: float = 0.0

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._client) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _client(self) -> None:
        while not self._stop.wait(PAUSE_S):
            begun = time.monotonic()
            try:
                name = get(self.address)
            except (OSError, http.client.HTTPException) as error:
                with self._lock:
                    self.failures.append(repr(error))
            else:
                with self._lock:
                    self.answered[name] += 1
                    self.slowest_s = max(self.slowest_s, time.monotonic() - begun)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def shares(answered: Counter[str]) -> str:
    return ", ".join(f"{name} {answered[name]}" for name in NAMES)


def run(directory: Path, stack: ExitStack) -> int:
    say("Starting three nodes on this machine, each with a small HTTP server of its own behind it ...")
    token = subprocess.run(
        [*FEDERATION, "token", "new", "--name", "demo", "--owner-key", str(directory / "owner.key")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    nodes: dict[str, Node] = {}
    for name in NAMES:
        backend = start_backend(name)
        stack.callback(backend.shutdown)
        nodes[name] = Node.start(name, directory, token, backend.server_address[1])
        stack.callback(nodes[name].stop)
        nodes[name].wait_ready()
        if name == NAMES[0]:  # the others get what a person would carry over: the first one's invitation
            token = command("invite", "--state-dir", str(nodes[name].state_dir))
        say(f"  {name}: clients connect to {nodes[name].entry}")
    wait_for(lambda: all(node.ready_names() == set(NAMES) for node in nodes.values()), "all nodes see each other")
    say("They share one token, and all see each other.\n")

    entry = nodes[NAMES[0]].entry
    say(f"{REQUESTS} requests, all to {entry}. Who answered:")
    answered = Counter(get(entry) for _ in range(REQUESTS))
    say(f"  {shares(answered)}\n")

    victim = nodes[NAMES[-1]]
    say(f"{CLIENTS} clients now keep connecting to {entry}; meanwhile {victim.name} is killed with SIGKILL ...")
    traffic = Traffic(entry)
    stack.callback(traffic.stop)
    time.sleep(TRAFFIC_BEFORE_S)
    victim.process.send_signal(signal.SIGKILL)
    victim.process.wait()
    before = Counter(traffic.answered)
    say(f"  before: {shares(before)}")
    time.sleep(TRAFFIC_AFTER_S)
    traffic.stop()
    say(f"  after:  {shares(traffic.answered - before)}")
    total = traffic.answered.total() + len(traffic.failures)
    say(f"  {total} requests, {len(traffic.failures)} failed, slowest {traffic.slowest_s:.2f} s\n")
    for failure in traffic.failures[:5]:
        say(f"  failed: {failure}")
    unused = set(NAMES) - set(answered)
    if traffic.failures or unused or not traffic.answered - before:
        say("The demo did not go as it should.")
        return 1
    say("No request failed.")
    return 0


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the demo the way Ctrl-C does: cleaned up
    with tempfile.TemporaryDirectory(prefix="federation-demo-") as directory, ExitStack() as stack:
        code = run(Path(directory), stack)
        say("Stopping everything ...")
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
