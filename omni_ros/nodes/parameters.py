"""The omni node's parameters: one table with default, range and description; `read_only` ones need a restart."""

from dataclasses import dataclass
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node


@dataclass(frozen=True)
class Parameter:
    name: str
    default: Any
    description: str
    low: float | None = None
    high: float | None = None
    read_only: bool = False
    constraint: str = ""


def _fixed(name: str, default: Any, description: str, low=None, high=None, constraint: str = "") -> Parameter:
    return Parameter(name, default, description, low, high, True, constraint)


NODE = (
    _fixed("engine_dir", "", "folder that offline.build_engines made", constraint="required"),
    _fixed("threads", 0, "CPU threads of each engine, 0: one per core", 0, 256),
    _fixed("autostart", True, "configure and activate without waiting for a lifecycle manager"),
    _fixed("image_transport", "raw", "camera topic", constraint="raw: image_raw, compressed: image_raw/compressed"),
    Parameter("use_camera", True, "attach the newest picture to each turn"),
    Parameter("image_max_age", 1.0, "seconds since its arrival after which a picture is not attached", 0.0, 3600.0),
    Parameter("image_max_pixels", 307200, "larger pictures are shrunk; 1024 pixels cost one token", 1024, 16777216),
    _fixed("audio_in_type", "auto", "type of topic audio", constraint="package/msg/Type, or auto: as its publisher"),
    _fixed("sample_rate", 16000, "Hz, of audio types that do not carry it", 8000, 192000),
    _fixed("channels", 1, "of audio types that do not carry it; their mean is used", 1, 32),
    _fixed("vad", "auto", "voice activity detector", constraint="energy, silero, or auto: silero if installed"),
    _fixed("vad_threshold", 0.5, "voice probability that counts as speech", 0.05, 0.95),
    _fixed("speech_start", 0.128, "seconds of voice that begin a turn", 0.032, 1.0),
    _fixed("speech_end", 0.55, "seconds of silence that end a turn", 0.1, 5.0),
    _fixed("pre_roll", 0.4, "seconds of audio kept from before the voice", 0.0, 2.0),
    _fixed("max_turn", 30.0, "seconds after which a turn is closed although the user still speaks", 1.0, 300.0),
    Parameter("mute_while_speaking", False, "ignore the microphone meanwhile: for robots that hear themselves"),
    Parameter("preempt", True, "a new turn stops the answer in progress; false: it waits, and only the newest waits"),
    Parameter("system_prompt", "", "instructions ahead of the conversation"),
    _fixed("history_turns", 2, "exchanges that the model is reminded of", 0, 100),
    _fixed("speech_chunk", 0.06, "seconds of speech per message", 0.02, 0.5),
    _fixed("speech_lead", 0.3, "seconds that published speech may be ahead of its playback", 0.05, 5.0),
)  # fmt: skip

# Named and defaulted as the fields of omni_ros.pipeline.request.Request.
GENERATION = (
    Parameter("audio_output", True, "speak the answer; false: text only"),
    Parameter("max_generate_length", 256, "tokens per answer", 1, 32768),
    Parameter("temperature", 0.7, "of the text, 0: greedy", 0.0, 5.0),
    Parameter("top_k", 20, "of the text, 0: all", 0, 200000),
    Parameter("top_p", 0.8, "of the text", 0.0, 1.0),
    Parameter("max_audio_length", 4096, "codec frames of 80 ms per answer", 1, 100000),
    Parameter("talker_temperature", 0.9, "of the voice, 0: greedy", 0.0, 5.0),
    Parameter("talker_top_k", 10, "of the voice, 0: all", 0, 200000),
    Parameter("talker_top_p", 1.0, "of the voice", 0.0, 1.0),
    Parameter("repetition_penalty", 1.0, "of the voice", 0.01, 10.0),
    Parameter("speaker", "", "voice; empty: the checkpoint's default"),
    Parameter("seed", -1, "of the sampling, -1: different every time", -1, 2**31 - 1),
    Parameter("first_chunk_frames", 1, "codec frames in each of an answer's first two pieces of speech ...", 1, 1000),
    Parameter("chunk_frames", 8, "... and in its later ones", 1, 1000),
)


def declare(node: Node) -> None:
    for p in (*NODE, *GENERATION):
        descriptor = ParameterDescriptor(description=p.description, read_only=p.read_only, additional_constraints=p.constraint)
        if isinstance(p.default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=p.low, to_value=p.high)]
        elif isinstance(p.default, int) and not isinstance(p.default, bool):
            descriptor.integer_range = [IntegerRange(from_value=p.low, to_value=p.high)]
        node.declare_parameter(p.name, p.default, descriptor)


def generation_options(node: Node) -> dict[str, Any]:
    """Keyword arguments of Request, as the parameters are now."""
    options = {p.name: node.get_parameter(p.name).value for p in GENERATION}
    options["speaker"] = options["speaker"] or None
    options["seed"] = None if options["seed"] < 0 else options["seed"]
    return options
