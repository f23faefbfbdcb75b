"""Whether somebody who falls silent has finished, from how it was said: Smart Turn v3.2 (Daily, BSD-2-Clause), a Whisper-tiny
encoder with a classifier, 8 million INT8 weights, in 23 languages. smart_turn_v3/ holds the file and its licence."""

from pathlib import Path

import numpy as np
import onnxruntime

from omni_ros.errors import InputError
from omni_ros.preprocess.audio import SAMPLE_RATE, whisper_mel

MODEL = Path(__file__).parent / "smart_turn_v3" / "smart-turn-v3.2-cpu.onnx"
WINDOW = 8 * SAMPLE_RATE  # samples that the model hears: the last ones
BINS = 80


class SmartTurn:
    """SmartTurn()(pcm): the probability that an utterance, float32 [n] at 16 kHz with 0.2 s of silence at its end, is complete.

    About 45 ms on one thread of a laptop, whatever the length. InputError when the model cannot be loaded.

    The file rounds what flows between its layers to INT8, in pairs of QuantizeLinear and DequantizeLinear. Computed so it takes
    half the time, but calls complete what is not, and the other way round. ONNX Runtime is told to drop the pairs that it can;
    the weights stay INT8.
    """

    def __init__(self, path: Path = MODEL) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.enable_quant_qdq_cleanup", "1")
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=["QDQSelectorActionTransformer"]
            )
        except Exception as error:  # noqa: BLE001 - ONNX Runtime has an exception for every kind of damage
            raise InputError(f"{path}: {error}; install omni_ros again, or set turn_detector: silence") from error

        self(np.zeros(WINDOW, np.float32))  # the first call is slow

    def __call__(self, pcm: np.ndarray) -> float:
        return float(self._session.run(None, {"input_features": features(pcm)[None]})[0][0, 0])


def features(pcm: np.ndarray) -> np.ndarray:
    """float32 [n] -> float32 [80, 800]: Whisper's log-mel of the last 8 s, shorter sound behind zeros, at unit variance.

    As transformers' WhisperFeatureExtractor(chunk_length=8) with do_normalize=True.
    """
    window = np.zeros(WINDOW, np.float32)
    heard = pcm[-WINDOW:]
    window[WINDOW - heard.size :] = heard
    window = (window - window.mean()) / np.sqrt(window.var() + 1e-7)
    return whisper_mel(window, BINS)
