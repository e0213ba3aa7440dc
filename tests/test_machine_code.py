"""scripts/machine_code.py: what it leaves of a module, and that the modules which stay interpreted can live with it."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("machine_code", ROOT / "scripts/machine_code.py")
assert _spec is not None
assert _spec.loader is not None
machine_code = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(machine_code)

HOT = [f"federation/{name}" for name in machine_code.HOT.split()]
SOURCE = '''\
"""A head."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Look(NamedTuple):
    nodes: Sequence[str]
    least: int | None = None
    most: int = 3


class Timed:
    left: Sequence[str]

    def __init__(self, timer: str | None) -> None:
        self.timer: str | None = timer
        self.known: Sequence[str] = ()

    @property
    def name(self) -> str | None:
        return self.timer

    def found(self) -> str | None:
        if self.timer is not None and self.known is None:
            return "x"
        name: str | None = self.timer
        return None if self.timer is None else name
'''
AS_MYPYC_HAS_IT = SOURCE.replace("import annotations", "import annotations; from typing import Any")
for before, after in (
    ("nodes: Sequence[str]", 'nodes: "Sequence[str]"'),
    ("left: Sequence[str]", 'left: "Sequence[str]"'),
    ("self.timer: str | None = timer", "self.timer: Any = _any(timer)"),
    ("name(self) -> str | None", "name(self) -> Any"),
    ("self.timer is not None", "(not _is_none(self.timer))"),
    ("self.timer is None", "_is_none(self.timer)"),
):
    assert before in SOURCE
    AS_MYPYC_HAS_IT = AS_MYPYC_HAS_IT.replace(before, after)


def test_a_module_as_mypyc_has_it_line_for_line() -> None:
    assert machine_code.names_that_may_be_none(SOURCE) == {"timer", "name"}
    assert machine_code.prepared(SOURCE, {"timer", "name"}) == AS_MYPYC_HAS_IT + machine_code._BEHIND


@pytest.mark.parametrize("module", HOT)
def test_each_module_is_there_and_can_be_prepared(module: str) -> None:
    source = (ROOT / module).read_text()
    prepared = machine_code.prepared(source, machine_code.names_that_may_be_none(source))
    ast.parse(prepared)
    assert len(prepared.splitlines()) == len(source.splitlines()) + machine_code._BEHIND.count("\n")


def classes(path: Path) -> list[ast.ClassDef]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]


def test_no_interpreted_class_inherits_from_a_compiled_one() -> None:
    """Its first instance would raise a TypeError. A Protocol is neither."""
    compiled = {
        f"{module[:-3].replace('/', '.')}.{cls.name}"
        for module in HOT
        for cls in classes(ROOT / module)
        if not any(ast.unparse(base).startswith(("Protocol", "NamedTuple", "Enum", "str")) for base in cls.bases)
    }
    found = []
    for path in (ROOT / "federation").rglob("*.py"):
        if path.relative_to(ROOT).as_posix() in HOT:
            continue
        tree = ast.parse(path.read_text())
        imported = {
            name.asname or name.name: f"{node.module}.{name.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for name in node.names
        }
        for cls in classes(path):
            found += [(path.name, cls.name) for base in cls.bases if imported.get(ast.unparse(base)) in compiled]
    assert found == []


def test_no_compiled_class_turns_an_attribute_of_its_base_into_a_property() -> None:
    """The base's methods would go on with the attribute."""
    by_name = {cls.name: cls for module in HOT for cls in classes(ROOT / module)}

    def attributes(cls: ast.ClassDef) -> set[str]:
        own = {n.target.id for n in cls.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
        set_ = {
            n.attr
            for n in ast.walk(cls)
            if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store) and ast.unparse(n.value) == "self"
        }
        bases = [by_name[ast.unparse(base)] for base in cls.bases if ast.unparse(base) in by_name]
        return own.union(set_, *(attributes(base) for base in bases))

    found = []
    for cls in by_name.values():
        properties = {
            n.name
            for n in cls.body
            if isinstance(n, ast.FunctionDef) and any("property" in ast.unparse(d) for d in n.decorator_list)
        }
        for base in (by_name.get(ast.unparse(base)) for base in cls.bases):
            if base is not None and not any(ast.unparse(b).startswith("Protocol") for b in base.bases):
                found += [(cls.name, name) for name in properties & attributes(base)]
    assert found == []
