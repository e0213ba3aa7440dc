"""A fake NVML, a sysfs in a directory, a Mac that is two functions; and what happens when each of them fails."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from federation.mesh import gpu as gpu_module
from federation.mesh.gpu import GpuProbe, run_command

GIB = 2**30
NOT_SUPPORTED, GPU_IS_LOST, LIBRARY_NOT_FOUND = 3, 15, 12  # NVML's numbers


class FakeNvml:
    """`gpus` are (name, total, free), or the error number that the GPU's memory query ends in."""

    class NVMLError(Exception):
        def __init__(self, value: int) -> None:
            self.value = value

        def __str__(self) -> str:
            return {NOT_SUPPORTED: "Not Supported", GPU_IS_LOST: "GPU is lost", LIBRARY_NOT_FOUND: "No Library"}[self.value]

    def __init__(self, *gpus) -> None:
        self.gpus = list(gpus)
        self.fail_init = self.fail_count = self.fail_shutdown = None
        self.inits = self.shutdowns = 0
        self.threads: set[int] = set()

    def nvmlInit(self) -> None:
        self.inits += 1
        self._fail(self.fail_init)

    def nvmlShutdown(self) -> None:
        assert self.inits > self.shutdowns
        self.shutdowns += 1
        self._fail(self.fail_shutdown)

    def nvmlDeviceGetCount(self) -> int:
        assert self.inits > self.shutdowns
        self.threads.add(threading.get_ident())
        self._fail(self.fail_count)
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        assert self.inits > self.shutdowns
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        if isinstance(self.gpus[handle], int):
            self._fail(self.gpus[handle])
        return SimpleNamespace(total=self.gpus[handle][1], free=self.gpus[handle][2], used=0)

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:
        return self.gpus[handle][0]

    def _fail(self, value: int | None) -> None:
        if value is not None:
            raise self.NVMLError(value)


@pytest.fixture
def linux(tmp_path):
    """A probe of a Linux machine whose sysfs is tmp_path; nothing of this machine shows through."""

    def no_commands(argv):
        raise AssertionError(f"{argv} was run")

    def make(nvml=None, **changed) -> GpuProbe:
        machine = {"nvml": nvml or FakeNvml(), "sysfs": tmp_path, "platform": "linux", "machine": "x86_64"}
        return GpuProbe(**machine, run=no_commands, **changed)

    return make


def sizes(reading) -> list[tuple[str, int, int]]:
    return [(gpu.name, gpu.total_vram, gpu.available_vram) for gpu in reading.gpus]


# NVIDIA


async def test_nvml_total_and_free_bytes_of_each_gpu(linux) -> None:
    reading = await linux(FakeNvml(("RTX 4090", 24 * GIB, 20 * GIB), (b"RTX 3060", 12 * GIB, GIB))).read()
    assert sizes(reading) == [("RTX 4090", 24 * GIB, 20 * GIB), ("RTX 3060", 12 * GIB, GIB)]
    assert (reading.source, reading.note) == ("nvml", "")
    assert (reading.total_vram, reading.available_vram) == (36 * GIB, 21 * GIB)


async def test_nvml_is_asked_in_a_worker_thread_and_started_once(linux) -> None:
    nvml = FakeNvml(("GPU", 2, 1))
    probe = linux(nvml)
    await probe.read()
    await probe.read()
    assert nvml.threads
    assert threading.get_ident() not in nvml.threads
    assert (nvml.inits, nvml.shutdowns) == (1, 0)
    await probe.aclose()
    await probe.aclose()
    assert (nvml.inits, nvml.shutdowns) == (1, 1)


async def test_each_reading_is_new(linux) -> None:
    nvml = FakeNvml(("GPU", 8, 8))
    probe = linux(nvml)
    assert (await probe.read()).available_vram == 8
    nvml.gpus = [("GPU", 8, 3)]
    assert (await probe.read()).available_vram == 3


async def test_no_nvml_library_is_a_note(linux) -> None:
    nvml = FakeNvml()
    nvml.fail_init = LIBRARY_NOT_FOUND
    reading = await linux(nvml).read()
    assert (reading.gpus, reading.source, reading.note) == ((), "none", "NVML: No Library; AMD: no GPU")
    assert (reading.total_vram, reading.available_vram) == (0, 0)
    assert nvml.shutdowns == 0


async def test_no_driver_is_a_note_and_loads_no_pynvml(linux, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(gpu_module, "_NVML_LIBRARY", "libno-such-driver.so")
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    reading = await GpuProbe(sysfs=tmp_path, platform="linux").read()
    assert reading.note.startswith("NVML: no NVIDIA driver")
    assert "pynvml" not in sys.modules


async def test_no_pynvml_is_a_note(linux, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(gpu_module, "_NVML_LIBRARY", None)  # this program itself: it loads anywhere
    monkeypatch.setitem(sys.modules, "pynvml", None)
    reading = await GpuProbe(sysfs=tmp_path, platform="linux").read()
    assert reading.source == "none"
    assert "pynvml" in reading.note


async def test_the_real_pynvml_is_what_is_imported(tmp_path) -> None:
    """Whatever GPUs this machine has, or none: the names and the error class are really there."""
    pytest.importorskip("pynvml")
    probe = GpuProbe(sysfs=tmp_path, platform="linux")
    reading = await probe.read()
    await probe.aclose()
    assert reading.source == "nvml" or reading.note.startswith("NVML: ")


async def test_nvml_comes_back_after_an_error(linux) -> None:
    """The driver was upgraded under us, say: every call fails until NVML is started anew."""
    nvml = FakeNvml(("GPU", 8, 8))
    probe = linux(nvml)
    await probe.read()
    nvml.fail_count, nvml.fail_shutdown = GPU_IS_LOST, GPU_IS_LOST
    assert (await probe.read()).note.startswith("NVML: GPU is lost")
    nvml.fail_count = None
    assert (await probe.read()).source == "nvml"
    assert (nvml.inits, nvml.shutdowns) == (2, 1)


async def test_a_lost_gpu_does_not_hide_the_others(linux) -> None:
    nvml = FakeNvml(("a", 8, 8), GPU_IS_LOST, ("c", 4, 4))
    probe = linux(nvml)
    reading = await probe.read()
    assert [gpu.name for gpu in reading.gpus] == ["a", "c"]
    assert reading.note == "NVML: GPU 1: GPU is lost"
    assert nvml.shutdowns == 1
    nvml.gpus[1] = ("b", 2, 2)
    assert len((await probe.read()).gpus) == 3


async def test_a_gpu_without_memory_of_its_own_says_what_to_do_and_is_no_reason_to_start_anew(linux) -> None:
    nvml = FakeNvml(NOT_SUPPORTED)
    reading = await linux(nvml).read()
    assert reading.source == "none"
    assert "--vram" in reading.note
    assert nvml.shutdowns == 0


@pytest.mark.parametrize("total", [-1, 2**64 - 1])
async def test_impossible_values_are_a_note(linux, total: int) -> None:
    reading = await linux(FakeNvml(("odd", total, 0), ("fine", 8, 8))).read()
    assert [gpu.name for gpu in reading.gpus] == ["fine"]
    assert reading.note == "NVML: GPU 0: impossible values"


async def test_names_are_fit_to_print_and_fit_into_a_record(linux) -> None:
    reading = await linux(FakeNvml(("x" * 99, 1, 1), ("a\x1b[31m\nb", 1, 1), (b"\xff", 1, 1))).read()
    assert [gpu.name for gpu in reading.gpus] == ["x" * 64, "a[31mb", "\N{REPLACEMENT CHARACTER}"]


async def test_no_more_gpus_than_fit_into_a_record(linux) -> None:
    assert len((await linux(FakeNvml(*[("GPU", 1, 1)] * 70)).read()).gpus) == 64


async def test_more_free_than_there_is_is_all_there_is(linux) -> None:
    assert (await linux(FakeNvml(("GPU", 8, 9))).read()).available_vram == 8


async def test_more_used_than_there_is_is_nothing_free(linux, tmp_path) -> None:
    amd_card(tmp_path, 0, 8, 9)
    assert sizes(await linux().read()) == [("AMD GPU 0", 8, 0)]


async def test_a_driver_that_hangs_is_given_up_and_heard_again_when_it_answers(linux, monkeypatch) -> None:
    nvml, asked, entered, answer = FakeNvml(("GPU", 8, 8)), [], threading.Event(), threading.Event()

    def hang() -> int:
        asked.append(threading.get_ident())
        entered.set()
        answer.wait()
        return 1

    nvml.nvmlDeviceGetCount = hang
    probe = linux(nvml)
    monkeypatch.setattr(gpu_module, "READ_TIMEOUT_S", 0.05)
    try:
        for _ in range(3):
            reading = await probe.read()
            assert (reading.gpus, reading.source) == ((), "none")
            assert "does not answer" in reading.note
        assert entered.wait(60)
        await probe.aclose()
        assert nvml.shutdowns == 0
    finally:
        answer.set()
    monkeypatch.undo()
    assert (await probe.read()).source == "nvml"
    assert len(asked) == 2  # the first and the last: none joined the one that hung


# AMD


def amd_card(sysfs, index: int, total: object, used: object, name: str | None = None) -> None:
    device = sysfs / f"card{index}" / "device"
    device.mkdir(parents=True)
    (device / "mem_info_vram_total").write_text(f"{total}\n")
    (device / "mem_info_vram_used").write_text(f"{used}\n")
    if name is not None:
        (device / "product_name").write_text(f"{name}\n")


async def test_amd_total_and_free_bytes_of_each_card(linux, tmp_path) -> None:
    amd_card(tmp_path, 10, 16 * GIB, 0)
    amd_card(tmp_path, 2, 24 * GIB, 4 * GIB, "Radeon PRO W7900")
    amd_card(tmp_path, 3, 8 * GIB, 0, "")
    (tmp_path / "card0" / "device").mkdir(parents=True)  # another driver's
    (tmp_path / "card2-HDMI-A-1" / "device").mkdir(parents=True)
    (tmp_path / "renderD128").mkdir()
    reading = await linux().read()
    assert sizes(reading) == [
        ("Radeon PRO W7900", 24 * GIB, 20 * GIB),
        ("AMD GPU 3", 8 * GIB, 8 * GIB),
        ("AMD GPU 10", 16 * GIB, 16 * GIB),
    ]
    assert (reading.source, reading.note) == ("amd-sysfs", "")


async def test_nvidia_goes_before_amd(linux, tmp_path) -> None:
    amd_card(tmp_path, 0, 8, 0)
    assert (await linux(FakeNvml(("GPU", 4, 4))).read()).source == "nvml"


async def test_a_card_that_cannot_be_read_is_a_note(linux, tmp_path) -> None:
    amd_card(tmp_path, 0, "many", 0)
    amd_card(tmp_path, 1, 8, 3)
    amd_card(tmp_path, 2, 8, 3)
    (tmp_path / "card2/device/mem_info_vram_used").unlink()
    (tmp_path / "card2/device/mem_info_vram_used").mkdir()
    reading = await linux().read()
    assert sizes(reading) == [("AMD GPU 1", 8, 5)]
    assert reading.note == "AMD: card0: impossible values; AMD: card2: Is a directory"


async def test_no_sysfs_is_no_gpu(linux, tmp_path) -> None:
    reading = await GpuProbe(nvml=FakeNvml(), sysfs=tmp_path / "none", platform="linux").read()
    assert (reading.source, reading.note) == ("none", "NVML: no GPU; AMD: no GPU")


# Apple

VM_STAT = """\
Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               10000.
Pages active:                            500000.
Pages inactive:                            2000.
Pages speculative:                          300.
Pages throttled:                              0.
Pages wired down:                        150000.
Pages purgeable:                           7000.
"Translation faults":                  98765432.
File-backed pages:                       123456.
"""


def mac(sysctl: str = f"{64 * GIB}\nApple M2 Max\n", vm_stat: str = VM_STAT, machine: str = "arm64") -> GpuProbe:
    printed = {
        ("sysctl", "-n", "hw.memsize", "machdep.cpu.brand_string"): sysctl,
        ("vm_stat",): vm_stat,
    }
    return GpuProbe(platform="darwin", machine=machine, run=lambda argv: printed[tuple(argv)])


async def test_apple_memory_is_shared_and_what_can_be_freed_at_once_is_free() -> None:
    reading = await mac().read()
    assert sizes(reading) == [("Apple M2 Max", 64 * GIB, 12300 * 16384)]
    assert (reading.source, reading.note) == ("apple", "")


async def test_an_intel_mac_has_none() -> None:
    reading = await mac(machine="x86_64").read()
    assert (reading.gpus, reading.source) == ((), "none")
    assert "Intel" in reading.note


@pytest.mark.parametrize(
    "probe",
    [
        mac(sysctl=""),
        mac(sysctl="many\nApple M2\n"),
        mac(sysctl=f"{2**64}\nApple M2\n"),
        mac(vm_stat="Usage: vm_stat [interval]"),
        mac(vm_stat="Mach Virtual Memory Statistics: (page size of 16384 bytes)"),
    ],
)
async def test_a_mac_that_prints_something_else_is_a_note(probe: GpuProbe) -> None:
    reading = await probe.read()
    assert reading.source == "none"
    assert reading.note.startswith("Apple: ")


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError("no sysctl"), subprocess.TimeoutExpired("vm_stat", 4), subprocess.CalledProcessError(1, "x")],
)
async def test_a_command_that_fails_is_a_note(error: Exception) -> None:
    def run(argv):
        raise error

    reading = await GpuProbe(platform="darwin", machine="arm64", run=run).read()
    assert (reading.source, reading.note) == ("none", f"Apple: {error}")


def test_run_command_returns_what_is_printed_or_raises() -> None:
    assert run_command([sys.executable, "-c", "print(7)"]) == "7\n"
    with pytest.raises(subprocess.CalledProcessError):
        run_command([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(OSError, match="no-such-command"):
        run_command(["no-such-command"])


# What the person said


@pytest.mark.parametrize("size", [0, 24 * GIB])
async def test_what_the_person_said_is_announced_and_nothing_is_probed(linux, size: int, monkeypatch) -> None:
    nvml = FakeNvml(("GPU", 8, 8))
    reading = await linux(nvml, fixed_bytes=size).read()
    assert (reading.source, reading.total_vram, reading.available_vram) == ("fixed", size, size)
    assert nvml.inits == 0


def test_importing_the_module_does_not_import_pynvml() -> None:
    code = "import sys, federation.mesh.gpu; sys.exit('pynvml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
