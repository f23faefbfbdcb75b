"""The Thinker with its encoders, over groups of sequences of one length each."""

import torch
from torch import Tensor, nn

from training.model.audio_encoder import AudioEncoder
from training.model.decoder import MoEDecoder, look_up
from training.model.visual_encoder import VisionEncoder


class ThinkerBody(MoEDecoder):
    def __init__(self, c: dict):
        super().__init__(c, shared=False)
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])


class Thinker(nn.Module):
    """`c` is config.json's thinker_config; all pictures have `grid` (height, width) patches."""

    def __init__(self, c: dict, grid: tuple[int, int]):
        super().__init__()
        text = c["text_config"]
        self.model, self.lm_head = ThinkerBody(text), nn.Linear(text["hidden_size"], text["vocab_size"], bias=False)
        self.audio_tower, self.visual = AudioEncoder(c["audio_config"]), VisionEncoder(c["vision_config"], *grid)

    def rows(self, ids: Tensor, mel: Tensor, audio_valid: Tensor, audio_rows: Tensor, patches: Tensor, visual_rows: Tensor):
        """What the decoder reads of all groups, one after another: R rows.

        ids [R]; mel [N, 128, frames], audio_valid [N, rows of a clip]; patches [P, patches, 1536]; audio_rows [N, rows of a
        clip], visual_rows [P, rows of a picture]: the row that each feature goes to, R where there is none.
        -> x [R, H], deepstack [[R, H]], audio features [N, rows, H], visual features [P, rows, H]
        """
        n, h = len(ids), self.lm_head.in_features
        audio = self.audio_tower(mel, audio_valid)
        visual, deepstack = self.visual(patches)

        def put(base, rows, values):
            base = torch.cat([base.float(), torch.zeros(1, h, device=base.device)])
            return base.index_copy(0, rows.flatten(), values.reshape(-1, h).float())[:-1]

        x = put(put(look_up(self.model.embed_tokens, ids), audio_rows, audio), visual_rows, visual)
        nothing = torch.zeros(n, h, device=ids.device)
        return x, [put(nothing, visual_rows, d) for d in deepstack], audio, visual

    def decode(
        self, x: Tensor, deepstack: list[Tensor], positions: Tensor, groups: list[tuple[int, int]], accept: int | None = None
    ):
        """x [R, H], positions [3, R], groups [(sequences, rows of each)] -> final hidden states [R, H], load-balance loss;
        with `accept`, also accept_hidden [R, H]"""
        out, accepted, balance, at = [], [], 0.0, 0
        for b, s in groups:
            part = slice(at, at := at + b * s)
            deep = [d[part].view(b, s, -1) for d in deepstack]
            y = self.model(x[part].view(b, s, -1), positions[:, part].view(3, b, s), deep, accept)
            if accept is not None:
                y, middle = y
                accepted.append(middle.flatten(0, 1))
            out.append(y.flatten(0, 1))
            balance = balance + self.model.balance() * (b * s / len(x))
        return (torch.cat(out), balance) if accept is None else (torch.cat(out), balance, torch.cat(accepted))
