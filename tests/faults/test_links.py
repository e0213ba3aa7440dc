"""Cables, switches, firewalls and DHCP servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from harness import wait_until
from lab import NAMES

if TYPE_CHECKING:
    from lab import Box

LEFT = {"boot", "exit"}
SYN = ("tcp", "flags", "&", "(syn|ack)", "==", "syn")


def test_link_down(lab, trial) -> None:
    with trial("link down", "exit", lossy=True) as it:
        it.strike(lab.switch.unplug, "exit")
        it.wait_out()
        it.last(lab.seconds(20, 6))
        it.cure(lab.switch.plug, "exit")
        it.wait_back()


@pytest.mark.parametrize("direction", ["input", "output"])
def test_one_way_loss(lab, trial, direction) -> None:
    heard = "hears nothing" if direction == "input" else "is not heard"
    with trial(f"one-way loss, {heard}", "exit", lossy=True) as it:
        it.strike(lab.switch.drop, "exit", direction)
        it.wait_out()
        it.last(lab.seconds(20, 6))
        it.cure(lab.switch.drop_nothing, "exit")
        it.wait_back()


def test_partition(lab, trial) -> None:
    right = NAMES - LEFT
    with trial("partition 2 : 3", *right, lossy=True) as it:
        it.strike(lab.switch.partition, *LEFT)
        it.wait_out(observers=[lab[name] for name in LEFT])
        it.last(lab.seconds(60, 20))
        assert all(lab[name].takes_part() == right for name in right)
        it.cure(lab.switch.heal)
        it.wait_back()


def address_of(name: str, box: Box) -> str:
    """As `box` has been told."""
    (row,) = [row for row in box.peers() if row["name"] == name]
    return row["addresses"][0].split("/")[2] if row["addresses"] else ""


def test_address_change(lab, trial) -> None:
    with trial("address change", "exit", lossy=True) as it:
        it.strike(lab.switch.readdress, "exit", "10.77.0.112")
        it.cure(int)
        wait_until(
            lambda: all(address_of("exit", box) == "10.77.0.112" for box in lab.others("exit")), within=45, what="news"
        )
        it.wait_back()


def test_small_mtu(lab, trial) -> None:
    """Nobody is told that packets over 576 bytes are lost, and the connections were made for 1500."""
    with trial("MTU 576", "exit", lossy=True) as it:
        lab.switch.no_offload()
        it.strike(lab.switch.mtu, "exit", 576)
        it.last(lab.seconds(40, 25))  # a link dies of it as soon as it carries something large
        lab.wait_whole()  # by links that know
        it.cure(lab.switch.mtu, "exit", 1500)
        it.wait_back()


def test_blackhole(lab, trial) -> None:
    """Restarted behind a firewall that drops every SYN to it: it dials the others."""
    box = lab["exit"]
    with trial("SYN dropped", "exit", lossy=True) as it, it.away("exit"):
        it.strike(lab.switch.drop, "exit", "input", *SYN)
        box.kill()
        it.wait_out()
        it.last(lab.seconds(20, 5))
        it.restart(box)
        it.wait_back()
