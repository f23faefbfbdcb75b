"""The omni node's parameters: one table, from which the node, config/omni.yaml and docs/parameters.md are made.

It can be imported where there is no ROS, for those who read a parameter file themselves (parameter_file.py).

python -m omni_ros.nodes.parameter_docs     writes the two files again
"""

import difflib
import os
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from omni_ros.dialogue.settings import Settings
from omni_ros.errors import InputError
from omni_ros.nodes.messages import AUDIO_TYPES, shown

if TYPE_CHECKING:
    from rcl_interfaces.msg import SetParametersResult
    from rclpy import Parameter as RosParameter
    from rclpy.node import Node


@dataclass(frozen=True)
class Parameter:
    name: str
    default: Any
    description: str
    low: float | None = None
    high: float | None = None
    constraint: str = ""
    fixed: bool = False  # read when the node is configured: refused from then on until it is cleaned up


def _fixed(name: str, default: Any, description: str, low=None, high=None, constraint: str = "") -> Parameter:
    return Parameter(name, default, description, low, high, constraint, fixed=True)


VERIFY = "full: every byte before the first answer; sizes: no byte; auto: every byte, behind the running node if that is slow"
TRANSPORTS = "raw: image_raw; compressed: image_raw/compressed; points: points, a coloured organised PointCloud2"
WAKE_WORDS = "okay_nabu, hey_jarvis, hey_mycroft, alexa, or a model's .json file"
NODE = {
    "engines": (
        _fixed("engine_dir", "", "folder that offline.build_engines made; ~ is the home folder", constraint="required"),
        _fixed("threads", 0, "CPU threads of each engine, 0: one per core", 0, 256),
        _fixed("verify", "auto", "what of the engines' files is compared with their checksums", constraint=VERIFY),
        Parameter("engine_timeout", 60.0, "seconds after which a call of an engine counts as hung, ten times as many while "
                  "configuring: the turn fails, and the node ends with exit code 1, to be started again; 0: never", 0.0, 3600.0),
        _fixed("autostart", True, "configure and activate without waiting for a lifecycle manager"),
        Parameter("lock_parameters", False, "refuse every later change of a parameter, of this one too, until the node ends"),
    ),
    "camera": (
        _fixed("image_transport", "raw", "camera topic", constraint=TRANSPORTS),
        Parameter("use_camera", True, "attach a picture to each turn: the newest when the user begins to speak, or has typed"),
        Parameter("image_max_age", 1.0, "seconds since its arrival after which a picture is not attached", 0.0, 3600.0),
        Parameter("video_frames", 0, "attach the last so many frames as a video instead; 0: one picture", 0, 64),
        Parameter("video_fps", 2.0, "frames of it per second, if the camera sends as many", 0.1, 60.0),
        Parameter("image_max_pixels", 307200, "larger pictures are shrunk; 1024 pixels cost one token", 1024, 16777216),
    ),
    "microphone": (
        _fixed("audio_in_type", "auto", "type of topic audio", constraint=f"auto: as its publisher, or {', '.join(AUDIO_TYPES)}"),
        _fixed("sample_rate", 16000, "Hz, of types that do not carry it: Int16MultiArray, AudioData(Stamped)", 8000, 192000),
        _fixed("channels", 1, "of the same types; the mean of all channels is used", 1, 32),
        _fixed("audio_timeout", 1.0, "seconds without sound inside an utterance that end it: the microphone is lost", 0.2, 60.0),
        _fixed("audio_timeout_drops", False, "it is then dropped, instead of answering what was heard of it"),
    ),
    "turn taking": (
        _fixed("turn_start", "voice", "what begins a spoken turn", constraint="voice, push_to_talk (a topic), wake_word"),
        _fixed("wake_word", "okay_nabu", "for turn_start: wake_word, package pymicro-wakeword", constraint=WAKE_WORDS),
        _fixed("wake_word_window", 8.0, "seconds after the wake word in which a turn may begin", 1.0, 600.0),
        _fixed("follow_up_window", 8.0, "seconds after an answer in which a turn may begin without the wake word", 0.0, 600.0),
        _fixed("vad", "auto", "voice activity detector", constraint="energy, silero, or auto: silero if it is installed"),
        _fixed("vad_threshold", 0.5, "voice probability that counts as speech", 0.05, 0.95),
        _fixed("speech_start", 0.128, "seconds of voice that begin a turn; a click is shorter", 0.032, 1.0),
        _fixed("turn_detector", "smart", "what ends a turn", constraint="silence, or smart: hears whether the user has finished"),
        _fixed("turn_timeout", 2.0, "smart: seconds of silence that end a turn although it is unsure", 0.2, 10.0),
        _fixed("speech_end", 0.55, "silence: seconds of it that end a turn", 0.1, 5.0),
        _fixed("pre_roll", 0.5, "seconds of audio kept from before the voice", 0.0, 2.0),
        _fixed("max_turn", 30.0, "seconds after which a turn is closed although the user still speaks", 1.0, 300.0),
        Parameter("mute_while_speaking", False, "ignore the microphone meanwhile: for robots that hear themselves"),
        Parameter("preempt", True, "speech and prompts of the user stop the answer in progress; false: the newest waits"),
        Parameter("say_preempts", False, "so do texts on topic say; false: they wait until nobody speaks"),
        Parameter("barge_in_seconds", 0.6, "seconds of voice that stop an answer; shorter words are nods", 0.0, 5.0),
        Parameter("eager", True, "begin to answer at the first pause, unheard, in case that the user has finished"),
    ),
    "conversation": (
        Parameter("system_prompt", "", "instructions ahead of the conversation"),
        Parameter("facts_max_age", 10.0, "seconds since its arrival after which a fact of topic facts is not told", 0.0, 86400.0),
        Parameter("transcript", False, "write down what the user said, on topic transcript, when the answer was heard"),
        _fixed("history_turns", 2, "exchanges that the model is reminded of", 0, 100),
    ),
    "tools": (
        _fixed("tools_file", "", "YAML file of the ROS services, actions and topics that the model may use: docs/tools.md"),
        _fixed("max_tool_calls", 8, "calls that it may make in one turn of the user", 1, 64),
        _fixed("response_schema", "", "JSON schema, or a file with one, of the answers; those that fit go to response_json"),
    ),
    "speech": (
        _fixed("speech_chunk", 0.06, "seconds of speech per message", 0.02, 0.5),
        _fixed("speech_lead", 0.3, "seconds that speech may be ahead of its playback: what a stop cannot recall", 0.05, 5.0),
    ),
}  # fmt: skip

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
    Parameter("chunk_frames", 8, "... and in its later ones: fewer is sooner, more is cheaper", 1, 1000),
    Parameter("runaway_limit", 100, "tokens, or codec frames of 80 ms, of mere repetition, silence or speech beyond a second a "
              "token that end an answer with an error; 0: no limit", 0, 100000),
)  # fmt: skip

SECTIONS = {**NODE, "answer": GENERATION}
TABLE = {p.name: p for section in SECTIONS.values() for p in section}
MISSPELT = 0.8  # likeness (difflib) from which an unknown name is taken for one of ours
_TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


class HasParameters(Protocol):
    """A node, or what stands for one."""

    def get_parameter(self, name: str) -> Any:
        """Its `value` is what counts."""
        ...


def declare(node: "Node", *, is_configured, table: dict[str, Parameter] = TABLE) -> None:
    """Declare every parameter of `table`, with what the command line and parameter files give. `is_configured()` tells whether
    fixed ones are in use. Raises InputError naming the parameter, what it may be, and the files that were given."""
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
    from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException

    # The overrides have no public face: an integer has to become a double before rclpy compares the types.
    overrides = node._parameter_overrides
    for name, given in overrides.items():
        overrides[name] = _as_declared(given, table)
    for p in table.values():
        descriptor = ParameterDescriptor(description=p.description, additional_constraints=p.constraint)
        if isinstance(p.default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=p.low, to_value=p.high)]
        elif p.low is not None:
            descriptor.integer_range = [IntegerRange(from_value=p.low, to_value=p.high)]
        try:
            node.declare_parameter(p.name, p.default, descriptor)
        except (InvalidParameterTypeException, InvalidParameterValueException) as error:
            value = shown(str(overrides[p.name].value))
            raise InputError(f"parameter {p.name} is {value}, but must be {allowed(p)}{_files()}") from error

    def check(given: "list[RosParameter]") -> "SetParametersResult":
        locked = node.get_parameter("lock_parameters").value
        for ros in given:
            if not node.has_parameter(ros.name) or ros.value == node.get_parameter(ros.name).value:
                continue  # it is being declared, as quality of service is with its topic, or nothing changes
            p, reason = table.get(ros.name), ""
            if locked:
                reason = f"{shown(ros.name)} is locked: lock_parameters was set, so start the node anew with other values"
            elif p is not None and p.fixed and is_configured():
                reason = f"{p.name} is read when the node is configured: deactivate and clean up first"
            if reason:
                return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    node.add_pre_set_parameters_callback(lambda given: [_as_declared(ros, table) for ros in given])
    node.add_on_set_parameters_callback(check)


def unknown(node: "Node", table: dict[str, Parameter] = TABLE) -> list[str]:
    """What is wrong with each parameter that was given to this node but means nothing to it.

    Raises InputError where the name is nearly one of ours. Others may be meant for another node that shares the file.
    """
    found = []
    for name in node._parameter_overrides:
        if node.has_parameter(name) or name.startswith("qos_overrides."):
            continue
        found.append(not_ours(name, _files(), table))
    return found


def not_ours(name: str, where: str, table: dict[str, Parameter] = TABLE) -> str:
    """What is wrong with a name that no parameter has, `where` it stands included. Raises InputError for a misspelling."""
    near = difflib.get_close_matches(name, table, 1, cutoff=0.0)[0]
    if difflib.SequenceMatcher(None, name, near).ratio() > MISSPELT:
        raise InputError(f"parameter {shown(name)} is unknown: did you mean {near}?{where}")
    return f"parameter {shown(name)} is unknown and ignored; the nearest is {near}{where}"


def settings(node: HasParameters) -> Settings:
    """What the dialogue may use from the next turn on."""
    own = {f: node.get_parameter(f).value for f in Settings.__dataclass_fields__ if f != "generation"}
    return replace(Settings(**own), generation=generation_options(node))


def generation_options(node: HasParameters) -> dict[str, Any]:
    """Keyword arguments of Request, as the parameters are now."""
    options = {p.name: node.get_parameter(p.name).value for p in GENERATION}
    options["speaker"] = options["speaker"] or None
    options["seed"] = None if options["seed"] < 0 else options["seed"]
    return options


def _as_declared(given: "RosParameter", table: dict[str, Parameter]) -> "RosParameter":
    """`temperature: 1` is an integer in YAML, and means 1.0; `device: 1` means "1"."""
    p = table.get(given.name)
    if p is not None and isinstance(p.default, str) and given.type_ == given.Type.INTEGER:
        return type(given)(given.name, value=str(given.value))
    if p is not None and isinstance(p.default, float) and given.type_ == given.Type.INTEGER:
        return type(given)(given.name, value=float(given.value))
    return given


def allowed(p: Parameter) -> str:
    """The values that it may have, in words."""
    between = f" from {p.low:g} to {p.high:g}" if p.low is not None else ""
    return _TYPES[type(p.default)] + between


def _files() -> str:
    """The parameter files of the command line: one of them holds the mistake, or the command line itself."""
    files = [value for option, value in zip(sys.argv, sys.argv[1:], strict=False) if option == "--params-file"]
    return f" (from {' or '.join(os.path.abspath(f) for f in files)}, or the command line)" if files else ""
