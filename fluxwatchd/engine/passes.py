"""Scales above 4 in two passes where that comes nearer to the truth: x4 first, then the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fluxwatchd.config import Profile
from fluxwatchd.imageio import Picture
from fluxwatchd.job import Upscaled
from fluxwatchd.variants import BUNDLED, LARGEST_PASS, Variant


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass: ``turn`` counts from 1, ``profile`` is for the picture that this pass is given."""

    turn: int
    profile: Profile


def split(profile: Profile, picture: Picture, variant: Variant) -> tuple[Pass, ...]:
    """The passes for a resolved profile: one, or for nano above x4 two.

    The first is exactly x4 and so the second ends at the size that one pass would: dividing a
    factor by 4 is exact. ``tile_size`` and ``overlap`` grow, as they count px of what a pass is
    given. Other models have not been measured: they take one pass.
    """
    if not takes_two(profile, (picture.width, picture.height), variant):
        return (Pass(1, profile),)
    sizes = {"scale": LARGEST_PASS, "target_megapixels": None, "target_long_side": None}
    grown: dict[str, float] = {
        key: round(given * LARGEST_PASS)
        for key in ("tile_size", "overlap")
        if isinstance(given := getattr(profile, key), int)
    }
    if profile.scale is not None:
        grown["scale"] = profile.scale / LARGEST_PASS
    return (
        Pass(1, profile.model_copy(update=sizes)),
        Pass(2, profile.model_copy(update=grown)),
    )


def takes_two(profile: Profile, size: tuple[int, int], variant: Variant) -> bool:
    """Whether a source of ``size`` (width, height) px takes two passes with a resolved profile."""
    far = max(profile.output_size(*size)) > LARGEST_PASS * max(size)
    return far and profile.model == BUNDLED and variant.uses_sources


def join(done: Sequence[Upscaled]) -> Upscaled:
    """The last pass's result, with the time of all and what the record says of each."""
    last = done[-1]
    if len(done) == 1:
        return last
    seconds: dict[str, float] = {}
    for one in done:
        for stage, spent in one.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + spent
    sizes = " and ".join(f"{one.picture.width} x {one.picture.height}" for one in done)
    said = (
        f"made in two passes, to {sizes} px; tiles, drift, sigmas, stripes and color_shift are "
        "those of the second, extra.passes has both"
    )
    notes = dict.fromkeys(note for one in done for note in one.notes)
    return replace(
        last,
        seconds=seconds,
        peak_bytes=max(one.peak_bytes for one in done),
        notes=(*notes, said),
        extra={**last.extra, "passes": [_told(one) for one in done]},
    )


def _told(one: Upscaled) -> Mapping[str, Any]:
    return {
        "width": one.picture.width,
        "height": one.picture.height,
        "tiles": len(one.tiles.windows) if one.tiles else 0,
        "drift": one.dino.drift,
        "stripes": asdict(one.stripes) if one.stripes else None,
        "color_shift": one.color_shift,
        **one.extra,
    }
