"""What a model wrote as a tool call, read strictly: JSON of one form, checked against a schema, and written back as it was."""

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from omni_ros.errors import InputError, ToolError

MAX_CALL = 20000  # characters of a call
MAX_SHOWN = 2000  # of one that cannot be read, in the history
# A call as the template writes it again: then the model finds its own words in the history, row for row.
_WRITTEN = re.compile(r'\s*\{"name": "([^"\\]+)", "arguments": (.*)\}\s*', re.DOTALL)


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """What stands between the marks of a call -> the tool's name and its arguments. Raises ToolError."""
    if len(text) > MAX_CALL:
        raise ToolError(f"the call has more than {MAX_CALL} characters")
    try:
        call = json.loads(text, object_pairs_hook=_pairs, parse_constant=_no_number, parse_float=_float)
        text.encode()
        json.dumps(call, ensure_ascii=False).encode()  # half a surrogate pair, as JSON can escape it, is no character
    except (ValueError, RecursionError) as reason:
        raise ToolError(f"the call is not valid JSON ({str(reason)[:200]})") from None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call.keys() <= {"name", "arguments"}:
        raise ToolError('a call is {"name": "...", "arguments": {...}}')
    if not isinstance(arguments := call.get("arguments", {}), dict):
        raise ToolError("the arguments of a call are an object")
    return call["name"], arguments


def validator(schema: Any) -> jsonschema.Draft202012Validator:
    """InputError when `schema` is none. It may refer to nothing outside itself: no address is ever looked up."""
    kind = jsonschema.Draft202012Validator
    try:
        kind.check_schema(schema, format_checker=kind.FORMAT_CHECKER)  # with it, patterns too
        here = Registry().with_resource("", DRAFT202012.create_resource(schema)).resolver()
        for reference in _references(schema):
            here.lookup(reference)
    except jsonschema.SchemaError as reason:
        raise InputError(f"this is no JSON schema: {_placed(reason)}") from None
    except (Unresolvable, RecursionError) as reason:
        raise InputError(f"this JSON schema refers to what is not in it ({str(reason)[:200]})") from None
    return kind(schema, registry=Registry())


def mismatch(check: jsonschema.Draft202012Validator, value: Any) -> str:
    """What of `value` does not fit the schema, and where; "" when it fits."""
    try:
        wrong = jsonschema.exceptions.best_match(check.iter_errors(value))
    except RecursionError:
        return "it is nested too deeply"
    return "" if wrong is None else _placed(wrong)


def _placed(wrong: Any) -> str:
    place = ".".join(map(str, wrong.absolute_path))
    return f"{place + ': ' if place else ''}{wrong.message[:300]}"


def _references(schema: Any) -> Iterator[str]:
    values = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    if isinstance(schema, dict) and isinstance(schema.get("$ref"), str):
        yield schema["$ref"]
    for value in values:
        yield from _references(value)


def as_written(text: str) -> tuple[str, str]:
    """Name and arguments of a call, right or wrong, for a message of the history."""
    if written := _WRITTEN.fullmatch(text):
        return written[1], written[2]
    try:
        name, arguments = parse(text)
        return name, json.dumps(arguments, ensure_ascii=False)
    except ToolError:
        return "unreadable", json.dumps(text.strip()[:MAX_SHOWN], ensure_ascii=False)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) != len(dict(pairs)):
        raise ValueError("a name comes twice")
    return dict(pairs)


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _float(text: str) -> float:
    if (value := float(text)) in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:20]} is too large")
    return value
