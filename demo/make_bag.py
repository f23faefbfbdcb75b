"""Write a rosbag2 (mcap) as a robot would record it: a camera above a table, and a microphone."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from tqdm import tqdm

from demo import table
from demo.script import TURNS, Turn

SAMPLE_RATE = 16000
CHUNK = 320  # samples: 20 ms, what sound cards deliver
PICTURE_RATE = 10  # Hz
QUIET = 1.5  # seconds before the first question
SHOWN = 1.4  # seconds before a question at which its shapes begin to slide onto the table
SLIDE = 0.8  # seconds that this takes
START = 1_700_000_000_000_000_000  # ns: any fixed time, so that the bag is the same every time
BAG_VERSION = 9  # ROS 2 Jazzy's


def read_mono(path: Path) -> np.ndarray:
    """Audio file -> int16 [n] at 16 kHz."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
    with av.open(path) as file:
        frames = [out for frame in [*file.decode(audio=0), None] for out in resampler.resample(frame)]
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])


def microphone(turns: Sequence[Turn]) -> tuple[np.ndarray, list[float]]:
    """int16 [n]: the questions with their pauses, over the noise of a quiet room; and the second at which each begins."""
    pieces, begins, length = [np.zeros(int(QUIET * SAMPLE_RATE), np.int16)], [], QUIET
    for turn in turns:
        pieces += [read_mono(turn.sound), np.zeros(int(turn.pause * SAMPLE_RATE), np.int16)]
        begins.append(length)
        length += (pieces[-2].size + pieces[-1].size) / SAMPLE_RATE
    pcm = np.concatenate(pieces).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 30, pcm.size)  # -61 dBFS
    return np.clip(pcm + noise, -32768, 32767).astype(np.int16), begins


def picture(turns: Sequence[Turn], begins: list[float], at: float) -> table.Picture:
    """What the camera sees at second `at`: each new scene slides in from above and pushes the old one off the table."""
    scene, since, before = turns[0].scene, float("-inf"), ()
    for turn, begin in zip(turns, begins):
        if turn.scene != scene and at >= begin - SHOWN:
            before, scene, since = scene, turn.scene, begin - SHOWN
    done = min(1.0, (at - since) / SLIDE)
    way = table.HEIGHT * (1 - (1 - done) ** 2)  # pixels: it comes to rest softly
    sway = 2 * np.sin(at), 2 * np.cos(0.7 * at)  # of the camera
    shapes = [(scene, (sway[0], sway[1] + way - table.HEIGHT))]
    if done < 1:
        shapes.append((before, (sway[0], sway[1] + way)))
    return table.draw(shapes)


def make_bag(path: Path, turns: Sequence[Turn]) -> None:
    """A new bag in folder `path` with topics /audio and /image_raw/compressed."""
    types = get_typestore(Stores.ROS2_JAZZY)
    Audio, Layout = types.types["std_msgs/msg/Int16MultiArray"], types.types["std_msgs/msg/MultiArrayLayout"]
    Image, Header = types.types["sensor_msgs/msg/CompressedImage"], types.types["std_msgs/msg/Header"]
    Time = types.types["builtin_interfaces/msg/Time"]
    pcm, begins = microphone(turns)
    messages = []
    for start in range(0, pcm.size - CHUNK + 1, CHUNK):
        end = START + (start + CHUNK) * 1_000_000_000 // SAMPLE_RATE  # a chunk exists once its last sample is heard
        messages.append((end, "/audio", Audio(Layout([], 0), pcm[start : start + CHUNK])))
    for number in tqdm(range(int(pcm.size / SAMPLE_RATE * PICTURE_RATE)), desc="drawing the bag's pictures", unit="picture"):
        at = START + number * 1_000_000_000 // PICTURE_RATE
        jpeg = table.jpeg(picture(turns, begins, number / PICTURE_RATE))
        header = Header(Time(at // 1_000_000_000, at % 1_000_000_000), "camera_optical_frame")
        messages.append((at, "/image_raw/compressed", Image(header, "jpeg", np.frombuffer(jpeg, np.uint8))))
    with Writer(path, version=BAG_VERSION, storage_plugin=StoragePlugin.MCAP) as bag:
        connections = {
            "/audio": bag.add_connection("/audio", Audio.__msgtype__, typestore=types),
            "/image_raw/compressed": bag.add_connection("/image_raw/compressed", Image.__msgtype__, typestore=types),
        }
        for at, topic, message in sorted(messages, key=lambda m: m[0]):
            bag.write(connections[topic], at, types.serialize_cdr(message, connections[topic].msgtype))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bag", type=Path, help="folder to create")
    make_bag(parser.parse_args().bag, TURNS)


if __name__ == "__main__":
    main()
