"""What an opened file carries beside its pixels: profile, EXIF, XMP, IPTC, resolution, texts."""

from __future__ import annotations

from typing import Any

from fluxwatchd.imageio import coded, colour, extended, iptc, jp2, pngtexts
from fluxwatchd.imageio import exif as exif_block
from fluxwatchd.imageio.inspecting import TEXT, Opened, raw_profile, raw_xmp
from fluxwatchd.imageio.packet import BrokenXmp
from fluxwatchd.imageio.picture import Metadata, believable

SRGB_GAMMA = 0.45455
SRGB_PLACES = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
"""x and y of white, red, green and blue: what a PNG's cHRM chunk holds for sRGB."""

NEAR = 0.005
"""Differences of gamma or chromaticity below it are rounding."""

DISGUISED = ("XML:com.adobe.xmp", "Raw profile type ")
"""Keywords of PNG texts that are XMP, IPTC or EXIF."""


def carried(opened: Opened, notes: list[str]) -> Metadata:
    """ICC, EXIF, XMP, IPTC and resolution, as the file has them; ``notes`` gets what is lost."""
    if opened.header.format == "TIFF":
        from fluxwatchd.imageio import tiff

        return tiff.metadata(opened.decoder, opened.exif)
    if opened.late:
        opened.decoder.load()
    info, boxes = opened.decoder.info, opened.boxes or jp2.Beside()
    exif = opened.exif.removeprefix(b"Exif\0\0") if opened.exif else None
    in_exif = exif_block.resolution(exif) if exif else None
    stated = _jfif(info) if opened.header.format == "JPEG" else info.get("dpi")
    return Metadata(
        icc=info.get("icc_profile")
        or boxes.icc
        or _coded(opened, notes)
        or _png_profile(info, grey=opened.header.mode[0] in "L1"),
        exif=exif,
        xmp=_xmp(opened, notes) or boxes.xmp,
        iptc=_iptc(info, notes) or boxes.iptc,
        dpi=_resolution(believable(stated), believable(in_exif)),
        text=_text(opened),
    )


def _resolution(
    stated: tuple[float, float] | None, in_exif: tuple[float, float] | None
) -> tuple[float, float] | None:
    """The container's resolution, or EXIF's where it is the same but for rounding, or alone."""
    if stated is None or in_exif is None:
        return stated or in_exif
    same = all(abs(a - b) <= b / 1000 for a, b in zip(stated, in_exif, strict=True))
    return in_exif if same else stated


def _xmp(opened: Opened, notes: list[str]) -> bytes | None:
    """The packet; of a JPEG with what further segments add to it."""
    info = opened.decoder.info
    packet = info.get("xmp") or raw_xmp(info)
    packet = packet.encode() if isinstance(packet, str) else packet
    more = [data for _, data in getattr(opened.decoder, "applist", ())]
    more = [data for data in more if data.startswith(extended.SIGNATURE)]
    if packet is None or not more:
        return packet
    try:
        return extended.joined(packet, more)
    except BrokenXmp as error:
        notes.append(f"the extension of XMP was left out: it is damaged ({error})")
        return packet


def _coded(opened: Opened, notes: list[str]) -> bytes | None:
    """The profile that nclx or cICP numbers amount to; None for sRGB, and for nonsense."""
    if opened.coded is None or not opened.header.mode.startswith(("RGB", "P")):
        return None
    if not coded.known(*opened.coded):
        notes.append(f"colour was taken as sRGB: its numbers {opened.coded} are not known")
        return None
    return coded.profile(*opened.coded)


def _jfif(info: dict[Any, Any]) -> tuple[float, float] | None:
    """(x, y) px per inch where a JPEG's JFIF segment has a unit: 1 is inch, 2 cm (JFIF 1.02).

    Pillow's own number may be made up: 72 where there is EXIF that says none.
    """
    per_inch = {1: 1.0, 2: 2.54}.get(info.get("jfif_unit", 0))
    if per_inch is None:
        return None
    x, y = info["jfif_density"]
    return x * per_inch, y * per_inch


def _text(opened: Opened) -> tuple[tuple[str, str], ...]:
    """A PNG's texts but for those that are metadata in disguise; a JPEG's comment."""
    info = opened.decoder.info
    if opened.header.format == "JPEG" and isinstance(info.get("comment"), bytes):
        return (("Comment", _comment(info["comment"])),)
    if opened.header.format != "PNG":
        return ()
    found = pngtexts.texts(opened.file, TEXT)
    return tuple((keyword, text) for keyword, text in found if not keyword.startswith(DISGUISED))


def _comment(data: bytes) -> str:
    """A JPEG's comment, which has no declared character set: UTF-8, or else Latin-1."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _png_profile(info: dict[Any, Any], *, grey: bool) -> bytes | None:
    """The profile that a PNG's gAMA and cHRM chunks amount to; None for sRGB's, and nonsense."""
    if "srgb" in info or not {"gamma", "chromaticity"} & set(info):
        return None
    gamma, places = info.get("gamma", SRGB_GAMMA), info.get("chromaticity", SRGB_PLACES)
    apart = max(abs(a - b) for a, b in zip(places, SRGB_PLACES, strict=True))
    if abs(gamma - SRGB_GAMMA) < NEAR and apart < NEAR:
        return None
    sensible = 0.1 <= gamma <= 10 and all(0 < place < 1 for place in places)
    if not sensible:
        return None
    if grey:  # primaries say nothing of it
        return colour.grey_profile(1 / gamma) if abs(gamma - SRGB_GAMMA) >= NEAR else None
    return colour.profile(gamma=1 / gamma, white=places[:2], primaries=places[2:])


def _iptc(info: dict[Any, Any], notes: list[str]) -> bytes | None:
    """The IIM record of a JPEG's Photoshop segment, or of a PNG's raw profile."""
    resources = info.get("photoshop")
    if isinstance(resources, dict):
        if any(code in iptc.PATHS for code in resources):
            notes.append("clipping paths (Photoshop's) were left out")
        record = resources.get(iptc.RESOURCE)
        return record if isinstance(record, bytes) and record else None
    raw = raw_profile(info, "iptc")
    return iptc.record(raw) if raw else None
