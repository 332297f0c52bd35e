"""XMP changed in place: what is not touched keeps its bytes; and our provenance put in.

ISO 16684-1 gives the packet; the IPTC Photo Metadata Standard 2023.1 gives digitalSourceType.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.sax.saxutils import quoteattr

from fluxwatchd.imageio.packet import TAG, BrokenXmp, Packet, Piece

SOURCES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
TRAINED = "compositeWithTrainedAlgorithmicMedia"
IPTC_NAMESPACE = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
OURS = "urn:fluxwatchd:provenance:1"
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
TIFF, EXIF = "http://ns.adobe.com/tiff/1.0/", "http://ns.adobe.com/exif/1.0/"
DUBLIN_CORE = "http://purl.org/dc/elements/1.1/"
SOURCE_TYPE = (IPTC_NAMESPACE, "DigitalSourceType")
PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
    f'<rdf:RDF xmlns:rdf="{RDF}">\n'
    '</rdf:RDF>\n</x:xmpmeta>\n<?xpacket end="w"?>'
).encode()


def mend(
    xmp: bytes,
    *,
    width: int,
    height: int,
    dpi: tuple[float, float] | None,
    mime: str,
    strip_gps: bool,
) -> bytes:
    """The packet made true for an upright picture of ``width`` x ``height`` px, of ``dpi``.

    ``mime`` is the new file's type, for dc:format. ``strip_gps`` removes every property, of any
    namespace, whose name begins with GPS (exif:GPSLatitude, drone-dji:GpsLatitude). Raises
    BrokenXmp.
    """
    packet = Packet(xmp)
    true = {
        (TIFF, "ImageWidth"): str(width),
        (TIFF, "ImageLength"): str(height),
        (EXIF, "PixelXDimension"): str(width),
        (EXIF, "PixelYDimension"): str(height),
        (TIFF, "Orientation"): "1",
        (DUBLIN_CORE, "format"): mime,
    }
    if dpi:
        across, down = (f"{round(per_inch * 1000)}/1000" for per_inch in dpi)
        true |= {(TIFF, "XResolution"): across, (TIFF, "YResolution"): down}
        true[TIFF, "ResolutionUnit"] = "2"
    edits = []
    for piece in packet.pieces:
        if strip_gps and piece.name.lower().startswith("gps"):
            edits.append(_removal(piece))
        elif piece.leaf and (value := true.get((piece.space, piece.name))) is not None:
            edits.append(_overwriting(packet, piece, value))
    return packet.changed(edits)


def _removal(piece: Piece) -> tuple[int, int, bytes]:
    return piece.start, piece.end, b""


def _overwriting(packet: Packet, piece: Piece, value: str) -> tuple[int, int, bytes]:
    """``value`` in place of the old one; an element that is one tag becomes two."""
    tag = packet.data[piece.start : piece.end]
    if piece.value_start < piece.end or not tag.endswith(b"/>"):
        return piece.value_start, piece.value_end, value.encode()
    named = TAG.match(tag)
    name = named[0][1:] if named else b""
    return piece.start, piece.end, tag[:-2] + b">" + value.encode() + b"</" + name + b">"


def with_provenance(xmp: bytes | None, provenance: Mapping[str, object]) -> bytes:
    """The packet (a new one for None) with ``provenance`` in it, in place of an older one.

    Keys become properties of our namespace, values their text. ``digitalSourceType`` is IPTC's
    term, TRAINED if it is missing; None leaves it out. Raises BrokenXmp where the packet has no
    place for it.
    """
    packet = Packet(PACKET if xmp is None else xmp)
    rdf = packet.find(RDF, "RDF")
    if rdf is None or rdf.value_end == rdf.end:
        raise BrokenXmp("it has no rdf:RDF")
    given = dict(provenance)
    source = given.pop("digitalSourceType", TRAINED)
    fields = [f"fluxwatchd:{_name(key)}={quoteattr(str(value))}" for key, value in given.items()]
    if source is not None:
        fields.append(f"Iptc4xmpExt:DigitalSourceType={quoteattr(f'{SOURCES}{source}')}")
    block = (
        f'<rdf:Description rdf:about="" xmlns:rdf="{RDF}" xmlns:fluxwatchd="{OURS}"\n'
        f' xmlns:Iptc4xmpExt="{IPTC_NAMESPACE}"\n ' + "\n ".join(fields) + "/>\n"
    )
    # A property that stood twice would make the packet invalid.
    edits = [
        _removal(piece)
        for piece in packet.pieces
        if piece.space == OURS or (source is not None and (piece.space, piece.name) == SOURCE_TYPE)
    ]
    return packet.changed([*edits, (rdf.value_end, rdf.value_end, block.encode())])


def _name(key: str) -> str:
    """A key as an XML name."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", key)
    return plain if re.match(r"[A-Za-z_]", plain) else f"_{plain}"
