"""`federation use` on real daemons: what it writes lets a client's request arrive, over TLS and with a key, and is private.

The tools themselves are tried by scripts/clients, which installs them.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from harness import SLACK, federation, wait_until

from tests.support.certificates import Pair, self_signed

if TYPE_CHECKING:
    from pathlib import Path

    from fleet import Fleet
    from harness import Daemon

TIMEOUT = 20 * SLACK


@pytest.fixture(scope="module")
def pair(fleet: Fleet) -> Pair:
    return self_signed(fleet.directory, "served")


@pytest.fixture(scope="module")
def entry(fleet: Fleet, pair: Pair) -> Daemon:
    """A node without a backend, whose port speaks TLS and asks for keys; the models are another node's."""
    server = fleet.model_server("box", "gemma", "all-minilm")
    box = fleet.daemon("box", "--backend", f"http://127.0.0.1:{server.address[1]}", "--listen", "127.0.0.1:0", services=())
    options = ("--listen", "https://127.0.0.1:0", "--tls-cert", str(pair.cert), "--tls-key", str(pair.key), "--require-key")
    entry = fleet.daemon("entry", *options, "--no-detect", services=(), peer=box)
    wait_until(lambda: len(entry.api("models")["models"]) == 2, within=30, what="the entry knows the models")
    return entry


def use(node: Daemon, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return federation("use", *arguments, "--state-dir", str(node.state_dir), home=node.directory, check=check)


def curled(node: Daemon, pair: Pair, *arguments: str) -> Any:
    command = ["curl", "--silent", "--show-error", "--max-time", str(TIMEOUT), "--cacert", str(pair.cert), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=2 * TIMEOUT)
    return json.loads(done.stdout)


def written(node: Daemon, client: str, *arguments: str) -> Path:
    said = json.loads(use(node, client, "--write", "--json", *arguments).stdout)
    path = node.directory / said["file"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert said["url"] == f"https://127.0.0.1:{node.entry()[1]}"
    return path


def test_without_a_key_nothing_is_written(entry: Daemon) -> None:
    done = use(entry, "curl", "--write", check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "YOUR_KEY" in use(entry, "curl").stdout


def test_what_curl_is_told_works(entry: Daemon, pair: Pair) -> None:
    path = written(entry, "curl", "--new-key", "for-curl")
    said = curled(entry, pair, "--config", str(path))
    assert (said["node"], said["model"]) == ("box", "gemma")
    use(entry, "curl", "--undo")
    assert not path.exists()
    federation("key", "revoke", "for-curl", "--state-dir", str(entry.state_dir), home=entry.directory)
    assert "error" in curled(entry, pair, "--config", f"{path}.after-federation")


def test_what_a_shell_is_told_works(entry: Daemon, pair: Pair) -> None:
    path = written(entry, "openai", "--new-key", "for-openai")
    script = f'set -a; . "{path}"; set +a; exec curl -sS --cacert "{pair.cert}" "$OPENAI_BASE_URL/models"'
    script += ' -H "Authorization: Bearer $OPENAI_API_KEY"'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, timeout=2 * TIMEOUT)
    assert [row["id"] for row in json.loads(done.stdout)["data"]] == ["all-minilm", "gemma"]


def test_a_key_is_in_no_log_and_no_command_line(entry: Daemon) -> None:
    path = written(entry, "codex", "--new-key", "for-codex")
    key = next(line for line in path.read_text().splitlines() if "Bearer" in line).split()[-1].strip('"')
    assert key.startswith("fedk_")
    assert key not in entry.log()
    again = json.loads(use(entry, "codex", "--write", "--json").stdout)
    assert (again["changed"], again["backup"]) == (False, None)
    assert sorted(os.listdir(path.parent)) == sorted([path.name, f"{path.name}.before-federation"])


def test_the_dashboard_says_the_same(entry: Daemon) -> None:
    said = entry.api("use?host=127.0.0.1")
    assert said["url"] == f"https://127.0.0.1:{entry.entry()[1]}"
    assert said["asks_key"] is True
    codex = next(client for client in said["clients"] if client["name"] == "codex")
    assert codex["texts"][0]["text"].strip() == use(entry, "codex").stdout.strip()
