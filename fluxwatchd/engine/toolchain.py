"""What a GPU's kernels are compiled with; found without torch."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

COMPILERS = ("cc", "gcc", "clang")
REMEDY = "Install gcc and Python's headers: on Debian, `apt install gcc python3-dev`."


def missing() -> str | None:
    """What a compiler of kernels needs and does not find here; None if all is there.

    Triton builds a few lines of C against Python's headers wherever it runs first.
    """
    if not any(shutil.which(name) for name in (os.environ.get("CC", ""), *COMPILERS)):
        return "there is no C compiler"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return None if header.is_file() else f"Python's headers are missing ({header})"
