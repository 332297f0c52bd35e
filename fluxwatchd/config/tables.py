"""One TOML table -> one checked model, with every problem in it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from fluxwatchd.config import paths
from fluxwatchd.config.describe import allowed, toml_kind, unset_word
from fluxwatchd.config.document import Document
from fluxwatchd.config.lines import KeyPath
from fluxwatchd.config.schema import Lora, WeightsMark
from fluxwatchd.errors import Problem

Table = TypeVar("Table", bound=BaseModel)

_BOUND_ERRORS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")


@dataclass(slots=True)
class TableReader:
    """Checks the tables of one document and gathers what is wrong with them."""

    document: Document
    problems: list[Problem] = field(default_factory=list)

    def add(self, path: KeyPath, message: str, allowed: str = "") -> None:
        """Note a problem at ``path``."""
        self.problems.append(self.document.problem(path, message, allowed))

    def subtable(self, path: KeyPath, value: Any) -> Mapping[str, Any]:
        """``value`` as a table; something else is a problem and counts as an empty one."""
        if isinstance(value, Mapping):
            return value
        self.add(path, f"is {toml_kind(value)}", "a table")
        return {}

    def read(self, model: type[Table], path: KeyPath, raw: Mapping[str, Any]) -> Table | None:
        """Check a table; None where a key that must be there is missing or wrong."""
        values = self.values(model, path, raw)
        try:
            return model.model_validate(values)
        except ValidationError:
            return None  # its problems are noted already

    def values(
        self, model: type[BaseModel], path: KeyPath, raw: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The good values of a table, ready for ``model``; a problem is noted for each bad one.

        Each key is judged even if another is bad, and the keys together once each is good.
        """
        for key, field_info in model.model_fields.items():
            if field_info.is_required() and key not in raw:
                self.add((*path, key), "is missing", allowed(model, key))
        values = self._prepared(model, path, raw)
        while bad := self._bad_keys(model, path, values):
            values = {key: value for key, value in values.items() if key not in bad}
        return values

    def unknown(self, path: KeyPath, known: Iterable[str]) -> None:
        """Note that the key at ``path`` is none of ``known``."""
        name, known = str(path[-1]), list(known)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f", did you mean {close[0]}?" if close else ""
        self.add(path, f"unknown key{hint}", "" if close else ", ".join(known))

    def _bad_keys(
        self, model: type[BaseModel], path: KeyPath, values: Mapping[str, Any]
    ) -> set[str]:
        try:
            model.model_validate(values)
        except ValidationError as error:
            return self._note(model, path, values, error)
        return set()

    def _prepared(
        self, model: type[BaseModel], path: KeyPath, raw: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Known keys with lists as tuples and paths made absolute."""
        values = {}
        for key, value in raw.items():
            if key not in model.model_fields:
                self.unknown((*path, key), model.model_fields)
                continue
            try:
                values[key] = self._converted(model, key, value)
            except ValueError as error:
                self.add((*path, key), str(error), allowed(model, key))
        return values

    def _converted(self, model: type[BaseModel], key: str, value: Any) -> Any:
        base = self.document.base
        if isinstance(value, str) and value != unset_word(model.model_fields[key]):
            parts = _parts(model.model_fields[key])
            if Path in parts:
                return paths.absolute(value, base)
            if WeightsMark() in parts:
                return paths.weights(value, base)
        if key == "lora" and isinstance(value, list):
            return tuple(_lora(item, base) for item in value)
        return _tuples(value)

    def _note(
        self,
        model: type[BaseModel],
        path: KeyPath,
        values: Mapping[str, Any],
        failure: ValidationError,
    ) -> set[str]:
        """Note each key that ``failure`` tells of, once; the keys of ``values`` to leave out."""
        bad: set[str] = set()
        for error in failure.errors(include_url=False):
            place = tuple(error["loc"]) or (error["ctx"]["key"],)
            key = str(place[0])
            if key in values and (key not in bad or key == "lora"):
                self._note_one(model, (*path, key), values[key], error)
                bad.add(key)
        return bad

    def _note_one(
        self, model: type[BaseModel], path: KeyPath, value: Any, error: ErrorDetails
    ) -> None:
        key, *inner = error["loc"] or (path[-1],)
        if error["type"] == "conflict":
            self.add(path, error["msg"], error["ctx"]["allowed"])
        elif key == "lora" and len(inner) == 2 and error["type"] == "extra_forbidden":
            self.unknown((*path, *inner), Lora.model_fields)
        elif key == "lora" and len(inner) == 2:
            wrong = _wrong(error["type"], error["input"])
            self.add((*path, *inner), wrong, allowed(Lora, str(inner[1])))
        else:
            self.add(path, _wrong(error["type"], value), allowed(model, str(key)))


def _wrong(kind: str, value: Any) -> str:
    """What is wrong with a value, in words."""
    shown = f'"{value}"' if isinstance(value, str) else str(value)
    if kind == "missing":
        return "is missing"
    if kind in _BOUND_ERRORS and not isinstance(value, str):
        return f"{shown} is out of range"
    if isinstance(value, str | int | float | bool):
        return f"{str(shown).lower() if isinstance(value, bool) else shown} is not allowed"
    return f"is {toml_kind(value)}"


def _parts(annotation: Any) -> list[Any]:
    """The types and marks that a field, or an annotation, is made of."""
    if isinstance(annotation, FieldInfo):
        return [*_parts(annotation.annotation), *annotation.metadata]
    inner = [part for item in get_args(annotation) for part in _parts(item)]
    return inner or [annotation]


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _lora(item: Any, base: Path) -> Any:
    """A LoRA's table with its path made absolute."""
    if isinstance(item, dict) and isinstance(item.get("path"), str) and item["path"]:
        return {**item, "path": paths.weights(item["path"], base)}
    return item
