"""Which models the nodes of a network have: real daemons, servers that are made up, and one node of an older version."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from harness import federation, wait_until
from old_version import OldVersion, why_not

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fleet import Fleet
    from harness import Daemon

GIB = 1 << 30


@contextmanager
def serving(pages: dict[str, Any]) -> Iterator[int]:
    """A server of these pages (path -> text, or what becomes JSON), which a test may change."""

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages.get(self.path)
            self.send_response_only(404 if page is None else 200)
            self.end_headers()
            self.wfile.write((page if isinstance(page, str) else json.dumps(page)).encode())

        def log_message(self, *_args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def where(daemon: Daemon) -> dict[str, set[str]]:
    """Model -> the nodes that have it, with a star where it is warm."""
    rows = daemon.api("models")["models"]
    return {row["name"]: {at["name"] + "*" * at["warm"] for at in row["places"]} for row in rows}


def test_every_node_knows_them_at_once_and_where_one_more_has_room(fleet: Fleet, figure: Callable[[str, str], None]) -> None:
    ollama: dict[str, Any] = {
        "/": "Ollama is running",
        "/api/tags": {"models": [{"name": "llama3:latest", "size": 5 * GIB}, {"name": "qwen:7b", "size": 6 * GIB}]},
        "/api/ps": {"models": []},
    }
    vllm = {"/version": {"version": "0.11"}, "/v1/models": {"data": [{"id": "qwen:7b", "owned_by": "vllm"}]}}
    with serving(ollama) as one, serving(vllm) as two:
        unsaid = fleet.backend("http", "unsaid")
        athens = fleet.daemon("athens", "--vram", "24GiB", "--backend", f"http://127.0.0.1:{one}")
        bergen = fleet.daemon(
            "bergen", "--vram", "8GiB", "--backend", f"127.0.0.1:{two}", "--health-path", "/version", peer=athens
        )
        cusco = fleet.daemon("cusco", backend=unsaid, peer=athens)
        expected = {"llama3:latest": {"athens"}, "qwen:7b": {"athens", "bergen*"}}
        for daemon in (athens, bergen, cusco):
            wait_until(lambda daemon=daemon: where(daemon) == expected, within=10, what=f"{daemon.name} knows all models")
        assert [peer["name"] for peer in cusco.api("models")["silent"]] == ["cusco"]
        assert unsaid.seen() == []  # nobody said that it speaks HTTP, and its port is no model server's

        begun = time.monotonic()
        ollama["/api/ps"] = {"models": [{"name": "llama3:latest", "size_vram": 5 * GIB}]}
        wait_until(lambda: where(cusco)["llama3:latest"] == {"athens*"}, within=8, what="the load is known elsewhere")
        figure("models: from a load at a server to another node's list", f"{time.monotonic() - begun:.1f} s")

        def run(*command: str, check: bool = True) -> str:
            options = ("--state-dir", str(cusco.state_dir))
            return federation(*command, *options, home=fleet.directory, check=check).stdout

        lines = run("models").splitlines()
        assert lines[0].split() == ["MODEL", "WHERE", "SIZE", "BUSY", "REQUESTS", "FIRST", "TOKEN"]
        assert lines[1].split()[:4] == ["llama3:latest", "athens*", "5.0", "GiB"]
        assert run("place", "--vram", "20GiB").startswith("athens: 24.0 GiB of 24.0 GiB free")
        best = json.loads(run("place", "--model", "qwen:7b", "--json"))["best"]
        assert (best["name"], best["model"]) == ("bergen", "warm")
        assert "no node has room for 20.0 GiB" in run("place", "--vram", "20GiB", "--among", "bergen", check=False)


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")
def test_an_older_version_takes_the_record_and_is_listed_as_telling_none(fleet: Fleet) -> None:
    old_version = OldVersion(fleet)
    token_file = old_version.new_token("mixed")
    with serving({"/v1/models": {"data": [{"id": "m"}]}}) as port:
        new = fleet.daemon("new", "--backend", f"http://127.0.0.1:{port}", token_file=token_file)
        old = old_version.daemon("old", backend=fleet.backend("http", "old"), token_file=token_file, peer=new)
        wait_until(lambda: old.sees() == {"new", "old"} == new.sees(), within=10, what="both see both")
        wait_until(lambda: old.offers() == {"new", "old"}, within=10, what="the old one sends clients to the new one")
        assert where(new) == {"m": {"new*"}}
        wait_until(lambda: [peer["name"] for peer in new.api("models")["silent"]] == ["old"], within=10, what="it is listed")
