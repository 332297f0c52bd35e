"""The sigma schedule: strength is a noise level, and every step is run."""

from __future__ import annotations

import math

from fluxwatchd.variants import Variant


def shifted(u: float, mu: float) -> float:
    """sigma = e^mu u / (1 + (e^mu - 1) u), in 0..1 (Esser et al. 2024, arXiv:2403.03206)."""
    bend = math.exp(mu)
    return bend * u / (1.0 + (bend - 1.0) * u)


def unshifted(sigma: float, mu: float) -> float:
    """The u whose shift is ``sigma``; the inverse of :func:`shifted`."""
    bend = math.exp(mu)
    return sigma / (bend - (bend - 1.0) * sigma)


def native_mu(variant: Variant) -> float:
    """The shift's exponent at the variant's native tile; 0, no shift, where it has none.

    It never depends on the tile at hand, so that ``strength`` means one noise level for all.
    """
    tokens = (variant.native_tile // variant.unit) ** 2
    return variant.shift.mu(tokens) if variant.shift else 0.0


def sigmas(strength: float, steps: int, mu: float = 0.0) -> tuple[float, ...]:
    """``steps`` + 1 falling noise levels from ``strength`` (exactly) to 0 (exactly).

    u falls in equal parts from the strength's own u to 0. ``strength`` in (0, 1], steps >= 1.
    """
    if not 0.0 < strength <= 1.0 or steps < 1:
        raise ValueError(f"no schedule from {strength} in {steps} steps")
    start = unshifted(strength, mu)
    inner = (shifted(start * (steps - i) / steps, mu) for i in range(1, steps))
    return (strength, *inner, 0.0)
