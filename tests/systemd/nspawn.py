"""A Debian bookworm under its own systemd, for tests: debootstrap, systemd-nspawn, nsenter.

Its Python is the one that runs the tests: the interpreter and the installed packages are bound in
read-only, so that the service runs what is tested, from /opt/fluxwatchd as its unit says.
"""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fluxwatchd

RELEASE = "bookworm"
PACKAGES = ("systemd", "dbus", "libpam-systemd")  # the last for services of users
TOOLS = {
    "debootstrap": "debootstrap",
    "systemd-nspawn": "systemd-container",
    "nsenter": "util-linux",
}
"""Programs, and the Debian packages that bring them."""

CLEAN = ("env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8")
PROGRAM = """\
#!/opt/fluxwatchd/bin/python
from fluxwatchd.__main__ import main
main()
"""


def base() -> Path:
    """The bootstrapped tree, made once and kept in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fluxwatchd"
    tree = cache / "-".join((RELEASE, *PACKAGES))
    if not tree.exists():
        fresh = cache / f".{tree.name}.{os.getpid()}"
        fresh.mkdir(parents=True)
        subprocess.run(
            [
                *("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"),
                *(RELEASE, fresh),
            ],
            check=True,
            stdout=sys.stderr,
        )
        for deb in (fresh / "var/cache/apt/archives").glob("*.deb"):
            deb.unlink()
        fresh.rename(tree)
    return tree


class Machine:
    """A machine of its own in ``root``; ``boot`` it, ``run`` commands on it, ``power_off``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.process: subprocess.Popen[bytes] | None = None
        self.leader = 0
        self.console = root.with_name(root.name + ".console")
        self._cursor = ""

    def boot(self, patience: float = 240) -> None:
        """Copy the tree, bind the Python in, boot, and wait until systemd has started all."""
        missing = [package for tool, package in TOOLS.items() if not shutil.which(tool)]
        assert not missing, f"the packages {' '.join(missing)} are needed; see .ci/run"
        assert os.geteuid() == 0, "a machine can only be booted by root"
        subprocess.run(["cp", "-a", "--reflink=auto", base(), self.root], check=True)
        self._lend_libraries()
        with self.console.open("wb") as console:
            self.process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=console, stderr=console
            )
        self.until(self._find_leader, "the machine's first process", patience)
        self.until(self._is_up, "systemd", patience)
        self._install()

    def run(
        self, *command: str | Path, user: str = "", code: int | None = 0, patience: float = 300
    ) -> str:
        """What a command on the machine prints; fails unless it ends with ``code`` (None: any)."""
        entered = ("nsenter", f"--target={self.leader}", "--all", "--", *CLEAN)
        become = ("runuser", "-u", user, "--") if user else ()
        done = subprocess.run(
            [*entered, *become, *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            timeout=patience,
            check=False,
        )
        said = done.stdout + done.stderr
        assert code is None or done.returncode == code, f"{command}: {done.returncode}\n{said}"
        return said

    def shell(self, script: str, **how: Any) -> str:
        """What a shell script on the machine prints."""
        return self.run("sh", "-euc", script, **how)

    def path(self, path: str | Path) -> Path:
        """Where the machine's file ``path`` lies for us."""
        return self.root / str(path).lstrip("/")

    def shown(self, unit: str, name: str) -> str:
        """A property of a unit, as ``systemctl show`` knows it."""
        return self.run("systemctl", "show", "--property", name, "--value", unit).strip()

    def journal(self, unit: str) -> str:
        """What a unit and systemd said about it, since forget() if that was called."""
        self.run("journalctl", "--sync")  # what was said a moment ago may still be on its way
        since = ("--after-cursor", self._cursor) if self._cursor else ()
        return self.run("journalctl", "--no-pager", "--output=short", *since, "--unit", unit)

    def forget(self) -> None:
        """What the journal has by now is of no more interest."""
        said = self.run("journalctl", "--no-pager", "--quiet", "--lines=1", "--show-cursor")
        self._cursor = said.rpartition("-- cursor: ")[2].strip()

    def until(self, condition: Callable[[], Any], what: str, patience: float = 120) -> Any:
        """What ``condition`` gives as soon as that is true; fails if it never is."""
        end = time.monotonic() + patience
        while not (value := condition()):
            ended = self.process is not None and self.process.poll() is not None
            assert not ended, f"the machine ended\n{self.console.read_text(errors='replace')}"
            assert time.monotonic() < end, f"waited {patience:.0f} s in vain for {what}"
            time.sleep(0.1)
        return value

    def power_off(self) -> None:
        """End it as a machine ends; by force if it does not."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        shutil.rmtree(self.root, ignore_errors=True)

    def _command(self) -> list[str | Path]:
        return [
            *("systemd-nspawn", "--boot", "--register=no", "--keep-unit", "--quiet"),
            *("--private-network", "--link-journal=no", "--hostname=studio"),
            f"--machine=fluxwatchd-{os.getpid()}",
            f"--directory={self.root}",
            *(f"--bind-ro={source}:{target}" for source, target in _lent().items()),
        ]

    def _lend_libraries(self) -> None:
        """Copy the libraries that this interpreter links and a minimal Debian lacks."""
        own = Path(sys.base_prefix)
        linked = [Path(sys.executable).resolve(), *own.glob("lib/python3*/lib-dynload/*.so")]
        for name, path in dict(_libraries(linked)).items():
            there = any(self.root.glob(f"usr/lib/*/{name}")) or path.is_relative_to(own / "lib")
            if not there:
                shutil.copy(path, self.path("/usr/local/lib") / name)
        self.path("/etc/ld.so.conf.d/python.conf").write_text("/usr/local/lib\n/opt/python/lib\n")

    def _install(self) -> None:
        """A virtual environment in /opt/fluxwatchd whose packages are the tests' own."""
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        self.run("ldconfig")
        self.run(f"/opt/python/bin/{version}", "-m", "venv", "--without-pip", "/opt/fluxwatchd")
        packages = self.path(f"/opt/fluxwatchd/lib/{version}/site-packages")
        (packages / "lent.pth").write_text(
            "import site; site.addsitedir('/opt/packages')\n/opt/source\n"
        )
        program = self.path("/opt/fluxwatchd/bin/fluxwatchd")
        program.write_text(PROGRAM)
        program.chmod(0o755)

    def _find_leader(self) -> bool:
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        if children.split():
            self.leader = int(children.split()[0])
        return bool(self.leader)

    def _is_up(self) -> bool:
        try:
            state = self.run("systemctl", "is-system-running", "--wait", code=None)
        except subprocess.TimeoutExpired:
            return False
        return state.split()[:1] in (["running"], ["degraded"])


def _lent() -> dict[Path, str]:
    """What of this machine is bound in, and where: Python, packages, a checkout run in place."""
    packages = Path(site.getsitepackages()[0])
    lent = {Path(sys.base_prefix): "/opt/python", packages: "/opt/packages"}
    home = Path(fluxwatchd.__file__).parents[1]
    return lent if home == packages else {**lent, home: "/opt/source"}


def _libraries(programs: list[Path]) -> Iterator[tuple[str, Path]]:
    """The shared libraries that programs link, by name."""
    said = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False).stdout
    for line in said.splitlines():
        name, arrow, rest = line.strip().partition(" => ")
        if arrow and rest.startswith("/"):
            yield name, Path(rest.split()[0])
