"""Play a recorded conversation to the engines, on simulated time: the same bag and engines give the same conversation.

Everything is the node's own: parameters, endpointing, turn taking, history. The dialogue's clock runs with the bag and stands
still while the engines compute, so how fast this machine is decides nothing; an answer begins a fixed time after it is asked
for, which places the interruptions. How long the engines really took is in each turn's metrics and latency.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np

from omni_ros.dialogue.face import Face
from omni_ros.dialogue.perception import HEAD
from omni_ros.dialogue.resample import Resampler
from omni_ros.dialogue.simulated_clock import SimulatedClock
from omni_ros.dialogue.turn import Outcome, describe
from omni_ros.errors import InputError
from omni_ros.nodes import messages
from omni_ros.nodes.configured import Configured
from omni_ros.nodes.parameter_file import FileParameters
from omni_ros.nodes.point_cloud import DISTANCE, check_cloud, cloud_to_rgb, distances
from omni_ros.pipeline.request import Event, Finished, Request
from omni_ros.replay.bag import Arrival, Bag
from omni_ros.replay.conversation import Conversation, Turn, without_playing

AFTERWARDS = 5.0  # simulated seconds after the bag's end: an utterance that it cuts off is closed meanwhile
INPUTS = ("audio", "audio_info", "push_to_talk", "camera", "points", "prompt", "facts", "say")  # uses of the bag's topics

Progress = Callable[[float, str], None]  # seconds since the bag began, a line about what happened or ""


class _Model:
    """A pipeline's conversation whose answers begin a fixed time after they are asked for, and are kept whole."""

    def __init__(self, conversation: Any, clock: SimulatedClock, after: float) -> None:
        self._conversation = conversation
        self._clock = clock
        self._after = after
        self._changed = clock.condition()
        self._cancelled = False
        self.asked: tuple[float, Request] | None = None  # when, what; of the answer in progress
        self.finished: Finished | None = None

    def __getattr__(self, name: str) -> Any:  # feed, reset, ...
        return getattr(self._conversation, name)

    def generate(self, request: Request) -> Iterator[Event]:
        self._cancelled = False
        return self._play(request, self._conversation.generate(request))

    def cancel(self) -> None:
        self._conversation.cancel()
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()

    def _play(self, request: Request, events: Iterator[Event]) -> Iterator[Event]:
        self.asked, self.finished = (self._clock.now(), request), None
        with closing(events):  # type: ignore[type-var]
            with self._changed:
                self._changed.wait_for(lambda: self._cancelled, self._after)
            for event in events:
                if isinstance(event, Finished):
                    self.finished = event
                yield event


class _Witness(Face):
    """Writes down what the dialogue tells."""

    def __init__(self, clock: SimulatedClock, progress: Progress) -> None:
        self.seen = Conversation()
        self.model: _Model
        self._clock = clock
        self._progress = progress

    def speech(self, pcm: np.ndarray) -> None:
        self.seen.spoken.append((self._clock.now(), _int16(pcm)))

    def user_speaking(self, speaking: bool) -> None:
        self.seen.user_speaking.append((self._clock.now(), speaking))

    def outcome(self, outcome: Outcome) -> None:
        if outcome.reason == "dropped":
            self.problem("a turn was not answered: a newer one took its place")
            return
        made, asked, self.model.finished, self.model.asked = self.model.finished, self.model.asked, None, None
        asked_at, request = asked or (self._clock.now(), Request([]))  # it may have failed before the model was asked
        questions = [message for message in request.messages if message["role"] == "user"]
        content = _parts(questions[-1]) if questions and request.say is None else []
        texts = [part["text"] for part in content if part["type"] == "text"]
        facts = "".join(text.lstrip() for text in texts if text.lstrip().startswith(HEAD))
        said = " ".join(text for text in texts if not text.lstrip().startswith(HEAD))
        pictures = [part["image"] for part in content if part["type"] == "image"]
        turn = Turn(
            asked_s=round(asked_at, 4),
            said=said,
            sound_s=sum(len(part["audio"]) for part in content if part["type"] == "audio") / 16000,
            picture=list(pictures[-1].shape[:2]) if pictures else None,
            reason=outcome.reason,
            audio_reason=outcome.audio_reason,
            text=outcome.text,
            error=outcome.error,
            token_ids=list(made.token_ids) if made else [],
            latency=without_playing(outcome.latency),
            metrics=outcome.metrics,
            codes=made.codes.astype(np.int16) if made else np.zeros((16, 0), np.int16),
            say=request.say or "",
            facts=facts,
        )
        self.seen.turns.append(turn)
        question = "say" if turn.say else repr(said) if said else f"{turn.sound_s:.1f} s of speech"
        self._progress(self._clock.now(), f"{question} -> {outcome.error or repr(outcome.text)}")

    def bad_input(self, source: str, error: InputError) -> None:
        self.problem(f"{source}: {error}")

    def sound_stopped(self, seconds: float, dropped: bool) -> None:
        what = "dropped" if dropped else "closed there"
        self.problem(f"no sound for {seconds:g} s inside an utterance, which was {what}")

    def failed(self, error: Exception) -> None:
        self.problem(f"survived a defect: {describe(error)}")

    def problem(self, what: str) -> None:
        self.seen.problems.append((self._clock.now(), what))


class _Microphone:
    """The audio topic's messages as 16 kHz sound, as nodes/audio_input.py reads them."""

    def __init__(self, bag: Bag, kind: str, sample_rate: int, channels: int) -> None:
        self._message_class = bag.fields(kind)
        self._resamplers: dict[int, Resampler] = {}
        self._lay_out(sample_rate, channels)

    def _lay_out(self, sample_rate: int, channels: int) -> None:
        read = messages.audio_reader(self._message_class, sample_rate, channels)
        if read is None:
            raise InputError("the audio topic's messages have other fields than the types that are known")
        self._read = read

    def info(self, message: Any) -> None:
        self._lay_out(*messages.pcm_format(message))

    def read(self, message: Any) -> np.ndarray:  # float32 [n] at 16 kHz
        pcm, rate = self._read(message)
        if rate not in self._resamplers:
            self._resamplers = {rate: Resampler(rate)}
        return self._resamplers[rate](pcm)


def play(bag: Bag, parameters: FileParameters, answer_after: float, progress: Progress) -> Conversation:
    """The conversation of `bag` with the engines of `parameters`. Raises OmniError when either cannot be used."""
    clock: Any = SimulatedClock()  # it has the methods of a Clock
    witness = _Witness(clock, progress)

    def around(conversation: Any) -> _Model:
        witness.model = _Model(conversation, clock, answer_after)
        return witness.model

    configured = Configured(parameters, witness, clock=clock, around=around)
    try:
        ears = None
        if "audio" in bag.topics:
            sample_rate, channels = (parameters.get_parameter(name).value for name in ("sample_rate", "channels"))
            ears = _Microphone(bag, bag.kind("audio"), sample_rate, channels)
        for arrival in bag.arrivals(*INPUTS):
            clock.sleep(max(0.0, arrival.at - clock.now()))
            try:
                _arrive(arrival, configured, ears, witness)
            except InputError as error:  # as the node does: it says so, and goes on
                witness.problem(f"{arrival.use}: {error}")
            progress(arrival.at, "")
        clock.sleep(AFTERWARDS)
        configured.dialogue.join()
        witness.seen.history = _remembered(configured)
    except Exception:
        configured.close()
        raise
    # Not after KeyboardInterrupt: it comes while another thread has its turn on the simulated clock.
    configured.close()
    witness.seen.give_speech()
    return witness.seen


def _arrive(arrival: Arrival, configured: Configured, ears: _Microphone | None, witness: _Witness) -> None:
    dialogue, message = configured.dialogue, arrival.message
    match arrival.use:
        case "audio" if ears is not None:
            pcm = ears.read(message)
            witness.seen.heard.append((max(0.0, arrival.at - pcm.size / 16000), _int16(pcm)))
            dialogue.hear(pcm)
        case "audio_info" if ears is not None:
            ears.info(message)
        case "prompt":
            dialogue.ask(message.data)
        case "say":
            dialogue.say(message.data)
        case "facts":
            dialogue.perceive(message.data)
        case "push_to_talk":
            dialogue.push_to_talk(message.data)
        case "points":
            check_cloud(message)
            dialogue.see(lambda: cloud_to_rgb(message))
            dialogue.perception.put(DISTANCE, lambda: distances(message))
        case "camera" if arrival.kind == "sensor_msgs/msg/Image":
            messages.check_image(message)
            dialogue.see(lambda: messages.image_to_rgb(message))
        case "camera":
            messages.check_compressed(message)
            dialogue.see(lambda: messages.compressed_to_rgb(message))


def _remembered(configured: Configured) -> list[str]:
    lines = []
    for message in configured.dialogue.history.messages(""):
        parts = [part.get("text", f"<{part['type']}>") for part in _parts(message)]
        lines.append(f"{message['role']}: {' '.join(parts)}")
    return lines


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _int16(pcm: np.ndarray) -> np.ndarray:
    return (np.clip(pcm, -1.0, 1.0) * 32767).round().astype(np.int16)
