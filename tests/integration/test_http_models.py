"""Requests and models: warm before cold, slots, things that live on one node, tokens. Real daemons, servers in this process
that answer as Ollama, llama.cpp and vLLM do."""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from harness import SLACK, federation, http_get, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fleet import Fleet
    from harness import Daemon

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
GIB = 1 << 30
USAGE = {"prompt_tokens": 812, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 700}}
TIMEOUT = 20 * SLACK


class Server:
    """`pages`: path -> JSON or text, for GET. A POST is answered by `gate`'s leave, and counted meanwhile."""

    def __init__(self, name: str, pages: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self.name, self.pages = name, pages
        self.served = self.busy = self.busiest = 0
        self.gate = threading.Event()
        self.gate.set()
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                page = server.pages.get(self.path)
                if page is None and self.path.startswith(RESPONSES):
                    page = {"id": self.path.rpartition("/")[2], "node": server.name}
                self.say(404 if page is None else 200, page if isinstance(page, str) else json.dumps(page))

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                listed = server.pages.get("/v1/models", {}).get("data")
                if listed and asked["model"] not in [row["id"] for row in listed]:
                    self.say(404, "{}")
                    return
                with server.lock:
                    server.served += 1
                    server.busy += 1
                    server.busiest = max(server.busiest, server.busy)
                server.gate.wait(TIMEOUT)
                with server.lock:
                    server.busy -= 1
                said = {"id": f"resp_{server.name}_{server.served}", "node": server.name, "usage": USAGE}
                if not asked.get("stream"):
                    self.say(200, json.dumps(said))
                    return
                if self.path == RESPONSES:
                    events = [
                        {"type": "response.created", "response": said},
                        {"type": "response.completed", "response": said},
                    ]
                else:
                    events = [{"choices": [{"delta": {"content": "a"}}], "usage": None}, {"choices": [], "usage": USAGE}]
                self.say(200, "".join(f"data: {json.dumps(event)}\n\n" for event in events), "text/event-stream")

            def say(self, status: int, text: str, kind: str = "application/json") -> None:
                self.send_response_only(status)
                for key, value in {"Content-Type": kind, "Content-Length": str(len(text)), **(headers or {})}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_args: object) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def backend(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}"

    def close(self) -> None:
        self.gate.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def started(*arguments: Any, **more: Any) -> Server:
        servers.append(Server(*arguments, **more))
        return servers[-1]

    yield started
    for server in servers:
        server.close()


def ollama(*warm: str) -> dict[str, Any]:
    return {
        "/": "Ollama is running", "/api/tags": {"models": [{"name": "llama3:latest", "size": 5 * GIB}]},
        "/api/ps": {"models": [{"name": name} for name in warm]},
    }  # fmt: skip


def ask(entry: Daemon, path: str, body: Any = None) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(*entry.entry(), timeout=TIMEOUT)
    data = None if body is None else json.dumps(body)
    connection.request("GET" if data is None else "POST", path, data, {"Content-Type": "application/json"} if data else {})
    answer = connection.getresponse()
    said = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return said


def node_of(answer: tuple[int, dict[str, str], bytes]) -> str:
    assert answer[0] == 200, answer
    return answer[1]["X-Federation-Node"]


def join(fleet: Fleet, name: str, server: Server | None, *options: str, peer: Daemon | None = None) -> Daemon:
    offer = () if server is None else ("--backend", server.backend)
    return fleet.daemon(name, "--listen", "http://127.0.0.1:0", *offer, *options, peer=peer, services=(), wait=False)


def where(entry: Daemon, model: str) -> set[str]:
    rows = entry.api("models")["models"]
    return {at["name"] + "*" * at["warm"] for row in rows if row["name"] == model for at in row["places"]}


@pytest.fixture(scope="module")
def servers(start: Callable[..., Server]) -> dict[str, Server]:
    slots: dict[str, Any] = {
        "/health": {}, "/v1/models": {"data": [{"id": "gemma"}]}, "/props": {"total_slots": 1},
        "/slots": [{"is_processing": False}],
    }  # fmt: skip
    vllm = {"/version": {"version": "0.11"}, "/v1/models": {"data": [{"id": "qwen", "owned_by": "vllm"}]}}
    return {
        "athens": start("athens", ollama()), "bergen": start("bergen", ollama()),
        "cusco": start("cusco", slots, headers={"Server": "llama.cpp"}),
        "delhi": start("delhi", dict(vllm)), "erfurt": start("erfurt", dict(vllm)),
    }  # fmt: skip


@pytest.fixture(scope="module")
def nodes(fleet: Fleet, servers: dict[str, Server]) -> dict[str, Daemon]:
    nodes: dict[str, Daemon] = {}
    for name, server in servers.items():
        more = ("--capacity", "auto") if name == "cusco" else ()
        nodes[name] = join(fleet, name, server, "--vram", "8GiB", *more, peer=nodes.get("athens"))
        if name == "athens":
            nodes[name].wait_ready()
    for node in nodes.values():
        node.wait_ready()
    known = {"llama3:latest": {"athens", "bergen"}, "gemma": {"cusco*"}, "qwen": {"delhi*", "erfurt*"}}
    for node in nodes.values():
        for model, at in known.items():
            wait_until(lambda node=node, model=model, at=at: where(node, model) == at, within=20, what="all know all models")
    return nodes


def test_a_cold_model_is_loaded_in_one_place_and_used_there(nodes: dict[str, Daemon], servers: dict[str, Server]) -> None:
    entries = [nodes["delhi"], nodes["erfurt"], nodes["athens"]]
    homes = {node_of(ask(entry, CHAT, {"model": name})) for entry in entries for name in ("llama3", "Llama3:latest") * 2}
    assert len(homes) == 1, "all entries, and both spellings"
    (home,) = homes
    assert entries[0].api("explain?last=1")["decisions"][0]["tier"] == "cold"
    servers[home].pages["/api/ps"] = {"models": [{"name": "llama3:latest"}]}
    for entry in entries:
        wait_until(lambda entry=entry: f"{home}*" in where(entry, "llama3:latest"), within=10, what="it is known to be warm")
        assert {node_of(ask(entry, CHAT, {"model": "llama3"})) for _ in range(4)} == {home}
    assert entries[0].api("explain?last=1")["decisions"][0]["tier"] == "warm"


def test_a_node_with_one_slot_has_one_request_at_a_time_and_the_next_waits(
    nodes: dict[str, Daemon], servers: dict[str, Server]
) -> None:
    cusco = servers["cusco"]
    cusco.gate.clear()
    with ThreadPoolExecutor(6) as clients:
        entries = [nodes["delhi"], nodes["cusco"], nodes["athens"]] * 2
        asked = [clients.submit(ask, entry, CHAT, {"model": "gemma"}) for entry in entries]
        wait_until(lambda: cusco.busy == 1, within=10, what="the first is there")
        for _ in asked:
            wait_until(lambda: cusco.busy == 1, within=10, what="the next is there")
            cusco.gate.set()
            cusco.gate.clear()
        cusco.gate.set()
        assert [answer.result()[0] for answer in asked] == [200] * 6
    assert cusco.busiest == 1


def test_requests_from_elsewhere_fill_a_slot(nodes: dict[str, Daemon], servers: dict[str, Server]) -> None:
    cusco, entry = servers["cusco"], nodes["delhi"]
    wait_until(lambda: of(entry, "cusco")["in_flight"] == 0, within=15, what="nothing of the test before is told")
    cusco.pages["/slots"] = [{"is_processing": True}]
    wait_until(lambda: of(entry, "cusco")["in_flight"] == 1, within=15, what="it is known to be busy")
    with ThreadPoolExecutor(1) as client:
        before, began = cusco.served, time.monotonic()
        asked = client.submit(ask, entry, CHAT, {"model": "gemma"})
        wait_until(lambda: waiting(entry) == 1, within=5, what="the request waits")
        assert cusco.served == before
        cusco.pages["/slots"] = [{"is_processing": False}]
        assert asked.result()[0] == 200
    assert time.monotonic() - began < 9 * SLACK, "sooner than --hold"
    wait_until(lambda: of(nodes["cusco"], "cusco")["in_flight"] == 0, within=5, what="nothing is left")


def of(entry: Daemon, name: str) -> dict[str, Any]:
    return next(row for row in entry.peers() if row["name"] == name)


def waiting(entry: Daemon) -> float:
    return metric(entry, "federation_connections_waiting")


def metric(entry: Daemon, series: str) -> float:
    text = http_get(entry.control, "/metrics").body.decode()
    return sum(float(value) for value in re.findall(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE))


def test_a_404_for_a_model_has_its_node_look_at_once(
    nodes: dict[str, Daemon], servers: dict[str, Server], figure: Callable[[str, str], None]
) -> None:
    entry, before = nodes["athens"], servers["delhi"].pages["/v1/models"]
    servers["delhi"].pages["/v1/models"] = {"data": [{"id": "other", "owned_by": "vllm"}]}
    began = time.monotonic()
    lacking = False
    while where(entry, "qwen") != {"erfurt*"}:
        assert time.monotonic() - began < TIMEOUT
        status, _, _ = ask(entry, "/v1/embeddings", {"model": "qwen"})  # no conversation, whose home could be the other one
        if status == 404 and not lacking:
            lacking, began = True, time.monotonic()
    figure("models: from a 404 at another entry to its list without the model", f"{time.monotonic() - began:.2f} s")
    servers["delhi"].pages["/v1/models"] = before
    assert lacking
    for node in nodes.values():
        wait_until(lambda node=node: where(node, "qwen") == {"delhi*", "erfurt*"}, within=15, what="it has it again")


def test_models_that_no_record_has_place_for_are_found(nodes: dict[str, Daemon], servers: dict[str, Server]) -> None:
    entry, before = nodes["cusco"], servers["athens"].pages["/api/tags"]
    names = [f"finetune-{n * 7919 % 100_003:05}-of-{n}:{n % 9}b-q4" for n in range(700)]
    servers["athens"].pages["/api/tags"] = {"models": [*before["models"], *({"name": name} for name in names)]}
    wait_until(lambda: entry.api("models")["incomplete"], within=15, what="the entry knows that there are more")
    listed = {row["name"] for row in entry.api("models")["models"]}
    left_out = [name for name in names if name not in listed]
    assert len(left_out) >= 188
    for name in left_out[::20]:
        assert node_of(ask(entry, CHAT, {"model": name})) == "athens"
    status, headers, body = ask(entry, CHAT, {"model": "of nobody"})
    assert (status, "X-Federation-Node" in headers) == (404, False), "the entry itself knows"
    assert "no node has the model of nobody" in json.loads(body)["error"]["message"]
    servers["athens"].pages["/api/tags"] = before
    for node in nodes.values():
        wait_until(lambda node=node: not node.api("models")["incomplete"], within=15, what="all know the few")


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_is_asked_for_where_it_was_made(nodes: dict[str, Daemon], stream: bool) -> None:
    entry, other = nodes["athens"], nodes["bergen"]
    made = ask(entry, RESPONSES, {"model": "qwen", "input": "x" if stream else "y", "stream": stream})
    maker = node_of(made)
    name = re.findall(rb"resp_\w+", made[2])[0].decode()
    for _ in range(4):
        assert json.loads(ask(entry, f"{RESPONSES}/{name}")[2])["node"] == maker
        assert node_of(ask(entry, RESPONSES, {"model": "qwen", "input": "z", "previous_response_id": name})) == maker
    assert json.loads(ask(other, f"{RESPONSES}/{name}")[2])["node"] == maker  # which asks the first one
    began = time.monotonic()
    status, _, body = ask(other, f"{RESPONSES}/resp_unknown")
    assert status == 404
    assert "responses/resp_unknown lives on the node that made it" in json.loads(body)["error"]["message"]
    assert time.monotonic() - began < 10


def test_what_people_see(nodes: dict[str, Daemon], fleet: Fleet) -> None:
    entry = nodes["bergen"]
    before = metric(entry, 'federation_model_tokens_total{kind="cached",model="qwen"}')
    for stream in (True, False):
        assert ask(entry, CHAT, {"model": "qwen", "stream": stream})[0] == 200

    def run(*command: str) -> str:
        return federation(*command, "--state-dir", str(entry.state_dir), home=fleet.directory).stdout

    first, second = run("explain", "--last", "2").split("\n\n")
    assert "asked for qwen" in first
    assert re.search(r"first token after [\d.]+ ms, 812 tokens in \(700 cached\), 3 out$", first)
    assert re.search(r"answered after [\d.]+ ms, 812 tokens in \(700 cached\), 3 out$", second.strip())
    assert re.search(r"^qwen +delhi\*, erfurt\* +0 +[1-9]\d* +[\d.]+ ms$", run("models"), re.MULTILINE), run("models")
    assert metric(entry, 'federation_model_tokens_total{kind="cached",model="qwen"}') == before + 1400
    assert metric(entry, 'federation_model_first_token_seconds_count{model="qwen"}') >= 1
    wait_until(lambda: " model=qwen status=200 " in entry.log(), within=5, what="a line of the log")
    line = next(line for line in entry.log().splitlines() if "tokens_cached=700" in line)
    assert re.search(
        r"request .* name=(delhi|erfurt) .* first=[\d.]+ tokens_in=812 tokens_out=3 tokens_cached=700 why=done", line
    )
