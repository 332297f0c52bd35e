"""Every kind of picture through the real command at scale 1: nothing changes that need not."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pictures
import pillow_heif
import pytest
import tifffile
from PIL import Image

from fluxwatchd import imageio, sidecar

SAMPLES = pictures.corpus()
LOSSLESS = [name for name, sample in SAMPLES.items() if sample.colour is not None]
OUTPUTS = {"png": ".png", "tiff": ".tiff", "webp": ".webp"}


def upscaled(folder: Path, files: dict[str, bytes], *settings: str) -> dict[str, tuple[Path, dict]]:
    """Each file through ``fluxwatchd upscale``: the result and its record, by the file's name."""
    source, output = folder / "in", folder / "out"
    source.mkdir(parents=True)
    for name, data in files.items():
        (source / name).write_bytes(data)
    given = [part for setting in settings for part in ("--set", setting)]
    program = [sys.executable, "-m", "fluxwatchd", "upscale", "--output", str(output), *given]
    done = subprocess.run(
        [*program, *map(str, source.iterdir())], capture_output=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    records = [sidecar.read(path) for path in output.glob("*.json")]
    return {r["source"]["name"]: (output / r["output"]["name"], r) for r in records}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, tuple[Path, dict]]]:
    """The corpus through the command, by the output's format."""
    files = {name: sample.data for name, sample in SAMPLES.items()}
    return {
        format: upscaled(
            tmp_path_factory.mktemp(format),
            files,
            "variant=lanczos",
            "scale=1",
            "quality=100",
            f"format={format}",
        )
        for format in OUTPUTS
    }


def numbers(path: Path) -> np.ndarray[Any, Any]:
    """The samples in a file (H, W, C), by decoders that have no part in writing it."""
    data = path.read_bytes()
    if path.suffix == ".tiff":
        array = tifffile.imread(io.BytesIO(data))
    elif path.suffix == ".png":
        array = imagecodecs.png_decode(data)
    else:
        with Image.open(io.BytesIO(data)) as image:
            array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


@pytest.mark.parametrize("format", ["png", "tiff"])
@pytest.mark.parametrize("name", LOSSLESS)
def test_every_lossless_mode_is_equal_in_every_sample(
    name: str, format: str, results: dict[str, Any]
) -> None:
    sample, (path, record) = SAMPLES[name], results[format][name]
    assert path.suffix == OUTPUTS[format]
    assert record["output"]["depth"] == sample.depth
    wanted = sample.colour
    if sample.alpha is not None:
        wanted = np.concatenate([sample.colour, sample.alpha[..., None]], -1)
    found = numbers(path)
    largest = 65535 if sample.depth == 16 else 255
    assert found.dtype == (np.uint16 if sample.depth == 16 else np.uint8)
    if sample.largest in (255, 65535):
        np.testing.assert_array_equal(found, wanted)
    else:  # 10 and 12 bits have other numbers in 16, but come back
        np.testing.assert_array_equal(np.rint(found / largest * sample.largest), wanted)


@pytest.mark.parametrize("name", [n for n in LOSSLESS if SAMPLES[n].depth == 8])
def test_lossless_webp_is_equal_in_every_sample(name: str, results: dict[str, Any]) -> None:
    sample, (path, record) = SAMPLES[name], results["webp"][name]
    found = np.rint(numbers(path) / 255 * sample.largest)
    np.testing.assert_array_equal(
        found[..., :3], np.broadcast_to(sample.colour, (*sample.colour.shape[:2], 3))
    )
    if sample.alpha is not None and sample.alpha.min() < sample.largest:
        np.testing.assert_array_equal(found[..., 3], sample.alpha)
    assert record["output"]["format"] == "WEBP"


@pytest.mark.parametrize("name", [n for n in SAMPLES if n not in LOSSLESS])
def test_lossy_pictures_are_what_another_decoder_sees(name: str, results: dict[str, Any]) -> None:
    path, _ = results["png"][name]
    found, other = numbers(path), by_another(name)
    other = other[..., None] if other.ndim == 2 else other
    assert found.shape == other.shape
    largest = 65535 if found.dtype == np.uint16 else 255
    apart = np.abs(found / largest - other)
    if found.shape[2] in (2, 4):  # colour that nobody sees has no right value
        apart[..., :-1] *= other[..., -1:]
    # 10 and 12 bits of YCbCr that a decoder of 8 bits rounds before it makes them RGB
    assert apart.max() * 255 <= (3 if SAMPLES[name].mode.endswith(";16") else 1)


def by_another(name: str) -> np.ndarray[Any, Any]:
    """The picture in a file, 0..1, by a decoder other than the one that we read it with."""
    sample, kind = SAMPLES[name], name.rpartition(".")[2]
    if sample.ink is not None:
        ink = sample.ink / sample.largest
        if kind == "jpg":
            ink = 1 - imagecodecs.jpeg8_decode(sample.data) / 255  # turned, as Adobe has it
        light = (1 - ink[..., :3]) * (1 - ink[..., 3:])
        alpha = [] if sample.alpha is None else [sample.alpha[..., None] / sample.largest]
        return np.concatenate([light, *alpha], -1)
    if kind == "jpg":
        return np.asarray(imagecodecs.jpeg8_decode(sample.data) / 255)
    if kind == "avif" and sample.depth == 8:
        decoded = np.asarray(imagecodecs.avif_decode(sample.data) / 255)
        return decoded[..., 0] if sample.mode == "L" and decoded.ndim == 3 else decoded
    if kind == "heic":
        heif = pillow_heif.open_heif(io.BytesIO(sample.data))
        if sample.depth == 16:
            stored = np.asarray(heif)
            return stored / np.iinfo(stored.dtype).max
        with heif.to_pillow() as image:
            return np.asarray(image.convert(sample.mode.removesuffix(";16"))) / 255
    with Image.open(io.BytesIO(sample.data)) as image:  # WebP, deep AVIF, TIFF
        return np.asarray(image.convert(sample.mode.removesuffix(";16"))) / 255


# --- colour ---------------------------------------------------------------------------------

PROFILES = {
    "display-p3": pictures.rgb_profile("display-p3"),
    "adobe-rgb": pictures.rgb_profile("adobe-rgb"),
    "prophoto": pictures.rgb_profile("prophoto"),
    "rec2020": pictures.rgb_profile("rec2020"),
    "lut": pictures.lut_profile(),
}
GREYS = {"gamma-2.2": 2.2, "gamma-1.8": 1.8}


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict]]:
    """Pictures with profiles through the command."""
    files = {}
    for depth, largest in ((8, 255), (16, 65535)):
        for name, icc in PROFILES.items():
            stored = pictures.colours(largest)
            files[f"{name}-{depth}.tif"] = pictures.tiff(stored, photometric="rgb", iccprofile=icc)
        for name, gamma in GREYS.items():
            icc, stored = pictures.grey_profile(gamma), pictures.smooth(1, largest)
            files[f"{name}-{depth}.tif"] = pictures.tiff(stored, iccprofile=icc)
    settings = "variant=lanczos", "scale=1", "format=png"
    return upscaled(tmp_path_factory.mktemp("coloured"), files, *settings)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("name", PROFILES)
def test_wide_colours_keep_their_profile_and_their_numbers(
    name: str, depth: int, coloured: dict[str, tuple[Path, dict]]
) -> None:
    path, _ = coloured[f"{name}-{depth}.tif"]
    stored, found = pictures.colours((1 << depth) - 1), numbers(path)
    assert imageio.read(path).metadata.icc == PROFILES[name]
    largest = (1 << depth) - 1
    apart = np.abs(found.astype(int) - stored).max() / largest
    difference = delta_e(stored, found, PROFILES[name])
    print(f"{name} {depth}: {apart * 255:.3f} of 255, deltaE 2000 up to {difference:.4f}")
    assert apart <= 1 / 255 + 1e-9
    assert difference < 0.1


def delta_e(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any], icc: bytes) -> float:
    """The largest CIEDE2000 difference between two pictures of one profile."""
    from skimage.color import deltaE_ciede2000

    return float(deltaE_ciede2000(lab(one, icc), lab(other, icc)).max())


def lab(stored: np.ndarray[Any, Any], icc: bytes) -> np.ndarray[Any, Any]:
    unit = stored.astype(np.float32) / (255 if stored.dtype == np.uint8 else 65535)
    converted = imagecodecs.cms_transform(
        np.ascontiguousarray(unit),
        icc,
        imagecodecs.cms_profile("lab4"),
        colorspace="rgb",
        outcolorspace="lab",
        outdtype="float32",
    )
    return np.asarray(converted, np.float64)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("name", GREYS)
def test_grey_profiles_keep_their_numbers(
    name: str, depth: int, coloured: dict[str, tuple[Path, dict]]
) -> None:
    path, _ = coloured[f"{name}-{depth}.tif"]
    stored = pictures.smooth(1, (1 << depth) - 1)
    assert imageio.read(path).metadata.icc == pictures.grey_profile(GREYS[name])
    found = numbers(path).astype(int)
    assert np.abs(found - stored).max() <= ((1 << depth) - 1) / 255
