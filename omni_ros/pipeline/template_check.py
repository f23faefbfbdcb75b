"""A chat template is a program that comes with a checkpoint: try it where it can do no harm before it is used.

Templates run in jinja2's sandbox, which keeps them from files and attributes but not from counting to 9**(9**9) in one C
call that no signal ends. So the template is first rendered in a child process, under limits that the kernel enforces.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Iterable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from omni_ros.errors import EngineError

TIMEOUT = 2.0  # seconds; the published template takes 1 ms, the child's start 0.2 s
MEMORY = 512 << 20  # bytes of address space of the child
MAX_CHARACTERS = 100_000  # of what the samples below make; the published template makes 500
TEXT = "How are you?"
# Every kind of message that the pipeline renders.
SAMPLES: tuple[list[dict[str, Any]], ...] = (
    [{"role": "user", "content": TEXT}],
    [
        {"role": "system", "content": [{"type": "text", "text": TEXT}]},
        *(
            {
                "role": "user",
                "content": [
                    {"type": "audio", "audio": "a.wav"},
                    {"type": "image", "image": "a.png"},
                    {"type": "video", "video": "a.mp4"},
                    {"type": "text", "text": TEXT},
                ],
            },
            {"role": "assistant", "content": TEXT},
        )
        * 8,
        {"role": "user", "content": TEXT},
    ],
)


CALL = '{"name": "go", "arguments": {"to": "left"}}'
TOOL_SAMPLE: list[dict[str, Any]] = [  # as dialogue/history.py makes them
    {"role": "system", "content": TEXT},
    {"role": "user", "content": [{"type": "text", "text": TEXT}]},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "go", "arguments": '{"to": "left"}'}}]},
    {"role": "tool", "content": TEXT},
    {"role": "assistant", "content": [{"type": "text", "text": TEXT}]},
]


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["**"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> NoReturn:
        raise TemplateError("chat templates have no use for powers")


def template_environment() -> TemplateEnvironment:
    """As transformers renders chat templates, without powers: nothing else makes so much work of so few letters."""
    environment = TemplateEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = lambda x, **kw: json.dumps(x, ensure_ascii=False, **kw)
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def check_template(
    source: str,
    name: str,
    special_tokens: Iterable[str] = (),
    timeout: float = TIMEOUT,
    tools: list[dict[str, Any]] | None = None,
) -> None:
    """Compile `source` and render SAMPLES in a child process. It takes the time of starting one, 0.2 s.

    Raises EngineError naming `name`, the template's file, when the template is damaged, raises, takes longer than
    `timeout` seconds or more than 512 MB, or makes a prompt without the words of its messages or without any of
    `special_tokens` (the tokenizer's: a template of another model shows by that). With `tools` it must offer these and write
    calls and results as Qwen3's templates do.
    """
    code = f"import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {__name__} import child; child()"
    command = [sys.executable, "-I", "-c", code, json.dumps(sys.path)]
    fix = "export the Thinker and build it again"
    try:
        job = json.dumps([source, list(special_tokens), timeout, tools or []])
        done = subprocess.run(command, input=job, capture_output=True, text=True, timeout=timeout + 5, check=False)
        problem = done.stdout if done.returncode == 0 else f"it takes more than {timeout:g} s or {MEMORY >> 20} MB to render"
    except subprocess.TimeoutExpired:
        problem = f"it takes more than {timeout:g} s to render"
    except (OSError, ValueError) as e:
        problem = f"it cannot be tried ({e})"
    if problem:
        raise EngineError(f"{name}: the chat template cannot be used: {problem[:300]}; {fix}")


def child() -> None:
    """Reads a job from stdin; prints what is wrong with its template, nothing when it is fine. The kernel may end it."""
    source, special, timeout, tools = json.load(sys.stdin)
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime + timeout) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(_problem(source, special, tools), end="")


def _problem(source: str, special: list[str], tools: list[dict[str, Any]]) -> str:
    try:
        template = template_environment().from_string(source)
        for messages in SAMPLES:
            prompt = template.render(messages=messages, add_generation_prompt=True)
            if len(prompt) > MAX_CHARACTERS:
                return f"it makes {len(prompt)} characters of {len(messages)} short messages"
            if prompt.count(TEXT) < sum(str(m["content"]).count(TEXT) for m in messages):
                return "it leaves out words of the messages"
            if special and not any(token in prompt for token in special):
                return "it writes none of the tokenizer's special tokens"
        if tools:
            prompt = template.render(messages=TOOL_SAMPLE, tools=tools, add_generation_prompt=True)
            if len(prompt) > MAX_CHARACTERS + 2 * len(json.dumps(tools)):
                return f"it makes {len(prompt)} characters of {len(tools)} tools"
            if missing := [t["function"]["name"] for t in tools if json.dumps(t["function"]["name"]) not in prompt]:
                return f"it does not offer tools ({missing[0]} is missing in the prompt): this checkpoint was not made for them"
            if f"<tool_call>\n{CALL}\n</tool_call>" not in prompt or prompt.count(TEXT) < 4:
                return "it does not write tool calls and their results as Qwen3 does"
    except BaseException as e:  # a template may raise anything, MemoryError and RecursionError included
        return " ".join(f"{type(e).__name__}: {e}".split())
    return ""


def _raise(message: str) -> None:
    raise TemplateError(message)
