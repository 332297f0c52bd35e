"""What exiftool says of pictures before and after: only what must change does."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pictures
import pytest
from PIL import Image
from test_roundtrip import upscaled

from fluxwatchd.imageio import exif

pytestmark = pytest.mark.machine

FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP", "tiff": "TIFF", "avif": "AVIF"}
GROUPS = re.compile(r"(IFD0|IFD1|ExifIFD|GPS|InteropIFD|Canon|XMP-.*|IPTC|ICC.*):")
OWN = re.compile(r"(JFIF|PNG-pHYs|PNG|File):")
"""Of the container: equal where source and result are of one format."""
SOURCES = ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "JPEG2000", "HEIC"]
MUST = {
    "IFD0:Orientation",
    "IFD0:ImageWidth",
    "IFD0:ImageHeight",
    "ExifIFD:ExifImageWidth",
    "ExifIFD:ExifImageHeight",
    "XMP-exif:ExifImageWidth",
    "XMP-exif:ExifImageHeight",
    "XMP-tiff:Orientation",
    "XMP-tiff:ImageWidth",
    "XMP-tiff:ImageHeight",
    "XMP-dc:Format",
    "XMP-x:XMPToolkit",
    *("IFD1:ThumbnailOffset", "IFD1:ThumbnailLength", "IFD1:ThumbnailImage"),
}
"""What is set to what is true of the new file."""

LAYOUT = {
    *("BitsPerSample", "Compression", "PhotometricInterpretation", "StripOffsets", "SubfileType"),
    *("SamplesPerPixel", "RowsPerStrip", "StripByteCounts", "PlanarConfiguration", "Predictor"),
    *("SampleFormat", "ExtraSamples", "PageNumber", "YCbCrPositioning"),
}
"""How a TIFF lays its pixels out."""


CODING = {
    *("ImageWidth", "ImageHeight", "BitDepth", "ColorType", "Compression", "Filter", "Interlace"),
    *("ProfileName", "FileName", "Directory", "FileSize", "FileModifyDate", "FileAccessDate"),
    *("FileInodeChangeDate", "FilePermissions", "FileType", "FileTypeExtension", "MIMEType"),
    *("EncodingProcess", "BitsPerSample", "ColorComponents", "YCbCrSubSampling"),
    *("ExifByteOrder", "CurrentIPTCDigest"),
}
"""How PNG and JPEG code the picture, and what the file system says."""


def exiftool(path: Path, *options: str) -> dict[str, Any]:
    """Every tag by group and name; nothing but harmless remarks may be warned of."""
    done = subprocess.run(
        ["exiftool", "-j", "-a", "-n", "-G1", "-struct", *options, str(path)],
        capture_output=True,
        check=True,
        timeout=60,
    )
    found: dict[str, Any] = json.loads(done.stdout)[0]
    return found


def told(path: Path, *, own: bool) -> dict[str, Any]:
    """What ``exiftool`` tells of the photograph, not of the file's layout."""
    tags = exiftool(path)
    doubts = [value for tag, value in tags.items() if tag in ("ExifTool:Error", "ExifTool:Warning")]
    assert not doubts, doubts
    kept = {k: v for k, v in tags.items() if GROUPS.match(k)}
    kept = {k: v for k, v in kept.items() if k.removeprefix("IFD0:") not in LAYOUT}
    if own:
        kept |= {
            k: v for k, v in tags.items() if OWN.match(k) and k.partition(":")[2] not in CODING
        }
    return kept


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Camera files of every format, with all the metadata that exiftool can put into them."""
    folder = tmp_path_factory.mktemp("shots")
    files: dict[str, Path] = {}
    for name in SOURCES:
        path = folder / f"shot-{name.lower()}.{name.lower().replace('jpeg2000', 'jp2')}"
        if name == "JPEG2000":
            path.write_bytes(pictures.corpus()["rgb.jp2"].data)
            camera = folder / "camera.jpg"
            camera.write_bytes(pictures.photograph(exif=pictures.canon_exif(1)))
            source = ["-tagsfromfile", str(camera), "-all:all", "-unsafe"]
        else:
            block, icc = pictures.canon_exif(1), pictures.rgb_profile("display-p3")
            if name == "HEIC":
                data = pictures.heic(pictures.smooth(3), "RGB", exif=b"Exif\0\0" + block)
            elif name == "AVIF":  # Pillow would lay a block with an orientation out anew
                block = exif.without_orientation(block)
                data = pictures.photograph(name, exif=block, icc=icc)
            else:
                data = pictures.photograph(name, exif=block, icc=icc)
            path.write_bytes(data)
            source = ["-IFD0:Orientation#=1"] if name == "AVIF" else []
            source += ["-PNG:Author=Ä. Müller"] if name == "PNG" else []
            source += ["-Comment=by hand"] if name in ("PNG", "JPEG") else []
        more = [
            "-XMP-dc:Title=Zwei Vögel",
            "-XMP-dc:Subject=bird",
            "-XMP-dc:Subject=wing",
            "-XMP-xmp:Rating=4",
            "-XMP-photoshop:City=Genève",
            "-XMP-tiff:ImageWidth=37",
            "-XMP-drone-dji:GPSLatitude=47.375",
        ]
        if name in ("JPEG", "TIFF", "JPEG2000"):
            more += ["-IPTC:City=Genève", "-IPTC:Keywords=bird", "-CodedCharacterSet=UTF8"]
        command = ["exiftool", "-q", "-q", "-m", "-overwrite_original", *source, *more, str(path)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        files[name] = path
    return files


@pytest.fixture(scope="module")
def results(
    shots: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], tuple[Path, dict]]:
    """Every shot in every format, at scale 1, without provenance."""
    found = {}
    files = {path.name: path.read_bytes() for path in shots.values()}
    for format in FORMATS:
        settings = "variant=lanczos", "scale=1", f"format={format}", "embed_provenance=false"
        done = upscaled(tmp_path_factory.mktemp(format), files, *settings)
        found |= {(source, format): done[path.name] for source, path in shots.items()}
    return found


def test_exiftool_is_there() -> None:
    assert shutil.which("exiftool"), "apt-get install libimage-exiftool-perl"


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("source", SOURCES)
def test_only_what_must_change_does(
    source: str, format: str, shots: dict[str, Path], results: dict[tuple[str, str], Any]
) -> None:
    path, record = results[source, format]
    own = FORMATS[format] == source
    before, after = told(shots[source], own=own), told(path, own=own)
    lost = {
        key: value
        for key, value in before.items()
        if after.get(key) != value and key not in MUST and not _said(key, record)
    }
    added = {key: after[key] for key in after.keys() - before.keys() - MUST}
    assert lost == {}
    assert added == {}


def _said(key: str, record: dict[str, Any]) -> bool:
    """Whether the record says that this was left out."""
    said = {"IPTC:": "IPTC was left out", "IFD1:": "thumbnail was left out"}
    return any(
        key.startswith(group) and any(words in note for note in record["notes"])
        for group, words in said.items()
    )


LONG = " ".join(f"feather{number}" for number in range(20_000))


@pytest.fixture(scope="module")
def enlarged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, tuple[Path, dict]]]:
    """A turned photograph, and one with XMP of several segments, 2.5 times as large, by format."""
    folder = tmp_path_factory.mktemp("enlarged")
    source = folder / "long.jpg"
    source.write_bytes(pictures.photograph())
    (folder / "long.txt").write_text(LONG)
    command = ["exiftool", "-q", "-overwrite_original", "-XMP-dc:Title=bird"]
    command += [f"-XMP-photoshop:History<={folder}/long.txt", str(source)]
    subprocess.run(command, check=True, timeout=60)
    long = source.read_bytes()
    assert long.count(b"http://ns.adobe.com/xmp/extension/") > 1
    files = {"long.jpg": long, "shot.jpg": pictures.photograph(exif=pictures.canon_exif(6))}
    settings = "variant=lanczos", "scale=2.5", "strip_gps=true"
    return {
        format: upscaled(folder / format, files, *settings, f"format={format}")
        for format in FORMATS
    }


@pytest.mark.parametrize("format", FORMATS)
def test_a_turned_and_enlarged_photograph_says_what_is_true(
    format: str, enlarged: dict[str, Any]
) -> None:
    path, record = enlarged[format]["shot.jpg"]
    tags = exiftool(path)
    width, height = record["output"]["width"], record["output"]["height"]
    assert (width, height) == (round(23 * 2.5), round(37 * 2.5))
    assert tags.get("IFD0:Orientation", 1) == 1
    assert (tags["ExifIFD:ExifImageWidth"], tags["ExifIFD:ExifImageHeight"]) == (width, height)
    assert tags["IFD0:XResolution"] == pytest.approx(300 * record["scale"], rel=1e-4)
    assert tags["XMP-tiff:Orientation"] == 1
    assert tags["XMP-exif:ExifImageWidth"] == width
    assert tags["Canon:OwnerName"] == "An exacting owner"
    assert not [tag for tag in tags if "gps" in tag.lower()]
    if format != "tiff":
        small = subprocess.run(
            ["exiftool", "-b", "-ThumbnailImage", str(path)], capture_output=True, check=True
        )
        with Image.open(io.BytesIO(small.stdout)) as image:
            assert image.size == (width, height)  # small enough to be its own thumbnail


@pytest.mark.parametrize("format", FORMATS)
def test_xmp_of_several_segments_is_kept(format: str, enlarged: dict[str, Any]) -> None:
    path, record = enlarged[format]["long.jpg"]
    tags = exiftool(path)
    assert tags["XMP-photoshop:History"] == LONG
    assert tags["XMP-dc:Title"] == "bird"
    assert "XMP-iptcExt:DigitalSourceType" in tags
    assert not any("XMP" in note for note in record["notes"])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("variant", ["nano", "lanczos"])
def test_other_programs_can_tell_what_made_it(
    format: str, variant: str, enlarged: dict[str, Any], tmp_path: Path
) -> None:
    done, term = enlarged[format], "algorithmicallyEnhanced"
    if variant == "nano":
        files = {"shot.jpg": pictures.photograph()}
        done = upscaled(tmp_path, files, "variant=nano", "scale=2", f"format={format}")
        term = "compositeWithTrainedAlgorithmicMedia"
    path, record = done["shot.jpg"]
    tags = exiftool(path)
    source = f"http://cv.iptc.org/newscodes/digitalsourcetype/{term}"
    assert tags["XMP-iptcExt:DigitalSourceType"] == source
    ours = {k.partition(":")[2]: v for k, v in tags.items() if k.startswith("XMP-fluxwatchd:")}
    assert ours["Job"] == record["job_id"]
    assert ours["Variant"] == variant
    assert str(ours["Seed"]) == str(record["seed"])
    assert ours["Scale"] == pytest.approx(record["scale"])
    assert ours["Source_sha256"] == record["source"]["sha256"]
    assert ours["Steps"] == record["steps"]


@pytest.mark.parametrize("format", FORMATS)
def test_without_provenance_there_is_no_trace(
    format: str, results: dict[tuple[str, str], Any]
) -> None:
    path, record = results["JPEG", format]
    tags = exiftool(path)
    assert not [tag for tag in tags if "fluxwatchd" in tag or "DigitalSource" in tag]
    for trace in ("fluxwatchd", "digitalsourcetype", record["job_id"]):
        assert trace.encode() not in path.read_bytes()
