from __future__ import annotations

from pathlib import Path

import pytest

from federation.program.service import Plan, write


def test_the_command_line_of_a_service() -> None:
    plan = Plan(("/usr/local/bin/federation",), ("--backend", "127.0.0.1:11434"), Path("/var/lib/federation"), 30.0)
    assert plan.words == (
        "/usr/local/bin/federation", "join", "--state-dir", "/var/lib/federation", "--backend", "127.0.0.1:11434",
    )  # fmt: skip
    assert plan.stop_s == 40


def test_a_unit_is_written_whole_for_all_to_read(tmp_path: Path) -> None:
    file = tmp_path / "deep/down/it"
    write(file, "one")
    write(file, "two")
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("two", 0o644)
    assert [path.name for path in file.parent.iterdir()] == ["it"]


def test_one_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "it"
    write(file, "one")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(file, "two")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("it", "one")]
