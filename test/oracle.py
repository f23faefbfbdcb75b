"""transformers' Qwen3-Omni as the reference: greedy, float32, batch 1."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision_shim  # noqa: F401  (before transformers)
from transformers import Qwen3OmniMoeForConditionalGeneration, Qwen3OmniMoeProcessor
from transformers.utils import logging

torch.set_num_threads(1)
logging.set_verbosity_error()


@dataclass(frozen=True)
class Reply:
    token_ids: list[int]  # generated tokens, the end token included
    codes: np.ndarray | None  # int64 [16, frames]; None without speech
    waveform: np.ndarray | None  # float32 [1920 * frames - 555], the full decode at 24 kHz


@functools.cache
def load(checkpoint: Path) -> "Oracle":
    return Oracle(checkpoint)


class Oracle:
    def __init__(self, checkpoint: Path):
        self.processor = Qwen3OmniMoeProcessor.from_pretrained(checkpoint)
        model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
        # transformers 5.23: the Talker's get_rope_index reads an audio_config that its own config lacks.
        object.__setattr__(model.talker.config, "audio_config", model.config.thinker_config.audio_config)
        self.model = model
        self._clips_by_themselves()

    def _clips_by_themselves(self) -> None:
        """transformers pads the clips of a request to the longest, which changes their last frames: a robot's history must not
        change what was heard. So ours takes each clip alone, and here transformers does."""
        process, tower = self.processor._process_audio, self.model.thinker.model.audio_tower
        forward = tower.forward

        def process_each(audio, **kwargs):
            each = [process([clip], **kwargs) for clip in audio]
            frames = max(inputs["input_features"].shape[-1] for inputs, _ in each)
            joined = each[0][0]
            for key in ("input_features", "feature_attention_mask"):
                rows = [torch.as_tensor(inputs[key]) for inputs, _ in each]
                joined[key] = torch.cat([torch.nn.functional.pad(row, (0, frames - row.shape[-1])) for row in rows])
            return joined, [text for _, texts in each for text in texts]

        def forward_each(input_features, feature_lens=None, **kwargs):
            clips = input_features.split(feature_lens.tolist(), dim=1)
            outputs = [forward(clip, feature_lens=n[None], **kwargs) for clip, n in zip(clips, feature_lens)]
            outputs[0].last_hidden_state = torch.cat([out.last_hidden_state for out in outputs])
            return outputs[0]

        self.processor._process_audio, tower.forward = process_each, forward_each

    def inputs(self, messages: list[dict], fps: float | None = None) -> dict[str, torch.Tensor]:
        """Processor output for messages whose parts hold arrays: audio float32 [n] at 16 kHz, image uint8 [H, W, 3],
        video uint8 [T, H, W, 3] (frames as they are, `fps` per second)."""
        media = {
            kind: [
                part[kind]
                for message in messages
                if not isinstance(message["content"], str)
                for part in message["content"]
                if part["type"] == kind
            ]
            for kind in ("audio", "image", "video")
        }
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return dict(
            self.processor(
                text=text,
                audio=media["audio"] or None,
                images=media["image"] or None,
                videos=media["video"] or None,
                videos_kwargs={"do_sample_frames": False, "fps": fps},
                return_tensors="pt",
            )
        )

    @torch.no_grad()
    def generate(
        self,
        messages: list[dict],
        max_generate_length: int = 16,
        max_audio_length: int = 40,
        speaker: str = "ethan",
        repetition_penalty: float = 1.0,
        audio_output: bool = True,
        fps: float | None = None,
        forced: list[int] | None = None,
    ) -> Reply:
        """Thinker, Talker and CodePredictor take the most likely id at every step; with `forced`, the Thinker writes these
        tokens and ends. transformers cannot speak a reply of one token: that has no codes here."""
        inputs = self.inputs(messages, fps)
        thinker = {
            "thinker_max_new_tokens": max_generate_length,
            "thinker_do_sample": False,
            "thinker_eos_token_id": self.model.config.im_end_token_id,
        }
        if forced is not None:
            reply, prompt = [*forced, self.model.config.im_end_token_id], inputs["input_ids"].shape[1]
            thinker["thinker_prefix_allowed_tokens_fn"] = lambda _, ids: [reply[len(ids) - prompt]]
        sequence = self.model.generate(**inputs, **thinker, return_audio=False)
        token_ids = getattr(sequence, "sequences", sequence)[0, inputs["input_ids"].shape[1] :].tolist()
        if not audio_output or len(token_ids) == 1:
            return Reply(token_ids, None, None)
        codes = torch.zeros(1, 16, 0, dtype=torch.long)

        def keep_codes(frames: torch.Tensor, **_) -> torch.Tensor:
            nonlocal codes
            codes = frames
            return torch.zeros(1, 1, 0)

        self.model.code2wav.chunked_decode = keep_codes  # not the full decode: see `decode`
        try:
            # One more: the Talker's last token is never turned into a frame.
            self.model.generate(
                **inputs,
                **thinker,
                return_audio=True,
                speaker=speaker,
                talker_do_sample=False,
                talker_max_new_tokens=max_audio_length + 1,
                talker_repetition_penalty=repetition_penalty,
            )
        except RuntimeError as e:
            if "non-empty TensorList" not in str(e):  # the Talker's first token was its end: no frame at all
                raise
        finally:
            del self.model.code2wav.chunked_decode
        return Reply(token_ids, codes[0].numpy(), self.decode(codes[0].numpy()))

    @torch.no_grad()
    def decode(self, codes: np.ndarray) -> np.ndarray:
        """int64 [16, frames] -> float32 [1920 * frames - 555], all frames at once."""
        if codes.shape[1] == 0:
            return np.zeros(0, np.float32)
        return self.model.code2wav(torch.from_numpy(codes)[None])[0, 0].numpy()
