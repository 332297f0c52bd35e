"""The training programs, run for real at toy size; and what came of them at full size."""

import dataclasses
import hashlib
import io
import re
from pathlib import Path

import diffusers
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import fluxwatchd
from fluxwatchd.bench.judge import Judge
from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.engine import color, open_engine
from fluxwatchd.engine.backprojection import FIRM, project_back
from fluxwatchd.engine.dino import DinoEncoder
from fluxwatchd.engine.fp8 import Float8Linear
from fluxwatchd.engine.projector import Projector, load_lora
from fluxwatchd.errors import ConfigError
from fluxwatchd.imageio import Picture
from fluxwatchd.training import (
    adapter,
    common,
    data,
    dino,
    finish,
    judged,
    looks,
    nano,
    nano_adapter,
)

CPU = torch.device("cpu")
NANO = Path(fluxwatchd.__file__).parent / "models" / "nano"


@pytest.fixture(autouse=True)
def quiet():
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for seed in range(4):
        pixels = (tiny.photo(420, 460, seed=seed) * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    return folder


def photo(height=64, width=80):
    return torch.from_numpy(tiny.photo(height, width)).permute(2, 0, 1)[None]


def as_image(rgb):
    return Image.fromarray((rgb[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))


def psnr(a, b):
    return float(-10 * (a - b).square().mean().log10())


# --- data -----------------------------------------------------------------------------------


@pytest.mark.parametrize("quality", [60, 75, 95])
def test_our_jpeg_does_what_libjpeg_does(quality):
    rgb = data.to_bytes(photo())
    coded = io.BytesIO()
    as_image(rgb).save(coded, "jpeg", quality=quality)
    theirs = torch.from_numpy(np.array(Image.open(coded))).permute(2, 0, 1)[None] / 255
    ours = data.jpeg(rgb, torch.tensor([float(quality)]))
    assert abs(psnr(ours, rgb) - psnr(theirs, rgb)) < 0.6
    assert psnr(ours, theirs) > psnr(theirs, rgb) + 3


def test_clean_shrinking_and_the_base_are_pillows_to_the_byte_or_nearly():
    rgb = data.to_bytes(photo(64, 80))
    small = as_image(rgb).resize((20, 16), Image.Resampling.BICUBIC)
    assert (
        psnr(data.shrink(rgb, 4.0, 0), torch.from_numpy(np.array(small)).permute(2, 0, 1) / 255)
        > 50
    )
    base = small.resize((80, 64), Image.Resampling.LANCZOS)
    ours = data.enlarge(torch.from_numpy(np.array(small)).permute(2, 0, 1)[None] / 255, (64, 80))
    assert psnr(ours, torch.from_numpy(np.array(base)).permute(2, 0, 1) / 255) > 50


def test_only_the_last_pictures_of_a_batch_are_damaged():
    torch.manual_seed(0)
    rgb = photo().repeat(6, 1, 1, 1)
    small = data.shrink(rgb, 2.0, 2)
    clean = data.shrink(rgb, 2.0, 0)
    assert torch.equal(small[:4], clean[:4])
    assert not torch.equal(small[4:], clean[4:])


def test_crops_are_parts_of_the_pictures(images):
    torch.manual_seed(0)
    pictures = data.Pictures(data.find(images), CPU)
    crops = pictures.crops(8, (32, 48))
    assert crops.shape == (8, 3, 32, 48)
    # a crop that was not mirrored lies somewhere in a picture
    whole = torch.cat([pictures.whole(i) for i in range(4)])
    windows = whole.unfold(2, 32, 1).unfold(3, 48, 1)[:, :, :, :, 0, 0]
    mirrored = torch.cat([crops, crops.flip(3)])[:, :, 0, 0]
    found = [(windows == c[None, :, None, None]).all(1).any() for c in mirrored]
    assert sum(map(bool, found)) >= 8


def test_pictures_too_small_for_a_tile_are_named(images):
    with pytest.raises(ConfigError, match="500x500"):
        data.Pictures(data.find(images), CPU).crops(2, (500, 500))
    with pytest.raises(ConfigError, match="no pictures"):
        data.find(images / "none")


def test_a_step_whose_gradient_is_not_finite_is_left_out():
    weight = torch.nn.Parameter(torch.ones(3))
    optimiser = torch.optim.AdamW([weight], 0.1, fused=True)
    weight.grad = torch.tensor([1.0, float("nan"), 1.0])
    assert float(common.careful_step(optimiser, [weight])) == 1
    assert torch.equal(weight.detach(), torch.ones(3))
    weight.grad = torch.ones(3)
    assert float(common.careful_step(optimiser, [weight])) == 0
    assert (weight.detach() < 1).all()


# --- nano and its encoder -------------------------------------------------------------------

TOY_DINO = {"steps": 2, "batch": 4, "width": 64, "depth": 2, "heads": 1, "regions": 2}
TOY_NANO = {"steps": 2, "batch": 8, "width": 64, "single_blocks": 1, "tile": 64, "warm_up": 2}


@pytest.fixture(scope="module")
def toy(images, tmp_path_factory):
    """An encoder and a nano, trained for two steps each by the programs themselves."""
    folder = tmp_path_factory.mktemp("toy")
    dino.main(dino.DinoOptions(images=images, output=folder / "dino", prototypes=64, **TOY_DINO))
    nano.main(
        nano.NanoOptions(images=images, output=folder / "nano", dino=folder / "dino", **TOY_NANO)
    )
    return folder


def test_train_dino_writes_an_encoder_that_loads(toy):
    encoder = DinoEncoder.load(toy / "dino")
    assert (encoder.patch, encoder.width, encoder.layers) == (8, 64, (1, 2))
    assert '"retrieval_top1"' in (toy / "dino" / "log.jsonl").read_text()


def test_train_nano_writes_what_diffusers_and_the_engine_load(toy):
    vae = diffusers.AutoencoderTiny.from_pretrained(toy / "nano" / "vae")
    assert vae.config.scaling_factor > 0
    transformer = diffusers.FluxTransformer2DModel.from_pretrained(toy / "nano" / "transformer")
    encoder = DinoEncoder.load(toy / "dino")
    width = transformer.config.joint_attention_dim
    projector = Projector.load(toy / "nano" / "dino_adapter")
    projector.check(model="nano", model_width=width, encoder=encoder)


def test_training_goes_on_from_what_was_saved_and_runs_average(toy, images, tmp_path):
    for seed in (1, 2):
        nano.main(
            nano.NanoOptions(
                images=images, output=tmp_path / f"{seed}", resume=toy / "nano", dino=toy / "dino",
                stage="denoiser", seed=seed, rollout_from=0.0, rate=1e-3, **TOY_NANO,
            )
        )  # fmt: skip
    nano.main(
        nano.NanoOptions(
            output=tmp_path / "mean", stage="average", dino=toy / "dino",
            resume=tmp_path / "1", others=str(tmp_path / "2"),
        )
    )  # fmt: skip
    start, one, two, mean = (
        nano.load(f, CPU, toy / "dino").transformer.proj_out.weight
        for f in (toy / "nano", tmp_path / "1", tmp_path / "2", tmp_path / "mean")
    )
    assert not torch.equal(start, one)
    assert torch.allclose((one + two) / 2, mean, atol=1e-3)


def test_the_denoiser_learns(toy, images):
    options = nano.NanoOptions(
        images=images, output=toy / "nano", dino=toy / "dino", resume=toy / "nano", seed=3,
        rate=2e-3, **(TOY_NANO | {"steps": 25, "batch": 4, "tile": 32}),
    )  # fmt: skip
    lines = []
    torch.manual_seed(0)
    pictures = data.Pictures(data.find(images), CPU)
    seen = nano.Losses()
    trained = nano.train_denoiser(options, pictures, lambda **fields: lines.append(fields))
    for model in (nano.load(toy / "nano", CPU, toy / "dino"), trained):
        torch.manual_seed(1)
        common.CHANCE.seed(1)
        batch = nano.make_batch(options, model, pictures, 0)
        with torch.no_grad():
            nano.batch_loss(options, model, batch, rollout=False, seen=seen)
    before, after = (float(loss) for loss in seen.sums["first"])
    assert after < before


class BrokenOff(Exception):
    """A run ends in the midst of a step."""


class Short(data.Pictures):
    """Pictures that break a run off when it asks for crops once more than ``left`` times."""

    left = 0

    def crops(self, *given, **more):
        if self.left == 0:
            raise BrokenOff
        self.left -= 1
        return super().crops(*given, **more)


def test_a_run_that_is_broken_off_goes_on_at_its_step_to_the_same_weights(toy, images, tmp_path):
    def train(folder, pictures, seed, **more):
        options = nano.NanoOptions(
            images=images, output=tmp_path / folder, dino=toy / "dino", resume=toy / "nano",
            stage="denoiser", rate=2e-3, save_every=2, rollout_from=0.5,
            **(TOY_NANO | {"steps": 6, "batch": 4, "tile": 32} | more),
        )  # fmt: skip
        lines = []
        torch.manual_seed(seed)
        common.CHANCE.seed(seed)
        made = nano.train_denoiser(options, pictures, lambda **fields: lines.append(fields))
        return made, lines

    found = data.find(images)
    whole, _ = train("whole", data.Pictures(found, CPU), seed=1)
    # 1. It ends while its sixth step is made: four are saved.
    short = Short(found, CPU)
    short.left = 5
    with pytest.raises(BrokenOff):
        train("broken", short, seed=1)
    # 2. Other options are another schedule.
    with pytest.raises(ConfigError, match="of a run with another steps"):
        train("broken", data.Pictures(found, CPU), seed=2, steps=7)
    # 3. The same command goes on, wherever chance stood.
    again, lines = train("broken", data.Pictures(found, CPU), seed=2)
    assert {"denoiser_goes_on_at": 4} in lines
    for one, two in ((whole.transformer, again.transformer), (whole.vae, again.vae),
                     (whole.projector, again.projector)):  # fmt: skip
        for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
            assert torch.equal(a, b), name


def test_a_stage_that_was_finished_is_not_trained_again(toy, images, tmp_path):
    options = nano.NanoOptions(images=images, output=tmp_path, stage="autoencoder", **TOY_NANO)
    torch.manual_seed(0)
    common.CHANCE.seed(0)
    lines = []
    weights = []
    for _ in range(2):
        nano.train_autoencoder(
            options, data.Pictures(data.find(images), CPU), lambda **f: lines.append(f)
        )
        weights.append((tmp_path / "vae" / "diffusion_pytorch_model.safetensors").read_bytes())
    assert {"autoencoder_goes_on_at": 2} in lines
    assert weights[0] == weights[1]
    # and once all is done, the same command begins anew
    nano.main(options)
    nano.main(options)
    assert not list(tmp_path.glob("*.state.safetensors"))


def test_a_stage_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="everything"):
        nano.main(nano.NanoOptions(output=tmp_path, stage="everything"))


# --- nano's adapter alone -------------------------------------------------------------------


def as_batch(pixels):
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]


def test_finishing_with_a_gradient_gives_the_pipelines_pixels():
    base, result = (tiny.photo(64, 96, seed=seed) for seed in (0, 1))
    small = tiny.photo(16, 24, seed=0)
    learnt = as_batch(result).clone().requires_grad_()
    locked = finish.lock(learnt, as_batch(base))
    ours = finish.project_back(locked, as_batch(small))
    theirs = color.lock(result.copy(), base, "wavelet")
    assert torch.allclose(locked, as_batch(theirs), atol=1e-4)
    theirs = project_back(theirs, small, rounds=FIRM.rounds, amount=FIRM.amount)
    assert torch.allclose(ours, as_batch(theirs), atol=1e-4)
    ours.square().sum().backward()
    assert learnt.grad.abs().sum() > 0


def test_drift_is_measured_as_bench_dino_judges_it():
    encoder = DinoEncoder.load(NANO / "dino")
    truth, result = ((tiny.photo(192, 256, seed=s) * 255).round().astype(np.uint8) for s in (0, 1))
    small = np.array(Image.fromarray(truth).resize((64, 48), Image.Resampling.BICUBIC))
    ours = [as_batch(pixels / np.float32(255)) for pixels in (result, truth, small)]
    judge = Judge(encoder)
    to_source = float(looks.drift_from_source(encoder, ours[0], ours[2]))
    to_truth = float(looks.drift_from_truth(encoder, ours[0], ours[1]))
    assert to_source == pytest.approx(judge.to_source(result, small), rel=1e-2)
    assert to_truth == pytest.approx(judge.to_truth(result, judge.detail(truth)), rel=1e-2)


def nano_adapter_options(toy, images, output, **changes):
    fields = {
        "resume": toy / "nano", "dino": toy / "dino", "images": images, "output": output,
        "tile": 64, "batch": 4, "steps": 2, "warm_up": 1, "windows": 1,
    }  # fmt: skip
    return nano_adapter.NanoAdapterOptions(**(fields | changes))


def test_tuning_nanos_adapter_changes_nothing_but_the_adapter(toy, images, tmp_path):
    options = nano_adapter_options(toy, images, tmp_path / "tuned", rate=1e-2, steps=12)
    before = {file: file.read_bytes() for file in toy.rglob("*.safetensors")}
    model = nano_adapter.start(options, CPU)
    frozen = {
        f"{part}.{name}": p.clone()
        for part in ("vae", "transformer")
        for name, p in getattr(model, part).named_parameters()
    }
    first = model.projector.mlp[0].weight.clone()
    pictures = data.Pictures(data.find(images), CPU)
    trained = nano_adapter.train(options, model, pictures, lambda **_: None)
    assert not torch.equal(first, trained.mlp[0].weight)
    for place, p in frozen.items():
        part, _, name = place.partition(".")
        assert torch.equal(p, getattr(model, part).get_parameter(name)), place
        assert getattr(model, part).get_parameter(name).grad is None
    # and what is written is an adapter, alone
    nano_adapter.main(dataclasses.replace(options, steps=1))
    assert {f.name for f in options.output.rglob("*.safetensors")} == {"adapter.safetensors"}
    assert before == {file: file.read_bytes() for file in toy.rglob("*.safetensors")}
    tuned = Projector.load(options.output / "dino_adapter")
    tuned.check(model="nano", model_width=192, encoder=DinoEncoder.load(toy / "dino"))


def test_with_a_tuned_adapter_strength_0_is_the_same_to_the_bit_and_1_is_not(tmp_path):
    tuned = Projector.load(NANO / "dino_adapter")
    with torch.no_grad():
        tuned.mlp[2].weight.mul_(1.5)
    tuned.save(tmp_path / "adapter.safetensors")

    def upscaled(strength, **more):
        profile = Profile(variant="nano", scale=2.0, dino_strength=strength, **more).resolved()
        with open_engine(EngineSettings(device="cpu")) as engine:
            return engine.upscale(Picture(tiny.photo(24, 24)), profile, 1).picture.pixels

    given = {"dino_mode": "tokens", "dino_adapter": str(tmp_path / "adapter.safetensors")}
    bundled, zero, one = upscaled(0.0), upscaled(0.0, **given), upscaled(1.0, **given)
    assert np.array_equal(bundled, zero)
    assert not np.array_equal(bundled, one)


def test_what_tokens_change_is_told_for_every_mode_and_strength(toy, images, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for seed in (0, 1):
        pixels = (tiny.photo(64, 96, seed=seed) * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(pictures / f"{seed}.png")
    figures = nano_adapter.main(
        nano_adapter_options(
            toy, images, tmp_path / "out", seconds=0.0, steps=0, validate=pictures,
            judge=NANO / "dino",
        )
    )  # fmt: skip
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    assert len(figures) == len(judged.MODES) * len(judged.STRENGTHS)
    for name, figure in figures.items():
        assert figure["psnr_y"] > 5
        for encoder in ("own", "judge"):
            assert 0 <= figure[encoder]["to_source"] <= 2
            assert 0 <= figure[encoder]["to_truth"] <= 2
        if name.endswith("@0"):
            assert figure["psnr_y_less"] == figure["better"] == 0


def test_an_adapter_of_another_encoder_is_not_tuned(toy, images, tmp_path):
    options = nano_adapter_options(toy, images, tmp_path, dino=NANO / "dino")
    with pytest.raises(ConfigError, match="encoder"):
        nano_adapter.main(options)


# --- an adapter for FLUX.1 ------------------------------------------------------------------


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    """A tiny FLUX.1 with tokenizers' work done: its folder, an encoder and a start."""
    root = tmp_path_factory.mktemp("flux")
    tiny.diffusers_folder(root)
    tiny.dino(root)
    return root


def adapter_options(flux, images, output, **changes):
    fields = {
        "images": images, "output": output, "model": str(flux), "dino": str(flux / "dino"),
        "tile": 64, "steps": 4, "batch": 2, "accumulate": 1, "warm_up": 1, "device": "cpu",
    }  # fmt: skip
    return adapter.AdapterOptions(**(fields | changes))


def held_out_loss(options, model, projector):
    """The flow loss on the same tiles, noise and sigmas, whenever it is asked."""
    torch.manual_seed(9)
    common.CHANCE.seed(9)
    pictures = data.Pictures(data.find(options.images), CPU)
    with torch.no_grad():
        many = dataclasses.replace(options, accumulate=6)
        losses = [
            adapter.flow_loss(options, model, projector, batch)
            for batch in adapter.batches(many, model, pictures, False)
        ]
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("variant", ["schnell", "dev"])
def test_training_an_adapter_lowers_the_loss_and_leaves_the_model_alone(
    variant, flux, images, tmp_path
):
    if variant == "dev":
        tiny.diffusers_folder(tmp_path / "dev", guidance=True)
    options = adapter_options(
        flux, images, tmp_path / "adapter.safetensors", steps=30, rate=1e-2, variant=variant,
        **({"model": str(tmp_path / "dev")} if variant == "dev" else {}),
    )  # fmt: skip
    model = adapter.load_frozen(options, CPU)
    frozen = {name: p.clone() for name, p in model.transformer.named_parameters()}
    before = held_out_loss(options, model, adapter.build(options, model))
    adapter.main(options)
    trained = Projector.load(options.output)
    trained.check(model=variant, model_width=tiny.WIDTH, encoder=model.encoder)
    assert held_out_loss(options, model, trained) < before
    assert all(torch.equal(frozen[n], p) for n, p in model.transformer.named_parameters())


def test_an_adapter_goes_on_from_its_file_and_only_from_one_of_its_own(flux, images, tmp_path):
    first = adapter_options(flux, images, tmp_path / "a.safetensors")
    adapter.main(first)
    adapter.main(dataclasses.replace(first, resume=first.output, output=tmp_path / "b.safetensors"))
    one, two = (Projector.load(tmp_path / f"{n}.safetensors").norm.weight for n in "ab")
    assert not torch.equal(one, two)
    assert torch.allclose(one, two, atol=0.1)
    with pytest.raises(ConfigError, match="model"):
        tiny.diffusers_folder(tmp_path / "dev", guidance=True)
        adapter.main(
            dataclasses.replace(
                first, variant="dev", model=str(tmp_path / "dev"), resume=first.output
            )
        )


@pytest.mark.parametrize("frozen", ["bf16", "fp8"])
def test_a_lora_is_trained_along_and_kept_in_the_file(frozen, flux, images, tmp_path):
    options = adapter_options(
        flux, images, tmp_path / "a.safetensors", lora_rank=2, frozen=frozen, bare=0.0
    )
    adapter.main(options)
    lora = load_lora(options.output)
    trained = [value for name, value in lora.items() if "lora_B" in name]
    assert len(trained) >= 16
    assert any(value.abs().sum() > 0 for value in trained)
    adapter.main(dataclasses.replace(options, resume=options.output))
    bare = tmp_path / "bare.safetensors"
    Projector.load(options.output).save(bare)
    picture, results = Picture(tiny.photo(16, 16)), []
    for file in (options.output, bare):
        profile = Profile(
            variant="schnell", model=options.model, dino_encoder=options.dino, steps=1,
            dino_adapter=str(file), dino_mode="tokens", dino_strength=1.0, strength=1.0,
        )  # fmt: skip
        with open_engine(EngineSettings(device="cpu")) as engine:
            results.append(engine.upscale(picture, profile, 1).picture.pixels)
    assert not np.array_equal(*results)


def test_float8_weights_give_nearly_the_same_answer():
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 48)
    x = torch.randn(10, 64)
    close = Float8Linear(linear)(x)
    error = (close - linear(x)).norm() / linear(x).norm()
    assert error < 0.04


@pytest.mark.parametrize(
    ("wrong", "named"), [({"variant": "nano"}, "nano"), ({"frozen": "int2"}, "int2")]
)
def test_options_that_make_no_sense_are_refused(wrong, named, flux, images, tmp_path):
    with pytest.raises(ConfigError, match=named):
        adapter.main(adapter_options(flux, images, tmp_path / "a", **wrong))


# --- the bundled weights --------------------------------------------------------------------


def test_the_bundled_weights_are_those_of_the_model_card_and_small_enough():
    files = sorted(NANO.rglob("*.safetensors"))
    card = (NANO / "MODEL_CARD.md").read_text()
    assert sum(file.stat().st_size for file in files) <= 34e6
    listed = dict(re.findall(r"`([\w/]+\.safetensors)`[^`]*`([0-9a-f]{64})`", card))
    found = {
        str(file.relative_to(NANO)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }
    assert listed == found
    assert f"`{DinoEncoder.load(NANO / 'dino').identity}`" in card


def test_the_bundled_adapter_belongs_to_the_bundled_encoder():
    encoder = DinoEncoder.load(NANO / "dino")
    Projector.load(NANO / "dino_adapter").check(model="nano", model_width=192, encoder=encoder)
