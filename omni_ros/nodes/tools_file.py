"""The operator's tools file: which ROS services, actions and topics the model may use, and which of their fields.

    tools:
      go_to:
        description: Go to a place in this building.
        action: navigate             # or service, or topic: a name, relative to the node's namespace, which may be remapped
        type: my_robot/action/GoTo
        arguments:                   # the fields of request, goal or message that the model may set; others keep their defaults
          place: {field: place, enum: [left, right]}

docs/tools.md has all of it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from omni_ros.dialogue.call_text import mismatch, validator
from omni_ros.errors import InputError
from omni_ros.nodes.message_schema import field_type, put, schema

KINDS = {"service": "srv", "action": "action", "topic": "msg"}
FILE = validator({
    "type": "object",
    "required": ["tools"],
    "additionalProperties": False,
    "properties": {
        "tools": {
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"pattern": "^[a-zA-Z_][a-zA-Z0-9_-]{0,63}$"},
            "additionalProperties": {
                "type": "object",
                "required": ["description", "type"],
                "additionalProperties": False,
                "properties": {
                    **{kind: {"type": "string"} for kind in KINDS},
                    "type": {"type": "string"},
                    "description": {"type": "string", "pattern": "^[^\\n]+\\n?$"},
                    "timeout": {"type": "number", "exclusiveMinimum": 0, "maximum": 3600},
                    "confirm": {"type": "boolean"},
                    "wait": {"type": "boolean"},
                    "values": {"type": "object"},
                    "arguments": {
                        "type": "object",
                        "additionalProperties": {
                            "type": ["object", "null"],
                            "properties": {"field": {"type": "string"}, "optional": {"type": "boolean"}},
                        },
                    },
                },
            },
        }
    },
})  # fmt: skip


def read_tools_file(path: str) -> dict[str, dict[str, Any]]:
    """Name -> entry. Raises InputError naming the file and the place in it."""
    try:
        content = yaml.safe_load(Path(path).expanduser().read_text())
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as reason:
        raise InputError(f"tools_file {path}: cannot be read ({' '.join(str(reason).split())[:300]})") from None
    if wrong := mismatch(FILE, content):
        raise InputError(f"tools_file {path}: {wrong}")
    for name, entry in content["tools"].items():
        if sum(kind in entry for kind in KINDS) != 1:
            raise InputError(f"tools_file {path}: tool {name} needs exactly one of {', '.join(KINDS)}")
        entry["description"] = entry["description"].strip()
    return content["tools"]


def arguments_schema(request: Any, arguments: dict[str, dict[str, Any] | None]) -> tuple[dict[str, Any], dict[str, str]]:
    """The JSON schema of a tool's arguments, and which field of `request` each one sets. Raises InputError."""
    properties: dict[str, Any] = {}
    fields: dict[str, str] = {}
    required = []
    for name, given in arguments.items():
        own = dict(given or {})
        fields[name] = own.pop("field", name)
        if not own.pop("optional", False):
            required.append(name)
        made = schema(field_type(request, fields[name]))
        for value in own.get("enum", ()):
            if wrong := mismatch(validator(made), value):
                raise InputError(f"argument {name}: enum: {wrong} (YAML reads on, off, yes, no as true and false: quote them)")
        properties[name] = {**made, **own}
    whole = {"type": "object", "properties": properties, **({"required": required} if required else {})}
    try:
        validator(whole)
    except InputError as reason:
        raise InputError(f"arguments: {reason}") from None
    return whole, fields


def filler(request: Any, fields: dict[str, str], values: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    """Arguments -> a message of type `request` with them and the operator's `values`, which are tried here. Raises InputError."""

    def make(arguments: dict[str, Any]) -> Any:
        message = request()
        for path, value in values.items():
            put(message, path, value)
        for name, value in arguments.items():
            put(message, fields[name], value)
        return message

    try:
        make({})
    except InputError as reason:
        raise InputError(f"values: {reason}") from None
    return make
