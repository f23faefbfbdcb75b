"""The Thinker of the benchmark's checkpoint in llama.cpp, which people would otherwise take on a CPU."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from offline.checkpoints.checkpoint import Checkpoint

# Names of llama.cpp's architecture `qwen3moe` (its conversion script and llama-arch.cpp) and the checkpoint's.
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.gate",
}
WORD = "t"
EXPERTS = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}


def tensors(checkpoint: Path, config: dict) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of the text decoder, float32, under llama.cpp's name; experts stacked, [experts, out, in]."""
    file = Checkpoint(checkpoint)

    def get(name: str) -> np.ndarray:
        return file[f"thinker.{name}.weight"].astype(np.float32)

    yield "token_embd", get("model.embed_tokens")
    yield "output_norm", get("model.norm")
    yield "output", get("lm_head")
    for i in range(config["num_hidden_layers"]):
        for name, ours in LAYER.items():
            yield f"blk.{i}.{name}", get(f"model.layers.{i}.{ours}")
        for name, ours in EXPERTS.items():
            each = [get(f"model.layers.{i}.mlp.experts.{e}.{ours}") for e in range(config["num_experts"])]
            yield f"blk.{i}.{name}", np.stack(each)


def write_gguf(checkpoint: Path, path: Path, q4: bool) -> Path:
    """The Thinker's text decoder as GGUF. `q4`: every matrix as Q4_0 (4 bits, blocks of 32), as our int4; else float32."""
    import gguf

    config = json.loads((checkpoint / "config.json").read_text())["thinker_config"]["text_config"]
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_context_length(4096)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    # A vocabulary whose words are their ids: the server takes ids, but answers in words.
    words = config["vocab_size"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([f"{WORD}{i}" for i in range(words)])
    writer.add_token_types([gguf.TokenType.NORMAL] * words)
    writer.add_token_merges([f"{WORD} 1"])
    writer.add_eos_token_id(words - 1)
    writer.add_add_bos_token(False)
    for name, array in tensors(checkpoint, config):
        kind = gguf.GGMLQuantizationType.Q4_0 if q4 and array.ndim > 1 and "gate_inp" not in name else None
        data = gguf.quants.quantize(array, kind) if kind is not None else array
        writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class LlamaCpp:
    """One model on `threads` cores; `exact`: keys and values in float32 too, as ours, instead of its usual 16 bit."""

    def __init__(self, path: Path, threads: int, exact: bool):
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.n_ctx, params.n_parallel, params.verbosity = 1024, 1, 0
        if exact:
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = xllamacpp.Server(params)

    def run(self, prompt: list[int], tokens: int) -> tuple[float, float, list[int]]:
        """Decoded tokens/s as llama.cpp counts them (without the prompt), 0 codec frames/s, and the greedy token ids."""
        request = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        done = self.server.handle_completions(request)
        ids = [int(word) for word in done["choices"][0]["text"].split(WORD)[1:]]
        return done["timings"]["predicted_per_second"], 0.0, ids
