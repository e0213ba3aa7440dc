"""Settings of a node: flag > environment FEDERATION_* > TOML file > default.

A setting has one name everywhere: `--open-timeout`, `FEDERATION_OPEN_TIMEOUT`, `open-timeout = "3s"`. The field that
keeps it says the unit as well: `open_timeout_s`. Values out of range are refused at start, by the name and with the
value that the person wrote; a token's value is never repeated.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    WrapValidator,
    model_validator,
)

from federation.dirs import default_state_dir, find_config_file, read_config_file
from federation.errors import ConfigError
from federation.units import (
    BACKEND_PROTOCOLS,
    Endpoint,
    HostPort,
    Place,
    UnixPath,
    parse_duration,
    parse_origin,
    parse_size,
    parse_webhook,
    pasted,
    without_tokens,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from typing_extensions import Self

__all__ = ["Endpoint", "HostPort", "Replay", "Settings", "load"]

T = TypeVar("T")

PREFIX = "FEDERATION_"
MAX_NAME_CHARS = 64  # as in a record
MAX_SERVICES = 32
AUTO_CAPACITY = -1  # as many as the backends say that they have slots
MAX_PEERS = 256
REPEATABLE = ("backends", "listens", "peers", "control_hosts", "bootstraps", "allow_origins")  # written in the singular
_FOREIGN_ID = re.compile(r"(1|Qm)[1-9A-HJ-NP-Za-km-z]{40,60}")  # base58 of a multihash
SECRETS = ("token", "invite", "notify_url")  # no error repeats their values
SWITCHES = ("mdns", "relay", "detect", "browser_check", "require_key")  # there is a --no-NAME too
VISIBLE_GPUS = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_GPU = re.compile(r"[0-9]{1,3}|(?:GPU|MIG)-[0-9A-Za-z/-]{1,80}", re.IGNORECASE)

_PEER = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/([^/]+)/tcp/([0-9]{1,5})(/p2p/[1-9A-HJ-NP-Za-km-z]{40,60})?")
_HEALTH_PATH = re.compile(r"/[!-~]*")  # goes into a request line, so no space and no line end


class Replay(str, Enum):
    """The progress up to which the kept bytes of a connection, or of an HTTP request, can still be replayed to the next
    peer."""

    AUTO = "auto"  # first-byte for requests that name a model, which are to be computed; opened for all else
    OPENED = "opened"  # until the exit has its backend: a backend never sees a request twice
    FIRST_BYTE = "first-byte"  # until the backend's first byte: for requests that may be done twice
    NEVER = "never"

    def of(self, *, names_model: bool) -> Replay:
        """The rule for a connection, or for a request."""
        if self is not Replay.AUTO:
            return self
        return Replay.FIRST_BYTE if names_model else Replay.OPENED


def _text(parse: Callable[[str], T]) -> Callable[[object], object]:
    def parsed(value: object) -> object:
        return parse(value) if isinstance(value, str) else value

    return parsed


def _each(parse: Callable[[str], T]) -> Callable[[object], object]:
    """Read a repeatable setting: a list of texts, or one text with commas as the environment has it."""

    def parse_one(item: str) -> T:
        try:
            return parse(item)
        except ValueError as error:
            raise ValueError(f"{item.strip()!r}: {error}") from None

    def parsed(value: object) -> object:
        if isinstance(value, str):
            value = [item for item in value.split(",") if item.strip()]
        if not isinstance(value, list | tuple):
            return value
        return tuple(parse_one(item) if isinstance(item, str) else item for item in value)

    return parsed


def _node_name(text: str) -> str:
    text = pasted(text)
    if not 1 <= len(text) <= MAX_NAME_CHARS or not text.isprintable():
        raise ValueError(f"a name has 1 to {MAX_NAME_CHARS} printable characters")
    return text


def _peer(text: str) -> str:
    text = pasted(text)
    if text.startswith("/"):
        match = _PEER.fullmatch(text)
        if match is None:
            raise ValueError("write a TCP multiaddr such as /ip4/192.0.2.1/tcp/4484, or HOST:PORT")
        kind, host, port, _ = match.groups()
        address = _dialable(f"[{host}]:{port}" if kind == "ip6" else f"{host}:{port}")
        if kind in ("ip4", "ip6") and not address.multiaddr.startswith(f"/{kind}/"):
            raise ValueError(f"{host!r} is not an {'IPv4' if kind == 'ip4' else 'IPv6'} address")
        return text
    return _dialable(text).multiaddr


def _bootstrap(text: str) -> str:
    """A multiaddr with a foreign node's id, of any kind: only the process that looks into the DHT reads the id."""
    address, _, peer_id = pasted(text).rpartition("/p2p/")
    if not _FOREIGN_ID.fullmatch(peer_id) or not address:
        raise ValueError("a DHT's bootstrap node is written with its peer id: /ip4/192.0.2.1/tcp/4001/p2p/12D3...")
    return f"{_peer(address)}/p2p/{peer_id}"


def _dialable(text: str) -> HostPort:
    address = HostPort.parse(text)
    if address.port == 0:
        raise ValueError("port 0 cannot be dialled")
    return address


def _announced(text: str) -> HostPort:
    address = _dialable(text)
    if address.is_wildcard:
        raise ValueError("others cannot dial this address; announce the one they reach this machine under")
    return address


def _listen(text: str) -> Endpoint:
    return Endpoint.parse(text, protocols=(*BACKEND_PROTOCOLS, "https"))


def _backend(text: str) -> Endpoint:
    endpoint = Endpoint.parse(text, protocols=BACKEND_PROTOCOLS)
    if isinstance(endpoint.address, HostPort):
        _dialable(str(endpoint.address))
    return endpoint


def _host(text: str) -> str:
    if ":" in text:
        raise ValueError("write the name alone, without a port")
    return HostPort.parse(text, default_port=80).host


def _health_path(text: str) -> str:
    if not _HEALTH_PATH.fullmatch(text):
        raise ValueError("a path begins with / and has no space")
    return text


def _capacity(value: object, number: Callable[[object], int]) -> int:
    return AUTO_CAPACITY if isinstance(value, str) and value.strip().lower() == "auto" else number(value)


def _gpus(value: object) -> object:
    """Read which GPUs count: "0,2", UUIDs or their beginnings, or "none"; a list or a number is right in the file."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str):
        value = [] if value.strip().lower() == "none" else value.split(",")
    if not isinstance(value, list | tuple):
        return value
    items = tuple(str(item).strip() for item in value)
    if not all(map(_GPU.fullmatch, items)):
        raise ValueError("write numbers or UUIDs as `nvidia-smi -L` has them (0,2 or GPU-8f3a5c1e), or none")
    return items


def _visible_gpus() -> tuple[str, ...] | None:
    """The GPUs that a person leaves to the servers here, who most likely see the environment that this node sees.

    As CUDA reads it: the first item that is none ends the list, so "" and "-1" are no GPU.
    """
    for name in VISIBLE_GPUS:
        if name in os.environ:
            items = [item.strip() for item in os.environ[name].split(",")]
            return tuple(itertools.takewhile(_GPU.fullmatch, items))
    return None


def _path(text: str) -> Path:
    if not text:
        raise ValueError("the path is empty")
    return Path(text).expanduser()


def _directory(text: str) -> Path:
    return _path(text).absolute()  # the command line runs in other directories


def _default_name() -> str:
    return "".join(filter(str.isprintable, socket.gethostname()))[:MAX_NAME_CHARS] or "node"


Duration = Annotated[float, BeforeValidator(parse_duration)]
Size = Annotated[int, BeforeValidator(parse_size)]
Address = Annotated[HostPort, BeforeValidator(_text(HostPort.parse))]


class Settings(BaseModel):
    """The settings of `federation join`. Durations in seconds, sizes in bytes, as the names say."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)

    backends: Annotated[tuple[Endpoint, ...], BeforeValidator(_each(_backend)), Field(max_length=MAX_SERVICES)] = ()
    listens: Annotated[
        tuple[Endpoint, ...], BeforeValidator(_each(_listen)), Field(min_length=1, max_length=MAX_SERVICES)
    ] = (Endpoint.parse("127.0.0.1:8484"),)
    p2p_listen: Address = HostPort("0.0.0.0", 4484)
    announce: Annotated[tuple[HostPort, ...], BeforeValidator(_each(_announced)), Field(max_length=16)] = ()
    peers: Annotated[tuple[str, ...], BeforeValidator(_each(_peer)), Field(max_length=MAX_PEERS)] = ()
    name: Annotated[str, BeforeValidator(_text(_node_name))] = Field(default_factory=_default_name)
    vram_bytes: Annotated[Size, Field(ge=0, lt=2**63)] | None = None
    gpus: Annotated[tuple[str, ...], BeforeValidator(_gpus)] | None = Field(default_factory=_visible_gpus)
    policy: Literal["least-loaded", "least-requests", "random"] = "least-loaded"  # selection.Policy's values
    target: Annotated[str, BeforeValidator(_text(pasted)), Field(min_length=1, max_length=128)] | None = None
    hold_s: Annotated[Duration, Field(ge=0, le=3600)] = 10.0
    open_timeout_s: Annotated[Duration, Field(ge=0.05, le=300)] = 3.0
    affinity: Literal["on", "off"] = "on"  # of HTTP requests: a conversation goes where its prompt is cached
    path_penalty_s: Annotated[Duration, Field(ge=0, le=60)] = 0.1
    replay: Replay = Replay.AUTO
    replay_buffer_bytes: Annotated[Size, Field(ge=1024, le=64 * 1024**2)] = 65536
    http_buffer_bytes: Annotated[Size, Field(ge=65536, le=4 * 1024**3)] = 64 * 1024**2
    drain_timeout_s: Annotated[Duration, Field(ge=0, le=86400)] = 30.0
    health_interval_s: Annotated[Duration, Field(ge=0.1, le=3600)] = 2.0
    health_path: Annotated[str, BeforeValidator(_text(_health_path))] | None = None
    # At most a quarter of records.NODE_ONLINE_WINDOW: a node stays online though three announcements in a row are lost.
    announce_interval_s: Annotated[Duration, Field(ge=0.1, le=10)] = 5.0
    capacity: Annotated[int, Field(ge=0, le=1_000_000), WrapValidator(_capacity)] = 0
    allow_origins: Annotated[tuple[str, ...], BeforeValidator(_each(parse_origin)), Field(max_length=64)] = ()
    browser_check: bool = True
    tls_cert: Annotated[Path, BeforeValidator(_text(_directory))] | None = None
    tls_key: Annotated[Path, BeforeValidator(_text(_directory))] | None = None
    require_key: bool | None = None  # None: off loopback, once the network has client keys
    max_connections: Annotated[int, Field(ge=1, le=1_000_000)] = 16384
    max_connections_per_peer: Annotated[int, Field(ge=1, le=1_000_000)] = 4096
    state_dir: Annotated[Path, BeforeValidator(_text(_directory))] = Field(
        default_factory=lambda: default_state_dir(os.environ)
    )
    control: Address = HostPort("127.0.0.1", 8485)
    control_hosts: Annotated[tuple[str, ...], BeforeValidator(_each(_host)), Field(max_length=16)] = ()
    mdns: bool = True
    detect: bool = True
    port_mapping: bool = False
    dht: bool = False
    bootstraps: Annotated[tuple[str, ...], BeforeValidator(_each(_bootstrap)), Field(max_length=64)] = ()
    relay: bool = True
    relay_reservations: Annotated[int, Field(ge=1, le=4096)] = 128
    relay_circuits: Annotated[int, Field(ge=1, le=65536)] = 512
    relay_rate_bytes: Annotated[Size, Field(ge=0, lt=2**40)] = 100 * 1024**2
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_text(str.lower))] = "info"
    log_format: Literal["console", "json"] = "console"
    notify_url: Annotated[SecretStr, BeforeValidator(_text(parse_webhook))] | None = None
    notify_url_file: Annotated[Path, BeforeValidator(_text(_path))] | None = None
    notify_after_s: Annotated[Duration, Field(ge=1, le=86400)] = 30.0
    token: SecretStr | None = None
    token_file: Annotated[Path, BeforeValidator(_text(_path))] | None = None
    invite: SecretStr | None = None  # an invite's code; the other two take one too

    @model_validator(mode="after")
    def _one_way_in(self) -> Self:
        if self.invite is not None and (self.token is not None or self.token_file is not None):
            raise ValueError("--invite and a token (--token, --token-file) are two ways into a network; give one of them")
        return self

    @model_validator(mode="after")
    def _make_sense_together(self) -> Self:
        if self.dht and not self.bootstraps:
            raise ValueError("--dht needs a node of the DHT to begin with: --bootstrap MULTIADDR")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key go together: a certificate and its key, in PEM form")
        if self.tls_cert is None and any(listen.protocol == "https" for listen in self.listens):
            raise ValueError("--listen https:// needs a certificate: --tls-cert FILE --tls-key FILE")
        offered = [backend.service for backend in self.backends]
        for service in offered:
            if offered.count(service) > 1:
                raise ValueError(f"two backends for the service {service!r}; name one of them: --backend NAME=HOST:PORT")
        for listen in self.listens:
            is_there = listen.address.port or isinstance(listen.address, UnixPath)
            if is_there and [other.address for other in self.listens].count(listen.address) > 1:
                raise ValueError(f"--listen {listen.address} is given twice")
            for backend in self.backends:
                if _reaches(backend.address, listen.address):
                    raise ValueError(f"the backend {backend.address} is this node's own --listen {listen.address}")
        return self


# The settings that SIGHUP changes in a running node; the others take a restart.
RELOADABLE = (
    *("hold_s", "open_timeout_s", "replay", "replay_buffer_bytes", "http_buffer_bytes", "drain_timeout_s"),
    *("health_interval_s", "health_path"),
    *("capacity", "max_connections", "max_connections_per_peer", "allow_origins", "browser_check", "affinity"),
    *("require_key", "tls_cert", "tls_key"),
    *("notify_url", "notify_url_file", "notify_after_s"),
)

# Field -> the name that people write, without dashes: hold_s -> hold, backends -> backend.
NAMES = {
    field: field.removesuffix("s") if field in REPEATABLE else re.sub("_(s|bytes)$", "", field)
    for field in Settings.model_fields
}


def load(flags: Mapping[str, Any], *, config_file: Path | None = None) -> Settings:
    """Settings from flags (by field name; None: not given), environment, and the TOML file.

    Raises ConfigError with one line that names the setting as the person wrote it.
    """
    given = {field: value for field, value in flags.items() if value is not None and value != []}
    environment = _from_environment(os.environ)
    path = find_config_file(config_file, os.environ)
    file, spelling = _read(path) if path else ({}, {})

    origins = {field: f"{spelling[field]} in {path}" for field in file}
    origins |= {field: PREFIX + NAMES[field].upper() for field in environment}
    origins |= {field: _flag(field) for field in given}
    values = {field: value for field, value in file.items() if field not in environment} | given
    values |= _one_of("token", given, environment, file, origins)
    values |= _one_of("notify_url", given, environment, file, origins)
    try:
        return Settings(**(environment | values))
    except ValidationError as error:
        raise ConfigError(without_tokens(_explain(error, environment | values, origins))) from None


def _from_environment(variables: Mapping[str, str]) -> dict[str, Any]:
    """FEDERATION_<NAME>, in any case, by the name that people know. Variables of other names are not ours; empty ones are
    unset."""
    given = {name.upper(): text for name, text in variables.items() if text}
    values: dict[str, Any] = {
        field: given[PREFIX + name.upper()] for field, name in NAMES.items() if PREFIX + name.upper() in given
    }
    for field in SWITCHES:
        no = given.get(f"{PREFIX}NO_{field.upper()}")
        if no is not None and field not in values:
            # The flag's own spelling. Any value but a plain no or yes stays, and validation refuses it.
            negated = {"1": "0", "true": "0", "yes": "0", "0": "1", "false": "1", "no": "1"}
            values[field] = negated.get(no.lower(), no)
    return values


def _one_of(
    secret: str,
    given: Mapping[str, Any],
    environment: Mapping[str, Any],
    file: Mapping[str, Any],
    origins: Mapping[str, str],
) -> dict[str, Any]:
    """A secret and the file that has it are two spellings of one setting: the highest layer that has either decides."""
    in_file = f"{secret}_file"
    for layer in (given, environment, file):
        if layer.get(secret) is not None and layer.get(in_file) is not None:
            raise ConfigError(f"{origins[secret]} and {origins[in_file]} are both given; choose one")
        if layer.get(secret) is not None or layer.get(in_file) is not None:
            return {secret: layer.get(secret), in_file: layer.get(in_file)}
    return {}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The file's values by field name, and how each key was written. Raises ConfigError for a key we do not know."""
    fields = {name: field for field, name in NAMES.items()}
    values: dict[str, Any] = {}
    spelling: dict[str, str] = {}
    for key, value in read_config_file(path).items():
        name = key.replace("-", "_")
        if name.removeprefix("no_") in SWITCHES and name.startswith("no_") and isinstance(value, bool):
            name, value = name.removeprefix("no_"), not value  # the flag's own spelling
        if name not in fields:
            close = get_close_matches(name, fields, n=1)
            hint = f"; did you mean {close[0].replace('_', '-')}?" if close else ""
            raise ConfigError(f"{path} has an unknown key {key!r}{hint}")
        if fields[name] in values:
            raise ConfigError(f"{path} has both {spelling[fields[name]]} and {key}")
        values[fields[name]] = value
        spelling[fields[name]] = key
    return values, spelling


def _explain(error: ValidationError, values: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """The first error, in one line."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    reason = str(cause) if cause is not None else re.sub("^[A-Z][a-z]+ should", "it should", first["msg"])
    if not first["loc"]:
        return reason
    field = str(first["loc"][0])
    if cause is not None and field in (*REPEATABLE, "announce"):
        return f"{origins.get(field, field)} {reason}"  # the reason begins with the item that is wrong
    shown = "" if field in SECRETS else f" {values.get(field)!r}"
    return f"{origins.get(field, field)}{shown}: {reason}"


def _flag(field: str) -> str:
    return f"--{'no-' if field in SWITCHES else ''}{NAMES[field].replace('_', '-')}"


def _reaches(address: Place, listener: Place) -> bool:
    """Whether a dial to `address` ends at our own `listener`."""
    if isinstance(address, UnixPath) or isinstance(listener, UnixPath):
        return address == listener
    if address.port != listener.port:
        return False
    local = address.is_loopback or address.is_wildcard
    return address.host == listener.host or (local and (listener.is_loopback or listener.is_wildcard))
