from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.api import proof
from federation.api.proof import Challenges, Nonces

KEY = "k" * 43
REQUEST = ("127.0.0.1:8485", "POST", "/api/v1/drain?x=1", b'{"a": 1}')


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def signed(challenges: Challenges, key: str = KEY, client: str = "c" * 43) -> str:
    nonce, _ = challenges.issue(client, REQUEST[0])
    nonces = Nonces(client, nonce)
    return f"{client} {nonce} {proof.of_request(key, nonces, *REQUEST)}"


def test_the_daemon_shows_that_it_has_the_key_and_to_this_client_only() -> None:
    nonce, shown = Challenges(KEY, Clock()).issue("c", "host")
    assert shown == proof.of_daemon(KEY, Nonces("c", nonce), "host")
    assert shown != proof.of_daemon(KEY, Nonces("d", nonce), "host")
    assert shown != proof.of_daemon(KEY, Nonces("c", nonce), "another")
    assert shown != proof.of_daemon("j" * 43, Nonces("c", nonce), "host")


def test_a_request_is_taken_once() -> None:
    challenges = Challenges(KEY, Clock())
    one, other = signed(challenges), signed(challenges)
    nonces = challenges.take(one, *REQUEST)
    assert nonces is not None
    assert challenges.take(one, *REQUEST) is None
    assert challenges.take(other, *REQUEST) is not None
    assert challenges.answered(nonces, 200, b"{}") == proof.of_answer(KEY, nonces, 200, b"{}")


@pytest.mark.parametrize("part", range(4))
def test_nothing_of_a_request_can_be_another(part: int) -> None:
    challenges = Challenges(KEY, Clock())
    other = [*REQUEST]
    other[part] = b"{}" if part == 3 else f"{other[part]!s}x"
    authorization = signed(challenges)
    assert challenges.take(authorization, *other) is None
    assert challenges.take(authorization, *REQUEST) is not None  # what was tried spends nothing


def test_only_the_key_opens() -> None:
    challenges = Challenges(KEY, Clock())
    assert challenges.take(signed(challenges, "j" * 43), *REQUEST) is None


def test_a_nonce_is_of_this_daemon_this_client_and_this_half_minute() -> None:
    clock = Clock()
    challenges = Challenges(KEY, clock)
    client, nonce, mac = signed(challenges).split()
    assert challenges.take(f"d{client[1:]} {nonce} {mac}", *REQUEST) is None
    made, rest = nonce.split(".", 1)
    assert challenges.take(f"{client} {int(made) + 1}.{rest} {mac}", *REQUEST) is None
    after_a_restart = Challenges(KEY, clock)
    assert after_a_restart.take(f"{client} {nonce} {mac}", *REQUEST) is None
    clock.now += proof.LIFETIME_S + 0.1
    assert challenges.take(f"{client} {nonce} {mac}", *REQUEST) is None


def test_what_was_used_is_forgotten_when_it_is_too_old_anyway() -> None:
    clock = Clock()
    challenges = Challenges(KEY, clock)
    for _ in range(100):
        assert challenges.take(signed(challenges), *REQUEST)
        clock.now += 1
    assert len(challenges._used) <= proof.LIFETIME_S + 1


def test_asking_for_challenges_costs_no_memory() -> None:
    challenges = Challenges(KEY, Clock())
    nonces = {challenges.issue("c", "h")[0] for _ in range(1000)}
    assert len(nonces) == 1000
    assert challenges._used == {}


@given(st.text(max_size=200))
def test_nonsense_is_refused(text: str) -> None:
    challenges = Challenges(KEY, Clock())
    assert challenges.take(text, *REQUEST) is None
    assert challenges.take(f"{text} {text} {text}", *REQUEST) is None


def test_where_parts_end_is_part_of_the_proof() -> None:
    nonces = Nonces("c", "n")
    requests = itertools.permutations(("a", "ab", "b"), 3)
    macs = {proof.of_request(KEY, nonces, *parts, b"") for parts in requests}
    assert len(macs) == 6
    assert proof.of_request(KEY, nonces, "a", "bc", "d", b"") != proof.of_request(KEY, nonces, "ab", "c", "d", b"")
    assert proof.of_answer(KEY, nonces, 200, b"") != proof.of_answer(KEY, nonces, 201, b"")
