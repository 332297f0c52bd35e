"""What a picture takes is reckoned before it is taken, and what cannot fit is refused by name."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pictures
import pytest
import tiny
from house import House
from PIL import Image

from fluxwatchd import imageio, work
from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.engine import footprint, memory, open_engine
from fluxwatchd.errors import InputRejected, OutOfMemory
from fluxwatchd.imageio import Picture

LANCZOS = Profile(variant="lanczos", scale=4.0)
NANO = Profile(variant="nano", scale=4.0)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Gives this process a machine: its memory and what is free, kB; its cgroup's limit, bytes."""

    def make(total: int, free: int, limit: str = "max", used: int = 0, cache: int = 0) -> None:
        meminfo, own = tmp_path / "meminfo", tmp_path / "own"
        meminfo.write_text(f"MemTotal: {total} kB\nMemAvailable: {free} kB\n")
        own.write_text("0::/system.slice/fluxwatchd.service\n")
        group = tmp_path / "cgroup" / "system.slice" / "fluxwatchd.service"
        group.mkdir(parents=True, exist_ok=True)
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\n")
        monkeypatch.setattr(memory, "MEMINFO", meminfo)
        monkeypatch.setattr(memory, "OWN_CGROUP", own)
        monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")

    return make


def png(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("1", (width, height)).save(out, "PNG")
    return out.getvalue()


def test_the_machine_or_its_cgroup_is_what_there_is(machine) -> None:
    machine(total=8_000_000, free=3_000_000)
    assert memory.host_total() == 8_000_000 * 1024
    assert memory.host_free() == 3_000_000 * 1024
    machine(total=8_000_000, free=3_000_000, limit="1000000", used=900_000, cache=250_000)
    assert memory.host_total() == 1_000_000
    assert memory.host_free() == 350_000
    assert memory.free_bytes("cpu") == 350_000


def test_400_megapixels_fit_in_24_gigabytes() -> None:
    assert footprint.of(LANCZOS, (5000, 5000)) < 24e9
    assert footprint.of(NANO, (5000, 5000)) < 24e9
    assert footprint.of(Profile(variant="lanczos", scale=1.0), (20_000, 20_000)) < 24e9
    assert footprint.of(NANO, (1500, 1500)) < 24e9


def test_what_a_machine_can_never_hold_is_refused_before_it_is_decoded(
    machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(total=2_000_000, free=2_000_000)  # 2 GB
    monkeypatch.setattr("fluxwatchd.imageio.read", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(InputRejected) as caught:
        work.decode(png(3000, 3000), LANCZOS, "wide.png")
    assert "wide.png" in str(caught.value) and "12000 x 12000" in str(caught.value)
    assert "2.0 GB" in str(caught.value) and "scale" in caught.value.hint
    assert not caught.value.transient


def test_what_fits_is_decoded(machine) -> None:
    machine(total=2_000_000, free=2_000_000)
    assert work.decode(png(1000, 1000), LANCZOS, "small.png").width == 1000


@pytest.mark.parametrize("profile", [LANCZOS, NANO])
def test_what_has_no_room_now_is_tried_again_later(machine, profile: Profile) -> None:
    machine(total=16_000_000, free=100_000)
    beats: list[str] = []
    with (
        open_engine(EngineSettings(device="cpu")) as engine,
        pytest.raises(OutOfMemory) as caught,
    ):
        engine.upscale(
            Picture(tiny.photo(400, 400)), profile, 1, lambda stage, *_: beats.append(stage)
        )
    assert caught.value.transient
    assert "1600 x 1600" in str(caught.value) and caught.value.hint
    assert not beats, "refused before anything was made"


def test_the_reckoning_counts_alpha_the_source_the_model_and_the_format() -> None:
    size, plain = (1000, 1000), Profile(variant="lanczos", scale=2.0)
    base = footprint.of(plain, size, channels=3)
    assert footprint.of(plain, size, channels=4) - base >= 4 * 4_000_000 + 8 * 1_000_000
    assert footprint.of(plain.model_copy(update={"format": "jpeg"}), size, channels=3) > base
    assert footprint.of(NANO.model_copy(update={"scale": 2.0}), size, channels=3) > base
    strengthless = NANO.model_copy(update={"scale": 2.0, "strength": 0.0})
    assert footprint.of(strengthless, size, channels=3) == base


def test_the_daemon_sets_a_hopeless_picture_aside_and_goes_on(tmp_path: Path) -> None:
    house = House(tmp_path, 'variant = "lanczos"\nscale = 8.0\nmax_pixels = 1000000000000')
    house.inbox.mkdir(exist_ok=True)
    (house.inbox / "huge.png").write_bytes(png(15_000, 15_000))  # 14.4 gigapixels of output
    house.drop("small.png")
    assert house.run() == 1
    assert house.delivered("small.png")
    error = (house.failed / "huge.png.error.json").read_text()
    assert "InputRejected" in error and "of memory" in error and "scale" in error


def test_peak_memory_of_a_resize_is_as_stated(tmp_path: Path) -> None:
    """25 megapixels through the real process: what the kernel counts, not what we reckon."""
    memory.reset_peak("cpu")
    picture = Picture(np.repeat(tiny.photo(1250, 1250)[..., :1], 3, axis=2))
    before = memory.peak_bytes("cpu")
    with open_engine() as engine:
        done = engine.upscale(picture, LANCZOS, 1)
    taken = done.peak_bytes - before
    assert taken < footprint.of(LANCZOS, (1250, 1250), channels=3)


@pytest.mark.parametrize("scale", [1.01, 1.5])
def test_a_cutout_takes_no_more_than_is_reckoned(tmp_path: Path, scale: float) -> None:
    """16 bits, a profile, holes, and a result hardly larger: read, resized and written."""
    side = 2400
    colours = np.repeat(tiny.photo(side, side)[..., :1], 3, axis=2)
    alpha = np.clip(tiny.photo(side, side, seed=3)[..., 0] * 2 - 0.9, 0, 1)
    assert 0.1 < (alpha == 0).mean() < 0.9
    icc = pictures.rgb_profile("adobe-rgb")
    given = imageio.Picture(colours, alpha, depth=16, metadata=imageio.Metadata(icc=icc))
    path = tmp_path / "cutout.png"
    imageio.write(given, path)
    del given, colours, alpha
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from fluxwatchd import imageio, work\n"
        "from fluxwatchd.config import Profile\n"
        "from fluxwatchd.engine import memory, open_engine\n"
        "small, path, profile = sys.argv[1], Path(sys.argv[2]), Profile(\n"
        "    variant='lanczos', scale=float(sys.argv[3]))\n"
        "with open_engine() as engine:\n"
        "    def peak(path):\n"
        "        peaks = []\n"
        "        memory.reset_peak('cpu')\n"
        "        picture = work.decode(path.read_bytes(), profile, path.name)\n"
        "        peaks.append(memory.peak_bytes('cpu'))\n"
        "        done = engine.upscale(picture, profile, 1)\n"
        "        peaks.append(memory.peak_bytes('cpu'))\n"
        "        imageio.write(done.picture, path.with_suffix('.out.png'))\n"
        "        return max(*peaks, memory.peak_bytes('cpu'))\n"
        "    before = peak(Path(small))\n"  # the libraries are in memory now
        "    print(peak(path) - before)\n"
    )
    small = tmp_path / "small.png"
    tiny_given = imageio.Picture(
        tiny.photo(9, 9), tiny.photo(9, 9)[..., 0], depth=16, metadata=imageio.Metadata(icc=icc)
    )
    imageio.write(tiny_given, small)
    command = [sys.executable, "-c", program, str(small), str(path), str(scale)]
    done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=120)
    taken = int(done.stdout)
    profile = Profile(variant="lanczos", scale=scale)
    reckoned = footprint.of(profile, (side, side), channels=4) - footprint.AT_HAND
    print(f"{taken / (side * scale) ** 2:.0f} bytes an output px")
    assert taken < reckoned + footprint.AT_HAND / 2, "half of what is at hand is kept back"


def test_a_small_picture_needs_no_large_machine(machine) -> None:
    machine(total=128_000, free=60_000)
    assert work.decode(png(100, 100), LANCZOS, "small.png").width == 100
    with open_engine(EngineSettings(device="cpu")) as engine:
        engine.warm(LANCZOS)
        assert engine.upscale(Picture(tiny.photo(100, 100)), LANCZOS, 1).picture.width == 400


def test_the_second_pass_of_a_large_scale_has_a_large_source() -> None:
    size = (500, 500)
    one, two = (
        footprint.of(NANO.model_copy(update={"scale": scale}), size, channels=3)
        for scale in (4.0, 4.001)
    )
    assert two - one > 16 * 250_000 * 12
