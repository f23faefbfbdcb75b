"""A conversation with one person: sound, words and pictures in; words and paced speech out. No ROS.

class Chat(Face):
    def text(self, delta): print(delta, end="", flush=True)

dialogue = Dialogue(Pipeline.open("engines/").conversation(), Chat())
dialogue.ask("What is your name?")
dialogue.join()
"""

import atexit
from collections.abc import Callable, Iterable

import numpy as np

from omni_ros.dialogue.barge_in import BargeIn
from omni_ros.dialogue.clock import Clock
from omni_ros.dialogue.endpoint import Endpointer, make_vad
from omni_ros.dialogue.face import Face
from omni_ros.dialogue.history import History
from omni_ros.dialogue.listener import Listener, Pcm
from omni_ros.dialogue.perception import Perception
from omni_ros.dialogue.say import say_turn
from omni_ros.dialogue.settings import Settings
from omni_ros.dialogue.sight import Picture
from omni_ros.dialogue.speech_pacer import SpeechPacer
from omni_ros.dialogue.structured import ResponseSchema
from omni_ros.dialogue.surroundings import Surroundings
from omni_ros.dialogue.telling import Telling
from omni_ros.dialogue.tools import Tool, Tools
from omni_ros.dialogue.turn import Look, Outcome, Part, UserTurn, describe
from omni_ros.dialogue.turn_start import AfterWakeWord, Ears, PushToTalk
from omni_ros.dialogue.turn_worker import TurnWorker
from omni_ros.errors import InputError, OmniError

# A loudspeaker and its driver are late: the robot is heard for a little longer than the pacer's clock says.
ECHO_TAIL = 0.2  # seconds
AT_EXIT = 2.0  # seconds that the model is given when a program ends without close()


class Dialogue:
    """Listens, decides whose turn it is, answers, remembers. Every method returns at once and may be called from any thread.

    `conversation` is the model: see TurnWorker. Threads live from construction to close().
    """

    def __init__(
        self,
        conversation,
        face: Face,
        *,
        endpointer: Ears | None = None,
        settings: Settings = Settings(),  # noqa: B008 - immutable
        history_turns: int = 2,
        speech_chunk: float = 0.06,  # seconds
        speech_lead: float = 0.3,  # seconds that speech may be ahead of its playback: what a stop cannot recall
        audio_timeout: float = 1.0,  # seconds without sound after which an utterance is closed
        audio_timeout_drops: bool = False,  # or dropped
        tools: Iterable[Tool] = (),
        max_tool_calls: int = 8,  # of one turn
        response_schema: ResponseSchema | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.settings = settings  # may be replaced at any time
        self.history = History(history_turns)
        self._face = face
        self._clock = clock = clock or Clock()
        self._enabled = True
        self._surroundings = Surroundings(lambda: self.settings, face, clock)
        self._telling = telling = Telling(face, response_schema, lambda: self.state, clock)
        self._tell_state = telling.state
        self._pacer = SpeechPacer(
            face.speech, telling.speaking, face.gain, face.failed, chunk=speech_chunk, lead=speech_lead, clock=clock
        )
        self._schema = response_schema
        self._tools = Tools(tools, max_calls=max_tool_calls, on_report=telling.tool, clock=clock)
        self._worker = TurnWorker(
            conversation,
            self._pacer,
            self.history,
            system_prompt=self._system_prompt,
            options=lambda: self.settings.generation,
            tools=self._tools,
            transcribes=lambda: self.settings.transcript,
            on_text=face.text,
            on_response=telling.response,
            on_transcript=face.transcript,
            on_outcome=telling.outcome,
            on_change=telling.state,
            on_failure=face.failed,
            clock=clock,
        )
        self._barge_in = BargeIn(self._pacer, lambda: self._worker.turns.answer, self._worker.interrupt, clock)
        self._button_up = isinstance(endpointer, PushToTalk)
        self._has_button = self._button_up
        endpointer = endpointer or Endpointer(make_vad("auto"))
        if not isinstance(endpointer, PushToTalk):
            endpointer.take_back = self._worker.take_back
        if isinstance(endpointer, AfterWakeWord):
            endpointer.busy = lambda: self._worker.turns.thinking or self._pacer.speaking
            endpointer.on_awake = face.awake
        self._listener = Listener(
            endpointer,
            on_start=self._on_speech_start,
            on_voice=lambda seconds: self._barge_in.lasts(seconds, self.settings.barge_in_seconds),
            on_pause=self._on_speech_pause,
            on_goes_on=self._on_speech_goes_on,
            on_so_far=self._on_speech_so_far,
            on_end=self._on_speech_end,
            on_bad=lambda error: face.bad_input("audio", error),
            on_lost=face.sound_stopped,
            on_failure=face.failed,
            timeout=audio_timeout,
            drop=audio_timeout_drops,
            clock=clock,
        )
        atexit.register(self.close, AT_EXIT)  # a program that ends while an engine computes is aborted
        self._tell_state()

    # ---- what happens around the robot --------------------------------------------------------------------------

    def hear(self, pcm: Pcm | Callable[[], Pcm], size: int = 0) -> None:
        """The next sound of the microphone: float32 [n] at 16 kHz, or a function that makes it (and may raise InputError)
        from `size` bytes."""
        if self._enabled:
            echo = self._pacer.speaking or self._clock.now() - self._pacer.silent_since < ECHO_TAIL
            muted = self._button_up if self._has_button else echo and self.settings.mute_while_speaking
            size = size if callable(pcm) else pcm.nbytes
            self._listener.hear(pcm if callable(pcm) else lambda: pcm, size, muted)

    def push_to_talk(self, held: bool) -> None:
        """The button is held, or up. InputError when no button begins a turn."""
        if not self._has_button:
            raise InputError("turn_start is not push_to_talk: nobody waits for a button")
        pressed, self._button_up = held and self._button_up, not held
        if pressed and self._enabled and self.settings.preempt:
            self._worker.interrupt()
        if not held:  # in the order of the sound: no more of it may come
            self._listener.hear(lambda: np.zeros(1, np.float32), 0, True)

    def see(self, picture: Picture | Callable[[], Picture], size: int = 0) -> None:
        """The newest picture: uint8 RGB [H, W, 3], or a function that makes it, called only when a turn needs it, from `size`
        bytes."""
        self._surroundings.see(picture, size)

    def perceive(self, facts: str) -> None:
        """What sensors and programs know, for the turns to come: see Perception.tell. InputError when it cannot be used."""
        self.perception.tell(facts)

    @property
    def perception(self) -> Perception:
        """Facts, also those that are made only when a turn needs them."""
        return self._surroundings.perception

    def ask(self, text: str) -> None:
        """A typed turn. InputError when there is nothing in it."""
        if not text.strip():
            raise InputError("the text is empty")
        self._submit(self._turn({"type": "text", "text": text}, self._surroundings.look()))

    def say(self, text: str) -> None:
        """Words to speak as they are. They are remembered as the robot's own, and stop as an answer does when the user speaks.
        InputError when there is nothing in it, or too much."""
        if self._enabled:
            self._worker.say(say_turn(text, self._clock.now()), preempt=self.settings.say_preempts)
            self._tell_state()

    # ---- control ------------------------------------------------------------------------------------------------

    def cancel(self) -> bool:
        """Stop the answer in progress and drop the turn that waits; False when there was neither."""
        return self._worker.cancel()

    def reset(self) -> None:
        """Stop, and forget the conversation."""
        self._worker.forget()
        self.stop_listening()
        self._telling.last_failed = False
        self._tell_state()

    def enable(self, enabled: bool) -> None:
        """Disabled: stop, and ignore microphone and words."""
        self._enabled = enabled
        if not enabled:
            self._worker.cancel()
            self.stop_listening()
        self._tell_state()

    def stop_listening(self) -> None:
        """Drop the utterance in progress, as when the microphone goes."""
        if self._listener.in_speech:
            self._face.user_speaking(False)
        self._listener.reset()
        self._barge_in.forget()
        self._worker.withdraw()
        self._worker.hold_says(False)
        self._forget_spoken()
        self._tell_state()

    def forget_picture(self) -> None:
        """As when the camera goes."""
        self._surroundings.forget_picture()

    def give_up(self, error: OmniError) -> None:
        """The model never returns: what is asked ends with `error`, and nothing is answered any more."""
        if self._worker.give_up():
            self._telling.outcome(Outcome("error", error=describe(error)))
        self._tell_state()

    def join(self) -> None:
        """Until every turn was answered and its speech was heard."""
        self._worker.join()

    def close(self, timeout: float) -> bool:
        """Stop for good; False when the model did not reach its next decode step within `timeout` seconds."""
        atexit.unregister(self.close)
        self._listener.close(timeout)
        stopped = self._worker.close(timeout)
        self._pacer.close()
        return stopped

    # ---- what is going on ---------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        if not self._enabled:
            return "disabled"
        if self._pacer.speaking:
            return "speaking"
        if self._worker.turns.thinking:
            return "thinking"
        if self._listener.in_speech:
            return "listening"
        return "error" if self._telling.last_failed else "idle"

    def facts(self) -> dict[str, object]:
        """For a diagnostic: what waits where."""
        return {
            "vad": self._listener.vad_name,
            "waiting turns": self._worker.turns.length,
            "speech backlog s": self._pacer.backlog,
            "speech gaps": self._pacer.gaps,
            **self._surroundings.facts(),
            "answer remembered": self.history.last_answer,
            "back-channels": self._barge_in.back_channels,
            "tools": ", ".join(tool["function"]["name"] for tool in self._tools.offer) or "none",
        }

    # ---- from the dialogue's threads ----------------------------------------------------------------------------

    def _on_speech_start(self) -> None:
        if self.settings.preempt:
            self._barge_in.begins()
        self._user_speaks()

    def _user_speaks(self) -> None:
        self._face.user_speaking(True)
        self._worker.hold_says(True)
        self._worker.prepare(self._surroundings.glance(), None)
        self._tell_state()

    def _on_speech_pause(self, pcm: Pcm) -> None:
        """The user may have finished; if so, the end of speech brings this very array."""
        self._barge_in.pauses()
        if self.settings.eager and self._enabled and not self._barge_in.undecided:
            self._worker.speculate(self._turn({"type": "audio", "audio": pcm}, self._surroundings.glance()))

    def _on_speech_goes_on(self, after_end: bool) -> None:
        """The user had not finished at the last pause; after the end of a turn, nothing of that is left."""
        self._barge_in.goes_on()
        self._worker.withdraw()
        if after_end:
            self._user_speaks()

    def _on_speech_so_far(self, pcm: Pcm) -> None:
        """So much was said by now; the user goes on."""
        self._worker.prepare(self._surroundings.glance(), {"type": "audio", "audio": pcm, "unfinished": True})

    def _on_speech_end(self, pcm: Pcm | None) -> None:
        try:
            self._face.user_speaking(False)
            is_turn = self._barge_in.ends(pcm is not None)
            if is_turn and pcm is not None and not self._worker.confirm(pcm):
                self._submit(self._turn({"type": "audio", "audio": pcm}, self._surroundings.glance()))
        finally:  # whatever was raised above must not leave the worker waiting for the end of a turn
            self._worker.withdraw()
            self._forget_spoken()
            self._worker.hold_says(False)
        self._tell_state()

    def _submit(self, turn: UserTurn) -> None:
        """Close a turn."""
        if self._enabled:
            self._worker.submit(turn, preempt=self.settings.preempt)
            self._tell_state()

    def _turn(self, said: Part, picture: Look | None) -> UserTurn:
        now = self._clock.now()
        spoken_until = now - self._listener.silence if said["type"] == "audio" else None
        return UserTurn(said, picture, closed_at=now, spoken_until=spoken_until, context=self._surroundings.known())

    def _forget_spoken(self) -> None:
        self._surroundings.forget_glance()
        self._worker.prepare(None, None)

    def _system_prompt(self) -> str:
        told = self._schema.instruction if self._schema is not None else ""
        return "\n\n".join(text for text in (self.settings.system_prompt, told) if text)
