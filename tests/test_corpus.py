"""The corpus of scripts/fuzz: every input once, among them all that ever crashed anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog

from tests import fuzz
from tests.fuzz import CORPUS, TARGETS, Crash, Fuzzer, run_one

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The gossip target exchanges the topic, and `main` the logging: both are put back."""
    monkeypatch.setattr(fuzz.gossip_module, "Topic", fuzz.gossip_module.Topic)
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("target", TARGETS)
def test_every_input_of_the_corpus_is_borne(target: str) -> None:
    inputs = sorted((CORPUS / target).iterdir())
    assert len({run_one(target, path.read_bytes()) for path in inputs}) > 1, "they do not all go the same way"


def test_a_crash_is_found_kept_and_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def bad(data: bytes) -> str:
        return str(1 // (b"7" not in data))

    monkeypatch.setattr(fuzz, "TARGETS", {"bad": bad})
    monkeypatch.setattr(fuzz, "CORPUS", tmp_path)
    assert fuzz.main(["--seed", "1", "bad"]) == 1
    said = capsys.readouterr().out
    (kept,) = (tmp_path / "bad").iterdir()
    assert f"--repeat {kept}" in said
    with pytest.raises(ZeroDivisionError):
        fuzz.main(["--repeat", str(kept)])


def test_an_input_that_takes_too_long_is_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "TARGETS", {"slow": lambda _data: "done"})
    monkeypatch.setattr(fuzz, "SLOW_S", -1.0)
    with pytest.raises(Crash):
        Fuzzer("slow", tmp_path, fuzz.random.Random(1)).turn(1.0)


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["nothing"], ["--repeat", "/nowhere"]):
        with pytest.raises(SystemExit) as ended:
            fuzz.main(arguments)
        assert ended.value.code == 2
