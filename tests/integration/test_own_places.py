"""Places of a node's own: Unix sockets on both sides, localhost, and a log that nobody reads."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingUnixStreamServer
from typing import TYPE_CHECKING

from harness import END_S, federation, http_get, parse_address, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fleet import Fleet

REQUESTS = 1500  # a line each: twice of what a pipe takes


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write((self.headers["Host"] or "").encode())

    def log_message(self, *_: object) -> None: ...
    def address_string(self) -> str:
        return "unix"


class _Server(ThreadingUnixStreamServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A health check hangs up behind the first line."""


@contextmanager
def server_at(path: Path) -> Iterator[None]:
    with _Server(str(path), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def ask(path: Path) -> bytes:
    """GET / by the Unix socket."""
    connection = http.client.HTTPConnection("localhost", timeout=30)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(30)
    try:
        connection.sock.connect(str(path))
        connection.request("GET", "/", headers={"Connection": "close"})
        return connection.getresponse().read()
    finally:
        connection.close()


def test_unix_sockets_are_backends_and_listeners(fleet: Fleet, tmp_path: Path) -> None:
    backend, listener, web = (tmp_path / name for name in ("backend", "listener", "web"))
    with server_at(backend):
        options = ("--backend", f"http://unix:{backend}", "--health-path", "/", "--listen", f"unix:{listener}")
        entry = fleet.daemon("unix", *options, "--listen", f"http://unix:{web}")
        other = fleet.daemon("other", peer=entry)
        wait_until(lambda: http_get(other.entry()).status == 200, within=20, what="served to another node")
        assert ask(listener) == ask(web) == b"localhost"
        assert http_get(entry.entry()).status == 200
        listeners = [at["address"] for at in entry.api("status")["node"]["listeners"]]
        assert listeners[1:] == [f"unix:{listener}", f"unix:{web}"]
    entry.stop()
    assert not listener.exists()


def test_localhost_is_both_families_and_status_names_all(fleet: Fleet) -> None:
    entry = fleet.daemon("families", "--listen", "localhost:0", "--hold", "0")
    status = federation("status", "--state-dir", str(entry.state_dir), home=fleet.directory).stdout
    (clients,) = [line for line in status.splitlines() if line.startswith("clients")]
    if socket.has_ipv6:
        (place,) = [part for part in clients.split() if part.startswith("[::1]:")]
        port = int(place.rpartition(":")[2])
        assert f"127.0.0.1:{port}" in clients
        assert http_get(("::1", port)).status == http_get(("127.0.0.1", port)).status == 503


def test_a_log_that_nobody_reads_keeps_nobody_waiting(fleet: Fleet, tmp_path: Path) -> None:
    state = tmp_path / "state"
    command = [
        *(sys.executable, "-m", "federation", "join", "--state-dir", str(state), "--no-mdns", "--no-detect", "--hold", "0"),
        *("--control", "127.0.0.1:0", "--p2p-listen", "127.0.0.1:0", "--listen", "127.0.0.1:0"),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=fleet.environment) as daemon:
        try:
            wait_until((state / "daemon.json").exists, within=20, what="it is ready")
            facts = json.loads((state / "daemon.json").read_text())
            for _ in range(REQUESTS):
                assert http_get(parse_address(facts["listens"]["default"])).status == 503
            status = federation("status", "--state-dir", str(state), "--json", home=fleet.directory).stdout
            assert json.loads(status)["connections"]["total"] >= REQUESTS
            daemon.terminate()
            assert daemon.wait(END_S) == 0
            assert daemon.stderr is not None
            assert len(daemon.stderr.read()) < REQUESTS * 100  # what fitted the pipe: nobody read, and it ended all the same
        finally:
            daemon.kill()
