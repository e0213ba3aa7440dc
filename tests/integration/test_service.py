"""The service under a real systemd, in namespaces (tests/support/systemd_machine.py): the machine's and a user's."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import systemd_machine
from tests.support.releases import release

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.systemd_machine import Machine

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(systemd_machine.lacking() is not None, reason=str(systemd_machine.lacking())),
]

ANN, UID = "ann", 1777
PORTS = ("--listen", "127.0.0.1:8494", "--p2p-listen", "0.0.0.0:4494", "--control", "127.0.0.1:8495")
QUIET = ("--no-mdns", "--no-detect")
STATE = ("--state-dir", "/var/lib/federation")
DEADLINE_S = 120.0


def eventually(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (found := what()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert found
    return found


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    work = tmp_path_factory.mktemp("machine")
    for folder in (work, *work.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)  # its user reads the archives there
    for version, broken in (("0.8.0", False), ("0.9.0", False), ("0.10.0", True)):
        release(work / "share/r", version, broken=broken)
    with systemd_machine.machine(work) as there:
        there.run("useradd", "--create-home", "--uid", str(UID), "--shell", "/bin/bash", ANN)
        there.run("systemctl", "start", f"user@{UID}")
        there.run("ip", "link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
        there.run("sh", "-c", "ip addr add 10.99.0.1/24 dev lan0; ip link set lan0 up; ip link set lan1 up")
        yield there


def archive(machine: Machine, version: str) -> Path:
    return next((machine.share / "r").glob(f"federation-{version}-*.tar.gz"))


def install(machine: Machine, version: str, prefix: str) -> tuple[str, ...]:
    """The command that installs a version from nothing, as install.sh does."""
    path = archive(machine, version)
    folder = path.name.removesuffix(".tar.gz")
    line = f"w=$(mktemp -d); tar xzf {path} -C $w; $w/{folder}/federation update --from {path} --prefix {prefix}; rm -r $w"
    return "sh", "-c", line


def pid(machine: Machine, scope: str = "--system") -> int:
    shown = ("federation", "service", "status", scope, "--json")
    done = machine.run(*shown, check=False) if scope == "--system" else machine.run_as(ANN, UID, *shown, check=False)
    return int(json.loads(done.stdout)["pid"] or 0)


def test_the_machine_s_service(machine: Machine) -> None:
    run = machine.run
    run(*install(machine, "0.8.0", "/usr/local"))
    token = run("federation", "token", "new", "--owner-key", "/run/owner.key").stdout
    said = run(
        "federation", "service", "install", *QUIET, "--control", "0.0.0.0:8485", "--token-file", "-", given=token
    ).stdout
    assert "/etc/systemd/system/federation.service" in said
    unit = run("cat", "/etc/systemd/system/federation.service").stdout
    first = pid(machine)
    seen = run("sh", "-c", f"tr '\\0' '\\n' < /proc/{first}/cmdline; tr '\\0' '\\n' < /proc/{first}/environ").stdout
    assert token.strip() not in unit + said + seen + run("journalctl", "--no-pager").stdout
    assert run("stat", "-c", "%U %a", "/var/lib/federation/token").stdout == "federation 600\n"
    assert run("stat", "-c", "%U", f"/proc/{first}").stdout == "federation\n"
    exposure = run("systemd-analyze", "security", "--no-pager", "federation").stdout.splitlines()[-1]
    assert "OK" in exposure, exposure

    # reload, a crash, a stop
    run("systemctl", "reload", "federation")
    eventually(lambda: "settings read again" in run("journalctl", "-u", "federation", "--no-pager").stdout)
    assert pid(machine) == first
    run("kill", "-KILL", str(first))
    eventually(lambda: pid(machine) not in (0, first))
    eventually(lambda: run("systemctl", "is-active", "federation", check=False).stdout == "active\n")
    run("systemctl", "stop", "federation")
    assert run("systemctl", "show", "federation", "--property=Result", "--value").stdout == "success\n"
    assert run("federation", "service", "status", check=False).returncode == 1
    run("systemctl", "start", "federation")

    # a node that hangs
    run("sh", "-c", "d=/run/systemd/system/federation.service.d; mkdir $d; printf '[Service]\nWatchdogSec=15\n' > $d/a.conf")
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "federation")
    hangs = pid(machine)
    run("kill", "-STOP", str(hangs))
    eventually(lambda: pid(machine) not in (0, hangs))
    assert "Watchdog timeout" in run("journalctl", "-u", "federation", "--no-pager").stdout

    # the machine is started anew
    machine.reboot()
    eventually(lambda: run("federation", "service", "status", check=False).returncode == 0)
    assert run("federation", "token", "inspect", *STATE).returncode == 0


def test_a_line_from_the_machine_s_node_makes_a_user_s_service(machine: Machine) -> None:
    machine.run("sh", "-c", "ip link show lan0 || ip link add lan0 type veth peer name lan1")
    machine.run("sh", "-c", "ip addr replace 10.99.0.1/24 dev lan0; ip link set lan0 up; ip link set lan1 up")
    machine.run("systemctl", "start", f"user@{UID}")
    done = machine.run("federation", "invite", "--install", *STATE, "--address", "10.99.0.1")
    line = f"{done.stdout.strip()} {' '.join((*PORTS, *QUIET))} --name second"
    done = machine.run_as(ANN, UID, "bash", given=line)
    assert "the service of the user ann is installed" in done.stdout
    assert "loginctl enable-linger" in done.stdout

    def both() -> bool:
        peers = json.loads(machine.run_as(ANN, UID, "federation", "peers", "--json").stdout)["peers"]
        return [peer["state"] for peer in peers] == ["no backend"] * 2

    eventually(both)
    again = machine.run_as(ANN, UID, "bash", given=line, check=False)
    assert again.returncode != 0  # good once
    assert "make another there: federation invite --install" in again.stderr


def test_an_update_a_broken_one_and_back(machine: Machine) -> None:
    base = str(machine.share / "r")

    def federation(*words: str, check: bool = True) -> Any:
        return machine.run_as(ANN, UID, "federation", *words, check=check)

    first = pid(machine, "--user")
    done = federation("update", "--from", str(archive(machine, "0.9.0")))
    assert "runs 0.9.0 now" in done.stdout
    second = pid(machine, "--user")
    assert second != first
    failed = federation("update", "--from", base, check=False)
    assert failed.returncode == 1
    assert "0.10.0 was taken back, and 0.9.0 runs again" in failed.stderr
    assert federation("version").stdout == "federation 0.9.0\n"
    assert json.loads(federation("status", "--json").stdout)["node"]["version"] == "0.9.0"
    assert "runs 0.8.0 now" in federation("update", "--rollback").stdout
    assert json.loads(federation("status", "--json").stdout)["node"]["version"] == "0.8.0"


def test_a_user_who_lingers_is_there_after_a_boot(machine: Machine) -> None:
    machine.run("loginctl", "enable-linger", ANN)
    machine.reboot()
    eventually(lambda: machine.run("systemctl", "is-active", f"user@{UID}", check=False).stdout == "active\n")
    eventually(lambda: machine.run_as(ANN, UID, "federation", "service", "status", "--user", check=False).returncode == 0)
    status = json.loads(machine.run_as(ANN, UID, "federation", "service", "status", "--user", "--json").stdout)
    assert (status["running"], status["at_boot"]) == (True, True)


def test_nothing_is_left(machine: Machine) -> None:
    home = f"/home/{ANN}"
    machine.run_as(ANN, UID, "federation", "uninstall", "--state", "--yes")
    left = machine.run("find", home, "-name", "*federation*").stdout
    assert left == ""
    machine.run("federation", "uninstall", "--state", "--yes")
    places = ("/etc/systemd", "/usr/local/lib/federation", "/usr/local/bin/federation", "/var/lib/federation")
    assert machine.run("sh", "-c", f"find {' '.join(places)} -name '*federation*' 2>/dev/null; :").stdout == ""
    assert machine.run("id", "federation", check=False).returncode != 0
