"""Daemons that die, hang, restart, forget who they are, or sleep."""

from __future__ import annotations

import signal

import pytest

ROLES = ("exit", "entry", "boot")


@pytest.mark.parametrize("who", ROLES)
def test_sigkill(lab, trial, who) -> None:
    box = lab[who]
    with trial(f"SIGKILL, {who}", who) as it, it.away(who):
        it.strike(box.kill)
        it.wait_out()
        it.last(lab.seconds(10, 3))
        it.restart(box)
        it.wait_back()


@pytest.mark.parametrize("who", ROLES)
def test_sigstop(lab, trial, who) -> None:
    box = lab[who]
    with trial(f"SIGSTOP, {who}", who) as it, it.away(who):
        it.strike(box.signal, signal.SIGSTOP)
        it.wait_out()
        it.last(lab.seconds(20, 5))
        it.cure(box.signal, signal.SIGCONT)
        it.wait_back()


def test_suspend(lab, trial) -> None:
    """For longer than records live without being renewed."""
    box = lab["exit"]
    with trial("suspended, exit", "exit") as it, it.away("exit"):
        it.strike(box.signal, signal.SIGSTOP)
        it.wait_out()
        it.last(lab.seconds(60, 42))
        it.cure(box.signal, signal.SIGCONT)
        it.wait_back()


@pytest.mark.parametrize("who", ROLES)
def test_restart(lab, trial, who) -> None:
    box = lab[who]
    with trial(f"restart, {who}", who) as it, it.away(who):
        it.strike(box.signal, signal.SIGTERM)
        it.wait_out()
        box.wait(within=45)  # its clients' streams are given their time
        it.restart(box)
        it.wait_back()


@pytest.mark.parametrize("who", ROLES)
def test_lost_state(lab, trial, who) -> None:
    """Killed, and its disk lost: it comes back as somebody new, with the token and the addresses it was first given."""
    box = lab[who]
    with trial(f"state lost, {who}", who) as it, it.away(who):
        it.strike(box.kill)
        it.wait_out()
        box.lose_state()
        it.restart(box)
        it.wait_back()


def test_rolling_restart(lab, trial) -> None:
    with trial("rolling restart") as it:
        it.strike(int)
        for name, box in lab.boxes.items():
            with it.away(name):
                box.stop(within=45)
                it.restart(box)
            it.wait_back()
