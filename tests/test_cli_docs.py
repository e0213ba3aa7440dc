"""docs/cli.md is what scripts/cli_docs.py makes of the grammar."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MADE = "import sys; sys.path.insert(0, 'scripts'); import cli_docs; sys.stdout.write(cli_docs.page())"


def made() -> str:
    return subprocess.run([sys.executable, "-c", MADE], cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse lays its help out differently in each version")
def test_the_page_is_current() -> None:
    assert (ROOT / "docs/cli.md").read_text() == made(), "run: .venv/bin/python scripts/cli_docs.py"


def test_every_command_has_a_section_and_an_example_or_a_description() -> None:
    sections = made().split("\n## ")[1:]
    names = {section.splitlines()[0] for section in sections}
    assert {"federation join", "federation token new", "federation drain", "federation doctor"} <= names
    for section in sections:
        assert "usage: federation" in section
