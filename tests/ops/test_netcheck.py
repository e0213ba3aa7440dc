"""What kind of NAT outsiders' answers tell of."""

from __future__ import annotations

import pytest

from federation.net.nat.reachability import Seen
from federation.ops.netcheck import Nat, nat_kind

OWN = {"192.168.1.7", "203.0.113.1"}


def at(port: int | None, host: str = "198.51.100.1") -> Seen:
    return Seen(host, port, reached=False)


@pytest.mark.parametrize(
    ("seen", "kind"),
    [
        ([], "unknown"),
        ([at(4484, "203.0.113.1")], "none"),
        ([at(None, "203.0.113.1"), at(4484, "203.0.113.1")], "none"),
        ([at(None)], "some"),
        ([at(4484)], "some"),
        ([at(4484), at(None)], "some"),
        ([at(4484), at(4484)], "easy"),
        ([at(61000), at(61000), at(None)], "easy"),
        ([at(61000), at(61001)], "hard"),
        ([at(61000), at(61000, "198.51.100.2")], "hard"),
        ([at(4484, "203.0.113.1"), at(4484)], "hard"),
    ],
)
def test_kinds_of_nat(seen: list[Seen], kind: Nat) -> None:
    assert nat_kind(seen, OWN) == kind
