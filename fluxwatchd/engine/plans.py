"""The memory plans: what each takes, what each gives up, and which one fits; arithmetic alone.

resident    all weights on the device, in its own dtype
fp8         all on the device, the blocks' linear weights as float8 (half the memory; other numbers)
stream-fp8  the blocks in host memory as float8; each visits the device while it runs
stream      the same in the device's own dtype: the numbers of ``resident``, twice the host memory
sequential  every single layer visits the device by itself: the least device memory, the slowest

That is also their order from fast to slow: what is streamed is bound by the copies, which float8
halves; on a device where all weights fit, nothing is gained by float8 storage.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from fluxwatchd.errors import ConfigError

RESIDENT, FP8, STREAM_FP8, STREAM, SEQUENTIAL = (
    "resident",
    "fp8",
    "stream-fp8",
    "stream",
    "sequential",
)
PLANS = (RESIDENT, FP8, STREAM_FP8, STREAM, SEQUENTIAL)

HOST_ONLY = (RESIDENT, FP8)
"""What auto chooses among on a CPU, where the host's memory is the device's."""
BLOCK = re.compile(r"(double_|single_|single_transformer_|transformer_)blocks\.\d+\.")
"""What names of a repeated block's tensors have in them, in either layout."""
FLOAT8_BYTES = 1.002
"""Bytes a weight in float8, with the scales of its rows (4 bytes for 3,000 weights and more)."""
SLACK = 0.05
"""Part of what is needed that the allocator loses between blocks of memory."""
RESERVE = 300 << 20
"""Bytes that are left free: kernels, workspaces, what other programs take meanwhile."""
ACTIVATIONS = 48
"""Values alive at once in an evaluation, a token and unit of the model's width (measured)."""
PIXEL_VALUES = 1300
"""Values alive at once in FLUX.1's autoencoder, a pixel of its window: five planes of 256."""
TINY_VALUES = 320
"""The same in an AutoencoderTiny: five planes of 64."""
LEAST_WINDOW = 512
"""Side of the autoencoder's window that must fit, px; larger ones are tried and halved."""


@dataclass(frozen=True, slots=True)
class Weights:
    """How many values a transformer has, and where.

    ``linear``: in the weights of the blocks' linear layers; ``blocks``: in the blocks, these
    included; ``largest``: in the largest block; ``layer``: in the largest single layer.
    ``total``: in all of it.
    """

    total: int
    blocks: int
    linear: int
    largest: int
    layer: int


def count(shapes: Mapping[str, tuple[int, ...]]) -> Weights:
    """What a transformer's tensors add up to, by their names in either layout, and shapes."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    inside = {name: BLOCK.search(name) for name in shapes}
    by_block: dict[str, int] = {}
    for name, found in inside.items():
        if found:
            by_block[found[0]] = by_block.get(found[0], 0) + sizes[name]
    return Weights(
        total=sum(sizes.values()),
        blocks=sum(by_block.values()),
        linear=sum(sizes[n] for n, found in inside.items() if found and len(shapes[n]) == 2),
        largest=max(by_block.values(), default=0),
        layer=max(sizes.values(), default=0),
    )


@dataclass(frozen=True, slots=True)
class Load:
    """What a model and one batch of tiles ask for.

    ``size``: bytes a value. ``beside``: bytes of what stays on the device under every plan
    (autoencoder, DINO). ``width`` of the model, ``tokens`` of a tile with its text, ``batch``.
    ``pixel``: values alive at once in the autoencoder, a pixel of its window.
    """

    weights: Weights
    size: int
    beside: int
    width: int
    tokens: int
    batch: int = 1
    pixel: int = PIXEL_VALUES

    @property
    def work(self) -> int:
        """Bytes that one evaluation, or one window of the autoencoder, takes at its peak."""
        evaluation = self.batch * self.tokens * self.width * self.size * ACTIVATIONS
        return max(evaluation, LEAST_WINDOW**2 * self.pixel * self.size)


@dataclass(frozen=True, slots=True)
class Room:
    """Free bytes: ``device``'s, and the ``host``'s within its cgroup's limit.

    ``same``: the device is the CPU, so both are one memory.
    """

    device: int
    host: int
    same: bool = False


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a plan takes of the device and of the host."""

    device: int
    host: int


@dataclass(frozen=True, slots=True)
class Choice:
    """A plan, and why it was chosen, in words."""

    plan: str
    why: str


def needs(load: Load) -> Mapping[str, Need]:
    """What every plan takes, bytes."""
    weights, size = load.weights, load.size
    outside = (weights.total - weights.blocks) * size
    narrow = round(weights.linear * FLOAT8_BYTES) + (weights.blocks - weights.linear) * size
    wide = weights.blocks * size
    # two blocks are there at once: one runs, one arrives; float8 is made wide layer by layer
    passing = 2 * weights.largest
    layer = weights.layer * size
    on_device = {
        RESIDENT: wide + outside,
        FP8: narrow + layer + outside,
        STREAM_FP8: round(passing * FLOAT8_BYTES) + layer + outside,
        STREAM: passing * size + outside,
        SEQUENTIAL: layer,
    }
    on_host = {
        RESIDENT: 0,
        FP8: 0,
        STREAM_FP8: narrow,
        STREAM: wide,
        SEQUENTIAL: wide + outside,
    }
    return {
        plan: Need(
            round((on_device[plan] + load.beside + load.work) * (1 + SLACK)) + RESERVE,
            on_host[plan] + RESERVE,
        )
        for plan in PLANS
    }


def choose(load: Load, room: Room, wish: str = "auto") -> Choice:
    """The fastest plan that fits, or the one that is wished for.

    Raises ConfigError if none fits. A wish is taken as it is: it is there for those who know
    better than this arithmetic.
    """
    if wish != "auto":
        return Choice(wish, f'memory = "{wish}" is set')
    every = needs(load)
    order = HOST_ONLY if room.same else PLANS
    fitting = [plan for plan in order if _fits(every[plan], room)]
    if not fitting:
        raise ConfigError(
            f"the model does not fit: {_told(every, order, room)}",
            hint="Free memory, take a smaller model file, or set [engine] memory to try all the "
            "same.",
        )
    plan = fitting[0]
    why = f"the fastest that fits: {_told(every, order[: order.index(plan) + 1], room)}"
    return Choice(plan, why)


def _fits(need: Need, room: Room) -> bool:
    if room.same:
        return need.device + need.host - RESERVE <= room.device  # one memory, one reserve
    return need.device <= room.device and need.host <= room.host


def _told(every: Mapping[str, Need], order: tuple[str, ...], room: Room) -> str:
    """The plans with what they take, and what there is, for people."""
    parts = []
    for plan in order:
        need = every[plan]
        host = f" and {gigabytes(need.host)} of the host's" if need.host > RESERVE else ""
        parts.append(f"{plan} takes {gigabytes(need.device)}{host}")
    there = f"{gigabytes(room.device)} are free"
    if not room.same:
        there += f", and {gigabytes(room.host)} of the host's"
    return f"{', '.join(parts)}; {there}"


def gigabytes(count: float) -> str:
    """Bytes for people, in units of 10^9."""
    return f"{count / 1e9:.1f} GB"
