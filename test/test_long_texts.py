"""Texts of any length: refused before more of them was cut into tokens than the prompt has room for, wherever they enter."""

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import oracle
import pytest

from offline.inference.request_file import read_requests
from omni_ros.dialogue.dialogue import Dialogue
from omni_ros.dialogue.face import Face
from omni_ros.dialogue.settings import Settings
from omni_ros.errors import InputError, PromptTooLongError
from omni_ros.pipeline.cutting import STRETCH, stretches
from omni_ros.pipeline.pipeline import Pipeline
from omni_ros.pipeline.request import Finished, Request
from omni_ros.pipeline.tokenizer import ChatTokenizer, TextStream

MEGABYTE = 1 << 20
WORDS = ("word ", "a, b\t\n")
RUNS = ("x", "a\u0308", " ", "\n", "日本語、", "<|im_start|>", "1")  # without a place to cut at: the longest token bounds them
SHORT = {"max_generate_length": 4, "max_audio_length": 4}
LETTERS = [
    *"aBé1 2 '-_<|>.,\n\t\r\u0301\u00a0\u3000日本🤖   ",
    "'s ",
    " \n ",
    "<|im_end|>",
    "<|audio_pad|>",
    "\u1100\u1161\u11a8",
    "\x1f",
]


class Counting:
    """A tokenizer that notes how much it is given."""

    def __init__(self, tokenizer, given: list[int]) -> None:
        self._tokenizer, self._given = tokenizer, given

    def encode(self, text: str, **options):
        self._given.append(len(text))
        return self._tokenizer.encode(text, **options)

    def __getattr__(self, name: str):
        return getattr(self._tokenizer, name)


@pytest.fixture(scope="module")
def pipeline(engine_dirs) -> Iterator[Pipeline]:
    opened = Pipeline.open(engine_dirs["plain"], threads=1)
    yield opened
    opened.close()


@pytest.fixture
def given(pipeline: Pipeline, monkeypatch) -> list[int]:
    """The letters of each call of a tokenizer."""
    tokenizer, found = pipeline.models.prompts.tokenizer, []
    real = tokenizer.tokenizer
    monkeypatch.setattr(tokenizer, "stream", lambda: TextStream(real))
    for name in ("tokenizer", "plain"):
        monkeypatch.setattr(tokenizer, name, Counting(getattr(tokenizer, name), found))
    return found


@pytest.fixture
def most(pipeline: Pipeline, monkeypatch) -> Callable[[str], int]:
    """How many letters of a text made of `letters` may be looked at: what the longest prompt has room for, and some stretches."""
    prompts = pipeline.models.prompts

    def bound(letters: str) -> int:
        if letters in RUNS:
            return prompts.max_input_len * prompts.tokenizer.longest_token + 4 * STRETCH
        # As in published vocabularies, where a token may be a line of spaces: no bound on letters keeps a megabyte out.
        monkeypatch.setattr(prompts.tokenizer, "longest_token", 4096)
        sample = letters * 100
        return prompts.max_input_len * len(sample) // len(prompts.tokenizer.plain.encode(sample).ids) + 4 * STRETCH

    return bound


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": text}]}]


def tool_result(text: str) -> list[dict[str, Any]]:
    call = {"function": {"name": "look", "arguments": "{}"}}
    return [*user("hi"), {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": text}]


ENTRANCES = {
    "user": user,
    "system": lambda text: [{"role": "system", "content": text}, *user("hi")],
    "history": lambda text: [*user("hi"), {"role": "assistant", "content": text}, *user("hi")],
    "tool result": tool_result,
    "many messages": lambda text: [m for part in range(0, len(text), 1000) for m in user(text[part : part + 1000])],
}


@pytest.mark.parametrize("special_tokens", [True, False])
@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("letters", WORDS + RUNS)
def test_a_megabyte_is_refused_before_it_is_cut(pipeline, given, most, letters, entrance, special_tokens):
    limit = most(letters)
    del given[:]
    text = letters * (MEGABYTE // len(letters.encode()))
    with pytest.raises(PromptTooLongError, match=f"{pipeline.models.prompts.max_input_len}.*--maxInputLen"):
        list(pipeline.generate(Request(ENTRANCES[entrance](text), special_tokens=special_tokens, **SHORT)))
    assert sum(given) < limit
    assert isinstance(list(pipeline.generate(Request(user("hi"), **SHORT)))[-1], Finished)


@pytest.mark.parametrize("letters", WORDS + RUNS)
def test_a_megabyte_to_say(pipeline, given, most, letters):
    limit = most(letters)
    del given[:]
    with pytest.raises(PromptTooLongError, match=f"limit is {pipeline.models.prompts.max_input_len} tokens"):
        list(pipeline.generate(Request(user("hi"), say="a" + letters * (MEGABYTE // len(letters.encode())), **SHORT)))
    assert sum(given) < limit


@pytest.mark.parametrize("letters", ["word ", "<|im_start|>"])
def test_a_request_file_of_a_megabyte(pipeline, given, most, letters, tmp_path):
    limit = most(letters)
    del given[:]
    file = tmp_path / "requests.json"
    file.write_text(json.dumps({"requests": [{"messages": user(letters * (MEGABYTE // len(letters)))}]}))
    [request], _ = read_requests(file, audio_output=True, streaming=True)
    with pytest.raises(PromptTooLongError, match="--maxInputLen"):
        list(pipeline.generate(request))
    assert sum(given) < limit


class Answers(Face):
    def __init__(self) -> None:
        self.outcomes = []

    def outcome(self, outcome) -> None:
        self.outcomes.append(outcome)


def test_everybody_who_talks_to_a_robot_sends_a_megabyte(pipeline, given, most):
    """Turns with a history, which is tried in shorter and shorter forms; and what was refused is not remembered."""
    limit = most("word ")
    conversation, face = pipeline.conversation(), Answers()
    dialogue = Dialogue(conversation, face, settings=Settings(generation=SHORT), history_turns=2)
    try:
        for text in ("One.", "Two."):
            dialogue.ask(text)
            dialogue.join()
        del given[:]
        text = "word " * (MEGABYTE // 5)
        dialogue.ask(text)
        dialogue.join()
        assert "--maxInputLen" in face.outcomes[-1].error and sum(given) < 3 * limit
        for entrance in (dialogue.perceive, dialogue.say):
            with pytest.raises(InputError, match="the limit is"):
                entrance(text)
        dialogue.ask("Three.")
        dialogue.join()
        assert not face.outcomes[-1].error
    finally:
        assert dialogue.close(5)
        conversation.close()


@pytest.mark.parametrize("seed", range(20))
def test_where_a_text_is_cut_changes_no_token(engine_dirs, name, seed):
    tokenizer, rng = ChatTokenizer(engine_dirs[name] / "thinker"), random.Random(seed)
    text = "".join(rng.choice(LETTERS) for _ in range(3 * STRETCH))
    pieces = list(stretches(text))
    assert "".join(pieces) == text and len(pieces) > 1
    for one in (tokenizer.tokenizer, tokenizer.plain):
        ids = [i for piece in pieces for i in one.encode(piece, add_special_tokens=False).ids]
        assert ids == one.encode(text, add_special_tokens=False).ids


def test_a_long_prompt_equals_transformers(engine_dirs, checkpoints, name):
    path = Path(__file__)
    messages = user(path.read_text() * 2)
    theirs = oracle.load(checkpoints[name]).processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = oracle.load(checkpoints[name]).processor.tokenizer.encode(theirs, add_special_tokens=False)
    assert ChatTokenizer(engine_dirs[name] / "thinker").encode(messages).tolist() == ids


@pytest.mark.parametrize("text", ["x" * 3000, "ä" * 3000, "a\u0308" * 3000, "=" * 3000, "word " * 700, " " * 3000, "\n" * 5000])
def test_what_fits_is_never_refused(engine_dirs, text):
    """The limit before the tokens are counted is a bound, whatever the text is made of."""
    tokenizer = ChatTokenizer(engine_dirs["plain"] / "thinker")
    ids = tokenizer.plain.encode(text * 2, add_special_tokens=False).ids
    assert tokenizer.words(text * 2, len(ids)) == ids


MEMORY = """
import random, sys
from pathlib import Path
from omni_ros.pipeline.tokenizer import ChatTokenizer

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20

def cut(words):
    for _ in range(words // 10):
        text = " ".join("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=250)) for _ in range(10))
        for special_tokens in (True, False):
            text += "" if special_tokens else "<|im_end|>"
            tokenizer.encode([{"role": "user", "content": text}], special_tokens=special_tokens)

rng, tokenizer = random.Random(0), ChatTokenizer(Path(sys.argv[1]))
cut(200)
before = resident()
cut(6000)
print(resident() - before)
"""


def test_words_that_were_cut_once_are_not_kept(engine_dirs):
    """Of 6,000 long words, each cut by both tokenizers, the package would keep 80 MB."""
    command = [sys.executable, "-c", MEMORY, engine_dirs["plain"] / "thinker"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 15
