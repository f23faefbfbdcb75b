"""config.json of an engine folder, read once into typed values. A key that is missing or of another type names the file."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omni_ros.engines.agreement import check_agreement
from omni_ros.engines.parse import parse
from omni_ros.errors import EngineError


@dataclass
class TensorConfig:
    """An input or output of a graph."""

    name: str
    dtype: str
    shape: list[int | str]  # names stand for sizes that are known only when the graph runs


@dataclass
class StateConfig:
    """A tensor that a run reads as `input` and leaves as `output` to the next one: a KV cache, a convolution's last columns."""

    input: str
    output: str
    dtype: str
    shape: list[int]
    in_place: bool  # the graph writes into the buffer that it reads
    fp8_scale: float = 1.0  # what codes are to be multiplied by where `dtype` is float8_e4m3fn


@dataclass
class PositionConfig:
    """How rows are counted: axis `axis` of input `counts` grows the state; the engine tells the graph through `input`."""

    input: str
    counts: str
    axis: int = 0


@dataclass
class DecoderLimits:
    max_input_len: int  # rows of a prompt
    capacity: int  # rows of the KV cache


@dataclass
class Code2WavLimits:
    capacity: int  # codec frames of one speech
    max_run_frames: int | None = None  # of one run: memory on a GPU is planned for the longest


@dataclass
class AudioLimits:
    max_chunks: int  # pieces of one second in one run


@dataclass
class VisualLimits:
    max_patches: int  # of one run
    max_frames: int | None = None  # of one run, where memory was planned for so many


@dataclass
class NoLimits:
    """The CodePredictor always runs on the same shapes."""


@dataclass
class ThinkerConfig:
    hidden_size: int
    vocab_size: int
    num_deepstack: int
    position_id_per_seconds: float
    spatial_merge_size: int
    im_start_token_id: int
    im_end_token_id: int
    user_token_id: int
    assistant_token_id: int
    audio_token_id: int
    image_token_id: int
    video_token_id: int
    tts_bos_token_id: int
    tts_eos_token_id: int
    tts_pad_token_id: int


@dataclass
class TalkerConfig:
    hidden_size: int
    vocab_size: int
    thinker_hidden_size: int
    num_code_groups: int
    position_id_per_seconds: float
    codec_bos_id: int
    codec_eos_token_id: int
    codec_nothink_id: int
    codec_pad_id: int
    codec_think_bos_id: int
    codec_think_eos_id: int
    speaker_id: dict[str, int]


@dataclass
class CodePredictorConfig:
    num_code_groups: int
    vocab_size: int
    noise_width: int


@dataclass
class Code2WavConfig:
    sample_rate: int
    num_quantizers: int
    codebook_size: int
    samples_per_frame: int
    lookahead_samples: int


@dataclass
class AudioConfig:
    mel_bins: int
    hidden_size: int
    chunk_frames: int
    chunk_tokens: int
    window_chunks: int


@dataclass
class VisualConfig:
    hidden_size: int
    levels: int
    patch_width: int
    merge_size: int
    position_side: int
    head_dim: int
    rope_theta: float


@dataclass
class DecoderConfig:
    """Sizes of the layers of Thinker, Talker or CodePredictor, for backends that run them with kernels of their own."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    num_experts: int = 0
    top_k: int = 0
    moe_intermediate_size: int = 0
    normalize_top_k: bool = False
    shared_intermediate_size: int = 0  # of the shared expert, or of a dense layer
    mrope_section: list[int] = field(default_factory=lambda: [0, 0, 0])
    accept_hidden_layer: int = 0  # Thinker: after so many layers its rows are what the Talker sees
    num_code_groups: int = 0  # CodePredictor
    top_p: float = 1.0  # CodePredictor


@dataclass
class SelfCheckConfig:
    """What the engine should answer, and how closely: see self_check.py. Without a file, none could be made."""

    file: str = ""
    calls: int = 0
    cosine: float = 0.0  # at least, of every output; 0: of codes only
    first_code: float = 0.0  # CodePredictor: share of frames whose first code is right, at least
    skipped: str = ""  # why there is none


@dataclass
class TensorRTConfig:
    package: str
    version: str
    target: str
    host_inputs: list[str]  # inputs that the plan reads on the CPU
    profiles: dict[str, dict[str, list[list[int]]]]  # name -> input -> its smallest, usual and largest shape
    compiler_flags: list[str] = field(default_factory=list)  # that it was built with: see offline/tensorrt/known_faults.py


@dataclass
class SidecarTensor:
    """A tensor of a .safetensors file beside the graph."""

    dtype: str
    shape: list[int]


ModelConfig = ThinkerConfig | TalkerConfig | CodePredictorConfig | Code2WavConfig | AudioConfig | VisualConfig
Limits = DecoderLimits | Code2WavLimits | AudioLimits | VisualLimits | NoLimits
KINDS: dict[str, tuple[type, type]] = {
    "thinker": (ThinkerConfig, DecoderLimits),
    "talker": (TalkerConfig, DecoderLimits),
    "code_predictor": (CodePredictorConfig, NoLimits),
    "code2wav": (Code2WavConfig, Code2WavLimits),
    "audio": (AudioConfig, AudioLimits),
    "visual": (VisualConfig, VisualLimits),
}


@dataclass
class EngineConfig:
    engine: str  # one of KINDS
    backend: str  # the folder of omni_ros/engines/ that runs it
    inputs: list[TensorConfig]
    outputs: list[TensorConfig]
    state: list[StateConfig]
    model: Any  # ModelConfig, of the kind that `engine` says
    limits: Any  # Limits, likewise
    files: dict[str, int]  # name -> bytes
    checksums: dict[str, str] = field(default_factory=dict)  # name -> sha256
    sidecars: dict[str, dict[str, SidecarTensor]] = field(default_factory=dict)  # file -> tensor
    position: PositionConfig | None = None
    decoder: DecoderConfig | None = None
    tensorrt: TensorRTConfig | None = None
    self_check: SelfCheckConfig | None = None
    graph_sha256: str = ""
    engine_sha256: str = ""  # of a TensorRT plan

    @property
    def fed(self) -> list[TensorConfig]:
        """The inputs that a caller gives: all but the row counter, which the engine keeps."""
        return [i for i in self.inputs if self.position is None or i.name != self.position.input]


def read_config(directory: Path) -> EngineConfig:
    """Raises EngineError naming config.json and what is wrong with it."""
    path = directory / "config.json"
    if not path.is_file():
        raise EngineError(f"{path}: not found; run `python -m offline.build_engines ONNX ENGINES` and give its ENGINES")
    try:
        values = json.loads(path.read_text(), parse_constant=_no_number)
    except (ValueError, RecursionError, OSError) as e:
        raise EngineError(f"{path}: not valid JSON ({e}); build the engine again") from e
    if not isinstance(values, dict):
        raise EngineError(f"{path}: must be a JSON object; build the engine again")
    config: EngineConfig = parse(EngineConfig, values, "", path)
    if config.engine not in KINDS:
        raise EngineError(f"{path}: engine is {config.engine!r}, known are {', '.join(KINDS)}; build the engine again")
    model, limits = KINDS[config.engine]
    config.model = parse(model, config.model, "model", path)
    config.limits = parse(limits, config.limits, "limits", path)
    check_agreement(config, path)
    return config


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")
