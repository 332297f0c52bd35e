"""FLUX.1 at full size from files on the disk: both layouts read back, and a backlog by the daemon.

The weights are random, in the real shapes; 24 GB are written, read, and removed again.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from fluxwatchd.bench.fluxspeed import covered, kernels
from fluxwatchd.bench.options import command_line, run_as_script, save_option
from fluxwatchd.bench.randomflux import FULL, TINY, RandomFlux, Shapes, state
from fluxwatchd.bench.report import machine, table
from fluxwatchd.bench.report import save as keep
from fluxwatchd.engine import layouts, memory, weights

SHARD = 10_000_000_000
"""bytes; diffusers cuts its files there."""
Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Report:
    """``layouts``: by name, GB, s to write and to read, and whether every tensor came back equal.

    ``backlog``: pictures through the daemon; ``start_up``: s from a process's start to READY, the
    first time and again.
    """

    device: str
    layouts: Mapping[str, Any]
    backlog: Mapping[str, Any]
    start_up: Mapping[str, float]
    machine: Mapping[str, Any]

    def as_text(self) -> str:
        """Markdown tables."""
        rows = [
            (name, *(f"{one[key]:.1f}" for key in ("gigabytes", "write", "read")), one["equal"])
            for name, one in self.layouts.items()
        ]
        parts = [f"Random weights; {self.device}, torch {self.machine['torch']}."]
        parts.append(table(("layout", "GB", "s to write", "s to read", "equal"), rows))
        told = {**self.backlog, **{f"s to READY, {k}": v for k, v in self.start_up.items()}}
        parts.append(table(("daemon", ""), [(k, f"{v:.3f}") for k, v in told.items()]))
        return "\n\n".join(parts)


# --- files ----------------------------------------------------------------------------------


def comfy_names(found: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensors:
    """A transformer's tensors under Black Forest Labs' names, its layers joined as they have it."""
    inner = config["num_attention_heads"] * config["attention_head_dim"]
    names = [*layouts.WHOLE]
    for kind, count, own in (
        ("double", config["num_layers"], layouts.DOUBLE),
        ("single", config["num_single_layers"], layouts.SINGLE),
    ):
        names += [f"{kind}_blocks.{i}.{name}" for i in range(count) for name in own]
    out: Tensors = {}
    for name, ending in itertools.product(names, ("weight", "bias")):
        places = [f"{place}.{ending}" for place, _, _ in layouts.pieces(name, inner, inner)]
        parts = [found[place] for place in places if place in found]
        if len(parts) != len(places):
            continue
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        if name in layouts.SWAPPED:
            whole = torch.cat(whole.chunk(2)[::-1])
        kind = "scale" if name.endswith("_norm") else ending
        out[f"{name}.{kind}"] = whole.contiguous()
    return out


def text_encoders(shapes: Shapes) -> tuple[Tensors, Tensors]:
    """CLIP and T5 of the widths that the transformer takes, and of one layer: enough for a load."""
    pooled, width = (
        shapes.transformer[key] for key in ("pooled_projection_dim", "joint_attention_dim")
    )
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408, hidden_size=pooled, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=max(1, pooled // 64), eos_token_id=2,
        )
    )  # fmt: skip
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=128, d_model=width, d_ff=64, d_kv=16, num_heads=4, num_layers=1,
            feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False,
        )
    )  # fmt: skip
    words = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in clip.state_dict().items()}
    states = {k: v for k, v in t5.state_dict().items() if k != "encoder.embed_tokens.weight"}
    return half(words), half(states)


def half(found: Mapping[str, Tensor]) -> Tensors:
    """Tensors in bfloat16, as files have them."""
    return {k: v.bfloat16().contiguous() for k, v in found.items() if "position_ids" not in k}


def write_comfy(root: Path, made: Mapping[str, Tensor], vae: Tensors, shapes: Shapes) -> None:
    """ComfyUI's models folder."""
    for name in ("diffusion_models", "vae", "text_encoders"):
        (root / name).mkdir(parents=True, exist_ok=True)
    file = root / "diffusion_models" / "flux1-schnell.safetensors"
    safetensors.torch.save_file(comfy_names(made, shapes.transformer), file)
    safetensors.torch.save_file(vae, root / "vae" / "ae.safetensors")
    for name, part in zip(("clip_l", "t5xxl_fp16"), text_encoders(shapes), strict=True):
        safetensors.torch.save_file(part, root / "text_encoders" / f"{name}.safetensors")


def write_folder(root: Path, made: Mapping[str, Tensor]) -> None:
    """A transformer as diffusers has it: shards and an index."""
    root.mkdir(parents=True)
    name = "diffusion_pytorch_model"
    shards: list[Tensors] = [{}]
    size = 0
    for key, tensor in made.items():
        size += tensor.nbytes
        if size > SHARD:
            shards.append({})
            size = tensor.nbytes
        shards[-1][key] = tensor
    where = {}
    for i, shard in enumerate(shards):
        file = f"{name}-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        safetensors.torch.save_file(shard, root / file)
        where |= dict.fromkeys(shard, file)
    index = {"metadata": {}, "weight_map": where}
    (root / f"{name}.safetensors.index.json").write_text(json.dumps(index))


def read_back(files: list[Path], made: Mapping[str, Tensor]) -> tuple[float, bool]:
    """Seconds until every tensor was read, and whether each is what was written."""
    start = time.perf_counter()
    found: weights.State = {}
    for file in files:
        found |= weights.open_files(file)
    _, found = layouts.transformer(found, files[0])
    equal = found.keys() == made.keys()
    for name, weight in found.items():
        equal = equal and torch.equal(weight.read(), made[name])
    return time.perf_counter() - start, equal


def paint(folder: Path, count: int, side: int) -> None:
    """``count`` soft random pictures of ``side`` px into a new folder."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (side // 16, side // 16, 3), np.uint8))
        small.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{i:02d}.png")


# --- the daemon -----------------------------------------------------------------------------

CONFIG = """
[daemon]
state_dir = "state"
settle_seconds = 0
[engine]
memory = "{plan}"
[[folder]]
inbox = "inbox"
outbox = "outbox"
variant = "schnell"
model = "{model}"
scale = 4.0
steps = 4
dino_mode = "off"
"""


def backlog(root: Path, model: Path, plan: str, count: int, side: int) -> dict[str, float]:
    """``count`` pictures through the daemon in this process, the device watched.

    From the beginning of the first picture to the end of the last.
    """
    from fluxwatchd import daemon
    from fluxwatchd.config import load

    (root / "config.toml").write_text(CONFIG.format(model=model, plan=plan))
    paint(root / "inbox", count, side)
    with _watched() as seen:
        if daemon.serve(load(root / "config.toml"), until_idle=True):
            raise RuntimeError("the daemon did not do every picture")
    records = [json.loads(f.read_text()) for f in (root / "outbox").glob("*.json")]
    start = min(_time(record["started"]) for record in records)
    end = max(_time(record["finished"]) for record in records)
    output = count * (4 * side) ** 2 / 1e6
    told = {
        "pictures": float(count),
        "s per output Mpx": (end - start) / output,
        "slow stages, s per output Mpx": sum(sum(r["seconds"].values()) for r in records) / output,
    }
    if seen:
        inside = [(max(a, start), min(b, end)) for a, b in seen if b > start and a < end]
        told["% of the time with a kernel running"] = 100 * covered(inside) / (end - start)
    return told


@contextlib.contextmanager
def _watched() -> Iterator[list[tuple[float, float]]]:
    """When the device was at work meanwhile, s of the Unix epoch; nothing without a GPU."""
    spans: list[tuple[float, float]] = []
    if not torch.cuda.is_available():
        yield spans
        return
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        yield spans
        torch.cuda.synchronize()
    spans += kernels(seen)


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def start_up(root: Path) -> float:
    """Seconds that `run --until-idle` takes on empty folders: to READY, and to its end."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "fluxwatchd", "run", "--until-idle", "--config"]
    subprocess.run([*command, str(root / "config.toml")], check=True)  # noqa: S603 # ourselves
    return time.perf_counter() - start


# --- all of it ------------------------------------------------------------------------------


def measure(place: Path, shapes: Shapes, *, count: int, side: int, plan: str) -> Report:
    """Write, read back, and work off a backlog, below ``place``."""
    device = memory.find_devices(_settings())[0]
    config = {**shapes.transformer, "guidance_embeds": False}
    drawn = state(config, torch.device(device))
    made = {name: weight.read().bfloat16().cpu() for name, weight in drawn.items()}
    vae = RandomFlux(shapes).vae(torch.device("cpu"), torch.bfloat16)
    parts = half(vae.module.state_dict())
    size = sum(tensor.nbytes for tensor in made.values()) / 1e9
    found: dict[str, Any] = {}

    folder = place / "diffusers" / "transformer"
    begun = time.perf_counter()
    write_folder(folder, made)
    wrote = time.perf_counter() - begun
    read, equal = read_back(sorted(folder.glob("*.safetensors")), made)
    found["diffusers folder"] = _told(size, wrote, read, equal)
    shutil.rmtree(folder)

    root = place / "models"
    begun = time.perf_counter()
    write_comfy(root, made, parts, shapes)
    wrote = time.perf_counter() - begun
    read, equal = read_back([root / "diffusion_models" / "flux1-schnell.safetensors"], made)
    found["ComfyUI file"] = _told(size, wrote, read, equal)
    click.echo(f"{found}", err=True)
    del made

    house = place / "house"
    (house / "inbox").mkdir(parents=True)
    (house / "config.toml").write_text(CONFIG.format(model=root, plan=plan))
    starts = {"first": start_up(house), "again": start_up(house)}
    click.echo(f"{starts}", err=True)
    shutil.rmtree(house / "inbox")
    worked = backlog(house, root, plan, count, side)
    return Report(memory.device_name(device), found, worked, starts, machine())


def _told(size: float, wrote: float, read: float, equal: bool) -> dict[str, Any]:
    return {"gigabytes": size, "write": wrote, "read": read, "equal": "yes" if equal else "no"}


def _settings() -> Any:
    from fluxwatchd.config import EngineSettings

    return EngineSettings()


@click.command()
@click.option("--pictures", type=int, default=16, show_default=True)
@click.option("--side", type=int, default=512, show_default=True, help="Of a source, px.")
@click.option("--plan", default="fp8", show_default=True)
@click.option("--tiny", is_flag=True, help="A tiny model, to try this with.")
@save_option
def command(*, pictures: int, side: int, plan: str, tiny: bool, save: Path | None) -> None:
    """Write FLUX.1 in its real shapes, read it back, and work off a backlog of pictures."""
    with tempfile.TemporaryDirectory() as place:
        shapes = TINY if tiny else FULL
        report = measure(Path(place), shapes, count=pictures, side=side, plan=plan)
    click.echo(report.as_text())
    if save:
        keep(report, save, command_line(click.get_current_context()))


if __name__ == "__main__":
    run_as_script(command)
