"""How near a picture is to another: PSNR-Y, SSIM, GMSD, and paired differences of such figures.

All three work on luma and leave out ``border`` px on every side, as papers on super-resolution do
(border = scale): what an upscaler makes of the last few pixels says more about its padding than
about its pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Plane = NDArray[np.float64]

_WINDOW = 11
MIN_SIDE = _WINDOW
"""px that must remain of each side after the border is off: SSIM's window."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """``psnr_y`` in dB (inf: equal), ``ssim`` at most 1 (1: equal), ``gmsd`` 0 or more (0: equal).

    More is better of the first two, less of the third.
    """

    psnr_y: float
    ssim: float
    gmsd: float


def likeness(result: Pixels, truth: Pixels, border: int = 0) -> Likeness:
    """The three figures for two RGB pictures (H, W, 3) of one size, uint8.

    Raises ValueError if the sizes differ or less than MIN_SIDE px a side are left.
    """
    if result.shape != truth.shape:
        raise ValueError(f"sizes differ: {result.shape} and {truth.shape}")
    a, b = (_without_border(luma(picture), border) for picture in (result, truth))
    return Likeness(psnr_y=psnr(a, b), ssim=ssim(a, b), gmsd=gmsd(a, b))


def luma(rgb: Pixels) -> Plane:
    """(H, W, 3) uint8 RGB to (H, W) luma in 16..235, not rounded.

    ITU-R BT.601 in studio range, as MATLAB's rgb2ycbcr has it, which the literature uses.
    """
    weights = np.array([65.481, 128.553, 24.966]) / 255
    return np.asarray(16.0 + rgb.astype(np.float64) @ weights)


def psnr(a: Plane, b: Plane) -> float:
    """Peak signal-to-noise ratio in dB of two planes in 0..255; inf where they are equal."""
    error = float(np.mean((a - b) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


def ssim(a: Plane, b: Plane) -> float:
    """Structural similarity of two planes in 0..255, the mean of the map; 1 where they are equal.

    Wang, Bovik, Sheikh, Simoncelli: Image quality assessment: from error visibility to structural
    similarity. IEEE TIP 13(4), 2004: Gaussian window 11x11 of sigma 1.5, K1 = .01, K2 = .03, only
    where the window fits.
    """
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = _gaussian(a), _gaussian(b)
    var_a = _gaussian(a * a) - mean_a**2
    var_b = _gaussian(b * b) - mean_b**2
    covariance = _gaussian(a * b) - mean_a * mean_b
    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    bottom = (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return float(np.mean(top / bottom))


def gmsd(a: Plane, b: Plane) -> float:
    """Gradient magnitude similarity deviation of two planes in 0..255; 0 where they are equal.

    Xue, Zhang, Mou, Bovik: Gradient magnitude similarity deviation: a highly efficient perceptual
    image quality index. IEEE TIP 23(2), 2014: halved by 2x2 means, Prewitt over 3, c = 170,
    standard deviation of the map; zeros around the picture and N - 1 as in the authors' program.
    """
    constant = 170.0
    gradient_a, gradient_b = _prewitt(_halved(a)), _prewitt(_halved(b))
    similarity = (2 * gradient_a * gradient_b + constant) / (
        gradient_a**2 + gradient_b**2 + constant
    )
    return float(np.std(similarity, ddof=1))


def _without_border(plane: Plane, border: int) -> Plane:
    height, width = plane.shape
    if min(height, width) - 2 * border < MIN_SIDE:
        raise ValueError(f"{width}x{height} px less a border of {border} is under {MIN_SIDE} px")
    return plane[border : height - border, border : width - border]


def _gaussian(plane: Plane) -> Plane:
    """``plane`` under SSIM's window, only where it fits: 10 px less on each axis."""
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window /= window.sum()
    rows = plane.shape[0] - _WINDOW + 1
    columns = plane.shape[1] - _WINDOW + 1
    down = sum(weight * plane[i : i + rows] for i, weight in enumerate(window))
    return np.asarray(sum(weight * down[:, i : i + columns] for i, weight in enumerate(window)))


def _halved(plane: Plane) -> Plane:
    """2x2 means at every second pixel; an odd last row or column is averaged with zeros."""
    height, width = plane.shape
    even = np.pad(plane, ((0, height % 2), (0, width % 2)))
    return np.asarray((even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4)


def _prewitt(plane: Plane) -> Plane:
    """The gradient's magnitude, of the plane's size, zeros assumed around it."""
    framed = np.pad(plane, 1)
    beside = (framed[:-2] + framed[1:-1] + framed[2:]) / 3
    above = (framed[:, :-2] + framed[:, 1:-1] + framed[:, 2:]) / 3
    return np.hypot(beside[:, 2:] - beside[:, :-2], above[2:] - above[:-2])


@dataclass(frozen=True, slots=True)
class Paired:
    """The difference of a figure on the same pictures under two settings.

    ``mean`` of ``count`` differences, ``low`` and ``high`` the ends of its 95 % confidence
    interval, ``better`` the count of pictures on which the figure changed for the better.
    """

    mean: float
    low: float
    high: float
    better: int
    count: int

    def __str__(self) -> str:
        interval = f"[{self.low:+.4f}, {self.high:+.4f}]"
        return f"{self.mean:+.4f} {interval}, better on {self.better} of {self.count}"


def paired(
    after: Sequence[float], before: Sequence[float], *, more_is_better: bool = True
) -> Paired:
    """``after - before``, picture by picture, with Student's 95 % interval of the mean.

    The differences are taken as normal (Student 1908, The probable error of a mean); one picture
    alone gives an interval without bounds. Raises ValueError on unequal or empty sequences.
    """
    differences = np.subtract(np.asarray(after, float), np.asarray(before, float))
    if differences.ndim != 1 or differences.size == 0:
        raise ValueError("paired figures must be two sequences of one length, at least 1")
    count = differences.size
    mean = float(differences.mean())
    half = math.inf
    if count > 1:
        error = float(differences.std(ddof=1)) / math.sqrt(count)
        half = student_quantile(0.95, count - 1) * error
    better = int(np.sum(differences > 0 if more_is_better else differences < 0))
    return Paired(mean=mean, low=mean - half, high=mean + half, better=better, count=count)


def student_quantile(confidence: float, freedom: int) -> float:
    """The t with P(|T| < t) = ``confidence`` for ``freedom`` >= 1 degrees, by bisection."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # halves the interval below a float's last digit
        middle = (low + high) / 2
        if _student_probability(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return math.tan(low) * math.sqrt(freedom)


def _student_probability(angle: float, freedom: int) -> float:
    """P(|T| < tan(angle) sqrt(freedom)): Abramowitz and Stegun 1964, 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
