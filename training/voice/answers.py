"""The voice itself: every phrase of the answers, spoken by festival's `cmu_us_slt_arctic_hts`. -> WORK/answers.npz

    python -m training.voice.answers WORK [--processes 16]

The voice is a woman's (CMU ARCTIC slt, HTS; licence: CMU's and HTS's, BSD-like), 32 kHz, made 24. Debian packages:
festival festvox-us-slt-hts festlex-cmu festlex-poslex.
"""

import argparse
import re
import subprocess
import tempfile
from multiprocessing import Pool
from pathlib import Path

import numpy as np

from training import domain
from training.speech import ROBOT, ROOT, environment, read
from training.voice import phrases

RATE, FRAME = 24000, 1920
BEFORE, AFTER = 0.03, 0.06  # seconds kept around a phrase, faded in and out: the synthesiser's own silence is not silent
GOES_ON = ", and so on."  # said after a phrase that goes on, for its melody, and cut off

# "triangle" with a full vowel in its second syllable is heard as "dry angle"
BEGIN = f"""(voice_{ROBOT})
(lex.add.entry '("triangle" nil (((t r ay) 1) ((ax ng) 0) ((g ax l) 0))))
(lex.add.entry '("triangles" nil (((t r ay) 1) ((ax ng) 0) ((g ax l z) 0))))
"""
SAY = """(set! u (utt.synth (eval (list 'Utterance 'Text "{text}"))))
(utt.save.wave u "{file}" 'riff)
(mapcar (lambda (s) (format t "%s %f %s " (item.name s) (item.feat s 'end) (item.feat s 'R:SylStructure.parent.parent.name)))
        (utt.relation.items u 'Segment))
(format t "\\n")"""


def speak(keys: list[str]) -> list[np.ndarray]:
    """Phrases -> their sound, float32 [n] at 24 kHz, cut at the first pause that the synthesiser makes."""
    with tempfile.TemporaryDirectory() as folder:
        lines = [BEGIN]
        for i, key in enumerate(keys):
            goes_on = key[-1] == "," and " " in key  # there is no pause after a single word
            text = re.sub(r"\bi\b", "I", key[:-1]) + (GOES_ON if goes_on else ".")
            lines.append(SAY.format(text=text, file=f"{folder}/{i}.wav"))
        (Path(folder) / "say.scm").write_text("\n".join(lines))
        command = [f"{ROOT}/usr/bin/festival", "-b", f"{folder}/say.scm"]
        said = subprocess.run(command, env=environment(), check=True, capture_output=True, text=True).stdout
        out = []
        for i, line in enumerate(said.strip().splitlines()):
            names, ends, words = line.split()[::3], [float(t) for t in line.split()[1::3]], line.split()[2::3]
            pauses = [j for j, name in enumerate(names) if name == "pau"]
            if words[pauses[1] - 1].lower() != keys[i][:-1].split()[-1]:
                raise RuntimeError(f"festival makes no pause after {keys[i]!r}: {line}")
            start, end = ends[pauses[0]], ends[pauses[1] - 1]
            out.append(cut(read(f"{folder}/{i}.wav", RATE), start, end))
    return out


def cut(pcm: np.ndarray, start: float, end: float) -> np.ndarray:
    """pcm from just before `start` to just after `end` (seconds), faded from and to exact silence."""
    first, last = max(0, round((start - BEFORE) * RATE)), round((end + AFTER) * RATE)
    pcm = pcm[first:last].copy()
    rise, fall = round(BEFORE / 2 * RATE), round(AFTER * 0.75 * RATE)
    pcm[:rise] *= 0.5 - 0.5 * np.cos(np.pi * np.arange(rise) / rise)
    pcm[-fall:] *= 0.5 + 0.5 * np.cos(np.pi * np.arange(fall) / fall)
    return pcm


def whole_frames(pcm: np.ndarray) -> np.ndarray:
    return np.pad(pcm, (0, -len(pcm) % FRAME))


class Voice:
    """Phrases by key: their sound, and what any answer made of them sounds like."""

    def __init__(self, path: Path):
        d = np.load(path)
        ends = np.cumsum(d["frames"])
        self.keys = [str(k) for k in d["keys"]]
        self.pcm = d["pcm"]  # int16 [all frames * 1920]
        self.spans = {k: (int(e - n), int(e)) for k, n, e in zip(self.keys, d["frames"], ends)}  # in frames

    def frames_of(self, answer: str) -> np.ndarray:
        """Which frames of `pcm` make the answer, int64 [frames]; -1 is a frame of silence."""
        parts = [np.full(phrases.LEAD, -1)]
        for key, pause in phrases.split(answer):
            parts += [np.arange(*self.spans[key]), np.full(pause, -1)]
        return np.concatenate(parts)

    def say(self, answer: str) -> np.ndarray:
        """float32 [frames * 1920]: the reference, what the Talker and Code2Wav are to sound like."""
        index = self.frames_of(answer)
        out = self.pcm.reshape(-1, FRAME)[index].astype(np.float32) / 32767
        out[index < 0] = 0
        return out.ravel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--processes", type=int, default=16)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    keys = sorted({key for answer in domain.answers() for key, _ in phrases.split(answer)})
    with Pool(args.processes) as pool:
        spoken = pool.map(speak, [keys[i : i + 20] for i in range(0, len(keys), 20)], chunksize=1)
    clips = [whole_frames(clip) for some in spoken for clip in some]
    gain = 0.85 / np.percentile([np.abs(c).max() for c in clips], 99)
    pcm = (np.clip(np.concatenate(clips) * gain, -1, 1) * 32767).astype(np.int16)
    with tempfile.NamedTemporaryFile(dir=args.work, suffix=".npz", delete=False) as f:
        np.savez(f, keys=np.array(keys), frames=np.array([len(c) // FRAME for c in clips]), pcm=pcm)
    Path(f.name).rename(args.work / "answers.npz")  # whoever waits for the file finds it whole
    print(f"answers: {len(clips)} phrases, {len(pcm) / RATE:.0f} s, the longest {max(map(len, clips)) / RATE:.2f} s", flush=True)


if __name__ == "__main__":
    main()
