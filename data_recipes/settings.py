"""Settings from YAML into frozen dataclasses, with every problem reported in one message.

An option is one dataclass field. A YAML file and "a.b=value" changes fill it; nothing else declares it.
Understood: nested dataclasses, list[X], tuple[X, ...], tuple[X, Y], dict[str, X], Literal, X | None, int,
float, bool, str, Path and Any. A dataclass may define `problems() -> list[str]`, each "key: reason", for
ranges and impossible pairs, or raise UserError when it is made.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml

from data_recipes.artefact import UserError

T = TypeVar("T")
BAD = object()  # stands for a value whose problem is already noted


@dataclasses.dataclass(frozen=True)
class Typed:
    """A value typed on the command line: a text option takes it as it stands, any other reads it as YAML."""

    text: str


def load_settings(cls: type[T], path: str | Path | None, overrides: Sequence[str] = ()) -> T:
    """Build a `cls` from a YAML file (None: none) and "a.b=value" changes, which win over the file.

    Raises: UserError that lists every problem: file, key, value, reason and the nearest valid key.
    """
    reader = _Reader(str(path) if path is not None else "settings")
    tree = reader.read_file(Path(path)) if path is not None else {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: the file must hold `key: value` lines, but it holds {_shown(tree)}")
    for override in overrides:
        reader.apply(tree, override)
    settings = reader.convert(cls, tree, "")
    if reader.problems:
        count = "1 problem" if len(reader.problems) == 1 else f"{len(reader.problems)} problems"
        raise UserError("\n  ".join([f"{count} in the settings", *reader.problems]))
    return cast(T, settings)


def settings_dict(obj: Any) -> Any:
    """Turn a settings tree into plain JSON values, for hashing and saving: paths to text, tuples to lists."""
    if dataclasses.is_dataclass(obj):
        return {item.name: settings_dict(getattr(obj, item.name)) for item in dataclasses.fields(obj)}
    if isinstance(obj, dict):
        return {key: settings_dict(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [settings_dict(value) for value in obj]
    return obj.as_posix() if isinstance(obj, Path) else obj


def out_of_range(values: dict[str, float | None], minimum: float = 1) -> list[str]:
    """One problem for each named value below `minimum`; None (not set) passes."""
    low = {name: value for name, value in values.items() if value is not None and value < minimum}
    return [f"{name}: must be at least {minimum:g}" for name in low]


class _Reader:
    """Collects the problems of one reading, and knows which keys came from the command line."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[str] = []
        self.typed_keys: set[str] = set()

    def note(self, key: str, value: Any, reason: str) -> object:
        """Note one problem; returns BAD."""
        place = "command line" if key in self.typed_keys else self.file
        shown = "" if value is BAD else f" = {_shown(value)}"
        self.problems.append(f"{place}: {key}{shown}: {reason}")
        return BAD

    def read_file(self, path: Path) -> Any:
        """Parse a YAML file into plain values, noting keys written twice.

        Raises: UserError when it cannot be read or parsed: nothing in it can be trusted then.
        """
        try:
            loader = yaml.SafeLoader(path.read_text(encoding="utf-8-sig"))
            loader.name = self.file
            node = loader.get_single_node()
            if node is None:
                return {}
            for key, lines in _written_twice(node, "", set()):
                self.note(key, BAD, f"written twice (line {lines[0]} and line {lines[1]}); keep one")
            return loader.construct_document(node)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; give the path of a YAML file") from error
        except UnicodeDecodeError as error:
            raise UserError(f"cannot read {path}: it is not UTF-8 text ({error.reason})") from error
        # Scalars that only look like a date, number or boolean raise ValueError or LookupError inside PyYAML.
        except (yaml.YAMLError, ValueError, LookupError, RecursionError) as error:
            raise UserError(f"{path} is not plain YAML: {error or type(error).__name__}") from error

    def apply(self, tree: dict[Any, Any], override: str) -> None:
        """Put one "a.b=value" change into the tree."""
        key, equals, text = override.partition("=")
        parts = key.split(".")
        if not equals or not all(parts):
            self.problems.append(f"command line: {override!r}: write changes as key=value, as train.steps=50")
            return
        for depth, part in enumerate(parts[:-1], start=1):
            section = ".".join(parts[:depth])
            if tree.get(part) is None:
                tree[part] = {}
                self.typed_keys.add(section)
            if not isinstance(tree[part], dict):
                reason = f"{section} holds one value or a list; change it as a whole, as {section}=VALUE"
                self.problems.append(f"command line: {override!r}: {reason}")
                return
            tree = tree[part]
        tree[parts[-1]] = Typed(text)
        self.typed_keys.add(key)

    def convert(self, hint: Any, value: Any, key: str) -> Any:
        """Convert a YAML value to the type of its field; BAD when a problem was noted."""
        origin = get_origin(hint)
        if origin in (Union, types.UnionType):
            return self._union(hint, value, key)
        if isinstance(value, Typed):
            plain_text = hint in (str, Path) or (origin is Literal and value.text in get_args(hint))
            value = value.text if plain_text else _parse_typed(value.text)
        if dataclasses.is_dataclass(hint):
            return self._dataclass(cast(type, hint), value, key)
        if origin in (list, tuple):
            return self._sequence(hint, value, key)
        if origin is dict:
            return self._mapping(hint, value, key)
        if origin is Literal:
            return self._literal(get_args(hint), value, key)
        return self._scalar(hint, value, key)

    def _union(self, hint: Any, value: Any, key: str) -> Any:
        empty = value is None or (isinstance(value, Typed) and _parse_typed(value.text) is None)
        if types.NoneType in get_args(hint) and empty:
            return None
        noted = len(self.problems)
        tried = []
        for member in (member for member in get_args(hint) if member is not types.NoneType):
            converted = self.convert(member, value, key)
            if len(self.problems) == noted:
                return converted
            tried.append(self.problems[noted:])
            del self.problems[noted:]
        self.problems += tried[0]  # the first member is the one the message should be about
        return BAD

    def _dataclass(self, cls: type, value: Any, key: str) -> Any:
        if value is None:  # a section whose every line is commented out
            value = {}
        if not isinstance(value, dict):
            return self.note(key, value, "must be a section of `key: value` lines")
        hints = get_type_hints(cls)
        fields = {item.name: item for item in dataclasses.fields(cls) if item.init}
        for name in [name for name in value if name not in fields]:
            self.note(_join(key, name), value[name], _unknown_key(name, list(fields), key))
        good, bad = {}, set()
        for name, item in fields.items():
            if name in value:
                converted = self.convert(hints[name], value[name], _join(key, name))
            elif _has_default(item):
                continue
            elif dataclasses.is_dataclass(hints[name]):
                converted = self.convert(hints[name], {}, _join(key, name))  # names the keys it lacks
            else:
                converted = self.note(_join(key, name), BAD, "is missing and has no default")
            good.update({} if converted is BAD else {name: converted})
            bad.update({name} if converted is BAD else set())
        return self._built(cls, good, bad, key)

    def _built(self, cls: type, good: dict[str, Any], bad: set[str], key: str) -> Any:
        """Build the dataclass and ask for its own problems; meanwhile the default stands for a bad value."""
        if any(item.name in bad and not _has_default(item) for item in dataclasses.fields(cls)):
            return BAD
        try:
            settings = cls(**good)
        except UserError as error:  # a class that holds its own values to account
            return self.note(key, BAD, str(error))
        for problem in settings.problems() if hasattr(settings, "problems") else []:
            name, _, reason = problem.partition(": ")
            if name not in bad:
                self.note(_join(key, name), getattr(settings, name, BAD), reason)
        return BAD if bad else settings

    def _sequence(self, hint: Any, value: Any, key: str) -> Any:
        kind, members = get_origin(hint), get_args(hint)
        if not isinstance(value, list):
            return self.note(key, value, "must be a list, as [a, b]")
        if kind is tuple and members[-1] is not Ellipsis:
            if len(value) != len(members):
                return self.note(key, value, f"must hold exactly {len(members)} items")
        else:
            members = (members[0],) * len(value)
        pairs = enumerate(zip(members, value, strict=True))
        items = [self.convert(member, item, f"{key}[{index}]") for index, (member, item) in pairs]
        return BAD if any(item is BAD for item in items) else kind(items)

    def _mapping(self, hint: Any, value: Any, key: str) -> Any:
        if not isinstance(value, dict):
            return self.note(key, value, "must be a section of `key: value` lines")
        key_hint, member = get_args(hint)
        keys = [self.convert(key_hint, name, _join(key, name)) for name in value]
        items = [self.convert(member, item, _join(key, name)) for name, item in value.items()]
        return BAD if any(item is BAD for item in keys + items) else dict(zip(keys, items, strict=True))

    def _literal(self, options: tuple[Any, ...], value: Any, key: str) -> Any:
        if any(value == option and type(value) is type(option) for option in options):
            return value
        if isinstance(value, bool) and all(isinstance(option, str) for option in options):
            return self.note(key, value, _not_text(value))
        nearest = difflib.get_close_matches(str(value), [str(option) for option in options], n=1)
        hint = f"; nearest: {nearest[0]}" if nearest else ""
        return self.note(key, value, f"must be one of {', '.join(map(str, options))}{hint}")

    def _scalar(self, hint: Any, value: Any, key: str) -> Any:
        if hint is Any:
            return value
        if hint is bool:
            return value if isinstance(value, bool) else self.note(key, value, "must be true or false")
        if hint is int:
            whole = isinstance(value, int) and not isinstance(value, bool)
            return value if whole else self.note(key, value, "must be a whole number")
        if hint is float:
            number = _finite(value)
            return self.note(key, value, "must be a finite number, as 0.5") if number is None else number
        if hint in (str, Path):
            return hint(value) if isinstance(value, str) else self.note(key, value, _not_text(value))
        raise TypeError(f"{key}: settings cannot hold a field of type {hint}")


def _written_twice(node: yaml.Node, key: str, seen: set[int]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield each key written twice in one section, with both lines: PyYAML keeps the last without a word."""
    if id(node) in seen:
        return  # reached again through an alias
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            yield from _written_twice(child, f"{key}[{index}]", seen)
    if not isinstance(node, yaml.MappingNode):
        return
    first: dict[tuple[str, str], int] = {}
    for key_node, child in node.value:
        line, name = key_node.start_mark.line + 1, _join(key, str(key_node.value))
        identity = (key_node.tag, str(key_node.value))
        if identity in first:
            yield name, (first[identity], line)
        first[identity] = line
        yield from _written_twice(child, name, seen)


def _parse_typed(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, LookupError, RecursionError):
        return text  # no YAML: as text it meets the type check, which names it


def _finite(value: Any) -> float | None:
    """The number, or None. Text such as "1e-4" counts: YAML 1.1 reads 1e-4, without a dot, as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _not_text(value: Any) -> str:
    if isinstance(value, bool):
        bare = "yes (or on) as true" if value else "no (or off) as false"
        return f"must be text, but YAML reads a bare {bare}: write it in quotes"
    if value is None:
        return 'must be text, but it is empty; write "" for an empty text'
    if isinstance(value, dict | list):
        return "must be one text"
    kind = (
        "number" if isinstance(value, int | float) else type(value).__name__
    )  # 12:30 is 750, 2026-01-26 a date
    return f"must be text, but YAML reads it as a {kind}: write it in quotes"


def _unknown_key(name: Any, valid: list[str], section: str) -> str:
    if isinstance(name, bool):
        return f"unknown key; {_not_text(name).partition('but ')[2]}"
    # A low cutoff: a doubtful suggestion costs less than none, for lr and learning_rate share few letters.
    nearest = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.5)
    if nearest:
        return f"unknown key; the nearest valid key is {_join(section, nearest[0])}"
    return f"unknown key; valid keys are {', '.join(valid)}"


def _has_default(item: dataclasses.Field[Any]) -> bool:
    return item.default is not dataclasses.MISSING or item.default_factory is not dataclasses.MISSING


def _join(section: str, name: Any) -> str:
    return f"{section}.{name}" if section else str(name)


def _shown(value: Any) -> str:
    text = repr(value.text) if isinstance(value, Typed) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
