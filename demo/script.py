"""What happens in the demo: what lies on the table, what is asked, and what is right."""

from dataclasses import dataclass
from pathlib import Path

from demo.table import Scene

TWO: Scene = (("left", "red", "circle"), ("right", "blue", "star"))
THREE: Scene = (("left", "green", "square"), ("middle", "purple", "star"), ("right", "yellow", "triangle"))
SQUARES: Scene = (("left", "white", "square"), ("middle", "black", "square"), ("right", "orange", "circle"))


@dataclass(frozen=True)
class Turn:
    scene: Scene  # what lies on the table
    question: str  # spoken in questions/
    answer: str  # the right one
    pause: float  # seconds of silence after the question: time for the answer
    interrupts: bool = False  # the answer before is still being spoken

    @property
    def sound(self) -> Path:
        return Path(__file__).parent / "questions" / f"{self.question.replace(' ', '_')}.flac"


TURNS = (
    Turn(TWO, "what do you see", "I see a red circle and a blue star.", 5.6),
    Turn(THREE, "is there a yellow triangle", "Yes, I see a yellow triangle.", 4.8),
    Turn(THREE, "where is it", "It is on the right.", 4.2),  # only the turn before says what "it" is
    Turn(SQUARES, "count to nine", "One, two, three, four, five, six, seven, eight, nine.", 3.4),
    Turn(SQUARES, "how many squares do you see", "I see two squares.", 1.5, interrupts=True),
)
