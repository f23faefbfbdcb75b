"""Speaks the questions, and what is outside the domain, in many voices: WORK/questions.npz and WORK/held_out.npz.

    python -m training.clips WORK [--share 1.0] [--processes 32]

An archive holds `pcm` int16 [clips, samples] at 16 kHz; `meta` int32 [clips, 4]: number of the question in domain.questions() or
-1 for a sentence outside the domain, family of the voice (espeak-ng, flite, festival), samples, number of the text; and `texts`,
what was said. The voices of the second are those that training never hears.
"""

import argparse
import random
import time
from multiprocessing import Pool
from pathlib import Path

import numpy as np

from training import domain, speech, strange, wording

FAMILIES = ("espeak", "flite", "festival")
LONGEST = 62000  # samples
CLIPS = 17000  # of questions; more are made where the domain needs them
STRANGE = 4500  # of sentences outside it
FOREIGN = ("fr-fr", "es", "it", "pt", "pl", "sv", "nl", "fi", "hu", "ro", "cs", "el", "tr", "eo")  # read English as they can


def counts() -> list[int]:
    """How often each question is spoken: kinds that are asked often, and have few questions, more often."""
    number = {q: i for i, q in enumerate(domain.questions())}
    out = np.full(len(number), 6.0)
    total = sum(domain.KINDS.values())
    for kind, forms in domain.ASK.items():
        some = [number[q] for form in forms for q in domain.fill(form, kind)]
        wish = CLIPS * (domain.KINDS[kind] / total) ** 0.7 * 0.3 / len(some)
        out[some] = np.maximum(out[some], min(60, wish))
    rest = [
        q for forms in (*domain.CHAT.values(), *domain.FOLLOW.values(), *domain.DO.values()) for form in forms for q in [form]
    ]
    out[[number[q] for q in rest if q in number]] = 30
    for i, q in enumerate(number):
        if q.startswith(
            ("and ", "what about ", "add ", "plus ", "on ", "in ", "go to", "move to", "drive to", "can you go", "to the")
        ):
            out[i] = max(out[i], 25)
    return out.round().astype(int).tolist()


def voice_of(rnd: random.Random, engine: str) -> str:
    if engine == "espeak":
        variant = rnd.choice(speech.ESPEAK_VARIANTS)
        return rnd.choice(speech.ESPEAK_LANGUAGES) + ("+" + variant if variant else "")
    return rnd.choice(speech.FLITE_VOICES if engine == "flite" else speech.FESTIVAL_VOICES)


def jobs_of(rnd: random.Random, share: float, held_out: bool) -> list[tuple]:
    """[(job of speech.speak, [question number], [text])]"""
    questions, wanted = domain.questions(), counts()
    often = [max(1, round(n * share)) if not held_out else (1 if rnd.random() < share else 0) for n in wanted]
    asked = [(i, wording.decorate(rnd, questions[i])) for i, n in enumerate(often) for _ in range(n)]
    asked += [(-1, strange.sentence(rnd, spoken=True)) for _ in range(round((300 if held_out else STRANGE) * share))]
    asked = [(i, q) for i, q in asked if i >= 0 or not domain.known(q)]
    rnd.shuffle(asked)
    out = []
    bounds = np.cumsum([0, 0.5, 0.32, 0.18]) * len(asked)
    for engine, a, b in zip(FAMILIES, bounds, bounds[1:]):
        mine = asked[int(a) : int(b)]
        size = 40 if engine == "festival" else 12
        for j in range(0, len(mine), size):
            some = mine[j : j + size]
            if held_out:
                voice = rnd.choice([v for e, v in speech.HELD_OUT if e == engine])
            elif engine == "espeak" and rnd.random() < 0.04:  # an accent that nobody understands
                voice, some = (
                    rnd.choice(FOREIGN),
                    [(-1, q) for i, q in some if i < 0] or [(-1, strange.fill(rnd, rnd.choice(strange.FRAMES)))],
                )
            else:
                voice = voice_of(rnd, engine)
            items = [(wording.punctuate(q), rnd.uniform(0.82, 1.25), rnd.uniform(20, 75)) for _, q in some]
            out.append(((engine, voice, items, 16000), [i for i, _ in some], [q for _, q in some]))
    return out


def speak_job(job: tuple) -> list[np.ndarray]:
    """int16 clips of a job, each as loud; empty where a synthesiser made nothing or too much."""
    out = []
    for pcm in speech.speak(job):
        if len(pcm) < 1600 or not np.abs(pcm).max():
            out.append(np.zeros(0, np.int16))
            continue
        pcm = speech.trim(pcm, 16000, 0.03, 0.03)
        out.append((pcm / np.abs(pcm).max() * 28000).astype(np.int16) if len(pcm) <= LONGEST else np.zeros(0, np.int16))
    return out


def make(work: Path, name: str, share: float, processes: int) -> None:
    begin = time.time()
    todo = jobs_of(random.Random(7 if name == "questions" else 8), share, name == "held_out")
    todo.sort(key=lambda job: job[0][0] == "espeak")  # slow ones first
    with Pool(processes) as pool:
        spoken = pool.map(speak_job, [job for job, _, _ in todo], chunksize=1)
    texts = sorted({q for _, _, said in todo for q in said})
    number = {q: i for i, q in enumerate(texts)}
    clips, meta = [], []
    for (job, asked, said), pcms in zip(todo, spoken):
        for i, q, pcm in zip(asked, said, pcms):
            if len(pcm):
                clips.append(pcm)
                meta.append((i, FAMILIES.index(job[0]), len(pcm), number[q]))
    bank = np.zeros((len(clips), max(map(len, clips))), np.int16)
    for row, clip in zip(bank, clips):
        row[: len(clip)] = clip
    with open(work / f"{name}.part", "wb") as f:
        np.savez(f, pcm=bank, meta=np.array(meta, np.int32), texts=np.array(texts))
    (work / f"{name}.part").rename(work / f"{name}.npz")  # who waits for it never sees half of it
    hours = sum(m[2] for m in meta) / 16000 / 3600
    print(
        f"{name}: {len(clips)} clips, {hours:.2f} h, longest {bank.shape[1] / 16000:.2f} s, made in {time.time() - begin:.0f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--share", type=float, default=1.0, help="of the clips, for a trial")
    parser.add_argument("--processes", type=int, default=16)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    for name in ("held_out", "questions"):
        if not (args.work / f"{name}.npz").exists():
            make(args.work, name, args.share, args.processes)


if __name__ == "__main__":
    main()
