"""Whole turns through engines: is the text exactly right?

    python -m training.evaluate ENGINES OUT.json [--items 100] [--only typed spoken ...]

Pictures are drawn by Pillow, not by the training's painter; spoken questions use voices that training never heard, with 0.3 s
before them and 0.5 s after. Each row of the result names its items and seed. Greedy Thinker, no speech (training.voice.listen
hears that).
"""

import argparse
import collections
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np

from omni_ros.pipeline.pipeline import Pipeline
from omni_ros.pipeline.request import Finished, Request
from training import domain, scenes, speech, strange, wording
from training.tools import tools_text

FOREIGN = {  # what other languages say, by voices that training never heard
    "de": ("Wie spät ist es jetzt?", "Der Hund läuft über die Straße.", "Ich möchte gerne einen Kaffee trinken."),
    "ru": ("Который сейчас час?", "Я иду домой.", "Где находится вокзал?"),
    "da": ("Hvad hedder du?", "Jeg kan godt lide at læse bøger."),
    "id": ("Di mana stasiun kereta?", "Saya mau minum kopi."),
}


def said(rnd: random.Random, text: str, voices=speech.HELD_OUT, snr: float | None = None) -> np.ndarray:
    """float32 at 16 kHz: the text by one of the voices; noise `snr` dB below the speech, or hardly any."""
    engine, voice = rnd.choice(voices)
    pcm = speech.speak((engine, voice, [(wording.punctuate(text), rnd.uniform(0.9, 1.15), rnd.uniform(30, 65))], 16000))[0]
    return in_a_room(rnd, pcm, snr)


def in_a_room(rnd: random.Random, pcm: np.ndarray, snr: float | None) -> np.ndarray:
    pcm = speech.trim(pcm, 16000, 0.3, 0.5)
    pcm = pcm / np.abs(pcm).max() * rnd.uniform(0.2, 0.8)
    level = 0.002 if snr is None else np.sqrt(np.square(pcm[4800:-8000]).mean()) * 10 ** (-snr / 20)
    out = np.random.default_rng(rnd.randrange(1 << 30)).standard_normal(max(len(pcm), 16000)) * level
    out[: len(pcm)] += pcm
    return out.astype(np.float32)


def sound(rnd: random.Random) -> np.ndarray:
    """float32 at 16 kHz, 1.5 to 4 s: a siren, a chord, claps, a fan, rain or a bird; not made as the training's sounds."""
    rng = np.random.default_rng(rnd.randrange(1 << 30))
    t = np.arange(int(16000 * rnd.uniform(1.5, 4))) / 16000
    noise = rng.standard_normal(len(t))
    kind = rnd.randrange(6)
    if kind == 0:
        x = np.sin(2 * np.pi * np.cumsum(700 + 300 * np.sign(np.sin(2 * np.pi * 1.5 * t))) / 16000)
    elif kind == 1:
        x = sum(np.sin(2 * np.pi * f * t + 3 * np.sin(2 * np.pi * 5 * t)) for f in rng.uniform(150, 900, 4))
    elif kind == 2:
        x = sum(noise * np.exp(-60 * np.clip(t - s, 0, 9)) * (t > s) for s in rng.uniform(0, t[-1], 8))
    elif kind == 3:
        x = np.convolve(noise, np.ones(24) / 24, "same") + 0.3 * np.sin(2 * np.pi * 118 * t)
    elif kind == 4:
        x = noise * (1 + 0.5 * np.sin(2 * np.pi * 0.4 * t)) * (rng.random(len(t)) < 0.2)
    else:
        x = np.sin(2 * np.pi * np.cumsum(2500 + 1200 * np.sin(2 * np.pi * 9 * t)) / 16000) * (np.sin(2 * np.pi * 1.7 * t) > 0.2)
    return (x / np.abs(x).max() * rnd.uniform(0.1, 0.6) + 0.002 * noise).astype(np.float32)


def messages(rnd: random.Random, item: dict, speak: Callable | None) -> list[dict]:
    """A chat of the item; `speak` turns a question into sound, None: it is typed."""
    turns = []
    if item["tools"]:
        content = tools_text(item["tools"]).removeprefix("<|im_start|>system\n").removesuffix("<|im_end|>\n")
        turns.append({"role": "system", "content": content})
    for q, answer in item["history"]:
        part = {"type": "audio", "audio": speak(q)} if speak else {"type": "text", "text": wording.typed(rnd, q)}
        turns += [{"role": "user", "content": [part]}, {"role": "assistant", "content": answer}]
    q = item["question"]
    if isinstance(q, str) and q.startswith("<tool_response>"):
        return [*turns, {"role": "user", "content": q}]
    if isinstance(q, np.ndarray):
        part = {"type": "audio", "audio": q}
    else:
        part = {"type": "audio", "audio": speak(q)} if speak else {"type": "text", "text": wording.typed(rnd, q)}
    picture = [] if item["scene"] is None else [{"type": "image", "image": scenes.draw(rnd, item["scene"])}]
    return [*turns, {"role": "user", "content": [*picture, part]}]


def outside(rnd: random.Random, form: str) -> dict:
    """An item that the robot should not understand."""
    scene = domain.draw_scene(rnd) if rnd.random() < 0.7 else None
    item = {"kind": form, "scene": scene, "tools": None, "history": [], "answer": domain.NOT_UNDERSTOOD}
    if form == "sound":
        return {**item, "question": sound(rnd)}
    if form == "foreign":
        language = rnd.choice(list(FOREIGN))
        pcm = speech.speak(("espeak", language, [(rnd.choice(FOREIGN[language]), 1.0, 50)], 16000))[0]
        return {**item, "question": in_a_room(rnd, pcm, None)}
    return {**item, "question": rnd.choice(strange.UNSEEN)}


def rows(rnd: random.Random) -> dict[str, tuple[Callable[[], dict], Callable | None]]:
    """name -> how to draw an item, how to speak its questions"""
    voices = lambda q: said(rnd, q)  # noqa: E731
    natural = lambda q: said(rnd, q, (speech.NATURAL,))  # noqa: E731

    def draw(**how) -> Callable[[], dict]:
        def inside() -> dict:
            while (item := domain.sample(rnd, **how))["kind"] == "strange":
                pass
            return item

        return inside

    inside = draw()

    def unseen() -> dict:
        return domain.sample(rnd, kind=rnd.choice(list(domain.UNSEEN)), forms=domain.UNSEEN)

    return {
        "typed": (inside, None),
        "spoken": (inside, voices),
        "spoken, natural voice": (inside, natural),
        "spoken, noise at 10 dB": (inside, lambda q: said(rnd, q, snr=10)),
        "typed, new combinations": (draw(want_held_out=True), None),
        "spoken, new combinations": (draw(want_held_out=True), voices),
        "typed, new word orders": (unseen, None),
        "spoken, new word orders": (unseen, voices),
        "typed, tools": (draw(tools=True), None),
        "spoken, tools": (draw(tools=True), voices),
        "typed, outside": (lambda: outside(rnd, "text"), None),
        "spoken, outside": (lambda: outside(rnd, "text"), voices),
        "other languages": (lambda: outside(rnd, "foreign"), voices),
        "no speech": (lambda: outside(rnd, "sound"), voices),
    }


def answer(pipeline: Pipeline, chat: list[dict]) -> str:
    request = Request(chat, temperature=0, max_generate_length=60, audio_output=False, seed=1)
    return next(e for e in pipeline.generate(request) if isinstance(e, Finished)).text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("engines", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--items", type=int, default=100, help="of each row")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--only", nargs="*", help="rows to measure")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    pipeline, result = Pipeline.open(args.engines, args.threads), {}
    for name in rows(random.Random(0)):
        if args.only and name not in args.only:
            continue
        rnd = random.Random(f"{args.seed} {name}")
        draw, speak = rows(rnd)[name]
        kinds, wrong = collections.defaultdict(list), []
        for _ in range(args.items):
            item = draw()
            got = answer(pipeline, messages(rnd, item, speak))
            kinds[item["kind"]].append(got == item["answer"])
            if got != item["answer"]:
                question = item["question"] if isinstance(item["question"], str) else "(a sound)"
                wrong.append({"kind": item["kind"], "question": question, "right": item["answer"], "answer": got})
        right = sum(map(sum, kinds.values()))
        result[name] = {
            "items": args.items,
            "seed": args.seed,
            "exact": right / args.items,
            "by kind": {k: f"{sum(v)}/{len(v)}" for k, v in sorted(kinds.items())},
            "wrong": wrong,
        }
        print(
            f"{name}: {right} of {args.items}",
            {k: v for k, v in result[name]["by kind"].items() if v.split("/")[0] != v.split("/")[1]},
            flush=True,
        )
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
