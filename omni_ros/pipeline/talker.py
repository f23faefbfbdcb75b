"""Talker: reply tokens in, codec frames out, one frame per step.

Follows the hand-off of Qwen3OmniMoeForConditionalGeneration.generate. Its prompt is the user's rows (text through
text_projection of the Thinker's token embeddings, media through hidden_projection of its hidden states), then nine
assistant rows. Each step adds one reply token's text to the codes of the last frame, then `tts_eos`, then `tts_pad`.
"""

import numpy as np

from omni_ros.engines.engine import Engine, open_projection
from omni_ros.engines.sidecar import Embedding
from omni_ros.errors import EngineError, PromptTooLongError, UnknownSpeakerError
from omni_ros.pipeline.code_predictor import CodePredictor
from omni_ros.pipeline.positions import mrope_positions
from omni_ros.pipeline.prompt import Prompt
from omni_ros.pipeline.sampling import Sampler

DEFAULT_SPEAKER = "ethan"  # the default of transformers' generate()


class Talker:
    def __init__(self, engine: Engine, code_predictor: CodePredictor, thinker_model: dict, thinker_embedding: Embedding):
        self.engine, self.code_predictor = engine, code_predictor
        self.model, self.thinker_model, self.thinker_embedding = engine.config["model"], thinker_model, thinker_embedding
        wanted = (self.model["thinker_hidden_size"], self.model["hidden_size"])
        found = (thinker_model["hidden_size"], code_predictor.hidden_size)
        if wanted != found:
            raise EngineError(
                f"{engine.directory}: needs a Thinker and a CodePredictor of widths {wanted}, these have {found}; "
                "export and build all engines from one checkpoint"
            )
        self.codec_embedding = Embedding(engine.directory / "embedding.safetensors")
        self.text_projection, self.hidden_projection = (
            open_projection(engine, f"{name}_projection.safetensors") for name in ("text", "hidden")
        )
        limits = engine.config["limits"]
        self.capacity, self.max_input_len = limits["capacity"], limits["max_input_len"]
        self.eos = self.model["codec_eos_token_id"]
        vocab = self.model["vocab_size"]
        # the last 1024 ids are control codes, never sound; of them only the end may be drawn
        self.suppressed = np.array([i for i in range(vocab - 1024, vocab) if i != self.eos])
        self.tts_bos, self.tts_eos, self.tts_pad = self.text(
            [thinker_model[f"tts_{name}_token_id"] for name in ("bos", "eos", "pad")]
        )[:, None]  # [1, H] each

    def text(self, token_ids: list[int] | np.ndarray) -> np.ndarray:
        """Thinker token ids [n] -> the Talker's text rows [n, H]."""
        return self.text_projection(self.thinker_embedding[token_ids])

    def speaker_id(self, name: str | None) -> int:
        voices = self.model["speaker_id"]
        if name is None:
            name = DEFAULT_SPEAKER if DEFAULT_SPEAKER in voices else next(iter(voices))
        if name.lower() not in voices:
            raise UnknownSpeakerError(f"speaker {name!r} is not in this checkpoint; it has {', '.join(sorted(voices))}")
        return voices[name.lower()]

    def sampler(self, temperature: float, top_k: int, top_p: float, penalty: float, rng: np.random.Generator) -> Sampler:
        return Sampler(self.model["vocab_size"], temperature, top_k, top_p, rng, penalty, self.suppressed)

    def check(self, prompt: Prompt) -> None:
        """Raise PromptTooLongError when the engine cannot take the rows of `prefill`."""
        rows = int(prompt.user_mask.sum()) + 9
        if rows > self.max_input_len:
            raise PromptTooLongError(
                f"the Talker's prompt has {rows} rows, its engine was built for {self.max_input_len}; "
                "shorten the history or build with a larger --maxInputLen"
            )

    def user_text(self, prompt: Prompt) -> np.ndarray:
        """The text rows [n, H] of the user's tokens that are not media."""
        return self.text(prompt.ids[prompt.user_mask & ~prompt.audio_mask & ~prompt.visual_mask])

    def prefill(
        self, prompt: Prompt, user_text: np.ndarray, accept_hidden: np.ndarray, first_text: np.ndarray, speaker_id: int
    ) -> np.ndarray:
        """user_text as above, accept_hidden [S, H_thinker] of the whole prompt, first_text [1, H] of the first reply token.

        Returns the logits [V] of the first frame's code 0.
        """
        self.engine.reset()
        user_rows = np.flatnonzero(prompt.user_mask)
        is_media = (prompt.audio_mask | prompt.visual_mask)[user_rows]
        embeds = np.empty((len(user_rows) + 9, self.model["hidden_size"]), np.float32)
        user = embeds[: len(user_rows)]
        user[~is_media] = user_text
        if is_media.any():
            user[is_media] = self.hidden_projection(accept_hidden[user_rows[is_media]])
        assistant = embeds[len(user_rows) :]
        t, m = self.thinker_model, self.model
        assistant[:3] = self.text(prompt.ids[prompt.assistant_start : prompt.assistant_start + 3])
        assistant[3:7], assistant[7], assistant[8] = self.tts_pad, self.tts_bos, first_text
        assistant[3:] += self.codec_embedding[
            [
                m["codec_nothink_id"],
                m["codec_think_bos_id"],
                m["codec_think_eos_id"],
                speaker_id,
                m["codec_pad_id"],
                m["codec_bos_id"],
            ]
        ]
        ids = np.concatenate([prompt.ids[user_rows], np.full(9, t["tts_pad_token_id"])])
        positions, self.next_position = mrope_positions(
            ids,
            t["image_token_id"],
            t["video_token_id"],
            prompt.user_image_grids,
            prompt.user_video_grids,
            prompt.user_seconds_per_grid,
            t["spatial_merge_size"],
            m["position_id_per_seconds"],
        )
        return self._run(embeds, positions)

    def frame(self, code0: int, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
        """All 16 codes of the frame that starts with `code0`, int64 [16], and their summed embeddings [1, H]."""
        codes, embed_sum = self.code_predictor(self.last_hidden, self.codec_embedding[[code0]], rng)
        return np.concatenate([[code0], codes]), embed_sum

    def step(self, embed_sum: np.ndarray, text: np.ndarray) -> np.ndarray:
        """Feed one frame with the text [1, H] that goes with it; returns the logits [V] of the next code 0."""
        position = np.full((3, 1), self.next_position, np.float32)
        self.next_position += 1
        return self._run(embed_sum + text, position)

    def _run(self, embeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
        out = self.engine.run({"inputs_embeds": embeds, "position_ids": positions})
        self.last_hidden = out["last_hidden"]  # [1, H]
        return out["logits"][0]

    @property
    def is_full(self) -> bool:
        return self.engine.length >= self.capacity
