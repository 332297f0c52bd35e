"""``init --system``: what it refuses, and what the service is let into. The rest: tests/systemd."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from fluxwatchd.cli import cli
from fluxwatchd.commands import system
from fluxwatchd.config import parse
from fluxwatchd.errors import ConfigError

FOLDER = '[[folder]]\ninbox = "{inbox}"\noutbox = "{outbox}"\n{more}\n'


def allowed(*tables: str, daemon: str = "") -> list[str]:
    """What the service may write, by the configuration's text."""
    state = daemon or 'state_dir = "/var/lib/fluxwatchd"'
    settings = parse("".join(tables) + f"[daemon]\n{state}\n", file=system.CONFIG)
    return [str(path) for path in system.writable(settings)]


def table(inbox: str, outbox: str, more: str = "") -> str:
    return FOLDER.format(inbox=inbox, outbox=outbox, more=more)


def test_a_source_can_be_renamed_into_its_archive() -> None:
    """They are let in by one path, since from one mount to another nothing can be renamed."""
    assert allowed(table("/srv/a/in", "/srv/a/out")) == ["/srv/a"]
    assert allowed(table("/srv/a/in", "/mnt/b/out")) == ["/mnt/b/out", "/srv/a"]


def test_a_top_level_folder_is_not_let_in_for_it() -> None:
    assert allowed(table("/data/in", "/data/out")) == [
        *("/data/in", "/data/in-archive", "/data/in-failed", "/data/out"),
    ]


def test_an_archive_that_is_never_used_is_not_let_in() -> None:
    assert allowed(table("/data/in", "/data/out", 'on_success = "delete"')) == [
        *("/data/in", "/data/in-failed", "/data/out"),
    ]


def test_a_state_folder_of_ones_own_is_let_in() -> None:
    found = allowed(table("/srv/a/in", "/srv/a/out"), daemon='state_dir = "/srv/state"')
    assert found == ["/srv/a", "/srv/state"]


@given(st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]), min_size=1))
def test_a_quoted_path_has_no_end_of_its_own(name: str) -> None:
    word = system.quoted("-", Path("/srv", name.replace("/", "_")))
    inside = word[1:-1].replace("\\\\", "").replace('\\"', "").replace("%%", "")
    assert word[0] == word[-1] == '"'
    assert '"' not in inside
    assert "%" not in inside
    assert not inside.endswith("\\")


def test_the_drop_in_starts_the_program_from_where_it_is() -> None:
    settings = parse(table("/srv/a/in", "/srv/a/out"), file=system.CONFIG)
    assert "ExecStart" not in system.drop_in(settings, system.PROGRAM)
    other = system.drop_in(settings, Path("/usr/local/bin/fluxwatchd"))
    assert 'ExecStart=\nExecStart="/usr/local/bin/fluxwatchd" run --config' in other


def test_an_existing_configuration_is_not_given_another_folder(tmp_path: Path) -> None:
    config = tmp_path / "etc/fluxwatchd/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(table("/srv/a/in", "/srv/a/out"))
    with pytest.raises(ConfigError, match="left as it is"):
        system.install(Path("/srv/b"), tmp_path, print)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--root", "/tmp", "demo"], "--root goes with --system"),
        ([], "Missing argument 'DIR'"),
        (["--system", "relative/folder"], "an absolute path"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(cli, ["init", *arguments])
    assert done.exit_code == 2
    assert words in done.output


def test_only_root_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    done = CliRunner().invoke(cli, ["init", "--system"])
    assert done.exit_code == 2
    assert "needs root" in done.output
