from __future__ import annotations

from federation.net.admission.guesses import FORGIVEN_A_SECOND, MAX_MACHINES, WRONG_AT_ONCE, Guesses


def test_so_many_wrong_codes_and_then_one_now_and_then() -> None:
    it = Guesses()
    for _ in range(int(WRONG_AT_ONCE)):
        assert it.may_try("192.0.2.1", 0.0)
        it.was_wrong("192.0.2.1", 0.0)
    assert not it.may_try("192.0.2.1", 0.0)
    assert it.may_try("192.0.2.2", 0.0), "others are not asked to pay"
    assert not it.may_try("192.0.2.1", 0.9 / FORGIVEN_A_SECOND)
    assert it.may_try("192.0.2.1", 1.1 / FORGIVEN_A_SECOND)


def test_whoever_is_never_wrong_leaves_nothing_behind() -> None:
    it = Guesses()
    for n in range(2 * MAX_MACHINES):
        assert it.may_try(str(n), 0.0)
    assert len(it._wrong) == 0
