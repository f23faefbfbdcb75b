"""Nodes microphone and speaker, as a parameter file has them."""

from collections.abc import Iterator

from omni_ros.doctor.finding import FAILURE, OK, WARNING, Finding, Subject
from omni_ros.errors import OmniError

FIX = "plug it in, or correct the file: ros2 run omni_ros devices lists the sound cards, config/devices.yaml has every parameter"


def microphone(subject: Subject) -> Iterator[Finding]:
    yield from _node(subject, "microphone")


def speaker(subject: Subject) -> Iterator[Finding]:
    yield from _node(subject, "speaker")


def _node(subject: Subject, name: str) -> Iterator[Finding]:
    from omni_ros.devices.device import check_sink, check_source
    from omni_ros.devices.echo import Echo
    from omni_ros.nodes.device_parameters import DEVICES
    from omni_ros.nodes.parameter_file import FileParameters

    if subject.params_file is None:
        return
    try:
        read = FileParameters(subject.params_file, node=name, table={p.name: p for p in DEVICES[name]})
        if not read.given & {"device", "echo"}:
            return  # the file is for other nodes
        values = read.values()
        (check_source if name == "microphone" else check_sink)(values["device"])
        card = _card(values["device"], "input" if name == "microphone" else "output")
        if name == "microphone":
            aec = values["echo"] == "aec"
            Echo(
                values["echo"], noise_suppression=aec and values["noise_suppression"], gain_control=aec and values["gain_control"]
            )
    except OmniError as error:
        yield Finding(name, FAILURE, str(error), FIX)
        return
    for text in read.unknown:
        yield Finding(name, WARNING, text, "remove it, or correct its name")
    yield Finding(name, OK, card)


def _card(device: str, direction: str) -> str:
    if device == "null" or device.startswith("file:"):
        return device
    from omni_ros.devices.portaudio import find

    return find(device, direction)["name"]
