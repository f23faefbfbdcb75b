"""What a dialogue tells, as topics."""

import threading

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from std_msgs.msg import Bool, Float32, Int16MultiArray, String

from omni_ros.dialogue.face import Face
from omni_ros.dialogue.tools import ToolReport
from omni_ros.dialogue.turn import Outcome, describe
from omni_ros.errors import InputError
from omni_ros.nodes import messages
from omni_ros.nodes.diagnostics import CUT_SHORT, LONGEST, Health, in_words, latency_status
from omni_ros.nodes.live_speech import live_speech
from omni_ros.nodes.messages import shown

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
STREAM = QoSProfile(depth=100)


class Outputs(Face):
    """The publishers of the omni node, its log and its health. They live as long as the node."""

    def __init__(self, node: LifecycleNode, health: Health) -> None:
        def publisher(kind, topic, qos, create=node.create_publisher):
            return create(kind, topic, qos, qos_overriding_options=QoSOverridingOptions.with_default_policies())

        answers = node.create_lifecycle_publisher  # silent unless active
        self._response_stream = publisher(String, "response_stream", STREAM, answers)
        self._response = publisher(String, "response", QoSProfile(depth=10), answers)
        self._response_json = publisher(String, "response_json", QoSProfile(depth=10), answers)
        self._transcript = publisher(String, "transcript", QoSProfile(depth=10), answers)
        self._live_speech = live_speech(node)
        self._speech_audio = publisher(Int16MultiArray, "speech/audio", STREAM, answers)
        self._speech_gain = publisher(Float32, "speech_gain", LATCHED)
        self._speaking = publisher(Bool, "speaking", LATCHED)
        self._user_speaking = publisher(Bool, "user_speaking", LATCHED)
        self._awake = publisher(Bool, "awake", LATCHED)
        self._state = publisher(String, "state", LATCHED)
        self._latency = publisher(DiagnosticArray, "latency", QoSProfile(depth=10), answers)
        self._log = node.get_logger()
        self._now = node.get_clock().now
        self._name = node.get_fully_qualified_name().lstrip("/")
        self._health = health
        self._audio_topic = node.resolve_topic_name("audio")
        self._lock = threading.Lock()  # the state changes on several threads; its messages must keep their order
        self._lifecycle = "unconfigured"  # or inactive, finalized; "" while active
        self._dialogue_state = "idle"
        self.shown_state = ""  # what topic `state` says
        self.lifecycle(self._lifecycle)

    @property
    def at_rest(self) -> bool:
        """Whether neither the user nor the robot is at it."""
        return self.shown_state not in ("listening", "thinking", "speaking")

    def lifecycle(self, label: str) -> None:
        """The node is `label`; active ("") it is what its dialogue is."""
        with self._lock:
            self._lifecycle = label
            self._show_state()

    def quiet(self) -> None:
        """Nobody speaks, as a latched fact, and whoever will may be heard."""
        self.gain(1.0)
        self._speaking.publish(Bool(data=False))
        self._user_speaking.publish(Bool(data=False))

    # ---- Face ---------------------------------------------------------------------------------------------------

    def text(self, delta: str) -> None:
        self._response_stream.publish(String(data=delta))

    def response(self, text: str) -> None:
        self._response.publish(String(data=text))

    def transcript(self, text: str) -> None:
        self._transcript.publish(String(data=text))
        self._live_speech(text)

    def response_json(self, text: str) -> None:
        self._response_json.publish(String(data=text))

    def tool(self, report: ToolReport) -> None:
        self._health.tool_ended(report.ended)
        what = f"tool {report.name}({shown(report.arguments, LONGEST)}) {report.ended}: {shown(report.result, LONGEST)}"
        if report.ended in ("failed", "timeout", "refused"):
            self.bad("tools", what)
        else:
            self._log.info(what)

    def speech(self, pcm: np.ndarray) -> None:
        self._speech_audio.publish(messages.fill_pcm(Int16MultiArray(), pcm))

    def gain(self, gain: float) -> bool:
        self._speech_gain.publish(Float32(data=gain))
        return self._speech_gain.get_subscription_count() > 0

    def speaking(self, speaking: bool) -> None:
        self._speaking.publish(Bool(data=speaking))

    def user_speaking(self, speaking: bool) -> None:
        self._user_speaking.publish(Bool(data=speaking))

    def awake(self, awake: bool) -> None:
        self._awake.publish(Bool(data=awake))

    def state(self, state: str) -> None:
        with self._lock:
            self._dialogue_state = state
            self._show_state()

    def outcome(self, outcome: Outcome) -> None:
        self._health.turn_ended(outcome)
        if outcome.latency is not None:
            msg = DiagnosticArray(status=[latency_status(f"{self._name}: latency", outcome)])
            msg.header.stamp = self._now().to_msg()
            self._latency.publish(msg)
        if outcome.error:
            self._log.error(f"turn failed: {outcome.error[:LONGEST]}")
        elif outcome.audio_reason in CUT_SHORT:
            self._log.warning(f"speech was cut short: {CUT_SHORT[outcome.audio_reason]}")
        elif outcome.latency is not None:  # one line a turn, without a word of what was said: a log that can stay on
            stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in in_words(outcome.latency).items())
            self._log.info(f"answer made ({outcome.reason}): {stages}")

    def bad_input(self, source: str, error: InputError) -> None:
        self.bad(source, str(error))

    def sound_stopped(self, seconds: float, dropped: bool) -> None:
        what = "dropped" if dropped else "closed there"
        self.bad("audio", f"no sound came on {self._audio_topic} for {seconds:g} s inside an utterance, which was {what}")

    def failed(self, error: Exception) -> None:
        self._health.defect(describe(error))
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        place = f" ({where.tb_frame.f_code.co_filename}:{where.tb_lineno})" if where is not None else ""
        self._log.error(f"survived a defect: {describe(error)[:LONGEST]}{place}")

    # ---------------------------------------------------------------------------------------------------------------

    def bad(self, topic: str, reason: str) -> None:
        """A message that cannot be used."""
        self._health.bad_message(topic, reason)
        self._log.warning(f"{topic}: {reason[:LONGEST]}", throttle_duration_sec=5.0)

    def _show_state(self) -> None:
        if (state := self._lifecycle or self._dialogue_state) != self.shown_state:
            self.shown_state = state
            self._state.publish(String(data=state))
