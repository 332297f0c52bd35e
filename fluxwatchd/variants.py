"""The variants: what each model is and which defaults it brings; imports nothing slow."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

VariantName = Literal["nano", "nano-img2img", "schnell", "dev", "lanczos"]


@dataclass(frozen=True, slots=True)
class Shift:
    """How a model bends its sigma schedule: sigma = e^mu u / (1 + (e^mu - 1) u).

    ``mu`` grows linearly with the number of image tokens, from ``base_shift`` at ``base_tokens``
    to ``max_shift`` at ``max_tokens`` (Esser et al. 2024, arXiv:2403.03206, section 5.3.2;
    FLUX.1-dev's scheduler configuration has these figures).
    """

    base_tokens: int = 256
    max_tokens: int = 4096
    base_shift: float = 0.5
    max_shift: float = 1.15

    def mu(self, tokens: int) -> float:
        """The shift's exponent for a tile of ``tokens`` image tokens."""
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        return self.base_shift + slope * (tokens - self.base_tokens)


@dataclass(frozen=True, slots=True)
class Variant:
    """One entry of the variants' table.

    ``native_tile`` is the side of the output tile, px, that the model was trained for.
    ``vae_factor`` is output px per latent cell, ``packing`` latent cells per token side; so a token
    covers ``vae_factor * packing`` px. ``sources`` says that the denoiser has extra input channels
    for the source's latent. ``text_length`` is T5's tokens, padded as diffusers pads. ``defaults``
    are the profile keys in which variants differ.
    """

    name: VariantName
    model: str
    native_tile: int
    vae_factor: int = 8
    packing: int = 2
    uses_sources: bool = False
    has_text: bool = False
    has_guidance: bool = False
    has_model: bool = True
    text_length: int = 0
    shift: Shift | None = None
    licence: str = "Apache-2.0"
    defaults: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def unit(self) -> int:
        """Side of a token in output px; every tile is a multiple of it."""
        return self.vae_factor * self.packing

    def tiling(self, tile_size: int | None, overlap: int | None, scale: float) -> tuple[int, int]:
        """Side and least overlap of the tiles, tokens, of what is set in source px.

        None stands for the native tile, and for an eighth of the tile. The overlap leaves a tile
        something of its own only where it is less than the side.
        """
        native = self.native_tile // self.unit
        if tile_size is not None:
            native = max(1, round(tile_size * scale / self.unit))
        if overlap is None:
            return native, native // 8
        return native, -(-round(overlap * scale) // self.unit)


LARGEST_PASS = 4.0
"""nano's largest scale in one pass: it learnt scales up to it (benchmarks/large_scales.py)."""

BUNDLED = "bundled:nano"
"""The model name of the weights that come with the package."""

VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        variant.name: variant
        for variant in (
            Variant(
                name="nano",
                model=BUNDLED,
                native_tile=256,
                vae_factor=4,
                uses_sources=True,
                # it sees the source itself: tokens change nothing that counts (docs/dino.md)
                defaults=MappingProxyType(
                    {"scale": 4.0, "steps": 2, "strength": 1.0, "dino_strength": 0.0}
                ),
            ),
            Variant(
                name="nano-img2img",
                model=BUNDLED,
                native_tile=256,
                vae_factor=4,
                defaults=MappingProxyType(
                    {"scale": 2.0, "steps": 4, "strength": 0.3, "dino_strength": 0.5}
                ),
            ),
            Variant(
                name="schnell",
                model="black-forest-labs/FLUX.1-schnell",
                native_tile=1024,
                has_text=True,
                text_length=256,
                defaults=MappingProxyType(
                    {"scale": 2.0, "steps": 4, "strength": 0.3, "dino_strength": 0.5}
                ),
            ),
            Variant(
                name="dev",
                model="black-forest-labs/FLUX.1-dev",
                native_tile=1024,
                has_text=True,
                text_length=512,
                has_guidance=True,
                shift=Shift(),
                licence="FLUX.1 [dev] Non-Commercial License",
                defaults=MappingProxyType(
                    {
                        "scale": 2.0,
                        "steps": 20,
                        "strength": 0.3,
                        "guidance_scale": 3.5,
                        "dino_strength": 0.5,
                    }
                ),
            ),
            Variant(
                name="lanczos",
                model="",
                native_tile=1024,
                has_model=False,
                defaults=MappingProxyType(
                    {"scale": 2.0, "steps": 1, "strength": 0.0, "dino_strength": 0.0}
                ),
            ),
        )
    }
)
