"""config.json of a random checkpoint: the dimensions of a size, and all that follows from them."""

import copy

from tokenizers import Tokenizer

from .random_tokenizer import ROLES, SPECIAL_TOKENS


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
