"""Too little memory: a limit on the address space of a real process, under which what is large no longer fits."""
# ruff: noqa: F811 - fixtures are imported, and named again where they are used

import array
import io
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

from omni_process import ROOT, SHORT, OmniProcess, answer, engine_dir, ros, wait  # noqa: F401 - some are fixtures
from PIL import Image as Picture
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String
from test_node_faults import log_of, start  # noqa: F401 - a fixture

MB = 1 << 20
NO_LIMIT = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
TURNS = """
import resource, sys, threading
import numpy as np
from omni_ros.pipeline.pipeline import Pipeline
from omni_ros.pipeline.request import Finished, Request

def size():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSize"))) << 10

def turn(*content):
    words = {"type": "text", "text": "Look."}
    options = dict(temperature=0, talker_temperature=0, max_generate_length=6, max_audio_length=6)
    try:
        for event in pipeline.generate(Request([{"role": "user", "content": [*content, words]}], **options)):
            if isinstance(event, Finished):
                return event.token_ids, event.codes.tolist()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

pipeline = Pipeline.open(sys.argv[1], threads=1)
picture = {"type": "image", "image": np.zeros((5000, 6000, 3), np.uint8), "max_pixels": 1 << 19}
good = turn()
resource.setrlimit(resource.RLIMIT_AS, (size() + (30 << 20), resource.RLIM_INFINITY))
print(turn(picture))
print(turn() == good)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(turn(picture)[0] != good[0])
threading.stack_size(1 << 46)
print(turn())
threading.stack_size(0)
print(turn() == good, threading.active_count())
pipeline.close()
"""


def test_what_does_not_fit_is_one_typed_error_and_the_next_turn_works(engine_dir):
    """A picture that has no room while it is made smaller; threads that get no stack."""
    done = subprocess.run([sys.executable, "-c", TURNS, engine_dir], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    picture, after, with_room, threads, after_threads = done.stdout.splitlines()
    assert picture.startswith("LowMemoryError: there is not enough memory for this turn")
    assert (after, with_room) == ("True", "True")
    assert threads.startswith("LowMemoryError: the turn's threads cannot be started")
    assert after_threads == "True 1"


def limit(process: OmniProcess, more: int) -> None:
    """So many bytes may its address space grow, or shrink, from now on."""
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    now = int(re.search(r"VmSize:\s+(\d+)", status).group(1)) << 10
    resource.prlimit(process.process.pid, resource.RLIMIT_AS, (now + more, resource.RLIM_INFINITY))


def test_a_camera_picture_that_does_not_fit_is_missing_and_told(start):
    process, client = start(image_transport="compressed", image_max_age=60.0, **SHORT)
    camera = client.node.create_publisher(CompressedImage, "image_raw/compressed", 10)
    wait(lambda: client.state == "idle" and client.connected and camera.get_subscription_count(), 30)
    client.prompt.publish(String(data="Hello."))
    answer(client)
    file = io.BytesIO()
    Picture.new("RGB", (7000, 4700), 7).save(file, "PNG")  # 99 MB
    limit(process, 20 * MB)
    camera.publish(CompressedImage(format="png", data=array.array("B", file.getvalue())))
    wait(lambda: client.values()["picture age s"] != "inf", 10)
    client.prompt.publish(String(data="What do you see?"))
    answer(client, 2)
    assert "there is not enough memory to decode it" in log_of(process)
    assert client.values()["defects"] == "0"
    resource.prlimit(process.process.pid, resource.RLIMIT_AS, NO_LIMIT)
    tokens = int(client.values()["pipeline prompt_tokens"])
    client.prompt.publish(String(data="What do you see?"))
    answer(client, 3)
    assert int(client.values()["pipeline prompt_tokens"]) > tokens + 50  # now it does


def test_a_process_without_any_memory_left_answers_fails_or_ends_but_does_not_stay_silent(start):
    """Small allocations fail as well, in Python, rclpy and Fast DDS: whatever dies of it, somebody hears of it."""
    process, client = start(engine_timeout=3.0, **SHORT)
    wait(lambda: client.state == "idle" and client.connected, 30)
    client.prompt.publish(String(data="Hello."))
    answer(client)
    limit(process, -5 * MB)
    told = len(client.texts("state"))
    client.prompt.publish(String(data="word " * 1000))
    deadline = time.monotonic() + 30
    ended = lambda: process.process.poll() is not None or client.texts("state")[told:][-1:] in (["idle"], ["error"])  # noqa: E731
    wait(ended, deadline - time.monotonic())
    if process.process.poll() is None:
        resource.prlimit(process.process.pid, resource.RLIMIT_AS, NO_LIMIT)
    time.sleep(1.5)
    if process.process.poll() is not None:
        assert process.process.returncode != 0  # and is started again
        start(engine_timeout=3.0, **SHORT)
    client.forget()
    wait(lambda: client.state in ("idle", "error") and client.prompt.get_subscription_count(), 30)
    client.prompt.publish(String(data="Are you there?"))
    wait(lambda: client.received["response"], 30)
