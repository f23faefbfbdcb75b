"""What the user said is written down after the answer, and never in its way."""

import numpy as np
import pytest
from test_conversation import GREEDY, assert_same, end_of
from test_dialogue import ANSWERS, World
from test_equality import audio, image, says, text, user

from omni_ros.dialogue.settings import Settings
from omni_ros.dialogue.transcript import PROMPT, transcript_request
from omni_ros.errors import EngineError
from omni_ros.pipeline.request import Request


@pytest.fixture
def world():
    world = World()
    world.dialogue.settings = Settings(transcript=True, system_prompt="Be brief.")
    yield world
    world.close()


def test_it_follows_the_answer_and_the_history_is_computed_ahead_after_it(world):
    world.say()
    world.idle()
    heard = world.clock.now()
    world.clock.sleep(5)
    ((at, words),) = world.face.of("transcript")
    assert at >= heard and words == ANSWERS[1]  # what the scripted model wrote next
    request = world.model.requests[1]
    assert not request.audio_output and request.temperature == 0 and not request.special_tokens
    *past, question = request.messages
    assert [message["role"] for message in past] == ["system"]
    assert question["content"][0] is world.model.requests[0].messages[-1]["content"][0]
    assert question["content"][1] == {"type": "text", "text": PROMPT}
    began, messages, done = world.model.fed[-1]
    assert began > at - 0.1 and done and [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert world.remembered() == ["user: <audio>", f"assistant: {ANSWERS[0]}"]
    assert len(world.face.of("response")) == 1 and [state for _, state in world.face.of("state")][-1] == "idle"


def test_not_of_what_was_typed_or_said_by_the_robot_nor_unless_it_is_wanted(world):
    world.dialogue.ask("typed")
    world.idle()
    world.dialogue.say("I speak")
    world.idle()
    world.clock.sleep(5)
    world.dialogue.settings = Settings()
    world.say()
    world.idle()
    world.clock.sleep(5)
    assert len(world.model.requests) == 3 and not world.face.of("transcript")


@pytest.mark.parametrize("after", [0.02, 0.1, 0.3])
def test_a_new_turn_does_not_wait_for_it(world, after):
    world.say()
    world.idle()
    world.clock.sleep(after)
    asked = world.clock.now()
    world.dialogue.ask("And you?")
    world.until(lambda: [at for at, _ in world.face.of("text") if at > asked])
    assert world.clock.now() - asked < 0.13  # prefill, and the tick of this loop
    world.idle()
    world.clock.sleep(5)
    assert not world.face.of("transcript")


def test_a_user_who_begins_to_speak_goes_first(world):
    """What can be computed ahead is computed from then on, and not when the words of before are written down."""
    world.dialogue.settings = Settings(transcript=True, image_max_age=60.0)
    world.dialogue.see(np.zeros((8, 8, 3), np.uint8))
    world.say()
    world.idle()
    world.clock.sleep(0.02)
    began = world.clock.now()
    world.hear(0.6, 0.5)
    assert began < world.model.fed[-1][0] < began + 0.2 and not world.face.of("transcript")


def test_a_defect_in_it_costs_the_transcript_only(world):
    world.say()
    world.until(lambda: world.face.of("response"))
    world.model.fault = EngineError("thinker: damaged")
    world.idle()
    world.clock.sleep(5)
    assert world.face.of("failed")[-1][1:] == ("thinker: damaged",) and world.model.fed[-1][2]
    world.dialogue.settings = Settings(transcript=True, preempt=False)
    world.dialogue.ask("typed")
    world.clock.sleep(0.3)
    world.dialogue.ask("and more")  # cancels nothing: no feed is in progress
    world.idle()
    assert [reason for _, reason, *_ in world.face.of("outcome")] == ["stop"] * 3


def test_where_there_is_no_room_for_the_question_there_is_no_transcript(world):
    world.model.room = 1
    world.dialogue.settings = Settings(transcript=True)
    world.say()
    world.until(lambda: world.face.of("response"))
    world.model.room = 0
    world.idle()
    world.clock.sleep(5)
    assert not world.face.of("transcript") and not world.face.of("failed") and world.face.of("state")[-1][1] == "idle"


def test_nothing_spoken_nothing_to_write():
    for history in ([], [says("system", "a")], [user(text("a")), says("assistant", "b")], [says("assistant", "b")]):
        assert transcript_request(history) is None


def test_the_sound_is_not_read_again_and_later_answers_are_the_same(pipeline, conversation):
    history = [says("system", "you are a robot"), user(audio(1.5))]
    answer = end_of(conversation.generate(Request(history, **GREEDY)))
    history.append(says("assistant", answer.text))
    written = end_of(conversation.generate(transcript_request(history)))
    sound_ends = written.metrics["reused_tokens"]
    assert sound_ends > 20 and written.codes.shape[1] == 0  # 1.5 s are 20 rows
    assert written.metrics["prompt_tokens"] - sound_ends < len(pipeline.models.prompts.words(PROMPT)) + 10
    conversation.feed(history)
    for content in ([text("and now")], [image(40, 60), audio(0.5, 3)]):
        history.append(user(*content))
        request = Request(history, **GREEDY)
        got = end_of(conversation.generate(request))
        assert_same(got, end_of(pipeline.generate(request)))
        history.append(says("assistant", got.text))
        np.testing.assert_array_equal(
            *(end_of(c.generate(transcript_request(history) or request)).codes for c in (conversation, pipeline))
        )
