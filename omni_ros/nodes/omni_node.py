"""`omni`: camera, microphone and text in; streamed text and speech out. A lifecycle node around the pipeline.

Callbacks only check and hand over: turns run on TurnWorker's thread, speech leaves on SpeechPublisher's.
"""

import sys
import threading
import time

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from std_msgs.msg import Bool, Int16MultiArray, String
from std_srvs.srv import SetBool, Trigger

from omni_ros.dialogue.endpoint import SAMPLE_RATE, Endpointer, SpeechEnd, SpeechStart, make_vad
from omni_ros.dialogue.history import History
from omni_ros.errors import InputError
from omni_ros.nodes import messages, parameters
from omni_ros.nodes.audio_input import AudioInput
from omni_ros.nodes.camera import Camera
from omni_ros.nodes.diagnostics import Health
from omni_ros.nodes.lifecycle_main import run
from omni_ros.nodes.speech_publisher import SpeechPublisher
from omni_ros.nodes.turn_worker import Outcome, TurnWorker, UserTurn, describe

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
STREAM = QoSProfile(depth=100)
STOP_WITHIN = 1.5  # seconds that a turn is given to reach its next decode step when the node stops


class OmniNode(LifecycleNode):
    def __init__(self) -> None:
        super().__init__("omni")
        parameters.declare(self)
        self._health = Health()
        self._state = ""
        self._state_lock = threading.Lock()  # the state changes on three threads; its messages must keep their order
        self._enabled = True
        # From configure to cleanup:
        self._pipeline = self._speech = self._worker = self._endpointer = None
        # While active:
        self._camera = self._audio = self._prompt = None

        def publisher(kind, topic, qos, create=self.create_publisher):
            return create(kind, topic, qos, qos_overriding_options=QoSOverridingOptions.with_default_policies())

        answers = self.create_lifecycle_publisher  # silent unless active
        self._response_stream = publisher(String, "response_stream", STREAM, answers)
        self._response = publisher(String, "response", QoSProfile(depth=10), answers)
        self._speech_audio = publisher(Int16MultiArray, "speech/audio", STREAM, answers)
        self._speaking = publisher(Bool, "speaking", LATCHED)
        self._user_speaking = publisher(Bool, "user_speaking", LATCHED)
        self._state_topic = publisher(String, "state", LATCHED)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_service(Trigger, "~/cancel", self._on_cancel)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.create_service(SetBool, "~/enable", self._on_enable)
        # A steady clock: diagnostics go on when simulated time stands still.
        self.create_timer(1.0, self._publish_diagnostics, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._update_state()

    def _value(self, name: str):
        return self.get_parameter(name).value

    # ---- lifecycle --------------------------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the engines and run them once: the first turn must neither fail nor be slow."""
        try:
            self._configure()
        except Exception as error:  # noqa: BLE001 - rclpy drops what a transition raises without a word
            self._health.configure_error = describe(error)
            self.get_logger().fatal(f"cannot configure: {describe(error)}")
            self._free()
            return TransitionCallbackReturn.FAILURE
        self._health.configure_error = ""
        return TransitionCallbackReturn.SUCCESS

    def _configure(self) -> None:
        from omni_ros.pipeline.pipeline import Pipeline  # here: an unconfigured node stays small
        from omni_ros.pipeline.request import Request

        if not (engine_dir := self._value("engine_dir")):
            raise InputError("parameter engine_dir is empty: give the folder that offline.build_engines made")
        self._endpointer = Endpointer(
            make_vad(self._value("vad")),
            threshold=self._value("vad_threshold"),
            start_seconds=self._value("speech_start"),
            end_seconds=self._value("speech_end"),
            pre_roll_seconds=self._value("pre_roll"),
            max_seconds=self._value("max_turn"),
        )
        started = time.monotonic()
        self._pipeline = Pipeline.open(engine_dir, self._value("threads"))
        sample = [{"type": "image", "image": np.zeros((224, 224, 3), np.uint8)},
                  {"type": "audio", "audio": np.zeros(SAMPLE_RATE, np.float32)}]  # fmt: skip
        options = parameters.generation_options(self) | {"max_generate_length": 2, "max_audio_length": 2}
        for _ in self._pipeline.generate(Request([{"role": "user", "content": sample}], **options)):
            continue  # a warm-up: its events are of no use
        self._speech = SpeechPublisher(
            lambda pcm: self._speech_audio.publish(messages.fill_pcm(Int16MultiArray(), pcm)),
            self._on_speaking,
            chunk=self._value("speech_chunk"),
            lead=self._value("speech_lead"),
        )
        self._worker = TurnWorker(
            self._pipeline,
            self._speech,
            History(self._value("history_turns")),
            system_prompt=lambda: self._value("system_prompt"),
            options=lambda: parameters.generation_options(self),
            on_text=lambda text: self._response_stream.publish(String(data=text)),
            on_response=lambda text: self._response.publish(String(data=text)),
            on_outcome=self._on_outcome,
            on_change=self._update_state,
        )
        self.get_logger().info(f"engines of {engine_dir} are loaded and warm ({time.monotonic() - started:.1f} s)")

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            self._subscribe()
        except Exception as error:  # noqa: BLE001 - as above
            self._health.configure_error = describe(error)
            self.get_logger().fatal(f"cannot activate: {describe(error)}")
            self._unsubscribe()
            return TransitionCallbackReturn.FAILURE
        self._speaking.publish(Bool(data=False))
        self._user_speaking.publish(Bool(data=False))
        result = super().on_activate(state)
        self._update_state()
        return result

    def _subscribe(self) -> None:
        transport = self._value("image_transport")
        self._camera = Camera(self, transport=transport, on_bad=lambda reason: self._on_bad("camera", reason))
        self._audio = AudioInput(
            self,
            type_name=self._value("audio_in_type"),
            sample_rate=self._value("sample_rate"),
            channels=self._value("channels"),
            on_pcm=self._on_pcm,
            on_bad=lambda reason: self._on_bad("audio", reason),
        )
        options = QoSOverridingOptions.with_default_policies()
        self._prompt = self.create_subscription(String, "prompt", self._on_prompt, 10, qos_overriding_options=options)

    def _unsubscribe(self) -> None:
        for topic in (self._camera, self._audio):
            if topic is not None:
                topic.close()
        if self._prompt is not None:
            self.destroy_subscription(self._prompt)
        self._camera = self._audio = self._prompt = None
        self._stop_listening()

    def _stop_listening(self) -> None:
        """Drop the utterance in progress."""
        if self._endpointer.in_speech:
            self._user_speaking.publish(Bool(data=False))
        self._endpointer.reset()

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._unsubscribe()
        self._worker.cancel()
        result = super().on_deactivate(state)
        self._update_state()
        return result

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._free()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        if self._endpointer is not None:
            self._unsubscribe()
        self._free()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.get_logger().error(f"a lifecycle transition from '{state.label}' failed; back to unconfigured")
        return self.on_shutdown(state)

    def _free(self) -> None:
        """Stop the threads and drop the engines."""
        stopped = self._worker is None or self._worker.close(STOP_WITHIN)
        if self._speech is not None:
            self._speech.close()
        if self._pipeline is not None and stopped:
            self._pipeline.close()
        self._pipeline = self._speech = self._worker = None
        self._update_state()

    # ---- inputs -----------------------------------------------------------------------------------------------

    def _on_prompt(self, msg: String) -> None:
        if not msg.data.strip():
            self._on_bad("prompt", "the text is empty")
        else:
            self._submit({"type": "text", "text": msg.data})

    def _on_pcm(self, pcm: np.ndarray) -> None:
        if not self._enabled:
            return
        if self._speech.speaking and self._value("mute_while_speaking"):
            pcm = np.zeros_like(pcm)  # silence, not a gap: an utterance that had begun still ends
        for event in self._endpointer.feed(pcm):
            self._user_speaking.publish(Bool(data=isinstance(event, SpeechStart)))
            if isinstance(event, SpeechEnd):
                self._submit({"type": "audio", "audio": event.pcm})
        self._update_state()

    def _submit(self, said: dict) -> None:
        """Close a turn: `said` together with what the camera shows now."""
        if not self._enabled:
            return
        picture = None
        if self._value("use_camera"):
            picture = self._camera.picture(self._value("image_max_age"), self._value("image_max_pixels"))

        def content() -> list[dict]:
            if picture is None:
                return [said]
            try:
                return [{"type": "image", "image": picture()}, said]
            except InputError as error:  # only its header was checked on arrival; the words are worth an answer alone
                self._on_bad("camera", str(error))
                return [said]

        self._worker.submit(UserTurn(content), preempt=self._value("preempt"))
        self._update_state()

    def _on_bad(self, topic: str, reason: str) -> None:
        self._health.bad_message(topic, reason)
        self.get_logger().warning(f"{topic}: {reason}", throttle_duration_sec=5.0)

    # ---- outputs ----------------------------------------------------------------------------------------------

    def _on_speaking(self, speaking: bool) -> None:
        self._speaking.publish(Bool(data=speaking))
        self._update_state()

    def _on_outcome(self, outcome: Outcome) -> None:
        self._health.turn_ended(outcome)
        if outcome.error:
            self.get_logger().error(f"turn failed: {outcome.error}")

    def _current_state(self) -> str:
        if self._audio is None:
            return "inactive" if self._worker is not None else "unconfigured"
        if not self._enabled:
            return "disabled"
        if self._speech.speaking:
            return "speaking"
        if self._worker.thinking:
            return "thinking"
        if self._endpointer.in_speech:
            return "listening"
        return "error" if self._health.last_turn is not None and self._health.last_turn.error else "idle"

    def _update_state(self) -> None:
        with self._state_lock:
            if (state := self._current_state()) != self._state:
                self._state = state
                self._state_topic.publish(String(data=state))

    def _publish_diagnostics(self) -> None:
        facts: dict[str, object] = {}
        if self._audio is not None:
            facts["audio type"] = self._audio.type_name or "no publisher yet"
            facts["waiting turns"] = self._worker.waiting
            facts["speech backlog s"] = self._speech.backlog
            facts["speech gaps"] = self._speech.gaps
            facts["picture age s"] = self._camera.age
        rate_problem = self._audio.rate_problem() if self._audio is not None else ""
        name = f"{self.get_fully_qualified_name().lstrip('/')}: dialogue"
        status = self._health.status(name, self._state, rate_problem, facts)
        msg = DiagnosticArray(status=[status])
        msg.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(msg)

    # ---- services ---------------------------------------------------------------------------------------------

    def _on_cancel(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self._worker is not None and self._worker.cancel()
        response.message = "stopped" if response.success else "there was nothing to stop"
        return response

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._worker is not None:
            self._worker.forget()
            self._stop_listening()
            self._health.last_turn = None
            self._update_state()
        response.success = self._worker is not None
        response.message = "the conversation is forgotten" if response.success else "the node is not configured"
        return response

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._enabled = request.data
        if not self._enabled and self._worker is not None:
            self._worker.cancel()
            self._stop_listening()
        self._update_state()
        response.success = True
        response.message = "listening" if self._enabled else "ignoring microphone and prompts"
        return response


def main(args: list[str] | None = None) -> int:
    return run(OmniNode, args)


if __name__ == "__main__":
    sys.exit(main())
