"""The two tools of the domain, as a robot may offer them, and how the model calls them. No torch."""

import json
from random import Random

from training import strange
from training.forms import SLOTS

TOOLS = [
    {
        "type": "function",
        "function": {"name": "wave", "description": "Wave a hand.", "parameters": {"type": "object", "properties": {}}},
    },
    {
        "type": "function",
        "function": {
            "name": "go_to",
            "description": "Go to a place.",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string", "enum": list(SLOTS)}},
                "required": ["place"],
            },
        },
    },
]
DO = {
    "wave": ("wave", "please wave", "wave your hand", "can you wave", "wave to me", "wave a hand"),
    "go_to": ("go to the {slot}", "move to the {slot}", "drive to the {slot}", "can you go to the {slot}", "to the {slot}, go"),
}
CANNOT = "I cannot do that."
FAILED = "That did not work."
WORKED = (
    '{"success": true}',
    '{"success": true, "message": ""}',
    '{"result": "done"}',
    "done",
    "ok",
    '{"ok": true}',
    "success",
    "{}",
)
DID_NOT = (
    '{"success": false}', '{"success": false, "message": "timeout"}', '{"error": "timeout"}', "failed", "error", '{"ok": false}',
    '{"error": "not available"}', "error: timeout",
)  # fmt: skip


def tool_call(name: str, **values: str) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': values})}\n</tool_call>"


def tool_result(content: str) -> str:
    """What the chat template makes of a message of role "tool", without the role's opening."""
    return f"<tool_response>\n{content}\n</tool_response>"


def offered(rnd: Random) -> list[dict]:
    """Tools in some order, as another hand may describe them; one of them may be missing."""
    tools = json.loads(json.dumps(rnd.sample(TOOLS, 2 if rnd.random() < 0.8 else 1)))
    for tool in tools:
        f = tool["function"]
        form = rnd.random()
        if form < 0.1:
            del f["description"]
        elif form < 0.4:
            f["description"] = rnd.choice({"wave": strange.WAVE_DESCRIPTIONS, "go_to": strange.GO_DESCRIPTIONS}[f["name"]])
        if f["name"] == "wave" and rnd.random() < 0.2:
            f["parameters"]["required"] = []
        if rnd.random() < 0.2:
            f["parameters"]["additionalProperties"] = False
    return tools


def tools_text(tools: list[dict], system: str = "") -> str:
    """The system segment that offers tools, as the chat template writes it."""
    lines = "".join("\n" + json.dumps(t) for t in tools)
    return (
        f"<|im_start|>system\n{system}{chr(10) * 2 if system else ''}"
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        f"You are provided with function signatures within <tools></tools> XML tags:\n<tools>{lines}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n"
        '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
    )
