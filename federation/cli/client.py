"""Asks the running node's control API. Standard library only: the command line answers at once.

The daemon that is meant is the one of a state directory, and it is asked by the socket there. By an address (--control)
it is asked with a proof that both sides have the control key (proof.py): the key itself goes nowhere, whatever listens
there.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from federation.api import proof
from federation.dirs import default_state_dir, find_config_file, read_config_file
from federation.errors import ConfigError, ControlUnreachable, KeyNeeded, NotProven, OlderDaemon, refusal
from federation.state import CONTROL_SOCKET, StateDir
from federation.units import HostPort, pasted, visible

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TIMEOUT_S = 10.0  # the node answers in milliseconds; a machine under full load gets its time
WHOLE_ANSWER_S = 60.0  # 8 MB over a slow line; no daemon trickles for longer
MAX_ANSWER_BYTES = 32 * 1024 * 1024  # 4,096 peers with every field in use are 8 MB
SPEAKS_TLS = b"federation: this port speaks TLS"  # as reactor/tls.py answers plain HTTP
SERVICE_STATE_DIR = Path("/var/lib/federation")  # as program/service.py has it


@dataclass(frozen=True)
class Daemon:
    """The daemon to ask. `state`: its state directory, or where its key may be; `address`: where the person says it is."""

    state: StateDir
    address: HostPort | None = None
    key: str | None = field(default=None, repr=False)  # of a person without the daemon's state directory
    is_tls: bool = False  # at `address`: its certificate must be one that this machine trusts (SSL_CERT_FILE)

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        body: object = None,
        owner: bool = False,
        timeout_s: float = TIMEOUT_S,
    ) -> str:
        """The API's answer as it came, one line of JSON. Raises ControlUnreachable, or FederationError with its refusal.

        `owner`: only the right daemon will do, so it must prove itself. `body` goes as JSON.
        """
        request = _Request(method, path, b"" if body is None else json.dumps(body).encode(), timeout_s)
        if self.address is None:
            return self._ask_own(request)
        key = self.key or self.state.load_control_key()
        context = ssl.create_default_context() if self.is_tls else None
        if key is not None:
            return _ask_by_proof(self.address, key, request, context)
        if owner or method != "GET":
            raise KeyNeeded(f"there is none in {self.state.path}")
        return _ask_openly(self.address, request, context)

    @property
    def travels_open(self) -> bool:
        """Whether an answer crosses a network that others can read: signed, but not encrypted."""
        return self.address is not None and not self.address.is_loopback and not self.is_tls

    @property
    def listens_on(self) -> HostPort:
        """The daemon's control port, for browsers."""
        if self.address is not None:
            return self.address
        address = _of_facts(self.state)
        if address is None:
            raise ControlUnreachable(f"none runs with the state directory {self.state.path}")
        return address

    @property
    def url(self) -> str:
        """The daemon's control port as a browser takes it."""
        address = self.listens_on
        is_tls = self.is_tls if self.address is not None else _speaks_tls(self.state)
        return f"{'https' if is_tls else 'http'}://{address}"

    def _ask_own(self, request: _Request) -> str:
        try:
            connection = self.state.connect_control(request.timeout_s)
        except OSError as error:
            return self._ask_without_socket(request, error)
        where = str(self.state.path / CONTROL_SOCKET)
        with _talking(connection, request.timeout_s, where) as local:
            return request.over(local).text(where)

    def _ask_without_socket(self, request: _Request, error: OSError) -> str:
        """Ask a daemon without a socket: its disk takes none, or it is of an older version, or there is none."""
        process = self.state.holder()
        if process is None:
            raise ControlUnreachable(f"none runs with the state directory {self.state.path}{_service_hint(self.state)}")
        address = _of_facts(self.state)
        if address is None:
            raise ControlUnreachable(f"that of {self.state.path} (process {process}) is about to start, or to end")
        key = self.state.load_control_key()
        if key is None:
            raise ControlUnreachable(f"that of {self.state.path} (process {process}): {error.strerror or error}")
        # On this machine, and both sides prove that they have the key: its certificate need not say 127.0.0.1.
        context = ssl._create_unverified_context() if _speaks_tls(self.state) else None
        return _ask_by_proof(address, key, request, context)


def find(control: str | None, given: Path | None, environ: Mapping[str, str] = os.environ) -> Daemon:
    """The daemon that is meant: at --control; or that of --state-dir (`given`); or at FEDERATION_CONTROL, unless the user's
    own listens there; or the user's own; for root, where none of its own runs, the machine's service.
    """
    state = state_dir(given, environ)
    key = pasted(environ.get("FEDERATION_CONTROL_KEY", "")) or None
    if control is not None:
        address, is_tls = _control("--control", control)
        return Daemon(state, address, key, is_tls)
    if given is None and environ.get("FEDERATION_CONTROL"):
        address, is_tls = _control("FEDERATION_CONTROL", environ["FEDERATION_CONTROL"])
        if address.port and address != _of_facts(state):  # port 0 says nothing about where the daemon ended up
            return Daemon(state, address, key, is_tls)
    if os.geteuid() == 0 and state.path == default_state_dir(environ) and given is None and state.holder() is None:
        service = StateDir(SERVICE_STATE_DIR)
        return Daemon(state if service.holder() is None else service)
    return Daemon(state)


def state_dir(given: Path | None, environ: Mapping[str, str] = os.environ) -> StateDir:
    """The state directory that a command means: that of --state-dir, else the one that `join` without it uses."""
    chosen = given or environ.get("FEDERATION_STATE_DIR") or _file_settings(environ).get("state_dir")
    return StateDir(Path(str(chosen)).expanduser() if chosen else default_state_dir(environ))


@dataclass(frozen=True)
class _Request:
    method: str
    path: str
    body: bytes
    timeout_s: float

    def over(self, connection: http.client.HTTPConnection, **headers: str) -> _Answer:
        connection.request(self.method, self.path, self.body or None, headers)
        with connection.getresponse() as response:
            mac, answer = response.headers.get(proof.ANSWER_HEADER, ""), response.read(MAX_ANSWER_BYTES)
            if response.status == http.client.BAD_REQUEST and answer.startswith(SPEAKS_TLS):
                raise ControlUnreachable(
                    f"that port speaks TLS; write --control https://{connection.host}:{connection.port}"
                )
            return _Answer(response.status, mac, answer)


class _Answer(NamedTuple):
    status: int
    mac: str
    body: bytes

    def text(self, where: str) -> str:
        """The answer's text. Raises FederationError for a refusal, and for an answer that no daemon gives."""
        text, content = self.body.decode(), json.loads(self.body)
        if not isinstance(content, dict):
            raise ValueError("no object")
        why = visible(str(content.get("error", self.status)))
        if self.status == http.client.UNAUTHORIZED:
            raise KeyNeeded(f"{where}: {why}")
        if self.status != http.client.OK:
            raise refusal(self.status, why)
        return text


class _Local(http.client.HTTPConnection):
    """HTTP over a socket that is connected already, and never over another one."""

    auto_open = 0

    def __init__(self, connection: socket.socket) -> None:
        super().__init__("localhost")
        self.sock = connection


def _ask_openly(address: HostPort, request: _Request, context: ssl.SSLContext | None) -> str:
    with _talking(address, request.timeout_s, context=context) as connection:
        return request.over(connection, Host=str(address)).text(str(address))


def _ask_by_proof(address: HostPort, key: str, request: _Request, context: ssl.SSLContext | None = None) -> str:
    host = str(address)
    with _talking(address, request.timeout_s, context=context) as connection:
        nonce = proof.new_nonce()
        asked = _Request("GET", f"/api/v1/challenge?nonce={nonce}", b"", request.timeout_s).over(connection, Host=host)
        nonces = proof.Nonces(nonce, _proven(asked, key, nonce, host))
        mac = proof.of_request(key, nonces, host, request.method, request.path, request.body)
        authorization = f"{proof.SCHEME} {nonces.client} {nonces.daemon} {mac}"
        answer = request.over(connection, Host=host, Authorization=authorization)
        if not proof.is_same(answer.mac, proof.of_answer(key, nonces, answer.status, answer.body)):
            raise NotProven(f"{host}: its answer was changed on the way")
        return answer.text(host)


def _proven(answer: _Answer, key: str, client_nonce: str, host: str) -> str:
    """The daemon's nonce, once the daemon has proved that it has the key."""
    content = json.loads(answer.body)
    if not isinstance(content, dict):
        raise ValueError("no object")
    if answer.status in (http.client.NOT_FOUND, http.client.UNAUTHORIZED):
        raise OlderDaemon(host)
    if answer.status != http.client.OK:
        raise refusal(answer.status, visible(str(content.get("error", answer.status))))
    nonce, shown = str(content.get("nonce")), str(content.get("proof"))
    if not proof.is_same(shown, proof.of_daemon(key, proof.Nonces(client_nonce, nonce), host)):
        raise NotProven(host)
    return nonce


@contextmanager
def _talking(
    to: HostPort | socket.socket, timeout_s: float, where: str = "", *, context: ssl.SSLContext | None = None
) -> Iterator[http.client.HTTPConnection]:
    """A connection, with TLS if there is a context; its errors become ours, in plain words."""
    connection: http.client.HTTPConnection
    if isinstance(to, HostPort):
        if context is None:
            connection = http.client.HTTPConnection(to.host, to.port, timeout=timeout_s)
        else:
            connection = http.client.HTTPSConnection(to.host, to.port, timeout=timeout_s, context=context)
        where = str(to)
    else:
        connection = _Local(to)
    try:
        if connection.sock is None:
            connection.connect()
        with _cut_off(connection.sock, max(timeout_s, WHOLE_ANSWER_S)):
            yield connection
    except ssl.SSLCertVerificationError as error:
        hint = "SSL_CERT_FILE=FILE names one that is"
        raise ControlUnreachable(f"{where}: its certificate is not trusted here ({error.verify_message}); {hint}") from None
    except ssl.SSLError as error:
        raise ControlUnreachable(f"{where} speaks no TLS ({error.reason}); write --control {where}") from None
    except OSError as error:
        raise ControlUnreachable(f"{where}: {error.strerror or error}") from None
    except (http.client.HTTPException, ValueError, RecursionError):
        raise ControlUnreachable(f"what answers on {where} is not a federation daemon") from None
    finally:
        connection.close()


@contextmanager
def _cut_off(sock: socket.socket, after_s: float) -> Iterator[None]:
    """End the connection after `after_s` in all: a socket's own timeout counts from byte to byte."""

    def cut() -> None:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(after_s, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _service_hint(state: StateDir) -> str:
    if state.path == SERVICE_STATE_DIR or not SERVICE_STATE_DIR.is_dir():
        return ""
    return f"; for the one that runs as a service: sudo federation COMMAND --state-dir {SERVICE_STATE_DIR}"


def _file_settings(environ: Mapping[str, str]) -> dict[str, Any]:
    path = find_config_file(None, environ)
    return {key.replace("-", "_"): value for key, value in read_config_file(path).items()} if path else {}


def _of_facts(state: StateDir) -> HostPort | None:
    """The address on which the daemon of a state directory says there that it listens."""
    info = state.load_daemon()
    try:
        return None if info is None else _dialable(HostPort.parse(str(info["control"])))
    except (KeyError, ValueError):
        return None


def _speaks_tls(state: StateDir) -> bool:
    return bool((state.load_daemon() or {}).get("control_tls"))


def _control(name: str, text: str) -> tuple[HostPort, bool]:
    """[https://]HOST:PORT, and whether it is the former."""
    rest = text.strip().removeprefix("https://")
    is_tls = rest != text.strip()
    try:
        return _dialable(HostPort.parse(rest.removesuffix("/") if is_tls else text)), is_tls
    except ValueError as error:
        raise ConfigError(f"{name} {text!r}: {error}") from None


def _dialable(address: HostPort) -> HostPort:
    """A daemon that listens everywhere listens here too. One on localhost listens on 127.0.0.1: a browser may take the name
    for ::1, where another user can listen and be handed the dashboard's code.
    """
    if not address.is_wildcard and address.host.lower().rstrip(".") != "localhost":
        return address
    return HostPort("::1" if ":" in address.host else "127.0.0.1", address.port)
