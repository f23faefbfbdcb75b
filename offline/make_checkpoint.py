"""Write a Qwen3-Omni checkpoint with random weights: every part, tokenizer and processor, no torch needed.

    python -m offline.make_checkpoint --output checkpoint --size tiny

transformers' Qwen3OmniMoeForConditionalGeneration and Qwen3OmniMoeProcessor load it like the real one. Its words and
its voice are nonsense, but no weight is idle: what transformers initialises to zero or nearly so (routers, snake
activations, layer scales) is random here, so a wrong graph cannot pass for a right one. Weights are made and written
one tensor at a time, in bfloat16 as in the published checkpoint.
"""

import argparse
import copy
import json
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from omni_ros.errors import CheckpointError, OmniError

from .checkpoints.random_tokenizer import ROLES, SPECIAL_TOKENS, train_tokenizer
from .checkpoints.random_weights import all_tensors, write_weights
from .outputs.atomic import atomic_directory

SHARD_BYTES = 10**9

# Only what a size chooses; `complete_config` adds all that follows from it.
SIZES: dict[str, dict] = {
    "tiny": {  # 2 M parameters, for tests
        "thinker_config": {
            "text_config": {
                "vocab_size": 512,
                "hidden_size": 64,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 32,
                "intermediate_size": 96,
                "moe_intermediate_size": 32,
                "num_experts": 8,
                "num_experts_per_tok": 2,
            },
            "audio_config": {
                "d_model": 64,
                "encoder_layers": 2,
                "encoder_attention_heads": 2,
                "encoder_ffn_dim": 128,
                "downsample_hidden_size": 16,
            },
            "vision_config": {
                "depth": 4,
                "hidden_size": 64,
                "num_heads": 2,
                "intermediate_size": 128,
                "deepstack_visual_indexes": [1, 2],
            },
        },
        "talker_config": {
            "accept_hidden_layer": 3,
            "text_config": {
                "hidden_size": 64,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 32,
                "intermediate_size": 96,
                "moe_intermediate_size": 32,
                "shared_expert_intermediate_size": 48,
                "num_experts": 8,
                "num_experts_per_tok": 2,
            },
            "code_predictor_config": {
                "vocab_size": 64,
                "hidden_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 32,
                "intermediate_size": 128,
            },
        },
        "code2wav_config": {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "decoder_dim": 64,
        },
        "max_pixels": 64 * 32 * 32,
    },
    "small": {  # 180 M parameters, for benchmarks and the demo
        "thinker_config": {
            "text_config": {
                "vocab_size": 4096,
                "hidden_size": 512,
                "num_hidden_layers": 8,
                "num_attention_heads": 8,
                "num_key_value_heads": 2,
                "head_dim": 64,
                "intermediate_size": 1024,
                "moe_intermediate_size": 256,
                "num_experts": 32,
                "num_experts_per_tok": 4,
            },
            "audio_config": {
                "d_model": 256,
                "encoder_layers": 4,
                "encoder_attention_heads": 4,
                "encoder_ffn_dim": 1024,
                "downsample_hidden_size": 64,
            },
            "vision_config": {
                "depth": 6,
                "hidden_size": 256,
                "num_heads": 4,
                "intermediate_size": 1024,
                "deepstack_visual_indexes": [1, 3, 5],
            },
        },
        "talker_config": {
            "accept_hidden_layer": 4,
            "text_config": {
                "hidden_size": 256,
                "num_hidden_layers": 6,
                "num_attention_heads": 8,
                "num_key_value_heads": 2,
                "head_dim": 64,
                "intermediate_size": 512,
                "moe_intermediate_size": 192,
                "shared_expert_intermediate_size": 256,
                "num_experts": 16,
                "num_experts_per_tok": 4,
            },
            "code_predictor_config": {
                "vocab_size": 2048,
                "hidden_size": 256,
                "num_hidden_layers": 3,
                "num_attention_heads": 8,
                "num_key_value_heads": 4,
                "head_dim": 32,
                "intermediate_size": 768,
            },
        },
        "code2wav_config": {
            "hidden_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 768,
            "decoder_dim": 384,
        },
        "max_pixels": 256 * 32 * 32,
    },
}

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


def make_checkpoint(
    directory: str | Path,
    size: str = "tiny",
    seed: int = 0,
    overrides: dict | None = None,
    shard_bytes: int = SHARD_BYTES,
    force: bool = False,
) -> Path:
    """Write a random checkpoint to `directory` and return it; the directory appears only when it is complete.

    `overrides` is a nested dict in the names of config.json, for other dimensions or token ids than the size's own.
    The same arguments give the same bytes. Raises CheckpointError when `directory` holds files (unless `force`).
    """
    directory = Path(directory)
    if directory.exists() and not force and (not directory.is_dir() or any(directory.iterdir())):
        raise CheckpointError(f"{directory}: exists and is not empty; choose another folder or use --force")
    chosen = merge(SIZES[size], overrides or {})
    max_pixels = chosen.pop("max_pixels")
    tokenizer = train_tokenizer(chosen["thinker_config"]["text_config"]["vocab_size"])
    config = complete_config(chosen, tokenizer)
    with atomic_directory(directory) as partial:
        write_json(partial / "config.json", config)
        write_json(partial / "generation_config.json", {"eos_token_id": config["im_end_token_id"], "use_cache": True})
        write_processor(partial, tokenizer, max_pixels)
        write_weights(partial, list(all_tensors(config)), silent_tokens(tokenizer, config), seed, shard_bytes)
    return directory


# ---- config.json ----------------------------------------------------------------------------------------------------
def merge(base: dict, overrides: dict) -> dict:
    """A deep copy of `base` with the leaves of `overrides` put in."""
    merged = copy.deepcopy(base)
    for key, value in overrides.items():
        merged[key] = merge(merged.get(key, {}), value) if isinstance(value, dict) else copy.deepcopy(value)
    return merged


def complete_config(chosen: dict, tokenizer: Tokenizer) -> dict:
    """All of config.json: the chosen numbers plus those that follow from them and from the tokenizer."""
    names = SPECIAL_TOKENS + ROLES
    token = dict(zip(names, map(tokenizer.token_to_id, names)))
    thinker, talker = chosen["thinker_config"], chosen["talker_config"]
    hidden = thinker["text_config"]["hidden_size"]
    codes = talker["code_predictor_config"]["vocab_size"]
    multimodal = {
        "audio_token_id": token["<|audio_pad|>"],
        "image_token_id": token["<|image_pad|>"],
        "video_token_id": token["<|video_pad|>"],
        "vision_start_token_id": token["<|vision_start|>"],
        "audio_start_token_id": token["<|audio_start|>"],
        "audio_end_token_id": token["<|audio_end|>"],
        "position_id_per_seconds": 13,
        "seconds_per_chunk": 2,
    }
    decoder = {
        "max_position_embeddings": 32768,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "norm_topk_prob": True,
        "attention_bias": False,
        "sliding_window": None,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "tie_word_embeddings": False,
    }
    defaults = {
        "architectures": ["Qwen3OmniMoeForConditionalGeneration"],
        "model_type": "qwen3_omni_moe",
        "dtype": "bfloat16",
        "enable_audio_output": True,
        "tie_word_embeddings": False,
        "im_start_token_id": token["<|im_start|>"],
        "im_end_token_id": token["<|im_end|>"],
        "tts_pad_token_id": token["<tts_pad>"],
        "tts_bos_token_id": token["<tts_text_bos>"],
        "tts_eos_token_id": token["<tts_text_eod>"],
        **{f"{role}_token_id": token[role] for role in ROLES},
        "thinker_config": {
            "model_type": "qwen3_omni_moe_thinker",
            "user_token_id": token["user"],
            **multimodal,
            "text_config": {
                "model_type": "qwen3_omni_moe_text",
                **decoder,
                "rope_parameters": mrope(thinker["text_config"]["head_dim"]),
            },
            "audio_config": {
                "model_type": "qwen3_omni_moe_audio_encoder",
                "num_mel_bins": 128,
                "n_window": 50,
                "n_window_infer": 800,
                "conv_chunksize": 500,
                "max_source_positions": 1500,
                "activation_function": "gelu",
                "scale_embedding": False,
                "output_dim": hidden,
            },
            "vision_config": {
                "model_type": "qwen3_omni_moe_vision_encoder",
                "in_channels": 3,
                "patch_size": 16,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "num_position_embeddings": 2304,
                "hidden_act": "gelu_pytorch_tanh",
                "out_hidden_size": hidden,
            },
        },
        # Codec ids sit above the codebook as in the published model: the last 1024 ids are never codes.
        "talker_config": {
            "model_type": "qwen3_omni_moe_talker",
            "num_code_groups": 16,
            "thinker_hidden_size": hidden,
            "spatial_merge_size": 2,
            **multimodal,
            "codec_pad_id": codes + 100,
            "codec_bos_id": codes + 101,
            "codec_eos_token_id": codes + 102,
            "codec_nothink_id": codes + 107,
            "codec_think_bos_id": codes + 108,
            "codec_think_eos_id": codes + 109,
            "speaker_id": {"chelsie": codes + 253, "ethan": codes + 254, "aiden": codes + 255},
            "text_config": {
                "model_type": "qwen3_omni_moe_talker_text",
                "vocab_size": codes + 1024,
                **decoder,
                "rope_parameters": mrope(talker["text_config"]["head_dim"]),
            },
            "code_predictor_config": {
                "model_type": "qwen3_omni_moe_talker_code_predictor",
                "num_code_groups": 16,
                "max_position_embeddings": 32768,
                "hidden_act": "silu",
                "rms_norm_eps": 1e-6,
                "attention_bias": False,
                "sliding_window": None,
                "tie_word_embeddings": False,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            },
        },
        "code2wav_config": {
            "model_type": "qwen3_omni_moe_code2wav",
            "codebook_size": codes,
            "num_quantizers": 16,
            "sliding_window": 72,
            "upsample_rates": [8, 5, 4, 3],
            "upsampling_ratios": [2, 2],
            "max_position_embeddings": 8000,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "attention_bias": False,
            "layer_scale_initial_scale": 0.01,
            "num_key_value_heads": chosen["code2wav_config"]["num_attention_heads"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    }
    config = merge(defaults, chosen)
    # transformers stores the Talker's number of experts under this name.
    text = config["talker_config"]["text_config"]
    text["num_local_experts"] = text.pop("num_experts")
    return config


def mrope(head_dim: int) -> dict:
    """Interleaved multimodal RoPE; time, height, width share the frequencies 24 : 20 : 20 as in the real model."""
    space = head_dim // 2 * 5 // 16
    return {
        "rope_type": "default",
        "rope_theta": 1e6,
        "mrope_section": [head_dim // 2 - 2 * space, space, space],
        "interleaved": True,
        "mrope_interleaved": True,
    }


# ---- tokenizer and processor ----------------------------------------------------------------------------------------
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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__.split("\n")[0])
    parser.add_argument("--output", required=True, type=Path, help="folder to create")
    parser.add_argument(
        "--size",
        choices=SIZES,
        default="tiny",
        help="tiny: 2 M parameters, for tests; small: 180 M, for benchmarks (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default: %(default)s)")
    parser.add_argument(
        "--layers",
        type=int,
        help="number of Thinker layers, if not the size's own; each layer of "
        "small is 26 MB: --size small --layers 80 makes a checkpoint of 2.2 GB",
    )
    parser.add_argument(
        "--shard_size", type=int, default=SHARD_BYTES, metavar="BYTES", help="largest .safetensors file (default: %(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="replace what is in the folder")
    args = parser.parse_args(argv)
    overrides = {"thinker_config": {"text_config": {"num_hidden_layers": args.layers}}} if args.layers else None
    try:
        make_checkpoint(args.output, args.size, args.seed, overrides, args.shard_size, args.force)
    except (OmniError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    size = sum(f.stat().st_size for f in args.output.iterdir())
    print(f"{args.size} checkpoint with random weights in {args.output} ({size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
