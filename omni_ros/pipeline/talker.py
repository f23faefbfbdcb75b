"""Talker: reply tokens in, codec frames out, one frame per step.

Follows the hand-off of Qwen3OmniMoeForConditionalGeneration.generate. Its prompt is the user's rows (text through
text_projection of the Thinker's token embeddings, media through hidden_projection of its hidden states), then nine
assistant rows. Each step adds one reply token's text to the codes of the last frame, then `tts_eos`, then `tts_pad`.
"""

import numpy as np

from omni_ros.engines.config import TalkerConfig
from omni_ros.engines.engine import Engine, State
from omni_ros.engines.open import open_projection
from omni_ros.engines.sidecar import Embedding
from omni_ros.errors import EngineError, PromptTooLongError, UnknownSpeakerError
from omni_ros.pipeline.code_predictor import CodePredictor
from omni_ros.pipeline.positions import mrope_positions
from omni_ros.pipeline.prompt import Prompt, grids
from omni_ros.pipeline.sampling import Sampler
from omni_ros.pipeline.thinker import Thinker

DEFAULT_SPEAKER = "ethan"  # the default of transformers' generate()
ASSISTANT_ROWS = 9
LISTED, LONGEST = 20, 80  # voices, and characters of a name, in an error's text


class Talker:
    def __init__(self, engine: Engine, code_predictor: CodePredictor, thinker: Thinker):
        self.engine, self.code_predictor = engine, code_predictor
        self.config: TalkerConfig = engine.config.model
        self.thinker, self.thinker_embedding = thinker.config, thinker.embedding
        wanted = (self.config.thinker_hidden_size, self.config.hidden_size)
        found = (self.thinker.hidden_size, code_predictor.hidden_size)
        if wanted != found:
            raise EngineError(
                f"{engine.directory}: needs a Thinker and a CodePredictor of widths {wanted}, these have {found}; "
                "export and build all engines from one checkpoint"
            )
        self.codec_embedding = Embedding(engine.directory / "embedding.safetensors")
        self.text_projection, self.hidden_projection = (
            open_projection(engine, f"{name}_projection.safetensors") for name in ("text", "hidden")
        )
        limits = engine.config.limits
        self.capacity, self.max_input_len = limits.capacity, limits.max_input_len
        self.eos, vocab = self.config.codec_eos_token_id, self.config.vocab_size
        # the last 1024 ids are control codes, never sound; of them only the end may be drawn
        self.suppressed = np.array([i for i in range(vocab - 1024, vocab) if i != self.eos])
        ids = [self.thinker.tts_bos_token_id, self.thinker.tts_eos_token_id, self.thinker.tts_pad_token_id]
        self.tts_bos, self.tts_eos, self.tts_pad = self.text(ids)[:, None]  # [1, H] each

    def text(self, token_ids: list[int] | np.ndarray) -> np.ndarray:
        """Thinker token ids [n] -> the Talker's text rows [n, H]."""
        return self.text_projection(self.thinker_embedding[token_ids])

    def speaker_id(self, name: str | None) -> int:
        voices = self.config.speaker_id
        if name is None:
            name = DEFAULT_SPEAKER if DEFAULT_SPEAKER in voices else next(iter(voices))
        if name.lower() not in voices:
            known = sorted(voices)
            listed = ", ".join(known[:LISTED]) + f" and {len(known) - LISTED} more" * (len(known) > LISTED)
            shown = repr(name) if len(name) <= LONGEST else f"{name[:LONGEST]!r}..."
            raise UnknownSpeakerError(f"speaker {shown} is not in this checkpoint; it has {listed}")
        return voices[name.lower()]

    def sampler(self, temperature: float, top_k: int, top_p: float, penalty: float, rng: np.random.Generator) -> Sampler:
        return Sampler(self.config.vocab_size, temperature, top_k, top_p, rng, penalty, self.suppressed)

    def check(self, prompt: Prompt) -> None:
        """Raise PromptTooLongError when the engine cannot take the prompt's rows."""
        rows = int(prompt.user_mask.sum()) + ASSISTANT_ROWS
        if rows > self.max_input_len:
            raise PromptTooLongError(
                f"the Talker's prompt has {rows} rows, its engine was built for {self.max_input_len}; "
                "shorten the history or build with a larger --maxInputLen"
            )

    def positions(self, prompt: Prompt) -> tuple[np.ndarray, float]:
        """mRoPE positions float32 [3, rows] of the user's and the assistant's rows, and the position of the first frame."""
        t = self.thinker
        ids = np.concatenate([prompt.ids[prompt.user_mask], np.full(ASSISTANT_ROWS, t.tts_pad_token_id)])
        return mrope_positions(
            ids,
            t.image_token_id,
            t.video_token_id,
            *grids(prompt.user_media),
            t.spatial_merge_size,
            self.config.position_id_per_seconds,
        )

    def assistant_rows(self, prompt: Prompt, first_text: np.ndarray, speaker_id: int) -> np.ndarray:
        """float32 [9, H]; first_text [1, H] is the first reply token's."""
        rows, c = np.empty((ASSISTANT_ROWS, self.config.hidden_size), np.float32), self.config
        rows[:3] = self.text(prompt.ids[prompt.assistant_start : prompt.assistant_start + 3])
        rows[3:7], rows[7], rows[8] = self.tts_pad, self.tts_bos, first_text
        rows[3:] += self.codec_embedding[
            [c.codec_nothink_id, c.codec_think_bos_id, c.codec_think_eos_id, speaker_id, c.codec_pad_id, c.codec_bos_id]
        ]
        return rows

    def frame(self, code0: int, last_hidden: np.ndarray, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
        """All 16 codes of the frame that starts with `code0`, int64 [16], and their summed embeddings [1, H]."""
        codes, embed_sum = self.code_predictor(last_hidden, self.codec_embedding[[code0]], rng)
        return np.concatenate([[code0], codes]), embed_sum

    def read(self, state: State, rows: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """rows [n, H] at positions [3, n] -> the logits [V] of the next code 0 and last_hidden [1, H]."""
        out = self.engine.run({"inputs_embeds": rows, "position_ids": positions}, state)
        return out["logits"][0], out["last_hidden"]

    def step(self, state: State, embed_sum: np.ndarray, text: np.ndarray, position: float) -> tuple[np.ndarray, np.ndarray]:
        """Feed one frame with the text [1, H] that goes with it; as `read`."""
        return self.read(state, embed_sum + text, np.full((3, 1), position, np.float32))
