"""This project as a target: an entry without a backend and an exit with all of them, pinned to each other."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from .backends import SERVICES
from .procs import StartFailed, wait_until
from .targets import Target

if TYPE_CHECKING:
    from pathlib import Path

    from .backends import Backends
    from .procs import Supervisor

_FEDERATION = [sys.executable, "-m", "federation"]


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def ready_peer(peers: list[dict[str, Any]], name: str) -> bool:
    """Whether the node `name` is online with all services healthy."""
    return any(
        peer["name"] == name and peer["online"] and all(peer["services"].get(service) for service in SERVICES)
        for peer in peers
    )


class Ours(Target):
    name = "ours"
    label = "federation"

    def start(self, supervisor: Supervisor, backends: Backends) -> None:
        env = {key: value for key, value in os.environ.items() if not key.startswith("FEDERATION_")}
        new = [*_FEDERATION, "token", "new", "--owner-key", str(supervisor.directory / "owner.key")]
        made = subprocess.run(new, capture_output=True, text=True, env=env, check=False)
        if made.returncode:
            raise StartFailed(f"federation token new: {made.stderr.strip()[-300:]}")
        token = supervisor.directory / "token"
        token.touch(0o600)
        token.write_text(made.stdout)

        offers = [word for service in SERVICES for word in ("--backend", f"{service}=127.0.0.1:{backends.ports[service]}")]
        exit_node = self._join(supervisor, env, token, "ours-exit", [*offers, "--listen", "127.0.0.1:0"])
        listens = [word for service in SERVICES for word in ("--listen", f"{service}=127.0.0.1:0")]
        entry = self._join(
            supervisor, env, token, "ours-entry", [*listens, "--peer", exit_node["p2p"], "--target", "ours-exit"]
        )
        wait_until(lambda: ready_peer(self._peers(entry["control"]), "ours-exit"), "the entry's sight of the exit")
        self.entry = {service: port_of(entry["listens"][service]) for service in SERVICES}

    def _join(
        self, supervisor: Supervisor, env: dict[str, str], token: Path, name: str, options: list[str]
    ) -> dict[str, Any]:
        """What the daemon says of itself in its state directory, once it is ready."""
        state = supervisor.directory / name
        common: list[str | Path] = [
            "--token-file",
            token,
            "--state-dir",
            state,
            "--name",
            name,
            "--no-mdns",
            "--no-detect",
            "--log-level",
            "warning",
        ]
        ports = ["--p2p-listen", "127.0.0.1:0", "--control", "127.0.0.1:0"]
        process = supervisor.start(name, [*_FEDERATION, "join", *common, *ports, *options], env=env)
        self.pids.append(process.pid)
        announced = state / "daemon.json"

        def ready() -> bool:
            if process.poll() is not None:
                raise StartFailed(f"{name}: {supervisor.log_tail(name)}")
            return announced.exists()

        wait_until(ready, f"{name} ({supervisor.log_tail(name)})")
        said: dict[str, Any] = json.loads(announced.read_text())
        return said

    @staticmethod
    def _peers(control: str) -> list[dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", port_of(control), timeout=5)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/api/v1/peers")
            peers: list[dict[str, Any]] = json.loads(connection.getresponse().read())["peers"]
            return peers
        return []
