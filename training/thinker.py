"""Thinker, audio and visual encoder from nothing: typed and spoken questions about drawn pictures.

    python -m training.thinker WORK BASE OUT --until T

Teacher forcing; an answer counts as exact when the most likely token is right at every place, which is what greedy decoding
would write. Two losses besides help the encoders, which learn from answers alone only slowly: CTC on what is said, and what
stands in each slot of the picture.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training import checkpoint, domain, ear, layout, loop
from training.batches import TOKENS, Batches, clips_of, groups_of
from training.model.audio_encoder import AudioLayer
from training.model.decoder import DecoderLayer
from training.model.thinker import Thinker
from training.model.visual_encoder import VisionBlock
from training.painter import Painter


def ctc(log_p: Tensor, targets: Tensor, target_count: Tensor, valid: Tensor, blank: int) -> Tensor:
    """Connectionist temporal classification (Graves et al. 2006). log_p [N, T, V], targets [N, U], valid [N, T] -> [N];
    plain tensor code, so that a CUDA graph can hold it."""
    n, t, _ = log_p.shape
    u = targets.shape[1]
    states = torch.full((n, 2 * u + 1), blank, device=targets.device)
    states[:, 1::2] = targets
    skip = torch.zeros_like(states, dtype=torch.bool)
    skip[:, 3::2] = targets[:, 1:] != targets[:, :-1]
    emit = log_p.gather(2, states[:, None].expand(-1, t, -1))
    never = torch.full((n, 1), -1e4, device=emit.device)
    alpha = torch.cat([emit[:, 0, :2], never.expand(-1, 2 * u - 1)], 1)
    for i in range(1, t):
        one = torch.cat([never, alpha[:, :-1]], 1)
        two = torch.where(skip, torch.cat([never, never, alpha[:, :-2]], 1), -1e4)
        new = torch.logsumexp(torch.stack([alpha, one, two]), 0) + emit[:, i]
        alpha = torch.where(valid[:, i : i + 1], new, alpha)
    last = 2 * target_count[:, None]
    return -torch.logaddexp(alpha.gather(1, last)[:, 0], alpha.gather(1, (last - 1).clamp(min=0))[:, 0])


class Senses:
    """A batch's clips and figures -> mel and patches, on the GPU."""

    def __init__(self, bank: dict, device: torch.device):
        self.bank = torch.from_numpy(bank["pcm"]).to(device)
        self.lengths = torch.from_numpy(bank["meta"][:, 2].astype(np.float32)).to(device)
        self.ear, self.painter = ear.Ear(device), Painter(device)

    @torch.no_grad()
    def __call__(self, b: dict[str, Tensor], speech: int) -> dict[str, Tensor]:
        """`speech`: how many of the clips are speech, the others are sounds."""
        clip, start, _, ratio, frames, backwards = b["heard"].unbind(1)
        clip = clip.long()
        pcm = ear.placed(self.bank, self.lengths, clip, start, ratio, backwards > 0)
        pcm[speech:] = ear.sounds(len(pcm) - speech, pcm.device)
        pcm, tilt = ear.microphone(pcm, self.lengths[clip])
        mel = self.mask(self.ear(pcm, frames, tilt))
        rest = frames.long() % 100
        rows = frames.long() // 100 * 13 + torch.where(rest > 0, (((rest + 1) // 2 + 1) // 2 + 1) // 2, 0)
        valid = torch.arange(layout.CLIP_ROWS, device=mel.device)[None] < rows[:, None]
        patches, _ = self.painter(b["figures"], b["crowds"])
        names = ("ids", "positions", "label_rows", "labels", "clip_rows", "picture_rows", "tokens", "token_count", "sight")
        return {**{k: b[k] for k in names}, "mel": mel, "valid": valid, "patches": patches}

    @staticmethod
    def mask(mel: Tensor) -> Tensor:
        """Stripes of bands and of times left out (SpecAugment, Park et al. 2019)."""
        for width, axis in ((12, 1), (12, 1), (25, 2), (25, 2)):
            size = mel.shape[axis]
            at, wide = (torch.rand(len(mel), 1, device=mel.device) * x for x in (size, width))
            index = torch.arange(size, device=mel.device)[None]
            hidden = (index >= at) & (index < at + wide) & (torch.rand(len(mel), 1, device=mel.device) < 0.4)
            mel = torch.where(hidden.unsqueeze(3 - axis), 0.0, mel)
        return mel


class Helpers(nn.Module):
    """Heads that only the training has: the tokens that a row of sound says; what stands in each slot of a picture."""

    def __init__(self, hidden: int, vocabulary: int, picture_rows: int = 20):
        super().__init__()
        self.words = nn.Linear(hidden, vocabulary)
        self.sizes = [len(domain.COLOURS) + 1, len(domain.SHAPES) + 1] * 3 + [10]
        self.sight = nn.Linear(hidden * picture_rows, sum(self.sizes))

    def look(self, rows: Tensor, target: Tensor) -> Tensor:
        """rows [B, 20, H], target [B, 7] -> mean cross entropy of what there is to learn"""
        parts = self.sight(rows.flatten(1)).float().split(self.sizes, 1)
        losses = [F.cross_entropy(p, target[:, i], ignore_index=-100, reduction="sum") for i, p in enumerate(parts)]
        return sum(losses) / (target >= 0).sum().clamp(min=1)


def fresh(config: dict, base: Path, device: torch.device) -> Thinker:
    """Random weights; the residual stream starts quiet. Token embeddings are random for ever: the Talker, which reads them, can
    be trained at the same time."""
    net = checkpoint.build(config)[0].to(device)
    for name, p in net.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj")):
            p.data *= 0.3
    net.visual.pos_embed.weight.data *= 0.1
    net.model.embed_tokens.weight.data.copy_(torch.load(base / "embedding.pt").float())
    net.model.embed_tokens.weight.requires_grad_(False)
    return net


class Objective:
    """Forward pass and losses of a batch of `groups`."""

    def __init__(self, net: Thinker, helpers: Helpers, groups: dict, blank: int):
        self.net, self.helpers, self.groups, self.blank = net, helpers, list(groups.values()), blank

    def warm_up(self, speech: int, sounds: int, device: torch.device) -> None:
        """A step on nothing, so that torch.compile is done before there are data."""
        rows, items, clips = sum(n * s for n, s in self.groups), sum(n for n, _ in self.groups), speech + sounds
        whole = {
            "ids": (rows,), "label_rows": (100,), "labels": (100,), "clip_rows": (clips, layout.CLIP_ROWS),
            "picture_rows": (items, 20), "tokens": (clips, TOKENS), "token_count": (clips,), "sight": (items, 7),
        }  # fmt: skip
        b = {name: torch.zeros(shape, dtype=torch.long, device=device) for name, shape in whole.items()}
        b["mel"] = torch.zeros(clips, 128, layout.CLIP_SAMPLES // 160, device=device)
        b["valid"] = torch.ones(clips, layout.CLIP_ROWS, dtype=torch.bool, device=device)
        b["patches"] = torch.zeros(items, self.net.visual.taps.shape[1], 1536, device=device)
        b["positions"] = torch.zeros(3, rows, device=device)
        side = torch.cuda.Stream()  # nothing of it may be left on the default stream when a graph is captured
        with torch.cuda.stream(side), torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            self(b)["loss"].backward()
        side.synchronize()
        self.net.zero_grad()
        self.helpers.zero_grad()

    def logits(self, b: dict[str, Tensor]):
        x, deep, audio, visual = self.net.rows(b["ids"], b["mel"], b["valid"], b["clip_rows"], b["patches"], b["picture_rows"])
        hidden, balance = self.net.decode(x, deep, b["positions"], self.groups)
        return self.net.lm_head(hidden.index_select(0, b["label_rows"])), audio, visual, balance

    def __call__(self, b: dict[str, Tensor]) -> dict[str, Tensor]:
        logits, audio, visual, balance = self.logits(b)
        answer = F.cross_entropy(logits.float(), b["labels"], ignore_index=-100)
        log_p = F.log_softmax(self.helpers.words(audio).float(), -1)
        real = (b["token_count"] > 0).float()
        each = ctc(log_p, b["tokens"], b["token_count"], b["valid"], self.blank) / b["token_count"].clamp(min=1)
        listen = (each.clamp(max=50) * real).sum() / real.sum().clamp(min=1)
        look = self.helpers.look(visual, b["sight"])
        loss = answer + 0.2 * listen + 0.2 * look + 0.01 * balance
        return {"loss": loss, "answer": answer, "listen": listen, "look": look, "balance": balance}


def exact(logits: Tensor, b: dict[str, Tensor], items: int) -> Tensor:
    """bool [items]: every token of the answer is the most likely one"""
    wrong = ((logits.argmax(-1) != b["labels"]) & (b["labels"] >= 0)).float()
    return torch.zeros(items, device=wrong.device).index_add_(0, b["label_items"], wrong) == 0


def main() -> None:
    parser = loop.arguments(__doc__.split("\n")[0])
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--compile", action="store_true", help="torch.compile the layers: a minute to begin with, then quicker")
    parser.add_argument("--test_every", type=float, default=75.0, help="seconds")
    args = parser.parse_args()
    device = loop.device()
    torch.manual_seed(args.seed + 2)
    args.out.mkdir(parents=True, exist_ok=True)
    config = checkpoint.load_config(args.base)
    text = config["thinker_config"]["text_config"]
    net, helpers = fresh(config, args.base, device), Helpers(text["hidden_size"], text["vocab_size"]).to(device)
    if args.compile:
        for m in net.modules():
            if isinstance(m, (DecoderLayer, AudioLayer, VisionBlock)):
                m.compile(dynamic=False)
    size = args.batch or 264
    groups = groups_of(size)
    (speech, sounds), items = clips_of(groups), sum(n for n, _ in groups.values())
    blank = layout.Builder(args.base).tokenizer.token_to_id("<|endoftext|>")
    objective = Objective(net, helpers, groups, blank)
    if args.compile and device.type == "cuda":
        begin = time.time()
        objective.warm_up(speech, sounds, device)
        print(f"thinker: compiled in {time.time() - begin:.0f} s", flush=True)
    while not all((args.work / f"{name}.npz").exists() for name in ("questions", "held_out")):
        time.sleep(0.3)
    banks = {name: dict(np.load(args.work / f"{name}.npz")) for name in ("questions", "held_out")}
    senses = {name: Senses(bank, device) for name, bank in banks.items()}
    batches = Batches(args.base, banks["questions"], size, args.seed * 10 + round(args.span[0] * 9))
    more = {"num_workers": args.workers, "prefetch_factor": 6, "pin_memory": device.type == "cuda"} if args.workers else {}
    trials = {}
    for combinations in ("known", "new"):
        for voices, bank in banks.items():
            it = iter(Batches(args.base, bank, size, 77, combinations == "new", spoil=False))
            trials[combinations, voices] = [next(it) for _ in range(2)]
    names = [*domain.KINDS, *domain.TOOL_KINDS]

    @torch.no_grad()
    def test() -> dict[str, float]:
        out, by_kind = {}, {}
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"), torch.compiler.set_stance("force_eager"):
            for (combinations, voices), some in trials.items():
                right = []
                for b in some:
                    b = {k: v.to(device) for k, v in b.items()}
                    right.append(exact(objective.logits(senses[voices](b, speech))[0], b, items).cpu())
                    for ok, k in zip(right[-1].tolist(), b["kinds"].tolist()):
                        by_kind.setdefault(f"{names[k]}{'*' if combinations == 'new' else ''}", []).append(ok)
                right, at = torch.stack(right), 0
                for group, (n, _) in groups.items():
                    share, at = right[:, at : at + n].float().mean().item(), at + n
                    if group == "spoken" or voices == "questions" and (group == "typed" or combinations == "known"):
                        voice = f", {'known' if voices == 'questions' else 'new'} voices" if group == "spoken" else ""
                        out[f"{group}, {combinations}{voice}"] = share
        print("  by kind (*: new combinations):", {k: f"{sum(v)}/{len(v)}" for k, v in sorted(by_kind.items())}, flush=True)
        return out

    seconds = args.until - time.time() - 15 if args.until else args.seconds
    trainer = loop.Trainer([net, helpers], objective, seconds, args.lr, device, args.span, args.out / "thinker.jsonl", ema=0.998,
                           weight_decay=0.03, warm=300)  # fmt: skip
    loop.resume(args.resume, "thinker", trainer, thinker=net, helpers=helpers)
    first = {k: v.to(device) for k, v in next(iter(batches)).items()}
    try:
        trainer.step(senses["questions"](first, speech))
    except RuntimeError as e:
        if not args.compile:
            raise
        print(f"thinker: again, without torch.compile: {str(e)[:300]}", flush=True)
        os.execv(sys.executable, [sys.executable, "-m", "training.thinker", *(a for a in sys.argv[1:] if a != "--compile")])
    loader = iter(torch.utils.data.DataLoader(batches, batch_size=None, **more))
    tested = time.time()
    while trainer.going():
        batch = {k: v.to(device, non_blocking=True) for k, v in next(loader).items()}
        out = trainer.step(senses["questions"](batch, speech))
        if trainer.steps in (20, 200) or trainer.steps % 500 == 0:
            trainer.log("thinker", out)
        if time.time() - tested > args.test_every:
            trainer.swap()
            trainer.log("thinker exact", test())
            loop.save(args.out / "thinker.pt", thinker=net, helpers=helpers)
            trainer.swap()
            tested = time.time()
    trainer.swap()
    trainer.log("thinker exact", test())
    loop.save(args.out / "thinker.pt", thinker=net, helpers=helpers)
    trainer.swap()
    torch.save(trainer.state(), args.out / "thinker.state.pt")


if __name__ == "__main__":
    main()
