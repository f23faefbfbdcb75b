"""Requests that cannot be answered: one typed error each, after which the same pipeline answers as a fresh one does."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from offline.build_engines import build_tree
from offline.export_onnx import COMPONENTS, export
from omni_ros.engines.open import open_engine
from omni_ros.errors import InputError, OmniError, PromptTooLongError, UnknownSpeakerError
from omni_ros.pipeline.pipeline import Pipeline
from omni_ros.pipeline.prompt import Prompt
from omni_ros.pipeline.request import AudioChunk, Finished, Request, TextDelta

GREEDY = {"temperature": 0, "talker_temperature": 0}
MAX_INPUT_LEN, CAPACITY, MAX_CODE_LEN = 40, 48, 16


@pytest.fixture(scope="module")
def small_engines(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines whose every limit is within reach of a test."""
    root = tmp_path_factory.mktemp("small")
    export(checkpoints["plain"], root / "onnx", list(COMPONENTS), np.dtype(np.float32))
    decoder = {"max_input_len": MAX_INPUT_LEN, "capacity": CAPACITY}
    build_tree(
        root / "onnx",
        root / "engines",
        limits={"thinker": decoder, "talker": decoder, "code2wav": {"capacity": MAX_CODE_LEN}},
    )
    return root / "engines"


@pytest.fixture(scope="module")
def open_pipeline(small_engines: Path) -> Iterator[Pipeline]:
    opened = Pipeline.open(small_engines, threads=1)
    yield opened
    opened.close()


def user(*content: Any) -> list[dict[str, Any]]:
    """One user message; a string stands for a text part."""
    return [{"role": "user", "content": [{"type": "text", "text": c} if isinstance(c, str) else c for c in content]}]


GOOD = user({"type": "audio", "audio": np.sin(np.arange(6000, dtype=np.float32))}, "so")


def answer(pipeline: Pipeline, messages: list, **options) -> tuple[Finished, np.ndarray]:
    """A whole turn; checks that what was streamed is what Finished reports."""
    events = list(pipeline.generate(Request(messages, **{**GREEDY, "max_generate_length": 6, "max_audio_length": 8, **options})))
    finished = events[-1]
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == finished.text
    return finished, np.concatenate([np.zeros(0, np.float32), *(e.pcm for e in events if isinstance(e, AudioChunk))])


def same(a: tuple[Finished, np.ndarray], b: tuple[Finished, np.ndarray]) -> bool:
    return (
        a[0].token_ids == b[0].token_ids
        and np.array_equal(a[0].codes, b[0].codes)
        and np.array_equal(a[1], b[1])
        and (a[0].reason, a[0].audio_reason) == (b[0].reason, b[0].audio_reason)
    )


@pytest.fixture(scope="module")
def fresh(small_engines: Path) -> tuple[Finished, np.ndarray]:
    """What a pipeline that never saw an error answers."""
    pipeline = Pipeline.open(small_engines, threads=1)
    reply = answer(pipeline, GOOD)
    pipeline.close()
    assert len(reply[0].token_ids) == 6 and reply[0].codes.shape == (16, 8) and reply[1].size
    return reply


@pytest.fixture
def pipeline(open_pipeline: Pipeline, fresh) -> Iterator[Pipeline]:
    """Shared by all tests of this file; after each of them it must answer as a fresh one."""
    yield open_pipeline
    assert same(answer(open_pipeline, GOOD), fresh)


def refusal(pipeline: Pipeline, messages: Any, error: type[OmniError] = InputError, **options) -> str:
    with pytest.raises(error) as caught:
        answer(pipeline, messages, **options)
    text = str(caught.value)
    assert type(caught.value) is error and "\n" not in text.strip()
    return text


# ---- parameters -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("speaker", ["nobody", "", "ETHAN "])
def test_unknown_speaker_lists_the_names(pipeline, speaker):
    text = refusal(pipeline, user("hello"), UnknownSpeakerError, speaker=speaker)
    assert repr(speaker) in text and "aiden, chelsie, ethan" in text


def test_unknown_speaker_of_any_length_and_any_number_of_voices(pipeline, monkeypatch):
    voices = {f"voice {n:03}": n for n in range(500)}
    monkeypatch.setattr(pipeline.models.voice.talker.config, "speaker_id", voices)
    text = refusal(pipeline, user("hello"), UnknownSpeakerError, speaker="x" * 10**6)
    assert len(text) < 500 and "x" * 80 in text and "voice 000, voice 001" in text and "and 480 more" in text


def test_speaker_is_not_needed_without_speech(pipeline):
    assert answer(pipeline, user("hello"), speaker="nobody", audio_output=False)[0].reason == "length"


NOT_NUMBERS = ["7", None, True, [1], float("nan"), float("inf"), -1]


@pytest.mark.parametrize(
    "name, bad",
    [
        *(
            (name, value)
            for name in ("max_generate_length", "top_k", "talker_top_k", "max_audio_length", "first_chunk_frames", "chunk_frames")
            for value in [*NOT_NUMBERS, 2.5]
        ),
        *(
            (name, value)
            for name in ("temperature", "top_p", "talker_temperature", "talker_top_p", "repetition_penalty")
            for value in NOT_NUMBERS
        ),
        ("top_p", 1.01),
        ("talker_top_p", 2),
        ("repetition_penalty", 0),
        ("repetition_penalty", 1e30),
        ("temperature", 1e-40),
        ("talker_temperature", 1e30),
        ("max_generate_length", 0),
        ("max_audio_length", 0),
        ("first_chunk_frames", 0),
        ("chunk_frames", 0),
        ("seed", -1),
        ("seed", 1.5),
        ("seed", "1"),
        ("seed", True),
        ("speaker", 3),
        ("speaker", ["ethan"]),
    ],
)
def test_parameter_out_of_range(name, bad):
    with pytest.raises(InputError, match=name):
        Request(user("hello"), **{name: bad})


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1e-4},
        {"temperature": 1e4},
        {"talker_temperature": 1e-4, "repetition_penalty": 0.01},
        {"top_k": 1},
        {"top_k": 10**9},
        {"top_k": 0, "top_p": 1},
        {"top_p": 0},
        {"seed": 0},
        {"seed": 2**200},
        {"repetition_penalty": 100.0},
        {"talker_top_k": 1},
        {"talker_top_p": 0},
        {"talker_temperature": 1000},
        {"max_generate_length": 10**12, "max_audio_length": 10**12},
    ],
)
def test_extreme_but_allowed_parameters(pipeline, options):
    finished, pcm = answer(pipeline, user("hello"), **{"temperature": 0.7, "talker_temperature": 0.9, **options})
    assert finished.token_ids and np.isfinite(pcm).all()


# ---- messages -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        {},
        "hello",
        3,
        [None],
        ["hello"],
        [[]],
        [{}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": 7}],
        [{"role": "user", "content": {"type": "text", "text": "x"}}],
        [{"role": "robot", "content": "x"}],
        [{"role": ["user"], "content": "x"}],
        [{"content": "x"}],
        user(None),
        user(7),
        user(["text"]),
        user({}),
        user({"type": "text"}),
        user({"type": "text", "text": None}),
        user({"type": "text", "text": 5}),
        user({"text": "x"}),
        user({"type": "smell", "smell": "x"}),
        user({"type": ["text"], "text": "x"}),
        user({"type": "audio"}),
        user({"type": "audio", "audio": None}),
        user({"type": "audio", "audio": 5}),
        user({"type": "audio", "audio": [0.0, 0.1]}),
        user({"type": "image", "image": 5}),
        user({"type": "image", "image": {"url": "x"}}),
        user({"type": "video", "video": ["a.png"]}),
        user({"type": "image_url", "image_url": "x"}),
        user("fine") + [{"role": "assistant", "content": [{"type": "text"}]}],
    ],
    ids=str,
)
def test_malformed_messages(pipeline, messages):
    assert "message" in refusal(pipeline, messages)


@pytest.mark.parametrize("token", ["<|audio_pad|>", "<|image_pad|>", "<|video_pad|>"])
def test_placeholder_token_inside_text(pipeline, token):
    image = {"type": "image", "image": np.zeros((64, 64, 3), np.uint8)}
    for messages in (user(f"what is {token}?"), [{"role": "user", "content": token}], user(image, token), user(token, image)):
        assert "placeholder" in refusal(pipeline, messages)


def test_half_a_surrogate_pair(pipeline):
    assert "Unicode" in refusal(pipeline, user(json.loads(r'"\ud83d"')))


def test_media_in_a_system_message(pipeline):
    """The Thinker sees it; the Talker, which hears the user's part of the prompt only, still speaks."""
    picture = {"type": "image", "image": np.full((64, 64, 3), 90, np.uint8)}
    sound = {"type": "audio", "audio": np.sin(np.arange(4000, dtype=np.float32))}
    with_media, pcm = answer(pipeline, [{"role": "system", "content": [picture, sound]}, *user("so", picture)])
    without, _ = answer(pipeline, [{"role": "system", "content": ""}, *user("so", picture)])
    assert pcm.size and with_media.token_ids != without.token_ids


def test_role_written_into_the_text(pipeline):
    """Text that opens a turn of its own moves the media behind it to that turn: still a reply, not a crash."""
    picture = {"type": "image", "image": np.full((64, 64, 3), 90, np.uint8)}
    for role in ("system", "user", "assistant", ""):
        system = {"role": "system", "content": [{"type": "text", "text": f"x<|im_start|>{role}"}, picture]}
        messages = [system, *user("so", picture)]
        assert answer(pipeline, messages)[1].size


@pytest.mark.parametrize(
    "messages",
    [
        user(),
        user(""),
        [{"role": "user", "content": ""}],
        [{"role": "system", "content": "be brief"}],
        [{"role": "assistant", "content": "hello"}],
        user("a") + user("b"),
        user("<|im_start|>"),
        user("\0"),
    ],
    ids=str,
)
def test_unusual_messages_are_answered(pipeline, messages):
    finished, pcm = answer(pipeline, messages)
    assert finished.reason == "length" and pcm.size


# ---- audio ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "sound, problem",
    [
        (np.zeros(0, np.float32), "empty"),
        (np.zeros(200, np.float32), "too short"),
        (np.float32(0), "samples"),
        (np.array([0.1, np.nan] * 400, np.float32), "finite"),
        (np.array([np.inf] * 800, np.float32), "finite"),
        (np.zeros((800, 2), np.float32), "samples"),
        (np.zeros((128, 40), np.float32), "samples"),
        (np.zeros(800, np.uint8), "uint8"),
        (np.array(["a"] * 800), "float"),
        (np.zeros(800, np.complex64), "float"),
    ],
)
def test_unusable_samples(pipeline, sound, problem):
    assert problem in refusal(pipeline, user({"type": "audio", "audio": np.asarray(sound)}))
    good = {"type": "audio", "audio": np.sin(np.arange(4000, dtype=np.float32))}
    assert problem in refusal(pipeline, user(good, {"type": "audio", "audio": np.asarray(sound)}))


@pytest.mark.parametrize("name", ["sound.wav", "features.safetensors", "picture.jpg", "film.mp4"])
@pytest.mark.parametrize("content", [None, b"", b"\x00" * 300, b"not a media file at all " * 9, "folder"])
def test_unreadable_file(pipeline, tmp_path, name, content):
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    kind = {"picture.jpg": "image", "film.mp4": "video"}.get(name, "audio")
    for value in (path, str(path)):
        assert str(path) in refusal(pipeline, user("so", {"type": kind, kind: value}))


@pytest.mark.parametrize("kind", ["audio", "image", "video"])
@pytest.mark.parametrize("path", ["", "\0", "x" * 5000, "http://localhost:1/none", "x\0.safetensors"])
def test_impossible_path(pipeline, kind, path):
    refusal(pipeline, user({"type": kind, kind: path}))


# ---- images and video -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "bmp", "gif"])
def test_truncated_image(pipeline, tmp_path, format):
    path = tmp_path / f"picture.{format}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(path, format)
    whole = path.read_bytes()
    assert answer(pipeline, user({"type": "image", "image": path}))[1].size
    for keep in (0.9, 0.5, 0.02):
        path.write_bytes(whole[: int(len(whole) * keep)])
        if (format, keep) == ("gif", 0.9):  # Pillow fills up what is missing
            continue
        assert str(path) in refusal(pipeline, user({"type": "image", "image": path}))


@pytest.mark.parametrize(
    "shape, dtype, problem",
    [
        ((0, 0, 3), np.uint8, "empty"),
        ((0, 64, 3), np.uint8, "empty"),
        ((64, 0, 3), np.uint8, "empty"),
        ((64, 64), np.uint8, "RGB"),
        ((64, 64, 4), np.uint8, "RGB"),
        ((64, 64, 1), np.uint8, "RGB"),
        ((64, 64, 3), np.float32, "uint8"),
        ((), np.uint8, "RGB"),
        ((3,), np.uint8, "RGB"),
        ((2, 64, 64, 3), np.uint8, "RGB"),
        ((1, 500, 3), np.uint8, "narrow"),
    ],
)
def test_unusable_pixels(pipeline, shape, dtype, problem):
    assert problem in refusal(pipeline, user({"type": "image", "image": np.zeros(shape, dtype)}))
    if shape != (64, 64):  # with a time axis in front, that is
        assert problem in refusal(pipeline, user({"type": "video", "video": np.zeros((2, *shape), dtype)}))


@pytest.mark.parametrize("pixels", [np.zeros((64, 64, 3), np.uint8), np.zeros((0, 64, 64, 3), np.uint8)])
def test_video_without_frames(pipeline, pixels):
    refusal(pipeline, user({"type": "video", "video": pixels}))


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), "2", None, True, [2]])
def test_impossible_frame_rate(pipeline, fps):
    video = np.zeros((2, 64, 64, 3), np.uint8)
    assert "fps" in refusal(pipeline, user({"type": "video", "video": video, "fps": fps}))


# ---- limits ---------------------------------------------------------------------------------------------------------
def test_prompt_longer_than_the_thinker_takes(pipeline):
    text = refusal(pipeline, user("hello " * 50), PromptTooLongError)
    assert str(MAX_INPUT_LEN) in text and "--maxInputLen" in text


def test_media_longer_than_the_thinker_takes(pipeline):
    picture = {"type": "image", "image": np.zeros((256, 256, 3), np.uint8)}  # 64 rows
    sound = {"type": "audio", "audio": np.sin(np.arange(64000, dtype=np.float32))}  # 52 rows
    for part in (picture, sound):
        refusal(pipeline, user(part), PromptTooLongError)


def prompt_rows(pipeline: Pipeline, messages: list[dict[str, Any]]) -> Prompt:
    """The prompt of messages without media."""
    return pipeline.models.prompts.build(messages, read=None)


def prompt_of(pipeline: Pipeline, rows: int) -> list[dict[str, Any]]:
    """User messages that make a Thinker prompt of exactly `rows` rows."""
    for n in range(1, 3 * rows):
        messages = user("x" * n)
        if len(prompt_rows(pipeline, messages).ids) == rows:
            return messages
    raise AssertionError(f"no prompt of {rows} rows")


def test_prompt_longer_than_the_talker_takes(pipeline):
    """The Talker's prompt has nine rows more than the user's turn: it can be the longer one."""
    messages = prompt_of(pipeline, MAX_INPUT_LEN)
    text = refusal(pipeline, messages, PromptTooLongError)
    assert "Talker" in text and str(MAX_INPUT_LEN) in text and "--maxInputLen" in text
    assert answer(pipeline, messages, audio_output=False)[0].reason == "length"


def test_thinker_cache_full(pipeline):
    """The turn ends with what there is: the tokens are those of a run that was asked for no more."""
    messages = prompt_of(pipeline, 30)
    room = CAPACITY - 30 + 1  # the last token is never fed back
    full = answer(pipeline, messages, max_generate_length=1000)
    assert full[0].reason == "kv_cache_full" and len(full[0].token_ids) == room and full[0].text and full[1].size
    asked = answer(pipeline, messages, max_generate_length=room)
    assert asked[0].reason == "length" and asked[0].token_ids == full[0].token_ids
    np.testing.assert_array_equal(asked[0].codes, full[0].codes)


def test_talker_cache_full(pipeline):
    messages = prompt_of(pipeline, 30)
    prompt = int(prompt_rows(pipeline, messages).user_mask.sum()) + 9
    room = CAPACITY - prompt + 1  # the last frame is never fed back
    full = answer(pipeline, messages, max_audio_length=1000)
    assert (full[0].reason, full[0].audio_reason) == ("length", "kv_cache_full")
    assert full[0].codes.shape == (16, room) and len(full[1]) == 1920 * room - 555
    asked = answer(pipeline, messages, max_audio_length=room)
    assert asked[0].audio_reason == "length" and asked[0].token_ids == full[0].token_ids
    np.testing.assert_array_equal(asked[0].codes, full[0].codes)


def test_thinker_cache_full_after_the_first_token(pipeline):
    """A prompt that fills the cache leaves room for one token: it is heard."""
    pipeline.models.prompts.max_input_len = CAPACITY
    try:
        messages = [{"role": "system", "content": "x" * 20}, *user("x")]
        while len(prompt_rows(pipeline, messages).ids) < CAPACITY:
            messages[0]["content"] += "x"
        finished, pcm = answer(pipeline, messages)
    finally:
        pipeline.models.prompts.max_input_len = MAX_INPUT_LEN
    assert finished.reason == "kv_cache_full" and len(finished.token_ids) == 1 and pcm.size


def test_longest_speech_reached(pipeline):
    """--maxCodeLen frames, then the speech ends; the text is as long as ever."""
    finished, pcm = answer(pipeline, GOOD, max_audio_length=1000)
    assert (finished.reason, finished.audio_reason) == ("length", "length") and len(finished.token_ids) == 6
    assert finished.codes.shape == (16, MAX_CODE_LEN) and len(pcm) == 1920 * MAX_CODE_LEN - 555


# ---- very short replies ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("streaming", [True, False])
def test_one_token_reply_is_audible(pipeline, streaming):
    finished, pcm = answer(pipeline, user("hello"), max_generate_length=1, streaming=streaming)
    assert len(finished.token_ids) == 1 and finished.reason == "length"
    assert finished.codes.shape == (16, 8) and len(pcm) == 1920 * 8 - 555 and np.abs(pcm).max() > 0.01


@pytest.mark.parametrize("streaming", [True, False])
def test_reply_of_the_end_token_alone_is_silent(pipeline, streaming):
    first = answer(pipeline, user("hello"), max_generate_length=1)[0].token_ids[0]
    config = pipeline.models.thinker.config
    end, config.im_end_token_id = config.im_end_token_id, first
    try:
        finished, pcm = answer(pipeline, user("hello"), streaming=streaming)
    finally:
        config.im_end_token_id = end
    assert (finished.token_ids, finished.text, finished.reason) == ([first], "", "stop")
    assert finished.audio_reason == "none" and finished.codes.shape == (16, 0) and pcm.size == 0


@pytest.mark.parametrize("streaming", [True, False])
def test_speech_that_ends_before_its_first_frame(pipeline, streaming):
    code = int(answer(pipeline, user("hello"), max_audio_length=1)[0].codes[0, 0])
    talker = pipeline.models.voice.talker
    eos, talker.eos = talker.eos, code
    try:
        finished, pcm = answer(pipeline, user("hello"), streaming=streaming)
    finally:
        talker.eos = eos
    assert len(finished.token_ids) == 6 and finished.audio_reason == "stop"
    assert finished.codes.shape == (16, 0) and pcm.size == 0


# ---- engines fed by hand --------------------------------------------------------------------------------------------
def test_engine_refuses_wrong_inputs(small_engines):
    engine = open_engine(small_engines / "multimodal/visual", threads=1)
    with pytest.raises(InputError, match="takes"):
        engine.run({"patches": np.zeros((1, 4, 1536), np.float32)})
