"""Tokenizer, chat template and processor settings of a random checkpoint."""

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from .random_tokenizer import SPECIAL_TOKENS

CHAT_TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>
{%- elif part.type == 'audio' -%}<|audio_start|><|audio_pad|><|audio_end|>
{%- elif part.type == 'text' -%}{{ part.text }}{%- endif -%}
{%- endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def write_processor(directory: Path, tokenizer: Tokenizer, max_pixels: int) -> None:
    """The files that Qwen3OmniMoeProcessor.save_pretrained writes."""
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "processor_class": "Qwen3OmniMoeProcessor",
            "backend": "tokenizers",
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "model_max_length": 32768,
            "image_token": "<|image_pad|>",
            "audio_token": "<|audio_pad|>",
            "video_token": "<|video_pad|>",
            "vision_bos_token": "<|vision_start|>",
            "vision_eos_token": "<|vision_end|>",
            "audio_bos_token": "<|audio_start|>",
            "audio_eos_token": "<|audio_end|>",
        },
    )
    pixels = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "patch_size": 16,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "size": {"shortest_edge": 4 * 32 * 32, "longest_edge": max_pixels},
    }  # areas in pixels, despite the names
    write_json(
        directory / "processor_config.json",
        {
            "processor_class": "Qwen3OmniMoeProcessor",
            "feature_extractor": {
                "feature_extractor_type": "WhisperFeatureExtractor",
                "feature_size": 128,
                "sampling_rate": 16000,
                "hop_length": 160,
                "n_fft": 400,
                "chunk_length": 30,
                "n_samples": 480000,
                "nb_max_frames": 3000,
                "padding_side": "right",
                "padding_value": 0.0,
                "dither": 0.0,
                "return_attention_mask": False,
            },
            "image_processor": {"image_processor_type": "Qwen2VLImageProcessor", **pixels},
            "video_processor": {
                "video_processor_type": "Qwen2VLVideoProcessor",
                **pixels,
                "do_sample_frames": False,
                "min_frames": 4,
                "max_frames": 768,
            },
        },
    )


def silent_tokens(tokenizer: Tokenizer, config: dict) -> np.ndarray:
    """bool [vocab]: ids that a reply should not contain, because they have no text: unused ids and special tokens
    other than the end. A large vocabulary speaks only in tokens that begin a word; a small one needs all its bytes."""
    vocab_size = config["thinker_config"]["text_config"]["vocab_size"]
    tokens = [tokenizer.id_to_token(i) for i in range(vocab_size)]
    if vocab_size <= 1024:
        return np.array([t is None or t in SPECIAL_TOKENS and t != "<|im_end|>" for t in tokens])
    space = "\u0120"  # how byte-level BPE writes a blank
    return np.array([t is None or t != "<|im_end|>" and not (t[0] == space and len(t) > 2) for t in tokens])


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
