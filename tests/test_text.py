"""Text states: as diffusers makes them, cached by prompt and encoder, and their encoders leave."""

import gc
import shutil
import weakref

import checkpoints
import numpy as np
import pytest
import tiny
import torch
import words
from diffusers import FluxPipeline
from huggingface_hub import constants
from transformers import AutoTokenizer

from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.engine import encoders, loading, memory, open_engine, silent, text
from fluxwatchd.engine.tensorcache import TensorCache
from fluxwatchd.errors import ConfigError
from fluxwatchd.imageio import Picture

PROMPT = "a House by the sea"


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    """Compute in float32, also on a CPU with matrix units for bfloat16."""
    monkeypatch.setattr(memory, "dtype_for", lambda device: torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tiny.diffusers_folder(tmp_path_factory.mktemp("schnell"))
    return words.tokenizers(root)


def load(folder, state_dir=None, prompt="", variant="schnell", **engine):
    profile = Profile(variant=variant, model=str(folder), dino_mode="off", prompt=prompt)
    settings = EngineSettings(device="cpu", **{k: str(v) for k, v in engine.items()})
    return loading.load(profile.resolved(), settings, "cpu", state_dir, silent)


def pipeline(folder):
    """diffusers' own, of the same files."""
    return FluxPipeline(
        scheduler=None, vae=None, transformer=None, text_encoder=tiny.clip(),
        text_encoder_2=tiny.t5(), tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        tokenizer_2=AutoTokenizer.from_pretrained(folder / "tokenizer_2"),
    )  # fmt: skip


@pytest.mark.parametrize("prompt", ["", PROMPT, "word " * 200])
def test_parity_is_what_diffusers_encodes(folder, prompt):
    wanted, pooled, _ = pipeline(folder).encode_prompt(
        prompt, prompt_2=None, max_sequence_length=256
    )
    found = load(folder, prompt=prompt).text(prompt)
    assert found.states.shape == (1, 256, tiny.WIDTH)
    assert (found.states - wanted).abs().max() < 1e-5
    assert (found.pooled - pooled).abs().max() < 1e-5


def test_dev_pads_to_512_as_diffusers_does_by_default(tmp_path):
    folder = words.tokenizers(tiny.diffusers_folder(tmp_path, guidance=True))
    wanted, pooled, _ = pipeline(folder).encode_prompt(PROMPT, prompt_2=None)
    found = load(folder, prompt=PROMPT, variant="dev").text(PROMPT)
    assert found.states.shape == wanted.shape == (1, 512, tiny.WIDTH)
    assert (found.states - wanted).abs().max() < 1e-5
    assert (found.pooled - pooled).abs().max() < 1e-5


@pytest.mark.parametrize(("prompt", "count"), [("", 8), ("abcdef", 8), (PROMPT, 24)])
def test_short_takes_the_prompts_own_tokens_up_to_a_multiple_of_8(folder, prompt, count):
    ids = AutoTokenizer.from_pretrained(folder / "tokenizer_2")(prompt).input_ids
    assert count - 8 < len(ids) <= count
    found = load(folder, prompt=prompt, text_tokens="short").text(prompt)
    padded = torch.tensor([ids + [0] * (count - len(ids))])
    with torch.no_grad():
        wanted = tiny.t5()(padded)[0]
    assert found.states.shape == (1, count, tiny.WIDTH)
    assert (found.states - wanted).abs().max() < 1e-5


def test_a_prompt_changes_the_picture(folder):
    picture, results = Picture(tiny.photo(16, 16)), []
    with open_engine(EngineSettings(device="cpu")) as engine:
        for prompt in ("", PROMPT):
            profile = Profile(
                variant="schnell", model=str(folder), dino_mode="off", steps=1, prompt=prompt
            )
            results.append(engine.upscale(picture, profile, 1).picture.pixels)
        assert len(engine.resident()) == 1
    assert np.abs(results[0] - results[1]).max() > 1e-4


def test_a_file_models_tokenizers_come_from_the_setting(tmp_path, folder):
    root = checkpoints.comfy_root(tmp_path / "models")
    found = load(root, prompt=PROMPT, tokenizer=folder).text(PROMPT)
    wanted = load(folder, prompt=PROMPT).text(PROMPT)
    assert torch.allclose(found.states, wanted.states, atol=1e-5)


def test_or_from_the_hubs_cache(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    root = checkpoints.comfy_root(tmp_path / "models")
    with pytest.raises(ConfigError, match="no clip tokenizer") as raised:
        load(root, prompt=PROMPT)
    assert "hf download black-forest-labs/FLUX.1-schnell" in raised.value.hint
    place = tmp_path / "models--black-forest-labs--FLUX.1-schnell"
    shutil.copytree(folder / "tokenizer", place / "snapshots" / "abc" / "tokenizer")
    shutil.copytree(folder / "tokenizer_2", place / "snapshots" / "abc" / "tokenizer_2")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    assert load(root, prompt=PROMPT).text(PROMPT).states.shape == (1, 256, tiny.WIDTH)


# --- the cache ------------------------------------------------------------------------------


def test_states_are_encoded_once_for_a_prompt_and_its_encoders(folder, tmp_path, monkeypatch):
    loaded = []
    whole = encoders.load_t5

    def counting(*given):
        loaded.append(given)
        return whole(*given)

    monkeypatch.setattr(encoders, "load_t5", counting)
    state = tmp_path / "state"
    first = load(folder, state, prompt=PROMPT).text(PROMPT)
    again = load(folder, state, prompt=PROMPT).text(PROMPT)
    assert len(loaded) == 1
    assert torch.equal(first.states, again.states) and torch.equal(first.pooled, again.pooled)
    load(folder, state, prompt="another")
    load(folder, state, prompt=PROMPT, text_tokens="short")
    assert len(loaded) == 3
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    load(other, state, prompt=PROMPT)
    assert len(loaded) == 3  # the same encoders and words, in another place
    tiny.t5(seed=9).save_pretrained(other / "text_encoder_2")
    load(other, state, prompt=PROMPT)
    words.t5_tokenizer(other / "tokenizer_2")
    (other / "tokenizer_2" / "special_tokens_map.json").write_text("{}")
    load(other, state, prompt=PROMPT)
    assert len(loaded) == 5


def test_a_broken_file_in_the_cache_is_a_miss(folder, tmp_path):
    wanted = load(folder, tmp_path).text("").states
    for file in (tmp_path / "text").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    assert torch.equal(load(folder, tmp_path).text("").states, wanted)


def test_a_cache_that_cannot_be_written_costs_nothing_else(folder, tmp_path):
    (tmp_path / "text").write_text("no folder")
    assert load(folder, tmp_path).text("").states.shape == (1, 256, tiny.WIDTH)


def test_the_cache_drops_the_least_used_beyond_its_size(tmp_path):
    cache = TensorCache(tmp_path / "c", max_bytes=3000)
    for i in range(8):
        cache.put(str(i), {"x": torch.full((100,), float(i))})
        if i >= 1:
            assert cache.get("0") is not None  # still in use
    held = sum(file.stat().st_size for file in (tmp_path / "c").iterdir())
    assert held <= 3000
    assert cache.get("0") is not None and cache.get("1") is None and cache.get("7") is not None


def test_prompts_in_memory_are_bounded(folder, monkeypatch):
    monkeypatch.setattr(text, "MOST_KNOWN", 2)
    source = load(folder).text
    for prompt in ("", "a", "", "b"):
        source(prompt)
    assert [*source.known] == ["", "b"]


# --- encoders -------------------------------------------------------------------------------


def test_the_encoders_leave_after_a_prompt(folder, monkeypatch):
    alive = []
    for name in ("load_clip", "load_t5"):
        whole = getattr(encoders, name)

        def watching(*given, whole=whole):
            encoder = whole(*given)
            alive.append(weakref.ref(encoder))
            return encoder

        monkeypatch.setattr(encoders, name, watching)
    load(folder)
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


def test_t5_is_kept_wider_than_float16(folder, tmp_path):
    checkpoints.comfy_root(tmp_path)
    for place in (folder / "text_encoder_2", tmp_path / "clip" / "t5xxl_fp16.safetensors"):
        encoder = encoders.load_t5(place, torch.float16)
        (wide,) = {p.dtype for name, p in encoder.named_parameters() if ".wo." in name}
        assert wide == torch.float32
        assert encoder.shared.weight.dtype == torch.float16


@pytest.mark.parametrize("load_one", [encoders.load_clip, encoders.load_t5])
def test_an_encoder_streamed_layer_by_layer_gives_the_same_states(folder, load_one):
    place = folder / ("text_encoder" if load_one is encoders.load_clip else "text_encoder_2")
    ids = torch.tensor([[5, 6, 7, 1, 0, 0, 0, 0]])
    encoder, device = load_one(place, torch.float32), torch.device("cpu")
    with torch.no_grad():
        wanted = encoder(ids)[0]
        with text._placed(encoder, device, text.STREAM) as there:
            assert all(p.numel() == 0 for p in next(text.layers(encoder)).parameters())
            assert torch.equal(encoder(ids.to(there))[0], wanted)
        assert torch.equal(encoder(ids)[0], wanted)


def test_an_encoder_goes_where_it_fits_on_a_gpu(folder, monkeypatch):
    encoder, gpu = encoders.load_t5(folder / "text_encoder_2", torch.float32), torch.device("cuda")
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**9)
    assert text.ways(encoder, gpu) == (text.DEVICE, text.STREAM, text.HOST)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**8)
    assert text.ways(encoder, gpu) == (text.STREAM, text.HOST)
    assert text.ways(encoder, torch.device("cpu")) == (text.HOST,)


def test_short_memory_sends_an_encoder_to_the_next_place(folder, monkeypatch):
    wanted = load(folder, prompt=PROMPT).text(PROMPT)
    tried = []
    whole = text._placed.__enter__

    def enter(placed):
        tried.append(placed._way)
        if placed._way != text.HOST:
            raise torch.OutOfMemoryError("out of memory")
        return whole(placed)

    monkeypatch.setattr(text, "ways", lambda *_: (text.DEVICE, text.STREAM, text.HOST))
    monkeypatch.setattr(text._placed, "__enter__", enter)
    found = load(folder, prompt=PROMPT).text(PROMPT)
    assert tried == [text.DEVICE, text.STREAM, text.HOST] * 2
    assert torch.equal(found.states, wanted.states)
