"""Write a rosbag2 (mcap) as a robot would record it: a camera that looks around a photograph, and a microphone.

The questions were spoken by espeak-ng; the photograph (Grace Hopper, public domain) comes with matplotlib.
"""

import argparse
import io
from pathlib import Path

import av
import numpy as np
from matplotlib.cbook import get_sample_data
from PIL import Image as Picture
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from tqdm import tqdm

HERE = Path(__file__).parent
QUESTIONS = (HERE / "question_1.flac", HERE / "question_2.flac")
SAMPLE_RATE = 16000
CHUNK = 320  # samples: 20 ms, what sound cards deliver
PICTURE_RATE = 10  # Hz
START = 1_700_000_000_000_000_000  # ns: any fixed time, so that the bag is the same every time
BAG_VERSION = 9  # ROS 2 Jazzy's


def read_mono(path: Path) -> np.ndarray:
    """Audio file -> int16 [n] at 16 kHz."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
    with av.open(path) as file:
        frames = [out for frame in [*file.decode(audio=0), None] for out in resampler.resample(frame)]
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])


def microphone(questions: list[Path], pause: float) -> np.ndarray:
    """int16 [n]: the questions with `pause` seconds after each, over the noise of a quiet room."""
    silence = np.zeros(int(1.5 * SAMPLE_RATE), np.int16)
    pieces = [silence]
    for question in questions:
        pieces += [read_mono(question), np.zeros(int(pause * SAMPLE_RATE), np.int16)]
    pcm = np.concatenate(pieces).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 30, pcm.size)  # -61 dBFS
    return np.clip(pcm + noise, -32768, 32767).astype(np.int16)


def camera(count: int) -> list[bytes]:
    """`count` JPEGs of 640x480: a window that wanders over the photograph and zooms."""
    with get_sample_data("grace_hopper.jpg") as file:
        photo = Picture.open(file).convert("RGB")
    pictures = []
    for phase in np.linspace(0, 2 * np.pi, count, endpoint=False):
        width = photo.width * (0.8 + 0.15 * np.cos(phase))
        height = width * 3 / 4
        left = (photo.width - width) * (0.5 + 0.5 * np.sin(phase))
        top = (photo.height - height) * (0.4 + 0.4 * np.sin(phase + 1))
        window = photo.resize((640, 480), Picture.Resampling.BICUBIC, (left, top, left + width, top + height))
        file = io.BytesIO()
        window.save(file, "JPEG", quality=85)
        pictures.append(file.getvalue())
    return pictures


def make_bag(path: Path, questions: list[Path], pause: float) -> None:
    """A new bag in folder `path` with topics /audio and /image_raw/compressed."""
    types = get_typestore(Stores.ROS2_JAZZY)
    Audio, Layout = types.types["std_msgs/msg/Int16MultiArray"], types.types["std_msgs/msg/MultiArrayLayout"]
    Image, Header = types.types["sensor_msgs/msg/CompressedImage"], types.types["std_msgs/msg/Header"]
    Time = types.types["builtin_interfaces/msg/Time"]
    pcm = microphone(questions, pause)
    pictures = camera(int(pcm.size / SAMPLE_RATE * PICTURE_RATE))
    messages = []
    for start in range(0, pcm.size - CHUNK + 1, CHUNK):
        end = START + (start + CHUNK) * 1_000_000_000 // SAMPLE_RATE  # a chunk exists once its last sample is heard
        messages.append((end, "/audio", Audio(Layout([], 0), pcm[start : start + CHUNK])))
    for number, jpeg in enumerate(pictures):
        at = START + number * 1_000_000_000 // PICTURE_RATE
        header = Header(Time(at // 1_000_000_000, at % 1_000_000_000), "camera_optical_frame")
        messages.append((at, "/image_raw/compressed", Image(header, "jpeg", np.frombuffer(jpeg, np.uint8))))
    with Writer(path, version=BAG_VERSION, storage_plugin=StoragePlugin.MCAP) as bag:
        connections = {
            "/audio": bag.add_connection("/audio", Audio.__msgtype__, typestore=types),
            "/image_raw/compressed": bag.add_connection("/image_raw/compressed", Image.__msgtype__, typestore=types),
        }
        for at, topic, message in tqdm(sorted(messages, key=lambda m: m[0]), desc="writing bag", unit="message"):
            bag.write(connections[topic], at, types.serialize_cdr(message, connections[topic].msgtype))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bag", type=Path, help="folder to create")
    parser.add_argument("--question", type=Path, action="append", help="audio file of one turn; may be repeated")
    parser.add_argument("--pause", type=float, default=5.0, help="seconds of silence after each question")
    args = parser.parse_args()
    make_bag(args.bag, args.question or QUESTIONS, args.pause)


if __name__ == "__main__":
    main()
