"""The targets that are programs of others, and the way without any: direct, HAProxy pair, kubo, stock py-libp2p.

A target is started once, with its three services, and measured many times. `entry` says where its clients connect.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .backends import SERVICES
from .procs import StartFailed, accepts, free_port, wait_until

if TYPE_CHECKING:
    from .backends import Backends
    from .procs import Supervisor

ROOT = Path(__file__).resolve().parents[2]


class Target:
    name = ""
    label = ""
    # What takes others a second takes stock py-libp2p half a minute: its share of the load is smaller.
    bulk_share = 1.0
    connections = 1000
    rounds = 1000  # at most
    skips: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.entry: dict[str, int] = {}
        self.pids: list[int] = []

    def start(self, supervisor: Supervisor, backends: Backends) -> None:
        raise NotImplementedError


class Direct(Target):
    name = "direct"
    label = "direct"
    skips = frozenset({"rss"})

    def start(self, supervisor: Supervisor, backends: Backends) -> None:
        self.entry = dict(backends.ports)


_HAPROXY_GLOBAL = """\
global
    maxconn 8192
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
"""


def haproxy_entry(listens: dict[str, int], towards: dict[str, int], certificate: Path) -> str:
    return _HAPROXY_GLOBAL + "".join(
        f"listen {service}\n    bind 127.0.0.1:{listens[service]}\n"
        f"    server exit 127.0.0.1:{towards[service]} ssl verify required ca-file {certificate} sni str(bench.test)\n"
        for service in listens
    )


def haproxy_exit(listens: dict[str, int], backends: dict[str, int], certificate: Path) -> str:
    return _HAPROXY_GLOBAL + "".join(
        f"listen {service}\n    bind 127.0.0.1:{listens[service]} ssl crt {certificate}\n"
        f"    server backend 127.0.0.1:{backends[service]}\n"
        for service in listens
    )


_MAKE_CERTIFICATE = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
    "-subj /CN=bench.test -addext subjectAltName=DNS:bench.test"
)


def make_certificate(directory: Path) -> Path:
    """Self-made, P-256: the cheapest handshake that HAProxy has, so that the comparison is with its best."""
    key, certificate, both = (directory / name for name in ("key.pem", "certificate.pem", "both.pem"))
    made = subprocess.run(
        [*_MAKE_CERTIFICATE.split(), "-keyout", key, "-out", certificate],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise StartFailed(f"openssl: {made.stderr.strip()[-200:]}")
    both.write_text(certificate.read_text() + key.read_text())
    both.chmod(0o600)
    return both


class HAProxy(Target):
    """TCP -> TLS -> TCP: one TLS connection for each client connection, session resumption as it comes."""

    name = "haproxy"
    label = "HAProxy+TLS pair"

    def start(self, supervisor: Supervisor, backends: Backends) -> None:
        certificate = make_certificate(supervisor.directory)
        self.entry = {service: free_port() for service in SERVICES}
        between = {service: free_port() for service in SERVICES}
        for name, text in (
            ("haproxy-exit", haproxy_exit(between, backends.ports, certificate)),
            ("haproxy-entry", haproxy_entry(self.entry, between, certificate)),
        ):
            config = supervisor.directory / f"{name}.cfg"
            config.write_text(text)
            self.pids.append(supervisor.start(name, ["haproxy", "-db", "-q", "-f", config]).pid)
        for port in (*between.values(), *self.entry.values()):
            wait_until(partial(accepts, port), f"haproxy ({supervisor.log_tail('haproxy-entry')})", seconds=5)


class _Pair(Target):
    """An exit process that says how to reach it, and an entry process that is told so. Each says a line of JSON."""

    module = ""
    python = Path(sys.executable)

    def start(self, supervisor: Supervisor, backends: Backends) -> None:
        if not self.python.exists():
            raise StartFailed(f"{self.python} is not there; scripts/bench makes it")
        reach = self._node(supervisor, "exit", {"backends": backends.ports})
        said = self._node(supervisor, "entry", {"exit": reach})
        self.entry = {service: int(port) for service, port in said["listens"].items()}

    def _node(self, supervisor: Supervisor, role: str, given: dict[str, object]) -> dict[str, dict[str, int]]:
        name = f"{self.name}-{role}"
        env = dict(os.environ, PYTHONPATH=str(ROOT / "scripts"))
        directory = supervisor.directory / name
        directory.mkdir()
        command: list[str | Path] = [self.python, "-m", self.module, role, directory, json.dumps(given)]
        process = supervisor.start(name, command, announces=True, env=env, cwd=directory)  # kubo logs where it stands
        self.pids.append(process.pid)
        said: dict[str, dict[str, int]] = json.loads(supervisor.read_line(name, process))
        return said


class Kubo(_Pair):
    """go-libp2p: `ipfs p2p listen` and `ipfs p2p forward`, TCP + Noise + yamux."""

    name = "kubo"
    label = "kubo p2p forward"
    module = "ruler.kubo_node"
    python = ROOT / ".venv" / "bench" / "bin" / "python"


class PyLibp2p(_Pair):
    """Kept small: it is here to show what the stock stack does, and would hold up the others."""

    name = "pylibp2p"
    label = "stock py-libp2p"
    module = "ruler.pylibp2p_node"
    bulk_share = 1 / 16
    connections = 200
    rounds = 1
    skips = frozenset({"rps256", "sse", "beside"})
