"""The settings' tables: every key, its default, unit and range. Unknown keys are refused."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from fluxwatchd.variants import LARGEST_PASS, VARIANTS, Variant, VariantName

Auto = Literal["auto"]
DinoMode = Literal["auto", "tokens", "guide", "both", "off"]
OutputFormat = Literal["png", "jpeg", "webp", "tiff", "avif", "same"]

DEVICES = '"auto", "cpu", "cuda", "cuda:0"'

LOSSLESS = frozenset({"png", "tiff"})
"""Formats that know no quality."""

OF_MODELS = (
    *("prompt", "guidance_scale", "seed", "steps", "lora", "tile_size", "overlap", "fusion"),
    *("color_fix", "dino_strength", "dino_mode", "dino_adapter", "dino_encoder", "max_drift"),
)
"""Keys that mean something only where a model runs."""

SIZE_KEYS = ("scale", "target_megapixels", "target_long_side")
"""Three ways to say how large the output is; a table gives one of them at most."""


@dataclass(frozen=True, slots=True)
class Unset:
    """The word that stands for None, which TOML cannot write."""

    word: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """A validator that reads the word as None, before the field's own."""
        return core_schema.no_info_before_validator_function(self._read, handler(source))

    def _read(self, value: Any) -> Any:
        return None if value == self.word else value


@dataclass(frozen=True, slots=True)
class WeightsMark:
    """Marks text that is a hub id or a path; a path is made absolute when it is read."""


@dataclass(frozen=True, slots=True)
class NotYet:
    """Values that a later version may know and this one refuses, before the field's own check.

    ``pattern`` matches the whole of such a text. ``allowed`` is what can be written instead.
    """

    allowed: str
    pattern: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """A validator that refuses before the field's own."""
        return core_schema.no_info_before_validator_function(self._refuse, handler(source))

    def _refuse(self, value: Any) -> Any:
        if isinstance(value, str) and re.fullmatch(self.pattern, value):
            raise PydanticCustomError(
                "conflict",
                "{shown} is not possible yet",
                {"shown": f'"{value}"', "allowed": self.allowed},
            )
        return value


AUTO = Unset("auto")
OFF = Unset("off")

Scale = Annotated[float, Field(ge=1, le=8)]
Megapixels = Annotated[float, Field(gt=0, le=1000)]
LongSide = Annotated[int, Field(ge=1, le=100_000)]
Steps = Annotated[int, Field(ge=1, le=100)]
Strength = Annotated[float, Field(ge=0, le=1)]
Guidance = Annotated[float, Field(ge=0, le=30)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Drift = Annotated[float, Field(ge=0, le=2)]
TileSize = Annotated[int, Field(ge=8, le=8192)]
Overlap = Annotated[int, Field(ge=0, le=4096)]
TileBatch = Annotated[int, Field(ge=1, le=256)]
NO_GGUF = NotYet(".safetensors, a folder, a hub id", r"(?is).*\.gguf")
Model = Annotated[str, Field(min_length=1), WeightsMark()]
Weights = Annotated[str, Field(min_length=1), WeightsMark(), NO_GGUF]
MemoryPlan = Literal["auto", "resident", "fp8", "stream-fp8", "stream", "sequential"]


class Frozen(BaseModel):
    """A settings table: frozen, unknown keys refused, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Lora(Frozen):
    """A LoRA file and how much of it."""

    path: Weights = Field(description="file, folder with one, or hub id")
    scale: Annotated[float, Field(ge=-4, le=4)] = Field(1.0, description="how much of it")


class Profile(Frozen):
    """How pictures are made. A field that is None takes the variant's default (see resolved)."""

    variant: VariantName = Field(
        "nano",
        description="which model; nano sees the source in extra input channels, nano-img2img is "
        "the same weights without them, schnell and dev are FLUX.1, lanczos is a plain resize",
    )
    model: Annotated[Model | None, AUTO] = Field(
        None,
        description="weights to use instead of the variant's: hub id, diffusers folder, ComfyUI's "
        "models folder, .safetensors or .gguf",
    )
    scale: Annotated[Scale | None, AUTO] = Field(
        None, description="output side / input side; auto: 4 for nano, 2 for the others"
    )
    target_megapixels: Annotated[Megapixels | None, OFF] = Field(
        None, description="output area instead of scale, millions of px"
    )
    target_long_side: Annotated[LongSide | None, OFF] = Field(
        None, description="output's longer side instead of scale, px"
    )
    steps: Annotated[Steps | None, AUTO] = Field(
        None,
        description="denoising steps, all of them run; auto: nano 2, nano-img2img and schnell 4, "
        "dev 20",
    )
    strength: Annotated[Strength | None, AUTO] = Field(
        None,
        description="noise level (sigma) to start from; 0 gives the plain resize; "
        "auto: nano 1.0, others 0.3",
    )
    guidance_scale: Annotated[Guidance | None, AUTO] = Field(
        None, description="how hard dev follows the prompt; the others ignore it; auto: 3.5"
    )
    prompt: str = Field("", description="text for schnell and dev; the others ignore it")
    seed: Seed | Literal["content", "random"] = Field(
        "content",
        description="content: from the picture's hash, so the same picture gives the same result",
    )
    dino_strength: Annotated[Strength | None, AUTO] = Field(
        None,
        description="how hard DINO steers; 0 is exactly no DINO; auto: 0 for nano, 0.5 for the "
        "others",
    )
    dino_mode: DinoMode = Field(
        "auto", description="auto: tokens where a trained adapter exists, else guide"
    )
    dino_adapter: Annotated[Weights | None, AUTO] = Field(
        None, description="trained adapter: file, folder or hub id; auto: the variant's"
    )
    dino_encoder: Annotated[Weights | None, AUTO] = Field(
        None, description="DINOv2 encoder: folder or hub id; auto: the variant's"
    )
    max_drift: Annotated[Drift | None, OFF] = Field(
        None,
        description="a tile whose DINO distance to the source is above it runs again from half "
        "the strength",
    )
    lora: tuple[Lora, ...] = Field(
        (), description="LoRA files, added to the weights; as in [{path = 'x.safetensors'}]"
    )
    tile_size: TileSize | Auto = Field(
        "auto", description="source px; auto: the variant's native output tile / scale"
    )
    overlap: Overlap | Auto = Field(
        "auto", description="source px, less than tile_size; auto: an eighth of the tile"
    )
    fusion: Literal["step", "final"] = Field(
        "step",
        description="blend the tiles' predictions at every step, or the finished tiles; final: "
        "all GPUs of the host that have nothing else to do share a large picture's tiles",
    )
    color_fix: Literal["wavelet", "lab", "off"] = Field(
        "wavelet", description="lock colours to the source"
    )
    format: OutputFormat = Field("png", description="output; same: the source's format")
    quality: Annotated[int, Field(ge=1, le=100)] = Field(
        95, description="of jpeg, webp and avif, percent"
    )
    max_pixels: Annotated[int, Field(ge=1)] = Field(
        400_000_000, description="a picture whose output is larger is refused, px"
    )
    strip_gps: bool = Field(False, description="leave the place out of the output's EXIF")
    embed_provenance: bool = Field(True, description="write into the output how it was made")
    animated: Literal["refuse", "first"] = Field(
        "refuse", description="an animation: refuse it, or take its first frame"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        sizes = [key for key in SIZE_KEYS if getattr(self, key) is not None]
        if len(sizes) > 1:
            raise PydanticCustomError(
                "conflict",
                "cannot be given together with {others}",
                {"key": sizes[-1], "others": " and ".join(sizes[:-1]), "allowed": "one of them"},
            )
        if isinstance(self.tile_size, int) and isinstance(self.overlap, int):
            self._check_overlap(self.tile_size, self.overlap)
        return self

    @staticmethod
    def _check_overlap(tile_size: int, overlap: int) -> None:
        if overlap >= tile_size:
            raise PydanticCustomError(
                "conflict",
                "{overlap} leaves nothing of a tile of {tile_size} px",
                {
                    "key": "overlap",
                    "overlap": overlap,
                    "tile_size": tile_size,
                    "allowed": f"integer, 0 to {tile_size - 1}",
                },
            )

    @property
    def kind(self) -> Variant:
        """The variant's entry in the table."""
        return VARIANTS[self.variant]

    def resolved(self) -> Profile:
        """The same profile with the variant's defaults in place of None; idempotent.

        ``scale`` stays None where a target size stands instead.
        """
        defaults = {"model": self.kind.model or None, **self.kind.defaults}
        if self.target_megapixels is not None or self.target_long_side is not None:
            del defaults["scale"]
        wanted = {key: value for key, value in defaults.items() if getattr(self, key) is None}
        return self.model_copy(update=wanted)

    def tiling(self, scale: float) -> tuple[int, int]:
        """Side and least overlap of the tiles at ``scale``, tokens; see Variant.tiling."""
        tile_size, overlap = (
            value if isinstance(value, int) else None for value in (self.tile_size, self.overlap)
        )
        return self.kind.tiling(tile_size, overlap, scale)

    def largest_overlap(self) -> int | None:
        """The largest overlap, source px, that leaves a tile something of its own at this scale.

        None where the scale depends on the picture, or no model runs.
        """
        scale = self.resolved().scale
        if scale is None or not self.kind.has_model:
            return None
        return min(
            math.floor((self.tiling(each)[0] - 1) * self.kind.unit / each)
            for each in (scale, min(scale, LARGEST_PASS))
        )

    def output_size(self, width: int, height: int) -> tuple[int, int]:
        """Output (width, height), px, for a source of ``width`` x ``height`` px; at least 1 x 1."""
        if self.target_long_side is not None:
            factor = self.target_long_side / max(width, height)
        elif self.target_megapixels is not None:
            factor = math.sqrt(self.target_megapixels * 1e6 / (width * height))
        else:
            factor = self.resolved().scale or 1.0
        return max(1, round(width * factor)), max(1, round(height * factor))

    @property
    def size_key(self) -> str:
        """The key that the output's size comes from."""
        targets = (key for key in SIZE_KEYS[1:] if getattr(self, key) is not None)
        return next(targets, SIZE_KEYS[0])

    def without_effect(self) -> tuple[str, ...]:
        """Sentences on what is set, other than by default, and means nothing in this profile."""
        kind, idle = self.kind, {}
        if not kind.has_text:
            idle["prompt"] = f"{self.variant} has no text encoder"
        if not kind.has_guidance:
            idle["guidance_scale"] = f"{self.variant} has no guidance"
        if self.dino_mode == "guide":
            idle["dino_adapter"] = "dino_mode is guide, which uses none"
        if self.format in LOSSLESS:
            idle["quality"] = f"{self.format} is lossless"
        if not kind.has_model:
            idle |= dict.fromkeys((*OF_MODELS, "model", "strength"), f"{self.variant} has no model")
        elif self.strength == 0:
            why = f"strength is 0, {self.variant} does not run"
            idle |= dict.fromkeys(OF_MODELS, why)
        elif self.dino_mode == "off":
            idle |= dict.fromkeys(("dino_strength", "dino_adapter"), "dino_mode is off")
        elif not self.resolved().dino_strength:
            idle |= dict.fromkeys(("dino_mode", "dino_adapter"), "dino_strength is 0")
        return tuple(
            f"{key} has no effect: {why}" for key, why in idle.items() if not self._is_default(key)
        )

    def _is_default(self, key: str) -> bool:
        """Whether a setting is what it would be had nobody set it."""
        own = {"model": self.kind.model or None, **self.kind.defaults}
        return getattr(self, key) in (type(self).model_fields[key].default, own.get(key))


class Folder(Frozen):
    """A watched folder. ``archive`` and ``failed`` default to the inbox's name with a suffix."""

    inbox: Path = Field(description="where pictures are dropped")
    outbox: Path = Field(description="where results and their records arrive")
    archive: Annotated[Path | None, AUTO] = Field(
        None, description="where sources go after success; auto: the inbox's name + -archive"
    )
    failed: Annotated[Path | None, AUTO] = Field(
        None, description="where sources go after failure; auto: the inbox's name + -failed"
    )
    recursive: bool = Field(True, description="take sub-folders too and mirror them in the outbox")
    profile: Annotated[str | None, OFF] = Field(
        None, description="the name of a [profile.NAME] table"
    )
    ignore: tuple[str, ...] = Field((), description="globs of names left alone, as in ['draft-*']")
    on_success: Literal["archive", "delete", "keep"] = Field(
        "archive", description="what becomes of a source that is done"
    )
    priority: Annotated[int, Field(ge=-100, le=100)] = Field(
        0, description="folders with a higher number go first"
    )
    max_attempts: Annotated[int, Field(ge=1, le=100)] = Field(
        3, description="a picture is set aside after so many"
    )
    on_done: tuple[str, ...] = Field((), description="command run after a success, as a list")
    on_failed: tuple[str, ...] = Field((), description="command run after a failure, as a list")

    @property
    def archive_path(self) -> Path:
        """Where sources go after success."""
        return self.archive or self.inbox.with_name(self.inbox.name + "-archive")

    @property
    def failed_path(self) -> Path:
        """Where sources go after failure."""
        return self.failed or self.inbox.with_name(self.inbox.name + "-failed")

    @property
    def places(self) -> tuple[Path, ...]:
        """All four of them, the inbox first."""
        return (self.inbox, self.outbox, self.archive_path, self.failed_path)


def default_state_dir() -> Path:
    """Where the journal lives if nothing is said: systemd's StateDirectory, else the user's own.

    See systemd.exec(5) for STATE_DIRECTORY (colon-separated, the first counts) and the XDG base
    directory specification for XDG_STATE_HOME.
    """
    given = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given)
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(home).expanduser() / "fluxwatchd"


class DaemonSettings(Frozen):
    """The service itself. Times in seconds unless a name says days."""

    state_dir: Path = Field(
        default_factory=default_state_dir,
        description="journal, checkpoints and caches; one daemon each; default: $STATE_DIRECTORY, "
        "else ~/.local/state/fluxwatchd",
    )
    settle_seconds: Annotated[float, Field(ge=0, le=3600)] = Field(
        2.0, description="a file unchanged for so long is taken, seconds"
    )
    settle_timeout: Annotated[float, Field(ge=0, le=86400)] = Field(
        60.0, description="a broken file unchanged for so long fails, seconds"
    )
    rescan_seconds: Annotated[float, Field(gt=0, le=86400)] = Field(
        60.0, description="the folders are read anew at least so often, seconds"
    )
    history_days: Annotated[float, Field(gt=0, le=36500)] = Field(
        90.0, description="the journal forgets what is done after so many days"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="the least that is logged"
    )


class EngineSettings(Frozen):
    """The device and the weights' places."""

    device: Annotated[
        str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$"), NotYet(DEVICES, r"xpu(:\d+)?|mps")
    ] = Field(
        "auto",
        description="auto: every GPU, else the CPU; never falls back in silence",
        json_schema_extra={"allowed": DEVICES},
    )
    memory: MemoryPlan = Field(
        "auto", description="how the weights are held; auto: the fastest that fits (docs/gpu.md)"
    )
    tile_batch: TileBatch | Auto = Field(
        "auto", description="tiles computed at once on a GPU, and between two chances to stop"
    )
    compile: Literal["auto", "off"] = Field(
        "auto",
        description="auto: FLUX.1 is compiled on a GPU, which takes a minute once; off: never",
    )
    vae: Annotated[Weights | None, AUTO] = Field(
        None, description="VAE for a single-file model: file or folder; auto: the model's"
    )
    tiny_vae: Annotated[Weights | None, AUTO] = Field(
        None,
        description="AutoencoderTiny's folder for DINO guidance; auto: madebyollin/taef1 if the "
        "hub's cache has it, else the VAE on shrunken latents",
    )
    clip: Annotated[Weights | None, AUTO] = Field(
        None, description="CLIP text encoder for a single-file model; auto: the model's"
    )
    t5: Annotated[Weights | None, AUTO] = Field(
        None, description="T5 text encoder for a single-file model; auto: the model's"
    )
    tokenizer: Annotated[Weights | None, AUTO] = Field(
        None, description="folder of both tokenizers for a single-file model; auto: the model's"
    )
    text_tokens: Literal["parity", "short"] = Field(
        "parity", description="parity: padded as diffusers does; short: only what the prompt has"
    )
