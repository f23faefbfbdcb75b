"""Types of messages, services and actions by their names. A name is an operator's, never one that came over the network."""

import importlib
import re
from typing import Any

from omni_ros.errors import InputError

_NAME = re.compile(r"([a-z][a-z0-9_]*)/(msg|srv|action)/([A-Z][A-Za-z0-9]*)")


def interface_type(name: str, family: str) -> Any:
    """`package/srv/Name` -> its class; `family` is msg, srv or action. Raises InputError when it is none or not installed."""
    parts = _NAME.fullmatch(name)
    if parts is None or parts[2] != family:
        raise InputError(f"type {name[:200]!r} is not of the form package/{family}/Name")
    try:
        return getattr(importlib.import_module(f"{parts[1]}.{family}"), parts[3])
    except (ImportError, AttributeError):
        raise InputError(f"type {name} is not installed: install the package {parts[1]}, and source its workspace") from None


def message_type(kind: str) -> Any:
    """The class of a field's type, `package/Name`."""
    package, _, name = kind.partition("/")
    return interface_type(f"{package}/msg/{name}", "msg")
