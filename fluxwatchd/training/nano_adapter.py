"""``fluxwatchd train nano-adapter``: nano's DINO adapter alone, against its frozen weights.

The projector learns what tokens bring the result, as the pipeline finishes it, nearer to the source
and the truth in the eyes of the DINO encoder that steers. Autoencoder, denoiser and encoder stay
as they are, so a run without tokens stays the same to the bit.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxwatchd.engine.dino import DinoEncoder, Features
from fluxwatchd.engine.flux import unpack, velocity
from fluxwatchd.engine.projector import Projector
from fluxwatchd.engine.resample import Grid
from fluxwatchd.errors import ConfigError
from fluxwatchd.training import common, data, finish, judged, looks, state
from fluxwatchd.training import nano as whole
from fluxwatchd.training.common import CHANCE, option
from fluxwatchd.training.measure import luma
from fluxwatchd.training.modules import Nano
from fluxwatchd.training.nano import SURROUNDINGS, UNIT, Losses

SCALES = (4.0, 4.0, 4.0, 8 / 3, 2.0, 1.6)
"""Scales at which a token is a whole number of source px, so a tile has a source of its own."""
SOURCE, TRUTH, SQUARED = 1e-4, 1e-2, 1e-3
"""About nano's drift from source and truth, and its mean squared error of luma in 0..1. A loss
counts as log(1 + loss / level): tiles far above the level by ratio, as pictures are compared."""


@dataclass(frozen=True, slots=True)
class NanoAdapterOptions:
    """Tune nano's DINO adapter against its frozen weights."""

    resume: Path = field(metadata={"help": "folder of nano: vae, transformer and dino_adapter"})
    dino: Path = field(metadata={"help": "folder of the DINO encoder that steers"})
    images: Path = field(default=Path("pictures"), metadata={"help": "folder of training pictures"})
    output: Path = field(
        default=Path("nano-adapter"), metadata={"help": "folder to write dino_adapter to"}
    )
    validate: Path | None = field(
        default=None, metadata={"help": "folder of other pictures to measure on (Kodak)"}
    )
    judge: Path | None = field(
        default=None,
        metadata={"help": "folder of another DINO encoder, to measure with and never to train by"},
    )
    seconds: float = option(240.0, "how long to train; 0: measure what is there")
    steps: int = option(0, "train so many steps instead")
    seed: int = option(0, "seed of crops, noise and strengths")
    tile: int = option(256, "side of a training tile, px; native is 256")
    batch: int = option(32, "tiles a step and GPU")
    plain: float = option(0.375, "part of a batch without source channels, as nano-img2img")
    worn: float = option(0.25, "part of a batch whose sources are worn; not drawn to these")
    full: float = option(0.5, "part of the steps at strength 1; the others are anywhere below")
    rate: float = option(1e-3, "peak learning rate")
    warm_up: int = option(20, "steps until the learning rate's peak")
    floor: float = option(0.02, "last learning rate, as a part of the peak")
    average: float = option(0.99, "decay of the averaged weights")
    flow_weight: float = option(1.0, "weight of the clean latents' mean squared error")
    pixel_weight: float = option(2.0, "weight of the finished luma's log of squared error")
    truth_weight: float = option(1.0, "weight of the log of drift from the truth")
    source_weight: float = option(0.5, "weight of the log of drift from the source")
    windows: int = option(2, "windows a tile in which drift from the truth is seen")
    save_every: int = option(
        500, "steps between two saves of the state, from which the same command goes on"
    )


def main(options: NanoAdapterOptions) -> dict[str, Any]:
    """Train, save, measure. Returns the last measurements."""
    device = common.set_up(options.seed)
    # drift of 1e-4 is lost in TF32; what may be rounder runs under autocast
    torch.backends.cuda.matmul.allow_tf32 = False
    CHANCE.seed(options.seed)
    log = common.Log(options.output / "nano-adapter.jsonl")
    log(options={k: str(v) for k, v in asdict(options).items()})
    nano, trains = start(options, device), bool(options.seconds or options.steps)
    if trains:
        pictures = data.Pictures(data.find(options.images), device)
        log(pictures=len(pictures))
        nano.projector = train(options, nano, pictures, log)
        nano.projector.save(options.output / "dino_adapter" / "adapter.safetensors")
        state_file(options).unlink(missing_ok=True)
    figures: dict[str, Any] = {}
    if options.validate:
        # as it is in the file
        if trains:
            nano.projector = Projector.load(options.output / "dino_adapter", device)
        judge = DinoEncoder.load(options.judge, device) if options.judge else None
        figures = judged.tokens(nano, options.validate, judge, log)
    log(end=True)
    return figures


def start(options: NanoAdapterOptions, device: torch.device) -> Nano:
    """Everything frozen; raises ConfigError where the adapter is of another encoder."""
    nano = whole.load(options.resume, device, options.dino)
    if nano.projector is None or nano.encoder is None:
        raise ConfigError("there is no DINO encoder to tune for", hint="Give --dino DIR.")
    width = int(nano.transformer.config.joint_attention_dim)
    nano.projector.check(model="nano", model_width=width, encoder=nano.encoder)
    nano.vae.requires_grad_(False).eval().to(memory_format=torch.channels_last)
    nano.transformer.requires_grad_(False).eval()
    return nano


def state_file(options: NanoAdapterOptions) -> Path:
    """Where the state lies until all is done."""
    return options.output / f"nano-adapter{state.SUFFIX}"


def train(
    options: NanoAdapterOptions, nano: Nano, pictures: data.Pictures, log: common.Log
) -> Projector:
    """Train ``nano``'s projector; gives back its averaged weights."""
    assert nano.projector  # noqa: S101 - start() asked for it
    projector = nano.projector.requires_grad_(True).train()
    parameters = list(projector.parameters())
    keeper = common.Average([projector], options.average)
    optimiser = torch.optim.AdamW(
        parameters, options.rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
    budget, seen = common.Budget(options.seconds, options.steps), Losses()
    run = state.Run(state_file(options), state.text_of(options), keeper, optimiser, budget)
    if run.go_on():
        log(goes_on_at=budget.step)
    for progress in budget:
        rate = options.rate * common.cosine(progress, budget.step, options.warm_up, options.floor)
        for group in optimiser.param_groups:
            group["lr"] = rate
        batch = make_batch(options, nano, pictures, budget.step)
        loss = batch_loss(options, nano, batch, strength_of(options), seen)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        seen.add(loss=loss, skipped=common.careful_step(optimiser, parameters))
        keeper.update(budget.step)
        if budget.step % 20 == 0:
            log(step=budget.step, progress=progress, **seen.take())
        if (budget.step + 1) % options.save_every == 0:
            run.save(budget.step + 1)
    peak = torch.cuda.max_memory_allocated() if pictures.device.type == "cuda" else 0
    log(step=budget.step, done=True, peak_bytes=peak, **seen.take())
    kept: Any = keeper.kept[0]
    trained: Projector = kept
    return trained


def strength_of(options: NanoAdapterOptions) -> float:
    """1 or anything in (0, 1): what tokens do is to grow with their strength."""
    return 1.0 if CHANCE.random() < options.full else 1.0 - CHANCE.random()


# --- one step -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Batch:
    """Tiles: the truth, its small source and that enlarged; latents packed; DINO features.

    ``fresh`` (N,): whether a source is no worn one.
    """

    truth: Tensor
    small: Tensor
    base: Tensor
    wanted: Tensor
    source: Tensor
    grid: Grid
    features: Features
    fresh: Tensor


@torch.no_grad()
def make_batch(
    options: NanoAdapterOptions, nano: Nano, pictures: data.Pictures, step: int
) -> Batch:
    """Crops with surroundings, made small as users' pictures are, and enlarged again."""
    assert nano.projector and nano.encoder  # noqa: S101 - start() asked for it
    device, count = pictures.device, options.batch
    tall, wide = whole.tile_shape(options.tile, step)
    size = (tall + 2 * SURROUNDINGS, wide + 2 * SURROUNDINGS)
    scale = CHANCE.choice(SCALES)
    rgb = pictures.crops(count, size, CHANCE.choice((1.0, 1.0, 1.35, 1.7)))
    worn = round(count * options.worn)
    order = torch.randperm(count, device=device)
    small = data.shrink(rgb, scale, worn)[order]
    rgb, fresh = rgb[order], order < count - worn
    base = data.enlarge(small, size)
    with common.autocast(device):
        wanted, source = whole.latents_of(nano, rgb, base)
    grid = (tall // UNIT, wide // UNIT)
    features = data.see(nano.encoder, nano.projector.spec, small, grid, (UNIT, SURROUNDINGS))
    around = round(SURROUNDINGS / scale)
    return Batch(
        truth=data.inner(rgb, SURROUNDINGS),
        small=data.inner(small, around),
        base=data.inner(base, SURROUNDINGS),
        wanted=wanted,
        source=source,
        grid=grid,
        features=features,
        fresh=fresh,
    )


def batch_loss(
    options: NanoAdapterOptions, nano: Nano, batch: Batch, strength: float, seen: Losses
) -> Tensor:
    """How far the finished second step is from truth and source; the gradient is of both steps.

    The first tiles go as nano does, from noise through about 1/2; the ``plain`` last ones as
    nano-img2img, from the noisy source at any sigma, without source channels, to a lower one.
    """
    count, device = len(batch.wanted), batch.wanted.device
    seeing = count - round(count * options.plain)
    sigmas = noise_levels(count, seeing, device)
    guesses = two_steps(nano, batch, sigmas, seeing, strength)
    with common.autocast(device):
        pixels = nano.decode(unpack(guesses[-1], batch.grid))
    finished = finish.lock(pixels, batch.base)
    finished = torch.cat(
        [finish.project_back(finished[:seeing], batch.small[:seeing]), finished[seeing:]]
    )
    terms = {
        "flow": torch.stack([(g - batch.wanted).square().mean((1, 2)) for g in guesses]).mean(0)
    } | closeness(options, nano, batch, finished)
    weights = {
        "flow": options.flow_weight,
        "pixel": options.pixel_weight,
        "truth": options.truth_weight,
        "source": options.source_weight,
    }
    for name, each in terms.items():
        seen.add(**{name: each[:seeing].mean(), f"plain_{name}": each[seeing:].mean()})
    levels = {"pixel": SQUARED, "truth": TRUTH, "source": SOURCE}
    # a worn source is not what a result should look like
    terms["source"] = terms["source"] * batch.fresh
    parts = [
        weight * ((terms[n] / levels[n]).log1p() if n in levels else terms[n]).mean()
        for n, weight in weights.items()
    ]
    return torch.stack(parts).sum()


def noise_levels(count: int, seeing: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Sigmas of the first and the second step, (count,) each."""
    first = torch.rand(count, device=device) * 0.75 + 0.15
    second = first * (torch.rand(count, device=device) * 0.7 + 0.2)
    first[:seeing] = 1.0
    second[:seeing] = torch.rand(seeing, device=device) * 0.1 + 0.45
    return first, second


def two_steps(
    nano: Nano, batch: Batch, sigmas: tuple[Tensor, Tensor], seeing: int, strength: float
) -> list[Tensor]:
    """The clean latents that each step has in mind, packed; float32."""
    assert nano.projector  # noqa: S101 - start() asked for it
    device = batch.wanted.device
    first, second = (sigma[:, None, None] for sigma in sigmas)
    # at sigma 1 nothing is left of the source
    noisy = (1 - first) * batch.source + first * torch.randn_like(batch.source)
    source = batch.source.clone()
    source[seeing:] = 0
    text, guesses = nano.text(device), []
    with common.autocast(device):
        tokens = nano.projector.tokens(batch.features, batch.grid)
    for level, then in ((first, second), (second, None)):
        with common.autocast(device):
            predicted = velocity(
                nano.transformer,
                noisy,
                level[:, 0, 0],
                batch.grid,
                text,
                source=source,
                tokens=tokens,
                dino_strength=strength,
            ).float()
        guesses.append(noisy - level * predicted)
        if then is not None:
            noisy = noisy - (level - then) * predicted
    return guesses


def closeness(
    options: NanoAdapterOptions, nano: Nano, batch: Batch, finished: Tensor
) -> dict[str, Tensor]:
    """The squared error of luma, and drift from truth and source, of every tile."""
    assert nano.encoder  # noqa: S101 - start() asked for it
    error = (luma(finished) - luma(batch.truth)) / 255
    return {
        "pixel": error.square().mean((1, 2, 3)),
        "truth": looks.from_truth(nano.encoder, finished, batch.truth, options.windows),
        "source": looks.from_source(nano.encoder, finished, batch.small),
    }


if __name__ == "__main__":
    main(common.parse(NanoAdapterOptions))
