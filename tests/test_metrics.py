from __future__ import annotations

import re
from typing import TYPE_CHECKING, get_args

import pytest
from prometheus_client.parser import text_string_to_metric_families

from federation import __version__
from federation.metrics import MAX_MODELS, OTHER, Direction, Distribution, Metrics, Result, RetryReason, Snapshot

if TYPE_CHECKING:
    from prometheus_client.core import Metric


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def families(metrics: Metrics) -> dict[str, Metric]:
    """As a scraper reads them, without those of the process."""
    text = metrics.exposition()[0].decode()
    return {family.name: family for family in text_string_to_metric_families(text) if family.name.startswith("federation_")}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    found = [
        sample.value
        for family in families(metrics).values()
        for sample in family.samples
        if (sample.name, sample.labels) == (f"federation_{name}", labels)
    ]
    assert len(found) < 2
    return found[0] if found else None


def test_each_count_in_its_own_series(metrics: Metrics) -> None:
    metrics.started["default"] += 1
    metrics.started["embed"] += 2
    metrics.finished["default", "ok"] += 3
    metrics.finished["default", "error"] += 4
    metrics.finished["embed", "turned_away"] += 5
    metrics.retries["timeout"] += 6
    metrics.picks["last_used"] += 7
    metrics.gossip_messages["in"] += 9
    metrics.gossip_messages["out"] += 10
    metrics.gossip_bytes["in"] += 900
    metrics.gossip_bytes["out"] += 1000
    assert value(metrics, "connections_started_total", service="default") == 1
    assert value(metrics, "connections_started_total", service="embed") == 2
    assert value(metrics, "connections_finished_total", service="default", result="ok") == 3
    assert value(metrics, "connections_finished_total", service="default", result="error") == 4
    assert value(metrics, "connections_finished_total", service="default", result="turned_away") == 0
    assert value(metrics, "connections_finished_total", service="embed", result="turned_away") == 5
    assert value(metrics, "retries_total", reason="timeout") == 6
    assert value(metrics, "picks_sampled_total", tier="last_used") == 7
    assert value(metrics, "gossip_messages_total", direction="in") == 9
    assert value(metrics, "gossip_messages_total", direction="out") == 10
    assert value(metrics, "gossip_bytes_total", direction="in") == 900
    assert value(metrics, "gossip_bytes_total", direction="out") == 1000


def test_counts_of_a_model(metrics: Metrics) -> None:
    model = metrics.of_model("llama3", is_known=True)
    model.requests["ok"] += 2
    model.retries += 1
    model.queued_s += 1.5
    model.tokens["cached"] += 700
    model.heard_first(0.3)
    assert value(metrics, "model_requests_total", model="llama3", result="ok") == 2
    assert value(metrics, "model_requests_total", model="llama3", result="error") == 0
    assert value(metrics, "model_retries_total", model="llama3") == 1
    assert value(metrics, "model_queue_seconds_total", model="llama3") == 1.5
    assert value(metrics, "model_tokens_total", model="llama3", kind="cached") == 700
    assert value(metrics, "model_first_token_seconds_bucket", model="llama3", le="0.25") == 0
    assert value(metrics, "model_first_token_seconds_bucket", model="llama3", le="0.5") == 1
    assert value(metrics, "model_first_token_seconds_count", model="llama3") == 1


def test_names_that_clients_make_up_become_no_labels(metrics: Metrics) -> None:
    for n in range(3 * MAX_MODELS):
        metrics.of_model(f"m{n}", is_known=False).requests["error"] += 1
    assert set(metrics.models) == {OTHER}
    for n in range(3 * MAX_MODELS):
        metrics.of_model(f"m{n}", is_known=True).requests["ok"] += 1
    assert len(metrics.models) == MAX_MODELS
    assert value(metrics, "model_requests_total", model=OTHER, result="ok") == 2 * MAX_MODELS + 1
    assert metrics.of_model("m0", is_known=False) is metrics.models["m0"], "known by now"
    metrics.models.clear()
    metrics.of_model('a"\n\x1b' + "x" * 999, is_known=True)
    (name,) = {sample.labels["model"] for sample in families(metrics)["federation_model_retries"].samples}
    assert name.startswith('a"??x')
    assert len(name) == 200


def test_what_is_read_at_the_scrape(metrics: Metrics) -> None:
    metrics.snapshot = lambda: Snapshot(
        received=1, delivered=2, open=3, waiting=4, in_flight={"12D3a": 5, "12D3b": 0}, serving=6,
        backends={"default": True, "embed": False}, peers={"online": 7, "suspect": 0}, ledger_records=8, total_vram=9,
        available_vram=10, draining=True,
    )  # fmt: skip
    for name, labels, expected in (
        ("bytes_total", {"direction": "in"}, 1),
        ("bytes_total", {"direction": "out"}, 2),
        ("connections_open", {}, 3),
        ("connections_waiting", {}, 4),
        ("connections_in_flight", {"peer": "12D3a"}, 5),
        ("connections_in_flight", {"peer": "12D3b"}, 0),
        ("serving", {}, 6),
        ("backend_up", {"service": "default"}, 1),
        ("backend_up", {"service": "embed"}, 0),
        ("peers", {"state": "online"}, 7),
        ("peers", {"state": "suspect"}, 0),
        ("ledger_records", {}, 8),
        ("vram_size_bytes", {}, 9),
        ("vram_available_bytes", {}, 10),
        ("draining", {}, 1),
    ):
        assert value(metrics, name, **labels) == expected, name
    metrics.snapshot = Snapshot
    assert value(metrics, "connections_in_flight", peer="12D3a") is None  # forgotten with the peer


def test_a_distribution_tells_a_lan_from_a_hold() -> None:
    distribution = Distribution((0.5, 1.0, 10.0))
    for seconds in (0.5, 0.6, 9.0, 11.0):
        distribution.observe(seconds)
    assert distribution.buckets() == [("0.5", 1), ("1.0", 2), ("10.0", 3), ("+Inf", 4)]
    assert distribution.sum == pytest.approx(21.1)


@pytest.mark.parametrize("name", ["opens", "durations"])
def test_histograms_are_as_prometheus_has_them(metrics: Metrics, name: str) -> None:
    distribution: Distribution = getattr(metrics, name)
    for seconds in (0.0007, 0.03, 9.0, 1e6):
        distribution.observe(seconds)
    family = {"opens": "open_seconds", "durations": "connection_seconds"}[name]
    assert value(metrics, f"{family}_bucket", le="+Inf") == value(metrics, f"{family}_count") == 4
    assert value(metrics, f"{family}_sum") == pytest.approx(1000009.0307)
    assert value(metrics, f"{family}_bucket", le="0.05") == 2
    bounds = [
        float(sample.labels["le"]) for sample in families(metrics)[f"federation_{family}"].samples if "le" in sample.labels
    ]
    assert bounds == sorted(set(bounds))


def test_the_version_that_runs(metrics: Metrics) -> None:
    assert value(metrics, "build_info", version=__version__) == 1


def test_what_has_not_happened_yet_is_0_and_not_absent(metrics: Metrics) -> None:
    for reason in get_args(RetryReason):
        assert value(metrics, "retries_total", reason=reason) == 0
    for name in ("bytes_total", "gossip_messages_total", "gossip_bytes_total"):
        for direction in get_args(Direction):
            assert value(metrics, name, direction=direction) == 0
    metrics.started["default"] += 1
    for result in get_args(Result):
        assert value(metrics, "connections_finished_total", service="default", result=result) == 0


def test_two_nodes_in_one_process_do_not_share_their_counts(metrics: Metrics) -> None:
    metrics.retries["lost"] += 1
    assert value(Metrics(), "retries_total", reason="lost") == 0


def test_names_and_help_are_as_prometheus_has_them(metrics: Metrics) -> None:
    text = metrics.exposition()[0].decode()
    for name, family in families(metrics).items():
        assert re.fullmatch(r"federation_[a-z][a-z_]*[a-z]", name)
        assert family.type in ("counter", "gauge", "histogram")
        assert re.search(rf"^# HELP {name}(_total)? \S.*\.$", text, re.MULTILINE)
        assert not re.search("_(ms|mb|minutes|percent)$", name)
        said_otherwise = {"federation_ledger_records", "federation_build_info"}  # they list all they hold
        assert name in said_otherwise or "Not: " in family.documentation
    assert re.search(r"^process_(cpu_seconds_total|open_fds) ", text, re.MULTILINE)


def test_the_format_is_what_the_scraper_asks_for(metrics: Metrics) -> None:
    text, kind = metrics.exposition("")
    assert kind.startswith("text/plain; version=0.0.4")
    text, kind = metrics.exposition("application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")
