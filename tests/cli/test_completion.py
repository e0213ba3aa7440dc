from __future__ import annotations

import shutil
import subprocess
from argparse import Namespace

import pytest

from federation.cli import completion
from federation.cli.completion import grammar


def script(shell: str) -> str:
    made: str = getattr(completion, shell)(list(grammar()))
    return made


def completed(line: str) -> set[str]:
    """What bash offers for the last word of `line`."""
    words = line.split(" ")
    code = f"""{script("bash")}
COMP_WORDS=({" ".join(f"'{word}'" for word in words)}); COMP_CWORD={len(words) - 1}
_federation; printf '%s\\n' "${{COMPREPLY[@]}}" """
    done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_every_command_is_there() -> None:
    from federation.cli.main import _COMMANDS

    assert {command.name for command in grammar()} - {"", "token", "owner", "key", "service"} == set(_COMMANDS)
    assert all(command.help for command in grammar() if command.name)


def test_bash_completes_commands() -> None:
    assert completed("federation dra") == {"drain"}
    assert {"join", "status", "token", "--help"} <= completed("federation ")
    assert completed("federation token ") >= {"new", "inspect"}
    assert completed("federation nonsense ") == completed("federation ")


def test_bash_completes_options_of_the_command_that_is_typed() -> None:
    assert completed("federation drain --w") == {"--wait"}
    assert completed("federation token new --pe") == {"--peer"}
    assert completed("federation join --no-m") == {"--no-mdns"}
    assert completed("federation status --wait") == set()
    assert completed("federation completion ") >= {"bash", "zsh", "fish"}


def test_bash_completes_paths_where_a_path_belongs(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    (tmp_path / "secret-file").touch()  # type: ignore[operator]
    assert completed("federation join --token-file sec") == {"secret-file"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_itself_can_read_it(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n"], input=script(shell), text=True, check=True, capture_output=True)


def test_fish_offers_the_same() -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    for line, wanted in (("federation dra", "drain"), ("federation drain --wa", "--wait"), ("federation token ne", "new")):
        code = f"{script('fish')}\ncomplete -C '{line}'"
        done = subprocess.run(["fish", "--no-config", "-c", code], capture_output=True, text=True, check=True)
        assert [row.split("\t")[0] for row in done.stdout.splitlines()] == [wanted]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_it_is_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    completion.completion(Namespace(shell=shell))
    assert capsys.readouterr().out == script(shell) + "\n"


def test_quotes() -> None:
    assert completion._quoted("it's") == "'it'\\''s'"
