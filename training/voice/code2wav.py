"""Codec, then Code2Wav: WORK/answers.npz -> WORK/codes.npz for the Talker, OUT/codec.pt, OUT/code2wav.pt.

    python -m training.voice.code2wav WORK BASE OUT --until T [--resume OLD] [--span 0 0.5]

Windows of 32 frames of answers, drawn evenly over their forms. First the spectral distance alone, then with least-squares
judges and the matching of their feature maps.
"""

import random
import time

import numpy as np
import torch
from torch import Tensor

from training import checkpoint, dims, domain, loop
from training.model.code2wav import Code2Wav
from training.voice.answers import FRAME, Voice
from training.voice.codec import Codec, features_of
from training.voice.judges import Judges, SpectralDistance, sound_in_silence
from training.voice.phrases import by_form, even

WINDOW = 32  # frames of a training example
TRACK = 2500  # answers in a row, of which windows are cut
SPECTRAL, MATCH, SILENCE = 3.0, 0.5, 100.0  # weights of the losses beside the judges'
MARGIN = 15  # seconds to write everything


def encode(voice: Voice, args, device: torch.device) -> Tensor:
    """The codec, fitted or from --resume, and the codes of all frames of the phrases, the last one silence: [frames + 1, 16]"""
    pcm = torch.cat([torch.from_numpy(voice.pcm).to(device).float() / 32767, torch.zeros(FRAME, device=device)])
    x = features_of(pcm, [b - a for a, b in voice.spans.values()] + [1])
    if args.resume:
        codec = Codec({k: v.to(device) for k, v in torch.load(args.resume / "codec.pt").items()})
    else:
        codec = Codec.fit(torch.cat([x, x[-1:].expand(len(x) // 20, -1)]), dims.CODES, args.seed)  # silence: an own centre
    codes = codec.encode(x)
    torch.save({**codec.state(), "codes": codes.to(torch.uint8).cpu()}, args.out / "codec.pt")
    np.savez(args.work / "codes.part.npz", codes=codes.cpu().numpy().astype(np.uint8))
    (args.work / "codes.part.npz").rename(args.work / "codes.npz")  # the Talker's training waits for it
    print(f"codec: of {len(codes)} frames {len(torch.unique(codes, dim=0))} differ; silence is {codes[-1].tolist()}", flush=True)
    return codes


class Windows:
    """Random windows of a long track of answers, on the device: "codes" [B, 16, W], "wave" [B, 1920 W - 555]."""

    def __init__(self, voice: Voice, codes: Tensor, batch: int, seed: int):
        rnd, pcm = random.Random(seed), torch.from_numpy(voice.pcm).to(codes.device).view(-1, FRAME)
        track = np.concatenate([voice.frames_of(answer) for answer in even(by_form(domain.answers()), rnd, TRACK)])
        track = torch.from_numpy(track).to(codes.device)
        self.codes, self.batch = codes[track], batch
        self.wave = torch.where(track[:, None] >= 0, pcm[track].float() / 32767, 0.0).flatten()
        self.frames = torch.arange(WINDOW, device=codes.device)
        self.samples = torch.arange(FRAME * WINDOW - 555, device=codes.device)

    def draw(self) -> dict[str, Tensor]:
        start = torch.randint(len(self.codes) - WINDOW, (self.batch, 1), device=self.codes.device)
        return {"codes": self.codes[start + self.frames].transpose(1, 2), "wave": self.wave[start * FRAME + self.samples]}


def main() -> None:
    parser = loop.arguments(__doc__.splitlines()[0])
    parser.add_argument("--judges_from", type=float, default=0.3, help="part of the whole training after which the judges join")
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()
    device = loop.device()
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    voice = Voice(args.work / "answers.npz")
    windows = Windows(voice, encode(voice, args, device), args.batch or 24, args.seed)
    net = Code2Wav(checkpoint.load_config(args.base)["code2wav_config"]).to(device)
    with torch.no_grad():
        net.decoder[-1].conv.weight *= 0.3  # begin quietly
    judges, distance = Judges().to(device), SpectralDistance().to(device)

    def copy(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.autocast(device.type, enabled=False):
            y = net(batch["codes"], clamp=False)
            spectral, silence = distance(y, batch["wave"]), sound_in_silence(y, batch["wave"])
        return {"loss": spectral + SILENCE / SPECTRAL * silence, "spectral": spectral, "silence": silence, "y": y}

    def copy_and_fool(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        out = copy(batch)
        for p in judges.parameters():
            p.requires_grad_(False)
        with torch.no_grad():
            real = judges(batch["wave"])
        fake = judges(out["y"])
        for p in judges.parameters():
            p.requires_grad_(True)
        fool = sum((1 - score.float()).square().mean() for score, _ in fake) / len(fake)
        match = sum((a.float() - b.float()).abs().mean() / (b.float().abs().mean() + 1e-3)
                    for f, r in zip(fake, real) for a, b in zip(f[1], r[1])) / len(fake)  # fmt: skip
        return {**out, "loss": SPECTRAL * out["loss"] + fool + MATCH * match, "fool": fool, "match": match}

    def judge(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        real, fake = judges(batch["wave"]), judges(batch["y"])
        return {
            "loss": sum((1 - r[0].float()).square().mean() + f[0].float().square().mean() for r, f in zip(real, fake)) / len(real)
        }

    seconds = args.until - time.time() - MARGIN if args.until else args.seconds
    same = dict(seconds=seconds, device=device, span=args.span, betas=(0.8, 0.98))
    trainer = loop.Trainer([net], copy, lr=args.lr, log=args.out / "code2wav.jsonl", ema=0.9995, **same)
    critic = loop.Trainer([judges], judge, lr=args.lr / 2, ema=0.9, **same)
    if loop.resume(args.resume, "code2wav", trainer, code2wav=net) and (args.resume / "judges.state.pt").is_file():
        critic.load_state(torch.load(args.resume / "judges.state.pt", map_location=device))
    judging = False
    while trainer.going():
        if not judging and trainer.fraction() >= args.judges_from:
            judging, trainer.loss, trainer.graph = True, copy_and_fool, None
        batch = windows.draw()
        out = trainer.step(batch)
        if judging:
            score = critic.step({"wave": batch["wave"], "y": out["y"]})
        if trainer.steps % 500 == 0 or trainer.steps == 20:
            trainer.log("code2wav", {k: v for k, v in out.items() if k != "y"} | ({"judges": score["loss"]} if judging else {}))
    torch.save(trainer.state(), args.out / "code2wav.state.pt")
    if judging:
        torch.save(critic.state(), args.out / "judges.state.pt")
    trainer.swap()
    loop.save(args.out / "code2wav.pt", code2wav=net)
    print(f"code2wav: {trainer.steps} steps", flush=True)


if __name__ == "__main__":
    main()
