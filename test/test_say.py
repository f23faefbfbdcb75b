"""Words that the robot is told to say: spoken as the model speaks its own, without the Thinker writing one."""
# ruff: noqa: F811 - a fixture is imported, and named again where it is used

import numpy as np
import pytest
from test_equality import audio, image, reference, says, text, user  # noqa: F401 - one is a fixture

from offline.quantization.spy import spy
from omni_ros.errors import InputError, PromptTooLongError
from omni_ros.pipeline.request import AudioChunk, Finished, Request, TextDelta, TextFinished

GREEDY = {"temperature": 0, "talker_temperature": 0, "max_audio_length": 14}
WORDS = "hello, the door is open now"
CONTEXTS = {
    "nobody has spoken": [user(text(""))],
    "system prompt": [says("system", "you are a robot"), user(text(""))],
    "after a turn": [user(audio(1.1), text("what is this")), says("assistant", "a robot")],
    "after a picture": [
        says("system", "hello"),
        user(image(64, 80), text("look")),
        says("assistant", "I do"),
        says("assistant", "so"),
    ],
    "an open question": [user(text("are you there"))],
}


def play(generate, request: Request) -> tuple[Finished, np.ndarray, str]:
    events = list(generate(request))
    assert [event.text for event in events if isinstance(event, TextFinished)] == [events[-1].text]
    pcm = [event.pcm for event in events if isinstance(event, AudioChunk)]
    return events[-1], np.concatenate(pcm), "".join(event.text for event in events if isinstance(event, TextDelta))


@pytest.mark.parametrize("context", CONTEXTS)
def test_codes_are_those_of_transformers_whose_thinker_is_made_to_write_the_words(pipeline, conversation, reference, context):
    messages = CONTEXTS[context]
    words = pipeline.models.prompts.words(WORDS)
    expected = reference.generate(messages, max_generate_length=len(words) + 1, max_audio_length=14, forced=words)
    assert expected.token_ids[:-1] == words
    for streaming in (True, False):
        with spy(pipeline) as calls:
            finished, pcm, streamed = play(conversation.generate, Request(messages, say=WORDS, streaming=streaming, **GREEDY))
        assert finished.token_ids == words and finished.text == streamed == WORDS
        assert (finished.reason, finished.audio_reason) == ("stop", "length" if finished.codes.shape[1] == 14 else "stop")
        np.testing.assert_array_equal(finished.codes, expected.codes)
        np.testing.assert_allclose(pcm, expected.waveform, atol=1e-3)
        read = sum(len(call.inputs["inputs_embeds"]) for call in calls if call.engine == "thinker")
        assert read == finished.metrics["prompt_tokens"] - finished.metrics["reused_tokens"]  # its prompt, and no word


@pytest.mark.parametrize("words", ["a", "<|im_end|> is no end", "Größe 日本 ✓", " \n x"])
def test_any_words(pipeline, words):
    finished, pcm, streamed = play(
        pipeline.generate, Request(CONTEXTS["after a turn"], say=words, special_tokens=False, **GREEDY)
    )
    assert finished.text == streamed == words
    assert pcm.size == finished.metrics["audio_samples"]


def test_more_words_than_a_reply_may_have(pipeline):
    """max_generate_length is about what the Thinker writes."""
    words = "one two three four five six seven eight nine ten"
    for streaming in (True, False):
        request = Request(CONTEXTS["an open question"], say=words, max_generate_length=1, streaming=streaming, **GREEDY)
        assert play(pipeline.generate, request)[0].text == words


def test_the_conversation_goes_on_as_if_the_words_had_been_its_own(pipeline, conversation):
    first = [user(audio(0.8), text("so"))]
    play(conversation.generate, Request(first, max_generate_length=5, **GREEDY))
    play(conversation.generate, Request(first, say=WORDS, **GREEDY))
    history = [*first, says("assistant", WORDS), user(text("what was that"))]
    conversation.feed(history[:2])
    request = Request(history, max_generate_length=6, **GREEDY)
    got, fresh = (list(generate(request))[-1] for generate in (conversation.generate, pipeline.generate))
    assert got.token_ids == fresh.token_ids and got.metrics["reused_tokens"] > fresh.metrics["reused_tokens"] == 0
    np.testing.assert_array_equal(got.codes, fresh.codes)


def test_it_can_be_cancelled(open_pipeline):
    conversation = open_pipeline("plain", "onnxruntime").conversation()
    request = Request(CONTEXTS["an open question"], say=WORDS * 9, talker_temperature=0, max_audio_length=400)
    seconds = 0
    for event in (events := conversation.generate(request)):
        if isinstance(event, AudioChunk):
            seconds += event.pcm.size / 24000
            conversation.cancel()
    assert isinstance(event, Finished) and event.audio_reason == "cancelled" and seconds < 3
    events.close()
    assert play(conversation.generate, Request(CONTEXTS["an open question"], say="a", **GREEDY))[0].text == "a"
    conversation.close()


@pytest.mark.parametrize("words", ["", " \n", 5, b"hello"])
def test_what_is_no_text_is_refused(words):
    with pytest.raises(InputError, match="say"):
        Request([user(text("a"))], say=words)


def test_silence_is_refused():
    with pytest.raises(InputError, match="audio_output"):
        Request([user(text("a"))], say="a", audio_output=False)


@pytest.mark.parametrize(
    "words, error", [("word " * 3000, PromptTooLongError), ("x" * 10**7, PromptTooLongError), ("\ud83d", InputError)]
)
def test_too_much_and_garbage_are_refused_and_the_next_turn_works(pipeline, words, error):
    messages = CONTEXTS["an open question"]
    with pytest.raises(error):
        list(pipeline.generate(Request(messages, say=words, **GREEDY)))
    assert play(pipeline.generate, Request(messages, say="a", **GREEDY))[0].text == "a"
