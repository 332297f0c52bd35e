"""How fast FLUX.1 runs on this device, by memory plan and settings, beside diffusers' own pipeline.

For ``fluxwatchd bench speed --random-weights``.
"""

from __future__ import annotations

import itertools
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from PIL import Image

from fluxwatchd.bench.options import profile as make_profile
from fluxwatchd.bench.peerflux import DiffusersLoop
from fluxwatchd.bench.randomflux import FULL, RandomFlux, Shapes
from fluxwatchd.bench.report import machine, table
from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.engine import memory, schedule, silent
from fluxwatchd.engine.holding import tidy
from fluxwatchd.engine.resident import ResidentEngine, ramp
from fluxwatchd.engine.turns import IN_FLIGHT
from fluxwatchd.imageio import Picture
from fluxwatchd.job import Upscaled

PEER, PEER_OFFLOAD = "diffusers", "diffusers, sequential offload"
UNIT = 1e6
BACKLOG = 8
"""Pictures of a round; IN_FLIGHT where memory is capped."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is timed: a plan, a DINO mode, a tile's side (output px), steps, and device memory.

    ``capped``: GB that may be used of the device, None for all of it.
    """

    plan: str
    mode: str = "off"
    tile: int | None = None
    steps: int = 4
    capped: float | None = None


@dataclass(frozen=True, slots=True)
class Timed:
    """A case's figures: s per output megapixel (1e6 px) and per evaluated one, medians of rounds.

    Of a backlog, as the daemon works it off, with IN_FLIGHT pictures under way; ``alone`` is a
    picture by itself. diffusers' loop does one after the other. ``plan`` is the one that ran.
    ``busy``: part of the wall time with a kernel running on the device, None without a GPU.
    ``ready``: s from nothing to warm. Peaks in bytes. ``notes``: what the engine's record says.
    """

    case: Case
    plan: str
    output: float
    evaluated: float
    alone: float
    slowest: float
    stages: Mapping[str, float]
    peak_device: int
    peak_host: int
    ready: float
    busy: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """All cases and what they depend on. ``error``: of the float8 velocity, relative."""

    variant: str
    side: int
    scale: int
    strength: float
    rounds: int
    device: str
    machine: Mapping[str, Any]
    timed: tuple[Timed, ...]
    error: float | None = None

    def as_text(self) -> str:
        """Markdown tables: cases with ratios to diffusers at the same steps, and stages."""
        head = (
            f"{self.variant}, random weights, {self.side} x {self.side} to "
            f"{self.side * self.scale} x {self.side * self.scale} px from strength "
            f"{self.strength:g}, median of {self.rounds}; {self.device}, "
            f"torch {self.machine['torch']}."
        )
        if self.error is not None:
            head += f" Relative error of the float8 velocity: {self.error:.4f}."
        rows = [self._row(one) for one in self.timed]
        columns = (
            "way", "tile", "steps", "s/Mpx out", "s/Mpx eval", "times diffusers out", "eval",
            "s/Mpx alone", "busy %", "GB device", "GB host", "s to ready",
        )  # fmt: skip
        ours = [one for one in self.timed if one.stages]
        names = list(dict.fromkeys(itertools.chain.from_iterable(one.stages for one in ours)))
        stages = [
            (_name(one.case, one.plan), *(f"{one.stages.get(n, 0.0):.3f}" for n in names))
            for one in ours
        ]
        return "\n\n".join([head, table(columns, rows), table(("s/Mpx by stage", *names), stages)])

    def _row(self, one: Timed) -> tuple[str, ...]:
        peers = [t for t in self.timed if t.case.plan == PEER and t.case.steps == one.case.steps]
        out = f"{peers[0].output / one.output:.2f}" if peers else ""
        evaluated = f"{peers[0].evaluated / one.evaluated:.2f}" if peers else ""
        return (
            _name(one.case, one.plan),
            str(one.case.tile or ""),
            str(one.case.steps),
            f"{one.output:.3f}",
            f"{one.evaluated:.3f}",
            out,
            evaluated,
            f"{one.alone:.3f}",
            "" if one.busy is None else f"{100 * one.busy:.0f}",
            f"{one.peak_device / 1e9:.1f}",
            f"{one.peak_host / 1e9:.1f}",
            f"{one.ready:.0f}",
        )


def _name(case: Case, plan: str) -> str:
    words = [plan if case.plan in {plan, PEER, PEER_OFFLOAD} else f"{case.plan}: {plan}"]
    words += [f"DINO {case.mode}"] if case.mode != "off" else []
    words += [f"in {case.capped:g} GB"] if case.capped else []
    return ", ".join(words)


@dataclass(frozen=True, slots=True)
class Setting:
    """What all cases share."""

    variant: str
    side: int
    scale: int
    strength: float
    rounds: int
    device: str
    shapes: Shapes = FULL

    def profile(self, case: Case) -> Profile:
        """The resolved profile of a case."""
        own: dict[str, Any] = {
            "steps": case.steps,
            "strength": self.strength,
            "dino_mode": case.mode,
            "dino_strength": 0.5,
        }
        if case.tile:
            own["tile_size"] = case.tile // self.scale
        return make_profile(own, variant=self.variant, scale=float(self.scale))

    def engine(self, plan: str) -> EngineSettings:
        """The engine's settings for a memory plan."""
        device = self.device.partition(":")[0]
        return EngineSettings.model_validate({"device": device, "memory": plan})

    def sigmas(self, steps: int) -> tuple[float, ...]:
        """The noise levels of so many steps, without the last, 0."""
        kind = self.profile(Case("resident")).kind
        return tuple(schedule.sigmas(self.strength, steps, schedule.native_mu(kind)))[:-1]


def measure(
    setting: Setting,
    cases: Sequence[Case],
    *,
    peer_steps: Sequence[int] = (),
    offload: bool = False,
    tell: Callable[[Timed], None] = lambda timed: None,
) -> Report:
    """Time ``cases``, and diffusers for ``peer_steps``; ``tell`` is told each as it is known.

    ``offload``: also diffusers' sequential offload, on one tile, if memory is capped. Cases of one
    plan, mode and cap share a model. Raises ConfigError and what the engine raises.
    """
    timed: list[Timed] = []

    def note(one: Timed) -> None:
        tidy(torch.device(setting.device))
        timed.append(one)
        tell(one)

    capped = [case for case in cases if case.capped is not None]
    for steps in peer_steps:
        note(_peer(setting, steps))
    error = _error(setting) if any("fp8" in case.plan for case in cases) else None
    tidy(torch.device(setting.device))
    for _, group in itertools.groupby(cases, key=lambda c: (c.plan, c.mode, c.capped)):
        for one in _ours(setting, list(group)):
            note(one)
    if offload and capped:
        note(_peer(setting, peer_steps[0], offload=True))
    return Report(
        setting.variant, setting.side, setting.scale, setting.strength, setting.rounds,
        memory.device_name(setting.device), machine(), tuple(timed), error,
    )  # fmt: skip


# --- ours -----------------------------------------------------------------------------------


def _ours(setting: Setting, cases: Sequence[Case]) -> list[Timed]:
    """Cases that share a model, one after the other."""
    first = cases[0]
    with _Cap(setting.device, first.capped):
        settings = setting.engine(first.plan)
        start = time.perf_counter()
        with ResidentEngine(
            settings, device=setting.device, load=RandomFlux(setting.shapes)
        ) as engine:
            engine.warm(setting.profile(first))
            ready = time.perf_counter() - start
            found = [_case(engine, setting, case, ready) for case in cases]
        tidy(torch.device(setting.device))
    return found


def _case(engine: ResidentEngine, setting: Setting, case: Case, ready: float) -> Timed:
    profile, picture = setting.profile(case), Picture(ramp(setting.side))
    _reset(setting.device)
    engine.upscale(picture, profile, 0)
    apart = [lap(lambda: engine.upscale(picture, profile, 0)) for _ in range(setting.rounds)]
    last = apart[-1][1]
    output = (setting.side * setting.scale) ** 2 / UNIT

    count = BACKLOG if case.capped is None else IN_FLIGHT

    def backlog() -> None:
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            list(pool.map(lambda seed: engine.upscale(picture, profile, seed), range(count)))

    seconds = [lap(backlog)[0] / count for _ in range(setting.rounds)]
    busy = busy_share(backlog, setting.device)
    return Timed(
        case=case,
        plan=last.checkpoint.plan,
        output=median(seconds) / output,
        evaluated=median(seconds) / _evaluated(last),
        alone=median(took for took, _ in apart) / output,
        slowest=max(seconds) / output,
        stages={name: took / output for name, took in last.seconds.items()},
        peak_device=_peak(setting.device),
        peak_host=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        ready=ready,
        busy=busy,
        notes=last.notes,
    )


def _evaluated(done: Upscaled) -> float:
    """Megapixels that go through the model, overlaps counted as often as they do."""
    assert done.tiles is not None  # noqa: S101 - a model ran
    return sum(w.height * w.width for w in done.tiles.windows) / UNIT


def lap(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that ``work`` takes, and what it gives."""
    start = time.perf_counter()
    made = work()
    return time.perf_counter() - start, made


# --- diffusers ------------------------------------------------------------------------------


def _peer(setting: Setting, steps: int, *, offload: bool = False) -> Timed:
    """diffusers' pipeline on the same picture; with ``offload`` on a single tile, once."""
    device = setting.device
    profile = setting.profile(Case("resident", steps=steps))
    settings = setting.engine("resident")
    start = time.perf_counter()
    make, place = RandomFlux(setting.shapes), torch.device(device)
    model, vae = make(profile, settings, device, None, silent), make.autoencoder(place)
    tile = min(1024, setting.side * setting.scale)
    loop = DiffusersLoop(model, vae, tile=tile, offload=offload)
    pixels = (ramp(setting.side) * 255).astype("uint8")
    source = Image.fromarray(pixels)
    sigmas = setting.sigmas(steps)
    side = setting.side * setting.scale
    if offload:
        one = source.resize((tile, tile))
        loop.one(one, sigmas)
        _reset(device)
        seconds = [lap(lambda: loop.one(one, sigmas))[0]]
        output = evaluated = tile * tile / UNIT
    else:
        loop.upscale(source, setting.scale, sigmas)
        _reset(device)
        rounds = range(setting.rounds)
        seconds = [lap(lambda: loop.upscale(source, setting.scale, sigmas))[0] for _ in rounds]
        output = side * side / UNIT
        evaluated = loop.tiles(side, side) * tile * tile / UNIT
    timed = Timed(
        case=Case(PEER_OFFLOAD if offload else PEER, steps=steps, tile=tile),
        plan=PEER_OFFLOAD if offload else PEER,
        output=median(seconds) / output,
        evaluated=median(seconds) / evaluated,
        alone=median(seconds) / output,
        slowest=max(seconds) / output,
        stages={},
        peak_device=_peak(device),
        peak_host=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        ready=time.perf_counter() - start,
    )
    return timed


# --- float8 ---------------------------------------------------------------------------------


@torch.inference_mode()
def _error(setting: Setting) -> float:
    """‖fp8 − bf16‖ / ‖bf16‖ of the velocity of one tile of noise, at sigma .5."""
    from fluxwatchd.engine import flux, fp8

    case = Case("resident")
    settings = setting.engine("resident")
    profile = setting.profile(case)
    model = RandomFlux(setting.shapes)(profile, settings, setting.device, None, silent)
    side = profile.kind.native_tile // model.unit
    latents = torch.randn(1, side * side, 64, device=model.device).to(model.dtype)

    def velocity() -> torch.Tensor:
        level = torch.full((1,), 0.5, device=model.device)
        guided = 3.5 if model.variant.has_guidance else None
        grid = (side, side)
        text = model.text("")
        return flux.velocity(model.transformer, latents, level, grid, text, guidance=guided)

    wide = velocity().float()
    fp8.squeeze(model.transformer, products=fp8.multiplies(model.device))
    return float((velocity().float() - wide).norm() / wide.norm())


# --- the device -----------------------------------------------------------------------------


class _Cap:
    """While it is entered, torch may take no more of the device than ``gigabytes``."""

    def __init__(self, device: str, gigabytes: float | None) -> None:
        self._device, self._gigabytes = device, gigabytes

    def __enter__(self) -> None:
        if self._gigabytes is not None and self._device != "cpu":
            _, total = torch.cuda.mem_get_info(self._device)
            share = self._gigabytes * 1e9 / total
            torch.cuda.set_per_process_memory_fraction(share, self._device)

    def __exit__(self, *_: object) -> None:
        if self._gigabytes is not None and self._device != "cpu":
            torch.cuda.set_per_process_memory_fraction(1.0, self._device)


def busy_share(work: Callable[[], object], device: str) -> float | None:
    """Which part of the wall time of ``work`` a kernel runs on the device; None without a GPU."""
    if device == "cpu":
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        start = time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        took = time.perf_counter() - start
    return covered(kernels(seen)) / took


def kernels(seen: Any) -> list[tuple[float, float]]:
    """When the device was at work, s: beginnings and ends, by a torch.profiler that has ended."""
    events = seen.profiler.kineto_results.events()
    return [
        (event.start_ns() / 1e9, (event.start_ns() + event.duration_ns()) / 1e9)
        for event in events
        if event.device_type().name == "CUDA"
    ]


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """The length that ``spans`` cover together."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _reset(device: str) -> None:
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated(device) if device != "cpu" else 0
