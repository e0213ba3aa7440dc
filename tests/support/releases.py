"""Archives for tests, as scripts/package makes them: this package at a version, run by the Python that runs the tests."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

from federation.program.archive import Name, pack

ROOT = Path(__file__).parents[2]
PROGRAM = """\
#!/bin/sh
exec env PYTHONPATH="$(dirname "$(readlink -f "$0")")/app" {python} -c \
'import sys; sys.argv[0] = "federation"; from federation.cli.main import main; main()' "$@"
"""
BROKEN = """\
#!/bin/sh
[ "$1" = version ] && echo federation {version} && exit
echo "federation: this version is broken" >&2
exit 1
"""


def release(folder: Path, version: str, *, broken: bool = False) -> Path:
    """Write the archive of a version into `folder`, and its line into SHA256SUMS there. `broken`: it does not join."""
    name = Name.here(version)
    top = folder / f".{name.folder}"
    top.mkdir(parents=True)
    text = BROKEN.format(version=version) if broken else PROGRAM.format(python=sys.executable)
    (top / "federation").write_text(text)
    (top / "federation").chmod(0o755)
    (top / "app").mkdir()
    if not broken:
        shutil.copytree(ROOT / "federation", top / "app/federation", ignore=shutil.ignore_patterns("__pycache__"))
        first = top / "app/federation/__init__.py"
        first.write_text(first.read_text().replace('__version__ = "', f'__version__ = "{version}"  # was "'))
        (top / "app/latest").symlink_to("federation")
    archive = folder / str(name)
    with archive.open("wb") as file:
        pack(top, name, file)
    shutil.rmtree(top)
    line = f"{hashlib.sha256(archive.read_bytes()).hexdigest()}  {archive.name}\n"
    with (folder / "SHA256SUMS").open("a") as sums:
        sums.write(line)
    return archive
