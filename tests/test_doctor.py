"""``doctor`` and ``check``: what is missing is told before a daemon starts, with its remedy."""

import json
import subprocess
import sys

import checkpoints
import pytest
import tiny
import torch
from house import House
from huggingface_hub import constants
from safetensors.torch import save_file

from fluxwatchd.cli import run
from fluxwatchd.commands import machine
from fluxwatchd.config import EngineSettings, Profile, load
from fluxwatchd.engine import health, memory, plans


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A configuration with one folder of the given settings; nothing of the hub is cached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def write(settings, engine='device = "cpu"'):
        (tmp_path / "in").mkdir(exist_ok=True)
        text = f'[[folder]]\ninbox = "in"\noutbox = "out"\n{settings}\n'
        text += f'[engine]\n{engine}\n[daemon]\nstate_dir = "state"\n'
        (tmp_path / "config.toml").write_text(text)
        return tmp_path / "config.toml"

    return write


def doctor(capsys, config):
    """Exit code and findings by topic."""
    code = run(["doctor", "--json", "--config", str(config)])
    found = {}
    for finding in json.loads(capsys.readouterr().out):
        found.setdefault(finding["topic"], finding)
    return code, found


def schnell(path, more=""):
    return f'variant = "schnell"\nmodel = "{path}"\n{more}'


# --- doctor ---------------------------------------------------------------------------------


def test_all_is_well_with_nano(here, capsys):
    code, found = doctor(capsys, here(""))
    assert code == 0
    assert found["device"]["said"].startswith("cpu: ")
    assert "bundled:nano: transformer, vae are there" in found["model nano"]["said"]
    assert {"configuration", "memory", "state folder", "inotify", "service", "clock"} <= set(found)


def test_it_is_quick_and_needs_no_torch_where_a_cpu_is_set(here):
    program = (
        "import sys; from fluxwatchd.cli import run; code = run(sys.argv[1:]); "
        "assert code == 0; assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", program, "doctor", "--config", str(here(""))]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def test_a_whole_flux_is_told_with_its_plan(here, capsys, tmp_path):
    root = checkpoints.comfy_root(tmp_path / "models")
    code, found = doctor(capsys, here(schnell(root)))
    assert code == 0
    assert "transformer, vae, clip, t5 are there" in found["model schnell"]["said"]
    assert found["plan on cpu"]["said"].startswith("resident: the fastest that fits")
    assert "facebook/dinov2-base is not in the hub's cache" in found["DINO"]["said"]
    assert "hf download facebook/dinov2-base" in found["DINO"]["remedy"]


def test_the_plan_is_the_one_that_loading_will_choose(tmp_path, monkeypatch):
    from fluxwatchd.engine import loading

    asked = []
    whole = plans.choose
    monkeypatch.setattr(plans, "choose", lambda *given: asked.append(given[0]) or whole(*given))
    for model in (checkpoints.comfy_root(tmp_path / "m"), tiny.diffusers_folder(tmp_path / "d")):
        profile = Profile(variant="schnell", model=str(model), dino_mode="off").resolved()
        settings = EngineSettings(device="cpu")
        list(health.look(settings, [profile]))
        loading.load(profile, settings, "cpu", None, lambda *_: None)
    assert len(asked) == 4
    for told, loaded in (asked[:2], asked[2:]):
        assert told.weights.total == loaded.weights.total
        assert (told.size, told.beside, told.width, told.tokens) == (
            loaded.size, loaded.beside, loaded.width, loaded.tokens,
        )  # fmt: skip


def test_a_hub_model_that_is_not_there_yet_is_no_error_but_told(here, capsys):
    code, found = doctor(capsys, here('variant = "dev"'))
    assert code == 0
    told = found["model dev"]
    assert "will be fetched at start" in told["said"]
    assert "hf download black-forest-labs/FLUX.1-dev" in told["remedy"]
    assert "https://huggingface.co/black-forest-labs/FLUX.1-dev" in told["remedy"]


def test_memory_that_is_too_small_is_78_with_the_figures(here, capsys, tmp_path, monkeypatch):
    root = checkpoints.comfy_root(tmp_path / "models")
    monkeypatch.setattr(memory, "room", lambda device: plans.Room(10**6, 10**6, same=True))
    code, found = doctor(capsys, here(schnell(root)))
    assert code == 78
    assert "does not fit" in found["plan on cpu"]["said"] and found["plan on cpu"]["remedy"]


def test_a_gpu_that_is_not_there_is_78(here, capsys):
    code, found = doctor(capsys, here("", 'device = "cuda:7"'))
    assert code == 78
    assert "cuda:7" in found["device"]["said"] and found["device"]["remedy"]


def test_a_gpu_that_pytorch_cannot_use_is_1(here, capsys, tmp_path, monkeypatch):
    words = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.124.06  Wed Feb 26 2025\n"
    (tmp_path / "version").write_text(words)
    monkeypatch.setattr(health, "NVIDIA", tmp_path / "version")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    code, found = doctor(capsys, here("", 'device = "auto"'))
    assert code == 1
    assert "570.124.06" in found["device"]["said"]
    assert "PyTorch for CUDA" in found["device"]["remedy"]


def test_no_folder_with_a_model_needs_no_device(here, capsys):
    code, found = doctor(capsys, here('variant = "lanczos"', 'device = "cuda:7"'))
    assert (code, found["device"]["said"]) == (0, "none is needed: no folder uses a model")


def test_a_bad_configuration_is_all_there_is_to_say(here, capsys):
    code, found = doctor(capsys, here("steps = 0"))
    assert code == 78
    assert set(found) == {"configuration"} and "steps" in found["configuration"]["said"]


def test_packages_that_are_not_installed_are_named_with_the_command(monkeypatch):
    monkeypatch.setattr(health, "find_spec", lambda name: None)
    found = health.packages()
    assert found.code == 0
    assert "gguf (for GGUF files)" in found.said
    assert "pip install 'fluxwatchd[gguf]'" in found.remedy


def test_limits_of_the_machine_are_told_with_their_remedy(here, tmp_path, monkeypatch):
    settings = load(here(""))
    for below in ("a/b", "c"):
        (tmp_path / "in" / below).mkdir(parents=True)
    for name, most in (("max_user_watches", 2), ("max_user_instances", 128)):
        (tmp_path / "inotify").mkdir(exist_ok=True)
        (tmp_path / "inotify" / name).write_text(f"{most}\n")
    monkeypatch.setattr(machine, "INOTIFY", tmp_path / "inotify")
    found = machine.inotify(settings)
    assert found.code == 1
    assert "4 of 2 watches" in found.said and "max_user_watches=8" in found.remedy
    monkeypatch.setattr(machine, "LEAST_FREE", 1 << 60)
    assert machine.state_folder(tmp_path / "state").code == 1
    assert machine.folder_space(tmp_path / "in").code == 1
    now = machine.time.time()
    monkeypatch.setattr(machine.time, "time", lambda: now + 60)
    assert machine.clock(tmp_path).code == 1
    monkeypatch.setattr(machine.time, "time", lambda: 0.0)
    assert "behind" in machine.clock(tmp_path).said


def test_a_state_folder_that_cannot_be_written_is_78(tmp_path):
    """As another user where this one is root, who may write everywhere."""
    (tmp_path / "state").mkdir(mode=0o500)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    tmp_path.chmod(0o755)
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from fluxwatchd.commands import machine\n"
        "os.chdir(sys.argv[1])\n"  # the folders above it are root's alone
        "if os.geteuid() == 0:\n"
        "    os.setgroups([])\n"
        "    os.setgid(65534)\n"
        "    os.setuid(65534)\n"
        "sys.exit(machine.state_folder(Path(sys.argv[2])).code)\n"
    )
    for name, expected in (("state", 78), ("open", 0)):
        command = [sys.executable, "-c", code, tmp_path, name]
        assert subprocess.run(command, check=False, timeout=60).returncode == expected


# --- check, and the daemon ------------------------------------------------------------------


def broken(tmp_path, kind):
    """A folder's settings with something wrong, and the words that say what."""
    root = checkpoints.comfy_root(tmp_path / "models")
    file = root / "unet" / "flux1-schnell.safetensors"
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
        return schnell(file), "flux1-schnell.safetensors is truncated"
    if kind == "mislabelled":
        save_file({"conditioner.embedders.0.x": torch.zeros(1)}, file)
        return schnell(file), "it is an SDXL checkpoint"
    if kind == "no text encoder":
        (root / "clip" / "clip_l.safetensors").unlink()
        return schnell(root), "a CLIP text encoder for FLUX.1 is missing"
    if kind == "no tokenizer":
        return schnell(root, 'prompt = "a house"'), "there is no clip tokenizer"
    if kind == "no LoRA":
        return schnell(root, f'lora = [{{path = "{file}"}}]'), "is not a LoRA"
    if kind == "no adapter":
        return schnell(root, f'dino_adapter = "{file}"'), "is no DINO adapter"
    (tmp_path / "flux.ckpt").write_bytes(b"never read")
    return schnell(tmp_path / "flux.ckpt"), "may be a pickle"


KINDS = (
    "truncated", "mislabelled", "no text encoder", "no tokenizer", "no LoRA", "no adapter", "pickle"
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_bad_files_are_told_by_check_and_doctor(here, capsys, tmp_path, kind):
    settings, words = broken(tmp_path, kind)
    config = here(settings)
    assert run(["check", "--config", str(config)]) == 78
    said = capsys.readouterr().err
    assert words in said and f"{config}:1: folder.0" in said
    code, found = doctor(capsys, config)
    assert code == 78
    assert words in found["model schnell"]["said"] and found["model schnell"]["remedy"]


def test_check_takes_a_good_model_and_a_hub_id_that_is_not_cached(here, capsys, tmp_path):
    root = checkpoints.comfy_root(tmp_path / "models")
    assert run(["check", "--config", str(here(schnell(root)))]) == 0
    assert run(["check", "--config", str(here('variant = "schnell"'))]) == 0
    assert "will be fetched at start" in capsys.readouterr().err


def test_tokenizers_that_were_fetched_alone_do_not_make_a_broken_model(here, capsys, tmp_path):
    place = tmp_path / "hub" / "models--black-forest-labs--FLUX.1-schnell"
    (place / "snapshots" / "abc" / "tokenizer").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    assert run(["check", "--config", str(here('variant = "schnell"'))]) == 0
    assert "not whole in the hub's cache" in capsys.readouterr().err


def test_check_needs_no_torch_for_any_file(here, tmp_path):
    root = checkpoints.comfy_root(tmp_path / "models")
    program = (
        "import sys; from fluxwatchd.cli import run; code = run(sys.argv[1:]); "
        "assert code == 0; assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", program, "check", "--config", str(here(schnell(root)))]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def test_the_daemon_ends_before_ready_with_78(tmp_path):
    settings, words = broken(tmp_path, "no text encoder")
    house = House(tmp_path / "house", settings)
    source = house.drop("photo.png")
    house.start()
    try:
        assert house.wait() == 78
    finally:
        house.kill()
    assert words in house.said() and not house.events("ready")
    assert source.exists()
