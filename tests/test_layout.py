"""Tests stand where what they test stands, and share what they need through tests/support and conftest.py."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
SOURCES = sorted(TESTS.rglob("*.py"))
# The suites below look at the whole from outside; scripts/, examples/ and docs/ have no room of their own.
OUTSIDE = ("integration", "browser", "faults")
NOT_OF_A_MODULE = {"advisories", "balancing", "bench", "cli_docs", "corpus", "docs_names", "examples_files", "layout"}
NOT_OF_A_MODULE |= {
    "affinity",
    "docs_commands",
    "docs_links",
    "docs_site",
    "install_script",
    "machine_code",
    "packaging_formats",
    "monitoring_examples",
    "secret_parts",
    "doubles",
    "duplexes",
}


def imported(path: Path) -> set[str]:
    """Modules of tests/ that this file imports, with the names that it takes from them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("tests.")}


def is_of_a_test(name: str) -> bool:
    return any(part.startswith("test_") for part in name.split("."))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(TESTS)))
def test_nothing_imports_a_test(path: Path) -> None:
    assert not [name for name in imported(path) if is_of_a_test(name)]


def test_an_import_of_a_test_is_found(tmp_path: Path) -> None:
    for line in ("from tests.net.test_host import echo", "from tests.net import test_host", "import tests.net.test_host"):
        (tmp_path / "x.py").write_text(f"if True:\n    {line}\n")
        assert [name for name in imported(tmp_path / "x.py") if is_of_a_test(name)]
    (tmp_path / "x.py").write_text("from tests.support.hosts import echo\n")
    assert imported(tmp_path / "x.py") == {"tests.support.hosts.echo"}
    assert not is_of_a_test("tests.support.hosts.echo")


def test_each_file_of_tests_is_named_after_a_module_and_stands_in_its_room() -> None:
    """`forward/test_l4_walk.py` is of `forward/l4.py`: the module's name may have more behind it."""
    lost = []
    for path in SOURCES:
        where = path.relative_to(TESTS)
        name = path.stem.removeprefix("test_")
        if not path.name.startswith("test_") or where.parts[0] in OUTSIDE or name in NOT_OF_A_MODULE:
            continue
        modules = [module.stem for module in (ROOT / "federation" / where.parent).glob("*.py")]
        if not any(name == module or name.startswith(f"{module}_") for module in modules):
            lost.append(str(where))
    assert not lost


def test_the_first_file_of_a_package_imports_nothing() -> None:
    """Or `federation version` and `status` would pay for what they do not need."""
    firsts = [path for path in (ROOT / "federation").rglob("__init__.py") if path.parent.name != "federation"]
    assert firsts
    for first in firsts:
        assert not [node for node in ast.walk(ast.parse(first.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]


def test_no_folder_is_too_full_to_be_read_at_a_glance() -> None:
    for folder in [ROOT / "federation", *(path.parent for path in (ROOT / "federation").rglob("__init__.py"))]:
        assert len(list(folder.glob("*.py"))) <= 25, folder
