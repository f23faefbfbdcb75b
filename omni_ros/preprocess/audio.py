"""Sound -> log-mel features, equal to transformers' `WhisperFeatureExtractor` as `Qwen3OmniMoeProcessor` calls it."""

import functools
from pathlib import Path

import av
import numpy as np
from safetensors import SafetensorError, safe_open

from omni_ros.errors import InputError

SAMPLE_RATE = 16000
HOP = 160  # one mel frame per 10 ms
N_FFT = 400
MEL_BINS = 128
MIN_SAMPLES = N_FFT // 2 + 1  # the first frame mirrors this much of the signal around its start
MAX_RATE = 768000  # beyond any sound card; more is a mistake in the message
FRAMES_PER_BLOCK = 3000  # 30 s at a time, so that the memory of long recordings stays small


def load_audio(path: str | Path) -> np.ndarray:
    """Decode any audio file (or the sound of a video) to float32 [n], mono, 16 kHz.

    Raises InputError naming the file when it cannot be decoded or holds no sound.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise InputError(f"{path}: has no audio stream")
            resampler = av.AudioResampler(format="fltp", rate=SAMPLE_RATE)
            frames = [f for decoded in container.decode(audio=0) for f in resampler.resample(decoded)]
            frames += resampler.resample(None)
    except (av.FFmpegError, OSError, ValueError) as e:
        raise InputError(f"{path}: not a readable audio file ({e})") from e
    # Mean of the channels; FFmpeg's own stereo downmix is 3 dB louder and can exceed 1.
    pcm = np.concatenate([f.to_ndarray().mean(axis=0) for f in frames]) if frames else np.zeros(0, np.float32)
    if pcm.size == 0:
        raise InputError(f"{path}: holds no sound")
    return pcm


def resample(pcm: np.ndarray, from_rate: int, to_rate: int = SAMPLE_RATE) -> np.ndarray:
    """int16 or float [n] mono at `from_rate` Hz -> float32 [n * to_rate / from_rate] in -1..1.

    Raises InputError for another dtype or shape, an impossible rate, or samples that are not numbers.
    """
    for rate in (from_rate, to_rate):
        if not 0 < rate <= MAX_RATE:
            raise InputError(f"sample rate {rate} Hz is not between 1 and {MAX_RATE}")
    pcm = _to_float(pcm)
    if from_rate == to_rate or pcm.size == 0:
        return pcm
    frame = av.AudioFrame.from_ndarray(pcm[None], format="fltp", layout="mono")
    frame.sample_rate = int(from_rate)
    resampler = av.AudioResampler(format="fltp", rate=int(to_rate))
    frames = resampler.resample(frame) + resampler.resample(None)
    return np.concatenate([f.to_ndarray()[0] for f in frames]) if frames else np.zeros(0, np.float32)


def _to_float(pcm: np.ndarray) -> np.ndarray:
    if pcm.ndim != 1:
        raise InputError(f"audio must be mono [samples], got shape {list(pcm.shape)}")
    if pcm.dtype == np.int16:
        return pcm.astype(np.float32) / 32768
    if pcm.dtype.kind != "f":
        raise InputError(f"audio must be int16 or float samples, got {pcm.dtype}")
    if not np.isfinite(pcm).all():
        raise InputError("audio has samples that are not finite numbers (NaN or infinity)")
    return pcm.astype(np.float32, copy=False)


def log_mel(pcm: np.ndarray) -> np.ndarray:
    """float32 [n] mono 16 kHz in -1..1 -> log-mel float32 [128, n // 160].

    Raises InputError for audio that is empty, shorter than 201 samples (12.6 ms), or not finite.
    """
    return log_mels([pcm])[0]


def log_mels(clips: list[np.ndarray]) -> list[np.ndarray]:
    """The clips of one request, as transformers batches them: each zero-padded to the longest before the transform.

    A clip that is not the longest thereby keeps its last, partial frame: [128, ceil(n / 160)].
    """
    clips = [_to_float(pcm) for pcm in clips]
    for pcm in clips:
        if pcm.size < MIN_SAMPLES:
            raise InputError(
                f"audio of {pcm.size} samples is {'empty' if pcm.size == 0 else 'too short'}: "
                f"at least {MIN_SAMPLES} at {SAMPLE_RATE} Hz are needed"
            )
    longest = max((pcm.size for pcm in clips), default=0)
    return [_log_mel(np.pad(pcm, (0, longest - pcm.size)), -(-pcm.size // HOP)) for pcm in clips]


def _log_mel(pcm: np.ndarray, frames: int) -> np.ndarray:
    """At most `frames` columns of pcm's log-mel; whisper drops the last frame, whose centre is the end of the clip."""
    centred = np.pad(pcm, N_FFT // 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(centred, N_FFT)[::HOP][:-1]  # [frames, 400]
    hann = np.hanning(N_FFT + 1)[:-1]  # periodic; float64, as the transform below
    mel = np.empty((MEL_BINS, len(windows)), np.float32)
    for start in range(0, len(windows), FRAMES_PER_BLOCK):
        block = slice(start, start + FRAMES_PER_BLOCK)
        power = np.abs(np.fft.rfft(windows[block] * hann)) ** 2  # [frames, 201]
        mel[:, block] = mel_filters().T @ power.T
    log = np.log10(np.maximum(mel, 1e-10))
    log = np.maximum(log, log.max() - 8)  # 80 dB below the loudest
    return (log[:, :frames] + 4) / 4


@functools.cache
def mel_filters() -> np.ndarray:
    """Slaney-style triangular filters float64 [201, 128] for 0..8000 Hz, each of equal area (librosa's default)."""
    edges = _mel_to_hertz(np.linspace(0, _hertz_to_mel(SAMPLE_RATE / 2), MEL_BINS + 2))
    bins = np.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - bins) / np.diff(edges)[1:]
    return np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))


def _hertz_to_mel(hertz: float) -> float:
    """Slaney's scale above 1000 Hz, where it is logarithmic: 15 mel there, then 27 per factor of 6.4."""
    return 15 + np.log(hertz / 1000) * 27 / np.log(6.4)


def _mel_to_hertz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, 200 / 3 * mel, 1000 * np.exp(np.log(6.4) / 27 * (mel - 15)))


def load_features(path: str | Path) -> np.ndarray:
    """Mel features written by `offline.preprocess_audio`: float32 [128, frames].

    Raises InputError naming the file when it is not such a file.
    """
    try:
        with safe_open(str(path), framework="numpy") as file:
            features = file.get_tensor("input_features")
    except (SafetensorError, OSError) as e:
        raise InputError(f"{path}: not a file of `python -m offline.preprocess_audio` ({e})") from e
    if features.dtype != np.float32 or features.ndim != 2 or features.shape[0] != MEL_BINS or features.shape[1] == 0:
        raise InputError(
            f"{path}: input_features must be float32 [{MEL_BINS}, frames], got {features.dtype} {list(features.shape)}"
        )
    if not np.isfinite(features).all():
        raise InputError(f"{path}: input_features has values that are not finite")
    return features
