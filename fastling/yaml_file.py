"""YAML that people write: read with the line number of each value; mistakes become UserErrors."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from fastling.errors import UserError, first_line

Location = tuple[str | int, ...]
"""Where something lies: ("data", "sources", 0, "path")."""
MOST_VALUES = 200_000
"""Most values in one file: a few lines of aliases can stand for billions."""
_TEXT = "tag:yaml.org,2002:str"


class _Loader(yaml.SafeLoader):
    """Reads 1e-4 as a number, as YAML 1.2 does and PyYAML does not. Names of settings are always text."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict:
        if isinstance(node, yaml.MappingNode):
            self.flatten_mapping(node)
            for name, _ in node.value:
                if isinstance(name, yaml.ScalarNode):
                    name.tag = _TEXT
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError):  # of a date, or of a tag
            what = f"found {node.value!s:.40}, which is not a valid {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from None

    def construct_text(self, node: yaml.Node) -> str:
        text = self.construct_scalar(node)
        try:
            text.encode()
        except UnicodeEncodeError:
            what = "found half of a surrogate pair"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from None
        return text

    def construct_number(self, node: yaml.Node) -> int | float:
        is_whole = node.tag.endswith(":int")
        if ":" in node.value or (is_whole and re.match(r"[-+]?0[0-9_]", node.value)):
            what = (
                f"found {node.value}, which old YAML reads in base 8 or 60: write it in decimal, or quote it"
            )
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
        return self.construct_yaml_int(node) if is_whole else self.construct_yaml_float(node)


class _Dumper(yaml.SafeDumper):
    """Quotes text that _Loader would read as a number."""


_Loader.add_constructor(_TEXT, _Loader.construct_text)
for each in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{each}", _Loader.construct_number)
for each in ("binary", "omap", "pairs", "set"):  # no setting is one; shown as text, they would pass for text
    _Loader.add_constructor(f"tag:yaml.org,2002:{each}", _Loader.construct_undefined)
for each in (_Loader, _Dumper):
    exponent = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    each.add_implicit_resolver("tag:yaml.org,2002:float", exponent, list("-+.0123456789"))


def as_yaml(tree: Mapping[str, Any]) -> str:
    """Settings as a file that reads back equal."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def parse(text: str) -> Any:
    """A value as it is typed on a command line.

    Raises PyYAML's own errors, ValueError or OverflowError for a character that does not exist, and UserError
    for a name that is given twice or a value that contains itself.
    """
    loader = _Loader(text)
    node = loader.get_single_node()
    for _ in _lines(node, Path("command line")):
        pass
    return None if node is None else loader.construct_document(node)


def read(path: Path, fix: str) -> tuple[Any, dict[Location, int]]:
    """A file's content (None if it is empty), and the line number of every value in it.

    Raises UserError with file, line and `fix` for what is not valid YAML, for a name that is given twice, for
    a value that contains itself, and for aliases that stand for too many values.
    """
    try:
        loader = _Loader(path.read_bytes().decode("utf-8-sig"))
        node = loader.get_single_node()
        lines: dict[Location, int] = {}
        for number, (location, line) in enumerate(_lines(node, path)):
            if number == MOST_VALUES:
                what = f"its aliases expand to more than {MOST_VALUES:,} values"
                raise UserError(str(path), what, "Write it out, without an alias.")
            lines[location] = line
        return None if node is None else loader.construct_document(node), lines
    except OSError as error:
        raise UserError(str(path), f"cannot be read: {error.strerror}", "Give a YAML file.") from None
    except UnicodeDecodeError as error:
        raise UserError(str(path), f"is not UTF-8: byte {error.start}", "Save it as UTF-8.") from None
    except RecursionError:
        raise UserError(str(path), "is not valid YAML: nested too deep", fix) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the latter two of "\U00110000"
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(where, f"is not valid YAML: {problem or first_line(error)}", fix) from None


def _lines(
    node: yaml.Node | None, path: Path, location: Location = (), above: tuple[yaml.Node, ...] = ()
) -> Iterator[tuple[Location, int]]:
    """(location, line) of every value in a node. Raises UserError for names given twice and for loops."""
    if node in above:
        where = f"{path}:{node.start_mark.line + 1}: {dotted(location)}"
        raise UserError(where, "contains itself", "Write it out, without an alias.")
    items = node.value if isinstance(node, yaml.CollectionNode) else ()
    seen = set()
    for number, item in enumerate(items):
        key, value = item if isinstance(node, yaml.MappingNode) else (None, item)
        here = (*location, key.value if isinstance(key, yaml.ScalarNode) else number)
        line = (key or value).start_mark.line + 1
        if here in seen:
            raise UserError(f"{path}:{line}: {dotted(here)}", "is given twice", "Remove one of the two.")
        seen.add(here)
        yield here, line
        yield from _lines(value, path, here, (*above, node))


def dotted(location: Location) -> str:
    """("data", "sources", 0, "path") -> data.sources[0].path"""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return "".join(parts).removeprefix(".")
