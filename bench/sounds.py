"""Sounds that are no speech, and must begin no turn: float32 [n] at 16 kHz, of 0 dBFS RMS before they are scaled."""

from collections.abc import Callable

import numpy as np

RATE = 16000

Rng = np.random.Generator


def white(n: int, rng: Rng) -> np.ndarray:
    return rng.standard_normal(n)


def pink(n: int, rng: Rng) -> np.ndarray:
    """Rooms, streets, ventilation: 3 dB less per octave."""
    spectrum = np.fft.rfft(rng.standard_normal(n))
    return np.fft.irfft(spectrum / np.sqrt(np.arange(1, spectrum.size + 1)), n)


def fan(n: int, rng: Rng) -> np.ndarray:
    """The robot's own: air, a blade tone with harmonics, and the slow beat of two fans."""
    t = np.arange(n) / RATE
    tone = sum(np.sin(2 * np.pi * k * f * t + rng.uniform(0, 6)) / k for f in (118.0, 121.0) for k in range(1, 6))
    air = pink(n, rng)
    return air / air.std() + 0.5 * tone / tone.std()


def motor(n: int, rng: Rng) -> np.ndarray:
    """Servos that run up, hold and stop, every two seconds."""
    t = np.arange(n) / RATE
    phase = t % 2.0
    pitch = np.clip(phase / 0.4, 0, 1) * np.where(phase < 1.2, 1, np.clip((1.6 - phase) / 0.4, 0, 1))
    turning = 2 * np.pi * np.cumsum(90 + 500 * pitch) / RATE
    return pitch * (sum(np.sin(k * turning) / k for k in (1, 2, 3, 6)) + 0.3 * rng.standard_normal(n))


def music(n: int, rng: Rng) -> np.ndarray:
    """Plucked chords with a melody over them, two notes a second."""
    out, step = np.zeros(n), RATE // 2
    for number, begin in enumerate(range(0, n, step)):
        chord = np.array([0, 4, 7]) + (0, 5, 7, 5)[number // 4 % 4]
        for note in [*(chord - 12), rng.choice(chord) + 12]:
            t = np.arange(min(2 * step, n - begin)) / RATE
            tone = sum(np.sin(2 * np.pi * k * 261.6 * 2 ** (note / 12) * t) / k**1.5 for k in range(1, 7))
            out[begin : begin + t.size] += tone * np.exp(-3 * t)
    return out


def bursts(n: int, rng: Rng, every: float, shape: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`shape` of the time (s) since each event, about `every` seconds apart."""
    out, at = np.zeros(n), 0.3
    while (begin := int(at * RATE)) < n:
        t = np.arange(min(RATE, n - begin)) / RATE
        out[begin : begin + t.size] += shape(t) * rng.uniform(0.5, 1)
        at += every * rng.uniform(0.6, 1.4)
    return out


def claps(n: int, rng: Rng) -> np.ndarray:
    def clap(t: np.ndarray) -> np.ndarray:
        return band(rng.standard_normal(t.size), 700, 4000) * (np.exp(-90 * t) + 0.2 * np.exp(-12 * t))

    return bursts(n, rng, 0.7, clap)


def knocks(n: int, rng: Rng) -> np.ndarray:
    def knock(t: np.ndarray) -> np.ndarray:
        return (np.sin(2 * np.pi * 180 * t) + band(rng.standard_normal(t.size), 100, 1500)) * np.exp(-40 * t)

    return bursts(n, rng, 0.4, knock)


def coughs(n: int, rng: Rng) -> np.ndarray:
    """A burst of air through an open mouth, a second of it that is voiced at its end; two in a row."""

    def cough(t: np.ndarray) -> np.ndarray:
        out = np.zeros(t.size)
        for begin in (0.0, 0.4):
            s = np.clip(t - begin, 0, None)
            air = band(rng.standard_normal(t.size), 400, 3500) * np.exp(-14 * s) * (s > 0)
            buzz = band(np.sign(np.sin(2 * np.pi * 130 * t)), 300, 1500) * np.exp(-((s - 0.16) ** 2) / 0.002) * (s > 0)
            out += air + 0.3 * buzz
        return out

    return bursts(n, rng, 2.0, cough)


def band(noise: np.ndarray, low: float, high: float) -> np.ndarray:
    spectrum = np.fft.rfft(noise)
    f = np.fft.rfftfreq(noise.size, 1 / RATE)
    return np.fft.irfft(spectrum * (f > low) * (f < high), noise.size)


NOISES = {"white noise": white, "pink noise": pink, "fan": fan}
SOUNDS = {**NOISES, "motors": motor, "music": music, "claps": claps, "knocks": knocks, "coughs": coughs}


def sound(name: str, seconds: float, level: float, seed: int = 0) -> np.ndarray:
    """float32 [n] with an RMS of `level` dBFS, clipped as a microphone clips."""
    pcm = SOUNDS[name](int(seconds * RATE), np.random.default_rng(seed))
    return np.clip(pcm / pcm.std() * 10 ** (level / 20), -1, 1).astype(np.float32)
