"""A fleet whose daemons and servers each run in a network namespace; the test looks in by entering it for a moment."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleet import BACKENDS, Fleet
from harness import Daemon, Server, http_get, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness import Response
    from topology import Namespace

CLONE_NEWNET = 0x4000_0000
P2P_PORT = 4484
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def inside(namespace: Namespace) -> Iterator[None]:
    """Sockets that this thread makes meanwhile are the namespace's, for good."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(f"/run/netns/{namespace.name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(there)
        try:
            yield
        finally:
            _enter(home)
    finally:
        os.close(home)
        os.close(there)


def _enter(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class NetServer(Server):
    namespace: Namespace

    def start(self) -> None:
        with inside(self.namespace):
            super().start()


class NetDaemon(Daemon):
    """Listens on all interfaces of its namespace, on the default p2p port."""

    namespace: Namespace

    def spawn(self) -> None:
        self.command = [*self.namespace.prefix, *self.command]
        super().spawn()

    def api(self, path: str) -> Any:
        with inside(self.namespace):
            return super().api(path)

    def get(self, path: str = "/", *, timeout: float = 30.0) -> Response:
        """One request of a client of this node."""
        with inside(self.namespace):
            return http_get(self.entry(), path, timeout=timeout)

    @property
    def multiaddr(self) -> str:
        return f"/ip4/{self.namespace.address}/tcp/{P2P_PORT}/p2p/{self.peer_id}"

    def peer(self, name: str) -> dict[str, Any]:
        """The row of that node in `federation peers`; empty if it is not there."""
        return next((row for row in self.peers() if row["name"] == name), {})

    def path_to(self, name: str) -> str:
        return str(self.peer(name).get("path"))


class NetFleet(Fleet):
    def node(
        self,
        name: str,
        namespace: Namespace,
        *options: str,
        backend: Server | None = None,
        peer: NetDaemon | None = None,
        services: Sequence[str] = ("default",),
        wait: bool = True,
    ) -> NetDaemon:
        arguments = ["--token-file", str(self.token_file), *options]
        if backend is not None:
            arguments += ["--backend", f"127.0.0.1:{backend.address[1]}"]
        if peer is not None:
            arguments += ["--peer", peer.multiaddr]
        daemon = NetDaemon(name, self.directory / name, arguments, services, self.environment)
        daemon.namespace = namespace
        daemon.facts["p2p"] = f"0.0.0.0:{P2P_PORT}"
        self.processes.append(daemon)
        daemon.launch()
        if wait:
            daemon.wait_ready()
        return daemon

    def dht(self, namespace: Namespace, port: int = 4001) -> str:
        """A node of a DHT that knows nothing of federation, in that namespace; its multiaddr."""
        script = Path(__file__).with_name("dht_server.py")
        command = [*namespace.prefix, sys.executable, str(script), str(port)]
        server = NetServer(f"dht-{namespace.name}", self.directory / f"dht-{namespace.name}", command, self.environment)
        server.namespace, server.address = namespace, ("127.0.0.1", port)
        self.processes.append(server)
        server.start()
        wait_until(lambda: server.log().endswith("\n"), within=5, what="it says its id")
        return f"/ip4/{namespace.address}/tcp/{port}/p2p/{server.log().split()[-1]}"

    def server(self, mode: str, namespace: Namespace, *options: str, port: int = 8080) -> NetServer:
        """One of backends.py, in that namespace; it answers with the namespace's name."""
        directory = self.directory / f"backend-{namespace.name}-{mode}"
        command = [*namespace.prefix, sys.executable, str(BACKENDS), mode, "--port", str(port), "--name", namespace.name]
        command += ["--journal", str(directory / "journal"), *options]
        server = NetServer(f"backend-{namespace.name}", directory, command, self.environment)
        server.namespace = namespace
        server.address = ("127.0.0.1", port)
        self.processes.append(server)
        server.start()
        return server
