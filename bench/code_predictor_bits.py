"""What do 8 and 4 bits cost in the CodePredictor? Of the trained demo model, code group by code group.

    python -m bench.code_predictor_bits [--model demo/model] [--samples DIR]

The 16-bit model speaks; then every frame is read again with rounded weights, fed the codes that were spoken, so that errors
do not add up. A cell is the cosine of the logits and how often the most likely code is the same. Prints a markdown table.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import torch

sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]  # as offline.quantize does

from transformers import Qwen3OmniMoeConfig  # noqa: E402

from offline.checkpoints.checkpoint import Checkpoint  # noqa: E402
from offline.quantization import encode, nvfp4  # noqa: E402
from offline.quantization.calibration import Prompts, Sample  # noqa: E402
from offline.quantization.placement import Placement, Reader  # noqa: E402
from offline.quantization.ranges import Ranges  # noqa: E402
from offline.quantization.talker import Talker  # noqa: E402
from offline.quantization.thinker import Thinker  # noqa: E402
from offline.quantization.turns import Turn  # noqa: E402

QUESTIONS = [
    "What do you see?",
    "Count to nine.",
    "Is there a yellow triangle?",
    "How many squares do you see?",
    "Where is the red circle?",
    "Hello, who are you?",
    "What is left of the blue square?",
    "Good morning!",
]
ATTENTION, FIRST, DOWN, HEADS = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj"), ("down_proj",), ("lm_head",)
FORMS = {  # name -> format, and the modules that have it
    "FP8, without down_proj and heads": ("fp8", ATTENTION + FIRST),
    "FP8, without heads": ("fp8", ATTENTION + FIRST + DOWN),
    "FP8, all": ("fp8", ATTENTION + FIRST + DOWN + HEADS),
    "NVFP4, without down_proj and heads": ("nvfp4", ATTENTION + FIRST),
    "NVFP4, without heads": ("nvfp4", ATTENTION + FIRST + DOWN),
    "NVFP4, all": ("nvfp4", ATTENTION + FIRST + DOWN + HEADS),
}


class Listening(Talker):
    """Keeps every frame that it makes: the Talker's last hidden state and the embedding of code 0, then of codes 1 to 14."""

    frames: list[torch.Tensor]

    def _frame(self, hidden, codes, active, random):
        rows = [hidden, self.decoder.codec_embedding(codes)]
        hooks = [
            embedding.register_forward_hook(lambda *args: rows.append(args[2][:, 0] if args[2].dim() == 3 else args[2]))
            for embedding in self.predictor.model.codec_embedding[:-1]
        ]
        summed = super()._frame(hidden, codes, active, random)
        for hook in hooks:
            hook.remove()
        self.frames.append(torch.stack(rows, 1)[active])  # [turns, 16, H]
        return summed


def spoken(checkpoint: Checkpoint, samples: list[Sample], frames: int) -> tuple[torch.nn.Module, torch.Tensor]:
    """The CodePredictor in float32, and the rows [frames, 16, H] of what was said."""
    config, ranges = Qwen3OmniMoeConfig.from_pretrained(checkpoint.directory), Ranges([])
    placement, prompts = Placement(Reader(checkpoint), [torch.device("cpu")], 0), Prompts(checkpoint)
    turns = [Turn(i, prompts(sample)) for i, sample in enumerate(samples)]
    Thinker(placement, config, ranges).answer(turns, 24)
    talker = Listening(placement, config, ranges)
    talker.frames = []
    talker.speak(turns, frames, torch.Generator().manual_seed(0))
    return talker.predictor.float(), torch.cat(talker.frames).float()


def logits(predictor: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """[frames, 15, V]"""
    hidden = predictor.model(inputs_embeds=rows, use_cache=False).last_hidden_state[:, 1:]
    return torch.stack([head(hidden[:, i]) for i, head in enumerate(predictor.lm_head)], 1)


def rounded(weight: torch.Tensor, form: str) -> torch.Tensor:
    """float32 [O, K], as it is after the format."""
    if form == "fp8":
        codes, scale = encode.fp8(weight)
        return codes.float() * scale
    scale_2 = weight.abs().amax()[None] / (6 * 448)
    codes, scales = encode.nvfp4(weight[None], scale_2)
    stored = scales[0].view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
    return torch.from_numpy(nvfp4.decode(codes[0].numpy(), stored, np.float32(scale_2)))


def with_weights(predictor: torch.nn.Module, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Callable[[], None]:
    before = {n: p.data for n, p in predictor.named_parameters()}
    for name, parameter in predictor.named_parameters():
        parameter.data = change(name, parameter.data)

    def restore() -> None:
        for name, parameter in predictor.named_parameters():
            parameter.data = before[name]

    return restore


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("demo/model"))
    parser.add_argument("--frames", type=int, default=48, help="longest speech of a question (default: %(default)s)")
    args = parser.parse_args()
    samples = [Sample("text", Path(f"question {i}"), text) for i, text in enumerate(QUESTIONS)]
    predictor, rows = spoken(Checkpoint(args.model), samples, args.frames)
    exact = logits(predictor, rows)
    print(f"{len(rows)} frames of {len(samples)} answers; cosine of the logits, same most likely code\n")
    groups = [(1, 1), (2, 4), (5, 8), (9, 12), (13, 15)]
    print("| weights | " + " | ".join(f"codes {a} to {b}" if a < b else f"code {a}" for a, b in groups) + " | all |")
    print("|---" * (len(groups) + 2) + "|")
    for name, (form, which) in FORMS.items():

        def change(key: str, weight: torch.Tensor, form=form, which=which) -> torch.Tensor:
            return rounded(weight, form) if any(part in which for part in key.split(".")) else weight

        restore = with_weights(predictor, change)
        found = logits(predictor, rows)
        restore()
        cosine = torch.nn.functional.cosine_similarity(found, exact, dim=-1)  # [frames, 15]
        same = (found.argmax(-1) == exact.argmax(-1)).float()
        cells = [(cosine[:, a - 1 : b].mean(), same[:, a - 1 : b].mean()) for a, b in [*groups, (1, 15)]]
        print(f"| {name} | " + " | ".join(f"{c:.5f}, {s:.1%}" for c, s in cells) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
