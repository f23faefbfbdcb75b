"""Talker and CodePredictor on the codes of the answers, in the runtime's layout. -> OUT/talker.pt

    python -m training.voice.talker WORK BASE OUT --until T [--resume OLD] [--span 0 0.5]

The Thinker's token embeddings are random and frozen (BASE/embedding.pt), so this needs no trained Thinker. Of media the
Talker gets hidden_projection of the Thinker's hidden states, which do not exist yet and say nothing about the sound: here
they are noise of any loudness, so it learns a projection that carries little and to speak the same whatever comes.
"""

import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training import checkpoint, domain, loop
from training.model.decoder import look_up
from training.model.talker import Talker
from training.voice import phrases
from training.voice.answers import Voice
from training.voice.examples import Examples
from training.voice.speak import speak

HIDDEN_SCALE = (0.1, 30.0)  # of the noise in place of hidden states
TRIPLES = 20_000  # of the 30,000 lists of three: each word in each place, so that lists are not learnt by heart
EVERY = 120.0  # seconds between tests
MARGIN = 20  # seconds to test a last time and write everything


def noise(shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """In place of the Thinker's hidden states [B, S, H]: of another loudness and another mean in each example."""
    low, high = np.log(HIDDEN_SCALE)
    scale = torch.exp(low + (high - low) * torch.rand(shape[0], 1, 1, device=device))
    mean = torch.randn(shape[0], 1, shape[2], device=device)
    return scale * (torch.randn(shape, device=device) + mean)


def prompt_rows(net: Talker, embedding: Tensor, b: dict[str, Tensor]) -> Tensor:
    """-> [B, S, H]: text, media and control codes of all rows; the frames that were said are to be added"""
    text = net.text_projection(embedding[b["text"].clamp(min=0)]) * (b["text"] >= 0)[..., None]
    media = net.hidden_projection(noise((*b["text"].shape, embedding.shape[1]), text.device)) * b["media"][..., None]
    codec = look_up(net.model.codec_embedding, b["codec"].clamp(min=0)) * (b["codec"] >= 0)[..., None]
    return text.float() + media + codec


def initialise(net: Talker) -> None:
    for name, p in net.named_parameters():
        if name.endswith("embedding.weight") or "codec_embedding" in name:
            nn.init.normal_(p, std=0.1)
        elif name.endswith(("o_proj.weight", "down_proj", "down_proj.weight")):
            p.data *= 0.3
    nn.init.normal_(net.hidden_projection.linear_fc2.weight, std=1e-3)
    nn.init.normal_(net.hidden_projection.linear_fc2.bias, std=0.3)  # what all media rows have in common


def main() -> None:
    parser = loop.arguments(__doc__.splitlines()[0])
    parser.add_argument("--picked", type=int, default=1536, help="frames of a batch that the CodePredictor sees")
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    device = loop.device()
    torch.manual_seed(args.seed + 1)
    args.out.mkdir(parents=True, exist_ok=True)
    spoken, coded = args.work / "answers.npz", args.work / "codes.npz"
    while not (coded.exists() and coded.stat().st_mtime > spoken.stat().st_mtime):  # training.voice.code2wav writes it
        time.sleep(0.5)
    voice, codes = Voice(spoken), np.load(coded)["codes"]
    embedding = torch.load(args.base / "embedding.pt").float().to(device)
    net = Talker(checkpoint.load_config(args.base)["talker_config"]).to(device)
    initialise(net)
    answers = domain.answers(TRIPLES)
    held = phrases.held_out(answers)
    known = [a for a in answers if a not in held]

    def loss(b: dict[str, Tensor]) -> dict[str, Tensor]:
        x = prompt_rows(net, embedding, b) + net.frame_embeds(b["frames"]) * b["is_frame"][..., None]
        hidden = net.model(x, b["positions"])
        first = F.cross_entropy(net.codec_head(hidden).float().flatten(0, 1), b["label"].flatten(), ignore_index=-100)
        h = hidden.flatten(0, 1).index_select(0, b["rows"])
        rest = net.code_predictor(h, look_up(net.model.codec_embedding, b["told"][:, 0]), b["told"])
        rest = F.cross_entropy(rest.float().flatten(0, 1), b["codes"][:, 1:].flatten())
        balance = net.model.balance()
        return {"loss": first + 2 * rest + 0.01 * balance, "first": first, "rest": rest, "balance": balance}

    batch = args.batch or 80
    data = lambda which, b, seed, clean=False: Examples(args.base, voice, codes, which, b, args.picked, seed, clean)  # noqa: E731
    loader = torch.utils.data.DataLoader(
        data(known, batch, args.seed + int(1000 * args.span[0])), batch_size=None, num_workers=args.workers,
        pin_memory=device.type == "cuda", prefetch_factor=8 if args.workers else None)  # fmt: skip
    some = min(batch, 32)
    tests = {name: {k: v.to(device) for k, v in next(iter(data(which, some, 7, True))).items()} for name, which in
             (("seen", known), ("held_out", sorted(held) or known))}  # fmt: skip

    @torch.no_grad()
    def test() -> dict[str, float]:
        """Speaking freely, greedy: what part of codes 0, of the other codes, and of whole answers (their codes 0) is right."""
        out = {}
        for name, b in tests.items():
            found, ended = speak(net, prompt_rows(net, embedding, b), b)
            right = found == b["truth"]
            real = torch.arange(right.shape[1], device=device)[None] - b["start"][:, None]
            real = (real >= 0) & (real < b["length"][:, None])
            out[f"{name}_code0"] = right[..., 0][real].float().mean().item()
            out[f"{name}_rest"] = right[..., 1:][real].float().mean().item()
            out[f"{name}_answers"] = ((right[..., 0] | ~real).all(1) & (ended == b["length"])).float().mean().item()
        return out

    seconds = args.until - time.time() - MARGIN if args.until else args.seconds
    trainer = loop.Trainer(
        [net], loss, seconds, args.lr, device, span=args.span, log=args.out / "talker.jsonl", ema=0.998, weight_decay=0.1
    )
    loop.resume(args.resume, "talker", trainer, talker=net)
    last = time.time()
    for b in loader:
        out = trainer.step({k: v.to(device, non_blocking=True) for k, v in b.items() if k not in ("start", "length", "truth")})
        if trainer.steps % 500 == 0 or trainer.steps == 20:
            trainer.log("talker", out)
        if time.time() - last > EVERY:
            trainer.swap()
            trainer.log("talker_test", test())
            loop.save(args.out / "talker.pt", talker=net)
            trainer.swap()
            last = time.time()
        if not trainer.going():
            break
    torch.save(trainer.state(), args.out / "talker.state.pt")
    trainer.swap()
    loop.save(args.out / "talker.pt", talker=net)
    trainer.log("talker_test", test())
    print(f"talker: {trainer.steps} steps", flush=True)


if __name__ == "__main__":
    main()
