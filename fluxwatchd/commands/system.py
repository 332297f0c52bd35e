"""``fluxwatchd init --system``: the service's user, folders, configuration and unit."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from fluxwatchd.config import Folder, Settings, parse
from fluxwatchd.errors import ConfigError

NAME = "fluxwatchd"
"""Of the user and of the group."""
DATA = Path("/srv/fluxwatchd")
STATE = Path("/var/lib/fluxwatchd")
CONFIG = Path("/etc/fluxwatchd/config.toml")
UNIT = Path("/etc/systemd/system/fluxwatchd.service")
DROP_IN = Path("/etc/systemd/system/fluxwatchd.service.d/folders.conf")
PROGRAM = Path("/opt/fluxwatchd/bin/fluxwatchd")
"""Where the unit looks for the program unless a drop-in says otherwise."""

HIDDEN = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))  # noqa: S108 (named, not used)
"""What ProtectHome= and PrivateTmp= take from the service's sight."""

GPU_GROUPS = ("video", "render")
"""Groups that own GPU devices on some systems; joined where they exist."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Installation:
    """What is to be on the disk; every path as the service sees it, below ``root`` for us."""

    root: Path
    settings: Settings
    texts: dict[Path, str]

    def here(self, path: Path) -> Path:
        """Where ``path`` lies for this process."""
        return self.root / path.relative_to("/")

    def folders(self) -> list[Path]:
        """Every folder that people or the service write into, but the state."""
        found = [path for folder in self.settings.folders for path in places(folder)]
        return list(dict.fromkeys(found))


def install(data: Path | None, root: Path, say: Say) -> Installation:
    """Set the service up below ``root``, its inbox and outbox in ``data``; say what is done.

    A configuration that is there already is kept and its folders are used. Raises ConfigError,
    before anything is written, if another file would have to change, or if the service could not
    see a folder or the program.
    """
    plan = _plan(data, root)
    _refuse_clashes(plan)
    _make_user(plan, say)
    for path, text in plan.texts.items():
        _write(plan.here(path), text, say)
    _make_folders(plan, say)
    if root == Path("/") and Path("/run/systemd/system").is_dir():
        _run(["systemctl", "daemon-reload"])
    return plan


def places(folder: Folder) -> list[Path]:
    """A watched folder's places: inbox, failed, outbox, and archive where sources go there."""
    archive = [folder.archive_path] if folder.on_success == "archive" else []
    return [folder.inbox, folder.failed_path, *archive, folder.outbox]


def drop_in(settings: Settings, program: Path) -> str:
    """The drop-in that lets the service write where the configuration says."""
    lines = [
        f"# Written by `fluxwatchd init --system` from {CONFIG}.",
        "# After another [[folder]] there: remove this file and run that again.",
        "[Service]",
        "# Each of these is a mount, and from one to another a source is copied, not renamed.",
        "# So inbox, archive and failed are let in by the folder that holds all three, unless that",
        "# is a top-level one.",
        "ReadWritePaths=",
        *(f"ReadWritePaths={quoted('-', path)}" for path in writable(settings)),
    ]
    if program != PROGRAM:
        command = f"{quoted('', program)} run --config {CONFIG}"
        lines += ["ExecStart=", f"ExecStart={command}"]
    return "\n".join(lines) + "\n"


def writable(settings: Settings) -> list[Path]:
    """The fewest paths that the service must be able to write, besides its own state folder."""
    wanted: set[Path] = set()
    for folder in settings.folders:
        sources = [path for path in places(folder) if path != folder.outbox]
        shared = Path(os.path.commonpath(sources))
        wanted.update([shared] if len(shared.parts) > 2 else sources)
        wanted.add(folder.outbox)
    if settings.daemon.state_dir != STATE:
        wanted.add(settings.daemon.state_dir)
    return sorted(path for path in wanted if not any(other in path.parents for other in wanted))


def quoted(prefix: str, path: Path) -> str:
    """A path as one word of a unit or of tmpfiles.d, specifiers and quotes taken literally."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{prefix}{text}"'


def _plan(data: Path | None, root: Path) -> Installation:
    config = root / CONFIG.relative_to("/")
    if config.exists():
        if data is not None:
            raise ConfigError(
                f"{config} exists and is left as it is",
                hint=f"Name {data} in it, then run this again without a folder.",
            )
        text = config.read_text(encoding="utf-8")
    else:
        text = _configuration(data or DATA)
    settings = parse(text, file=CONFIG, required=True)
    program = PROGRAM if root != Path("/") else _program()
    _refuse_hidden(settings, program)
    texts = {
        CONFIG: text,
        UNIT: files("fluxwatchd").joinpath("data", UNIT.name).read_text(encoding="utf-8"),
        DROP_IN: drop_in(settings, program),
    }
    return Installation(root, settings, texts)


def _configuration(data: Path) -> str:
    from fluxwatchd.config.example import example

    given = {
        "folder.inbox": data / "inbox",
        "folder.outbox": data / "outbox",
        "daemon.state_dir": STATE,
    }
    return example(given, commented=True)


def _program() -> Path:
    """The installed program that runs now. Raises ConfigError where it was not installed."""
    program = Path(sysconfig.get_path("scripts"), NAME)
    if not program.is_file():
        raise ConfigError(
            f"there is no program {program} for the service to start",
            hint="Install it: python3 -m venv /opt/fluxwatchd, then "
            "/opt/fluxwatchd/bin/pip install fluxwatchd, and run that one.",
        )
    return program


def _refuse_hidden(settings: Settings, program: Path) -> None:
    named = [path for folder in settings.folders for path in places(folder)]
    for path in (*named, settings.daemon.state_dir, program):
        if not str(path).isprintable():
            raise ConfigError(
                f"{str(path)!a} cannot be named in a unit",
                hint="Give it a name without line breaks and the like.",
            )
        if any(hidden in (path, *path.parents) for hidden in HIDDEN):
            raise ConfigError(
                f"{path} lies where the service cannot look: it sees no homes, and its own /tmp",
                hint="Use a place such as /srv, or /opt for the program; for folders in a home "
                "there is the user's own service, see systemd/README.md.",
            )


def _refuse_clashes(plan: Installation) -> None:
    """Refuse if a file is there and says something else."""
    clashes = [
        plan.here(path)
        for path, text in plan.texts.items()
        if plan.here(path).exists() and plan.here(path).read_text(encoding="utf-8") != text
    ]
    if clashes:
        raise ConfigError(
            f"left as they are, and nothing was done: {', '.join(map(str, clashes))}",
            hint="They differ from what would be written. Move them away, then run this again.",
        )


def _make_user(plan: Installation, say: Say) -> None:
    """The user and its group; it joins the groups that own a GPU."""
    present = _names(plan.here(Path("/etc/group")))
    lines = [f'u {NAME} - "{NAME}" {STATE}']
    lines += [f"m {NAME} {group}" for group in GPU_GROUPS if group in present]
    known = NAME in _names(plan.here(Path("/etc/passwd")))
    _run(["systemd-sysusers", f"--root={plan.root}", "--inline", *lines])
    say(f"the user {NAME} exists" if known else f"made the user and the group {NAME}")


def _names(table: Path) -> set[str]:
    """The first column of a table such as /etc/passwd."""
    if not table.exists():
        return set()
    return {line.partition(":")[0] for line in table.read_text(encoding="utf-8").splitlines()}


def _write(path: Path, text: str, say: Say) -> None:
    if path.exists():
        say(f"{path} is as it should be")
        return
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
    path.chmod(0o644)
    say(f"wrote {path}")


def _make_folders(plan: Installation, say: Say) -> None:
    """Make the folders that are missing; the others keep their owner and mode.

    The setgid bit hands the group down to what is put into them, and a default ACL (acl(5)) lets
    the group write there whatever the user's umask is.
    """
    wanted = plan.folders()
    if plan.settings.daemon.state_dir != STATE:
        wanted.append(plan.settings.daemon.state_dir)
    missing = [path for path in wanted if not plan.here(path).exists()]
    _run(
        ["systemd-tmpfiles", f"--root={plan.root}", "--create", "-"],
        "".join(line for path in missing for line in _folder_lines(path)),
    )
    for path in wanted:
        if path in missing:
            say(f"made {plan.here(path)}, for the group {NAME}")
        else:
            say(f"{plan.here(path)} is left as it is; the group {NAME} must be able to write there")


def _folder_lines(path: Path) -> Iterator[str]:
    """Two lines of tmpfiles.d(5)."""
    yield f"d {quoted('', path)} 2770 {NAME} {NAME}\n"
    yield f"a+ {quoted('', path)} - - - - default:user::rwx,default:group::rwx,default:other::---\n"


def _run(command: list[str], text: str = "") -> None:
    """Run one of systemd's own programs. Raises ConfigError with what it said if it fails."""
    try:
        done = subprocess.run(  # noqa: S603 (its own words and quoted paths; no shell)
            command, input=text, text=True, capture_output=True, check=False
        )
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no {command[0]} here", hint="A service needs a system that runs systemd."
        ) from error
    if done.returncode != 0:
        raise ConfigError(
            f"{command[0]} failed: {done.stderr.strip()}",
            hint="Mend that, then run this again; what is done already is kept.",
        )
