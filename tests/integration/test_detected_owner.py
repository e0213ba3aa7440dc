"""`join` without --backend on a machine where another person's process listens on Ollama's port: in a network namespace of
its own, so that nobody else's port is taken. Needs root, to be two users."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from harness import END_S, START_S, clean_environment

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"), reason="needs root, unshare and ip"
)
# Starts the server as UID and the daemon as root, prints what the daemon says of itself, and ends both.
SCRIPT = """
import json, pathlib, subprocess, sys, time, urllib.request
uid, state, federation = int(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3:]
server = subprocess.Popen([sys.executable, "-I", "-S", "-c", '''
import socket
listener = socket.create_server(("127.0.0.1", 11434)); print("listens", flush=True)
while True:
    client = listener.accept()[0]; client.recv(65536)
    client.sendall(b"HTTP/1.0 200 OK\\\\r\\\\n\\\\r\\\\nOllama is running"); client.close()
'''], user=uid, cwd="/", stdout=subprocess.PIPE)
server.stdout.readline()
federation += ["--state-dir", str(state)]
daemon = subprocess.Popen(federation, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
try:
    said = []
    for line in daemon.stdout:
        said.append(line)
        if line.startswith("ready:"):
            break
    control = json.loads((state / "daemon.json").read_text())["control"]
    status = json.load(urllib.request.urlopen(f"http://{control}/api/v1/status", timeout=10))
    print(json.dumps({"said": said, "services": status["node"]["services"]}))
finally:
    for process in (daemon, server):
        process.terminate()
        process.communicate()
"""


@pytest.mark.parametrize(("uid", "is_offered"), [(0, True), (997, True), (60_001, False)])
def test_whose_server_is_offered(tmp_path: Path, uid: int, is_offered: bool) -> None:
    federation = [sys.executable, "-m", "federation", "join", "--no-mdns", "--detect"]
    federation += ["--listen", "127.0.0.1:0", "--p2p-listen", "127.0.0.1:0", "--control", "127.0.0.1:0"]
    command = [sys.executable, "-c", SCRIPT, str(uid), str(tmp_path / "state"), *federation]
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command],
        env=clean_environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=3 * START_S + END_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    heard: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert list(heard["services"]) == ["default"] * is_offered
    (line,) = [line for line in heard["said"] if "found Ollama" in line]
    assert ("another user's (uid 60001); if you trust it, offer it with --backend 127.0.0.1:11434" in line) is not is_offered
