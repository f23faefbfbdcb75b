"""Whole conversations without ROS, on simulated time: who speaks when, what is remembered, and that it repeats exactly."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scripted_model import FRAME, PER_FRAME, PER_TOKEN, PREFILL, ScriptedModel
from simulated_clock import SimulatedClock
from simulated_speaker import SimulatedSpeaker

from omni_ros.dialogue.clock import keep_running
from omni_ros.dialogue.dialogue import Dialogue
from omni_ros.dialogue.endpoint import Endpointer, make_vad
from omni_ros.dialogue.face import Face
from omni_ros.dialogue.heard import TOKENS_PER_SECOND, UNFINISHED
from omni_ros.dialogue.settings import Settings
from omni_ros.errors import EngineError, InputError, RunawayError

ANSWERS = [
    "the first answer is not a long one but it takes a while to say",
    "another answer that has just about as many words as the other had",
    "yes of course I can tell you more about that if you like me to",
]
CHUNK = 320  # samples: 20 ms
STEP = 0.02


class Loudness:
    """A voice activity detector that cannot err: what is loud is speech."""

    name = "loudness"

    def __init__(self) -> None:
        self.frames = 0

    def reset(self) -> None:
        self.frames = 0

    def __call__(self, frame: np.ndarray) -> float:
        self.frames += 1
        return float(np.abs(frame).mean() > 0.05)


class Recorder(Face):
    """Everything a dialogue tells, with the time."""

    def __init__(self, clock: SimulatedClock) -> None:
        self.clock = clock
        self.speaker = SimulatedSpeaker(clock)
        self.log: list[tuple] = []
        self.break_on: str | None = None

    def _note(self, kind: str, *what: object) -> None:
        self.log.append((round(self.clock.now(), 6), kind, *what))
        if kind == self.break_on:
            self.break_on = None
            raise RuntimeError(f"{kind} is broken")

    def text(self, delta):
        self._note("text", delta)

    def response(self, text):
        self._note("response", text)

    def speech(self, pcm):
        self._note("speech", round(float(pcm[0]), 4), pcm.size)
        self.speaker.speech(pcm)

    def gain(self, gain):
        self._note("gain", gain)
        return self.speaker.gain(gain)

    def speaking(self, speaking):
        self._note("speaking", speaking)

    def user_speaking(self, speaking):
        self._note("user", speaking)

    def transcript(self, text):
        self._note("transcript", text)

    def awake(self, awake):
        self._note("awake", awake)

    def state(self, state):
        self._note("state", state)

    def outcome(self, outcome):
        self._note("outcome", outcome.reason, outcome.audio_reason, outcome.error)

    def bad_input(self, source, error):
        self._note("bad", source, str(error))

    def sound_stopped(self, seconds, dropped):
        self._note("stopped", seconds, dropped)

    def failed(self, error):
        self._note("failed", str(error))

    def of(self, kind: str) -> list[tuple]:
        return [(at, *what) for at, k, *what in self.log if k == kind]


class World:
    """A dialogue with its surroundings."""

    def __init__(
        self, answers: list[str] = ANSWERS, room: int = 10**9, frames_per_word: int = 4, ears=lambda e: e, **options
    ) -> None:
        self.clock = options.pop("clock", None) or SimulatedClock()
        self.face = Recorder(self.clock)
        self.model = ScriptedModel(self.clock, answers, frames_per_word, room)
        options = {"history_turns": 100, **options}
        self.vad = Loudness()
        endpointer = ears(Endpointer(self.vad))
        self.dialogue = Dialogue(self.model, self.face, endpointer=endpointer, clock=self.clock, **options)
        self.clock.sleep(0.01)

    def hear(self, seconds: float, level: float = 0.0) -> None:
        """A microphone for a while."""
        for _ in range(round(seconds / STEP)):
            self.dialogue.hear(np.full(CHUNK, level, np.float32))
            self.clock.sleep(STEP)

    def say(self, seconds: float = 1.0) -> None:
        """The user speaks, then is silent for long enough."""
        self.hear(seconds, 0.5)
        self.hear(0.7)

    def until(self, condition, seconds: float = 60.0) -> None:
        end = self.clock.now() + seconds
        while not condition():
            assert self.clock.now() < end, self.face.log[-10:]
            self.clock.sleep(0.01)

    def idle(self) -> None:
        self.dialogue.join()
        self.clock.sleep(0.01)

    def close(self) -> None:
        assert self.dialogue.close(5.0)

    def remembered(self) -> list[str]:
        """What the history holds, in short."""
        found = []
        for message in self.dialogue.history.messages(""):
            parts = [part.get("text", f"<{part['type']}>") for part in message["content"]]
            found.append(f"{message['role']}: {' '.join(parts)}")
        return found


@pytest.fixture
def world():
    world = World()
    yield world
    world.close()


def test_a_spoken_and_a_typed_turn(world):
    world.say()
    world.idle()
    world.dialogue.ask("And you?")
    world.idle()
    assert world.remembered() == ["user: <audio>", f"assistant: {ANSWERS[0]}", "user: And you?", f"assistant: {ANSWERS[1]}"]
    assert [what for _, what in world.face.of("response")] == ANSWERS[:2]
    words = len(ANSWERS[0].split()), len(ANSWERS[1].split())
    assert sum(size for *_, size in world.face.of("speech")) == 4 * FRAME * sum(words)
    states = [state for _, state in world.face.of("state")]
    assert states == ["idle", "listening", "thinking", "speaking", "idle", "thinking", "speaking", "idle"]
    assert world.face.of("outcome") == [(at, "stop", "stop", "") for at, *_ in world.face.of("outcome")]


def interrupted(while_writing: bool, eager: bool, turns: int = 20) -> World:
    """`turns` questions, each of which cuts off the answer to the one before it, at another place."""
    # While it is written: words come four times as fast as they are spoken, and the first is spoken at once.
    world = World(frames_per_word=4, settings=Settings(eager=eager))
    written = PREFILL + len(ANSWERS[0].split()) * max(PER_TOKEN, 4 * PER_FRAME)
    world.onsets = []
    for turn in range(turns + 1):
        world.onsets.append(world.clock.now())
        world.say(0.8)
        wait = 0.02 * turn if while_writing else written + 0.05 * turn
        world.hear(wait)
    world.idle()
    return world


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("while_writing", [True, False])
def test_twenty_interruptions(while_writing, eager):
    world = interrupted(while_writing, eager)
    log, speaker = world.face.log, world.face.speaker
    assert len(world.face.of("user")) == 2 * 21  # no turn is lost
    asked = [request.messages[-1]["content"][0]["audio"] for request in world.model.requests]
    assert len({id(sound) for sound in asked}) == len(asked) == 21
    reasons = [reason for _, reason, *_ in world.face.of("outcome")]
    assert reasons == (["cancelled"] * 20 if while_writing else ["stop"] * 20) + ["stop"]
    for turn in range(20):
        onset, value = world.onsets[turn + 1], (turn + 1) / 100
        if speaker.played(value).size:
            silent = speaker.silent_from(value)
            assert silent < onset + 0.4  # after the first word began
            decided = next(at for at, speaking in world.face.of("speaking") if at > onset and not speaking)
            assert silent <= decided < onset + 0.7
            assert all(at < silent for at, chunk, _ in world.face.of("speech") if chunk == value)  # no late audio
    lines = world.remembered()
    position = 0
    for turn in range(21):  # right history: the question, and as much of the answer as was heard, never one word more
        assert lines[position] == "user: <audio>"
        position += 1
        answer = ANSWERS[turn % 3]
        if turn == 20:
            assert lines[position] == f"assistant: {answer}"
            break
        played = max(0.0, speaker.played((turn + 1) / 100).size - UNFINISHED * 24000)
        if position < len(lines) and lines[position].startswith("assistant"):
            kept = lines[position].removeprefix("assistant: ")
            position += 1
            assert kept.endswith("—") and answer.startswith(kept[:-1]) and answer[len(kept) - 1] == " "
            if while_writing:  # as much as somebody of ordinary speed has said by then
                assert len(kept.split()) == int(played / 24000 * TOKENS_PER_SECOND)
            else:  # its length was known: the same share of the text
                share = int(played / (4 * FRAME * len(answer.split())) * len(answer))
                whole = answer[:share] if answer[share] == " " else answer[:share].rsplit(" ", 1)[0]
                assert kept[:-1] == whole.rstrip()
        else:
            assert played < 24000 / TOKENS_PER_SECOND
    if not while_writing:
        assert sum(line.startswith("assistant") for line in lines) == 21
    assert [entry for entry in log if entry[1] == "failed"] == []
    world.close()


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("while_writing", [True, False])
def test_a_conversation_repeats_exactly(while_writing, eager):
    runs = []
    for _ in range(2):
        world = interrupted(while_writing, eager, turns=6)
        runs.append((world.face.log, world.remembered(), world.model.fed))
        world.close()
    (log, lines, fed), again = runs[0], runs[1]
    assert (log, lines) == again[:2]
    assert [(at, done) for at, _, done in fed] == [(at, done) for at, _, done in again[2]]


def test_without_preemption_the_answer_goes_on(world):
    world.dialogue.settings = Settings(preempt=False)
    world.dialogue.ask("Tell me a story.")
    world.until(lambda: world.face.of("speech"))
    world.say()
    world.dialogue.ask("dropped, because a newer one waits")
    world.dialogue.ask("the newest")
    world.idle()
    assert [text for _, text in world.face.of("response")] == ANSWERS[:2]
    assert [reason for _, reason, *_ in world.face.of("outcome")] == ["dropped", "dropped", "stop", "stop"]
    assert world.remembered()[2] == "user: the newest"


def test_a_question_that_was_spoken_over_before_its_answer_began_is_remembered(world):
    world.dialogue.ask("one")
    world.dialogue.ask("two")
    world.dialogue.ask("three")
    world.idle()
    assert world.remembered() == ["user: one", "user: two", "user: three", f"assistant: {world.face.of('response')[-1][1]}"]


def test_a_muted_robot_does_not_hear_itself_and_learns_nothing_from_it(world):
    world.dialogue.settings = Settings(mute_while_speaking=True)
    world.hear(1.0)
    world.dialogue.ask("Speak.")
    world.until(lambda: world.face.of("speaking"))
    world.clock.sleep(0.05)
    frames = world.vad.frames
    world.hear(1.0, 0.5)  # its own voice
    assert world.vad.frames == frames and not world.face.of("user")
    world.until(lambda: world.face.of("speaking")[-1][1] is False)
    world.hear(0.18, 0.5)  # the loudspeaker's tail
    assert not world.face.of("user")
    world.idle()
    world.say()
    world.idle()
    assert len(world.model.requests) == 2


def test_a_muted_robot_does_not_answer_its_own_silence():
    """Zeros in place of muted sound taught the energy VAD that the room is silent, and its noise then counted as speech."""
    world = World()
    world.dialogue._listener._endpointer = Endpointer(make_vad("energy"))
    world.dialogue.settings = Settings(mute_while_speaking=True)
    rng = np.random.default_rng(0)

    def room(seconds: float) -> None:
        for _ in range(round(seconds / STEP)):
            world.dialogue.hear(rng.normal(0, 10 ** (-50 / 20), CHUNK).astype(np.float32))
            world.clock.sleep(STEP)

    room(2.0)
    world.say()
    room(180.0)
    assert len(world.model.requests) == 1
    world.close()


def test_an_utterance_that_had_begun_ends_while_the_robot_speaks(world):
    world.dialogue.settings = Settings(mute_while_speaking=True, preempt=False)
    world.hear(0.5, 0.5)
    assert world.face.of("user") == [(pytest.approx(0.15, abs=0.03), True)]
    world.dialogue.ask("Speak.")
    world.until(lambda: world.face.of("speaking"))
    world.hear(0.7, 0.5)
    assert [speaking for _, speaking in world.face.of("user")] == [True, False]


def test_a_microphone_that_stops_in_mid_word_closes_the_turn(world):
    world.hear(1.0, 0.5)
    world.clock.sleep(1.5)
    world.idle()
    assert [what for _, *what in world.face.of("stopped")] == [[1.0, False]]
    (start, _), (end, _) = world.face.of("user")
    assert 1.0 + 1.0 <= end < 1.0 + 1.1
    said = world.model.requests[0].messages[-1]["content"][0]["audio"]
    assert said.size == 50 * CHUNK  # all of it, and nothing else


def test_a_microphone_that_stops_in_mid_word_can_drop_the_turn():
    world = World(audio_timeout_drops=True)
    world.hear(1.0, 0.5)
    world.clock.sleep(1.5)
    assert [what for _, *what in world.face.of("stopped")] == [[1.0, True]]
    assert [speaking for _, speaking in world.face.of("user")] == [True, False]
    world.say()
    world.idle()
    assert len(world.model.requests) == 1
    said = world.model.requests[0].messages[-1]["content"][0]["audio"]
    assert said.size < 1.8 * 16000  # the half from before the gap is not joined to it
    world.close()


def test_a_long_pause_between_two_utterances_is_no_fault(world):
    world.say()
    world.clock.sleep(30)
    world.say()
    world.idle()
    assert world.face.of("stopped") == []


def test_what_does_not_fit_is_forgotten_from_its_oldest_end():
    world = World(room=5)
    for number in range(6):
        world.dialogue.ask(f"question {number}")
        world.idle()
    assert [len(request.messages) for request in world.model.requests] == [1, 3, 5, 5, 5, 5]
    assert world.remembered()[0] == "user: question 3"
    world.close()


def test_a_prompt_that_cannot_fit_alone_fails_and_the_history_stays():
    world = World(room=5)
    for number in range(2):
        world.dialogue.ask(f"question {number}")
        world.idle()
    before = world.remembered()
    world.model.room = 0
    world.dialogue.ask("far too long")
    world.idle()
    assert world.face.of("outcome")[-1][1] == "error" and "messages" in world.face.of("outcome")[-1][3]
    assert world.remembered() == before
    world.model.room = 5
    world.dialogue.ask("question 2")
    world.idle()
    assert world.remembered()[: len(before)] == before
    world.close()


def test_reset_in_mid_answer_forgets_it(world):
    world.dialogue.ask("My name is Ada.")
    world.until(lambda: world.face.of("speech"))
    world.dialogue.reset()
    world.idle()
    assert world.remembered() == [] and world.model.resets == 1
    world.dialogue.ask("What is my name?")
    world.idle()
    assert len(world.model.requests[-1].messages) == 1


def test_a_disabled_dialogue_is_deaf(world):
    world.hear(0.5, 0.5)
    world.dialogue.enable(False)
    world.say()
    world.dialogue.ask("Are you there?")
    world.clock.sleep(2)
    assert world.model.requests == [] and world.face.of("state")[-1][1] == "disabled"
    world.dialogue.enable(True)
    world.dialogue.ask("Are you there?")
    world.idle()
    assert len(world.model.requests) == 1


@pytest.mark.parametrize("kind", ["text", "response", "speech", "speaking", "user", "state", "outcome"])
def test_whatever_breaks_outside_costs_one_turn_at_most(world, kind):
    world.face.break_on = kind
    world.say()
    world.clock.sleep(10)
    assert world.face.break_on is None, "it was not even called"
    reports = [str(entry) for entry in world.face.log if entry[1] == "failed" or (entry[1] == "outcome" and entry[4])]
    assert any(f"{kind} is broken" in report for report in reports)
    spoken, asked = len(world.face.of("speech")), len(world.model.requests)
    world.say()
    world.clock.sleep(10)
    assert len(world.face.of("speech")) > spoken and len(world.model.requests) == asked + 1
    assert world.face.of("state")[-1][1] == "idle"


def test_a_defect_whose_report_fails_too_costs_one_step(capsys):
    left = [lambda: False, lambda: True, lambda: 1 / 0]

    def report(error: Exception) -> None:
        raise OSError("nobody takes reports")

    keep_running(lambda: left.pop()(), report)
    assert left == [] and "nobody takes reports" in capsys.readouterr().err


def test_a_failed_turn_is_told_and_leaves_the_history_alone(world):
    world.model.fault = EngineError("thinker: damaged")
    world.dialogue.ask("Hello?")
    world.idle()
    assert world.face.of("outcome")[0][1:] == ("error", "none", "thinker: damaged")
    assert world.face.of("state")[-1][1] == "error" and world.remembered() == []
    world.dialogue.ask("Hello?")
    world.idle()
    assert world.face.of("state")[-1][1] == "idle"


def test_a_runaway_answer_ends_at_once_and_what_was_good_of_it_is_remembered():
    world = World(["one two three four five six " + "ha " * 40])
    world.model.fault, world.model.fault_after = RunawayError("it does not go on", repeated=30), 40
    world.dialogue.ask("Count.")
    world.idle()
    assert world.face.of("outcome")[0][1:] == ("error", "none", "it does not go on")
    assert world.face.of("state")[-1][1] == "error"
    assert [text for _, text in world.face.of("response")] == ["one two three four five six " + "ha " * 34]
    ended = world.face.of("outcome")[0][0]
    assert all(at <= ended for at, *_ in world.face.of("speech"))
    question, kept = world.remembered()
    assert question == "user: Count." and kept.startswith("assistant: one two") and kept.count("ha") <= 4
    world.dialogue.ask("And now?")
    world.idle()
    assert world.face.of("state")[-1][1] == "idle" and len(world.remembered()) == 4
    world.close()


def test_a_runaway_answer_without_speech_is_remembered_up_to_where_it_only_repeats():
    world = World(["one two three four five six " + "ha " * 40])
    world.dialogue.settings = Settings(generation={"audio_output": False})
    world.model.fault, world.model.fault_after = RunawayError("it does not go on", repeated=30), 40
    world.dialogue.ask("Count.")
    world.idle()
    assert world.remembered() == ["user: Count.", "assistant: one two three four five six ha ha ha ha—"]
    world.close()


def test_an_empty_answer_ends_like_any_other():
    world = World(["", "a word"])
    world.dialogue.ask("Hello?")
    world.idle()
    assert world.face.of("outcome")[0][1:] == ("stop", "none", "")
    assert [text for _, text in world.face.of("response")] == [""]
    assert world.face.of("speech") == [] and world.face.of("text") == []
    assert world.face.of("state")[-1][1] == "idle"
    world.dialogue.ask("Are you there?")
    world.idle()
    assert [text for _, text in world.face.of("response")] == ["", "a word"]
    assert world.remembered()[-2:] == ["user: Are you there?", "assistant: a word"]
    world.close()


def test_the_history_is_computed_ahead_and_a_new_turn_does_not_wait_for_it(world):
    world.dialogue.settings = Settings(system_prompt="Be brief.")
    world.dialogue.ask("one")
    world.idle()
    world.clock.sleep(1)
    at, messages, done = world.model.fed[-1]
    assert done and [message["role"] for message in messages] == ["system", "user", "assistant"]
    world.dialogue.ask("two")
    world.idle()
    assert world.model.requests[1].messages[:3] == messages  # so its rows are there already
    world.clock.sleep(0.05)
    asked = world.clock.now()
    world.dialogue.ask("three")  # while it is fed
    world.clock.sleep(0.01)
    assert world.model.fed[-1][2] is False and asked - 0.1 < world.model.fed[-1][0] < asked
    world.idle()
    first = [at for at, _ in world.face.of("text") if at >= asked][0]
    assert first - asked < PREFILL + 0.05


def test_the_newest_picture_goes_with_a_turn_while_it_is_young(world):
    picture = np.zeros((720, 1280, 3), np.uint8)
    world.dialogue.see(picture)
    world.dialogue.ask("What is this?")
    world.idle()
    image, text = world.model.requests[0].messages[-1]["content"]
    assert image == {"type": "image", "image": picture, "max_pixels": 307200} and image["image"] is picture
    world.clock.sleep(2)
    world.dialogue.ask("And now?")
    world.idle()
    assert [len(message["content"]) for message in world.model.requests[1].messages] == [1, 1, 1]


def test_a_picture_that_cannot_be_decoded_costs_the_picture_only(world):
    def broken() -> np.ndarray:
        raise InputError("half a JPEG")

    world.dialogue.see(broken)
    world.dialogue.ask("What is this?")
    world.idle()
    assert [what for _, *what in world.face.of("bad")] == [["camera", "half a JPEG"]]
    assert len(world.face.of("response")) == 1


def test_sound_that_cannot_be_used_is_told(world):
    def broken() -> np.ndarray:
        raise InputError("mp3")

    world.dialogue.hear(broken)
    world.say()
    world.idle()
    assert [what for _, *what in world.face.of("bad")] == [["audio", "mp3"]]
    assert len(world.model.requests) == 1


def test_a_pause_and_that_the_user_goes_on_are_told_in_order():
    world = World()
    told, listener = [], world.dialogue._listener
    listener._on_start, listener._on_goes_on = lambda: told.append("start"), lambda after_end: told.append("goes on")
    listener._on_pause = listener._on_end = told.append
    for seconds in (0.5, 0.5):
        world.hear(seconds, 0.5)
        world.hear(0.4)
    world.hear(0.4)
    assert [word for word in told if isinstance(word, str)] == ["start", "goes on"]
    start, first, goes_on, second, end = told
    assert end is second and second.size > first.size
    world.close()


def test_a_huge_piece_of_sound_can_be_dropped_while_it_is_listened_to():
    world = World()
    pcm = np.tile(np.concatenate([np.full(16000, 0.5, np.float32), np.zeros(16000, np.float32)]), 30)

    class Resetting(Loudness):
        def __call__(self, frame):
            if self.frames == 2:
                world.dialogue.stop_listening()
            return super().__call__(frame)

    world.dialogue._listener._endpointer._vad = Resetting()
    world.dialogue.hear(pcm)
    world.clock.sleep(0.1)
    world.idle()
    assert world.model.requests == [] and world.face.of("user") == []
    world.close()


def test_without_speech_what_was_written_counts_as_heard(world):
    world.dialogue.settings = Settings(generation={"audio_output": False})
    world.dialogue.ask("Write.")
    world.until(lambda: len(world.face.of("text")) == 5)
    world.dialogue.cancel()
    world.idle()
    assert world.remembered() == ["user: Write.", "assistant: the first answer is not—"]


def test_an_empty_text_is_refused(world):
    with pytest.raises(InputError, match="empty"):
        world.dialogue.ask(" \n")


def test_ten_lines_are_enough_for_another_face(engine_dirs):
    script = """
import sys
from omni_ros.dialogue.dialogue import Dialogue
from omni_ros.dialogue.settings import Settings
from omni_ros.dialogue.face import Face
from omni_ros.pipeline.pipeline import Pipeline
class Chat(Face):
    def text(self, delta): print("+" + delta)
    def response(self, text): print("=" + text)
short = Settings(generation={"max_generate_length": 6, "max_audio_length": 5})
dialogue = Dialogue(Pipeline.open(sys.argv[1]).conversation(), Chat(), settings=short)
dialogue.ask("What is your name?")
dialogue.join()
assert "rclpy" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script, engine_dirs["plain"]],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "=" in done.stdout and "+" in done.stdout
