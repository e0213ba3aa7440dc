from __future__ import annotations

from federation.net.admission.copies import KEEP_S, MAX_PEERS, MAX_RUNS, TOLD_S, Copies

ONE, OTHER = b"1" * 32, b"2" * 32


def test_nobody_is_refused_at_first() -> None:
    copies = Copies()
    copies.left("x", 0.0)
    copies.came("x")
    assert not copies.is_refused("x", ONE, 0.0)
    assert copies.present(0.0) == []


def test_the_refused_one_stays_refused_and_a_new_process_does_not() -> None:
    copies = Copies()
    assert copies.refuse("x", OTHER, 0.0)
    assert not copies.refuse("x", OTHER, 1.0)
    assert copies.is_refused("x", OTHER, 2.0)
    assert not copies.is_refused("x", ONE, 2.0)  # the first one, or its restart
    assert not copies.is_refused("y", OTHER, 2.0)


def test_a_break_of_the_first_ones_network_changes_nothing() -> None:
    copies = Copies()
    copies.refuse("x", OTHER, 0.0)
    copies.left("x", 10.0)
    assert copies.is_refused("x", OTHER, 10.0 + KEEP_S)
    copies.came("x")
    assert copies.is_refused("x", OTHER, 1e6)
    copies.left("x", 1e6)
    assert not copies.is_refused("x", OTHER, 1e6 + KEEP_S + 1)  # it is gone for good


def test_it_is_told_while_the_copy_tries() -> None:
    copies = Copies()
    copies.refuse("x", OTHER, 0.0)
    assert copies.is_refused("x", OTHER, 100.0)
    assert copies.present(100.0 + TOLD_S) == ["x"]
    assert copies.present(101.0 + TOLD_S) == []
    assert copies.refuse("x", OTHER, 101.0 + TOLD_S)  # news again


def test_it_is_bounded() -> None:
    copies = Copies()
    for n in range(2 * MAX_PEERS):
        copies.refuse(f"x{n}", OTHER, float(n))
    assert len(copies.present(2.0 * MAX_PEERS)) == MAX_PEERS
    for n in range(2 * MAX_RUNS):
        copies.refuse("x127", bytes([n]) * 32, 200.0)
    assert not copies.is_refused("x127", bytes(32), 200.0)
    assert copies.is_refused("x127", bytes([2 * MAX_RUNS - 1]) * 32, 200.0)
