"""The whole model behind one call: `for event in pipeline.generate(request)`."""

import threading
from collections.abc import Iterator
from pathlib import Path

from threadpoolctl import threadpool_limits

from omni_ros.engines.engine import open_engine
from omni_ros.errors import EngineError, OmniError
from omni_ros.pipeline.audio_encoder import AudioEncoder
from omni_ros.pipeline.code2wav import Code2Wav
from omni_ros.pipeline.code_predictor import CodePredictor
from omni_ros.pipeline.prompt import PromptBuilder
from omni_ros.pipeline.request import Event, Request
from omni_ros.pipeline.streaming import Turn
from omni_ros.pipeline.talker import Talker
from omni_ros.pipeline.thinker import Thinker
from omni_ros.pipeline.visual_encoder import VisualEncoder

SPEECH = ("talker", "code_predictor", "code2wav")
ENGINES = ("thinker", *SPEECH, "multimodal/audio", "multimodal/visual")


class Pipeline:
    """Six engines and the logic between them. One turn at a time; `cancel` may be called from any thread."""

    def __init__(self, engines: dict):
        """`engines` maps the folder names of ENGINES to open engines."""
        self.engines = engines
        for name, engine in engines.items():
            if engine.config["engine"] != Path(name).name:
                raise EngineError(
                    f"{engine.directory}: holds a {engine.config['engine']} engine, expected {Path(name).name}; "
                    "build the engines again, each into its own folder"
                )
        self.thinker = Thinker(engines["thinker"])
        self.talker = self.code2wav = None
        if set(SPEECH) <= set(engines):
            self.talker = Talker(
                engines["talker"], CodePredictor(engines["code_predictor"]), self.thinker.model, self.thinker.embedding
            )
            self.code2wav = Code2Wav(engines["code2wav"])
            spoken = (self.talker.model["num_code_groups"], engines["code_predictor"].config["model"]["vocab_size"])
            if spoken != (self.code2wav.num_quantizers, self.code2wav.codebook_size):
                raise EngineError(
                    f"{engines['code2wav'].directory}: decodes another codec than the Talker speaks; "
                    "export and build all engines from one checkpoint"
                )
        self.prompt_builder = PromptBuilder(
            engines["thinker"].directory,
            self.thinker.model,
            engines["thinker"].config["limits"]["max_input_len"],
            AudioEncoder(engines["multimodal/audio"]) if "multimodal/audio" in engines else None,
            VisualEncoder(engines["multimodal/visual"]) if "multimodal/visual" in engines else None,
        )
        self._busy = threading.Lock()
        self._turn: Turn | None = None

    @classmethod
    def open(
        cls, engine_dir: str | Path, threads: int = 0, folders: dict[str, Path] | None = None, speech: bool = True
    ) -> "Pipeline":
        """Load the engines that `offline.build_engines` wrote; `threads` per engine, 0 for every core.

        `folders` maps names of ENGINES to folders, if they are not those below `engine_dir`; what it leaves out is missed
        only by a request that needs it. Without `speech` no engine of speech is loaded.
        Raises EngineError naming the file when one is missing or damaged.
        """
        folders = {name: Path(engine_dir) / name for name in ENGINES} if folders is None else folders
        engines = {n: open_engine(folder, threads) for n, folder in folders.items() if speech or n not in SPEECH}
        # numpy is left with a few products between engine calls. Beside the busy threads of engines on a CPU, threads that
        # BLAS starts for them stall the first sound for up to 60 ms; beside engines on a GPU they are welcome.
        on_cpu = engines["thinker"].config["backend"] == "onnxruntime"
        threadpool_limits(1 if on_cpu else 4, user_api="blas")
        return cls(engines)

    @property
    def speakers(self) -> list[str]:
        return sorted(self.talker.model["speaker_id"])

    def generate(self, request: Request) -> Iterator[Event]:
        """TextDelta, TextFinished and AudioChunk events while they are made, then Finished.

        Raises InputError, PromptTooLongError, UnknownSpeakerError or EngineError; the next turn works after each.
        """
        if not self.engines:
            raise OmniError("the pipeline was closed; open another one")
        if not self._busy.acquire(blocking=False):
            raise OmniError("a turn is running; cancel() it and read its events to the end first")
        try:
            if request.audio_output and self.talker is None:
                raise EngineError(f"speech needs the engines {', '.join(SPEECH)}, which were not loaded")
            self._turn = Turn(request, self.prompt_builder, self.thinker, self.talker, self.code2wav)
            yield from self._turn.run()
        finally:
            self._turn = None
            self._busy.release()

    def cancel(self) -> None:
        """End the running turn, if any, at its next decode step."""
        if (turn := self._turn) is not None:
            turn.cancel()

    def close(self) -> None:
        """Cancel and free the engines; the pipeline cannot be used afterwards."""
        self.cancel()
        with self._busy:
            self.engines.clear()
            del self.thinker, self.talker, self.code2wav, self.prompt_builder
