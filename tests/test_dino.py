"""What engine/dino.py promises about encoders, windows, tokens, drift and the cache."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)

from fluxwatchd.engine import dino, resample
from fluxwatchd.engine.dino import DinoEncoder, FeatureCache, Features
from fluxwatchd.engine.places import NANO
from fluxwatchd.engine.projector import AdapterSpec, Projector, load_lora
from fluxwatchd.errors import ConfigError

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "patch_size": 8,
    "image_size": 64,
    "mlp_ratio": 2,
}


def small_encoder(seed: int = 0) -> DinoEncoder:
    torch.manual_seed(seed)
    return DinoEncoder(Dinov2Model(Dinov2Config(**SMALL)))


def small_spec(encoder: DinoEncoder, **changes: object) -> AdapterSpec:
    fields = {
        "model": "nano",
        "model_width": 24,
        "encoder": encoder.identity,
        "encoder_name": "small",
        "encoder_width": encoder.width,
        "layers": encoder.layers,
        "hidden": 40,
    }
    return AdapterSpec(**(fields | changes))


def picture(height: int = 48, width: int = 80, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(17, 23), (96, 160), (48, 31)])
@pytest.mark.parametrize(
    ("kernel", "pillow"),
    [(resample.BICUBIC, Image.Resampling.BICUBIC), (resample.LANCZOS, Image.Resampling.LANCZOS)],
)
def test_resample_is_what_pillow_does(size, kernel, pillow):
    source = picture()
    ours = resample.resample(source, size, kernel=kernel, reflect=False)[0, 0].numpy()
    channel = Image.fromarray(source[0, 0].numpy())
    theirs = np.asarray(channel.resize(size[::-1], pillow))
    assert np.abs(ours - theirs).max() < 1e-5


def test_resample_cuts_boxes_with_fractions_as_pillow_does():
    source, box = picture(), (8.25, 11.5, 40.75, 61.0)
    ours = resample.resample(source, (24, 30), box=box, reflect=False)[0, 0].numpy()
    crop = (box[1], box[0], box[3], box[2])
    theirs = Image.fromarray(source[0, 0].numpy()).resize((30, 24), 3, box=crop)
    # Pillow cuts the filter at the box, we look beyond it: only the rim may differ
    assert np.abs(ours - np.asarray(theirs))[3:-3, 3:-3].max() < 1e-5


def test_a_box_beyond_the_picture_sees_its_reflection():
    source = picture()
    mirrored = torch.cat([source, source.flip(2)], 2)
    beyond = resample.resample(source, (16, 16), box=(40, 0, 56, 16))
    assert torch.allclose(beyond, resample.resample(mirrored, (16, 16), box=(40, 0, 56, 16)))


@pytest.mark.parametrize("registers", [0, 4])
def test_an_encoder_with_or_without_registers_gives_one_feature_a_cell(tmp_path, registers):
    if registers:
        config = Dinov2WithRegistersConfig(**SMALL, num_register_tokens=registers)
        model = Dinov2WithRegistersModel(config)
    else:
        model = Dinov2Model(Dinov2Config(**SMALL))
    model.save_pretrained(tmp_path)
    encoder = DinoEncoder.load(tmp_path)
    features = encoder.features(picture(), grid=(3, 5))
    assert features.patches.shape == (1, 3, 5, 64)
    assert features.whole.shape == (1, 32)
    # the last layer's part is what transformers itself calls the last patches
    mean, std = (torch.tensor(v)[:, None, None] for v in (dino.MEAN, dino.STD))
    pixels = (resample.resample(picture(), (24, 40)).clamp(0, 1) - mean) / std
    state = encoder.model(pixels).last_hidden_state
    assert torch.allclose(features.patches[0, ..., 32:].flatten(0, 1), state[0, 1 + registers :])
    assert torch.allclose(features.whole, state[:, 0])


def test_identity_is_of_the_weights_and_not_of_the_file(tmp_path):
    encoder, other = small_encoder(), small_encoder(seed=1)
    encoder.model.save_pretrained(tmp_path / "a")
    encoder.model.save_pretrained(tmp_path / "b")
    loaded = [DinoEncoder.load(tmp_path / name).identity for name in "ab"]
    assert loaded == [encoder.identity] * 2
    assert other.identity != encoder.identity


def test_an_encoder_that_cannot_be_used_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        DinoEncoder.load(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="bert"):
        DinoEncoder.load(tmp_path)


def test_layer_features_carry_a_gradient_to_the_picture():
    rgb = picture(32, 32).requires_grad_()
    layers = small_encoder().layer_features(rgb, (4, 4), count=4)
    assert len(layers) == 4
    sum(layer.square().mean() * (i + 1) for i, layer in enumerate(layers)).backward()
    assert rgb.grad is not None
    assert rgb.grad.abs().sum() > 0


def test_surroundings_end_at_the_picture():
    inner = dino.window((16, 16, 32, 32), (4, 4), 2, 48, 80)
    assert (inner.grid, inner.top, inner.left) == ((8, 8), 2, 2)
    assert inner.box == (8, 8, 40, 40)
    corner = dino.window((0, 60, 16, 80), (4, 5), 2, 48, 80)
    assert (corner.grid, corner.top, corner.left) == ((6, 7), 0, 2)


def test_tiles_alone_and_together_have_the_same_features():
    encoder, source = small_encoder(), picture()
    boxes = [(0, 0, 32, 32), (16, 16, 48, 48), (16, 48, 48, 80)]
    together = dino.encode_tiles(encoder, source, boxes, (4, 4))
    assert together.patches.shape == (3, 4, 4, 64)
    for i, box in enumerate(boxes):
        alone = dino.encode_tiles(encoder, source, [box], (4, 4))
        assert torch.allclose(alone.patches[0], together.patches[i], atol=2e-3)


def test_surroundings_change_what_a_tile_means():
    encoder = small_encoder()
    one, two = picture(), picture()
    two[..., 40:] = 0
    box = [(0.0, 0.0, 32.0, 32.0)]
    seen = [dino.encode_tiles(encoder, p, box, (4, 4), margin=2) for p in (one, two)]
    blind = [dino.encode_tiles(encoder, p, box, (4, 4), margin=0) for p in (one, two)]
    assert float(dino.drift(*seen)) > 2e-5
    assert float(dino.drift(*blind)) < 1e-6


def test_drift_is_zero_for_itself_and_grows_with_damage():
    encoder, source = small_encoder(), picture()
    clean = dino.encode_picture(encoder, source)
    noise = torch.randn(source.shape, generator=torch.Generator().manual_seed(1))
    worn = [dino.encode_picture(encoder, (source + s * noise).clamp(0, 1)) for s in (0.05, 0.5)]
    assert float(dino.drift(clean, clean)) == pytest.approx(0, abs=1e-6)
    small, large = (float(dino.drift(clean, w)) for w in worn)
    assert 0 < small < large < 2


def test_cache_gives_back_the_same_features_and_keeps_its_bound(tmp_path):
    encoder, source = small_encoder(), picture()
    cache = FeatureCache(tmp_path / "dino", max_bytes=400_000)
    first = dino.encode_tiles(encoder, source, [(0, 0, 32, 32)], (4, 4), cache=cache, content="a")
    again = dino.encode_tiles(encoder, source, [(0, 0, 32, 32)], (4, 4), cache=cache, content="a")
    assert torch.equal(first.patches, again.patches)
    for i in range(40):
        dino.encode_picture(encoder, source, cache=cache, content=f"{i}")
    sizes = [file.stat().st_size for file in (tmp_path / "dino").iterdir()]
    assert 0 < sum(sizes) <= 400_000


def test_the_least_recently_used_features_go_first(tmp_path):
    features = Features(torch.zeros(1, 4, 4, 8), torch.zeros(1, 8))
    cache = FeatureCache(tmp_path, max_bytes=1_600)
    for key, age in (("old", 100), ("older", 200)):
        cache.put(key, features)
        os.utime(tmp_path / f"{key}.safetensors", (age, age))
    assert cache.get("old") is not None  # used: now the newest
    for key in ("new", "newer"):
        cache.put(key, features)
    assert cache.get("older") is None
    assert cache.get("newer") is not None


def test_a_broken_cache_file_is_a_miss(tmp_path):
    cache = FeatureCache(tmp_path)
    (tmp_path / "key.safetensors").write_bytes(b"torn")
    assert cache.get("key") is None
    assert not (tmp_path / "key.safetensors").exists()


def test_tokens_lie_where_their_cells_are():
    encoder = small_encoder()
    projector = Projector(small_spec(encoder))
    features = encoder.features(picture(64, 64), (8, 8))
    tokens = projector.tokens(features, (16, 16))
    assert tokens.states.shape == (1, 72, 24)  # 1 + 64, up to a multiple of 8
    assert tokens.ids[0].tolist() == [0, 7.5, 7.5]
    assert tokens.ids[1].tolist() == [0, 0.5, 0.5]  # the middle of image tokens 0 and 1
    assert tokens.ids[64].tolist() == [0, 14.5, 14.5]
    assert tokens.states[0, 65:].abs().sum() == 0


def test_cells_beyond_the_most_are_pooled():
    encoder = small_encoder()
    projector = Projector(small_spec(encoder, grid=4))
    tokens = projector.tokens(encoder.features(picture(64, 48), (8, 6)), (16, 12))
    assert tokens.states.shape[1] == 24
    assert tokens.ids[16].tolist() == [0, 13.5, 10.0]
    assert projector.spec.tile_grid((16, 6)) == (4, 3)


def test_a_projector_comes_back_as_it_was_saved(tmp_path: Path):
    encoder = small_encoder()
    projector = Projector(small_spec(encoder)).half().float().eval()
    lora = {"blocks.0.lora_A.weight": torch.ones(2, 3)}
    projector.save(tmp_path / "adapter.safetensors", lora)
    loaded = Projector.load(tmp_path)
    features = encoder.features(picture(32, 32), (4, 4))
    assert loaded.spec == projector.spec
    assert torch.equal(
        loaded.tokens(features, (8, 8)).states, projector.tokens(features, (8, 8)).states
    )
    assert torch.equal(load_lora(tmp_path)["blocks.0.lora_A.weight"], torch.ones(2, 3))
    loaded.check(model="nano", model_width=24, encoder=encoder)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"model": "schnell"}, "model"),
        ({"model_width": 4096}, "width of the text states"),
        ({"encoder": small_encoder(seed=7)}, "DINO encoder"),
    ],
)
def test_an_adapter_for_something_else_is_refused_by_name(wrong, named):
    encoder = small_encoder()
    asked = {"model": "nano", "model_width": 24, "encoder": encoder} | wrong
    with pytest.raises(ConfigError, match=named):
        Projector(small_spec(encoder)).check(**asked)


def test_a_file_that_is_no_adapter_is_refused(tmp_path):
    small_encoder().model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no DINO adapter"):
        Projector.load(tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="cannot be read"):
        Projector.load(tmp_path / "missing.safetensors")


def test_loading_leaves_the_default_dtype_of_other_threads_alone(monkeypatch):
    """torch has one for all threads: on another device a picture would be computed in float16."""
    used, change = set(), torch.set_default_dtype
    monkeypatch.setattr(torch, "set_default_dtype", lambda d: used.add(d) or change(d))
    encoder = DinoEncoder.load(NANO / "dino")
    assert used <= {torch.float32}
    assert next(encoder.model.parameters()).dtype == torch.float32
