"""The whole model behind one call: `for event in pipeline.generate(request)`, or `pipeline.conversation()` for more turns."""

from collections.abc import Iterator
from pathlib import Path

from threadpoolctl import threadpool_limits

from omni_ros.engines.engine import Engine
from omni_ros.engines.open import open_engine
from omni_ros.errors import CheckpointError, EngineError, OmniError
from omni_ros.pipeline.audio_encoder import AudioEncoder
from omni_ros.pipeline.code2wav import Code2Wav
from omni_ros.pipeline.code_predictor import CodePredictor
from omni_ros.pipeline.conversation import Conversation
from omni_ros.pipeline.media import MediaReader
from omni_ros.pipeline.models import Models, Voice
from omni_ros.pipeline.prompt import PromptBuilder
from omni_ros.pipeline.request import Event, Request
from omni_ros.pipeline.talker import Talker
from omni_ros.pipeline.thinker import Thinker
from omni_ros.pipeline.tokenizer import ChatTokenizer
from omni_ros.pipeline.visual_encoder import VisualEncoder
from omni_ros.preprocess.image import VisionConfig

SPEECH = ("talker", "code_predictor", "code2wav")
ENGINES = ("thinker", *SPEECH, "multimodal/audio", "multimodal/visual")


class Pipeline:
    """The engines, and what makes a model of them. It holds nothing that anybody said: conversations do."""

    def __init__(self, engines: dict[str, Engine]):
        """`engines` maps folder names of ENGINES to open engines; only the Thinker must be there."""
        self.engines = engines
        self._conversations: list[Conversation] = []
        self._single: Conversation | None = None
        try:
            self.models = self._models()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(
        cls,
        engine_dir: str | Path,
        threads: int = 0,
        folders: dict[str, Path] | None = None,
        speech: bool = True,
        verify: str | None = None,
    ) -> "Pipeline":
        """Load the engines that `offline.build_engines` wrote; `threads` per engine, 0 for every core.

        `folders` maps names of ENGINES to folders, if they are not those below `engine_dir`; what it leaves out is missed
        only by a request that needs it. Without `speech` no engine of speech is loaded. `verify` is open_engine's: how much
        of the files is compared with their checksums, and when.
        Raises EngineError naming the file when one is missing or damaged.
        """
        folders = {name: Path(engine_dir) / name for name in ENGINES} if folders is None else folders
        engines: dict[str, Engine] = {}
        try:
            for name, folder in folders.items():
                if speech or name not in SPEECH:
                    engines[name] = open_engine(folder, threads, verify)
        except BaseException:
            for engine in engines.values():
                engine.close()
            raise
        # numpy is left with a few products between engine calls. Beside the busy threads of engines on a CPU, threads that
        # BLAS starts for them stall the first sound for up to 60 ms; beside engines on a GPU they are welcome.
        threadpool_limits(1 if engines["thinker"].config.backend == "onnxruntime" else 4, user_api="blas")
        return cls(engines)

    @property
    def damage(self) -> list[str]:
        """What is wrong with the engines' files, where that was found only after they were opened."""
        return [engine.verified for engine in self.engines.values() if isinstance(engine.verified, str)]

    def _models(self) -> Models:
        engines = self.engines
        for name, engine in engines.items():
            if engine.config.engine != Path(name).name:
                raise EngineError(
                    f"{engine.directory}: holds a {engine.config.engine} engine, expected {Path(name).name}; "
                    "build the engines again, each into its own folder"
                )
        thinker = Thinker(engines["thinker"])
        directory, config = engines["thinker"].directory, thinker.config
        tokenizer = ChatTokenizer(directory)
        tokens = tokenizer.tokenizer.get_vocab_size()
        if tokens > config.vocab_size:
            raise EngineError(
                f"{directory / 'tokenizer.json'}: has {tokens} tokens, the Thinker {config.vocab_size}; "
                "export the Thinker again with its own tokenizer"
            )
        audio = AudioEncoder(engines["multimodal/audio"]) if "multimodal/audio" in engines else None
        visual = VisualEncoder(engines["multimodal/visual"]) if "multimodal/visual" in engines else None
        for encoder, levels in ((audio, config.num_deepstack), (visual, visual.levels if visual else 0)):
            if encoder is not None and (encoder.hidden_size, levels) != (config.hidden_size, config.num_deepstack):
                raise EngineError(
                    f"{encoder.engine.directory}: made for a Thinker of width {encoder.hidden_size} with {levels} deepstack "
                    f"levels, this one has {config.hidden_size} and {config.num_deepstack}; "
                    "export and build all engines from one checkpoint"
                )
        try:
            vision = VisionConfig.from_files(directory)
        except CheckpointError as e:
            raise EngineError(str(e)) from e
        return Models(
            thinker,
            PromptBuilder(tokenizer, config, engines["thinker"].config.limits.max_input_len),
            MediaReader(vision, config.spatial_merge_size, audio, visual),
            self._voice(thinker) if engines.keys() >= set(SPEECH) else None,
        )

    def _voice(self, thinker: Thinker) -> Voice:
        engines = self.engines
        talker = Talker(engines["talker"], CodePredictor(engines["code_predictor"]), thinker)
        code2wav = Code2Wav(engines["code2wav"])
        spoken = (talker.config.num_code_groups, engines["code_predictor"].config.model.vocab_size)
        if spoken != (code2wav.num_quantizers, code2wav.codebook_size):
            raise EngineError(
                f"{engines['code2wav'].directory}: decodes another codec than the Talker speaks; "
                "export and build all engines from one checkpoint"
            )
        return Voice(talker, code2wav)

    def conversation(self) -> Conversation:
        """A new conversation on these engines. Raises EngineError when they were built for fewer than are open."""
        if not self.engines:
            raise OmniError("the pipeline was closed; open another one")
        conversation = Conversation(self.models)
        self._conversations = [*(c for c in self._conversations if not c.closed), conversation]
        return conversation

    def generate(self, request: Request) -> Iterator[Event]:
        """One turn that stands alone: as Conversation.generate, with nothing kept for the next."""
        if self._single is None:
            self._single = self.conversation()
        return self._single.generate(request, fresh=True)

    def cancel(self) -> None:
        """End the turn of `generate`, before its next run of an engine. Conversations have a cancel of their own."""
        if self._single is not None:
            self._single.cancel()

    def close(self) -> None:
        """Cancel all turns and free the engines; the pipeline cannot be used afterwards."""
        for conversation in self._conversations:
            conversation.close()
        self._conversations, self._single = [], None
        for engine in self.engines.values():
            engine.close()
        self.engines = {}
