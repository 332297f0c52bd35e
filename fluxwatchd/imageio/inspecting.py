"""What a file is, by its headers alone: format, size, frames; bombs and lies are refused here."""

from __future__ import annotations

import importlib
import io
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from fluxwatchd.errors import InputRejected
from fluxwatchd.imageio import avif, coded, containers, jp2
from fluxwatchd.imageio import exif as exif_block
from fluxwatchd.imageio.containers import JPEG_MAGIC, PNG_MAGIC, SAVE_ANEW
from fluxwatchd.imageio.faults import COPY_AGAIN, damaged, decoding, rejected
from fluxwatchd.imageio.picture import Header

Animated = Literal["refuse", "first"]

READABLE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".tif", ".tiff", ".avif"}
    | {".heic", ".heif", ".hif", ".bmp", ".dib", ".pnm", ".pbm", ".pgm", ".ppm"}
    | {".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc"}
)
"""Lower case. Files with another suffix are no pictures we read."""

NAMES = "PNG, JPEG, WebP, TIFF, AVIF, HEIC, BMP, JPEG 2000 and PNM"

PILLOW_FORMATS = {
    "PNG": "Png",
    "JPEG": "Jpeg",
    "WEBP": "WebP",
    "AVIF": "Avif",
    "BMP": "Bmp",
    "DIB": "Bmp",
    "JPEG2000": "Jpeg2K",
    "PPM": "Ppm",
}
"""The only parsers of Pillow's that see a file, and the plugins they are in."""

MAX_PIXELS = 400_000_000
"""px; the largest input where the caller sets no limit."""

DECODED_PER_BYTE = {"PNG": 1040, "BMP": 400, "PPM": 9, "JPEG": 520}
"""The most decoded bytes that one byte of a file can stand for; a header that claims more lies.

Deflate: 258 bytes for two codes of 1 bit (RFC 1951). BMP: a run of 255 px for 2 bytes. PNM: 8
bilevel px. JPEG: at least 1 bit for a block of 8 x 8 px. The other formats can say "all of one
colour" in a few bytes, whatever the size.
"""

BYTES_PER_PIXEL, BYTES_BESIDE = 32, 1 << 28
"""A file with more bytes than these for its pixels and beside them is not read into memory."""

FREE_SCANS, SCANNED_PIXELS = 20, 1_000_000_000
"""A JPEG may have so many scans, or more if they go over no more px than these; each takes time."""

TEXT, TEXTS = 1 << 24, 1 << 26
"""bytes, unpacked, of one of a PNG's texts or its profile, and of all; Pillow's own limits are 1 MB
and 64, too few for some profiles."""

MENDED = 1 << 30
"""bytes; a longer PNG with a damaged chunk beside its pixels is the decoder's to refuse."""

PNG_MODES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}
MULTIPLIED = "RGBa"
"""What pillow-heif calls colours that alpha was multiplied into."""
HEIF_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"})
TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
FOREIGN = (
    (b"GIF8", "a GIF"),
    (b"%PDF", "a PDF"),
    (b"8BPS", "a Photoshop document"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (b"v/1\x01", "an OpenEXR picture"),
    (b"<svg", "an SVG drawing"),
    (b"FUJIFILMCCD-RAW", "a camera RAW file"),
)
EXIF_HEAD, XMP_HEAD = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
"""How a JPEG's APP1 segment begins, by what it holds."""
HEAD = 1 << 16
"""bytes searched for the depth that AVIF and JPEG 2000 declare."""


@dataclass(slots=True)
class Opened:
    """A file whose headers are read.

    ``decoder`` is Pillow's, pillow-heif's or tifffile's. ``orientation`` (1..8) is what is left to
    be done after it. ``late`` says that a PNG has texts behind its pixels, ``bits`` how many a px
    are stored at least, ``scans`` how often a JPEG's decoder goes over it. ``coded`` is the colour
    that the file names by number, ``boxes`` what a JP2 has beside its pixels. ``notes`` as in
    Picture.
    """

    name: str
    file: BinaryIO
    length: int
    header: Header
    decoder: Any
    exif: bytes | None
    orientation: int = 1
    late: bool = False
    bits: int = 8
    scans: int = 1
    coded: tuple[int, int] | None = None
    boxes: jp2.Beside | None = None
    notes: tuple[str, ...] = ()


def probe(
    path: Path | str | bytes | BinaryIO,
    *,
    animated: Animated = "refuse",
    max_pixels: int | None = None,
    name: str | None = None,
) -> Header:
    """What the file says it is, from its headers; no memory is taken for pixels.

    ``path`` may be the file's bytes, or an open file; ``name`` is what errors call it then. Raises
    InputRejected for what ``read`` would refuse before decoding: no picture, animated, more than
    ``max_pixels`` px, a header that lies, a file whose end is missing where that can be seen. It is
    ``transient`` where the file may still be arriving.
    """
    if isinstance(path, bytes):
        return inspect(io.BytesIO(path), name or "picture", animated, max_pixels).header
    if not isinstance(path, (str, os.PathLike)):
        return inspect(path, name or "picture", animated, max_pixels).header
    with Path(path).open("rb") as file:
        return inspect(file, name or Path(path).name, animated, max_pixels).header


def inspect(file: BinaryIO, name: str, animated: Animated, max_pixels: int | None) -> Opened:
    """Read the headers of ``file`` and refuse what cannot or must not be decoded."""
    name = name.encode("utf-8", "replace").decode()
    with decoding(name):
        length = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(32)
        file.seek(0)
        opened = _opener(head, name)(file, name, length)
    _refuse(opened, animated, MAX_PIXELS if max_pixels is None else max_pixels)
    return opened


def _opener(head: bytes, name: str) -> Callable[[BinaryIO, str, int], Opened]:
    """Which library reads a file that begins with ``head``. Raises InputRejected."""
    if not head:
        raise rejected(name, "the file is empty", hint=COPY_AGAIN, unfinished=True)
    for magic, kind in FOREIGN:
        if head.startswith(magic):
            raise rejected(name, f"{kind}, which is not read", hint=f"Export it as one of {NAMES}.")
    if head.startswith(TIFF_MAGICS):
        return open_tiff
    if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS and b"avi" not in head[8:]:
        return _open_heif
    return _open_pillow


_LIMIT_LOCK = threading.Lock()


def _open_pillow(file: BinaryIO, name: str, length: int) -> Opened:
    """PNG, JPEG, WebP, AVIF, BMP, JPEG 2000, PNM."""
    head = file.read(len(PNG_MAGIC))
    png = containers.walk_png(file, name) if head == PNG_MAGIC else None
    if png and png.broken and length <= MENDED:
        file = containers.without(file, png.broken)
    scans = containers.jpeg_scans(file, name) if head.startswith(JPEG_MAGIC) else 1
    if head[:1] == b"P" and head[1:2] in b"123456":
        file.seek(0)
        pnm_head(file.read(HEAD))  # Pillow would look for the end of a comment byte by byte
    image = _pillow_image(file, name)
    kind = {"MPO": "JPEG", "DIB": "BMP"}.get(image.format or "", image.format or "")
    boxes = jp2.beside(file) if kind == "JPEG2000" else None
    if boxes:
        jp2.check_end(file, name)
    exif = image.info.get("exif") or raw_exif(image.info)
    if png or boxes:
        exif = exif or (png.exif if png else None) or (boxes.exif if boxes else None)
    turn = exif_block.orientation(exif) if exif else 1
    # An MPO's further pictures are previews and gain maps of the one photograph.
    frames = 1 if kind == "JPEG" else int(getattr(image, "n_frames", 1))
    mode, depth = _layout(file, image, kind, boxes, name)
    size = _turned(image.size, turn)
    header = Header(*size, frames, kind, mode if depth == 8 else f"{mode};16", depth)
    opened = Opened(name, file, length, header, image, exif, turn, scans=scans, boxes=boxes)
    opened.notes = (*_second_pictures(image), *_broken_chunks(png))
    opened.bits = 1 if mode == "1" else 8
    if png:
        opened.late, opened.bits, opened.coded = png.late, png.bits, png.coded
    elif kind == "AVIF":
        file.seek(0)
        opened.coded = avif.nclx(file.read(HEAD))
        stored = avif.coded_pixels(file)
        if 0 < stored < opened.header.pixels:
            raise _lies(opened, f"but codes {stored}")
    return opened


def _pillow_image(file: BinaryIO, name: str) -> Image.Image:
    """The file, its header read by Pillow. Raises InputRejected."""
    for plugin in PILLOW_FORMATS.values():
        importlib.import_module(f"PIL.{plugin}ImagePlugin")
    file.seek(0)
    # Pillow's own limits are one for the process; ours is the profile's, checked in _refuse.
    with _LIMIT_LOCK:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = TEXT, TEXTS
        try:
            return Image.open(file, formats=tuple(PILLOW_FORMATS))
        except UnidentifiedImageError as error:
            raise _no_picture(file, name) from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _second_pictures(image: Image.Image) -> tuple[str, ...]:
    """What to say of the further pictures in a JPEG."""
    return _further(int(getattr(image, "n_frames", 1)) - 1 if image.format == "MPO" else 0)


def _broken_chunks(png: containers.Png | None) -> tuple[str, ...]:
    """What to say of chunks that were left out."""
    names = dict.fromkeys(kind.decode() for kind, _, _ in png.broken) if png else ()
    return (f"{', '.join(names)} left out: damaged, by its checksum",) if names else ()


def _further(more: int) -> tuple[str, ...]:
    """The note on so many pictures beside the one that is read."""
    said = f"{more} further picture{'s' * (more > 1)} (preview, gain map, depth) left out"
    return (said,) if more else ()


def _no_picture(file: BinaryIO, name: str) -> Exception:
    """Why Pillow knew no format: a picture cut off in its header, or no picture at all."""
    file.seek(0)
    head = file.read(16)
    known = (PNG_MAGIC, JPEG_MAGIC, b"BM", b"RIFF", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")
    if head.startswith(known) or head[4:8] == b"ftyp" or re.match(rb"P[1-6]\s", head):
        return damaged(name, "its header makes no sense")
    if len(head) < 16 or not head.strip(b"\0"):
        return rejected(name, "no more than a beginning", hint=COPY_AGAIN, unfinished=True)
    return rejected(name, "not a picture", hint=f"Only {NAMES} are read.")


def _turned(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(width, height) after the orientation is applied."""
    return (size[1], size[0]) if orientation >= 5 else size


def _layout(
    file: BinaryIO, image: Image.Image, kind: str, boxes: jp2.Beside | None, name: str
) -> tuple[str, int]:
    """Pixel layout and depth, as the file declares them. Raises InputRejected."""
    mode, file_head = image.mode, b""
    if kind in ("PNG", "AVIF", "JPEG2000", "PPM"):
        file.seek(0)
        file_head = file.read(HEAD)
    if kind == "PNG":
        depth, kind_of_colour = file_head[24:26]
        named = PNG_MODES.get(kind_of_colour, mode)
        return ("1" if (named, depth) == ("L", 1) else named), 16 if depth == 16 else 8
    if kind == "AVIF":
        # Alpha and thumbnails have boxes of their own; alpha is always monochrome.
        flags = avif.flags(file_head)
        grey = bool(flags) and all(flag & avif.MONOCHROME for flag in flags)
        return ("L" if grey else mode), 16 if any(flag & avif.DEEP for flag in flags) else 8
    if kind == "JPEG2000":
        bits = max(jp2.depths(file_head, bool(boxes and boxes.ycc), name))
        return {"I;16": "L"}.get(mode, mode), 16 if bits > 8 else 8
    if kind == "PPM" and file_head[:2] in (b"Pf", b"PF"):
        raise rejected(name, "a PNM with float samples", hint="Save it with 8 or 16 bits.")
    if kind == "PPM":
        bits = 16 if pnm_head(file_head)[2] > 255 else 8
        return {"I": "L", "I;16": "L"}.get(mode, mode), bits
    return mode, 8


def pnm_head(head: bytes) -> tuple[int, int, int, int]:
    """(width, height, maxval, offset of the samples) of a PNM file (netpbm's manual)."""
    space = rb"(?:\s|#[^\n]*\n)+"
    numbers = 2 if head[1:2] in b"14" else 3
    match = re.match(rb"P[1-6]" + (space + rb"(\d{1,9})") * numbers + rb"\s", head)
    if match is None:
        raise ValueError("no PNM header")
    found = [int(number) for number in match.groups()]
    return found[0], found[1], found[2] if numbers == 3 else 1, match.end()


def raw_profile(info: Mapping[Any, Any], kind: str) -> bytes | None:
    """What ImageMagick and exiftool keep as hexadecimal text in a PNG: exif, iptc, xmp or APP1.

    A line of words, the number of bytes, and these. None where there is none, or it is no
    hexadecimal: the picture is whole without it.
    """
    text = info.get(f"Raw profile type {kind}")
    if not isinstance(text, str):
        return None
    _, _, rest = text.lstrip("\n").partition("\n")
    digits = "".join(rest.split()[1:])
    whole = re.fullmatch(r"(?:[0-9a-fA-F]{2})+", digits)
    return bytes.fromhex(digits) if whole else None


def raw_exif(info: Mapping[Any, Any]) -> bytes | None:
    """EXIF that a PNG keeps as text, under its own name or as a JPEG's segment."""
    segment = raw_profile(info, "APP1") or b""
    return raw_profile(info, "exif") or (segment if segment.startswith(EXIF_HEAD) else None)


def raw_xmp(info: Mapping[Any, Any]) -> bytes | None:
    """XMP that a PNG keeps as text, likewise."""
    segment = raw_profile(info, "APP1") or b""
    own = raw_profile(info, "xmp")
    return own or (segment[len(XMP_HEAD) :] if segment.startswith(XMP_HEAD) else None)


def _open_heif(file: BinaryIO, name: str, length: int) -> Opened:
    """HEIC, by pillow-heif. The container says how the picture lies, and libheif has turned it."""
    import pillow_heif

    heif = pillow_heif.open_heif(file, convert_hdr_to_8bit=False, hdr_to_16bit=False)
    deep = int(heif.info.get("bit_depth", 8)) > 8
    named = heif.mode.split(";")[0]
    mode = {"I": "L", MULTIPLIED: "RGBA"}.get(named, named)
    width, height = heif.size
    header = Header(
        width, height, len(heif), "HEIF", f"{mode};16" if deep else mode, 16 if deep else 8
    )
    opened = Opened(name, file, length, header, heif, heif.info.get("exif"))
    more = len(heif.info["depth_images"]) + sum(map(len, heif.info["aux"].values()))
    opened.notes = _further(more)
    if nclx := heif.info.get("nclx_profile"):
        opened.coded = int(nclx["color_primaries"]), int(nclx["transfer_characteristics"])
    return opened


def open_tiff(file: BinaryIO, name: str, length: int) -> Opened:
    """TIFF, by tifffile: Pillow reads 16-bit colour as 8."""
    from fluxwatchd.imageio import tiff

    page, frames = tiff.open_page(file, name)
    tiff.check_directory(page, file, name, length)
    mode, depth = tiff.layout(page, name)
    tiff.check_strips(page, name, length)
    exif = tiff.exif_of(page, file)
    turn = exif_block.orientation(exif) if exif else tiff.orientation(page)
    size = _turned((page.imagewidth, page.imagelength), turn)
    header = Header(*size, frames, "TIFF", mode if depth == 8 else f"{mode};16", depth)
    return Opened(name, file, length, header, page, exif, turn, notes=tiff.notes(page, exif))


def _refuse(opened: Opened, animated: Animated, max_pixels: int) -> None:
    """Refuse an empty, animated, oversized or lying header."""
    header, name = opened.header, opened.name
    if header.width < 1 or header.height < 1:
        raise damaged(name, f"{header.width} x {header.height} px")
    if header.pixels > max_pixels:
        raise rejected(
            name,
            f"{header.width} x {header.height} px, more than the {max_pixels} px allowed",
            hint="Raise max_pixels, or shrink the picture.",
        )
    curve = coded.HIGH_DYNAMIC_RANGE.get(opened.coded[1]) if opened.coded else None
    if curve and not opened.decoder.info.get("icc_profile"):
        raise rejected(
            name,
            f"high dynamic range ({curve}), which is not read",
            hint="Export it as a picture of standard range.",
        )
    if header.frames > 1 and animated == "refuse":
        raise rejected(
            name,
            f"holds {header.frames} pictures (animated, or several pages)",
            hint='Set animated = "first" to take the first, or export one.',
        )
    if opened.scans > FREE_SCANS and opened.scans * header.pixels > SCANNED_PIXELS:
        raise rejected(name, f"{opened.scans} scans: more than a picture has", hint=SAVE_ANEW)
    if opened.length > BYTES_BESIDE + BYTES_PER_PIXEL * header.pixels * header.frames:
        raise rejected(
            name,
            f"{opened.length} bytes for {header.width} x {header.height} px: more than a picture",
            hint=SAVE_ANEW,
        )
    most = DECODED_PER_BYTE.get(header.format)
    if most is not None and header.pixels * opened.bits // 8 > most * opened.length:
        raise _lies(opened, f"which {opened.length} bytes cannot hold")


def _lies(opened: Opened, why: str) -> InputRejected:
    """The error for a header that claims more pixels than there can be."""
    header = opened.header
    return damaged(opened.name, f"its header claims {header.width} x {header.height} px, {why}")
