"""Checkpoints: folders and single files load back equal; what does not fit is refused by name."""

import hashlib
import json
import os

import checkpoints
import numpy as np
import pytest
import safetensors.torch
import tiny
import torch

from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.engine import layouts, loading, open_engine, silent, weights
from fluxwatchd.engine.identity import Identities
from fluxwatchd.errors import ConfigError
from fluxwatchd.imageio import Picture


def schnell(model, **more):
    given = {"variant": "schnell", "model": str(model), "dino_mode": "off", "steps": 2}
    return Profile(**{**given, **more}).resolved()


def load(profile, state_dir=None, **engine):
    settings = EngineSettings(device="cpu", **{k: str(v) for k, v in engine.items()})
    return loading.load(profile, settings, "cpu", state_dir, silent)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.diffusers_folder(tmp_path_factory.mktemp("schnell"))


@pytest.fixture(scope="module")
def dev_folder(tmp_path_factory):
    return tiny.diffusers_folder(tmp_path_factory.mktemp("dev"), guidance=True)


@pytest.fixture(scope="module")
def files(folder, tmp_path_factory):
    """The same model as the single files that people have."""
    root = tmp_path_factory.mktemp("files")
    safetensors.torch.save_file(
        checkpoints.to_bfl(tiny.flux().state_dict()), root / "flux1.safetensors"
    )
    # in diffusers' names, as its save_pretrained writes it
    tiny.vae().save_pretrained(root / "vae")
    (root / "vae" / "diffusion_pytorch_model.safetensors").rename(root / "ae.safetensors")
    tiny.clip().save_pretrained(root / "clip")
    (root / "clip" / "model.safetensors").rename(root / "clip_l.safetensors")
    tiny.t5().save_pretrained(root / "t5")
    (root / "t5" / "model.safetensors").rename(root / "t5xxl.safetensors")
    return {
        "model": root / "flux1.safetensors",
        "vae": root / "ae.safetensors",
        "clip": root / "clip_l.safetensors",
        "t5": root / "t5xxl.safetensors",
    }


def equal(module, wanted):
    found = module.state_dict()
    assert found.keys() == wanted.keys()
    return all(torch.equal(t, wanted[key].to(t.dtype)) for key, t in found.items())


# --- what loads -----------------------------------------------------------------------------


def test_a_diffusers_folder_loads_back_equal(folder):
    model = load(schnell(folder))
    assert equal(model.transformer, tiny.flux().state_dict())
    assert equal(model.vae.module, tiny.vae().state_dict())
    weights = (folder / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert model.checkpoint.files["vae"] == f"sha256:{hashlib.sha256(weights).hexdigest()}"
    assert model.checkpoint.files.keys() == {"transformer", "vae", "clip", "t5"}
    assert (model.vae.factor, model.vae.channels, model.unit) == (8, 16, 16)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_single_files_load_back_equal(files, prefix, tmp_path):
    path = tmp_path / "flux.safetensors"
    state = safetensors.torch.load_file(files["model"])
    safetensors.torch.save_file({prefix + key: tensor for key, tensor in state.items()}, path)
    model = load(schnell(path), vae=files["vae"], clip=files["clip"], t5=files["t5"])
    assert equal(model.transformer, tiny.flux().state_dict())
    assert equal(model.vae.module, tiny.vae().state_dict())
    assert (model.vae.scale, model.vae.shift) == (0.3611, 0.1159)


def test_a_single_file_in_diffusers_names_loads_too(folder, files):
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    model = load(schnell(path), vae=files["vae"], clip=files["clip"], t5=files["t5"])
    assert equal(model.transformer, tiny.flux().state_dict())


def test_files_and_folder_give_the_same_text_states(folder, files):
    from_folder = load(schnell(folder)).text("")
    from_files = load(schnell(files["model"]), **{k: v for k, v in files.items() if k != "model"})
    text = from_files.text("")
    assert text.states.shape == (1, 256, tiny.WIDTH)
    assert text.pooled.shape == (1, tiny.POOLED)
    assert torch.equal(text.states, from_folder.states)
    assert torch.equal(text.pooled, from_folder.pooled)
    wanted = tiny.t5()(torch.tensor([[1] + [0] * 255]))[0]
    assert (text.states.float() - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_flux_upscales_a_picture_end_to_end(folder, dev_folder):
    picture = Picture(tiny.photo(20, 30))
    with open_engine(EngineSettings(device="cpu", text_tokens="short")) as engine:
        done = engine.upscale(picture, schnell(folder, strength=0.5), 3)
        guided = engine.upscale(
            picture, Profile(variant="dev", model=str(dev_folder), steps=2, dino_mode="off"), 3
        )
        assert len(engine.resident()) == 2
    assert done.picture.pixels.shape == guided.picture.pixels.shape == (40, 60, 3)
    assert done.sigmas == (0.5, 0.25)
    assert guided.sigmas[0] == 0.3 and len(guided.sigmas) == 2
    assert done.dino.reason == "dino_mode is off" or "DINO is off" in done.dino.reason


# --- text states ----------------------------------------------------------------------------


def test_text_states_outlive_the_process(folder, tmp_path):
    first = load(schnell(folder), tmp_path).text("")
    later = load(schnell(folder), tmp_path)
    for name in ("text_encoder", "text_encoder_2"):
        (folder / name).rename(folder / f"{name}.away")
    try:
        again = later.text("")
    finally:
        for name in ("text_encoder", "text_encoder_2"):
            (folder / f"{name}.away").rename(folder / name)
    assert torch.equal(first.states, again.states) and torch.equal(first.pooled, again.pooled)


def test_a_prompt_without_a_tokenizer_is_refused_at_start(folder):
    with pytest.raises(ConfigError, match="tokenizer") as raised:
        load(schnell(folder, prompt="a house"))
    assert "engine.tokenizer" in raised.value.hint


# --- identity -------------------------------------------------------------------------------


def test_a_file_is_hashed_once_and_again_when_it_changed(tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"one")
    first = Identities(tmp_path / "state").of(file)
    assert first == f"sha256:{hashlib.sha256(b'one').hexdigest()}"
    stored = tmp_path / "state" / "identities.json"
    known = json.loads(stored.read_text())
    stored.write_text(json.dumps(dict.fromkeys(known, "sha256:remembered")))
    assert Identities(tmp_path / "state").of(file) == "sha256:remembered"
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert Identities(tmp_path / "state").of(file).endswith(hashlib.sha256(b"two").hexdigest())


# --- what is refused ------------------------------------------------------------------------


def refused(profile, **engine):
    with pytest.raises(ConfigError) as raised:
        load(profile, **engine)
    assert raised.value.hint
    return str(raised.value)


@pytest.mark.parametrize("name", ["flux.ckpt", "flux.pt", "flux.bin", "FLUX.PTH"])
def test_a_pickle_is_refused_by_its_name(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"never read")
    said = refused(schnell(path))
    assert "pickle" in said and name in said


def test_a_folder_with_pickles_alone_is_refused(folder, tmp_path):
    (tmp_path / "transformer").mkdir()
    config = (folder / "transformer" / "config.json").read_text()
    (tmp_path / "transformer" / "config.json").write_text(config)
    (tmp_path / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"never read")
    assert "diffusion_pytorch_model.bin may be a pickle" in refused(schnell(tmp_path))


@pytest.mark.parametrize("name", ["/nowhere/flux.safetensors", "nowhere", "./a/b/c"])
def test_a_path_that_does_not_exist_is_refused(name):
    assert "does not exist" in refused(schnell(name))


def test_a_transformer_alone_names_what_else_is_needed(files):
    said = refused(schnell(files["model"]), vae=files["vae"])
    assert "engine.clip, engine.t5 must be set" in said


def test_a_truncated_file_is_refused(files, tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(files["model"].read_bytes()[:-1000])
    said = refused(schnell(path), **{k: v for k, v in files.items() if k != "model"})
    assert "cut.safetensors is truncated" in said


def test_a_truncated_folder_is_refused(folder, tmp_path):
    broken = tmp_path / "broken"
    (broken / "transformer").mkdir(parents=True)
    name = "diffusion_pytorch_model.safetensors"
    config = (folder / "transformer" / "config.json").read_text()
    (broken / "transformer" / "config.json").write_text(config)
    weights = (folder / "transformer" / name).read_bytes()
    (broken / "transformer" / name).write_bytes(weights[:-1000])
    assert str(broken / "transformer") in refused(schnell(broken))


def test_weights_that_lack_a_tensor_are_refused(files, tmp_path):
    state = safetensors.torch.load_file(files["model"])
    del state["single_blocks.1.linear2.weight"]
    path = tmp_path / "holes.safetensors"
    safetensors.torch.save_file(state, path)
    said = refused(schnell(path), **{k: v for k, v in files.items() if k != "model"})
    assert "lacks 1 weights, as single_transformer_blocks.1.proj_out.weight" in said


def test_files_in_each_others_place_are_refused_by_what_they_are(files):
    others = {"vae": files["vae"], "clip": files["clip"], "t5": files["t5"]}
    assert "it is a T5 text encoder" in refused(schnell(files["t5"]), **others)
    wrong = {**others, "vae": files["model"]}
    assert "it is a FLUX.1 transformer" in refused(schnell(files["model"]), **wrong)
    said = refused(schnell(files["model"]), **{**others, "clip": files["t5"]})
    assert "is not a CLIP text encoder: it is a T5" in said


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "a LoRA"),
        ("model.diffusion_model.input_blocks.0.0.weight", "a Stable Diffusion checkpoint"),
        ("double_stream_modulation_img.lin.weight", "FLUX.2"),
    ],
)
def test_a_file_of_another_model_is_refused_by_what_it_is(files, tmp_path, key, kind):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({key: torch.zeros(2, 2)}, path)
    others = {"vae": files["vae"], "clip": files["clip"], "t5": files["t5"]}
    assert kind in refused(schnell(path), **others)


def test_the_wrong_variant_is_refused(folder, dev_folder):
    assert "guidance-distilled" in refused(schnell(dev_folder))
    assert "not guided" in refused(
        Profile(variant="dev", model=str(folder), dino_mode="off").resolved()
    )
    said = refused(Profile(variant="nano", model=str(folder)).resolved())
    assert "expects 4" in said or "channels" in said


def test_a_folder_of_something_else_is_refused(folder, tmp_path):
    assert "config.json cannot be read" in refused(schnell(tmp_path))
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    assert "is a UNet2DConditionModel" in refused(schnell(tmp_path))


def test_shapes_are_read_off_the_file(files):
    config, _ = layouts.transformer(weights.open_files(files["model"]), files["model"])
    assert (config["num_layers"], config["num_single_layers"]) == (2, 2)
    assert (config["attention_head_dim"], config["num_attention_heads"]) == (32, 2)
    assert np.sum(config["axes_dims_rope"]) == 32
