"""NVIDIA ModelOpt's own way from samples to NVFP4 checkpoints: the reference for `offline.quantize`.

Whole turns of transformers' generate() run through a model with ModelOpt's quantisers in it, sample by sample and expert by
expert, and ModelOpt's exporter writes the result. Not for a 30B model: 14 s a sample, and all of it on one GPU.
"""

import json
import warnings
from pathlib import Path

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.export import export_hf_checkpoint
from transformers import Qwen3OmniMoeForConditionalGeneration
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoePreTrainedModel

from offline.checkpoints.checkpoint import STANDALONE, Checkpoint
from offline.quantization.calibration import Prompts, Sample
from offline.quantization.nvfp4 import BLOCK

MODEL_TYPES = {prefix.removesuffix("."): model_type for model_type, prefix in STANDALONE.items()}
NVFP4 = {"num_bits": (2, 1), "block_sizes": {-1: BLOCK, "type": "dynamic", "scale_bits": (4, 3)}}


class Thinker(Qwen3OmniMoePreTrainedModel):
    """The Thinker without its encoders: what a `qwen3_omni_moe_text` checkpoint holds, and ModelOpt exports."""

    def __init__(self, model: Qwen3OmniMoeForConditionalGeneration):
        super().__init__(model.thinker.config.text_config)
        self.model, self.lm_head = model.thinker.model.language_model, model.thinker.lm_head

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.model(input_ids=input_ids).last_hidden_state)


class Reference:
    def __init__(self, checkpoint: Checkpoint):
        self.prompts, self.config = Prompts(checkpoint), checkpoint.config
        self.model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
            checkpoint.directory, dtype=str(checkpoint.info("thinker.lm_head.weight").dtype), experts_implementation="eager"
        ).eval()  # experts as plain linears, which ModelOpt can watch
        self.parts = torch.nn.ModuleDict({"thinker": Thinker(self.model), "talker": self.model.talker})

    def calibrate(self, chosen: list[str], samples: list[Sample], reply_tokens: int, codec_frames: int) -> dict[str, float]:
        """Insert quantisers and show them the samples. Returns the largest inputs as offline.quantization.ranges names them."""
        rules = [{"quantizer_name": "*", "enable": False}]
        rules += [
            {"quantizer_name": f"{name}.*{kind}_quantizer*", "cfg": NVFP4} for name in chosen for kind in ("weight", "input")
        ]

        def feed(_: torch.nn.Module) -> None:
            for name in chosen:  # the weights' ranges are there by now
                for suffix, module in self.parts.get_submodule(name).named_modules():
                    if isinstance(module, mtq.nn.TensorQuantizer) and module.is_enabled and "weight_quantizer" in suffix:
                        module.disable_calib()
            chained_forward(self.model, self.prompts, samples, reply_tokens, codec_frames)

        mtq.quantize(self.parts, {"quant_cfg": rules, "algorithm": "max"}, feed)
        found = {}
        for name in chosen:
            for suffix, module in self.parts.get_submodule(name).named_modules():
                if suffix.endswith("input_quantizer") and module.is_enabled:
                    found[f"{name}.{suffix.removesuffix('input_quantizer').rstrip('_')}".rstrip(".")] = float(module.amax)
        return found

    def export(self, directory: Path) -> dict[str, Checkpoint]:
        """directory/{thinker,talker}, whose tensor X is tensor thinker.X or talker.X of the checkpoint."""
        # ModelOpt finds linears that share an input by a forward pass with token ids, which the Talker does not take.
        rows = torch.zeros(1, 2, self.model.talker.config.text_config.hidden_size, dtype=self.model.dtype)
        self.model.talker.get_dummy_inputs = lambda: {"inputs_embeds": rows}
        with warnings.catch_warnings():
            # ModelOpt splits the experts back into the names on disk itself; what it then warns of has been done.
            warnings.filterwarnings("ignore", message="Quant-aware reverse weight conversion skipped")
            for name, part in self.parts.items():
                part.config.architectures = [type(part).__name__]
                export_hf_checkpoint(part, export_dir=directory / name)
                config = {"model_type": MODEL_TYPES[name], "omni_config": self.config}
                (directory / name / "config.json").write_text(json.dumps(config))
        return {name: Checkpoint(directory / name) for name in self.parts}


def chained_forward(
    model: torch.nn.Module, prompts: Prompts, samples: list[Sample], reply_tokens: int, codec_frames: int
) -> None:
    """Run every sample through transformers' generate(), one at a time and greedily, as a whole turn. Voices take turns."""
    voices = sorted(model.config.talker_config.speaker_id)
    # transformers 5.23: the Talker's get_rope_index reads an audio_config that its own config lacks.
    object.__setattr__(model.talker.config, "audio_config", model.config.thinker_config.audio_config)
    for i, sample in enumerate(samples):
        inputs = {name: torch.from_numpy(array).to(model.device) for name, array in prompts(sample).items()}
        model.generate(
            **inputs,
            return_audio=True,
            speaker=voices[i % len(voices)],
            thinker_do_sample=False,
            talker_do_sample=False,
            thinker_eos_token_id=model.config.im_end_token_id,
            # at least two: transformers cannot speak a reply of one token, nor decode speech without a frame
            thinker_min_new_tokens=2,
            thinker_max_new_tokens=reply_tokens,
            talker_min_new_tokens=2,
            talker_max_new_tokens=codec_frames + 1,
        )  # the last code never becomes a frame
