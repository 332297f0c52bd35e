"""What a second device of a host brings: a backlog of pictures, and the tiles of one large picture.

FLUX.1 at its real shapes with random weights, the same on every device.
"""

from __future__ import annotations

import hashlib
import queue
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch

from fluxwatchd.bench.fluxspeed import Case, Setting, lap
from fluxwatchd.bench.options import command_line, run_as_script, save_option
from fluxwatchd.bench.randomflux import FULL, TINY, RandomFlux, Shapes
from fluxwatchd.bench.report import machine, table
from fluxwatchd.bench.report import save as keep
from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.engine import Beat, apart, memory
from fluxwatchd.engine.helpers import Helpers
from fluxwatchd.engine.model import Model
from fluxwatchd.engine.resident import ResidentEngine, ramp
from fluxwatchd.engine.turns import IN_FLIGHT
from fluxwatchd.imageio import Picture
from fluxwatchd.job import Upscaled

NAME = "large"


@dataclass(frozen=True, slots=True)
class Report:
    """Seconds, by how many devices did it; ``large`` medians of rounds, ``rounds`` all of them.

    ``ready``: s to load and warm up each device. ``stages``: of the last large picture. ``equal``:
    whether the pictures are the same bytes by one device and by several. ``shared``: what the
    record of the last large picture says of who did its tiles.
    """

    devices: Sequence[str]
    plan: str
    dino: str
    pictures: int
    sides: Mapping[str, tuple[int, int]]
    ready: Sequence[float]
    backlog: Mapping[int, float]
    large: Mapping[int, float]
    rounds: Mapping[int, Sequence[float]]
    stages: Mapping[int, Mapping[str, float]]
    equal: Mapping[str, bool]
    shared: Sequence[Mapping[str, Any]]
    same_kind: bool
    machine: Mapping[str, Any]

    def as_text(self) -> str:
        """Markdown tables."""
        head = (
            f"schnell, random weights, {self.plan}, DINO {self.dino}; {len(self.devices)} x "
            f"{self.devices[0]}, torch {self.machine['torch']}. Ready after "
            f"{', '.join(f'{s:.0f}' for s in self.ready)} s."
        )
        rows = []
        for what, found in (("backlog", self.backlog), (NAME, self.large)):
            one, *_, many = found.values()
            equal = "yes" if self.equal[what] else "no"
            rows.append((self._name(what), f"{one:.2f}", f"{many:.2f}", f"{one / many:.2f}", equal))
        columns = ("", "s, one device", f"s, {len(self.devices)}", "times", "same bytes")
        names = list(self.stages[1])
        stages = [
            (f"{count}", *(f"{found.get(name, 0.0):.2f}" for name in names))
            for count, found in self.stages.items()
        ]
        said = ", ".join(
            f"{one['device']} denoised {one['denoised']} and decoded {one['decoded']}"
            for one in self.shared
        )
        tail = f"Tiles: {said or 'all by one device'}."
        if not self.same_kind:
            tail += " The devices' models are not the same, so none helped."
        stage_table = table(("devices; s by stage", *names), stages)
        return "\n\n".join([head, table(columns, rows), stage_table, tail])

    def _name(self, what: str) -> str:
        side, out = self.sides[what]
        count = f"{self.pictures} pictures" if what == "backlog" else 'one picture, fusion "final"'
        return f"{count}, {side} to {out} px"


@dataclass(frozen=True, slots=True)
class Same:
    """Loads the same random weights on every device."""

    shapes: Shapes

    def __call__(
        self,
        profile: Profile,
        settings: EngineSettings,
        device: str,
        state_dir: Path | None,
        beat: Beat,
    ) -> Model:
        """See RandomFlux."""
        torch.manual_seed(0)
        return RandomFlux(self.shapes)(profile, settings, device, state_dir, beat)


def tell(text: str) -> None:
    """Say how far it is."""
    click.echo(f"{time.strftime('%H:%M:%S')} {text}", err=True)


def digest(done: Upscaled) -> str:
    """Equal for equal pictures."""
    return hashlib.sha256(done.picture.pixels.tobytes()).hexdigest()


def backlog(
    engines: Sequence[ResidentEngine], picture: Picture, profile: Profile, count: int
) -> list[str]:
    """``count`` pictures by ``engines``, as the daemon's stations have them; what came of each."""
    seeds: queue.SimpleQueue[int] = queue.SimpleQueue()
    for seed in range(count):
        seeds.put(seed)
    made: dict[int, str] = {}

    def work(engine: ResidentEngine) -> None:
        while True:
            try:
                seed = seeds.get_nowait()
            except queue.Empty:
                return
            made[seed] = digest(engine.upscale(picture, profile, seed))

    seats = [engine for engine in engines for _ in range(IN_FLIGHT)]
    with ThreadPoolExecutor(len(seats)) as pool:
        list(pool.map(work, seats))
    return [made[seed] for seed in sorted(made)]


def kinds(engines: Sequence[ResidentEngine]) -> list[apart.Kind]:
    """What every engine's model is, as far as the numbers go."""
    return [apart.kind(next(iter(engine._models.values()))) for engine in engines]


def measure(
    setting: Setting,
    devices: Sequence[str],
    *,
    plan: str,
    dino: str,
    count: int,
    side: int,
    rounds: int,
    steps: int,
) -> Report:
    """All of it; ``side`` of the large picture's source, whose scale is 4."""
    settings = setting.engine(plan)
    small = setting.profile(Case(plan, dino, steps=steps))
    large = small.model_copy(update={"fusion": "final"})
    ready, many = [], len(devices)
    with ExitStack() as stack:
        engines = []
        for device in devices:
            engine = ResidentEngine(settings, device=device, load=Same(setting.shapes))
            engines.append(stack.enter_context(engine))
            ready.append(lap(lambda: engine.warm(small))[0])  # noqa: B023 - called at once
            tell(f"{device} is ready after {ready[-1]:.0f} s")
        found = kinds(engines)
        same_kind = all(one == found[0] for one in found)
        if not same_kind:
            tell(f"the models differ: {found}")

        picture = Picture(ramp(setting.side))
        for engine in engines:
            engine.upscale(picture, small, 0)
        spent: dict[int, float] = {}
        made: dict[int, list[str]] = {}
        for crowd in (engines[:1], engines):
            number = len(crowd)
            spent[number], made[number] = lap(lambda: backlog(crowd, picture, small, count))  # noqa: B023
            tell(f"{count} pictures on {number}: {spent[number]:.2f} s")

        picture = Picture(ramp(side))
        own, others = engines[0], engines[1:]
        took: dict[int, list[float]] = {1: [], many: []}
        own.upscale(picture, large, 0)
        tell("the large picture, to warm up")
        for _ in range(rounds):
            seconds, alone = lap(lambda: own.upscale(picture, large, 0))
            took[1].append(seconds)
            tell(f"the large picture on 1: {seconds:.2f} s")
        with Helpers(others, large) as helpers:
            while helpers.ready < len(others):
                helpers.check()
                time.sleep(0.05)
            offer = helpers.offer(NAME)
            own.upscale(picture, large, 0, offer=offer)
            tell("the large picture, to warm up the others")
            for _ in range(rounds):
                seconds, shared = lap(lambda: own.upscale(picture, large, 0, offer=offer))
                took[many].append(seconds)
                tell(f"the large picture on {many}: {seconds:.2f} s, {shared.extra.get('devices')}")
            helpers.check()
    return Report(
        devices=[memory.device_name(device) for device in devices],
        plan=alone.checkpoint.plan,
        dino=dino,
        pictures=count,
        sides={"backlog": (setting.side, 4 * setting.side), NAME: (side, 4 * side)},
        ready=ready,
        backlog=spent,
        large={number: median(found) for number, found in took.items()},
        rounds=took,
        stages={1: alone.seconds, many: shared.seconds},
        equal={"backlog": made[1] == made[many], NAME: digest(alone) == digest(shared)},
        shared=shared.extra.get("devices", []),
        same_kind=same_kind,
        machine=machine(),
    )


@click.command()
@click.option("--plan", default="fp8", show_default=True, help="A memory plan.")
@click.option("--dino", default="off", show_default=True, help="off, tokens, guide or both.")
@click.option("--pictures", "count", type=int, default=16, show_default=True, help="Of a backlog.")
@click.option("--side", type=int, default=512, show_default=True, help="Of their sources, px.")
@click.option("--large", type=int, default=1024, show_default=True, help="The large source's, px.")
@click.option("--steps", type=int, default=4, show_default=True)
@click.option("--rounds", type=int, default=2, show_default=True, help="Of the large picture.")
@click.option("--devices", "number", type=int, default=2, show_default=True)
@click.option("--tiny", is_flag=True, help="A tiny model on CPUs, and small pictures: a look.")
@save_option
def command(
    *,
    plan: str,
    dino: str,
    count: int,
    side: int,
    large: int,
    steps: int,
    rounds: int,
    number: int,
    tiny: bool,
    save: Path | None,
) -> None:
    """Time one device and several: whole pictures to each, and one picture's tiles to all."""
    devices = ["cpu" if tiny else f"cuda:{i}" for i in range(number)]
    if tiny:
        plan, count, side, large, steps = "resident", 4, 16, 48, 2
    kind, shapes = (Tiny, TINY) if tiny else (Setting, FULL)
    setting = kind("schnell", side, 4, 0.3, rounds, devices[0], shapes)
    report = measure(
        setting, devices, plan=plan, dino=dino, count=count, side=large, rounds=rounds, steps=steps
    )
    click.echo(report.as_text())
    if save:
        keep(report, save, command_line(click.get_current_context()))


class Tiny(Setting):
    """Tiles that are small enough for a CPU."""

    def profile(self, case: Case) -> Profile:
        """The resolved profile of a case."""
        made = super().profile(case)
        return made.model_copy(update={"tile_size": 16, "overlap": 4})


if __name__ == "__main__":
    run_as_script(command)
