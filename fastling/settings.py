"""Typed settings from YAML files and from `--section.key value`, every mistake named where it was made.

A dataclass describes them: its fields with types and defaults, the text below each field, and nested
dataclasses as sections. Knows nothing of what the settings mean; `config.py` does.
"""

import argparse
import ast
import dataclasses
import difflib
import inspect
import math
import textwrap
import types
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml

from fastling.errors import UserError

_EXPECTED = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
_TAGS = {str: ("str",), bool: ("bool",), int: ("int",), float: ("float", "int", "str")}
_PLACEHOLDERS = {str: "TEXT", bool: "true|false", int: "N", float: "X", list: "LIST"}


class Setting(NamedTuple):
    """One setting, by its dotted name."""

    name: str
    kind: Any
    default: Any
    text: str


def settings_of(cls: type, prefix: str = "") -> list[Setting]:
    """Every setting of a dataclass and its sections, in order."""
    kinds, texts, found = get_type_hints(cls), _texts(cls), []
    for item in dataclasses.fields(cls):
        name, kind = prefix + item.name, kinds[item.name]
        if dataclasses.is_dataclass(kind):
            found += settings_of(kind, f"{name}.")
        else:
            default = item.default_factory() if callable(item.default_factory) else item.default
            found.append(Setting(name, kind, default, texts.get(item.name, "")))
    return found


def _texts(cls: type) -> dict[str, str]:
    """The text that stands below each field."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
    return {
        first.target.id: " ".join(second.value.value.split())
        for first, second in pairwise(body)
        if isinstance(first, ast.AnnAssign)
        and isinstance(second, ast.Expr)
        and isinstance(second.value, ast.Constant)
    }


def nearest(name: str, valid: Sequence[str], other_names: Mapping[str, str]) -> str:
    """How to mend a name that is not valid: the one that was most likely meant."""
    name = name.lower().replace("-", "_")
    last = name.rpartition(".")[2]
    found = [each for each in valid if each.rpartition(".")[2] == last][:3]
    if not found and last in other_names:
        found = [other_names[last]]
    found = found or difflib.get_close_matches(name, valid, n=1, cutoff=0.7)
    if not found:
        by_last = {each.rpartition(".")[2]: each for each in valid}
        found = [by_last[each] for each in difflib.get_close_matches(last, by_last, n=1, cutoff=0.6)]
    return f"Did you mean {' or '.join(found)}?" if found else "--help shows every setting."


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are UserErrors of two lines, and whose help is short to begin with."""

    def __init__(self, prog: str, description: str, usage: str | None = None):
        def formatter(prog: str) -> argparse.HelpFormatter:
            return argparse.HelpFormatter(prog, max_help_position=32, width=100)

        super().__init__(
            prog=prog, description=description, usage=usage, allow_abbrev=False, formatter_class=formatter
        )
        self.other_names: Mapping[str, str] = {}

    def add_settings(self, cls: type, other_names: Mapping[str, str] | None = None) -> None:
        """Every setting of a dataclass as an option that takes text; one group a section."""
        self.other_names = other_names or {}
        sections = {
            name: kind for name, kind in get_type_hints(cls).items() if dataclasses.is_dataclass(kind)
        }
        groups = {
            name: self.add_argument_group(name, inspect.getdoc(kind)) for name, kind in sections.items()
        }
        for setting in settings_of(cls):
            group = groups.get(setting.name.partition(".")[0], self)
            shown = str(setting.default).lower() if isinstance(setting.default, bool) else setting.default
            default = f" (default: {shown})" if shown not in (None, []) else ""
            group.add_argument(
                f"--{setting.name}",
                dest=setting.name,
                metavar=_placeholder(setting.kind),
                default=argparse.SUPPRESS,
                help=(setting.text + default).replace("%", "%%"),
            )

    def parse_args(self, args: Sequence[str] | None = None, namespace=None) -> argparse.Namespace:
        parsed, rest = self.parse_known_args(args, namespace)
        if rest and rest[0].startswith("-"):
            name = rest[0].lstrip("-").partition("=")[0]
            valid = [option[2:] for option in self._option_string_actions if option.startswith("--")]
            raise UserError(
                "command line", f"unknown setting: {name}", nearest(name, valid, self.other_names)
            )
        if rest:
            self.error(f"unexpected: {rest[0]}")
        return parsed

    def error(self, message: str) -> NoReturn:
        raise UserError(self.prog, message, "--help shows every option.")


def _placeholder(kind: Any) -> str:
    kind, _ = _without_none(kind)
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    return _PLACEHOLDERS[get_origin(kind) or kind]


def read_file(cls: type, path: Path, other_names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The settings in a YAML file, by dotted name.

    Raises UserError with file and line for unknown names, wrong types, and names given twice.
    """
    try:
        root = yaml.compose(path.read_bytes().decode("utf-8-sig"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise UserError(str(path), f"cannot be read: {error.strerror}", "Give a YAML file.") from None
    except UnicodeDecodeError as error:
        raise UserError(str(path), f"is not UTF-8: byte {error.start}", "Save it as UTF-8.") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        what = f"is not valid YAML: {problem or str(error).splitlines()[0]}"
        raise UserError(where, what, "See configs/ for examples.") from None
    if not isinstance(root, yaml.MappingNode):
        raise UserError(str(path), "holds no settings", "See configs/ for examples.")
    return _Reader(cls, path, other_names or {}).section(cls, root, "")


def read_options(cls: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings among parsed options, by dotted name. Raises UserError for wrong types."""
    reader = _Reader(cls, None, {})
    return {
        setting.name: reader.value(setting.kind, _node(setting.kind, options[setting.name]), setting.name)
        for setting in settings_of(cls)
        if setting.name in options
    }


def build(cls: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """The dataclass with these values, by dotted name, and defaults for the others."""
    arguments = {}
    for name, kind in get_type_hints(cls).items():
        if dataclasses.is_dataclass(kind):
            arguments[name] = build(kind, values, f"{prefix}{name}.")
        elif prefix + name in values:
            arguments[name] = values[prefix + name]
    return cls(**arguments)


def check_positive(section: str, settings: object, *names: str) -> None:
    """Raise UserError for the first of these settings that is 0 or less."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise UserError(f"{section}.{name}", f"must be > 0: {value}")


def check_share(section: str, settings: object, *names: str) -> None:
    """Raise UserError for the first of these settings that is not within 0 to 1."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"{section}.{name}", f"must lie in 0 to 1: {value}")


def without_effect(name: str, value: object, because: str) -> UserError:
    """The error of a setting that another one makes meaningless."""
    return UserError(name, f"has no effect {because}: {value}", "Remove one of the two.")


def _without_none(kind: Any) -> tuple[Any, bool]:
    """A type -> the type without None, and whether None was part of it."""
    if get_origin(kind) in (Union, types.UnionType):
        return next(each for each in get_args(kind) if each is not types.NoneType), True
    return kind, False


def _node(kind: Any, text: str) -> yaml.Node:
    """What was typed on the command line, as YAML has it; text is taken as it is."""
    kind, optional = _without_none(kind)
    as_it_is = yaml.ScalarNode("tag:yaml.org,2002:str", text)
    if kind is str and not (optional and text == "null"):
        return as_it_is
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader) or as_it_is
    except yaml.YAMLError:
        return as_it_is


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Nodes of YAML -> values of the types that settings have. Builds nothing else, whatever a tag says."""

    cls: type
    """All settings."""
    path: Path | None
    """None for the command line."""
    other_names: Mapping[str, str]

    def section(self, cls: type, node: yaml.Node, prefix: str) -> dict[str, Any]:
        """The settings of one section and of those within, by dotted name."""
        if _tag(node) == "null":  # all of its settings are commented out
            return {}
        if not isinstance(node, yaml.MappingNode):
            self._refuse(node, prefix[:-1], "expected settings, such as {name: value}", _shown(node))
        kinds, values, seen = get_type_hints(cls), {}, set()
        for key, value in node.value:
            name = prefix + _shown(key)
            kind = kinds.get(_shown(key))
            if kind is None:
                self._unknown(key, name, cls, prefix)
            if name in seen:
                self._refuse(key, name, "is given twice")
            seen.add(name)
            if dataclasses.is_dataclass(kind):
                values |= self.section(kind, value, f"{name}.")
            else:
                values[name] = self.value(kind, value, name)
        return values

    def value(self, kind: Any, node: yaml.Node, name: str) -> Any:
        """The value of one setting."""
        kind, optional = _without_none(kind)
        if optional and _tag(node) == "null":
            return None
        if get_origin(kind) is list:
            if not isinstance(node, yaml.SequenceNode):
                self._refuse(node, name, "expected a list", _shown(node))
            (inner,) = get_args(kind)
            return [self.value(inner, item, f"{name}[{number}]") for number, item in enumerate(node.value)]
        if dataclasses.is_dataclass(kind):
            return self._item(kind, node, name)
        if get_origin(kind) is Literal:
            return self._choice(get_args(kind), node, name)
        return self._scalar(kind, node, name)

    def _item(self, cls: type, node: yaml.Node, name: str) -> Any:
        """One item of a list of dataclasses."""
        if not isinstance(node, yaml.MappingNode):
            names = ", ".join(item.name for item in dataclasses.fields(cls))
            self._refuse(node, name, f"expected {{{names}}}", _shown(node))
        values = self.section(cls, node, f"{name}.")
        needed = [item.name for item in dataclasses.fields(cls) if item.default is dataclasses.MISSING]
        missing = [each for each in needed if f"{name}.{each}" not in values]
        if missing:
            self._refuse(node, name, f"lacks {' and '.join(missing)}")
        return build(cls, values, f"{name}.")

    def _choice(self, choices: Sequence[str], node: yaml.Node, name: str) -> str:
        if isinstance(node, yaml.ScalarNode) and node.value in choices:
            return node.value
        near = difflib.get_close_matches(_shown(node), choices, n=1)
        fix = f"Did you mean {near[0]}?" if near else ""
        self._refuse(node, name, f"must be one of {', '.join(choices)}", _shown(node), fix)

    def _scalar(self, kind: type, node: yaml.Node, name: str) -> Any:
        if isinstance(node, yaml.ScalarNode) and _tag(node) in _TAGS[kind]:
            try:  # float() also reads 1e-4, which YAML 1.1 takes for text
                plain = node.value if kind is str else yaml.SafeLoader("").construct_object(node)
                value = kind(plain)
                if kind is not float or math.isfinite(value):
                    return value
            except (ValueError, OverflowError):
                pass
        fix = "Put it in quotes." if kind is str and isinstance(node, yaml.ScalarNode) else ""
        self._refuse(node, name, f"expected {_EXPECTED[kind]}", _shown(node), fix)

    def _unknown(self, key: yaml.Node, name: str, cls: type, prefix: str) -> NoReturn:
        valid = [each.name for each in settings_of(self.cls)]
        valid += [prefix + item.name for item in dataclasses.fields(cls)]  # a section, or an item of a list
        if name in valid:
            section, _, last = name.rpartition(".")
            fix = f"Write it inside its section: {section}: {{{last}: ...}}."
        else:
            fix = nearest(name, valid, self.other_names)
        raise UserError(self._where(key, ""), f"unknown setting: {name}", fix)

    def _refuse(self, node: yaml.Node, name: str, what: str, value: str = "", fix: str = "") -> NoReturn:
        raise UserError(self._where(node, name), f"{what}: {value}" if value else what, fix)

    def _where(self, node: yaml.Node, name: str) -> str:
        if self.path is None:
            return f"--{name}" if name else "command line"
        line = f"{self.path}:{node.start_mark.line + 1}"
        return f"{line}: {name}" if name else line


def _tag(node: yaml.Node) -> str:
    return node.tag.rpartition(":")[2]


def _shown(node: yaml.Node) -> str:
    """A node as an error message shows it."""
    if isinstance(node, yaml.ScalarNode):
        return "nothing" if _tag(node) == "null" else node.value[:80]
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
