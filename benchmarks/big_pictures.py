"""How much memory a picture takes, by stage, from file to file.

Every case is a process of its own. The kernel's high-water mark of the resident set is reset at
each stage's start; what the process held before it read the picture (libraries, the model) counts
apart.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import imagecodecs
import numpy as np
from PIL import Image

from fluxwatchd import imageio, work
from fluxwatchd.bench.options import command_line, profile, run_as_script, save_option
from fluxwatchd.bench.pictures import find, read
from fluxwatchd.bench.report import machine, table
from fluxwatchd.bench.report import save as keep
from fluxwatchd.engine import footprint, memory, open_engine


@dataclass(frozen=True, slots=True)
class Case:
    """A square picture of ``side`` px through ``variant``; ``alpha`` beside its colours or not.

    ``holes``: some of it is transparent, and a colour profile other than sRGB goes with it.
    """

    variant: str
    side: int
    scale: float
    format: str = "png"
    depth: int = 8
    alpha: bool = False
    holes: bool = False

    @property
    def name(self) -> str:
        """What it is called on the command line."""
        kind = ("RGBA" if self.alpha else "RGB") + (f"{self.depth}" if self.depth > 8 else "")
        kind += "-holes" * self.holes
        return (
            f"{self.variant}-{round(self.side * self.scale)}-x{self.scale:g}-{kind}-{self.format}"
        )


CASES = (
    Case("lanczos", 1250, 4.0),
    Case("lanczos", 2500, 4.0),
    Case("lanczos", 2500, 4.0, depth=16),
    Case("lanczos", 2500, 4.0, alpha=True),
    Case("lanczos", 2500, 4.0, "tiff"),
    Case("lanczos", 2500, 4.0, "tiff", depth=16, alpha=True),
    Case("lanczos", 2500, 4.0, "jpeg"),
    Case("lanczos", 2500, 4.0, "webp"),
    Case("lanczos", 8000, 1.0),
    Case("lanczos", 4000, 1.01, depth=16, alpha=True, holes=True),
    Case("lanczos", 4000, 1.5, depth=16, alpha=True, holes=True),
    Case("lanczos", 4000, 1.5),
    Case("lanczos", 5000, 4.0),
    Case("nano", 256, 4.0),
    Case("nano", 512, 4.0),
    Case("nano", 512, 4.0, depth=16, alpha=True),
    Case("nano", 1500, 4.0),
)
"""The last of each variant are the large ones."""


@dataclass(frozen=True, slots=True)
class Found:
    """``stages``: the most resident bytes by stage; ``before``: those before the picture came.

    ``seconds`` of wall time from file to file.
    """

    name: str
    megapixels: float
    before: int
    stages: Mapping[str, int]
    seconds: float

    @property
    def reckoned(self) -> float:
        """Bytes an output px that the program reckons with before it takes a picture."""
        case = next(case for case in CASES if case.name == self.name)
        chosen = profile({}, variant=case.variant, scale=case.scale, format=case.format)
        bytes_ = footprint.of(chosen, (case.side, case.side), channels=3 + case.alpha)
        return bytes_ / self.megapixels / 1e6

    @property
    def per_pixel(self) -> dict[str, float]:
        """Bytes an output px by stage, less what was there before."""
        return {
            stage: (peak - self.before) / self.megapixels / 1e6
            for stage, peak in self.stages.items()
        }


@dataclass(frozen=True, slots=True)
class Report:
    """All cases."""

    machine: Mapping[str, Any]
    cases: tuple[Found, ...]

    def as_text(self) -> str:
        """A Markdown table."""
        rows = []
        for case in self.cases:
            found = case.per_pixel
            worst = max(found, key=lambda stage: found[stage])
            stages = ", ".join(f"{stage} {bytes_:.0f}" for stage, bytes_ in found.items())
            rows.append(
                (
                    case.name,
                    f"{case.megapixels:.1f}",
                    f"{max(case.stages.values()) / 1e9:.2f}",
                    f"{found[worst]:.1f} ({worst})",
                    f"{case.reckoned:.0f}",
                    stages,
                    f"{case.seconds:.0f}",
                )
            )
        head = (
            "variant, side, scale, kind, format", "Mpx out", "peak GB", "most bytes a px",
            "reckoned", "bytes a px by stage", "s",
        )  # fmt: skip
        return (
            "Bytes of resident memory an output px, beside what the process holds anyway "
            f"({_range(self.cases)} GB).\n\n{table(head, rows)}"
        )


def _range(cases: tuple[Found, ...]) -> str:
    before = [case.before / 1e9 for case in cases]
    return f"{min(before):.2f} to {max(before):.2f}"


class Stages:
    """A Beat that notes the high-water mark of every stage."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """A beat of the engine, or a stage of our own."""
        if stage != self._stage:
            if self._stage:
                peak = memory.peak_bytes("cpu")
                self.peaks[self._stage] = max(peak, self.peaks.get(self._stage, 0))
            self._stage = stage
            memory.reset_peak("cpu")


def make_source(case: Case, images: Path, target: Path) -> None:
    """A photograph enlarged to the case's side, as PNG."""
    photo = Image.fromarray(read(find(images, 1)[0]))
    samples = np.asarray(photo.resize((case.side, case.side), Image.Resampling.BICUBIC))
    pixels = samples.astype(np.float32) / np.float32(255)
    alpha = pixels[..., 0].copy() if case.alpha else None
    icc = None
    if alpha is not None and case.holes:
        alpha = np.clip(2 * alpha - np.float32(0.5), 0, 1)
        icc = bytes(imagecodecs.cms_profile("adobergb"))
    metadata = imageio.Metadata(icc=icc)
    imageio.write(imageio.Picture(pixels, alpha, depth=case.depth, metadata=metadata), target)


def run(case: Case, source: Path, folder: Path) -> Found:
    """Read, upscale and write one picture, in this process."""
    chosen = profile({}, variant=case.variant, scale=case.scale, format=case.format)
    with open_engine() as engine:
        engine.warm(chosen)
        memory.reset_peak("cpu")
        before = memory.peak_bytes("cpu")
        stages, start = Stages(), time.perf_counter()
        stages("read", 0, 1)
        picture = work.decode(source.read_bytes(), chosen, source.name)
        stages("", 0, 1)  # the engine begins to count anew
        done = engine.upscale(picture, chosen, 1, stages)
        stages("write", 0, 1)
        imageio.write(done.picture, folder / f"result.{case.format}", format=case.format)
        stages("", 0, 1)
    size = chosen.output_size(case.side, case.side)
    return Found(
        name=case.name,
        megapixels=size[0] * size[1] / 1e6,
        before=before,
        stages=stages.peaks,
        seconds=time.perf_counter() - start,
    )


def run_apart(case: Case, images: Path) -> Found:
    """The same in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source.png"
        make_source(case, images, source)
        words = [sys.executable, __file__, "--inside", json.dumps(asdict(case)), str(source)]
        ran = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    return Found(**json.loads(ran.stdout))


def earlier(place: Path | None) -> dict[str, Found]:
    """The cases of a report that is there already: those not run again stay as they were."""
    file = place.with_suffix(".json") if place else None
    if file is None or not file.exists():
        return {}
    return {one["name"]: Found(**one) for one in json.loads(file.read_text())["report"]["cases"]}


@click.command()
@click.option("--images", type=click.Path(path_type=Path), required=True, help="One is enlarged.")
@click.option(
    "--case",
    "names",
    multiple=True,
    type=click.Choice([case.name for case in CASES]),
    help="Only these; with --save the others stay as they were.",
)
@save_option
def command(images: Path, names: tuple[str, ...], save: Path | None) -> None:
    """Measure the memory that pictures take."""
    found: dict[str, Found] = {}
    for case in CASES:
        if not names or case.name in names:
            found[case.name] = run_apart(case, images)
            click.echo(Report({}, (found[case.name],)).as_text().splitlines()[-1], err=True)
    everything = {**earlier(save), **found}
    ordered = tuple(everything[case.name] for case in CASES if case.name in everything)
    report = Report(machine(), ordered)
    click.echo(report.as_text())
    if save:
        keep(report, save, command_line(click.get_current_context()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        place = Path(sys.argv[3])
        click.echo(json.dumps(asdict(run(Case(**json.loads(sys.argv[2])), place, place.parent))))
    else:
        run_as_script(command)
