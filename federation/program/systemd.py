"""The node as a service of systemd: a unit of the user's own manager, or of the machine's.

The unit holds no secret: the token is in the state directory. `systemctl stop` drains (SIGTERM), `reload` reads the settings
again (SIGHUP), and a node that hangs is started anew (the watchdog, see daemon.py).
"""

from __future__ import annotations

import configparser
import re
from pathlib import Path
from typing import TYPE_CHECKING

from federation.errors import NotDone, UsageError
from federation.program.account import ACCOUNT
from federation.program.service import NAME, START_S, SYSTEM_STATE_DIR, Plan, State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.program.commands import Commands, Done

UNIT = f"{NAME}.service"
SYSTEM_UNITS = Path("/etc/systemd/system")
RUNS = Path("/run/systemd/system")  # sd_booted(3)
LINGER = Path("/var/lib/systemd/linger")
WATCHDOG_S = 90  # several times the longest turn of a node on a machine under full load
SAID_LINES = 12
_SECTION = "X-Federation"  # systemd leaves such sections to others

# For both managers. A user's manager may not set up namespaces, so it gets what the kernel grants to all.
_HARDENED = """\
NoNewPrivileges=yes
LockPersonality=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0077
"""
# The machine's. It needs the network, its state directory, and to ask the GPU driver (so no PrivateDevices).
_CONFINED = """\
CapabilityBoundingSet={capabilities}
AmbientCapabilities={capabilities}
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RemoveIPC=yes
KeyringMode=private
"""
_UNIT = """\
# Written by `federation service install`, which writes it anew; own changes belong in `systemctl {edit}edit {name}`.
[Unit]
Description=Peer-to-peer federation of inference boxes
{after}StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
{account}ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
KillSignal=SIGTERM
# --drain-timeout, and some; the node asks for more if the settings file has a longer one.
TimeoutStopSec={stop_s}
TimeoutStartSec={start_s}
WatchdogSec={watchdog_s}
# After `federation leave` it stays off: that is exit code 0.
Restart=on-failure
RestartSec=2
LimitNOFILE=65536

{hardened}
[Install]
WantedBy={target}

[{section}]
StateDir={state_dir}
"""


class Systemd:
    kind = "systemd"

    def __init__(self, commands: Commands, home: Path, *, is_system: bool, user: str) -> None:
        """`home`: the user's. `user`: the user's name, for lingering."""
        self._commands = commands
        self._user = user
        self.is_system = is_system
        self.file = (SYSTEM_UNITS if is_system else _user_units(commands.environ, home)) / UNIT

    def problem(self) -> str | None:
        if not RUNS.is_dir():
            return (
                "systemd does not run on this machine; have its own supervisor run `federation join`, which ends at "
                "SIGTERM (--print shows the unit)"
            )
        if not self.is_system:
            done = self._ctl("show-environment")
            if done.code:
                return (
                    f"your own systemd does not answer ({done.said}); log in as this user (not by su or sudo), or install "
                    "for the machine: sudo federation service install --system"
                )
        return None

    def render(self, plan: Plan) -> str:
        account = ""
        if self.is_system:
            account = f"User={ACCOUNT}\n"
            if str(plan.state_dir) == SYSTEM_STATE_DIR:
                account += f"StateDirectory={NAME}\nStateDirectoryMode=0700\n"
            else:
                account += f"ReadWritePaths={_escaped(str(plan.state_dir), specifiers_only=True)}\n"
        confined = _CONFINED.format(capabilities="CAP_NET_BIND_SERVICE" if plan.needs_low_port else "")
        return _UNIT.format(
            name=NAME,
            edit="" if self.is_system else "--user ",
            after="Wants=network-online.target\nAfter=network-online.target\n" if self.is_system else "",
            account=account,
            command=" ".join(map(_escaped, plan.words)),
            stop_s=plan.stop_s,
            start_s=START_S,
            watchdog_s=WATCHDOG_S,
            hardened=_HARDENED + (confined if self.is_system else ""),
            target="multi-user.target" if self.is_system else "default.target",
            section=_SECTION,
            state_dir=plan.state_dir,
        )

    def start(self) -> None:
        for words in (("daemon-reload",), ("enable", UNIT)):
            done = self._ctl(*words)
            if done.code:
                raise NotDone(f"systemctl {words[0]}: {done.said}")
        self._ctl("reset-failed", UNIT)
        state = self.state()
        # A restart waits for the stop, which waits for the clients that are served, and for the start.
        wait_s = START_S + self._property_s("TimeoutStopUSec") if state.running else START_S
        done = self._ctl("restart", UNIT, timeout_s=wait_s + 30)
        if done.code:
            why = self._last_words() or self.state().says
            raise NotDone(f"the service does not start ({why}); `federation service logs` has more")

    def stop(self) -> None:
        done = self._ctl("disable", "--now", UNIT, timeout_s=self._property_s("TimeoutStopUSec") + 30)
        if done.code and self.file.exists():
            raise NotDone(f"systemctl disable --now: {done.said}")

    def forget(self) -> None:
        self._ctl("daemon-reload")
        self._ctl("reset-failed", UNIT)

    def state(self) -> State:
        names = ("ActiveState", "SubState", "MainPID", "ActiveEnterTimestamp", "UnitFileState", "Result")
        done = self._ctl("show", UNIT, *(f"--property={name}" for name in names))
        found = dict(line.partition("=")[::2] for line in done.out.splitlines())
        active, sub = found.get("ActiveState", "unknown"), found.get("SubState", "")
        pid = int(found["MainPID"]) if found.get("MainPID", "").isdigit() else 0
        says = f"{active} ({sub})" if sub else active
        if found.get("Result", "success") != "success":
            says += f", {found['Result']}"
        enabled = found.get("UnitFileState", "").startswith("enabled")
        lingers = self.is_system or (LINGER / self._user).exists()
        advice = (
            ""
            if lingers
            else ("it ends when you log out and starts when you log in, not at the boot; `loginctl enable-linger` keeps it")
        )
        return State(
            active in ("active", "reloading"), says, pid or None, found.get("ActiveEnterTimestamp", ""), enabled,
            at_boot=enabled and lingers, advice=advice,
        )  # fmt: skip

    def state_dir(self) -> Path | None:
        parser = configparser.RawConfigParser(strict=False, allow_no_value=True)
        try:
            parser.read_string(self.file.read_text(encoding="utf-8"))
            return Path(parser[_SECTION]["StateDir"])
        except (OSError, UnicodeDecodeError, configparser.Error, KeyError):
            return None

    def logs(self, last: int, follow: bool) -> list[str]:
        unit = f"--unit={UNIT}" if self.is_system else f"--user-unit={UNIT}"
        return ["journalctl", unit, "--no-pager", f"--lines={last}", *(["--follow"] if follow else [])]

    def _ctl(self, *words: str, timeout_s: float = 30.0) -> Done:
        scope = () if self.is_system else ("--user",)
        return self._commands.run("systemctl", *scope, "--no-pager", *words, timeout_s=timeout_s)

    def _property_s(self, name: str) -> float:
        """A time of the unit in seconds, as systemctl shows it: "1min 10s"."""
        done = self._ctl("show", UNIT, f"--property={name}", "--value")
        units = {"h": 3600.0, "min": 60.0, "s": 1.0}
        return sum(float(number) * units[unit] for number, unit in re.findall(r"([0-9.]+)(h|min|s)\b", done.out)) or 90.0

    def _last_words(self) -> str:
        """The last complaint of the program, as the journal has it."""
        command = [*self.logs(SAID_LINES, follow=False), "--output=cat"]
        said = [line for line in self._commands.run(*command).out.splitlines() if line.startswith(f"{NAME}: ")]
        return said[-1].partition(": ")[2] if said else ""


def _user_units(environ: Mapping[str, str], home: Path) -> Path:
    config = Path(environ.get("XDG_CONFIG_HOME", ""))
    return (config if config.is_absolute() else home / ".config") / "systemd/user"


def _escaped(word: str, *, specifiers_only: bool = False) -> str:
    """A word of a unit's command line. Raises UsageError for a word that a unit cannot hold."""
    if not word.isprintable():
        raise UsageError(f"{word!r}: a service's options are one line of printable characters")
    word = word.replace("%", "%%")
    if specifiers_only:
        return word
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return word if re.fullmatch(r"[^\s\"';]+", word) else f'"{word}"'
