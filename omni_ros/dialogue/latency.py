"""Where the time went from the end of a question to the first sound of its answer."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Latency:
    """When an answer reached its stages, in their order: seconds since the user's last sound (of a typed turn: since it came).

    None: it was not reached. The first and the last are of the dialogue's clock, the others of the pipeline's metrics.
    """

    end_of_turn: float | None = None  # it was decided that the user had finished
    inputs: float | None = None  # the prompt was laid out, sound and picture encoded
    prefill: float | None = None  # the Thinker had read the prompt
    first_token: float | None = None
    first_code: float | None = None
    first_pcm: float | None = None  # Code2Wav had made it
    first_played: float | None = None  # it was handed to the loudspeaker

    @staticmethod
    def measure(
        spoken_until: float, closed_at: float, began: float | None, metrics: Mapping[str, Any], played_at: float | None
    ) -> "Latency":
        """Times of one clock; `began` is when the pipeline was asked, from which its `metrics` count."""
        if began is None:
            return Latency(closed_at - spoken_until)
        waited = began - spoken_until
        stages = ("inputs", "prefill", "first_token", "first_code", "first_pcm")
        made = {stage: waited + metrics[f"{stage}_s"] for stage in stages if f"{stage}_s" in metrics}
        return Latency(closed_at - spoken_until, **made, first_played=None if played_at is None else played_at - spoken_until)

    def reached(self) -> dict[str, float]:
        """Stage -> seconds, of those that were reached."""
        return {stage: seconds for stage, seconds in asdict(self).items() if seconds is not None}


STAGES = tuple(Latency.__dataclass_fields__)
