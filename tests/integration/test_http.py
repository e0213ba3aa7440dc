"""HTTP services: each request goes to a box that has its model. Real daemons, servers that are made up (model_server.py)."""

from __future__ import annotations

import http.client
import itertools
import json
import re
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from harness import SLACK, federation, wait_until
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Request, TextMessage

from tests.support.smuggling import ATTACKS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fleet import Fleet, ModelServer
    from harness import Daemon

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
MODELS = (("gemma", "llama"), ("llama",), ("qwen",))
TIMEOUT = 20 * SLACK


def ask(entry: Daemon, path: str, body: Any = None, *, on: http.client.HTTPConnection | None = None) -> tuple[int, bytes]:
    connection = on or http.client.HTTPConnection(*entry.entry(), timeout=TIMEOUT)
    try:
        data = None if body is None else json.dumps(body)
        connection.request("GET" if data is None else "POST", path, data, JSON if data else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        if on is None:
            connection.close()


def node_of(answer: tuple[int, bytes]) -> str:
    assert answer[0] == 200, answer
    return str(json.loads(answer[1])["node"])


def written(body: Any, *lines: str, path: str = CHAT) -> bytes:
    data = json.dumps(body)
    fields = "".join(f"{line}\r\n" for line in lines)
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{fields}Content-Length: {len(data)}\r\n\r\n{data}".encode()


def said(entry: Daemon, data: bytes, *, ends: bool = False) -> bytes:
    """All that comes until the entry closes; a reset is an error."""
    with socket.create_connection(entry.entry(), timeout=TIMEOUT) as sock:
        sender = threading.Thread(target=sock.sendall, args=(data,))
        sender.start()
        if ends:
            sender.join()
            sock.shutdown(socket.SHUT_WR)
        parts = []
        while part := sock.recv(65536):
            parts.append(part)
        sender.join()
    return b"".join(parts)


def listed(entry: Daemon) -> set[str]:
    status, body = ask(entry, "/v1/models")
    return {row["id"] for row in json.loads(body)["data"]} if status == 200 else set()


def places(entry: Daemon, model: str) -> set[str]:
    rows = entry.api("models")["models"]
    return {place["name"] for row in rows if row["name"] == model for place in row["places"]}


def join(
    fleet: Fleet, name: str, server: ModelServer | None, *options: str, peer: Daemon | None = None, wait: bool = True
) -> Daemon:
    offer = () if server is None else ("--backend", f"http://127.0.0.1:{server.address[1]}")
    listen = ("--listen", "127.0.0.1:0", "--hold", "1", *offer, *options)  # HTTP by itself: the backends are
    return fleet.daemon(name, *listen, peer=peer, services=(), wait=wait)


@pytest.fixture(scope="module")
def servers(fleet: Fleet) -> list[ModelServer]:
    return [fleet.model_server(f"b{n}", *models) for n, models in enumerate(MODELS)]


@pytest.fixture(scope="module")
def nodes(fleet: Fleet, servers: list[ModelServer]) -> list[Daemon]:
    nodes: list[Daemon] = []
    for n, server in enumerate(servers):
        nodes.append(join(fleet, f"n{n}", server, peer=nodes[0] if nodes else None, wait=not nodes))
    for node in nodes[1:]:
        node.wait_ready()
    for node in nodes:
        wait_until(lambda node=node: listed(node) == {"gemma", "llama", "qwen"}, within=20, what="all know all models")
    return nodes


@pytest.fixture
def entry(nodes: list[Daemon]) -> Iterator[Daemon]:
    yield nodes[2]
    wait_until(lambda: is_idle(nodes), within=5, what="nothing is left of a test's requests")


def is_idle(nodes: list[Daemon]) -> bool:
    alive = [node for node in nodes if node.alive]
    return all(node.status()["connections"]["now"] == 0 for node in alive) and all(
        row["in_flight"] == 0 for node in alive for row in node.peers()
    )


def test_each_request_goes_to_a_box_that_has_its_model(entry: Daemon) -> None:
    for kept in (http.client.HTTPConnection(*entry.entry(), timeout=TIMEOUT), None):
        asked: Counter[tuple[str, str]] = Counter()
        for _ in range(8):
            for model in ("gemma", "llama", "qwen"):
                asked[model, node_of(ask(entry, CHAT, {"model": model}, on=kept))] += 1
        assert asked["gemma", "b0"] == asked["qwen", "b2"] == 8, asked
        assert set(asked) <= {("gemma", "b0"), ("llama", "b0"), ("llama", "b1"), ("qwen", "b2")}
        if kept is not None:
            kept.close()


def test_requests_on_one_connection_of_a_client_share_connections_at_the_backend(
    entry: Daemon, nodes: list[Daemon], servers: list[ModelServer], figure: Any
) -> None:
    requests = 200
    for model, at in (("gemma", 0), ("qwen", 2)):  # elsewhere, and at the entry itself
        before = servers[at].connections
        kept = http.client.HTTPConnection(*entry.entry(), timeout=TIMEOUT)
        for _ in range(requests):
            assert node_of(ask(entry, CHAT, {"model": model}, on=kept)) == f"b{at}"
        used = servers[at].connections - before
        figure(f"{requests} requests for {model}", f"{used} connections at the backend")
        assert used <= requests // 10
        assert servers[at].connections >= 1
        kept.close()
    assert nodes[0].status()["connections"]["now"] == 0


def test_a_chat_stays_on_its_box_whichever_entry_its_turns_come_through(nodes: list[Daemon], entry: Daemon) -> None:
    homes = set()
    for chat in "abcdefghijkl":
        messages = [{"role": "system", "content": f"You are {chat}."}]
        answered = set()
        for turn in range(6):
            messages.append({"role": "user", "content": f"{turn}?"})
            answered.add(node_of(ask(nodes[turn % 3], CHAT, {"model": "llama", "messages": messages})))
            messages.append({"role": "assistant", "content": f"{turn}."})
        assert len(answered) == 1, chat
        homes |= answered
    assert homes == {"b0", "b1"}


def test_a_request_is_pinned_and_its_way_is_told(entry: Daemon, nodes: list[Daemon], servers: list[ModelServer]) -> None:
    for target in ("n1", nodes[1].peer_id):
        connection = http.client.HTTPConnection(*entry.entry(), timeout=TIMEOUT)
        connection.request("POST", CHAT, json.dumps({"model": "llama"}), {**JSON, "X-Federation-Target": target})
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("X-Federation-Node")) == (200, "n1")
        assert "target" not in json.loads(answer.read())["head"].lower()
        connection.close()


def test_a_model_that_a_box_has_lost_is_asked_for_elsewhere(entry: Daemon, servers: list[ModelServer]) -> None:
    servers[1].has("nothing")
    try:
        for _ in range(20):
            assert node_of(ask(entry, CHAT, {"model": "llama"})) == "b0"
        wait_until(lambda: "nothing" in listed(entry), within=30, what="its node has looked")
    finally:
        servers[1].has("llama")
    wait_until(
        lambda: "nothing" not in listed(entry) and len(places(entry, "llama")) == 2,
        within=30,
        what="its node has looked again, and told",
    )


def test_a_node_whose_backend_is_an_entry_of_its_network(
    fleet: Fleet, entry: Daemon, nodes: list[Daemon], servers: list[ModelServer]
) -> None:
    port = entry.entry()[1]
    behind = fleet.daemon(
        "behind", "--listen", "127.0.0.1:0", "--backend", f"http://127.0.0.1:{port}", peer=nodes[0], services=()
    )  # fmt: skip
    wait_until(lambda: all("behind" in node.offers() for node in nodes), within=20, what="all are linked with it")
    assert node_of(ask(behind, CHAT, {"model": "gemma"})) == "b0"
    assert "behind" not in {name for model in ("gemma", "llama", "qwen") for name in places(entry, model)}
    connection = http.client.HTTPConnection(*entry.entry(), timeout=TIMEOUT)
    connection.request("GET", "/anything", headers={"X-Federation-Target": "behind"})
    assert connection.getresponse().status == 508
    connection.close()
    behind.stop()
    # While it is known, it may have any model: it told of none. Then a model that nobody has is "not found" again.
    wait_until(lambda: ask(entry, CHAT, {"model": "none"})[0] == 404, within=20, what="the entry knows that it left")


def test_pages_that_may_ask_and_pages_that_may_not(entry: Daemon) -> None:
    for origin, status in (("http://localhost:3000", 204), ("https://evil.example", 403)):
        connection = http.client.HTTPConnection(*entry.entry(), timeout=TIMEOUT)
        connection.request("OPTIONS", CHAT, headers={"Origin": origin, "Access-Control-Request-Method": "POST"})
        answer = connection.getresponse()
        allowed = answer.getheader("Access-Control-Allow-Origin")
        assert (answer.status, allowed) == (status, origin if status == 204 else None)
        connection.close()


def test_lists_are_the_union_and_errors_are_in_the_dialect_of_the_path(entry: Daemon) -> None:
    tags = json.loads(ask(entry, "/api/tags")[1])["models"]
    assert {row["name"] for row in tags} == listed(entry) == {"gemma", "llama", "qwen"}
    assert ask(entry, "/v1/models/qwen")[0] == 200
    for path, status, body in ((CHAT, 404, {"model": "none"}), (CHAT, 400, {"model": "a", "Model": "b"})):
        for at in (path, "/api/chat", "/v1/messages"):
            got, answer = ask(entry, at, body)
            assert got == status
            error = json.loads(answer)
            assert isinstance(error["error"], str if at == "/api/chat" else dict), error
            assert (error.get("type") == "error") is (at == "/v1/messages"), error


def test_names_of_models_are_safe_in_logs(entry: Daemon) -> None:
    for name in ("x" * 10_000, "a\nready: \x1b[31m\r\0", "\ud800"):
        assert ask(entry, CHAT, {"model": name})[0] in (400, 404)
    assert not re.search(r"[\x00-\x09\x0b-\x1f]|x{600}", entry.log())


def test_pipelined_requests_are_answered_in_order(entry: Daemon) -> None:
    n = 60  # 270 kB: more than waits behind a request
    bodies = [{"model": "gemma", "pad": "x" * (i * 977 % 9000)} for i in range(n)]
    data = b"".join(written(body, f"X-I: {i}") for i, body in enumerate(bodies))
    answer = said(entry, data, ends=True)
    assert [int(i) for i in re.findall(rb"X-I: (\d+)", answer)] == list(range(n))
    lists = said(entry, b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n" * 2000, ends=True)
    assert lists.count(b"HTTP/1.1 200") == 2000


def test_a_client_that_ends_in_the_middle_of_a_request_is_let_go(entry: Daemon) -> None:
    whole = written({"model": "gemma"})
    with pytest.raises(ConnectionResetError):
        said(entry, whole + whole[:-3], ends=True)
    assert said(entry, whole + b"GET /v1/mod", ends=True).count(b"HTTP/1.1 200") == 1


@pytest.mark.parametrize("body", [{"stream": True, "n": 2000}, {"sleep": 60}], ids=["stream", "no answer yet"])
def test_a_client_that_goes_away_ends_its_generation(entry: Daemon, servers: list[ModelServer], body: Any) -> None:
    had = len(servers[0].seen())
    with socket.create_connection(entry.entry(), timeout=TIMEOUT) as sock:
        sock.sendall(written({"model": "gemma", **body}))
        wait_until(lambda: len(servers[0].seen()) > had, within=5, what="the backend has it")
        if "stream" in body:
            sock.recv(100)
    wait_until(lambda: "gone" in servers[0].seen()[had:], within=1, what="the generation ends")


@pytest.mark.parametrize("seconds", [0, 1.2])
def test_a_client_that_only_sends_no_more_gets_its_answer(entry: Daemon, seconds: float) -> None:
    answer = said(entry, written({"model": "gemma", "sleep": seconds}, "Connection: close"), ends=True)
    assert answer.count(b"HTTP/1.1 200") == 1


def test_idle_clients_hold_up_neither_a_drain_nor_the_end(fleet: Fleet, nodes: list[Daemon]) -> None:
    node = join(fleet, "idles", None, peer=nodes[0])
    wait_until(lambda: listed(node) == {"gemma", "llama", "qwen"}, within=20, what="it knows the models")
    kept = [http.client.HTTPConnection(*node.entry(), timeout=TIMEOUT) for _ in range(20)]
    for connection in kept:
        ask(node, CHAT, {"model": "gemma"}, on=connection)
    done = federation("drain", "--wait", "--timeout", "20s", "--state-dir", str(node.state_dir), home=fleet.directory)
    assert "drained" in done.stdout
    assert node.stop() == 0
    assert "waiting for open connections" not in node.log().splitlines()[-3]
    for connection in kept:
        connection.close()


def test_other_bytes_become_a_tunnel(entry: Daemon, servers: list[ModelServer]) -> None:
    for data in (b"\x16\x03\x01 hello of TLS", b"SHORT"):
        said(entry, data, ends=True)
        wait_until(lambda data=data: any(data in server.read for server in servers), within=5, what="a backend has it")


def test_a_websocket_goes_to_the_box_of_its_model(entry: Daemon, servers: list[ModelServer]) -> None:
    connection = WSConnection(ConnectionType.CLIENT)
    with socket.create_connection(entry.entry(), timeout=TIMEOUT) as sock:
        sock.sendall(connection.send(Request(host="localhost", target="/v1/realtime?model=gemma")))
        connection.receive_data(sock.recv(65536))
        assert isinstance(next(connection.events()), AcceptConnection)
        sock.sendall(connection.send(TextMessage(data="hello")))
        connection.receive_data(sock.recv(65536))
        assert next(connection.events()).data == "hello"  # type: ignore[union-attr]
    assert "websocket /v1/realtime?model=gemma" in servers[0].seen()


def test_curl_with_a_form_and_with_100_mb(entry: Daemon, fleet: Fleet) -> None:
    url = f"http://127.0.0.1:{entry.entry()[1]}"
    (fleet.directory / "a.wav").write_bytes(b"\x00\r\n" * 100_000)
    form = ("-F", "file=@a.wav", "-F", "model=qwen", f"{url}/v1/audio/transcriptions")
    (fleet.directory / "big").write_bytes(b'{"model":"qwen","x":"' + b"y" * 100_000_000 + b'"}')
    large = ("-H", "Expect: 100-continue", "-H", "Content-Type: application/json", "-T", "big", "-X", "POST", f"{url}{CHAT}")
    for arguments in (form, large):
        done = subprocess.run(["curl", "-s", "-m", "60", *arguments], cwd=fleet.directory, capture_output=True, check=False)
        if arguments is form:
            assert json.loads(done.stdout)["node"] == "b2", done
        else:  # more than is kept
            said = json.loads(done.stdout)
            assert (said["node"], said["size"]) == ("b2", 100_000_023), said
    with (fleet.directory / "big").open("ab") as big:
        big.seek(-1, 2)
        big.truncate()
        big.write(b',"model":"gemma"}')
    done = subprocess.run(["curl", "-s", "-m", "60", *large], cwd=fleet.directory, capture_output=True, check=False)
    assert b"another model" in done.stdout


def test_no_byte_of_a_refused_request_arrives(entry: Daemon, servers: list[ModelServer]) -> None:
    for what, (status, data) in ATTACKS.items():
        if data.startswith(b"PRI * HTTP/2.0"):
            continue  # another protocol: a tunnel
        with socket.create_connection(entry.entry(), timeout=TIMEOUT) as sock:
            sock.sendall(data.replace(b"Host: box", b"X-Mark: attack\r\nHost: box"))
            sock.shutdown(socket.SHUT_WR)
            answer = sock.recv(65536)
        assert answer[9:12] == b"%d" % status, (what, answer)
    assert not any(b"attack" in server.read for server in servers)


@pytest.mark.parametrize(
    "raw",
    [
        "HTTP/1.1 2", "\x00garbage\r\n\r\n", "", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "HTTP/1.1 101 X\r\n\r\n",
    ],
)  # fmt: skip
def test_a_malformed_answer_is_502(entry: Daemon, raw: str) -> None:
    assert ask(entry, CHAT, {"model": "gemma", "raw": raw})[0] == 502
    assert node_of(ask(entry, CHAT, {"model": "gemma"})) == "b0"


def test_a_page_of_another_site_is_refused_on_a_later_request(entry: Daemon, servers: list[ModelServer]) -> None:
    data = written({"model": "gemma"}) + written({"model": "gemma"}, "Origin: https://evil.example", "X-Mark: page")
    answer = said(entry, data)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"403"]
    assert b"X-Mark: page" not in servers[0].read


def test_a_model_that_appears_later_is_found(entry: Daemon, servers: list[ModelServer]) -> None:
    servers[1].has("llama", "later")
    wait_until(lambda: "later" in listed(entry), within=12, what="the entry knows it")
    assert node_of(ask(entry, CHAT, {"model": "later"})) == "b1"


def test_six_clients_go_on_while_exits_die_and_stop_and_a_backend_dies(
    fleet: Fleet, nodes: list[Daemon], servers: list[ModelServer], figure: Any
) -> None:
    servers[1].has("llama", "common")
    more = [fleet.model_server(f"m{n}", "common") for n in range(3)]
    exits = [join(fleet, f"more{n}", server, peer=nodes[0], wait=False) for n, server in enumerate(more)]
    entry = join(fleet, "entry", None, peer=nodes[0])
    for node in exits:
        node.wait_ready()
    wait_until(lambda: places(entry, "common") == {"n1", "more0", "more1", "more2"}, within=20, what="the entry knows them")
    answers: list[tuple[str, int, float, float]] = []  # tag, status, seconds, when
    is_over = threading.Event()

    def client(number: int) -> None:
        kept = http.client.HTTPConnection(*entry.entry(), timeout=TIMEOUT)
        for count in itertools.count():
            if is_over.is_set():
                break
            began, tag = time.monotonic(), f"{number}-{count}"
            status, _ = ask(entry, CHAT, {"model": "common", "sleep": 0.02, "tag": tag}, on=kept)
            answers.append((tag, status, time.monotonic() - began, time.monotonic()))
        kept.close()

    def go_on(requests: int = 60) -> None:
        had = len(answers)
        wait_until(lambda: len(answers) >= had + requests, within=30, what="the clients go on")

    clients = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in clients:
        thread.start()
    go_on()
    exits[2].kill()
    go_on()
    exits[0].signal(signal.SIGSTOP)
    go_on()
    more[1].kill()
    go_on()
    exits[0].signal(signal.SIGCONT)
    wait_until(lambda: "more0" in entry.offers(), within=30, what="the one that was stopped is back")
    go_on()
    is_over.set()
    for thread in clients:
        thread.join()
    assert {status for _, status, _, _ in answers} == {200}, Counter(status for _, status, _, _ in answers)
    slowest = max(seconds for _, _, seconds, _ in answers)
    figure(f"{len(answers)} requests of six kept clients", f"the slowest took {slowest:.2f} s")
    assert slowest < 4 * SLACK
    answered = {tag: when for tag, _, _, when in answers}
    for server in (servers[1], *more):
        late = [tag for tag, when in server.tagged() if tag in answered and when > answered[tag]]
        assert not late, f"{server.name} was asked for what had been answered: {late}"
    wait_until(lambda: is_idle([entry]), within=5, what="nothing is left")


def test_a_stream_whose_box_is_killed_ends_with_an_error(nodes: list[Daemon]) -> None:
    entry, box = nodes[2], nodes[0]
    kept = http.client.HTTPConnection(*entry.entry(), timeout=TIMEOUT)
    kept.request("POST", CHAT, json.dumps({"model": "gemma", "stream": True, "n": 2000}), JSON)
    answer = kept.getresponse()
    answer.readline()
    old = socket.create_connection(entry.entry(), timeout=TIMEOUT)
    old.sendall(written({"model": "gemma", "stream": True, "n": 2000}).replace(b"HTTP/1.1", b"HTTP/1.0"))
    old.recv(100)
    box.kill()
    assert b'"error"' in answer.read().splitlines()[-2]
    parts = []
    while part := old.recv(65536):
        parts.append(part)
    assert b"".join(parts).endswith(b"}}\n\n")  # HTTP/1.0 knows no chunks
    kept.close()
    old.close()
    for path in (CHAT, "/api/chat", "/v1/messages"):
        status, body = ask(entry, path, {"model": "gemma"})
        assert status == 503
        assert isinstance(json.loads(body)["error"], str if path == "/api/chat" else dict)
    assert node_of(ask(entry, CHAT, {"model": "llama"})) == "b1"
