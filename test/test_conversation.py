"""A conversation computes what is new and nothing else, and says what a fresh run of the whole prompt says."""

import gc
import threading
import weakref

import numpy as np
import pytest
from conftest import BACKENDS
from oracle import load
from test_equality import audio, image, says, text, user, video

from offline.quantization.spy import Call, spy
from omni_ros.errors import EngineError, OmniError, PromptTooLongError
from omni_ros.pipeline.conversation import Conversation
from omni_ros.pipeline.request import AudioChunk, Finished, Request, TextDelta

GREEDY = {"temperature": 0, "talker_temperature": 0, "max_generate_length": 7, "max_audio_length": 9}


def end_of(events) -> Finished:
    return list(events)[-1]


def assert_same(got: Finished, expected: Finished) -> None:
    assert got.token_ids == expected.token_ids
    np.testing.assert_array_equal(got.codes, expected.codes)


def rows_of(calls: list[Call], engine: str) -> int:
    """How many prompt rows an engine was run on; steps have one row and are left out."""
    return sum(len(c.inputs["inputs_embeds"]) for c in calls if c.engine == engine and len(c.inputs["inputs_embeds"]) > 1)


def random_part(rng: np.random.Generator) -> dict:
    kind, seed = rng.choice(["text", "audio", "image", "video"], p=[0.4, 0.3, 0.25, 0.05]), int(rng.integers(1000))
    if kind == "text":
        return text(" ".join(rng.choice(["what", "do you", "see", "there", "and", "hear?"], 3)))
    if kind == "audio":
        return audio(float(rng.uniform(0.3, 2.5)), seed)
    if kind == "image":
        return image(int(rng.integers(30, 100)), int(rng.integers(30, 140)), seed)
    return video(2, 64, 96, 2.0)


@pytest.mark.parametrize("seed", range(4))
def test_random_conversations(pipeline, conversation, seed):
    """Up to 8 turns; the answer that is remembered may be cut anywhere, pictures may be forgotten, the oldest turn too."""
    rng = np.random.default_rng(seed)
    history: list[dict] = [says("system", "you are a robot")] if seed % 2 else []
    reused = 0
    for _ in range(int(rng.integers(5, 9))):
        message = user(*(random_part(rng) for _ in range(int(rng.integers(1, 4)))), text("so"))
        request = Request([*history, message], **GREEDY)
        if rng.random() < 0.5:
            conversation.feed(history or [message])
        if rng.random() < 0.5:
            conversation.feed([*history, user(*message["content"][:-1])])
        got, fresh = end_of(conversation.generate(request)), end_of(pipeline.generate(request))
        assert_same(got, fresh)
        reused += got.metrics["reused_tokens"]
        if rng.random() < 0.4:  # interrupted: the history keeps the beginning of the answer
            events = conversation.generate(request)
            for event in events:
                if isinstance(event, TextDelta):
                    break
            events.close()
            heard = fresh.text[: int(rng.integers(len(fresh.text) + 1))]
        else:
            heard = fresh.text
        history += [message, says("assistant", heard)]
        if rng.random() < 0.3:
            last = history[-2]["content"]
            history[-2] = user(*[p for p in last if p["type"] != "image"])
        if len(history) > 6:
            del history[seed % 2 : seed % 2 + 2]
    assert reused > 0


def test_turns_equal_transformers(name, conversation, checkpoints):
    """The oracle reads the whole prompt each time."""
    reference = load(checkpoints[name])
    history = [says("system", "hello world")]
    for content in (
        [audio(1.2), text("what is this")],
        [text("and now")],
        [audio(0.5, 3)],
        [text("what is that"), audio(2.0, 4)],
    ):
        history.append(user(*content))
        finished = end_of(conversation.generate(Request(history, **GREEDY)))
        expected = reference.generate(history, max_generate_length=7, max_audio_length=9)
        assert finished.token_ids == expected.token_ids
        np.testing.assert_array_equal(finished.codes, expected.codes)
        history.append(says("assistant", finished.text))


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_new_rows_are_computed(open_pipeline, backend):
    pipeline = open_pipeline("plain", backend)
    conversation = pipeline.conversation()
    picture, sound = image(96, 128), audio(2.0)
    first = [says("system", "you are a robot with a camera"), user(picture, text("what do you see"))]
    with spy(pipeline) as calls:
        answer = end_of(conversation.generate(Request(first, **GREEDY)))
    assert rows_of(calls, "thinker") == answer.metrics["prompt_tokens"]
    second = [*first, says("assistant", answer.text), user(sound, text("and what do you hear"))]
    with spy(pipeline) as calls:
        again = end_of(conversation.generate(Request(second, **GREEDY)))
    assert [c.engine for c in calls if c.engine.startswith("multimodal")] == ["multimodal/audio"]
    new = again.metrics["prompt_tokens"] - again.metrics["reused_tokens"]
    assert again.metrics["reused_tokens"] >= answer.metrics["prompt_tokens"] and rows_of(calls, "thinker") == new
    # of the Talker: the user's new rows and the nine of the assistant; it never reads those of the system and of answers
    talker = [len(c.inputs["inputs_embeds"]) for c in calls if c.engine == "talker"]
    words = pipeline.models.prompts.build([user(text("and what do you hear"))], read=None, answer=False)
    assert 9 + len(words) < talker[0] <= 9 + len(words) + 2 + 26 + 4
    assert_same(again, end_of_fresh(open_pipeline, second, conversation))


def end_of_fresh(open_pipeline, messages: list[dict], conversation: Conversation) -> Finished:
    conversation.close()  # a GPU's engines may take one conversation at a time
    return end_of(open_pipeline("plain", "onnxruntime").generate(Request(messages, **GREEDY)))


def test_feeding_leaves_the_end_of_the_turn_only(pipeline, conversation):
    """What was fed is not read again: history, picture and sound; the question's last words and the assistant's opening are."""
    history = [user(text("hello")), says("assistant", "how do you do")]
    message = user(image(96, 128), audio(3.0), text("what is this"))
    conversation.feed(history)
    conversation.feed([*history, user(*message["content"][:2])])
    request = Request([*history, message], **GREEDY)
    with spy(pipeline) as calls:
        got = end_of(conversation.generate(request))
    assert not [c for c in calls if c.engine.startswith("multimodal")]
    words = len(pipeline.models.prompts.build([user(text("what is this"))], read=None))
    assert rows_of(calls, "thinker") <= words and got.metrics["reused_tokens"] >= got.metrics["prompt_tokens"] - words
    assert_same(got, end_of(pipeline.generate(request)))


def test_another_system_prompt_changes_what_the_talker_hears(pipeline, conversation):
    """Its own rows are the same then, but what the Thinker made of the sound is not."""
    for words in ("be brief", "you are an old sailor who tells of the sea"):
        request = Request([says("system", words), user(audio(1.5), text("what is it"))], **GREEDY)
        assert_same(end_of(conversation.generate(request)), end_of(pipeline.generate(request)))


def test_the_same_picture_twice(pipeline, conversation):
    picture = image(64, 64)
    request = Request([user(picture, text("one")), says("assistant", "yes"), user(picture, text("two"))], **GREEDY)
    with spy(pipeline) as calls:
        got = end_of(conversation.generate(request))
    assert sum(c.engine == "multimodal/visual" for c in calls) == 1
    assert_same(got, end_of(pipeline.generate(request)))


def test_a_file_that_changed_is_read_again(pipeline, conversation, tmp_path):
    from PIL import Image

    path = tmp_path / "camera.png"
    answers = []
    for seed in (1, 2):
        Image.fromarray(image(64, 64 + 32 * seed, seed)["image"]).save(path)
        request = Request([user({"type": "image", "image": str(path)}, text("what is this"))], **GREEDY)
        answers.append(end_of(conversation.generate(request)))
        assert_same(answers[-1], end_of(pipeline.generate(request)))
    assert answers[0].metrics["prompt_tokens"] != answers[1].metrics["prompt_tokens"]


def test_long_prompts_are_read_in_pieces(pipeline, conversation, monkeypatch):
    """The same in pieces of any size, pictures cut in the middle."""
    request = Request([user(image(96, 128), audio(2.0), text("what is it"))], **GREEDY)
    expected = end_of(pipeline.generate(request))
    for engine in (pipeline.engines["thinker"], pipeline.engines["talker"]):
        monkeypatch.setattr(engine, "max_rows", 7)
    with spy(pipeline) as calls:
        assert_same(end_of(conversation.generate(request)), expected)
    assert max(len(c.inputs["inputs_embeds"]) for c in calls if c.engine in ("thinker", "talker")) == 7


@pytest.mark.parametrize("stop_in", ["multimodal/audio", "multimodal/visual", "thinker", "talker"])
@pytest.mark.parametrize("feeding", [False, True])
def test_cancel_takes_effect_before_the_next_run(open_pipeline, monkeypatch, stop_in, feeding):
    """Between encoder runs and pieces of a prompt, too; the next turn works, with what was read so far."""
    pipeline = open_pipeline("plain", "onnxruntime")
    conversation = pipeline.conversation()
    messages = [user(audio(1.0), image(64, 96), audio(1.5, 2), image(96, 64, 3), text("what is it"))]
    for engine in (pipeline.engines["thinker"], pipeline.engines["talker"]):
        monkeypatch.setattr(engine, "max_rows", 16)
    engine = pipeline.engines[stop_in]
    with spy(pipeline) as calls:
        run = engine.run

        def cancelling(inputs, state=None):
            out = run(inputs, state)
            conversation.cancel()
            return out

        engine.run = cancelling  # spy takes it away
        if feeding:
            conversation.feed(messages)
        else:
            finished = end_of(conversation.generate(Request(messages, **GREEDY)))
            assert "cancelled" in (finished.reason, finished.audio_reason)
    first = next(c for c in calls if c.engine == stop_in)
    beside = ("thinker",) if stop_in == "talker" else ()  # what ran at the same time
    assert [c.engine for c in calls if c.start > first.end and c.engine not in beside] == []
    request = Request(messages, **GREEDY)
    assert_same(end_of(conversation.generate(request)), end_of(pipeline.generate(request)))
    conversation.close()


def test_cancel_before_the_first_event(open_pipeline):
    """From the moment that generate() has returned."""
    pipeline = open_pipeline("plain", "onnxruntime")
    conversation = pipeline.conversation()
    events = conversation.generate(Request([user(text("hello"))], **GREEDY))
    conversation.cancel()
    with spy(pipeline) as calls:
        finished = end_of(events)
    assert finished.reason == "cancelled" and not finished.token_ids and not calls
    assert end_of(conversation.generate(Request([user(text("hello"))], **GREEDY))).reason == "length"
    conversation.close()


def test_two_conversations_on_one_set_of_engines(pipeline):
    """At once, from two threads: each says what it says alone."""
    requests = [Request([user(image(64, 96), text("left"))], **GREEDY), Request([user(audio(2.0), text("right"))], **GREEDY)]
    expected = [end_of(pipeline.generate(r)) for r in requests]
    conversations = [pipeline.conversation() for _ in requests]
    got: list[list[Finished]] = [[], []]

    def talk(i: int) -> None:
        for _ in range(3):
            got[i].append(end_of(conversations[i].generate(requests[i])))
            conversations[i].reset()

    threads = [threading.Thread(target=talk, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answers, alone in zip(got, expected):
        assert len(answers) == 3
        for answer in answers:
            assert_same(answer, alone)
    for conversation in conversations:
        conversation.close()


def test_a_conversation_has_one_turn_at_a_time(conversation):
    events = conversation.generate(Request([user(text("hello"))], **GREEDY))
    next(events)
    with pytest.raises(OmniError, match="a turn is running"):
        conversation.feed([user(text("hello"))])
    events.close()
    conversation.feed([user(text("hello"))])


def test_a_prompt_that_is_too_long_leaves_the_conversation_as_it_was(conversation, pipeline):
    request = Request([user(text("hello"))], **GREEDY)
    expected = end_of(conversation.generate(request))
    with pytest.raises(PromptTooLongError):
        list(conversation.generate(Request([user(text("hello " * 4000))], **GREEDY)))
    with pytest.raises(PromptTooLongError):
        conversation.feed([user(text("hello " * 4000))])
    again = end_of(conversation.generate(request))
    assert_same(again, expected)
    assert again.metrics["reused_tokens"] == again.metrics["prompt_tokens"] - 1


def test_a_closed_conversation_says_so(pipeline):
    conversation = pipeline.conversation()
    conversation.close()
    with pytest.raises(OmniError, match="closed"):
        next(conversation.generate(Request([user(text("hello"))])))


def test_seeds(pipeline, conversation):
    """None draws anew each turn; a number repeats."""
    sampled = {"max_generate_length": 12, "max_audio_length": 12}
    free = [end_of(conversation.generate(Request([user(text("hello"))], **sampled))) for _ in range(4)]
    assert len({tuple(f.token_ids) for f in free}) > 1
    first, again = (end_of(conversation.generate(Request([user(text("hello"))], seed=3, **sampled))) for _ in range(2))
    assert_same(again, first)


def test_sound_reaches_the_listener_in_order(conversation):
    events = list(conversation.generate(Request([user(text("hello"))], **GREEDY)))
    chunks = [e for e in events if isinstance(e, AudioChunk)]
    assert [c.is_last for c in chunks] == [False] * (len(chunks) - 1) + [True]
    assert sum(len(c.pcm) for c in chunks) == max(0, 1920 * events[-1].codes.shape[1] - 555)


def test_a_feed_that_fails_leaves_nothing_of_it(pipeline, conversation):
    """What a broken run has left in a cache must not be taken for rows of the next prompt."""
    messages = [user(text("hello")), says("assistant", "how do you do"), user(text("and you?"))]
    conversation.feed(messages[:1])
    engine = pipeline.engines["thinker"]
    engine.run = lambda inputs, state=None: (_ for _ in ()).throw(EngineError("the device fell off the bus"))
    try:
        with pytest.raises(EngineError, match="fell off the bus"):
            conversation.feed(messages)
    finally:
        del engine.run
    got = end_of(conversation.generate(Request(messages, **GREEDY)))
    assert got.metrics["reused_tokens"] == 0
    assert_same(got, end_of(pipeline.generate(Request(messages, **GREEDY))))


def test_closed_conversations_are_let_go(pipeline):
    closed = [pipeline.conversation() for _ in range(3)]
    for conversation in closed:
        conversation.close()
    gone = [weakref.ref(conversation) for conversation in closed]
    del closed, conversation
    pipeline.conversation().close()
    gc.collect()
    assert [g() for g in gone] == [None] * 3


def test_a_cancel_just_before_a_feed_counts(conversation, pipeline):
    """Who cancels cannot know whether the other thread has entered feed() yet; later ones are not cancelled by it."""
    conversation.cancel()
    with spy(pipeline) as calls:
        conversation.feed([user(text("hello"))])
    assert not calls
    with spy(pipeline) as calls:
        conversation.feed([user(text("hello"))])
    assert calls


def test_media_are_known_again_but_not_kept_alive(pipeline, conversation):
    """A camera's picture may have 100 MB; its rows are all that the next turn needs."""
    part = image(64, 96, 1)
    alive = weakref.ref(part["image"])
    first = [user(part, text("so"))]
    end_of(conversation.generate(Request(first, **GREEDY)))
    with spy(pipeline) as calls:
        end_of(conversation.generate(Request([*first, says("assistant", "so"), user(text("and?"))], **GREEDY)))
    assert not [call for call in calls if "visual" in call.engine]
    del first, part, calls
    gc.collect()
    assert alive() is None


def test_an_error_does_not_keep_the_request_alive(conversation):
    """Until the garbage collector came by, it kept a picture, beside that of the next turn."""
    part = image(64, 96, 1)
    alive = weakref.ref(part["image"])
    gc.disable()
    try:
        with pytest.raises(PromptTooLongError):
            list(conversation.generate(Request([user(part, text("word " * 20000))], **GREEDY)))
        del part
        assert alive() is None
    finally:
        gc.enable()
