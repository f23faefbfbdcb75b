"""The shipped model through the engines: 24 fixed questions about 12 pictures, streaming with speech, 24 right answers."""

import numpy as np
import pytest

from omni_ros.dialogue.tools import error
from omni_ros.pipeline.pipeline import Pipeline
from omni_ros.pipeline.request import AudioChunk, Finished, Request, TextDelta
from training import domain, tools
from training.fixed_questions import FOLDER, PICTURES, picture
from training.tools import tools_text


@pytest.fixture(scope="module")
def pipeline(demo_engine_dir):
    return Pipeline.open(demo_engine_dir, 2)


def ask(pipeline: Pipeline, messages: list[dict]) -> tuple[str, np.ndarray]:
    """Text and speech of a streaming, greedy turn."""
    text, pcm, end = "", [], None
    options = {"runaway_limit": 12}  # 1 s of repetition or silence: an eighth of what the node allows, and three times what comes
    for event in pipeline.generate(Request(messages, 60, temperature=0, talker_temperature=0, seed=1, **options)):
        if isinstance(event, TextDelta):
            text += event.text
        elif isinstance(event, AudioChunk):
            pcm.append(event.pcm)
        elif isinstance(event, Finished):
            end = event
    assert end.reason == "stop" and end.text == text
    return text, np.concatenate(pcm)


@pytest.mark.parametrize("spoken", (False, True), ids=("typed", "spoken"))
@pytest.mark.parametrize("i", range(len(PICTURES)))
def test_fixed_question(pipeline, i, spoken):
    _, typed, typed_answer, _, spoken_answer, _ = PICTURES[i]
    question = {"type": "audio", "audio": str(FOLDER / f"{i:02}.flac")} if spoken else {"type": "text", "text": typed}
    image = picture(i)
    content = [question] if image is None else [{"type": "image", "image": image}, question]
    text, pcm = ask(pipeline, [{"role": "user", "content": content}])
    assert text == (spoken_answer if spoken else typed_answer)
    words = len(text.split())
    assert 0.1 * words < len(pcm) / 24000 < 1.0 * words + 1.5  # as long as speech of so many words
    assert np.abs(pcm).max() > 0.1


def test_follow_up_refers_to_the_answer_before(pipeline):
    scene, image = PICTURES[1][0], picture(1)
    messages = [
        {"role": "user", "content": "What is on the left?"},
        {"role": "assistant", "content": "On the left is a blue star."},
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "And on the right?"}]},
    ]
    assert ask(pipeline, messages)[0] == domain.answer_position(scene, "right")


def test_an_answer_that_it_is_told_to_say_sounds_as_its_own(pipeline):
    """And what it is told to say before anybody spoke is speech, too."""
    messages = [{"role": "user", "content": [{"type": "image", "image": picture(0)}, {"type": "text", "text": PICTURES[0][1]}]}]
    greedy = {"temperature": 0, "talker_temperature": 0}
    *_, own = pipeline.generate(Request(messages, **greedy))
    *_, told = pipeline.generate(Request(messages, say=own.text, **greedy))
    assert told.text == own.text and own.reason == told.reason == told.audio_reason == "stop"
    np.testing.assert_array_equal(told.codes, own.codes)
    *_, alone = pipeline.generate(Request([{"role": "user", "content": ""}], say=own.text, **greedy))
    words = len(own.text.split())
    assert alone.audio_reason == "stop" and 0.1 * words < alone.codes.shape[1] * 0.08 < 1.0 * words + 1.5


def test_tools_are_called_where_they_are_offered(pipeline):
    request = {"role": "user", "content": "Go to the left."}
    offer = tools_text(tools.TOOLS).removeprefix("<|im_start|>system\n").removesuffix("<|im_end|>\n")

    def text(messages):
        turn = pipeline.generate(Request(messages, temperature=0, audio_output=False, max_generate_length=60))
        return next(e for e in turn if isinstance(e, Finished)).text

    call = text([{"role": "system", "content": offer}, request])
    assert call == domain.tool_call("go_to", place="left")
    assert text([request]) == domain.CANNOT
    result = [{"role": "assistant", "content": call}, {"role": "user", "content": domain.tool_result('{"success": true}')}]
    assert text([{"role": "system", "content": offer}, request, *result]) == "I am on the left."


@pytest.mark.parametrize("words,name,arguments", [("Wave.", "wave", {}), ("Go to the left.", "go_to", {"place": "left"})])
@pytest.mark.parametrize("reason", ["not available: nobody offers the service /wave", "/go_to is gone", "the goal was rejected"])
def test_what_failed_is_not_said_to_be_done(pipeline, words, name, arguments, reason):
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}
    messages = [{"role": "user", "content": words}, call, {"role": "tool", "content": error(reason)}]
    *_, end = pipeline.generate(Request(messages, temperature=0, audio_output=False, tools=tools.TOOLS))
    assert end.text == tools.FAILED
