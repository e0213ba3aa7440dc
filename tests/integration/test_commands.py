"""The commands for a running node, as a person uses them: real daemons, real connections."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING

import documents
import pytest
from harness import END_S, Daemon, federation, http_get, wait_until

from federation.cli import main
from federation.cli.grammar.parser import parse

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fleet import Fleet


class Network:
    """An entry without a backend, and two boxes that serve HTTP and an echo."""

    def __init__(self, fleet: Fleet) -> None:
        self.web = fleet.backend("http", "web")
        self.echo = fleet.backend("echo", "echo")
        backends = {"default": self.web, "echo": self.echo}
        services = ("default", "echo", "nobody")
        self.athens = fleet.daemon("athens", "--vram", "24GiB", backends=backends)
        self.bergen = fleet.daemon("bergen", backends=backends, peer=self.athens, wait=False)
        self.entry = fleet.daemon("cusco", "--hold", "300ms", services=services, peer=self.athens, wait=False)
        for daemon in (self.bergen, self.entry):
            daemon.wait_ready()
        wait_until(lambda: self.entry.offers() == {"athens", "bergen"}, within=10, what="the entry sees both")
        self.home = fleet.directory

    def run(self, daemon: Daemon, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return federation(*command, "--state-dir", str(daemon.state_dir), home=self.home, check=check)

    def conversation(self, service: str = "echo") -> socket.socket:
        """A connection that is open until somebody closes it."""
        sock = socket.create_connection(self.entry.entry(service), timeout=END_S)
        sock.sendall(b"hello")
        assert sock.recv(5) == b"hello"
        return sock


@pytest.fixture(scope="module")
def network(fleet: Fleet) -> Network:
    return Network(fleet)


def served_by(network: Network, sock: socket.socket) -> Daemon:
    number = network.entry.api("explain?last=1")["decisions"][-1]["id"]
    (decision,) = network.entry.api(f"explain?id={number}")["decisions"]
    assert decision["client"] == "{}:{}".format(*sock.getsockname())
    return {"athens": network.athens, "bergen": network.bergen}[decision["name"]]


def test_drain_keeps_new_connections_away_and_waits_for_open_ones(network, figure: Callable[[str, str], None]) -> None:
    with network.conversation() as sock:
        box = served_by(network, sock)
        begun = time.monotonic()
        assert "1 connection is served here" in network.run(box, "drain").stdout
        wait_until(lambda: box.name not in network.entry.offers(), within=3, what="the entry heard of it")
        figure("drain: until the entry knew (the command included)", f"{time.monotonic() - begun:.2f} s")
        for _ in range(4):
            assert http_get(network.entry.entry()).status == 200
        decisions = network.entry.api("explain?last=4")["decisions"]
        assert box.name not in {decision["name"] for decision in decisions}
        assert network.run(box, "drain", "--wait", "--timeout", "200ms", check=False).returncode == 1
        waiting = subprocess.Popen(
            [sys.executable, "-m", "federation", "drain", "--wait", "--state-dir", str(box.state_dir)],
            env=box.environment, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        sock.sendall(b"still")
        assert sock.recv(5) == b"still"
        assert waiting.poll() is None
    assert waiting.communicate(timeout=END_S)[0] == "drained: nothing is open here; it is safe to reboot\n"
    network.run(box, "undrain")
    wait_until(lambda: box.name in network.entry.offers(), within=3, what="it takes connections again")


def test_explain_tells_of_retries_and_of_those_nobody_had(network) -> None:
    network.web.stop()
    wait_until(lambda: http_get(network.entry.entry()).status == 503, within=5, what="no backend is left")
    text = network.run(network.entry, "explain", "--last", "1").stdout
    assert "turned away: no peer is available" in text
    network.web.start()
    wait_until(lambda: http_get(network.entry.entry()).status == 200, within=10, what="the backend is offered again")
    wait_until(lambda: "done:" in network.run(network.entry, "explain", "--last", "1").stdout, within=5, what="its end")
    ended = json.loads(network.run(network.entry, "explain", "--last", "1", "--json").stdout)["decisions"][-1]["ended"]
    assert ended["delivered"] > 0


def test_logs_have_a_line_a_connection(network) -> None:
    with network.conversation() as sock:
        client = "{}:{}".format(*sock.getsockname())
    find = f" {client} -> "
    wait_until(lambda: find in network.run(network.entry, "logs").stdout, within=5, what="the line of that connection")
    (line,) = [
        line
        for line in map(json.loads, network.run(network.entry, "logs", "--json").stdout.splitlines())
        if line.get("client") == client
    ]
    assert (line["service"], line["received"], line["delivered"], line["why"]) == ("echo", 5, 5, "done")
    # At info, on its own stderr too.
    wait_until(lambda: f"client={client}" in network.entry.log(), within=10, what="the log says so")


def test_ping(network, figure: Callable[[str, str], None]) -> None:
    answer = json.loads(network.run(network.entry, "ping", "bergen", "--json", "--bulk", "8MiB", "--count", "3").stdout)
    assert (answer["name"], answer["path"], len(answer["rtt_ms"])) == ("bergen", "direct", 3)
    assert answer["up"]["bytes"] == answer["down"]["bytes"] == 8 * 1024**2
    rates = [answer[way]["bytes"] / answer[way]["seconds"] / 1e6 for way in ("up", "down")]
    figure("federation ping --bulk", f"{min(answer['rtt_ms']):.2f} ms, up {rates[0]:.0f}, down {rates[1]:.0f} MB/s")
    nobody = network.run(network.entry, "ping", "nobody", check=False)
    assert (nobody.returncode, "no peer 'nobody'" in nobody.stderr) == (1, True)


def test_doctor_says_by_its_exit_code(network) -> None:
    well = network.run(network.athens, "doctor")
    assert "connected to all 2 that are online" in well.stdout
    assert "clocks" in well.stdout
    network.echo.stop()
    wait_until(lambda: network.athens.status()["warnings"], within=5, what="it noticed")
    ill = network.run(network.athens, "doctor", check=False)
    assert ill.returncode == 1
    assert "FAIL" in ill.stdout
    network.echo.start()
    wait_until(lambda: not network.athens.status()["warnings"], within=10, what="it is well again")


def test_a_service_manager_hears_of_start_reload_and_stop(fleet, tmp_path: Path) -> None:
    path = tmp_path / "notify"
    settings = tmp_path / "config.toml"
    settings.write_text('hold = "1s"\n')
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(60)  # a start imports for seconds
        daemon = fleet.daemon("managed", "--config", str(settings), environment={"NOTIFY_SOCKET": str(path)}, wait=False)
        assert manager.recv(100) == b"READY=1"
        daemon.wait_ready()
        settings.write_text('hold = "2s"\n')
        daemon.signal(signal.SIGHUP)
        assert manager.recv(100).startswith(b"RELOADING=1")
        assert manager.recv(100) == b"READY=1"
        wait_until(lambda: "changed=['hold']" in daemon.log(), within=10, what="the log says so")  # by a thread of its own
        settings.write_text('hold = "never"\n')
        daemon.signal(signal.SIGHUP)
        assert [manager.recv(100)[:9], manager.recv(100)] == [b"RELOADING", b"READY=1"]
        wait_until(lambda: "the old ones stay in force" in daemon.log(), within=10, what="the log says so")
        assert daemon.stop() == 0
        assert manager.recv(100) == b"STOPPING=1\nEXTEND_TIMEOUT_USEC=40000000"  # --drain-timeout, and time to leave


def test_join_offers_what_it_finds(fleet) -> None:
    class Ollama(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"Ollama is running")

        def log_message(self, *_args: object) -> None: ...

    try:
        server = HTTPServer(("127.0.0.1", 11434), Ollama)
    except OSError:
        pytest.skip("something listens on Ollama's port already")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        daemon = fleet.daemon("finder", environment={"FEDERATION_DETECT": "yes"})
        wait_until(lambda: "found Ollama on 127.0.0.1:11434" in daemon.log(), within=10, what="the log says so")
        assert daemon.status()["node"]["services"]["default"] is True
        assert http_get(daemon.entry()).body == b"Ollama is running"
        daemon.stop()
    finally:
        server.shutdown()
        server.server_close()


def test_the_commands_of_the_documents_work(network, monkeypatch, capsys) -> None:
    """Here, or where it says; each is understood by the grammar in any case."""
    elsewhere = {
        "join": "test_examples.py, test_command_line.py, tests/test_examples_files.py",
        "leave": "below",
        **dict.fromkeys(("ban", "unban", "token rotate", "owner show", "owner export"), "test_rotate_and_ban.py"),
        "token new": "fleet.py, tests/test_cli_owner.py",
        **dict.fromkeys(("service install", "service status", "service logs", "update", "uninstall"), "test_service.py"),
        **dict.fromkeys(("approve", "refuse"), "test_invites.py"),
        "use": "test_use.py",
        "notify": "test_notices.py",
    }
    options = {"--node": "test_remote_orders.py", "--expires": "test_invites.py", "--uses": "test_invites.py"}
    options |= {"--list": "test_invites.py", "--revoke": "test_invites.py", "--install": "test_service.py"}
    monkeypatch.setenv("HOME", str(network.home))
    monkeypatch.setenv("FEDERATION_STATE_DIR", str(network.athens.state_dir))

    def interrupted(_s: float) -> None:
        raise KeyboardInterrupt

    ran = 0
    for words in documents.commands():
        if words in (("ping",), ("key", "revoke"), ("invite", "--revoke")) or "NAME" in words:  # its form, in a sentence
            continue
        if "--help" not in words and (parse(words, "0").command in elsewhere or options.keys() & {*words}):
            continue
        if words[:2] == ("key", "add"):  # several pages make the same one
            with suppress(SystemExit):
                main.main(("key", "revoke", words[2]))
            capsys.readouterr()
        endless = {"--watch", "-f"} & {*words}
        with monkeypatch.context() as patches, pytest.raises(SystemExit) as ended:
            if endless:
                patches.setattr(time, "sleep", interrupted)
            main.main(words)
        assert ended.value.code == (main.INTERRUPTED if endless else 0), (words, capsys.readouterr())
        assert capsys.readouterr().out, words
        ran += 1
    assert ran > 12
    assert not network.athens.status()["node"]["draining"]


def test_leave_says_good_bye_and_forgets_the_token(network) -> None:
    bergen = network.bergen
    assert "left the network test" in network.run(bergen, "leave").stdout
    assert bergen.wait() == 0
    rows = {row["name"]: row["state"] for row in network.entry.peers()}
    assert rows["bergen"] == "left"
    assert not (bergen.state_dir / "token").exists()
    assert (bergen.state_dir / "identity").exists()
    assert http_get(network.entry.entry()).status == 200
