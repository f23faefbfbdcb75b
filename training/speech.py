"""espeak-ng, flite and festival: text -> sound. They speak the questions in many voices, and the answers in one.

Debian packages: espeak-ng flite festival festvox-us-slt-hts festvox-kallpc16k festvox-kdlpc16k festlex-cmu festlex-poslex.
Where they are unpacked (dpkg -x) and not installed, TTS_ROOT names the folder, and /usr/share/festival must be a link into it.
"""

import os
import subprocess
import tempfile
import wave
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

ROOT = os.environ.get("TTS_ROOT", "")
ESPEAK_LANGUAGES = ("en-us", "en-us", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-029", "en-gb-x-gbclan")
ESPEAK_VARIANTS = (
    "", "m1", "m2", "m3", "m4", "m5", "m7", "m8", "f1", "f2",
    "f3", "f5", "Alex", "Alicia", "Andrea", "Andy", "Annie", "Denis", "Diogo",
    "Gene", "Gene2", "Henrique", "Hugo", "Jacky", "Lee", "Marco", "Mario", "Michael", "Mike", "Nguyen", "Tweaky", "adam", "anika",
    "announcer", "antonio", "aunty", "belinda", "benjamin", "boris", "david",
    "ed", "edward", "grandma", "grandpa", "iven", "john",
    "klatt2", "klatt3", "marcelo", "max", "michel", "miguel", "norbert",
    "pablo", "paul", "pedro", "rob", "robert", "sandro", "shelby",
    "steph", "travis", "victor",
)  # fmt: skip
FLITE_VOICES, FESTIVAL_VOICES = ("awb", "slt", "kal16"), ("kal_diphone", "cmu_us_slt_arctic_hts")
# Voices that no training hears: they ask in the evaluation.
HELD_OUT = (
    ("espeak", "en-us+f4"), ("espeak", "en-gb+m6"), ("espeak", "en-us+linda"), ("espeak", "en-us+quincy"),
    ("espeak", "en-gb+zac"), ("flite", "rms"), ("festival", "ked_diphone"),
)  # fmt: skip
NATURAL = ("flite", "rms")  # the one of these that was made from recordings of a person's sentences
ROBOT = "cmu_us_slt_arctic_hts"  # the voice that the robot learns
TIMEOUT = 300.0  # seconds that one call of a synthesiser may take


def environment() -> dict[str, str] | None:
    if not ROOT:
        return None
    lib = f"{ROOT}/usr/lib/x86_64-linux-gnu"
    return {**os.environ, "LD_LIBRARY_PATH": f"{lib}:{ROOT}/lib/x86_64-linux-gnu:{lib}/pulseaudio"}


def run(*command: str) -> None:
    subprocess.run(command, env=environment(), check=True, timeout=TIMEOUT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def read(path: str | Path, rate: int) -> np.ndarray:
    """float32 samples of a mono wave file at `rate`."""
    with wave.open(str(path)) as f:
        pcm = np.frombuffer(f.readframes(f.getnframes()), "<i2").astype(np.float32) / 32768
        have = f.getframerate()
    if have != rate:
        g = np.gcd(have, rate)
        pcm = resample_poly(pcm, rate // g, have // g).astype(np.float32)
    return pcm


def trim(pcm: np.ndarray, rate: int, before: float, after: float, threshold: float = 0.01) -> np.ndarray:
    """Speech with so many seconds of what is around it."""
    loud = np.flatnonzero(np.abs(pcm) > threshold * np.abs(pcm).max())
    start, end = max(0, loud[0] - int(before * rate)), min(len(pcm), loud[-1] + int(after * rate))
    pcm = pcm[start:end]
    return np.pad(pcm, (0, max(0, int(after * rate) - (len(pcm) - (loud[-1] - start)))))


def speak(job: tuple) -> list[np.ndarray]:
    """(engine, voice, [(text, slowness, pitch 0..100)], rate) -> [float32 samples]; festival is called once for all."""
    engine, voice, items, rate = job
    out = []
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        files = [f"{folder}/{i}.wav" for i in range(len(items))]
        if engine == "festival":
            lines = [f"(voice_{voice})"]
            for file, (text, slow, _) in zip(files, items):
                lines += [
                    f"(Parameter.set 'Duration_Stretch {slow:.2f})",
                    f'(utt.save.wave (utt.synth (eval (list \'Utterance \'Text "{text}"))) "{file}" \'riff)',
                ]
            Path(f"{folder}/say.scm").write_text("\n".join(lines))
            run(f"{ROOT}/usr/bin/festival", "-b", f"{folder}/say.scm")
        for file, (text, slow, pitch) in zip(files, items):
            if engine == "espeak":
                path = ("--path", f"{ROOT}/usr/lib/x86_64-linux-gnu") if ROOT else ()
                run(
                    f"{ROOT}/usr/bin/espeak-ng",
                    *path,
                    "-v",
                    voice,
                    "-s",
                    str(int(160 / slow)),
                    "-p",
                    str(int(pitch)),
                    "-w",
                    file,
                    text,
                )
            elif engine == "flite":
                stretch, mean = f"duration_stretch={slow:.2f}", f"int_f0_target_mean={80 + pitch:.0f}"
                run(f"{ROOT}/usr/bin/flite", "-voice", voice, "--setf", stretch, "--setf", mean, "-t", text, "-o", file)
            out.append(read(file, rate))
    return out
