"""The table of docs/reliability.md from what scripts/faults --json wrote, in one run or in several:

python tests/faults/table.py FILE... >TABLE, or with --into docs/reliability.md in place of the table that is there
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "integration"))

from trial import Row, table

TABLE = re.compile(r"^\| fault +\|.*\n(?:\|.*\n)+", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--into", type=Path, metavar="FILE")
    options = parser.parse_args()
    text = table([Row(**row) for file in options.files for row in json.loads(file.read_text())]) + "\n"
    if options.into is None:
        sys.stdout.write(text)
        return
    page, count = TABLE.subn(lambda _: text, options.into.read_text())
    if count != 1:
        sys.exit(f"{options.into} has {count} such tables")
    options.into.write_text(page)


if __name__ == "__main__":
    main()
