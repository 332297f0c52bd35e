"""Every layout of FLUX.1 loads to equal weights; what does not fit is refused by what it is."""

import json
import shutil

import checkpoints
import gguf
import numpy as np
import pytest
import tiny
import torch
import transformers
from safetensors.torch import load_file, save_file

from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.engine import comfy, contents, loading, memory, open_engine, silent, weights
from fluxwatchd.errors import ConfigError
from fluxwatchd.imageio import Picture


def schnell(model, **more):
    given = {"variant": "schnell", "model": str(model), "dino_mode": "off", "steps": 2}
    return Profile(**{**given, **more}).resolved()


def load(profile, **engine):
    settings = EngineSettings(device="cpu", **{k: str(v) for k, v in engine.items()})
    return loading.load(profile, settings, "cpu", None, silent)


def refused(profile, **engine):
    with pytest.raises(ConfigError) as raised:
        load(profile, **engine)
    assert raised.value.hint
    return str(raised.value)


def equal(module, wanted):
    found = module.state_dict()
    assert found.keys() == wanted.keys()
    return all(torch.equal(t, wanted[key].to(t.dtype)) for key, t in found.items())


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    """Compute in float32, also on a CPU with matrix units for bfloat16."""
    monkeypatch.setattr(memory, "dtype_for", lambda device: torch.float32)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return checkpoints.comfy_root(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def parts(root):
    """The parts beside a transformer, as settings."""
    return {
        "vae": root / "vae" / "ae.safetensors",
        "clip": root / "clip" / "clip_l.safetensors",
        "t5": root / "clip" / "t5xxl_fp16.safetensors",
    }


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """The text states of the empty prompt by transformers itself, and CLIP's pooled one."""
    ids = torch.tensor([[49406] + [49407] * 76])
    with torch.no_grad():
        return tiny.t5()(torch.tensor([[1] + [0] * 255]))[0], tiny.clip()(ids).pooler_output


# --- ComfyUI --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transformers", "encoders"),
    [("unet", "clip"), ("diffusion_models", "text_encoders"), ("checkpoints", "clip")],
)
def test_a_comfyui_folder_loads_as_a_whole(tmp_path, states, transformers, encoders):
    root = checkpoints.comfy_root(tmp_path, transformers=transformers, encoders=encoders)
    model = load(schnell(root))
    assert equal(model.transformer, tiny.flux().state_dict())
    assert equal(model.vae.module, tiny.vae().state_dict())
    assert (model.vae.scale, model.vae.shift) == (0.3611, 0.1159)
    text = model.text("")
    assert (text.states - states[0]).abs().max() < 1e-5 * states[0].abs().max()
    assert (text.pooled - states[1]).abs().max() < 1e-5
    assert model.checkpoint.files.keys() == {"transformer", "vae", "clip", "t5"}


def test_the_other_variant_of_the_same_folder_is_found_too(root):
    model = load(Profile(variant="dev", model=str(root), dino_mode="off").resolved())
    assert equal(model.transformer, tiny.flux(guidance=True).state_dict())


def test_a_file_in_a_comfyui_folder_finds_its_parts_beside_it(root):
    model = load(schnell(root / "unet" / "flux1-schnell.safetensors"))
    assert equal(model.vae.module, tiny.vae().state_dict())


def test_a_comfyui_folder_without_a_part_says_which_and_where(tmp_path, root):
    for missing, role in (("vae/ae", "vae"), ("clip/clip_l", "clip"), ("clip/t5xxl_fp16", "t5")):
        copy = tmp_path / role
        shutil.copytree(root, copy)
        (copy / f"{missing}.safetensors").unlink()
        said = refused(schnell(copy))
        assert "is missing in" in said and str(copy) in said
    (copy / "unet" / "flux1-schnell.safetensors").unlink()
    assert "has no FLUX.1 schnell transformer in unet/" in refused(schnell(copy))


def test_parts_by_unusual_names_are_told_by_what_they_are(tmp_path, root):
    copy = tmp_path / "models"
    shutil.copytree(root, copy)
    (copy / "unet" / "flux1-schnell.safetensors").rename(copy / "unet" / "mine.safetensors")
    (copy / "vae" / "ae.safetensors").rename(copy / "vae" / "flux-vae.safetensors")
    (copy / "clip" / "t5xxl_fp16.safetensors").rename(copy / "clip" / "t5.safetensors")
    assert equal(load(schnell(copy)).transformer, tiny.flux().state_dict())
    shutil.copy(copy / "unet" / "mine.safetensors", copy / "checkpoints" / "copy.safetensors")
    said = refused(schnell(copy))
    assert "several transformers" in said and "unet/mine.safetensors" in said


def test_an_all_in_one_checkpoint_needs_nothing_else(tmp_path, states):
    path = checkpoints.all_in_one(tmp_path / "flux1-schnell-all.safetensors")
    model = load(schnell(path))
    assert equal(model.transformer, tiny.flux().state_dict())
    assert equal(model.vae.module, tiny.vae().state_dict())
    assert (model.text("").states - states[0]).abs().max() < 1e-5 * states[0].abs().max()
    assert model.checkpoint.files.keys() == {"transformer"}


# --- precisions -----------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", checkpoints.PREFIX, "diffusion_model."])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_black_forest_labs_names_in_any_precision(tmp_path, parts, prefix, dtype):
    path = checkpoints.bfl(tmp_path / "flux.safetensors", prefix=prefix, dtype=dtype)
    wanted = {key: t.to(dtype).float() for key, t in tiny.flux().state_dict().items()}
    assert equal(load(schnell(path), **parts).transformer, wanted)


@pytest.mark.parametrize("names", ["scale_weight", "weight_scale"])
def test_scaled_float8_is_multiplied_by_its_scales(tmp_path, parts, names):
    state, true = checkpoints.scaled_fp8(checkpoints.to_bfl(tiny.flux().state_dict()))
    state = {key.replace("scale_weight", names): tensor for key, tensor in state.items()}
    save_file({checkpoints.PREFIX + key: t for key, t in state.items()}, tmp_path / "f.safetensors")
    found = load(schnell(tmp_path / "f.safetensors"), **parts).transformer
    theirs = checkpoints.to_bfl(found.state_dict())
    assert all(torch.equal(tensor, true[key]) for key, tensor in theirs.items())
    assert (tiny.flux().state_dict()["proj_out.weight"] == found.proj_out.weight).all()


def test_a_scale_for_every_row_is_known_too(tmp_path):
    wide = torch.randn(6, 4)
    scale = wide.abs().amax(1) / 448
    narrow = (wide / scale[:, None]).to(torch.float8_e4m3fn)
    save_file({"a.weight": narrow, "a.weight_scale": scale}, tmp_path / "f.safetensors")
    (weight,) = weights.open_files(tmp_path / "f.safetensors").values()
    assert torch.equal(weight.read(), narrow.float() * scale[:, None])
    assert torch.equal(weight.part(2, 5).read(), (narrow.float() * scale[:, None])[2:5])


def test_t5_in_float8_gives_the_states_of_its_values(tmp_path, parts, root):
    state = {key: t.to(torch.float8_e4m3fn) for key, t in checkpoints.t5_state().items()}
    save_file(state, tmp_path / "t5xxl_fp8_e4m3fn.safetensors")
    given = {**parts, "t5": tmp_path / "t5xxl_fp8_e4m3fn.safetensors"}
    text = load(schnell(root / "unet" / "flux1-schnell.safetensors"), **given).text("")
    theirs = tiny.t5()
    theirs.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
    with torch.no_grad():
        wanted = theirs(torch.tensor([[1] + [0] * 255]))[0]
    assert (text.states - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "BF16", "F16"])
def test_gguf_loads_to_the_values_that_are_in_it(tmp_path, parts, kind):
    state = checkpoints.to_bfl(tiny.flux(heads=8).state_dict())
    path = tmp_path / f"flux-{kind}.gguf"
    true = checkpoints.gguf_file(path, state, gguf.GGMLQuantizationType[kind])
    model = load(schnell(path), **parts)
    found = checkpoints.to_bfl(model.transformer.state_dict())
    assert all(torch.equal(tensor, true[key]) for key, tensor in found.items())
    assert model.checkpoint.files["transformer"].startswith("sha256:")
    if kind == "Q8_0":
        far = max((true[key] - tensor).abs().max() for key, tensor in state.items())
        assert 0 < far < 0.01


def test_a_picture_is_upscaled_with_a_gguf_transformer(tmp_path, parts):
    state = checkpoints.to_bfl(tiny.flux(heads=8).state_dict())
    checkpoints.gguf_file(tmp_path / "q.gguf", state, gguf.GGMLQuantizationType.Q4_0)
    settings = EngineSettings(device="cpu", **{k: str(v) for k, v in parts.items()})
    with open_engine(settings) as engine:
        done = engine.upscale(Picture(tiny.photo(20, 30)), schnell(tmp_path / "q.gguf"), 3)
    assert done.picture.pixels.shape == (40, 60, 3)


# --- what is refused ------------------------------------------------------------------------

OTHERS = {
    "a LoRA": {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (2, 2)},
    "an SDXL checkpoint": {
        "model.diffusion_model.input_blocks.0.0.weight": (2, 2),
        "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight": (2, 2),
    },
    "a Stable Diffusion checkpoint": {"model.diffusion_model.input_blocks.0.0.weight": (2, 2)},
    "FLUX.2": {
        "double_stream_modulation_img.lin.weight": (2, 2),
        "double_blocks.0.img_attn.qkv.weight": (2, 2),
    },
    "a T5 text encoder": {"encoder.block.0.layer.0.SelfAttention.q.weight": (2, 2)},
    "a CLIP text encoder": {"text_model.embeddings.token_embedding.weight": (2, 2)},
    "an autoencoder": {"decoder.conv_in.weight": (8, 16, 3, 3)},
    "quantised by bitsandbytes": {"a.weight.quant_state.bitsandbytes__nf4": (2,)},
    "Chroma": {"distilled_guidance_layer.norms.0.scale": (2,)},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_file_as_the_transformer_is_refused_by_what_it_is(tmp_path, parts, kind):
    save_file({k: torch.zeros(s) for k, s in OTHERS[kind].items()}, tmp_path / "x.safetensors")
    said = refused(schnell(tmp_path / "x.safetensors"), **parts)
    assert f"is not a FLUX.1 transformer: it is {kind}" in said


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"PK\x03\x04" + bytes(40), "zip archive"),
        (b"\x80\x02}q" + bytes(40), "pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<!doctype html>" + bytes(20), "web page"),
        (b"", "empty"),
        (b"GGUF" + bytes(60), "GGUF file by another name"),
        (bytes(60), "truncated"),
    ],
)
def test_a_mislabelled_file_is_refused_by_what_it_is(tmp_path, parts, content, why):
    (tmp_path / "flux.safetensors").write_bytes(content)
    said = refused(schnell(tmp_path / "flux.safetensors"), **parts)
    assert why in said and "flux.safetensors" in said


@pytest.mark.parametrize("suffix", [".safetensors", ".gguf"])
def test_a_truncated_file_says_so(tmp_path, parts, suffix):
    path = tmp_path / f"flux{suffix}"
    if suffix == ".gguf":
        state = checkpoints.to_bfl(tiny.flux(heads=8).state_dict())
        checkpoints.gguf_file(path, state, gguf.GGMLQuantizationType.Q8_0)
    else:
        checkpoints.bfl(path)
    path.write_bytes(path.read_bytes()[:-5000])
    assert "truncated" in refused(schnell(path), **parts)


def test_a_gguf_file_that_is_none_is_refused(tmp_path, parts):
    checkpoints.bfl(tmp_path / "flux.safetensors").rename(tmp_path / "flux.gguf")
    assert "is no GGUF file" in refused(schnell(tmp_path / "flux.gguf"), **parts)


def test_gguf_without_its_package_says_how_to_get_it(tmp_path, parts, monkeypatch):
    (tmp_path / "flux.gguf").write_bytes(b"GGUF" + bytes(60))
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)  # as if it were not installed
    with pytest.raises(ConfigError, match="not installed") as raised:
        load(schnell(tmp_path / "flux.gguf"), **parts)
    assert "pip install" in raised.value.hint


def test_an_index_whose_shard_is_missing_names_it(tmp_path):
    folder = tiny.diffusers_folder(tmp_path)
    whole = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(whole)
    halves = [dict(list(state.items())[::2]), dict(list(state.items())[1::2])]
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {key: name for half, name in zip(halves, names, strict=True) for key in half}
    whole.with_name(f"{whole.name}.index.json").write_text(json.dumps({"weight_map": index}))
    for half, name in zip(halves, names, strict=True):
        save_file(half, whole.with_name(name))
    whole.unlink()
    model = load(schnell(folder))
    assert equal(model.transformer, tiny.flux().state_dict())
    assert {f"transformer/{name}" for name in names} <= model.checkpoint.files.keys()
    whole.with_name(names[1]).unlink()
    said = refused(schnell(folder))
    assert f"lacks {names[1]}" in said


@pytest.mark.parametrize("part", ["vae", "text_encoder", "text_encoder_2"])
def test_a_part_that_is_missing_is_named_before_anything_is_loaded(tmp_path, part):
    folder = tiny.diffusers_folder(tmp_path)
    shutil.rmtree(folder / part)
    assert f"{folder / part} is missing" in refused(schnell(folder))


def test_parts_of_another_size_are_refused(tmp_path, parts, root):
    path = root / "unet" / "flux1-schnell.safetensors"
    said = refused(schnell(path), **{**parts, "vae": root / "vae" / "sdxl.safetensors"})
    assert "sdxl.safetensors is the autoencoder of another model" in said
    wide = {key: torch.cat([t, t], -1) if "embed" in key else t
            for key, t in checkpoints.clip_state().items()}  # fmt: skip
    save_file(wide, tmp_path / "clip_g.safetensors")
    given = {**parts, "clip": tmp_path / "clip_g.safetensors"}
    assert "clip_g.safetensors" in refused(schnell(path), **given)
    transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=128, d_model=32, d_ff=64, d_kv=16, num_heads=2, num_layers=1,
            feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False,
        )
    ).save_pretrained(tmp_path / "t5")  # fmt: skip
    said = refused(schnell(path), **{**parts, "t5": tmp_path / "t5"})
    assert "makes states of width 32, the transformer takes 64" in said


def test_flux_fill_is_refused_before_it_is_read(tmp_path, parts, monkeypatch):
    state = checkpoints.to_bfl(tiny.flux().state_dict())
    state["img_in.weight"] = torch.zeros(64, 384)  # its mask and source are input channels too
    save_file(state, tmp_path / "flux1-fill.safetensors")
    monkeypatch.setattr(loading, "build", None)
    said = refused(schnell(tmp_path / "flux1-fill.safetensors"), **parts)
    assert "takes 384 channels" in said


def test_shapes_in_a_file_are_told_without_reading_it(tmp_path):
    held = contents.read(checkpoints.bfl(tmp_path / "f.safetensors", guidance=True))
    assert (held.kind, held.guided, held.whole) == ("a FLUX.1 transformer", True, False)
    assert held.shapes["img_in.weight"] == (64, 64)
    assert contents.read(checkpoints.all_in_one(tmp_path / "all.safetensors")).whole


def test_a_file_that_is_replaced_after_loading_changes_nothing(tmp_path, parts):
    path = checkpoints.bfl(tmp_path / "flux.safetensors")
    model = load(schnell(path), **parts)
    with path.open("r+b") as stream:
        stream.seek(-4096, 2)
        stream.write(np.random.default_rng(0).bytes(4096))
    assert equal(model.transformer, tiny.flux().state_dict())


def test_a_diffusers_folder_is_no_comfyui_folder(tmp_path):
    assert not comfy.is_root(tiny.diffusers_folder(tmp_path))
