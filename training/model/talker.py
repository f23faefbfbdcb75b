"""Talker and CodePredictor. Names as in transformers' Qwen3OmniMoeTalkerForConditionalGeneration."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model.decoder import DecoderLayer, MoEDecoder, RMSNorm, SwiGLU, look_up, rope


class ResizeMLP(nn.Module):
    """What the Thinker's rows become for the Talker: text_projection of embeddings, hidden_projection of hidden states."""

    def __init__(self, inputs: int, inner: int, outputs: int):
        super().__init__()
        self.linear_fc1, self.linear_fc2 = nn.Linear(inputs, inner), nn.Linear(inner, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_fc2(F.silu(self.linear_fc1(x)))


class CodePredictorBody(nn.Module):
    def __init__(self, c: dict):
        super().__init__()
        self.codec_embedding = nn.ModuleList(
            nn.Embedding(c["vocab_size"], c["hidden_size"]) for _ in range(c["num_code_groups"] - 1)
        )
        self.layers = nn.ModuleList(
            DecoderLayer(c, SwiGLU(c["hidden_size"], c["intermediate_size"])) for _ in range(c["num_hidden_layers"])
        )
        self.norm = RMSNorm(c["hidden_size"])


class CodePredictor(nn.Module):
    def __init__(self, c: dict):
        super().__init__()
        self.c, self.model = c, CodePredictorBody(c)
        self.lm_head = nn.ModuleList(
            nn.Linear(c["hidden_size"], c["vocab_size"], bias=False) for _ in range(c["num_code_groups"] - 1)
        )

    def forward(self, hidden: Tensor, code0_embed: Tensor, codes: Tensor) -> Tensor:
        """hidden, code0_embed [N, H], codes [N, 16] (the last of them is not read) -> logits [N, 15, V] of codes 1..15"""
        rest = torch.stack([look_up(e, codes[:, i + 1]) for i, e in enumerate(self.model.codec_embedding[:-1])], 1)
        x = torch.cat([hidden[:, None], code0_embed[:, None], rest], 1)
        cos, sin = rope(
            torch.arange(x.shape[1], device=x.device)[None], self.c["head_dim"], self.c["rope_parameters"]["rope_theta"]
        )
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        x = self.model.norm(x)[:, 1:]
        weight = torch.stack([head.weight for head in self.lm_head])  # [15, V, H]
        return torch.einsum("nih,ivh->niv", x, weight.to(x.dtype))


class TalkerBody(MoEDecoder):
    def __init__(self, c: dict):
        super().__init__(c, shared=True)
        self.codec_embedding = nn.Embedding(c["vocab_size"], c["hidden_size"])


class Talker(nn.Module):
    """`model` reads rows [B, S, H], `codec_head` gives code 0 of the next frame, `code_predictor` its other codes."""

    def __init__(self, c: dict):
        super().__init__()
        text = c["text_config"]
        self.model, self.codec_head = TalkerBody(text), nn.Linear(text["hidden_size"], text["vocab_size"], bias=False)
        self.text_projection, self.hidden_projection = (
            ResizeMLP(c["thinker_hidden_size"], text["intermediate_size"], text["hidden_size"]) for _ in range(2)
        )
        self.code_predictor = CodePredictor(c["code_predictor_config"])

    def frame_embeds(self, codes: Tensor) -> Tensor:
        """codes [..., 16] -> summed embeddings"""
        x = look_up(self.model.codec_embedding, codes[..., 0])
        for i, e in enumerate(self.code_predictor.model.codec_embedding):
            x = x + look_up(e, codes[..., i + 1])
        return x
