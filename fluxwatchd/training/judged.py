"""What tokens change on pictures never trained on, judged as `bench dino` judges: x4, finished.

A quick look for whoever tunes an adapter: all pictures at once, in bfloat16 on a GPU, without the
mirrored margin. The published figures are those of `fluxwatchd bench dino`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fluxwatchd.engine.dino import DinoEncoder
from fluxwatchd.engine.schedule import sigmas
from fluxwatchd.training import common, finish, looks, measure
from fluxwatchd.training.data import to_bytes
from fluxwatchd.training.modules import Nano

STRENGTHS = (0.0, 0.25, 0.5, 1.0)
MODES = {"nano": (1.0, 2), "img2img_.6": (0.6, 4), "img2img_.8": (0.8, 8)}
"""Strength and steps; nano alone sees the source, and is tied to it."""


@dataclass(frozen=True, slots=True)
class Marks:
    """One run's figures by picture; the drifts by encoder: (N,) each."""

    psnr_y: Tensor
    to_source: dict[str, Tensor]
    to_truth: dict[str, Tensor]


def tokens(
    nano: Nano, folder: Path, judge: DinoEncoder | None, log: common.Log
) -> dict[str, dict[str, Any]]:
    """nano and img2img at every strength, each beside the same run at strength 0.

    Drift is measured by the encoder that steers (``own``) and by ``judge``, if there is one.
    """
    assert nano.encoder and nano.projector  # noqa: S101 - nothing to measure without
    device = nano.encoder.device
    seen = measure.pairs(folder, device)
    encoders = {"own": nano.encoder, **({"judge": judge} if judge else {})}
    source = measure.features(nano.encoder, nano.projector.spec, seen.small, seen)
    given = measure.tokens_of(nano.projector, source, seen)
    figures: dict[str, dict[str, Any]] = {}
    for mode, (start, steps) in MODES.items():
        plain = mode != "nano"
        before: Marks | None = None
        for strength in STRENGTHS:
            with common.autocast(device):
                result = measure.upscale(
                    nano,
                    seen,
                    list(sigmas(start, steps)),
                    plain=plain,
                    strength=strength,
                    tokens=given,
                )
            result = finish.lock(result, seen.base)
            if not plain:
                result = finish.project_back(result, seen.small)
            result = to_bytes(result)
            marks = Marks(
                measure.luma_psnr(result, seen.truth),
                {k: looks.drift_from_source(e, result, seen.small) for k, e in encoders.items()},
                {k: looks.drift_from_truth(e, result, seen.truth) for k, e in encoders.items()},
            )
            before = before or marks
            figure = measure.row(result, seen.truth) | compare(marks, before)
            figures[f"{mode}@{strength:g}"] = figure
            log(mode=mode, strength=strength, pictures=len(seen.truth), **figure)
    return figures


def compare(marks: Marks, before: Marks) -> dict[str, Any]:
    """Means, what they are less those before, and on how many pictures the better."""
    said: dict[str, Any] = {
        "psnr_y_less": float((marks.psnr_y - before.psnr_y).mean()),
        "better": int((marks.psnr_y > before.psnr_y).sum()),
    }
    for name in marks.to_source:
        said[name] = {}
        for what in ("to_source", "to_truth"):
            now, then = (getattr(m, what)[name] for m in (marks, before))
            said[name][what] = float(now.mean())
            said[name][f"{what}_less"] = float((now - then).mean())
            said[name][f"{what}_nearer"] = int((now < then).sum())
    return said
