"""This machine's VRAM, in all and free: NVIDIA through NVML, AMD through sysfs, Apple, or none.

A machine without a GPU is normal, and so is a driver that fails for a while. So a probe never raises: a reading says
where it comes from and, where something could not be read, why (`federation status` shows it).
"""

from __future__ import annotations

import contextlib
import ctypes
import platform as host
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from federation.mesh.records import Gpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

T = TypeVar("T")

READ_TIMEOUT_S = 4.0  # a driver may need 2-3 s to wake a GPU; a node announces itself every 5 s

_MAX_GPUS = 64  # as in a record
_MAX_NAME_CHARS = 64  # as in a record
_NVML_LIBRARY = "libnvidia-ml.so.1"
_NVML_NOT_SUPPORTED = 3  # NVML_ERROR_NOT_SUPPORTED
_CARD = re.compile(r"card(\d+)")  # but not its connectors, card0-HDMI-A-1
_PAGE_SIZE = re.compile(r"page size of (\d+) bytes")
_FREE_PAGES = re.compile(r"^Pages (?:free|inactive|speculative): +(\d+)\.", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class GpuReading:
    """VRAM in bytes; `source` is nvml, amd-sysfs, apple, fixed or none; `note` is for people."""

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
    VRAM that a person stated: then the probe reads nothing.
    """

    def __init__(
        self,
        *,
        nvml: Any = None,
        sysfs: Path = Path("/sys/class/drm"),
        platform: str = sys.platform,
        machine: str = host.machine(),
        run: Callable[[Sequence[str]], str] = run_command,
        fixed_bytes: int | None = None,
    ) -> None:
        self._nvml = _Nvml(nvml)
        self._sysfs = sysfs
        self._is_mac = platform == "darwin"
        self._is_apple_silicon = self._is_mac and machine == "arm64"
        self._run = run
        self._fixed_bytes = fixed_bytes
        self._one_at_a_time = trio.CapacityLimiter(1)  # readings wait for a thread that hangs; no second one starts

    async def read(self) -> GpuReading:
        if self._fixed_bytes is not None:
            return GpuReading((_gpu("fixed", self._fixed_bytes, self._fixed_bytes),), "fixed")
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
        nvidia, nvidia_note = self._nvml.read()
        if nvidia:
            return GpuReading(tuple(nvidia[:_MAX_GPUS]), "nvml", nvidia_note)
        amd, amd_note = _read_amd(self._sysfs)
        if amd:
            return GpuReading(tuple(amd[:_MAX_GPUS]), "amd-sysfs", amd_note)
        return GpuReading((), "none", f"{nvidia_note}; {amd_note}")


class _Nvml:
    """Initialises NVML once. After an error it starts NVML anew: the driver may have been reloaded, or upgraded."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._is_up = False
        self._has_failed = False

    def read(self) -> tuple[list[Gpu], str]:
        if self._nvml is None:
            try:
                ctypes.CDLL(_NVML_LIBRARY)  # asked first: pynvml takes 12 MB, and without the driver it says no more
                import pynvml

                self._nvml = pynvml
            except OSError:
                return [], "NVML: no NVIDIA driver"
            except ImportError as error:
                return [], f"NVML: {error}"
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
        gpus, note = _sort_out(self._read_gpu(index) for index in range(count))
        if self._has_failed:
            self.shut_down()
        return gpus, note

    def _read_gpu(self, index: int) -> Gpu | str:
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            return _gpu(nvml.nvmlDeviceGetName(handle), memory.total, memory.free)
        except nvml.NVMLError as error:
            if error.value == _NVML_NOT_SUPPORTED:  # it has none of its own, as a GB10: not a failure
                return f"NVML: GPU {index} does not say how much memory it has; use --vram"
            self._has_failed = True
            return f"NVML: GPU {index}: {error}"
        except ValueError:
            return f"NVML: GPU {index}: impossible values"

    def shut_down(self) -> None:
        if self._is_up:
            self._is_up = self._has_failed = False
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()


def _read_amd(sysfs: Path) -> tuple[list[Gpu], str]:
    cards = {int(match[1]): path / "device" for path in sysfs.glob("card*") if (match := _CARD.fullmatch(path.name))}
    gpus, note = _sort_out(_read_card(index, device) for index, device in sorted(cards.items()))
    return gpus, note or ("" if gpus else "AMD: no GPU")


def _read_card(index: int, device: Path) -> Gpu | str:
    try:
        total = int((device / "mem_info_vram_total").read_text())
        used = int((device / "mem_info_vram_used").read_text())
        return _gpu(_amd_name(device) or f"AMD GPU {index}", total, total - used)
    except FileNotFoundError:
        return ""  # another driver's card, not amdgpu's
    except OSError as error:
        return f"AMD: card{index}: {error.strerror}"
    except ValueError:
        return f"AMD: card{index}: impossible values"


def _amd_name(device: Path) -> str:
    try:
        return (device / "product_name").read_text(errors="replace").strip()
    except OSError:  # most consumer cards have none
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
