"""What a container engine would read of examples/: that it is well-formed and names what exists."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from federation.cli.grammar.parser import parse
from federation.config import Settings, load

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def joins(words: list[str]) -> Settings:
    """The settings of a `federation join ...`, if it is one that is understood."""
    args = parse(words, "0")
    assert args.command == "join"
    return load({field: value for field, value in vars(args).items() if field not in ("command", "parser", "config")})


@pytest.mark.parametrize(
    "path", sorted(path for path in EXAMPLES.iterdir() if path.suffix != ".json"), ids=lambda path: path.name
)
def test_nothing_lies_where_others_may_write_and_no_token_in_a_command_line(path: Path) -> None:
    text = path.read_text()
    assert re.findall(r"(?<![\w.])/(?:tmp|var/tmp|dev/shm)/\S*", text) == []
    assert re.findall(r"--token[ =]\S+|FEDERATION_TOKEN[:=].*|echo +[\"']?fed1_\S*", text) == []
    for line in re.findall(r"^.*(?:token new|federation invite)[^|\n]*>.*$", text, re.M):
        assert "umask 077" in line or '"$work/' in line, line  # mktemp -d makes that for its user alone


def test_dockerfile() -> None:
    text = (EXAMPLES / "Dockerfile").read_text()
    ignored = (EXAMPLES / "Dockerfile.dockerignore").read_text().splitlines()
    for name in re.findall(r"[\w./]+\.lock", text):
        assert (ROOT / name).is_file(), name
        assert f"!{name}" in ignored
    assert "*" in ignored  # a token in the checkout is none of the build's business
    assert all((ROOT / line[1:]).exists() for line in ignored if line.startswith("!"))
    installs = re.findall(r"(?:pip install|pip sync) [^\\\n&]*", text)
    assert len(installs) == 4
    assert all("--require-hashes" in one or one == "pip install --no-deps /dist/*.whl" for one in map(str.strip, installs))
    _, build, run = re.split(r"^FROM ", text, flags=re.M)
    assert "dev.lock" not in text
    assert re.search(r"^USER (?!root)", run, re.M)
    assert "COPY . ." in build
    assert "COPY . ." not in run
    (command,) = re.findall(r"^CMD (\[.*\])$", text, re.M)
    settings = joins(json.loads(command))
    assert str(settings.listens[0].address.port) in re.findall(r"^EXPOSE (.*)$", text, re.M)[0].split()
    (check,) = re.findall(r"HEALTHCHECK .* CMD (\[.*\])$", text, re.M)
    assert parse(json.loads(check)[1:], "0").command == "status"


def test_compose() -> None:
    text = (EXAMPLES / "compose.yaml").read_text()
    (command,) = re.findall(r"^    command: (\[.*\])$", text, re.M)
    settings = joins(json.loads(command))
    assert str(settings.backends[0].address) == "ollama:11434"
    assert "\n  ollama:\n" in text
    ports = {port.split(":")[-1] for port in re.findall(r'^      - "([\d.:]+)"', text, re.M)}
    assert ports == {"4484", "8484"}
    (grace,) = re.findall(r"stop_grace_period: (\d+)s", text)
    assert int(grace) > settings.drain_timeout_s
    for variable in re.findall(r"FEDERATION_(\w+): ", text):
        assert variable.lower() in {"name", "announce", "mdns"}


def test_composes_variables_come_from_a_file_so_that_all_of_its_commands_have_them() -> None:
    text = (EXAMPLES / "compose.yaml").read_text()
    wanted = re.findall(r"\$\{(\w+):\?", text)
    assert len(wanted) == text.count("${")
    given = dict(line.split("=") for line in (EXAMPLES / ".env.example").read_text().splitlines() if "#" not in line)
    assert set(given) == set(wanted)
    assert "cp examples/.env.example examples/.env" in text
    assert load({"name": given["FEDERATION_NAME"], "announce": [given["PUBLIC_ADDRESS"]]}).announce[0].port == 4484


def test_composes_secret_is_made_readable_for_the_images_user() -> None:
    """Docker binds the file with the owner and mode that it has on the host."""
    (uid,) = re.findall(r"useradd --uid (\d+)", (EXAMPLES / "Dockerfile").read_text())
    assert f"sudo chown {uid} token" in (EXAMPLES / "compose.yaml").read_text()


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed")
def test_compose_itself_reads_the_file_in_a_shell_that_exports_nothing(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    (tmp_path / "token").touch()
    command = ["docker-compose", "-f", "examples/compose.yaml", "config"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, "examples/.env" in done.stderr) == (1, True)
    shutil.copy(EXAMPLES / ".env.example", tmp_path / "examples/.env")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "FEDERATION_NAME: box1" in done.stdout


def test_the_image_gets_nothing_that_tests_or_builds() -> None:
    """requirements.lock is all that it installs."""
    pinned = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text(), re.M))
    assert pinned >= {"libp2p", "starlette", "hypercorn"}
    assert pinned & {"pytest", "mypy", "ruff", "hypothesis", "schemathesis", "werkzeug", "hatchling", "setuptools"} == set()
