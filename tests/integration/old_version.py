"""Daemons of an older version of this project, out of git, with the libraries of this environment."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from harness import END_S, clean_environment

if TYPE_CHECKING:
    from fleet import Fleet
    from harness import Daemon

COMMIT = "f919b4df7aa3910d05f425ff152a147b26886872"
PREVIOUS = "d5edd248f2e5ac458bd0798efb3e7f7ed86f42b5"  # the one before this one
HERE = Path(__file__).parent


@cache
def why_not(commit: str = COMMIT) -> str:
    """Why it cannot be had here; empty if it can."""
    try:
        done = subprocess.run(["git", "cat-file", "-e", f"{commit}^{{commit}}"], cwd=HERE, capture_output=True, check=False)
    except OSError:
        return "git is not installed, and the older version comes out of its history"
    return f"the history here lacks {commit[:7]}, the older version: is it a shallow clone?" if done.returncode else ""


class OldVersion:
    """Its source in a directory of the fleet's; `environment` makes a Python of this environment run it."""

    def __init__(self, fleet: Fleet, commit: str = COMMIT) -> None:
        self._fleet = fleet
        self.source = fleet.directory / f"federation-{commit[:7]}"
        self.source.mkdir()
        archive = subprocess.run(["git", "archive", commit, "federation"], cwd=_top(), stdout=subprocess.PIPE, check=True)
        subprocess.run(["tar", "-x", "-C", str(self.source)], input=archive.stdout, check=True)
        self.environment = {"PYTHONPATH": str(self.source)}
        where = self._python("-c", "import federation; print(federation.__file__)")
        assert where.startswith(str(self.source)), where

    def new_token(self, network: str) -> Path:
        """Which both versions understand, whatever the newer one makes."""
        path = self._fleet.directory / "old-token"
        path.write_text(self._python("-m", "federation", "token", "new", "--name", network))
        return path

    def daemon(self, name: str, *options: str, **settings) -> Daemon:
        """As `Fleet.daemon`."""
        return self._fleet.daemon(name, *options, environment=self.environment, **settings)

    def _python(self, *arguments: str) -> str:
        environment = {**clean_environment(self._fleet.directory), **self.environment}
        return subprocess.run(
            [sys.executable, *arguments], env=environment, cwd=self._fleet.directory, text=True, check=True,
            stdout=subprocess.PIPE, timeout=END_S,
        ).stdout  # fmt: skip


def command(node: Daemon, *arguments: str) -> str:
    """A command of the command line, in the version of that node, to its state directory."""
    return subprocess.run(
        [sys.executable, "-m", "federation", *arguments, "--state-dir", str(node.state_dir)],
        env=node.environment, cwd=node.directory, text=True, check=True, stdout=subprocess.PIPE, timeout=END_S,
    ).stdout  # fmt: skip


def _top() -> str:
    done = subprocess.run(["git", "rev-parse", "--show-toplevel"], cwd=HERE, text=True, stdout=subprocess.PIPE, check=True)
    return done.stdout.strip()
