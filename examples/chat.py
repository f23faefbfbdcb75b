"""Engines in, words and a WAV out: `python examples/chat.py ENGINES`, then one line a turn. No ROS, no node.

A line may be anything; `answer_0.wav`, `answer_1.wav`, ... are written here. A picture or a sound is another part of the
message: {"role": "user", "content": [{"type": "image", "image": "photo.jpg"}, {"type": "text", "text": "What is this?"}]}.
"""

import sys
import wave

from omni_ros.pipeline.pipeline import Pipeline
from omni_ros.pipeline.request import AudioChunk, Request, TextDelta

conversation, messages = Pipeline.open(sys.argv[1]).conversation(), []
for number, line in enumerate(sys.stdin):
    messages.append({"role": "user", "content": line.strip()})
    with wave.open(f"answer_{number}.wav", "wb") as wav:
        wav.setparams((1, 2, 24000, 0, "NONE", "mono, 16 bit, 24 kHz"))
        for event in conversation.generate(Request(messages)):
            if isinstance(event, TextDelta):
                print(event.text, end="", flush=True)
            elif isinstance(event, AudioChunk):  # while the text is still being written
                wav.writeframes((event.pcm * 32767).astype("<i2").tobytes())
    messages.append({"role": "assistant", "content": event.text})  # the last event has it whole
    print()
