"""`ros2 run omni_ros devices`: the sound cards, by number and name, as nodes microphone and speaker find them."""

import sys

from omni_ros.devices.portaudio import devices
from omni_ros.errors import DeviceError


def listing() -> str:
    lines = [f"{'number':>6}  {'in':>3}  {'out':>3}  {'Hz':>6}  name"]
    for device in devices():
        inputs, outputs = device["max_input_channels"], device["max_output_channels"]
        lines.append(f"{device['index']:>6}  {inputs:>3}  {outputs:>3}  {device['default_samplerate']:>6.0f}  {device['name']}")
    if len(lines) == 1:
        return "no sound card; `device: null` and `device: file:PATH.wav` work without one"
    return "\n".join([*lines, "parameter `device` is a number, a name or a part of it, `default`, `file:PATH.wav` or `null`"])


def main() -> int:
    try:
        print(listing())
    except DeviceError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
