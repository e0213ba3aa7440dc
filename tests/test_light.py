"""What a daemon imports. Each look is a process of its own: this one has all of py-libp2p."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from federation.light import ABSENT, BARE

# Packages that a daemon may import, and no other: one more costs each start, and each node its memory.
MAY_BE_IMPORTED = (
    "annotated_types anyio async_generator attr attrs base58 baseconv blake3 cryptography dotenv google h11 h2 hpack "
    "httptools hypercorn hyperframe idna ifaddr libp2p mmh3 morphys msgpack msgspec multiaddr multibase multicodec "
    "multihash nacl noise outcome priority prometheus_client psutil pydantic pydantic_core pydantic_settings sniffio "
    "sortedcontainers starlette structlog trio trio_typing typing_extensions typing_inspection varint wsproto zeroconf "
    "exceptiongroup h3 taskgroup tomli"  # with older Pythons
)

LOOK = """
import json, sys
import federation.cli.join, federation.daemon
names = {name.partition(".")[0] for name, module in sys.modules.items() if getattr(module, "__file__", None)}
files = {name: getattr(sys.modules[name], "__file__", None) for name in sys.modules if name.startswith("libp2p")}
print(json.dumps([sorted(names), files]))
"""


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.fixture(scope="module")
def looked() -> tuple[set[str], dict[str, str | None]]:
    names, files = json.loads(run(LOOK))
    return set(names), files


def test_a_daemon_imports_no_other_packages(looked: tuple[set[str], dict[str, str | None]]) -> None:
    known = {*sys.stdlib_module_names, "federation", "sitecustomize"}
    imported = {name for name in looked[0] - known if not name.startswith("_")}
    assert imported <= set(MAY_BE_IMPORTED.split())


def test_what_is_absent_was_not_imported(looked: tuple[set[str], dict[str, str | None]]) -> None:
    files = looked[1]
    assert files["libp2p.host.basic_host"]
    absent = {name: file for name, file in files.items() if name in BARE or name.startswith(tuple(ABSENT))}
    assert {name for name, file in absent.items() if file} == set()
    assert "libp2p.transport.quic" in absent


@pytest.mark.parametrize("name", sorted({*ABSENT, *BARE}))
def test_there_is_such_a_module(name: str) -> None:
    """Or else this version of py-libp2p no longer has it, and the table says nothing."""
    assert find_spec(name) is not None


def test_what_is_absent_says_so_when_it_is_used() -> None:
    said = run("""
import federation.light
from libp2p.crypto.rsa import RSAPublicKey
from libp2p.transport.quic.connection import QUICConnection
from libp2p.transport.quic.exceptions import QUICStreamError
assert not isinstance(object(), QUICConnection) and issubclass(QUICStreamError, Exception)
for use in (lambda: RSAPublicKey.from_bytes(b""), lambda: QUICConnection().open_stream()):
    try:
        use()
    except federation.light.NotReached as error:
        print(error)
""")
    assert [line.partition(" is not imported by a daemon")[0] for line in said.splitlines()] == [
        "libp2p.crypto.rsa.RSAPublicKey.from_bytes",
        "libp2p.transport.quic.connection.QUICConnection.open_stream",
    ]


def test_the_dht_has_all_of_it() -> None:
    """Foreign nodes have keys of every kind."""
    said = run("import libp2p.crypto.rsa, federation.net.discover.dht; print(libp2p.__file__, libp2p.crypto.rsa.__file__)")
    assert "None" not in said


def test_logs_need_no_rich() -> None:
    assert run("import federation.light, sys, rich; print('rich.console' in sys.modules)") == "False\n", "it can be imported"
