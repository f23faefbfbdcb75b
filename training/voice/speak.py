"""The Talker speaking freely: what it makes of its own codes. Slow and simple, for tests during the training."""

import torch
from torch import Tensor

from training.model.decoder import look_up
from training.model.talker import Talker


def choose(logits: Tensor, temperature: float) -> Tensor:
    """logits [B, V] -> [B]; greedy when temperature is 0, else of the ten best, as omni_ros' Sampler by default"""
    if temperature == 0:
        return logits.argmax(-1)
    best, index = logits.float().topk(10)
    return index.gather(1, torch.multinomial((best / temperature).softmax(-1), 1))[:, 0]


def finish(net: Talker, hidden: Tensor, code0: Tensor, temperature: float) -> Tensor:
    """The CodePredictor: hidden [B, H], code0 [B] -> all codes [B, 16]"""
    codes = torch.zeros(len(code0), 16, dtype=torch.long, device=hidden.device)
    codes[:, 0] = code0
    embed = look_up(net.model.codec_embedding, code0)
    for i in range(1, 16):
        codes[:, i] = choose(net.code_predictor(hidden, embed, codes)[:, i - 1], temperature)
    return codes


@torch.no_grad()
def speak(net: Talker, prompt: Tensor, b: dict[str, Tensor], temperature: float = 0.0) -> tuple[Tensor, Tensor]:
    """Speak the texts of a batch of Examples, whose rows without frames are `prompt` [B, S, H].

    -> codes [B, S, 16] in the rows that say them; frames until the end [B], five more than asked for where there was none."""
    each, vocab = torch.arange(len(prompt), device=prompt.device), int(b["truth"].max()) + 1
    longest, eos = int(b["length"].max()) + 5, int(b["label"].max())  # eos: the only label above the codes
    out, ended, x = torch.zeros_like(b["truth"]), b["length"] + 5, prompt.float().clone()
    for t in range(longest):
        at = (b["start"] + t).clamp(max=x.shape[1] - 2)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type == "cuda"):
            hidden = net.model(x, b["positions"])[each, at]
            logits = net.codec_head(hidden).float()
            logits[:, vocab:eos], logits[:, eos + 1 :] = -torch.inf, -torch.inf
            code0 = choose(logits, temperature)
            ended = torch.where(code0 == eos, ended.clamp(max=t), ended)
            codes = finish(net, hidden, code0.clamp(max=vocab - 1), temperature)
            out[each, at] = codes
            x[each, at + 1] = (prompt[each, at + 1] + net.frame_embeds(codes)).float()
    return out, ended
