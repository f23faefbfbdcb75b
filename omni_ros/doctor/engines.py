"""The node's parameters and its engines: every byte, every self-check, all six together, and whether their limits are enough."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from omni_ros.doctor.finding import FAILURE, OK, WARNING, Finding, Subject
from omni_ros.errors import EngineError, InputError, OmniError

if TYPE_CHECKING:
    from omni_ros.engines.config import EngineConfig
    from omni_ros.engines.engine import Engine

ROWS_PER_SECOND = 13  # of sound, in a prompt
PIXELS_PER_ROW = 1024  # of a picture
WORDS = 200  # rows for a system prompt, the question's own frame and a little history


def parameters(subject: Subject) -> Iterator[Finding]:
    from omni_ros.nodes.parameter_file import FileParameters

    try:
        read = FileParameters(subject.params_file)
    except InputError as error:
        yield _failure("parameters", error, "correct the file; config/omni.yaml has every parameter")
        return
    subject.values = {**read.values(), "use_sim_time": read.use_sim_time}
    if subject.engine_dir is None and read.values()["engine_dir"]:
        subject.engine_dir = Path(read.values()["engine_dir"]).expanduser()
    for text in read.unknown:
        yield Finding("parameters", WARNING, text, "remove it, or correct its name")
    if subject.params_file is not None and not read.unknown:
        yield Finding("parameters", OK, str(subject.params_file))


def files(subject: Subject) -> Iterator[Finding]:
    """Sizes, sidecars and checksums; how large the engines are and what runs them."""
    from omni_ros.engines.open import check_files
    from omni_ros.engines.verify import check_sums

    if subject.engine_dir is None:
        yield Finding("engines", OK, "not looked at: give their folder as --engine_dir, or a --params_file that names it")
        return
    for name, folder in _folders(subject):
        try:
            config = _config(folder)
            check_files(folder, config)
            check_sums(folder, config)
        except EngineError as error:
            yield _failure(f"engine {name}", error, "copy or build the engines again")
            continue
        subject.whole.add(name)
        subject.backends.add(config.backend)
        subject.engine_bytes += sum(config.files.values())
        if not config.checksums:
            text = f"{folder} has no checksums: damage would not be seen"
            yield Finding(f"engine {name}", WARNING, text, "build the engines again")
    if len(subject.whole) == len(list(_folders(subject))):
        text = (
            f"{len(subject.whole)} in {subject.engine_dir}, {subject.engine_bytes / 1e9:.2f} GB for {', '.join(subject.backends)}"
        )
        yield Finding("engines", OK, f"{text}: every byte is as it was built")


def answers(subject: Subject) -> Iterator[Finding]:
    """Open them as the node does, each with its self-check, and put them together."""
    from omni_ros.engines.open import open_engine
    from omni_ros.pipeline.pipeline import Pipeline

    if subject.engine_dir is None or not subject.whole:
        return
    if subject.too_large:
        yield Finding("self-check", WARNING, "not done: the engines do not fit into the memory that is free", "see memory")
        return
    opened: dict[str, Engine] = {}
    unchecked = []
    try:
        for name, folder in _folders(subject):
            if name not in subject.whole:
                continue  # `files` has said so
            try:
                engine = opened[name] = open_engine(folder, verify="sizes")
            except OmniError as error:
                yield _failure(f"engine {name}", error, "build the engines again")
                continue
            check = engine.config.self_check
            if check is None or not check.file:
                unchecked.append(name)
        if unchecked:
            text = f"{', '.join(unchecked)} have nothing stored to check their answers by"
            yield Finding("self-check", WARNING, text, "build the engines again")
        if len(opened) < len(list(_folders(subject))):
            return
        pipeline, opened = Pipeline(opened), {}
        pipeline.close()
        yield Finding("self-check", OK, "each engine computes what it should, and they fit together")
    except OmniError as error:
        opened = {}  # the pipeline has closed them
        yield _failure("self-check", error, "export and build all engines from one checkpoint")
    finally:
        for engine in opened.values():
            engine.close()


def limits(subject: Subject) -> Iterator[Finding]:
    """Whether the longest turn that the parameters allow fits what the engines were built for."""
    if subject.engine_dir is None or not subject.values:
        return
    try:
        thinker, talker, code2wav = (_config(subject.engine_dir / name).limits for name in ("thinker", "talker", "code2wav"))
    except EngineError:
        return  # `files` has said so
    values = subject.values
    picture = values["image_max_pixels"] // PIXELS_PER_ROW if values["use_camera"] else 0
    rows = WORDS + int(values["max_turn"] * ROWS_PER_SECOND) + picture
    asked = f"{values['max_turn']:g} s of speech{' with a picture' if picture else ''}"
    if rows > thinker.max_input_len:
        text = f"a turn of {asked} may take {rows} rows, the Thinker reads at most {thinker.max_input_len}: it would be refused"
        yield Finding("limits", WARNING, text, "build with a larger --maxInputLen, or lower max_turn or image_max_pixels")
    elif rows + values["max_generate_length"] > thinker.capacity:
        need = rows + values["max_generate_length"]
        text = f"a turn of {asked} and its answer may take {need} rows, the cache has {thinker.capacity}"
        yield Finding("limits", WARNING, text, "build with a larger --maxKVCacheCapacity, or lower max_generate_length")
    else:
        text = f"prompts of {thinker.max_input_len} rows, {thinker.capacity} with the answer; Talker {talker.capacity}; "
        yield Finding("limits", OK, f"{text}{code2wav.capacity * 0.08:.0f} s of speech")


def gpu_match(subject: Subject) -> Iterator[Finding]:
    """TensorRT engines run on the GPU and the version that they were built for, and nowhere else."""
    from omni_ros.engines.tensorrt.package import check_machine

    if "tensorrt" not in subject.backends:
        return
    for name, folder in _folders(subject):
        try:
            config = _config(folder)
            if config.tensorrt is not None:
                check_machine(folder, config.tensorrt)
        except EngineError as error:
            yield _failure(f"engine {name}", error, "build the engines on this machine")


def _folders(subject: Subject) -> Iterator[tuple[str, Path]]:
    from omni_ros.pipeline.pipeline import ENGINES

    assert subject.engine_dir is not None
    for name in ENGINES:
        yield name, subject.engine_dir / name


def _config(folder: Path) -> "EngineConfig":
    from omni_ros.engines.config import read_config

    return read_config(folder)


def _failure(check: str, error: OmniError, fix: str) -> Finding:
    """Our errors name the file and mostly the cure, behind a semicolon."""
    what, semicolon, cure = str(error).rpartition("; ")
    return Finding(check, FAILURE, what, cure) if semicolon else Finding(check, FAILURE, str(error), fix)
