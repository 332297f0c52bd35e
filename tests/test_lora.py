"""LoRA files in every naming, alone and together, against W + scale * alpha / r * B A."""

import json

import checkpoints
import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.engine import loading, memory, open_engine, silent
from fluxwatchd.engine.projector import Projector
from fluxwatchd.errors import ConfigError
from fluxwatchd.imageio import Picture

INNER, RANK = 64, 4
QKV, SINGLE = "double_blocks.1.img_attn.qkv", "single_blocks.0.linear1"


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    """Compute in float32, also on a CPU with matrix units for bfloat16."""
    monkeypatch.setattr(memory, "dtype_for", lambda device: torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.diffusers_folder(tmp_path_factory.mktemp("schnell"))


@pytest.fixture(scope="module")
def plain():
    """The weights without any LoRA, in both namings."""
    state = tiny.flux().state_dict()
    return {**state, **checkpoints.to_bfl(state)}


def profile(folder, *loras, **more):
    given = [{"path": str(path), "scale": scale} for path, scale in loras]
    base = {"variant": "schnell", "model": str(folder), "dino_mode": "off", "steps": 2}
    return Profile.model_validate({**base, "lora": tuple(given), **more}).resolved()


def load(folder, *loras, **more):
    settings = EngineSettings(device="cpu", **more)
    return loading.load(profile(folder, *loras), settings, "cpu", None, silent)


def pair(shape, seed=0, rank=RANK):
    """B (out, r) and A (r, in)."""
    torch.manual_seed(seed)
    return torch.randn(shape[0], rank), torch.randn(rank, shape[1])


def changed(model, plain):
    """What was added to which weight, by Black Forest Labs' names."""
    found = checkpoints.to_bfl(model.transformer.state_dict())
    deltas = {key: tensor - plain[key] for key, tensor in found.items()}
    return {key: delta for key, delta in deltas.items() if delta.abs().max() > 0}


def kohya(up, down):
    flat = QKV.replace(".", "_")
    return {
        f"lora_unet_{flat}.lora_up.weight": up,
        f"lora_unet_{flat}.lora_down.weight": down,
        f"lora_unet_{flat}.alpha": torch.tensor(2.0),
    }


def dotted(up, down):
    return {
        f"diffusion_model.{QKV}.lora_B.weight": up,
        f"diffusion_model.{QKV}.lora_A.weight": down,
        f"diffusion_model.{QKV}.alpha": torch.tensor(2.0),
    }


def x_flux(up, down):
    start = "double_blocks.1.processor.qkv_lora1"
    return {f"{start}.up.weight": up, f"{start}.down.weight": down}


@pytest.mark.parametrize(("names", "alpha"), [(kohya, 2.0), (dotted, 2.0), (x_flux, RANK)])
def test_black_forest_labs_layers_in_three_namings(folder, plain, tmp_path, names, alpha):
    up, down = pair((3 * INNER, INNER))
    save_file(names(up, down), tmp_path / "l.safetensors")
    model = load(folder, (tmp_path / "l.safetensors", 0.5))
    (name, delta), *others = changed(model, plain).items()
    assert (name, others) == (f"{QKV}.weight", [])
    assert torch.allclose(delta, 0.5 * alpha / RANK * up @ down, atol=1e-6)
    assert model.checkpoint.files["lora/l.safetensors"].startswith("sha256:")


@pytest.mark.parametrize("prefix", ["transformer.", "base_model.model.", "lora_transformer_", ""])
def test_diffusers_layers_with_any_prefix(folder, plain, tmp_path, prefix):
    up, down = pair((INNER, INNER))
    layer = "transformer_blocks.0.attn.to_k"
    layer = layer.replace(".", "_") if prefix.endswith("_") else layer
    ends = ("lora_up", "lora_down") if prefix.endswith("_") else ("lora_B", "lora_A")
    state = {f"{prefix}{layer}.{end}.weight": t for end, t in zip(ends, (up, down), strict=True)}
    save_file(state, tmp_path / "l.safetensors")
    (delta,) = changed(load(folder, (tmp_path / "l.safetensors", -1.5)), plain).values()
    assert torch.allclose(delta[INNER : 2 * INNER], -1.5 * up @ down, atol=1e-6)
    assert (delta[:INNER] == 0).all() and (delta[2 * INNER :] == 0).all()


def test_a_fused_layer_of_a_single_block_is_shared_out(folder, plain, tmp_path):
    up, down = pair((7 * INNER, INNER))
    state = {f"{SINGLE}.lora_B.weight": up, f"{SINGLE}.lora_A.weight": down}
    qkv = pair((3 * INNER, INNER), 1)
    start = "single_blocks.1.processor.qkv_lora"
    state |= {f"{start}.up.weight": qkv[0], f"{start}.down.weight": qkv[1]}
    last = pair((2 * INNER, INNER), 2)
    name = "final_layer.adaLN_modulation.1"
    state |= {f"{name}.lora_B.weight": last[0], f"{name}.lora_A.weight": last[1]}
    save_file(state, tmp_path / "l.safetensors")
    found = changed(load(folder, (tmp_path / "l.safetensors", 1.0)), plain)
    assert torch.allclose(found[f"{SINGLE}.weight"], up @ down, atol=1e-5)
    other = found["single_blocks.1.linear1.weight"]
    assert torch.allclose(other[: 3 * INNER], qkv[0] @ qkv[1], atol=1e-5)
    assert (other[3 * INNER :] == 0).all()
    assert torch.allclose(found[f"{name}.weight"], last[0] @ last[1], atol=1e-5)


def test_several_add_up_and_each_is_in_the_record(folder, plain, tmp_path):
    ups, downs = zip(*(pair((3 * INNER, INNER), seed) for seed in (0, 1)), strict=True)
    for i, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        save_file(x_flux(ups[i], downs[i]), tmp_path / name / "l.safetensors")
    model = load(folder, (tmp_path / "a" / "l.safetensors", 1.0), (tmp_path / "b", 0.25))
    (delta,) = changed(model, plain).values()
    assert torch.allclose(delta, ups[0] @ downs[0] + 0.25 * ups[1] @ downs[1], atol=1e-5)
    assert {"lora/l.safetensors", "lora/l.safetensors (2)"} <= model.checkpoint.files.keys()


@pytest.mark.parametrize("where", ["metadata", "beside"])
def test_pefts_settings_are_heeded(folder, plain, tmp_path, where):
    up, down = pair((INNER, INNER))
    layers = [f"transformer_blocks.{i}.attn.to_q" for i in (0, 1)]
    prefix = "transformer." if where == "metadata" else "base_model.model."
    state = {}
    for layer in layers:
        state |= {f"{prefix}{layer}.lora_B.weight": up, f"{prefix}{layer}.lora_A.weight": down}
    said = {"r": RANK, "lora_alpha": 8, "alpha_pattern": {r"transformer_blocks.1.attn.to_q": 2}}
    metadata = None
    if where == "metadata":
        given = {f"transformer.{key}": value for key, value in said.items()}
        metadata = {"lora_adapter_metadata": json.dumps(given)}
    else:
        (tmp_path / "adapter_config.json").write_text(json.dumps({**said, "use_rslora": True}))
    save_file({k: t.contiguous().clone() for k, t in state.items()}, tmp_path / "l.safetensors",
              metadata=metadata)  # fmt: skip
    found = changed(load(folder, (tmp_path / "l.safetensors", 1.0)), plain)
    root = RANK if where == "metadata" else RANK**0.5
    for i, alpha in ((0, 8), (1, 2)):
        delta = found[f"double_blocks.{i}.img_attn.qkv.weight"][:INNER]
        assert torch.allclose(delta, alpha / root * up @ down, atol=1e-5)


def test_a_lora_is_added_before_weights_become_float8_or_are_streamed(folder, tmp_path):
    up, down = pair((3 * INNER, INNER))
    save_file(x_flux(up, down), tmp_path / "l.safetensors")
    given = (tmp_path / "l.safetensors", 0.1)
    picture = Picture(tiny.photo(16, 16))
    results = {}
    for plan in ("resident", "stream", "sequential", "fp8"):
        with open_engine(EngineSettings(device="cpu", memory=plan)) as engine:
            done = engine.upscale(picture, profile(folder, given, strength=1.0), 1)
            results[plan] = done.picture.pixels
            assert done.checkpoint.plan == plan
    assert (results["stream"] == results["resident"]).all()
    assert (results["sequential"] == results["resident"]).all()
    assert 0 < np.abs(results["fp8"] - results["resident"]).max() < 0.1


def test_a_text_encoders_part_is_told_and_not_applied(folder, plain, tmp_path):
    state = x_flux(*pair((3 * INNER, INNER)))
    state["lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"] = torch.zeros(2, 2)
    save_file(state, tmp_path / "l.safetensors")
    with open_engine(EngineSettings(device="cpu")) as engine:
        done = engine.upscale(
            Picture(tiny.photo(8, 8)), profile(folder, (tmp_path / "l.safetensors", 1.0)), 1
        )
    assert any("text encoder's part of l.safetensors is not applied" in n for n in done.notes)


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({"lora_unet_input_blocks_1.lora_up.weight": (2, 2),
          "lora_unet_input_blocks_1.lora_down.weight": (2, 2)}, "has no layer input_blocks_1"),
        ({f"{QKV}.lora_A.weight": (4, 64)}, "a half of"),
        ({f"{QKV}.lora_A.weight": (4, 96), f"{QKV}.lora_B.weight": (192, 4)}, "has shape"),
        ({f"{QKV}.lora_A.weight": (4, 64), f"{QKV}.lora_B.weight": (100, 4)}, "has shape"),
        ({f"{QKV}.lokr_w1": (4, 64)}, "only plain LoRA"),
        ({"transformer.x.lora_magnitude_vector": (4,)}, "only plain LoRA"),
        ({"lora_te1_x.lora_up.weight": (2, 2)}, "no layer of a transformer"),
        ({"double_blocks.0.img_attn.qkv.weight": (192, 64)}, "is a FLUX.1 transformer"),
    ],
)  # fmt: skip
def test_what_fits_no_layer_is_refused(folder, tmp_path, state, why):
    save_file({k: torch.zeros(shape) for k, shape in state.items()}, tmp_path / "l.safetensors")
    with pytest.raises(ConfigError, match=why) as raised:
        load(folder, (tmp_path / "l.safetensors", 1.0))
    assert "l.safetensors" in str(raised.value) and raised.value.hint


@pytest.mark.parametrize("name", ["l.pt", "l.ckpt", "l.bin"])
def test_a_pickle_is_refused(folder, tmp_path, name):
    (tmp_path / name).write_bytes(b"never read")
    with pytest.raises(ConfigError, match="pickle"):
        load(folder, (tmp_path / name, 1.0))


def test_a_folder_with_two_files_is_refused(folder, tmp_path):
    for name in ("a", "b"):
        save_file({"x": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ConfigError, match=r"a\.safetensors, b\.safetensors"):
        load(folder, (tmp_path, 1.0))
    with pytest.raises(ConfigError, match="does not exist"):
        load(folder, (tmp_path / "nothing.safetensors", 1.0))


# --- a DINO adapter's -----------------------------------------------------------------------


@pytest.fixture
def eyes(tmp_path):
    """An encoder, an adapter without a LoRA, and the same adapter with one."""
    encoder, adapter = tiny.dino(tmp_path, model="schnell", width=tiny.WIDTH)
    up, down = pair((INNER, INNER))
    layer = "transformer_blocks.0.attn.to_q"
    projector = Projector.load(adapter)
    lora = {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
    projector.save(tmp_path / "with" / "adapter.safetensors", lora)
    return {"dino_encoder": str(encoder)}, adapter, tmp_path / "with", (layer, up @ down)


def test_an_adapters_lora_counts_as_much_as_its_tokens(folder, eyes, tmp_path):
    given, without, adapter, (layer, delta) = eyes
    fused = tiny.diffusers_folder(tmp_path / "fused")
    weights = fused / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state[f"{layer}.weight"] = state[f"{layer}.weight"] + 0.5 * delta.half().float()
    save_file(state, weights)

    def run(model, adapter, **more):
        asked = {"dino_mode": "tokens", "dino_adapter": str(adapter), "strength": 1.0, **given}
        with open_engine(EngineSettings(device="cpu")) as engine:
            done = engine.upscale(
                Picture(tiny.photo(16, 16)), profile(model, **{**asked, **more}), 1
            )
        return done.picture.pixels

    half = run(folder, adapter, dino_strength=0.5)
    assert np.abs(half - run(fused, without, dino_strength=0.5)).max() < 1e-3
    assert np.abs(half - run(folder, without, dino_strength=0.5)).max() > 1e-3
    nothing = run(folder, adapter, dino_strength=0.0, dino_mode="auto")
    assert (nothing == run(folder, without, dino_strength=0.0, dino_mode="auto")).all()
    guided = {"dino_mode": "guide", "dino_strength": 0.5, "strength": 0.5}
    assert (run(folder, adapter, **guided) == run(folder, without, **guided)).all()


def test_an_adapters_lora_that_fits_no_layer_is_refused(folder, eyes):
    given, _, adapter, _ = eyes
    file = adapter / "adapter.safetensors"
    projector = Projector.load(file)
    for name, shape in (("nowhere", INNER), ("transformer_blocks.0.attn.to_q", 96)):
        lora = {f"{name}.lora_A.weight": torch.zeros(2, shape),
                f"{name}.lora_B.weight": torch.zeros(INNER, 2)}  # fmt: skip
        projector.save(file, lora)
        asked = profile(folder, dino_mode="tokens", dino_adapter=str(adapter), **given)
        with pytest.raises(ConfigError, match="has a LoRA for"):
            loading.load(asked, EngineSettings(device="cpu"), "cpu", None, silent)
