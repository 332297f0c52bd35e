"""Colour by LittleCMS: a file's profile -> sRGB floats, and back."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxwatchd.imageio.picture import Floats

PIXELS_AT_ONCE = 1 << 18
"""px in one call of the transform, so that its scratch memory stays small."""

SPACES = {b"RGB ": "rgb", b"GRAY": "gray", b"CMYK": "cmyk"}
CHANNELS = {"rgb": 3, "gray": 1, "cmyk": 4}
SRGB_PRIMARIES = [0.64, 0.33, 0.30, 0.60, 0.15, 0.06]
D65 = [0.3127, 0.3290]
LONGEST = 1 << 24
"""bytes; a longer profile is taken for damaged. The longest in use have 3 MB."""

DATE = struct.pack(">6H", 2026, 1, 1, 0, 0, 0)
"""When our profiles say that they were made (ICC.1:2022, 7.2.8)."""
CURVE = 4096
"""Points of a curve in a profile that is made here."""

LIKE_SRGB = 1 / 1024
"""The largest difference, of 1, at which a profile is sRGB under another name."""


def space(icc: bytes | None) -> str | None:
    """The colour space a profile is for: rgb, gray or cmyk; None for none or another."""
    return SPACES.get(icc[16:20]) if icc and len(icc) > 128 else None


def usable(icc: bytes | None, wanted: str, *, back: bool = True) -> bool:
    """Whether LittleCMS can convert ``wanted`` from this profile to sRGB (and ``back``)."""
    sane = icc is not None and len(icc) <= LONGEST and space(icc) == wanted
    return sane and _works(icc or b"", wanted, back)


@lru_cache(maxsize=8)  # a profile may have megabytes
def _works(icc: bytes, wanted: str, back: bool) -> bool:
    import imagecodecs

    probe = np.zeros((1, 1, CHANNELS[wanted]), np.uint16)
    try:
        linear = _transform(probe, icc, _linear(), wanted, "rgb")
        if back:
            _transform(linear, _linear(), icc, "rgb", wanted)
    except (imagecodecs.CmsError, ValueError):
        return False
    return True


@lru_cache(maxsize=8)
def is_srgb(icc: bytes) -> bool:
    """Whether an RGB or grey profile is sRGB by what it does, whatever its name says."""
    ramp = np.linspace(0, 1, 9, dtype=np.float32)
    if space(icc) == "gray":
        samples = ramp.reshape(1, 9, 1)
    else:
        samples = np.stack(np.meshgrid(ramp, ramp, ramp), axis=-1).reshape(1, -1, 3)
    return bool(np.abs(to_srgb(samples, icc) - samples).max() <= LIKE_SRGB)


def to_srgb(samples: NDArray[Any], icc: bytes) -> Floats:
    """``samples`` (H, W, C) in the profile's space -> (H, W, 3), grey (H, W, 1), sRGB's curve.

    ``samples`` are float32 in 0..1 for RGB and grey, uint8 or uint16 for CMYK. Colours outside
    sRGB come out outside 0..1.
    """
    source = SPACES[icc[16:20]]

    def convert(part: NDArray[Any]) -> Floats:
        linear = _transform(part, icc, _linear(), source, "rgb")
        return encode_srgb(linear[..., 1:2] if source == "gray" else linear)

    return _by_rows(samples, convert, 1 if source == "gray" else 3)


def from_srgb(pixels: Floats, icc: bytes) -> Floats:
    """The way back of to_srgb for RGB and grey profiles; (H, W, C) as ``pixels``."""
    target = SPACES[icc[16:20]]

    def convert(part: NDArray[Any]) -> Floats:
        linear = decode_srgb(part)
        linear = np.repeat(linear, 3, axis=2) if target == "gray" else linear
        return _transform(linear, _linear(), icc, "rgb", target)

    return _by_rows(pixels, convert, pixels.shape[2])


def profile(
    *, gamma: float | None, white: Sequence[float], primaries: Sequence[float]
) -> bytes | None:
    """An RGB profile from a gamma and the (x, y) of white, red, green and blue.

    ``gamma`` None is sRGB's curve. None where these span no colour space.
    """
    import imagecodecs

    places = {"whitepoint": [*white, 1.0], "primaries": list(primaries)}
    curve = None if gamma else decode_srgb(np.linspace(0, 1, CURVE, dtype=np.float32))
    try:
        icc = imagecodecs.cms_profile("rgb", **places, gamma=gamma, transferfunction=curve)
    except imagecodecs.CmsError:
        return None
    return _undated(icc)


def grey_profile(gamma: float) -> bytes:
    """A grey profile of that gamma."""
    import imagecodecs

    return _undated(imagecodecs.cms_profile("gray", gamma=gamma))


def _undated(icc: bytes) -> bytes:
    """A profile that is the same bytes at any time."""
    return bytes(icc[:24]) + DATE + bytes(icc[36:])


def encode_srgb(linear: Floats) -> Floats:
    """Linear light -> sRGB's curve (IEC 61966-2-1), mirrored at 0 as IEC 61966-2-2 does."""
    size = np.abs(linear)
    curved = 1.055 * np.power(np.maximum(size, 1e-9), 1 / 2.4) - 0.055
    return np.copysign(np.where(size <= 0.0031308, 12.92 * size, curved), linear).astype(np.float32)


def decode_srgb(pixels: Floats) -> Floats:
    """The inverse of encode_srgb."""
    size = np.abs(pixels)
    curved = np.power((size + 0.055) / 1.055, 2.4)
    return np.copysign(np.where(size <= 0.04045, size / 12.92, curved), pixels).astype(np.float32)


def _by_rows(
    samples: NDArray[Any], convert: Callable[[NDArray[Any]], Floats], channels: int
) -> Floats:
    """``convert`` some rows of (H, W, C) at a time."""
    height, width = samples.shape[:2]
    rows = max(1, PIXELS_AT_ONCE // width)
    out = np.empty((height, width, channels), np.float32)
    for top in range(0, height, rows):
        out[top : top + rows] = convert(np.ascontiguousarray(samples[top : top + rows]))
    return out


def _transform(part: NDArray[Any], icc: bytes, target: bytes, a: str, b: str) -> Floats:
    """One call of LittleCMS, relative colorimetric, black point compensated; float32 out."""
    import imagecodecs

    cms = imagecodecs.CMS
    if a == "gray":
        part = part[..., 0]
    done = imagecodecs.cms_transform(
        part,
        icc,
        target,
        colorspace=a,
        outcolorspace=b,
        outdtype="float32",
        intent=cms.INTENT.RELATIVE_COLORIMETRIC,
        flags=cms.FLAGS.BLACKPOINTCOMPENSATION,
    )
    return np.asarray(done, np.float32).reshape(*part.shape[:2], CHANNELS[b])


@cache
def _linear() -> bytes:
    """sRGB's primaries with a straight curve: in it LittleCMS does not clip floats."""
    icc = profile(gamma=1.0, white=D65, primaries=SRGB_PRIMARIES)
    assert icc is not None  # noqa: S101  # these are sRGB's own
    return icc
