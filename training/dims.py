"""Sizes of the micro model, in the form of offline.make_checkpoint's SIZES."""

CODES = 128
GRID = (8, 10)  # patches of a 128 x 160 picture
MICRO = {
    "thinker_config": {
        "text_config": {
            "vocab_size": 1024,
            "hidden_size": 192,
            "num_hidden_layers": 5,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 32,
            "intermediate_size": 384,
            "moe_intermediate_size": 192,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
        "audio_config": {
            "d_model": 192,
            "encoder_layers": 4,
            "encoder_attention_heads": 6,
            "encoder_ffn_dim": 512,
            "downsample_hidden_size": 32,
        },
        "vision_config": {
            "depth": 4,
            "hidden_size": 96,
            "num_heads": 3,
            "intermediate_size": 256,
            "deepstack_visual_indexes": [1, 2],
            "num_position_embeddings": 256,
        },
    },
    "talker_config": {
        "accept_hidden_layer": 3,
        "text_config": {
            "hidden_size": 192,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 32,
            "intermediate_size": 384,
            "moe_intermediate_size": 128,
            "shared_expert_intermediate_size": 128,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
        "code_predictor_config": {
            "vocab_size": CODES,
            "hidden_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 32,
            "intermediate_size": 512,
        },
    },
    "code2wav_config": {
        "hidden_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "intermediate_size": 384,
        "decoder_dim": 192,
    },
    "max_pixels": 24 * 32 * 32,
}
