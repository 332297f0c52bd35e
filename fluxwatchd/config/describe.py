"""What a key allows and defaults to, in words, read from the schema."""

from __future__ import annotations

import types
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fluxwatchd.config.schema import Unset

_NAMES = {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path"}


def allowed(table: type[BaseModel], key: str) -> str:
    """What ``key`` of ``table`` may hold, as in ``integer, 1 to 100 or "auto"``."""
    field = table.model_fields[key]
    if isinstance(field.json_schema_extra, dict):
        return str(field.json_schema_extra["allowed"])
    return " or ".join(_choices(field.annotation, field.metadata))


def default(field: FieldInfo) -> Any:
    """The default as TOML would write it: None becomes the word that stands for it."""
    value = field.get_default(call_default_factory=True)
    word = unset_word(field)
    return word if value is None and word is not None else value


def unset_word(field: FieldInfo) -> str | None:
    """The word that TOML writes for None in this field; None where there is none."""
    return next((mark.word for mark in field.metadata if isinstance(mark, Unset)), None)


def toml_kind(value: Any) -> str:
    """What a value is, in TOML's words."""
    kinds: tuple[tuple[type, str], ...] = (
        (bool, "a truth value"),
        (int, "an integer"),
        (float, "a number"),
        (str, "text"),
        (list, "a list"),
        (tuple, "a list"),
        (dict, "a table"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), "a date or time")


def _choices(annotation: Any, metadata: Iterable[Any]) -> list[str]:
    """The alternatives of an annotation, each in words."""
    words = [f'"{mark.word}"' for mark in metadata if isinstance(mark, Unset)]
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *marks = get_args(annotation)
        found = _choices(inner, [m for mark in marks for m in getattr(mark, "metadata", [mark])])
    elif origin in (Union, types.UnionType):
        found = [word for part in get_args(annotation) for word in _choices(part, metadata)]
        words = words[:1]
        found = [word for word in found if word not in words]
    elif origin is Literal:
        found = [", ".join(f'"{choice}"' for choice in get_args(annotation))]
    elif origin is tuple:
        found = [_list_of(get_args(annotation)[0])]
    elif annotation is type(None):
        found = []
    else:
        found = [", ".join(filter(None, (_NAMES[annotation], _range(metadata))))]
    return list(dict.fromkeys(found + words))


def _list_of(item: Any) -> str:
    if isinstance(item, type) and issubclass(item, BaseModel):
        return f"list of {{{', '.join(item.model_fields)}}}"
    return f"list of {_NAMES[item]}"


def _range(metadata: Iterable[Any]) -> str:
    """Bounds in words; "1 to 100", "above 0, to 1000", "1 or more"."""
    bounds = {
        name: getattr(mark, name)
        for mark in metadata
        for name in ("ge", "gt", "le", "lt")
        if hasattr(mark, name)
    }
    if "lt" in bounds:
        bounds["le"] = bounds["lt"] - 1
    low = f"above {bounds['gt']}," if "gt" in bounds else str(bounds.get("ge", ""))
    if "le" in bounds and low:
        return f"{low} to {bounds['le']}"
    return f"{low} or more" if low else ""
