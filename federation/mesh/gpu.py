"""This machine's VRAM, in all and free: NVIDIA through NVML, AMD through sysfs, Apple, Jetson, or none.

A machine without a GPU is normal, and so is a driver that fails for a while. So a probe never raises: a reading says
where it comes from and, where something could not be read, why (`federation status` shows it).

A GPU without memory of its own uses the machine's (GB10, Jetson, Apple, AMD's APUs): its figures are then the machine's, and
the note says so. A GPU that sleeps is not asked, since the question wakes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import platform as host
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from federation.mesh.records import Gpu

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

T = TypeVar("T")

READ_TIMEOUT_S = 4.0  # a driver may need 2-3 s to wake a GPU; a node announces itself every 5 s

_MAX_GPUS = 64  # as in a record
_MAX_NAME_CHARS = 64  # as in a record
# On the loader's path, or where WSL and NixOS keep it; once it is loaded, pynvml finds it by its name.
_NVML_LIBRARIES = tuple(f"{where}libnvidia-ml.so.1" for where in ("", "/usr/lib/wsl/lib/", "/run/opengl-driver/lib/"))
_NVML_NOT_SUPPORTED = 3  # NVML_ERROR_NOT_SUPPORTED
# Uninitialized, driver not loaded, GPU is lost, reset required, library and driver differ, unknown: a new start may help.
_NVML_START_ANEW = frozenset({1, 9, 15, 16, 18, 999})
# A card that may sleep and has nothing loaded: rarely enough that the driver, which waits some seconds, lets it.
DOZE_S = 30.0
_IDLE_SHARE = 20  # a card with less than a twentieth of its memory in use has nothing loaded
_CARD = re.compile(r"card(\d+)")  # but not its connectors, card0-HDMI-A-1
_PAGE_SIZE = re.compile(r"page size of (\d+) bytes")
_MEMORY = re.compile(r"^(MemTotal|MemAvailable): +([0-9]{1,15}) kB$", re.MULTILINE)
_FREE_PAGES = re.compile(r"^Pages (?:free|inactive|speculative): +(\d+)\.", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class GpuReading:
    """VRAM in bytes; `source` is nvml, amd-sysfs, jetson, apple, fixed or none; `note` is for people."""

    gpus: tuple[Gpu, ...]
    source: str
    note: str = ""

    @property
    def total_vram(self) -> int:
        return sum(gpu.total_vram for gpu in self.gpus)

    @property
    def available_vram(self) -> int:
        return sum(gpu.available_vram for gpu in self.gpus)


def run_command(argv: Sequence[str]) -> str:
    """Run a command and return its output. Raises OSError or subprocess.SubprocessError."""
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=READ_TIMEOUT_S).stdout


class GpuProbe:
    """Reads the GPUs of this machine, in a worker thread: a driver may block for seconds, or for good.

    `nvml` is a module like pynvml (None: pynvml), `run` runs a command and returns its output, `fixed_bytes` is the free
    VRAM that a person stated: then the probe reads nothing. `only`: numbers and UUIDs of the GPUs that count (None: all);
    a number is a GPU's place in the list of `nvidia-smi -L`, or among AMD's cards. `pci`: NVIDIA's driver with its cards.
    """

    def __init__(
        self,
        *,
        nvml: Any = None,
        sysfs: Path = Path("/sys/class/drm"),
        pci: Path = Path("/sys/bus/pci/drivers/nvidia"),
        meminfo: Path = Path("/proc/meminfo"),
        device_tree: Path = Path("/proc/device-tree"),
        platform: str = sys.platform,
        machine: str = host.machine(),
        run: Callable[[Sequence[str]], str] = run_command,
        fixed_bytes: int | None = None,
        only: Sequence[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._memory = _Memory(meminfo)
        self._only = only
        self._nvml = _Nvml(nvml, pci, self._memory, only, clock)
        self._sysfs = sysfs
        self._device_tree = device_tree
        self._is_mac = platform == "darwin"
        self._is_apple_silicon = self._is_mac and machine == "arm64"
        self._run = run
        self._fixed_bytes = fixed_bytes
        self._one_at_a_time = trio.CapacityLimiter(1)  # readings wait for a thread that hangs; no second one starts

    async def read(self, *, is_needed: bool = True) -> GpuReading:
        """`is_needed`: whether this node offers a server, whose memory it is; else no driver is asked or kept awake."""
        if self._fixed_bytes is not None:
            return GpuReading((_gpu("fixed", self._fixed_bytes, self._fixed_bytes),), "fixed")
        if not is_needed:
            return GpuReading((), "none", "not asked: this node offers no server")
        with trio.move_on_after(READ_TIMEOUT_S):
            return await self._in_thread(self._read)
        return GpuReading((), "none", f"the GPU driver does not answer (waited {READ_TIMEOUT_S:g} s)")

    async def aclose(self) -> None:
        with trio.move_on_after(READ_TIMEOUT_S):
            await self._in_thread(self._nvml.shut_down)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        limiter = self._one_at_a_time
        # The stubs are trio-typing's, which libp2p brings: they shadow trio's own types, and are older.
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=limiter)  # type: ignore[call-arg]

    def _read(self) -> GpuReading:
        if self._is_mac:
            gpu, note = _read_apple(self._run) if self._is_apple_silicon else (None, "no GPU is read on an Intel Mac")
            return GpuReading((gpu,), "apple", note) if gpu else GpuReading((), "none", note)
        if self._only == ():
            return GpuReading((), "none", "no GPU of this machine counts (--gpus, CUDA_VISIBLE_DEVICES)")
        nvidia, nvidia_note = self._nvml.read()
        if nvidia:
            return GpuReading(tuple(nvidia[:_MAX_GPUS]), "nvml", nvidia_note)
        jetson, jetson_note = _read_jetson(self._device_tree, self._memory)
        if jetson:
            return GpuReading((jetson,), "jetson", jetson_note)
        amd, amd_note = _read_amd(self._sysfs, self._memory, self._only)
        if amd:
            return GpuReading(tuple(amd[:_MAX_GPUS]), "amd-sysfs", amd_note)
        return GpuReading((), "none", f"{nvidia_note}; {amd_note}")


class _Memory:
    """The machine's memory, for GPUs that share it."""

    def __init__(self, meminfo: Path) -> None:
        self._meminfo = meminfo

    def read(self) -> tuple[int, int]:
        """Total and available bytes. Raises OSError or ValueError."""
        found = {name: int(kib) * 1024 for name, kib in _MEMORY.findall(self._meminfo.read_text(errors="replace"))}
        if len(found) < 2:
            raise ValueError("no memory")
        return found["MemTotal"], found["MemAvailable"]

    def shared(self, name: str) -> Gpu | None:
        """A GPU that has the machine's memory; None where the machine does not tell."""
        try:
            return _gpu(name, *self.read())
        except (OSError, ValueError):
            return None


@dataclass(frozen=True, slots=True)
class _Shared:
    """A GPU whose memory is the machine's; `what` it is in the driver's list."""

    what: str
    name: str


class _Nvml:
    """Initialises NVML once. After an error of the driver it starts NVML anew: the driver may have been reloaded.

    An open session keeps a laptop's card awake. So a card that may sleep and has nothing loaded is asked after a pause,
    without a session meanwhile, and a card that sleeps stands as it was read last.
    """

    def __init__(
        self, nvml: Any, pci: Path, memory: _Memory, only: Sequence[str] | None, clock: Callable[[], float]
    ) -> None:
        self._clock = clock
        self._nvml = nvml
        self._pci = pci
        self._memory = memory
        self._only = only
        self._is_up = False
        self._has_failed = False
        self._last: dict[int, list[Gpu | _Shared | str]] = {}  # by the GPU's number, as it was read last
        self._said: tuple[list[Gpu], str] = ([], "")
        self._dozes_until = 0.0

    def read(self) -> tuple[list[Gpu], str]:
        cards = self._cards()
        asleep = {index for index, card in enumerate(cards) if _power(card, "runtime_status") == "suspended"}
        if cards and len(asleep) == len(cards):
            self.shut_down()
            self._dozes_until = 0.0
            gpus, note = _sort_out(_once_shared(itertools.chain(*self._last.values()), self._memory))
            return gpus, note if gpus else "NVML: the GPU sleeps, and is not woken for this; --vram states its size"
        if self._clock() < self._dozes_until:
            return self._said
        if self._nvml is None and (problem := self._load()):
            return [], problem
        self._said = self._ask(asleep, len(cards))
        if any(_power(card, "control") == "auto" for card in cards) and not any(map(_is_busy, self._said[0])):
            self.shut_down()
            self._dozes_until = self._clock() + DOZE_S
        return self._said

    def _cards(self) -> list[Path]:
        """The driver's cards in PCI's order, which is NVML's. NVML is not needed for this, and no card is woken."""
        try:
            return sorted(self._pci.glob("*:*:*.*"))
        except OSError:
            return []

    def _load(self) -> str:
        # The library alone first: pynvml takes 12 MB, and without the driver it says no more.
        if not any(map(_loads, _NVML_LIBRARIES)):
            return "NVML: no NVIDIA driver"
        try:
            import pynvml
        except ImportError as error:
            return f"NVML: {error}"
        self._nvml = pynvml
        return ""

    def _ask(self, asleep: Collection[int], cards: int) -> tuple[list[Gpu], str]:
        try:
            if not self._is_up:
                self._nvml.nvmlInit()
                self._is_up = True
            count = self._nvml.nvmlDeviceGetCount()
        except self._nvml.NVMLError as error:
            self.shut_down()
            return [], f"NVML: {error}"
        if not count:
            return [], "NVML: no GPU"
        unmatched = list(self._only or ())
        for index in range(count):
            if count != cards or index not in asleep:  # a container may have other GPUs than cards in sight
                self._last[index] = self._read_gpu(index, unmatched)
        sleeps = "NVML: GPU {} sleeps, and is not woken for this"
        found = itertools.chain(*(self._last.get(index, [sleeps.format(index)]) for index in range(count)))
        if self._has_failed:
            self.shut_down()
        gpus, note = _sort_out(_once_shared(found, self._memory))
        if unmatched and not gpus:
            note = "; ".join(
                filter(None, [note, f"NVML: there is no GPU {', '.join(unmatched)} (--gpus, CUDA_VISIBLE_DEVICES)"])
            )
        return gpus, note

    def _read_gpu(self, index: int, unmatched: list[str]) -> list[Gpu | _Shared | str]:
        """The GPU, or its MIG slices, or a note; nothing if it does not count."""
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            is_mig = bool(self._optional("nvmlDeviceGetMigMode", handle, otherwise=[0])[0])
            is_wanted = self._is_wanted(index, handle, unmatched)
            if not is_mig:
                return [self._read_memory(f"GPU {index}", handle)] if is_wanted else []
            slices = [slice_ for slice_ in self._slices(handle) if is_wanted or self._is_wanted(-1, slice_, unmatched)]
            if slices or not is_wanted:
                return [self._read_memory(f"GPU {index}, slice {at}", slice_) for at, slice_ in enumerate(slices)]
            return [f"NVML: GPU {index} is in MIG mode, and no slice of it is here"]
        except nvml.NVMLError as error:
            return [self._failed(f"GPU {index}", error)]

    def _slices(self, handle: Any) -> list[Any]:
        most = self._optional("nvmlDeviceGetMaxMigDeviceCount", handle, otherwise=0)
        found = (self._optional("nvmlDeviceGetMigDeviceHandleByIndex", handle, at) for at in range(most))
        return [slice_ for slice_ in found if slice_ is not None]

    def _is_wanted(self, index: int, handle: Any, unmatched: list[str]) -> bool:
        if self._only is None:
            return True
        by_uuid = [item for item in self._only if not item.isdigit()]
        uuid = str(self._optional("nvmlDeviceGetUUID", handle, otherwise="")).lower() if by_uuid else ""
        wanted = [item for item in self._only if item == str(index) or (item in by_uuid and uuid.startswith(item.lower()))]
        unmatched[:] = [item for item in unmatched if item not in wanted]
        return bool(wanted)

    def _read_memory(self, what: str, handle: Any) -> Gpu | _Shared | str:
        try:
            try:
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
            except self._nvml.NVMLError as error:
                if error.value != _NVML_NOT_SUPPORTED:
                    raise
                memory = None
            name = self._optional("nvmlDeviceGetName", handle, otherwise="") or f"NVIDIA {what}"
            if memory is not None and memory.total:
                return _gpu(name, memory.total, memory.free)
            return _Shared(what, name)  # it has none of its own, as a GB10: not a failure
        except self._nvml.NVMLError as error:
            return self._failed(what, error)
        except ValueError:
            return f"NVML: {what}: impossible values"

    def _failed(self, what: str, error: Any) -> str:
        self._has_failed |= getattr(error, "value", None) in _NVML_START_ANEW
        return f"NVML: {what}: {error}"

    def _optional(self, name: str, *args: Any, otherwise: Any = None) -> Any:
        """An answer that an old driver, or this GPU, may not have, or may write in other bytes than text has."""
        try:
            return getattr(self._nvml, name)(*args)
        except (AttributeError, ValueError, self._nvml.NVMLError):
            return otherwise

    def shut_down(self) -> None:
        if self._is_up:
            self._is_up = self._has_failed = False
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()


def _once_shared(results: Iterable[Gpu | _Shared | str], memory: _Memory) -> Iterator[Gpu | str]:
    """The machine's memory counts once, however many GPUs share it."""
    is_counted = False
    for result in results:
        if not isinstance(result, _Shared):
            yield result
        elif not is_counted and (gpu := memory.shared(result.name)):
            is_counted = True
            yield gpu
            yield f"{result.what} shares the machine's memory"
        elif not is_counted:
            yield f"NVML: {result.what} does not say how much memory it has; use --vram"


def _is_busy(gpu: Gpu) -> bool:
    return (gpu.total_vram - gpu.available_vram) * _IDLE_SHARE > gpu.total_vram


def _loads(library: str | None) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _power(card: Path, what: str) -> str:
    try:
        return (card / "power" / what).read_text(errors="replace").strip()
    except OSError:
        return ""


def _read_jetson(device_tree: Path, memory: _Memory) -> tuple[Gpu | None, str]:
    """A Jetson whose system has no NVML: its GPU shares the machine's memory."""
    try:
        if b"nvidia,tegra" not in (device_tree / "compatible").read_bytes():
            return None, ""
        name = (device_tree / "model").read_text(errors="replace").strip("\0\n ")
    except OSError:
        return None, ""
    return memory.shared(name or "NVIDIA Jetson"), "the GPU shares the machine's memory"


def _read_amd(sysfs: Path, memory: _Memory, only: Sequence[str] | None) -> tuple[list[Gpu], str]:
    """AMD's cards; the graphics of a processor (APU) only where there is no card, as inference servers use them."""
    found = {int(match[1]): path / "device" for path in sysfs.glob("card*") if (match := _CARD.fullmatch(path.name))}
    cards = [(index, device) for index, device in sorted(found.items()) if (device / "mem_info_vram_total").exists()]
    if only is not None:
        cards = [(index, device) for at, (index, device) in enumerate(cards) if _is_wanted_amd(at, device, only)]
    apus = [(index, device) for index, device in cards if _is_apu(device)]
    if len(apus) < len(cards):
        cards = [card for card in cards if card not in apus]
    gpus, note = _sort_out(_read_card(index, device, memory) for index, device in cards)
    if gpus and cards == apus:
        note = "; ".join(filter(None, ["the GPU shares the machine's memory", note]))
    return gpus, note or ("" if gpus else "AMD: no GPU")


def _is_wanted_amd(at: int, device: Path, only: Sequence[str]) -> bool:
    unique_id = f"gpu-{_amd_text(device, 'unique_id').lower()}"
    return any(item == str(at) or (not item.isdigit() and unique_id.startswith(item.lower())) for item in only)


def _is_apu(device: Path) -> bool:
    """AMD's processors have graphics of the numbers 0x1xxx and 0x9xxx (0x98e4, 0x1586), its cards of 0x6xxx and 0x7xxx."""
    return _amd_text(device, "device").lower().startswith(("0x1", "0x9"))


def _read_card(index: int, device: Path, memory: _Memory) -> Gpu | str:
    """A card's own memory; of an APU also the machine's that it may use (GTT), beside which its own is a carve-out."""
    try:
        total, used = _amd_memory(device, "vram")
        free = total - used
        if _is_apu(device) and (device / "mem_info_gtt_total").exists():
            gtt, gtt_used = _amd_memory(device, "gtt")
            of_machine, available = memory.read()  # less than GTT: a container's share, which says nothing about it
            total += gtt
            free += min(gtt - gtt_used, available) if gtt <= of_machine else gtt - gtt_used
        return _gpu(_amd_text(device, "product_name") or f"AMD GPU {index}", total, free)
    except OSError as error:
        return f"AMD: card{index}: {error.strerror}"
    except ValueError:
        return f"AMD: card{index}: impossible values"


def _amd_memory(device: Path, kind: str) -> tuple[int, int]:
    """Total and used bytes. Raises OSError or ValueError."""
    total, used = (int((device / f"mem_info_{kind}_{what}").read_text()) for what in ("total", "used"))
    return total, used


def _amd_text(device: Path, name: str) -> str:
    try:
        return (device / name).read_text(errors="replace").strip()
    except OSError:  # most consumer cards have no product_name, say
        return ""


def _read_apple(run: Callable[[Sequence[str]], str]) -> tuple[Gpu | None, str]:
    """Read Apple's shared memory: bytes that the system could free at once count as free."""
    try:
        total, name = run(["sysctl", "-n", "hw.memsize", "machdep.cpu.brand_string"]).splitlines()
        vm_stat = run(["vm_stat"])
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"Apple: {error}"
    except ValueError:
        return None, "Apple: sysctl prints something else than expected"
    page_size, free_pages = _PAGE_SIZE.search(vm_stat), _FREE_PAGES.findall(vm_stat)
    if page_size is None or not free_pages:
        return None, "Apple: vm_stat prints something else than expected"
    try:
        return _gpu(name, int(total), int(page_size[1]) * sum(map(int, free_pages))), ""
    except ValueError:
        return None, "Apple: impossible values"


def _sort_out(results: Iterable[Gpu | str]) -> tuple[list[Gpu], str]:
    """Separate the GPUs from the notes on those that could not be read."""
    seen = list(results)
    gpus = [result for result in seen if isinstance(result, Gpu)]
    notes = [result for result in seen if isinstance(result, str) and result]
    return gpus, "; ".join(notes)


def _gpu(name: str | bytes, total: int, free: int) -> Gpu:
    """Make a Gpu. Raises ValueError (pydantic's) for numbers out of range."""
    text = name.decode(errors="replace") if isinstance(name, bytes) else name
    printable = "".join(filter(str.isprintable, text))
    return Gpu(name=printable[:_MAX_NAME_CHARS], total_vram=total, available_vram=max(0, min(free, total)))
