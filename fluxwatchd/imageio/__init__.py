"""file -> float image + alpha, ICC, EXIF/XMP, depth; and back.

Pillow reads and writes 8 bits; imagecodecs (BSD; libpng, OpenJPEG, libavif, LittleCMS) what has
more, and colour profiles in floats; tifffile TIFF; pillow-heif HEIC. Importing this package
imports NumPy and Pillow alone.
"""

from fluxwatchd.imageio.inspecting import MAX_PIXELS, READABLE_SUFFIXES, probe
from fluxwatchd.imageio.picture import Floats, Header, Metadata, Picture
from fluxwatchd.imageio.reading import read
from fluxwatchd.imageio.writing import refuse_too_long, suffix, write

__all__ = [
    "MAX_PIXELS",
    "READABLE_SUFFIXES",
    "Floats",
    "Header",
    "Metadata",
    "Picture",
    "probe",
    "read",
    "refuse_too_long",
    "suffix",
    "write",
]
