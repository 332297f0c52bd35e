"""``fluxwatchd train dino``: a small DINOv2 model, by self-distillation, from a folder of pictures.

A student sees small and masked views of a picture, a teacher (its moving average) whole ones; the
student learns to say what the teacher says. Caron et al. 2021 (DINO, arXiv:2104.14294): multi-crop
and the averaged teacher; Zhou et al. 2022 (iBOT, arXiv:2111.07832): masked patches; Oquab et al.
2023 (DINOv2, arXiv:2304.07193): Sinkhorn-Knopp centring and the KoLeo term.
"""

import copy
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxwatchd.engine.dino import MEAN, STD, DinoEncoder
from fluxwatchd.training import common, data
from fluxwatchd.training.common import option

GLOBAL, LOCAL = 128, 48
"""Sides of the views, px: 16x16 and 6x6 patches."""
LOCALS = 4
REGION = 256
"""Side of the stored regions that views are cut from, px."""


@dataclass(frozen=True, slots=True)
class DinoOptions:
    """Train nano-dino."""

    images: Path = field(default=Path("pictures"), metadata={"help": "folder of training pictures"})
    output: Path = field(
        default=Path("dino"),
        metadata={"help": "folder to write the model to (transformers layout)"},
    )
    seconds: float = option(300.0, "how long to train")
    steps: int = option(0, "train so many steps instead")
    seed: int = option(0, "seed of weights and views")
    batch: int = option(256, "pictures a step")
    width: int = option(192, "width of a state")
    depth: int = option(8, "blocks")
    heads: int = option(3, "attention heads")
    prototypes: int = option(4096, "outputs of the projection head")
    regions: int = option(16, "regions cut from each picture")
    validate: Path | None = field(
        default=None, metadata={"help": "folder of other pictures for the retrieval test"}
    )
    compile: bool = option(True, "compile the blocks (GPU only)")


class Head(nn.Module):
    """Three-layer projection head with normalised prototypes (DINO, section 3)."""

    def __init__(self, width: int, prototypes: int) -> None:
        super().__init__()
        hidden, bottleneck = 1024, 256
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, bottleneck))
        self.prototypes = nn.Parameter(torch.randn(prototypes, bottleneck) * 0.02)

    def forward(self, states: Tensor) -> Tensor:
        """(..., width) -> (..., prototypes) cosines."""
        return F.linear(F.normalize(self.mlp(states), dim=-1), F.normalize(self.prototypes, dim=-1))


class Network(nn.Module):
    """A backbone with its two heads: one for the whole, one for patches."""

    def __init__(self, options: DinoOptions) -> None:
        super().__init__()
        self.backbone = build(options)
        self.whole = Head(options.width, options.prototypes)
        self.patch = Head(options.width, options.prototypes)

    def states(self, views: Tensor, masked: Tensor | None = None) -> Tensor:
        """(N, 1 + patches, width), class token first."""
        states: Tensor = self.backbone(views, bool_masked_pos=masked).last_hidden_state
        return states


def build(options: DinoOptions) -> Any:
    """An untrained Dinov2Model of about 4 million parameters, patch 8."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=options.width,
        num_hidden_layers=options.depth,
        num_attention_heads=options.heads,
        patch_size=8,
        image_size=GLOBAL,
        mlp_ratio=4,
        layerscale_value=1.0,
        drop_path_rate=0.0,
    )
    return Dinov2Model(config)


def main(options: DinoOptions) -> dict[str, float]:
    """Train, test by retrieval, save. Returns the retrieval figures."""
    device = common.set_up(options.seed)
    log = common.Log(options.output / "log.jsonl")
    pictures = data.Pictures(data.find(options.images), device)
    regions = cut_regions(pictures, options.regions)
    student = Network(options).to(device)
    untrained = DinoEncoder(copy.deepcopy(student.backbone))
    teacher = copy.deepcopy(student).requires_grad_(False)
    count = sum(p.numel() for p in student.backbone.parameters())
    log(pictures=len(pictures), regions=len(regions), parameters=count, options=str(options))
    train(options, regions, student, teacher, log)

    trained = DinoEncoder(copy.deepcopy(teacher.backbone))
    figures = {}
    for name, folder in (("train", options.images), ("validate", options.validate)):
        if folder is None:
            continue
        seen = pictures if name == "train" else data.Pictures(data.find(folder), device)
        figures[f"{name}_pixels"] = retrieval(seen, None)
        figures[f"{name}_untrained"] = retrieval(seen, untrained)
        figures[f"{name}_trained"] = retrieval(seen, trained)
    log(retrieval_top1=figures)
    model = common.half_copy(teacher.backbone)
    model.save_pretrained(options.output, safe_serialization=True)
    log(saved=str(options.output), identity=DinoEncoder(model).identity)
    return figures


def cut_regions(pictures: data.Pictures, each: int) -> Tensor:
    """(len(pictures) * each, 3, REGION, REGION) bytes, from squares of half a side and more."""
    found = []
    for index in range(len(pictures)):
        picture = pictures.whole(index)
        height, width = picture.shape[-2:]
        short = min(height, width)
        for _ in range(each):
            side = int(short * (0.4 + 0.6 * float(torch.rand(()))))
            top = int(float(torch.rand(())) * (height - side))
            left = int(float(torch.rand(())) * (width - side))
            crop = picture[..., top : top + side, left : left + side]
            small = F.interpolate(
                crop, size=(REGION, REGION), mode="bilinear", antialias=True, align_corners=False
            )
            found.append((small * 255).round().to(torch.uint8))
    return torch.cat(found)


def views(regions: Tensor, size: int, low: float, high: float) -> Tensor:
    """One view of every region: a crop of ``low`` to ``high`` of its area, flipped, recoloured."""
    count, device = len(regions), regions.device

    def chance(*shape: int) -> Tensor:
        return torch.rand(*shape, device=device)

    side = (chance(count) * (high - low) + low).sqrt()
    aspect = torch.exp((chance(count) - 0.5) * 0.5)
    wide, tall = (side * aspect).clamp(max=1), (side / aspect).clamp(max=1)
    place = torch.zeros(count, 2, 3, device=device)
    place[:, 0, 0] = wide * torch.where(chance(count) < 0.5, -1.0, 1.0)
    place[:, 1, 1] = tall
    place[:, 0, 2] = (chance(count) * 2 - 1) * (1 - wide)
    place[:, 1, 2] = (chance(count) * 2 - 1) * (1 - tall)
    grid = F.affine_grid(place, [count, 3, size, size], align_corners=False)
    seen = F.grid_sample(regions.float() / 255, grid, align_corners=False, padding_mode="border")
    light, contrast, colour = (chance(3, count, 1, 1, 1) - 0.5).unbind(0)
    grey = seen.mean(1, keepdim=True)
    middle = seen.mean((1, 2, 3), keepdim=True)
    seen = (seen - middle) * (1 + 0.6 * contrast) + middle + (seen - grey) * 0.8 * colour
    soft = F.avg_pool2d(F.pad(seen, (1, 1, 1, 1), mode="replicate"), 3, 1)
    seen = torch.where(chance(count, 1, 1, 1) < 0.3, soft, seen)
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (MEAN, STD))
    return ((seen + 0.15 * light).clamp(0, 1) - mean) / std


def train(
    options: DinoOptions, regions: Tensor, student: Network, teacher: Network, log: common.Log
) -> None:
    """Self-distillation for the options' time or steps."""
    device = regions.device
    parameters = list(student.parameters())
    optimiser = torch.optim.AdamW(
        parameters, 1e-3, betas=(0.9, 0.98), weight_decay=0.04, fused=True
    )
    if options.compile and device.type == "cuda":
        student.states = torch.compile(student.states, dynamic=False)  # type: ignore[method-assign]
        teacher.states = torch.compile(teacher.states, dynamic=False)  # type: ignore[method-assign]
    budget, losses = common.Budget(options.seconds, options.steps), []
    for progress in budget:
        rate = 1.2e-3 * common.cosine(progress, budget.step, 200, 0.005)
        for group in optimiser.param_groups:
            group["lr"] = rate
        chosen = torch.randint(0, len(regions), (options.batch,), device=device)
        loss = distil(student, teacher, regions[chosen], progress)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        common.careful_step(optimiser, parameters)
        momentum = 1 - (1 - 0.992) * (0.5 + 0.5 * math.cos(math.pi * progress))
        with torch.no_grad():
            torch._foreach_lerp_([*teacher.parameters()], [*parameters], 1 - momentum)
        losses.append(loss.detach())
        if budget.step % 500 == 0:
            log(step=budget.step, loss=common.mean(losses))
            losses = []
    log(step=budget.step, loss=common.mean(losses), done=True)


def distil(student: Network, teacher: Network, regions: Tensor, progress: float) -> Tensor:
    """One batch's loss: whole against whole, small against whole, masked patches, spread."""
    count, device = len(regions), regions.device
    with torch.no_grad():
        whole = torch.cat([views(regions, GLOBAL, 0.32, 1.0) for _ in range(2)])
        small = torch.cat([views(regions, LOCAL, 0.05, 0.32) for _ in range(LOCALS)])
    cells = (GLOBAL // 8) ** 2
    # mask 10 to 50 % of the patches in half of the views (iBOT, section 3.2)
    part = torch.rand(2 * count, 1, device=device) * 0.4 + 0.1
    part = part * (torch.rand(2 * count, 1, device=device) < 0.5)
    masked = torch.rand(2 * count, cells, device=device) < part
    warm = 0.04 + 0.03 * min(1.0, progress / 0.3)
    with common.autocast(device):
        with torch.no_grad():
            truth = teacher.states(whole)
            told = teacher.whole(truth[:, 0]).float()
            # a fixed number of patches keeps shapes fixed; unmasked ones are weighted 0 below
            picked = masked.float().add(torch.rand_like(masked.float()) * 0.5).topk(48, 1).indices
            told_patches = teacher.patch(_pick(truth, picked)).float()
        seen = student.states(whole, masked)
        said = student.whole(seen[:, 0]).float()
        said_patches = student.patch(_pick(seen, picked)).float()
        said_small = student.whole(student.states(small)[:, 0]).float()
    targets = [sinkhorn(t, warm) for t in told.chunk(2)]
    answers = [F.log_softmax(s / 0.1, -1) for s in (*said.chunk(2), *said_small.chunk(LOCALS))]
    pairs = [
        -(target * answer).sum(-1).mean()
        for i, target in enumerate(targets)
        for k, answer in enumerate(answers)
        if i != k
    ]
    wanted = sinkhorn(told_patches.flatten(0, 1), warm).view_as(told_patches)
    errors = -(wanted * F.log_softmax(said_patches / 0.1, -1)).sum(-1)
    weight = masked.gather(1, picked).float()
    patches = (errors * weight).sum() / weight.sum().clamp_min(1)
    return torch.stack(pairs).mean() + patches + 0.1 * koleo(seen[:count, 0].float())


def _pick(states: Tensor, places: Tensor) -> Tensor:
    """The states of patches ``places`` (N, P), without the class token."""
    return states[:, 1:].gather(1, places[..., None].expand(-1, -1, states.shape[-1]))


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float, rounds: int = 3) -> Tensor:
    """Targets whose prototypes are used evenly (Caron et al. 2020, SwAV, arXiv:2006.09882)."""
    table = torch.exp((logits - logits.max()) / temperature)
    for _ in range(rounds):
        table = table / table.sum(0, keepdim=True).clamp_min(1e-12)
        table = table / table.sum(1, keepdim=True).clamp_min(1e-12)
    return table


def koleo(states: Tensor) -> Tensor:
    """Keep states apart: -log of the distance to the nearest (Sablayrolles et al. 2019)."""
    states = F.normalize(states, dim=-1)
    with torch.no_grad():
        likeness = states @ states.T
        nearest = likeness.fill_diagonal_(-1).argmax(1)
    return -torch.log((states - states[nearest]).norm(dim=-1) + 1e-6).mean()


@torch.no_grad()
def retrieval(pictures: data.Pictures, encoder: DinoEncoder | None) -> float:
    """How often the nearest of all second halves is one's own: top-1, mean of both directions.

    A picture's two crops are the largest squares in its two halves, so they share no pixel. With
    no encoder, the mean-free 16x16 pixels are compared.
    """
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    for index in range(len(pictures)):
        picture = pictures.whole(index)
        height, width = picture.shape[-2:]
        if height > width:
            picture, height, width = picture.transpose(2, 3), width, height
        side = min(height, width // 2)
        top = (height - side) // 2
        for place, found in zip((0, width - side), sides, strict=True):
            crop = picture[..., top : top + side, place : place + side]
            if pictures.sizes[index][0] > pictures.sizes[index][1]:
                crop = crop.transpose(2, 3)
            found.append(data.resize(crop.contiguous(), (GLOBAL, GLOBAL)).clamp(0, 1))
    first, second = (_describe(torch.cat(found), encoder) for found in sides)
    likeness = first @ second.T
    own = torch.arange(len(pictures), device=likeness.device)
    hits = (likeness.argmax(1) == own).float().mean() + (likeness.argmax(0) == own).float().mean()
    return float(hits) / 2


def _describe(crops: Tensor, encoder: DinoEncoder | None) -> Tensor:
    if encoder is None:
        small = data.resize(crops, (16, 16)).flatten(1)
        return F.normalize(small - small.mean(1, keepdim=True), dim=1)
    grid = (GLOBAL // encoder.patch,) * 2
    return F.normalize(
        torch.cat([encoder.features(part, grid).whole for part in crops.split(64)]), dim=1
    )


if __name__ == "__main__":
    main(common.parse(DinoOptions))
