"""Every error that omni_ros raises on purpose. Catch `OmniError` to keep serving the next turn."""


class OmniError(Exception):
    """Base of all errors below; its text names the file or value at fault and the fix."""


class CheckpointError(OmniError):
    """A Hugging Face checkpoint is missing, truncated, or not a supported qwen3_omni_moe."""


class EngineError(OmniError):
    """An engine directory is missing, corrupt, or disagrees with its own config.json."""


class EngineHungError(EngineError):
    """A call of an engine does not return. The process that made it has to be ended."""


class InputError(OmniError):
    """A request, media file or message that cannot be used: malformed, empty, unreadable."""


class PromptTooLongError(InputError):
    """The prompt has more tokens than the engines were built for."""


class UnknownSpeakerError(InputError):
    """The checkpoint has no such voice; the text lists the voices it has."""


class ToolError(OmniError):
    """A tool call that cannot be carried out; the text is for the model that made it."""


class RunawayError(OmniError):
    """The model repeats itself, is silent, or does not stop speaking: the turn was ended. What it said before is good."""

    def __init__(self, text: str, repeated: int = 0):
        super().__init__(text)
        self.repeated = repeated  # so many of the last reply tokens only repeat those before


class LowMemoryError(OmniError):
    """The machine has not enough memory for this turn. A shorter one may do, or the same a little later."""


class KVCacheFullError(OmniError):
    """A stateful engine has no room for the next step (KV cache or maximum code length)."""


class DeviceError(OmniError):
    """A microphone or loudspeaker cannot be had: absent, in use, taken away, or its library is not installed."""

    def __init__(self, text: str, final: bool = False):
        super().__init__(text)
        self.final = final  # trying again does not help
