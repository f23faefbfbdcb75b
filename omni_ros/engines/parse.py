"""JSON values -> dataclasses. A key that is missing or of another type is an EngineError that names the file and the key."""

import dataclasses
import math
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from omni_ros.errors import EngineError

LARGEST = 1 << 53  # what every reader of JSON takes for the same integer


def parse(kind: Any, value: Any, where: str, path: Path) -> Any:
    """`value` of the file `path` as `kind`: a dataclass, a list or dict of one type, a union or a plain type.

    Numbers are finite and not negative. `where` is the key so far, for messages.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _parse_dataclass(kind, value, where, path)
    if origin is list and isinstance(value, list):
        return [parse(arguments[0], v, where, path) for v in value]
    if origin is dict and isinstance(value, dict):
        return {k: parse(arguments[1], v, f"{where}.{k}", path) for k, v in value.items()}
    if origin in (types.UnionType, Union):
        for choice in arguments:
            if dataclasses.is_dataclass(choice) and value is not None:
                return parse(choice, value, where, path)
            if choice is type(value):
                return value if value is None else parse(choice, value, where, path)
        raise wrong(path, where, value)
    if kind is Any:
        return value
    if isinstance(value, bool) and kind is not bool:
        raise wrong(path, where, value)
    if isinstance(value, int) and kind in (int, float) and 0 <= value < LARGEST:
        return kind(value)
    if isinstance(value, float) and kind is float and math.isfinite(value) and value >= 0:
        return value
    if kind in (str, bool) and isinstance(value, kind):
        return value
    raise wrong(path, where, value)


def _parse_dataclass(kind: Any, value: Any, where: str, path: Path) -> Any:
    if not isinstance(value, dict):
        raise wrong(path, where, value)
    hints, parsed = get_type_hints(kind), {}
    for entry in dataclasses.fields(kind):
        key = f"{where}.{entry.name}" if where else entry.name
        if entry.name in value:
            parsed[entry.name] = parse(hints[entry.name], value[entry.name], key, path)
        elif entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING:
            raise EngineError(f"{path}: lacks {key}; build the engine again")
    return kind(**parsed)


def wrong(path: Path, where: str, value: Any) -> EngineError:
    return EngineError(f"{path}: {where} cannot be {str(value)[:60]!r}; build the engine again")
