"""Calibration samples: what a quantised model is shown so that its activation scales fit real use.

A calibration folder holds any of

    audio/    .wav .flac .mp3 .ogg .m4a   questions, spoken
    images/   .jpg .jpeg .png .webp       things a camera sees
    text/     .txt                        one prompt per file

A .txt file of the same name beside a recording or picture is the text of that prompt (default for pictures: "Describe
this image."). Without a folder, LibriSpeech, MMMU and CNN/DailyMail are fetched into the same layout. Samples pass the
front ends of the runtime itself, and then whole turns, so that both models see what they will see on the robot.
"""

import dataclasses
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from omni_ros.errors import InputError
from omni_ros.pipeline.tokenizer import ChatTokenizer
from omni_ros.preprocess.audio import SAMPLE_RATE, load_audio, log_mel
from omni_ros.preprocess.image import VisionConfig, image_patches, load_image

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.processor_files import copy_processor_files

COUNTS = {"audio": 150, "image": 150, "text": 200}  # samples of a full calibration
FOLDERS = {"audio": "audio", "image": "images", "text": "text"}
SUFFIXES = {"audio": (".wav", ".flac", ".mp3", ".ogg", ".m4a"), "image": (".jpg", ".jpeg", ".png", ".webp"), "text": (".txt",)}
DATASETS = {"audio": "openslr/librispeech_asr", "image": "MMMU/MMMU", "text": "abisee/cnn_dailymail"}
MMMU_SUBJECTS = ("Art", "Biology", "Geography", "Design", "Mechanical_Engineering", "Clinical_Medicine")  # 30 rows each
MAX_SECONDS = 30  # longer recordings are cut,
MAX_PIXELS = 1024 * 1024  # larger pictures scaled down,
MAX_TEXT_TOKENS = 900  # and longer texts cut, to fit the runtime's default limit of 1024 rows


@dataclasses.dataclass(frozen=True)
class Sample:
    kind: str  # audio | image | text
    path: Path
    text: str


def find_samples(directory: Path, counts: dict[str, int], seed: int = 0) -> tuple[list[Sample], list[str]]:
    """The samples of a calibration folder, and warnings. Of a folder with more files than `counts` (kind -> number),
    `seed` draws that many.

    Raises InputError when a kind that is asked for has no file, or a text is empty.
    """
    samples, warnings = [], []
    for kind, count in counts.items():
        folder = directory / FOLDERS[kind]
        files = sorted(p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES[kind])
        if count and not files:
            raise InputError(
                f"{folder}: no {kind} sample ({' '.join(SUFFIXES[kind])}); add some, or ask for none with --talker_num_{kind} 0"
            )
        found = len(files)
        if len(files) > count:
            files = sorted(random.Random(seed).sample(files, count))
        samples += [Sample(kind, path, _text(kind, path)) for path in files]
        if found < count:
            warnings.append(f"{count} {kind} samples were asked for, {folder} has {found}")
        if len(files) < COUNTS[kind]:
            warnings.append(
                f"{len(files)} {kind} samples instead of {COUNTS[kind]}: activation scales may be too "
                f"small for {kind} in real use, and experts stay unreached; expect lower quality"
            )
    if not samples:
        raise InputError("no calibration sample at all: ask for at least one audio, image or text")
    return samples, warnings


def _text(kind: str, path: Path) -> str:
    file = path if kind == "text" else path.with_suffix(".txt")
    if not file.is_file():
        return "Describe this image." if kind == "image" else ""
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{file}: not readable as UTF-8 text ({e})") from e
    if not text:
        raise InputError(f"{file}: is empty; write a prompt in it or remove it")
    return text


class Prompts:
    """Samples -> the inputs of transformers' Qwen3OmniMoeForConditionalGeneration.generate, as numpy arrays."""

    def __init__(self, checkpoint: Checkpoint):
        with tempfile.TemporaryDirectory() as folder:
            copy_processor_files(checkpoint.directory, Path(folder))
            self.tokenizer = ChatTokenizer(Path(folder))
        vision = VisionConfig.from_files(checkpoint.directory)
        self.vision = dataclasses.replace(vision, image_max_pixels=min(vision.image_max_pixels, MAX_PIXELS))
        thinker = checkpoint.config["thinker_config"]
        self.placeholder = {kind: thinker[f"{kind}_token_id"] for kind in ("audio", "image")}
        self.chunk = 2 * thinker["audio_config"].get("n_window", 50)  # mel frames that the encoder convolves together

    def __call__(self, sample: Sample) -> dict[str, np.ndarray]:
        """Raises InputError naming the file when it cannot be used."""
        media, rows = {}, 0
        try:
            if sample.kind == "audio":
                mel = log_mel(load_audio(sample.path)[: MAX_SECONDS * SAMPLE_RATE])  # [128, frames]
                full, rest = divmod(mel.shape[1], self.chunk)
                rows = full * -(-self.chunk // 8) + -(-rest // 8)  # three convolutions of stride 2
                media = {"input_features": mel[None], "feature_attention_mask": np.ones((1, mel.shape[1]), np.int64)}
            elif sample.kind == "image":
                patches, grid = image_patches(load_image(sample.path), self.vision)
                rows = int(grid.prod()) // self.vision.merge_size**2
                media = {"pixel_values": patches, "image_grid_thw": grid[None]}
        except InputError as e:
            raise e if str(sample.path) in str(e) else InputError(f"{sample.path}: {e}") from e
        parts = [{"type": sample.kind}] if media else []
        if sample.text:
            parts.append({"type": "text", "text": self._shorten(sample.text)})
        ids = self.tokenizer.encode([{"role": "user", "content": parts}])
        is_media = np.isin(ids, list(self.placeholder.values()))
        if is_media.sum() != bool(media):
            raise InputError(f"{sample.path}: the prompt text holds a media placeholder token; remove it")
        ids = np.repeat(ids, np.where(is_media, rows, 1))
        return {"input_ids": ids[None], "attention_mask": np.ones((1, len(ids)), np.int64), **media}

    def _shorten(self, text: str) -> str:
        offsets = self.tokenizer.tokenizer.encode(text, add_special_tokens=False).offsets
        return text if len(offsets) <= MAX_TEXT_TOKENS else text[: offsets[MAX_TEXT_TOKENS][0]]


def download(directory: Path, counts: dict[str, int]) -> None:
    """Write `counts` samples of the public datasets into `directory` in the layout above, files as they are published.

    Raises InputError when a dataset can neither be reached nor is in the cache of the `datasets` library.
    """
    fetch = {"audio": _librispeech, "image": _mmmu, "text": _cnn_dailymail}
    for kind, count in counts.items():
        folder = directory / FOLDERS[kind]
        folder.mkdir(parents=True)
        fix = f"give your own samples with --calibration_dir, or ask for none with --talker_num_{kind} 0"
        try:
            rows = fetch[kind]() if count else iter(())
            for i, (suffix, content, text) in zip(range(count), rows):
                if suffix:
                    (folder / f"{i:04d}{suffix}").write_bytes(content)
                if text:
                    (folder / f"{i:04d}.txt").write_text(text, encoding="utf-8")
        except ImportError as e:
            raise InputError(f"{DATASETS[kind]} needs the `datasets` library ({e}); install omni_ros[quantize], {fix}") from e
        except Exception as e:  # noqa: BLE001 - network, hub and parquet errors share no base class
            raise InputError(f"{DATASETS[kind]} can neither be reached nor is it cached ({type(e).__name__}: {e}); {fix}") from e


def _librispeech() -> Iterator[tuple[str, bytes, str]]:
    from datasets import Audio

    for row in _rows(DATASETS["audio"], "clean", "validation", {"audio": Audio(decode=False)}):
        yield Path(row["audio"]["path"]).suffix or ".flac", row["audio"]["bytes"], ""


def _mmmu() -> Iterator[tuple[str, bytes, str]]:
    from datasets import Image

    for subject in MMMU_SUBJECTS:
        for row in _rows(DATASETS["image"], subject, "validation", {"image_1": Image(decode=False)}):
            yield ".png", row["image_1"]["bytes"], row["question"].replace("<image 1>", "").strip()


def _cnn_dailymail() -> Iterator[tuple[str, bytes, str]]:
    for row in _rows(DATASETS["text"], "3.0.0", "validation", {}):
        yield "", b"", row["article"]


def _rows(name: str, config: str, split: str, columns: dict) -> Iterator[dict]:
    """Rows of a dataset, streamed from the hub (nothing but these rows is fetched), else from the local cache."""
    from datasets import load_dataset

    def opened(streaming: bool):  # -> Dataset or IterableDataset
        dataset = load_dataset(name, config, split=split, streaming=streaming)
        for column, feature in columns.items():
            dataset = dataset.cast_column(column, feature)
        return dataset

    try:
        dataset = opened(streaming=True)
        next(iter(dataset))
    except Exception:  # noqa: BLE001 - as in download(), which reports what is wrong with the cache too
        dataset = opened(streaming=False)
    yield from dataset
