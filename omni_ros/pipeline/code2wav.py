"""Code2Wav: codec codes -> PCM, streaming."""

import numpy as np

from omni_ros.engines.config import Code2WavConfig
from omni_ros.engines.engine import Engine, State
from omni_ros.errors import EngineError, InputError, KVCacheFullError


class Code2Wav:
    """A waveform is a state: `decode` continues it, however the frames are cut into calls; the state's reset begins the next.

    The waveform is that of transformers' `Qwen3OmniMoeCode2Wav` decoding all frames at once. Its transposed
    convolutions look `lookahead_samples` ahead, so the first call returns that many samples less than its frames last,
    every later call exactly `samples_per_frame` per frame. The end needs no flush.
    """

    def __init__(self, engine: Engine):
        if engine.config.engine != "code2wav":
            raise EngineError(f"{engine.directory}: holds a {engine.config.engine} engine, Code2Wav needs code2wav")
        self.engine = engine
        config: Code2WavConfig = engine.config.model
        self.sample_rate, self.num_quantizers, self.codebook_size = (
            config.sample_rate,
            config.num_quantizers,
            config.codebook_size,
        )
        self.samples_per_frame, self.lookahead_samples = config.samples_per_frame, config.lookahead_samples
        limits = engine.config.limits
        self.capacity: int = limits.capacity
        self.max_run_frames: int = limits.max_run_frames or self.capacity  # memory on a GPU is for the longest run

    def decode(self, state: State, codes: np.ndarray) -> np.ndarray:
        """codes int64 [num_quantizers, frames >= 1], the frames that follow the last call's -> pcm float32 [samples].

        More frames than one run of the engine takes are cut into several; the waveform is the same.
        Raises InputError for codes of the wrong shape or range, KVCacheFullError past the engine's longest speech;
        after either the waveform goes on as if the call had not been made. EngineError when the samples are no numbers.
        """
        codes = np.asarray(codes)
        if codes.ndim != 2 or len(codes) != self.num_quantizers or codes.shape[1] < 1 or codes.dtype.kind not in "iu":
            raise InputError(
                f"codes must be integers [{self.num_quantizers}, frames >= 1], got {codes.dtype} {list(codes.shape)}"
            )
        outside = (codes < 0) | (codes >= self.codebook_size)
        if outside.any():
            frame, quantizer = np.argwhere(outside.T)[0].tolist()
            raise InputError(
                f"codec frame {state.length + frame}, quantizer {quantizer}: code "
                f"{codes[quantizer, frame]} is outside the codebook, [0, {self.codebook_size})"
            )
        frames = codes.shape[1]
        if state.length + frames > self.capacity:  # before the first of several runs has changed the state
            raise KVCacheFullError(
                f"code2wav: {state.length} + {frames} codec frames do not fit the longest speech it "
                f"was built for ({self.capacity}); build with a larger --maxCodeLen"
            )
        runs = range(0, frames, self.max_run_frames)
        pcm = np.concatenate([self.engine.run({"codes": codes[:, i : i + self.max_run_frames]}, state)["pcm"] for i in runs])
        if not np.isfinite(pcm).all():
            raise EngineError("code2wav: samples that are no numbers: its weights are damaged, or its dtype is too small")
        return pcm
