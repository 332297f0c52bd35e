"""Short memory and broken devices, at every stage: the job is done, or the process ends with 75."""

import sys
from pathlib import Path

import faulty
import numpy as np
import pytest
import tiny
import torch
from house import House

from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.engine import flux, holding, memory, open_engine, plans
from fluxwatchd.engine.streaming import Stream
from fluxwatchd.errors import EngineLost, OutOfMemory
from fluxwatchd.imageio import Picture

STAGES = tuple(faulty.PLACES)
HALF_WAY = "transformer_blocks.0.attn.to_q"
"""A layer of the transformer that is read after others and before others."""


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    """Compute in float32, also on a CPU with matrix units for bfloat16."""
    monkeypatch.setattr(memory, "dtype_for", lambda device: torch.float32)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A tiny schnell with DINO guidance, of which a small picture has several tiles."""
    root = tmp_path_factory.mktemp("schnell")
    encoder, _ = tiny.dino(root, model="schnell", width=tiny.WIDTH)
    return Profile(
        variant="schnell", model=str(tiny.diffusers_folder(root)), steps=2, strength=0.6,
        dino_mode="guide", dino_encoder=str(encoder), tile_size=32, overlap=8,
    )  # fmt: skip


PICTURE = Picture(tiny.photo(40, 56))


@pytest.fixture(scope="module")
def wanted(given):
    with open_engine(EngineSettings(device="cpu")) as engine:
        return engine.upscale(PICTURE, given, 7).picture.pixels


@pytest.fixture
def broken():
    """Breaks stages, and mends them in the end."""
    mend = []
    yield lambda stage, fails: mend.append(faulty.break_at(stage, fails))
    for back in reversed(mend):
        back()


def short(*_, **__):
    raise torch.OutOfMemoryError("out of memory")


# --- memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_memory_that_is_short_once_is_survived_at_every_stage(given, wanted, broken, stage):
    with open_engine(EngineSettings(device="cpu", tile_batch=2)) as engine:
        engine.warm(given)
        failures = [short]
        broken(stage, lambda: failures.pop()() if failures else None)
        prompt = given.model_copy(update={"steps": 2})
        if stage == "text":  # what is known is not encoded again
            engine._models[next(iter(engine._models))].text.known.clear()
        done = engine.upscale(PICTURE, prompt, 7)
    assert not failures
    assert np.abs(done.picture.pixels - wanted).max() < 0.2


@pytest.mark.parametrize("stage", STAGES)
def test_memory_that_the_weights_take_is_won_back_by_the_next_plan(given, broken, stage):
    with open_engine(EngineSettings(device="cpu", tile_batch=2)) as engine:
        engine.warm(given)
        (model,) = engine._models.values()
        if stage == "text":
            model.text.known.clear()
        broken(stage, lambda: short() if model.holding.plan == "resident" else None)
        done = engine.upscale(PICTURE, given, 7)
        assert (done.checkpoint.plan, model.holding.plan) == ("fp8", "fp8")
        assert any("the plan became fp8, after resident" in note for note in done.notes)
        again = engine.upscale(PICTURE, given, 7)
        assert again.checkpoint == done.checkpoint == engine.warm(given)
        assert not any("the plan became" in note for note in again.notes)


def test_a_picture_under_way_goes_on_from_its_last_step(given, broken):
    evaluated = []
    whole = flux.velocity
    with open_engine(EngineSettings(device="cpu")) as engine:
        engine.warm(given)
        (model,) = engine._models.values()

        def fails():
            if len(evaluated) >= 5 and model.holding.plan == "resident":
                short()
            evaluated.append(model.holding.plan)

        broken("denoise", fails)
        done = engine.upscale(PICTURE, given.model_copy(update={"steps": 4}), 7)
    assert flux.velocity is not whole
    assert evaluated.count("resident") == 5
    assert len(evaluated) == 4 * len(done.tiles.windows)


def test_memory_that_is_short_while_loading_leads_to_the_next_plan(given, monkeypatch):
    whole, seen = holding.Holding.keep, []

    def fails(self, path, module):
        seen.append(path)
        if path == HALF_WAY and seen.count(path) == 1:
            short()
        return whole(self, path, module)

    monkeypatch.setattr(holding.Holding, "keep", fails)
    with open_engine(EngineSettings(device="cpu")) as engine:
        done = engine.upscale(PICTURE, given, 7)
    assert done.checkpoint.plan == "fp8"
    assert any("memory was short while resident was loaded" in note for note in done.notes)
    seen.clear()
    with open_engine(EngineSettings(device="cpu", memory="resident")) as engine:
        with pytest.raises(OutOfMemory):
            engine.warm(given)
        assert engine.warm(given).plan == "resident"


def test_weights_that_cannot_even_be_moved_need_a_new_process(given, broken, monkeypatch):
    with open_engine(EngineSettings(device="cpu")) as engine:
        engine.warm(given)
        broken("denoise", short)
        monkeypatch.setattr(holding.fp8, "squeeze", short)
        with pytest.raises(EngineLost, match="could not be moved") as raised:
            engine.upscale(PICTURE, given, 7)
    assert not raised.value.device_gone  # the picture counts as tried, and is set aside in the end


def test_a_plan_that_is_set_is_kept_to(given, broken):
    with open_engine(EngineSettings(device="cpu", memory="resident")) as engine:
        engine.warm(given)
        broken("denoise", short)
        with pytest.raises(OutOfMemory):
            engine.upscale(PICTURE, given, 7)
        (model,) = engine._models.values()
        assert model.holding.plan == "resident"


def test_when_no_plan_is_left_the_job_fails_and_the_model_stays(given, broken):
    with open_engine(EngineSettings(device="cpu")) as engine:
        engine.warm(given)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(flux, "velocity", short)
            with pytest.raises(OutOfMemory) as raised:
                engine.upscale(PICTURE, given, 7)
        assert raised.value.transient and raised.value.hint
        assert engine.upscale(PICTURE, given, 7).checkpoint.plan == "fp8"


def test_every_plan_down_to_the_last_gives_the_same_numbers(given, monkeypatch):
    """As on a GPU, where the weights can go elsewhere: a CPU stops at float8."""
    with open_engine(EngineSettings(device="cpu")) as engine:
        engine.warm(given)
        monkeypatch.setattr(plans, "HOST_ONLY", (*plans.PLANS, holding.SEQUENTIAL_FP8))
        (model,) = engine._models.values()
        results = {"resident": engine.upscale(PICTURE, given, 7).picture.pixels}
        while model.holding.relieve():
            done = engine.upscale(PICTURE, given, 7)
            results[done.checkpoint.plan] = done.picture.pixels
    assert [*results] == ["resident", "fp8", "stream-fp8", "sequential-fp8"]
    assert 0 < np.abs(results["resident"] - results["fp8"]).max() < 0.1
    assert (results["fp8"] == results["stream-fp8"]).all()
    assert (results["fp8"] == results["sequential-fp8"]).all()


# --- streaming ------------------------------------------------------------------------------


def resident(module):
    """Bytes of the tensors that a module holds."""
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


def test_streamed_blocks_are_away_but_for_the_one_that_runs_and_the_next():
    model = tiny.flux()
    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
    whole, seen = resident(model), []
    inputs = {
        "hidden_states": torch.randn(1, 16, 64), "encoder_hidden_states": torch.randn(1, 8, 64),
        "pooled_projections": torch.randn(1, 64), "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(8, 3),
    }  # fmt: skip
    with torch.inference_mode():
        wanted = model(**inputs).sample
        stream = Stream(blocks, torch.device("cpu"))
        for block in blocks:
            block.register_forward_hook(lambda b, *_: seen.append(resident(model)))
        assert resident(model) < 0.2 * whole
        for _ in range(2):
            assert torch.equal(model(**inputs).sample, wanted)
        assert stream.most == 2
        assert max(seen) < 0.7 * whole
        stream.close()
        assert resident(model) == whole
        assert torch.equal(model(**inputs).sample, wanted)


def test_an_error_inside_a_block_leaves_nothing_on_the_device():
    model = tiny.flux()
    blocks = [*model.transformer_blocks]
    stream = Stream(blocks, torch.device("cpu"), ahead=0)
    with pytest.raises(TypeError):
        blocks[0](nonsense=1)
    assert all(p.numel() == 0 for block in blocks for p in block.parameters())
    stream.close()


# --- a broken device ------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_a_broken_device_ends_the_process_with_75_and_the_inbox_stays(tmp_path, given, stage):
    dino = f'dino_encoder = "{given.dino_encoder}"\ndino_mode = "guide"\ndino_strength = 0.5\n'
    house = House(
        tmp_path, f'variant = "schnell"\nmodel = "{given.model}"\nsteps = 1\nstrength = 0.5\n{dino}'
    )
    armed = tmp_path / "armed"
    prefix = [sys.executable, str(Path(faulty.__file__)), stage, str(armed)]
    if stage == "text":  # it comes before READY
        armed.touch()
    house.start(prefix=prefix)
    try:
        if stage != "text":
            house.ready()
            armed.touch()
        source = house.drop("photo.png")
        before = source.read_bytes()
        assert house.wait() == 75
    finally:
        house.kill()
    assert source.read_bytes() == before
    assert house.places() == {"inbox": ["photo.png"], "outbox": [], "archive": [], "failed": []}
