"""TLS at a client port, on real daemons and with real clients; the certificate changes under them."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from harness import SLACK, federation, wait_until

from tests.support.certificates import Pair, self_signed

if TYPE_CHECKING:
    from pathlib import Path

    from fleet import Fleet
    from harness import Daemon

TIMEOUT = 20 * SLACK
CHAT = {"model": "llama", "messages": []}


def ask(node: Daemon, cert: Path, path: str = "/v1/models", body: Any = None) -> Any:
    context = ssl.create_default_context(cafile=str(cert))
    connection = http.client.HTTPSConnection(*node.entry(), timeout=TIMEOUT, context=context)
    try:
        connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body))
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def trusts(node: Daemon, cert: Path) -> bool:
    try:
        ask(node, cert)
    except ssl.SSLCertVerificationError:
        return False
    return True


@pytest.fixture(scope="module")
def pair(fleet: Fleet) -> Pair:
    return self_signed(fleet.directory, "served")


@pytest.fixture(scope="module")
def nodes(fleet: Fleet, pair: Pair) -> list[Daemon]:
    server = fleet.model_server("server", "llama")
    files = ("--tls-cert", str(pair.cert), "--tls-key", str(pair.key))
    offer = ("--backend", f"http://127.0.0.1:{server.address[1]}")
    exit_node = fleet.daemon("exit", "--listen", "http://127.0.0.1:0", *offer, services=())
    entry = fleet.daemon("entry", "--listen", "https://127.0.0.1:0", *files, services=(), peer=exit_node)
    wait_until(lambda: ask(entry, pair.cert)["data"], within=20, what="the entry knows the model")
    return [exit_node, entry]


def test_clients_that_trust_the_certificate_are_served(nodes: list[Daemon], pair: Pair) -> None:
    _, entry = nodes
    answer = ask(entry, pair.cert, "/v1/chat/completions", CHAT)
    assert answer["node"]
    host, port = entry.entry()
    for _ in range(3 if shutil.which("curl") else 0):
        done = subprocess.run(
            ["curl", "-sS", "--cacert", str(pair.cert), f"https://localhost:{port}/v1/models", f"https://{host}:{port}/api/tags"],
            capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"]}, timeout=TIMEOUT,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.count("llama") >= 2
    wait_until(lambda: entry.status()["connections"]["now"] == 0, within=10, what="nothing is left")


def test_a_large_body_and_a_websocket_like_upgrade_pass(nodes: list[Daemon], pair: Pair) -> None:
    _, entry = nodes
    big = {**CHAT, "messages": [{"role": "user", "content": "x" * 3_000_000}]}
    assert ask(entry, pair.cert, "/v1/chat/completions", big)["node"]


def test_plain_http_gets_a_line_and_strangers_cost_nothing(nodes: list[Daemon]) -> None:
    _, entry = nodes
    with socket.create_connection(entry.entry(), timeout=TIMEOUT) as sock:
        sock.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        seen = b""
        while data := sock.recv(65536):
            seen += data
    assert seen.startswith(b"HTTP/1.1 400 ")
    assert b"speaks TLS" in seen
    for said in (b"\x16\x03\x01\x00\x02hi", os.urandom(100)):
        with socket.create_connection(entry.entry(), timeout=TIMEOUT) as sock:
            sock.sendall(said)
    wait_until(lambda: entry.status()["connections"]["now"] == 0, within=20, what="nothing is left")


def test_a_new_certificate_is_taken_at_sighup_and_a_wrong_one_is_not(
    nodes: list[Daemon], pair: Pair, tmp_path: Path
) -> None:
    _, entry = nodes
    new = self_signed(tmp_path, "new")
    kept = http.client.HTTPSConnection(
        *entry.entry(), timeout=TIMEOUT, context=ssl.create_default_context(cafile=str(pair.cert))
    )
    kept.request("GET", "/v1/models")
    kept.getresponse().read()
    old_cert = tmp_path / "old.pem"
    shutil.copyfile(pair.cert, old_cert)

    shutil.copyfile(new.cert, pair.cert)  # the key is still that of the old one
    entry.signal(signal.SIGHUP)
    wait_until(lambda: "is not the key of" in entry.log(), within=10, what="the pair is refused")
    assert trusts(entry, old_cert)

    shutil.copyfile(new.key, pair.key)
    entry.signal(signal.SIGHUP)
    wait_until(lambda: trusts(entry, new.cert), within=10, what="the new certificate is served")
    assert not trusts(entry, old_cert)
    kept.request("GET", "/v1/models")
    assert kept.getresponse().status == 200, "connections that are here go on"
    kept.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tls-cert", "/nowhere", "--tls-key", "/nowhere"), "--tls-cert /nowhere: No such file or directory"),
        (("--tls-cert", "/nowhere"), "--tls-cert and --tls-key go together"),
        (("--listen", "https://127.0.0.1:0"), "--listen https:// needs a certificate"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    done = federation("join", "--state-dir", str(tmp_path / "s"), "--control", "127.0.0.1:0", "--p2p-listen", "127.0.0.1:0",
                      *options, home=tmp_path, check=False)  # fmt: skip
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
