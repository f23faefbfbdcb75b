"""Answers for programs: JSON that fits a schema, or nothing."""

import json
import re
from pathlib import Path
from typing import Any

from omni_ros.dialogue.call_text import mismatch, validator
from omni_ros.errors import InputError

_FENCED = re.compile(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", re.DOTALL)  # as models like to wrap it


class ResponseSchema:
    """`source` is a JSON schema, or the path of a file with one. Raises InputError naming what is wrong with it."""

    def __init__(self, source: str) -> None:
        text, where = source, "the text"
        if not source.lstrip().startswith("{"):
            where = source
            try:
                text = Path(source).expanduser().read_text()
            except (OSError, ValueError) as reason:
                raise InputError(
                    f"response_schema: {source[:200]} is neither a JSON schema nor a readable file ({reason})"
                ) from None
        try:
            self.schema: dict[str, Any] = json.loads(text)
        except (ValueError, RecursionError) as reason:
            raise InputError(f"response_schema: {where} is not JSON ({str(reason)[:200]})") from None
        try:
            self._validator = validator(self.schema)
        except InputError as reason:
            raise InputError(f"response_schema: {where}: {reason}") from None

    @property
    def instruction(self) -> str:
        """What the model is told."""
        return f"Answer with nothing but JSON that fits this JSON schema: {json.dumps(self.schema, ensure_ascii=False)}"

    def read(self, text: str, ended: str) -> str:
        """The JSON of a whole answer in one line; `ended` is why its text ended. Raises InputError when it does not fit."""
        if ended != "stop":
            raise InputError(f"the answer was cut short ({ended}): its JSON is not to be trusted")
        if fenced := _FENCED.fullmatch(text):
            text = fenced[1]
        try:
            value = json.loads(text, parse_constant=_refuse)
            line = json.dumps(value, ensure_ascii=False)
            line.encode()
        except (ValueError, RecursionError) as reason:
            raise InputError(f"the answer is not JSON ({str(reason)[:200]})") from None
        if wrong := mismatch(self._validator, value):
            raise InputError(f"the answer does not fit response_schema: {wrong}")
        return line


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")
