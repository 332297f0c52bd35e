"""Job and Result: what flows from the inbox to the outbox. Frozen; every field has its unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fluxwatchd.config import Folder, Profile
    from fluxwatchd.imageio import Picture


@dataclass(frozen=True, slots=True)
class Job:
    """One picture to be done, with the settings it was taken in with.

    ``id`` is 16 hexadecimal digits, unique over the journal's life. ``relative`` is the path
    below the inbox. ``size`` is in bytes, ``mtime_ns`` in ns since the epoch, ``sha256`` of the
    content in hexadecimal. ``profile`` is frozen here: a reload never changes a job. ``seed`` is
    the number that will be used (0 .. 2^63 - 1). ``attempt`` counts from 1. ``inode`` is the file's
    number on its filesystem, 0 where it is not known.
    """

    id: str
    folder: Folder
    relative: Path
    size: int
    mtime_ns: int
    sha256: str
    profile: Profile
    seed: int
    attempt: int = 1
    inode: int = 0

    @property
    def source(self) -> Path:
        """Where the picture lies."""
        return self.folder.inbox / self.relative


@dataclass(frozen=True, slots=True)
class Taken:
    """A file taken in without settings: refused before it was a Job, or found after a crash.

    The fields are those of Job; ``sha256`` is empty where the content was never read.
    """

    id: str
    folder: Folder
    relative: Path
    size: int
    mtime_ns: int
    sha256: str = ""
    attempt: int = 1
    inode: int = 0

    @property
    def source(self) -> Path:
        """Where the file lies."""
        return self.folder.inbox / self.relative


@dataclass(frozen=True, slots=True)
class Window:
    """One tile's place in the output, px, and its drift (None where it was not measured)."""

    top: int
    left: int
    height: int
    width: int
    drift: float | None = None


@dataclass(frozen=True, slots=True)
class TileRecord:
    """How the picture was cut. ``overlap`` is the least overlap of two neighbours, output px."""

    windows: tuple[Window, ...]
    overlap: int
    batch: int
    fusion: str


@dataclass(frozen=True, slots=True)
class DinoRecord:
    """What DINO did, never more than happened.

    ``mode`` is what ran: off, tokens, guide or both. ``strength`` in 0..1. ``encoder`` and
    ``adapter`` are identities (name and hash) or None. ``drift`` is 1 - cosine of the features of
    result and source, 0..2, over the whole picture; None with ``reason`` where no encoder is there.
    """

    mode: str = "off"
    strength: float = 0.0
    encoder: str | None = None
    adapter: str | None = None
    drift: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class StripeRecord:
    """How strong a grid of the model's tokens is in the result.

    ``period`` is the side of a token, output px. ``amplitude`` in levels of 255, None where the
    picture is too small to tell. ``first`` is that of a first run that was above the limit, so that
    the picture was run again with tokens shifted; ``shifted`` says that the second run was kept.
    """

    period: int
    amplitude: float | None
    first: float | None = None
    shifted: bool = False


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The identity of the weights that ran.

    ``files`` maps a role (transformer, vae, clip, t5, dino, adapter, lora...) to "sha256:..." or a
    revision. ``dtype`` and ``device`` are torch's names; ``plan`` is the memory plan.
    """

    variant: str
    model: str
    files: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    device_name: str = ""
    dtype: str = "float32"
    plan: str = "resident"


@dataclass(frozen=True, slots=True)
class Upscaled:
    """What an engine makes of one picture.

    ``sigmas`` are the noise levels at which the model was evaluated, falling, one a step, without
    the final 0; empty where no model ran. ``seconds`` is wall time by stage. ``peak_bytes`` is the
    most memory in use, the device's on a GPU, else the process's. ``notes`` say in words which
    settings had no effect and why. ``color_shift`` is the mean distance of the result's colours to
    the source's, CIE 1976 L*a*b* units, in what is coarser than 16 px. It and ``stripes`` are
    None where no model ran.
    """

    picture: Picture
    sigmas: tuple[float, ...]
    tiles: TileRecord | None
    dino: DinoRecord
    seconds: Mapping[str, float]
    peak_bytes: int
    checkpoint: Checkpoint
    notes: tuple[str, ...] = ()
    stripes: StripeRecord | None = None
    color_shift: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """A job and what came of it.

    ``started`` and ``finished`` are seconds since the epoch; ``source_size`` is the decoded
    source's (width, height), px.
    """

    job: Job
    upscaled: Upscaled
    started: float
    finished: float
    source_size: tuple[int, int]

    @property
    def scale(self) -> float:
        """The output's longer side / the source's."""
        made = self.upscaled.picture
        return max(made.width, made.height) / max(self.source_size)
