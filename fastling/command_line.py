"""The command line: every setting as an option, and errors of two lines that say which name was meant."""

import argparse
import dataclasses
import functools
import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from fastling.errors import UserError
from fastling.settings import nearest, settings_of, without_none

_PLACEHOLDERS = {str: "TEXT", bool: "true|false", int: "N", float: "X", list: "LIST"}


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises UserErrors of two lines, and whose usage line stays short."""

    def __init__(self, prog: str, description: str, usage: str | None = None):
        formatter = functools.partial(argparse.HelpFormatter, max_help_position=32, width=100)
        super().__init__(
            prog=prog, description=description, usage=usage, allow_abbrev=False, formatter_class=formatter
        )
        self.other_names: Mapping[str, str] = {}

    def add_settings(self, cls: type, other_names: Mapping[str, str]) -> None:
        """Add an option that takes text for every setting of a dataclass, in one group for each section."""
        self.other_names = other_names
        groups = {
            name: self.add_argument_group(name, inspect.getdoc(kind))
            for name, kind in get_type_hints(cls).items()
            if dataclasses.is_dataclass(kind)
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
        args = sys.argv[1:] if args is None else args
        try:
            parsed, rest = self.parse_known_args(args, namespace)
        except UserError:
            # A misspelled name first: what it leaves missing only follows from it.
            self._refuse_unknown([each for each in args if each.startswith("--")])
            raise
        self._refuse_unknown(rest[:1])
        if rest:
            is_config = "--config" in self._option_string_actions and rest[0].endswith((".yaml", ".yml"))
            fix = f"Write --config {rest[0]}." if is_config else "--help shows every option."
            raise UserError(self.prog, f"unexpected: {rest[0]}", fix)
        return parsed

    def _refuse_unknown(self, options: Sequence[str]) -> None:
        names = [each.partition("=")[0] for each in options if each.startswith("-")]
        unknown = [name.lstrip("-") for name in names if name not in self._option_string_actions]
        if unknown:
            valid = [option[2:] for option in self._option_string_actions if option.startswith("--")]
            fix = nearest(unknown[0], valid, self.other_names)
            raise UserError("command line", f"unknown setting: {unknown[0]}", fix)

    def error(self, message: str) -> NoReturn:
        raise UserError(self.prog, message, "--help shows every option.")


def _placeholder(kind: Any) -> str:
    kind = without_none(kind)
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    return _PLACEHOLDERS[get_origin(kind) or kind]


def option_of(name: str) -> str:
    """The option that argparse stores under this name: top_p -> --top-p."""
    return f"--{name.replace('_', '-')}"


def given_options(options: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Name -> value, of those among the named options that were given."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def refuse_options(options: argparse.Namespace, names: Iterable[str], what: str, fix: str = "") -> None:
    """Raise UserError for the first of the named options that was given."""
    for name in given_options(options, names):
        raise UserError(option_of(name), what, fix)


def check_positive(options: argparse.Namespace, names: Iterable[str]) -> None:
    """Raise UserError for the first of the named options that is given and not a finite number above 0."""
    for name, number in given_options(options, names).items():
        if not 0 < number < float("inf"):
            raise UserError(option_of(name), f"must be > 0: {number:g}")


def build_from_options(kind: type, section: str, given: Mapping[str, Any]) -> Any:
    """Return kind(**given). A UserError of `section`.top_p is raised as one of the option --top-p."""
    try:
        return kind(**given)
    except UserError as error:
        raise UserError(option_of(error.where.removeprefix(f"{section}.")), error.what, error.fix) from None
