"""scripts/advisories.py: a pin or a floor with a known weakness is found; a report that says nothing is no good news."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("advisories", ROOT / "scripts/advisories.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


advisories = load()
KNOWN = advisories.floors("# a comment\n\nstarlette>=1.3.1  # CVE-1, CVE-2\nPy_NaCl>=1.6.2 # CVE-3\n")


def test_our_locks_and_floors_have_nothing_that_is_known() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts/advisories.py"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_each_advisory_is_about_something_that_we_install() -> None:
    """One for a name that no lock has (a typing mistake, say) would hold nothing."""
    pinned = {
        advisories.canonicalize_name(name)
        for lock in advisories.LOCKS
        for name, _ in advisories._PIN.findall(lock.read_text())
    }
    assert advisories.floors(advisories.ADVISORIES.read_text()).keys() <= pinned


@pytest.mark.parametrize(
    ("lock", "weak"),
    [
        ("starlette==1.3.1 \\\n    --hash=sha256:00\n", []),
        ("starlette==1.10.0\n", []),  # a number, not a text
        ("starlette==1.3.0 \\\n    --hash=sha256:00\n", ["starlette 1.3.0 is below 1.3.1: CVE-1, CVE-2"]),
        ("other==1\npy-nacl==1.6.1 ; python_full_version < '3.11'\n", ["py-nacl 1.6.1 is below 1.6.2: CVE-3"]),
        ("starlette==1.7.0 ; x\nstarlette==1.0.0 ; y\n", ["starlette 1.0.0 is below 1.3.1: CVE-1, CVE-2"]),
    ],
)
def test_a_pin_below_its_floor(lock: str, weak: list[str]) -> None:
    assert advisories.weak_pins(lock, KNOWN) == weak


def test_a_lock_without_pins_is_no_lock() -> None:
    with pytest.raises(ValueError, match="no pin"):
        advisories.weak_pins("", KNOWN)


@pytest.mark.parametrize(
    ("dependency", "is_weak"),
    [
        ("starlette>=1.3.1", False),
        ("starlette>=1.4,<2", False),
        ("starlette==1.7", False),
        ("starlette>=0.45", True),
        ("starlette", True),
        ("starlette<2", True),
        ("other", False),
    ],
)
def test_a_dependency_that_would_take_a_weak_version(dependency: str, is_weak: bool) -> None:
    assert bool(advisories.weak_floors([dependency], KNOWN)) is is_weak


@pytest.mark.parametrize("line", ["starlette>=1.3.1", "starlette==1.3.1  # CVE-1", "starlette<2  # CVE-1"])
def test_an_advisory_needs_a_floor_and_a_reason(line: str) -> None:
    with pytest.raises(ValueError, match="why"):
        advisories.floors(line)


def package(name: str, *found: tuple[str, list[str]]) -> dict[str, Any]:
    return {"name": name, "version": "1", "vulns": [{"id": id_, "fix_versions": fixed} for id_, fixed in found]}


SKIPPED = {"name": "uv", "skip_reason": "Dependency not found on PyPI and could not be audited: uv (0.13.9)"}


@pytest.mark.parametrize(
    ("dependencies", "code", "said"),
    [
        ([package("a"), package("b")], 0, ["nothing is known of its 2 packages"]),
        ([package("a", ("GHSA-1", ["2", "3"])), SKIPPED], 1, ["a 1: GHSA-1, fixed in 2, 3"]),
        ([package("a", ("GHSA-1", []))], 1, ["a 1: GHSA-1, fixed in no version"]),
        ([package("a"), SKIPPED], 3, ["nobody could say anything about uv"]),  # pip-audit: "No known vulnerabilities found"
        ([], 3, ["nobody could say anything about it"]),
    ],
)
def test_what_pip_audit_reports(dependencies: list[Any], code: int, said: list[str]) -> None:
    assert advisories.judge({"dependencies": dependencies, "fixes": []}) == (code, said)


@pytest.mark.parametrize(
    ("answers", "code", "asked"),
    [
        ('echo \'{"dependencies": [{"name": "a", "version": "1", "vulns": []}]}\'', 0, len(advisories.LOCKS)),
        ('echo \'{"dependencies": [{"name": "a", "skip_reason": "not found"}]}\'', 3, 1),
        ("echo no route >&2; exit 1", 3, 1),
        (
            'case "$*" in *dev.lock*) vulns=\'{"id": "GHSA-1", "fix_versions": ["2"]}\' ;; esac; '
            'echo \'{"dependencies": [{"name": "a", "version": "1", "vulns": [\'"${vulns:-}"\']}]}\'; [ -z "${vulns:-}" ]',
            1,
            len(advisories.LOCKS),
        ),
    ],
    ids=["nothing", "nobody knows", "no network", "found"],
)
def test_the_script_asks_for_each_lock_and_stops_where_nobody_answers(
    tmp_path: Path, answers: str, code: int, asked: int
) -> None:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    programs = {
        "scripts/setup": "exit 0",
        ".venv/bin/python": f'exec "{sys.executable}" "$@"',
        ".venv/audit/bin/pip-audit": f'echo "$*" >>"{tmp_path}/asked"; {answers}',
    }
    for name, does in programs.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{does}\n")
        path.chmod(0o755)
    shutil.copy(ROOT / "scripts/audit.lock", tmp_path / ".venv/audit/lock")
    done = subprocess.run([tmp_path / "scripts/audit"], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    questions = (tmp_path / "asked").read_text().splitlines()
    assert len(questions) == asked
    assert all("--require-hashes" in question for question in questions)
    assert ("scripts/dev.lock: a 1: GHSA-1, fixed in 2" in done.stdout) is (code == 1)
    assert ("nobody could be asked" in done.stderr) is (code == 3)
