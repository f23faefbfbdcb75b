"""Calibration samples from the domain for `offline.quantize`: spoken questions, pictures with a question, typed questions; and
the same as requests for `offline.infer` and `offline.compare`, FOLDER/requests.json.

    python -m training.samples FOLDER [--audio 150 --images 150 --text 200 --seed 3]

The voices are those of the training; nothing of the evaluation is among them.
"""

import argparse
import json
import random
import wave
from pathlib import Path

import numpy as np
from PIL import Image

from training import clips, domain, scenes, speech, wording


def write(folder: Path, audio: int, images: int, text: int, seed: int = 3) -> None:
    rnd = random.Random(seed)
    for name in ("audio", "images", "text"):
        (folder / name).mkdir(parents=True, exist_ok=True)

    def question(with_picture: bool) -> dict:
        while (item := domain.sample(rnd))["question"] is None or (item["scene"] is None) == with_picture or item["history"]:
            pass
        return item

    for i in range(audio):
        engine = rnd.choice(clips.FAMILIES)
        item = (wording.punctuate(question(False)["question"]), rnd.uniform(0.9, 1.15), rnd.uniform(30, 65))
        pcm = speech.trim(speech.speak((engine, clips.voice_of(rnd, engine), [item], 16000))[0], 16000, 0.3, 0.5)
        with wave.open(str(folder / "audio" / f"{i:03}.wav"), "wb") as f:
            f.setnchannels(1)
            f.setsampwidth(2)
            f.setframerate(16000)
            f.writeframes((pcm / np.abs(pcm).max() * 20000).astype("<i2").tobytes())
    for i in range(images):
        item = question(True)
        Image.fromarray(scenes.draw(rnd, item["scene"])).save(folder / "images" / f"{i:03}.png")
        (folder / "images" / f"{i:03}.txt").write_text(wording.typed(rnd, item["question"]))
    for i in range(text):
        (folder / "text" / f"{i:03}.txt").write_text(wording.typed(rnd, question(False)["question"]))
    contents = [[{"type": "audio", "audio": str(file)}] for file in sorted((folder / "audio").glob("*.wav"))]
    for file in sorted((folder / "images").glob("*.png")):
        contents.append([{"type": "image", "image": str(file)}, {"type": "text", "text": file.with_suffix(".txt").read_text()}])
    contents += [[{"type": "text", "text": file.read_text()}] for file in sorted((folder / "text").glob("*.txt"))]
    requests = [{"messages": [{"role": "user", "content": content}]} for content in contents]
    (folder / "requests.json").write_text(
        json.dumps({"temperature": 0, "talker_temperature": 0, "requests": requests}, indent=1) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    for name, n in (("audio", 150), ("images", 150), ("text", 200)):
        parser.add_argument(f"--{name}", type=int, default=n)
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()
    write(args.folder, args.audio, args.images, args.text, args.seed)


if __name__ == "__main__":
    main()
