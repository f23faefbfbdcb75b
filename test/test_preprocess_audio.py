"""Audio preprocessing against transformers' WhisperFeatureExtractor, and decoding through real files."""

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torchvision_shim  # noqa: F401  (before transformers)
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import Qwen3OmniMoeProcessor, WhisperFeatureExtractor

from offline import preprocess_audio
from omni_ros.errors import InputError
from omni_ros.preprocess.audio import HOP, N_FFT, load_audio, load_features, log_mel, mel_filters

EXTRACTOR = WhisperFeatureExtractor(feature_size=128)
SECOND = 16000


def signal(kind: str, n: int) -> np.ndarray:
    t = np.arange(n) / SECOND
    return {
        "noise": 0.1 * np.random.default_rng(n).standard_normal(n),
        "tone": 0.8 * np.sin(2 * np.pi * 440 * t),
        "voice": np.sin(2 * np.pi * 150 * t) * np.exp(-50 * (t % 1 - 0.5) ** 2),
        "whisper": 1e-5 * np.random.default_rng(n).standard_normal(n),
        "silence": np.zeros(n),
    }[kind].astype(np.float32)


def expected(clips: list[np.ndarray]) -> list[np.ndarray]:
    """As Qwen3OmniMoeProcessor calls it, and as the model then keeps only the frames under the mask."""
    out = EXTRACTOR(clips, **Qwen3OmniMoeProcessor.audio_kwargs)
    return [mel[:, mask.astype(bool)] for mel, mask in zip(out["input_features"], out["attention_mask"])]


@pytest.mark.parametrize("kind", ["noise", "tone", "voice", "whisper", "silence"])
@pytest.mark.parametrize("n", [201, 319, 320, 399, 400, 401, 3333, SECOND, SECOND + 1, 8 * SECOND + 77, 31 * SECOND + 13])
def test_log_mel_equals_transformers(kind, n):
    """transformers has two implementations, numpy in float64 and torch in float32; ours is the former.

    They differ from each other by up to 1e-4 where a bin is 80 dB below the loudest: float32 rounding.
    """
    pcm = signal(kind, n)
    mel = log_mel(pcm)
    assert mel.dtype == np.float32 and mel.shape == (128, n // 160)
    reference = EXTRACTOR._np_extract_fbank_features(pcm[None], "cpu")[0][:, : n // 160]
    np.testing.assert_allclose(mel, reference, atol=1e-6, rtol=0)
    np.testing.assert_allclose(mel, expected([pcm])[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("lengths", [[1000, 5000], [SECOND, 8001, 8000, 300], [SECOND + 1, SECOND], [16160, 16159, 16000]])
def test_each_clip_of_a_request_equals_transformers_alone(lengths):
    """transformers is asked one clip at a time: in a batch it pads the shorter clips first, which changes their ends."""
    clips = [signal("noise", n) for n in lengths]
    alone = [expected([clip])[0] for clip in clips]
    for clip, want in zip(clips, alone):
        np.testing.assert_allclose(log_mel(clip), want, atol=1e-4, rtol=0)
    together = expected(clips)
    shorter = [i for i, n in enumerate(lengths) if n < max(lengths)]
    assert any(together[i].shape != alone[i].shape or not np.array_equal(together[i], alone[i]) for i in shorter)


def test_mel_filters_equal_transformers():
    np.testing.assert_allclose(mel_filters(), EXTRACTOR.mel_filters, atol=1e-12)


@pytest.mark.parametrize(
    "pcm,message",
    [
        (np.zeros(0, np.float32), "empty"),
        (np.zeros(200, np.float32), "too short"),
        (np.full(400, np.nan, np.float32), "not finite"),
        (np.full(400, np.inf), "not finite"),
        (np.full(400, -np.inf), "not finite"),
        (np.full(400, 1e30), "full scale is 1"),
        (np.full(400, -20000, np.float32), "full scale is 1"),
        (np.zeros((400, 2), np.float32), "mono"),
        (np.zeros(400, np.int32), "int16 or float"),
    ],
)
def test_unusable_samples(pcm, message):
    with pytest.raises(InputError, match=message):
        log_mel(pcm)


def write(path: Path, codec: str, rate: int, layout: str = "stereo", seconds: float = 1.5) -> None:
    """A 440 Hz tone of amplitude 0.5 in every channel."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)
        channels = 2 if layout == "stereo" else 1
        frame = av.AudioFrame.from_ndarray(np.tile(tone.astype(np.float32), (channels, 1)), format="fltp", layout=layout)
        frame.sample_rate = rate
        for part in av.AudioResampler(format=stream.format, layout=layout, rate=rate).resample(frame):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    "name,codec,rate",
    [
        ("a.wav", "pcm_s16le", 44100),
        ("b.flac", "flac", 48000),
        ("c.mp3", "libmp3lame", 44100),
        ("d.ogg", "libopus", 48000),
        ("e.m4a", "aac", 44100),
        ("f.wav", "pcm_f32le", 8000),
        ("g.wav", "pcm_u8", 16000),
    ],
)
@pytest.mark.parametrize("layout", ["mono", "stereo"])
def test_every_format_decodes_to_the_same_tone(tmp_path, name, codec, rate, layout):
    write(tmp_path / name, codec, rate, layout)
    pcm = load_audio(tmp_path / name)
    assert pcm.dtype == np.float32 and abs(len(pcm) - 1.5 * SECOND) < 0.05 * SECOND
    middle = pcm[SECOND // 4 : SECOND + SECOND // 4]
    spectrum = np.abs(np.fft.rfft(middle))
    assert spectrum.argmax() == 440  # one second: bins are hertz
    assert 2 * spectrum[440] / len(middle) == pytest.approx(0.5, rel=0.1)


def test_unusable_files_are_named(tmp_path):
    write(tmp_path / "whole.flac", "flac", 16000)
    (tmp_path / "cut.flac").write_bytes((tmp_path / "whole.flac").read_bytes()[:2000])
    (tmp_path / "text.mp3").write_text("not sound")
    (tmp_path / "empty.wav").write_bytes(b"")
    write(tmp_path / "header_only.wav", "pcm_s16le", 16000, seconds=0.01)
    (tmp_path / "header_only.wav").write_bytes((tmp_path / "header_only.wav").read_bytes()[:44])
    for name in ("cut.flac", "text.mp3", "empty.wav", "header_only.wav", "missing.wav"):
        with pytest.raises(InputError, match=name):
            load_audio(tmp_path / name)


def test_command_writes_what_requests_load(tmp_path):
    write(tmp_path / "speech.mp3", "libmp3lame", 44100)
    target = tmp_path / "new folder" / "speech.safetensors"
    command = [sys.executable, "-m", "offline.preprocess_audio", "--input", tmp_path / "speech.mp3", "--output", target]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    pcm = load_audio(tmp_path / "speech.mp3")
    np.testing.assert_array_equal(load_features(target), log_mel(pcm))
    with safe_open(target, "numpy") as file:
        metadata = file.metadata()
    assert metadata == {"sample_rate": "16000", "seconds": f"{len(pcm) / SECOND:.3f}", "source": "speech.mp3"}
    assert [p.name for p in target.parent.iterdir()] == [target.name]


@pytest.mark.parametrize(
    "source,target,message",
    [
        ("missing.wav", "out.safetensors", "missing.wav"),
        ("good.wav", "out.bin", ".safetensors"),
        ("short.wav", "out.safetensors", "short.wav: audio of 160 samples is too short"),
    ],
)
def test_command_fails_with_one_sentence(tmp_path, capsys, source, target, message):
    write(tmp_path / "good.wav", "pcm_s16le", 16000)
    write(tmp_path / "short.wav", "pcm_s16le", 16000, seconds=0.01)
    assert preprocess_audio.main(["--input", str(tmp_path / source), "--output", str(tmp_path / target)]) == 1
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not list(tmp_path.glob("out*"))


def test_features_that_are_not(tmp_path):
    save_file({"input_features": np.zeros((80, 5), np.float32)}, tmp_path / "bins.safetensors")
    save_file({"input_features": np.full((128, 5), np.nan, np.float32)}, tmp_path / "nan.safetensors")
    save_file({"weights": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    for name in ("bins", "nan", "other", "junk", "missing"):
        with pytest.raises(InputError, match=name):
            load_features(tmp_path / f"{name}.safetensors")


def test_a_growing_clip_keeps_its_first_frames():
    """To the last bit, given the samples that the last of them looks ahead and nothing louder."""
    pcm = np.random.default_rng(0).uniform(-0.1, 0.1, 20 * 16000).astype(np.float32)
    pcm[5000] = 1.0
    whole = log_mel(pcm)
    look_ahead = N_FFT // 2 - HOP
    for frames in (800, 1600):
        part = log_mel(pcm[: frames * HOP + look_ahead])
        np.testing.assert_array_equal(part, whole[:, :frames])
        one_less = log_mel(pcm[: frames * HOP + look_ahead - 1])
        assert not np.array_equal(one_less, part)
        np.testing.assert_array_equal(one_less[:, :-1], part[:, :-1])
