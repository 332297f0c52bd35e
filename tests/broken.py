"""Broken picture files by the thousand: the corpus mutated from a seed, and bombs made by hand."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pictures
from pictures import png_chunk

PNG_HEAD = b"\x89PNG\r\n\x1a\n"
BIG = 60_000
"""px; a side that a header claims."""

INTERESTING = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


@cache
def whole() -> tuple[tuple[str, bytes], ...]:
    """(name, bytes) of the files that are broken: the corpus, and photographs with metadata."""
    files = [(sample.name, sample.data) for sample in pictures.corpus().values()]
    files += list(pictures.animated().items())
    for source in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
        icc = pictures.wide_profile()
        files.append((f"photo.{source.lower()}", pictures.photograph(source, icc=icc)))
    cmyk = pictures.photograph("JPEG", icc=pictures.cmyk_profile(), mode="CMYK")
    return (*files, ("cmyk-profile.jpg", cmyk))


def mutated(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """``count`` (name, bytes); the same for the same seed."""
    files = whole()
    for case in range(count):
        random = np.random.default_rng((seed, case))
        name, data = files[case % len(files)]
        change = CHANGES[int(random.integers(len(CHANGES)))]
        stem, _, suffix = name.rpartition(".")
        yield f"{case:05d}-{stem}-{change.__name__}.{suffix}", change(data, random)


def before(name: str) -> str | None:
    """The whole file that a mutated one was cut from; None for those changed in another way."""
    found = re.fullmatch(r"\d+-(.*)-cut_off(\..*)", name)
    return f"{found[1]}{found[2]}" if found else None


Random = np.random.Generator


def cut_off(data: bytes, random: Random) -> bytes:
    return data[: int(random.integers(0, len(data)))]


def half_filled(data: bytes, random: Random) -> bytes:
    """As a download leaves a file whose size it set in advance."""
    place = int(random.integers(0, len(data)))
    return data[:place] + bytes(len(data) - place)


def bits_flipped(data: bytes, random: Random) -> bytes:
    block = bytearray(data)
    for _ in range(int(random.integers(1, 9))):
        block[int(random.integers(len(block)))] ^= 1 << int(random.integers(8))
    return bytes(block)


def head_flipped(data: bytes, random: Random) -> bytes:
    """The head is where the lies are told."""
    return bits_flipped(data[:300], random) + data[300:]


def numbers_lie(data: bytes, random: Random) -> bytes:
    block = bytearray(data)
    for _ in range(int(random.integers(1, 4))):
        size = int(random.choice([1, 2, 4]))
        place = int(random.integers(0, max(1, min(len(block), 400) - size)))
        value = INTERESTING[int(random.integers(len(INTERESTING)))] & ((1 << 8 * size) - 1)
        order = "big" if random.integers(2) else "little"
        block[place : place + size] = value.to_bytes(size, order)
    return bytes(block)


def spliced(data: bytes, random: Random) -> bytes:
    other = whole()[int(random.integers(len(whole())))][1]
    return data[: int(random.integers(len(data)))] + other[int(random.integers(len(other))) :]


def stuttered(data: bytes, random: Random) -> bytes:
    start = int(random.integers(len(data)))
    part = data[start : start + int(random.integers(1, 200))]
    return data[:start] + part * int(random.integers(0, 4)) + data[start + len(part) :]


def scrambled(data: bytes, random: Random) -> bytes:
    start, size = int(random.integers(len(data))), int(random.integers(1, 100))
    return data[:start] + random.bytes(min(size, len(data) - start)) + data[start + size :]


def wrong_magic(data: bytes, random: Random) -> bytes:
    other = whole()[int(random.integers(len(whole())))][1]
    size = int(random.integers(2, 16))
    return other[:size] + data[size:]


def checked_chunk(data: bytes, random: Random) -> bytes:
    """A PNG chunk changed and its checksum made right, so that the change reaches the decoder."""
    if not data.startswith(PNG_HEAD):
        return numbers_lie(data, random)
    places, place = [], 8
    while place + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, place)
        places.append((place, size))
        place += 12 + size
    place, size = places[int(random.integers(len(places)))]
    kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + size]
    changed = scrambled(body, random) if body else random.bytes(4)
    return data[:place] + png_chunk(kind, changed) + data[place + 12 + size :]


CHANGES: tuple[Callable[[bytes, Random], bytes], ...] = (
    cut_off,
    half_filled,
    bits_flipped,
    head_flipped,
    numbers_lie,
    spliced,
    stuttered,
    scrambled,
    wrong_magic,
    checked_chunk,
)


# --- bombs ----------------------------------------------------------------------------------


def hostile() -> dict[str, bytes]:
    """Files made to take memory or time, by what they are."""
    return {**_pngs(), **_jpegs(), **_webps(), **_tiffs(), **_others(), **_metadata()}


def png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return PNG_HEAD + b"".join(png_chunk(kind, data) for kind, data in chunks)


def head(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    return struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)


@cache
def zeros(megabytes: int) -> bytes:
    """So many megabytes of zeros, deflated."""
    packer = zlib.compressobj(6)
    block = bytes(1 << 20)
    return b"".join(packer.compress(block) for _ in range(megabytes)) + packer.flush()


def _pngs() -> dict[str, bytes]:
    pixels = zlib.compress(bytes(9 * (1 + 27)))
    small, end = (b"IHDR", head(9, 9)), (b"IEND", b"")
    return {
        "claims.png": png([(b"IHDR", head(BIG, BIG)), (b"IDAT", pixels), end]),
        "claims-less.png": png([(b"IHDR", head(19_000, 19_000)), (b"IDAT", zeros(1)), end]),
        "claims16.png": png([(b"IHDR", head(19_000, 19_000, 16, 6)), (b"IDAT", zeros(1)), end]),
        "negative.png": png([(b"IHDR", head(0x80000001, 3)), (b"IDAT", pixels), end]),
        "nothing.png": png([(b"IHDR", head(0, 0)), (b"IDAT", pixels), end]),
        "more-pixels-than-claimed.png": png([small, (b"IDAT", zeros(100)), end]),
        "profile.png": png([small, (b"iCCP", b"a\0\0" + zeros(100)), (b"IDAT", pixels), end]),
        "text.png": png([small, (b"zTXt", b"a\0\0" + zeros(100)), (b"IDAT", pixels), end]),
        "texts.png": png([small, *[(b"zTXt", b"a\0\0" + zeros(8))] * 80, (b"IDAT", pixels), end]),
        "late-text.png": png([small, (b"IDAT", pixels), (b"zTXt", b"a\0\0" + zeros(100)), end]),
        "chunks.png": png([small, *[(b"abCd", b"")] * 300_000, (b"IDAT", pixels), end]),
        "crumbs.png": png([small, *[(b"IDAT", b"")] * 300_000, (b"IDAT", pixels), end]),
    }


def _jpegs() -> dict[str, bytes]:
    data = pictures.corpus()["progressive.jpg"].data
    plain = bytearray(pictures.corpus()["rgb.jpg"].data)
    size = plain.index(b"\xff\xc0") + 5
    plain[size : size + 4] = struct.pack(">HH", 65_535, 65_535)
    lied = bytearray(plain)
    lied[size : size + 4] = struct.pack(">HH", 19_000, 19_000)
    padded = bytes(lied[:-2]) + bytes(400_000) + b"\xff\xd9"
    last = data.rindex(b"\xff\xda")
    scans = bytearray(data[:last] + data[last:-2] * 20_000 + b"\xff\xd9")
    size = scans.index(b"\xff\xc2") + 5
    scans[size : size + 4] = struct.pack(">HH", 8_000, 8_000)
    return {
        "claims.jpg": bytes(plain),
        "claims-less.jpg": bytes(lied),
        "claims-with-zeros.jpg": padded,
        "scans.jpg": bytes(scans),
        "junk.jpg": data[:2] + bytes(30_000_000) + data[2:],
        "segments.jpg": data[:2] + b"\xff\xe5\0\x02" * 2_000_000 + data[2:],
        "no-scan.jpg": data[: data.index(b"\xff\xda")] + bytes(20_000_000),
    }


def _webps() -> dict[str, bytes]:
    lossy, lossless = pictures.corpus()["rgb.webp"].data, pictures.corpus()["rgba.webp"].data
    place = lossy.index(b"\x9d\x01\x2a") + 3
    claims = lossy[:place] + struct.pack("<HH", 16_383, 16_383) + lossy[place + 4 :]
    place = lossless.index(b"VP8L") + 9
    (bits,) = struct.unpack_from("<I", lossless, place)
    bits |= (1 << 28) - 1
    canvas = struct.pack("<I", 0)[:1] + bytes(3) + b"\xff\xff\x00" + b"\xfe\xff\x00"
    extended = b"VP8X" + struct.pack("<I", 10) + canvas + lossy[12:]
    return {
        "claims.webp": claims,
        "claims-lossless.webp": lossless[:place] + struct.pack("<I", bits) + lossless[place + 4 :],
        "canvas.webp": b"RIFF" + struct.pack("<I", 4 + len(extended)) + b"WEBP" + extended,
        "long.webp": lossy[:4] + b"\xff\xff\xff\xff" + lossy[8:],
    }


def tiff(entries: list[tuple[int, int, int, int]], rest: bytes = b"", following: int = 0) -> bytes:
    """A TIFF of one directory of (tag, type, count, value), with ``rest`` behind it."""
    ifd = struct.pack("<H", len(entries))
    for tag, kind, count, value in sorted(entries):
        ifd += struct.pack("<HHII", tag, kind, count, value)
    return b"II*\0" + struct.pack("<I", 8) + ifd + struct.pack("<I", following) + rest


def directory(width: int, height: int, strip: int, size: int, compression: int = 1) -> list:
    return [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (259, 3, 1, compression),
        (262, 3, 1, 1),
        (273, 4, 1, strip),
        (277, 3, 1, 1),
        (278, 4, 1, height),
        (279, 4, 1, size),
    ]


def _tiffs() -> dict[str, bytes]:
    start = 8 + 2 + 12 * 9 + 4
    plain = directory(9, 9, start, 81)
    more = directory(9, 9, start + 12, 81)
    chain = b"".join(
        struct.pack("<HHHIII", 1, 254, 4, 1, 0, start + 12 + 81 + 18 * (page + 1))
        for page in range(100_000)
    )
    packed = zeros(100)
    tiles = [e for e in directory(19_000, 19_000, 0, 0) if e[0] not in (273, 278, 279)]
    tiles += [(322, 3, 1, 16), (323, 3, 1, 16), (324, 4, 2**31, 8), (325, 4, 2**31, 8)]
    return {
        "loop.tif": tiff(plain, bytes(81), following=8),
        "exif-loop.tif": tiff([*more, (34665, 4, 1, 8)], bytes(93)),
        "subdirectory-loop.tif": tiff([*more, (330, 4, 1, 8)], bytes(93)),
        "pages.tif": tiff(more, bytes(12 + 81) + chain, following=start + 12 + 81)[: start + 10**7],
        "claims.tif": tiff(directory(BIG, BIG, start, 81), bytes(81)),
        "claims-deflated.tif": tiff(directory(19_000, 19_000, start, len(zeros(1)), 8), zeros(1)),
        "claims-fax.tif": tiff(directory(19_000, 19_000, start, 81, 4), bytes(81)),
        "claims-zstd.tif": tiff(directory(19_000, 19_000, start, 81, 50_000), bytes(81)),
        "deflated-bomb.tif": tiff(directory(9, 9, start, len(packed), 8), packed),
        "tiles.tif": tiff(tiles, bytes(2000)),
        "counts.tif": tiff([*more, (305, 2, 2**32 - 1, 8)], bytes(93)),
        "no-rows.tif": tiff([e for e in plain if e[0] != 257], bytes(93)),
    }


def _others() -> dict[str, bytes]:
    j2k = pictures.corpus()["rgb16.j2k"].data
    tiny = struct.pack(">8I", 19_000, 19_000, 0, 0, 1, 1, 0, 0)
    place = j2k.index(b"\xff\x51") + 6
    bmp = bytearray(pictures.corpus()["rgb.bmp"].data)
    bmp[18:26] = struct.pack("<ii", 2**31 - 1, -(2**31))
    skip = bytearray(pictures.corpus()["p.bmp"].data)
    skip[18:26], skip[30:34] = struct.pack("<ii", 19_000, 19_000), struct.pack("<I", 1)
    found = {
        "tiles.j2k": j2k[:place] + tiny + j2k[place + 32 :],
        "claims.bmp": bytes(bmp),
        "skips.bmp": bytes(skip) + b"\0\2\xff\xff" * 100_000,
        "claims.pgm": b"P5 999999999 999999999 255\n" + bytes(100),
        "claims.ppm": b"P3 19000 19000 65535\n" + b"1 " * 100_000,
        "digits.pgm": b"P2 " + b"9" * 10_000_000,
        "comment.pgm": b"P5 #" + b"x" * 20_000_000,
        "comments.pgm": b"P5 " + b"#\n" * 5_000_000,
    }
    for name in ("rgb.avif", "rgb10.avif", "rgb.heic", "rgb10.heic"):
        data = bytearray(pictures.corpus()[name].data)
        for side in (16_000, 40_000):
            place = 0
            while (place := data.find(b"ispe", place + 1)) > 0:
                data[place + 8 : place + 16] = struct.pack(">II", side, side)
            found[f"claims-{side}-{name}"] = bytes(data)
    return found


def _metadata() -> dict[str, bytes]:
    plain = pictures.corpus()["rgb.png"].data
    laughs = b'<!DOCTYPE l [<!ENTITY a "ha">' + b"".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">'.encode()
        for a, b in zip("abcdefghi", "bcdefghij", strict=True)
    )
    laughs += b"]><x>&j;</x>"
    deep = b"<a>" * 1_000_000
    wide = b"<x:x xmlns:x='y'>" + b"<exif:GPSA/>" * 10 + b"<x:GPSA/>" * 1_000_000 + b"</x:x>"
    loop = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", 3)
    for tag in (0x8769, 0x8825, 0xA005):
        loop += struct.pack("<HHII", tag, 4, 1, 8)
    loop += struct.pack("<I", 8)
    icc = pictures.wide_profile()
    tags = icc[:128] + struct.pack(">I", 0x0FFFFFFF) + icc[132:]
    garbage = icc[:132] + np.random.default_rng(5).bytes(5000)
    found = {}
    for name, packet in {"laughs": laughs, "deep": deep, "wide": wide}.items():
        chunk = png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet)
        found[f"{name}.png"] = plain[:33] + chunk + plain[33:]
    found["exif-loop.png"] = plain[:33] + png_chunk(b"eXIf", loop) + plain[33:]
    for name, profile in {"icc-tags": tags, "icc-garbage": garbage}.items():
        chunk = png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(profile))
        found[f"{name}.png"] = plain[:33] + chunk + plain[33:]
    return found
