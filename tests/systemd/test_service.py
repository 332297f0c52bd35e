"""The service as it is installed, on a real machine of its own: ``fluxwatchd init --system``, the
unit as it is, and everything that systemd does to it."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from house import photo
from nspawn import Machine
from PIL import Image

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(900)]

UNITS = Path(__file__).parents[2] / "systemd"
FLUXWATCHD = "/opt/fluxwatchd/bin/fluxwatchd"
UNIT = "fluxwatchd.service"
INSTALLED = f"/etc/systemd/system/{UNIT}"
SRV = Path("/srv/fluxwatchd")
INBOX, OUTBOX, ARCHIVE = SRV / "inbox", SRV / "outbox", SRV / "inbox-archive"
SHARE, DISK, HOME = Path("/srv/share"), Path("/srv/disk"), Path("/home/alice/pictures")
LANCZOS, NANO = 'variant = "lanczos"', 'variant = "nano"'
CAP_LEASE = 1 << 28
HASTY = "[Service]\nWatchdogSec=30\nRestartSec=1\n"
"""Seconds for minutes; 30 still are enough for a beat on a machine that has much else to do."""
HANGING = "[Service]\nEnvironment=FLUXWATCHD_HANG_AT=denoise\n"


RESET = f"""\
systemctl kill --signal=KILL --kill-whom=all {UNIT} 2>/dev/null || true
systemctl stop {UNIT}
systemctl reset-failed {UNIT} 2>/dev/null || true
while mountpoint -q {SHARE}; do umount --lazy {SHARE}; done
rm -rf {SHARE} {DISK} {HOME} /var/lib/fluxwatchd
find {SRV}/* -mindepth 1 -delete
find {INSTALLED}.d -type f ! -name folders.conf -delete
"""
"""What a test may have left: the service in any state, mounts, pictures, the journal, drop-ins."""


class Service(Machine):
    """A machine with the service installed and two people: alice of its group, and bob."""

    said = ""
    """What `fluxwatchd init --system` printed."""

    def reset(self) -> None:
        """Have it as it was installed and configured, not running, with empty folders."""
        self.shell(RESET)
        self.path(INSTALLED).write_text((UNITS / UNIT).read_text())
        self.drop_in("hasty", HASTY)
        self.configure(LANCZOS)
        self.forget()

    def scene(self) -> str:
        """All that may tell why a test failed."""
        looks = (
            f"systemctl status --no-pager --full --lines=0 {UNIT}",
            f"systemctl cat --no-pager {UNIT} | sed '1,/^WantedBy/d'",
            "cat /etc/fluxwatchd/config.toml",
            f"{FLUXWATCHD} status",
            f"ls -lAR {SRV} {SHARE} {DISK} {HOME} /var/lib/fluxwatchd",
        )
        said = [f"$ {look}\n{self.shell(look, code=None)}" for look in looks]
        return "\n".join([*said, self.journal(UNIT)])

    def configure(self, profile: str, top: Path = SRV, log_level: str = "info") -> None:
        """Write the configuration, in one step; ``top`` has the folders in it."""
        aside = self.path("/etc/fluxwatchd/config.new")
        aside.write_text(
            f'[[folder]]\ninbox = "{top}/inbox"\noutbox = "{top}/outbox"\n'
            f"[defaults]\n{profile}\n"
            f'[daemon]\nstate_dir = "/var/lib/fluxwatchd"\nsettle_seconds = 0.5\n'
            f'log_level = "{log_level}"\n'
        )
        aside.replace(self.path("/etc/fluxwatchd/config.toml"))

    def drop_in(self, name: str, text: str | None) -> None:
        """Write a drop-in of the unit, or remove it."""
        file = self.path(f"{INSTALLED}.d/{name}.conf")
        file.unlink(missing_ok=True)
        if text is not None:
            file.write_text(text)
        self.run("systemctl", "daemon-reload")

    def started(self, profile: str, **more: Any) -> None:
        """Have it run with this profile, from a fresh start; returns when it is READY."""
        self.configure(profile, **more)
        self.run("systemctl", "restart", UNIT, code=None)
        assert self.shown(UNIT, "ActiveState") == "active", self.journal(UNIT)

    def drop(self, name: str, size: tuple[int, int] = (24, 16), seed: int = 0) -> None:
        """Alice makes a picture at home and copies it into the inbox, with her own umask."""
        picture = self.path(f"/home/alice/{name}")
        photo(size, seed).save(picture)
        self.shell(f"umask 022; cp /home/alice/{name} {INBOX}/{name}", user="alice")

    def closed(self, name: str, patience: float = 120) -> None:
        """Wait until the picture is delivered and its source archived."""
        self.until(self.path(ARCHIVE / name).exists, name, patience)

    def result(self, name: str) -> tuple[int, int]:
        """Width and height of a result, as alice reads it."""
        self.run("cp", OUTBOX / name, "/home/alice/result", user="alice")
        with Image.open(io.BytesIO(self.path("/home/alice/result").read_bytes())) as picture:
            return picture.size

    def record(self, name: str) -> dict[str, Any]:
        """The sidecar of a result."""
        return json.loads(self.path(OUTBOX / f"{name}.json").read_text())

    def status(self) -> str:
        """What the daemon last told systemd."""
        return self.shown(UNIT, "StatusText")

    def restarts(self) -> int:
        """How often systemd has started it again by itself."""
        return int(self.shown(UNIT, "NRestarts"))


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The installed service, not started."""
    made = Service(tmp_path_factory.mktemp("machine") / "root")
    try:
        made.boot()
        made.said = made.run(FLUXWATCHD, "init", "--system")
        for name in ("alice", "bob"):
            made.run("useradd", "--create-home", name)
        made.run("usermod", "--append", "--groups", "fluxwatchd", "alice")
        yield made
    finally:
        made.power_off()


@pytest.fixture
def service(machine: Service, request: pytest.FixtureRequest) -> Iterator[Service]:
    """The service in one state for every test, whatever the one before it left: not started.

    What it looked like where a test failed stands in that test's report.
    """
    machine.reset()
    failed = request.session.testsfailed
    yield machine
    if request.session.testsfailed > failed:
        print(machine.scene())


@pytest.fixture
def running(service: Service) -> Service:
    """The service at work, with the profile that is quickest."""
    service.started(LANCZOS)
    return service


def test_init_system_says_what_it_made_and_makes_it(service: Service) -> None:
    assert "made the user and the group fluxwatchd" in service.said
    for path in (INSTALLED, f"{INSTALLED}.d/folders.conf", "/etc/fluxwatchd/config.toml"):
        assert f"wrote {path}" in service.said
    for path in (INBOX, OUTBOX, ARCHIVE, SRV / "inbox-failed"):
        assert f"made {path}" in service.said
        found = service.run("stat", "--format=%U:%G %a", path)
        assert found == "fluxwatchd:fluxwatchd 2770\n"
    assert service.path(INSTALLED).read_text() == (UNITS / UNIT).read_text()
    assert f'ReadWritePaths="-{SRV}"' in service.path(f"{INSTALLED}.d/folders.conf").read_text()


def test_init_system_again_changes_nothing_and_a_changed_file_is_refused(service: Service) -> None:
    assert "is as it should be" in service.run(FLUXWATCHD, "init", "--system")
    unit = service.path(INSTALLED)
    own = unit.read_text() + "# somebody's own line\n"
    unit.write_text(own)
    said = service.run(FLUXWATCHD, "init", "--system", code=78)
    assert INSTALLED in said
    assert "nothing was done" in said
    assert unit.read_text() == own
    unit.write_text((UNITS / UNIT).read_text())


def test_init_system_lets_in_the_folders_of_a_configuration_that_is_there(
    service: Service,
) -> None:
    service.shell("mkdir -p /image/etc/fluxwatchd '/image/srv/old'")
    service.path("/image/etc/fluxwatchd/config.toml").write_text(
        '[[folder]]\ninbox = "/srv/50% off/in"\noutbox = "/data/out"\n'
        '[[folder]]\ninbox = "/srv/old"\noutbox = "/srv/new"\non_success = "keep"\n'
        '[daemon]\nstate_dir = "/var/lib/fluxwatchd"\n'
    )
    said = service.run(FLUXWATCHD, "init", "--system", "--root", "/image")
    assert "/image/srv/old is left as it is" in said
    drop_in = service.path("/image/etc/systemd/system/fluxwatchd.service.d/folders.conf")
    allowed = [x for x in drop_in.read_text().splitlines() if x.startswith("ReadWritePaths=")]
    assert allowed == [
        "ReadWritePaths=",
        'ReadWritePaths="-/data/out"',
        'ReadWritePaths="-/srv/50%% off"',
        'ReadWritePaths="-/srv/new"',
        'ReadWritePaths="-/srv/old"',
        'ReadWritePaths="-/srv/old-failed"',
    ]
    assert service.path("/image/srv/50% off/in-archive").is_dir()
    assert not service.path("/image/srv/old-archive").exists()
    assert "fluxwatchd:" in service.path("/image/etc/passwd").read_text()


@pytest.mark.parametrize("place", ["/home/alice/in", "/tmp/in", "/root/in"])
def test_init_system_refuses_a_place_that_the_service_cannot_see(
    service: Service, place: str
) -> None:
    service.shell("mkdir -p /empty")
    said = service.run(FLUXWATCHD, "init", "--system", place, "--root", "/empty", code=78)
    assert "cannot look" in said
    assert not any(service.path("/empty").iterdir())


def test_init_system_by_somebody_who_is_not_root_is_refused(service: Service) -> None:
    assert "needs root" in service.run(FLUXWATCHD, "init", "--system", user="bob", code=2)


def test_systemd_finds_no_fault_with_the_units(service: Service) -> None:
    assert service.run("systemd-analyze", "verify", UNIT) == ""


def test_the_unit_is_tight(service: Service) -> None:
    """At most 1.5 of 10; systemd-analyze counts in tenths and fails above the threshold."""
    said = service.run(
        *("systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager"),
        INSTALLED,
    )
    print([line for line in said.splitlines() if "Overall exposure" in line])


def test_start_means_ready(running: Service) -> None:
    assert running.status() == "idle"
    assert "ready" in running.journal(UNIT)


def test_the_sandbox_holds(running: Service) -> None:
    main = running.shown(UNIT, "MainPID")
    lines = running.run("cat", f"/proc/{main}/status").splitlines()
    facts = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert facts["NoNewPrivs"] == "1"
    assert facts["Seccomp"] == "2"
    assert int(facts["CapBnd"], 16) == int(facts["CapEff"], 16) == CAP_LEASE
    inside = ("nsenter", f"--target={main}", "--mount", "--net", "--", "sh", "-c")
    for place in ("/etc", "/usr", "/srv", "/opt/fluxwatchd"):
        assert "Read-only" in running.run(*inside, f"touch {place}/x", code=1)
    running.run(*inside, f"touch {SRV}/x && rm {SRV}/x")
    assert running.run(*inside, "ls /home /root /tmp | grep -v ':$' | tr -d '\\n'") == ""
    assert running.run(*inside, "tail -n +3 /proc/net/dev | cut -d: -f1").split() == ["lo"]


def test_ordinary_users_drop_pictures_and_read_results(running: Service) -> None:
    running.drop("a.png")
    running.closed("a.png")
    assert running.result("a.png") == (48, 32)
    assert "a.png" in running.run(FLUXWATCHD, "status", user="alice")
    assert "a.png" in running.run(FLUXWATCHD, "explain", ARCHIVE / "a.png", user="alice")
    running.run("mv", OUTBOX / "a.png", "/home/alice/taken.png", user="alice")
    running.run("ls", OUTBOX, user="bob", code=2)


def test_a_folder_that_a_user_makes_is_mirrored(running: Service) -> None:
    photo(seed=2).save(running.path("/home/alice/b.png"))
    script = f"umask 022; mkdir {INBOX}/trip; cat /home/alice/b.png > {INBOX}/trip/b.png"
    running.shell(script, user="alice")
    running.closed("trip/b.png")
    assert running.path(OUTBOX / "trip/b.png.json").exists()


def test_a_source_in_a_folder_that_the_service_may_not_change_is_told_of_and_leaves_once_it_can(
    running: Service,
) -> None:
    """A folder gets the rights of the inbox, but where it is copied with its own."""
    own = INBOX / "own"
    photo(seed=11).save(running.path("/home/alice/g.png"))
    script = f"umask 022; mkdir own; mv g.png own; cp -r --preserve=mode own {INBOX}/"
    running.shell(f"cd /home/alice; {script}", user="alice")
    _told(running, f"{own}/g.png: cannot take files out of {own}: Permission denied")
    assert running.path(OUTBOX / "own/g.png.json").exists()
    running.run("chmod", "g+w,+t", own, user="alice")
    _told(running, f"cannot take somebody else's files out of {own}: Operation not permitted")
    running.run("chmod", "-t", own, user="alice")
    running.closed("own/g.png")
    assert not running.path(OUTBOX / "own/g.2.png").exists()


def _told(service: Service, words: str) -> None:
    """Wait until `status` has the words."""
    service.until(lambda: words in service.run(FLUXWATCHD, "status", user="alice"), words)


def test_a_file_that_somebody_else_still_writes_is_left_alone(service: Service) -> None:
    """By a lease, for which the unit has its one capability: the file is whole but still open."""
    service.started(LANCZOS, log_level="debug")
    photo(seed=12).save(service.path("/home/alice/h.png"))
    wait = "for i in $(seq 1200); do [ -e close ] || sleep 0.1; done"
    writer = f"{{ cat h.png; {wait}; }} > {INBOX}/h.png 2>/dev/null"
    service.shell(f"cd /home/alice; rm -f close; {writer} &", user="alice")
    service.until(lambda: "is writing" in _line(service, f"file={INBOX}/h.png"), "the lease")
    assert service.path(INBOX / "h.png").exists()
    service.run("touch", "/home/alice/close", user="alice")
    service.closed("h.png")


def _line(service: Service, words: str) -> str:
    """What the journal has with ``words``; empty if nothing."""
    return "\n".join(line for line in service.journal(UNIT).splitlines() if words in line)


def test_folders_in_a_home_are_bound_in(service: Service) -> None:
    service.run("install", "-d", "-o", "alice", "-g", "fluxwatchd", "-m", "2770", HOME)
    service.drop_in("home", f"[Service]\nBindPaths={HOME}\n")
    photo(seed=13).save(service.path(HOME / "i.png"))
    script = f"umask 002; mkdir {HOME}/inbox; mv {HOME}/i.png {HOME}/inbox/"
    service.shell(script, user="alice")
    service.started(LANCZOS, top=HOME)
    service.until(service.path(HOME / "inbox-archive/i.png").exists, "the picture")


def test_a_share_that_goes_away_is_paused_until_it_is_back(service: Service) -> None:
    """The mounts of the machine reach the service's own; the place below them is no inbox."""
    owned = "install -d -o fluxwatchd -g fluxwatchd -m 2770"
    mount = f"mount --bind {DISK} {SHARE}"
    service.shell(f"mkdir {SHARE}; {owned} {DISK} {DISK}/inbox; {mount}")
    service.drop_in("share", f"[Service]\nReadWritePaths={SHARE}\n")
    service.started(LANCZOS, top=SHARE)
    main = service.shown(UNIT, "MainPID")
    # 1. It goes, between two looks at it; a picture on it is not there, and not gone.
    service.until(lambda: not service.run("umount", SHARE, code=None), "a moment to unmount it")
    photo(seed=14).save(service.path(DISK / "inbox/j.png"))
    service.until(lambda: "paused: missing" in service.run(FLUXWATCHD, "status"), "the pause")
    # 2. It comes back, and the work goes on in the same process.
    service.shell(mount)
    service.until(service.path(DISK / "inbox-archive/j.png").exists, "the picture")
    assert service.shown(UNIT, "MainPID") == main


def test_the_group_holds_and_releases_with_the_daemon_up_or_down(running: Service) -> None:
    running.run("systemctl", "stop", UNIT)
    running.drop("held.png", seed=3)
    running.run(FLUXWATCHD, "hold", INBOX / "held.png", user="alice")
    running.run("systemctl", "start", UNIT)
    running.drop("free.png", seed=4)
    running.closed("free.png")
    assert running.path(INBOX / "held.png").exists()
    running.run(FLUXWATCHD, "release", INBOX / "held.png", user="alice")
    running.closed("held.png")


def test_reload_reads_the_configuration_again(running: Service) -> None:
    main, words = running.shown(UNIT, "MainPID"), "configuration read again"
    before = running.journal(UNIT).count(words)
    running.run("systemctl", "reload", UNIT)
    running.until(lambda: running.journal(UNIT).count(words) > before, "the reload")
    running.configure(f"{LANCZOS}\nscale = 3")
    running.run("systemctl", "reload", UNIT)
    running.until(lambda: running.journal(UNIT).count(words) > before + 1, "the second reload")
    running.until(lambda: running.shown(UNIT, "ActiveState") == "active", "the end of the reload")
    running.drop("c.png", seed=5)
    running.closed("c.png")
    assert running.result("c.png") == (72, 48)
    assert running.shown(UNIT, "MainPID") == main


def test_after_kill_9_it_is_started_again(running: Service) -> None:
    main, restarts = running.shown(UNIT, "MainPID"), running.restarts()
    running.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", UNIT)
    running.until(lambda: running.restarts() > restarts, "the restart")
    running.until(lambda: running.shown(UNIT, "ActiveState") == "active", "READY")
    running.drop("d.png", seed=6)
    running.closed("d.png")
    assert running.shown(UNIT, "MainPID") != main


def test_a_bad_configuration_is_told_and_not_tried_for_ever(service: Service) -> None:
    service.configure(f"{LANCZOS}\nscale = 99")
    service.run("systemctl", "start", UNIT, code=1)
    assert service.shown(UNIT, "ActiveState") == "failed"
    assert service.shown(UNIT, "ExecMainStatus") == "78"
    assert service.restarts() == 0
    assert "scale" in service.journal(UNIT)


def test_nano_runs_in_the_sandbox(service: Service) -> None:
    service.started(NANO)
    service.drop("e.png", size=(40, 30), seed=7)
    service.closed("e.png", patience=300)
    assert service.result("e.png") == (160, 120)
    assert service.record("e.png")["profile"]["variant"] == "nano"


def test_a_stop_in_mid_job_gives_the_picture_back(service: Service) -> None:
    service.started(f"{NANO}\nsteps = 40")
    service.drop("f.png", size=(96, 96), seed=8)
    service.until(lambda: "f.png: denoise" in service.status(), "the engine at work", 300)
    began = time.monotonic()
    service.run("systemctl", "stop", UNIT)
    assert time.monotonic() - began < 120  # the unit's TimeoutStopSec=
    assert service.shown(UNIT, "Result") == "success"
    assert service.path(INBOX / "f.png").exists()
    assert not [path for path in service.path(OUTBOX).iterdir() if "f.png" in path.name]


def test_a_hang_is_ended_by_the_watchdog_and_the_picture_is_done_after_it(
    service: Service,
) -> None:
    """The engine hangs once, as the drop-in says."""
    service.drop_in("hang", HANGING)
    service.drop("f.png", size=(96, 96), seed=8)
    service.started(f"{NANO}\nsteps = 1")
    restarts = service.restarts()
    service.until(lambda: "f.png: denoise" in service.status(), "the hang", 300)
    service.drop_in("hang", None)
    service.until(lambda: service.restarts() > restarts, "the watchdog", 300)
    said = service.journal(UNIT)
    assert "Watchdog timeout" in said
    assert "Fatal Python error: Aborted" in said  # and where every thread stood
    service.closed("f.png", patience=300)
    assert service.record("f.png")["attempt"] == 2


def test_a_user_has_a_service_of_their_own(service: Service) -> None:
    service.run("loginctl", "enable-linger", "bob")
    place = "XDG_RUNTIME_DIR=/run/user/" + service.run("id", "--user", "bob").strip()
    systemctl = ("env", place, "systemctl", "--user")
    service.until(
        lambda: "running" in service.run(*systemctl, "is-system-running", user="bob", code=None),
        "bob's own systemd",
    )
    # 1. As README.md says: the program, the unit, a configuration and its folders.
    service.shell(
        "cd /home/bob; mkdir -p .local/bin .config/systemd/user .config/fluxwatchd pictures/in;"
        f"ln -s {FLUXWATCHD} .local/bin/fluxwatchd",
        user="bob",
    )
    home = service.path("/home/bob")
    unit = home / ".config/systemd/user" / UNIT
    unit.write_text((UNITS / "fluxwatchd.user.service").read_text())
    (home / ".config/fluxwatchd/config.toml").write_text(
        '[[folder]]\ninbox = "~/pictures/in"\noutbox = "~/pictures/out"\n'
        '[defaults]\nvariant = "lanczos"\n[daemon]\nsettle_seconds = 0.5\n'
    )
    # 2. systemd finds no fault with it, and READY comes.
    verified = ("env", place, "HOME=/home/bob", "systemd-analyze", "--user", "verify")
    assert service.run(*verified, f"/home/bob/.config/systemd/user/{UNIT}", user="bob") == ""
    service.run(*systemctl, "daemon-reload", user="bob")
    service.run(*systemctl, "start", UNIT, user="bob")
    # 3. A picture comes out, and `status` finds the journal.
    photo().save(home / "pictures/new.png")
    service.run("mv", "/home/bob/pictures/new.png", "/home/bob/pictures/in/new.png")
    service.until((home / "pictures/out/new.png").exists, "the picture")
    at_home = ("env", "HOME=/home/bob", FLUXWATCHD, "status", "--config")
    said = service.run(*at_home, "/home/bob/.config/fluxwatchd/config.toml", user="bob")
    assert "new.png" in said
    service.run(*systemctl, "stop", UNIT, user="bob")
