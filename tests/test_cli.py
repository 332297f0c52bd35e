"""The command line, run as a process: what people see, and with what the process ends."""

import importlib.util
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from house import House, photo, until
from PIL import Image

from fluxwatchd.cli import TABLE
from fluxwatchd.commands.benching import MEASUREMENTS
from fluxwatchd.commands.training import TRAINERS

HOME_KEYS = ("FLUXWATCHD_CONFIG", "XDG_STATE_HOME", "STATE_DIRECTORY", "JOURNAL_STREAM")
OUTSIDE = {key: value for key, value in os.environ.items() if key not in HOME_KEYS}


def run(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``fluxwatchd`` in ``cwd``, which is its home too."""
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "fluxwatchd",
            *map(os.fsdecode, map(os.fspath, map(_path, arguments))),
        ],
        cwd=cwd,
        env={**OUTSIDE, "HOME": str(cwd), "COLUMNS": "100", **environment},
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=250,
        check=False,
    )


def _path(argument: object) -> str | bytes:
    return argument if isinstance(argument, bytes) else str(argument)


# help, usage, exit codes


def test_help_lists_every_command_and_the_exit_codes(tmp_path):
    said = run("--help", cwd=tmp_path)
    assert said.returncode == 0
    for word in ("run", "upscale", "check", "init", "status", "retry", "explain", "profile", "78"):
        assert word in said.stdout


@pytest.mark.parametrize(
    "command",
    [
        *("run", "upscale", "check", "init", "status", "retry", "hold", "release", "cancel"),
        *("explain", "profile", "bench", "train"),
    ],
)
def test_every_command_explains_itself(tmp_path, command):
    said = run(command, "--help", cwd=tmp_path)
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout.startswith(f"Usage: fluxwatchd {command}")


@pytest.mark.parametrize(
    "arguments", [["bogus"], ["check", "--bogus"], ["upscale", "--output", "x"], ["bench", "x"]]
)
def test_wrong_usage_ends_with_2(tmp_path, arguments):
    said = run(*arguments, cwd=tmp_path)
    assert said.returncode == 2
    assert "Usage:" in said.stderr
    assert said.stdout == ""


def test_a_missing_configuration_ends_with_78_and_a_remedy(tmp_path):
    for command in (["check"], ["run"], ["status"], ["profile", "show", "."]):
        said = run(*command, cwd=tmp_path)
        assert said.returncode == 78
        assert "no configuration found" in said.stderr
        assert "fluxwatchd init" in said.stderr


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_a_configuration_that_is_no_file_is_refused_and_not_waited_for(tmp_path, kind):
    place = tmp_path / "config.toml"
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place = Path("/dev/zero")
    for command in ("check", "run", "status"):
        said = run(command, "--config", place, cwd=tmp_path)
        assert said.returncode == 78
        assert str(place) in said.stderr
        assert "is no regular file" in said.stderr or "Is a directory" in said.stderr


def test_output_that_a_full_disk_does_not_take_is_said_in_words(tmp_path):
    (tmp_path / "config.toml").write_text('[[folder]]\ninbox = "in"\noutbox = "out"\n')
    for command in ("status", "--help", "check"):
        with Path("/dev/full").open("wb") as full:
            said = subprocess.run(
                [sys.executable, "-m", "fluxwatchd", command],
                cwd=tmp_path,
                env={**OUTSIDE, "HOME": str(tmp_path)},
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
                timeout=60,
            )
        assert said.returncode == 1
        assert said.stderr == "the output could not be written: No space left on device\n"


# check


def test_check_tells_every_problem_with_its_line(tmp_path):
    (tmp_path / "config.toml").write_text(
        '[[folder]]\ninbox = "in"\noutbox = "in/out"\nstps = 3\n[defaults]\nsteps = 0\n'
    )
    said = run("check", cwd=tmp_path)
    assert said.returncode == 78
    assert "3 problems" in said.stderr
    for line in (
        "config.toml:3: folder.0.outbox:",
        "config.toml:4: folder.0.stps: unknown key, did you mean steps?",
        'config.toml:6: defaults.steps: 0 is out of range (allowed: integer, 1 to 100 or "auto")',
    ):
        assert line in said.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml"]


def test_check_says_what_will_happen_and_what_has_no_effect(tmp_path):
    (tmp_path / "config.toml").write_text(
        '[[folder]]\ninbox = "in"\noutbox = "out"\nprompt = "a cat"\n'
    )
    said = run("check", cwd=tmp_path)
    assert said.returncode == 0
    assert "good, 1 folder" in said.stdout
    assert "nano, x4" in said.stdout
    assert "prompt has no effect: nano has no text encoder" in said.stderr


def test_check_takes_the_configuration_named_by_the_environment(tmp_path):
    (tmp_path / "named.toml").write_text('[[folder]]\ninbox = "in"\noutbox = "out"\n')
    assert run("check", cwd=tmp_path, FLUXWATCHD_CONFIG="named.toml").returncode == 0


# init


def test_init_makes_a_house_that_check_finds_good(tmp_path):
    said = run("init", "demo", "--sample", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert "fluxwatchd run --config demo/config.toml" in said.stdout
    sample = tmp_path / "demo" / "inbox" / "sample.jpg"
    assert sample.stat().st_size < 200_000
    with Image.open(sample) as picture:
        assert picture.size == (240, 160)
    assert (tmp_path / "demo" / "outbox").is_dir()
    assert run("check", "--config", "demo/config.toml", cwd=tmp_path).returncode == 0


def test_init_overwrites_nothing(tmp_path):
    run("init", "demo", cwd=tmp_path)
    config = tmp_path / "demo" / "config.toml"
    config.write_text("mine")
    said = run("init", "demo", "--sample", cwd=tmp_path)
    assert said.returncode == 78
    assert "exists and is left as it is" in said.stderr
    assert config.read_text() == "mine"


def test_init_says_where_it_may_not_write(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "inbox").write_text("")
    for place in ("file/demo", "demo"):
        said = run("init", place, cwd=tmp_path)
        assert said.returncode == 78
        assert "Traceback" not in said.stderr
    assert not (tmp_path / "demo" / "config.toml").exists()


# upscale


def test_upscale_needs_no_configuration(tmp_path):
    photo((20, 12)).save(tmp_path / "a.png")
    said = run("upscale", "a.png", "--output", "big", "--set", "variant=lanczos", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    with Image.open(tmp_path / "big" / "a.png") as picture:
        assert picture.size == (40, 24)
    record = json.loads((tmp_path / "big" / "a.png.json").read_text())
    assert record["profile"]["variant"] == "lanczos"
    assert (tmp_path / "a.png").exists()


def test_a_setting_without_effect_is_said_in_the_log(tmp_path):
    photo((20, 12)).save(tmp_path / "a.png")
    settings = ("--set", "variant=lanczos", "--set", "prompt=a cat")
    said = run("upscale", "a.png", "--output", "big", *settings, cwd=tmp_path)
    assert said.returncode == 0
    assert "prompt has no effect: lanczos has no model" in said.stderr


def test_upscale_takes_a_named_profile_and_settings_over_it(tmp_path):
    photo((20, 12)).save(tmp_path / "a.png")
    (tmp_path / "config.toml").write_text(
        '[profile.web]\nvariant = "lanczos"\nformat = "jpeg"\ntarget_long_side = 50\n'
    )
    said = run(
        *("upscale", "a.png", "--output", "big", "--profile", "web", "--set", "scale=3"),
        cwd=tmp_path,
    )
    assert said.returncode == 0, said.stderr
    with Image.open(tmp_path / "big" / "a.jpg") as picture:
        assert picture.size == (60, 36)


def test_upscale_ends_with_1_if_a_picture_failed_and_does_the_others(tmp_path):
    photo().save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no picture")
    said = run(
        *("upscale", "bad.png", "good.png", "--output", "big", "--set", "variant=lanczos"),
        cwd=tmp_path,
    )
    assert said.returncode == 1
    assert "bad.png" in said.stderr
    assert (tmp_path / "big" / "good.png").exists()
    assert not list((tmp_path / "big").glob("bad*"))


def test_a_result_that_cannot_be_written_takes_no_other_picture_with_it(tmp_path):
    names = ("wide.png", "one.png", "two.png", "last.png")
    for name, size in zip(names, [(2100, 10), (20, 10), (20, 11), (2100, 11)], strict=True):
        photo(size).save(tmp_path / name)
    settings = ("variant=lanczos", "scale=8", "format=webp")
    words = [word for setting in settings for word in ("--set", setting)]
    said = run("upscale", *names, "--output", "big", *words, cwd=tmp_path)
    assert said.returncode == 1
    results = {"one.webp", "one.webp.json", "two.webp", "two.webp.json"}
    assert {path.name for path in (tmp_path / "big").iterdir()} == results
    failures = [line for line in said.stderr.splitlines() if '"event": "failed"' in line]
    assert [json.loads(line)["file"] for line in failures] == ["wide.png", "last.png"]
    assert all("more than webp can hold" in line for line in failures)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("stps=3", "command line: stps: unknown key, did you mean steps?"),
        ("steps=0", "command line: steps: 0 is out of range"),
        ("steps", "not of the form key=value"),
    ],
)
def test_a_bad_setting_is_told_before_any_work(tmp_path, setting, told):
    photo().save(tmp_path / "a.png")
    said = run("upscale", "a.png", "--output", "big", "--set", setting, cwd=tmp_path)
    assert said.returncode == 78
    assert told in said.stderr
    assert not (tmp_path / "big").exists()


# profile show


def test_profile_show_is_toml_with_the_origin_of_each_value(tmp_path):
    (tmp_path / "config.toml").write_text(
        '[[folder]]\ninbox = "in"\noutbox = "out"\nprompt = "a cat"\n[defaults]\nsteps = 5\n'
    )
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "fluxwatchd.toml").write_text("scale = 3\n")
    said = run("profile", "show", "in/sub", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    import tomllib

    shown = tomllib.loads(said.stdout)
    assert (shown["steps"], shown["scale"], shown["strength"]) == (5, 3.0, 1.0)
    assert (shown["prompt"], shown["lora"]) == ("a cat", [])
    origins = dict(line.split(" = ", 1) for line in said.stdout.splitlines() if " = " in line)
    assert origins["steps"].endswith("config.toml:6 [defaults]")
    assert origins["scale"].endswith("in/sub/fluxwatchd.toml:1")
    assert origins["strength"].endswith("# default of nano")
    assert run("profile", "show", "/", cwd=tmp_path).returncode == 78


# the journal: status, explain and requests, with the real daemon


def test_status_and_explain_follow_files_through_the_house(tmp_path):
    house = House(tmp_path / "house")
    good = house.drop("good.png")
    (house.inbox / "bad.png").write_bytes(good.read_bytes()[:90])
    (house.inbox / "notes.txt").write_text("mine")
    ours = ("--config", house.config)

    before = run("status", *ours, cwd=tmp_path)
    assert before.returncode == 0, before.stderr
    assert "not running" in before.stdout
    waiting = run("explain", good, *ours, cwd=tmp_path).stdout
    assert "waits for its turn" in waiting
    assert "fluxwatchd run" in waiting
    left = run("explain", house.inbox / "notes.txt", *ours, cwd=tmp_path).stdout
    assert "left alone" in left
    assert "no picture that can be read" in left

    assert house.run() == 1

    shown = json.loads(run("status", "--json", *ours, cwd=tmp_path).stdout)
    assert (shown["version"], shown["up"]) == (1, False)
    assert (shown["counts"]["done"], shown["counts"]["failed"]) == (1, 1)
    assert shown["done"][0]["output"] == str(house.outbox / "good.png")
    plain = run("status", *ours, cwd=tmp_path).stdout
    assert "done lately:" in plain
    assert str(house.failed / "bad.png") in plain

    result = house.outbox / "good.png"
    for known in (good, result, f"{result}.json", house.archive / "good.png"):
        told = run("explain", known, *ours, cwd=tmp_path).stdout
        assert "It was upscaled at" in told
        assert str(result) in told
    told = run("explain", house.failed / "bad.png.error.json", *ours, cwd=tmp_path).stdout
    assert "It failed" in told
    assert f"fluxwatchd retry {house.failed / 'bad.png'} --config {house.config}" in told
    assert "the inbox folder" in run("explain", house.inbox, *ours, cwd=tmp_path).stdout
    nowhere = run("explain", tmp_path / "x.png", *ours, cwd=tmp_path).stdout
    assert "no folder of this configuration" in nowhere


def test_requests_are_carried_out_while_the_daemon_runs(tmp_path):
    house = House(tmp_path / "house")
    house.configure('variant = "lanczos"', folder="max_attempts = 1")
    (house.failed / "sub").mkdir(parents=True)
    photo().save(house.failed / "sub" / "again.png")
    ours = ("--config", house.config)
    house.start().ready()
    try:
        until(lambda: "is ready" in run("status", *ours, cwd=tmp_path).stdout, "status: ready")
        asked = run("retry", house.failed / "sub" / "again.png", *ours, cwd=tmp_path)
        assert "asked for" in asked.stdout
        until(lambda: house.delivered("sub/again.png"), "the file that was tried again")
    finally:
        house.stop()
    assert "not running" in run("status", *ours, cwd=tmp_path).stdout


def test_requests_wait_for_a_daemon_that_is_down(tmp_path):
    house = House(tmp_path / "house")
    held, other = house.drop("held.png"), house.drop("other.png", seed=1)
    ours = ("--config", house.config)
    assert run("hold", held, *ours, cwd=tmp_path).returncode == 0
    asked = run("cancel", other, *ours, cwd=tmp_path)
    assert "done when the daemon runs next" in asked.stdout
    assert "asked for and not done yet" in run("status", *ours, cwd=tmp_path).stdout
    house.run()
    assert (house.failed / "other.png.error.json").exists()
    assert held.exists()
    assert "held back" in run("explain", held, *ours, cwd=tmp_path).stdout
    assert run("release", held, *ours, cwd=tmp_path).returncode == 0
    assert run("retry", house.failed / "other.png", *ours, cwd=tmp_path).returncode == 0
    assert house.run() == 0
    assert house.delivered("held.png")
    assert house.delivered("other.png")


def test_a_request_for_a_file_that_lies_elsewhere_is_wrong_usage(tmp_path):
    house = House(tmp_path / "house")
    for command, file in (("hold", "x.png"), ("retry", house.outbox / "x.png")):
        said = run(command, file, "--config", house.config, cwd=tmp_path)
        assert said.returncode == 2
        assert "lies in no" in said.stderr
    house.inbox.mkdir(exist_ok=True)
    absent = run("hold", house.inbox / "x.png", "--config", house.config, cwd=tmp_path)
    assert absent.returncode == 2
    assert "There is no" in absent.stderr


@pytest.mark.parametrize("command", ["retry", "hold", "release", "cancel"])
def test_a_request_for_a_folder_is_wrong_usage(tmp_path, command):
    house = House(tmp_path / "house")
    place = (house.failed if command == "retry" else house.inbox) / "sub"
    place.mkdir(parents=True)
    said = run(command, place, "--config", house.config, cwd=tmp_path)
    assert said.returncode == 2
    assert "is a folder; name its files" in said.stderr


def test_status_works_while_the_configuration_has_mistakes(tmp_path):
    house = House(tmp_path / "house")
    house.drop("good.png")
    assert house.run() == 0
    text = house.config.read_text()
    house.config.write_text(text.replace("[defaults]", "[defaults]\nsteps = 0\nstps = 3"))
    ours = ("--config", house.config)
    for flags in ((), ("--json",)):
        told = run("status", *flags, *ours, cwd=tmp_path)
        assert told.returncode == 0
        assert "good.png" in told.stdout
        assert "the configuration has mistakes" in told.stderr
        assert "stps" in told.stderr
    assert run("check", *ours, cwd=tmp_path).returncode == 78
    house.config.write_text("[daemon\n")  # nobody knows where the state is
    assert run("status", *ours, cwd=tmp_path).returncode == 78


def test_check_notes_commands_whose_program_is_not_there(tmp_path):
    house = House(tmp_path / "house")
    house.configure("", folder="on_done = ['true']\non_failed = ['/no/such/program', 'x']")
    told = run("check", "--config", house.config, cwd=tmp_path)
    assert told.returncode == 0
    assert "on_failed: there is no program '/no/such/program'" in told.stderr
    assert "on_done" not in told.stderr


def test_status_needs_no_right_to_write_to_the_folders(tmp_path):
    house = House(tmp_path / "house")
    house.outbox.write_text("in the way")
    assert run("status", "--config", house.config, cwd=tmp_path).returncode == 0
    assert run("check", "--config", house.config, cwd=tmp_path).returncode == 78


def test_a_long_reason_does_not_stretch_the_table_of_status(tmp_path):
    house = House(tmp_path / "house")
    (house.inbox / "a.png.toml").write_text("nonsense = 3\nstps = 4\n")
    house.drop("a.png")
    house.run()
    said = run("status", "--config", house.config, cwd=tmp_path).stdout
    (line,) = [line for line in said.splitlines() if "a.png.toml" in line]
    (why,) = [cell for cell in re.split(r"  +", line) if "a.png.toml" in cell]
    assert len(why) <= 120


def test_a_name_that_is_not_utf8_can_be_asked_about(tmp_path):
    house = House(tmp_path / "house")
    name = os.fsencode(house.inbox) + b"/caf\xe9.png"
    Path(os.fsdecode(name)).write_bytes(house.drop("a.png").read_bytes())
    for command in (["explain", name], ["hold", name], ["status"], ["status", "--json"]):
        said = run(*command, "--config", house.config, cwd=tmp_path)
        assert said.returncode == 0, said.stderr
    assert "caf\\xe9.png" in run("status", "--config", house.config, cwd=tmp_path).stdout


def test_a_name_that_commands_a_terminal_is_shown_as_escapes_and_can_be_copied(tmp_path):
    house = House(tmp_path / "house")
    house.drop("a.png")
    name = "x\x1b]0;owned\x07\nforged line\u202egnp.png"
    (house.inbox / "a.png").rename(house.inbox / name)
    ours = ("--config", house.config)
    run("hold", house.inbox / name, *ours, cwd=tmp_path)
    for command in (["status"], ["explain", house.inbox / name]):
        said = run(*command, *ours, cwd=tmp_path).stdout
        assert "x\\x1b]0;owned\\x07\\nforged line\\u202egnp.png" in said
        assert not set(said) & set("\x1b\x07\u202e")
    house.run()
    told = run("explain", house.inbox / name, *ours, cwd=tmp_path).stdout
    (command,) = [line for line in told.splitlines() if "fluxwatchd release" in line]
    words = command.partition("fluxwatchd ")[2]
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m fluxwatchd {words}"],
        cwd=tmp_path,
        env={**OUTSIDE, "HOME": str(tmp_path)},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert house.run() == 0
    assert house.closed(name)


# how it speaks, and how it stops


def test_a_terminal_gets_tables_and_bars(tmp_path):
    (tmp_path / "config.toml").write_text('[[folder]]\ninbox = "in"\noutbox = "out"\n')
    photo().save(tmp_path / "a.png")
    drawn = on_terminal("status", cwd=tmp_path)
    assert "folders" in drawn
    assert "│" in drawn
    settings = ("--set", "variant=lanczos")
    drawn = on_terminal("upscale", "a.png", "a.png", "--output", "big", *settings, cwd=tmp_path)
    assert "pictures" in drawn
    assert "2/2" in drawn


def on_terminal(*arguments: str, cwd: Path) -> str:
    """What the command writes where a person is looking."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "fluxwatchd", *arguments],
        cwd=cwd,
        env={**OUTSIDE, "HOME": str(cwd), "TERM": "xterm", "COLUMNS": "100"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
    ) as process:
        os.close(slave)
        written = b""
        while chunk := read_terminal(master):
            written += chunk
        os.close(master)
        assert process.wait(60) == 0, written.decode()
    return written.decode()


def read_terminal(master: int) -> bytes:
    """The next piece; nothing once the other side is closed, which Linux reports as EIO."""
    try:
        return os.read(master, 65536)
    except OSError:
        return b""


def test_elsewhere_the_log_is_json_lines_and_in_the_journal_it_has_priorities(tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    command = ("upscale", "bad.png", "--output", "big", "--set", "variant=lanczos")
    said = run(*command, cwd=tmp_path)
    assert [json.loads(line)["level"] for line in said.stderr.splitlines()] == ["error"]

    with (tmp_path / "journal").open("wb") as stream:
        stat = os.fstat(stream.fileno())
        subprocess.run(
            [sys.executable, "-m", "fluxwatchd", *command],
            cwd=tmp_path,
            env={**OUTSIDE, "JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino}"},
            stderr=stream,
            check=False,
            timeout=60,
        )
    lines = (tmp_path / "journal").read_text().splitlines()
    assert lines
    assert all(line.startswith("<3>failed") for line in lines)


@pytest.mark.parametrize("target", ["journal", "json", "terminal"])
def test_a_log_line_holds_no_control_character_of_a_file_name(tmp_path, target):
    name = "x\x1b]0;owned\x07\n<0>forged\x9b31m\u202e.png"
    (tmp_path / name).write_text("no picture")
    code = (
        "import sys\n"
        "from fluxwatchd import log\n"
        "log.find_target = lambda: sys.argv[1]\n"
        "from fluxwatchd.cli import run\n"
        "run(['upscale', sys.argv[2], '--output', 'big', '--set', 'variant=lanczos'])\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, target, name],
        cwd=tmp_path,
        env={**OUTSIDE, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    ).stderr
    (line,) = said.splitlines()
    assert "owned" in line
    plain = re.sub(r"\x1b\[[0-9;]*m", "", line)  # our own colours
    assert plain.isprintable()


def test_log_lines_that_could_not_be_written_are_counted(tmp_path):
    code = (
        "import logging, os, resource, sys, structlog\n"
        "from fluxwatchd import log\n"
        "log.configure(target='json')\n"
        "say = structlog.get_logger('fluxwatchd.test').info\n"
        "say('first')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
        "for _ in range(100): say('x' * 500)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)\n"
        "say('last')\n"
    )
    with (tmp_path / "log").open("wb") as file:
        done = subprocess.run(
            [sys.executable, "-c", code], stderr=file, env=OUTSIDE, check=False, timeout=60
        )
    assert done.returncode == 0
    written = (tmp_path / "log").read_text()
    assert "Traceback" not in written
    assert '"event": "last"' in written
    (told,) = [line for line in written.splitlines() if "could not be written" in line]
    assert json.loads(told)["lines"] > 50


def test_ctrl_c_ends_an_upscale_without_a_trace(tmp_path):
    for number in range(40):
        photo((400, 300), seed=number).save(tmp_path / f"{number}.png")
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "fluxwatchd", "upscale", "--output", "big"),
            *("--set", "variant=lanczos", *(f"{number}.png" for number in range(40))),
        ],
        cwd=tmp_path,
        env={**OUTSIDE, "HOME": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        until(lambda: list(tmp_path.glob("big/*.png")), "the first result")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert not list(tmp_path.glob("big/.*"))


def test_a_reader_that_goes_away_is_no_trouble(tmp_path):
    command = f"{sys.executable} -m fluxwatchd --help | true"
    said = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=tmp_path, capture_output=True, check=False
    )
    assert b"Traceback" not in said.stderr


# what lies behind the names


@pytest.mark.parametrize("table", [TABLE, MEASUREMENTS, TRAINERS], ids=["cli", "bench", "train"])
def test_every_command_of_a_table_is_there(table):
    for entry in table.values():
        assert importlib.util.find_spec(entry.place.partition(":")[0]) is not None


def test_a_trainer_has_an_option_for_every_field_of_its_dataclass(tmp_path):
    said = run("train", "dino", "--help", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    for flag in ("--images PATH", "--seconds FLOAT", "--compile / --no-compile", "[default: 300"):
        assert flag in said.stdout
