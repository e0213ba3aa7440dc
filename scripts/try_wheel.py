"""What scripts/build does with a wheel in a fresh environment: two daemons, one request from the one to the other's backend.

python scripts/try_wheel.py VENV        needs the standard library alone; exits with what went wrong
"""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

START_S = 120.0  # a fresh environment has no byte code yet, and the machine may be busy
ANSWER = b"answered by the backend\n"


class Backend(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:  # the name that http.server calls
        self.send_response(200)
        self.send_header("Content-Length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)

    def log_message(self, *_: object) -> None:
        pass


def start(federation: Path, home: Path, name: str, token: str, *options: str) -> subprocess.Popen[bytes]:
    ports = ("--listen=127.0.0.1:0", "--p2p-listen=127.0.0.1:0", "--control=127.0.0.1:0")
    whose = (f"--state-dir={home / name}", f"--name={name}", "--token-file=-", "--no-mdns", "--no-detect")
    environment = {"HOME": str(home), "PATH": os.environ["PATH"]}
    with (home / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [federation, "join", *whose, *ports, *options], env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log
        )
    assert process.stdin is not None
    process.stdin.write(token.encode())
    process.stdin.close()
    return process


def facts(home: Path, name: str, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Where it listens, once it is ready."""
    path = home / name / "daemon.json"
    deadline = time.monotonic() + START_S
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"{name} did not become ready:\n{(home / f'{name}.log').read_text()}")
        time.sleep(0.05)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def run(federation: Path, home: Path) -> None:
    backend = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Backend)
    threading.Thread(target=backend.serve_forever, daemon=True).start()
    token = subprocess.run(
        [federation, "token", "new", "--name", "built"], env={"HOME": str(home)}, capture_output=True, text=True, check=True
    ).stdout
    daemons = []
    try:
        exit_ = start(federation, home, "exit", token, f"--backend=127.0.0.1:{backend.server_port}")
        daemons.append(exit_)
        address = facts(home, "exit", exit_)["p2p"]
        entry = start(federation, home, "entry", token, f"--peer={address}", f"--hold={START_S:g}s")
        daemons.append(entry)
        client_port = facts(home, "entry", entry)["listens"]["default"]
        with urllib.request.urlopen(f"http://{client_port}/", timeout=START_S) as answer:
            if (said := answer.read()) != ANSWER:
                sys.exit(f"the answer was {said!r}")
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            if (code := daemon.wait(START_S)) != 0:
                sys.exit(f"a daemon ended with {code}")
    finally:
        for daemon in daemons:
            if daemon.poll() is None:
                daemon.kill()
                daemon.wait()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        run(Path(sys.argv[1]) / "bin/federation", Path(home))
