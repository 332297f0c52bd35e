"""Training pictures on the device: crops, shrinking and mild damage, all vectorised.

Pictures lie as bytes in one flat tensor on the device; a batch of crops is one gather. Nothing
returns to the CPU, so the loader costs a few milliseconds a batch of 128.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fluxwatchd.engine.dino import DinoEncoder, Features
from fluxwatchd.engine.projector import AdapterSpec
from fluxwatchd.engine.resample import BICUBIC, LANCZOS, Grid, Kernel, weights
from fluxwatchd.errors import ConfigError
from fluxwatchd.training.common import CHANCE

SUFFIXES = (".webp", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

# ITU-T T.81 (JPEG), Annex K.1: the example quantisation tables, luminance and chrominance
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *[(99,) * 8] * 4,
)


def find(folder: Path) -> list[Path]:
    """The pictures in ``folder``, by name. Raises ConfigError if there are none."""
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES)
    if not files:
        raise ConfigError(f"no pictures in {folder}", hint="Name a folder of photographs.")
    return files


def read(file: Path) -> np.ndarray:
    """(H, W, 3) bytes."""
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


class Pictures:
    """Every picture of a folder, as bytes on the device.

    ``flat`` (M, 3): all pixels of all pictures in a row; a pixel is offset + y * width + x.
    """

    def __init__(self, files: Sequence[Path], device: torch.device) -> None:
        with ThreadPoolExecutor(16) as pool:
            arrays = list(pool.map(read, files))
        self.device = device
        self.sizes = [a.shape[:2] for a in arrays]
        self.flat = torch.cat(
            [torch.from_numpy(a.reshape(-1, 3).copy()).to(device) for a in arrays]
        )
        heights, widths = zip(*self.sizes, strict=True)
        self.heights = torch.tensor(heights, device=device)
        self.widths = torch.tensor(widths, device=device)
        counts = self.heights * self.widths
        self.offsets = counts.cumsum(0) - counts

    def __len__(self) -> int:
        return len(self.sizes)

    def whole(self, index: int) -> Tensor:
        """(1, 3, H, W), 0..1."""
        height, width = self.sizes[index]
        start = int(self.offsets[index])
        pixels = self.flat[start : start + height * width]
        return pixels.view(1, height, width, 3).permute(0, 3, 1, 2).float() / 255

    def crops(self, count: int, size: Grid, zoom: float = 1.0, picky: bool = True) -> Tensor:
        """(count, 3, *size) crops, 0..1, flipped at random, and turned if square.

        ``zoom``: shrink from crops that much larger, so that sharp detail is seen at several
        scales. ``picky``: of two places keep, mostly, the one with more detail.
        """
        tall, wide = (math.ceil(side * zoom) for side in size)
        # counted on the CPU: asking the device would wait for the step under way
        large = sum(h >= tall and w >= wide for h, w in self.sizes)
        if zoom > 1 and large < len(self) / 2:
            return self.crops(count, size, 1.0, picky)
        if not large:
            raise ConfigError(
                f"no training picture holds a crop of {wide}x{tall} px",
                hint="Add larger pictures, or train on smaller tiles with --tile.",
            )
        fits = ((self.heights >= tall) & (self.widths >= wide)).float()
        tries = 2 * count if picky else count
        area = (self.heights * self.widths).float()
        which = torch.multinomial(fits * area.sqrt(), tries, replacement=True)
        top = (torch.rand(tries, device=self.device) * (self.heights[which] - tall + 1)).long()
        left = (torch.rand(tries, device=self.device) * (self.widths[which] - wide + 1)).long()
        corner = self.offsets[which] + top * self.widths[which] + left
        if picky:
            coarse = self._gather(corner, self.widths[which], tall, wide, stride=8).float()
            detail = coarse.diff(dim=2).abs().mean((1, 2, 3)) + coarse.diff(dim=1).abs().mean(
                (1, 2, 3)
            )
            first, second = detail.chunk(2)
            better = (second > first) ^ (torch.rand(count, device=self.device) < 0.25)
            keep = torch.arange(count, device=self.device) + count * better.long()
            corner, which = corner[keep], which[keep]
        pixels = (
            self._gather(corner, self.widths[which], tall, wide).permute(0, 3, 1, 2).float() / 255
        )
        if zoom > 1:
            pixels = resize(pixels, size).clamp(0, 1)
        return turn(pixels)

    def _gather(
        self, corner: Tensor, width: Tensor, tall: int, wide: int, stride: int = 1
    ) -> Tensor:
        """(count, rows, columns, 3) bytes from every corner."""
        rows = torch.arange(0, tall, stride, device=self.device)
        columns = torch.arange(0, wide, stride, device=self.device)
        place = corner[:, None, None] + rows[:, None] * width[:, None, None] + columns
        return self.flat[place]


def turn(pixels: Tensor) -> Tensor:
    """Mirror a random half of a batch, and transpose another if the crops are square."""
    count = pixels.shape[0]
    mirror = torch.rand(count, 1, 1, 1, device=pixels.device) < 0.5
    pixels = torch.where(mirror, pixels.flip(3), pixels)
    if pixels.shape[2] == pixels.shape[3]:
        swap = torch.rand(count, 1, 1, 1, device=pixels.device) < 0.5
        pixels = torch.where(swap, pixels.transpose(2, 3), pixels)
    return pixels


def inner(picture: Tensor, edge: int) -> Tensor:
    """(..., H, W) without ``edge`` px at every side."""
    return picture[..., edge : picture.shape[-2] - edge, edge : picture.shape[-1] - edge]


@lru_cache(maxsize=512)
def table(
    length: int, span: tuple[float, float], size: int, kernel: Kernel, device: torch.device
) -> Tensor:
    """(size, length) weights that resize one axis, on the device."""
    part, first = weights(length, span, size, kernel, False)
    full = torch.zeros(size, length)
    full[:, first : first + part.shape[1]] = part
    return full.to(device)


def resize(
    pixels: Tensor,
    size: Grid,
    kernel: Kernel = BICUBIC,
    box: tuple[float, float, float, float] | None = None,
) -> Tensor:
    """The engine's resampling, edges as Pillow treats them, with tables kept on the device."""
    height, width = pixels.shape[-2:]
    top, left, bottom, right = box or (0.0, 0.0, float(height), float(width))
    rows = table(height, (top, bottom), size[0], kernel, pixels.device)
    columns = table(width, (left, right), size[1], kernel, pixels.device)
    return rows @ pixels @ columns.T


def to_bytes(pixels: Tensor) -> Tensor:
    """Round to the 256 levels that a file has."""
    return (pixels.clamp(0, 1) * 255).round() / 255


def shrink(pixels: Tensor, scale: float, damaged: int) -> Tensor:
    """Small pictures as users have them: bicubic, 8 bit; the last ``damaged`` also worn.

    Wear is mild: blur before shrinking, then noise, then JPEG 60 to 95, each on some only.
    """
    height, width = pixels.shape[-2:]
    size = (round(height / scale), round(width / scale))
    clean = len(pixels) - damaged
    if not damaged:
        return to_bytes(resize(pixels, size))
    soft = blur(pixels[clean:], 0.35 * scale)
    small = resize(torch.cat([pixels[:clean], soft]), size)
    worn = small[clean:]
    device = pixels.device
    level = torch.rand(damaged, 1, 1, 1, device=device).square() * (8 / 255)
    noisy = torch.rand(damaged, 1, 1, 1, device=device) < 0.5
    worn = to_bytes(worn + noisy * level * torch.randn_like(worn))
    quality = torch.rand(damaged, device=device) * 35 + 60
    coded = torch.rand(damaged, 1, 1, 1, device=device) < 0.7
    worn = torch.where(coded, jpeg(worn, quality), worn)
    return to_bytes(torch.cat([small[:clean], worn]))


def blur(pixels: Tensor, most: float) -> Tensor:
    """Gaussian blur with a radius of its own, 0 to ``most`` px, for every picture."""
    sigma = torch.rand(len(pixels), 1, device=pixels.device) * most + 1e-3
    reach = max(1, math.ceil(2.5 * most))
    steps = torch.arange(-reach, reach + 1, device=pixels.device)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    for axis in (2, 3):
        pad = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        padded = F.pad(pixels, pad, mode="reflect")
        length = pixels.shape[axis]
        pixels = sum(  # type: ignore[assignment]
            kernel[:, i, None, None, None] * padded.narrow(axis, i, length)
            for i in range(len(steps))
        )
    return pixels


def jpeg(pixels: Tensor, quality: Tensor) -> Tensor:
    """What JPEG with 4:2:0 chroma does to (N, 3, H, W) at ``quality`` (N,), 1 to 100.

    ITU-T T.81 and JFIF; quality as in libjpeg's jpeg_quality_scaling.
    """
    height, width = pixels.shape[-2:]
    padded = F.pad(pixels, (0, -width % 16, 0, -height % 16), mode="replicate") * 255
    red, green, blue = padded.unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    cb, cr = (blue - luma) / 1.772, (red - luma) / 1.402
    percent = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    luma = _code(luma - 128, LUMINANCE, percent) + 128
    cb, cr = (
        F.interpolate(
            _code(F.avg_pool2d(c[:, None], 2)[:, 0], CHROMINANCE, percent)[:, None],
            scale_factor=2.0,
            mode="bilinear",
        )[:, 0]
        for c in (cb, cr)
    )
    red, blue = luma + 1.402 * cr, luma + 1.772 * cb
    green = (luma - 0.299 * red - 0.114 * blue) / 0.587
    return (torch.stack([red, green, blue], 1)[..., :height, :width] / 255).clamp(0, 1)


def _code(plane: Tensor, steps: tuple[tuple[int, ...], ...], percent: Tensor) -> Tensor:
    """Quantise the 8x8 cosine transform of a plane (N, H, W), and turn it back."""
    base = torch.tensor(steps, device=plane.device, dtype=torch.float32)
    quant = ((base * percent[:, None, None] + 50) / 100).floor().clamp(1, 255)
    place = torch.arange(8, device=plane.device, dtype=torch.float32)
    cosines = torch.cos((2 * place[None] + 1) * place[:, None] * math.pi / 16) / 2
    cosines[0] /= math.sqrt(2)
    count, height, width = plane.shape
    blocks = plane.view(count, height // 8, 8, width // 8, 8).transpose(2, 3)
    levels = (cosines @ blocks @ cosines.T / quant[:, None, None]).round()
    back = cosines.T @ (levels * quant[:, None, None]) @ cosines
    return back.transpose(2, 3).reshape(count, height, width)


def enlarge(small: Tensor, size: Grid) -> Tensor:
    """The base that the pipeline starts from: Lanczos, clamped."""
    return resize(small, size, LANCZOS).clamp(0, 1)


@torch.no_grad()
def see(
    encoder: DinoEncoder, spec: AdapterSpec, small: Tensor, grid: Grid, places: tuple[int, int]
) -> Features:
    """Features of tiles of ``grid`` image tokens that lie in the middle of ``small``.

    ``places``: output px a token, and output px of surroundings on every side. The encoder sees
    the tile with the cells around it, as in the engine; and as at a picture's border there are
    none, each side loses its own in a quarter of the batches.
    """
    unit, around = places
    cells = spec.tile_grid(grid)
    up, down, before, after = (spec.margin * (CHANCE.random() > 0.25) for _ in range(4))
    tall, wide = grid[0] * unit / cells[0], grid[1] * unit / cells[1]
    vertical = small.shape[-2] / (grid[0] * unit + 2 * around)
    horizontal = small.shape[-1] / (grid[1] * unit + 2 * around)
    box = (
        (around - up * tall) * vertical,
        (around - before * wide) * horizontal,
        (around + (cells[0] + down) * tall) * vertical,
        (around + (cells[1] + after) * wide) * horizontal,
    )
    window = (cells[0] + up + down, cells[1] + before + after)
    size = (window[0] * encoder.patch, window[1] * encoder.patch)
    seen = encoder.features(resize(small, size, box=box).clamp(0, 1), window)
    inner = seen.patches[:, up : up + cells[0], before : before + cells[1]]
    return Features(inner, seen.whole)
