"""File names and other people's words as text that any terminal and any log takes."""

from __future__ import annotations

import os
import shlex


def printable(text: object) -> str:
    """``text`` with escapes, as Python writes them, for all that is no printable character.

    A name may hold bytes that are not UTF-8, line breaks that would forge a line of a table or
    log, and sequences that a terminal obeys.
    """
    words = str(text)
    if words.isprintable():
        return words
    raw = words.encode("utf-8", "surrogateescape" if _is_of_file(words) else "backslashreplace")
    words = raw.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)


def quoted(word: object) -> str:
    """A word of a command to copy: quoted for the shell, and printable.

    What is not is written as ``$'...'``, which bash, zsh and ksh read byte for byte.
    """
    words = str(word)
    if words.isprintable():
        return shlex.quote(words)
    return "$'" + "".join(map(_shell_escape, os.fsencode(words))) + "'"


def _is_of_file(words: str) -> bool:
    """Whether its surrogates are those that Python makes of a file name's bytes."""
    return not any("\ud800" <= c < "\udc80" or "\udcff" < c <= "\udfff" for c in words)


def _shell_escape(byte: int) -> str:
    character = chr(byte)
    return character if 0x20 <= byte < 0x7F and character not in "'\\" else f"\\x{byte:02x}"
