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
NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, LIBRARY_NOT_FOUND, GPU_IS_LOST = 3, 4, 6, 12, 15  # NVML's numbers
SAID = {
    NOT_SUPPORTED: "Not Supported", NO_PERMISSION: "Insufficient Permissions", NOT_FOUND: "Not Found",
    LIBRARY_NOT_FOUND: "No Library", GPU_IS_LOST: "GPU is lost",
}  # fmt: skip


MEMINFO = f"""\
MemTotal:       {128 * 2**20} kB
MemFree:        {5 * 2**20} kB
MemAvailable:   {100 * 2**20} kB
"""


class FakeNvml:
    """`gpus` are (name, total, free), or the error number that the GPU's memory query ends in."""

    class NVMLError(Exception):
        def __init__(self, value: int) -> None:
            self.value = value

        def __str__(self) -> str:
            return SAID[self.value]

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
        machine |= {"pci": tmp_path / "nvidia", "meminfo": tmp_path / "meminfo", "device_tree": tmp_path / "device-tree"}
        (tmp_path / "meminfo").write_text(MEMINFO)
        return GpuProbe(**machine | changed, run=no_commands)

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
    monkeypatch.setattr(gpu_module, "_NVML_LIBRARIES", ("libno-such-driver.so",))
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    reading = await GpuProbe(sysfs=tmp_path, platform="linux").read()
    assert reading.note.startswith("NVML: no NVIDIA driver")
    assert "pynvml" not in sys.modules


async def test_no_pynvml_is_a_note(linux, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(gpu_module, "_NVML_LIBRARIES", (None,))  # this program itself: it loads anywhere
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


# NVIDIA: GPUs that share the machine's memory


@pytest.mark.parametrize("gpu", [NOT_SUPPORTED, ("NVIDIA GB10", 0, 0)])
async def test_a_gpu_without_memory_of_its_own_has_the_machines_and_is_no_reason_to_start_anew(linux, gpu) -> None:
    nvml = FakeNvml(gpu)
    nvml.nvmlDeviceGetName = lambda handle: "NVIDIA GB10"
    reading = await linux(nvml).read()
    assert sizes(reading) == [("NVIDIA GB10", 128 * GIB, 100 * GIB)]
    assert (reading.source, reading.note) == ("nvml", "GPU 0 shares the machine's memory")
    assert nvml.shutdowns == 0


async def test_the_machines_memory_counts_once(linux) -> None:
    reading = await linux(FakeNvml(("GB10", 0, 0), ("GB10", 0, 0), ("RTX 4090", 24 * GIB, GIB))).read()
    assert [gpu.total_vram for gpu in reading.gpus] == [128 * GIB, 24 * GIB]


@pytest.mark.parametrize("text", ["", "MemTotal: 5 kB\n", "MemTotal: many kB\nMemAvailable: 1 kB\n"])
async def test_without_the_machines_memory_the_note_says_what_to_do(linux, tmp_path, text: str) -> None:
    probe = linux(FakeNvml(("GB10", 0, 0)))
    (tmp_path / "meminfo").write_text(text)
    reading = await probe.read()
    assert (reading.gpus, reading.source) == ((), "none")
    assert "--vram" in reading.note


async def test_a_jetson_without_nvml_has_the_machines_memory(linux, tmp_path) -> None:
    (tmp_path / "device-tree").mkdir()
    (tmp_path / "device-tree/compatible").write_bytes(b"nvidia,p3737-0000+p3701-0000\0nvidia,tegra234\0")
    (tmp_path / "device-tree/model").write_bytes(b"NVIDIA Jetson AGX Orin\0")
    reading = await linux().read()
    assert sizes(reading) == [("NVIDIA Jetson AGX Orin", 128 * GIB, 100 * GIB)]
    assert (reading.source, reading.note) == ("jetson", "the GPU shares the machine's memory")
    (tmp_path / "device-tree/compatible").write_bytes(b"raspberrypi,5-model-b\0brcm,bcm2712\0")
    assert (await linux().read()).source == "none"


# NVIDIA: MIG


class Mig(FakeNvml):
    """GPUs in MIG mode, whose own memory may not be read; `slices` are (GPU, name, total, free)."""

    def __init__(self, *gpus, slices=()) -> None:
        super().__init__(*gpus)
        self.slices = slices

    def nvmlDeviceGetMigMode(self, handle) -> list[int]:
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle, at: int) -> str:
        of_gpu = [str(number) for number, slice_ in enumerate(self.slices) if slice_[0] == handle]
        if at >= len(of_gpu):
            raise self.NVMLError(NOT_FOUND)
        return of_gpu[at]

    def nvmlDeviceGetMemoryInfo(self, handle) -> SimpleNamespace:
        if isinstance(handle, int):
            raise self.NVMLError(NO_PERMISSION)
        _, _, total, free = self.slices[int(handle)]
        return SimpleNamespace(total=total, free=free)

    def nvmlDeviceGetName(self, handle) -> str:
        return self.gpus[handle][0] if isinstance(handle, int) else self.slices[int(handle)][1]

    def nvmlDeviceGetUUID(self, handle) -> str:
        return f"GPU-{handle}aaa" if isinstance(handle, int) else f"MIG-{handle}bbb"


A100 = ("A100", 40 * GIB, 36 * GIB)
SLICES = ((0, "3g.20gb", 20 * GIB, 18 * GIB), (0, "2g.10gb", 10 * GIB, 10 * GIB), (1, "7g.40gb", 40 * GIB, 5 * GIB))


async def test_a_gpu_in_mig_mode_is_its_slices_and_what_is_forbidden_is_no_reason_to_start_anew(linux) -> None:
    nvml = Mig(A100, A100, slices=SLICES)
    probe = linux(nvml)
    for _ in range(2):
        reading = await probe.read()
        assert sizes(reading) == [slice_[1:] for slice_ in SLICES]
        assert (reading.source, reading.note) == ("nvml", "")
    assert (nvml.inits, nvml.shutdowns) == (1, 0)


async def test_mig_mode_without_slices_is_a_note(linux) -> None:
    reading = await linux(Mig(A100)).read()
    assert (reading.gpus, reading.source) == ((), "none")
    assert "MIG mode" in reading.note


async def test_a_slice_can_be_the_one_that_counts_or_all_of_a_gpu(linux) -> None:
    assert sizes(await linux(Mig(A100, A100, slices=SLICES), only=("MIG-1",)).read()) == [SLICES[1][1:]]
    assert sizes(await linux(Mig(A100, A100, slices=SLICES), only=("1",)).read()) == [SLICES[2][1:]]


# NVIDIA: odd answers


@pytest.mark.parametrize("value", [NO_PERMISSION, NOT_FOUND, LIBRARY_NOT_FOUND])
async def test_errors_that_a_new_start_does_not_mend_cause_none(linux, value: int) -> None:
    nvml = FakeNvml(value, ("fine", 8, 8))
    probe = linux(nvml)
    for _ in range(2):
        reading = await probe.read()
        assert (sizes(reading), reading.note) == ([("fine", 8, 8)], f"NVML: GPU 0: {SAID[value]}")
    assert (nvml.inits, nvml.shutdowns) == (1, 0)


@pytest.mark.parametrize("error", [UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), NOT_SUPPORTED, ""])
async def test_a_name_that_cannot_be_read_costs_no_gpu(linux, error) -> None:
    def name(handle: int) -> str:
        if isinstance(error, str):
            return error
        raise FakeNvml.NVMLError(error) if isinstance(error, int) else error

    nvml = FakeNvml(("x", 8, 5))
    nvml.nvmlDeviceGetName = name
    assert sizes(await linux(nvml).read()) == [("NVIDIA GPU 0", 8, 5)]
    assert nvml.shutdowns == 0


# Which GPUs count


class WithUuids(FakeNvml):
    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}0000000-1111"


@pytest.mark.parametrize(
    ("only", "names"),
    [
        (None, ["a", "b", "c"]),
        (("0", "2"), ["a", "c"]),
        (("GPU-1",), ["b"]),
        (("gpu-10000000-1111", "0"), ["a", "b"]),
        (("0", "7"), ["a"]),
        ((), []),
        (("7",), []),
    ],
)
async def test_only_gpus_that_count_are_counted(linux, tmp_path, only, names) -> None:
    reading = await linux(WithUuids(("a", 8, 8), ("b", 4, 4), ("c", 2, 2)), only=only).read()
    assert [gpu.name for gpu in reading.gpus] == names
    assert names or "--gpus" in reading.note


async def test_only_cards_of_amd_that_count_are_counted(linux, tmp_path) -> None:
    amd_card(tmp_path, 1, 8, 0)
    amd_card(tmp_path, 2, 4, 0)
    (tmp_path / "card2/device/unique_id").write_text("a1b2c3\n")
    (tmp_path / "card0/device").mkdir(parents=True)  # the first card of AMD's is number 0, whatever other cards there are
    assert [gpu.name for gpu in (await linux(only=("0",)).read()).gpus] == ["AMD GPU 1"]
    assert [gpu.name for gpu in (await linux(only=("GPU-A1B2",)).read()).gpus] == ["AMD GPU 2"]


# GPUs that sleep


def nvidia_card(tmp_path, address: str, *, control: str, status: str) -> None:
    power = tmp_path / "nvidia" / address / "power"
    power.mkdir(parents=True, exist_ok=True)
    (power / "control").write_text(f"{control}\n")
    (power / "runtime_status").write_text(f"{status}\n")


async def test_a_gpu_that_sleeps_is_not_asked_and_stands_as_it_was_read_last(linux, tmp_path) -> None:
    now = [0.0]
    nvml = FakeNvml(("Laptop", 8 * GIB, 8 * GIB))
    probe = linux(nvml, clock=lambda: now[0])
    nvidia_card(tmp_path, "0000:01:00.0", control="auto", status="suspended")
    reading = await probe.read()
    assert (reading.gpus, nvml.inits) == ((), 0)
    assert "sleeps" in reading.note
    nvidia_card(tmp_path, "0000:01:00.0", control="auto", status="active")
    assert (await probe.read()).total_vram == 8 * GIB
    nvidia_card(tmp_path, "0000:01:00.0", control="auto", status="suspended")
    now[0] += 1000
    assert (await probe.read()).total_vram == 8 * GIB
    assert (nvml.inits, nvml.shutdowns) == (1, 1)


async def test_a_gpu_that_may_sleep_is_asked_rarely_while_nothing_is_loaded_and_no_session_keeps_it_awake(
    linux, tmp_path
) -> None:
    now = [0.0]
    nvml = FakeNvml(("Laptop", 8 * GIB, 8 * GIB))
    probe = linux(nvml, clock=lambda: now[0])
    nvidia_card(tmp_path, "0000:01:00.0", control="auto", status="active")
    for _ in range(3):
        assert (await probe.read()).available_vram == 8 * GIB
    assert (nvml.inits, nvml.shutdowns) == (1, 1)
    nvml.gpus = [("Laptop", 8 * GIB, 2 * GIB)]
    now[0] += gpu_module.DOZE_S
    for _ in range(3):  # now a model is loaded, so that it cannot sleep: each reading is new
        assert (await probe.read()).available_vram == 2 * GIB
    assert (nvml.inits, nvml.shutdowns) == (2, 1)
    nvml.gpus = [("Laptop", 8 * GIB, GIB)]
    assert (await probe.read()).available_vram == GIB


async def test_of_two_gpus_the_one_that_is_awake_is_asked(linux, tmp_path) -> None:
    nvml = FakeNvml(("a", 8, 0), ("b", 4, 4))
    probe = linux(nvml)
    nvidia_card(tmp_path, "0000:01:00.0", control="on", status="active")
    nvidia_card(tmp_path, "0000:02:00.0", control="on", status="active")
    await probe.read()
    nvidia_card(tmp_path, "0000:02:00.0", control="on", status="suspended")
    nvml.gpus = [("a", 8, 3), GPU_IS_LOST]
    assert sizes(await probe.read()) == [("a", 8, 3), ("b", 4, 4)]
    assert nvml.shutdowns == 0


async def test_a_gpu_that_was_never_read_and_sleeps_is_a_note(linux, tmp_path) -> None:
    nvidia_card(tmp_path, "0000:01:00.0", control="on", status="active")
    nvidia_card(tmp_path, "0000:02:00.0", control="on", status="suspended")
    reading = await linux(FakeNvml(("a", 8, 3), ("b", 4, 4))).read()
    assert sizes(reading) == [("a", 8, 3)]
    assert "GPU 1 sleeps" in reading.note


async def test_in_a_container_that_sees_more_cards_than_gpus_its_gpus_are_asked(linux, tmp_path) -> None:
    nvidia_card(tmp_path, "0000:01:00.0", control="on", status="suspended")
    nvidia_card(tmp_path, "0000:02:00.0", control="on", status="active")
    assert sizes(await linux(FakeNvml(("b", 4, 4))).read()) == [("b", 4, 4)]


async def test_a_node_that_offers_nothing_asks_no_driver(linux) -> None:
    nvml = FakeNvml(("GPU", 8, 8))
    reading = await linux(nvml).read(is_needed=False)
    assert (reading.gpus, reading.source, nvml.inits) == ((), "none", 0)
    assert (await linux(nvml, fixed_bytes=GIB).read(is_needed=False)).available_vram == GIB


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


def amd_apu(sysfs, index: int, **files: object) -> None:
    amd_card(sysfs, index, GIB // 2, GIB // 8)
    for name, text in ({"device": "0x1586"} | files).items():
        (sysfs / f"card{index}/device" / name).write_text(f"{text}\n")


async def test_an_apu_has_its_own_memory_and_what_it_may_use_of_the_machines(linux, tmp_path) -> None:
    amd_apu(tmp_path, 0, mem_info_gtt_total=96 * GIB, mem_info_gtt_used=GIB)
    reading = await linux().read()
    assert (reading.total_vram, reading.available_vram) == (96 * GIB + GIB // 2, 95 * GIB + GIB * 3 // 8)
    assert (reading.source, reading.note) == ("amd-sysfs", "the GPU shares the machine's memory")


async def test_of_the_machines_memory_an_apu_has_no_more_free_than_the_machine(linux, tmp_path) -> None:
    amd_apu(tmp_path, 0, mem_info_gtt_total=124 * GIB, mem_info_gtt_used=0)
    assert (await linux().read()).available_vram == 100 * GIB + GIB * 3 // 8


async def test_an_apu_that_does_not_tell_of_the_machines_memory_has_its_own(linux, tmp_path) -> None:
    amd_apu(tmp_path, 0)
    assert sizes(await linux().read()) == [("AMD GPU 0", GIB // 2, GIB * 3 // 8)]


async def test_beside_a_card_an_apu_does_not_count_and_a_card_has_its_own_memory_only(linux, tmp_path) -> None:
    amd_apu(tmp_path, 0, mem_info_gtt_total=62 * GIB, mem_info_gtt_used=0)
    amd_apu(tmp_path, 1, device="0x744c", mem_info_gtt_total=62 * GIB, mem_info_gtt_used=0)
    reading = await linux().read()
    assert sizes(reading) == [("AMD GPU 1", GIB // 2, GIB * 3 // 8)]
    assert reading.note == ""


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
    reading = await GpuProbe(nvml=FakeNvml(), sysfs=tmp_path / "none", platform="linux", device_tree=tmp_path).read()
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
