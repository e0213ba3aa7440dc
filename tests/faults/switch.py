"""One Ethernet switch (a bridge) and machines on it (network namespaces), with all that can go wrong between them.

Only in the sandbox that scripts/faults makes: mount, network and process namespaces of its own, which end with it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import netfleet
from topology import Namespace, run

BRIDGE, OTHER_BRIDGE = "br0", "br1"


def inside(machine: str) -> AbstractContextManager[None]:
    """Sockets that this thread opens, and processes that it starts, are on that machine's network."""
    return netfleet.inside(Namespace(machine))


class Switch:
    """`addresses`: machine -> its IPv4 address, which `readdress` changes."""

    def __init__(self, addresses: dict[str, str]) -> None:
        self.addresses = dict(addresses)
        self._first_addresses = dict(addresses)
        for bridge in (BRIDGE, OTHER_BRIDGE):
            run("ip", "link", "add", bridge, "type", "bridge")
            run("ip", "link", "set", bridge, "up")
        for machine, address in addresses.items():
            port = f"port-{machine}"
            run("ip", "netns", "add", machine)
            run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", machine)
            run("ip", "link", "set", port, "master", BRIDGE, "up")
            self._on(machine, "ip", "link", "set", "lo", "up")
            self._on(machine, "ip", "link", "set", "eth0", "up")
            self._on(machine, "ip", "address", "add", f"{address}/24", "dev", "eth0")

    @staticmethod
    def _on(machine: str, *command: str) -> str:
        with inside(machine):
            return run(*command)

    def unplug(self, machine: str) -> None:
        run("ip", "link", "set", f"port-{machine}", "down")

    def plug(self, machine: str) -> None:
        run("ip", "link", "set", f"port-{machine}", "up")

    def drop(self, machine: str, direction: str, *match: str) -> None:
        """All that this machine gets (`input`) or sends (`output`) and that matches is lost without a word."""
        interface = "iifname" if direction == "input" else "oifname"
        self._on(machine, "nft", "add", "table", "inet", "faults")
        chain = f"add chain inet faults {direction} {{ type filter hook {direction} priority 0; }}"
        self._on(machine, "nft", chain)
        self._on(machine, "nft", f"add rule inet faults {direction} {interface} eth0 {' '.join(match)} drop")

    def drop_nothing(self, machine: str) -> None:
        self._on(machine, "nft", "flush", "ruleset")

    def partition(self, *machines: str) -> None:
        """These and the others no longer hear of each other."""
        for machine in machines:
            run("ip", "link", "set", f"port-{machine}", "master", OTHER_BRIDGE)

    def heal(self) -> None:
        for machine in self.addresses:
            run("ip", "link", "set", f"port-{machine}", "master", BRIDGE)

    def readdress(self, machine: str, address: str) -> None:
        """What a DHCP server does that gives out another address."""
        self._on(machine, "ip", "address", "del", f"{self.addresses[machine]}/24", "dev", "eth0")
        self._on(machine, "ip", "address", "add", f"{address}/24", "dev", "eth0")
        self.addresses[machine] = address

    def mtu(self, machine: str, size: int) -> None:
        """The cable takes no larger packets; whoever sends them is not told."""
        run("ip", "link", "set", f"port-{machine}", "mtu", str(size))
        self._on(machine, "ip", "link", "set", "eth0", "mtu", str(size))

    def no_offload(self) -> None:
        """Packets as they are on a wire. Unless told so, a virtual cable takes 64 KiB at once, whatever its MTU."""
        for machine in self.addresses:
            self._on(machine, "ip", "link", "set", "eth0", "gso_max_segs", "1")

    def repair(self) -> None:
        """As it was at first."""
        self.heal()
        for machine, address in self._first_addresses.items():
            self.plug(machine)
            self.drop_nothing(machine)
            self.mtu(machine, 1500)
            self._on(machine, "ip", "link", "set", "eth0", "gso_max_segs", "65535")
            if self.addresses[machine] != address:
                self.readdress(machine, address)
