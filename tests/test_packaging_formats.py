"""What scripts/package makes of its folder: versions, an OCI layout, a .deb. scripts/package-test has the real ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import package
import packaging_formats as formats

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the packages are for Linux")


@pytest.fixture
def built(tmp_path: Path) -> formats.Built:
    folder = tmp_path / "federation-1.0rc1-linux-x86_64"
    (folder / "bin").mkdir(parents=True)
    shutil.copy(Path("/bin/sh").resolve(), folder / "bin/federation")  # a program with libraries
    (folder / "federation").write_text("#!/bin/sh\necho federation 1.0rc1\n")
    (folder / "federation").chmod(0o755)
    (folder / "lib").mkdir()
    (folder / "lib/code.pyc").write_bytes(b"code")
    out = tmp_path / "out"
    out.mkdir()
    return formats.Built(folder, "1.0rc1", "x86_64", glibc="2.17", description="a test", out=out, work=tmp_path)


@pytest.mark.parametrize(
    ("ours", "debian"), [("0.1.0", "0.1.0"), ("1.0rc1", "1.0~rc1"), ("1.0.dev3", "1.0~dev3"), ("2.0b2", "2.0~b2")]
)
def test_a_version_before_a_release_sorts_before_it(ours: str, debian: str) -> None:
    assert formats.debian_version(ours) == debian


def test_an_image_is_an_oci_layout_whose_hashes_agree(built: formats.Built) -> None:
    said = formats.oci(built)
    assert said.startswith("federation-1.0rc1-linux-x86_64.oci.tar")
    with tarfile.open(built.out / "federation-1.0rc1-linux-x86_64.oci.tar") as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]

    def blob(descriptor: dict[str, object]) -> bytes:
        data = files[f"blobs/{str(descriptor['digest']).replace(':', '/')}"]
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" == descriptor["digest"]
        assert len(data) == descriptor["size"]
        return data

    manifest = json.loads(blob(json.loads(files["index.json"])["manifests"][0]))
    config = json.loads(blob(manifest["config"]))
    layer = gzip.decompress(blob(manifest["layers"][0]))
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
    assert (config["architecture"], config["config"]["User"]) == ("amd64", str(formats.USER))
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        members = {member.name: member for member in tar}
        program = tar.extractfile("usr/bin/federation")
        assert program is not None
        assert b"/usr/lib/federation/1.0rc1/bin/federation -I -S -m federation" in program.read()
    assert (members["state"].uid, members["state"].mode) == (formats.USER, 0o700)
    assert members["tmp"].mode == 0o1777
    assert {member.uid for name, member in members.items() if name != "state"} == {0}
    assert "bin/sh" in members
    assert [name for name in members if name.endswith("/libc.so.6")]


def test_the_same_files_are_the_same_archive(built: formats.Built) -> None:
    one, other = built.out / "one", built.out / "other"
    package.tarball(built.folder, one)
    (built.folder / "lib/code.pyc").touch()
    package.tarball(built.folder, other)
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_a_deb_has_the_folder_of_its_version(built: formats.Built) -> None:
    formats.deb(built)
    made = built.out / "federation_1.0rc1_amd64.deb"
    listed = subprocess.run(["dpkg-deb", "--contents", made], capture_output=True, text=True, check=True).stdout
    assert "./usr/bin/federation -> ../lib/federation/1.0rc1/federation" in listed
    assert "./usr/lib/federation/1.0rc1/lib/code.pyc" in listed
    fields = subprocess.run(["dpkg-deb", "--field", made], capture_output=True, text=True, check=True).stdout
    assert "Version: 1.0~rc1" in fields
    assert "Depends: libc6 (>= 2.17)" in fields


def test_a_package_that_is_left_out_goes_with_its_files_alone(tmp_path: Path) -> None:
    for name in ("gone/part.py", "kept/part.py", "gone-1.dist-info/METADATA"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "gone-1.dist-info/RECORD").write_text("gone/part.py,,\n../outside.py,,\ngone-1.dist-info/METADATA,,\n")
    outside = tmp_path.parent / "outside.py"
    outside.write_text("")
    package.remove_distribution(tmp_path, "gone")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]
    assert outside.exists()
    with pytest.raises(SystemExit, match=r"requirements.lock has no gone any more"):
        package.remove_distribution(tmp_path, "gone")


def test_a_linked_file_is_not_stripped(tmp_path: Path) -> None:
    """uv links what it installs to its cache: strip would change every environment of the machine."""
    library = tmp_path / "packages/x.so"
    library.parent.mkdir()
    library.write_bytes(b"\x7fELF")
    (tmp_path / "cached.so").hardlink_to(library)
    with pytest.raises(SystemExit, match="a link to a file of others"):
        package.Folder._strip(library.parent)
    assert library.read_bytes() == b"\x7fELF"
