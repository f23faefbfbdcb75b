"""Request files of `infer`: read, checked, and the fields of TensorRT Edge-LLM's request files taken for what they mean here.

What such a field asks for and cannot be had is named in a warning, never passed over: the answer would be another one than
its writer expects.
"""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from omni_ros.errors import InputError
from omni_ros.pipeline.request import Request

PARAMETERS = (
    "max_generate_length",
    "temperature",
    "top_k",
    "top_p",
    "seed",
    "talker_temperature",
    "talker_top_k",
    "talker_top_p",
    "repetition_penalty",
    "max_audio_length",
    "runaway_limit",
    "speaker",
    "special_tokens",
)
# Edge-LLM's fields with no place here: the values that change nothing (None: all), and what happens instead of the others
WITHOUT_EFFECT: dict[str, tuple[tuple | None, str]] = {
    "batch_size": ((1,), "requests are answered one after another"),
    "apply_chat_template": ((True,), "the chat template is always applied"),
    "add_generation_prompt": ((True,), "the assistant's turn is always opened"),
    "enable_thinking": ((False,), "the Instruct model does not think aloud"),
    "num_logprobs": ((0,), "no log probabilities are returned"),
    "logit_bias": (({},), "no token is made more or less likely"),
    "stop": (([], ""), "the reply goes on to its own end"),
    "lora_name": (("",), "there are no LoRA adapters"),
    "available_lora_weights": (({},), "there are no LoRA adapters"),
    "disable_spec_decode": (None, ""),
    "spec_proposal_sampling": (None, ""),
    "save_system_prompt_kv_cache": (None, ""),
    "context_cache_lookup_policy": (None, ""),
    "context_cache_commit_policy": (None, ""),
}
MEDIA = ("audio", "image", "video")
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


def read_requests(path: Path, audio_output: bool, streaming: bool) -> tuple[list[Request], list[str]]:
    """The requests of a file, and warnings. Raises InputError naming the file and the entry at fault.

    `streaming`: also for requests whose `streaming` block does not ask for it.
    """
    try:
        file = json.loads(path.read_text())
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror})") from e
    except (ValueError, RecursionError) as e:
        raise InputError(f"{path}: not valid JSON ({e})") from e
    if not isinstance(file, dict) or not isinstance(file.get("requests"), list) or not file["requests"]:
        raise InputError(f"{path}: must be an object with a non-empty list 'requests'")
    warnings: list[str] = []
    shared = _parameters({k: v for k, v in file.items() if k != "requests"}, f"{path}", warnings)
    requests = []
    for i, entry in enumerate(file["requests"]):
        where = f"{path}: requests[{i}]"
        if not isinstance(entry, dict) or "messages" not in entry:
            raise InputError(f"{where} must be an object with 'messages'")
        own = _parameters({k: v for k, v in entry.items() if k != "messages"}, where, warnings)
        parameters = {"streaming": False, **shared, **own}
        parameters["streaming"] |= streaming
        messages = entry["messages"]
        try:
            if isinstance(messages, list):
                messages = [_local_media(m, path.parent, where, warnings) for m in messages]
            requests.append(Request(messages, audio_output=audio_output, **parameters))
        except InputError as e:
            raise InputError(f"{where}: {e}") from e
    return requests, warnings


def _parameters(fields: dict[str, Any], where: str, warnings: list[str]) -> dict[str, Any]:
    """Fields of the file or of one request -> arguments of Request."""
    fields = dict(fields)
    if "sampling_seed" in fields:
        fields.setdefault("seed", fields.pop("sampling_seed"))
    found = _streaming(fields.pop("streaming"), where, warnings) if "streaming" in fields else {}
    for name in [n for n in fields if n in WITHOUT_EFFECT]:
        value, (harmless, instead) = fields.pop(name), WITHOUT_EFFECT[name]
        if harmless is not None and value is not None and value not in harmless:
            warnings.append(f"{where}: {name} = {json.dumps(value)[:60]} has no effect: {instead}")
    unknown = sorted(set(fields) - set(PARAMETERS))
    if unknown:
        raise InputError(f"{where}: unknown field {', '.join(unknown)}; known are {', '.join(PARAMETERS)}")
    return {**found, **fields}


def _streaming(block: Any, where: str, warnings: list[str]) -> dict[str, Any]:
    """{"enable": true, "codec_chunk_frames": 10, "talker_prefill_threshold": 4} of Edge-LLM."""
    if not isinstance(block, dict) or not isinstance(block.get("enable", False), bool):
        raise InputError(f"{where}: streaming must be an object with 'enable': true or false")
    unknown = sorted(set(block) - {"enable", "codec_chunk_frames", "talker_prefill_threshold"})
    if unknown:
        raise InputError(f"{where}: unknown field streaming.{', streaming.'.join(unknown)}")
    found: dict[str, Any] = {"streaming": block.get("enable", False)}
    frames = block.get("codec_chunk_frames")
    if frames == 0:
        warnings.append(f"{where}: streaming.codec_chunk_frames = 0 has no effect: speech is always made while it is spoken")
    elif frames is not None:
        found |= {"first_chunk_frames": frames, "chunk_frames": frames}
    if "talker_prefill_threshold" in block:
        warnings.append(
            f"{where}: streaming.talker_prefill_threshold has no effect: the Talker begins with the first word, which "
            "changes nothing of what it says"
        )
    return found


def _local_media(message: Any, folder: Path, where: str, warnings: list[str]) -> Any:
    """The message with every medium as a path: relative ones count from the request file's folder, `image_url` and its like
    become `image` and its like. Raises InputError for what is not a local file."""
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    return {
        **message,
        "content": [_local_part(p, folder, where, warnings) if isinstance(p, dict) else p for p in message["content"]],
    }


def _local_part(part: dict, folder: Path, where: str, warnings: list[str]) -> dict:
    kind = part.get("type")
    if kind == "input_audio":
        raise InputError("input_audio carries the sound itself, which is not read; give a file: {'type': 'audio', 'audio': PATH}")
    if isinstance(kind, str) and kind.removesuffix("_url") in MEDIA and kind.endswith("_url"):
        value, kind = part.get(kind), kind.removesuffix("_url")
        value = value.get("url") if isinstance(value, dict) else value
        if not isinstance(value, str):
            raise InputError(f"{kind}_url must be a string or an object with 'url'")
        part = {"type": kind, kind: value}
    if kind not in MEDIA or not isinstance(part.get(kind), str):
        return part
    if part.get("do_resize", True) is not True:
        warnings.append(f"{where}: do_resize = false has no effect: a picture of the right size is not changed anyway")
    return {**part, kind: str(_local_path(part[kind], folder))}


def _local_path(value: str, folder: Path) -> Path:
    path = folder / value
    if not SCHEME.match(value) or path.exists():
        return path
    url = urlparse(value)
    if url.scheme.lower() == "file" and url.netloc in ("", "localhost"):
        return folder / unquote(url.path)
    raise InputError(f"{value[:80]!r} is not a local file; nothing is fetched: save it, and give its path")
