"""The upscale of one picture, as numbered steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fluxwatchd import __version__
from fluxwatchd.config import Profile
from fluxwatchd.engine import Beat, color, memory, resize, schedule, sight, stripes, transfer
from fluxwatchd.engine.apart import Apart, MakeGuide
from fluxwatchd.engine.backprojection import Anchor, anchor_for, enlarges, project_back
from fluxwatchd.engine.denoise import Batch, Guide, Predictor, cut, denoise, noise
from fluxwatchd.engine.dino import FeatureCache
from fluxwatchd.engine.model import Model
from fluxwatchd.engine.plain import Clock, finish
from fluxwatchd.engine.relief import patiently
from fluxwatchd.engine.resume import NOBODY, Keeper, Place
from fluxwatchd.engine.shares import Offer
from fluxwatchd.engine.sight import Mode, Sight
from fluxwatchd.engine.tiles import Grid, Tile, plan
from fluxwatchd.engine.transfer import Arriving
from fluxwatchd.engine.turns import Turn, at_once
from fluxwatchd.engine.vae import Vae, decode_there, encode_picture
from fluxwatchd.errors import ConfigError
from fluxwatchd.imageio import Picture
from fluxwatchd.job import DinoRecord, StripeRecord, TileRecord, Upscaled, Window
from fluxwatchd.variants import BUNDLED

Floats = NDArray[np.float32]


BORDER = 16
"""Output px, at least, that a picture is mirrored by at each side before nano sees it: nano draws a
frame of 1 to 4 px around what it is given."""


@dataclass(frozen=True, slots=True)
class Margin:
    """What is mirrored at every side and cut off again: ``source`` px, and ``output`` px of it."""

    source: int = 0
    output: int = 0


NONE = Margin()


@dataclass(frozen=True, slots=True)
class Plan:
    """What was decided before the first evaluation.

    ``output`` is (height, width), px, with the margin, without the padding up to whole tokens;
    ``sigmas`` end with 0.
    """

    profile: Profile
    output: tuple[int, int]
    grid: Grid
    sigmas: tuple[float, ...]
    mode: Mode
    seed: int
    margin: Margin = NONE

    @property
    def shown(self) -> tuple[slice, slice]:
        """Rows and columns of the picture itself in the output."""
        edge = self.margin.output
        return slice(edge, self.output[0] - edge), slice(edge, self.output[1] - edge)


@torch.inference_mode()
def upscale(
    model: Model,
    picture: Picture,
    profile: Profile,
    seed: int,
    *,
    batch: Callable[[], int],
    beat: Beat,
    cache: FeatureCache | None = None,
    make_guide: MakeGuide | None = None,
    keeper: Keeper = NOBODY,
    turn: Turn = at_once,
    offer: Offer | None = None,
) -> Upscaled:
    """Upscale ``picture`` with a resolved ``profile``.

    ``batch`` says how many tiles go at once, at first. ``keeper`` keeps where the picture stands,
    and knows where an earlier try came to. ``turn`` is entered for what needs the device, and left
    as soon as all of that is queued there. ``offer``, with fusion "final": others may help with
    tiles.

    Raises ConfigError, JobFailed, and whatever ``beat`` and torch raise.
    """
    clock = Clock()
    memory.reset_peak(str(model.device))

    # 1. base: the source resized; the model and DINO see both with a mirrored margin
    margin = margin_for(model, picture, profile)
    plan = make_plan(model, picture, profile, seed, can_guide=make_guide is not None, margin=margin)
    with clock("base"):
        beat("base", 0, 1)
        source = resize.as_rgb(resize.visible(picture))
        base, alpha = resize.base(picture, profile.output_size(picture.width, picture.height))
        base = resize.as_rgb(base)
        wider = resize.pad(source, 1, margin.source)
        wide = transfer.locked(resize.pad(base, model.unit, margin.output), model.device)
        drawn = transfer.locked(noise(latent_shape(model.vae, wide.shape), seed), model.device)

    with turn():
        with clock("text"):
            patiently(model, partial(model.text, profile.prompt))
        held = Batch(keeper.open(identity(model, plan)) or batch())

        # 2. to 5. what the model starts from, and what DINO saw
        begun = _begin(
            model, plan, wide, drawn, wider,
            cache=cache, make_guide=make_guide, clock=clock, beat=beat,
        )  # fmt: skip
        clean, start, seen = begun.clean, begun.start, begun.seen

        # 6. denoise, tile by tile, fused; 7. back to pixels
        predict = predictor(model, plan, held, clean=clean, seen=seen, guide=begun.guide)
        apart = Apart(model, plan, seen=seen, wider=wider, offer=offer)
        made = partial(_made, model, plan, apart, clock=clock, beat=beat, turn=turn)
        latents, coming = made(partial(run, start, predict, plan, beat, keeper, apart=apart))

    # 8. with the base's colours
    anchor = anchor_for(model.variant, profile, picture.format) if enlarges(base, source) else None
    dress = partial(_dress, plan, base, source=source, anchor=anchor, clock=clock, beat=beat)
    image = dress(coming)  # without the margin

    # stripes: where the borders of tokens show, once more with tokens in two places
    grid_of = partial(stripes.measure, base=base, period=model.unit)
    with clock("stripes"):
        striped = StripeRecord(model.unit, grid_of(image))
    if stripes.shows(striped):
        held.size = keeper.again("shifted") or held.size
        shifted, coming = made(
            partial(run, start, predict.shifted(), plan, beat, keeper, apart=apart)
        )
        other = dress(coming)
        striped = stripes.better(striped, grid_of(other))
        if striped.shifted:
            latents, image, predict = shifted, other, predict.shifted()

    # 9. drift: how far the result strayed from the source; the worst tiles once more
    compare = partial(measure, model, seen, margin, clock=clock, beat=beat, turn=turn)
    drifts = compare(image)
    again = drifters(drifts, profile.max_drift)
    if again:
        held.size = keeper.again("drift", again) or held.size
        anew = partial(rerun, latents, clean, predict, plan, indices=again, beat=beat)
        latents, coming = made(partial(anew, keeper=keeper, apart=apart))
        image = dress(coming)
        drifts = compare(image)
        striped = replace(striped, amplitude=grid_of(image))

    # 10. finish: alpha, depth and metadata back on
    with clock("finish"):
        done, strayed = _finish(picture, image, alpha, base=base, beat=beat)
    return Upscaled(
        picture=done,
        sigmas=plan.sigmas[:-1],
        tiles=_tile_record(model, plan, held, drifts),
        dino=_dino_record(model, plan, drifts),
        seconds=clock.seconds,
        peak_bytes=memory.peak_bytes(str(model.device)),
        checkpoint=model.checkpoint,
        notes=notes(model, profile, again, striped),
        stripes=striped,
        color_shift=strayed,
        extra={**_extra(again, anchor), **apart.told(), **keeper.told()},
    )


@dataclass(frozen=True, slots=True)
class _Begun:
    """The base's latent, it with noise, what DINO saw in the source, and guidance by that."""

    clean: Tensor
    start: Tensor
    seen: Sight | None
    guide: Guide | None


def _begin(
    model: Model,
    plan: Plan,
    wide: Tensor,
    drawn: Tensor,
    wider: Floats,
    *,
    cache: FeatureCache | None,
    make_guide: MakeGuide | None,
    clock: Clock,
    beat: Beat,
) -> _Begun:
    """Steps 2 to 5, on the device: ``wide`` the base, ``drawn`` the noise, ``wider`` the source."""
    # 2. latent: the base as the model knows it
    with clock("encode"):
        clean = patiently(model, partial(encode_picture, model.vae, wide, beat))

    # 3. and 4. noise: one field for the whole picture, mixed in at the level of strength
    start = mix(clean, transfer.send(drawn, model.device), plan.sigmas[0])

    # 5. DINO: what the source shows
    guide: Guide | None = None
    with clock("dino"):
        look = partial(sight.look, model, wider, plan.grid, plan.output, cache=cache, beat=beat)
        seen = patiently(model, look)
        if make_guide and seen and plan.mode.guide:
            guide = make_guide(model, plan, seen, wider)
    return _Begun(clean, start, seen, guide)


def _finish(
    picture: Picture, image: Floats, alpha: Floats | None, *, base: Floats, beat: Beat
) -> tuple[Picture, float]:
    """The result as a picture like its source, and how far its colours strayed from ``base``'s."""
    beat("finish", 0, 1)
    done = finish(picture, image, alpha)
    strayed = color.shift(image, base)
    beat("finish", 1, 1)
    return done, strayed


def _extra(again: Sequence[int], anchor: Anchor | None) -> dict[str, object]:
    """What the record says beside its fixed fields."""
    said: dict[str, object] = {}
    if again:
        said["rerun"] = list(again)
    if anchor is not None:
        said["back_projection"] = asdict(anchor)
    return said


def identity(model: Model, plan: Plan) -> dict[str, object]:
    """All that the numbers of an unfinished picture depend on beside its ticket."""
    planned = asdict(plan)
    states = model.text(plan.profile.prompt).states  # as many as `text_tokens` asks for
    del planned["profile"]  # its fingerprint is in the ticket
    return {
        "checkpoint": asdict(model.checkpoint),
        "fluxwatchd": __version__,
        "torch": str(torch.__version__),
        "plan": planned,
        "text": [list(states.shape), str(states.dtype)],
    }


# --- decisions ------------------------------------------------------------------------------


def margin_for(model: Model, picture: Picture, profile: Profile) -> Margin:
    """How far the picture is mirrored at its sides: whole source px that make BORDER output px.

    FLUX.1 gets none: it learnt from whole pictures, up to their borders, where nano learnt from
    pieces of them; and a picture of its native 1024 px stays one tile.
    """
    if model.variant.model != BUNDLED:
        return NONE
    width, height = profile.output_size(picture.width, picture.height)
    scale = max(width, height) / max(picture.width, picture.height)
    source = math.ceil(BORDER / scale)
    return Margin(source, round(source * scale))


def make_plan(
    model: Model,
    picture: Picture,
    profile: Profile,
    seed: int,
    *,
    can_guide: bool,
    margin: Margin = NONE,
) -> Plan:
    """Everything that follows from picture, profile and model. Raises ConfigError."""
    width, height = profile.output_size(picture.width, picture.height)
    output = height + 2 * margin.output, width + 2 * margin.output
    steps, strength = profile.steps or 1, profile.strength or 0.0
    return Plan(
        profile=profile,
        output=output,
        grid=tile_grid(model, profile, output, profile.scale or width / picture.width),
        sigmas=schedule.sigmas(strength, steps, schedule.native_mu(model.variant)),
        mode=sight.resolve(profile, model, can_guide=can_guide),
        seed=seed,
        margin=margin,
    )


def tile_grid(model: Model, profile: Profile, output: tuple[int, int], scale: float) -> Grid:
    """Tiles over the padded output, in tokens, from ``tile_size`` and ``overlap`` in source px.

    Raises ConfigError if the overlap leaves a tile nothing of its own.
    """
    unit = model.unit
    native, shared = profile.tiling(scale)
    if shared >= native:
        raise ConfigError(
            f"overlap ({shared * unit} output px) is not smaller than tile_size ({native * unit})",
            hint="Set a smaller overlap, or leave it to auto: an eighth of the tile.",
        )
    return plan(-(-output[0] // unit), -(-output[1] // unit), native, shared)


def tile_tokens(model: Model, picture: Picture, profile: Profile) -> int:
    """Image tokens of a tile of this picture."""
    width, height = profile.output_size(picture.width, picture.height)
    edges = 2 * margin_for(model, picture, profile).output
    output = height + edges, width + edges
    scale = profile.scale or width / picture.width
    rows, columns = tile_grid(model, profile, output, scale).shape
    return rows * columns


def notes(
    model: Model, profile: Profile, again: Sequence[int], striped: StripeRecord
) -> tuple[str, ...]:
    """Which settings had no effect, and what was done beyond the plan."""
    said = [*model.notes, *profile.without_effect()]
    if profile.max_drift is not None and model.encoder is None:
        said.append(f"max_drift has no effect: {model.dino_reason}")
    if again:
        said.append(f"{len(again)} tiles were above max_drift and run again from half the strength")
    if striped.first is not None:
        kept = "second" if striped.shifted else "first"
        said.append(f"the model's tokens showed as a grid: run twice, the {kept} run kept")
    if stripes.shows(striped):
        said.append(f"a grid of {striped.amplitude:.1f} levels of 255 is left in it")
    return tuple(said)


def predictor(
    model: Model,
    plan: Plan,
    batch: Batch,
    *,
    clean: Tensor,
    seen: Sight | None,
    guide: Guide | None,
) -> Predictor:
    """The model with this picture's text, source and tokens."""
    return Predictor(
        model=model,
        text=model.text(plan.profile.prompt),
        grid=plan.grid,
        batch=batch,
        source=clean if model.variant.uses_sources else None,
        guidance_scale=plan.profile.guidance_scale if model.variant.has_guidance else None,
        tokens=seen.tokens if seen and plan.mode.tokens else None,
        dino_strength=plan.profile.dino_strength or 0.0,
        guide=guide,
    )


# --- latents --------------------------------------------------------------------------------


def latent_shape(vae: Vae, pixels: Sequence[int]) -> tuple[int, int, int]:
    """(C, H/f, W/f) of a picture of (H, W, 3), both multiples of f."""
    return vae.channels, pixels[0] // vae.factor, pixels[1] // vae.factor


def mix(clean: Tensor, field: Tensor, sigma: float) -> Tensor:
    """x = (1 - sigma) clean + sigma noise: rectified flow's straight line."""
    mixed = (1.0 - sigma) * clean
    mixed += sigma * field
    return mixed


def run(
    start: Tensor,
    predict: Predictor,
    plan: Plan,
    beat: Beat,
    keeper: Keeper = NOBODY,
    *,
    apart: Apart,
) -> Tensor:
    """The whole latent (C, H, W), or with ``fusion = "final"`` every tile's (N, C, h, w)."""
    before = keeper.before("decode")
    if before.arrays:
        return before.tensor("latents", start)
    if plan.profile.fusion == "final":
        every = range(len(plan.grid.tiles))
        latents = apart.denoise(start, plan.sigmas, predict, every, beat, keeper=keeper)
    else:
        latents = denoise(start, plan.sigmas, predict, beat, keeper=keeper)
    place = Place("decode", len(plan.sigmas) - 1, 0, predict.batch.size)
    keeper.note(place, {"latents": latents})
    return latents


def rerun(
    latents: Tensor,
    clean: Tensor,
    predict: Predictor,
    plan: Plan,
    *,
    indices: Sequence[int],
    beat: Beat,
    keeper: Keeper = NOBODY,
    apart: Apart,
) -> Tensor:
    """``latents`` with the tiles at ``indices`` made anew from half the strength."""
    model = predict.model
    levels = schedule.sigmas(
        plan.sigmas[0] / 2, len(plan.sigmas) - 1, schedule.native_mu(model.variant)
    )
    drawn = transfer.send(noise(clean.shape, plan.seed), model.device)
    start = mix(clean, drawn, levels[0])
    made = apart.denoise(start, levels, predict, indices, beat, keeper=keeper)
    latents = latents.clone()
    if plan.profile.fusion == "final":
        latents[list(indices)] = made
        return latents
    before = cut(latents, [plan.grid.tiles[i] for i in indices], model.packing)
    weights = list(transfer.weights(plan.grid, model.packing, latents.device))
    for i, old, new in zip(indices, before, made, strict=True):
        latents[:, *plan.grid.tiles[i].cut(model.packing)] += weights[i] * (new - old)
    return latents


# --- pixels ---------------------------------------------------------------------------------


def _made(
    model: Model,
    plan: Plan,
    apart: Apart,
    work: Callable[[], Tensor],
    *,
    clock: Clock,
    beat: Beat,
    turn: Turn,
) -> tuple[Tensor, Arriving]:
    """The latents that ``work`` makes, and their pixels (H, W, 3) on the way to the host.

    Margin and padding are still on.
    """

    def decoded() -> Arriving:
        if plan.profile.fusion == "final":
            return Arriving(torch.from_numpy(apart.decode(latents, plan.grid, beat)))
        return Arriving(decode_there(model.vae, latents, beat))

    with turn():
        with clock("denoise"):
            latents = work()
        with clock("decode"):
            return latents, patiently(model, decoded)


def _dress(
    plan: Plan,
    base: Floats,
    coming: Arriving,
    *,
    source: Floats,
    anchor: Anchor | None,
    clock: Clock,
    beat: Beat,
) -> Floats:
    """The picture itself (H, W, 3) once its pixels are here: colours locked, tied to the source."""
    with clock("decode"):
        image = coming.array()[plan.shown]
    beat("color", 0, 1)
    with clock("color"):
        image = color.lock(image, base, plan.profile.color_fix)
        if anchor is None:
            return image
        return project_back(image, source, rounds=anchor.rounds, amount=anchor.amount)


# --- drift ----------------------------------------------------------------------------------

Drifts = tuple[list[float], float]
"""By tile, and over the picture; 0..2."""


def measure(
    model: Model,
    seen: Sight | None,
    margin: Margin,
    image: Floats,
    *,
    clock: Clock,
    beat: Beat,
    turn: Turn,
) -> Drifts | None:
    """Drift of the result, mirrored as the source was, from the source; None without an encoder."""
    if seen is None:
        return None
    height, width = (side - 2 * margin.source for side in seen.size)
    with clock("drift"):
        small = resize.pad(resize.lanczos(image, (width, height)), 1, margin.source)
        small = np.clip(small, 0.0, 1.0)
    with turn(), clock("drift"):
        return patiently(model, partial(seen.drift, small, beat))


def drifters(drifts: Drifts | None, most: float | None) -> list[int]:
    """The tiles whose drift is above ``most``."""
    if drifts is None or most is None:
        return []
    return [i for i, drift in enumerate(drifts[0]) if drift > most]


# --- records --------------------------------------------------------------------------------


def _tile_record(model: Model, plan: Plan, batch: Batch, drifts: Drifts | None) -> TileRecord:
    apart: list[float | None] = [*drifts[0]] if drifts else [None] * len(plan.grid.tiles)
    windows = tuple(
        _window(tile, model.unit, plan, drift)
        for tile, drift in zip(plan.grid.tiles, apart, strict=True)
    )
    overlap = plan.grid.overlap * model.unit
    return TileRecord(windows, overlap, batch.size, plan.profile.fusion)


def _window(tile: Tile, unit: int, plan: Plan, drift: float | None) -> Window:
    """What a tile covers of the picture itself; nothing, where it lies in the margin."""
    places = []
    for place, shown in zip(tile.cut(unit), plan.shown, strict=True):
        start, end = (min(max(at, shown.start), shown.stop) for at in (place.start, place.stop))
        places.append((start - shown.start, end - start))
    (top, height), (left, width) = places
    return Window(top, left, height, width, drift)


def _dino_record(model: Model, plan: Plan, drifts: Drifts | None) -> DinoRecord:
    mode = plan.mode
    return DinoRecord(
        mode=mode.name,
        strength=(plan.profile.dino_strength or 0.0) if mode.name != "off" else 0.0,
        encoder=model.encoder_name if model.encoder else None,
        adapter=model.adapter_name if mode.tokens else None,
        drift=drifts[1] if drifts else None,
        reason=mode.reason if drifts else model.dino_reason,
    )
