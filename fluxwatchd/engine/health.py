"""What the engine would run on and with, found out without loading it: for ``fluxwatchd doctor``.

torch is imported only where a device other than the CPU may be used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.engine import contents, eyeplaces, hub, memory, places, plans, toolchain
from fluxwatchd.engine.contents import GGUF_EXTRA, Contents
from fluxwatchd.engine.places import Parts
from fluxwatchd.engine.plans import gigabytes
from fluxwatchd.errors import ConfigError
from fluxwatchd.variants import BUNDLED

NVIDIA = Path("/proc/driver/nvidia/version")
"""What the kernel's NVIDIA driver says of itself."""
LEAST_CAPABILITY = (7, 0)
"""The oldest GPUs that PyTorch's builds still have kernels for."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``code``: what the process should end with, 0 if it is good.

    ``remedy`` is one sentence in the imperative; it may be there for what is no error, too.
    """

    topic: str
    said: str
    remedy: str = ""
    code: int = 0


def look(settings: EngineSettings, profiles: Sequence[Profile]) -> Iterator[Finding]:
    """Devices, memory, and for every model that ``profiles`` (resolved) name its parts and plan."""
    modelled = [profile for profile in profiles if profile.kind.has_model]
    if not modelled:
        yield Finding("device", "none is needed: no folder uses a model")
        return
    devices: list[str] = []
    for device, finding in _devices(settings):
        devices += [device] if device else []
        yield finding
    yield _host()
    if any(device != "cpu" for device in devices):
        yield from _compiler(settings, modelled)
    seen = set()
    for profile in modelled:
        dino = (profile.dino_mode, profile.dino_strength, profile.dino_encoder)
        key = (profile.variant, profile.model, profile.lora, profile.dino_adapter, profile.prompt)
        if (*key, *dino) not in seen:
            seen.add((*key, *dino))
            yield from _model(profile, settings, devices)


# --- devices --------------------------------------------------------------------------------


def _devices(settings: EngineSettings) -> Iterator[tuple[str | None, Finding]]:
    """Every device that would be used, by torch's name, with what it is."""
    if settings.device == "cpu":
        yield "cpu", _cpu("it is set")
        return
    try:
        found = memory.find_devices(settings)
    except ConfigError as error:
        yield None, Finding("device", str(error), error.hint, error.exit_code)
        return
    for device in found:
        yield device, _cpu("no GPU is there") if device == "cpu" else _gpu(device)


def _cpu(why: str) -> Finding:
    said = f"cpu: {memory.device_name('cpu')} ({why})"
    if why == "it is set" or not NVIDIA.exists():
        return Finding("device", said)
    return Finding(
        "device",
        f"{said}, but the kernel has an NVIDIA driver: {driver()}; PyTorch cannot use it",
        "Install a PyTorch for CUDA that this driver can run (pytorch.org says which), or set "
        '[engine] device = "cpu".',
        code=1,
    )


def _gpu(device: str) -> Finding:
    import torch

    free, total = torch.cuda.mem_get_info(device)
    capability = torch.cuda.get_device_capability(device)
    said = (
        f"{device}: {torch.cuda.get_device_name(device)}, compute capability "
        f"{capability[0]}.{capability[1]}, {gigabytes(free)} of {gigabytes(total)} free, "
        f"CUDA {torch.version.cuda}, driver {driver()}"
    )
    if capability < LEAST_CAPABILITY:
        remedy = 'Set [engine] device = "cpu", or use a newer GPU.'
        return Finding("device", f"{said}; too old for this PyTorch", remedy, code=1)
    return Finding("device", said)


def driver() -> str:
    """The NVIDIA driver's version, as its kernel module tells it."""
    try:
        words = NVIDIA.read_text().split()
    except OSError:
        return "not known"
    numbers = [word for word in words if word[:1].isdigit() and word.count(".") >= 1]
    return numbers[0] if numbers else "not known"


def _compiler(settings: EngineSettings, profiles: Sequence[Profile]) -> Iterator[Finding]:
    """Whether FLUX.1 can be compiled, where it would be."""
    if settings.compile == "off" or not any(profile.kind.has_text for profile in profiles):
        return
    lacking = toolchain.missing()
    if lacking is None:
        yield Finding("compiler", "FLUX.1 will be compiled when it is first loaded")
    else:
        said = f"FLUX.1 will run as it is written, slower by a third or more: {lacking}"
        yield Finding("compiler", said, toolchain.REMEDY)


def _host() -> Finding:
    said = f"{gigabytes(memory.free_bytes('cpu'))} of the host's memory are free"
    limit = memory.cgroup_room()
    if limit is not None:
        said += f"; this process's control group leaves {gigabytes(limit)}"
    return Finding("memory", said)


# --- models ---------------------------------------------------------------------------------


def _model(profile: Profile, settings: EngineSettings, devices: Sequence[str]) -> Iterator[Finding]:
    """A model's weights, the plan for them on every device, and its DINO."""
    name = profile.model or profile.kind.model
    topic = f"model {profile.variant}"
    try:
        parts = places.survey(profile, settings, hub.only_cached)
    except hub.NotHere as error:
        yield Finding(topic, str(error), f"{error.hint} (its licence: {hub.page(name)})")
        return
    except ConfigError as error:
        yield Finding(topic, str(error), error.hint, error.exit_code)
        return
    files = list(places.files_of(parts))
    size = gigabytes(sum(file.stat().st_size for _, file in files))
    roles = ", ".join(parts.by_role)
    yield Finding(topic, f"{name}: {roles} are there, {size} ({profile.kind.licence})")
    if name != BUNDLED:
        for device in devices:
            yield _plan(parts, profile, settings, device)
    yield from _dino(profile, parts)


def _plan(parts: Parts, profile: Profile, settings: EngineSettings, device: str) -> Finding:
    """The memory plan that would be chosen on ``device`` now, and why."""
    topic = f"plan on {device}"
    try:
        choice = plans.choose(
            load_of(parts, profile, memory.dtype_size(device)),
            memory.room(device),
            settings.memory,
        )
    except ConfigError as error:
        return Finding(topic, str(error), error.hint, error.exit_code)
    return Finding(topic, f"{choice.plan}: {choice.why}")


def load_of(parts: Parts, profile: Profile, size: int) -> plans.Load:
    """What a model asks for, by its files' tables of contents; ``size`` is bytes a value."""
    variant = profile.kind
    held = [contents.read(file) for file in places.weights_of(parts.transformer).values()]
    shapes = {name: shape for part in held for name, shape in _own(part).items()}
    width = next(
        shape[0] for name, shape in shapes.items() if name in {"img_in.weight", "x_embedder.weight"}
    )
    return plans.Load(
        weights=plans.count(shapes),
        size=size,
        beside=places.beside(parts, profile, size),
        width=width,
        tokens=(variant.native_tile // variant.unit) ** 2 + variant.text_length,
    )


def _own(held: Contents) -> dict[str, tuple[int, ...]]:
    """The transformer's tensors, without prefix, scales, and the other parts of a checkpoint."""
    found = {}
    for name, shape in held.shapes.items():
        bare = contents.bare(name)
        if bare.endswith((".weight", ".bias", ".scale")) and not bare.startswith(contents.OTHERS):
            found[bare] = shape
    return found


def _dino(profile: Profile, parts: Parts) -> Iterator[Finding]:
    """The encoder and adapter that the profile's DINO mode asks for."""
    eyes = parts.eyes
    if not eyeplaces.wants(profile) or parts.bundled:
        return
    if eyes.to_come is not None:
        yield Finding(
            "DINO",
            f"the encoder {eyes.name} is not in the hub's cache: it will be fetched at start",
            eyes.to_come.hint,
        )
    elif eyes.adapter is None and profile.dino_mode == "auto":
        yield Finding(
            "DINO",
            f"encoder {eyes.name}; no trained adapter for {profile.variant}, so pictures are "
            "guided",
            "To have tokens, train one with `fluxwatchd train adapter` and set dino_adapter.",
        )
    else:
        adapter = f", adapter {eyes.adapter.name}" if eyes.adapter else ""
        yield Finding("DINO", f"encoder {eyes.name}{adapter}")


def packages() -> Finding:
    """The packages that some settings need and a plain installation has not."""
    extras = {
        "gguf": (GGUF_EXTRA, "GGUF files"),
        "peft": ("pip install 'fluxwatchd[train]'", "training a LoRA"),
    }
    missing = {name: words for name, words in extras.items() if find_spec(name) is None}
    if not missing:
        return Finding("packages", f"{', '.join(extras)} are installed")
    said = ", ".join(f"{name} (for {use})" for name, (_, use) in missing.items())
    return Finding(
        "packages",
        f"not installed, and needed for that alone: {said}",
        f"To have them, run: {' && '.join(command for command, _ in missing.values())}",
    )
