"""DINO guidance: a tile's predicted clean picture, shrunk, is drawn towards the source.

The gradient goes through the VAE's decoder and the DINO encoder and never through the transformer,
whose weights may be quantised or streamed. Predicted-clean guidance: Bansal et al. 2023 (Universal
Guidance, arXiv:2302.07121), Yu et al. 2023 (FreeDoM, arXiv:2303.09833).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.engine import Beat, loading, memory, silent
from fluxwatchd.engine.denoise import Guide
from fluxwatchd.engine.dino import DinoEncoder
from fluxwatchd.engine.exact import MathAttention, repeatable
from fluxwatchd.engine.identity import Identities, weight_files
from fluxwatchd.engine.model import Model
from fluxwatchd.engine.pipeline import Plan
from fluxwatchd.engine.resample import LANCZOS, Box, resample
from fluxwatchd.engine.sight import Sight, as_tensor
from fluxwatchd.engine.tiles import Tile, plan
from fluxwatchd.engine.vae import OVERLAP_CELLS, Vae, encode_picture
from fluxwatchd.errors import ConfigError

Floats = NDArray[np.float32]
Size = tuple[int, int]

HIGHEST, LOWEST = 0.7, 0.15
"""Noise levels between which a tile is guided: above, the predicted picture is a guess; below, its
content is settled and a gradient only roughens it."""
ROUNDING = 1e-6
"""A schedule that ends on LOWEST may miss it by so much."""
LAYERS = 4
"""DINO layers that are compared, evenly spread up to the last."""
WINDOW = 512
"""Side of what is decoded with a gradient at once, px; bounds the memory, whatever the tile."""
MOST_SHRINK = 2
"""How much an autoencoder's latents may be shrunk: it was trained at one size and decodes a half of
it well enough to compare."""
TAEF1 = "madebyollin/taef1"
"""The tiny autoencoder of FLUX.1's latents; used where the hub's cache has it."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How far each term of the loss moves a tile at strength 1, as fractions of sigma.

    ``dino``: the sum over LAYERS of 1 - mean cosine. ``pixel``: the mean squared error. The
    fractions are the root mean square of a move in units of the normalised latent. Each term's
    gradient is normalised for itself, so that neither drowns in the other whatever encoder and
    autoencoder make of their size. ``dino=0`` is the control: pixels alone.

    A move ends at its reach, if that comes sooner: 1 is where the loss, were it linear, would be 0
    (Polyak's step), so what fits already is let be. DINO's loss is far from linear: at a reach of 1
    it makes smooth pictures worse (docs/dino.md).
    """

    dino: float = 0.5
    pixel: float = 1.0
    dino_reach: float = 0.3
    pixel_reach: float = 1.0


TERMS = Terms()


@dataclass(frozen=True, slots=True)
class Pull:
    """One term of the loss (a scalar), with its fraction and reach of :class:`Terms`."""

    loss: Tensor
    fraction: float
    reach: float


@dataclass(frozen=True, slots=True)
class View:
    """What of a tile is compared, and with what.

    ``whole``: the tile in source px, padding included; ``box``: without the padding. ``shown``: the
    fraction of the tile's height and width that is no padding. ``size``: rows and columns at the
    source's size. ``cells``: DINO cells over it. ``output``: the whole tile's output px.
    """

    whole: Box
    box: Box
    shown: tuple[float, float]
    size: Size
    cells: Size
    output: Size


@torch.inference_mode(False)
def make_guide(
    model: Model,
    plan: Plan,
    seen: Sight,
    source: Floats,
    *,
    beat: Beat = silent,
    terms: Terms = TERMS,
) -> Guide:
    """Guidance for one picture; ``source`` (H, W, 3) in 0..1. A beat lies before every tile."""
    scale = plan.output[0] / seen.size[0]
    return DinoGuide(
        small=SmallDecoder.of(model, scale),
        encoder=seen.encoder,
        source=as_tensor(source, model.device),
        views=views(model, plan, seen),
        strength=plan.profile.dino_strength or 0.0,
        terms=terms,
        beat=beat,
    )


def views(model: Model, plan: Plan, seen: Sight) -> tuple[View, ...]:
    """Every tile's view, in the order of the grid."""
    pairs = zip(plan.grid.tiles, seen.boxes, strict=True)
    return tuple(_view(tile, box, model.unit, seen) for tile, box in pairs)


def _view(tile: Tile, whole: Box, unit: int, seen: Sight) -> View:
    """A tile's view; what lies beyond the source's edge is padding."""
    top, left, bottom, right = whole
    box = (top, left, min(bottom, seen.size[0]), min(right, seen.size[1]))
    height, width = box[2] - top, box[3] - left
    shown = (height / (bottom - top), width / (right - left))
    rows, columns = (max(1, round(n * part)) for n, part in zip(seen.cells, shown, strict=True))
    return View(
        whole=whole,
        box=box,
        shown=shown,
        size=(max(1, round(height)), max(1, round(width))),
        cells=(rows, columns),
        output=(tile.height * unit, tile.width * unit),
    )


@dataclass(frozen=True, slots=True, eq=False)
class DinoGuide:
    """Bends the velocity of tiles, one after the other; see make_guide.

    ``source`` (1, 3, H, W) in 0..1.
    """

    small: SmallDecoder
    encoder: DinoEncoder
    source: Tensor
    views: tuple[View, ...]
    strength: float
    terms: Terms = TERMS
    beat: Beat = silent
    _wanted: dict[int, Tensor] = field(default_factory=dict)

    def __call__(
        self, velocity: Tensor, latents: Tensor, sigma: float, indices: Sequence[int]
    ) -> Tensor:
        """See fluxwatchd.engine.denoise.Guide.

        Without strength, or outside LOWEST..HIGHEST, the velocity is given back as it came.
        """
        if self.strength == 0 or not LOWEST - ROUNDING <= sigma <= HIGHEST + ROUNDING:
            return velocity
        bent = []
        for done, (i, own, noisy) in enumerate(zip(indices, velocity, latents, strict=True)):
            self.beat("guide", done, len(indices))
            # z = x - sigma v moves by the step, and v = (x - z) / sigma with it
            step = self.step(i, noisy - sigma * own, sigma)
            bent.append(own - step / sigma)
        self.beat("guide", len(indices), len(indices))
        return torch.stack(bent)

    def step(self, index: int, clean: Tensor, sigma: float) -> Tensor:
        """How a tile's predicted clean latent (C, h, w) has to move: the same shape, float32."""
        with _differentiating():
            leaf = clean[None].float().clone().requires_grad_()
            moves = [
                _descend(own.loss, leaf, own.fraction * sigma, own.reach)
                for own in self.pulls(index, leaf)
            ]
        return self.strength * torch.stack(moves).sum(0)

    def pulls(self, index: int, clean: Tensor) -> list[Pull]:
        """What every term says of a tile's predicted clean latent (1, C, h, w)."""
        shown, wanted = self._render(index, clean), self._reference(index)
        terms, found = self.terms, []
        if terms.pixel:
            found.append(Pull(F.mse_loss(shown, wanted), terms.pixel, terms.pixel_reach))
        if terms.dino:
            found.append(Pull(self._unlike(index, shown, wanted), terms.dino, terms.dino_reach))
        return found

    def _unlike(self, index: int, shown: Tensor, wanted: Tensor) -> Tensor:
        """The sum over LAYERS of 1 - mean cosine of the patch features."""
        cells = self.views[index].cells
        with torch.no_grad():
            there = self.encoder.layer_features(wanted, cells, LAYERS)
        here = self.encoder.layer_features(shown, cells, LAYERS)
        alike = [F.cosine_similarity(a, b, dim=-1).mean() for a, b in zip(here, there, strict=True)]
        return (1 - torch.stack(alike)).sum()

    def _render(self, index: int, clean: Tensor) -> Tensor:
        """A latent as a picture at the source's size, without padding: (1, 3, rows, columns)."""
        view, pixels = self.views[index], self.small.decode(clean)
        height, width = pixels.shape[-2:]
        box = (0.0, 0.0, view.shown[0] * height, view.shown[1] * width)
        return resample(pixels, view.size, box=box)

    @torch.no_grad()
    def _reference(self, index: int) -> Tensor:
        """The source under a tile, as ``_render`` would show it: (1, 3, rows, columns).

        Where latents are shrunk, the source goes the same way, enlarged and encoded, so that what
        shrinking does to a picture is on both sides and pulls at nothing.
        """
        view = self.views[index]
        if self.small.shrink == 1:
            return resample(self.source, view.size, box=view.box).clamp(0, 1)
        if index not in self._wanted:
            base = resample(self.source, view.output, box=view.whole, kernel=LANCZOS).clamp(0, 1)
            latent = self.small.encode(base)
            self._wanted[index] = self._render(index, latent).cpu()
        return self._wanted[index].to(self.source.device)


def _descend(loss: Tensor, leaf: Tensor, longest: float, reach: float) -> Tensor:
    """A move against the gradient of ``loss`` with respect to ``leaf`` (1, ...): (...).

    Its root mean square is ``longest``, or ``reach`` of Polyak's step if that is shorter.
    """
    # times the number of values: float16 would lose the gradient of a mean
    scaled = loss * leaf.numel()
    (gradient,) = torch.autograd.grad(scaled, leaf, retain_graph=True)
    size = float(gradient.square().mean().sqrt())
    if size == 0:
        return torch.zeros_like(gradient[0])
    length = min(longest, reach * float(scaled.detach()) / (leaf.numel() * size))
    return gradient[0] * (-length / size)


@contextlib.contextmanager
def _differentiating() -> Iterator[None]:
    """Autograd inside the pipeline's inference mode, by algorithms that repeat to the byte."""
    with torch.inference_mode(False), torch.enable_grad(), repeatable():
        yield


# --- the decoder ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SmallDecoder:
    """Decodes with a gradient in little memory: tiny, or on shrunk latents, window by window.

    ``encoder`` made the latents that are decoded; ``shrink`` is by how much these are shrunk first.
    """

    vae: Vae
    encoder: Vae
    shrink: int = 1

    @classmethod
    def of(cls, model: Model, scale: float) -> SmallDecoder:
        """The tiny decoder where there is one, else the model's VAE on shrunken latents.

        ``scale``, output px a source px, is the most that they are shrunk by.
        """
        tiny = model.vae if is_tiny(model.vae) else model.tiny
        if tiny is not None:
            return cls(tiny, model.vae.as_written)
        vae = model.vae.as_written
        return cls(vae, vae, shrink=max(1, min(MOST_SHRINK, int(scale))))

    def encode(self, pixels: Tensor) -> Tensor:
        """(1, 3, H, W) in 0..1 -> its latent, unshrunk, in windows; no gradient."""
        floats = pixels[0].permute(1, 2, 0).cpu().numpy()
        return encode_picture(self.encoder, floats, silent)[None]

    def decode(self, latents: Tensor) -> Tensor:
        """(1, C, h, w) -> (1, 3, f h / shrink, f w / shrink), not clipped; differentiable."""
        if self.shrink > 1:
            height, width = (max(1, round(n / self.shrink)) for n in latents.shape[-2:])
            latents = resample(latents, (height, width))
        factor = self.vae.factor
        height, width = latents.shape[-2:]
        grid = plan(height, width, WINDOW // factor, OVERLAP_CELLS)
        if len(grid.tiles) == 1:
            return self.vae.decode(latents)
        size = (1, 3, height * factor, width * factor)
        out = torch.zeros(size, device=latents.device, dtype=torch.float32)
        for tile, weight in zip(grid.tiles, grid.weights(factor), strict=True):
            part = latents[..., *tile.cut()]
            # one window's activations at a time: they are computed again for the gradient
            pixels = checkpoint(
                self.vae.decode,
                part,
                use_reentrant=False,
                preserve_rng_state=False,
                context_fn=lambda: (contextlib.nullcontext(), MathAttention()),
            )
            out[..., *tile.cut(factor)] += pixels * torch.from_numpy(weight).to(out.device)
        return out


def is_tiny(vae: Vae) -> bool:
    """Whether it is an AutoencoderTiny, whose decoder costs next to nothing."""
    config: Any = cast(Any, vae.module).config
    return bool(config.get("encoder_block_out_channels"))


def with_decoder(model: Model, profile: Profile, settings: EngineSettings) -> Model:
    """``model`` with the tiny decoder for its guidance, if it is to be guided and there is one.

    That is ``engine.tiny_vae``, or TAEF1 where it is in the hub's cache. Raises ConfigError if the
    one that is set cannot be loaded or is of other latents.
    """
    if is_tiny(model.vae) or not _guided(model, profile):
        return model
    folder = Path(settings.tiny_vae).expanduser() if settings.tiny_vae else _cached_taef1()
    if folder is None:
        return model
    device = str(model.device)
    tiny = loading.load_vae(folder, memory.dtype_for(device), device)
    if not is_tiny(tiny) or (tiny.factor, tiny.channels) != (model.vae.factor, model.vae.channels):
        raise ConfigError(
            f"engine.tiny_vae {str(folder)!r} is no AutoencoderTiny for {model.variant.name}",
            hint=f"Name a copy of {TAEF1}, or leave tiny_vae out.",
        )
    identities = Identities(None)
    found = {k: identities.of(file) for k, file in weight_files(folder, "tiny_vae").items()}
    files = {**model.checkpoint.files, **found}
    return replace(model, tiny=tiny, checkpoint=replace(model.checkpoint, files=files))


def _guided(model: Model, profile: Profile) -> bool:
    """Whether pictures with this resolved profile are guided."""
    if model.encoder is None or not profile.dino_strength:
        return False
    automatic = profile.dino_mode == "auto" and model.projector is None
    return automatic or profile.dino_mode in {"guide", "both"}


def _cached_taef1() -> Path | None:
    """TAEF1's folder in the hub's cache; None if it, or a part of it, is not there."""
    from huggingface_hub import try_to_load_from_cache

    names = ("config.json", "diffusion_pytorch_model.safetensors")
    found = [try_to_load_from_cache(TAEF1, name) for name in names]
    files = [Path(file) for file in found if isinstance(file, str)]
    return files[0].parent if len(files) == len(names) else None
