"""A parameter file of the omni node read without ROS, checked as the node checks it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from omni_ros.errors import InputError
from omni_ros.nodes.messages import shown
from omni_ros.nodes.parameters import TABLE, Parameter, allowed, not_ours

EVERY = ("*", "**")  # nodes
OF_ROS = ("use_sim_time", "qos_overrides")  # every node has them


class FileParameters:
    """What a node that was started with `path` (None: with nothing) would answer; `given` counts more than the file.

    Raises InputError naming the file and the parameter. `unknown` says what in it means nothing to the node. `node` and `table`
    are of another node than omni; `given` has the names that are not left at their defaults.
    """

    def __init__(self, path: Path | None = None, node: str = "omni", table: dict[str, Parameter] = TABLE, **given: Any) -> None:
        self.unknown: list[str] = []
        self.use_sim_time = False
        self._values = {p.name: p.default for p in table.values()}
        read = _read(path, node) if path is not None else {}
        self.given = {*read, *given}  # names
        where = f" (from {path}, or the command line)" if path is not None else ""
        for name, value in {**read, **given}.items():
            if name in table:
                self._values[name] = _checked(table[name], value, where)
            elif name == "use_sim_time":
                self.use_sim_time = value is True
            elif name not in OF_ROS and not name.startswith("qos_overrides."):
                self.unknown.append(not_ours(name, where, table))

    def get_parameter(self, name: str) -> SimpleNamespace:
        """As of a node: its `value`."""
        return SimpleNamespace(value=self._values[name])

    def values(self) -> dict[str, Any]:
        return dict(self._values)


def _read(path: Path, node: str) -> dict[str, Any]:
    """Name -> value, of the sections that are for a node of this name in any namespace."""
    try:
        tree = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: is no YAML ({error})") from error
    found: dict[str, Any] = {}
    sections = [("", tree)]
    while sections:
        name, section = sections.pop()
        if not isinstance(section, dict):
            continue
        own = section.get("ros__parameters")
        if isinstance(own, dict) and name.rsplit("/")[-1] in (node, *EVERY):
            found.update(own)
        sections += [(str(key), value) for key, value in section.items() if key != "ros__parameters"]
    if not found and node == "omni":
        raise InputError(f"{path}: has no parameters of a node called omni: copy config/omni.yaml and change it")
    return found


def _checked(p: Parameter, value: Any, where: str) -> Any:
    if isinstance(p.default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    right = type(value) is type(p.default) and (p.low is None or p.high is None or p.low <= value <= p.high)
    if not right:
        raise InputError(f"parameter {p.name} is {shown(str(value))}, but must be {allowed(p)}{where}")
    return value
