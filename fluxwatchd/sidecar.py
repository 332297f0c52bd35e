"""Result or failure -> versioned JSON, with its schema beside it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fluxwatchd import __version__
from fluxwatchd.config import Profile
from fluxwatchd.errors import FluxwatchdError
from fluxwatchd.job import Checkpoint, DinoRecord, Job, Result, Taken, TileRecord

if TYPE_CHECKING:
    from fluxwatchd.imageio import Picture  # NumPy takes as long as all of `status`

SCHEMA_VERSION = 1
LARGEST = 128 << 20
"""Bytes that a record may have. Ours grow by 200 with every tile and stay far below."""

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP", ".tiff": "TIFF", ".avif": "AVIF"}
DEEP = frozenset({".png", ".tiff"})
"""Where 16 bits stay 16."""
NO_ALPHA = frozenset({".jpg"})
NO_GREY = frozenset({(".webp", False), (".webp", True), (".avif", True)})
"""Suffix, and whether there is alpha: where a grey picture is written as RGB."""

UNMEASURED: Mapping[str, Any] = {"stripes": None, "color_shift": None}
"""What records did not tell at first."""


def success(result: Result, *, name: str, sha256: str, size: int) -> dict[str, Any]:
    """The sidecar of a result that is delivered as ``name`` with that hash and size in bytes."""
    job, upscaled, picture = result.job, result.upscaled, result.upscaled.picture
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "result",
        **_job(job),
        "source_width": result.source_size[0],
        "source_height": result.source_size[1],
        "scale": result.scale,
        "output": {"name": _text(name), "sha256": sha256, "size": size, **_form(name, picture)},
        "profile": job.profile.resolved().model_dump(mode="json"),
        "profile_fingerprint": fingerprint(job.profile),
        "seed": job.seed,
        "steps": len(upscaled.sigmas),
        "sigmas": list(upscaled.sigmas),
        "tiles": _tiles(upscaled.tiles),
        "dino": _dino(upscaled.dino, upscaled.tiles),
        "stripes": asdict(upscaled.stripes) if upscaled.stripes else None,
        "color_shift": upscaled.color_shift,
        "seconds": {stage: round(spent, 6) for stage, spent in upscaled.seconds.items()},
        "peak_bytes": upscaled.peak_bytes,
        "checkpoint": _checkpoint(upscaled.checkpoint),
        "versions": _versions(with_torch=job.profile.kind.has_model and bool(upscaled.sigmas)),
        "started": _time(result.started),
        "finished": _time(result.finished),
        "notes": list(upscaled.notes),
        "extra": dict(upscaled.extra),
        "copied_from": None,
    }


def copied(
    job: Job,
    earlier: Mapping[str, Any],
    origin: Path,
    *,
    name: str,
    started: float,
    finished: float,
) -> dict[str, Any]:
    """The sidecar of a result that was copied from ``origin``, whose sidecar is ``earlier``.

    How the picture was made stays as it was recorded; job, source, name and times are this job's.
    """
    return {
        **UNMEASURED,
        **earlier,
        **_job(job),
        "output": {**earlier["output"], "name": _text(name)},
        "started": _time(started),
        "finished": _time(finished),
        "copied_from": {"path": _text(origin), "job_id": earlier["job_id"]},
    }


def failure(
    job: Job | Taken,
    error: BaseException,
    *,
    name: str,
    finished: float,
    attempts: int | None = None,
) -> dict[str, Any]:
    """The error record of a file set aside as ``name``; ``finished`` is s since the epoch.

    ``attempts`` defaults to the job's own count.
    """
    record = failure_again(
        job,
        name=name,
        kind=type(error).__name__,
        message=str(error) or type(error).__name__,
        hint=error.hint if isinstance(error, FluxwatchdError) else "",
        finished=finished,
    )
    profile = job.profile if isinstance(job, Job) else None
    return {
        **record,
        "cause": _cause(error),
        "attempts": job.attempt if attempts is None else attempts,
        "profile": profile.resolved().model_dump(mode="json") if profile else None,
    }


def failure_again(
    job: Job | Taken,
    *,
    name: str,
    kind: str,
    message: str,
    hint: str,
    finished: float | None = None,
) -> dict[str, Any]:
    """An error record from what the journal kept of an error: its class, message and hint.

    ``finished`` is s since the epoch, by default now.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "error",
        **_job(job),
        "name": _text(name),
        "what": f"{_text(job.relative)} was not upscaled",
        "why": _text(message),
        "class": kind,
        "cause": None,
        "remedy": hint or "Mend what is named above, then run: fluxwatchd retry FILE",
        "attempts": job.attempt,
        "transient": False,
        "profile": None,
        "versions": _versions(with_torch=False),
        "finished": _time(time.time() if finished is None else finished),
    }


def source_key(job: Job) -> tuple[object, ...]:
    """What two records share if they are of the same source and make the same picture."""
    seed = None if job.profile.seed == "random" else job.seed
    return _text(job.relative), job.sha256, fingerprint(job.profile), seed


def made_from(record: Mapping[str, Any], *, any_seed: bool = False) -> tuple[object, ...]:
    """The source_key of a decoded sidecar; an empty tuple for another kind of record."""
    if record["kind"] != "result":
        return ()
    source = record["source"]
    seed = None if any_seed else record["seed"]
    return source["path"], source["sha256"], record["profile_fingerprint"], seed


def encode(record: Mapping[str, Any]) -> bytes:
    """A record as the bytes of its file: indented UTF-8 that ends with a line break.

    Raises ValueError for a number that JSON has no word for (NaN, infinity).
    """
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace") + b"\n"


def read(path: Path) -> dict[str, Any]:
    """A sidecar or error record from disk. Raises OSError; ValueError if it is not one."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return read_open(descriptor)
    finally:
        os.close(descriptor)


def read_open(descriptor: int) -> dict[str, Any]:
    """A record from a file opened without waiting (it may be a FIFO). Raises as read()."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST:
        msg = "not a fluxwatchd record: no file, or too large"
        raise ValueError(msg)
    with os.fdopen(descriptor, "rb", closefd=False) as file:
        return decode(file.read(LARGEST))


def decode(content: bytes) -> dict[str, Any]:
    """A record from the bytes of its file. Raises ValueError if it is not one of ours.

    Anybody may put a file where records lie. One that is taken for ours has what delivery and
    recovery rely on, of the right type: see _is_ours().
    """
    try:
        record = json.loads(content)
    except RecursionError as error:
        msg = "not a fluxwatchd record: nested too deep"
        raise ValueError(msg) from error
    if not isinstance(record, dict) or not _is_ours(record):
        msg = "not a fluxwatchd record"
        raise ValueError(msg)
    return record


def checkpoint_of(record: Mapping[str, Any]) -> str | None:
    """The id of what made the picture of a decoded sidecar; None where it names none."""
    checkpoint = record.get("checkpoint")
    found = checkpoint.get("id") if isinstance(checkpoint, dict) else None
    return found if _is_hex(found, 16) else None


def schema(kind: Literal["sidecar", "error"]) -> Mapping[str, Any]:
    """The JSON schema of ``kind``, as shipped."""
    text = files("fluxwatchd").joinpath(f"{kind}.schema.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def fingerprint(profile: Profile) -> str:
    """Sixteen hexadecimal digits that are equal for profiles that make the same picture.

    The seed is not part of it: "content" and the number it stands for make the same picture, and
    the number is recorded apart. Nor is the limit max_pixels.
    """
    wanted = profile.resolved().model_dump(mode="json", exclude={"seed", "max_pixels"})
    return _digest(wanted)


def checkpoint_id(checkpoint: Checkpoint) -> str:
    """Sixteen hexadecimal digits that are equal for the same weights at the same precision.

    The device is not part of it, and the memory plan only where it changes the numbers (fp8).
    """
    return _digest(
        {
            "variant": checkpoint.variant,
            "model": checkpoint.model,
            "files": dict(checkpoint.files),
            "dtype": checkpoint.dtype,
            "fp8": "fp8" in checkpoint.plan,
        }
    )


def _digest(value: Mapping[str, Any]) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _is_ours(record: Mapping[str, Any]) -> bool:
    """Whether an object has what readers of records rely on."""
    source = record.get("source")
    if not (
        _is_number(record.get("schema_version"))
        and _is_hex(record.get("job_id"), 16)
        and isinstance(source, dict)
        and _is_text(source.get("name"))
        and _is_text(source.get("path"))
    ):
        return False
    match record.get("kind"):
        case "result":
            return _is_result(record)
        case "error":
            return _is_text(record.get("why")) and _is_text(record.get("remedy"))
        case _:
            return False


def _is_result(record: Mapping[str, Any]) -> bool:
    output = record.get("output")
    return (
        isinstance(output, dict)
        and _is_hex(output.get("sha256"), 64)
        and _is_number(output.get("size"))
        and _is_hex(record["source"].get("sha256"), 64)
        and _is_text(record.get("profile_fingerprint"))
        and _is_number(record.get("seed"))
    )


def _is_hex(value: object, digits: int) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(rf"[0-9a-f]{{{digits}}}", value))


def _is_number(value: object) -> bool:
    """A whole number from 0 that the journal could keep."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_text(value: object) -> bool:
    """Text that can be written: JSON may name half of a surrogate pair."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _job(job: Job | Taken) -> dict[str, Any]:
    return {
        "job_id": job.id,
        "attempt": job.attempt,
        "source": {
            "name": _text(job.relative.name),
            "path": _text(job.relative),
            "size": job.size,
            "sha256": job.sha256 or None,
            "mtime": _time(job.mtime_ns / 1e9),
            "mtime_ns": job.mtime_ns,
        },
    }


def _form(name: str, picture: Picture) -> dict[str, Any]:
    """Size in px, format, bits a channel and channels of the file that was written."""
    suffix = Path(name).suffix.lower()
    has_alpha = picture.alpha is not None and suffix not in NO_ALPHA
    grey = picture.pixels.shape[2] == 1 and (suffix, has_alpha) not in NO_GREY
    return {
        "width": picture.width,
        "height": picture.height,
        "format": FORMATS[suffix],
        "depth": picture.depth if suffix in DEEP else 8,
        "mode": ("L" if grey else "RGB") + ("A" if has_alpha else ""),
    }


def _tiles(tiles: TileRecord | None) -> dict[str, Any] | None:
    if tiles is None:
        return None
    return {
        "count": len(tiles.windows),
        "overlap": tiles.overlap,
        "batch": tiles.batch,
        "fusion": tiles.fusion,
        "windows": [
            {
                "top": window.top,
                "left": window.left,
                "height": window.height,
                "width": window.width,
                "drift": window.drift,
            }
            for window in tiles.windows
        ],
    }


def _dino(dino: DinoRecord, tiles: TileRecord | None) -> dict[str, Any]:
    drifts = [window.drift for window in tiles.windows] if tiles else []
    known = [drift for drift in drifts if drift is not None]
    return {
        "mode": dino.mode,
        "strength": dino.strength,
        "encoder": dino.encoder,
        "adapter": dino.adapter,
        "drift": dino.drift,
        "drift_max_tile": max(known, default=None),
        "reason": dino.reason,
    }


def _checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "id": checkpoint_id(checkpoint),
        "variant": checkpoint.variant,
        "model": checkpoint.model,
        "files": dict(checkpoint.files),
        "device": checkpoint.device,
        "device_name": checkpoint.device_name,
        "dtype": checkpoint.dtype,
        "plan": checkpoint.plan,
    }


def _versions(*, with_torch: bool) -> dict[str, str]:
    """The program's version, and those of the libraries that had a part in the picture."""
    found = {"fluxwatchd": __version__}
    for library in ("torch", "diffusers") if with_torch else ():
        found[library] = metadata.version(library)
    return found


def _cause(error: BaseException) -> str | None:
    cause = error.__cause__
    return f"{type(cause).__name__}: {_text(str(cause))}" if cause is not None else None


def _time(seconds: float) -> str | None:
    """ISO 8601 in UTC; None for a time that no calendar holds (a file may claim any)."""
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text(name: str | os.PathLike[str]) -> str:
    """A name as text for people; a byte that is not UTF-8 comes out as its hexadecimal escape."""
    text = os.fspath(name)
    try:
        return os.fsencode(text).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that stands for no byte, as in some library's message
        return text.encode("utf-8", "backslashreplace").decode()
