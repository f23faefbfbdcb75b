"""Chat template and tokens, from the checkpoint's own files: tokenizer.json and chat_template.{jinja,json}."""

import json
from datetime import datetime
from pathlib import Path

import numpy as np
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from omni_ros.errors import EngineError, InputError


class ChatTokenizer:
    """Messages -> token ids, as transformers' apply_chat_template + Qwen2Tokenizer; ids -> text as they arrive."""

    def __init__(self, directory: Path):
        path = directory / "tokenizer.json"
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as e:  # noqa: BLE001 - tokenizers raises nothing more special
            raise EngineError(f"{path}: not a readable tokenizer ({e}); export the Thinker and build it again") from e
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.filters["tojson"] = lambda x, **kw: json.dumps(x, ensure_ascii=False, **kw)
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self.template = environment.from_string(_read_template(directory))
        except TemplateError as e:
            raise EngineError(f"{directory}: the chat template is damaged ({e}); export the Thinker and build it again") from e

    def encode(self, messages: list[dict]) -> np.ndarray:
        """int64 [S], ending with the assistant's opening; every media part is still ONE placeholder token."""
        try:
            text = self.template.render(messages=messages, add_generation_prompt=True)
        except TemplateError as e:
            raise InputError(f"the chat template refuses these messages: {e}") from e
        try:
            return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, np.int64)
        except TypeError as e:  # half a surrogate pair, as JSON can escape it, is no character
            raise InputError("the messages hold text that is not valid Unicode") from e

    def stream(self) -> "TextStream":
        return TextStream(self.tokenizer)


class TextStream:
    """Reply tokens one by one -> text that never splits a UTF-8 character; special tokens are silent."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.decoder = tokenizer, DecodeStream(skip_special_tokens=True)
        self.ids: list[int] = []
        self.length = 0  # characters given out

    def __call__(self, token: int) -> str:
        self.ids.append(token)
        text = self.decoder.step(self.tokenizer, token) or ""
        self.length += len(text)
        return text

    def rest(self) -> str:
        """What the whole reply decodes to beyond the text given out: a character that was never completed."""
        return self.tokenizer.decode(self.ids, skip_special_tokens=True)[self.length :]


def _raise(message: str) -> None:
    raise TemplateError(message)


def _read_template(directory: Path) -> str:
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text()
    path = directory / "chat_template.json"
    if path.is_file():
        try:
            return json.loads(path.read_text())["chat_template"]
        except (ValueError, TypeError, KeyError) as e:
            raise EngineError(f"{path}: holds no chat_template ({e}); export the Thinker and build it again") from e
    raise EngineError(f"{directory}: neither chat_template.jinja nor chat_template.json; export the Thinker again")
