"""What stands for a module that is absent, bare or hidden. Each look is a process of its own, whose imports it changes."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose parts import each other, and say so."""
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / "__init__.py").write_text("print('whole')\nfrom shop.till import Till\nfrom shop.cellar import Wine\n")
    (shop / "till.py").write_text("print('till')\nclass Till: pass\n")
    (shop / "cellar.py").write_text("print('cellar')\nclass Wine: pass\nclass CorkError(OSError): pass\n")
    (tmp_path / "visitor.py").write_text("import shop\nprint(hasattr(shop, '__file__'))\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return shop


def test_the_parts_of_a_bare_package_come_alone(shop: Path) -> None:
    assert run("""
from federation import absent
absent.install(bare={"shop"})
import shop.till
print(shop.till.Till.__name__)
""").split() == ["till", "Till"]


def test_who_asks_a_bare_package_for_a_name_gets_all_of_it_once(shop: Path) -> None:
    assert run("""
from federation import absent
absent.install(bare={"shop"})
from shop import Till
from shop import Wine
import shop.till
print(Till is shop.till.Till, hasattr(shop, "Bread"))
""").split() == ["whole", "till", "cellar", "True", "False"]


def test_an_absent_module_needs_not_be_there_and_nor_do_its_parts(shop: Path) -> None:
    assert run("""
from federation import absent
absent.install(absent={"shop.cellar", "nowhere"})
import shop
from shop.cellar import CorkError
from nowhere.at.all import Anything
made = Anything(1, key=2)
class Heir(Anything): ...
print(bool(made), issubclass(CorkError, Exception), isinstance(Heir(), Anything))
""").split() == ["whole", "till", "False", "True", "True"]


def test_what_is_absent_says_so_when_it_is_used() -> None:
    said = run("""
import federation.absent, federation.light
from libp2p.crypto.rsa import RSAPublicKey
from libp2p.transport.quic.connection import QUICConnection
from libp2p.transport.quic.exceptions import QUICStreamError
assert not isinstance(object(), QUICConnection) and issubclass(QUICStreamError, Exception)
for use in (lambda: RSAPublicKey.from_bytes(b""), lambda: QUICConnection().open_stream()):
    try:
        use()
    except federation.absent.NotReached as error:
        print(error)
""")
    assert [line.partition(" is not imported here")[0] for line in said.splitlines()] == [
        "libp2p.crypto.rsa.RSAPublicKey.from_bytes",
        "libp2p.transport.quic.connection.QUICConnection.open_stream",
    ]


def test_what_is_hidden_is_hidden_from_one_alone_and_while_it_is_imported(shop: Path) -> None:
    assert run("""
from federation import absent
absent.install(without={"visitor": ["shop"]})
import visitor
import sys
print("shop" in sys.modules)
import shop
print(hasattr(shop, "__file__"))
""").split() == ["False", "False", "whole", "till", "cellar", "True"]


def test_what_was_imported_before_stays(shop: Path) -> None:
    assert run("""
import shop
from federation import absent
absent.install(absent={"shop"}, without={"visitor": ["shop"]})
import shop as again, visitor
print(again is shop)
""").split() == ["whole", "till", "cellar", "True", "True"]
