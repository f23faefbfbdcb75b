"""The parameters of nodes microphone and speaker, from which they, config/devices.yaml and docs/parameters.md are made."""

from omni_ros.devices.echo import MODES
from omni_ros.nodes.messages import AUDIO_TYPES
from omni_ros.nodes.parameters import Parameter, _fixed

NODE = (
    _fixed("autostart", True, "configure and activate without waiting for a lifecycle manager"),
    Parameter("lock_parameters", False, "refuse every later change of a parameter, of this one too, until the node ends"),
)
NAMES = "number or (part of) name as `ros2 run omni_ros devices` lists them, default, file:PATH.wav, or null"
CARD = (
    _fixed("rate", 0, "Hz that the device is opened at, 0: its own", 0, 384000),
    _fixed("channels", 0, "that it is opened with, 0: as few as it takes", 0, 64),
)
MICROPHONE = (
    _fixed("device", "default", "microphone; file: a recording that is heard once", constraint=NAMES),
    *CARD,
    _fixed("audio_out_type", AUDIO_TYPES[0], "type of topic audio; it is 16 kHz, mono", constraint=", ".join(AUDIO_TYPES)),
    _fixed("echo", "none", "the robot's own voice in it: left, cancelled, or muted while it speaks", constraint=", ".join(MODES)),
    _fixed("noise_suppression", True, "WebRTC's, with echo: aec"),
    _fixed("gain_control", False, "WebRTC's, with echo: aec; for a microphone that is far too quiet or too loud"),
    *NODE,
)
SPEAKER = (
    _fixed("device", "default", "loudspeaker; file: what is played is written there", constraint=NAMES),
    *CARD,
    *NODE,
)
DEVICES = {"microphone": MICROPHONE, "speaker": SPEAKER}
MICROPHONE_TABLE = {p.name: p for p in MICROPHONE}
SPEAKER_TABLE = {p.name: p for p in SPEAKER}
