"""Files are written strip by strip: the same picture at any strip size, and none of it held."""

import io
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fluxwatchd import imageio
from fluxwatchd.imageio import Picture, png, writing

STRIPS = [1, 700, 1 << 22]


def picture(channels: int, depth: int, alpha: bool, size: tuple[int, int] = (61, 47)) -> Picture:
    random = np.random.default_rng(5)
    smooth = np.cumsum(random.normal(0, 0.02, (*size, channels)), 1, dtype=np.float32) + 0.5
    cover = random.random(size, np.float32) if alpha else None
    return Picture(np.clip(smooth, 0, 1), cover, depth=depth)


def written(given: Picture, format: str, quality: int = 95) -> bytes:
    out = io.BytesIO()
    imageio.write(given, out, format=format, quality=quality)
    return out.getvalue()


def in_strips(patch: pytest.MonkeyPatch, given: Picture, format: str) -> list[bytes]:
    files = []
    for samples in STRIPS:
        patch.setattr(writing, "SAMPLES_AT_ONCE", samples)
        files.append(written(given, format))
    return files


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("format", ["png", "tiff", "jpeg", "webp"])
def test_the_size_of_a_strip_cannot_be_seen(
    monkeypatch: pytest.MonkeyPatch, format: str, depth: int, alpha: bool, channels: int
) -> None:
    given = picture(channels, depth, alpha)
    files = in_strips(monkeypatch, given, format)
    if format != "png":  # whose chunks end where strips do
        assert len(set(files)) == 1
    made = [imageio.read(file) for file in files]
    assert len({one.pixels.tobytes() for one in made}) == 1
    if alpha and format != "jpeg":
        assert len({one.alpha.tobytes() for one in made if one.alpha is not None}) == 1
    if format in ("png", "tiff"):
        largest = 65535 if depth == 16 else 255
        wanted = np.rint(given.pixels * np.float32(largest))
        np.testing.assert_array_equal(np.rint(made[0].pixels * largest), wanted)


def test_a_png_is_one_deflate_stream_that_others_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "SAMPLES_AT_ONCE", 500)
    file = written(picture(3, 8, True), "png")
    with Image.open(io.BytesIO(file)) as image:
        image.verify()
    stream = b"".join(png._pixel_data(file))
    lines = zlib.decompress(stream)
    assert len(lines) == 61 * (1 + 47 * 4)
    assert set(lines[:: 1 + 47 * 4]) == {4}  # Paeth, in every row


@pytest.mark.parametrize("format", ["png", "tiff"])
def test_neither_samples_nor_file_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    noise = np.random.default_rng(0).random((2000, 1500, 3), np.float32)  # no codec shrinks it
    monkeypatch.setattr(writing, "SAMPLES_AT_ONCE", 1 << 16)
    imageio.write(picture(3, 8, False), tmp_path / "first", format=format)  # what is imported once
    tracemalloc.start()
    try:
        imageio.write(Picture(noise), tmp_path / "picture", format=format)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "picture").stat().st_size > 8_000_000
    assert peak < 4_000_000
