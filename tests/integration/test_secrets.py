"""After a life with everything in it, at the debug level: no secret in a log, a command line, an answer or an error."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fleet import owner_key
from harness import federation, http_get, wait_until

from federation.errors import FederationError
from federation.mesh.owner import OwnerKey
from federation.mesh.tokens import Token
from tests.support.secret_parts import PART, found_in, of_token

if TYPE_CHECKING:
    from fleet import Fleet
    from harness import Daemon


class Watcher:
    """Looks all the time: at the command lines of the test's children, and whether a state file is ever half written."""

    def __init__(self) -> None:
        self.command_lines: set[str] = set()
        self.halves: list[str] = []
        self.tokens_seen: set[str] = set()
        self.watched: list[Path] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            for path in list(self.watched):
                try:
                    self.tokens_seen.add(Token.decode(path.read_text()).encode())
                except (OSError, FederationError) as error:
                    self.halves.append(f"{path}: {error}")
            children = [pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()]
            for pid in children:
                with suppress(OSError):  # it ended
                    self.command_lines.add(Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " "))
            time.sleep(0.02)


def secrets_of(nodes: list[Daemon]) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    for node in nodes:
        found[f"{node.name}'s identity"] = (node.state_dir / "identity").read_bytes()
        found[f"{node.name}'s control key"] = (node.state_dir / "control.key").read_text().strip()
    return found


def test_no_secret_shows_up_anywhere(fleet: Fleet) -> None:
    outputs: list[str] = []

    def run(*arguments: str, node: Daemon | None = None, given: str = "", check: bool = True) -> str:
        where = [] if node is None else ["--control", "{}:{}".format(*node.control), "--state-dir", str(node.state_dir)]
        done = federation(*arguments, *where, home=fleet.directory, given=given, check=check)
        outputs.append(done.stderr)
        return done.stdout

    with Watcher() as watcher:
        debug = ("--log-level", "debug")
        a = fleet.daemon("a", *debug, backend=fleet.backend("http", "a"), owner=True)
        b = fleet.daemon("b", *debug, peer=a)
        c = fleet.daemon("c", *debug, peer=a, environment={"FEDERATION_LOG_FORMAT": "json"})
        nodes = [a, b, c]
        watcher.watched = [node.state_dir / "token" for node in nodes]
        wait_until(lambda: all(node.sees() == {"a", "b", "c"} for node in nodes), within=10, what="all see all")
        assert http_get(b.entry()).body == b"a"
        invited = run("invite", node=a)  # for the owner: this one shows it
        fresh = run("token", "new")
        outputs.append(run("token", "inspect", "-", given=fresh, check=False))
        outputs.append(run("token", "inspect", "-", given=fresh[:-4], check=False))
        for command in ("status", "peers", "explain"):
            outputs.append(run(command, node=b))
            outputs.append(run(command, "--json", node=b))
        outputs.append(http_get(a.control, "/metrics").body.decode())
        outputs.append(http_get(a.control, "/api/v1/invite").body.decode())  # without the owner's key
        stranger = fleet.daemon("stranger", *debug, peer=a, token_file=fleet.new_token("other", "other"))
        wait_until(lambda: "another token" in a.log(), within=10, what="a stranger was refused")
        run("token", "rotate", "--grace", "1h", node=a)
        run("token", "rotate", "--grace", "1h", "--owner-key", "-", node=b, given=owner_key(fleet.token_file).read_text())
        outputs.append(run("owner", "show", node=b))
        wait_until(lambda: len(watcher.tokens_seen) > 1, within=10, what="the new token is kept")
        wait_until(
            lambda: all(Token.decode(path.read_text()).rotations == 2 for path in watcher.watched),
            within=10,
            what="by all",
        )
        c.kill()
        c.start()
        wait_until(lambda: c.sees() == {"a", "b", "c"}, within=10, what="and used after a restart")
        for node in (stranger, c):
            assert node.stop() == 0
    tokens = {f"token {n}": Token.decode(text) for n, text in enumerate(watcher.tokens_seen)}
    tokens |= {"new": Token.decode(fresh), "stranger's": Token.decode((fleet.directory / "other").read_text())}
    assert len(tokens) == 5
    secrets = secrets_of([*nodes, stranger])
    key = OwnerKey.decode(owner_key(fleet.token_file).read_text())
    secrets |= {"the owner's key": key.seed, "the owner's key as text": key.encode()[8 : 8 + PART]}
    assert found_in(key.encode(), secrets)
    for name, token in tokens.items():
        secrets |= {f"{name}: {part}": secret for part, secret in of_token(token).items()}
    assert found_in(invited, secrets), "the search finds nothing, not even where there is something"

    assert watcher.halves == []
    assert "[debug" in a.log() + b.log()
    for node in [*nodes, stranger]:
        assert found_in(node.log(), secrets) == [], node.name
    for line in watcher.command_lines:
        assert found_in(line, secrets) == [], line
    assert len(watcher.command_lines) > 4
    for output in outputs:
        assert found_in(output, secrets) == [], output
    for node in [*nodes, stranger]:
        assert node.state_dir.stat().st_mode & 0o777 == 0o700
        wait_until(lambda node=node: not list(node.state_dir.glob(".*")), within=5, what="no temporary file is left behind")
        modes = {path.name: path.stat().st_mode & 0o777 for path in node.state_dir.glob("[!.]*")}
        assert set(modes.values()) == {0o600}, modes
        assert {"token", "identity", "control.key"} <= set(modes)
    assert os.stat(fleet.directory).st_uid == os.getuid()
