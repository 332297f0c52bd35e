"""Records: what they say, and that every one of them fits the schema that ships."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fluxwatchd import __version__, imageio, sidecar
from fluxwatchd.config import Folder, Profile
from fluxwatchd.errors import DeliveryFailed, InputRejected
from fluxwatchd.imageio import Picture
from fluxwatchd.job import (
    Checkpoint,
    DinoRecord,
    Job,
    Result,
    StripeRecord,
    Taken,
    TileRecord,
    Upscaled,
    Window,
)

FOLDER = Folder(inbox=Path("/in"), outbox=Path("/out"))
JOB = Job(
    id="0123456789abcdef",
    folder=FOLDER,
    relative=Path("sub/photo.jpg"),
    size=1234,
    mtime_ns=1_700_000_000_123_000_000,
    sha256="a" * 64,
    profile=Profile(variant="nano"),
    seed=2**63 - 1,
    attempt=2,
)
DONE = Result(
    job=JOB,
    upscaled=Upscaled(
        picture=Picture(np.zeros((80, 120, 3), np.float32), np.ones((80, 120), np.float32), 16),
        sigmas=(1.0, 0.5),
        tiles=TileRecord((Window(0, 0, 80, 64, 0.25), Window(0, 56, 80, 64)), 8, 2, "step"),
        dino=DinoRecord("tokens", 0.5, "nano-dino@sha256:1", "adapter@sha256:2", 0.125),
        seconds={"denoise": 1.25},
        peak_bytes=10**9,
        checkpoint=Checkpoint("nano", "bundled:nano", {"transformer": "sha256:abc"}),
        notes=("prompt has no effect: nano has no text encoder",),
        stripes=StripeRecord(8, 0.125, first=1.5, shifted=True),
        color_shift=0.25,
    ),
    started=1_700_000_001.5,
    finished=1_700_000_003.75,
    source_size=(30, 20),
)


def valid(record: dict, kind: str) -> dict:
    """The record as it comes back from its file, checked against the schema."""
    schema = sidecar.schema(kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    back = sidecar.decode(sidecar.encode(record))
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(schema, format_checker=checker).validate(back)
    assert back == json.loads(json.dumps(record))
    return back


def test_a_result_tells_how_it_was_made():
    record = valid(sidecar.success(DONE, name="photo.png", sha256="b" * 64, size=99), "sidecar")
    assert record["job_id"] == JOB.id
    assert record["attempt"] == 2
    assert record["source"] == {
        "name": "photo.jpg",
        "path": "sub/photo.jpg",
        "size": 1234,
        "sha256": "a" * 64,
        "mtime": "2023-11-14T22:13:20.123Z",
        "mtime_ns": 1_700_000_000_123_000_000,
    }
    assert record["output"] == {
        "name": "photo.png",
        "sha256": "b" * 64,
        "size": 99,
        "width": 120,
        "height": 80,
        "format": "PNG",
        "depth": 16,
        "mode": "RGBA",
    }
    assert (record["source_width"], record["source_height"], record["scale"]) == (30, 20, 4.0)
    assert record["profile"]["steps"] == 2  # the variant's default, as it was used
    assert record["seed"] == 2**63 - 1
    assert (record["steps"], record["sigmas"]) == (2, [1.0, 0.5])
    assert record["tiles"]["count"] == 2
    assert record["tiles"]["windows"][0]["drift"] == 0.25
    assert record["dino"]["drift"] == 0.125
    assert record["dino"]["drift_max_tile"] == 0.25
    assert record["stripes"] == {"period": 8, "amplitude": 0.125, "first": 1.5, "shifted": True}
    assert record["color_shift"] == 0.25
    assert record["seconds"] == {"denoise": 1.25}
    assert record["checkpoint"]["files"] == {"transformer": "sha256:abc"}
    assert record["versions"].keys() == {"fluxwatchd", "torch", "diffusers"}
    assert (record["started"], record["finished"]) == (
        "2023-11-14T22:13:21.500Z",
        "2023-11-14T22:13:23.750Z",
    )
    assert record["notes"] == ["prompt has no effect: nano has no text encoder"]


def test_a_picture_without_a_model_claims_none():
    plain = replace(
        DONE,
        job=replace(JOB, profile=Profile(variant="lanczos")),
        upscaled=replace(
            DONE.upscaled,
            sigmas=(),
            tiles=None,
            dino=DinoRecord(reason="lanczos measures no drift"),
            stripes=None,
            color_shift=None,
            checkpoint=Checkpoint("lanczos", ""),
        ),
    )
    record = valid(sidecar.success(plain, name="photo.jpg", sha256="b" * 64, size=9), "sidecar")
    assert record["versions"] == {"fluxwatchd": __version__}
    assert (record["steps"], record["tiles"], record["dino"]["drift"]) == (0, None, None)
    assert record["stripes"] is record["color_shift"] is None
    assert record["output"]["format"] == "JPEG"
    assert (record["output"]["depth"], record["output"]["mode"]) == (8, "RGB")


def test_a_copied_result_says_of_which():
    earlier = sidecar.success(DONE, name="photo.png", sha256="b" * 64, size=99)
    again = replace(JOB, id="f" * 16, relative=Path("other.jpg"), attempt=1)
    record = valid(
        sidecar.copied(
            again, earlier, Path("/out/sub/photo.png"), name="other.png", started=1.0, finished=2.0
        ),
        "sidecar",
    )
    assert record["copied_from"] == {"path": "/out/sub/photo.png", "job_id": JOB.id}
    assert (record["job_id"], record["output"]["name"]) == ("f" * 16, "other.png")
    assert record["source"]["path"] == "other.jpg"
    assert record["sigmas"] == [1.0, 0.5]
    assert record["finished"] == "1970-01-01T00:00:02.000Z"


def test_a_copy_of_a_result_from_before_stripes_were_measured_is_a_whole_record():
    earlier = sidecar.success(DONE, name="photo.png", sha256="b" * 64, size=99)
    old = {key: value for key, value in earlier.items() if key not in {"stripes", "color_shift"}}
    again = replace(JOB, id="f" * 16, attempt=1)
    made = sidecar.copied(again, old, Path("/out/x.png"), name="y.png", started=1.0, finished=2.0)
    assert valid(made, "sidecar")["stripes"] is None


def test_a_failure_tells_what_why_and_the_remedy():
    error = InputRejected("the file ends in the middle", hint="Copy it again.")
    error.__cause__ = OSError("image file is truncated")
    record = valid(sidecar.failure(JOB, error, name="photo.jpg", finished=1e9), "error")
    assert record["what"] == "sub/photo.jpg was not upscaled"
    assert record["why"] == "the file ends in the middle"
    assert record["remedy"] == "Copy it again."
    assert record["class"] == "InputRejected"
    assert record["cause"] == "OSError: image file is truncated"
    assert (record["attempts"], record["transient"]) == (2, False)
    assert record["profile"]["variant"] == "nano"


def test_a_failure_without_settings_or_words_still_has_a_remedy():
    taken = Taken("0" * 16, FOLDER, Path("x.jpg"), 0, 0)
    record = valid(
        sidecar.failure(taken, RuntimeError(), name="x.jpg", finished=1e9, attempts=3), "error"
    )
    assert (record["why"], record["class"], record["attempts"]) == ("RuntimeError",) * 2 + (3,)
    assert "fluxwatchd retry" in record["remedy"]
    assert (record["profile"], record["source"]["sha256"]) == (None, None)


def test_what_is_set_aside_is_not_tried_again_by_itself():
    error = DeliveryFailed("no room")
    assert error.transient
    record = valid(sidecar.failure(JOB, error, name="x", finished=1e9), "error")
    assert record["transient"] is False


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff", "avif"])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_mode_is_that_of_the_written_file(tmp_path, format, alpha, channels):
    pixels = np.full((8, 8, channels), 0.5, np.float32)
    picture = Picture(pixels, np.full((8, 8), 0.5, np.float32) if alpha else None)
    file = tmp_path / f"out{imageio.suffix(format, picture)}"
    imageio.write(picture, file, format=format)
    result = replace(DONE, upscaled=replace(DONE.upscaled, picture=picture))
    record = sidecar.success(result, name=file.name, sha256="b" * 64, size=1)
    with Image.open(file) as written:
        assert record["output"]["mode"] == written.mode


@given(
    name=st.binary(min_size=1, max_size=60).filter(lambda b: not {0, 47} & set(b)),
    mtime_ns=st.integers(-(2**63), 2**64),
    words=st.text(min_size=1).filter(str.strip),
)
def test_any_name_time_and_words_make_a_valid_record(name, mtime_ns, words):
    path = Path(name.decode("utf-8", "surrogateescape"))
    taken = Taken("0" * 16, FOLDER, path, 1, mtime_ns)
    valid(
        sidecar.failure(taken, InputRejected(words), name=path.name or "x", finished=1e9), "error"
    )


@pytest.mark.parametrize("words", ["\ud800", "bytes \udcff", "plain"])
def test_words_with_broken_characters_can_be_written(words):
    record = sidecar.failure(JOB, InputRejected(words), name="x", finished=1e9)
    assert json.loads(sidecar.encode(record).decode("utf-8"))["why"]


def test_numbers_that_are_none_are_refused():
    broken = replace(DONE, upscaled=replace(DONE.upscaled, sigmas=(float("nan"),)))
    with pytest.raises(ValueError, match="JSON compliant"):
        sidecar.encode(sidecar.success(broken, name="x.png", sha256="b" * 64, size=1))


def test_what_is_no_record_of_ours_is_refused(tmp_path):
    for content in (b"", b"[]", b"{}", b'{"schema_version": 1}', b"\xff\xfe", b"no"):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(ValueError, match=r".*"):
            sidecar.read(tmp_path / "x.json")


def test_an_unknown_key_does_not_pass_the_schema():
    record = sidecar.success(DONE, name="photo.png", sha256="b" * 64, size=99)
    for kind, change in (("sidecar", {"surprise": 1}), ("sidecar", {"steps": -1})):
        with pytest.raises(jsonschema.ValidationError):
            valid({**record, **change}, kind)


def test_a_checkpoints_id_follows_what_changes_the_numbers():
    nano = DONE.upscaled.checkpoint
    same = (replace(nano, device="cuda:0"), replace(nano, plan="stream"))
    other = (
        replace(nano, dtype="bfloat16"),
        replace(nano, files={"transformer": "sha256:abd"}),
        replace(nano, plan="fp8"),
    )
    assert {sidecar.checkpoint_id(one) for one in same} == {sidecar.checkpoint_id(nano)}
    assert len({sidecar.checkpoint_id(one) for one in (nano, *other)}) == 4
