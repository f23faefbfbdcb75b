"""The 16-bit Thinker with its encoders answers calibration turns, greedily, many at once."""

import torch
from torch import nn
from transformers import DynamicCache, Qwen3OmniMoeConfig
from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as hf

from .placement import Placement
from .ranges import Ranges
from .turns import Rows, Turn

SHORTEST = 2  # tokens of a reply: of one token nothing would be spoken, as the last one is never fed


class Thinker:
    def __init__(self, placement: Placement, config: Qwen3OmniMoeConfig, ranges: Ranges):
        thinker = config.thinker_config
        text = thinker.text_config
        self.config, self.section, self.ranges = config, thinker.to_dict(), ranges
        self.audio = placement.put("thinker.audio_tower", lambda: hf.Qwen3OmniMoeAudioEncoder._from_config(thinker.audio_config))
        self.visual = placement.put("thinker.visual", lambda: hf.Qwen3OmniMoeVisionEncoder._from_config(thinker.vision_config))
        self.head = placement.put("thinker.lm_head", lambda: nn.Linear(text.hidden_size, text.vocab_size, bias=False))
        self.decoder = placement.put_decoder("thinker.model", lambda: hf.Qwen3OmniMoeThinkerTextModel._from_config(text))
        ranges.watch("thinker.model", self.decoder)
        self.accepted: torch.Tensor  # [B, S, H], set by every pass
        self.decoder.layers[config.talker_config.accept_hidden_layer - 1].register_forward_hook(self._accept)

    def _accept(self, layer: nn.Module, args: tuple, output: torch.Tensor) -> None:
        self.accepted = output

    @torch.no_grad()
    def answer(self, turns: list[Turn], longest: int) -> None:
        """Give each turn its reply of at most `longest` tokens, and the states of its media rows."""
        rows, media, deepstack, after = self._read(turns)
        cache = DynamicCache(config=self.decoder.config)
        self.ranges.valid = rows.valid
        hidden = self.decoder(
            inputs_embeds=rows.embeds,
            attention_mask=rows.prompt_mask(),
            position_ids=rows.positions,
            past_key_values=cache,
            use_cache=True,
            **deepstack,
        ).last_hidden_state
        for i, (turn, mask) in enumerate(zip(turns, media)):
            turn.states = self.accepted[i, : len(mask)][mask.to(self.accepted.device)].cpu()
        self.ranges.see("thinker.lm_head", hidden)
        self._continue(turns, rows, rows.last(hidden), cache, torch.tensor(after, device=hidden.device), longest)

    def _read(self, turns: list[Turn]) -> tuple[Rows, list[torch.Tensor], dict, list[float]]:
        """The turns' rows, which of them are media (bool [S] each), deepstack arguments, and each one's next position."""
        embeds, masks, visual, positions, after, deepstack = [], [], [], [], [], []
        device = self.decoder.embed_tokens.weight.device
        for turn in turns:
            ids = torch.from_numpy(turn.ids).to(device)
            sound, sight = (ids == self.section[f"{kind}_token_id"] for kind in ("audio", "image"))
            embeds.append(self.decoder.embed_tokens(ids))
            if "input_features" in turn.inputs:
                embeds[-1][sound] = self._hear(turn)
            if "pixel_values" in turn.inputs:
                embeds[-1][sight], deep = self._look(turn)
                deepstack.append(deep)
            masks.append(sound | sight)
            visual.append(sight)
            places, next_position = turn.positions(turn.ids, self.section, self.section["position_id_per_seconds"])
            positions.append(places)
            after.append(next_position)
        arguments = {}
        if deepstack:
            arguments["visual_pos_masks"] = nn.utils.rnn.pad_sequence(visual, batch_first=True)
            arguments["deepstack_visual_embeds"] = [torch.cat(layer) for layer in zip(*deepstack)]
        return Rows(embeds, positions), masks, arguments, after

    def _hear(self, turn: Turn) -> torch.Tensor:
        weight = self.audio.conv_out.weight
        mel = torch.from_numpy(turn.inputs["input_features"][0]).to(weight)  # [128, frames]
        frames = torch.tensor([mel.shape[1]], device=weight.device)
        return self.audio(mel, feature_lens=frames).last_hidden_state

    def _look(self, turn: Turn) -> tuple[torch.Tensor, list[torch.Tensor]]:
        weight = self.visual.pos_embed.weight
        patches = torch.from_numpy(turn.inputs["pixel_values"]).to(weight)
        seen = self.visual(patches, grid_thw=torch.from_numpy(turn.inputs["image_grid_thw"]).to(weight.device))
        return seen.pooler_output, list(seen.deepstack_features)

    def _continue(
        self, turns: list[Turn], rows: Rows, hidden: torch.Tensor, cache: DynamicCache, after: torch.Tensor, longest: int
    ) -> None:
        end = self.config.im_end_token_id
        active = torch.ones(len(turns), dtype=torch.bool, device=hidden.device)
        tokens, fed = [], []
        for t in range(longest):
            logits = self.head(hidden)
            if t < SHORTEST:
                logits[:, end] = -torch.inf
            tokens.append(logits.argmax(-1))
            active = active & (tokens[-1] != end)
            if t == longest - 1 or not active.any():
                break
            fed.append(active)
            self.ranges.valid = active
            hidden = self.decoder(
                inputs_embeds=self.decoder.embed_tokens(tokens[-1])[:, None],
                attention_mask=rows.step_mask(active),
                position_ids=(after + t).expand(3, 1, -1).transpose(1, 2),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, 0]
            self.ranges.see("thinker.lm_head", hidden)
        replies, counts = torch.stack(tokens, 1).tolist(), torch.stack(fed, 1).sum(1).tolist()
        for turn, reply, count in zip(turns, replies, counts):
            turn.reply = reply[:count]
