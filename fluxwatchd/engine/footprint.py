"""How much memory a picture takes, and whether it can be had; imports no torch.

The figures are bytes a px beside what the process holds anyway, rounded up from what
benchmarks/big_pictures.py measures; docs/pictures.md has them by stage.
"""

from __future__ import annotations

from fluxwatchd.config import Profile
from fluxwatchd.engine import memory, passes
from fluxwatchd.errors import InputRejected, OutOfMemory
from fluxwatchd.imageio import Header, Picture
from fluxwatchd.variants import LARGEST_PASS

SAMPLE = 4
"""A channel of a px at work: a float32."""
RESIZED = 6
"""An output px beside its channels: the rows between the resize's two directions."""
MADE = 40
"""An output px with a model, beside its channels: the base, latents, and what is between them."""
ENCODED = 14
"""An output px of a format that is encoded from a whole picture, beside its channels."""
READ = 28
"""A source px: the file's samples, turned into floats, and what DINO looks at."""
HIDDEN = 8
"""A source px with alpha: the planes whose hidden pixels are filled and that alpha weighs."""
DECODED = 11
"""A channel of a source px while it is read: its 16 bits in the file and out of it, and floats
before and after a colour profile."""
AT_HAND = 150_000_000
"""Strips, tiles and windows of a picture of any size; of a small one..."""
AT_HAND_EACH = 160
"""...so much an output px."""
WHOLE = frozenset({"jpeg", "webp", "avif", "same"})
"""Formats that are not written in strips; same may be one of them."""

REMEDY = "Lower `scale` (or the target size), or give the machine or the service more memory."


def of(profile: Profile, size: tuple[int, int], *, channels: int = 4) -> int:
    """Bytes that a source of ``size`` (width, height) px takes at its worst stage, the model apart.

    ``channels`` of a px, alpha among them.
    """
    width, height = profile.output_size(*size)
    resolved, source = profile.resolved(), size[0] * size[1]
    if passes.takes_two(resolved, size, resolved.kind):
        source = round(source * (1 + LARGEST_PASS**2))  # what the first made is the second's
    work = MADE if resolved.kind.has_model and resolved.strength else RESIZED
    if profile.format in WHOLE:
        work = max(work, ENCODED)
    pixels = width * height
    at_hand = min(AT_HAND, AT_HAND_EACH * pixels)
    held = READ + HIDDEN * (channels in (2, 4))
    worked = pixels * (SAMPLE * channels + work) + source * held
    return at_hand + max(worked, size[0] * size[1] * DECODED * channels)


def refuse_hopeless(profile: Profile, header: Header, name: str) -> None:
    """Raise InputRejected for a picture that this machine can never do, before it is decoded."""
    need, there = of(profile, (header.width, header.height)), memory.host_total()
    if need > there:
        width, height = profile.output_size(header.width, header.height)
        raise InputRejected(
            f"{name}: {header.width} x {header.height} px would become {width} x {height}, which "
            f"takes about {_size(need)} of memory; there are {_size(there)}",
            hint=REMEDY,
        )


def refuse_crowded(profile: Profile, picture: Picture) -> None:
    """Raise OutOfMemory (transient) for a picture that has no room now, before it takes any."""
    size = (picture.width, picture.height)
    channels = picture.pixels.shape[2] + (picture.alpha is not None)
    held = size[0] * size[1] * SAMPLE * channels
    need, free = of(profile, size, channels=max(3, channels)) - held, memory.host_free()
    if need > free:
        width, height = profile.output_size(*size)
        raise OutOfMemory(
            f"{width} x {height} px of output take about {_size(need)} of memory; "
            f"{_size(free)} are free now",
            hint=f"Free memory. {REMEDY}",
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
