"""After an interruption the engines keep the rows of what the history keeps: the question, and the words that were heard."""

import time

import numpy as np
import pytest
from simulated_speaker import SimulatedSpeaker
from test_dialogue import Loudness

from omni_ros.dialogue.clock import Clock
from omni_ros.dialogue.dialogue import Dialogue
from omni_ros.dialogue.endpoint import SAMPLE_RATE, Endpointer
from omni_ros.dialogue.face import Face
from omni_ros.dialogue.heard import INTERRUPTED
from omni_ros.dialogue.settings import Settings
from omni_ros.pipeline.pipeline import Pipeline
from omni_ros.pipeline.request import Request

NINE = "One, two, three, four, five, six, seven, eight, nine."
GREEDY = {"temperature": 0, "talker_temperature": 0, "max_generate_length": 60}


class Listening(Face):
    def __init__(self) -> None:
        self.speaker = SimulatedSpeaker(Clock())
        self.speech, self.gain = self.speaker.speech, self.speaker.gain
        self.spoken: list[bool] = []
        self.texts: list[str] = []

    def speaking(self, speaking: bool) -> None:
        self.spoken.append(speaking)

    def response(self, text: str) -> None:
        self.texts.append(text)


@pytest.mark.parametrize("after", [3.0, 4.0, 5.0])
def test_what_was_heard_is_not_computed_again(demo_engine_dir, after):
    """The trained model counts to nine, aloud, and is interrupted `after` seconds of speech."""
    pipeline = Pipeline.open(demo_engine_dir, 2)
    conversation, face = pipeline.conversation(), Listening()
    prompts: list[tuple[int, int]] = []  # rows of each that was read, and how many of them were there already
    keep = conversation.keep

    def keeping(prompt):
        prompts.append((len(prompt), keep(prompt)))
        return prompts[-1][1]

    conversation.keep = keeping
    settings = Settings(generation=GREEDY)
    dialogue = Dialogue(conversation, face, endpointer=Endpointer(Loudness()), settings=settings, audio_timeout=60.0)
    dialogue.ask("Count to nine.")
    wait(lambda: face.speaker.played(until=time.monotonic()).size > after * 24000)
    dialogue.hear(np.random.default_rng(0).normal(0, 0.2, SAMPLE_RATE).astype(np.float32))  # a second of voice at once
    wait(lambda: len(face.spoken) == len(prompts) == 2 and conversation.thinker_state.length == prompts[1][0])  # read ahead
    messages = dialogue.history.messages("")
    question, answer = messages
    heard = answer["content"][0]["text"].removesuffix(INTERRUPTED)
    assert heard and NINE.startswith(heard) and heard != NINE
    assert after < face.speaker.played().size / 24000 < after + 1.5  # on a busy machine

    def rows(history: list[dict]) -> int:
        return len(pipeline.models.prompts.build(history, read=None, answer=False, special_tokens=False))

    with_heard = rows([question, {**answer, "content": heard}])
    fed, kept = prompts[1]
    # A comma before the mark may be one token with it, so the last token of the words may have to be read again.
    assert fed == rows(messages) and with_heard - 1 <= kept <= with_heard
    dialogue.hear(np.zeros(SAMPLE_RATE, np.float32))
    wait(lambda: len(face.texts) == 2)
    dialogue.join()
    assert prompts[2][1] >= fed  # nothing of the history is read by the next turn
    request = Request(dialogue.history.messages("")[:3], special_tokens=False, **GREEDY)
    assert [event for event in pipeline.generate(request)][-1].text == face.texts[-1]  # as a fresh conversation answers
    assert dialogue.close(5)
    conversation.close()
    pipeline.close()


def wait(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
