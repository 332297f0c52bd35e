"""One evaluation of the transformer: a batch is its tiles, and DINO's strength is what it says."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel

from fluxwatchd.engine.dino import Features
from fluxwatchd.engine.flux import Text, Tokens, velocity
from fluxwatchd.engine.loading import NANO
from fluxwatchd.engine.projector import Projector

GRID = (6, 8)


@pytest.fixture(scope="module", autouse=True)
def _no_gradient():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def nano():
    """The bundled denoiser and projector in float32."""
    transformer = FluxTransformer2DModel.from_pretrained(NANO / "transformer").float().eval()
    return transformer, Projector.load(NANO / "dino_adapter")


def features(spec, count):
    """What an encoder might have seen of ``count`` tiles."""
    rows, columns = spec.tile_grid(GRID)
    width = spec.encoder_width
    patches = torch.randn(count, rows, columns, width * len(spec.layers))
    return Features(patches, torch.randn(count, width))


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_batch_of_three_tiles_is_three_single_tiles(nano, strength):
    transformer, projector = nano
    torch.manual_seed(0)
    latents, source = torch.randn(2, 3, GRID[0] * GRID[1], 64)
    tokens = projector.tokens(features(projector.spec, 3), GRID)
    text = Text(torch.zeros(1, 8, 192), torch.zeros(1, 32))

    def run(part):
        own = Tokens(tokens.states[part], tokens.ids)
        level = torch.full((len(latents[part]),), 0.7)
        return velocity(
            transformer, latents[part], level, GRID, text,
            source=source[part], tokens=own, dino_strength=strength,
        )  # fmt: skip

    together = run(slice(0, 3))
    for i in range(3):
        assert (together[i] - run(slice(i, i + 1))[0]).abs().max() < 1e-3
    # and it is each tile's own source and tokens that count
    assert (together - run(torch.tensor([1, 2, 0]))).abs().max() > 0.05


# --- strength as a bias of its logarithm ----------------------------------------------------

TEXT, DINO = 5, 8
"""Text states and DINO tokens; what follows in every sequence is the picture."""


@pytest.fixture(scope="module")
def given():
    """A tiny FLUX.1 with everything that an evaluation takes."""
    torch.manual_seed(1)
    ids = torch.rand(DINO, 3) * 4
    ids[:, 0] = 0
    text = Text(torch.randn(1, TEXT, tiny.WIDTH), torch.randn(1, tiny.POOLED))
    tokens = Tokens(torch.randn(2, DINO, tiny.WIDTH), ids)
    return tiny.flux(), torch.randn(2, GRID[0] * GRID[1], 64), text, tokens


def run(given, strength, tokens=True):
    transformer, latents, text, dino = given
    return velocity(
        transformer, latents, torch.full((2,), 0.6), GRID, text,
        tokens=dino if tokens else None, dino_strength=strength,
    )  # fmt: skip


@pytest.mark.parametrize("strength", [0.25, 0.5])
def test_strength_weighs_the_attention_to_dino_and_nothing_else(given, strength, monkeypatch):
    found = run(given, strength)
    seen = []

    def by_hand(query, key, value, attn_mask=None, **_):
        """Softmax as it is written down, each DINO key's weight times ``strength``."""
        assert attn_mask is None
        weights = torch.exp(query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]))
        weights[..., TEXT : TEXT + DINO] *= strength
        seen.append(key.shape[-2])
        return weights / weights.sum(-1, keepdim=True) @ value

    monkeypatch.setattr(F, "scaled_dot_product_attention", by_hand)
    wanted = run(given, 1.0)
    assert seen == [TEXT + DINO + GRID[0] * GRID[1]] * 4  # in every block
    assert (found - wanted).abs().max() < 1e-5
    monkeypatch.undo()
    assert (run(given, 1.0) - wanted).abs().max() > 1e-3


def test_a_strength_near_0_comes_near_to_no_dino(given):
    off = run(given, 1.0, tokens=False)
    apart = [float((run(given, s) - off).abs().max()) for s in (1.0, 0.1, 1e-2, 1e-3, 1e-6)]
    assert apart == sorted(apart, reverse=True)
    assert apart[0] > 1e-2 and apart[-1] < 1e-5
    assert torch.equal(run(given, 0.0), off)
