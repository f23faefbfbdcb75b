"""How a dialogue behaves, as far as it may change while it goes on."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Settings:
    """What may be changed between two turns."""

    system_prompt: str = ""
    preempt: bool = True  # a new turn stops the answer in progress, a spoken one while it is said
    say_preempts: bool = False  # what the robot is told to say stops what it is saying; False: it waits for its turn
    barge_in_seconds: float = 0.6  # of voice from which it does; shorter words into an answer are back-channels
    eager: bool = True  # begin to answer at the first pause, in case that the user has finished
    mute_while_speaking: bool = False  # the microphone is not listened to meanwhile
    transcript: bool = False  # what the user said is written down, when there is time for it
    use_camera: bool = True  # a picture goes with each turn: the newest when the user begins to speak, or has typed
    image_max_age: float = 1.0  # seconds since its arrival by then
    image_max_pixels: int = 307200
    video_frames: int = 0  # so many of the last go with each turn as a video instead
    video_fps: float = 2.0  # of them per second, at most
    facts_max_age: float = 10.0  # seconds since its arrival after which a fact is not told
    generation: dict[str, Any] = field(default_factory=dict)  # arguments of Request
