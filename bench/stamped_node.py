"""The omni node with one addition: every event is written down when the pipeline gives it out.

    python -m bench.stamped_node EVENTS.txt --ros-args -p engine_dir:=ENGINES

One line per event: seconds (time.monotonic, one clock for all processes), text or pcm, characters or samples.
"""

import sys
import time
from pathlib import Path

from omni_ros.nodes.omni_node import main
from omni_ros.pipeline.conversation import Conversation
from omni_ros.pipeline.request import AudioChunk, TextDelta


def stamp_events(path: Path) -> None:
    generate, file = Conversation.generate, path.open("w")

    def stamped(self, request):
        lines = []
        for event in generate(self, request):
            if isinstance(event, TextDelta):
                lines.append(f"{time.monotonic()} text {len(event.text)}\n")
            elif isinstance(event, AudioChunk) and event.pcm.size:
                lines.append(f"{time.monotonic()} pcm {event.pcm.size}\n")
            yield event
        file.write("".join(lines) + "end\n")  # at the end of the turn: writing must not disturb what is measured
        file.flush()

    Conversation.generate = stamped


if __name__ == "__main__":
    stamp_events(Path(sys.argv.pop(1)))
    sys.exit(main())
