"""Other people's words on a terminal: nothing of them is obeyed, and what is copied works."""

from __future__ import annotations

import os
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from fluxwatchd.printing import printable, quoted

NAMES = some.binary(min_size=1, max_size=40).filter(lambda raw: b"\0" not in raw).map(os.fsdecode)


@given(some.text() | NAMES)
def test_printable_is_printable_and_leaves_what_is(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    assert text != shown or text.isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünïcödé 図.png", "plain ünïcödé 図.png"),
        ("\x1b[31m", "\\x1b[31m"),
        ("two\nlines", "two\\nlines"),
        (os.fsdecode(b"caf\xe9"), "caf\\xe9"),
        ("\u202egnp", "\\u202egnp"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(some.lists(NAMES, min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_a_quoted_word_is_that_word_to_the_shell(names: list[str]) -> None:
    words = " ".join(map(quoted, names))
    assert words.isprintable()
    said = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {words}"], capture_output=True, check=True
    )
    assert said.stdout.split(b"\0")[:-1] == [os.fsencode(name) for name in names]
