"""Networks for tests: namespaces, veth pairs, bridges and NATs, as root on Linux. All that is made here is removed here.

    Internet     a router; `public()` puts a host on a subnet of its own on it
    nat()        a box with a public address; behind it a LAN whose hosts others cannot dial
    host()       on a LAN: one namespace, one interface

A NAT keeps ports ("port-preserving"), or gives each connection a random one ("symmetric"). As home routers do, it drops
what nobody behind it asked for.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from dataclasses import dataclass, field
from typing import Any

SYSCTLS = ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.disable_ipv6=1")
NAT_RULES = """\
table ip nat {{
    chain out {{
        type nat hook postrouting priority 100
        oifname "wan" masquerade {how}
    }}
}}
table ip filter {{
    chain in {{
        type filter hook input priority 0; policy drop
        ct state established,related accept
        iifname != "wan" accept
    }}
    chain through {{
        type filter hook forward priority 0; policy drop
        ct state established,related accept
        iifname != "wan" accept
    }}
}}
"""


def why_not() -> str:
    """Why no namespaces can be made here; empty if they can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("ip", "nft", "sysctl"):
        if not shutil.which(program, path=_PATH):
            return f"{program} is not installed"
    probe = subprocess.run(["unshare", "-n", "true"], capture_output=True, text=True)
    return "" if probe.returncode == 0 else f"no network namespaces here: {probe.stderr.strip()}"


_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def run(*command: str, given: str | None = None) -> str:
    done = subprocess.run(
        command, input=given, capture_output=True, text=True, timeout=30, env={**os.environ, "PATH": _PATH}
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout


@dataclass
class Namespace:
    """`address` is that of its first interface."""

    name: str
    address: str = ""
    count: int = 0  # of interfaces, or of hosts on its LAN

    @property
    def prefix(self) -> list[str]:
        """What goes before a command to run it inside."""
        return ["ip", "netns", "exec", self.name]

    def run(self, *command: str, given: str | None = None) -> str:
        return run(*self.prefix, *command, given=given)


@dataclass
class Topology:
    """Use it as a context manager: the namespaces go with it, and with them all that is in them."""

    tag: str = field(default_factory=lambda: f"fed{secrets.token_hex(3)}")
    namespaces: list[Namespace] = field(default_factory=list)
    subnets: int = 0

    def __enter__(self) -> Topology:
        self.internet = self._namespace("inet")
        return self

    def __exit__(self, *_: Any) -> None:
        for namespace in self.namespaces:
            subprocess.run(["ip", "netns", "delete", namespace.name], capture_output=True, env={**os.environ, "PATH": _PATH})

    def public(self, name: str) -> Namespace:
        """A host on the internet."""
        host = self._namespace(name)
        self._plug(host, "wan")
        return host

    def nat(self, name: str, *, symmetric: bool = False) -> Namespace:
        """A router with a public address; put hosts behind it with `host`."""
        box = self._namespace(name)
        self._plug(box, "wan")
        self._bridge(box)
        box.run("nft", "-f", "-", given=NAT_RULES.format(how="random" if symmetric else ""))
        return box

    def lan(self, name: str) -> Namespace:
        """A network that leads nowhere."""
        box = self._namespace(name)
        self._bridge(box)
        return box

    def host(self, box: Namespace, name: str, *, subnet: int | None = None) -> Namespace:
        host = self._namespace(name)
        self.move(host, box, subnet=subnet)
        host.run("ip", "route", "add", "default", "via", f"{_lan(box)}.1")
        return host

    def move(self, host: Namespace, box: Namespace, *, subnet: int | None = None, interface: str = "eth0") -> str:
        """Give the host an interface on the box's LAN; its address there."""
        box.count += 1
        port = f"p{box.count}"
        run("ip", "link", "add", port, "netns", box.name, "type", "veth", "peer", "name", interface, "netns", host.name)
        box.run("ip", "link", "set", port, "master", "lan", "up")
        address = f"{_lan(box)}.{10 + box.count}"
        host.run("ip", "address", "add", f"{address}/24", "dev", interface)
        host.run("ip", "link", "set", interface, "up")
        host.address = host.address or address
        return address

    def _namespace(self, name: str) -> Namespace:
        namespace = Namespace(f"{self.tag}-{name}")
        run("ip", "netns", "add", namespace.name)
        self.namespaces.append(namespace)
        namespace.run("ip", "link", "set", "lo", "up")
        namespace.run("sysctl", "-qw", *SYSCTLS)
        return namespace

    def _plug(self, host: Namespace, interface: str) -> None:
        """Into the internet, by a subnet of its own."""
        self.subnets += 1
        net, port = f"198.18.{self.subnets}", f"i{self.subnets}"
        run(
            "ip",
            "link",
            "add",
            port,
            "netns",
            self.internet.name,
            "type",
            "veth",
            "peer",
            "name",
            interface,
            "netns",
            host.name,
        )
        self.internet.run("ip", "address", "add", f"{net}.1/24", "dev", port)
        self.internet.run("ip", "link", "set", port, "up")
        host.address = f"{net}.2"
        host.run("ip", "address", "add", f"{net}.2/24", "dev", interface)
        host.run("ip", "link", "set", interface, "up")
        host.run("ip", "route", "add", "default", "via", f"{net}.1")

    def _bridge(self, box: Namespace) -> None:
        self.subnets += 1
        box.run("ip", "link", "add", "name", "lan", "type", "bridge")
        box.run("ip", "address", "add", f"10.77.{self.subnets}.1/24", "dev", "lan")
        box.run("ip", "link", "set", "lan", "up")
        _LANS[box.name] = f"10.77.{self.subnets}"


_LANS: dict[str, str] = {}


def _lan(box: Namespace) -> str:
    return _LANS[box.name]
