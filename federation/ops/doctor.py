"""Looks for faults of this node and names remedies: one finding a check, for `federation doctor`.

Each check is a function that takes the node's parts and yields findings; only `ask_peers` asks other nodes.
"""

from __future__ import annotations

import errno
import os
import platform
import resource
import shutil
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from federation import __version__
from federation.errors import ProbeFailed
from federation.ops import status
from federation.units import HostPort

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from federation.mesh.probe import Told
    from federation.mesh.records import NodeData
    from federation.ops.parts import Parts
    from federation.ops.schemas import Finding, Severity

MAX_ASKED = 8  # peers whose clock is compared; more tell nothing new
MAX_NAMED = 5
SKEW_S = 5.0  # logs of two machines are hard to read together from here on; federation itself does not mind
FILES_A_CONNECTION = 2
NO_ROUTE = os.strerror(errno.EHOSTUNREACH)
MACOS_PRIVACY = (  # macOS 15 lets no program that a person has not allowed reach the LAN; root's and ssh's it does
    "macOS keeps programs off the local network until you allow it: System Settings > Privacy & Security > Local Network; "
    "a launchd agent asks nobody, so start `federation join` once in Terminal, or run it as a daemon of root"
)


async def examine(node: Parts) -> list[Finding]:
    """All checks, in the order in which a person would look."""
    told = await ask_peers(node)
    findings: list[Finding] = []
    for check in _CHECKS:
        findings += check(node)
    return [*findings, *clocks(node, told), *versions(node), *nat(node, told), *refusals(node)]


async def ask_peers(node: Parts) -> dict[str, Told]:
    """Peer id -> the peer's answer; peers that do not answer are missing."""
    told: dict[str, Told] = {}

    async def ask(peer: str) -> None:
        try:
            told[peer] = await node.probe.tell(peer)
        except ProbeFailed:  # `links` finds those that do not answer, and an old version answers no probe
            return

    async with trio.open_nursery() as nursery:
        for peer in list(node.host.links)[:MAX_ASKED]:
            nursery.start_soon(ask, peer)
    return told


def network(node: Parts) -> Iterator[Finding]:
    name = f"{node.token.name} ({node.token.network_id})" if node.token.name else node.token.network_id
    yield _finding("token", "ok", f"set; the network is {name}")


def owner(node: Parts) -> Iterator[Finding]:
    """The key that alone can rotate the token: a network that loses it has to be made anew."""
    others = status.owner_at(node)
    if not node.token.owner:
        fix = "to be able to put a member out: make a new network with `federation token new`, and join it on each machine"
        yield _finding("owner key", "info", "none: this network's token is from before there were owners", fix)
    elif node.facts.has_owner_key:
        path = node.state.owner_key_path(node.token.network_id)
        yield _finding("owner key", "info", f"here, in {path}", "keep a backup elsewhere: federation owner export --to FILE")
    elif others:
        yield _finding("owner key", "ok", f"not here; {_some(others)} {'says' if len(others) == 1 else 'say'} to have it")
    else:
        fix = "nothing to do where it is kept in a file; without it the token cannot be rotated"
        yield _finding("owner key", "info", "not here, and no node says that it has it", fix)


def identity(node: Parts) -> Iterator[Finding]:
    """Whether a machine was copied after its first start: this one, or another one of the network."""
    if node.host.is_copied:
        fix = f"on the copy: stop the node, delete {node.state.path / 'identity'} there, and start it again"
        yield _finding("identity", "fail", "another machine runs with this node's identity: one is a copy of the other", fix)
    for peer in node.copied()[:MAX_NAMED]:
        fix = "on the copy: stop the node, delete the file `identity` in its state directory, and start it again"
        yield _finding("identity", "fail", f"{node.name_of(peer) or peer} {status.COPIED}", fix)
    if not node.host.is_copied and not node.copied():
        yield _finding("identity", "ok", "no other machine uses it")


def p2p_port(node: Parts) -> Iterator[Finding]:
    if node.facts.p2p.is_loopback:
        yield _finding(
            "p2p port",
            "warn",
            f"{node.facts.p2p} is reachable from this machine only",
            "join with --p2p-listen 0.0.0.0:4484",
        )
    elif not node.addresses:
        yield _finding(
            "p2p port",
            "fail",
            f"this machine no longer has the address {node.facts.p2p.host}: nobody can dial this node, nothing is announced",
            "bring the interface up again, or join with --p2p-listen 0.0.0.0:4484, which follows the machine's addresses",
        )
    else:
        yield _finding("p2p port", "ok", f"listens on {node.facts.p2p}")


def reachable(node: Parts) -> Iterator[Finding]:
    """Whether nodes outside reach this one: members of other networks that tried, else the peers that connected."""
    inbound = [link for link in node.host.links.values() if not link.is_initiator]
    reach = node.connectivity.reachability
    port = node.facts.p2p.port
    if reach.dialable:
        yield _finding("reachable", "ok", f"members outside this node's networks reach port {port}")
    elif reach.dialable is False:
        relays = [node.name_of(peer) or peer for peer in reach.via]
        how = f"they come through {_some(relays)}" if relays else "no relay has a place for it, so only it can dial them"
        fix = f"for a direct way, forward TCP port {port} on the router, and {_firewall_command(port)}"
        yield _finding("reachable", "info" if relays else "warn", f"members outside cannot dial port {port}; {how}", fix)
    elif inbound:
        yield _finding("reachable", "ok", f"{_count(len(inbound), 'peer')} connected to this node's port {port}")
    elif not node.host.links:
        yield _finding("reachable", "info", "not known: no peer is connected")
    else:
        yield _finding(
            "reachable",
            "info",
            "no peer has connected to this node; it dialled all of them itself, which is enough where they can be dialled",
            f"to be sure, {_firewall_command(port)}",
        )


def router(node: Parts) -> Iterator[Finding]:
    """The forwarding that --port-mapping asks the router for."""
    mapping = node.connectivity.mapping
    if mapping is None:
        return
    if mapping.external is not None:
        yield _finding("router", "ok", f"forwards its port {mapping.external} to this node, asked by {mapping.way}")
    else:
        fix = f"turn on UPnP or NAT-PMP there, or forward TCP port {node.facts.p2p.port} by hand"
        yield _finding("router", "warn", f"forwards no port to this node: {mapping.problem}", fix)


def links(node: Parts) -> Iterator[Finding]:
    now = node.clock.utc_now()
    others = [record for record in node.ledger.online(now) if record.peer_id != node.peer_id]
    missing = [_why_missing(node, record) for record in others if record.peer_id not in node.host.links]
    suspect = [node.name_of(peer) or peer for peer, link in node.host.links.items() if link.suspect]
    if not others:
        yield _finding(
            "peers",
            "warn",
            "no other node is known",
            "run `federation invite` on a member and join with what it prints, or give --peer HOST:4484",
        )
    elif missing:
        port = node.facts.p2p.port
        yield _finding(
            "peers",
            "fail",
            f"known but not connected: {_some(missing)}",
            MACOS_PRIVACY
            if platform.system() == "Darwin" and any(NO_ROUTE in why for why in missing)
            else f"one of each pair must reach the other's port: there, or here, {_firewall_command(port)}",
        )
    elif suspect:
        yield _finding("peers", "warn", f"connected but silent: {_some(suspect)}", "look at that machine's load and network")
    else:
        yield _finding("peers", "ok", f"connected to all {len(others)} that are online")


def _why_missing(node: Parts, record: NodeData) -> str:
    name = record.name or record.peer_id
    why = node.host.dial_loop.not_reached.get(record.peer_id)
    return f"{name} ({why})" if why else name


def mdns(node: Parts) -> Iterator[Finding]:
    if not node.facts.settings.mdns:
        yield _finding("mdns", "info", "off (--no-mdns)")
    elif node.discovery.mdns_seen:
        yield _finding("mdns", "ok", f"{_count(len(node.discovery.mdns_seen), 'peer')} seen on the local network")
    else:
        yield _finding(
            "mdns",
            "info",
            "no peer seen on the local network",
            "if there are some, the network may drop multicast (UDP 5353), as guest and container networks do; use --peer",
        )


def backends(node: Parts) -> Iterator[Finding]:
    if not node.backends.all:
        yield _finding("backend", "info", "none: this node is an entry only", "join with --backend HOST:PORT to offer one")
    for backend in node.backends.all:
        where = f"{backend.endpoint.address} ({backend.endpoint.service})"
        if backend.healthy:
            yield _finding("backend", "ok", f"{where} answers")
        else:
            yield _finding("backend", "fail", f"{where}: {backend.why}", "start that server, or correct --backend")
    if node.facts.draining:
        yield _finding("draining", "warn", "this node takes no new connections", "federation undrain")


def clients(node: Parts) -> Iterator[Finding]:
    for service, address in node.facts.listeners:
        if not address.is_loopback:
            yield _finding(
                "clients", "info", f"whoever reaches {address} may use the service {service}; no token is asked for"
            )


def gpu(node: Parts) -> Iterator[Finding]:
    reading = node.facts.gpu
    if reading.total_vram or reading.available_vram:
        free, total = reading.available_vram / 1024**3, reading.total_vram / 1024**3
        yield _finding("gpu", "ok", f"{free:.1f} of {total:.1f} GiB free ({reading.source})")
    else:
        fix = "if there is one, install its driver, or say --vram SIZE" if node.backends.all else ""  # an entry needs none
        yield _finding("gpu", "info", f"none found ({reading.note})", fix)


def open_files(node: Parts) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(node.facts.settings.max_connections * FILES_A_CONNECTION, 65536)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        yield _finding("open files", "ok", f"up to {'any number' if soft == resource.RLIM_INFINITY else soft}")
    else:
        fix = f"ulimit -n {wanted} before the start (LimitNOFILE= in a systemd unit)"
        if hard != resource.RLIM_INFINITY and hard < wanted:
            fix += f"; the hard limit is {hard}, which only root can raise"
        yield _finding(
            "open files", "info", f"the limit of {soft} is enough for {soft // FILES_A_CONNECTION} connections", fix
        )


def surroundings(_node: Parts) -> Iterator[Finding]:
    kind = container()
    if kind is None:
        return
    fix = "publish TCP port 4484, or use the host's network; mDNS does not get through a bridge: use --peer and --announce"
    if kind == "WSL":
        fix = "Windows forwards no port by itself: use WSL's mirrored networking mode, or `netsh interface portproxy`"
    yield _finding("surroundings", "info", f"this is {kind}", fix)


def container(root: Path = Path("/"), release: str = platform.release()) -> str | None:
    """The kind of container that this node runs in: WSL, Docker, Podman, Kubernetes, ...; None for a machine of its own."""
    if "microsoft" in release.lower():
        return "WSL"
    if (root / "run/.containerenv").exists():
        return "a Podman container"
    if (root / ".dockerenv").exists():
        return "a Docker container"
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return "a Kubernetes pod"
    return None


_CHECKS: tuple[Callable[[Parts], Iterable[Finding]], ...] = (
    network,
    owner,
    identity,
    p2p_port,
    reachable,
    router,
    links,
    mdns,
    backends,
    clients,
    gpu,
    open_files,
    surroundings,
)


# From the peers' answers


def clocks(node: Parts, told: dict[str, Told]) -> Iterator[Finding]:
    if not told:
        return
    off = {peer: t.ahead_s for peer, t in told.items() if abs(t.ahead_s) > SKEW_S}
    if not off:
        widest = max(abs(t.ahead_s) for t in told.values())
        yield _finding("clocks", "ok", f"within {widest:.1f} s of {_count(len(told), 'peer')}")
        return
    named = [f"{node.name_of(peer) or peer} is {abs(s):.0f} s {'ahead' if s > 0 else 'behind'}" for peer, s in off.items()]
    fix = "turn on time synchronisation (timedatectl set-ntp true); federation itself does not mind, but your logs do"
    yield _finding("clocks", "warn", _some(named), fix)


def versions(node: Parts) -> Iterator[Finding]:
    other = [
        f"{record.name or record.peer_id} {record.version}"
        for record in node.ledger.online(node.clock.utc_now())
        if record.version and record.version != __version__
    ]
    if other:
        yield _finding("versions", "info", f"this is {__version__}; {_some(other)}", "upgrade the older ones when it suits")
    else:
        yield _finding("versions", "ok", f"all run {__version__}")


def nat(node: Parts, told: dict[str, Told]) -> Iterator[Finding]:
    """The NAT, by the addresses under which peers see our connections to them."""
    own = {address.host for address in node.addresses}
    dialled = [peer for peer, link in node.host.links.items() if link.is_initiator]
    seen = [told[peer].seen for peer in dialled if peer in told]
    outside = {address[0] for address in seen if address is not None and not _is_local(address[0])}
    if not outside:
        yield _finding("nat", "info", "not known: nobody outside this machine's networks could say how it sees this node")
    elif outside <= own:
        yield _finding("nat", "ok", "none: peers see this node under its own address")
    else:
        public = HostPort(
            min(outside), node.facts.p2p.port
        )  # a peer names it, and a command shows it: probe.Told takes IP addresses alone
        how = (
            "one public address"
            if len(outside) == 1
            else f"{len(outside)} different addresses (symmetric, or several uplinks)"
        )
        yield _finding(
            "nat",
            "info",
            f"behind NAT, seen as {_some(sorted(outside))}: {how}",
            f"forward TCP port {node.facts.p2p.port} on the router and join with --announce {public}",
        )


def refusals(node: Parts) -> Iterator[Finding]:
    """Peers that failed the handshake lately, and why."""
    if not node.host.refusals:
        yield _finding("handshakes", "ok", "none failed lately")
        return
    now = trio.current_time()
    shown = [f"{r.where}: {r.what} ({_ago(now - r.at)})" for r in list(node.host.refusals)[-MAX_NAMED:]]
    fix = "a node with another token: run `federation invite` here and `federation join` there; a stranger: nothing to do"
    yield _finding("handshakes", "warn", "; ".join(shown), fix)


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return True


def _firewall_command(port: int) -> str:
    if shutil.which("ufw"):
        return f"sudo ufw allow {port}/tcp"
    if shutil.which("firewall-cmd"):
        return f"sudo firewall-cmd --permanent --add-port={port}/tcp && sudo firewall-cmd --reload"
    return f"let TCP port {port} in through the firewall"


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} s ago" if seconds < 120 else f"{seconds / 60:.0f} min ago"


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:MAX_NAMED])
    return shown if len(names) <= MAX_NAMED else f"{shown} and {len(names) - MAX_NAMED} more"


def _finding(check: str, severity: Severity, finding: str, fix: str = "") -> Finding:
    return {"check": check, "severity": severity, "finding": finding, "fix": fix}
