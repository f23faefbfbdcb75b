"""Talk to the model through this computer's microphone and loudspeaker: `python examples/talk.py ENGINES`. No ROS, no node.

Needs `pip install -e ".[devices]"` and, on Debian and Ubuntu, `sudo apt install libportaudio2`. Other devices than the system's:
`python examples/talk.py ENGINES MICROPHONE LOUDSPEAKER`, as `python -m omni_ros.devices.listing` names them.
"""

import sys
import time

import numpy as np

from omni_ros.devices.device import open_sink, open_source
from omni_ros.devices.echo import Echo
from omni_ros.devices.player import Player
from omni_ros.devices.recorder import Recorder
from omni_ros.dialogue.clock import Clock
from omni_ros.dialogue.dialogue import Dialogue
from omni_ros.dialogue.face import Face
from omni_ros.pipeline.pipeline import Pipeline


class Voice(Face):
    player: Player  # before anything is said

    def text(self, delta: str) -> None:
        print(delta, end="", flush=True)

    def response(self, text: str) -> None:
        print()

    def speech(self, pcm: np.ndarray) -> None:
        self.player.push(pcm)

    def gain(self, gain: float) -> bool:
        self.player.set_gain(gain)
        return True

    def speaking(self, speaking: bool) -> None:
        if not speaking:
            self.player.stop()


def report(error: Exception) -> None:
    print(error, file=sys.stderr)


engines, microphone, loudspeaker = (sys.argv[1:] + ["default", "default"])[:3]
clock, voice = Clock(), Voice()
dialogue = Dialogue(Pipeline.open(engines).conversation(), voice)
recorder = Recorder(
    lambda: open_source(microphone, 0, 0, clock),
    Echo("aec", noise_suppression=True),
    on_pcm=dialogue.hear,
    on_failure=report,
    clock=clock,
)
voice.player = Player(lambda: open_sink(loudspeaker, 0, 0, clock), on_played=recorder.played, on_failure=report, clock=clock)
print("listening; Ctrl-C ends it")
try:
    while True:
        time.sleep(5.0)
        for problem in filter(None, (recorder.problem, voice.player.problem)):
            print(problem, file=sys.stderr)
except KeyboardInterrupt:
    recorder.close()
    dialogue.close(1.0)
    voice.player.close()
