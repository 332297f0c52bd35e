"""A program for the delivery tests: does one job by the daemon's protocol, to be killed on the way.

It forks for every line of its standard input, so that the interpreter starts once: a JSON object
with ``root``, ``mode`` (archive, delete, keep or fail), ``archive``, ``point`` and ``refuse``, the
system calls that the kernel shall refuse, as some filesystems do. Answers with the child's exit
status; 0 - SIGKILL where it was killed.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import struct
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from fluxwatchd import crashpoints, sidecar
from fluxwatchd.config import Folder, Profile
from fluxwatchd.delivery import Delivery, Staged, recover
from fluxwatchd.errors import InputRejected
from fluxwatchd.job import Job
from fluxwatchd.journal import Journal

RESULT = b"a picture, four times as large" * 50
CALLS = {
    "x86_64": {"link": (86, 265), "renameat2": (316,), "flock": (73,)},
    "aarch64": {"link": (37,), "renameat2": (276,), "flock": (32,)},
}


def folder_of(case: dict[str, Any]) -> Folder:
    root = Path(case["root"])
    return Folder(
        inbox=root / "in",
        outbox=root / "out",
        archive=Path(case["archive"]),
        failed=Path(case["failed"]),
        on_success="archive" if case["mode"] in ("fail", "stop") else case["mode"],
    )


def job_of(folder: Folder, relative: Path, job_id: str) -> Job:
    content = (folder.inbox / relative).read_bytes()
    found = (folder.inbox / relative).stat()
    return Job(
        id=job_id,
        folder=folder,
        relative=relative,
        size=found.st_size,
        mtime_ns=found.st_mtime_ns,
        sha256=hashlib.sha256(content).hexdigest(),
        profile=Profile(variant="lanczos"),
        seed=7,
        inode=found.st_ino,
    )


def record_of(staged: Staged, name: str) -> dict[str, Any]:
    """As much of a sidecar as delivery and recovery look at."""
    job = staged.job
    return {
        "schema_version": 1,
        "kind": "result",
        "job_id": job.id,
        "source": {
            "name": "photo",
            "path": os.fsencode(job.relative).decode("utf-8", "backslashreplace"),
            "sha256": job.sha256,
        },
        "profile_fingerprint": sidecar.fingerprint(job.profile),
        "seed": job.seed,
        "output": {"name": name, "sha256": staged.sha256, "size": staged.size},
    }


def do(case: dict[str, Any]) -> None:
    """One life of a daemon: recover, then take the picture in if it is there."""
    folder = folder_of(case)
    with Journal.open(Path(case["root"]) / "state") as journal:
        delivery = Delivery()
        delivery.prepare(folder)
        recover(delivery, folder, journal)
        relative = Path("sub/photo.jpg")
        if not (folder.inbox / relative).exists() or is_done(journal, folder):
            return
        job = job_of(folder, relative, os.urandom(8).hex())
        job = replace(job, attempt=journal.begin(job))
        if case["mode"] == "stop":
            journal.give_back(job.id)
        elif case["mode"] == "fail":
            set_aside(journal, delivery, job)
        else:
            deliver(journal, delivery, job)


def is_done(journal: Journal, folder: Folder) -> bool:
    state = journal.file_states(folder).get("sub/photo.jpg")
    return state is not None and state.done


def deliver(journal: Journal, delivery: Delivery, job: Job) -> None:
    journal.delivering(job)
    staged = delivery.stage(job, ".png", lambda file: file.write(RESULT) and None)
    done = delivery.commit(staged, lambda name: record_of(staged, name))
    journal.finish(job.id, done.picture, done.sha256)
    retired = delivery.retire(job)
    journal.retired(job.id, retired.outcome, retired.path)


def set_aside(journal: Journal, delivery: Delivery, job: Job) -> None:
    error = InputRejected("not a picture", hint="Drop a picture.")
    journal.fail(job.id, error)
    aside = delivery.fail(job, lambda name: sidecar.failure(job, error, name=name, finished=1e9))
    journal.retired(job.id, aside.outcome, aside.path)


def refuse(calls: list[str]) -> None:
    """Have the kernel refuse these system calls as filesystems do that do not know them."""
    deny({name: errno.EPERM if name == "link" else errno.EINVAL for name in calls})


def deny(calls: dict[str, int]) -> None:
    """Have the kernel refuse calls of this process with these errors, by a seccomp filter."""
    table = CALLS[os.uname().machine]
    load, jump, give = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    wanted = [(number, error) for name, error in calls.items() for number in table[name]]
    code = struct.pack("=HBBI", load, 0, 0, 0)
    for number, error in wanted:
        code += struct.pack("=HBBI", jump, 0, 1, number)
        code += struct.pack("=HBBI", give, 0, 0, 0x00050000 | error)  # SECCOMP_RET_ERRNO
    code += struct.pack("=HBBI", give, 0, 0, 0x7FFF0000)  # SECCOMP_RET_ALLOW
    program = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(code) // 8, ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, ctypes.create_string_buffer(header, len(header)), 0, 0) == 0


def child(case: dict[str, Any]) -> int:
    try:
        refuse(case["refuse"])
        if case["point"]:
            os.environ[crashpoints.VARIABLE] = case["point"]
        do(case)
    except BaseException:  # noqa: BLE001 - the parent gets the exit status
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            os._exit(child(json.loads(line)))
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
