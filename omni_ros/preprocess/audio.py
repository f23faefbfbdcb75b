"""Sound -> log-mel features, equal to transformers' `WhisperFeatureExtractor` as `Qwen3OmniMoeProcessor` calls it on one clip."""

import functools
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from safetensors import safe_open

from omni_ros.errors import InputError, PromptTooLongError
from omni_ros.preprocess.media import AUDIO_CODECS, check_codec, open_container, open_regular

SAMPLE_RATE = 16000
HOP = 160  # one mel frame per 10 ms
N_FFT = 400
MEL_BINS = 128
MIN_SAMPLES = N_FFT // 2 + 1  # the first frame mirrors this much of the signal around its start
MIN_RATE, MAX_RATE = 8000, 384000  # from telephones to the fastest sound cards; anything else is a damaged header
MAX_CHANNELS = 64  # FFmpeg's PCM decoders take no more
MAX_SECONDS = 2400.0  # 40 minutes, the longest sound the model was made for
MAX_LEVEL = 100.0  # full scale is 1: samples of this size are integers that nobody scaled, or no sound
BLOCK = 800  # frames: 8 s at a time, so that the memory of long recordings stays small


def load_audio(path: str | Path, max_seconds: float = MAX_SECONDS) -> np.ndarray:
    """Decode an audio file (or the sound of a video) to float32 [n]: the mean of its channels, at 16 kHz.

    Raises InputError naming the file when it cannot be decoded, holds no sound or samples far out of range, has more
    than 64 channels or a rate outside 8..384 kHz; PromptTooLongError as soon as `max_seconds` are exceeded, so that
    what a file claims about its length does not matter.
    """
    most = int(max_seconds * SAMPLE_RATE)
    pcm = bytearray()  # of float32; grows in place
    with open_container(path, "audio") as container:
        for block in _decode(path, container):
            pcm += block.tobytes()
            if len(pcm) > 4 * most:
                raise PromptTooLongError(f"{path}: is longer than {max_seconds:g} s, more sound does not fit into the prompt")
    if not pcm:
        raise InputError(f"{path}: holds no sound")
    samples = np.frombuffer(pcm, np.float32)
    try:
        return _to_float(samples)
    except InputError as e:
        raise InputError(f"{path}: {e}") from e


def _decode(path: str | Path, container: av.container.InputContainer) -> Iterator[np.ndarray]:
    """The first audio stream piece by piece: float32 [n] at 16 kHz, mono."""
    if not container.streams.audio:
        raise InputError(f"{path}: has no audio stream")
    stream = container.streams.audio[0]
    context = stream.codec_context
    check_codec(path, context, AUDIO_CODECS)
    if not MIN_RATE <= context.sample_rate <= MAX_RATE:
        raise InputError(f"{path}: a sample rate of {context.sample_rate} Hz is outside {MIN_RATE}..{MAX_RATE}")
    if context.channels > MAX_CHANNELS:
        raise InputError(f"{path}: has {context.channels} channels, at most {MAX_CHANNELS} can be mixed")
    # Packed samples ("flt"): PyAV counts the planes of a planar frame up to a zero pointer, which FFmpeg does not write
    # behind the eighth. The mean of the channels, since FFmpeg's own stereo downmix is 3 dB louder and can exceed 1.
    resampler = av.AudioResampler(format="flt", rate=SAMPLE_RATE)

    def mixed(frame: av.AudioFrame | None) -> Iterator[np.ndarray]:
        for packed in resampler.resample(frame):
            if packed is not None and packed.samples:  # it answers the end with None when it had nothing to do
                yield packed.to_ndarray().reshape(packed.samples, -1).mean(axis=1, dtype=np.float32)

    for frame in container.decode(stream):
        yield from mixed(frame)
    yield from mixed(None)


def _to_float(pcm: np.ndarray) -> np.ndarray:
    if pcm.ndim != 1:
        raise InputError(f"audio must be mono [samples], got shape {list(pcm.shape)}")
    if pcm.dtype == np.int16:
        return pcm.astype(np.float32) / 32768
    if pcm.dtype.kind != "f":
        raise InputError(f"audio must be int16 or float samples, got {pcm.dtype}")
    peak = max(pcm.max(), -pcm.min()) if pcm.size else 0.0
    if not np.isfinite(peak):
        raise InputError("audio has samples that are not finite numbers (NaN or infinity)")
    if peak > MAX_LEVEL:
        raise InputError(f"audio has samples up to {peak:.3g}, but full scale is 1: scale them to -1..1")
    return pcm.astype(np.float32, copy=False)


def log_mel(pcm: np.ndarray) -> np.ndarray:
    """int16, or float of -1..1, [n] mono 16 kHz -> log-mel float32 [128, n // 160].

    Each clip by itself. transformers' processor pads the clips of one request to the longest of them first, which
    gives the shorter ones a last, partial frame and silence to mirror at their end: there a clip's features depend on
    its neighbours, here they do not. Compare with transformers one clip at a time.

    Raises InputError for audio that is empty, shorter than 201 samples (12.6 ms), not finite or far out of range.
    """
    pcm = _to_float(pcm)
    if pcm.size < MIN_SAMPLES:
        raise InputError(
            f"audio of {pcm.size} samples is {'empty' if pcm.size == 0 else 'too short'}: "
            f"at least {MIN_SAMPLES} at {SAMPLE_RATE} Hz are needed"
        )
    return whisper_mel(pcm)


def whisper_mel(pcm: np.ndarray, bins: int = MEL_BINS) -> np.ndarray:
    """Whisper's log-mel without a look at the samples: float [n], n > 200 -> float32 [bins, n // 160]."""
    centred = np.pad(pcm, N_FFT // 2, mode="reflect")
    mel = np.empty((bins, pcm.size // HOP), np.float32)  # whisper drops the last frame, whose centre is the end of the clip
    for start in range(0, mel.shape[1], BLOCK):
        stop = min(start + BLOCK, mel.shape[1])
        samples = centred[start * HOP : (stop - 1) * HOP + N_FFT].astype(np.float32, copy=False)
        mel[:, start:stop] = _log_mel_block(samples.tobytes(), bins)
    np.maximum(mel, mel.max() - 8, out=mel)  # 80 dB below the loudest
    return (mel + 4) / 4


@functools.lru_cache(maxsize=8)  # what somebody says is asked for again and again while it becomes longer
def _log_mel_block(samples: bytes, bins: int) -> np.ndarray:
    """float32 [400 + 160 (n - 1)] -> float32 [bins, n], whatever else is in the clip. Not to be written into."""
    windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(samples, np.float32), N_FFT)[::HOP]  # [n, 400]
    hann = np.hanning(N_FFT + 1)[:-1]  # periodic; float64, as the transform below
    power = np.abs(np.fft.rfft(windows * hann)) ** 2  # [n, 201]
    mel = (mel_filters(bins).T @ power.T).astype(np.float32)
    return np.log10(np.maximum(mel, 1e-10, out=mel), out=mel)


@functools.cache
def mel_filters(bins: int = MEL_BINS) -> np.ndarray:
    """Slaney-style triangular filters float64 [201, bins] for 0..8000 Hz, each of equal area (librosa's default)."""
    edges = _mel_to_hertz(np.linspace(0, _hertz_to_mel(SAMPLE_RATE / 2), bins + 2))
    hertz = np.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1)[:, None]
    rising = (hertz - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - hertz) / np.diff(edges)[1:]
    return np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))


def _hertz_to_mel(hertz: float) -> float:
    """Slaney's scale above 1000 Hz, where it is logarithmic: 15 mel there, then 27 per factor of 6.4."""
    return 15 + np.log(hertz / 1000) * 27 / np.log(6.4)


def _mel_to_hertz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, 200 / 3 * mel, 1000 * np.exp(np.log(6.4) / 27 * (mel - 15)))


def load_features(path: str | Path, max_seconds: float = MAX_SECONDS) -> np.ndarray:
    """Mel features written by `offline.preprocess_audio`: float32 [128, frames].

    Raises InputError naming the file when it is not such a file, PromptTooLongError when it holds more than `max_seconds`.
    """
    open_regular(path).close()
    try:
        with safe_open(str(path), framework="numpy") as file:
            shape = file.get_slice("input_features").get_shape()
            if len(shape) == 2 and shape[1] * HOP > max_seconds * SAMPLE_RATE:
                raise PromptTooLongError(f"{path}: is longer than {max_seconds:g} s, more sound does not fit into the prompt")
            features = file.get_tensor("input_features")
    except InputError:
        raise
    except Exception as e:  # noqa: BLE001 - safetensors raises more than its own error on a damaged file
        raise InputError(f"{path}: not a file of `python -m offline.preprocess_audio` ({e})") from e
    if features.dtype != np.float32 or features.ndim != 2 or features.shape[0] != MEL_BINS or features.shape[1] == 0:
        raise InputError(
            f"{path}: input_features must be float32 [{MEL_BINS}, frames], got {features.dtype} {list(features.shape)}"
        )
    if not np.isfinite(features).all():
        raise InputError(f"{path}: input_features has values that are not finite")
    return features
