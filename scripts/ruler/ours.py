"""This project as a target: an entry without a backend and an exit with all of them, pinned to each other.

`Before` is the same pair, run from another checkout: one run then compares two versions of this project.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

from .backends import SERVICES
from .procs import StartFailed, wait_until
from .targets import ROOT, Target

if TYPE_CHECKING:
    from pathlib import Path

    from .backends import Backends
    from .procs import Supervisor


USAGE = 2  # the exit code of an option that a version does not know


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
    checkout = ROOT
    package = ""  # the folder of the package that runs; empty: the checkout

    def _run(self, *arguments: str | Path) -> list[str | Path]:
        """By its script: `python -m` would take the package of the working directory, which is another checkout's."""
        return [self.checkout / ".venv" / "bin" / "federation", *arguments]

    def start(self, supervisor: Supervisor, backends: Backends) -> None:
        env = {key: value for key, value in os.environ.items() if not key.startswith("FEDERATION_")}
        env["PYTHONPATH"] = str(self.package or self.checkout)
        token = supervisor.directory / f"{self.name}-token"
        made = self._make_token(env, "--owner-key", supervisor.directory / f"{self.name}-owner.key")
        if made.returncode == USAGE:  # a version without owner keys
            made = self._make_token(env)
        if made.returncode:
            raise StartFailed(f"federation token new: {made.stderr.strip()[-300:]}")
        token.touch(0o600)
        token.write_text(made.stdout)

        options = subprocess.run(self._run("join", "--help"), capture_output=True, text=True, env=env, check=True).stdout
        kind = "tcp://" if "tcp://" in options else ""  # else clients that keep connections would make the service HTTP
        places = {service: f"{service}={kind}127.0.0.1:{backends.ports[service]}" for service in SERVICES}
        offers = [word for place in places.values() for word in ("--backend", place)]
        entry_name, exit_name = f"{self.name}-entry", f"{self.name}-exit"
        exit_node = self._join(supervisor, env, token, exit_name, [*offers, "--listen", "127.0.0.1:0"])
        listens = [word for service in SERVICES for word in ("--listen", f"{service}=127.0.0.1:0")]
        entry = self._join(supervisor, env, token, entry_name, [*listens, "--peer", exit_node["p2p"], "--target", exit_name])
        wait_until(lambda: ready_peer(self._peers(entry["control"]), exit_name), "the entry's sight of the exit")
        self.entry = {service: port_of(entry["listens"][service]) for service in SERVICES}

    def _make_token(self, env: dict[str, str], *options: str | Path) -> subprocess.CompletedProcess[str]:
        if self.package and not os.path.isdir(self.package):
            raise StartFailed(f"there is no {self.package}; run scripts/compile")
        new = self._run("token", "new", *options)
        return subprocess.run(new, capture_output=True, text=True, env=env, check=False)

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
        process = supervisor.start(name, self._run("join", *common, *ports, *options), env=env)
        self.pids.append(process.pid)
        announced = state / "daemon.json"

        def ready() -> bool:
            if process.poll() is not None:
                raise StartFailed(f"{name}: {supervisor.log_tail(name)}")
            return announced.exists()

        wait_until(ready, f"{name} ({supervisor.log_tail(name)})", seconds=60)
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


class Compiled(Ours):
    """This checkout's package with machine code, as scripts/compile leaves it."""

    name = "compiled"
    label = "federation, compiled"
    package = str(ROOT / ".venv/compiled")


class Before(Ours):
    """The pair of another checkout of this project, which `scripts/setup` has prepared there."""

    name = "before"

    def __init__(self, checkout: Path) -> None:
        super().__init__()
        self.checkout = checkout
        self.label = f"federation in {checkout.name}"
