"""Holds our pins to scripts/advisories.txt, and reads what pip-audit says.

.venv/bin/python scripts/advisories.py             every lock, and the floors in pyproject.toml; asks nobody
pip-audit ... -f json | ... --report NAME          one report: 1 if something is known to be weak, 3 if nobody knew
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
ADVISORIES = ROOT / "scripts/advisories.txt"
LOCKS = (ROOT / "requirements.lock", *sorted((ROOT / "scripts").glob("*.lock")))
_PIN = re.compile(r"^([\w.-]+)==([^\s;\\]+)", re.M)

Floors = dict[str, tuple[Version, str]]  # package -> its first version without what is known, and the advisories
WEAK, UNKNOWN = 1, 3


def floors(text: str) -> Floors:
    """Raises ValueError for a line that is not `name>=version  # why`."""
    found: Floors = {}
    for line in text.splitlines():
        constraint, _, why = line.partition("#")
        if not constraint.strip():
            continue
        requirement = Requirement(constraint.strip())
        (specifier,) = requirement.specifier
        if specifier.operator != ">=" or not why.strip():
            raise ValueError(f"not `name>=version  # why`: {line}")
        found[canonicalize_name(requirement.name)] = (Version(specifier.version), why.strip())
    return found


def weak_pins(lock: str, known: Floors) -> list[str]:
    """A line for each pin of a lock's text that is older than its floor. Raises ValueError if there is no pin at all."""
    pins = [(canonicalize_name(name), Version(version)) for name, version in _PIN.findall(lock)]
    if not pins:
        raise ValueError("no pin in it")
    return [
        f"{name} {version} is below {known[name][0]}: {known[name][1]}"
        for name, version in pins
        if name in known and version < known[name][0]
    ]


def weak_floors(dependencies: list[str], known: Floors) -> list[str]:
    """A line for each dependency that would take a version older than its floor: what a user of the wheel may get."""
    found = []
    for requirement in map(Requirement, dependencies):
        least = [Version(s.version) for s in requirement.specifier if s.operator in (">=", "==", "~=")]
        floor, why = known.get(canonicalize_name(requirement.name), (None, ""))
        if floor is not None and (not least or max(least) < floor):
            found.append(f"{requirement} takes versions below {floor}: {why}")
    return found


def judge(report: dict[str, Any]) -> tuple[int, list[str]]:
    """pip-audit's exit code is 0 too when it looked nothing up; so its report is read here."""
    lines, skipped = [], []
    for dependency in report["dependencies"]:
        if "skip_reason" in dependency:
            skipped.append(dependency["name"])
        for found in dependency.get("vulns", []):
            fixed = ", ".join(found["fix_versions"]) or "no version"
            lines.append(f"{dependency['name']} {dependency['version']}: {found['id']}, fixed in {fixed}")
    if lines:
        return WEAK, lines
    if skipped or not report["dependencies"]:
        return UNKNOWN, [f"nobody could say anything about {', '.join(skipped) or 'it'}"]
    return 0, [f"nothing is known of its {len(report['dependencies'])} packages"]


def main(arguments: list[str]) -> int:
    if arguments:
        _, name = arguments
        try:
            code, lines = judge(json.load(sys.stdin))
        except ValueError:
            code, lines = UNKNOWN, ["pip-audit wrote no report"]
        print("\n".join(f"{name}: {line}" for line in lines))
        return code
    known = floors(ADVISORIES.read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [f"pyproject.toml: {line}" for line in weak_floors(project["dependencies"], known)]
    for lock in LOCKS:
        lines += [f"{lock.relative_to(ROOT)}: {line}" for line in weak_pins(lock.read_text(), known)]
    print("\n".join(lines) or f"{len(LOCKS)} locks and pyproject.toml: nothing with an advisory for {len(known)} packages")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
