"""The configuration: every problem at once, in its place; layers; and what the files say of it."""

import os
import re
import tomllib
from pathlib import Path

import pytest
import tomli_w
from hypothesis import given
from hypothesis import settings as rules
from hypothesis import strategies as st

from fluxwatchd.config import (
    DaemonSettings,
    EngineSettings,
    Folder,
    Profile,
    Settings,
    find,
    load,
    parse,
    parse_assignments,
)
from fluxwatchd.config.example import example
from fluxwatchd.config.lines import key_lines
from fluxwatchd.config.reference import reference
from fluxwatchd.errors import ConfigError, Problem
from fluxwatchd.intake.ignore import TEMPORARY
from fluxwatchd.variants import VARIANTS

ROOT = Path(__file__).parents[1]
FOLDER = '[[folder]]\ninbox = "in"\noutbox = "out"\n'


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def problems(text: str, tmp_path: Path) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path / "config.toml", text))
    return caught.value.problems


def places(found: tuple[Problem, ...]) -> list[tuple[int | None, str]]:
    return [(problem.line, problem.key) for problem in found]


# lines

keys = st.text("abcxyz_-.é \"'#=[]", min_size=1, max_size=6)
leaves = st.integers() | st.booleans() | st.text("ab\"'\\\n#]}=, é", max_size=9)
documents = st.dictionaries(
    keys,
    st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=12,
    ),
    max_size=5,
)


def paths(value: object, at: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    """Every table, key and element of a TOML document."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    found = {at} if at else set()
    for key, inner in items:
        found |= paths(inner, (*at, key))
    return found


@rules(deadline=None)
@given(documents, st.booleans())
def test_every_key_of_any_document_has_a_line(document, multiline):
    text = tomli_w.dumps(document, multiline_strings=multiline)
    lines = key_lines(text)
    assert set(lines) == paths(tomllib.loads(text))
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())


def test_lines_are_those_a_person_would_name():
    text = (
        "top = 1 # [not.a.table]\n"
        "[a . 'b c']\n"
        'text = """one\n'
        '  two = 2 \\"""\n'
        'three"""\n'
        "dotted.key = [ 1, # ]\n"
        "  {x = '}', \"y\" = 1979-05-27 07:32:00},\n"
        "]\n"
        "[[list]]\n"
        "[[list]]\n"
        "value = 'x'\n"
        "[list.inner]\n"
        "z = 1\n"
    )
    assert key_lines(text) == {
        ("top",): 1,
        ("a",): 2,
        ("a", "b c"): 2,
        ("a", "b c", "text"): 3,
        ("a", "b c", "dotted"): 6,
        ("a", "b c", "dotted", "key"): 6,
        ("a", "b c", "dotted", "key", 0): 6,
        ("a", "b c", "dotted", "key", 1): 7,
        ("a", "b c", "dotted", "key", 1, "x"): 7,
        ("a", "b c", "dotted", "key", 1, "y"): 7,
        ("list",): 9,
        ("list", 0): 9,
        ("list", 1): 10,
        ("list", 1, "value"): 11,
        ("list", 1, "inner"): 12,
        ("list", 1, "inner", "z"): 13,
    }


# problems


def test_every_problem_is_told_at_once_with_its_line(tmp_path):
    text = """\
stepz = 3
steps = 3
[daemon]
settle_seconds = -1
[engin]
[defaults]
scale = 4
target_long_side = 3
prompt = 3
tile_size = 64
[profile.x]
steps = "four"
overlap = 64
lora = [
  {path = "a/b", scale = 9},
  {pth = "c"},
]
[[folder]]
inbox = "in"
profile = "y"
stps = 3
seed = -4
[[folder]]
inbox = "in"
outbox = "in/out"
profile = "x"
archive = "config.toml/x"
[[folder]]
inbox = "in2"
outbox = "out"
recursive = "yes"
"""
    found = problems(text, tmp_path)
    assert places(found) == [
        (1, "stepz"),
        (2, "steps"),
        (4, "daemon.settle_seconds"),
        (5, "engin"),
        (8, "defaults.target_long_side"),
        (9, "defaults.prompt"),
        (12, "profile.x.steps"),
        (13, "overlap"),
        (15, "profile.x.lora.0.scale"),
        (16, "profile.x.lora.1.path"),
        (16, "profile.x.lora.1.pth"),
        (18, "folder.0.outbox"),
        (20, "folder.0.profile"),
        (21, "folder.0.stps"),
        (22, "folder.0.seed"),
        (24, "folder.1.inbox"),
        (25, "folder.1.outbox"),
        (27, "folder.1.archive"),
        (31, "folder.2.recursive"),
    ]
    told = "\n".join(map(str, found))
    assert "did you mean engine?" in told
    assert "did you mean steps?" in told
    assert 'integer, 1 to 100 or "auto"' in told
    assert all(problem.file == tmp_path / "config.toml" for problem in found)


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        ("steps = 0", 'integer, 1 to 100 or "auto"'),
        ("steps = 2.5", 'integer, 1 to 100 or "auto"'),
        ("steps = true", 'integer, 1 to 100 or "auto"'),
        ("strength = nan", 'number, 0 to 1 or "auto"'),
        ("strength = 1.01", 'number, 0 to 1 or "auto"'),
        ("max_drift = -0.1", 'number, 0 to 2 or "off"'),
        ('variant = "nanno"', '"nano", "nano-img2img", "schnell", "dev", "lanczos"'),
        ("seed = 9223372036854775808", "integer, 0 to 9223372036854775807"),
        ("prompt = 1979-05-27", "text"),
        ("lora = {path = 'x'}", "list of {path, scale}"),
        ('tile_size = "big"', 'integer, 8 to 8192 or "auto"'),
        ("overlap = []", 'integer, 0 to 4096 or "auto"'),
        ('model = "./nothing-here"', 'text or "auto"'),
        ('model = ""', 'text or "auto"'),
        ("target_megapixels = 0", 'number, above 0, to 1000 or "off"'),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(tmp_path, line, allowed):
    (found,) = problems(f"{FOLDER}[defaults]\n{line}\n", tmp_path)
    assert found.line == 5
    assert found.key == f"defaults.{line.partition(' ')[0]}"
    assert allowed in found.allowed


@pytest.mark.parametrize(
    ("table", "line", "allowed"),
    [
        ("engine", 'device = "xpu:1"', '"auto", "cpu", "cuda", "cuda:0"'),
        ("engine", 'device = "mps"', '"auto", "cpu", "cuda", "cuda:0"'),
        ("engine", 't5 = "t5.gguf"', ".safetensors"),
        ("defaults", 'dino_encoder = "dino.GGUF"', ".safetensors"),
        ("defaults", 'lora = [{path = "lora.gguf"}]', ".safetensors"),
    ],
)
def test_what_this_version_cannot_do_is_refused_before_any_picture(tmp_path, table, line, allowed):
    for weights in ("dino.GGUF", "lora.gguf", "t5.gguf"):
        write(tmp_path / weights, "")
    (found,) = problems(f"{FOLDER}[{table}]\n{line}\n", tmp_path)
    assert (found.line, found.key) == (5, f"{table}.{line.partition(' ')[0]}")
    assert "not possible yet" in found.message
    assert allowed in found.allowed


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (b"[daemon]\nlog_level = info\n", 2),
        (b"[daemon]\n[daemon]\n", 2),
        (b"a = 1\nb = '\xff'\n", 2),
        (b'[defaults]\nprompt = """never ends\n', 3),
    ],
)
def test_what_is_no_toml_is_told_with_its_line(tmp_path, raw, line):
    (tmp_path / "config.toml").write_bytes(raw)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "config.toml")
    assert places(caught.value.problems) == [(line, "")]
    assert caught.value.hint


def test_a_mark_of_byte_order_is_no_problem(tmp_path):
    (tmp_path / "config.toml").write_bytes(b"\xef\xbb\xbf" + FOLDER.encode())
    assert len(load(tmp_path / "config.toml").folders) == 1


def test_a_configuration_without_folders_watches_nothing_and_is_refused(tmp_path):
    assert places(problems("[daemon]\n", tmp_path)) == [(None, "folder")]
    assert places(problems("[folder]\ninbox = 'x'\n", tmp_path))[0] == (1, "folder")


@pytest.mark.parametrize(
    ("tables", "bad"),
    [
        ([{"inbox": "a", "outbox": "o"}, {"inbox": "a", "outbox": "p"}], ["folder.1.inbox"]),
        (
            [{"inbox": "a", "outbox": "o"}, {"inbox": "a/b", "outbox": "p", "failed": "f"}],
            ["folder.1.archive", "folder.1.inbox"],  # the archive would be a/b-archive
        ),
        (
            [{"inbox": "a", "outbox": "o", "recursive": False}, {"inbox": "a/b", "outbox": "p"}],
            ["folder.1.archive", "folder.1.failed"],  # beside a/b, so inside a
        ),
        ([{"inbox": "a", "outbox": "a"}], ["folder.0.outbox"]),
        ([{"inbox": "a", "outbox": "o", "failed": "a/f"}], ["folder.0.failed"]),
        ([{"inbox": "a", "outbox": "o"}, {"inbox": "b", "outbox": "a/x"}], ["folder.1.outbox"]),
        ([{"inbox": "a/in", "outbox": "a"}], ["folder.0.outbox"]),
        ([{"inbox": "a/in", "outbox": "a", "recursive": False}], []),
        ([{"inbox": "a", "outbox": "o", "archive": "a/x", "on_success": "keep"}], []),
        ([{"inbox": "a", "outbox": "o"}, {"inbox": "b", "outbox": "o"}], []),
        ([{"inbox": "a", "outbox": "link/o"}], ["folder.0.outbox"]),
        ([{"inbox": "a", "outbox": "config.toml"}], ["folder.0.outbox"]),
        ([{"inbox": "a", "outbox": "~nobody-at-all/o"}], ["folder.0.outbox"]),
    ],
)
def test_folders_that_would_feed_each_other_are_refused(tmp_path, tables, bad):
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    text = tomli_w.dumps({"daemon": {"state_dir": "state"}}) + "".join(
        "[[folder]]\n" + tomli_w.dumps(table) for table in tables
    )
    if bad:
        assert [problem.key for problem in problems(text, tmp_path)] == bad
    else:
        assert len(load(write(tmp_path / "config.toml", text)).folders) == len(tables)


def test_the_state_folder_may_not_lie_in_an_inbox(tmp_path):
    found = problems(f'{FOLDER}[daemon]\nstate_dir = "in/state"\n', tmp_path)
    assert places(found) == [(5, "daemon.state_dir")]


# paths


def test_paths_are_relative_to_the_file_and_know_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    weights = write(tmp_path / "etc" / "w.safetensors", "")
    text = """\
[[folder]]
inbox = "../in"
outbox = "~/out"
model = "w.safetensors"
dino_adapter = "./w.safetensors"
dino_encoder = "org/name"
[engine]
vae = "org/vae"
"""
    settings = load(write(tmp_path / "etc" / "config.toml", text))
    (folder,) = settings.folders
    assert folder.inbox == tmp_path / "in"
    assert folder.outbox == tmp_path / "home" / "out"
    assert folder.archive_path == tmp_path / "in-archive"
    assert folder.failed_path == tmp_path / "in-failed"
    profile = settings.folder_profile(folder)
    assert profile.model == str(weights)
    assert (profile.dino_adapter, profile.dino_encoder) == (str(weights), "org/name")
    assert settings.engine.vae == "org/vae"


def test_the_state_folder_is_systemds_else_the_users(tmp_path, monkeypatch):
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert parse("").daemon.state_dir == tmp_path / "fluxwatchd"
    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path}/a:{tmp_path}/b")
    assert parse("").daemon.state_dir == tmp_path / "a"


def test_the_first_configuration_of_the_search_path_is_taken(tmp_path, monkeypatch):
    monkeypatch.delenv("FLUXWATCHD_CONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    users = write(tmp_path / "home/.config/fluxwatchd/config.toml", FOLDER)
    assert find() == users
    write(tmp_path / "config.toml", FOLDER)
    assert find() == Path("config.toml")
    monkeypatch.setenv("FLUXWATCHD_CONFIG", str(tmp_path / "named.toml"))
    with pytest.raises(ConfigError, match=r"named\.toml"):
        load()


def test_without_a_configuration_the_defaults_do_for_files_but_not_for_folders(
    tmp_path, monkeypatch
):
    monkeypatch.delenv("FLUXWATCHD_CONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert load(required=False).named_profile() == Profile().resolved()
    with pytest.raises(ConfigError, match="no configuration found") as caught:
        load()
    assert "init" in caught.value.hint


# layers

LAYERED = """\
[defaults]
steps = 10
quality = 11
dino_strength = 0.1
prompt = "a"

[profile.web]
quality = 12
format = "webp"
dino_strength = 0.2

[[folder]]
inbox = "in"
outbox = "out"
profile = "web"
dino_strength = 0.3
variant = "dev"
"""


def test_the_later_layer_wins_key_by_key(tmp_path):
    settings = load(write(tmp_path / "config.toml", LAYERED))
    (folder,) = settings.folders
    write(folder.inbox / "fluxwatchd.toml", 'dino_strength = 0.4\nprompt = "b"\n')
    write(folder.inbox / "sub/fluxwatchd.toml", 'prompt = "c"\n')
    write(folder.inbox / "sub/photo.jpg.toml", "dino_strength = 0.5\n")
    profile = settings.profile_for(folder, Path("sub/photo.jpg"))
    assert profile.steps == 10  # defaults, over the variant's 20
    assert profile.guidance_scale == 3.5  # the variant's
    assert (profile.quality, profile.format) == (12, "webp")  # [profile.web]
    assert profile.variant == "dev"  # [[folder]]
    assert profile.prompt == "c"  # the sub-folder's file
    assert profile.dino_strength == 0.5  # the picture's file
    assert settings.profile_for(folder, Path("photo.jpg")).prompt == "b"
    assert settings.folder_profile(folder).prompt == "a"


def test_every_value_is_explained_by_the_line_that_set_it(tmp_path):
    settings = load(write(tmp_path / "config.toml", LAYERED), overrides={"fusion": "final"})
    (folder,) = settings.folders
    side = write(folder.inbox / "fluxwatchd.toml", '# mine\nprompt = "b"\n')
    explained = settings.explain_profile(folder, Path("photo.jpg"))
    file = tmp_path / "config.toml"
    assert str(explained["steps"].origin) == f"{file}:2 [defaults]"
    assert str(explained["quality"].origin) == f"{file}:8 [profile.web]"
    assert str(explained["variant"].origin) == f"{file}:17 [[folder]]"
    assert str(explained["prompt"].origin) == f"{side}:2"
    assert str(explained["strength"].origin) == "default of dev"
    assert str(explained["color_fix"].origin) == "default"
    assert str(explained["fusion"].origin) == "command line"
    assert explained["prompt"].value == "b"
    assert explained["max_drift"].value == "off"
    assert explained.keys() == Profile.model_fields.keys()


def test_a_later_size_puts_out_an_earlier_one_of_another_kind(tmp_path):
    text = f"{FOLDER}target_long_side = 2000\n[defaults]\nscale = 3\n"
    settings = load(write(tmp_path / "config.toml", text))
    (folder,) = settings.folders
    profile = settings.profile_for(folder, Path("a.jpg"))
    assert (profile.scale, profile.target_long_side) == (None, 2000)
    assert profile.output_size(400, 200) == (2000, 1000)
    write(folder.inbox / "a.jpg.toml", "scale = 2\n")
    profile = settings.profile_for(folder, Path("a.jpg"))
    assert (profile.scale, profile.target_long_side) == (2.0, None)


def test_auto_and_off_take_back_what_an_earlier_layer_set(tmp_path):
    text = f'{FOLDER}steps = "auto"\nmax_drift = "off"\n[defaults]\nsteps = 9\nmax_drift = 1\n'
    settings = load(write(tmp_path / "config.toml", text))
    profile = settings.folder_profile(settings.folders[0])
    assert (profile.steps, profile.max_drift) == (2, None)


def test_a_bad_file_in_the_inbox_fails_its_own_pictures_only(tmp_path):
    settings = load(write(tmp_path / "config.toml", LAYERED))
    (folder,) = settings.folders
    bad = write(folder.inbox / "photo.jpg.toml", "stps = 1\nsteps = 0\n[defaults]\n")
    with pytest.raises(ConfigError) as caught:
        settings.profile_for(folder, Path("photo.jpg"))
    assert {problem.file for problem in caught.value.problems} == {bad}
    assert places(caught.value.problems) == [(1, "stps"), (3, "defaults"), (2, "steps")]
    assert "retry" in caught.value.hint
    assert settings.profile_for(folder, Path("other.jpg")).steps == 10


def test_what_lies_in_an_inbox_cannot_hold_up_the_daemon(tmp_path):
    settings = load(write(tmp_path / "config.toml", FOLDER))
    (folder,) = settings.folders
    folder.inbox.mkdir()
    os.mkfifo(folder.inbox / "a.jpg.toml")
    write(folder.inbox / "b.jpg.toml", "#" * 2**20 + "\n")
    (folder.inbox / "c.jpg.toml").mkdir()
    write(folder.inbox / "d.jpg.toml", f"steps = {'9' * 5000}\n")
    for name, why in (("a", "regular"), ("b", "too long"), ("c", "regular"), ("d", "not TOML")):
        with pytest.raises(ConfigError, match=why):
            settings.profile_for(folder, Path(f"{name}.jpg"))
    longest = "e" * 251 + ".jpg"  # with .toml, longer than any file's name
    assert settings.profile_for(folder, Path(longest)) == Profile().resolved()


def test_a_loop_of_links_is_told_and_not_followed(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    text = f'{FOLDER}archive = "loop/x"\nmodel = "{"m" * 5000}"\n'
    assert places(problems(text, tmp_path)) == [(4, "folder.0.archive")]


def test_values_of_two_layers_that_do_not_fit_are_told(tmp_path):
    text = f"{FOLDER}overlap = 64\n[defaults]\ntile_size = 64\n"
    (found,) = problems(text, tmp_path)
    assert (found.line, found.key, found.allowed) == (4, "overlap", "integer, 0 to 63")


def test_a_name_that_is_not_utf8_has_a_profile_too(tmp_path):
    settings = load(write(tmp_path / "config.toml", FOLDER))
    (folder,) = settings.folders
    relative = Path("caf\udce9/ph\udcffto.jpg")
    write(folder.inbox / relative.parent / "fluxwatchd.toml", "steps = 7\n")
    assert settings.profile_for(folder, relative).steps == 7


def test_a_folder_is_found_by_any_path_in_it(tmp_path):
    settings = load(write(tmp_path / "config.toml", FOLDER))
    (folder,) = settings.folders
    assert settings.folder_at(folder.inbox) == folder
    assert settings.folder_at(folder.inbox / "sub" / "photo.jpg") == folder
    assert settings.folder_at(folder.outbox) is None


# the command line


def test_assignments_are_toml_or_else_text():
    found = parse_assignments(["scale=2", "variant=schnell", 'prompt="a = b"', "dino_mode = off"])
    assert found == {"scale": 2, "variant": "schnell", "prompt": "a = b", "dino_mode": "off"}
    with pytest.raises(ConfigError, match="key=value"):
        parse_assignments(["scale"])
    assert parse_assignments(["prompt=1\nsteps = 3"]) == {"prompt": "1\nsteps = 3"}


def test_overrides_are_checked_like_the_file_and_win():
    given_keys = {"steps": 3, "engine.device": "cpu", "daemon.settle_seconds": 0.5}
    settings = parse("[defaults]\nsteps = 9\n", overrides=given_keys)
    assert settings.named_profile().steps == 3
    assert settings.engine == EngineSettings(device="cpu")
    assert settings.daemon.settle_seconds == 0.5
    with pytest.raises(ConfigError) as caught:
        parse("", overrides={"stps": 3, "engine.device": "gpu", "a.b": 1})
    assert [str(problem).split(":")[:2] for problem in caught.value.problems] == [
        ["command line", " a.b"],
        ["command line", " engine.device"],
        ["command line", " stps"],
    ]


def test_an_unknown_profile_is_told_with_those_that_there_are():
    with pytest.raises(ConfigError, match=r"\[profile\.b\]; there are: a"):
        parse("[profile.a]\n").named_profile("b")


# the tables themselves

profiles = st.builds(
    Profile,
    variant=st.sampled_from(["nano", "nano-img2img", "schnell", "dev", "lanczos"]),
    steps=st.none() | st.integers(1, 100),
    strength=st.none() | st.floats(0, 1),
    target_megapixels=st.none() | st.floats(0.1, 1000),
    seed=st.integers(0, 2**63 - 1) | st.sampled_from(["content", "random"]),
    tile_size=st.just("auto") | st.integers(8, 8192),
    prompt=st.text(max_size=9),
)


@rules(deadline=None)
@given(profiles)
def test_a_profile_survives_json_and_resolving_twice(profile):
    assert Profile.model_validate_json(profile.model_dump_json()) == profile
    assert profile.resolved().resolved() == profile.resolved()
    assert profile.resolved().steps is not None


def test_what_means_nothing_to_a_variant_is_said():
    told = Profile(variant="nano", prompt="a cat", guidance_scale=2).without_effect()
    assert [sentence.split()[0] for sentence in told] == ["prompt", "guidance_scale"]
    assert Profile(variant="dev", prompt="a cat", guidance_scale=2).without_effect() == ()


@pytest.mark.parametrize("variant", VARIANTS)
def test_defaults_are_never_told_as_without_effect(variant):
    assert Profile(variant=variant).without_effect() == ()
    assert Profile(variant=variant).resolved().without_effect() == ()


def test_what_only_a_model_uses_is_said_where_none_runs():
    chosen = {
        "prompt": "a cat", "guidance_scale": 2, "seed": 7, "steps": 9, "tile_size": 64,
        "overlap": 8, "fusion": "final", "color_fix": "off", "dino_strength": 0.1,
        "dino_mode": "both", "dino_adapter": "a", "dino_encoder": "b", "max_drift": 0.3,
    }  # fmt: skip
    for variant, more in (("lanczos", {"model": "x", "strength": 0.5}), ("dev", {"strength": 0})):
        told = Profile(variant=variant, **chosen, **more).without_effect()
        named = {sentence.split()[0] for sentence in told}
        assert named == {*chosen, *more} - ({"strength"} if variant == "dev" else set())


@pytest.mark.parametrize("zero", [{"variant": "nano"}, {"variant": "dev", "dino_strength": 0.0}])
def test_dino_settings_without_strength_are_said(zero):
    told = Profile(**zero, dino_mode="tokens", dino_adapter="a").without_effect()
    assert told == (
        "dino_mode has no effect: dino_strength is 0",
        "dino_adapter has no effect: dino_strength is 0",
    )
    given = zero | {"dino_strength": 0.5}
    assert Profile(**given, dino_mode="tokens", dino_adapter="a").without_effect() == ()


def test_dino_steers_by_default_where_it_helps():
    strengths = {name: Profile(variant=name).resolved().dino_strength for name in VARIANTS}
    assert strengths == {
        "nano": 0.0, "nano-img2img": 0.5, "schnell": 0.5, "dev": 0.5, "lanczos": 0.0
    }  # fmt: skip


def test_quality_means_nothing_to_a_lossless_format():
    assert Profile(format="png", quality=80).without_effect() == (
        "quality has no effect: png is lossless",
    )
    assert Profile(format="webp", quality=80).without_effect() == ()


def test_an_overlap_too_large_for_the_scale_is_told_by_check_and_one_that_fits_is_not(tmp_path):
    (found,) = problems(f"{FOLDER}overlap = 70\n", tmp_path)  # 280 of nano's 256 px at x4
    assert (found.line, found.key, found.allowed) == (4, "overlap", "integer, 0 to 62")
    for size in ("scale = 2", "target_megapixels = 2"):
        assert load(write(tmp_path / "good.toml", f"{FOLDER}{size}\noverlap = 100\n")).folders


def test_settings_can_be_made_without_a_file(tmp_path):
    folder = Folder(inbox=tmp_path / "in", outbox=tmp_path / "out")
    settings = Settings(daemon=DaemonSettings(state_dir=tmp_path), folders=(folder,))
    assert settings.profile_for(folder, Path("a.jpg")) == Profile().resolved()


# the files that tell of it


def test_the_example_is_what_the_schema_says():
    text = (ROOT / "config.example.toml").read_text()
    assert text == example(), "write it anew: python -m fluxwatchd.config.example"
    written = tomllib.loads(text)
    tables = {"defaults": Profile, "daemon": DaemonSettings, "engine": EngineSettings}
    for name, model in tables.items():
        assert written[name].keys() == model.model_fields.keys()
    assert written["folder"][0].keys() == Folder.model_fields.keys()


def test_the_examples_values_are_the_true_defaults(tmp_path):
    stated = load(write(tmp_path / "config.toml", example()))
    bare = load(write(tmp_path / "bare.toml", f'{FOLDER}[daemon]\nstate_dir = "state"\n'))
    assert stated.named_profile() == Profile().resolved()
    assert stated.engine == EngineSettings()
    assert stated.daemon == bare.daemon
    for key in Folder.model_fields.keys() - {"inbox", "outbox"}:
        assert getattr(stated.folders[0], key) == getattr(bare.folders[0], key)


def test_a_commented_default_says_the_same_without_its_mark(tmp_path):
    text = example(commented=True)
    freed = re.sub(r"^#(?=\w+ = )", "", text, flags=re.MULTILINE).replace("#[profile.web]", "")
    freed = freed.replace('format = "webp"\nquality = 85\n', "")
    assert tomllib.loads(freed) == tomllib.loads(example())
    assert tomllib.loads(text)["folder"] == [{"inbox": "inbox", "outbox": "outbox"}]


def test_the_manual_lists_every_key():
    manual = (ROOT / "docs" / "profiles.md").read_text()
    assert manual.endswith(reference()), "its tables: python -m fluxwatchd.config.reference"


def test_the_manual_lists_every_suffix_that_is_left_alone():
    manual = (ROOT / "docs" / "profiles.md").read_text()
    assert all(f"`{suffix}`" in manual for suffix in TEMPORARY)
