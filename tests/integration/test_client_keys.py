"""Client keys on real daemons: made at one node, used at another one, revoked at a third; over a rotation and a restart."""

from __future__ import annotations

import http.client
import json
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
from harness import SLACK, federation, wait_until
from old_version import OldVersion, why_not

if TYPE_CHECKING:
    from fleet import Fleet
    from harness import Daemon

CHAT = "/v1/chat/completions"
TIMEOUT = 20 * SLACK
NAMES = ("ada", "bea", "cyd")


def run(node: Daemon, *arguments: str) -> str:
    return federation(*arguments, "--state-dir", str(node.state_dir), home=node.directory).stdout


def chat(node: Daemon, key: str, model: str = "llama", *, field: str = "Authorization", path: str = CHAT) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(*node.entry(), timeout=TIMEOUT)
    headers = {"Content-Type": "application/json"}
    if key:
        headers[field] = f"Bearer {key}" if field == "Authorization" else key
    connection.request("POST", path, json.dumps({"model": model, "messages": []}), headers)
    answer = connection.getresponse()
    status, body = answer.status, answer.read()
    connection.close()
    if status == 401:
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="federation"'
    return status, json.loads(body)


def ask_list(node: Daemon, key: str) -> list[str]:
    connection = http.client.HTTPConnection(*node.entry(), timeout=TIMEOUT)
    connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
    body = connection.getresponse().read()
    connection.close()
    return [row["id"] for row in json.loads(body).get("data", ())]  # none while the key is not known there


@pytest.fixture(scope="module")
def nodes(fleet: Fleet) -> list[Daemon]:
    """cyd asks every client for a key; the others, on loopback, none."""
    server = fleet.model_server("server", "llama", "gemma")
    options = ("--listen", "http://127.0.0.1:0")
    offer = ("--backend", f"http://127.0.0.1:{server.address[1]}")
    ada = fleet.daemon("ada", *options, *offer, services=(), owner=True)
    bea = fleet.daemon("bea", *options, services=(), peer=ada, wait=False)
    cyd = fleet.daemon("cyd", *options, "--require-key", services=(), peer=ada, wait=False)
    found = [ada, bea, cyd]
    for node in found:
        node.wait_ready()
    for node in found:
        wait_until(lambda node=node: node.sees() == set(NAMES), within=10, what=f"{node.name} sees all")
    wait_until(lambda: chat(bea, "")[0] == 200, within=10, what="bea knows the model")
    return found


def uses(node: Daemon, name: str) -> int:
    """At all entries, as that one knows."""
    rows = json.loads(run(node, "key", "list", "--json"))["keys"]
    return next(row["requests"] for row in rows if row["name"] == name)


def test_a_key_is_known_everywhere_and_so_is_its_end(nodes: list[Daemon], figure: Any) -> None:
    ada, bea, cyd = nodes
    assert chat(cyd, "")[0] == 401
    key = run(ada, "key", "add", "phone").strip()
    start = time.monotonic()
    wait_until(lambda: chat(cyd, key)[0] == 200, within=10, what="cyd takes ada's key")
    figure("client key taken at another node, first request included", f"{time.monotonic() - start:.2f} s")
    assert chat(cyd, key, field="x-api-key", path="/v1/messages")[0] == 200
    assert chat(bea, "")[0] == 200, "on loopback a key is optional"
    assert chat(bea, key + "x")[0] == 401, "and a wrong one is wrong"
    assert (row := json.loads(run(cyd, "key", "list", "--json"))["keys"][0])["name"] == "phone"
    assert (row["made_by_name"], row["requests"]) == ("ada", 2)

    assert chat(bea, key)[0] == 200
    for node in nodes:  # the answers to each other are kept for FRESH_S
        wait_until(lambda node=node: uses(node, "phone") == 3, within=10, what=f"{node.name} knows of use at all entries")
    assert "use: at all nodes, since each started" in run(ada, "key", "list")

    limited = run(bea, "key", "add", "limited", "--models", "gemma", "--rate", "3/h", "--expires", "1d").strip()
    wait_until(lambda: ask_list(cyd, limited) == ["gemma"], within=10, what="cyd knows the limited key")
    status, body = chat(cyd, limited)
    assert (status, body["error"]["code"]) == (403, "model_not_allowed")
    while (status := chat(cyd, limited, "gemma")[0]) == 200:
        pass
    assert status == 429

    assert "revoked the key phone" in run(bea, "key", "revoke", "phone")
    start = time.monotonic()
    wait_until(lambda: chat(cyd, key)[0] == 401, within=10, what="cyd refuses the revoked key")
    figure("client key refused at another node after its revocation", f"{time.monotonic() - start:.2f} s")
    status, body = chat(cyd, key)
    assert body["error"]["message"] == "federation: the client key 'phone' was revoked"
    wait_until(lambda: " key=phone " in cyd.log(), within=10, what="the log says so")
    assert all(key not in node.log() and limited not in node.log() for node in nodes)


def test_keys_outlive_the_token_and_every_process(nodes: list[Daemon], fleet: Fleet) -> None:
    ada, bea, cyd = nodes
    stays = run(ada, "key", "add", "stays").strip()
    goes = run(ada, "key", "add", "goes").strip()
    wait_until(lambda: {chat(cyd, key)[0] for key in (stays, goes)} == {200}, within=10, what="cyd knows both")
    run(ada, "token", "rotate", "--grace", "1h")
    cyd.stop()
    run(bea, "key", "revoke", "goes")
    after = run(ada, "key", "add", "after").strip()
    for node in (ada, bea):
        node.stop()
    cyd.launch()  # alone, with its old rows
    ada.launch()
    bea.launch()
    for node in nodes:
        node.wait_ready()
    wait_until(lambda: chat(cyd, after)[0] == 200, within=20, what="cyd learns the key that was made while it was away")
    assert chat(cyd, stays)[0] == 200
    assert chat(cyd, goes)[0] == 401, "a revocation wins over the old record"
    for node in nodes:
        path = node.state_dir / "client-keys.json"
        assert path.stat().st_mode & 0o777 == 0o600
        assert all(key not in path.read_text() for key in (stays, goes, after))


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")
def test_a_node_of_an_older_version_lives_on(fleet: Fleet) -> None:
    """It knows no keys: it refuses the streams, passes nothing on, and stays."""
    version = OldVersion(fleet)
    token_file = version.new_token("mixed")
    server = fleet.model_server("server2", "llama")
    old = version.daemon("old", token_file=token_file)
    http = ("--listen", "http://127.0.0.1:0")
    offer = ("--backend", f"http://127.0.0.1:{server.address[1]}")
    dan = fleet.daemon("dan", *http, *offer, services=(), peer=old, token_file=token_file)
    eve = fleet.daemon("eve", *http, "--require-key", services=(), peer=old, token_file=token_file)
    everybody = {"old", "dan", "eve"}
    for node in (old, dan, eve):
        wait_until(lambda node=node: node.sees() == everybody, within=20, what=f"{node.name} sees all")
    keys = [run(dan, "key", "add", f"k{n}").strip() for n in range(5)]
    wait_until(lambda: all(chat(eve, key)[0] == 200 for key in keys), within=10, what="eve knows them")
    answer = json.loads(run(dan, "key", "list", "--json"))
    at_eve = json.loads(run(eve, "key", "list", "--json"))
    assert [row["requests"] for row in answer["keys"]] == [row["requests_here"] for row in at_eve["keys"]]
    assert all(row["requests"] >= 1 and row["requests_here"] == 0 for row in answer["keys"])
    assert (answer["entries"], answer["entries_counted"]) == (3, 2)
    assert "use: at 2 of 3 nodes" in run(dan, "key", "list")
    assert old.sees() == everybody
    assert "broke the rules" not in old.log() + dan.log() + eve.log()


def test_a_port_off_loopback_asks_as_soon_as_there_is_a_key(fleet: Fleet) -> None:
    """0x7f.1 is 127.0.0.1 to the kernel, and no loopback address to us."""
    server = fleet.model_server("server3", "llama")
    token_file = fleet.new_token("token3", "third")
    offer = ("--backend", f"http://127.0.0.1:{server.address[1]}")
    node = fleet.daemon(
        "fay", "--listen", "0x7f.1:0", "--listen", "l4=tcp://0x7f.1:0", *offer, services=(), token_file=token_file
    )
    wait_until(lambda: chat(node, "")[0] == 200, within=20, what="its port is layer 4, and asks for nothing")
    key = run(node, "key", "add", "phone").strip()
    assert chat(node, "")[0] == 401
    assert chat(node, key)[0] == 200
    with socket.create_connection(node.entry(), timeout=TIMEOUT) as sock:
        sock.sendall(b"*1\r\n$4\r\nPING\r\n")
        seen = b""
        while data := sock.recv(65536):
            seen += data
    assert seen.startswith(b"HTTP/1.1 400 ")
    assert b"PING" not in server.read
    assert key.encode() not in server.read
    run(node, "key", "revoke", "phone")
    assert chat(node, "")[0] == chat(node, key)[0] == 401
    assert run(node, "key", "list").startswith("no client keys\nports that other machines reach ask for a key")
