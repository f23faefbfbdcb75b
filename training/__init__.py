"""Trains the micro Qwen3-Omni of demo/model: data, codec, Code2Wav, Thinker with encoders, Talker with CodePredictor."""
