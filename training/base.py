"""What is there before the training: tokenizer, config.json, processor files, chat template, frozen token embeddings.

    python -m training.base BASE

Everything that the sizes (`dims.MICRO`) and the tokenizer do not decide is taken from a checkpoint with random weights
(`python -m offline.make_checkpoint`), the seed of all ours. The tokenizer is Qwen's byte-level BPE, trained on the domain: each
word of an answer is one token, since the Talker reads one token a frame.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, pre_tokenizers, trainers

from training import dims, domain, strange, wording
from training.tools import TOOLS, tools_text

ROLES = ("system", "user", "assistant")
# As in Qwen3's vocabulary: added, but text; the parser of tool calls has to see them.
TOOL_TOKENS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def train_tokenizer(seed: Tokenizer, size: int) -> Tokenizer:
    """A tokenizer that cuts text as `seed` does and has its special tokens, with merges for the domain."""
    special = [t.content for _, t in sorted(seed.get_added_tokens_decoder().items())]
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(special) - len(TOOL_TOKENS),
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    rnd = random.Random(0)
    answers = domain.answers(triples=200)
    words = sorted({w.strip(".,!?") for text in answers for w in text.split()})
    tools = [tools_text(domain.offered(rnd)) + domain.tool_call("go_to", place=rnd.choice(domain.SLOTS)) for _ in range(300)]
    for token in (*special, *TOOL_TOKENS):
        tools = [t.replace(token, "") for t in tools]
    questions = [wording.typed(rnd, q) for q in domain.questions() for _ in range(3)]
    questions += [wording.typed(rnd, domain.sample(rnd)["question"] or "hello") for _ in range(6000)]
    corpus = ["\n".join(ROLES * 10_000), *questions, *answers * 4, *tools * 2]
    corpus += [f" {w} {w}" for w in words for _ in range(60)] + [w for w in words for _ in range(30)]
    corpus += [strange.sentence(rnd, spoken=True) for _ in range(1500)]
    tokenizer = Tokenizer.from_str(seed.to_str())
    tokenizer.train_from_iterator(corpus, trainer)
    added = [AddedToken(t, special=True, normalized=False) for t in special]
    fresh = Tokenizer.from_str(without_added(tokenizer))
    fresh.add_special_tokens(added)
    fresh.add_tokens([AddedToken(t, special=False, normalized=False) for t in TOOL_TOKENS])
    return fresh


def without_added(tokenizer: Tokenizer) -> str:
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = []
    return json.dumps(content)


def merge(base: dict, ours: dict) -> dict:
    """`base` with the leaves of `ours` put in."""
    return {**base, **{k: merge(base[k], v) if isinstance(v, dict) and k in base else v for k, v in ours.items()}}


def complete_config(seed: dict, tokenizer: Tokenizer, old: Tokenizer) -> dict:
    """config.json for our sizes and our tokenizer's ids, from that of the random checkpoint."""

    def renumber(value):  # *_token_id of the thinker's vocabulary; the codec's are named codec_*
        if isinstance(value, dict):
            text_id = lambda k: k.endswith("_token_id") and not k.startswith("codec")  # noqa: E731
            return {
                k: tokenizer.token_to_id(old.id_to_token(v)) if text_id(k) and v is not None else renumber(v)
                for k, v in value.items()
            }
        return value

    chosen = {k: v for k, v in dims.MICRO.items() if k != "max_pixels"}
    chosen = json.loads(json.dumps(chosen))
    text = chosen["talker_config"]["text_config"]
    text["num_local_experts"] = text.pop("num_experts")
    config = merge(renumber(seed), chosen)
    thinker, talker = config["thinker_config"], config["talker_config"]
    hidden, shift = thinker["text_config"]["hidden_size"], dims.CODES - seed["code2wav_config"]["codebook_size"]
    thinker["audio_config"]["output_dim"] = thinker["vision_config"]["out_hidden_size"] = hidden
    talker["thinker_hidden_size"] = hidden
    for key in [k for k in talker if k.startswith("codec_")]:
        talker[key] += shift
    talker["speaker_id"] = {name: i + shift for name, i in talker["speaker_id"].items()}
    talker["text_config"]["vocab_size"] += shift
    config["code2wav_config"]["codebook_size"] = dims.CODES
    config["code2wav_config"]["num_key_value_heads"] = config["code2wav_config"]["num_attention_heads"]
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("base", type=Path)
    out = parser.parse_args().base
    with tempfile.TemporaryDirectory() as folder:
        seed = Path(folder) / "seed"
        subprocess.run(
            [sys.executable, "-m", "offline.make_checkpoint", "--output", seed, "--size", "tiny"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        out.mkdir(parents=True, exist_ok=True)
        old = Tokenizer.from_file(str(seed / "tokenizer.json"))
        tokenizer = train_tokenizer(old, dims.MICRO["thinker_config"]["text_config"]["vocab_size"])
        config = complete_config(json.loads((seed / "config.json").read_text()), tokenizer, old)
        processor = json.loads((seed / "processor_config.json").read_text())
        shutil.copy(seed / "tokenizer_config.json", out)
    for part in ("image_processor", "video_processor"):
        processor[part]["size"]["longest_edge"] = dims.MICRO["max_pixels"]
    files = {"config": config, "processor_config": processor,
             "generation_config": {"eos_token_id": config["im_end_token_id"], "use_cache": True}}  # fmt: skip
    for name, content in files.items():
        (out / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    tokenizer.save(str(out / "tokenizer.json"))
    shutil.copy(TEMPLATE, out)
    import torch

    text = config["thinker_config"]["text_config"]
    torch.manual_seed(0)
    torch.save((torch.randn(text["vocab_size"], text["hidden_size"]) * 0.5).half(), out / "embedding.pt")
    words = sorted({w.strip(".,") for a in domain.answers(triples=200) for w in a.split()})
    pieces = [w for w in words if len(tokenizer.encode(" " + w).ids) > 1]
    print(f"{tokenizer.get_vocab_size()} tokens; words of answers that are more than one token: {pieces}")
    print(f"tools take {len(tokenizer.encode(tools_text(TOOLS)).ids)} tokens")


if __name__ == "__main__":
    main()
