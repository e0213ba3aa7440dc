"""The control API of real daemons: true to its description, live, quiet about secrets, no hindrance to anything."""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from harness import SLACK, Response, clean_environment, federation, http_get, wait_until
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fleet import Fleet
    from harness import Daemon

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
NOT_FOR_IT = ("/api/v1/leave", "/api/v1/events")  # it ends the node; it does not end
CASES = 4  # for each operation, besides the edge cases


@pytest.fixture(scope="module")
def nodes(fleet: Fleet) -> tuple[Daemon, Daemon]:
    """An entry, and an exit with a backend."""
    backend = fleet.nginx("x")
    exit_ = fleet.daemon("exit", "--vram", "8GiB", backend=backend)
    entry = fleet.daemon("entry", peer=exit_)
    wait_until(lambda: "exit" in entry.offers(), within=50, what="the entry has somebody to send clients to")
    return entry, exit_


def key(node: Daemon) -> str:
    return (node.state_dir / "control.key").read_text().strip()


def ask(node: Daemon, path: str, method: str = "GET", **headers: str) -> Response:
    connection = http.client.HTTPConnection(*node.control, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return Response(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def as_owner(node: Daemon, path: str, method: str = "POST") -> Any:
    response = ask(node, path, method, Authorization=f"Bearer {key(node)}")
    assert response.status == 200, response
    return response.json()


@pytest.mark.skipif(not SCHEMATHESIS.exists(), reason="Schemathesis is missing: it has no version for this Python")
def test_schemathesis_finds_it_true_to_its_description(nodes, fleet, figure: Callable[[str, str], None]) -> None:
    node = nodes[0]
    config = fleet.directory / "schemathesis.toml"
    config.write_text('headers = { Authorization = "Bearer ${CONTROL_KEY}" }\n')
    excluded = [argument for path in NOT_FOR_IT for argument in ("--exclude-path", path)]
    begun = time.monotonic()
    done = subprocess.run(
        [
            *(str(SCHEMATHESIS), "--config-file", str(config), "run", *excluded, "--checks", "all"),
            *("--phases", "coverage,fuzzing", "-n", str(CASES), "--seed", "1", "--no-color"),
            "http://{}:{}/api/v1/openapi.json".format(*node.control),
        ],
        env={**clean_environment(fleet.directory), "CONTROL_KEY": key(node)},
        cwd=fleet.directory,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout
    generated = re.search(r"(\d+) generated, \1 passed", done.stdout)
    assert generated, done.stdout
    assert int(generated[1]) > 200
    figure("Schemathesis", f"{generated[1]} cases in {time.monotonic() - begun:.1f} s")
    as_owner(node, "/api/v1/undrain")  # whatever it did last
    wait_until(lambda: node.sees() == {"entry", "exit"}, within=50, what="nothing was broken by it")


class Events:
    """A client of the event stream."""

    def __init__(self, node: Daemon, after: int | None = None) -> None:
        self._connection = http.client.HTTPConnection(*node.control, timeout=10)
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        self._connection.request("GET", "/api/v1/events", headers=headers)
        self._response = self._connection.getresponse()
        assert self._response.status == 200
        self.ids: list[int] = []

    def next(self, wanted: str, condition: Callable[[Any], bool] = lambda _: True) -> Any:
        """The first event of that kind with which the condition holds. Each line comes within 10 s."""
        kind = ""
        while True:
            name, _, value = self._response.fp.readline().decode().rstrip("\n").partition(": ")
            if name == "id":
                self.ids.append(int(value))
            elif name == "event":
                kind = value
            elif name == "data" and kind == wanted and condition(data := json.loads(value)):
                return data

    def close(self) -> None:
        self._response.close()
        self._connection.close()


@contextmanager
def listening(node: Daemon, after: int | None = None) -> Iterator[Events]:
    events = Events(node, after)
    try:
        yield events
    finally:
        events.close()


def test_events_tell_what_happens_and_what_was_missed(nodes) -> None:
    entry, exit_ = nodes
    with listening(entry) as events:
        first = events.next("state")
        assert {row["name"] for row in first["peers"]} == {"entry", "exit"}
        assert http_get(entry.entry(), "/name").status == 200
        decision = events.next("decision")
        assert (decision["chosen"], decision["tier"]) == (exit_.peer_id, "only")
        total = first["status"]["connections"]["total"]
        events.next("state", lambda state: state["status"]["connections"]["total"] == total + 1)
        seen = events.ids
    assert seen == sorted(set(seen))
    http_get(entry.entry(), "/name")
    with listening(entry, after=seen[0]) as again:
        again.next("decision", lambda missed: missed["id"] == decision["id"] + 1)
        assert again.ids[: len(seen) - 1] == seen[1:]


def test_a_stream_is_in_the_list_of_connections_and_its_bytes_in_the_metrics(nodes) -> None:
    entry, exit_ = nodes
    with socket.create_connection(entry.entry(), timeout=10) as client:
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        client.recv(1)
        assert entry.api("connections")["total"] >= 1
        row = next(row for row in entry.api("connections")["connections"] if row["state"] == "open")
        assert (row["peer"], row["name"], row["received"]) == (exit_.peer_id, "exit", 31)
        values = metrics(entry)
        assert values["federation_connections_in_flight", ("peer", exit_.peer_id)] >= 1
        assert values["federation_bytes_total", ("direction", "out")] >= row["delivered"] > 0


def metrics(node: Daemon) -> dict[tuple[Any, ...], float]:
    """(name, *labels) -> value."""
    text = http_get(node.control, "/metrics").body.decode()
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_count_each_connection_once(nodes) -> None:
    entry, exit_ = nodes
    ok = ("federation_connections_finished_total", ("result", "ok"), ("service", "default"))
    before = metrics(entry)
    for _ in range(20):
        assert http_get(entry.entry(), "/name").status == 200
    wait_until(lambda: metrics(entry)[ok] == before.get(ok, 0) + 20, within=50, what="all have ended in order")
    after = metrics(entry)
    started = ("federation_connections_started_total", ("service", "default"))
    assert after[started] - before[started] == 20
    assert after["federation_open_seconds_count",] - before["federation_open_seconds_count",] == 20
    assert after["federation_connection_seconds_count",] - before["federation_connection_seconds_count",] == 20
    only = ("federation_picks_sampled_total", ("tier", "only"))
    wait_until(lambda: metrics(entry)[only] >= 20, within=50, what="the picks were counted")
    theirs = metrics(exit_)
    assert theirs["federation_backend_up", ("service", "default")] == 1
    assert theirs["federation_vram_size_bytes",] == 8 * 2**30
    assert theirs["federation_peers", ("state", "online")] == 1  # an entry offers nothing
    assert theirs["federation_gossip_messages_total", ("direction", "in")] > 0
    assert theirs["process_resident_memory_bytes",] > 1e7


def test_no_answer_but_the_owners_holds_a_secret(nodes, fleet) -> None:
    node = nodes[0]
    tokens = [fleet.token_file, node.state_dir / "token"]  # the second one is Schemathesis' work: it may rotate
    secrets = [key(node), *(path.read_text().strip()[8:40] for path in tokens)]
    paths = [p for p, methods in ask(node, "/api/v1/openapi.json").json()["paths"].items() if "get" in methods]
    shown = []
    for path in (*paths, "/", "/static/app.js", "/nothing"):
        if path == "/api/v1/events":
            with listening(node) as events:
                text = json.dumps(events.next("state"))
        else:
            text = ask(node, path).body.decode()
        shown.append(path)
        assert not any(secret in text for secret in secrets), path
        seed = (node.state_dir / "identity").read_bytes()
        assert seed.hex() not in text
    assert {"/api/v1/status", "/api/v1/invite", "/api/p2p/token", "/metrics"} <= set(shown)
    assert ask(node, "/api/p2p/token").status == ask(node, "/api/v1/invite").status == 401
    invited = as_owner(node, "/api/v1/invite", "GET")
    assert invited["command"] == "federation join --token-file -"  # which asks for the token: no shell keeps it
    assert federation("token", "inspect", "-", home=fleet.directory, given=invited["token"]).stdout.count("/tcp/") >= 1
    assert key(node) not in node.log()


def test_drain_is_the_owners_and_reaches_everybody(nodes) -> None:
    entry, exit_ = nodes
    assert ask(exit_, "/api/v1/drain", "POST").status == 401
    assert ask(exit_, "/api/v1/drain", "POST", Authorization=f"Bearer {key(entry)}").status == 401
    assert "exit" in entry.offers()
    assert as_owner(exit_, "/api/v1/drain")["draining"] is True
    wait_until(lambda: "exit" not in entry.offers(), within=20, what="the drain is known")
    assert as_owner(exit_, "/api/v1/undrain")["draining"] is False
    wait_until(lambda: "exit" in entry.offers(), within=20, what="the exit is back")


def test_localai_s_scripts_find_their_fields(nodes) -> None:
    entry, exit_ = nodes
    (node,) = ask(entry, "/api/p2p/federation").json()["nodes"]
    assert (node["name"], node["id"], node["isOnline"]) == ("exit", exit_.peer_id, True)
    host, _, port = node["tunnelAddress"].rpartition(":")
    assert http_get((host, int(port)), "/name").body == b"x\n"
    assert ask(entry, "/api/p2p/stats").json()["federated"] == {"online": 1, "total": 1}


def test_the_dashboard_command_leads_to_the_page(nodes, fleet) -> None:
    node = nodes[0]
    url = federation("dashboard", "--state-dir", str(node.state_dir), home=fleet.directory).stdout.strip()
    address, _, code = url.partition("/#code=")
    assert (address, len(code)) == ("http://{}:{}".format(*node.control), 43)
    assert key(node) not in url
    page = ask(node, "/")
    assert page.status == 200
    assert "script-src 'self'" in page.headers["content-security-policy"]
    for path in re.findall(rb'(?:src|href)="(/static/[^"]+)"', page.body):
        assert ask(node, path.decode()).status == 200


def test_the_commands_of_the_documentation_work(nodes, fleet) -> None:
    node = nodes[0]
    text = Path(__file__).parents[2].joinpath("docs", "api.md").read_text()
    commands = "".join(re.findall(r"```sh\n(.*?)```", text, re.S))
    assert commands.count("curl") > 10
    done = subprocess.run(
        ["bash", "-e", "-c", commands],
        env={**fleet.environment, "NODE": "http://{}:{}".format(*node.control), "KEY": key(node)},
        cwd=fleet.directory,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert "event: state" in done.stdout


def test_clients_that_never_read_keep_no_node_from_ending(fleet) -> None:
    node = fleet.daemon("leaver")
    deaf = []
    for path in ("/api/v1/events", *["/api/v1/openapi.json"] * 8):
        client = socket.create_connection(node.control)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: {node.control[0]}:{node.control[1]}\r\n\r\n".encode() * 4)
        deaf.append(client)
    begun = time.monotonic()
    assert node.stop() == 0
    assert time.monotonic() - begun < 5 * SLACK
    for client in deaf:
        client.close()
