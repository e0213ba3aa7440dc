"""Compiles the modules that carry each connection and request to machine code, with mypyc, which mypy brings along.

    PYTHONPATH=.venv/compiled .venv/bin/federation join ...

A request costs half the CPU then (docs/performance.md). The modules are those of this checkout; mypyc checks at run time the
types that mypy checks here. scripts/package compiles the folder that it makes. A checkout runs its source: no build has to
follow a change, and no test depends on a compiler. It takes a C compiler, Python's headers, and a minute.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
GROUP = "federation"  # the library with all of the code is GROUP__mypyc, beside the package
# And all modules with a class that inherits from one of these: no interpreted class may.
HOT = """
forward/attempts.py forward/counters.py forward/dispatcher.py forward/exchange.py forward/exit.py forward/kept.py
forward/l4.py forward/l7.py forward/reject.py forward/replay_buffer.py forward/request_body.py forward/retry_budget.py
forward/roster.py forward/route.py forward/sample.py forward/selection.py forward/warmth.py forward/watching.py
forward/http/answer.py forward/http/asks.py forward/http/conversation.py forward/http/dialects.py
forward/http/form_field.py forward/http/framing.py forward/http/head.py forward/http/homes.py forward/http/ids.py
forward/http/json_members.py forward/http/kept_bodies.py forward/http/lists.py forward/http/paths.py
forward/http/rewrite.py forward/http/usage.py
net/link/carrier.py net/link/channel.py net/link/delivery.py net/link/frames.py net/link/link.py net/link/liveness.py
net/link/mux.py net/link/seal.py net/nat/reachability.py net/nat/relay.py
reactor/duplex.py reactor/loop.py reactor/sockets.py
"""
_BEHIND = """

def _is_none(value: object) -> bool:
    return value is None


def _any(value: Any) -> Any:
    return value
"""
_BUILD = """\
import sys
from mypyc.build import mypycify
from setuptools import setup
setup(name={group!r}, packages=[], ext_modules=mypycify(sys.argv.pop(1).split(), opt_level="3", debug_level="0",
      multi_file=True, group_name={group!r}))
"""


def lacking() -> str | None:
    """Why nothing can be compiled here; None if it can."""
    if shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0]) is None:
        return "there is no C compiler"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python's headers are not installed (Debian: python3-dev)"
    return None


def compile_into(folder: Path) -> None:
    """Put the compiled modules of this checkout into `folder`/federation, and their library into `folder`. Raises
    CalledProcessError; what the compiler said is on standard error then."""
    with tempfile.TemporaryDirectory(prefix="federation-compile-") as work:
        source = Path(work)
        shutil.copytree(ROOT / "federation", source / "federation", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        settings = (ROOT / "pyproject.toml").read_text()
        lenient = "strict = true\nwarn_return_any = false\nwarn_unused_ignores = false\n"  # as `prepared` leaves it
        (source / "pyproject.toml").write_text(settings.replace("strict = true\n", lenient))
        modules = [f"federation/{name}" for name in HOT.split()]
        texts = {module: (source / module).read_text() for module in modules}
        names = {name for text in texts.values() for name in names_that_may_be_none(text)}
        for module, text in texts.items():
            (source / module).write_text(prepared(text, names))
        (source / "build.py").write_text(_BUILD.format(group=GROUP))
        command = [sys.executable, "build.py", " ".join(modules), "build_ext", "--inplace", f"-j{os.cpu_count()}"]
        done = subprocess.run(command, cwd=source, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            sys.stderr.write(done.stdout)
            raise subprocess.CalledProcessError(done.returncode, "mypyc")
        for path in [*source.glob("*.so"), *(source / "federation").rglob("*.so")]:
            to = folder / path.relative_to(source)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to)


def prepared(source: str, names: set[str]) -> str:
    """A module as mypyc is to have it, line for line, and a function behind its end.

    Annotations of class bodies that name what the type checker alone imports are quoted: in NamedTuples and data classes
    mypyc looks such names up at run time. Attributes and properties that may be None (`names`, of all modules) are Any, what
    they are set to and their tests for None go through calls: between two looks at one, a callback may set it, which mypy
    does not see; mypyc would take the result of the first look for a fact.
    """
    tree = ast.parse(source)
    checked = {name for node in tree.body if _is_type_checking(node) for name in _bound(node)}
    edits = _Edits(source)
    for node, owner in _owned(tree):
        note = _may_be_none(node, owner)
        match node:
            case _ if note is not None:
                edits.replace(note, "Any")
            case ast.AnnAssign(annotation=kind) if isinstance(owner, ast.ClassDef) and checked & _names(kind):
                edits.replace(kind, f'"{ast.unparse(kind)}"')
            case ast.Assign(targets=[ast.Attribute() as target], value=ast.Name(id=given)) if given in _optional(owner):
                edits.replace(target, f"{ast.unparse(target)}: Any")
            case ast.Compare(left=ast.Attribute() as left, ops=[op], comparators=[ast.Constant(value=None)]):
                if left.attr in names:
                    test = f"_is_none({ast.unparse(left)})"
                    edits.replace(node, f"(not {test})" if isinstance(op, ast.IsNot) else test)
        for target, value in _assigned(node):
            if isinstance(target, ast.Attribute) and target.attr in names:
                edits.wrap(value, "_any(", ")")
    head = "from __future__ import annotations"
    return edits.text().replace(head, f"{head}; from typing import Any", 1) + _BEHIND


class _Edits:
    def __init__(self, source: str) -> None:
        self._lines = source.encode().splitlines(keepends=True)
        self._edits: list[tuple[int, int, int, str]] = []  # line, columns from and to, and what is there instead

    def replace(self, part: ast.expr, text: str) -> None:
        assert part.end_lineno == part.lineno
        self._edits.append((part.lineno, part.col_offset, part.end_col_offset or 0, text))

    def wrap(self, part: ast.expr, before: str, behind: str) -> None:
        end = part.end_col_offset or 0
        self._edits += [(part.lineno, part.col_offset, part.col_offset, before), (part.end_lineno or 0, end, end, behind)]

    def text(self) -> str:
        lines = list(self._lines)
        for number, begin, end, text in sorted(self._edits, key=lambda edit: edit[:3], reverse=True):
            line = lines[number - 1]
            lines[number - 1] = line[:begin] + text.encode() + line[end:]
        return b"".join(lines).decode()


def _assigned(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    match node:
        case ast.AnnAssign(target=target, value=ast.expr() as value):
            yield target, value
        case ast.Assign(targets=targets, value=value):
            for target in targets:
                if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                    yield from zip(target.elts, value.elts, strict=True)
                else:
                    yield target, value


def names_that_may_be_none(source: str) -> set[str]:
    """The attributes and properties of a module that `prepared` makes Any."""
    found = set()
    for node, owner in _owned(ast.parse(source)):
        match node:
            case ast.AnnAssign(target=ast.Attribute(attr=name) | ast.Name(id=name)) | ast.FunctionDef(name=name):
                if _may_be_none(node, owner) is not None:
                    found.add(name)
            case ast.Assign(targets=[ast.Attribute(attr=name)], value=ast.Name(id=given)) if given in _optional(owner):
                found.add(name)
    return found


def _names(part: ast.expr) -> set[str]:
    return {node.id for node in ast.walk(part) if isinstance(node, ast.Name)}


def _optional(owner: ast.AST) -> set[str]:
    """The parameters of a constructor that may be None."""
    if not isinstance(owner, ast.FunctionDef) or owner.name != "__init__":
        return set()
    parameters = [*owner.args.args, *owner.args.kwonlyargs]
    return {parameter.arg for parameter in parameters if _says_none(parameter.annotation)}


def _owned(tree: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """All nodes, each with the one whose body it is in."""
    for owner in ast.walk(tree):
        for node in ast.iter_child_nodes(owner):
            yield node, owner


def _may_be_none(node: ast.AST, owner: ast.AST) -> ast.expr | None:
    """The annotation of an attribute or a property, if it says so."""
    match node:
        case ast.AnnAssign(target=ast.Attribute(), annotation=note):
            pass
        case ast.AnnAssign(target=ast.Name(), annotation=note) if isinstance(owner, ast.ClassDef) and not _is_tuple(owner):
            pass
        case ast.FunctionDef(returns=ast.expr() as note) if _is_property(node):
            pass
        case _:
            return None
    return note if _says_none(note) else None


def _says_none(note: ast.expr | None) -> bool:
    parts = ast.walk(note) if isinstance(note, ast.BinOp) else ()
    return any(isinstance(part, ast.Constant) and part.value is None for part in parts)


def _is_tuple(owner: ast.ClassDef) -> bool:
    return any(isinstance(base, ast.Name) and base.id == "NamedTuple" for base in owner.bases)


def _is_property(node: ast.FunctionDef) -> bool:
    return any(isinstance(mark, ast.Name) and mark.id == "property" for mark in node.decorator_list)


def _is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _bound(block: ast.stmt) -> set[str]:
    imported = {
        (name.asname or name.name).partition(".")[0]
        for node in ast.walk(block)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in node.names
    }
    return imported | {node.id for node in ast.walk(block) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def main() -> None:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="scripts/compile", description=__doc__, formatter_class=plain)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / ".venv/compiled", metavar="DIR")
    folder: Path = parser.parse_args().folder
    if why := lacking():
        sys.exit(f"compile: {why}")
    print("compile: about a minute", file=sys.stderr)
    fresh = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(ROOT / "federation", fresh / "federation", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    try:
        compile_into(fresh)
    except subprocess.CalledProcessError as error:
        shutil.rmtree(fresh)
        sys.exit(f"compile: {error}")
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
    print(f"compile: {folder}", file=sys.stderr)


if __name__ == "__main__":
    main()
