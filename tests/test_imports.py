"""Commands that people wait for start fast: they import no more than they use."""

import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "diffusers", "transformers", "numpy", "PIL", "structlog", "rich", "watchdog"}

PROBE = """
import json, sys
from fluxwatchd.cli import run
code = run(sys.argv[1:])
print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)
"""


@pytest.fixture
def home(tmp_path):
    (tmp_path / "config.toml").write_text(
        '[[folder]]\ninbox = "in"\noutbox = "out"\n[daemon]\nstate_dir = "state"\n'
    )
    return tmp_path


def modules(*arguments: str, cwd: Path) -> set[str]:
    """The modules that a command has imported when it ends well."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    code, names = json.loads(done.stderr.splitlines()[-1])
    assert code == 0, done.stderr
    return set(names)


@pytest.mark.parametrize(
    ("arguments", "most"),
    [
        (["--help"], 200),
        (["check"], 400),
        (["status"], 400),
        (["status", "--json"], 400),
        (["profile", "show", "in"], 400),
        (["init", "demo"], 400),
    ],
)
def test_a_quick_command_imports_little(home, arguments, most):
    found = modules(*arguments, cwd=home)
    assert not HEAVY & found
    assert len(found) < most


def test_help_reads_no_settings_at_all(home):
    assert not {"pydantic", "sqlite3", "fluxwatchd.config"} & modules("--help", cwd=home)


def test_a_lanczos_job_imports_no_torch(home):
    (home / "demo").mkdir()
    modules("init", "sampled", "--sample", cwd=home)
    found = modules(
        *("upscale", "sampled/inbox/sample.jpg", "--output", "big", "--set", "variant=lanczos"),
        cwd=home,
    )
    assert (home / "big" / "sample.png").exists()
    assert not {"torch", "diffusers", "transformers"} & found


@pytest.mark.alone
@pytest.mark.parametrize("arguments", [["--help"], ["check"], ["status"]])
def test_a_quick_command_takes_less_than_four_tenths_of_a_second(home, arguments):
    """Processor time, so that a busy machine does not count; the median of ten."""
    taken = [processor_seconds(arguments, home) for _ in range(10)]
    assert statistics.median(taken) < 0.4


def processor_seconds(arguments: list[str], cwd: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "fluxwatchd", *arguments],
        cwd=cwd,
        check=True,
        capture_output=True,
        timeout=60,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
