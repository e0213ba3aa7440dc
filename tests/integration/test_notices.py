"""A machine dies and returns: of three daemons with one address exactly one tells, once each; nothing shows the address."""

from __future__ import annotations

import http.server
import json
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from harness import federation, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fleet import Fleet
    from harness import Daemon

AFTER_S = 3.0
QUIET_S = 3 * AFTER_S  # a second teller would have told by then
SECRET = "t0psecret"


class Inbox:
    def __init__(self) -> None:
        self.came: list[dict[str, Any]] = []
        inbox = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                inbox.came.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/{SECRET}"

    def events(self) -> list[tuple[str, str, str]]:
        """(who told, what, of which machine)"""
        return [(m["told_by"], event["kind"], event["name"]) for m in self.came for event in m.get("events", ())]


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    inbox = Inbox()
    thread = threading.Thread(target=inbox.server.serve_forever)
    thread.start()
    yield inbox
    inbox.server.shutdown()
    thread.join()
    inbox.server.server_close()


def meshed(*nodes: Daemon) -> None:
    names = {node.name for node in nodes}
    for node in nodes:
        wait_until(
            lambda node=node: {row["name"] for row in node.peers() if row["path"] in ("self", "direct")} >= names,
            within=20, what=f"{node.name} has links to all",
        )  # fmt: skip


def test_one_death_one_message(fleet: Fleet, inbox: Inbox, tmp_path: Path, figure: Any) -> None:
    file = tmp_path / "url"
    file.write_text(f"{inbox.url}\n")
    file.chmod(0o600)
    token = fleet.new_token("notices-token", "notices")
    how = ("--notify-after", f"{AFTER_S:g}s", "--announce-interval", "1s", "--notify-url-file", str(file))
    ann = fleet.daemon("ann", *how, token_file=token)
    ben, cat = (fleet.daemon(name, *how, token_file=token, peer=ann) for name in ("ben", "cat"))
    nodes = [ann, ben, cat]
    meshed(*nodes)
    told = federation("notify", "--state-dir", str(ann.state_dir), home=fleet.directory).stdout
    assert told.startswith("http://127.0.0.1:")
    assert SECRET not in told
    wait_until(lambda: sum(node.api("notices")["tells"] for node in nodes) == 1, within=10, what="one is the teller")
    teller = next(node for node in nodes if node.api("notices")["tells"])
    victim, other = (node for node in nodes if node is not teller)
    victim.kill()
    died = time.monotonic()
    wait_until(lambda: (teller.name, "died", victim.name) in inbox.events(), within=AFTER_S + 5, what="its death is told")
    figure("a killed machine: told", f"{time.monotonic() - died:.1f} s later, of which --notify-after has {AFTER_S:g}")
    time.sleep(QUIET_S)  # nothing more comes, which only time can show
    victim.start()
    meshed(*nodes)
    wait_until(
        lambda: (teller.name, "returned", victim.name) in inbox.events(), within=AFTER_S + 5, what="its return is told"
    )
    time.sleep(QUIET_S)
    assert inbox.events() == [(teller.name, "died", victim.name), (teller.name, "returned", victim.name)]

    # The teller itself dies: another one tells. One that leaves well is no death, and nor is the end of the node itself.
    teller.kill()
    wait_until(lambda: len(inbox.events()) == 3, within=AFTER_S + 5, what="another one tells of the teller")
    assert inbox.events()[2][1:] == ("died", teller.name)
    assert victim.stop() == 0
    assert other.stop() == 0
    time.sleep(QUIET_S)
    assert len(inbox.events()) == 3
    assert [node.name for node in nodes if SECRET in node.log()] == []
    assert [
        path
        for node in nodes
        for path in node.state_dir.rglob("*")
        if path.is_file() and SECRET.encode() in path.read_bytes()
    ] == []
