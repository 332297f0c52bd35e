"""The adapter's training at FLUX.1's full shapes: steps per second and peak memory.

The weights are random, in the real shapes, of FLUX.1 and of DINOv2-base; 24 GB are written and
removed again. What is timed is the command that users give.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from transformers import Dinov2Config, Dinov2Model

sys.path.insert(0, str(Path(__file__).parent))
from full_size import half, paint, write_comfy

from fluxwatchd.bench.options import command_line, run_as_script, save_option
from fluxwatchd.bench.randomflux import FULL, TINY, RandomFlux, Shapes, state
from fluxwatchd.bench.report import machine, table
from fluxwatchd.bench.report import save as keep
from fluxwatchd.config import EngineSettings
from fluxwatchd.engine import memory

BETWEEN = 50
"""Steps between two lines of the training's log."""


@dataclass(frozen=True, slots=True)
class Case:
    """How the frozen weights are held, the LoRA's rank (0: projector alone), a tile's side, px."""

    frozen: str
    rank: int
    tile: int


CASES = (Case("bf16", 0, 512), Case("fp8", 16, 512), Case("fp8", 16, 1024))


@dataclass(frozen=True, slots=True)
class Timed:
    """Parameters that are trained, s a step of one tile, bytes of the device at most, losses.

    ``before``: s from the process's start of training to the end of the first step.
    """

    case: Case
    trained: int
    step: float
    peak: int
    before: float
    losses: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Report:
    """All cases, on one device."""

    device: str
    timed: tuple[Timed, ...]
    machine: Mapping[str, Any]

    def as_text(self) -> str:
        """A Markdown table."""
        head = (
            f"schnell and DINOv2-base in their real shapes, random weights, one tile a step, "
            f"gradient checkpointing; {self.device}, torch {self.machine['torch']}."
        )
        columns = (
            "frozen weights", "LoRA rank", "tile px", "M trained", "steps/s", "GB device",
            "s to the first step",
        )  # fmt: skip
        rows = [
            (
                one.case.frozen,
                str(one.case.rank or "none"),
                str(one.case.tile),
                f"{one.trained / 1e6:.1f}",
                f"{1 / one.step:.2f}",
                f"{one.peak / 1e9:.1f}",
                f"{one.before:.0f}",
            )
            for one in self.timed
        ]
        return "\n\n".join([head, table(columns, rows)])


def prepare(place: Path, shapes: Shapes, device: torch.device, side: int) -> None:
    """Write FLUX.1 as ComfyUI keeps it, an encoder, and some pictures of ``side`` px."""
    config = {**shapes.transformer, "guidance_embeds": False}
    made = {k: w.read().bfloat16().cpu() for k, w in state(config, device).items()}
    vae = RandomFlux(shapes).vae(torch.device("cpu"), torch.bfloat16)
    write_comfy(place / "models", made, half(vae.module.state_dict()), shapes)
    encoder = Dinov2Model(Dinov2Config(patch_size=14, image_size=518, **shapes.dino))
    encoder.save_pretrained(place / "dino")
    paint(place / "pictures", 4, side)


def run(place: Path, case: Case, steps: int) -> Timed:
    """Train for ``steps`` steps by the command, and read its log."""
    output = place / f"adapter-{case.frozen}-{case.rank}-{case.tile}.safetensors"
    command = [
        sys.executable, "-m", "fluxwatchd", "train", "adapter", "--variant", "schnell",
        "--model", place / "models", "--dino", place / "dino", "--images", place / "pictures",
        "--output", output, "--steps", steps, "--batch", 1, "--accumulate", 1,
        "--frozen", case.frozen, "--lora-rank", case.rank, "--tile", case.tile,
    ]  # fmt: skip
    subprocess.run([str(part) for part in command], check=True)  # noqa: S603 # ourselves
    lines = [json.loads(line) for line in output.with_suffix(".jsonl").read_text().splitlines()]
    trained = next(line["trained"] for line in lines if "trained" in line)
    told = [(line["step"], line["t"]) for line in lines if "step" in line]
    (first, began), (last, ended) = told[0], told[-1]
    return Timed(
        case, trained, (ended - began) / (last - first), lines[-1]["peak_bytes"], began,
        (lines[-1]["first"], lines[-1]["last"]),
    )  # fmt: skip


def measure(place: Path, shapes: Shapes, cases: Sequence[Case], steps: int) -> Report:
    """Write what is needed below ``place`` and time every case."""
    device = memory.find_devices(EngineSettings())[0]
    prepare(place, shapes, torch.device(device), 3 * max(case.tile for case in cases))
    timed = []
    for case in cases:
        timed.append(run(place, case, steps))
        click.echo(f"{timed[-1]}", err=True)
    return Report(memory.device_name(device), tuple(timed), machine())


@click.command()
@click.option("--steps", type=int, default=2 * BETWEEN + 1, show_default=True)
@click.option("--tiny", is_flag=True, help="A tiny model, to try this with.")
@save_option
def command(*, steps: int, tiny: bool, save: Path | None) -> None:
    """Time the adapter's training against FLUX.1 in its real shapes."""
    cases = (Case("bf16", 0, 128), Case("fp8", 4, 128)) if tiny else CASES
    with tempfile.TemporaryDirectory() as place:
        report = measure(Path(place), TINY if tiny else FULL, cases, steps)
    click.echo(report.as_text())
    if save:
        keep(report, save, command_line(click.get_current_context()))


if __name__ == "__main__":
    run_as_script(command)
