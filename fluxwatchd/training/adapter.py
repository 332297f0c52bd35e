"""``fluxwatchd train adapter``: DINO tokens for FLUX.1, against its frozen weights.

Learns the projector (and with ``lora_rank`` a LoRA, Hu et al. 2021, arXiv:2106.09685) by flow
matching on tiles whose tokens come from a shrunk copy, as the engine makes them. What it writes is
what ``dino_adapter`` names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.engine import loading
from fluxwatchd.engine.flux import pack, velocity
from fluxwatchd.engine.fp8 import squeeze
from fluxwatchd.engine.model import Model
from fluxwatchd.engine.projector import AdapterSpec, Projector, load_lora
from fluxwatchd.errors import ConfigError
from fluxwatchd.training import common, data
from fluxwatchd.training.common import CHANCE, option

CELL = 4
"""Image tokens a side of a DINO cell: 16 cells over FLUX.1's native tile of 1024 px."""
MARGIN = 2
LORA_TARGETS = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
)


@dataclass(frozen=True, slots=True)
class AdapterOptions:
    """Train a DINO adapter for FLUX.1 schnell or dev."""

    images: Path = field(default=Path("pictures"), metadata={"help": "folder of pictures"})
    output: Path = field(
        default=Path("dino-adapter.safetensors"), metadata={"help": "file to write"}
    )
    variant: str = option("schnell", "schnell or dev")
    model: str = option("", "hub id or folder; default: the variant's")
    dino: str = option("facebook/dinov2-base", "DINO encoder: hub id or folder")
    resume: Path | None = field(
        default=None, metadata={"help": "adapter file to go on from; refused if made for others"}
    )
    seconds: float = option(3600.0, "how long to train")
    steps: int = option(0, "train so many steps instead")
    save_every: int = option(500, "steps between two saves")
    seed: int = option(0, "seed of weights, crops and noise")
    tile: int = option(512, "side of a training tile, px; pictures must be larger by a half")
    batch: int = option(1, "tiles at once")
    accumulate: int = option(4, "batches a step")
    rate: float = option(2e-4, "peak learning rate")
    warm_up: int = option(100, "steps until the learning rate's peak")
    lora_rank: int = option(0, "rank of a LoRA trained along; 0 trains none")
    frozen: str = option("bf16", "how the frozen weights are held: bf16 or fp8")
    bare: float = option(0.1, "part of the batches without tokens, where a LoRA is trained")
    guidance_scale: float = option(3.5, "guidance that dev is told")
    prompt: str = option("", "prompt that all tiles get")
    device: str = option("", "default: the GPU, else the CPU")


def main(options: AdapterOptions) -> dict[str, float]:
    """Train and save. Returns the mean losses of the first and the last tenth of the steps."""
    device = torch.device(options.device) if options.device else common.set_up(options.seed)
    torch.manual_seed(options.seed)
    CHANCE.seed(options.seed)
    log = common.Log(options.output.with_suffix(".jsonl"))
    log(options={k: str(v) for k, v in asdict(options).items()})
    model = load_frozen(options, device)
    projector = build(options, model)
    lora = add_lora(options, model.transformer)
    if options.frozen == "fp8":
        saved = squeeze(model.transformer)
        log(fp8_layers=saved)
    pictures = data.Pictures(data.find(options.images), device)
    log(pictures=len(pictures), trained=sum(p.numel() for p in [*projector.parameters(), *lora]))
    return train(options, model, projector, pictures, log)


def load_frozen(options: AdapterOptions, device: torch.device) -> Model:
    """The model as the engine loads it, frozen, with its encoder and gradient checkpointing."""
    if options.variant not in {"schnell", "dev"}:
        raise ConfigError(
            f"variant {options.variant!r} takes no adapter", hint="Use schnell or dev."
        )
    if options.frozen not in {"bf16", "fp8"}:
        raise ConfigError(f"frozen {options.frozen!r}", hint="Use bf16 or fp8.")
    profile = Profile(
        variant=cast(Any, options.variant),
        model=options.model or None,
        dino_encoder=options.dino,
        dino_mode="guide",
        prompt=options.prompt,
    ).resolved()
    settings = EngineSettings(memory="resident")  # a gradient goes through the weights
    model = loading.load(profile, settings, str(device), None, _quiet)
    transformer = cast(Any, model.transformer)
    transformer.requires_grad_(False)
    transformer.enable_gradient_checkpointing()
    return model


def _quiet(stage: str, done: int, total: int) -> None:
    """Loading's progress is not shown."""


def build(options: AdapterOptions, model: Model) -> Projector:
    """A new projector, or the one to go on from; it starts by adding next to nothing."""
    assert model.encoder  # noqa: S101 - load_frozen asked for it
    width = int(cast(Any, model.transformer).config.joint_attention_dim)
    if options.resume:
        kept = Projector.load(options.resume, model.device)
        kept.check(model=options.variant, model_width=width, encoder=model.encoder)
        return kept.requires_grad_(True).train()
    projector = Projector(
        AdapterSpec(
            model=options.variant,
            model_width=width,
            encoder=model.encoder.identity,
            encoder_name=options.dino,
            encoder_width=model.encoder.width,
            layers=model.encoder.layers,
            cell=CELL,
            margin=MARGIN,
            hidden=min(1024, 2 * width),
        )
    )
    with torch.no_grad():
        for last in (projector.mlp[-1], projector.whole[-1]):
            cast(nn.Linear, last).weight.mul_(0.1)
    return projector.to(model.device)


# --- LoRA ----------------------------------------------------------------------------------


def add_lora(options: AdapterOptions, transformer: nn.Module) -> list[nn.Parameter]:
    """Put a LoRA on every attention projection; its parameters, none for rank 0."""
    if not options.lora_rank:
        return []
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    config = LoraConfig(
        r=options.lora_rank, lora_alpha=options.lora_rank, target_modules=list(LORA_TARGETS)
    )
    inject_adapter_in_model(config, transformer)
    trained = [p for name, p in transformer.named_parameters() if "lora_" in name]
    for parameter in trained:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    if options.resume and (kept := load_lora(options.resume)):
        set_peft_model_state_dict(transformer, kept)
    return trained


def lora_state(options: AdapterOptions, transformer: nn.Module) -> dict[str, Tensor]:
    """The LoRA's weights by peft's names; empty without one."""
    if not options.lora_rank:
        return {}
    from peft import get_peft_model_state_dict

    state: dict[str, Tensor] = get_peft_model_state_dict(transformer)
    return state


# --- training -------------------------------------------------------------------------------


def train(
    options: AdapterOptions,
    model: Model,
    projector: Projector,
    pictures: data.Pictures,
    log: common.Log,
) -> dict[str, float]:
    """Flow matching for the options' time or steps, saved now and then and at the end."""
    lora = [p for p in model.transformer.parameters() if p.requires_grad]
    parameters = [*projector.parameters(), *lora]
    optimiser = torch.optim.AdamW(parameters, options.rate, weight_decay=0.01, fused=True)
    budget, losses = common.Budget(options.seconds, options.steps), []
    for progress in budget:
        rate = options.rate * common.cosine(progress, budget.step, options.warm_up, 0.1)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad(set_to_none=True)
        for batch in batches(options, model, pictures, bool(lora)):
            loss = flow_loss(options, model, projector, batch) / options.accumulate
            loss.backward()
            losses.append(loss.detach() * options.accumulate)
        common.careful_step(optimiser, parameters)
        if budget.step % 50 == 0:
            log(step=budget.step, loss=common.mean(losses[-50 * options.accumulate :]))
        if budget.step % options.save_every == options.save_every - 1:
            save(options, projector, model)
    save(options, projector, model)
    tenth = max(1, len(losses) // 10)
    figures = {"first": common.mean(losses[:tenth]), "last": common.mean(losses[-tenth:])}
    peak = torch.cuda.max_memory_allocated() if model.device.type == "cuda" else 0
    log(steps=budget.step, peak_bytes=peak, saved=str(options.output), **figures)
    return figures


def save(options: AdapterOptions, projector: Projector, model: Model) -> None:
    """Write aside, then rename: a run that is broken off leaves the last whole file."""
    aside = options.output.with_name(f".{options.output.name}.part")
    projector.save(aside, lora_state(options, model.transformer))
    aside.replace(options.output)


@dataclass(frozen=True, slots=True)
class Batch:
    """Clean latents (B, N, 4C), their grid, and the features of the shrunk tiles or None."""

    clean: Tensor
    grid: tuple[int, int]
    features: Any


def batches(
    options: AdapterOptions, model: Model, pictures: data.Pictures, with_lora: bool
) -> Iterator[Batch]:
    """As many batches as make a step."""
    assert model.encoder  # noqa: S101 - load_frozen asked for it
    side, unit = options.tile // model.unit, model.unit
    spec = AdapterSpec("", 0, "", "", 0, model.encoder.layers, cell=CELL, margin=MARGIN)
    around = MARGIN * options.tile // spec.tile_grid((side, side))[0]
    size = (options.tile + 2 * around, options.tile + 2 * around)
    for _ in range(options.accumulate):
        with torch.no_grad():
            rgb = pictures.crops(options.batch, size, picky=options.batch > 1)
            small = data.shrink(rgb, CHANCE.uniform(1.5, 4.0), options.batch // 2)
            tile = rgb[..., around:-around, around:-around]
            clean = pack(model.vae.encode(tile)).to(model.dtype)
        features = None
        if not with_lora or CHANCE.random() >= options.bare:
            features = data.see(model.encoder, spec, small, (side, side), (unit, around))
        yield Batch(clean, (side, side), features)


def flow_loss(options: AdapterOptions, model: Model, projector: Projector, batch: Batch) -> Tensor:
    """Mean squared error of the velocity at sigmas around the middle (logit-normal)."""
    count, device = len(batch.clean), model.device
    sigma = torch.sigmoid(torch.randn(count, device=device))
    level = sigma[:, None, None].to(batch.clean)
    noise = torch.randn_like(batch.clean)
    noisy = (1 - level) * batch.clean + level * noise
    tokens = None
    if batch.features is not None:
        tokens = projector.tokens(batch.features, batch.grid)
        tokens = dataclasses.replace(tokens, states=tokens.states.to(model.dtype))
    predicted = velocity(
        model.transformer,
        noisy,
        sigma.to(model.dtype),
        batch.grid,
        model.text(options.prompt),
        guidance=options.guidance_scale if model.variant.has_guidance else None,
        tokens=tokens,
    )
    return F.mse_loss(predicted.float(), (noise - batch.clean).float())


if __name__ == "__main__":
    main(common.parse(AdapterOptions))
