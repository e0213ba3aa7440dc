"""Backends that accept and say nothing, refuse, break off, or think for long. The nodes before them are well."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("who", ["exit", "boot"])
def test_silent(lab, trial, who) -> None:
    """Before `exit`, which asks for /health, and before `boot`, which only connects: there it is not noticed."""
    backend = lab.backends[who]
    with trial(f"backend silent, {'--health-path' if who == 'exit' else 'no check'}", who) as it:
        it.strike(backend.be, "silent")
        if who == "exit":
            it.wait_out()
        it.last(lab.seconds(15, 6))
        it.cure(backend.be, "ok")
        it.wait_back()


def test_refuses(lab, trial) -> None:
    backend = lab.backends["exit"]
    with trial("backend refuses", "exit") as it:
        it.strike(backend.kill)
        it.wait_out()
        it.last(lab.seconds(15, 6))
        it.cure(backend.start)
        it.wait_back()


@pytest.mark.parametrize("mode", ["reset", "slow"])
def test_answers_badly(lab, trial, mode) -> None:
    backend = lab.backends["exit"]
    with trial("backend resets midway" if mode == "reset" else "backend takes 3 s") as it:
        it.strike(backend.be, mode)
        it.last(lab.seconds(15, 6))
        it.cure(backend.be, "ok")
        it.wait_back()
