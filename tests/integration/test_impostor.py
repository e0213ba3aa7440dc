"""Whom the command line trusts, attacked on real daemons: by others on the control port, in between, in the state directory,
and in a browser.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from harness import SLACK, federation, http_get

from federation.mesh.tokens import Token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fleet import Fleet
    from harness import Address, Daemon

PEER = "12D3KooWJ9VnGqVYFbQkPNtHRjnbTnBCHHMsQPUVWAxqgUzRYrbt"
COMMANDS = [
    ["status"],
    ["peers", "--json"],
    ["explain"],
    ["invite"],
    ["dashboard"],
    ["logs"],
    ["doctor"],
    ["ping", "someone"],
    ["drain"],
    ["undrain"],
    ["ban"],
    ["token", "rotate", "--grace", "0"],
]


class Impostor:
    """Takes whatever the command line says, and answers as a daemon would that has another owner: it wants a key first."""

    def __init__(self, address: Address, state_dir: Path, *, at_challenge: int = 404) -> None:
        self.received: list[str] = []
        self.token = Token.new("the impostor's")
        state_dir.mkdir(exist_ok=True)
        (state_dir / "token").write_text(self.token.encode())
        status = {
            "node": {"name": "x", "peer_id": PEER, "state_dir": str(state_dir), "pid": 2**22 + 1, "in_flight": 0},
            "network": {"id": self.token.network_id, "name": "x", "invite_addresses": ["/ip4/192.0.2.66/tcp/4484"]},
            "connections": {"now": 0},
        }
        impostor = self

        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
                impostor.received.append(f"{self.requestline}\n{self.headers}\n{body}")
                if self.path.startswith("/api/v1/challenge"):
                    self.say(at_challenge, {"error": "Not Found", "nonce": "n" * 43, "proof": "0" * 64, "lifetime_s": 30.0})
                elif self.headers.get("Authorization") is None and not self.path.endswith("/status"):
                    self.say(401, {"error": "this needs the control key"})
                else:
                    self.say(200, {**status, **{part: [] for part in ("peers", "banned", "decisions", "lines")}})

            do_POST = do_GET

            def say(self, code: int, answer: Any) -> None:
                text = json.dumps(answer).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(address, Answers)
        self.address = "{}:{}".format(*self.server.server_address[:2])

    @contextmanager
    def listening(self) -> Iterator[Impostor]:
        thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            self.server.server_close()
            thread.join()


def key_of(daemon: Daemon) -> str:
    return (daemon.state_dir / "control.key").read_text().strip()


def test_who_takes_the_port_of_a_killed_daemon_hears_nothing(
    fleet: Fleet, tmp_path: Path, figure: Callable[[str, str], None]
) -> None:
    daemon = fleet.daemon("killed")
    key = key_of(daemon)
    daemon.kill()
    with Impostor(daemon.control, tmp_path / "x").listening() as impostor:
        heard, outcomes = [], []
        for command in COMMANDS:
            before = len(impostor.received)
            done = federation(*command, "--state-dir", str(daemon.state_dir), home=fleet.directory, check=False)
            if any(key in request for request in impostor.received[before:]):
                heard.append(" ".join(command))
            outcomes.append((command, done.returncode, done.stdout, done.stderr))
        figure("commands that told the key to who took a killed daemon's port", f"{len(heard)} of {len(COMMANDS)}")
        assert heard == []
        for command, code, out, err in outcomes:
            assert impostor.token.encode()[:20] not in out
            if command != ["ban"]:  # it lists what the state directory has
                assert (code, "Traceback" in err) == (1, False), (command, out, err)
        assert impostor.received == []  # with no daemon there is nobody to ask
    daemon.start()  # over the socket that the killed one left
    assert json.loads(federation("status", "--json", "--state-dir", str(daemon.state_dir), home=fleet.directory).stdout)


@pytest.mark.parametrize("at_challenge", [404, 200])
def test_who_answers_at_control_hears_no_key_and_is_not_believed(fleet: Fleet, tmp_path: Path, at_challenge: int) -> None:
    """With the key of another daemon at hand, by --state-dir: that must not get there."""
    daemon = fleet.daemon(f"own{at_challenge}")
    key = key_of(daemon)
    impostor = Impostor(("127.0.0.1", 0), tmp_path / "x", at_challenge=at_challenge)
    with impostor.listening():
        for command in COMMANDS:
            options = ["--control", impostor.address, "--state-dir", str(daemon.state_dir)]
            done = federation(*command, *options, home=fleet.directory, check=False)
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), (command, done)
        told = [request for request in impostor.received if key in request]
        assert told == []
        assert {request.split("?")[0] for request in impostor.received} == {"GET /api/v1/challenge"}
        # Without any key: what anybody may read can be asked for, but nothing that counts.
        for command in (["invite"], ["drain"], ["token", "rotate"], ["dashboard"]):
            done = federation(*command, "--control", impostor.address, home=fleet.directory, check=False)
            assert (done.returncode, done.stdout) == (1, "")
            assert "FEDERATION_CONTROL_KEY" in done.stderr
    assert not daemon.status()["node"]["draining"]


def test_no_path_is_taken_from_an_answer_and_no_link_is_followed(fleet: Fleet, tmp_path: Path) -> None:
    victim = tmp_path / "somebodys-secret"
    victim.write_text("s" * 43)
    victim.chmod(0o644)
    trap = tmp_path / "trap"
    impostor = Impostor(("127.0.0.1", 0), trap)
    (trap / "control.key").symlink_to(victim)
    with impostor.listening():
        for options in (["--control", impostor.address], ["--control", impostor.address, "--state-dir", str(trap)]):
            done = federation("drain", *options, home=fleet.directory, check=False)
            assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert [request for request in impostor.received if "s" * 43 in request] == []
    assert victim.stat().st_mode & 0o777 == 0o644

    new = tmp_path / "created"
    (trap / "lock").symlink_to(new)
    arguments = ["--listen", "127.0.0.1:0", "--p2p-listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--no-mdns"]
    done = federation("join", "--state-dir", str(trap), *arguments, home=fleet.directory, check=False)
    assert (done.returncode, new.exists()) == (1, False)
    assert done.stderr.count("\n") == 1
    assert "lock: it is a link" in done.stderr


class Between:
    """Hands on what comes for a daemon, changed."""

    def __init__(
        self, to: Address, change: Callable[[bytes], bytes] = bytes, change_back: Callable[[bytes], bytes] = bytes
    ) -> None:
        self.seen = b""
        self._to, self._change, self._back = to, change, change_back
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Between:
        self._run(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(30)
        for end in self._sockets:
            end.close()

    def _run(self, target: Callable[..., None], *args: object) -> None:
        self._threads.append(threading.Thread(target=target, args=args))
        self._threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            server = socket.create_connection(self._to)
            self._sockets += [client, server]
            self._run(self._pump, client, server, self._change)
            self._run(self._pump, server, client, self._back)

    def _pump(self, source: socket.socket, sink: socket.socket, change: Callable[[bytes], bytes]) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self.seen += data
                sink.sendall(change(data))
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def test_who_is_in_between_can_change_nothing(fleet: Fleet) -> None:
    daemon = fleet.daemon("relayed")
    name, port = "{}:{}".format(*daemon.control).encode(), daemon.control
    key = key_of(daemon)

    def run(between: Between, *command: str) -> Any:
        options = ["--control", between.address, "--state-dir", str(daemon.state_dir)]
        return federation(*command, *options, home=fleet.directory, check=False)

    with Between(port) as between:  # a forwarded port (`ssh -L`) is served, and who forwards it learns no key
        assert [run(between, command).returncode for command in ("drain", "undrain")] == [0, 0]
        assert key.encode() not in between.seen
    with Between(port) as between:
        here = between.address.encode()
        between._change = lambda data: data.replace(here, name)
        done = run(between, "drain")
        assert (done.returncode, "does not prove to be your daemon" in done.stderr) == (1, True)
        assert key.encode() not in between.seen
    assert not daemon.status()["node"]["draining"]


def test_the_daemon_s_own_owner_is_asked_for_nothing_and_others_for_the_key(fleet: Fleet) -> None:
    """Down a path that no socket's address has room for."""
    deep = fleet.directory / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    daemon = fleet.daemon("deep")
    daemon.stop()
    daemon.state_dir = deep / "state"
    daemon.start()
    (daemon.state_dir / "control.key").rename(deep / "hidden")
    for command in (["status"], ["invite"], ["drain"], ["undrain"], ["logs"], ["ban"], ["dashboard"]):
        federation(*command, "--state-dir", str(daemon.state_dir), home=fleet.directory)
    mode = (daemon.state_dir / "control.sock").stat().st_mode
    assert mode & 0o777 == 0o600
    assert http_get(daemon.control, "/api/v1/invite").status == 401
    daemon.stop()
    assert not (daemon.state_dir / "control.sock").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root, to be another user")
def test_another_user_of_the_machine_is_told_whose_it_is(fleet: Fleet) -> None:
    daemon = fleet.daemon("private")
    outcomes = []
    for opened in (False, True):  # as it is, and where somebody has opened directory and socket to all
        if opened:
            for path in (daemon.state_dir, *daemon.state_dir.parents):
                if path == fleet.directory.parent.parent:
                    break
                path.chmod(path.stat().st_mode | 0o055)
            (daemon.state_dir / "control.sock").chmod(0o666)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:  # no exec: a binary in root's own directory could not be run by another user
            status = 99
            try:
                os.setgid(65534)
                os.setuid(65534)
                from federation.cli import client
                from federation.errors import FederationError
                from federation.state import StateDir

                try:
                    said = client.Daemon(StateDir(daemon.state_dir)).ask("/api/v1/invite", owner=True)
                    status = 0
                except FederationError as error:
                    said, status = str(error), error.exit_code
                os.write(write, said.encode())
            finally:
                os._exit(status)
        os.close(write)
        _, code = os.waitpid(pid, 0)
        outcomes.append((os.waitstatus_to_exitcode(code), os.read(read, 65536).decode()))
        os.close(read)
    assert [code for code, _ in outcomes] == [1, 1], outcomes
    assert "belongs to" in outcomes[0][1]
    assert "fed1_" not in outcomes[1][1]


def test_connections_of_others_do_not_lock_the_owner_out(fleet: Fleet, figure: Callable[[str, str], None]) -> None:
    daemon = fleet.daemon("crowded")
    host = "Host: {}:{}\r\n".format(*daemon.control)
    beginnings = (
        "",
        "GET /api/v1/status HTTP/1.1\r\nHo",
        f"POST /api/v1/dashboard/session HTTP/1.1\r\n{host}Content-Length: 9\r\n\r\n{{",
        f"GET /api/v1/events HTTP/1.1\r\n{host}\r\n",
    )
    with ExitStack() as stack:
        for n in range(300):
            other = stack.enter_context(socket.create_connection(daemon.control, timeout=10))
            other.sendall(beginnings[n % len(beginnings)].encode())
        begun = time.monotonic()
        connection = http.client.HTTPConnection(*daemon.control, timeout=10)
        connection.request("GET", "/api/v1/events", headers={"Authorization": f"Bearer {key_of(daemon)}"})
        answer = connection.getresponse()
        status = answer.status
        answer.close()
        connection.close()
        by_port = time.monotonic() - begun
        figure("300 connections of others: the owner's page by the port", f"{status} after {by_port * 1000:.0f} ms")
        assert (status, by_port < 1 * SLACK) == (200, True)
        federation("status", "--state-dir", str(daemon.state_dir), home=fleet.directory)


def test_a_foreign_page_is_refused_and_cannot_load_what_is_here(fleet: Fleet) -> None:
    daemon = fleet.daemon("visited")

    def ask(path: str, **headers: str) -> tuple[int, str | None]:
        connection = http.client.HTTPConnection(*daemon.control, timeout=10)
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        with connection.getresponse() as answer:
            answer.read()
            connection.close()
            return answer.status, answer.headers.get("Cross-Origin-Resource-Policy")

    for site in ("cross-site", "same-site"):
        for path in ("/api/v1/status", "/static/icon.svg", "/"):
            foreign = {"Sec_Fetch_Site": site, "Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": "image"}
            assert ask(path, **foreign) == (403, "same-origin")
    assert ask("/static/icon.svg") == (200, "same-origin")
    assert ask("/api/v1/status", Sec_Fetch_Site="same-origin") == (200, "same-origin")


def test_the_dashboards_address_opens_once(fleet: Fleet) -> None:
    daemon = fleet.daemon("shown")

    def post(path: str, body: object = None, session: str = "") -> tuple[int, Any]:
        connection = http.client.HTTPConnection(*daemon.control, timeout=10)
        headers = {"Authorization": f"Bearer {session}"} if session else {}
        connection.request("POST", f"/api/v1/{path}", json.dumps(body), headers)
        with connection.getresponse() as answer:
            text = json.loads(answer.read())
            connection.close()
            return answer.status, text

    url = federation("dashboard", "--state-dir", str(daemon.state_dir), home=fleet.directory).stdout.strip()
    assert key_of(daemon) not in url
    code = url.partition("/#code=")[2]
    status, answer = post("dashboard/session", {"code": code})
    assert status == 200
    assert post("dashboard/session", {"code": code})[0] == 403
    assert post("drain", session=answer["session"])[0] == 200
    assert post("undrain", session=answer["session"])[0] == 200
    assert post("drain", session=code)[0] == 401
    said = federation("dashboard", "--revoke", "--state-dir", str(daemon.state_dir), home=fleet.directory).stdout
    assert said.startswith("1 session ended")
    assert post("drain", session=answer["session"])[0] == 401
    daemon.signal(signal.SIGKILL)
    daemon.wait()
    assert answer["session"] not in "".join(
        path.read_text(errors="replace") for path in daemon.state_dir.iterdir() if path.is_file()
    )
