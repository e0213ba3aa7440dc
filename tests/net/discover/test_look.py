from __future__ import annotations

import json
import resource
import subprocess
import sys


def test_an_answer_says_what_is_wrong() -> None:
    """Nobody listens there."""
    nobody = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo"
    task = {"bootstraps": [nobody], "keys": ["1220" + "00" * 32], "provided": [], "ours": []}
    done = subprocess.run(
        [sys.executable, "-m", "federation.net.discover.look"],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    answer = json.loads(done.stdout)
    assert answer["addresses"] == []
    assert "no bootstrap node answers" in answer["problem"]
    assert resource.getrlimit(resource.RLIMIT_CPU)[1] == resource.RLIM_INFINITY  # that was its limit, not ours
