"""TIFF in and out by tifffile, which knows 16-bit colour, alpha and every common compression."""

from __future__ import annotations

import io
import logging
import math
import os
import struct
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fluxwatchd.imageio import exif as exif_block
from fluxwatchd.imageio import iptc, multiplied
from fluxwatchd.imageio.faults import damaged, rejected
from fluxwatchd.imageio.picture import Metadata, believable

# tifffile logs what it finds wrong with a file; here it is refused, by name, or harmless.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

DECODED_PER_BYTE = {1: 1, 5: 1400, 8: 1040, 32946: 1040, 32773: 64, 7: 1600}
"""The most decoded bytes a stored byte can stand for, by compression: none, LZW, deflate (twice),
PackBits, JPEG. See inspecting.DECODED_PER_BYTE."""

PIECE, LEAST_PIECE = 4, 1 << 20
"""A tile may be so many times as large as the picture (or as so many samples), not more."""

SUBFILE, ICC, XMP, IPTC, PHOTOSHOP = 254, 34675, 700, 33723, 34377
X_RESOLUTION, RESOLUTION_UNIT = 282, 296
REDUCED, MASK = 1, 4
"""Kinds of pages (NewSubfileType) that are no picture of their own."""
MOST_PAGES = 1000
"""A file may chain them without end; whoever sees as many knows that it is no single picture."""

PHOTOMETRICS = {0: "L", 1: "L", 2: "RGB", 3: "P", 5: "CMYK", 6: "RGB"}
CHANNELS = {"L": 1, "RGB": 3, "P": 1, "CMYK": 4}
YCBCR, JPEGS = 6, frozenset({6, 7, 33007, 34892})
"""Only JPEG's decoder turns YCbCr into RGB."""

KIND_SIZES = exif_block.TYPE_SIZES | {16: 8, 17: 8, 18: 8}
ASSOCIATED, UNASSOCIATED = 1, 2
UNSIGNED = 1
ROWS_BYTES = 1 << 18
"""bytes of pixels in a strip, about."""

ENDIANS: dict[str, Literal["little", "big"]] = {"<": "little", ">": "big"}
DIRECTORIES = (exif_block.EXIF_IFD, exif_block.GPS_IFD)
NAMED = {exif_block.EXIF_IFD: "EXIF", exif_block.GPS_IFD: "GPS"}

DESCRIPTIVE = frozenset(
    {269, 270, 271, 272, 274, 282, 283, 285, 296, 305, 306, 315, 316, 18246, 18249, 33432}
    | {34665, 34853, *range(40091, 40096)}
)
"""Tags that tell of the photograph, not of how the file lays it out."""


def open_page(file: BinaryIO, name: str) -> tuple[Any, int]:
    """The first full picture and how many there are, MOST_PAGES or less.

    Raises InputRejected, tifffile's errors.
    """
    import tifffile

    tiff = tifffile.TiffFile(file)
    if not tiff.pages:
        raise damaged(name, "no page is there yet")
    pages = [page for page in islice(tiff.pages, MOST_PAGES) if not _is_preview(page)]
    if not pages:
        raise rejected(name, "holds no full picture", hint="Is it a camera RAW file? Develop it.")
    return pages[0], len(pages)


def _is_preview(page: Any) -> bool:
    """Whether a page is a reduced copy of another, or its transparency mask."""
    return bool(_kind(page) & (REDUCED | MASK))


def _kind(page: Any) -> int:
    """The bits of NewSubfileType."""
    tag = page.tags.get(SUBFILE) if hasattr(page, "tags") else None
    return int(tag.value) if tag is not None else 0


def layout(page: Any, name: str) -> tuple[str, int]:
    """(mode, depth) as the file declares them. Raises InputRejected for what is not read."""
    base = PHOTOMETRICS.get(int(page.photometric))
    bits = page.bitspersample
    if not isinstance(bits, int):
        raise rejected(
            name, f"a TIFF with channels of {bits} bits", hint="Save it with 8 or 16 bits."
        )
    if base is None or page.imagedepth != 1:
        raise rejected(
            name,
            f"a TIFF of a kind that is not read (photometric {int(page.photometric)})",
            hint="Save it as RGB or grey. A camera RAW file must be developed first.",
        )
    if int(page.photometric) == YCBCR and int(page.compression) not in JPEGS:
        raise rejected(name, "a TIFF in YCbCr that is no JPEG", hint="Save it as RGB.")
    if bits > 16 or int(page.sampleformat) != UNSIGNED:
        raise rejected(
            name,
            f"a TIFF with {bits} bits a channel, float or signed",
            hint="Save it with 8 or 16 bits.",
        )
    extra = page.samplesperpixel - CHANNELS[base]
    if extra < 0:
        raise damaged(name, f"{page.samplesperpixel} channels")
    if bits == 1 and base == "L":
        return "1", 8
    alpha = "A" if _alpha_at(page) is not None else ""
    return base + alpha, 16 if bits > 8 and base != "P" else 8


def check_directory(page: Any, file: BinaryIO, name: str, length: int) -> None:
    """Refuse a page of which some tag's value lies outside the file: tifffile would do without it.

    A picture without its BitsPerSample decodes to noise.
    """
    order, big = page.parent.byteorder, page.parent.is_bigtiff
    number, entry, inline = ("Q", "HHQQ", 8) if big else ("H", "HHII", 4)
    size = struct.calcsize(order + entry)
    file.seek(page.offset)
    (count,) = struct.unpack(order + number, file.read(struct.calcsize(order + number)))
    for raw in (file.read(size) for _ in range(min(count, exif_block.MOST_ENTRIES))):
        tag, kind, values, place = struct.unpack(order + entry, raw)
        total = values * KIND_SIZES.get(kind, 0)
        if total > inline and place + total > length:
            raise damaged(name, f"the value of its tag {tag} is missing")


def check_strips(page: Any, name: str, length: int) -> None:
    """Refuse strips or tiles that lie outside the file, are missing, or cannot hold their claim."""
    pieces = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    if len(pieces) != math.prod(page.chunked):
        raise damaged(name, f"{len(pieces)} of {math.prod(page.chunked)} pieces of it are listed")
    if any(size <= 0 or offset <= 0 or offset + size > length for offset, size in pieces):
        raise damaged(name, "pixel data is missing")
    stored = sum(size for _, size in pieces)
    samples, piece = math.prod(page.shape), math.prod(page.chunks)
    most = DECODED_PER_BYTE.get(int(page.compression))
    lies = most is not None and samples * page.bitspersample // 8 > most * stored
    if lies or piece > PIECE * max(samples, LEAST_PIECE):
        raise damaged(
            name,
            f"its header claims {page.imagewidth} x {page.imagelength} px, which {stored} bytes "
            "cannot hold",
        )


def samples(page: Any) -> tuple[NDArray[Any], NDArray[Any] | None, int]:
    """(colour (H, W, C), alpha (H, W) or None, largest value). Min-is-white comes out turned."""
    base = PHOTOMETRICS[int(page.photometric)]
    data = np.asarray(page.asarray())
    if data.dtype == bool:
        data = data.astype(np.uint8)
    if page.planarconfig == 2 and data.ndim == 3:
        data = np.moveaxis(data, 0, -1)
    data = data.reshape(page.imagelength, page.imagewidth, -1)
    if data.shape[2] != page.samplesperpixel:
        raise ValueError(f"{data.shape[2]} channels instead of {page.samplesperpixel}")
    largest = (1 << page.bitspersample) - 1
    if base == "P":
        return _through_palette(page, data[..., 0]), None, 255
    colour, extra = data[..., : CHANNELS[base]], data[..., CHANNELS[base] :]
    if int(page.photometric) == 0:
        colour = largest - colour
    place = _alpha_at(page)
    if place is None:
        return colour, None, largest
    alpha = extra[..., place]
    if page.extrasamples and int(page.extrasamples[place]) == ASSOCIATED:
        colour = multiplied.straight(colour, alpha, largest)
    return colour, alpha, largest


def _alpha_at(page: Any) -> int | None:
    """Which of the channels behind the colours is transparency, counted from 0; None if none is.

    One that says nothing of itself counts as such, as other readers take it; one that says to be
    something else (ExtraSamples 0, a saved selection or a depth map) does not.
    """
    base = PHOTOMETRICS[int(page.photometric)]
    if base not in ("L", "RGB", "CMYK") or page.samplesperpixel <= CHANNELS[base]:
        return None
    kinds = [int(kind) for kind in page.extrasamples] or [UNASSOCIATED]
    return next((i for i, kind in enumerate(kinds) if kind in (ASSOCIATED, UNASSOCIATED)), None)


def _through_palette(page: Any, index: NDArray[Any]) -> NDArray[Any]:
    """(H, W) -> (H, W, 3) uint8. The table has 16 bits; writers fill in 256 or 257 times 8 bits."""
    table = np.asarray(page.colormap)
    table = table >> 8 if table.max() > 255 else table
    return np.moveaxis(table[:, np.minimum(index, table.shape[1] - 1)], 0, -1).astype(np.uint8)


def orientation(page: Any) -> int:
    """How the stored picture lies, 1..8, by the page's own tag."""
    tag = page.tags.get(exif_block.ORIENTATION)
    value = tag.value if tag is not None else 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def notes(page: Any, exif: bytes | None) -> tuple[str, ...]:
    """What of the page is not read."""
    said = []
    base = PHOTOMETRICS[int(page.photometric)]
    more = page.samplesperpixel - CHANNELS[base] - (_alpha_at(page) is not None)
    if more > 0:
        said.append(f"{more} further channels were left out")
    if exif is None and exif_block.EXIF_IFD in page.tags:
        said.append("EXIF was left out: it is not read from a BigTIFF")
    said += [f"{name} was left out: its directory is damaged" for name in _lost(exif)]
    if any(_kind(other) & MASK for other in islice(page.parent.pages, MOST_PAGES)):
        said.append("a transparency mask on a page of its own was left out")
    return tuple(said)


def _lost(exif: bytes | None) -> Iterator[str]:
    """The directories that a page points to and that came out empty, as they lie outside."""
    block = exif_block.Block(exif) if exif else None
    for tag, name in NAMED.items() if block else ():
        place = block.pointer(block.first, tag) if block else None
        if block and place is not None and block.get("H", place) == 0:
            yield name


def exif_of(page: Any, file: BinaryIO) -> bytes | None:
    """The page's descriptive tags with their EXIF and GPS directories, as a block of its own."""
    exif = Image.Exif()
    exif.endian = "<" if page.parent.byteorder == "<" else ">"
    if page.parent.is_bigtiff or page.parent.is_ndpi:
        return None
    exif.load_from_fp(file, page.offset)
    for tag in set(exif) - DESCRIPTIVE:
        del exif[tag]
    if not len(exif):
        return None
    _keep_bytes(exif)
    block = exif_block.Block(exif.tobytes())
    exif_block.declare_undefined(block)
    _shift_note(page, file, block)
    return bytes(block.data)


def _keep_bytes(exif: Image.Exif) -> None:
    """Give texts back their bytes: Pillow reads them as Latin-1 and would write them as ASCII."""
    found = {
        pointer: exif.get_ifd(pointer)
        for pointer in (exif_block.EXIF_IFD, exif_block.GPS_IFD)
        if pointer in exif
    }
    inner = found.get(exif_block.EXIF_IFD, {})
    if exif_block.INTEROP_IFD in inner:
        inner[exif_block.INTEROP_IFD] = _as_read_all(exif.get_ifd(exif_block.INTEROP_IFD))
    for pointer, values in found.items():
        exif[pointer] = _as_read_all(values)
    for tag, value in list(exif.items()):
        exif[tag] = _as_read(value)


def _as_read_all(values: dict[int, Any]) -> dict[int, Any]:
    return {tag: _as_read(value) for tag, value in values.items()}


def _as_read(value: Any) -> Any:
    return _Text(value) if isinstance(value, str) else value


class _Text(str):
    """A text that Pillow read as Latin-1, which leaves as the bytes that it was."""

    __slots__ = ()

    def encode(self, encoding: str = "latin-1", errors: str = "strict") -> bytes:
        """The bytes; what Pillow asks for (ASCII, with question marks) is passed over."""
        return super().encode("latin-1")


def _shift_note(page: Any, file: BinaryIO, block: exif_block.Block) -> None:
    """Tell a maker note how far it moved from its place in the file."""
    pointer, order = page.tags.get(exif_block.EXIF_IFD), block.order
    now = exif_block.maker_note(block)
    if pointer is None or now is None:
        return
    file.seek(pointer.offset + 8)
    file.seek(int.from_bytes(file.read(4), ENDIANS[order]))
    entries = file.read(2 + 12 * exif_block.MOST_ENTRIES)[2:]
    for entry in (entries[at : at + 12] for at in range(0, len(entries) - 11, 12)):
        tag, _, _, value = struct.unpack(order + "HHII", entry)
        if tag == exif_block.MAKER_NOTE:
            exif_block.shift_note(block, value, now.value_place - value)
            return


def metadata(page: Any, exif: bytes | None) -> Metadata:
    """ICC, EXIF, XMP, IPTC and resolution of a page."""
    resolution = page.get_resolution(unit="INCH") if X_RESOLUTION in page.tags else None
    named = page.tags.get(RESOLUTION_UNIT)
    physical = named is None or int(named.value) in (2, 3)
    return Metadata(
        icc=_bytes_of(page, ICC),
        exif=exif,
        xmp=_bytes_of(page, XMP),
        iptc=iptc.record(_bytes_of(page, IPTC) or b"")
        or iptc.record(_bytes_of(page, PHOTOSHOP) or b""),
        dpi=believable(resolution) if physical else None,
    )


def _bytes_of(page: Any, tag: int) -> bytes | None:
    """The tag's value as it lies in the file."""
    entry = page.tags.get(tag)
    if entry is None:
        return None
    handle = page.parent.filehandle
    handle.seek(entry.valueoffset)
    return (
        bytes(handle.read(entry.valuebytecount)).rstrip(b"\0")
        if tag == XMP
        else bytes(handle.read(entry.valuebytecount))
    )


def write(
    target: BinaryIO,
    shape: tuple[int, int, int],
    strips: Iterable[NDArray[Any]],
    *,
    deep: bool,
    alpha: bool,
    metadata: Metadata,
) -> None:
    """A TIFF of ``shape`` (H, W, C): 8 bits a channel, or 16 (``deep``).

    ``strips`` are (h, W, C) from top to bottom; ``target`` is empty, can seek and be read back.
    Deflate with the horizontal predictor: lossless, and read everywhere.
    """
    import tifffile

    _, width, channels = shape
    block = exif_block.Block(metadata.exif) if metadata.exif else None
    order: Literal["<", ">"] = ">" if block and block.order == ">" else "<"
    kind = np.dtype(np.uint16 if deep else np.uint8)
    rows = max(1, ROWS_BYTES // (width * channels * kind.itemsize))
    # named, or tifffile takes the number that a file opened below a folder has for its name
    named = tifffile.FileHandle(target, name="result.tiff")
    with tifffile.TiffWriter(named, byteorder=order) as writer:
        writer.write(
            _packed(strips, rows, kind.newbyteorder(order)),
            shape=shape[:2] if channels == 1 else shape,
            dtype=kind,
            photometric="minisblack" if channels < 3 else "rgb",
            planarconfig="contig" if channels > 1 else None,
            extrasamples=["unassalpha"] if alpha else None,
            compression="adobe_deflate",
            predictor=True,
            rowsperstrip=rows,
            resolution=metadata.dpi or (1, 1),
            resolutionunit="INCH" if metadata.dpi else "NONE",
            iccprofile=metadata.icc,
            software=False,
            metadata=None,
            extratags=_extra_tags(block, metadata),
        )
    if block:
        _append_directories(target, block)


def _packed(strips: Iterable[NDArray[Any]], rows: int, kind: np.dtype[Any]) -> Iterator[bytes]:
    """Strips of exactly ``rows`` rows (the last may have fewer), predicted and deflated.

    tifffile takes arrays by whole pages alone; what it takes by strips is packed already.
    """
    import imagecodecs

    def pack(part: NDArray[Any]) -> bytes:
        lines = np.ascontiguousarray(part, kind)
        differences = np.asarray(imagecodecs.delta_encode(lines, axis=-2))
        return bytes(imagecodecs.deflate_encode(differences.tobytes()))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        left: NDArray[Any] | None = None
        for strip in strips:
            whole = strip if left is None else np.concatenate([left, strip])
            cut = len(whole) - len(whole) % rows
            left = whole[cut:]
            yield from pool.map(pack, [whole[top : top + rows] for top in range(0, cut, rows)])
        if left is not None and len(left):
            yield pack(left)


def _extra_tags(block: exif_block.Block | None, metadata: Metadata) -> list[Any]:
    """What tifffile writes beside the pixels: IFD0's descriptive tags, XMP and IPTC."""
    tags: list[Any] = []
    left_out = {*exif_block.RESOLUTIONS, exif_block.RESOLUTION_UNIT, *DIRECTORIES}
    for entry in block.entries(block.first) if block else ():
        if block and entry.tag in DESCRIPTIVE - left_out and entry.kind in exif_block.TYPE_SIZES:
            raw = bytes(block.data[entry.value_place : entry.value_place + entry.size])
            tags.append((entry.tag, entry.kind, entry.count, raw, True))
    if metadata.xmp:
        tags.append((XMP, 1, len(metadata.xmp), metadata.xmp, True))
    if metadata.iptc:
        tags.append((IPTC, 7, len(metadata.iptc), metadata.iptc, True))
    return tags


def _append_directories(out: BinaryIO, block: exif_block.Block) -> None:
    """Give the file its EXIF and GPS directories, which tifffile does not write.

    The EXIF block goes behind the pixels, its offsets moved; then IFD0 once more, with pointers
    into it, and the file's header says where. All in the block's byte order.
    """
    base = out.seek(0, io.SEEK_END)
    base += out.write(bytes(base % 2))
    if note := exif_block.maker_note(block):
        exif_block.shift_note(block, note.value_place, base)
    out.write(exif_block.relocate(bytes(block.data), base))
    start = out.tell()
    start += out.write(bytes(start % 2))
    order = block.order
    (ifd,) = struct.unpack(order + "I", _at(out, 4, 4))
    (count,) = struct.unpack(order + "H", _at(out, ifd, 2))
    entries = [_at(out, place, 12) for place in range(ifd + 2, ifd + 2 + 12 * count, 12)]
    for tag in DIRECTORIES:
        place = block.pointer(block.first, tag)
        if place is not None:
            entries.append(struct.pack(order + "HHII", tag, 4, 1, place + base))
    entries.sort(key=lambda entry: struct.unpack_from(order + "H", entry))
    out.seek(start)
    out.write(struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4))
    out.seek(4)
    out.write(struct.pack(order + "I", start))


def _at(file: BinaryIO, place: int, size: int) -> bytes:
    """``size`` bytes from ``place`` on."""
    file.seek(place)
    return file.read(size)
