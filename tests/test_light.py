"""What a daemon imports. Each look is a process of its own: this one has all of py-libp2p."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from ast import literal_eval
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.certificates import self_signed

# Packages that a daemon imports until it is ready, and no other: one more costs each start, and each node its memory.
UNTIL_READY = (
    "annotated_types async_generator attr attrs base58 baseconv blake3 cffi cid cryptography google h11 httptools idna "
    "ifaddr libp2p mmh3 morphys msgpack msgspec multiaddr multibase multicodec multihash nacl noise outcome pydantic "
    "pydantic_core sniffio sortedcontainers structlog trio trio_typing typing_extensions typing_inspection varint "
    "exceptiongroup tomli"  # with older Pythons
)
BEHIND_IT = "anyio hypercorn starlette zeroconf taskgroup"  # the API's server, and multicast
WHEN_ASKED = "prometheus_client"  # by a scraper
# Modules that are slow or large and come in only by mistake.
NEVER = (
    "asyncio email.message http.client importlib.metadata multiprocessing sqlite3 unittest xml "
    "cryptography.x509.base cryptography.x509.extensions google.protobuf.internal.python_message libp2p.rcmgr.manager"
)

LOOK = """
import json, sys
import federation.cli.join, federation.daemon
def look():
    files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
    return sorted({name.partition(".")[0] for name, file in files.items() if file}), files
ready = look()
import federation.api.server, federation.net.discover.mdns
print(json.dumps([ready, look()]))
"""


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120).stdout


# Asked of another process: to import light.py changes what its process imports from then on, here what other tests do.
ABSENT, BARE = literal_eval(run("from federation.light import ABSENT, BARE; print((ABSENT, sorted(BARE)))"))


@dataclass
class Look:
    packages: list[str]
    files: dict[str, str | None]  # of all modules; None: one that is absent, or bare

    def others(self) -> set[str]:
        known = {*sys.stdlib_module_names, "federation", "sitecustomize", "greenlet"}  # structlog takes it where it is
        return {name for name in self.packages if name not in known and not name.startswith("_")}


@pytest.fixture(scope="module")
def looked() -> tuple[Look, Look]:
    """At ready, and a moment later."""
    ready, later = json.loads(run(LOOK))
    return Look(*ready), Look(*later)


def test_a_start_imports_no_other_packages(looked: tuple[Look, Look]) -> None:
    assert looked[0].others() <= set(UNTIL_READY.split())


def test_nor_does_what_comes_behind_it(looked: tuple[Look, Look]) -> None:
    assert looked[1].others() <= {*UNTIL_READY.split(), *BEHIND_IT.split()}
    assert {"starlette", "hypercorn", "zeroconf"} <= looked[1].others(), "this look sees them"


def test_a_start_imports_nothing_slow(looked: tuple[Look, Look]) -> None:
    assert {name for name in NEVER.split() if looked[0].files.get(name)} == set()


def test_what_is_absent_was_not_imported(looked: tuple[Look, Look]) -> None:
    for files in (look.files for look in looked):
        assert files["libp2p.host.basic_host"]
        absent = {name: file for name, file in files.items() if name in BARE or name.startswith(tuple(ABSENT))}
        assert {name for name, file in absent.items() if file} == set()
        assert "libp2p.transport.quic" in absent
    assert looked[1].files["anyio"], "absent for py-libp2p alone"


def test_the_settings_are_those_of_join(looked: tuple[Look, Look], tmp_path: Path) -> None:
    """The look above only imports. This is `federation join` with its defaults, but for ports and multicast."""
    program = f"""
import sys, threading
from federation.cli import join
from federation.cli.grammar.parser import parse
from federation import daemon
serve = daemon.serve
def stop_at_ready(*given, on_ready, **more):
    def ready(answer):
        print(sorted({{name.partition('.')[0] for name, m in sys.modules.items() if getattr(m, '__file__', None)}}))
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGTERM)
    return serve(*given, on_ready=ready, **more)
import os, signal
daemon.serve = stop_at_ready
join.join(parse(["join", "--state-dir", {str(tmp_path)!r}, "--no-mdns", "--no-detect", "--listen", "127.0.0.1:0",
    "--p2p-listen", "127.0.0.1:0", "--control", "127.0.0.1:0"], "0"))
"""
    imported = Look(literal_eval(run(program).splitlines()[0]), {})
    assert imported.others() <= set(UNTIL_READY.split())
    assert "trio" in imported.others()


@pytest.mark.parametrize("name", sorted({*ABSENT, *BARE}))
def test_there_is_such_a_module(name: str) -> None:
    """Or else this version of py-libp2p no longer has it, and the table says nothing."""
    assert find_spec(name) is not None


def test_other_programs_have_all_of_it() -> None:
    said = run("import libp2p.crypto.rsa, federation.net.host; print(libp2p.__file__, libp2p.crypto.rsa.__file__)")
    assert "None" not in said


def test_a_certificate_is_read_by_the_whole_package(tmp_path: Path) -> None:
    pair = self_signed(tmp_path)
    said = run(f"""
import federation.light, sys
from cryptography import x509
from cryptography.x509.oid import NameOID
assert "cryptography.x509.base" not in sys.modules
read = x509.load_pem_x509_certificate(open({str(pair.cert)!r}, "rb").read())
print(read.subject.get_attributes_for_oid(NameOID.COMMON_NAME))
""")
    assert "value='server'" in said


def test_messages_of_protobuf_are_as_ever() -> None:
    assert (
        run("""
import federation.light
from libp2p.pubsub.pb import rpc_pb2
message = rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid="a")])
print(str(rpc_pb2.RPC.FromString(message.SerializeToString())).split(), repr(message)[:13])
""")
        == "['subscriptions', '{', 'subscribe:', 'true', 'topicid:', '\"a\"', '}'] subscriptions\n"
    )


def test_what_is_not_installed_is_not_imported(looked: tuple[Look, Look]) -> None:
    """Neither by a daemon nor by a look into the DHT."""
    root = Path(__file__).parents[1]
    left_out = {
        name.replace("_", "-") for name in re.findall(r"^([\w.-]+);", (root / "scripts/unreached.txt").read_text(), re.M)
    }
    dht = json.loads(
        run("""
import json, sys
from federation import absent
from federation.net.discover import look
absent.install(absent=look.ABSENT)
import federation.net.discover.dht
print(json.dumps([name for name, module in sys.modules.items() if getattr(module, "__file__", None)]))
""")
    )
    of = packages_distributions()
    for names in (dht, looked[1].packages):
        needed = {each.lower().replace("_", "-") for name in names for each in of.get(name.partition(".")[0], [])}
        assert "libp2p" in needed
        assert needed & left_out == set()


def test_logs_need_no_rich() -> None:
    assert run("import federation.light, sys, rich; print('rich.console' in sys.modules)") == "False\n", "it can be imported"
