"""The 16-bit Talker and CodePredictor speak the Thinker's replies, many at once, as the robot has them do."""

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache, Qwen3OmniMoeConfig
from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as hf

from .placement import Placement
from .ranges import Ranges
from .turns import Rows, Turn, assistant_start, user_rows

ASSISTANT_ROWS = 9
SHORTEST = 2  # codes of a speech before it may end
TEMPERATURE, TOP_K, PENALTY = 0.9, 50, 1.05  # transformers' own: greedy speech falls into loops


class Talker:
    def __init__(self, placement: Placement, config: Qwen3OmniMoeConfig, ranges: Ranges):
        talker = config.talker_config
        text = talker.text_config
        self.config, self.ranges = talker, ranges
        self.whole, self.thinker = config.to_dict(), config.thinker_config.to_dict()
        spoken = config.thinker_config.text_config
        self.words = placement.put("thinker.model.embed_tokens", lambda: nn.Embedding(spoken.vocab_size, spoken.hidden_size))
        self.text_projection, self.hidden_projection = (
            self._watched(placement, f"talker.{kind}_projection", lambda: hf.Qwen3OmniMoeTalkerResizeMLP(talker))
            for kind in ("text", "hidden")
        )
        self.head = placement.put("talker.codec_head", lambda: nn.Linear(text.hidden_size, text.vocab_size, bias=False))
        self.predictor = self._watched(
            placement,
            "talker.code_predictor",
            lambda: hf.Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration._from_config(talker.code_predictor_config),
        )
        self.decoder = placement.put_decoder("talker.model", lambda: hf.Qwen3OmniMoeTalkerModel._from_config(text))
        ranges.watch("talker.model", self.decoder)
        self.voices = [talker.speaker_id[name] for name in sorted(talker.speaker_id)]
        last = torch.arange(text.vocab_size - 1024, text.vocab_size)
        self.suppressed = last[last != talker.codec_eos_token_id]  # control codes, never sound

    def _watched(self, placement: Placement, prefix: str, make) -> nn.Module:
        module = placement.put(prefix, make)
        self.ranges.watch(prefix, module)
        return module

    @torch.no_grad()
    def speak(self, turns: list[Turn], longest: int, random: torch.Generator | None) -> None:
        """Speak at most `longest` frames of each turn's reply; voices take turns. `random` None is greedy."""
        self.ranges.valid = None
        prompts, texts, positions, after = zip(*map(self._read, turns))
        pad = self._text([self.whole["tts_pad_token_id"]])
        rows, cache = Rows(list(prompts), list(positions)), DynamicCache(config=self.decoder.config)
        self.ranges.valid = rows.valid
        hidden = self.decoder(
            inputs_embeds=rows.embeds,
            attention_mask=rows.prompt_mask(),
            position_ids=rows.positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        self.ranges.see("talker.codec_head", hidden)
        hidden, place = rows.last(hidden), torch.tensor(after, device=hidden.device)
        active = torch.ones(len(turns), dtype=torch.bool, device=hidden.device)
        said = torch.zeros(len(turns), self.config.text_config.vocab_size, dtype=torch.bool, device=hidden.device)
        for frame in range(longest):
            codes = self._draw(self.head(hidden).float(), said, frame < SHORTEST, random)
            said[torch.arange(len(turns), device=said.device), codes] = True
            active = active & (codes != self.config.codec_eos_token_id)
            if not active.any():
                break
            self.ranges.valid = active
            text = torch.stack([words[frame] if frame < len(words) else pad[0] for words in texts])
            summed = self._frame(hidden, codes, active, random)
            hidden = self.decoder(
                inputs_embeds=(summed + text)[:, None],
                attention_mask=rows.step_mask(active),
                position_ids=(place + frame).expand(3, 1, -1).transpose(1, 2),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, 0]
            self.ranges.see("talker.codec_head", hidden)

    def _text(self, ids: list[int] | np.ndarray) -> torch.Tensor:
        """Thinker token ids [n] -> the Talker's text rows [n, H]."""
        device = self.words.weight.device
        return self.text_projection(self.words(torch.as_tensor(np.asarray(ids), device=device)))

    def _read(self, turn: Turn) -> tuple[torch.Tensor, torch.Tensor, np.ndarray, float]:
        """The prompt's rows [n, H], the texts of the frames [m, H], positions [3, n] and that of the first frame."""
        c, whole = self.config, self.whole
        user = user_rows(turn.ids, whole)
        media = np.isin(turn.ids, [self.thinker[f"{kind}_token_id"] for kind in ("audio", "image")])
        rows = self.words.weight.new_empty(len(turn.ids), c.text_config.hidden_size)
        rows[torch.from_numpy(~media)] = self._text(turn.ids[~media])
        if turn.states is not None:
            rows[torch.from_numpy(media)] = self.hidden_projection(turn.states.to(rows))
        start = assistant_start(turn.ids, whole)
        bos, end, pad = (self._text([whole[f"tts_{kind}_token_id"]]) for kind in ("bos", "eos", "pad"))
        words = self._text([*turn.ids[start : start + 3], *turn.reply])
        codes = [c.codec_nothink_id, c.codec_think_bos_id, c.codec_think_eos_id]
        codes += [self.voices[turn.number % len(self.voices)], c.codec_pad_id, c.codec_bos_id]
        opening = torch.cat([words[:3], pad.expand(4, -1), bos, words[3:4]])
        opening[3:] += self.decoder.codec_embedding(torch.tensor(codes, device=rows.device))
        ids = np.concatenate([turn.ids[user], np.full(ASSISTANT_ROWS, whole["tts_pad_token_id"])])
        positions, after = turn.positions(ids, self.thinker, c.position_id_per_seconds)
        return torch.cat([rows[torch.from_numpy(user)], opening]), torch.cat([words[4:], end]), positions, after

    def _draw(self, logits: torch.Tensor, said: torch.Tensor, early: bool, random: torch.Generator | None) -> torch.Tensor:
        """logits float32 [B, V] -> codes int64 [B], in the order of transformers' processors."""
        logits = torch.where(said, torch.where(logits < 0, logits * PENALTY, logits / PENALTY), logits)
        logits[:, self.suppressed.to(logits.device)] = -torch.inf
        if early:
            logits[:, self.config.codec_eos_token_id] = -torch.inf
        if random is None:
            return logits.argmax(-1)
        logits = logits / TEMPERATURE
        least = logits.topk(min(TOP_K, logits.shape[1]), dim=-1).values[:, -1:]
        return _gumbel_argmax(logits.masked_fill(logits < least, -torch.inf), random)

    def _frame(
        self, hidden: torch.Tensor, codes: torch.Tensor, active: torch.Tensor, random: torch.Generator | None
    ) -> torch.Tensor:
        """hidden [B, H] and codes 0 of a frame [B] -> the sum of all its codes' embeddings [B, H]."""
        rows = torch.stack([hidden, self.decoder.codec_embedding(codes)], 1)
        summed, cache = rows[:, 1].clone(), DynamicCache(config=self.predictor.model.config)
        for head, embedding in zip(self.predictor.lm_head, self.predictor.model.codec_embedding):
            self.ranges.valid = active[:, None].expand(-1, rows.shape[1])
            out = self.predictor.model(inputs_embeds=rows, past_key_values=cache, use_cache=True).last_hidden_state
            logits = head(out)[:, -1].float()
            code = logits.argmax(-1) if random is None else _gumbel_argmax(logits, random)
            rows = embedding(code)[:, None]
            summed += rows[:, 0]
        self.ranges.valid = active
        return summed


def _gumbel_argmax(logits: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """An exact draw from softmax(logits [B, V])."""
    noise = torch.empty_like(logits).exponential_(generator=random)
    return (logits - noise.log()).argmax(-1)
