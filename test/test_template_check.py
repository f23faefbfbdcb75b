"""Chat templates as an attacker would write them: each ends in one typed error in bounded time and memory, or is harmless."""

import resource
import time
from pathlib import Path

import pytest
from jinja2 import TemplateError

from omni_ros.errors import EngineError
from omni_ros.pipeline.template_check import SAMPLES, check_template, template_environment

GOOD = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HANGS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "one long call": "{{ (('7' * 4000) | int | string * 900000) | wordwrap(1) | length }}",
    "sum": "{% set n = namespace(x=1) %}{% for a in range(9999) %}{% set n.x = n.x * 1000003 * (n.x + 1) %}{% endfor %}{{ n.x }}",
    "sort": "{{ range(99999) | sort(reverse=true) | map('string') | join | list | sort | length * 0 }}"
    "{% for a in range(99999) %}{{ range(99999) | sort | length * 0 }}{% endfor %}",
}
GREEDY = {
    "string": "{{ 'a' * 10000000000 }}",
    "list": "{{ ([1] * 3000000000) | length }}",
    "format": "{{ '%3000000000d' | format(1) }}",
    "center": "{{ 'a' | center(3000000000) }}",
    "doubling": "{% set n = namespace(s='a') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s | length }}",
    "long prompt": "{{ 'a' * 20000000 }}" + GOOD,
}
BROKEN = {
    "syntax": "{% for %}",
    "unknown filter": "{{ messages | frobnicate }}",
    "undefined": "{{ nothing.at.all }}",
    "attribute": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "division": "{{ 1 // 0 }}",
    "index": "{{ messages[99].role }}",
    "type": "{{ 1 + 'a' }}",
    "own exception": "{{ raise_exception('not today') }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "powers": "{{ (9**(9**9)) | string | length }}",
    "strftime": "{{ strftime_now('\ud83d') }}",
    "overflow": "{{ 'a' * (10 * 10**30) }}",
    "unicode": "{{ '\\ud83d'.encode('utf-8') }}",
    "attribute of string": "{{ ''.__class__ }}{{ cycler.__init__.__globals__ }}",
    "changes the messages": "{{ messages.clear() }}" + GOOD,
}
WRONG = {
    "empty": "",
    "words missing": "{{ messages[0].role }}",
    "another model's": "{% for m in messages %}{{ m.content }}{% endfor %}",
}


def test_good_template():
    start = time.monotonic()
    check_template(GOOD, "chat_template.jinja", ["<|im_start|>", "<|im_end|>"])
    assert time.monotonic() - start < 5  # 0.2 s when nothing else runs


def test_template_of_the_tests_checkpoints(checkpoints):
    for folder in checkpoints.values():
        path = folder / "chat_template.jinja"
        if path.is_file():
            check_template(path.read_text(), str(path), ["<|im_start|>"])


@pytest.mark.parametrize("name", [*HANGS, *GREEDY, *BROKEN, *WRONG])
def test_hostile_template(name, tmp_path):
    source = {**HANGS, **GREEDY, **BROKEN, **WRONG}[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    with pytest.raises(EngineError, match=r"folder/chat_template\.jinja") as caught:
        check_template(source, "folder/chat_template.jinja", ["<|im_start|>"], timeout=1.0)
    assert time.monotonic() - start < 8
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB of this process
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_no_file_is_left_and_none_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_text("words")
    with pytest.raises(EngineError):
        check_template("{% include 'secret' %}", "a")
    assert [p.name for p in tmp_path.iterdir()] == ["secret"]


def test_the_environment_has_no_powers():
    """What the check cannot foresee: a template that turns bad with messages it has not seen."""
    with pytest.raises(TemplateError, match="powers"):
        template_environment().from_string("{{ 2 ** messages | length }}").render(messages=[1])


def test_samples_are_what_requests_may_hold():
    kinds = {part["type"] for messages in SAMPLES for m in messages if isinstance(m["content"], list) for part in m["content"]}
    assert kinds == {"text", "audio", "image", "video"}
    assert {m["role"] for messages in SAMPLES for m in messages} == {"system", "user", "assistant"}


def test_a_child_that_cannot_start_is_an_engine_error(monkeypatch):
    monkeypatch.setattr("sys.executable", str(Path("/nowhere/python")))
    with pytest.raises(EngineError, match="cannot be tried"):
        check_template(GOOD, "a")
