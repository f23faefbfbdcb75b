"""Writes config/omni.yaml, config/devices.yaml and docs/parameters.md from the tables of parameters:
`python -m omni_ros.nodes.parameter_docs`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omni_ros.nodes.device_parameters import DEVICES
from omni_ros.nodes.parameters import SECTIONS, Parameter

ROOT = Path(__file__).parent.parent.parent
WIDTH = 120  # of a comment in the YAML file

YAML_HEAD = """\
# Every parameter of the omni node with its default. Written by `python -m omni_ros.nodes.parameter_docs`: copy, do not edit.
# [fixed] parameters are read when the node is configured and can be changed only while it is not; the others may be
# changed at any time and count from the next turn on. Whole numbers will do for decimal ones.
#
# Topics are relative and can be remapped, e.g. `-r image_raw:=/camera/color/image_raw`:
#   subscribed  image_raw (or image_raw/compressed, remapped under that name, or points), audio, audio_info, prompt, say,
#               facts, push_to_talk
#   published   response_stream, response, response_json, transcript, speech/audio, speech_gain, speaking, user_speaking,
#               awake, state, latency
#   services    ~/cancel, ~/reset, ~/enable
# speech/audio is std_msgs/Int16MultiArray: signed 16 bit, mono, 24 kHz.

/**/omni:
  ros__parameters:
"""

DEVICES_HEAD = """\
# Every parameter of the microphone and the speaker node with its default. Written by `python -m omni_ros.nodes.parameter_docs`:
# copy, do not edit. [fixed] as in omni.yaml.
"""

YAML_TAIL = """
    # ---- quality of service: the topics' profiles can be overridden here, for example
    # qos_overrides:
    #   /image_raw:
    #     subscription: {reliability: reliable, depth: 1}
"""

DOCS_HEAD = """\
# Parameters of the omni node

Written by `python -m omni_ros.nodes.parameter_docs` from the table in `omni_ros/nodes/parameters.py`, like
[config/omni.yaml](../config/omni.yaml). A **fixed** parameter is read when the node is configured and can be changed only while
it is not configured; the others may be changed at any time (`ros2 param set /omni NAME VALUE`) and count from the next turn on.

A value of the wrong type or out of range, and a name that resembles one of these, keep the node from being configured; the
error says which parameter, what it may be, and which file it came from. Any other unknown name is a warning. Whole numbers
are taken for decimal ones.
"""


DOCS_DEVICES = """
# Parameters of nodes microphone and speaker

Like the above, from the table in `omni_ros/nodes/device_parameters.py`; the file to copy is
[config/devices.yaml](../config/devices.yaml).
"""


DOCS_TAIL = """
# A microphone that starts after the node

It is heard from the moment at which its process and the node know each other. Fast DDS's own settings make that 1.5 to
2.4 s for a new process (3 s at most); with the node's own profile ([fastdds.xml](../omni_ros/nodes/fastdds.xml), unless
`FASTRTPS_DEFAULT_PROFILES_FILE` names another), 0 to 0.15 s. In a process that is known already, nothing is lost where
`audio_in_type` is given, and 20 to 60 ms where it is `auto`. Measured on one machine, microphone and node in two processes. A
driver that waits for a subscriber before it records loses nothing.
"""


def yaml_text() -> str:
    sections = [f"    # ---- {title}\n" + _yaml_rows(section) for title, section in SECTIONS.items()]
    return YAML_HEAD + "\n".join(sections) + YAML_TAIL


def devices_yaml_text() -> str:
    nodes = [f"\n/**/{node}:\n  ros__parameters:\n" + _yaml_rows(rows) for node, rows in DEVICES.items()]
    return DEVICES_HEAD + "".join(nodes)


def _yaml_rows(section: Sequence[Parameter]) -> str:
    lines = []
    for p in section:
        code = f"    {p.name}: {_yaml(p.default)}"
        comment = "[fixed] " * p.fixed + p.description + (f"; {p.constraint}" if p.constraint else "")
        lines.append(f"{code + ' ':<32}# {_fold(comment)}\n")
    return "".join(lines)


def docs_text() -> str:
    own = [_docs_section(title.capitalize(), section) for title, section in SECTIONS.items()]
    devices = [_docs_section(f"Node {node}", rows) for node, rows in DEVICES.items()]
    return "".join([DOCS_HEAD, *own, DOCS_DEVICES, *devices, DOCS_TAIL])


def _docs_section(title: str, section: Sequence[Parameter]) -> str:
    lines = [f"\n## {title}\n\n| parameter | default | range | fixed | meaning |\n|---|---|---|---|---|\n"]
    for p in section:
        span = f"{p.low:.12g} to {p.high:.12g}" if p.low is not None else ""
        meaning = p.description + (f"; {p.constraint}" if p.constraint else "")
        lines.append(f"| `{p.name}` | {_yaml(p.default)} | {span} | {'yes' * p.fixed} | {meaning} |\n")
    return "".join(lines)


def files() -> dict[Path, str]:
    """Each generated file with what it has to hold."""
    config, docs = ROOT / "config", ROOT / "docs"
    return {config / "omni.yaml": yaml_text(), config / "devices.yaml": devices_yaml_text(), docs / "parameters.md": docs_text()}


def _yaml(value: Any) -> str:
    if isinstance(value, str):
        return value or '""'
    return str(value).lower() if isinstance(value, bool) else str(value)


def _fold(comment: str) -> str:
    """Long comments go on below their beginning."""
    words, lines = comment.split(" "), [""]
    for word in words:
        if len(lines[-1]) + len(word) > WIDTH - 34:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    return ("\n" + " " * 32 + "#   ").join(lines)


def main() -> None:
    for path, text in files().items():
        path.write_text(text)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
