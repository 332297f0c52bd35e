"""DINO that was asked for is there or refused, by name and with what to do, before a picture is."""

from __future__ import annotations

import json

import pytest
import tiny
from house import House
from huggingface_hub import constants

from fluxwatchd.cli import run
from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.engine import eyeplaces, hub, loading, places, silent
from fluxwatchd.errors import ConfigError

CPU = EngineSettings(device="cpu")


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """Nothing of the hub is cached, and nothing can be fetched."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    """A tiny FLUX.1's folder."""
    return tiny.diffusers_folder(tmp_path_factory.mktemp("flux"))


def schnell(flux, **more):
    return Profile(variant="schnell", model=str(flux), steps=1, **more).resolved()


def cached(tmp_path, name):
    """The folder of a repository in the cache; what is put there counts as fetched."""
    place = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("abc")
    (place / "snapshots").mkdir()
    return place / "snapshots" / "abc"


# --- an encoder that is not there -----------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"dino_mode": "guide"},
        {"dino_strength": 0.0, "dino_adapter": "adapter.safetensors"},
        {"dino_strength": 0.0, "dino_encoder": "facebook/dinov2-base"},
    ],
    ids=["auto", "guide", "an adapter", "an encoder"],
)
def test_dino_that_is_asked_for_is_never_left_out_in_silence(flux, asked):
    with pytest.raises(ConfigError, match="the DINO encoder is not to be had") as raised:
        loading.load(schnell(flux, **asked), CPU, "cpu", None, silent)
    for way_out in ("hf download facebook/dinov2-base", "dino_encoder", 'dino_mode = "off"'):
        assert way_out in raised.value.hint


@pytest.mark.parametrize("off", [{"dino_mode": "off"}, {"dino_strength": 0.0}])
def test_without_dino_a_model_runs_without_its_encoder_and_says_why(flux, off):
    model = loading.load(schnell(flux, **off), CPU, "cpu", None, silent)
    assert model.encoder is None
    assert model.dino_reason == "DINO is off and facebook/dinov2-base was not fetched"


def test_check_tells_what_will_be_fetched_and_what_cannot_be(flux, tmp_path, monkeypatch, capsys):
    config = tmp_path / "config.toml"
    text = f'[[folder]]\ninbox = "in"\noutbox = "out"\nvariant = "schnell"\nmodel = "{flux}"\n'
    config.write_text(f'{text}[engine]\ndevice = "cpu"\n')
    for command in ("check", "doctor"):
        assert run([command, "--config", str(config)]) == 78
        said = "".join(capsys.readouterr())
        assert "the DINO encoder is not to be had" in said and "HF_HUB_OFFLINE is set" in said
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert run(["check", "--config", str(config)]) == 0
    said = capsys.readouterr().err
    assert "facebook/dinov2-base" in said and "will be fetched at start" in said


# --- what does not fit ----------------------------------------------------------------------


def wrong(kind, root):
    """A profile of nano with something wrong about its DINO, and the words that say what."""
    encoder, adapter = tiny.dino(root)
    keys = {"dino_encoder": str(encoder), "dino_adapter": str(adapter)}
    if kind == "no encoder":
        return {"dino_encoder": str(root)}, "config.json tells no model"
    if kind == "another model":
        (encoder / "config.json").write_text('{"model_type": "bert"}')
        return keys, "is a bert model, not DINOv2"
    if kind == "no weights":
        (encoder / "model.safetensors").unlink()
        return keys, "has no .safetensors file"
    if kind == "tokens without an adapter":
        keys = {"dino_encoder": str(encoder), "dino_mode": "tokens", "dino_strength": 0.5}
        return keys, "no trained adapter for nano"
    if kind == "no adapter":
        file = encoder / "model.safetensors"
        return {**keys, "dino_adapter": str(file)}, "is no DINO adapter"
    if kind == "an adapter for a wider model":
        tiny.dino(root / "other", width=4096)
        return {**keys, "dino_adapter": str(root / "other" / "adapter")}, "width of the text states"
    if kind == "an adapter for another model":
        tiny.dino(root / "other", model="dev")
        return {**keys, "dino_adapter": str(root / "other" / "adapter")}, "made for model dev"
    config = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps({**config, "hidden_size": 48}))
    return keys, "made for encoder width 32, but this is 48"


KINDS = (
    "no encoder", "another model", "no weights", "tokens without an adapter",
    "no adapter", "an adapter for a wider model", "an adapter for another model",
    "an adapter for another encoder",
)  # fmt: skip


def lines(keys):
    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in keys.items())


@pytest.mark.parametrize("kind", KINDS)
def test_check_tells_what_does_not_fit(kind, tmp_path, capsys):
    keys, words = wrong(kind, tmp_path / "dino")
    config = tmp_path / "config.toml"
    config.write_text(f'[[folder]]\ninbox = "in"\noutbox = "out"\n{lines(keys)}\n')
    assert run(["check", "--config", str(config)]) == 78
    said = capsys.readouterr().err
    assert words in said and f"{config}:1: folder.0" in said


@pytest.mark.parametrize(
    "kind", ["tokens without an adapter", "an adapter for a wider model", "no encoder"]
)
def test_the_daemon_refuses_it_with_78_and_leaves_the_inbox(kind, tmp_path):
    keys, words = wrong(kind, tmp_path / "dino")
    house = House(tmp_path / "house", lines(keys))
    source = house.drop("photo.png")
    house.start()
    try:
        assert house.wait() == 78
    finally:
        house.kill()
    assert words in house.said() and not house.events("ready")
    assert source.exists()


def test_another_encoder_of_the_same_shape_is_found_out_by_its_weights(tmp_path):
    tiny.dino(tmp_path / "one")
    other, _ = tiny.dino(tmp_path / "other", seed=5)
    keys = {"dino_encoder": str(other), "dino_adapter": str(tmp_path / "one" / "adapter")}
    profile = Profile(dino_strength=0.5, **keys).resolved()
    assert places.survey(profile, CPU).eyes.encoder == other
    with pytest.raises(ConfigError, match="made for DINO encoder tiny"):
        loading.load(profile, CPU, "cpu", None, silent)


# --- what fits ------------------------------------------------------------------------------


def test_encoder_and_adapter_may_be_hub_ids(tmp_path):
    encoder, adapter = tiny.dino(tmp_path / "made")
    encoder.rename(cached(tmp_path, "ada/eyes"))
    adapter.rename(cached(tmp_path, "ada/adapter"))
    profile = Profile(
        dino_encoder="ada/eyes", dino_adapter="ada/adapter", dino_strength=0.5
    ).resolved()
    for fetch in (hub.only_cached, hub.fetch):
        eyes = places.survey(profile, CPU, fetch).eyes
        assert eyes.adapter is not None and eyes.adapter.name == eyeplaces.ADAPTER_FILE
        assert eyes.name == "ada/eyes"
    model = loading.load(profile, CPU, "cpu", None, silent)
    assert model.projector is not None
    assert model.encoder_name is not None and model.encoder_name.startswith("ada/eyes sha256:")


def test_an_adapter_is_not_even_looked_for_where_dino_is_off(tmp_path):
    profile = Profile(dino_mode="off", dino_adapter=str(tmp_path / "gone.safetensors")).resolved()
    assert places.survey(profile, CPU).eyes.adapter is None
