"""ROS message definitions as JSON schemas, JSON values into messages, and messages as JSON."""

import array
import base64
import re
from functools import cache
from typing import Any

import numpy as np

from omni_ros.dialogue.call_text import mismatch, validator
from omni_ros.errors import InputError
from omni_ros.nodes.interface_types import message_type

LARGEST_FLOAT = float(np.finfo(np.float32).max)
LONGEST_ARRAY = 64  # elements of an array that a result shows

_INTEGER = re.compile(r"(u?)int(8|16|32|64)")
_STRING = re.compile(r"w?string(?:<(\d+)>)?")
_SEQUENCE = re.compile(r"sequence<(.+?)(?:, (\d+))?>")
_ARRAY = re.compile(r"(.+)\[(\d+)\]")


def field_type(message: Any, path: str) -> str:
    """The type of a field, as `get_fields_and_field_types` writes it; `path` is "field" or "field.field". Raises InputError."""
    kind = f"{message.__module__.split('.')[0]}/{message.__name__}"
    for name in path.split("."):
        if "/" not in kind or not (fields := _fields(message, kind)) or name not in fields:
            known = ", ".join(fields) if "/" in kind and (fields := _fields(message, kind)) else "none"
            raise InputError(f"{kind} has no field {name!r} (fields: {known})")
        kind = fields[name]
        message = message_type(kind) if "/" in kind and not _wrapped(kind) else None
    return kind


def _fields(message: Any, kind: str) -> dict[str, str]:
    return {} if message is None else message.get_fields_and_field_types()


def _wrapped(kind: str) -> bool:
    return bool(_SEQUENCE.fullmatch(kind) or _ARRAY.fullmatch(kind))


def schema(kind: str) -> dict[str, Any]:
    """The JSON schema of a field's type: limits of integers, strings and arrays included."""
    if kind == "boolean":
        return {"type": "boolean"}
    if kind in ("float", "double"):
        return {"type": "number"}
    if kind in ("octet", "char"):
        return {"type": "integer", "minimum": 0, "maximum": 255}
    if integer := _INTEGER.fullmatch(kind):
        bits = int(integer[2]) - (not integer[1])
        return {"type": "integer", "minimum": 0 if integer[1] else -(2**bits), "maximum": 2**bits - 1}
    if string := _STRING.fullmatch(kind):
        return {"type": "string", **({"maxLength": int(string[1])} if string[1] else {})}
    if sequence := _SEQUENCE.fullmatch(kind):
        return {"type": "array", "items": schema(sequence[1]), **({"maxItems": int(sequence[2])} if sequence[2] else {})}
    if fixed := _ARRAY.fullmatch(kind):
        return {"type": "array", "items": schema(fixed[1]), "minItems": int(fixed[2]), "maxItems": int(fixed[2])}
    fields = message_type(kind).get_fields_and_field_types()
    properties = {name: schema(inner) for name, inner in fields.items()}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def put(message: Any, path: str, value: Any) -> None:
    """Set a field to a JSON value; fields that an object leaves out keep their defaults.

    Raises InputError for a value that does not fit the field's schema: rosidl itself checks nothing unless it is told to.
    """
    if wrong := mismatch(_check(field_type(type(message), path)), value):
        raise InputError(f"{path}: {wrong}")
    _put(message, path, value)


@cache
def _check(kind: str) -> Any:
    return validator(schema(kind))


def _put(message: Any, path: str, value: Any) -> None:
    *outer, last = path.split(".")
    for name in outer:
        message = getattr(message, name)
    kind = message.get_fields_and_field_types()[last]
    try:
        setattr(message, last, _value(kind, value))
    except (AssertionError, ValueError, OverflowError) as reason:
        raise InputError(f"{path}: {str(reason)[:200]} (a {kind})") from None


def _value(kind: str, value: Any) -> Any:
    if kind in ("float", "double"):
        if kind == "float" and abs(value) > LARGEST_FLOAT:
            raise ValueError(f"{value:g} is too large")
        return float(value)
    if kind == "octet":
        return bytes([value])
    if _INTEGER.fullmatch(kind) or kind == "char":
        return int(value)  # JSON schema takes 1.0 for an integer
    if _SEQUENCE.fullmatch(kind) or _ARRAY.fullmatch(kind):
        wrapped = _SEQUENCE.fullmatch(kind) or _ARRAY.fullmatch(kind)
        assert wrapped is not None
        return [_value(wrapped[1], item) for item in value]
    if "/" in kind:
        inner = message_type(kind)()
        for name, item in value.items():
            _put(inner, name, item)
        return inner
    return value


def as_json(message: Any) -> Any:
    """A message as JSON can hold it. Long arrays are cut: they are data, not something to tell."""
    if hasattr(message, "get_fields_and_field_types"):
        return {name: as_json(getattr(message, name)) for name in message.get_fields_and_field_types()}
    if isinstance(message, (bytes, bytearray)):
        return base64.b64encode(bytes(message)).decode()
    if isinstance(message, (list, tuple, array.array, np.ndarray)):
        shown = [as_json(item) for item in list(message[:LONGEST_ARRAY])]
        return [*shown, f"... {len(message)} in all"] if len(message) > LONGEST_ARRAY else shown
    if isinstance(message, (float, np.floating)):
        return float(message) if np.isfinite(message) else str(message)
    return message.item() if isinstance(message, np.generic) else message
