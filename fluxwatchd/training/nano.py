"""``fluxwatchd train nano``: the autoencoder and the denoiser of nano, from a folder of pictures.

Autoencoder: a diffusers AutoencoderTiny, 4 px a latent cell, 16 channels. Denoiser: a diffusers
FluxTransformer2DModel that predicts the velocity of flow matching (Lipman et al. 2023,
arXiv:2210.02747; Esser et al. 2024, arXiv:2403.03206), with the source's latent in extra input
channels and DINO tokens among its text states. Both are run by the engine's own functions.
"""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxwatchd.engine.dino import DinoEncoder, Features
from fluxwatchd.engine.flux import Tokens, pack, unpack, velocity
from fluxwatchd.engine.projector import AdapterSpec, Projector
from fluxwatchd.engine.resample import Grid
from fluxwatchd.errors import ConfigError
from fluxwatchd.training import common, data, measure, state
from fluxwatchd.training.common import CHANCE, option
from fluxwatchd.training.modules import POOLED, Nano, channels_last

UNIT = 8
"""Output px a side of an image token: 4 px a latent cell, 2 cells a token."""
SURROUNDINGS, HALO = 40, 16
"""px around a training tile: in the crop (for DINO), and in what the autoencoder sees."""


@dataclass(frozen=True, slots=True)
class NanoOptions:
    """Train nano's autoencoder and denoiser."""

    images: Path = field(default=Path("pictures"), metadata={"help": "folder of training pictures"})
    output: Path = field(
        default=Path("nano"),
        metadata={"help": "folder to write vae, transformer and dino_adapter to"},
    )
    stage: str = option("all", "autoencoder, denoiser or all; average: mean of resume and others")
    others: str = option("", "for average: more output folders, separated by commas")
    dino: Path | None = field(
        default=None, metadata={"help": "folder of the DINO encoder; none trains without tokens"}
    )
    resume: Path | None = field(
        default=None, metadata={"help": "folder of an earlier output, whose weights are the start"}
    )
    validate: Path | None = field(
        default=None, metadata={"help": "folder of other pictures to measure on (Kodak)"}
    )
    seconds_autoencoder: float = option(240.0, "how long to train the autoencoder")
    seconds: float = option(600.0, "how long to train the denoiser")
    steps: int = option(0, "train so many steps of each stage instead")
    seed: int = option(0, "seed of weights, crops and noise")
    tile: int = option(128, "side of a training tile, px; native is 256")
    batch: int = option(128, "tiles a step and GPU")
    rate: float = option(8e-4, "peak learning rate of the denoiser")
    warm_up: int = option(300, "steps until the learning rate's peak")
    floor: float = option(0.02, "last learning rate, as a part of the peak")
    average: float = option(0.9995, "decay of the averaged weights")
    pixel_weight: float = option(8.0, "weight of the pixel loss")
    rollout_from: float = option(0.4, "progress from which the second step sees its own first")
    width: int = option(256, "width of the denoiser (a multiple of 64)")
    double_blocks: int = option(1, "double-stream blocks")
    single_blocks: int = option(8, "single-stream blocks")
    channels: int = option(16, "latent channels")
    plain: float = option(0.3125, "part of a batch without source channels")
    bare: int = option(5, "one step in so many has no tokens")
    save_every: int = option(
        500, "steps between two saves of a stage's state, from which the same command goes on"
    )
    compile: bool = option(True, "compile (GPU only)")


# --- building and loading -------------------------------------------------------------------


def build_vae(options: NanoOptions) -> Any:
    """1.7 million parameters; most of them at a quarter of the size, where they cost least."""
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(
        encoder_block_out_channels=(64, 64, 64),
        decoder_block_out_channels=(64, 64, 64),
        num_encoder_blocks=(0, 2, 4),
        num_decoder_blocks=(5, 3, 0),
        latent_channels=options.channels,
    )


def build_transformer(options: NanoOptions) -> Any:
    """10 million parameters; starts by predicting 0."""
    from diffusers import FluxTransformer2DModel

    packed = options.channels * 4
    transformer = FluxTransformer2DModel(
        in_channels=packed * 2,
        out_channels=packed,
        num_layers=options.double_blocks,
        num_single_layers=options.single_blocks,
        attention_head_dim=64,
        num_attention_heads=options.width // 64,
        joint_attention_dim=192,
        pooled_projection_dim=POOLED,
        axes_dims_rope=(8, 28, 28),
    )
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)
    return transformer


def load(folder: Path, device: torch.device, dino: Path | None) -> Nano:
    """Read what :meth:`Nano.save` wrote, as float32; with ``dino`` also projector and encoder."""
    from diffusers import AutoencoderTiny, FluxTransformer2DModel

    try:
        nano = Nano(
            AutoencoderTiny.from_pretrained(folder / "vae").float().to(device),
            FluxTransformer2DModel.from_pretrained(folder / "transformer").float().to(device),
        )
    except OSError as error:
        raise ConfigError(f"cannot load nano from {folder}: {error}") from error
    if dino:
        nano.encoder = DinoEncoder.load(dino, device)
        nano.projector = Projector.load(folder / "dino_adapter", device)
    return nano


def start(options: NanoOptions, device: torch.device) -> Nano:
    """The denoiser's modules at the start of its training."""
    from diffusers import AutoencoderTiny

    if options.resume and (options.resume / "transformer").is_dir():
        nano = load(options.resume, device, options.dino)
    else:
        folder = (options.resume or options.output) / "vae"
        vae = AutoencoderTiny.from_pretrained(folder).float().to(device)
        nano = Nano(vae, build_transformer(options).to(device))
        if options.dino:
            nano.encoder = DinoEncoder.load(options.dino, device)
            nano.projector = build_projector(nano.encoder).to(device)
    nano.vae.requires_grad_(False)
    nano.vae.decoder.requires_grad_(True)
    nano.transformer.requires_grad_(True).train()
    if nano.projector:
        nano.projector.requires_grad_(True).train()
    return nano


def build_projector(encoder: DinoEncoder) -> Projector:
    """For nano's text states, 192 wide."""
    return Projector(
        AdapterSpec(
            model="nano",
            model_width=192,
            encoder=encoder.identity,
            encoder_name="nano-dino",
            encoder_width=encoder.width,
            layers=encoder.layers,
        )
    )


# --- programs -------------------------------------------------------------------------------


def main(options: NanoOptions) -> dict[str, Any]:
    """Train the stages asked for, measure, save. Returns the last measurements."""
    if options.stage not in {"autoencoder", "denoiser", "all", "average"}:
        raise ConfigError(
            f"stage {options.stage!r}", hint="Use autoencoder, denoiser, all or average."
        )
    device = common.set_up(options.seed)
    CHANCE.seed(options.seed * 1000 + int(os.environ.get("LOCAL_RANK", "0")))
    loud = os.environ.get("RANK", "0") == "0"
    log = common.Log(options.output / f"{options.stage}.jsonl", loud)
    log(options={k: str(v) for k, v in asdict(options).items()})
    figures: dict[str, Any] = {}
    nano = None
    if options.stage == "average":
        nano = soup(options, device)
    else:
        pictures = data.Pictures(data.find(options.images), device)
        log(pictures=len(pictures))
        if options.stage != "denoiser":
            train_autoencoder(options, pictures, log)
        if options.stage != "autoencoder":
            nano = train_denoiser(options, pictures, log)
    if loud:
        if nano:
            nano.save(options.output)
        for name in ("autoencoder", "denoiser"):
            state_file(options, name).unlink(missing_ok=True)
    if nano and loud and options.validate:
        figures = measure.ablation(nano, options.validate, device, log)
    log(end=True)
    return figures


def state_file(options: NanoOptions, stage: str) -> Path:
    """Where the state of a stage lies until all is done."""
    return options.output / f"{stage}{state.SUFFIX}"


def soup(options: NanoOptions, device: torch.device) -> Nano:
    """The mean of weights that were trained from one start with several seeds.

    Wortsman et al. 2022 (model soups, arXiv:2203.05482). It needs no link between the GPUs.
    """
    if options.resume is None:
        raise ConfigError("average needs folders", hint="Give --resume DIR --others DIR,DIR.")
    kept = load(options.resume, device, options.dino)
    folders = [Path(name) for name in options.others.split(",") if name]
    for number, folder in enumerate(folders, start=2):
        other = load(folder, device, options.dino)
        for mine, its in (
            (kept.transformer, other.transformer),
            (kept.vae, other.vae),
            *([(kept.projector, other.projector)] if kept.projector and other.projector else []),
        ):
            with torch.no_grad():
                torch._foreach_lerp_(list(mine.parameters()), list(its.parameters()), 1 / number)
    return kept


def train_autoencoder(options: NanoOptions, pictures: data.Pictures, log: common.Log) -> None:
    """Train, fit the latents' shift and scale, save the autoencoder."""
    device = pictures.device
    vae = build_vae(options).to(device, memory_format=torch.channels_last)
    keeper = common.Average([vae], 0.999)
    average: Any = keeper.kept[0]
    log(parameters=sum(p.numel() for p in vae.parameters()))
    optimiser = torch.optim.AdamW(
        vae.parameters(), 1e-3, betas=(0.9, 0.95), weight_decay=1e-4, fused=True
    )
    loss_of = torch.compile(autoencoder_loss) if compiled(options, device) else autoencoder_loss
    budget, losses = common.Budget(options.seconds_autoencoder, options.steps), []
    run = under_way(options, "autoencoder", keeper, optimiser, budget)
    if run.go_on():
        log(autoencoder_goes_on_at=budget.step)
    size, batch = min(128, options.tile), max(2, options.batch // 2)
    for progress in budget:
        rate = 1.5e-3 * common.cosine(progress, budget.step, 200, 0.002)
        for group in optimiser.param_groups:
            group["lr"] = rate
        rgb = pictures.crops(batch, (size, size), CHANCE.choice((1.0, 1.0, 1.5, 2.0)))
        # a quarter is soft, as the bases are that the pipeline encodes
        soft = data.enlarge(data.shrink(rgb[: batch // 4], CHANCE.uniform(1.5, 4), 0), (size, size))
        rgb = channels_last(torch.cat([soft, rgb[batch // 4 :]]))
        with common.autocast(device):
            loss, error = loss_of(vae, rgb)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        common.careful_step(optimiser, list(vae.parameters()))
        keeper.update(budget.step)
        losses.append(error.detach())
        if budget.step % 500 == 0:
            log(autoencoder_step=budget.step, psnr=float(-10 * torch.stack(losses).mean().log10()))
            losses = []
        if (budget.step + 1) % options.save_every == 0:
            run.save(budget.step + 1)
    run.save(budget.step)  # until all is done: a denoiser that is broken off finds it finished
    with torch.no_grad(), common.autocast(device):
        seen = torch.cat(
            [
                average.encode(pictures.crops(8, (size, size)) * 2 - 1).latents.float()
                for _ in range(16)
            ]
        )
    shift, scale = float(seen.mean()), 1 / float(seen.std())
    average.register_to_config(shift_factor=shift, scaling_factor=scale)
    spread = seen.std((0, 2, 3))
    log(
        autoencoder_done=budget.step,
        psnr=float(-10 * torch.stack(losses).mean().log10()) if losses else 0.0,
        shift=shift,
        scale=scale,
        channel_std=[round(float(s), 2) for s in spread],
    )
    common.half_copy(average).save_pretrained(options.output / "vae", safe_serialization=True)
    if options.validate:
        nano = Nano(average, None)
        log(autoencoder=measure.reconstruction(nano, options.validate, device))


def autoencoder_loss(vae: Any, rgb: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels and their gradients, through latents with noise; and the mean squared error."""
    latents = vae.encode(rgb * 2 - 1).latents
    level = 0.12 * torch.rand(len(rgb), 1, 1, 1, device=rgb.device)
    pixels = vae.decode(latents + level * torch.randn_like(latents)).sample.float() * 0.5 + 0.5
    error = pixels - rgb
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    flat = latents.float()
    # every channel near mean 0 and deviation 1, and none where the decoder's tanh flattens
    moments = flat.mean((0, 2, 3)).square().mean() + (flat.std((0, 2, 3)) - 1).square().mean()
    far = F.relu(flat.abs() - 4).mean()
    squared = error.square().mean()
    loss = 2 * (error.abs().mean() + 0.5 * edges) + 4 * squared + 1e-2 * moments + 1e-2 * far
    return loss, squared.detach()


def compiled(options: NanoOptions, device: torch.device) -> bool:
    """Whether to compile."""
    return options.compile and device.type == "cuda"


def train_denoiser(options: NanoOptions, pictures: data.Pictures, log: common.Log) -> Nano:
    """Train; gives back the averaged weights."""
    device = pictures.device
    nano = start(options, device)
    nano.vae.to(memory_format=torch.channels_last)
    modules = [nano.transformer, nano.vae, *([nano.projector] if nano.projector else [])]
    keeper = common.Average(modules, options.average)
    groups = [
        {"params": list(nano.transformer.parameters()), "part": 1.0},
        {"params": list(nano.vae.decoder.parameters()), "part": 0.15},
    ]
    if nano.projector:
        groups.append({"params": list(nano.projector.parameters()), "part": 1.5})
    parameters = [p for group in groups for p in group["params"]]  # type: ignore[attr-defined]
    log(parameters=[sum(p.numel() for p in g["params"]) for g in groups])  # type: ignore[attr-defined]
    optimiser = torch.optim.AdamW(
        groups, options.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    if compiled(options, device):
        torch._dynamo.config.recompile_limit = 64
        nano.transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)
        nano.vae.decoder.compile(dynamic=False)
        nano.vae.encoder.compile(dynamic=False)
    budget, seen = common.Budget(options.seconds, options.steps), Losses()
    run = under_way(options, "denoiser", keeper, optimiser, budget)
    if run.go_on():
        log(denoiser_goes_on_at=budget.step)
    for progress in budget:
        rate = options.rate * common.cosine(progress, budget.step, options.warm_up, options.floor)
        for group in optimiser.param_groups:
            group["lr"] = rate * group["part"]
        batch = make_batch(options, nano, pictures, budget.step)
        loss = batch_loss(options, nano, batch, progress >= options.rollout_from, seen)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        common.share_gradients(parameters)
        seen.add(skipped=common.careful_step(optimiser, parameters))
        keeper.update(budget.step)
        if budget.step % 500 == 0:
            log(step=budget.step, progress=progress, **seen.take())
        if (budget.step + 1) % options.save_every == 0:
            run.save(budget.step + 1)
    log(step=budget.step, done=True, **seen.take())
    transformer, vae, *rest = keeper.kept
    return Nano(vae, transformer, rest[0] if rest else None, nano.encoder)  # type: ignore[arg-type]


def under_way(
    options: NanoOptions,
    stage: str,
    keeper: common.Average,
    optimiser: torch.optim.Optimizer,
    budget: common.Budget,
) -> state.Run:
    """A stage as it is saved."""
    file = state_file(options, stage)
    return state.Run(file, state.text_of(options), keeper, optimiser, budget)


class Losses:
    """Sums of named losses; read only when they are printed, so the device is not waited for."""

    def __init__(self) -> None:
        self.sums: dict[str, list[Tensor]] = {}

    def add(self, **losses: Tensor) -> None:
        """Note one step's losses."""
        for name, loss in losses.items():
            self.sums.setdefault(name, []).append(loss.detach())

    def take(self) -> dict[str, float]:
        """The means since the last call."""
        means = {name: common.mean(losses) for name, losses in self.sums.items()}
        self.sums = {}
        return means


# --- one step -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Batch:
    """Tiles to learn from: the truth, its latents and the source's (packed), DINO features."""

    truth: Tensor
    clean: Tensor
    source: Tensor
    grid: Grid
    features: Features | None


def tile_shape(side: int, step: int) -> Grid:
    """Squares, and once they are of native size also oblongs, as the even tile grid makes them."""
    if side < 256 or step % 2 == 0:
        return side, side
    return (side + 32, side - 32) if step % 4 == 1 else (side - 32, side + 32)


@torch.no_grad()
def make_batch(options: NanoOptions, nano: Nano, pictures: data.Pictures, step: int) -> Batch:
    """Crops with surroundings, made small as users' pictures are, and enlarged again."""
    device = pictures.device
    tall, wide = tile_shape(options.tile, step)
    size = (tall + 2 * SURROUNDINGS, wide + 2 * SURROUNDINGS)
    scale = 4.0 if CHANCE.random() < 0.5 else CHANCE.uniform(1.5, 4)
    rgb = pictures.crops(options.batch, size, CHANCE.choice((1.0, 1.0, 1.35, 1.7)))
    # damaged pictures must be spread over the slots that batch_loss makes
    order = torch.randperm(options.batch, device=device)
    small = data.shrink(rgb, scale, options.batch // 2)
    base = data.enlarge(small, size)
    rgb, base, small = rgb[order], base[order], small[order]
    with common.autocast(device):
        clean, source = latents_of(nano, rgb, base)
        grid = (tall // UNIT, wide // UNIT)
        bare = options.bare and step % options.bare == options.bare - 1
        features = None
        if nano.encoder and nano.projector and not bare:
            features = data.see(
                nano.encoder, nano.projector.spec, small, grid, (UNIT, SURROUNDINGS)
            )
    return Batch(data.inner(rgb, SURROUNDINGS), clean, source, grid, features)


def latents_of(nano: Nano, *pictures: Tensor) -> list[Tensor]:
    """The packed latents of tiles with SURROUNDINGS; the autoencoder mostly sees a HALO of them."""
    edge = SURROUNDINGS if CHANCE.random() < 0.2 else SURROUNDINGS - HALO
    cells = (SURROUNDINGS - edge) // 4
    return [pack(data.inner(nano.encode(data.inner(one, edge)), cells)) for one in pictures]


def batch_loss(
    options: NanoOptions, nano: Nano, batch: Batch, rollout: bool, seen: Losses
) -> Tensor:
    """Flow matching, and the pixels of what is predicted where two-step sampling looks.

    The batch has four slots: a quarter starts from noise (sigma 1), a quarter stands at the second
    of two steps (about 1/2), the rest at any sigma, ``plain`` of it without source channels. With
    ``rollout`` the second slot starts from the model's own first step, as sampling does.
    """
    clean, count = batch.clean, len(batch.clean)
    device = clean.device
    first, second = count // 4, count // 2
    plain = count - round(count * options.plain)
    sigma = torch.sigmoid(torch.randn(count, device=device) * 1.2 + 0.3)
    sigma[:first] = 1.0
    sigma[first:second] = torch.rand(second - first, device=device) * 0.1 + 0.45
    sigma[plain:] = torch.rand(count - plain, device=device) * 0.87 + 0.08
    level = sigma[:, None, None]
    noise = torch.randn_like(clean)
    noisy = (1 - level) * clean + level * noise
    source = batch.source.clone()
    source[plain:] = 0
    text = nano.text(device)
    with common.autocast(device):
        tokens = None
        if batch.features is not None and nano.projector is not None:
            tokens = nano.projector.tokens(batch.features, batch.grid)
        if rollout:
            part = slice(first, second)
            with torch.no_grad():
                step = velocity(
                    nano.transformer,
                    noise[part],
                    torch.ones_like(sigma[part]),
                    batch.grid,
                    text,
                    source=source[part],
                    tokens=tokens and Tokens(tokens.states[part].detach(), tokens.ids),
                ).float()
            noisy[part] = noise[part] - (1 - level[part]) * step
        predicted = velocity(
            nano.transformer, noisy, sigma, batch.grid, text, source=source, tokens=tokens
        ).float()
        # the decoder learns on predictions, and keeps knowing true latents
        guess = (noisy - level * predicted)[:second]
        true = clean[second : second + count // 8]
        pixels = nano.decode(unpack(torch.cat([guess, true]), batch.grid))
    wanted = (noisy - clean) / level
    flow = (predicted - wanted).square().mean((1, 2))
    if rollout:
        # its error is that of the clean latent over sigma: weigh it like the first step's
        flow = torch.cat(
            [flow[:first], flow[first:second] * sigma[first:second] ** 2, flow[second:]]
        )
    shown = data.inner(batch.truth[: second + count // 8], UNIT // 2)
    error = (data.inner(pixels, UNIT // 2) - shown).abs().mean((1, 2, 3))
    seen.add(
        first=flow[:first].mean(),
        second=flow[first:second].mean(),
        any=flow[second:plain].mean(),
        plain=flow[plain:].mean(),
        pixels_first=error[:first].mean(),
        pixels_second=error[first:second].mean(),
        pixels_true=error[second:].mean(),
    )
    return flow.mean() + options.pixel_weight * error.mean()


if __name__ == "__main__":
    main(common.parse(NanoOptions))
