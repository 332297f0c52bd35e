"""What makes FLUX.1 fast on a GPU gives the numbers of what it replaces, in no more memory."""

import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.engine import (
    flux,
    fp8,
    health,
    holding,
    kernels,
    loading,
    plans,
    silent,
    tiles,
    toolchain,
    tuning,
    vae,
)
from fluxwatchd.engine.flux import Text
from fluxwatchd.engine.streaming import Stream
from fluxwatchd.engine.weights import held
from fluxwatchd.errors import Interrupted

TEXT = Text(torch.randn(1, 8, tiny.WIDTH), torch.randn(1, tiny.POOLED))
CPU = torch.device("cpu")


@torch.inference_mode()
def evaluated(model, side, batch=1):
    latents = torch.randn(batch, side * side, 64, generator=torch.Generator().manual_seed(side))
    return flux.velocity(model, latents, torch.full((batch,), 0.5), (side, side), TEXT)


@pytest.fixture
def compilations():
    """How many graphs were compiled so far; each is then run as it is."""
    torch._dynamo.reset()
    made = []

    def counting(graph, example):
        made.append(graph)
        return graph.forward

    yield counting, made
    torch._dynamo.reset()


def test_compiled_blocks_give_the_same_numbers_for_tiles_of_any_size(compilations):
    counting, made = compilations
    model = tiny.flux()
    plain = [evaluated(model, side) for side in (4, 6, 9)]
    kernels.compile_blocks(model, backend=counting)
    counts = []
    for side, expected in zip((4, 6, 9), plain, strict=True):
        torch.testing.assert_close(evaluated(model, side), expected, atol=1e-5, rtol=1e-5)
        counts.append(len(made))
    assert 0 < counts[0] == counts[-1]  # another size is no reason to compile again
    kernels.plain_blocks(model)
    assert torch.equal(evaluated(model, 4), plain[0])


def test_compiled_blocks_take_weights_that_are_streamed_and_narrowed(compilations):
    counting, _ = compilations
    model = tiny.flux()
    plain = evaluated(model, 5)
    kernels.compile_blocks(model, backend=counting)
    stream = Stream(kernels.blocks(model), CPU)
    torch.testing.assert_close(evaluated(model, 5), plain, atol=1e-5, rtol=1e-5)
    assert stream.most == 2
    stream.close()
    fp8.squeeze(model)
    narrow = evaluated(model, 5)
    kernels.plain_blocks(model)
    torch.testing.assert_close(evaluated(model, 5), narrow, atol=1e-5, rtol=1e-5)


def test_what_visits_layer_by_layer_runs_as_written(compilations):
    counting, made = compilations
    model = tiny.flux()
    plain = evaluated(model, 5)
    kernels.compile_blocks(model, backend=counting)
    keeping = holding.Holding(CPU, plans.SEQUENTIAL, lower=False)
    keeping.attach(model)
    assert torch.equal(evaluated(model, 5), plain)
    assert not made


def test_an_autoencoder_is_compiled_for_one_window_and_runs_others_as_written(
    compilations, monkeypatch
):
    counting, made = compilations
    own, rng = vae.Vae.of(tiny.vae()), np.random.default_rng(0)
    large, small = rng.random((192, 320, 3), np.float32), rng.random((64, 96, 3), np.float32)
    monkeypatch.setattr(vae.Vae, "window", property(lambda self: 20))  # latent cells
    with torch.inference_mode():
        fast = replace(own, compiled=20)
        plain = vae.decode_picture(fast, vae.encode_picture(fast, large, silent), silent)
        kernels.compile_vae(own.module, backend=counting)
        vae.decode_picture(fast, vae.encode_picture(fast, small, silent), silent)
        assert not made  # 8 x 12 cells are less than a window
        made_now = vae.decode_picture(fast, vae.encode_picture(fast, large, silent), silent)
        before = len(made)
        assert before > 0
        again = vae.decode_picture(fast, vae.encode_picture(fast, large, silent), silent)
        assert len(made) == before  # every window was of the one size
        vae.encode_picture(fast.as_written, large, silent)
        assert len(made) == before
    assert np.array_equal(made_now, again)
    np.testing.assert_allclose(made_now, plain, atol=1e-4)


def test_a_gradient_goes_through_what_was_written(compilations):
    counting, made = compilations
    own = vae.Vae.of(tiny.vae())
    kernels.compile_vae(own.module, backend=counting)
    latents = torch.randn(1, 16, 8, 8, requires_grad=True)
    replace(own, compiled=8).decode(latents).sum().backward()
    assert latents.grad is not None and not made


@given(
    length=st.integers(1, 400), width=st.integers(1, 400), size=st.integers(2, 140), data=st.data()
)
@settings(max_examples=60, deadline=None)
def test_windows_of_one_size_cover_a_picture(length, width, size, data):
    overlap = data.draw(st.integers(0, size - 1))
    grid = tiles.plan_fixed(length, width, size, overlap)
    total = np.zeros((length, width))
    for tile, weight in zip(grid.tiles, grid.weights(), strict=True):
        assert tile.height == min(size, length) and tile.width == min(size, width)
        assert weight.min() > 0
        total[tile.cut()] += weight
    np.testing.assert_allclose(total, 1, atol=1e-5)
    assert len(grid.tiles) == 1 or grid.overlap >= overlap


def test_a_product_in_float8_is_that_of_its_numbers():
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 32).bfloat16().requires_grad_(False)
    x = torch.randn(2, 7, 64).bfloat16()
    narrow = fp8.Float8Linear(linear, products=True)
    assert narrow.products
    true = linear(x).float()
    assert (narrow(x).float() - true).norm() < 0.05 * true.norm()
    odd = fp8.Float8Linear(torch.nn.Linear(20, 32).requires_grad_(False), products=True)
    assert not odd.products  # its sides are no multiples of 16
    assert not fp8.multiplies(CPU)


@pytest.mark.parametrize("plan", ["fp8", "stream-fp8"])
def test_no_two_layers_are_wide_at_once_while_float8_is_loaded(plan, monkeypatch):
    alive: list[weakref.ref] = []
    keep = holding.Holding.keep

    def watched(self, path, module):
        kept = keep(self, path, module)
        if kept is not module:
            assert sum(ref() is not None for ref in alive) <= 1, path
            alive.append(weakref.ref(module))
        return kept

    monkeypatch.setattr(holding.Holding, "keep", watched)
    source = tiny.flux()
    state = {name: held(tensor) for name, tensor in source.state_dict().items()}
    recipe = loading.Recipe(Path("tiny"), source.config, state)
    keeping = holding.Holding(CPU, plan, lower=False)
    loading.build(recipe, torch.float32, keeping, lambda done, total: None)
    assert len(alive) > 20


def test_the_batch_fills_the_device_and_no_more():
    assert kernels.first_full({1: 1.0, 2: 0.8, 4: 0.79}) == 2
    assert kernels.first_full({1: 1.0, 2: 0.99, 4: 0.985}) == 1
    assert kernels.first_full({}) == 1
    assert kernels.batch_for(full=4096, tokens=1024, most=16) == 4
    assert kernels.batch_for(full=4096, tokens=4624, most=16) == 1
    assert kernels.batch_for(full=8192, tokens=1024, most=3) == 3


def test_a_search_for_the_batch_ends_where_memory_does():
    asked = []

    def evaluate(batch):
        asked.append(batch)
        if batch > 1:
            raise MemoryError

    assert kernels.full_at(evaluate, 100, CPU, most=4) == 100
    assert max(asked) == 2


def test_attention_is_chosen_among_what_works_here():
    chosen = kernels.fastest_attention(CPU, torch.float32, heads=2, size=16, tokens=64)
    assert chosen == "native"  # cuDNN has no CPU


def test_what_is_missing_for_a_compiler_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert "compiler" in toolchain.missing()
    assert "there is no C compiler" in [*kernels.reasons("resident", torch.device("cuda"))]
    flux_on_gpu = [Profile(variant="schnell").resolved()]
    (finding,) = health._compiler(EngineSettings(), flux_on_gpu)
    assert "no C compiler" in finding.said and "apt install" in finding.remedy
    assert not [*health._compiler(EngineSettings(compile="off"), flux_on_gpu)]


def test_one_device_is_tuned_after_the_other_and_who_waits_can_be_stopped():
    def stopped(stage, done, total):
        raise Interrupted("a stop was asked for")

    with tuning._alone(silent), ThreadPoolExecutor(1) as pool:

        def waits():
            with pytest.raises(Interrupted), tuning._alone(stopped):
                raise AssertionError("two at once")

        pool.submit(waits).result(30)
    with tuning._alone(stopped):
        pass
