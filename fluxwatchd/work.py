"""One picture's way: from a file to a Job and its pixels, from a Result to the outbox."""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from fluxwatchd import imageio, sidecar
from fluxwatchd.config import Folder, Profile
from fluxwatchd.delivery import Delivered, Delivery, Staged
from fluxwatchd.engine import Ticket, footprint
from fluxwatchd.engine.resume import Store
from fluxwatchd.errors import DeliveryFailed, InputRejected
from fluxwatchd.imageio import Picture
from fluxwatchd.intake.scan import open_source
from fluxwatchd.job import Job, Result, Taken


@dataclass(frozen=True, slots=True)
class Content:
    """A file as it was when it was read: all of its bytes, and what tells it from its successor."""

    data: bytes
    size: int
    mtime_ns: int
    inode: int
    sha256: str


def new_id() -> str:
    """Sixteen hexadecimal digits that no other job has."""
    return secrets.token_hex(8)


LONG = 1 << 28
"""bytes; a file that is longer is looked at before it is read into memory."""


def read_content(descriptor: int, name: str) -> Content:
    """Read a whole file from its start; ``name`` is what errors call it.

    Raises OSError; InputRejected for a long file that is no picture, or longer than its picture.
    """
    before = os.fstat(descriptor)
    with os.fdopen(os.dup(descriptor), "rb") as file:
        if before.st_size > LONG:
            imageio.probe(file, animated="first", max_pixels=sys.maxsize, name=name)
            file.seek(0)
        data = file.read()
    return Content(
        data=data,
        size=len(data),
        mtime_ns=before.st_mtime_ns,
        inode=before.st_ino,
        sha256=hashlib.sha256(data).hexdigest(),
    )


def read_source(folder: Folder, relative: Path) -> Content:
    """The content of a file below an inbox. Raises OSError and InputRejected."""
    descriptor = open_source(folder, relative)
    try:
        return read_content(descriptor, relative.name)
    finally:
        os.close(descriptor)


def seed_of(profile: Profile, sha256: str) -> int:
    """The number behind ``seed``: as given, from the content's hash, or drawn; 0 .. 2^63 - 1."""
    if isinstance(profile.seed, int):
        return profile.seed
    if profile.seed == "random":
        return secrets.randbits(63)
    return int(sha256[:16], 16) >> 1


def make_job(taken: Taken, profile: Profile) -> Job:
    """The Job of a file that was taken in, with the settings it gets."""
    return Job(
        id=taken.id,
        folder=taken.folder,
        relative=taken.relative,
        size=taken.size,
        mtime_ns=taken.mtime_ns,
        sha256=taken.sha256,
        profile=profile,
        seed=seed_of(profile, taken.sha256),
        inode=taken.inode,
    )


def ticket(job: Job) -> Ticket | None:
    """What a job's work is called, to be gone on with after a restart; None for a random seed.

    A seed that is drawn anew makes another picture.
    """
    if job.profile.seed == "random":
        return None
    return Ticket(job.sha256, sidecar.fingerprint(job.profile), job.seed)


def forget_state(state_dir: Path, job: Job) -> None:
    """Remove what the engine kept of a job that is over; no error if there is nothing."""
    if job.profile.kind.has_model and (named := ticket(job)):
        Store(state_dir).forget(named)


def decode(data: bytes, profile: Profile, name: str) -> Picture:
    """The picture in a file's bytes, if ``profile`` takes it; errors call it ``name``.

    Raises InputRejected; the size is judged by the header, before memory is taken.
    """
    animated, most = profile.animated, profile.max_pixels
    header = imageio.probe(data, animated=animated, max_pixels=most, name=name)
    width, height = profile.output_size(header.width, header.height)
    if width * height > profile.max_pixels:
        raise InputRejected(
            f"{header.width} x {header.height} px would become {width} x {height}, "
            f"{width * height} px in all; max_pixels allows {profile.max_pixels}",
            hint=f"Lower `{profile.size_key}`, or raise `max_pixels` in the profile.",
        )
    imageio.refuse_too_long((width, height), profile.format, header.format)
    footprint.refuse_hopeless(profile, header, name)
    return imageio.read(data, animated=animated, max_pixels=most, name=name)


def suffix_of(result: Result) -> str:
    """The output's suffix, as in ``.png``."""
    return imageio.suffix(result.job.profile.format, result.upscaled.picture)


def encode(result: Result, target: BinaryIO) -> tuple[str, ...]:
    """Write the picture into an open file; returns notes on what the format could not hold."""
    profile = result.job.profile
    return imageio.write(
        result.upscaled.picture,
        target,
        format=profile.format,
        quality=profile.quality,
        strip_gps=profile.strip_gps,
        scale=result.scale,
        provenance=provenance(result) if profile.embed_provenance else None,
    )


def provenance(result: Result) -> dict[str, object]:
    """What the picture file itself says of how it was made."""
    job, upscaled = result.job, result.upscaled
    kind = "compositeWithTrainedAlgorithmicMedia" if upscaled.sigmas else "algorithmicallyEnhanced"
    return {
        "digitalSourceType": kind,
        "job": job.id,
        "variant": job.profile.variant,
        "scale": result.scale,
        "model": upscaled.checkpoint.model,
        "steps": len(upscaled.sigmas),
        "strength": job.profile.strength,
        "seed": job.seed,
        "dino": upscaled.dino.mode,
        "dino_strength": upscaled.dino.strength,
        "source_sha256": job.sha256,
    }


def stage(delivery: Delivery, result: Result) -> tuple[Staged, Result]:
    """Encode a result beside its final place.

    The result comes back with notes on what the format could not hold: commit() writes them down.
    Raises DeliveryFailed.
    """
    notes: list[str] = []

    def write(target: BinaryIO) -> None:
        notes[:] = encode(result, target)

    staged = delivery.stage(result.job, suffix_of(result), write)
    told = replace(result.upscaled, notes=(*result.upscaled.notes, *notes))
    return staged, replace(result, upscaled=told)


def commit(delivery: Delivery, staged: Staged, result: Result) -> Delivered:
    """Commit what stage() gave, picture and sidecar. Raises DeliveryFailed; try again then."""
    return delivery.commit(
        staged,
        lambda name: sidecar.success(result, name=name, sha256=staged.sha256, size=staged.size),
    )


def deliver(delivery: Delivery, result: Result) -> Delivered:
    """Encode a result and commit it to its outbox, once. Raises DeliveryFailed; nothing is left."""
    staged, told = stage(delivery, result)
    try:
        return commit(delivery, staged, told)
    except DeliveryFailed:
        with suppress(DeliveryFailed):
            delivery.discard(staged)
        raise
