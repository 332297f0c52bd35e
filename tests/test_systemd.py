"""sd_notify against real sockets; the units against systemd's own checks."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxwatchd import systemd

UNITS = Path(__file__).parents[1] / "systemd"


class Manager:
    """A socket that listens as systemd does."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(5)

    def heard(self) -> dict[str, str]:
        lines = self.socket.recv(65536).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path, monkeypatch) -> Iterator[Manager]:
    address = f"@fluxwatchd-{os.urandom(6).hex()}"
    if request.param == "path":
        address = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    one = Manager(address)
    yield one
    one.socket.close()


def test_every_notice_is_heard(manager):
    assert systemd.ready("watching 2 folders")
    assert manager.heard() == {"READY": "1", "STATUS": "watching 2 folders"}
    assert systemd.status("photo.jpg: tile 3 of 12")
    assert manager.heard() == {"STATUS": "photo.jpg: tile 3 of 12"}
    assert systemd.watchdog()
    assert manager.heard() == {"WATCHDOG": "1"}
    assert systemd.extend_timeout(90)
    assert manager.heard() == {"EXTEND_TIMEOUT_USEC": "90000000"}
    assert systemd.stopping("the tile batch at hand")
    assert manager.heard() == {"STOPPING": "1", "STATUS": "the tile batch at hand"}


def test_a_reload_carries_its_time(manager):
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    systemd.reloading()
    heard = manager.heard()
    assert heard["RELOADING"] == "1"
    assert before <= int(heard["MONOTONIC_USEC"]) <= before + 5_000_000


def test_a_name_with_a_line_break_is_no_second_notice(manager):
    systemd.status("a\nREADY=1\n\udcff.jpg")
    heard = manager.heard()
    assert set(heard) == {"STATUS"}
    assert heard["STATUS"].startswith("a READY=1")


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/at/all", "@nobody-listens"])
def test_nobody_listening_is_no_error(monkeypatch, address):
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not systemd.ready("here")


def test_the_watchdogs_interval_is_half_of_what_the_unit_allows():
    own = str(os.getpid())
    assert systemd.watchdog_interval({}) is None
    assert systemd.watchdog_interval({"WATCHDOG_USEC": "0"}) is None
    assert systemd.watchdog_interval({"WATCHDOG_USEC": "60000000"}) == 30.0
    assert systemd.watchdog_interval({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": own}) == 30.0
    assert systemd.watchdog_interval({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}) is None


# --- the units ------------------------------------------------------------------------------


def settings(unit: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (UNITS / unit).read_text().splitlines():
        if match := re.fullmatch(r"([A-Za-z]+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


@pytest.mark.parametrize("unit", ["fluxwatchd.service", "fluxwatchd.user.service"])
def test_units_keep_the_promises(unit):
    found = settings(unit)
    assert found["Type"] == ["notify"]
    assert found["NotifyAccess"] == ["main"]
    assert found["Restart"] == ["on-failure"]
    assert found["RestartSec"] == ["10"]
    assert found["RestartPreventExitStatus"] == ["2 78"]
    assert found["WatchdogSec"]
    assert found["TimeoutStopSec"]
    assert "/fluxwatchd run" in found["ExecStart"][0]


def test_nothing_keeps_cuda_and_torch_from_working():
    found = settings("fluxwatchd.service")
    for key in ("PrivateDevices", "MemoryDenyWriteExecute", "ProcSubset"):
        assert key not in found
    assert {"char-nvidia* rw", "char-drm rw"} <= set(found["DeviceAllow"])
    assert found["ProtectSystem"] == ["strict"]


def test_leases_work_on_other_peoples_files():
    found = settings("fluxwatchd.service")
    assert found["AmbientCapabilities"] == found["CapabilityBoundingSet"] == ["CAP_LEASE"]
    assert "PrivateUsers" not in found  # in a user namespace it is not the real one
    assert found["StateDirectory"] == ["fluxwatchd"]


def installed(folder: Path, unit: str) -> Path:
    """A copy of a unit whose program is there, as after installing."""
    program = shutil.which("fluxwatchd", path=Path(sys.executable).parent) or sys.executable
    text = (UNITS / unit).read_text()
    text = re.sub(r"^(ExecStart=)\S+", rf"\g<1>{program}", text, flags=re.MULTILINE)
    place = folder / "fluxwatchd.service"
    place.write_text(text)
    return place


@pytest.mark.systemd
@pytest.mark.parametrize("unit", ["fluxwatchd.service", "fluxwatchd.user.service"])
def test_systemd_takes_the_units(tmp_path, unit):
    """Needs systemd-analyze (Debian's package systemd); .ci/run installs it."""
    scope = ["--user"] if "user" in unit else []
    done = subprocess.run(
        ["systemd-analyze", *scope, "--man=no", "verify", installed(tmp_path, unit)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.systemd
def test_the_service_is_hardened(tmp_path, capsys):
    """systemd's own measure of exposure, 0 to 10: at most 1.5."""
    done = subprocess.run(
        [
            *("systemd-analyze", "security", "--offline=yes", "--no-pager", "--threshold=15"),
            installed(tmp_path, "fluxwatchd.service"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    (told,) = [line for line in done.stdout.splitlines() if "Overall exposure level" in line]
    with capsys.disabled():
        print(f"\n{told.strip()}")
    assert done.returncode == 0, done.stdout[-400:] + done.stderr
