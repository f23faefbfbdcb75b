"""A recorded conversation: which topics of a rosbag2 (mcap or sqlite3) are whose, and their messages in order. No ROS."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rosbags.highlevel import AnyReader
from rosbags.interfaces import Nodetype
from rosbags.typesys import Stores, get_typestore

from omni_ros.errors import InputError
from omni_ros.nodes.messages import AUDIO_TYPES, shown

INFO_TYPE, LATENCY_TYPE = "audio_common_msgs/msg/AudioInfo", "diagnostic_msgs/msg/DiagnosticArray"
# What a topic is for -> the types that it may have, and how its name ends.
TYPES = {
    "audio": (AUDIO_TYPES, "audio"),
    "camera": (("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"), ""),
    "points": (("sensor_msgs/msg/PointCloud2",), "points"),
    "prompt": (("std_msgs/msg/String",), "prompt"),
    "say": (("std_msgs/msg/String",), "say"),
    "facts": (("std_msgs/msg/String",), "facts"),
    "push_to_talk": (("std_msgs/msg/Bool",), "push_to_talk"),
    "audio_info": ((INFO_TYPE,), "audio_info"),
    "latency": ((LATENCY_TYPE,), "latency"),
}
# Topics of sound that the robot makes, which it must not take for its microphone.
OWN_VOICE = ("speech", "played", "tts", "speaker")
NONE = "none"  # as the name of a topic: it is not to be used


@dataclass(frozen=True)
class Arrival:
    """A message as it came."""

    at: float  # seconds since the bag began
    use: str  # a key of TYPES
    kind: str  # package/msg/Type
    message: Any


class Bag:
    """Open from construction to `close`. `topics` names what guessing would get wrong: use -> topic, or "none".

    Raises InputError that names the bag, and the topics where one cannot be chosen.
    """

    def __init__(self, path: Path, topics: dict[str, str | None] | None = None) -> None:
        self.path = path
        self._reader = _open(path)
        try:
            self._types = {c.topic: c.msgtype for c in self._reader.connections}
            self.topics = {use: name for use in TYPES if (name := self._topic(use, (topics or {}).get(use)))}
        except BaseException:
            self.close()
            raise
        self.seconds = max(0, self._reader.duration) / 1e9 if self._reader.message_count else 0.0

    def close(self) -> None:
        self._reader.close()

    def kind(self, use: str) -> str:
        """The message type of a chosen topic."""
        return self._types[self.topics[use]]

    def fields(self, kind: str) -> SimpleNamespace:
        """What stands for a message class of rclpy: its fields with their types, in ROS's own words."""
        fields = {name: _type_name(described) for name, described in self._reader.typestore.fielddefs[kind][1]}
        return SimpleNamespace(get_fields_and_field_types=lambda: fields)

    def arrivals(self, *uses: str) -> Iterator[Arrival]:
        """The messages of the topics chosen for `uses`, in the order in which they were recorded."""
        wanted = {self.topics[use]: use for use in uses if use in self.topics}
        connections = [c for c in self._reader.connections if c.topic in wanted]
        if not connections:  # which would mean all of them to the reader
            return
        began, number = self._reader.start_time, 0
        messages = self._reader.messages(connections)
        while True:
            try:
                connection, stamp, raw = next(messages)
                message = self._reader.deserialize(raw, connection.msgtype)
            except StopIteration:
                return
            except Exception as error:  # noqa: BLE001 - of a damaged file the readers raise whatever they stumble over
                raise _damaged(self.path, f"after {number} messages: {_said(error)}") from error
            number += 1
            yield Arrival((stamp - began) / 1e9, wanted[connection.topic], connection.msgtype, message)

    def _topic(self, use: str, given: str | None) -> str | None:
        types, ending = TYPES[use]
        if given == NONE:
            return None
        if given is not None:
            if given not in self._types:
                raise InputError(f"{self.path}: has no topic {shown(given)}; it has {self._listed()}")
            if self._types[given] not in types:
                kind, allowed = self._types[given], " or ".join(types)
                raise InputError(
                    f"{self.path}: {given} is of type {kind}, but the {use} topic is {allowed}; it has {self._listed()}"
                )
            return given
        possible = [name for name, kind in self._types.items() if kind in types]
        if use == "audio":
            possible = [name for name in possible if not any(word in name for word in OWN_VOICE)]
        likely = [name for name in possible if name.rsplit("/", 1)[-1] == ending] if ending else possible
        if len(likely) > 1 or not likely and use == "audio" and len(possible) > 1:
            choice = ", ".join(sorted(likely or possible))
            raise InputError(f"{self.path}: several topics may be the {use}: {choice}; say which with --{use} TOPIC, or none")
        # A microphone may have any name; of texts and diagnostics there are too many kinds to guess.
        return likely[0] if likely else possible[0] if use == "audio" and possible else None

    def _listed(self) -> str:
        return ", ".join(f"{name} ({kind})" for name, kind in sorted(self._types.items())) or "no topic at all"

    def needs(self, *uses: str) -> None:
        """Raises InputError unless one of `uses` has a topic."""
        if not any(use in self.topics for use in uses):
            wanted = " or ".join(uses)
            raise InputError(
                f"{self.path}: no topic for {wanted} was found; it has {self._listed()}; say which with --{uses[0]} TOPIC"
            )


def _open(path: Path) -> AnyReader:
    if not path.exists():
        raise InputError(f"{path}: not found; give the folder that `ros2 bag record` made")
    if path.is_file() or not (path / "metadata.yaml").is_file():
        folder = path.parent if path.is_file() else path
        raise InputError(f"{path}: is no rosbag2 folder with a metadata.yaml; if it was lost: ros2 bag reindex {folder}")
    try:
        reader = AnyReader([path], default_typestore=get_typestore(Stores.ROS2_JAZZY))
        reader.open()
    except Exception as error:  # noqa: BLE001 - of a damaged file the readers raise whatever they stumble over
        raise _damaged(path, _said(error)) from error
    return reader


def _damaged(path: Path, what: str) -> InputError:
    return InputError(
        f"{path}: cannot be read, it is damaged or truncated ({what}); of an mcap file, mcap recover saves what is left"
    )


def _said(error: Exception) -> str:
    return shown(f"{type(error).__name__}: {error}", 200)


def _type_name(described: tuple[Nodetype, Any]) -> str:
    """rosbags' description of a field -> rosidl's: sequence<int16>, std_msgs/Header, float64[9]."""
    node, detail = described
    if node == Nodetype.BASE:
        return detail[0]
    if node == Nodetype.NAME:
        return detail.replace("/msg/", "/")
    inner = _type_name(detail[0])
    return f"sequence<{inner}>" if node == Nodetype.SEQUENCE else f"{inner}[{detail[1]}]"
