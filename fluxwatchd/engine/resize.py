"""The plain resize: Lanczos of float pictures, alpha apart; no torch. Also the padding."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fluxwatchd.imageio import Picture

Floats = NDArray[np.float32]

STRIP_VALUES = 1 << 20
"""Values in a strip that is resized at once."""

VISIBLE = 1 / 8
"""Alpha from which a colour is wholly the weighted one; below, it fades to the filled one."""


def resize(plane: Floats, size: tuple[int, int], how: Image.Resampling) -> Floats:
    """Resize one plane (H, W) float32 to ``size`` = (width, height), px; the depth survives."""
    out = np.empty((size[1], size[0]), np.float32)
    for columns, part in in_strips(plane, size, how):
        out[:, columns] = part
    return out


def in_strips(
    plane: Floats, size: tuple[int, int], how: Image.Resampling
) -> Iterator[tuple[slice, Floats]]:
    """The columns of ``plane`` (H, W) resized to ``size``, some at a time: where, and (H', w).

    Pillow resizes along the rows, then along the columns, with floats in between. Either pass can
    be done in parts with the same weights, so the bytes are those of one call; memory is taken for
    H x W' floats in between and for one strip, where Pillow takes three times the result. (Where
    the height shrinks by more than twice as much as the width, Pillow 13 turns the order round:
    there its last bits are others.)
    """
    width, height = size
    rows = _along_rows(plane, width, how)
    del plane  # the caller's may be of no more use than this
    step = max(1, STRIP_VALUES // max(height, rows.shape[0]))
    for left in range(0, width, step):
        part = np.ascontiguousarray(rows[:, left : left + step])
        yield slice(left, left + part.shape[1]), _once(part, (part.shape[1], height), how)


def _along_rows(plane: Floats, width: int, how: Image.Resampling) -> Floats:
    """(H, W) -> (H, ``width``)."""
    if plane.shape[1] == width:
        return plane
    out = np.empty((plane.shape[0], width), np.float32)
    step = max(1, STRIP_VALUES // max(width, plane.shape[1]))
    for top in range(0, plane.shape[0], step):
        part = plane[top : top + step]
        out[top : top + step] = _once(part, (width, part.shape[0]), how)
    return out


def _once(part: Floats, size: tuple[int, int], how: Image.Resampling) -> Floats:
    """One call of Pillow."""
    image = Image.fromarray(np.ascontiguousarray(part, dtype=np.float32))
    return np.asarray(image.resize(size, how), dtype=np.float32)


def lanczos(pixels: Floats, size: tuple[int, int]) -> Floats:
    """Resize (H, W, C) to ``size`` = (width, height), px; overshoot is not clipped."""
    out = np.empty((size[1], size[0], pixels.shape[2]), np.float32)
    for channel in range(pixels.shape[2]):
        for columns, part in in_strips(pixels[..., channel], size, Image.Resampling.LANCZOS):
            out[:, columns, channel] = part
    return out


def base(picture: Picture, size: tuple[int, int]) -> tuple[Floats, Floats | None]:
    """The picture resized to ``size`` = (width, height), px: (H, W, C) and alpha (H, W) or None.

    Both in 0..1. Colours are weighted by alpha, so that what lies hidden under a transparent pixel
    does not bleed into its neighbours; hidden pixels take on the colours around them. Alpha itself
    goes by bicubic: the second lobe of Lanczos would draw a ring of 2 % around every hard edge.
    """
    bounds = picture.bounds
    if picture.alpha is None:
        return clip(lanczos(picture.pixels, size), *bounds), None
    how, channels = Image.Resampling.LANCZOS, picture.pixels.shape[2]
    above = resize(picture.alpha, size, how)
    colours = np.empty((size[1], size[0], channels), np.float32)
    for channel in range(channels):
        seen = fill_hidden(picture.pixels[..., channel], picture.alpha)
        for (columns, plain), (_, weighted) in zip(
            in_strips(seen, size, how), in_strips(seen * picture.alpha, size, how), strict=True
        ):
            cover = above[:, columns]
            trust = np.clip(cover / VISIBLE, 0.0, 1.0)
            shown = np.clip(weighted / np.maximum(cover, 1e-3), *bounds)
            colours[:, columns, channel] = plain + trust * (shown - plain)
        del seen
    del above
    alpha = resize(picture.alpha, size, Image.Resampling.BICUBIC)
    return clip(colours, *bounds), clip(alpha, 0.0, 1.0)


def clip(values: Floats, low: float, high: float) -> Floats:
    """``values`` clipped to ``low``..``high`` in place, and returned."""
    return np.clip(values, low, high, out=values if values.flags.writeable else None)


def visible(picture: Picture) -> Floats:
    """The source's colours, (H, W, C) in 0..1, with those under alpha 0 filled from around."""
    if picture.alpha is None or not _hides(picture.alpha):
        return picture.pixels
    out = np.empty_like(picture.pixels)
    for channel in range(out.shape[2]):
        out[..., channel] = fill_hidden(picture.pixels[..., channel], picture.alpha)
    return out


def _hides(alpha: Floats) -> bool:
    """Whether there are hidden pixels, and others to fill them from."""
    return bool(alpha.min() <= 0 < alpha.max())


def fill_hidden(plane: Floats, alpha: Floats) -> Floats:
    """``plane`` (H, W) with what lies under alpha 0 replaced by what is around it.

    Push and pull: halve the picture weighted by alpha until no hole is left, then fill each level's
    holes from the one below it (Gortler et al. 1996, The Lumigraph, section 3.4). A plane at a
    time, as all of them at once would take as much memory as three pictures.
    """
    if not _hides(alpha):
        return plane
    height, width = alpha.shape
    half, box = ((width + 1) // 2, (height + 1) // 2), Image.Resampling.BOX
    weight = resize(alpha, half, box)
    means: Floats = resize(plane * alpha, half, box)
    means /= np.maximum(weight, np.float32(1e-12))
    smaller = fill_hidden(means, weight)
    out = np.empty_like(alpha)
    for columns, around in in_strips(smaller, (width, height), Image.Resampling.BILINEAR):
        out[:, columns] = np.where(alpha[:, columns] > 0, plane[:, columns], around)
    return out


def pad(pixels: Floats, unit: int, margin: int = 0) -> Floats:
    """Mirror ``margin`` px of (H, W, C) at every side, and on to multiples of ``unit`` px.

    The latter at the bottom and right. Where a side is shorter than its padding the reflection
    repeats. The border's own pixels are mirrored too: so a source and its enlargement, padded each
    for itself, still lie on one another.
    """
    rows, columns = ((margin, margin + -(side + 2 * margin) % unit) for side in pixels.shape[:2])
    if not any((*rows, *columns)):
        return pixels
    return np.pad(pixels, (rows, columns, (0, 0)), mode="symmetric")


def as_rgb(pixels: Floats) -> Floats:
    """(H, W, 1 or 3) -> (H, W, 3)."""
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def as_grey(pixels: Floats) -> Floats:
    """(H, W, 3) -> (H, W, 1): luma with the weights of ITU-R BT.601, as Pillow does."""
    return (pixels @ np.array([0.299, 0.587, 0.114], np.float32))[..., None].astype(np.float32)
