"""The measures agree with their sources, and the benchmarks report what was measured."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import signal, stats
from skimage import color
from skimage import metrics as reference
from transformers import Dinov2Config, Dinov2Model

from fluxwatchd.bench import (
    colour,
    dino,
    driftmap,
    judge,
    methods,
    metrics,
    peers,
    pictures,
    quality,
    report,
    seams,
    sheet,
    speed,
    stripes,
)
from fluxwatchd.engine import open_engine
from fluxwatchd.engine.dino import DinoEncoder
from fluxwatchd.engine.projector import AdapterSpec, Projector
from fluxwatchd.errors import ConfigError, InputRejected
from fluxwatchd.imageio import Picture
from fluxwatchd.job import Checkpoint, DinoRecord, TileRecord, Upscaled, Window


@pytest.fixture
def two():
    """A photograph-like picture and a worse version of it, of awkward odd sizes."""
    random = np.random.default_rng(5)
    smooth = signal.fftconvolve(random.normal(size=(83, 121, 3)), np.ones((9, 9, 1)), mode="same")
    truth = np.clip(128 + 8 * smooth, 0, 255).astype(np.uint8)
    worse = np.clip(truth + random.normal(0, 12, truth.shape), 0, 255).astype(np.uint8)
    return truth, worse


# --- measures -------------------------------------------------------------------------------


def test_luma_is_matlabs(two):
    truth, _ = two
    np.testing.assert_allclose(metrics.luma(truth), color.rgb2ycbcr(truth)[..., 0], atol=1e-9)


def test_luma_of_white_and_black_is_235_and_16():
    pixels = np.array([[[255] * 3, [0] * 3]], np.uint8)
    assert metrics.luma(pixels)[0] == pytest.approx([235, 16])


def test_psnr_agrees_with_scikit_image(two):
    a, b = map(metrics.luma, two)
    assert metrics.psnr(a, b) == pytest.approx(
        reference.peak_signal_noise_ratio(a, b, data_range=255), abs=1e-9
    )


def test_ssim_agrees_with_scikit_image(two):
    a, b = map(metrics.luma, two)
    expected = reference.structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert metrics.ssim(a, b) == pytest.approx(expected, abs=1e-9)


def gmsd_as_its_authors_wrote_it(a, b):
    """The published MATLAB program, step by step, on scipy's convolution."""

    def halve(plane):
        return signal.convolve2d(plane, np.full((2, 2), 0.25))[1:, 1:][::2, ::2]

    def gradient(plane):
        dx = np.array([[1, 0, -1]] * 3) / 3
        return np.hypot(*(signal.convolve2d(plane, k, mode="same") for k in (dx, dx.T)))

    ga, gb = gradient(halve(a)), gradient(halve(b))
    return np.std((2 * ga * gb + 170) / (ga**2 + gb**2 + 170), ddof=1)


@pytest.mark.parametrize("size", [(82, 120), (83, 121), (83, 120), (11, 11)])
def test_gmsd_agrees_with_its_authors_program(two, size):
    a, b = (metrics.luma(picture)[: size[0], : size[1]] for picture in two)
    assert metrics.gmsd(a, b) == pytest.approx(gmsd_as_its_authors_wrote_it(a, b), abs=1e-12)


def test_equal_pictures_are_as_like_as_can_be(two):
    truth, _ = two
    assert metrics.likeness(truth, truth) == metrics.Likeness(math.inf, 1.0, 0.0)


def test_the_border_is_left_out(two):
    truth, _ = two
    framed = truth.copy()
    framed[:4] = framed[-4:] = 0
    framed[:, :4] = framed[:, -4:] = 0
    assert metrics.likeness(framed, truth, border=4).psnr_y == math.inf
    assert metrics.likeness(framed, truth, border=3).psnr_y < math.inf


@pytest.mark.parametrize("border", [37, 50])
def test_a_picture_smaller_than_the_window_is_refused(two, border):
    with pytest.raises(ValueError, match="under 11 px"):
        metrics.likeness(*two, border=border)


def test_pictures_of_two_sizes_are_refused(two):
    with pytest.raises(ValueError, match="sizes differ"):
        metrics.likeness(two[0], two[1][:-1])


# --- paired differences ---------------------------------------------------------------------


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 23, 24, 100])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_students_quantile_agrees_with_scipy(freedom, confidence):
    expected = stats.t.ppf((1 + confidence) / 2, freedom)
    assert metrics.student_quantile(confidence, freedom) == pytest.approx(expected, rel=1e-9)


def test_the_interval_is_that_of_a_paired_t_test():
    random = np.random.default_rng(1)
    before, after = random.normal(27, 3, 24), random.normal(28, 3, 24)
    expected = stats.ttest_rel(after, before).confidence_interval(0.95)
    found = metrics.paired(after, before)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(np.mean(after - before))
    assert found.better == np.sum(after > before)


def test_less_is_better_where_it_is():
    assert metrics.paired([1, 5, 3], [2, 4, 3], more_is_better=False).better == 1


def test_one_picture_gives_an_interval_without_bounds():
    found = metrics.paired([28.0], [27.0])
    assert (found.mean, found.low, found.high) == (1.0, -math.inf, math.inf)


@pytest.mark.parametrize(("after", "before"), [([], []), ([1.0, 2.0], [1.0, 2.0, 3.0])])
def test_figures_that_are_no_pairs_are_refused(after, before):
    with pytest.raises(ValueError):  # NumPy words the second case itself
        metrics.paired(after, before)


# --- pictures -------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, two):
    """Two small pictures and a file that is none."""
    truth, worse = two
    Image.fromarray(truth).save(tmp_path / "b.png")
    Image.fromarray(worse).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_pictures_come_by_name_up_to_the_limit(folder):
    assert [path.name for path in pictures.find(folder)] == ["a.png", "b.png"]
    assert [path.name for path in pictures.find(folder, 1)] == ["a.png"]


@pytest.mark.parametrize("scale", [1, 1.5, 2, 3.3, 4])
def test_the_truth_has_the_size_that_the_small_picture_comes_to(folder, scale):
    pair = pictures.pair(folder / "b.png", scale)
    assert pair.truth.shape[:2] == tuple(round(side * scale) for side in pair.small.shape[:2])
    assert all(cut <= whole for cut, whole in zip(pair.truth.shape, (83, 121, 3), strict=True))


def test_shrinking_is_pillows_bicubic(two):
    expected = Image.fromarray(two[0]).resize((30, 20), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(pictures.shrink(two[0], (30, 20)), np.asarray(expected))


def test_a_jpeg_of_lower_quality_is_further_from_the_small_picture(two):
    clean, fine, coarse = (
        pictures.shrink(two[0], (60, 40), how).astype(int)
        for how in ("bicubic", "jpeg95", "jpeg40")
    )
    assert 0 < np.abs(fine - clean).mean() < np.abs(coarse - clean).mean()


@pytest.mark.parametrize("word", ["jpeg", "jpeg0", "jpeg96", "jpeg100", "blur"])
def test_an_unknown_degradation_is_refused(two, word):
    with pytest.raises(ConfigError, match="degrade"):
        pictures.shrink(two[0], (30, 20), word)


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no picture"):
        pictures.find(tmp_path)
    with pytest.raises(ConfigError, match="no folder"):
        pictures.find(tmp_path / "missing")


def test_a_picture_that_cannot_be_measured_is_refused(tmp_path):
    Image.new("RGB", (40, 15)).save(tmp_path / "small.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(InputRejected, match="too small"):
        pictures.pair(tmp_path / "small.png", 4)
    with pytest.raises(InputRejected, match=r"broken\.png"):
        pictures.pair(tmp_path / "broken.png", 4)


def test_pixels_survive_the_engines_picture(two):
    np.testing.assert_array_equal(pictures.to_pixels(pictures.to_picture(two[0])), two[0])


# --- reports --------------------------------------------------------------------------------


def test_a_table_is_aligned_markdown():
    lines = report.table(("method", "dB"), [("nano", "27.1"), ("lanczos", "7")]).splitlines()
    assert lines == [
        "| method  |   dB |",
        "| ------- | ---: |",
        "| nano    | 27.1 |",
        "| lanczos |    7 |",
    ]


def test_json_has_no_infinity():
    found = json.loads(
        report.as_json({"a": metrics.Likeness(math.inf, 1.0, 0.0), "b": (math.nan, 1)})
    )
    assert found == {"a": {"psnr_y": None, "ssim": 1.0, "gmsd": 0.0}, "b": [None, 1]}


# --- seams ----------------------------------------------------------------------------------

QUARTERS = tuple(Window(top, left, 40, 60) for top in (0, 40) for left in (0, 60))


def noisy():
    """Grey noise of 80 x 120 px with the same statistics everywhere."""
    plane = np.random.default_rng(3).integers(100, 140, (80, 120, 1))
    return np.repeat(plane, 3, axis=2).astype(np.uint8)


def test_edges_of_tiles_look_like_any_other_line_in_noise():
    assert seams.seam(noisy(), QUARTERS) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("cut", [np.s_[:, 60:], np.s_[40:]], ids=["upright", "level"])
def test_a_step_between_tiles_is_seen(cut):
    pixels = noisy()
    pixels[cut] += 20
    assert seams.seam(pixels, QUARTERS) > 1.2


def test_a_step_elsewhere_is_no_seam():
    pixels = noisy()
    pixels[:, 30:] += 20
    assert seams.seam(pixels, QUARTERS) < 1.01


def test_both_edges_of_an_overlap_count():
    tiles = (Window(0, 0, 80, 70), Window(0, 50, 80, 70))
    clean = seams.seam(noisy(), tiles)
    for edge in (50, 70):
        pixels = noisy()
        pixels[:, edge:] += 20
        assert seams.seam(pixels, tiles) > clean + 0.2


def test_a_step_beside_an_edge_is_seen_at_its_offset():
    pixels = noisy()
    pixels[:, 63:] += 20
    found = {offset: seams.seam(pixels, QUARTERS, offset) for offset in (-3, 0, 3)}
    assert found[3] > 1.2 > max(found[0], found[-3])


def test_a_blurred_overlap_is_seen_and_noise_is_not():
    tiles = (Window(0, 0, 80, 70), Window(0, 50, 80, 70))
    pixels = noisy()
    assert seams.blend(pixels, tiles) == pytest.approx(1, abs=0.1)
    band = pixels[:, 50:70].astype(int)
    pixels[:, 51:69] = (band[:, :-2] + band[:, 1:-1] + band[:, 2:]) // 3
    assert seams.blend(pixels, tiles) < 0.7


def test_without_overlap_nothing_is_blended():
    assert math.isnan(seams.blend(noisy(), QUARTERS))


def test_a_single_tile_has_no_seam():
    assert math.isnan(seams.seam(noisy(), (Window(0, 0, 80, 120),)))


# --- sheet ----------------------------------------------------------------------------------


def test_the_crop_is_where_bicubic_errs_most():
    truth = noisy()
    result = truth.copy()
    result[45:70, 95:110] += 30
    assert sheet.worst("x.png", truth, result, 40) == sheet.Place("x.png", 80, 40)


def test_a_sheet_has_a_row_a_crop_and_a_column_a_method():
    crops = [[np.full((32, 32, 3), 10 * (3 * i + j), np.uint8) for j in range(3)] for i in range(2)]
    made = sheet.compose(crops, ("truth", "bicubic", "nano"))
    pixels = np.asarray(made)
    step = 32 + sheet.GAP
    assert made.size == (sheet.GAP + 3 * step, sheet.GAP + sheet.LABEL + 2 * step)
    for i in range(2):
        for j in range(3):
            top, left = sheet.GAP + sheet.LABEL + i * step, sheet.GAP + j * step
            np.testing.assert_array_equal(pixels[top : top + 32, left : left + 32], crops[i][j])


def test_a_crop_over_the_edge_is_refused():
    with pytest.raises(ConfigError, match="over the edge"):
        sheet._crop(noisy(), sheet.Place("x.png", 100, 0), 40)


# --- with the real engine -------------------------------------------------------------------


def test_the_bundled_nano_beats_bicubic_on_the_packaged_photograph(tmp_path):
    """So that ruined weights are noticed. It learnt from it: benchmarks/ has what it never saw."""
    sample = resources.files("fluxwatchd") / "data" / "sample.jpg"
    (tmp_path / "sample.jpg").write_bytes(sample.read_bytes())
    for settings in ({}, {"dino_strength": 1.0}):
        made = quality.measure(tmp_path, settings=settings, methods=("nano", "bicubic"))
        nano, bicubic = made.means["nano"], made.means["bicubic"]
        assert nano.psnr_y > bicubic.psnr_y + 0.3
        assert nano.ssim > bicubic.ssim + 0.01
        assert nano.gmsd < bicubic.gmsd
        assert " in float32 on " in made.ran["nano"] or " in bfloat16 on " in made.ran["nano"]


def test_quality_compares_nano_with_lanczos_and_bicubic(folder):
    made = quality.measure(folder, settings={"dino_mode": "off", "seed": 7, "steps": 1})
    assert list(made.means) == ["nano", "lanczos", "bicubic"]
    assert [(s.picture, s.method) for s in made.scores] == [
        (picture, method) for picture in ("a.png", "b.png") for method in made.means
    ]
    assert {s.seed for s in made.scores if s.method == "nano"} == {7}
    # lanczos and bicubic are Pillow's, and their figures those of their pixels
    for name, filter in (("lanczos", 1), ("bicubic", 3)):
        for score in (s for s in made.scores if s.method == name):
            one = pictures.pair(folder / score.picture, 4)
            pixels = pictures.enlarge(one.small, (120, 80), Image.Resampling(filter))
            expected = metrics.likeness(pixels, one.truth, 4)
            assert score.psnr_y == pytest.approx(expected.psnr_y, abs=0.02)
            assert score.ssim == pytest.approx(expected.ssim, abs=0.002)
    mean = made.means["nano"].psnr_y - made.means["bicubic"].psnr_y
    assert made.against_bicubic["nano"]["psnr_y"].mean == pytest.approx(mean)


def test_quality_refuses_a_setting_that_does_not_exist(folder):
    with pytest.raises(ConfigError, match="stepz"):
        quality.measure(folder, settings={"stepz": 2})


def test_quality_runs_as_a_command(folder, capsys):
    words = ["--images", str(folder), "--scale", "2", "--method", "lanczos", "--method", "bicubic"]
    quality.command.main([*words, "--degrade", "jpeg60", "--limit", "1"], standalone_mode=False)
    text = capsys.readouterr().out
    assert "jpeg60" in text
    assert "a.png" in text
    assert "b.png" not in text
    quality.command.main([*words, "--json"], standalone_mode=False)
    assert list(json.loads(capsys.readouterr().out)["means"]) == ["lanczos", "bicubic"]


def test_a_report_is_kept_with_its_command(folder, tmp_path):
    place = tmp_path / "new" / "kept"
    words = ["--images", str(folder), "--method", "bicubic", "--set", f"dino_encoder={folder}"]
    quality.command.main([*words, "--save", str(place)], "quality", standalone_mode=False)
    kept = json.loads(place.with_suffix(".json").read_text())
    expected = f"--images {folder.name} --set dino_encoder={folder.name} --method bicubic"
    assert kept["command"] == f"fluxwatchd bench quality {expected}"
    assert kept["report"]["settings"] == {"dino_encoder": folder.name}
    assert kept["command"] in place.with_suffix(".md").read_text()


def test_a_fault_ends_a_module_with_its_exit_code(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "fluxwatchd.bench.quality", "--images", str(tmp_path / "none")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 78
    assert "no folder" in run.stderr


def test_speed_is_told_by_stage(folder):
    made = speed.measure(
        folder, settings={"steps": 1}, methods=("nano", "bicubic"), rounds=2, limit=1
    )
    stages = made.speeds["nano"].stages
    assert stages["denoise"] > 0
    assert sum(stages.values()) <= made.speeds["nano"].slowest * 1.05
    assert made.speeds["bicubic"].stages == {}
    assert "denoise" in made.as_text()


def test_seams_are_measured_where_tiles_meet(tmp_path):
    Image.fromarray(noisy()).save(tmp_path / "x.png")
    keys = {"steps": 1, "dino_mode": "off"}
    made = seams.measure(tmp_path, settings=keys, tile_sizes=(16,), fusions=("step",))
    assert all(score.tiles > 1 for score in made.scores)
    assert all(min(score.seams) > 0 and score.apart < math.inf for score in made.scores)
    assert "16 / auto / step" in made.as_text()


def test_colours_are_nearer_the_source_with_a_lock(tmp_path, two):
    Image.fromarray(two[0]).save(tmp_path / "x.png")
    keys = {"variant": "nano-img2img", "strength": 0.6, "steps": 1, "dino_mode": "off"}
    made = colour.measure(tmp_path, scale=2, settings=keys)
    assert list(made.means) == ["off", "wavelet", "lab"]
    assert max(made.means["wavelet"].shift, made.means["lab"].shift) < 0.7 * made.means["off"].shift
    assert "| wavelet" in made.as_text()


def test_colour_and_stripes_need_a_model(folder):
    for module in (colour, stripes):
        with pytest.raises(ConfigError, match="no model ran"):
            module.measure(folder, settings={"variant": "lanczos"})


def test_stronger_grids_are_found_as_such(tmp_path, two):
    Image.fromarray(np.tile(two[0], (3, 2, 1))).save(tmp_path / "x.png")
    made = stripes.measure(tmp_path, settings={"steps": 1, "dino_mode": "off"})
    assert made.period == 8
    assert made.curves["nothing"].caught == 0
    for kind in stripes.KINDS:
        found = [made.curves[f"{kind} {level:g}"].mean for level in stripes.LEVELS]
        assert found == sorted(found)
        assert found[-1] > made.limit
    assert "wave 0.5" in made.as_text()


def test_seams_need_a_picture_that_is_cut(folder):
    with pytest.raises(ConfigError, match="fits into one tile"):
        seams.measure(folder, settings={"steps": 1}, fusions=("step",), overlaps=("auto",), limit=1)


@pytest.fixture
def steering(tmp_path_factory):
    """Profile keys of a tiny encoder and adapter, never trained, that fit nano."""
    torch.manual_seed(0)
    layout = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
    network = Dinov2Model(Dinov2Config(**layout, image_size=64, mlp_ratio=2))
    place = tmp_path_factory.mktemp("dino")
    network.save_pretrained(place)
    encoder = DinoEncoder.load(place)
    spec = AdapterSpec("nano", 192, encoder.identity, "tiny", encoder.width, encoder.layers)
    Projector(spec).save(place / "adapter.safetensors")
    return {"dino_encoder": str(place), "dino_adapter": str(place / "adapter.safetensors")}


def test_the_ablation_runs_every_arm_on_the_same_seed(folder, steering):
    made = dino.measure(
        folder,
        settings=steering | {"steps": 1},
        modes=("tokens",),
        strengths=(0, 1),
        control=True,
    )
    assert list(made.means) == [
        "off",
        "tokens 0",
        "tokens 1",
        "tokens 1, another picture's tokens",
        "tokens 1, an untrained encoder's tokens",
    ]
    assert len({score.seed for score in made.scores if score.picture == "a.png"}) == 1
    # no DINO and none of it are the same run; any of it is not, whatever it sees
    assert list(made.bit_equal_to_off.values()) == [2, 2, 0, 0, 0]
    assert made.against_off["tokens 0"]["psnr_y"] == metrics.Paired(0, 0, 0, 0, 2)
    assert len(made.against_control) == 2


def test_the_judge_agrees_with_the_record(folder, steering):
    made = dino.measure(
        folder,
        settings=steering | {"steps": 1},
        modes=("tokens",),
        strengths=(1,),
        judge=Path(steering["dino_encoder"]),
    )
    for score in made.scores:
        if score.arm == "tokens 1":
            assert score.to_source == pytest.approx(score.recorded_drift, abs=5e-3)


def test_guidance_is_compared_with_pixels_alone(folder, steering):
    made = dino.measure(
        folder,
        settings=steering | {"variant": "nano-img2img", "strength": 0.6, "steps": 1},
        modes=("guide",),
        strengths=(1,),
        control=True,
        limit=1,
    )
    assert list(made.means) == ["off", "guide 1", "guide 1, the pixel term alone"]
    assert len({tuple(mean.values()) for mean in made.means.values()}) == 3


def test_all_of_the_ablation_is_one_run(folder, steering):
    made = dino.measure(
        folder,
        settings=steering | {"variant": "nano-img2img", "strength": 0.6, "steps": 1},
        modes=("tokens:0,1", "guide:1", "both:1"),
        control=True,
        judge=Path(steering["dino_encoder"]),
    )
    assert list(made.means) == [
        "off",
        "tokens 0",
        "tokens 1",
        "guide 1",
        "both 1",
        "tokens 1, another picture's tokens",
        "tokens 1, an untrained encoder's tokens",
        "guide 1, the pixel term alone",
    ]
    assert list(made.bit_equal_to_off.values()) == [2, 2, 0, 0, 0, 0, 0, 0]
    assert len(made.against_off) == 7 and len(made.against_control) == 3
    assert " in float32 on " in made.off or " in bfloat16 on " in made.off


@pytest.mark.parametrize("mode", ["token", "guide:2", "guide:x", "both:0.5,", ":1"])
def test_a_mode_that_is_none_is_refused(mode):
    with pytest.raises(ConfigError, match="is none"):
        dino.arms_of((mode,), (1.0,), control=False)


def test_arms_of_different_seeds_are_refused(folder):
    with pytest.raises(ConfigError, match="same seed"):
        dino.measure(folder, settings={"seed": "random"})


def test_one_picture_has_no_other(folder, steering):
    with pytest.raises(ConfigError, match="no other"):
        dino.measure(
            folder,
            settings=steering | {"steps": 1},
            modes=("tokens",),
            control=True,
            limit=1,
        )


@pytest.mark.parametrize(("height", "width"), [(512, 768), (130, 129), (8, 500), (3, 3)])
def test_a_judge_looks_at_every_pixel_once(height, width):
    boxes, cells = judge.windows(height, width, 8)
    area = sum((bottom - top) * (right - left) for top, left, bottom, right in boxes)
    assert area == pytest.approx(height * width)
    assert max(cells) <= judge.MOST_CELLS
    assert max(b for _, _, b, _ in boxes) == pytest.approx(height)


def test_a_sheet_is_written_by_a_command(folder, tmp_path, steering):
    output = tmp_path / "sheet.png"
    words = ["--images", str(folder), "--output", str(output), "--scale", "3", "--size", "40"]
    words += ["--crop", "a.png:10,20", "--set", "steps=1", "--limit", "1"]
    words += [f"--set={key}={value}" for key, value in steering.items()]
    sheet.command.main(words, standalone_mode=False)
    with Image.open(output) as made:
        assert made.size == (sheet.GAP + 4 * (40 + sheet.GAP), 2 * sheet.GAP + sheet.LABEL + 40)


def test_a_column_is_named_by_what_dino_did(folder, steering):
    one = pictures.pair(folder / "a.png", 4)
    with open_engine() as engine:
        for settings, name in (
            ({"dino_mode": "off"}, "nano, no DINO"),
            (steering | {"dino_strength": 1.0}, "nano, tokens 1"),
        ):
            way = methods.method("nano", engine, 4, {"steps": 1} | settings)
            assert sheet._label("nano", way(one)) == name


@pytest.mark.peer
def test_the_peer_upscales_by_four_in_a_process_of_its_own():
    peer = peers.RealEsrgan()
    ramp = np.linspace(40, 200, 32, dtype=np.uint8)
    small = np.broadcast_to(ramp[None, :, None], (24, 32, 3))
    pixels, seconds = peer(small)
    peer.close()
    assert pixels.shape == (96, 128, 3)
    assert seconds > 0
    shrunk = pictures.shrink(pixels, (32, 24)).astype(int)
    assert np.abs(shrunk - small).mean() < 10


def test_a_peer_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ConfigError, match="Real-ESRGAN cannot be loaded") as caught:
        peers.RealEsrgan()
    assert "pip install" in caught.value.hint


def test_a_drift_map_is_the_mean_of_the_tiles_that_cover_a_pixel():
    picture = Picture(np.zeros((4, 6, 3), np.float32))
    windows = (Window(0, 0, 4, 4, drift=0.2), Window(0, 2, 4, 4, drift=0.4))
    made = Upscaled(
        picture=picture,
        sigmas=(1.0,),
        tiles=TileRecord(windows, overlap=2, batch=1, fusion="step"),
        dino=DinoRecord(drift=0.3),
        seconds={},
        peak_bytes=0,
        checkpoint=Checkpoint(variant="nano", model="bundled:nano"),
    )
    assert np.allclose(driftmap.drift_map(made)[0], [0.2, 0.2, 0.3, 0.3, 0.4, 0.4])
    with pytest.raises(ConfigError):
        driftmap.drift_map(replace(made, dino=DinoRecord(reason="none")))


def test_flux_is_timed_without_a_checkpoint_beside_diffusers(tmp_path):
    command = [
        *(sys.executable, "-m", "fluxwatchd", "bench", "speed", "--random-weights", "--tiny"),
        *("--device", "cpu", "--side", "32", "--scale", "2", "--rounds", "1", "--steps", "1"),
        *("--plan", "resident", "--plan", "fp8", "--save", str(tmp_path / "report")),
    ]
    subprocess.run(command, check=True, capture_output=True)
    report = json.loads((tmp_path / "report.json").read_text())["report"]
    ways = {one["case"]["plan"]: one for one in report["timed"]}
    assert ways.keys() == {"diffusers", "resident", "fp8"}
    assert all(one["output"] > 0 for one in ways.values())
    assert ways["resident"]["stages"]["denoise"] > 0
    assert 0 <= report["error"] < 0.2
    assert "times diffusers" in (tmp_path / "report.md").read_text()


def test_the_time_that_kernels_cover_counts_overlaps_once():
    from fluxwatchd.bench.fluxspeed import covered

    assert covered([]) == 0
    assert covered([(5, 6), (0, 2), (1, 3), (1.5, 1.6)]) == pytest.approx(4)


def test_diffusers_tiles_cover_a_side_to_its_end():
    from fluxwatchd.bench.peerflux import places

    assert places(2048) == [0, 896, 1024] and places(1024) == [0] and places(700) == [0]
