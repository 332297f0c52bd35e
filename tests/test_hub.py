"""The hub, played by a server on this machine: gated, missing, out of reach, offline, and whole."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import tiny

from fluxwatchd.engine import hub
from fluxwatchd.errors import ConfigError

NAME = "black-forest-labs/FLUX.1-dev"
PROBE = """
import sys
from fluxwatchd.engine import hub
from fluxwatchd.errors import ConfigError
try:
    print(hub.fetch(sys.argv[1]))
except ConfigError as error:
    print(f"{error}\\n{error.hint}")
    sys.exit(78)
"""


class Hub(ThreadingHTTPServer):
    """Answers every request with ``status`` and ``code``, or serves the files of ``folder``."""

    status, code, folder = 200, "", None

    @property
    def environment(self):
        return {"HF_ENDPOINT": f"http://127.0.0.1:{self.server_address[1]}"}


class Answers(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        hub = self.server
        body, headers = b"{}", {}
        if hub.status != 200:
            headers["X-Error-Code"] = hub.code
        elif self.path.startswith("/api/"):
            body = self.listing()
        else:
            file = hub.folder / self.path.partition("/resolve/")[2].partition("/")[2]
            body = file.read_bytes()
            headers |= {"ETag": hashlib.sha256(body).hexdigest(), "X-Repo-Commit": "1" * 40}
        self.send_response(hub.status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def listing(self):
        files = [p for p in sorted(self.server.folder.rglob("*")) if p.is_file()]
        names = [str(p.relative_to(self.server.folder)) for p in files]
        if "/tree/" in self.path:
            entries = zip(names, files, strict=True)
            return json.dumps([
                {"type": "file", "path": n, "size": p.stat().st_size, "oid": "0" * 40}
                for n, p in entries
            ]).encode()  # fmt: skip
        siblings = [{"rfilename": name} for name in names]
        return json.dumps({"id": NAME, "sha": "1" * 40, "siblings": siblings}).encode()


@pytest.fixture
def server():
    with Hub(("127.0.0.1", 0), Answers) as hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()


def fetch(home, name=NAME, **environment):
    """Exit code and words of a process that fetches from the hub."""
    done = subprocess.run(  # noqa: PLW1510 (its code is what is asked for)
        [sys.executable, "-c", PROBE, name], capture_output=True, text=True, timeout=120,
        env={**os.environ, "HF_HOME": str(home), "HF_TOKEN": "", **environment},
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("status", "code"), [(401, "GatedRepo"), (403, "GatedRepo"), (403, ""), (403, "Forbidden")]
)
def test_a_gated_repository_names_the_licence_and_the_token(server, tmp_path, status, code):
    server.status, server.code = status, code
    exit_code, said = fetch(tmp_path, **server.environment)
    assert exit_code == 78
    assert f"{NAME!r} is gated" in said
    assert f"https://huggingface.co/{NAME}" in said and "HF_TOKEN" in said


@pytest.mark.parametrize(("status", "code"), [(404, "RepoNotFound"), (401, "RepoNotFound")])
def test_a_repository_that_is_missing_or_private_says_so(server, tmp_path, status, code):
    server.status, server.code = status, code
    exit_code, said = fetch(tmp_path, "nobody/nothing", **server.environment)
    assert exit_code == 78
    assert "neither a path here nor a public repository" in said and "HF_TOKEN" in said


@pytest.mark.parametrize("why", ["offline", "no network"])
def test_what_is_not_in_the_cache_and_out_of_reach_says_how_to_get_it(tmp_path, why):
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    if why == "offline":
        environment["HF_HUB_OFFLINE"] = "1"
    exit_code, said = fetch(tmp_path, **environment)
    assert exit_code == 78
    assert "not in the cache and cannot be fetched" in said
    assert f"hf download {NAME}" in said


def test_a_full_disk_is_named_with_the_place(monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(ConfigError, match="disk of the hub's cache") as raised:
        hub.fetch(NAME)
    assert "HF_HOME" in raised.value.hint


def test_a_repository_is_fetched_without_pickles_and_then_found_offline(server, tmp_path):
    server.folder = tiny.diffusers_folder(tmp_path / "repo")
    (server.folder / "transformer" / "pytorch_model.bin").write_bytes(b"never fetched")
    (server.folder / "flux1-dev.safetensors").write_bytes(b"too large to fetch for nothing")
    exit_code, said = fetch(tmp_path / "cache", **server.environment)
    assert exit_code == 0, said
    _, again = fetch(tmp_path / "cache", HF_HUB_OFFLINE="1")
    assert again == said
    assert sum(1 for _ in (tmp_path / "cache").rglob("config.json")) >= 4
    found = {
        p.name for p in (tmp_path / "cache").rglob("*") if p.suffix in {".bin", ".safetensors"}
    }
    assert found == {"diffusion_pytorch_model.safetensors", "model.safetensors"}
