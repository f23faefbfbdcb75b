"""Chat template and tokens, from the checkpoint's own files: tokenizer.json and chat_template.{jinja,json}."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from omni_ros.errors import EngineError, InputError
from omni_ros.pipeline.cutting import add_tokens
from omni_ros.pipeline.template_check import check_template, template_environment
from omni_ros.pipeline.tool_calls import MARKS

MARK = "\ue000{}\ue001"  # private use characters: no word in any language
HIDDEN = re.compile(MARK.format(r"(\d+)"))


class ChatTokenizer:
    """Messages -> token ids, as transformers' apply_chat_template + Qwen2Tokenizer; ids -> text as they arrive."""

    def __init__(self, directory: Path):
        path = directory / "tokenizer.json"
        try:
            text = path.read_text()
            self.tokenizer = Tokenizer.from_str(text)
            content = json.loads(text)
            self.special = [token["content"] for token in content.get("added_tokens") or []]
            # The same words without special tokens: to it, they are letters like others.
            self.plain = Tokenizer.from_str(json.dumps({**content, "added_tokens": []}))
            for tokenizer in (self.tokenizer, self.plain):
                tokenizer.model._resize_cache(0)  # 75 MB of the first 10,000 words that anybody sends, for ever
        except Exception as e:  # tokenizers raises nothing more special
            raise EngineError(f"{path}: not a readable tokenizer ({e}); export the Thinker and build it again") from e
        # In bytes: the vocabulary has a letter for each, but for special tokens.
        self.longest_token = max(*map(len, self.plain.get_vocab()), *(len(token.encode()) for token in self.special), 1)
        # Marks of tool calls that a reply's text does not show, because the tokenizer calls them special: id -> mark.
        hidden = {token["content"] for token in content.get("added_tokens") or [] if token["special"]}
        self.marks = {self.tokenizer.token_to_id(mark): mark for mark in MARKS if mark in hidden}
        file, source = _read_template(directory)
        check_template(source, str(file), self.special)
        self.template_file, self.template_source = str(file), source
        self.template = template_environment().from_string(source)

    def check_tools(self, tools: list[dict[str, Any]]) -> None:
        """Raise EngineError when the checkpoint's chat template cannot offer `tools` or write calls as Qwen3 does."""
        check_template(self.template_source, self.template_file, self.special, tools=tools)

    def encode(
        self,
        messages: list[dict[str, Any]],
        answer: bool = True,
        special_tokens: bool = True,
        tools: list[dict[str, Any]] | None = None,
        most: float = math.inf,
    ) -> np.ndarray:
        """int64 [S]; every media part is still ONE placeholder token. With `answer` it ends with the assistant's opening.

        Without `special_tokens`, those that a text spells out become ordinary tokens, which no template is made of. `tools` are
        the robot's own words, and taken as they are. Raises PromptTooLongError as soon as there are clearly more than `most`.
        """
        spelled: list[str] = []
        if not special_tokens:
            messages = [self._hide(message, spelled) for message in messages]
        try:
            text = self.template.render(messages=messages, tools=tools, add_generation_prompt=answer)
        except TemplateError as e:
            raise InputError(f"the chat template refuses these messages: {e}") from e
        except Exception as e:  # templates are programs, and the checkpoint's
            raise InputError(f"the chat template fails on these messages: {type(e).__name__}: {e}") from e
        pieces = HIDDEN.split(text) if spelled else [text]  # template, number of a hidden text, template, ...
        ids: list[int] = []
        for i, piece in enumerate(pieces):
            tokenizer, piece = (self.plain, spelled[int(piece)]) if i % 2 else (self.tokenizer, piece)
            add_tokens(ids, tokenizer, piece, most, self.longest_token)
        return np.array(ids, np.int64)

    def words(self, text: str, most: int) -> list[int]:
        """The tokens of a reply that is this text: of what spells a special token, ordinary ones. Raises PromptTooLongError
        when there are clearly more than `most`."""
        ids: list[int] = []
        add_tokens(ids, self.plain, text, most, self.longest_token)
        return ids

    def _hide(self, message: dict[str, Any], spelled: list[str]) -> dict[str, Any]:
        """`message` with each text that spells a special token moved to `spelled`, a mark in its place."""

        def hide(text: str) -> str:
            text = HIDDEN.sub("", text)  # no text may bring marks of its own
            if not any(token in text for token in self.special):
                return text
            spelled.append(text)
            return MARK.format(len(spelled) - 1)

        if message.get("tool_calls"):
            message = {**message, "tool_calls": [_call(call, hide) for call in message["tool_calls"]]}
        content = message["content"]
        if isinstance(content, str):
            return {**message, "content": hide(content)}
        return {**message, "content": [{**p, "text": hide(p["text"])} if p["type"] == "text" else p for p in content]}

    def cut(self, text: str) -> list[int]:
        """The tokens of a piece of text."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

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


def _call(call: dict[str, Any], hide: Callable[[str], str]) -> dict[str, Any]:
    """A message's tool call with its texts hidden; arguments as the JSON that a template makes of them."""
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    json_text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {"name": hide(name), "arguments": hide(json_text)}}


def _read_template(directory: Path) -> tuple[Path, str]:
    """The file, and the template in it."""
    for path in (directory / "chat_template.jinja", directory / "chat_template.json"):
        if path.is_file():
            try:
                source = path.read_text() if path.suffix == ".jinja" else json.loads(path.read_text())["chat_template"]
                return path, source + ""
            except (OSError, ValueError, TypeError, KeyError, RecursionError) as e:
                raise EngineError(f"{path}: holds no chat_template ({e}); export the Thinker and build it again") from e
    raise EngineError(f"{directory}: neither chat_template.jinja nor chat_template.json; export the Thinker again")
