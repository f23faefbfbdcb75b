"""The robot's voice: answers spoken by a synthesiser, codec, Code2Wav, Talker with CodePredictor."""
