"""A fleet: the daemons of one network, and the servers behind them.

It starts each in a directory of its own under the test's, and ends just what it started.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness import END_S, Daemon, Process, Server, clean_environment, federation, free_port

from federation.mesh.tokens import Token
from federation.state import FILES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MAX_LIBRARY_LINES = 20  # a library's complaints are not for the person; what goes on and on fills the disk
BACKENDS = Path(__file__).with_name("backends.py")
MODEL_SERVER = Path(__file__).with_name("model_server.py")
NEVER_IN_A_LOG = re.compile(
    r"Traceback \(most recent call last\)|internal error|Exception ignored in|was never awaited", re.IGNORECASE
)
NGINX_CONF = """\
{user}
daemon off;
worker_processes 1;
pid nginx.pid;
events {{ worker_connections 4096; }}
http {{
    access_log access.log;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    client_max_body_size 0;
    client_body_buffer_size 1m;
    sendfile on;
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        root {directory}/www;
        add_header X-Backend {name} always;
        location = /slow {{ limit_rate 1k; }}
        location /upload/ {{ dav_methods PUT; }}
    }}
}}
"""


class ModelServer(Server):
    def has(self, *models: str) -> None:
        """Its models from now on."""
        (self.directory / "models").write_text(" ".join(models))

    def tagged(self) -> list[tuple[str, float]]:
        """The tags of the requests that it had, and when."""
        words = ((when, what.split()) for when, what in self.events())
        return [(of[2], when) for when, of in words if of[0] == "request" and len(of) == 3]

    @property
    def read(self) -> bytes:
        """All that came, over all connections; without what its own node asked to know its models."""
        return (self.directory / "bytes").read_bytes()

    @property
    def connections(self) -> int:
        """On which a request with a body came."""
        path = self.directory / "connections"
        return path.stat().st_size if path.exists() else 0


class Fleet:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = clean_environment(directory)
        self.processes: list[Process] = []
        self._token_file: Path | None = None

    @property
    def daemons(self) -> list[Daemon]:
        return [process for process in self.processes if isinstance(process, Daemon)]

    @property
    def token_file(self) -> Path:
        if self._token_file is None:
            self._token_file = self.new_token("token", "test")
        return self._token_file

    def new_token(self, file_name: str, network: str) -> Path:
        """A new network's; its owner key is beside it, in `owner_key(path)`."""
        path = self.directory / file_name
        made = federation(
            *("token", "new", "--name", network, "--owner-key", str(owner_key(path))), home=self.directory
        )  # fmt: skip
        path.write_text(made.stdout)
        path.chmod(0o600)
        return path

    def daemon(
        self,
        name: str,
        *options: str,
        backend: Server | None = None,
        backends: Mapping[str, Server] | None = None,
        services: Sequence[str] = ("default",),
        peer: Daemon | None = None,
        token_file: Path | None = None,
        owner: bool = False,
        environment: Mapping[str, str] | None = None,
        wait: bool = True,
    ) -> Daemon:
        """A daemon of this fleet's network that knows the address of `peer`.

        `backends`: service -> server; `backend`: that of the service "default". `services`: what clients may ask for.
        With `wait=False` it is on its way when this returns: several start at the same time. `owner`: it has the network's
        owner key in its state directory.
        """
        arguments = ["--token-file", str(token_file or self.token_file), *options]
        for service, server in (backends or ({"default": backend} if backend else {})).items():
            arguments += ["--backend", f"{service}={server.address[0]}:{server.address[1]}"]
        if peer is not None:
            arguments += ["--peer", peer.multiaddr]
        daemon = Daemon(name, self.directory / name, arguments, services, {**self.environment, **(environment or {})})
        self.processes.append(daemon)
        if owner:
            give_owner_key(daemon, token_file or self.token_file)
        daemon.launch()
        if wait:
            daemon.wait_ready()
        return daemon

    def backend(self, mode: str, name: str = "", *options: str) -> Server:
        """One of backends.py."""
        name = name or mode
        port = free_port()
        directory = self.directory / f"backend-{name}"
        command = [sys.executable, str(BACKENDS), mode, "--port", str(port), "--name", name]
        command += ["--journal", str(directory / "journal"), *options]
        return self._server(Server(f"backend-{name}", directory, command, self.environment), port)

    def model_server(self, name: str, *models: str) -> ModelServer:
        """See model_server.py."""
        port = free_port()
        directory = self.directory / f"backend-{name}"
        command = [sys.executable, str(MODEL_SERVER), "--port", str(port), "--name", name]
        command += ["--journal", str(directory / "journal")]
        server = ModelServer(f"backend-{name}", directory, command, self.environment)
        server.has(*models)
        self._server(server, port)
        return server

    def redis(self) -> Server:
        port = free_port()
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
        return self._server(Server("redis", self.directory / "redis", command, self.environment), port)

    def nginx(self, name: str) -> Server:
        """Serves /name, /slow (about 2 s), whatever is put in www/, and takes PUT under /upload/."""
        port = free_port()
        directory = self.directory / f"nginx-{name}"
        command = ["nginx", "-p", str(directory), "-e", str(directory / "log"), "-c", str(directory / "nginx.conf")]
        server = Server(f"nginx-{name}", directory, command, self.environment)
        www = directory / "www"
        (www / "upload").mkdir(parents=True)
        (www / "name").write_text(f"{name}\n")
        (www / "slow").write_bytes(b"s" * 3072)
        user = "user root;" if os.geteuid() == 0 else ""  # else its worker cannot read the test's directory
        (directory / "nginx.conf").write_text(NGINX_CONF.format(user=user, directory=directory, port=port, name=name))
        return self._server(server, port)

    def _server(self, server: Server, port: int) -> Server:
        server.address = ("127.0.0.1", port)
        self.processes.append(server)
        server.start()
        return server

    def close(self) -> list[str]:
        """Ends everything; says what was wrong. Daemons go first, all at once: leaving well is part of the tests."""
        daemons = self.daemons
        wrong = [
            *end_all(daemons),
            *end_all([process for process in self.processes if process not in daemons]),
            *[complaint for daemon in daemons for complaint in complaints_about(daemon)],
        ]
        for process in self.processes:
            for pid in process.left_behind():
                wrong.append(f"{process.name} left process {pid} behind")
                os.kill(pid, signal.SIGKILL)
        for big in self.directory.glob("*/www"):
            shutil.rmtree(big)
        return wrong


def owner_key(token_file: Path) -> Path:
    return token_file.with_name(f"{token_file.name}.owner")


def give_owner_key(daemon: Daemon, token_file: Path) -> None:
    """As if the network had been made there."""
    network_id = Token.decode(token_file.read_text()).network_id
    daemon.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = daemon.state_dir / f"owner-{network_id}.key"
    shutil.copyfile(owner_key(token_file), path)
    path.chmod(0o600)


def end_all(processes: Sequence[Process]) -> Iterator[str]:
    """SIGTERM to those that run, SIGKILL to those that stay; says what did not end well."""
    running = [process for process in processes if process.alive]
    for process in running:
        process.signal(signal.SIGCONT)
        process.signal(signal.SIGTERM)
    for process in running:
        if not ended(process):
            yield f"{process.name} did not end within {END_S:g} s of SIGTERM"
        elif isinstance(process, Daemon) and process.wait() != 0:
            yield f"{process.name} exited with {process.wait()} after SIGTERM"


def ended(process: Process) -> bool:
    try:
        process.wait()
    except subprocess.TimeoutExpired:
        process.kill()
        return False
    return True


def complaints_about(daemon: Daemon) -> Iterator[str]:
    if daemon.running and daemon.running.returncode == 0 and (daemon.state_dir / "daemon.json").exists():
        yield f"{daemon.name} left its daemon.json behind"
    for path in daemon.state_dir.glob("*"):
        if not FILES.fullmatch(path.name):
            yield f"{daemon.name} made {path.name}, which `federation uninstall --state` leaves behind"
    log = daemon.log()
    libraries = [line for line in log.splitlines() if " [libp2p" in line]
    if len(libraries) > MAX_LIBRARY_LINES:
        yield f"{daemon.name} let libp2p log {len(libraries)} lines, like: {libraries[0]}"
    if found := NEVER_IN_A_LOG.search(log):
        yield f"{daemon.name} printed {found[0]!r}:\n{log[max(0, found.start() - 300) : found.end() + 3000]}"
