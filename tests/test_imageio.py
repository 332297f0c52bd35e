"""Picture files: read whole or refused, written back as they were."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pictures
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, PngImagePlugin

from fluxwatchd import imageio
from fluxwatchd.errors import InputRejected, JobFailed
from fluxwatchd.imageio import avif, colour, containers, exif, faults, iptc, png, xmp
from fluxwatchd.imageio.writing import quantised

SAMPLES = sorted(pictures.corpus())
ALPHA_FORMATS = ("png", "tiff", "webp", "avif")


def sample(name: str) -> pictures.Sample:
    return pictures.corpus()[name]


def written(picture: imageio.Picture, format: str = "png", **options: Any) -> bytes:
    out = io.BytesIO()
    imageio.write(picture, out, format=format, **options)
    return out.getvalue()


def back(picture: imageio.Picture, format: str = "png", **options: Any) -> imageio.Picture:
    return imageio.read(written(picture, format, **options))


def assert_same_pixels(a: imageio.Picture, b: imageio.Picture) -> None:
    np.testing.assert_array_equal(a.pixels, b.pixels)
    assert (a.alpha is None) == (b.alpha is None)
    if a.alpha is not None and b.alpha is not None:
        np.testing.assert_array_equal(a.alpha, b.alpha)


# --- reading --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLES)
def test_every_mode_is_read_as_the_file_declares_it(name: str) -> None:
    wanted = sample(name)
    picture = imageio.read(wanted.data)
    assert picture.pixels.shape == (pictures.HEIGHT, pictures.WIDTH, wanted.channels)
    assert (picture.mode, picture.depth) == (wanted.mode, wanted.depth)
    assert (picture.alpha is not None) == wanted.has_alpha
    assert picture.pixels.dtype == np.float32
    near = 1e-6 if wanted.largest != 100 else 0.5 / 255  # Pillow rounds a PNM's to 8 bits
    if wanted.colour is not None:
        np.testing.assert_allclose(picture.pixels, wanted.colour / wanted.largest, atol=near)
    if wanted.alpha is not None:
        np.testing.assert_allclose(picture.alpha, wanted.alpha / wanted.largest, atol=near)


@pytest.mark.parametrize("name", [n for n in SAMPLES if sample(n).colour is None])
def test_lossy_files_are_read_near_to_what_was_put_in(name: str) -> None:
    picture, slope = imageio.read(sample(name).data), pictures.smooth(4) / 255
    if (stored := sample(name).ink) is not None:
        ink = stored / sample(name).largest
        slope = (1 - ink[..., :3]) * (1 - ink[..., 3:])
    assert np.abs(picture.pixels - slope[..., : sample(name).channels]).mean() < 0.02


@pytest.mark.parametrize("name", SAMPLES)
def test_the_header_agrees_with_the_picture(name: str, tmp_path: Any) -> None:
    path = tmp_path / name
    path.write_bytes(sample(name).data)
    header, picture = imageio.probe(path), imageio.read(path)
    assert (header.width, header.height) == (picture.width, picture.height)
    assert (header.format, header.mode, header.depth) == (
        picture.format,
        picture.mode,
        picture.depth,
    )
    assert header.frames == 1
    assert path.suffix in imageio.READABLE_SUFFIXES


@pytest.mark.parametrize("name", [n for n in SAMPLES if n.endswith(".avif")])
def test_an_avif_codes_as_many_pixels_as_it_claims(name: str) -> None:
    assert avif.coded_pixels(io.BytesIO(sample(name).data)) == pictures.HEIGHT * pictures.WIDTH


def test_a_long_sequence_header_of_av1_is_passed_over() -> None:
    # Timing, decoder model and two operating points, as a video encoder writes them.
    bits = "00010" + "1" + f"{1:032b}{25:032b}" + "1" + "00101" + "1"
    bits += "01001" + f"{1:032b}" + "00000" + "00000" + "1" + "00001"
    bits += f"{0x101:012b}" + "01001" + "0" + "1" + "1" * 21 + "1" + "0000"
    bits += f"{0x001:012b}" + "00101" + "0" + "0"
    bits += "1001" + "0111" + f"{699:010b}" + f"{199:08b}"
    data = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    item = b"\x12\0" + b"\x0a" + bytes([len(data)]) + data
    assert avif._size(item) == (700, 200)


def test_a_path_and_its_bytes_give_the_same_picture(tmp_path: Any) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(pictures.photograph())
    assert_same_pixels(imageio.read(path), imageio.read(path.read_bytes()))
    assert_same_pixels(imageio.read(str(path)), imageio.read(path))


def test_a_name_that_is_not_utf8_is_read_and_named_in_errors(tmp_path: Any) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    with open(path, "wb") as file:  # noqa: PTH123  # a name that pathlib would decode first
        file.write(sample("rgb.png").data[:100])
    with pytest.raises(InputRejected, match="caf") as caught:
        imageio.read(os.fsdecode(path))
    str(caught.value).encode()


def test_content_counts_and_not_the_suffix(tmp_path: Any) -> None:
    path = tmp_path / "wrong.png"
    path.write_bytes(sample("rgb.jpg").data)
    assert imageio.read(path).format == "JPEG"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(orientation: int) -> None:
    data = pictures.photograph("PNG", orientation=orientation)
    header, picture = imageio.probe(data), imageio.read(data)
    upright = imageio.read(pictures.photograph("PNG", orientation=1)).pixels
    np.testing.assert_array_equal(picture.pixels, lain(upright, orientation))
    assert (header.width, header.height) == (picture.width, picture.height)
    again = back(picture)
    assert_same_pixels(again, picture)
    assert exif.orientation(again.metadata.exif or b"") == 1


def lain(pixels: np.ndarray[Any, Any], orientation: int) -> np.ndarray[Any, Any]:
    """How a stored picture is to be seen (Exif 2.32, 4.6.4)."""
    return {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(pixels, 1),
    }[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("source", ["JPEG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_every_container_is_turned_once(source: str, orientation: int) -> None:
    program = (
        "import sys; from tests import pictures; "
        "sys.stdout.buffer.write(pictures.photograph(sys.argv[1], orientation=int(sys.argv[2]),"
        " quality=90))"
    )
    if source == "HEIF":  # its plug-in for Pillow, which stays for good, lives in another process
        command = [sys.executable, "-c", program, source, str(orientation)]
        done = subprocess.run(command, capture_output=True, check=True, timeout=60)
        data = done.stdout
    else:
        data = pictures.photograph(source, orientation=orientation)
    picture = imageio.read(data)
    upright = lain(pictures.smooth(3) / 255, orientation)
    assert picture.pixels.shape == upright.shape
    assert np.abs(picture.pixels - upright).mean() < 0.02


# --- refusing -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLES)
def test_a_truncated_file_is_refused_or_read_whole(name: str) -> None:
    data = sample(name).data
    whole, length = imageio.read(data), len(data)
    cuts = {0, 1, 2, 8, 20, length // 8, length // 4, length // 2, length * 3 // 4}
    cuts |= {length * 9 // 10, length - 60, length - 20, length - 13}
    if not name.startswith("plain."):  # nobody can tell that the last decimal number lost a digit
        cuts |= {length - 4, length - 2, length - 1}
    for cut in sorted(cut for cut in cuts if 0 <= cut < length):
        try:
            picture = imageio.read(data[:cut])
        except InputRejected as error:
            assert error.transient, f"{cut} bytes of {length} may be still arriving: {error}"
            continue
        assert_same_pixels(picture, whole)


def jpeg(*, progressive: bool = False, mode: str = "RGB") -> bytes:
    """A noisy picture, so that every byte of its scan says something."""
    noise = np.random.default_rng(5).integers(0, 256, (160, 240, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, "JPEG", quality=90, progressive=progressive)
    return file.getvalue()


def taller(data: bytes) -> bytes:
    """The same scan under a header that claims more rows."""
    place = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) + 5
    return data[:place] + struct.pack(">H", 400) + data[place + 2 :]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_with_a_damaged_scan_is_refused(progressive: bool, mode: str) -> None:
    data = jpeg(progressive=progressive, mode=mode)
    half = len(data) // 2
    cases = {
        "cut, and closed": data[:half] + b"\xff\xd9",
        "zeros": data[:half] + bytes(2000) + data[half + 2000 :],
        "taller": taller(data),
        "a few bytes left over": data[: half - 20]
        + data[half:-2]
        + data[half : half + 8]
        + b"\xff\xd9",
    }
    assert imageio.read(data).width == 240
    for case, damaged in cases.items():
        with pytest.raises(InputRejected, match=r"truncated or damaged \(Corrupt JPEG") as raised:
            imageio.read(damaged, name=case)
        assert raised.value.transient and raised.value.hint


def rows_of_png(rows: int, *, bits: int = 8, interlaced: bool = False) -> bytes:
    """A grey PNG of 40 x 40 px whose stream is whole, and holds so many of its rows."""
    head = struct.pack(">IIBBBBB", 40, 40, bits, 0, 0, 0, interlaced)
    row = b"\0" + b"\xc8" * (40 * bits // 8)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(row * rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png.chunk(kind, data) for kind, data in chunks)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_png_with_too_few_rows_is_refused(bits: int) -> None:
    assert imageio.read(rows_of_png(40, bits=bits)).height == 40
    for rows in (0, 1, 39):
        with pytest.raises(InputRejected, match="truncated or damaged"):
            imageio.read(rows_of_png(rows, bits=bits))


def test_an_interlaced_png_has_all_its_passes() -> None:
    with pytest.raises(InputRejected, match="truncated or damaged"):
        imageio.read(rows_of_png(30, interlaced=True))
    grey = np.full((40, 41, 1), 200, np.uint8)
    assert imageio.read(pictures.interlaced_png(grey)).width == 41


def extra_channel(kinds: list[str]) -> bytes:
    """A TIFF of red with further channels of zeros, which say what they are."""
    stored = np.zeros((8, 8, 3 + len(kinds)), np.uint8)
    stored[..., 0] = 255
    return pictures.tiff(stored, photometric="rgb", extrasamples=kinds)


def test_a_channel_that_says_to_be_no_transparency_is_none() -> None:
    plain = imageio.read(extra_channel(["unspecified"]))
    assert plain.alpha is None
    assert plain.notes == ("1 further channels were left out",)
    second = imageio.read(extra_channel(["unspecified", "unassalpha"]))
    assert second.alpha is not None
    assert second.notes == ("1 further channels were left out",)
    assert imageio.read(extra_channel(["unassalpha"])).notes == ()


@pytest.mark.parametrize("format", ["tiff", "png", "jpeg", "webp", "avif"])
def test_a_tiffs_texts_keep_their_bytes(format: str) -> None:
    stored = np.zeros((8, 8, 3), np.uint8)
    artist = "Ä. Müller".encode()
    data = pictures.tiff(
        stored, photometric="rgb", extratags=[(315, 2, len(artist) + 1, artist + b"\0", True)]
    )
    out = io.BytesIO()
    imageio.write(imageio.read(data), out, format=format)
    assert artist in out.getvalue()


@pytest.mark.parametrize("head", ["\niptc\n", "\nIPTC profile\n", "\ngeneric profile\n"])
def test_iptc_in_a_png_is_read_whatever_its_first_line_says(head: str) -> None:
    record = bytes.fromhex("1c02190003666f6f")
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type iptc", f"{head}      {len(record)}\n{record.hex()}\n", zip=True)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    assert imageio.read(file.getvalue()).metadata.iptc == record


def test_exif_and_xmp_that_a_png_keeps_as_a_jpegs_segments_are_read() -> None:
    block = Image.Exif()
    block[0x0112] = 6
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'
    for segment in (block.tobytes(), b"http://ns.adobe.com/xap/1.0/\0" + packet):
        info = PngImagePlugin.PngInfo()
        text = f"\ngeneric profile\n      {len(segment)}\n{segment.hex()}\n"
        info.add_text("Raw profile type APP1", text, zip=True)
        file = io.BytesIO()
        Image.new("RGB", (8, 4)).save(file, "PNG", pnginfo=info)
        found = imageio.read(file.getvalue())
        turned = segment.startswith(b"Exif")
        assert (found.width, found.height) == ((4, 8) if turned else (8, 4))
        assert found.metadata.xmp == (None if turned else packet)


def test_a_damaged_restart_interval_is_refused() -> None:
    noise = np.random.default_rng(6).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=90, restart_marker_blocks=2)
    data = file.getvalue()
    interval = data.index(b"\xff\xd3") - 12
    damaged = data[:interval] + b"\x55" * 6 + data[interval + 6 :]
    assert imageio.read(data).width == 96
    with pytest.raises(InputRejected, match="Corrupt JPEG"):
        imageio.read(damaged)


def test_junk_before_a_jpegs_scan_hides_no_damage() -> None:
    data = jpeg()
    scan = data.rindex(b"\xff\xda")
    junk = data[:scan] + b"abc" + data[scan:]
    assert np.array_equal(imageio.read(junk).pixels, imageio.read(data).pixels)
    with pytest.raises(InputRejected, match="Corrupt JPEG"):
        imageio.read(junk[:-5000] + junk[-1000:])


def test_a_profile_that_is_numbered_wrongly_is_no_damage() -> None:
    data = jpeg()
    body = b"ICC_PROFILE\0\x03\x02" + b"x" * 40
    segment = b"\xff\xe2" + struct.pack(">H", len(body) + 2) + body
    read = imageio.read(data[:2] + segment + data[2:])
    assert np.array_equal(read.pixels, imageio.read(data).pixels)


def directory(entries: list[tuple[int, int, int, bytes]]) -> bytes:
    """A directory of a little-endian TIFF: (tag, type, count, value or its place)."""
    rows = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries)
    return struct.pack("<H", len(entries)) + rows + bytes(4)


def test_the_interoperability_directory_of_a_tiff_is_kept() -> None:
    def number(value: int) -> bytes:
        return struct.pack("<I", value)

    first, second, third = 8, 8 + 2 + 12 * 10 + 4, 8 + 2 + 12 * 10 + 4 + 2 + 24 + 4
    moment = third + 2 + 12 + 4
    stored = [
        *((tag, 3, 1, number(value)) for tag, value in ((256, 4), (257, 4), (258, 8), (259, 1))),
        *((tag, 3, 1, number(value)) for tag, value in ((262, 1),)),
        (273, 4, 1, number(moment + 20)),
        (277, 3, 1, number(1)),
        (279, 4, 1, number(16)),
        (315, 2, 4, b"Ada\0"),
        (34665, 4, 1, number(second)),
    ]
    data = struct.pack("<2sHI", b"II", 42, first) + directory(stored)
    data += directory([(0x9003, 2, 20, number(moment)), (0xA005, 4, 1, number(third))])
    data += directory([(1, 2, 4, b"R98\0")]) + b"2021:06:07 08:09:10\0" + bytes(16)
    picture = imageio.read(data)
    assert picture.notes == ()
    for format in ("tiff", "jpeg", "png"):
        out = io.BytesIO()
        assert imageio.write(picture, out, format=format) == ()
        with Image.open(out) as image:
            found = image.getexif()
            assert found[0x013B] == "Ada"
            assert found.get_ifd(0x8769)[0x9003] == "2021:06:07 08:09:10"
            assert found.get_ifd(0xA005)[1] == "R98"


def test_a_png_is_looked_at_once_and_up_to_its_end() -> None:
    whole = rows_of_png(40)
    more = png.chunk(b"IDAT", b"\0" * 1_000_000)
    behind = whole[:-12] + more * 30 + whole[-12:]  # further chunks behind the stream's end
    begun = time.perf_counter()
    containers.refuse_short_png(io.BytesIO(behind), "behind.png")
    assert time.perf_counter() - begun < 1
    trailing = whole + png.chunk(b"IHDR", struct.pack(">IIBBBBB", 9000, 9000, 8, 0, 0, 0, 0))
    assert imageio.read(trailing).height == 40


def test_bytes_that_cameras_pad_a_jpeg_with_are_no_damage() -> None:
    data = jpeg()
    for padding in (b"\0", bytes(15), b"\xaa" * 20):
        padded = imageio.read(data[:-2] + padding + b"\xff\xd9")
        assert np.array_equal(padded.pixels, imageio.read(data).pixels)


@pytest.mark.parametrize("name", ["rgb.jpg", "progressive.jpg", "rgb.png", "rgb16.png"])
def test_a_preallocated_file_half_filled_is_refused(name: str) -> None:
    data = sample(name).data
    for part in (0.5, 0.8, 0.95):
        filled = int(len(data) * part)
        with pytest.raises(InputRejected, match="truncated or damaged") as caught:
            imageio.read(data[:filled] + bytes(len(data) - filled), name="bird.jpg")
        assert caught.value.transient
        assert str(caught.value).startswith("bird.jpg: ")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"Dear diary, this is no picture at all.", "not a picture"),
        (b"GIF89a" + bytes(100), "a GIF"),
        (b"%PDF-1.7" + bytes(100), "a PDF"),
        (b"8BPS\0\1" + bytes(100), "Photoshop"),
        (b"\xff\x0a" + bytes(100), "a JPEG XL"),
        (b"v/1\x01" + bytes(100), "an OpenEXR"),
        (pictures.tiff(np.zeros((4, 4), np.float32)), "float or signed"),
        (pictures.tiff(np.zeros((4, 4), np.int16)), "float or signed"),
        (pictures.tiff(np.zeros((4, 4), np.uint32)), "32 bits"),
        (pictures.tiff(np.zeros((4, 4, 3), np.uint8), photometric="cielab"), "photometric 8"),
    ],
)
def test_what_is_no_picture_is_refused_for_good(data: bytes, said: str) -> None:
    with pytest.raises(InputRejected, match=said) as caught:
        imageio.read(data)
    assert not caught.value.transient
    assert caught.value.hint


@pytest.mark.parametrize("data", [b"", bytes(5000)], ids=["empty", "preallocated"])
def test_a_file_without_content_may_be_still_arriving(data: bytes) -> None:
    with pytest.raises(InputRejected) as caught:
        imageio.probe(data)
    assert caught.value.transient


@pytest.mark.parametrize("name", sorted(pictures.animated()))
def test_several_pictures_are_refused_by_name_or_the_first_is_taken(name: str) -> None:
    data = pictures.animated()[name]
    with pytest.raises(InputRejected, match="holds 3 pictures") as caught:
        imageio.probe(data)
    assert 'animated = "first"' in caught.value.hint
    picture = imageio.read(data, animated="first")
    assert np.abs(picture.pixels - [1, 0, 0]).max() < 0.05


def test_a_preview_is_no_second_picture() -> None:
    assert imageio.read(pictures.with_preview()).width == pictures.WIDTH


def test_more_than_max_pixels_is_refused_by_the_header() -> None:
    for name in SAMPLES:
        with pytest.raises(InputRejected, match="more than the 850 px") as caught:
            imageio.probe(sample(name).data, max_pixels=850)
        assert not caught.value.transient
    assert imageio.read(sample("rgb.png").data, max_pixels=851).width == 37


def bomb(kind: str) -> bytes:
    """A few bytes whose header claims 19,000 x 19,000 px."""
    side = 19_000
    if kind == "png":
        data = sample("rgb.png").data
        head = struct.pack(">II", side, side) + data[24:29]
        return data[:8] + pictures.png_chunk(b"IHDR", head) + data[33:]
    if kind == "jpg":
        data = bytearray(sample("rgb.jpg").data)
        place = data.index(b"\xff\xc0") + 5
        data[place : place + 4] = struct.pack(">HH", side, side)
        return bytes(data)
    if kind == "bmp":
        data = bytearray(sample("rgb.bmp").data)
        data[18:26] = struct.pack("<ii", side, side)
        return bytes(data)
    if kind == "tif":
        out = io.BytesIO(sample("rgb16.tif").data)
        import tifffile

        with tifffile.TiffFile(out) as tiff:
            tags = tiff.pages[0].tags
            for tag in (256, 257, 322, 323):
                tags[tag].overwrite(side if tag < 300 else 19_008)
        return out.getvalue()
    if kind == "jp2":
        data = sample("rgb.jp2").data
        old = struct.pack(">II", pictures.HEIGHT, pictures.WIDTH)
        return data.replace(old, struct.pack(">II", side, side), 1)
    return f"P6 {side} {side} 65535\n".encode() + bytes(100)


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "tif", "ppm", "jp2"])
def test_a_lying_header_is_refused_before_memory_is_taken(kind: str) -> None:
    program = (
        "import resource, sys\n"
        "from fluxwatchd import imageio\n"
        "from fluxwatchd.errors import InputRejected\n"
        "data = sys.stdin.buffer.read()\n"
        "imageio.read(open(sys.argv[1], 'rb').read())\n"  # the libraries are in memory now
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n"
        "    imageio.read(data)\n"
        "except InputRejected as error:\n"
        "    print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    import tempfile

    with tempfile.NamedTemporaryFile() as good:
        good.write(sample("rgb16.tif" if kind == "tif" else "rgb.png").data)
        good.flush()
        done = subprocess.run(
            [sys.executable, "-c", program, good.name],
            input=bomb(kind),
            capture_output=True,
            check=True,
            timeout=60,
        )
    message, kilobytes = done.stdout.decode().strip().rsplit("\n", 1)
    assert "truncated or damaged" in message
    assert int(kilobytes) < 50_000


def test_warnings_and_logs_do_not_leak(capfd: pytest.CaptureFixture[str]) -> None:
    broken = bytearray(pictures.photograph("TIFF"))
    broken[-40:] = bytes(40)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for data in (bytes(broken), sample("rgb.tif").data[:300], sample("p.png").data):
            try:
                imageio.read(data)
            except InputRejected:
                continue
    assert not seen
    assert capfd.readouterr() == ("", "")


def test_quiet_threads_leave_the_filters_as_they_were() -> None:
    before = list(warnings.filters)
    first_in, first_out = threading.Event(), threading.Event()

    def one() -> None:
        with faults.quiet():
            first_in.set()
            first_out.wait(10)

    thread = threading.Thread(target=one)
    thread.start()
    assert first_in.wait(10)
    with faults.quiet():
        first_out.set()
        thread.join(10)
    assert list(warnings.filters) == before


# --- writing: pixels ------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("format", ["png", "tiff"])
def test_a_round_trip_is_equal_in_every_pixel_and_depth(name: str, format: str) -> None:
    picture = imageio.read(sample(name).data)
    again = back(picture, format)
    assert again.depth == picture.depth
    if sample(name).largest in (255, 65535) and not sample(name).mode.startswith("CMYK"):
        assert_same_pixels(again, picture)
    else:
        np.testing.assert_allclose(again.pixels, picture.pixels, atol=0.5 / 255 + 1e-6)


def test_webp_at_100_is_lossless() -> None:
    for name in ("rgb.png", "rgba.png", "pa.png"):
        picture = imageio.read(sample(name).data)
        assert_same_pixels(back(picture, "webp", quality=100), picture)


@pytest.mark.parametrize(("format", "near"), [("jpeg", 0.01), ("webp", 0.02), ("avif", 0.01)])
def test_lossy_formats_come_near(format: str, near: float) -> None:
    pixels = (pictures.smooth(3) / 255).astype(np.float32)
    again = back(imageio.Picture(pixels), format, quality=95)
    assert again.pixels.shape == pixels.shape
    assert np.abs(again.pixels - pixels).mean() < near


@pytest.mark.parametrize("format", ["png", "tiff", "jpeg", "avif"])
def test_grey_stays_grey(format: str) -> None:
    picture = imageio.read(sample("l.png").data)
    assert back(picture, format).pixels.shape[2] == 1


@given(st.integers(0, 65535), st.booleans())
def test_integers_come_back_from_floats(value: int, deep: bool) -> None:
    largest = 65535 if deep else 255
    number = min(value, largest)
    unit = np.full((1, 1), number, np.float32) / np.float32(largest)
    assert quantised(unit, deep=deep)[0, 0] == number


def test_floats_are_rounded_not_truncated() -> None:
    values = np.array([[0.6 / 255, 1.4 / 255, 254.6 / 255, -0.2, 1.3]], np.float32)
    assert quantised(values, deep=False).tolist() == [[1, 1, 255, 0, 255]]


def test_going_down_to_8_bits_is_dithered_around_the_true_value() -> None:
    level = np.float32(100.3 / 255)
    picture = imageio.Picture(np.full((200, 200, 1), level), depth=16)
    out = io.BytesIO()
    notes = imageio.write(picture, out, format="jpeg", quality=100)
    assert any("dithered" in note for note in notes)
    assert abs(imageio.read(out.getvalue()).pixels.mean() * 255 - 100.3) < 0.05
    dithered = quantised(picture.pixels, deep=False, random=np.random.default_rng(0))
    assert set(np.unique(dithered)) == {100, 101}


def test_dither_leaves_what_8_bits_can_hold() -> None:
    exact = (np.arange(256, dtype=np.float32) / 255).repeat(50).reshape(256, 50)
    held = np.arange(256, dtype=np.uint8).repeat(50).reshape(256, 50)
    np.testing.assert_array_equal(
        quantised(exact, deep=False, random=np.random.default_rng(0)), held
    )


def test_the_same_picture_gives_the_same_bytes() -> None:
    picture = imageio.read(sample("rgba16.png").data)
    for format in ("png", "jpeg", "webp", "tiff", "avif"):
        assert written(picture, format) == written(picture, format)


def test_jpeg_says_that_alpha_was_flattened() -> None:
    picture = imageio.Picture(
        np.zeros((16, 16, 3), np.float32), alpha=np.full((16, 16), 0.25, np.float32)
    )
    out = io.BytesIO()
    notes = imageio.write(picture, out, format="jpeg", quality=100)
    assert any("alpha" in note for note in notes)
    assert np.abs(imageio.read(out.getvalue()).pixels - 0.75).max() < 0.01


@pytest.mark.parametrize("format", ALPHA_FORMATS)
def test_alpha_is_kept_with_the_colour_under_it(format: str) -> None:
    picture = imageio.read(sample("rgba.png").data)
    again = back(picture, format, quality=100)
    np.testing.assert_array_equal(again.alpha, picture.alpha)
    if format != "avif":
        np.testing.assert_array_equal(again.pixels, picture.pixels)


@pytest.mark.parametrize(
    ("format", "height", "width"),
    [("webp", 1, 16_384), ("jpeg", 65_501, 1), ("avif", 1, 65_537), ("tiff", 40_000, 40_000)],
)
def test_a_picture_too_large_for_its_format_is_refused_with_a_remedy(
    format: str, height: int, width: int
) -> None:
    pixels = np.broadcast_to(np.float32(0.5), (height, width, 3))
    with pytest.raises(JobFailed, match=format) as caught:
        written(imageio.Picture(pixels), format)
    assert not caught.value.transient
    assert 'format = "png"' in caught.value.hint


def test_suffixes_follow_the_format_and_the_source() -> None:
    jpeg = imageio.read(sample("rgb.jpg").data)
    bitmap = imageio.read(sample("rgb.bmp").data)
    assert imageio.suffix("png", jpeg) == ".png"
    assert imageio.suffix("same", jpeg) == ".jpg"
    assert imageio.suffix("same", bitmap) == ".png"
    assert imageio.read(written(jpeg, "same")).format == "JPEG"


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (1, 900)])
@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff", "avif"])
def test_awkward_sizes_are_written_and_read(size: tuple[int, int], format: str) -> None:
    picture = imageio.Picture(np.full((*size, 3), 0.5, np.float32))
    assert back(picture, format).pixels.shape == (*size, 3)


# --- writing: colour ------------------------------------------------------------------------


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("format", ["png", "tiff"])
def test_a_wide_profile_is_converted_to_work_and_back(deep: bool, format: str) -> None:
    icc = pictures.wide_profile()
    stored = pictures.noise(3, 65535 if deep else 255)
    data = _with_icc(stored, icc)
    picture = imageio.read(data)
    again = back(picture, format)
    assert again.metadata.icc == icc
    assert again.depth == (16 if deep else 8)
    round_trip = _stored(written(picture, format))
    assert np.abs(round_trip - stored / (65535 if deep else 255)).max() < 1 / 255 + 1e-6


def _with_icc(stored: pictures.Array, icc: bytes) -> bytes:
    return pictures.tiff(stored, photometric="rgb", iccprofile=icc)


def _stored(data: bytes) -> pictures.Array:
    """The numbers in the file, 0..1, its profile taken out."""
    raw = imageio.read(_without_icc(data))
    return raw.pixels


def _without_icc(data: bytes) -> bytes:
    if data[:4] != b"\x89PNG":
        import tifffile

        with tifffile.TiffFile(io.BytesIO(data)) as tiff:
            return pictures.tiff(tiff.pages[0].asarray(), photometric="rgb")
    place = data.index(b"iCCP") - 4
    size = struct.unpack(">I", data[place : place + 4])[0]
    return data[:place] + data[place + 12 + size :]


def test_bounds_span_the_colours_that_srgb_cannot_hold() -> None:
    inside = imageio.read(sample("rgb.png").data)
    assert inside.bounds == (0.0, 1.0)
    wide = imageio.read(_with_icc(pictures.noise(3), pictures.wide_profile()))
    low, high = wide.bounds
    assert -0.7 < low < 0
    assert 1 < high < 1.3


def test_known_colours_of_a_wide_profile_become_the_right_srgb() -> None:
    # Display P3's red in sRGB: 1.0930, -0.2267, -0.1501 (CSS Color 4's matrices, mirrored curve).
    red = np.array([[[65535, 0, 0], [32768, 32768, 32768]]], np.uint16)
    picture = imageio.read(_with_icc(red, pictures.wide_profile()))
    np.testing.assert_allclose(picture.pixels[0, 0], [1.093, -0.2267, -0.1501], atol=2e-3)
    # Gamma 2.2 at one half is linear 0.2176, which sRGB's curve writes as 0.5039.
    np.testing.assert_allclose(picture.pixels[0, 1], [0.504] * 3, atol=1e-3)


def test_srgb_under_any_name_is_left_alone() -> None:
    from PIL import ImageCms

    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    stored = pictures.noise(3, 65535)
    picture = imageio.read(_with_icc(stored, icc))
    np.testing.assert_array_equal(np.rint(picture.pixels * 65535), stored)
    assert back(picture).metadata.icc == icc


def test_a_grey_profile_is_converted_and_kept_and_the_picture_stays_grey() -> None:
    icc = pictures.grey_profile()
    stored = pictures.noise(1)
    picture = imageio.read(pictures.pillow(stored, "L", "PNG", icc_profile=icc))
    assert picture.pixels.shape[2] == 1
    linear = (stored / 255.0) ** 1.8
    expected = colour.encode_srgb(linear.astype(np.float32))
    np.testing.assert_allclose(picture.pixels, expected, atol=2e-3)
    data = written(picture)
    assert imageio.read(data).metadata.icc == icc
    np.testing.assert_array_equal(np.rint(_stored(data) * 255), stored)


def test_cmyk_goes_through_its_profile_and_leaves_as_rgb() -> None:
    icc = pictures.cmyk_profile()
    for stored in (pictures.smooth(4), pictures.noise(4)):
        ink = Image.frombytes("CMYK", (pictures.WIDTH, pictures.HEIGHT), stored.tobytes())
        for format in ("JPEG", "TIFF"):
            data = pictures.encoded(ink, format, icc_profile=icc)
            picture = imageio.read(data)
            assert picture.mode == "CMYK"
            with Image.open(io.BytesIO(data)) as decoded:
                assert np.abs(picture.pixels * 255 - by_image_cms(decoded, icc)).max() < 1
            assert back(picture).metadata.icc is None


def by_image_cms(ink: Image.Image, icc: bytes) -> np.ndarray[Any, Any]:
    """What Pillow's LittleCMS makes of CMYK, exactly: a table of it would be off by up to 12."""
    from PIL import ImageCms

    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOOPTIMIZE
    source, target = ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB")
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    transform = ImageCms.buildTransform(
        source, target, "CMYK", "RGB", renderingIntent=intent, flags=flags
    )
    done = ImageCms.applyTransform(ink, transform)
    assert done is not None
    return np.asarray(done, np.float64)


@pytest.mark.parametrize("bits", [4, 12, 16])
def test_cmyk_of_any_depth_goes_through_its_profile(bits: int) -> None:
    icc, steps = pictures.cmyk_profile(), pictures.noise(4, 15)
    stored = steps.astype(np.uint8 if bits == 4 else np.uint16) * (((1 << bits) - 1) // 15)
    options: dict[str, Any] = {"bitspersample": bits} if bits < 16 else {}
    picture = imageio.read(pictures.separated(stored, iccprofile=icc, **options))
    ink = Image.frombytes("CMYK", (pictures.WIDTH, pictures.HEIGHT), (steps * 17).tobytes())
    assert np.abs(picture.pixels * 255 - by_image_cms(ink, icc)).max() < 1


def test_a_broken_profile_is_left_out_and_the_picture_kept() -> None:
    stored = pictures.noise(3)
    picture = imageio.read(_with_icc(stored, b"no profile" * 30))
    np.testing.assert_array_equal(np.rint(picture.pixels * 255), stored)
    assert back(picture).metadata.icc is None


def test_a_png_gamma_is_colour_too() -> None:
    data = sample("rgb.png").data
    chunk = pictures.png_chunk(b"gAMA", struct.pack(">I", 100_000))
    picture = imageio.read(data[:33] + chunk + data[33:])
    expected = colour.encode_srgb((pictures.noise(3) / 255).astype(np.float32))
    np.testing.assert_allclose(picture.pixels, expected, atol=1e-3)
    np.testing.assert_array_equal(np.rint(_stored(written(picture)) * 255), pictures.noise(3))


# --- writing: metadata ----------------------------------------------------------------------

SOURCES = ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"]


def pillow_exif(data: bytes) -> Image.Exif:
    with Image.open(io.BytesIO(data)) as image:
        return image.getexif()


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff", "avif"])
def test_exif_is_kept_with_size_and_orientation_mended(source: str, format: str) -> None:
    picture = imageio.read(pictures.photograph(source))
    large = replace(picture, pixels=np.zeros((74, 46, 3), np.float32))
    block = pillow_exif(written(large, format, scale=2.0))
    assert block[0x010F] == "Camera & Co"
    assert block.get(0x0112, 1) == 1
    camera = block.get_ifd(0x8769)
    assert camera[0x829A] == pytest.approx(1 / 125)
    assert (camera[0xA002], camera[0xA003]) == (46, 74)
    assert block[0x011A] == pytest.approx(600, rel=1e-3)
    assert block.get_ifd(0x8825)[2] == (47.0, 22.0, 30.0)


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff", "avif"])
def test_gps_is_stripped_on_demand_from_exif_and_xmp(format: str) -> None:
    picture = imageio.read(pictures.photograph())
    data = written(picture, format, strip_gps=True)
    block = pillow_exif(data)
    assert not block.get_ifd(0x8825)
    assert 0x8825 not in block
    assert block[0x010F] == "Camera & Co"
    assert b"GPS" not in data
    degrees = struct.pack("<6I", 47, 1, 22, 1, 30, 1)
    assert degrees in written(picture, format)
    assert degrees not in data


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff", "avif"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_maker_note_keeps_its_bytes(format: str, order: str) -> None:
    metadata = imageio.Metadata(exif=pictures.exif_block(order=order))
    picture = imageio.Picture(np.zeros((9, 9, 3), np.float32), metadata=metadata)
    block = pillow_exif(written(picture, format))
    assert block.get_ifd(0x8769)[0x927C] == pictures.MAKER_NOTE


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_thumbnail_is_made_anew(order: str) -> None:
    metadata = imageio.Metadata(exif=pictures.exif_block(order=order))
    green = np.zeros((40, 60, 3), np.float32)
    green[..., 1] = 1
    data = back(imageio.Picture(green, metadata=metadata), "jpeg").metadata.exif or b""
    assert pictures.thumbnail() not in data
    first = pillow_exif_of(data).get_ifd(ExifTags.IFD.IFD1)
    start, size = first[0x0201], first[0x0202]
    with Image.open(io.BytesIO(data[start : start + size])) as small:
        assert small.size == (60, 40)
        assert np.abs(np.asarray(small)[20, 30].astype(int) - [0, 255, 0]).max() < 4


def pillow_exif_of(block: bytes) -> Image.Exif:
    loaded = Image.Exif()
    loaded.load(b"Exif\0\0" + block)
    return loaded


def test_broken_exif_is_left_out_and_said() -> None:
    block = pictures.exif_block()
    picture = imageio.Picture(
        np.zeros((4, 4, 3), np.float32), metadata=imageio.Metadata(exif=block[:150])
    )
    out = io.BytesIO()
    notes = imageio.write(picture, out, format="png")
    assert any("EXIF was left out" in note for note in notes)
    assert imageio.read(out.getvalue()).metadata.exif is None


@given(st.binary(max_size=80), st.integers(0, 900), st.booleans())
def test_exif_survives_any_damage(patch: bytes, place: int, strip: bool) -> None:
    block = bytearray(pictures.exif_block())
    block[place : place + len(patch)] = patch
    data = bytes(block)
    exif.orientation(data), exif.resolution(data), exif.has_thumbnail(data)
    try:
        exif.mend(data, width=9, height=9, dpi=(72, 72), thumbnail=b"x", strip_gps=strip)
        exif.relocate(data, 1000)
    except exif.BrokenExif:
        pass


def test_a_side_above_65535_is_a_long_in_exif() -> None:
    mended = exif.mend(
        pictures.exif_block(), width=70_000, height=5, dpi=None, thumbnail=None, strip_gps=False
    )
    camera = pillow_exif_of(mended).get_ifd(0x8769)
    assert (camera[0xA002], camera[0xA003]) == (70_000, 5)


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff", "avif"])
def test_xmp_is_kept_and_mended(format: str) -> None:
    picture = imageio.read(pictures.photograph())
    packet = (back(picture, format).metadata.xmp or b"").decode()
    assert 'tiff:Orientation="1"' in packet
    assert f'exif:PixelXDimension="{picture.width}"' in packet
    assert f'dc:format="image/{format}"' in packet
    assert 'exif:GPSLatitude="47,22.5N"' in packet


@pytest.mark.parametrize("format", ["png", "jpeg", "tiff"])
def test_iptc_is_kept(format: str) -> None:
    picture = imageio.read(pictures.photograph())
    assert picture.metadata.iptc == pictures.IPTC
    assert back(picture, format).metadata.iptc == pictures.IPTC


@pytest.mark.parametrize("format", ["webp", "avif"])
def test_what_has_no_place_is_said(format: str) -> None:
    notes = imageio.write(imageio.read(pictures.photograph()), io.BytesIO(), format=format)
    assert any("IPTC was left out" in note for note in notes)


def test_iptc_of_odd_length_and_other_resources_is_found() -> None:
    other = b"8BIM\x03\xed\x05named" + struct.pack(">I", 3) + b"abc\0"
    record = b"\x1c\x02\x78\x00\x01x"
    block = iptc.FIRST + other + iptc.resources(record).removeprefix(iptc.FIRST)
    assert iptc.record(block) == record
    assert iptc.record(record) == record
    assert iptc.record(b"nothing") is None


@pytest.mark.parametrize("format", ["png", "jpeg", "tiff"])
def test_resolution_grows_with_the_scale(format: str) -> None:
    picture = imageio.read(pictures.photograph(orientation=1))
    dpi = back(picture, format, scale=2.5).metadata.dpi
    assert dpi == pytest.approx((750, 750), rel=1e-3)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_no_resolution_is_made_up(format: str) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    picture = imageio.read(pictures.encoded(Image.new("RGB", (9, 9)), format, exif=exif))
    assert picture.metadata.exif
    assert picture.metadata.dpi is None


@pytest.mark.parametrize(("unit", "dpi"), [(0, None), (1, (300, 200)), (2, (762, 508)), (7, None)])
def test_a_jpegs_density_counts_where_it_has_a_unit(
    unit: int, dpi: tuple[float, float] | None
) -> None:
    data = pictures.encoded(Image.new("RGB", (9, 9)), "JPEG", dpi=(300, 200))
    place = data.index(b"JFIF\0") + 7
    data = data[:place] + bytes([unit]) + data[place + 1 :]
    assert imageio.read(data).metadata.dpi == (pytest.approx(dpi) if dpi else None)


def test_a_resolution_in_exif_counts_where_jfif_has_none() -> None:
    exif = Image.Exif()
    exif.update({0x011A: 240.0, 0x011B: 120.0, 0x0128: 2})
    picture = imageio.read(pictures.encoded(Image.new("RGB", (9, 9)), "JPEG", exif=exif))
    assert picture.metadata.dpi == pytest.approx((240, 120))


def test_what_lies_behind_a_pngs_pixels_is_found() -> None:
    for name in ("rgb.png", "rgb16.png"):
        data = sample(name).data
        late = pictures.png_chunk(b"eXIf", pictures.exif_block())
        late += pictures.png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + pictures.XMP)
        late += pictures.png_chunk(b"tEXt", b"Title\0bird")
        picture = imageio.read(data[:-12] + late + data[-12:])
        assert (picture.width, picture.height) == (pictures.HEIGHT, pictures.WIDTH)
        assert picture.metadata.exif == pictures.exif_block()
        assert picture.metadata.xmp == pictures.XMP
        assert picture.metadata.text == (("Title", "bird"),)


def test_exif_that_imagemagick_keeps_as_text_is_found() -> None:
    block = b"Exif\0\0" + pictures.exif_block()
    text = f"\nexif\n{len(block):8d}\n{block.hex()}\n".encode()
    data = sample("rgb.png").data
    chunk = pictures.png_chunk(b"tEXt", b"Raw profile type exif\0" + text)
    picture = imageio.read(data[:33] + chunk + data[33:])
    assert (picture.width, picture.height) == (pictures.HEIGHT, pictures.WIDTH)
    assert picture.metadata.exif == pictures.exif_block()
    assert picture.metadata.text == ()


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (b"tEXt", b"Raw profile type exif\0\nexif\n 3\nnot hexadecimal"),
        (b"gAMA", struct.pack(">I", 0)),
        (b"cHRM", bytes(32)),
        (b"cHRM", struct.pack(">8I", *[33_333] * 8)),
        (b"eXIf", b"MM\0*\xff\xff\xff\xff"),
    ],
)
def test_nonsense_beside_the_pixels_does_not_cost_the_picture(kind: bytes, data: bytes) -> None:
    plain = sample("rgb.png").data
    picture = imageio.read(plain[:33] + pictures.png_chunk(kind, data) + plain[33:])
    assert_same_pixels(picture, imageio.read(plain))
    assert_same_pixels(back(picture), picture)


def test_junk_between_the_segments_of_a_jpeg_is_passed_over() -> None:
    data = sample("rgb.jpg").data
    scan = data.index(b"\xff\xda")
    assert_same_pixels(imageio.read(data[:scan] + b"junk\xff" + data[scan:]), imageio.read(data))


def test_png_texts_and_jpeg_comments_are_kept() -> None:
    metadata = imageio.Metadata(text=(("Title", "Rhön"), ("Comment", "by hand")))
    picture = imageio.Picture(np.zeros((8, 8, 3), np.float32), metadata=metadata)
    assert back(picture, "png").metadata.text == metadata.text
    assert back(picture, "jpeg").metadata.text == (("Comment", "by hand"),)
    notes = imageio.write(picture, io.BytesIO(), format="jpeg")
    assert notes == ("text was left out (Title): JPEG has no place for it",)


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff", "avif"])
@pytest.mark.parametrize("has_xmp", [False, True])
def test_provenance_is_xmp_beside_what_was_there(format: str, has_xmp: bool) -> None:
    metadata = imageio.Metadata(xmp=pictures.XMP if has_xmp else None)
    picture = imageio.Picture(np.zeros((8, 8, 3), np.float32), metadata=metadata)
    given = {"job": "0123456789abcdef", "variant": "nano", "scale": 4.0, "prompt": 'a "<b>" & c'}
    packet = back(picture, format, provenance=given).metadata.xmp or b""
    found = properties(packet)
    assert found["{urn:fluxwatchd:provenance:1}job"] == "0123456789abcdef"
    assert found["{urn:fluxwatchd:provenance:1}scale"] == "4.0"
    assert found["{urn:fluxwatchd:provenance:1}prompt"] == 'a "<b>" & c'
    assert found[f"{{{xmp.IPTC_NAMESPACE}}}DigitalSourceType"] == (
        "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
    )
    assert ("{http://purl.org/dc/elements/1.1/}format" in found) == has_xmp


def properties(packet: bytes) -> dict[str, str]:
    """The attributes of every rdf:Description, parsed as XML."""
    from xml.etree import ElementTree

    text = re.sub(r"<\?xpacket.*?\?>", "", packet.decode())
    tree = ElementTree.fromstring(text.strip())
    return {
        name: value
        for description in tree.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
        for name, value in description.attrib.items()
    }


def test_a_second_upscaling_replaces_the_source_type_of_the_first() -> None:
    once = xmp.with_provenance(pictures.XMP, {"job": "1"})
    twice = xmp.with_provenance(once, {"job": "2"})
    assert twice.count(b"DigitalSourceType=") == 1
    assert properties(twice)["{urn:fluxwatchd:provenance:1}job"] == "2"


@pytest.mark.parametrize(
    "packet",
    [
        b"\xff\xfe<",
        b"<x:xmpmeta",
        b'<!DOCTYPE a [<!ENTITY b "cc">]><a>&b;</a>',
        b"<a>" + b"<exif:GPSA>" * 90_000,
    ],
    ids=["not UTF-8", "cut off", "entities", "never closed"],
)
def test_xmp_that_is_no_xml_is_left_out_and_said(packet: bytes) -> None:
    metadata = imageio.Metadata(xmp=packet)
    picture = imageio.Picture(np.zeros((4, 4, 3), np.float32), metadata=metadata)
    notes = imageio.write(picture, io.BytesIO(), format="png", strip_gps=True)
    assert len(notes) == 1
    assert "XMP was left out" in notes[0]


def test_gps_elements_are_stripped_too() -> None:
    packet = pictures.XMP.replace(
        b"</rdf:RDF>",
        b'<rdf:Description rdf:about="" xmlns:exif="http://ns.adobe.com/exif/1.0/">'
        b"<exif:GPSAltitude>5/1</exif:GPSAltitude><exif:GPSMapDatum/>"
        b"<exif:Flash><exif:Fired>True</exif:Fired></exif:Flash></rdf:Description></rdf:RDF>",
    )
    options: Any = {"width": 1, "height": 1, "dpi": None, "mime": "image/png"}
    assert b"GPS" not in xmp.mend(packet, strip_gps=True, **options)
    assert b"<exif:Fired>True" in xmp.mend(packet, strip_gps=True, **options)
    assert b"<exif:GPSMapDatum/>" in xmp.mend(packet, strip_gps=False, **options)


def test_another_source_type_can_be_named_or_none() -> None:
    named = xmp.with_provenance(None, {"digitalSourceType": "algorithmicallyEnhanced"})
    assert b"digitalsourcetype/algorithmicallyEnhanced" in named
    silent = xmp.with_provenance(None, {"job": "1", "digitalSourceType": None})
    assert b"DigitalSourceType" not in silent


# --- start-up and speed ---------------------------------------------------------------------


def test_importing_it_imports_numpy_and_pillow_alone() -> None:
    program = (
        "import sys, fluxwatchd.imageio\n"
        "print([m for m in ('torch', 'imagecodecs', 'tifffile', 'pillow_heif') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
