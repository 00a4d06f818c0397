"""Typed settings from YAML files and options; errors name the place of each mistake.

A dataclass describes them: its fields with types and defaults, the text below each field, and nested
dataclasses as sections. `yaml_file` reads the files, `command_line` the options, pydantic checks the types;
this file joins them, and says in two lines what is wrong. It knows nothing of what the settings mean;
`config` does.
"""

import contextlib
import dataclasses
import difflib
import functools
import json
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import pydantic
import yaml

from fastling import yaml_file
from fastling.errors import UserError
from fastling.yaml_file import Location, dotted

STRICT = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
"""How pydantic checks every dataclass of settings."""
_EXPECTED = {
    "float": "expected a number",
    "finite": "expected a number",
    "int": "expected a whole number",
    "bool": "expected true or false",
    "string": "expected text",
    "list": "expected a list",
}
_BOUNDS = {"greater_than": ">", "greater_than_equal": ">=", "less_than": "<", "less_than_equal": "<="}


class Setting(NamedTuple):
    """One setting, by its dotted name."""

    name: str
    kind: Any
    default: Any
    text: str


@functools.cache
def settings_of(cls: type, prefix: str = "") -> tuple[Setting, ...]:
    """Every setting of a dataclass and its sections, in order."""
    texts = {
        name: field.get("description", "")
        for name, field in pydantic.TypeAdapter(cls).json_schema()["properties"].items()
    }
    kinds, found = get_type_hints(cls), []
    for item in dataclasses.fields(cls):
        name, kind = prefix + item.name, kinds[item.name]
        if dataclasses.is_dataclass(kind):
            found += settings_of(kind, f"{name}.")
        else:
            default = item.default_factory() if callable(item.default_factory) else item.default
            found.append(Setting(name, kind, default, " ".join(texts[item.name].split())))
    return tuple(found)


def nearest(name: str, valid: Sequence[str], other_names: Mapping[str, str]) -> str:
    """The fix for an unknown name: a sentence that suggests the valid name most likely meant."""
    name, valid = name.lower().replace("-", "_"), list(dict.fromkeys(valid))
    last = name.rpartition(".")[2]
    found = [each for each in valid if each.rpartition(".")[2] == last][:3]
    if not found and last in other_names:
        found = [other_names[last]]
    found = found or difflib.get_close_matches(name, valid, n=1, cutoff=0.7)
    if not found:
        by_last = {each.rpartition(".")[2]: each for each in valid}
        found = [by_last[each] for each in difflib.get_close_matches(last, by_last, n=1, cutoff=0.7)]
    return f"Did you mean {' or '.join(found)}?" if found else "--help shows every setting."


def without_none(kind: Any) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        return next(each for each in get_args(kind) if each is not types.NoneType)
    return kind


class Settings:
    """The settings that were given, and where: in which line of a file, or on the command line."""

    def __init__(self, cls: type, other_names: Mapping[str, str]):
        self.cls, self.other_names = cls, other_names
        self.adapter = pydantic.TypeAdapter(cls)
        self.tree: dict[str, Any] = {}
        self.places: dict[Location, str] = {}
        """file:line of the settings that came from a file."""

    def read_file(self, path: Path) -> None:
        """Add a YAML file's settings. Raises UserError, with file and line, when it is not valid YAML."""
        fix = "See configs/ for examples."
        document, lines = yaml_file.read(path, fix)
        if not isinstance(document, dict):
            raise UserError(str(path), "holds no settings", fix)
        self.places |= {location: f"{path}:{line}" for location, line in lines.items()}
        kinds = get_type_hints(self.cls)
        # A section whose settings are all commented out is None, and changes nothing.
        empty = [
            n for n, value in document.items() if value is None and dataclasses.is_dataclass(kinds.get(n))
        ]
        _merge(self.tree, {name: value for name, value in document.items() if name not in empty})

    def read_options(self, options: Mapping[str, Any]) -> None:
        """Add the settings among parsed options; what is not text by its type is read as YAML."""
        for setting in settings_of(self.cls):
            if setting.name in options:
                location = tuple(setting.name.split("."))
                value = _typed(setting.name, setting.kind, options[setting.name])
                for name in reversed(location):
                    value = {name: value}
                _merge(self.tree, value)
                self.places = {
                    place: line for place, line in self.places.items() if place[: len(location)] != location
                }

    def forget(self, name: str) -> None:
        """Take back a setting, by its dotted name, if it was given."""
        *sections, last = name.split(".")
        tree = self.tree
        for section in sections:
            tree = tree.get(section) if isinstance(tree, dict) else None
        if isinstance(tree, dict):
            tree.pop(last, None)

    def build(self) -> Any:
        """The dataclass with these settings, and defaults for the others.

        Raises UserError for the first unknown name, wrong type or missing value.
        """
        try:
            # As JSON, since only there may mappings be dataclasses although true and "1" are no numbers.
            return self.adapter.validate_json(json.dumps(self.tree, default=str), strict=True)
        except pydantic.ValidationError as problems:
            # A misspelled name first: what it leaves missing only follows from it.
            error = min(problems.errors(), key=lambda error: "unexpected" not in error["type"])
        if error["type"] == "json_invalid":
            raise UserError("settings", "are nested too deep", "See configs/ for examples.")
        raise self._refusal(error["type"], error["loc"], error["input"], error.get("ctx", {}))

    def _refusal(self, kind: str, location: Location, value: Any, context: Mapping[str, Any]) -> UserError:
        name = dotted(location)
        place = self.places.get(location)
        if kind == "unexpected_keyword_argument":
            return UserError(place or "command line", f"unknown setting: {name}", self._near(location))
        if kind == "missing":
            return UserError(self._where(location[:-1]), f"lacks {location[-1]}")
        fix = ""
        if kind == "literal_error":
            choices = get_args(without_none(self._kind(location)))
            what = f"must be one of {', '.join(choices)}"
            near = difflib.get_close_matches(str(value), choices, n=1)
            fix = f"Did you mean {near[0]}?" if near else ""
        elif kind == "dataclass_type":
            names = [item.name for item in dataclasses.fields(self._kind(location))]
            what = "expected {" + ", ".join(names[:4]) + (", ...}" if len(names) > 4 else "}")
        elif kind in _BOUNDS:
            what = f"must be {_BOUNDS[kind]} {next(iter(context.values())):g}"
        else:
            what = _EXPECTED.get(kind.partition("_")[0], "is not valid")
            if kind == "string_type" and isinstance(value, (int, float)):
                fix = "Put it in quotes."
            elif kind == "list_type":
                names = [item.name for item in dataclasses.fields(get_args(self._kind(location))[0])]
                fix = f"Give a list of {{{', '.join(names)}}}."
            elif isinstance(value, str) and self._would_be_valid(location, value):
                fix = "Remove the quotes."
        return UserError(self._where(location), f"{what}: {_shown(value)}", fix)

    def _would_be_valid(self, location: Location, text: str) -> bool:
        """Whether this text, in quotes in a file, would be a valid value there without them."""
        kind = self._kind(location)
        with contextlib.suppress(UserError, pydantic.ValidationError):
            value = _typed(dotted(location), kind, text)
            pydantic.TypeAdapter(kind).validate_python(value, strict=True)
            return True
        return False

    def _where(self, location: Location) -> str:
        place, name = self.places.get(location), dotted(location)
        return f"{place}: {name}" if place else f"--{name}"

    def _kind(self, location: Location) -> Any:
        """The type of what lies there."""
        kind = self.cls
        for part in location:
            kind = get_args(kind)[0] if isinstance(part, int) else get_type_hints(kind)[part]
        return kind

    def _near(self, location: Location) -> str:
        name = dotted(location)
        valid = [setting.name for setting in settings_of(self.cls)]
        if name in valid:  # a key with a dot in it
            section, _, last = name.rpartition(".")
            return f"Write it inside its section: {section}: {{{last}: ...}}."
        inside = dotted(location[:-1])
        siblings = dataclasses.fields(self._kind(location[:-1]))
        valid += [f"{inside}.{item.name}".lstrip(".") for item in siblings]  # sections, keys of a source
        return nearest(name, valid, self.other_names)


def _merge(tree: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Put settings over others, in place."""
    for name, value in more.items():
        if isinstance(value, dict) and isinstance(tree.get(name), dict):
            _merge(tree[name], value)
        else:
            tree[name] = value


def _typed(name: str, kind: Any, text: str) -> Any:
    """A value from the command line: read as YAML, but left as it is where the setting is text.

    Raises UserError for bytes that are not UTF-8, which no config could keep.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"--{name}", f"is not UTF-8 at character {error.start}: {text}") from None
    if without_none(kind) is str and (kind is str or text != "null"):
        return text
    try:
        return yaml_file.parse(text)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
        return text


def _shown(value: Any) -> str:
    """A value as an error message shows it."""
    names = {dict: "a mapping", list: "a list", types.NoneType: "nothing"}
    return names.get(type(value)) or str(value)[:80]


def without_effect(name: str, value: object, because: str, fix: str = "Remove one of the two.") -> UserError:
    """The error of a setting that another one makes meaningless."""
    return UserError(name, f"has no effect {because}: {value}", fix)
