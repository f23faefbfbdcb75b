"""Calibration data: found or fetched, turned into the model's inputs as the runtime does, chained Thinker -> Talker."""

import io
from pathlib import Path

import numpy as np
import oracle
import pytest
from calibration_samples import write_samples
from PIL import Image

from offline.checkpoints.checkpoint import Checkpoint
from offline.quantization import calibration
from offline.quantization.calibration import Prompts, Sample, download, find_samples
from omni_ros.errors import InputError
from omni_ros.preprocess.audio import load_audio
from omni_ros.preprocess.image import load_image

TWO = {"audio": 2, "image": 2, "text": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_samples(tmp_path / "samples")


def test_inputs_equal_transformers_processor(folder: Path, checkpoints: dict[str, Path]) -> None:
    reference, prompts = oracle.load(checkpoints["plain"]), Prompts(Checkpoint(checkpoints["plain"]))
    for sample in find_samples(folder, TWO)[0]:
        media = {"audio": load_audio, "image": load_image}.get(sample.kind, lambda _: None)(sample.path)
        content = [{"type": sample.kind, sample.kind: media}] if media is not None else []
        content += [{"type": "text", "text": sample.text}] if sample.text else []
        expected = reference.inputs([{"role": "user", "content": content}])
        found = prompts(sample)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            # one grey level: ours is the Pillow form of the processor, which torchvision's rounds differently
            atol = 0.016 if name == "pixel_values" else 1e-5
            np.testing.assert_allclose(found[name], value.numpy(), atol=atol, err_msg=f"{sample.path} {name}")


def test_fewer_samples_than_asked_for_are_counted(folder: Path) -> None:
    """In numbers, kind by kind; a folder that has enough is not mentioned."""
    samples, warnings = find_samples(folder, {"audio": 5, "image": 2, "text": 1})
    assert len(samples) == 2 + 2 + 1
    assert [w for w in warnings if "were asked for" in w] == [f"5 audio samples were asked for, {folder / 'audio'} has 2"]


def test_media_are_cut_to_size(folder: Path, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "MAX_SECONDS", 1)
    monkeypatch.setattr(calibration, "MAX_PIXELS", 64 * 64)
    monkeypatch.setattr(calibration, "MAX_TEXT_TOKENS", 5)
    prompts = Prompts(Checkpoint(checkpoints["plain"]))
    assert prompts(Sample("audio", folder / "audio/long.wav", ""))["input_features"].shape == (1, 128, 100)
    assert prompts(Sample("image", folder / "images/wide.png", ""))["image_grid_thw"].prod() * 256 <= 64 * 64
    short, long = (prompts(Sample("text", folder, "word " * n))["input_ids"].size for n in (100, 1000))
    assert short == long


def test_samples_are_drawn_by_seed(folder: Path) -> None:
    counts = {"audio": 1, "image": 0, "text": 1}
    first, warnings = find_samples(folder, counts, seed=1)
    assert [s.kind for s in first] == ["audio", "text"] and first == find_samples(folder, counts, seed=1)[0]
    assert {tuple(find_samples(folder, counts, seed)[0]) for seed in range(20)} > {tuple(first)}
    assert [w.split(":")[0] for w in warnings] == [
        "1 audio samples instead of 150",
        "0 image samples instead of 150",
        "1 text samples instead of 200",
    ]
    assert all("lower quality" in w for w in warnings)


def test_folder_errors_name_the_file_and_the_fix(folder: Path, checkpoints: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="at least one"):
        find_samples(folder, dict.fromkeys(TWO, 0))
    with pytest.raises(InputError, match=r"nowhere/audio: no audio sample \(\.wav .* --talker_num_audio 0"):
        find_samples(folder / "nowhere", TWO)
    (folder / "text" / "empty.txt").write_text(" \n")
    with pytest.raises(InputError, match="empty.txt: is empty"):
        find_samples(folder, {**TWO, "text": 9})
    prompts = Prompts(Checkpoint(checkpoints["plain"]))
    (folder / "audio" / "broken.wav").write_bytes(b"RIFF")
    for sample, message in (
        (Sample("audio", folder / "audio/broken.wav", ""), "broken.wav: not a readable audio"),
        (Sample("image", folder / "text/a.txt", ""), "a.txt: not a readable image"),
        (Sample("text", folder / "text/a.txt", "<|audio_pad|>"), "a.txt: .* placeholder"),
    ):
        with pytest.raises(InputError, match=message):
            prompts(sample)


def test_public_datasets_become_a_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    png = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(png, "png")
    wav = (folder / "audio" / "short.wav").read_bytes()
    rows = {
        "openslr/librispeech_asr": datasets.Dataset.from_dict({"audio": [{"path": "a.wav", "bytes": wav}] * 3}),
        "MMMU/MMMU": datasets.Dataset.from_dict(
            {"image_1": [{"path": None, "bytes": png.getvalue()}] * 3, "question": ["<image 1> What?", "", "b"]},
            datasets.Features({"image_1": datasets.Image(), "question": datasets.Value("string")}),
        ),
        "abisee/cnn_dailymail": datasets.Dataset.from_dict({"article": ["News.", "More news."]}),
    }
    asked = []

    def load_dataset(name: str, config: str, split: str, streaming: bool) -> object:
        asked.append((name, config, streaming))
        if name == "MMMU/MMMU" and streaming:
            raise ConnectionError("no network")  # the cache must serve then
        return rows[name].to_iterable_dataset() if streaming else rows[name]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    target = tmp_path / "fetched"
    download(target, {"audio": 2, "image": 5, "text": 2})
    samples, _ = find_samples(target, {"audio": 2, "image": 5, "text": 2})
    assert [(s.kind, s.text) for s in samples] == [
        ("audio", ""),
        ("audio", ""),
        ("image", "What?"),
        ("image", "Describe this image."),
        ("image", "b"),
        ("image", "What?"),
        ("image", "Describe this image."),
        ("text", "News."),
        ("text", "More news."),
    ]
    assert samples[0].path.read_bytes() == wav and samples[2].path.read_bytes() == png.getvalue()
    assert ("MMMU/MMMU", calibration.MMMU_SUBJECTS[1], False) in asked  # a second subject when one is used up
    rows.clear()
    with pytest.raises(InputError, match="librispeech_asr can neither be reached nor is it cached .*--calibration_dir"):
        download(tmp_path / "none", TWO)
