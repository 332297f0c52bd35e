"""What an exacting photographer looks at first: edges, gradients, colours, and what was lost."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pictures
import pytest
import tifffile
from PIL import Image
from test_roundtrip import delta_e, numbers, upscaled

from fluxwatchd import imageio
from fluxwatchd.errors import InputRejected
from fluxwatchd.imageio import colour, exif, xmp


def written(picture: imageio.Picture, format: str = "png", **options: Any) -> bytes:
    out = io.BytesIO()
    imageio.write(picture, out, format=format, **options)
    return out.getvalue()


# --- edges of what is transparent -----------------------------------------------------------


def disc(hidden: int, largest: int = 255) -> np.ndarray[Any, Any]:
    """(48, 48, 4): an opaque red disc with a soft edge on transparent grey of ``hidden``."""
    y, x = np.mgrid[:48, :48] - 23.5
    alpha = np.clip(18.5 - np.hypot(x, y), 0, 1)
    red = np.array([largest, 0, 0])
    rgb = np.where(alpha[..., None] > 0, red, hidden)
    kind = np.uint8 if largest == 255 else np.uint16
    return np.concatenate([rgb, np.rint(alpha * largest)[..., None]], -1).astype(kind)


@pytest.mark.parametrize("variant", ["lanczos", "nano"])
def test_what_lies_hidden_does_not_colour_the_edge(variant: str, tmp_path: Path) -> None:
    files = {f"{hidden}.png": pictures.pillow(disc(hidden), "RGBA", "PNG") for hidden in (0, 255)}
    done = upscaled(tmp_path, files, f"variant={variant}", "scale=4", "seed=1")
    black, white = (numbers(done[f"{hidden}.png"][0]).astype(int) for hidden in (0, 255))
    np.testing.assert_array_equal(black[..., 3], white[..., 3])
    seen = black[..., 3] > 0
    assert np.abs(black[seen] - white[seen]).max() <= 1
    worst = np.abs(black[seen][:, :3] - [255, 0, 0]).max()
    print(f"{variant}: edge at most {worst} of 255 from red")
    assert worst <= (0 if variant == "lanczos" else 12)
    assert black[96, 96, 3] == 255
    assert black[0, 0, 3] == 0


def test_colour_that_alpha_was_multiplied_into_is_as_it_was() -> None:
    straight = pictures.noise(4, 65535)
    alpha = straight[..., 3:].astype(float) / 65535
    stored = np.concatenate([np.rint(straight[..., :3] * alpha), straight[..., 3:]], -1)
    data = pictures.tiff(stored.astype(np.uint16), photometric="rgb", extrasamples=["assocalpha"])
    picture = imageio.read(data)
    np.testing.assert_array_equal(np.rint(picture.alpha * 65535), straight[..., 3])
    again = numbers_of(written(picture)).astype(float)
    assert np.abs(again[..., :3] * alpha - stored[..., :3]).max() <= 1


def numbers_of(png: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(imagecodecs.png_decode(png))


# --- gradients, subsampling -----------------------------------------------------------------


@pytest.mark.parametrize("format", ["png", "tiff"])
def test_a_deep_gradient_has_no_bands(format: str, tmp_path: Path) -> None:
    ramp = np.rint(np.linspace(20_000, 21_000, 64)).astype(np.uint16)  # four steps of 8 bits
    stored = np.repeat(np.tile(ramp, (32, 1))[..., None], 3, 2)
    settings = "variant=lanczos", "scale=4", f"format={format}"
    path, record = upscaled(tmp_path, {"sky.png": pictures.deep_png(stored)}, *settings)["sky.png"]
    assert record["output"]["depth"] == 16
    row = numbers(path)[64, :, 0].astype(int)
    inner = row[16:-16]
    assert np.diff(inner).min() >= 0
    assert np.diff(inner).max() <= 8
    assert len(np.unique(inner)) > 200


def test_a_jpeg_at_95_keeps_full_colour_resolution(tmp_path: Path) -> None:
    files = {"photo.png": pictures.pillow(pictures.smooth(3), "RGB", "PNG")}
    settings = "variant=lanczos", "scale=2", "format=jpeg"
    path, _ = upscaled(tmp_path, files, *settings)["photo.png"]
    with Image.open(path) as image:
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3
        # The largest quantisation steps of Annex K at quality 95 (libjpeg's scaling).
        assert max(image.quantization[0]) == 12


def test_adobes_turned_cmyk_is_not_negative(tmp_path: Path) -> None:
    ink = np.zeros((16, 16, 4), np.uint8)
    ink[:, :8, 1:3] = 255  # red, beside white paper
    data = pictures.encoded(Image.frombytes("CMYK", (16, 16), ink.tobytes()), "JPEG", quality=95)
    assert b"Adobe" in data[:100]
    settings = "variant=lanczos", "scale=1"
    path, record = upscaled(tmp_path, {"ink.jpg": data}, *settings)["ink.jpg"]
    found = numbers(path).astype(int)
    assert np.abs(found[8, 2] - [255, 0, 0]).max() <= 3
    assert np.abs(found[8, 13] - [255, 255, 255]).max() <= 3
    assert "CMYK became sRGB by a plain formula" in " ".join(record["notes"])


# --- colour ---------------------------------------------------------------------------------


WIDE = ("display-p3", "adobe-rgb", "prophoto")
PATCHES, SIDE = pictures.colours(255)[::4, ::4], 24
"""Colours, and how many px of a card each is wide."""


@pytest.fixture(scope="module", params=["lanczos", "nano"])
def cards(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A variant, the colour spaces' profiles, and a card of each made larger by one command."""
    icc = {name: pictures.rgb_profile(name) for name in WIDE}  # they say when they were made
    stored = PATCHES.repeat(SIDE, 0).repeat(SIDE, 1)
    files = {
        f"{name}.tif": pictures.tiff(stored, photometric="rgb", iccprofile=icc[name])
        for name in WIDE
    }
    settings = f"variant={request.param}", "scale=2", "seed=1"
    return request.param, icc, upscaled(tmp_path_factory.mktemp("cards"), files, *settings)


@pytest.mark.parametrize("name", WIDE)
def test_wide_colours_stay_when_a_picture_grows(name: str, cards: tuple) -> None:
    variant, icc, done = cards
    path, _ = done[f"{name}.tif"]
    middle = numbers(path)[SIDE :: 2 * SIDE, SIDE :: 2 * SIDE]
    assert imageio.read(path).metadata.icc == icc[name]
    difference = delta_e(np.ascontiguousarray(PATCHES), np.ascontiguousarray(middle), icc[name])
    print(f"{name} by {variant}: deltaE 2000 up to {difference:.2f}")
    # ProPhoto's green and blue are colours that nobody can see, and no model was trained on.
    assert difference < (0.3 if variant == "lanczos" else 7 if name == "prophoto" else 2)


def test_colour_named_by_number_is_converted_and_written_as_a_profile() -> None:
    plain = pictures.corpus()["rgb.png"].data
    chunk = pictures.png_chunk(b"cICP", bytes([12, 13, 0, 1]))
    picture = imageio.read(plain[:33] + chunk + plain[33:])
    icc = pictures.rgb_profile("display-p3")
    expected = colour.to_srgb((pictures.noise(3) / 255).astype(np.float32), icc)
    np.testing.assert_allclose(picture.pixels, expected, atol=2e-3)
    np.testing.assert_array_equal(numbers_of(written(picture)), pictures.noise(3))
    coded: dict[str, int] = {"primaries": 12, "transfer": 13, "matrix": 6}
    phone = imagecodecs.avif_encode(pictures.smooth(3), level=95, **coded)
    expected = colour.to_srgb((pictures.smooth(3) / 255).astype(np.float32), icc)
    assert np.abs(imageio.read(bytes(phone)).pixels - expected).mean() < 0.01


def test_unknown_numbers_of_colour_are_said() -> None:
    plain = pictures.corpus()["rgb.png"].data
    chunk = pictures.png_chunk(b"cICP", bytes([99, 99, 0, 1]))
    picture = imageio.read(plain[:33] + chunk + plain[33:])
    assert "its numbers (99, 99) are not known" in picture.notes[0]


@pytest.mark.parametrize(("transfer", "named"), [(16, "PQ"), (18, "HLG")])
def test_high_dynamic_range_is_refused_by_name(transfer: int, named: str) -> None:
    coded: dict[str, int] = {"primaries": 9, "transfer": transfer, "matrix": 9}
    with pytest.raises(InputRejected, match=rf"high dynamic range \({named}\)") as caught:
        imageio.probe(bytes(imagecodecs.avif_encode(pictures.smooth(3), level=95, **coded)))
    assert not caught.value.transient


def test_a_profile_that_can_only_be_read_from_is_used_and_said() -> None:
    icc, stored = pictures.lut_profile(back=False), pictures.smooth(3)
    picture = imageio.read(pictures.tiff(stored, photometric="rgb", iccprofile=icc))
    expected = colour.to_srgb((stored / 255).astype(np.float32), pictures.lut_profile())
    np.testing.assert_allclose(picture.pixels, np.clip(expected, 0, 1), atol=2e-3)
    assert picture.metadata.icc is None
    assert "became sRGB" in picture.notes[0]


def test_a_profile_in_a_jpeg_2000_file_counts() -> None:
    icc = pictures.wide_profile()
    data = pictures.corpus()["rgb.jp2"].data
    place = data.index(b"colr") - 4
    (size,) = struct.unpack_from(">I", data, place)
    box = struct.pack(">I", 11 + len(icc)) + b"colr\x02\0\0" + icc
    head = data.index(b"jp2h") - 4
    (whole,) = struct.unpack_from(">I", data, head)
    grown = struct.pack(">I", whole + len(box) - size)
    data = data[:head] + grown + data[head + 4 : place] + box + data[place + size :]
    picture = imageio.read(data)
    assert picture.metadata.icc == icc
    assert picture.bounds[0] < -0.1
    np.testing.assert_array_equal(numbers_of(written(picture)), pictures.noise(3))


# --- what was lost --------------------------------------------------------------------------


def test_the_record_says_what_was_lost(tmp_path: Path) -> None:
    resources = b"Photoshop 3.0\0" + b"8BIM\x07\xd0\0\0" + struct.pack(">I", 26) + bytes(26)
    clipped = pictures.encoded(
        Image.fromarray(pictures.smooth(3)),
        "JPEG",
        extra=b"\xff\xed" + struct.pack(">H", len(resources) + 2) + resources,
    )
    frames = [Image.fromarray(pictures.smooth(3)) for _ in range(2)]
    files = {
        "clipped.jpg": clipped,
        "two.jpg": pictures.encoded(frames[0], "MPO", save_all=True, append_images=frames[1:]),
        "moving.png": pictures.animated()["animated.png"],
        "spot.tif": pictures.tiff(
            pictures.noise(5),
            photometric="rgb",
            planarconfig="contig",
            extrasamples=["unassalpha", "unspecified"],
        ),
        "grey-in-colour.png": pictures.pillow(
            pictures.noise(1), "L", "PNG", icc_profile=pictures.wide_profile()
        ),
        "deep.png": pictures.corpus()["rgb16.png"].data,
    }
    settings = "variant=lanczos", "scale=1", "animated=first", "format=webp"
    done = upscaled(tmp_path, files, *settings)
    notes = {name: " / ".join(record["notes"]) for name, (_, record) in done.items()}
    assert "clipping paths" in notes["clipped.jpg"]
    assert "1 further picture (preview, gain map, depth) left out" in notes["two.jpg"]
    assert "the first of 3 pictures was taken" in notes["moving.png"]
    assert "1 further channels were left out" in notes["spot.tif"]
    assert "the colour profile was left out" in notes["grey-in-colour.png"]
    assert "16 bits were dithered to 8" in notes["deep.png"]


def test_an_extension_of_xmp_that_is_not_whole_is_said() -> None:
    note = b' xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmpNote:HasExtendedXMP="' + b"0" * 32
    packet = pictures.XMP.replace(b' rdf:about=""', b' rdf:about=""' + note + b'"')
    segment = b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 32 + struct.pack(">II", 9, 0) + b"x"
    data = pictures.encoded(
        Image.fromarray(pictures.smooth(3)),
        "JPEG",
        xmp=packet,
        extra=b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment,
    )
    picture = imageio.read(data)
    assert picture.metadata.xmp == packet
    assert "the extension of XMP was left out" in picture.notes[0]


def test_a_bigtiff_is_turned_by_its_own_tag() -> None:
    tag: dict[str, Any] = {"bigtiff": True, "extratags": [(274, 3, 1, 6, True)]}
    picture = imageio.read(pictures.tiff(pictures.noise(3), photometric="rgb", **tag))
    np.testing.assert_array_equal(np.rint(picture.pixels * 255), np.rot90(pictures.noise(3), -1))


# --- metadata -------------------------------------------------------------------------------


def test_gps_is_stripped_whatever_its_namespace_and_form() -> None:
    packet = pictures.XMP.replace(
        b"</rdf:RDF>",
        b'<rdf:Description rdf:about="" xmlns:dji="http://www.dji.com/drone-dji/1.0/"'
        b' xmlns:e="http://ns.adobe.com/exif/1.0/" dji:GpsLatitude="47.3" e:GPSAltitude=\'5/1\'>'
        b"<dji:GPSLongitude>8.5</dji:GPSLongitude><e:GPSTimeStamp/><dji:Roll>1</dji:Roll>"
        b"</rdf:Description></rdf:RDF>",
    )
    mended = xmp.mend(packet, width=1, height=1, dpi=(300, 300), mime="image/png", strip_gps=True)
    assert b"gps" not in mended.lower()
    assert b"<dji:Roll>1</dji:Roll>" in mended


def test_a_packet_of_many_properties_takes_no_time() -> None:
    inner = b"".join(b"<exif:GPSA/>" for _ in range(150_000))
    packet = b'<x xmlns:exif="http://ns.adobe.com/exif/1.0/">' + inner + b"</x>"
    mended = xmp.mend(packet, width=1, height=1, dpi=None, mime="image/png", strip_gps=True)
    assert mended == b'<x xmlns:exif="http://ns.adobe.com/exif/1.0/"></x>'


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("head", [b"", b"SONY DSC \0\0\0", b"OLYMP\0\1\0"])
def test_a_maker_note_that_counts_from_the_block_is_moved_whole(head: bytes, order: str) -> None:
    text = b"a text of the maker"
    note = head + struct.pack(order + "HHHII", 1, 6, 2, len(text), 0) + bytes(4) + text
    block = exif.Block(pictures.exif_block(order=order, note=note))
    entry = exif.maker_note(block)
    assert entry is not None
    place = entry.value_place + len(head) + 2 + 8
    block.put("I", place, entry.value_place + len(note) - len(text))
    picture = imageio.Picture(
        np.zeros((9, 9, 3), np.float32), metadata=imageio.Metadata(exif=bytes(block.data))
    )
    data = written(picture, "tiff")
    start = data.rindex(note[: len(head) + 6])
    (value,) = struct.unpack_from(order + "I", data, start + len(head) + 2 + 8)
    assert data[value : value + len(text)] == text


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_footer_of_a_canons_note_moves_with_it(order: str) -> None:
    text, header = b"An exacting owner\0", b"II*\0" if order == "<" else b"MM\0*"
    entries = struct.pack(order + "HHHII", 1, 9, 2, len(text), 0) + bytes(4)
    note = entries + text + header + bytes(4)
    block = exif.Block(pictures.exif_block(1, order, note))
    entry = exif.maker_note(block)
    assert entry is not None
    block.put("I", entry.value_place + 10, entry.value_place + len(entries))
    block.put("I", entry.value_place + len(note) - 4, entry.value_place)
    picture = imageio.Picture(
        np.zeros((9, 9, 3), np.float32), metadata=imageio.Metadata(exif=bytes(block.data))
    )
    data = written(picture, "tiff")
    place = data.index(text) - len(entries)
    assert struct.unpack_from(order + "I", data, place + 10) == (place + len(entries),)
    assert struct.unpack_from(order + "I", data, place + len(note) - 4) == (place,)


# --- what damaged or unusual files carry ----------------------------------------------------


def entry_of(block: bytes, tag: int) -> int:
    """Where an entry of the first directory lies."""
    return next(exif.Block(block).places(8, tag))


def changed(block: bytes, place: int, value: int) -> bytes:
    return block[:place] + struct.pack("<I", value) + block[place + 4 :]


def test_a_bad_entry_before_the_orientation_does_not_hide_it() -> None:
    block = pictures.exif_block(6)
    broken = changed(block, entry_of(block, 0x010F) + 8, 0xFFFFFFF0)  # the maker's name
    picture = imageio.read(pictures.photograph("JPEG", exif=broken))
    assert (picture.width, picture.height) == (pictures.HEIGHT, pictures.WIDTH)
    upright = np.rot90(pictures.smooth(3) / 255, -1)
    assert np.abs(picture.pixels - upright).mean() < 0.02


def test_the_gamma_of_a_grey_png_counts() -> None:
    plain = pictures.corpus()["l.png"].data
    picture = imageio.read(plain[:33] + pictures.png_chunk(b"gAMA", b"\0\1\x86\xa0") + plain[33:])
    linear = (pictures.noise(1) / 255).astype(np.float32)
    np.testing.assert_allclose(picture.pixels, colour.encode_srgb(linear), atol=1e-3)
    assert picture.notes == ()
    np.testing.assert_array_equal(numbers_of(written(picture)), pictures.noise(1)[..., 0])


def with_texts(*texts: tuple[str, str]) -> bytes:
    plain = pictures.corpus()["rgb.png"].data
    chunks = [
        pictures.png_chunk(b"iTXt", keyword.encode() + bytes(5) + text.encode())
        for keyword, text in texts
    ]
    return plain[:33] + b"".join(chunks) + plain[33:]


def test_texts_of_a_png_that_tell_the_place_are_stripped() -> None:
    place = '<x:xmpmeta><rdf:Description exif:GPSLatitude="47,22.5N"/></x:xmpmeta>'
    title = ("Title", "A gps receiver")
    data = with_texts(("exif:GPSLatitude", "47/1"), ("Notes", place), title)
    picture = imageio.read(data)
    assert len(picture.metadata.text) == 3
    assert imageio.read(written(picture)).metadata.text == picture.metadata.text
    assert imageio.read(written(picture, strip_gps=True)).metadata.text == (title,)


def test_texts_of_one_keyword_are_all_kept() -> None:
    texts = (("Comment", "one"), ("Author", "Ä. Müller"), ("Comment", "two"))
    picture = imageio.read(with_texts(*texts))
    assert picture.metadata.text == texts
    assert imageio.read(written(picture)).metadata.text == texts
    out = io.BytesIO()
    notes = imageio.write(picture, out, format="jpeg")
    assert imageio.read(out.getvalue()).metadata.text == (("Comment", "one"),)
    assert notes == ("text was left out (Author, Comment): JPEG has no place for it",)


@pytest.mark.parametrize("stored", ["Ä. Müller".encode("latin-1"), "Ä. Müller".encode()])
@pytest.mark.parametrize("format", ["jpeg", "png"])
def test_a_comment_keeps_its_letters(format: str, stored: bytes) -> None:
    image = Image.fromarray(pictures.smooth(3))
    picture = imageio.read(pictures.encoded(image, "JPEG", comment=stored))
    assert imageio.read(written(picture, format)).metadata.text == (("Comment", "Ä. Müller"),)


def test_a_thumbnail_that_a_tiff_does_not_take_is_said() -> None:
    picture = imageio.read(pictures.photograph())
    assert not imageio.write(picture, io.BytesIO(), format="png")
    (said,) = imageio.write(picture, io.BytesIO(), format="tiff")
    assert "thumbnail was left out" in said


def test_a_directory_of_a_tiff_that_lies_outside_is_said() -> None:
    data = bytearray(pictures.photograph("TIFF"))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        tags = file.pages[0].tags
        places = {name: tags[tag].offset + 8 for name, tag in (("EXIF", 34665), ("GPS", 34853))}
    whole = imageio.read(bytes(data))
    assert whole.notes == ()
    for name, place in places.items():
        broken = changed(bytes(data), place, len(data) + 1000)
        picture = imageio.read(broken)
        assert picture.notes == (f"{name} was left out: its directory is damaged",)
        np.testing.assert_array_equal(picture.pixels, whole.pixels)


def test_alpha_is_dithered_too() -> None:
    level = np.full((200, 200), 100.3 / 255, np.float32)
    picture = imageio.Picture(np.ones((200, 200, 3), np.float32), level, depth=16)
    with Image.open(io.BytesIO(written(picture, "webp", quality=100))) as image:
        alpha = np.asarray(image)[..., 3]
    assert set(np.unique(alpha)) == {100, 101}
    assert abs(alpha.mean() - 100.3) < 0.02


@pytest.mark.parametrize("strip", [False, True])
@pytest.mark.parametrize("format", ["png", "tiff", "jpeg"])
def test_a_pointer_to_nowhere_costs_no_exif(format: str, strip: bool) -> None:
    block = pictures.exif_block(1)
    block = changed(block, entry_of(block, 0x8825) + 8, 0)
    picture = imageio.read(pictures.photograph("PNG", exif=block))
    out = io.BytesIO()
    notes = imageio.write(picture, out, format=format, strip_gps=strip)
    assert not any("EXIF was" in note for note in notes)
    with Image.open(out) as image:
        found = image.getexif()
        assert found[0x010F] == "Camera & Co"
        assert found.get_ifd(0x8769)[0x829A] == pytest.approx(1 / 125)


def test_values_without_a_type_keep_it_through_a_tiff() -> None:
    picture = imageio.read(pictures.photograph("JPEG", exif=pictures.canon_exif(1)))
    again = imageio.read(written(imageio.read(written(picture, "tiff")), "png"))
    block = exif.Block(again.metadata.exif or b"")
    sub = block.pointer(block.first, exif.EXIF_IFD)
    assert sub is not None
    kinds = {entry.tag: entry.kind for entry in block.entries(sub)}
    assert kinds[exif.MAKER_NOTE] == kinds[0x9286] == exif.UNDEFINED


def test_an_empty_property_of_xmp_gets_its_value() -> None:
    packet = pictures.XMP.replace(
        b"</rdf:RDF>",
        b'<rdf:Description rdf:about=""><tiff:ImageWidth/><tiff:ImageLength  />'
        b"<tiff:XResolution></tiff:XResolution></rdf:Description></rdf:RDF>",
    ).replace(b"<rdf:RDF", b'<rdf:RDF xmlns:tiff="http://ns.adobe.com/tiff/1.0/"')
    mended = xmp.mend(packet, width=5, height=6, dpi=(72, 72), mime="image/png", strip_gps=False)
    assert b"<tiff:ImageWidth>5</tiff:ImageWidth>" in mended
    assert b"<tiff:ImageLength  >6</tiff:ImageLength>" in mended
    assert b"<tiff:XResolution>72000/1000</tiff:XResolution>" in mended
    xmp.Packet(mended)


@pytest.mark.parametrize("format", ["png", "tiff", "jpeg", "webp", "avif"])
@pytest.mark.parametrize("scale", [20_000.0, 65_500_000.0])
def test_a_resolution_beyond_all_numbers_ends_nothing(format: str, scale: float) -> None:
    picture = imageio.read(pictures.photograph())
    data = written(picture, format, scale=scale)
    with Image.open(io.BytesIO(data)) as image:
        found = image.getexif()[0x011A]
    assert found == pytest.approx(min(300 * scale, 1e8), rel=1e-4)


def test_a_mask_on_a_page_of_its_own_is_no_second_picture() -> None:
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        writer.write(pictures.noise(3), photometric="rgb", metadata=None)
        mask = np.ones(pictures.noise(1).shape[:2], bool)
        writer.write(mask, photometric="minisblack", metadata=None, subfiletype=4)
    picture = imageio.read(out.getvalue())
    np.testing.assert_array_equal(np.rint(picture.pixels * 255), pictures.noise(3))
    assert picture.notes == ("a transparency mask on a page of its own was left out",)


@pytest.mark.parametrize("name", ["rgb.png", "rgb16.png"])
def test_a_text_with_a_wrong_checksum_costs_no_picture(name: str) -> None:
    plain = pictures.corpus()[name].data
    bad = pictures.png_chunk(b"tEXt", b"Title\0bird")[:-1] + b"\0"
    good = pictures.png_chunk(b"tEXt", b"Author\0me")
    block = pictures.png_chunk(b"eXIf", pictures.exif_block(6))[:-4] + bytes(4)
    picture = imageio.read(plain[:33] + bad + good + plain[33:-12] + block + plain[-12:])
    np.testing.assert_array_equal(picture.pixels, imageio.read(plain).pixels)
    assert picture.metadata.text == (("Author", "me"),)
    assert picture.notes == ("tEXt, eXIf left out: damaged, by its checksum",)
    transparent = pictures.png_chunk(b"tRNS", bytes(6))[:-1] + b"\1"
    with pytest.raises(InputRejected, match="truncated or damaged"):
        imageio.read(plain[:33] + transparent + plain[33:])
