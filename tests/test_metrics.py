from __future__ import annotations

import re

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from federation import __version__
from federation.metrics import Metrics


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry)


def test_each_child_counts_in_its_own_series(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.started("default").inc()
    metrics.started("embed").inc(2)
    metrics.finished("default", "ok").inc(3)
    metrics.finished("default", "error").inc(4)
    metrics.in_flight("12D3a").inc(5)
    metrics.in_flight("12D3a").dec()
    metrics.retried("timeout").inc(6)
    metrics.bytes_moved("in").inc(7)
    metrics.bytes_moved("out").inc(8)
    metrics.gossip_messages("in").inc(9)
    metrics.gossip_messages("out").inc(10)
    metrics.ledger_records.set(11)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"federation_{name}", labels)

    assert value("connections_started_total", service="default") == 1
    assert value("connections_started_total", service="embed") == 2
    assert value("connections_finished_total", service="default", result="ok") == 3
    assert value("connections_finished_total", service="default", result="error") == 4
    assert value("connections_in_flight", peer="12D3a") == 4
    assert value("retries_total", reason="timeout") == 6
    assert value("bytes_total", direction="in") == 7
    assert value("bytes_total", direction="out") == 8
    assert value("gossip_messages_total", direction="in") == 9
    assert value("gossip_messages_total", direction="out") == 10
    assert value("ledger_records") == 11


def test_the_hot_path_can_keep_the_child(metrics: Metrics) -> None:
    """What is handed out is the series itself, the same each time: counting needs no look-up."""
    assert metrics.started("default") is metrics.started("default")
    assert metrics.finished("default", "ok") is metrics.finished("default", "ok")
    assert metrics.in_flight("12D3a") is metrics.in_flight("12D3a")
    assert metrics.retried("refused") is metrics.retried("refused")
    assert metrics.bytes_moved("in") is metrics.bytes_moved("in")
    assert metrics.gossip_messages("in") is metrics.gossip_messages("in")


def test_open_seconds_tells_a_lan_from_a_hold(metrics: Metrics, registry: CollectorRegistry) -> None:
    for seconds in (0.0007, 0.03, 9.0, 11.0):
        metrics.open_seconds.observe(seconds)

    def at_most(bucket: str) -> float | None:
        return registry.get_sample_value("federation_open_seconds_bucket", {"le": bucket})

    assert [at_most(bucket) for bucket in ("0.0005", "0.001", "0.05", "10.0", "+Inf")] == [0, 1, 2, 3, 4]
    assert registry.get_sample_value("federation_open_seconds_sum") == pytest.approx(20.0307)


def test_the_version_that_runs(registry: CollectorRegistry, metrics: Metrics) -> None:
    assert registry.get_sample_value("federation_build_info", {"version": __version__}) == 1


def test_what_has_not_happened_yet_is_0_and_not_absent(registry: CollectorRegistry, metrics: Metrics) -> None:
    for reason in ("unreachable", "refused", "timeout", "lost", "other"):
        assert registry.get_sample_value("federation_retries_total", {"reason": reason}) == 0
    for name in ("bytes_total", "gossip_messages_total"):
        for direction in ("in", "out"):
            assert registry.get_sample_value(f"federation_{name}", {"direction": direction}) == 0


def test_a_forgotten_peer_leaves_no_series(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.in_flight("12D3a").inc()
    metrics.in_flight("12D3b").inc()
    metrics.forget_peer("12D3a")
    metrics.forget_peer("never used")
    assert registry.get_sample_value("federation_connections_in_flight", {"peer": "12D3a"}) is None
    assert registry.get_sample_value("federation_connections_in_flight", {"peer": "12D3b"}) == 1


def test_two_nodes_in_one_process_do_not_share_their_counts() -> None:
    first, second = CollectorRegistry(), CollectorRegistry()
    Metrics(first).ledger_records.set(3)
    Metrics(second).ledger_records.set(5)
    assert first.get_sample_value("federation_ledger_records") == 3
    assert second.get_sample_value("federation_ledger_records") == 5


def test_names_and_help_are_as_prometheus_has_them(metrics: Metrics, registry: CollectorRegistry) -> None:
    families = {family.name: family for family in registry.collect()}
    assert families.keys() == {
        "federation_connections_started",
        "federation_connections_finished",
        "federation_connections_in_flight",
        "federation_retries",
        "federation_bytes",
        "federation_gossip_messages",
        "federation_ledger_records",
        "federation_open_seconds",
        "federation_build",
    }
    exposition = generate_latest(registry).decode()
    for family in families.values():
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        assert re.search(rf"^# HELP {family.name}{suffix} \S.*\.$", exposition, re.MULTILINE)


def test_each_count_says_what_it_leaves_out(metrics: Metrics, registry: CollectorRegistry) -> None:
    said_otherwise = {"federation_ledger_records", "federation_build"}  # they list all they hold
    for family in registry.collect():
        assert family.name in said_otherwise or "Not: " in family.documentation
