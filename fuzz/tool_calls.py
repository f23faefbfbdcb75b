"""Replies with tool calls in them, right and wrong, cut into tokens anywhere: what is said, done and remembered."""

import json
import random
import zlib
from functools import cache
from pathlib import Path

from fuzz.mutate import TEXTS, mutate_bytes, mutate_json
from omni_ros.dialogue.clock import Clock
from omni_ros.dialogue.tools import Tool, Tools
from omni_ros.pipeline.request import ToolCall
from omni_ros.pipeline.tokenizer import ChatTokenizer
from omni_ros.pipeline.tool_calls import MARKS, CallFilter, Piece

MODEL = Path(__file__).parents[1] / "demo" / "model"
PLACES = ("left", "right")
SCHEMA = {
    "type": "object",
    "properties": {"place": {"type": "string", "enum": list(PLACES)}, "speed": {"type": "number", "minimum": 0, "maximum": 1}},
    "required": ["place"],
}
GOOD = {"name": "go_to", "arguments": {"place": "left", "speed": 0.5}}
SEEDS = [
    f"Well.\n<tool_call>\n{json.dumps(GOOD)}\n</tool_call>",
    f"<tool_call>\n{json.dumps(GOOD)}\n</tool_call>\n<tool_call>\n{json.dumps(GOOD)}\n</tool_call> Done.",
    '<tool_call>{"name": "go_to"}</tool_call><tool_call>',
    "Ünïcode <b> </tool_call> 日本 <tool_response>\nok\n</tool_response>",
]
PIECES = (
    *MARKS,
    "<tool_",
    "call>",
    "\n",
    " ",
    "{",
    "}",
    '"',
    "\\u0000",
    "\\ud83d",
    "NaN",
    "1e999",
    "9" * 5000,
    "[" * 3000,
    *TEXTS,
)


def case(rng: random.Random) -> bytes:
    """A reply: a third has JSON that was changed as JSON, the others are cut and pasted as text."""
    if rng.random() < 0.35:
        text = f"Yes. <tool_call>\n{json.dumps(mutate_json(rng, GOOD), ensure_ascii=rng.random() < 0.5)}\n</tool_call>"
    else:
        text = rng.choice(SEEDS)
        for _ in range(rng.choice((1, 1, 2, 4))):
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice(PIECES) + text[at + rng.choice((0, 0, 1, 5)) :]
    data = text.encode("utf-8", "surrogatepass")
    return data if rng.random() < 0.6 else mutate_bytes(rng, data, [seed.encode() for seed in SEEDS])


def split(text: str, rng: random.Random) -> tuple[str, list[ToolCall]]:
    cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randrange(1, 40)))
    cut = CallFilter(lambda part: [0])
    out = [one for a, b in zip([0, *cuts], [*cuts, len(text)]) for one in cut(Piece(text[a:b], [0], [0]))] + cut.end()
    said = "".join(one.text for one in out if isinstance(one, Piece))
    return said, [one for one in out if isinstance(one, ToolCall)]


@cache
def tokenizer() -> ChatTokenizer:
    return ChatTokenizer(MODEL)


def attempt(path: Path) -> None:
    data = path.read_bytes()
    text = data.decode("utf-8", "replace")
    rng = random.Random(zlib.crc32(data))
    said, calls = split(text, rng)
    assert (said, calls) == split(text, rng), "it matters where the tokens end"
    assert not any(mark in said for mark in MARKS), "a mark is said"
    done: list[dict] = []

    def start(arguments, tell):
        done.append(arguments)
        tell(text, True)
        return lambda: None

    tool = Tool("go_to", "Go to a place.", SCHEMA, start)
    reports: list[str] = []
    tools = Tools([tool], max_calls=64, on_report=lambda report: reports.append(report.ended), clock=Clock())
    turn = tools.turn()
    if calls:
        turn.take(said, calls, lambda: False)
    for arguments in done:
        speed = arguments.get("speed", 0)
        assert arguments.keys() <= {"place", "speed"} and arguments["place"] in PLACES
        assert isinstance(speed, (int, float)) and not isinstance(speed, bool) and 0 <= speed <= 1
    assert len(done) == reports.count("done") and len(reports) == len(calls)
    assert [step["role"] for step in turn.steps] == ["assistant", *["tool"] * len(calls)] * bool(calls)
    ids = tokenizer().encode([{"role": "user", "content": "x"}, *turn.steps], special_tokens=False, tools=tools.offer).tolist()
    for mark in ("<|im_start|>", "<|im_end|>"):  # as many as of harmless words
        plain = [{**step, "content": "x"} for step in turn.steps]
        for step in plain:
            step.pop("tool_calls", None)
        frame = tokenizer().encode([{"role": "user", "content": "x"}, *plain], special_tokens=False, tools=tools.offer).tolist()
        number = tokenizer().tokenizer.token_to_id(mark)
        assert ids.count(number) == frame.count(number), f"{mark} came with a call"
