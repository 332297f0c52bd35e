"""Seconds per output megapixel, by stage, beside what a user would pick instead.

Ours and the peer take turns on the same pictures, so that whatever else the machine does falls on
both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click

from fluxwatchd.bench.methods import NAMES, Attempt, Method, method
from fluxwatchd.bench.options import (
    IMAGES,
    NO_SETTINGS,
    carry_out,
    finish,
    run_as_script,
    told,
    with_images,
)
from fluxwatchd.bench.peers import REAL_ESRGAN
from fluxwatchd.bench.pictures import Pair, find, pair
from fluxwatchd.bench.report import machine, ran_line, table, text_of
from fluxwatchd.engine import open_engine
from fluxwatchd.engine.plans import PLANS

METHODS = ("nano", REAL_ESRGAN)
DINO = ("off", "guide", "tokens", "both")


@dataclass(frozen=True, slots=True)
class Lap:
    """One picture once: wall ``seconds``, those of the engine's stages, and its peak memory."""

    seconds: float
    stages: Mapping[str, float]
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Round:
    """One method once over all pictures. All times in s per output megapixel (1e6 px).

    ``total`` is wall time from picture to picture, files left out; ``stages`` are the engine's own
    (empty for other programs); ``peak_bytes`` is the most that the engine says it used.
    """

    total: float
    stages: Mapping[str, float]
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Speed:
    """A method's medians over the rounds, s per output megapixel, and the slowest and fastest.

    ``ran`` names the weights and what DINO did, for our own methods.
    """

    total: float
    fastest: float
    slowest: float
    stages: Mapping[str, float]
    peak_bytes: int
    ran: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """All figures and what they depend on.

    ``megapixels`` of output go through in a round; ``settings`` are the profile keys of each way.
    """

    scale: float
    pictures: tuple[str, ...]
    megapixels: float
    rounds: int
    device: str
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    speeds: Mapping[str, Speed]

    def as_text(self) -> str:
        """Two Markdown tables: methods, and the stages of ours."""
        head = (
            f"Scale {self.scale:g}, {len(self.pictures)} pictures, {self.megapixels:.2f} Mpx of "
            f"output a round, median of {self.rounds}; {self.machine['processor']}, "
            f"{self.machine['cores']} cores; ours on {self.device}."
        )
        rows = (
            (name, f"{speed.total:.2f}", f"{speed.fastest:.2f}", f"{speed.slowest:.2f}")
            for name, speed in self.speeds.items()
        )
        head += "".join(f"\n- {name}: {one.ran}." for name, one in self.speeds.items() if one.ran)
        parts = [head, table(("s per output Mpx", "median", "fastest", "slowest"), rows)]
        for name, speed in self.speeds.items():
            if speed.stages:
                stages = ((stage, f"{seconds:.2f}") for stage, seconds in speed.stages.items())
                parts.append(table((f"{name}, by stage", "s per output Mpx"), stages))
        return "\n\n".join(parts)


def measure(
    images: Path,
    *,
    scale: float = 4.0,
    limit: int | None = None,
    settings: Mapping[str, Any] = NO_SETTINGS,
    methods: Sequence[str] = METHODS,
    rounds: int = 3,
    device: str | None = None,
) -> Report:
    """Time ``methods`` on the pictures in ``images``, shrunk by ``scale``,.

    Each method first runs on the first picture, untimed. Raises ConfigError (a peer that is not
    installed among others) and what the engine raises.
    """
    ways = {name: (name, settings) for name in methods}
    return race(images, ways, scale=scale, limit=limit, rounds=rounds, device=device)


def race(
    images: Path,
    ways: Mapping[str, tuple[str, Mapping[str, Any]]],
    *,
    scale: float,
    limit: int | None,
    rounds: int,
    device: str | None,
) -> Report:
    """Time ``ways``, each a method and profile keys by its name in the report; see measure."""
    shrunk = [pair(path, scale) for path in find(images, limit)]
    with open_engine(device=device) as engine:
        ready = {
            name: method(kind, engine, scale, settings) for name, (kind, settings) in ways.items()
        }
        first = {name: way(shrunk[0]) for name, way in ready.items()}
        timed = [_round(ready, shrunk) for _ in range(rounds)]
        used = engine.device
    return Report(
        scale=scale,
        pictures=tuple(one.name for one in shrunk),
        megapixels=_megapixels(shrunk),
        rounds=rounds,
        device=used,
        settings={name: told(settings) for name, (_, settings) in ways.items()},
        machine=machine(),
        speeds={name: _speed([one[name] for one in timed], first[name]) for name in ways},
    )


def _round(ways: Mapping[str, Method], shrunk: Sequence[Pair]) -> dict[str, Round]:
    """Every way once over all pictures, in turns at each picture."""
    laps: dict[str, list[Lap]] = {name: [] for name in ways}
    for one in shrunk:
        for name, way in ways.items():
            laps[name].append(_lap(way(one)))
    return {name: _over_all(mine, _megapixels(shrunk)) for name, mine in laps.items()}


def _lap(attempt: Attempt) -> Lap:
    made = attempt.upscaled
    if made is None:
        return Lap(attempt.seconds, {}, 0)
    return Lap(attempt.seconds, made.seconds, made.peak_bytes)


def _over_all(laps: Sequence[Lap], megapixels: float) -> Round:
    stages: dict[str, float] = {}
    for lap in laps:
        for stage, seconds in lap.stages.items():
            stages[stage] = stages.get(stage, 0.0) + seconds / megapixels
    return Round(
        total=sum(lap.seconds for lap in laps) / megapixels,
        stages=stages,
        peak_bytes=max(lap.peak_bytes for lap in laps),
    )


def _speed(rounds: Sequence[Round], first: Attempt) -> Speed:
    totals = [one.total for one in rounds]
    return Speed(
        total=median(totals),
        fastest=min(totals),
        slowest=max(totals),
        stages={stage: median(one.stages[stage] for one in rounds) for stage in rounds[0].stages},
        peak_bytes=max(one.peak_bytes for one in rounds),
        ran=ran_line(first.upscaled) if first.upscaled else None,
    )


def _megapixels(shrunk: Sequence[Pair]) -> float:
    return float(sum(one.truth.shape[0] * one.truth.shape[1] for one in shrunk) / 1e6)


RANDOM = "--random-weights"


@click.command()
@with_images(click.option("--images", **IMAGES))
@click.option("--method", "methods", multiple=True, type=click.Choice(NAMES), default=METHODS)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option(RANDOM, is_flag=True, help="FLUX.1 at its real shapes without a checkpoint.")
@click.option("--variant", type=click.Choice(("schnell", "dev")), default="schnell")
@click.option("--plan", "plans", multiple=True, type=click.Choice(PLANS))
@click.option("--dino", "modes", multiple=True, type=click.Choice(DINO), default=DINO[:1])
@click.option("--tile", "tiles", multiple=True, type=int, help="Output px; default: native.")
@click.option("--steps", multiple=True, type=click.IntRange(min=1), default=(4,))
@click.option("--cap", "caps", multiple=True, type=float, help="GB of the device, plan auto.")
@click.option("--strength", type=float, default=0.3, show_default=True)
@click.option("--side", type=int, default=512, show_default=True, help="Of the source, px.")
@click.option("--no-peer", is_flag=True, help="Leave diffusers' own pipeline out.")
@click.option("--tiny", is_flag=True, hidden=True)
def command(*, random_weights: bool, **options: Any) -> None:
    """Time upscaling beside what a user would pick instead.

    With --random-weights: FLUX.1 by memory plan, DINO mode, tile and steps, beside diffusers' own
    pipeline. The options from --variant on are for that.
    """
    if random_weights:
        _random(**options)
        return
    if options["images"] is None:
        raise click.UsageError(f"name --images, or {RANDOM}")
    names = {"images", "scale", "limit", "pairs", "device", "save", "json", "methods", "rounds"}
    carry_out(measure, **{name: options[name] for name in names})


def _random(**given: Any) -> None:
    """FLUX.1 with random weights; every line as soon as it is known."""
    from fluxwatchd.bench import fluxspeed, randomflux
    from fluxwatchd.bench.fluxspeed import Case
    from fluxwatchd.config import EngineSettings
    from fluxwatchd.engine import devices

    setting = fluxspeed.Setting(
        variant=given["variant"],
        side=given["side"],
        scale=int(given["scale"]),
        strength=given["strength"],
        rounds=given["rounds"],
        device=given["device"] or devices(EngineSettings())[0],
        shapes=randomflux.TINY if given["tiny"] else randomflux.FULL,
    )
    tiles = given["tiles"] or (None,)
    cases = [
        Case(plan, mode, tile, steps)
        for plan in given["plans"] or (() if given["caps"] else PLANS[:2])
        for mode in given["modes"]
        for tile in tiles
        for steps in given["steps"]
    ]
    cases += [Case("auto", "off", None, given["steps"][0], cap) for cap in given["caps"]]

    def tell(one: fluxspeed.Timed) -> None:
        click.echo(f"{one}", err=True)

    peers = () if given["no_peer"] else given["steps"]
    report = fluxspeed.measure(
        setting, cases, peer_steps=peers, offload=bool(given["caps"]) and bool(peers), tell=tell
    )
    click.echo(text_of(report, json=given["json"]))
    finish(report, given["save"])


if __name__ == "__main__":
    run_as_script(command)
