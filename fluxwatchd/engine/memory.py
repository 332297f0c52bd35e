"""What there is and what fits: devices, free memory, dtype, tiles a batch. Imports torch late."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fluxwatchd.config import EngineSettings
from fluxwatchd.engine.plans import ACTIVATIONS, Room
from fluxwatchd.errors import ConfigError

if TYPE_CHECKING:
    import torch

MEMINFO = Path("/proc/meminfo")
OWN_CGROUP, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")

CPU_BATCH = 1
"""Tiles a batch on a CPU, where more gains nothing and delays a stop."""
GPU_BATCH = 16
"""Most tiles a batch on a GPU; it is full with fewer."""


def find_devices(settings: EngineSettings) -> tuple[str, ...]:
    """The devices to run on, one engine each: every GPU, else the CPU; or the one that is set.

    Raises ConfigError if the set device is not there: nothing falls back in silence.
    """
    import torch

    gpus = tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))
    if settings.device == "auto":
        return gpus or ("cpu",)
    there = ("cpu", *gpus)
    wanted = "cuda:0" if settings.device == "cuda" else settings.device
    if wanted not in there:
        raise ConfigError(
            f"engine.device is {settings.device!r}, but this machine has {', '.join(there)}",
            hint=f'Set [engine] device to "auto" or one of: {", ".join(there)}.',
        )
    return (wanted,)


def device_name(device: str) -> str:
    """What people call the device."""
    if device == "cpu":
        return _cpu_name()
    import torch

    return torch.cuda.get_device_name(device)


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "CPU"


def dtype_for(device: str) -> torch.dtype:
    """What to compute in.

    On a CPU float32, or bfloat16 where it has matrix units for it (AMX): twice as fast on nano and
    .003 dB from float32. On a GPU bfloat16 from compute capability 8.0, else float16.
    """
    import torch

    if device == "cpu":
        fast = torch.cpu.get_capabilities().get("amx_bf16", False)
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def room(device: str) -> Room:
    """What is free now of the device and of the host."""
    return Room(free_bytes(device), free_bytes("cpu"), same=device == "cpu")


def cgroup_room() -> int | None:
    """Bytes that are left under this process's memory limit; None without one."""
    left = min(_cgroup(_room), default=sys.maxsize)
    return None if left == sys.maxsize else left


def dtype_size(device: str) -> int:
    """Bytes a value of what is computed in."""
    return dtype_for(device).itemsize


def free_bytes(device: str) -> int:
    """Memory that can be had now, bytes: the device's, or the host's within its cgroup's limit.

    Of the device's no more than torch may take (torch.cuda.set_per_process_memory_fraction).
    """
    if device != "cpu":
        import torch

        free, total = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
        most = round(total * torch.cuda.get_per_process_memory_fraction(device))
        return min(free, most - reserved) + reserved - torch.cuda.memory_allocated(device)
    return host_free()


def host_free() -> int:
    """The host's memory that can be had now, bytes, within the cgroup's limit; without torch."""
    return min(_meminfo("MemAvailable"), min(_cgroup(_room), default=sys.maxsize))


def host_total() -> int:
    """The host's memory, or what the cgroup may have of it, bytes; without torch."""
    return min(_meminfo("MemTotal"), min(_cgroup(_limit), default=sys.maxsize))


def _meminfo(key: str) -> int:
    with suppress(OSError):
        for line in MEMINFO.read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return sys.maxsize


def _cgroup(measure: Callable[[Path], int]) -> Iterator[int]:
    """``measure`` of this process's cgroup (v2) and of every one above it."""
    with suppress(OSError, IndexError):
        own = OWN_CGROUP.read_text().strip().rsplit("::", 1)[1]
        level = CGROUPS / own.lstrip("/")
        for folder in (level, *level.parents):
            if not folder.is_relative_to(CGROUPS):
                return
            yield measure(folder)


def _limit(cgroup: Path) -> int:
    """Bytes that a cgroup may have."""
    with suppress(OSError, ValueError):
        return int((cgroup / "memory.max").read_text())  # "max" is no number: no limit
    return sys.maxsize


def _room(cgroup: Path) -> int:
    """Bytes up to a cgroup's limit, without the page cache."""
    with suppress(OSError, ValueError):
        most = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        return most - used + int(stat.get("inactive_file", 0))
    return sys.maxsize


def most_tiles(settings: EngineSettings, device: str, tokens: int, width: int, size: int) -> int:
    """How many tiles can be evaluated at once, at least 1.

    ``tokens`` of a tile, ``width`` of the model, ``size`` bytes a value. Takes at most half of what
    is free.
    """
    if settings.tile_batch != "auto":
        return settings.tile_batch
    need = tokens * width * size * ACTIVATIONS
    most = CPU_BATCH if device == "cpu" else GPU_BATCH
    return max(1, min(most, free_bytes(device) // 2 // need))


def reset_peak(device: str) -> None:
    """Begin to measure the peak anew."""
    if device != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # 5 resets the resident set's high-water mark: proc(5)
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: str) -> int:
    """The most memory in use since :func:`reset_peak`: the device's, or this process's."""
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
