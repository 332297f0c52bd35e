"""What DINO does: strengths and modes on the same pictures, seeds and steps, and the controls.

Every arm is compared with the same run without DINO, picture by picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from fluxwatchd.bench import controls
from fluxwatchd.bench.judge import Judge
from fluxwatchd.bench.metrics import Paired, likeness, paired
from fluxwatchd.bench.options import (
    NO_SETTINGS,
    carry_out,
    common,
    profile,
    run_as_script,
    seed_for,
    told,
)
from fluxwatchd.bench.pictures import Pair, border_for, find, pair, to_picture, to_pixels
from fluxwatchd.bench.report import machine, ran_line, table
from fluxwatchd.config import Profile
from fluxwatchd.engine import Engine, open_engine
from fluxwatchd.engine.dino import DinoEncoder, Features
from fluxwatchd.errors import ConfigError
from fluxwatchd.job import Upscaled

STRENGTHS = (0.0, 0.25, 0.5, 1.0)
MODES = ("tokens", "guide")
EVERY_MODE = ("tokens", "guide", "both")
MEASURES = {"psnr_y": True, "ssim": True, "gmsd": False, "to_source": False, "to_truth": False}
"""The measures, and whether more of one is better."""
TITLES = ("PSNR-Y dB", "SSIM", "GMSD", "drift to source", "drift to truth")


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to run: ``dino_mode`` and ``dino_strength``, and what is wrong in a control."""

    mode: str
    strength: float
    control: str | None = None

    def __str__(self) -> str:
        if self.mode == "off":
            return "off"
        name = f"{self.mode} {self.strength:g}"
        return f"{name}, {self.control}" if self.control else name


OFF = Arm("off", 0.0)


@dataclass(frozen=True, slots=True)
class Score:
    """One picture in one arm.

    ``psnr_y`` (dB), ``ssim`` and ``gmsd`` against the truth; ``to_source`` and ``to_truth`` are
    drift as the judge sees it, 0..2. ``recorded_drift`` is what the engine says (None in a control,
    whose encoder sees wrong). ``as_off``: the pixels are bit-equal to the run without DINO.
    """

    picture: str
    arm: str
    seed: int
    psnr_y: float
    ssim: float
    gmsd: float
    to_source: float
    to_truth: float
    recorded_drift: float | None
    as_off: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """All figures and what they depend on.

    ``means`` by arm; ``against_off`` the paired difference of each arm to the run without DINO;
    ``against_control`` that of the true arm to its control. ``judge`` is the identity of the
    encoder that measured drift. ``sigmas`` and ``off`` (what ran) are of the arm without DINO.
    """

    scale: float
    pictures: tuple[str, ...]
    variant: str
    sigmas: tuple[float, ...]
    settings: Mapping[str, Any]
    judge: str
    off: str
    machine: Mapping[str, Any]
    means: Mapping[str, Mapping[str, float]]
    bit_equal_to_off: Mapping[str, int]
    against_off: Mapping[str, Mapping[str, Paired]]
    against_control: Mapping[str, Mapping[str, Paired]]
    scores: tuple[Score, ...]

    def as_text(self) -> str:
        """Markdown tables: means, differences to no DINO, differences to the controls."""
        sigmas = ", ".join(f"{sigma:.3g}" for sigma in self.sigmas)
        head = (
            f"{self.variant}, scale {self.scale:g}, sigmas {sigmas}, {len(self.pictures)} "
            f"pictures; drift by {self.judge[:19]}. Off: {self.off}."
        )
        means = (
            (
                arm,
                f"{mean['psnr_y']:.2f}",
                *(f"{mean[key]:.4f}" for key in list(MEASURES)[1:]),
                f"{self.bit_equal_to_off[arm]}",
            )
            for arm, mean in self.means.items()
        )
        parts = [head, table(("mean", *TITLES, "bit-equal to off"), means)]
        for title, differences in (
            ("less off, [95 %], better on", self.against_off),
            ("true less control, [95 %], better on", self.against_control),
        ):
            if differences:
                parts.append(_difference_table(title, differences))
        return "\n\n".join(parts)


def measure(
    images: Path,
    *,
    scale: float = 4.0,
    limit: int | None = None,
    settings: Mapping[str, Any] = NO_SETTINGS,
    modes: Sequence[str] = MODES,
    strengths: Sequence[float] = STRENGTHS,
    control: bool = False,
    judge: Path | None = None,
    device: str | None = None,
) -> Report:
    """Run every mode at every strength.

    ``settings``: other profile keys, the same in every arm (``variant``, ``strength``...).
    ``modes``: see arms_of. ``control``: also run the controls of each mode at its highest strength.
    ``judge``: folder of the encoder that measures drift (default: the one that steers). Raises
    ConfigError where a mode cannot run, and what the engine raises.
    """
    arms = arms_of(modes, strengths, control)
    chosen = {
        arm: profile(settings, scale=scale, dino_mode=arm.mode, dino_strength=arm.strength)
        for arm in arms
    }
    if chosen[OFF].seed == "random":
        raise ConfigError("every arm has the same seed", hint="Set seed to content or a number.")
    pairs = [pair(path, scale) for path in find(images, limit)]
    with open_engine(device=device) as engine:
        bench = _bench(engine, chosen, pairs, scale, judge)
        off, first = bench.picture(0)
        rest = [score for index in range(1, len(pairs)) for score in bench.picture(index)[1]]
    scores = (*first, *rest)
    return Report(
        scale=scale,
        pictures=tuple(one.name for one in pairs),
        variant=chosen[OFF].variant,
        sigmas=off.sigmas,
        settings=told(settings),
        judge=bench.judge.encoder.identity,
        off=ran_line(off),
        machine=machine(),
        means={str(arm): _means(scores, arm) for arm in arms},
        bit_equal_to_off={
            str(arm): sum(score.as_off for score in scores if score.arm == str(arm)) for arm in arms
        },
        against_off={str(arm): _compare(scores, arm, OFF) for arm in arms if arm != OFF},
        against_control={
            str(arm): _compare(scores, Arm(arm.mode, arm.strength), arm)
            for arm in arms
            if arm.control
        },
        scores=scores,
    )


def arms_of(modes: Sequence[str], strengths: Sequence[float], control: bool) -> tuple[Arm, ...]:
    """OFF, then every mode at every strength, then with ``control`` the controls of each mode.

    A mode may bring strengths of its own, as in ``guide:1`` and ``tokens:0.5,1``. Raises
    ConfigError.
    """
    wanted = dict(_mode(mode, strengths) for mode in modes)
    wrong = controls.CONTROLS.items() if control else ()
    return (
        OFF,
        *(Arm(mode, strength) for mode, own in wanted.items() for strength in own),
        *(Arm(mode, max(wanted[mode]), what) for what, mode in wrong if mode in wanted),
    )


def _mode(text: str, strengths: Sequence[float]) -> tuple[str, list[float]]:
    """A mode and its strengths, rising."""
    mode, _, given = text.partition(":")
    try:
        own = sorted({float(word) for word in given.split(",")} if given else set(strengths))
    except ValueError:
        own = []
    if mode not in EVERY_MODE or not own or own[0] < 0 or own[-1] > 1:
        raise ConfigError(
            f"mode {text!r} is none", hint=f"Use {', '.join(EVERY_MODE)}, or as in guide:0.5,1."
        )
    return mode, own


Run = Callable[[Pair, Pair, int], Upscaled]
"""Upscales the first picture; the other is for controls, as is how many tiles go at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """Runs every arm on one picture after the other. ``runs`` holds OFF first."""

    pairs: Sequence[Pair]
    scale: float
    judge: Judge
    profiles: Mapping[Arm, Profile]
    runs: Mapping[Arm, Run]

    def picture(self, index: int) -> tuple[Upscaled, list[Score]]:
        """The run without DINO and every arm's score on the picture at ``index``.

        The next picture is the other one of the control.
        """
        shrunk, other = self.pairs[index], self.pairs[(index + 1) % len(self.pairs)]
        truth = self.judge.detail(shrunk.truth)
        off = self.runs[OFF](shrunk, other, 1)
        batch = off.tiles.batch if off.tiles else 1
        scores = []
        for arm, run in self.runs.items():
            made = off if arm == OFF else run(shrunk, other, batch)
            scores.append(self._score(arm, shrunk, truth, made, off))
        return off, scores

    def _score(
        self, arm: Arm, shrunk: Pair, truth: Features, made: Upscaled, off: Upscaled
    ) -> Score:
        pixels = to_pixels(made.picture)
        return Score(
            picture=shrunk.name,
            arm=str(arm),
            seed=seed_for(self.profiles[arm], shrunk.small),
            **asdict(likeness(pixels, shrunk.truth, border_for(self.scale))),
            to_source=self.judge.to_source(pixels, shrunk.small),
            to_truth=self.judge.to_truth(pixels, truth),
            recorded_drift=made.dino.drift if arm.control is None else None,
            as_off=np.array_equal(made.picture.pixels, off.picture.pixels),
            seconds=sum(made.seconds.values()),
        )


def _bench(
    engine: Engine,
    profiles: Mapping[Arm, Profile],
    pairs: Sequence[Pair],
    scale: float,
    judge: Path | None,
) -> Bench:
    """Load the judge, and the model of the controls if there are any. Raises ConfigError."""
    wrong = {arm: chosen for arm, chosen in profiles.items() if arm.control}
    if any(arm.control == controls.OTHER_PICTURE for arm in wrong) and len(pairs) == 1:
        raise ConfigError("one picture has no other", hint="Use --no-control, or raise --limit.")
    seeing = controls.encoder_name(profiles[OFF]) if judge is None else judge
    runs = {arm: _true(engine, chosen) for arm, chosen in profiles.items() if not arm.control}
    if wrong:
        # the last is of guide where there is one, which may need a decoder of its own
        true = controls.Controls.load(next(reversed(wrong.values())), engine.device)
        runs |= {arm: _wrong(true, str(arm.control), chosen) for arm, chosen in wrong.items()}
    return Bench(pairs, scale, Judge(DinoEncoder.load(seeing, engine.device)), profiles, runs)


def _true(engine: Engine, chosen: Profile) -> Run:
    """As the product runs it."""

    def run(shrunk: Pair, other: Pair, batch: int) -> Upscaled:
        seed = seed_for(chosen, shrunk.small)
        return engine.upscale(to_picture(shrunk.small), chosen, seed)

    return run


def _wrong(true: controls.Controls, control: str, chosen: Profile) -> Run:
    """With something wrong."""

    def run(shrunk: Pair, other: Pair, batch: int) -> Upscaled:
        return true.run(control, shrunk, other, chosen, batch)

    return run


def _means(scores: Sequence[Score], arm: Arm) -> dict[str, float]:
    mine = [score for score in scores if score.arm == str(arm)]
    return {
        key: float(np.mean([getattr(score, key) for score in mine]))
        for key in (*MEASURES, "seconds")
    }


def _compare(scores: Sequence[Score], after: Arm, before: Arm) -> dict[str, Paired]:
    def figures(arm: Arm, key: str) -> list[float]:
        return [getattr(score, key) for score in scores if score.arm == str(arm)]

    return {
        key: paired(figures(after, key), figures(before, key), more_is_better=more)
        for key, more in MEASURES.items()
    }


def _difference_table(title: str, differences: Mapping[str, Mapping[str, Paired]]) -> str:
    return table(
        (title, *TITLES),
        ((name, *(str(found[key]) for key in MEASURES)) for name, found in differences.items()),
    )


@click.command()
@common
@click.option(
    "--mode",
    "modes",
    multiple=True,
    metavar="MODE[:STRENGTH,...]",
    default=MODES,
    show_default=True,
    help="tokens, guide or both; at strengths of its own as in guide:1.",
)
@click.option(
    "--strength",
    "strengths",
    multiple=True,
    type=click.FloatRange(0, 1),
    default=STRENGTHS,
    show_default=True,
    help="For every mode that brings none of its own.",
)
@click.option("--control/--no-control", default=True, help="With the controls of each mode.")
@click.option(
    "--judge",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of another encoder to measure drift with.",
)
def command(**options: Any) -> None:
    """Measure what DINO does, by mode and strength, beside controls."""
    carry_out(measure, **options)


if __name__ == "__main__":
    run_as_script(command)
