"""The dashboard and the rules in examples/ against the metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from federation.metrics import Metrics, Snapshot
from federation.ops import schemas

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = Path(__file__).parent.parent / "examples"
RULES = EXAMPLES / "alerts.yml"


@pytest.fixture(scope="module")
def series() -> dict[str, set[str]]:
    """Each series' name, and its labels."""
    metrics = Metrics()
    metrics.started["default"] += 1
    metrics.picks["only"] += 1
    metrics.snapshot = lambda: Snapshot(in_flight={"a": 1}, backends={"default": True}, peers={"online": 1})
    found: dict[str, set[str]] = {}
    for family in metrics.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def used(text: str) -> Iterator[tuple[str, set[str]]]:
    """Each of our series in an expression, and the labels that are asked for."""
    for name, labels in re.findall(r"\b(federation_\w+)(?:\{([^}]*)\})?", text):
        yield name, set(re.findall(r"(\w+)\s*[=!]", labels)) - {"instance", "job"}


def expressions() -> list[str]:
    board = json.loads((EXAMPLES / "grafana.json").read_text())
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


@pytest.mark.parametrize("text", [RULES.read_text(), *expressions()], ids=lambda text: re.sub(r"\W+", " ", text)[:40])
def test_only_what_there_is(text: str, series: dict[str, set[str]]) -> None:
    for name, labels in used(text):
        assert name in series
        assert labels <= series[name]
    for by in re.findall(r"by \(([^)]*)\) \((?:rate\()?(federation_\w+)", text):
        assert set(re.findall(r"\w+", by[0])) <= series[by[1]] | {"instance"}


def test_most_of_it_is_on_the_board(series: dict[str, set[str]]) -> None:
    shown = {name for text in expressions() for name, _ in used(text)}
    left_out = {"build_info", "connections_waiting", "gossip_messages_total", "ledger_records", "draining", "backend_up"}
    whole = {name for name in series if not re.search("_(count|sum|bucket)$", name)}
    assert whole - shown == {f"federation_{name}" for name in left_out}


def test_states_and_results_are_spelt_as_they_are() -> None:
    text = RULES.read_text() + "".join(expressions())
    for states in re.findall(r'state=~?"([^"]*)"', text):
        assert set(states.split("|")) <= set(schemas.State.__args__)  # type: ignore[attr-defined]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is missing (Debian's package prometheus)")
def test_promtool_takes_the_rules() -> None:
    subprocess.run(["promtool", "check", "rules", str(RULES)], check=True, capture_output=True, timeout=30)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is missing (Debian's package prometheus)")
def test_promtool_takes_the_names() -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=Metrics().exposition()[0], capture_output=True, timeout=30, check=False
    )
    ours = [line for line in done.stdout.splitlines() + done.stderr.splitlines() if line.startswith(b"federation")]
    assert ours == []
