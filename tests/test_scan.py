"""The scan: every picture in the inbox, nothing else, and no harm from what people drop there."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from house import open_up

from fluxwatchd.config import Folder
from fluxwatchd.intake.scan import Scan, open_source, scan


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "in").mkdir()
    return Folder(inbox=tmp_path / "in", outbox=tmp_path / "out")


def drop(folder: Folder, *names: str) -> None:
    for name in names:
        path = folder.inbox / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def found(folder: Folder) -> set[str]:
    looked = scan(folder)
    assert looked.state == "ok"
    return {entry.name for entry in looked.entries}


def test_pictures_are_found_with_what_tells_them_apart(folder):
    drop(folder, "a.jpg", "sub/deep/B.PNG", "c.tiff", "d.webp")
    os.utime(folder.inbox / "c.tiff", ns=(5, 1_000_000_007))
    looked = scan(folder)
    assert looked.entries[0].name == "c.tiff"  # the oldest comes first
    assert {str(e.relative) for e in looked.entries} == {
        "a.jpg",
        "sub/deep/B.PNG",
        "c.tiff",
        "d.webp",
    }
    entry = looked.entries[0]
    status = (folder.inbox / "c.tiff").stat()
    assert (entry.size, entry.mtime_ns, entry.inode) == (1, 1_000_000_007, status.st_ino)
    assert (entry.device, entry.ctime_ns) == (status.st_dev, status.st_ctime_ns)


def test_what_is_ignored_is_counted_by_reason(folder):
    drop(folder, "photo.jpg")
    drop(folder, ".hidden.jpg", "._photo.jpg", ".syncthing.photo.jpg.tmp", ".photo.jpg.Xa91bZ")
    drop(
        folder,
        "a.part",
        "b.tmp",
        "c.jpg.crdownload",
        "d.filepart",
        "~photo.jpg",
        "~syncthing~x.jpg",
    )
    drop(folder, "fluxwatchd.toml", "photo.jpg.toml")
    drop(folder, "photo.xmp", "photo.jpg.json", "photo.cr2", "notes.txt", "nothing", "jpg")
    drop(folder, ".git/photo.jpg", ".stfolder/x.jpg")
    looked = scan(folder)
    assert [e.name for e in looked.entries] == ["photo.jpg"]
    assert looked.ignored == {
        "hidden": 4,
        "temporary": 6,
        "settings": 2,
        "not a picture": 6,
        "folder": 2,
    }
    assert looked.problems == ()


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("*.jpg", {"sub/c.png", "sub/deep/d.png"}),
        ("sub", {"a.jpg", "b.jpg"}),
        ("sub/*", {"a.jpg", "b.jpg"}),
        ("sub/deep/*.png", {"a.jpg", "b.jpg", "sub/c.png"}),
        ("/a.jpg", {"b.jpg", "sub/c.png", "sub/deep/d.png"}),
        ("[ab].*", {"sub/c.png", "sub/deep/d.png"}),
        ("nothing", {"a.jpg", "b.jpg", "sub/c.png", "sub/deep/d.png"}),
    ],
)
def test_globs_of_ignore(folder, pattern, left):
    drop(folder, "a.jpg", "b.jpg", "sub/c.png", "sub/deep/d.png")
    assert found(folder.model_copy(update={"ignore": (pattern,)})) == left


def test_sub_folders_only_where_wanted(folder):
    drop(folder, "a.jpg", "sub/b.jpg")
    flat = folder.model_copy(update={"recursive": False})
    assert found(flat) == {"a.jpg"}
    assert scan(flat).ignored == {"folder": 1}


def test_links_are_never_followed(folder, tmp_path):
    drop(folder, "sub/a.jpg")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret.jpg").write_bytes(b"x")
    (folder.inbox / "out").symlink_to(tmp_path / "outside")
    (folder.inbox / "file.jpg").symlink_to(tmp_path / "outside/secret.jpg")
    (folder.inbox / "sub/loop").symlink_to(folder.inbox)
    (folder.inbox / "gone.jpg").symlink_to("nowhere")
    assert found(folder) == {"sub/a.jpg"}
    assert scan(folder).ignored == {"symbolic link": 4}
    for name in ("file.jpg", "out/secret.jpg", "sub/loop/sub/a.jpg"):
        with pytest.raises(OSError, match=r"symbolic links|Not a directory"):
            open_source(folder, Path(name))


def test_the_inbox_itself_may_be_a_link(folder, tmp_path):
    drop(folder, "a.jpg")
    (tmp_path / "link").symlink_to(folder.inbox)
    assert found(folder.model_copy(update={"inbox": tmp_path / "link"})) == {"a.jpg"}


def test_pipes_sockets_and_folders_with_a_pictures_name(folder):
    os.mkfifo(folder.inbox / "pipe.jpg")
    (folder.inbox / "folder.jpg").mkdir()
    drop(folder, "folder.jpg/inner.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        with contextlib.chdir(folder.inbox):  # a socket's path must be short
            server.bind("socket.jpg")
        assert found(folder) == {"folder.jpg/inner.jpg"}
    assert scan(folder).ignored == {"not a regular file": 2}


NAMES = ["a\nb.jpg", "\udcff\udcfe.jpg", "ü" * 125 + ".jpg", "x" * 251 + ".jpg", " .jpg", "-rf.jpg"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_any_name_is_found_and_opened(folder, name):
    drop(folder, name)
    assert found(folder) == {name}
    with os.fdopen(open_source(folder, Path(name)), "rb") as file:
        assert file.read() == b"x"


def test_folders_nested_beyond_any_limit(folder):
    """1,500 deep and 15,000 bytes long: more than Python recurses or the kernel takes as a path."""
    here = os.open(folder.inbox, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("nine-long", dir_fd=here)
        below = os.open("nine-long", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("photo.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    looked = scan(folder)
    assert [e.name for e in looked.entries] == ["nine-long/" * 1500 + "photo.jpg"]
    os.close(open_source(folder, looked.entries[0].relative))
    subprocess.run(["rm", "-rf", folder.inbox / "nine-long"], check=True)


def as_nobody(code: str, *arguments: object) -> str:
    """What a program prints that may not read everything, as root may."""
    lines = [
        "import os, sys",
        "from pathlib import Path",
        "from fluxwatchd.config import Folder",
        "from fluxwatchd.intake.scan import scan",
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)",
        "folder = Folder(inbox=Path(sys.argv[1]), outbox=Path('/nowhere'))",
        code,
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_folder_that_may_not_be_read_is_a_problem_not_an_end(folder):
    drop(folder, "a.jpg", "closed/b.jpg", "open/c.jpg")
    open_up(folder.inbox)
    (folder.inbox / "closed").chmod(0)
    said = as_nobody(
        "s = scan(folder); print(s.state, sorted(e.name for e in s.entries), s.problems)",
        folder.inbox,
    )
    (folder.inbox / "closed").chmod(0o755)
    problem = f"('{folder.inbox}/closed cannot be read: Permission denied',)"
    assert said == f"ok ['a.jpg', 'open/c.jpg'] {problem}\n"


def test_a_folder_that_lists_its_files_but_lets_nobody_at_them_is_one_problem(folder):
    drop(folder, "a.jpg", *(f"closed/{number}.jpg" for number in range(50)))
    open_up(folder.inbox)
    (folder.inbox / "closed").chmod(0o744)
    said = as_nobody(
        "s = scan(folder); print(s.state, [e.name for e in s.entries], s.problems)", folder.inbox
    )
    (folder.inbox / "closed").chmod(0o755)
    problem = f"('{folder.inbox}/closed cannot be read: Permission denied',)"
    assert said == f"ok ['a.jpg'] {problem}\n"


def test_an_inbox_that_may_not_be_read_is_unreadable(folder):
    open_up(folder.inbox)
    folder.inbox.chmod(0)
    said = as_nobody("s = scan(folder); print(s.state, s.problems)", folder.inbox)
    folder.inbox.chmod(0o755)
    assert said == f"unreadable ('{folder.inbox} cannot be read: Permission denied',)\n"


def test_an_inbox_that_is_gone_is_missing_not_empty(folder):
    shutil.rmtree(folder.inbox)
    assert scan(folder).state == "missing"
    folder.inbox.write_bytes(b"a file")
    assert scan(folder).state == "missing"


def test_an_unmounted_share_is_missing_not_empty(folder):
    """The mount point is still there, an empty folder, when the share has gone."""
    mounted = replace(scan(folder), mount=str(folder.inbox))
    gone = scan(folder, mounted)
    assert gone.state == "missing"
    assert gone.problems == (f"{folder.inbox} is no longer mounted",)
    assert scan(folder, gone).state == "missing"  # and stays so
    assert scan(folder, scan(folder)).state == "ok"


def test_a_share_mounted_over_the_inbox_is_the_inbox(folder):
    assert scan(folder, Scan("ok", mount="/")).state == "ok"


@pytest.mark.alone
def test_a_hundred_thousand_files_in_a_second(folder):
    for number in range(100):
        (folder.inbox / str(number)).mkdir()
        place = os.open(folder.inbox / str(number), os.O_RDONLY)
        for index in range(1000):
            os.close(os.open(f"photo-{index}.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=place))
        os.close(place)
    spent = []
    for _ in range(3):
        start = time.process_time()
        looked = scan(folder)
        spent.append(time.process_time() - start)
    assert len(looked.entries) == 100_000
    assert min(spent) < 1.0
