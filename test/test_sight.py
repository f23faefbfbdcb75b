"""Short videos of what was seen: which frames, at what rate, of what size, and what broken ones cost."""

import numpy as np
import pytest
from test_dialogue import World

from omni_ros.dialogue.settings import Settings
from omni_ros.dialogue.sight import MOST_BYTES, Frame, Sight
from omni_ros.errors import InputError
from omni_ros.pipeline.request import Request


def frame(number: int, height: int = 8, width: int = 12) -> np.ndarray:
    return np.full((height, width, 3), number, np.uint8)


def look(sight: Sight, now: float, frames: int, fps: float = 10.0, max_pixels: int = 10**6, bad=pytest.fail):
    """The part that a turn would get."""
    found = sight.look(now, max_age=1.0, max_pixels=max_pixels, frames=frames, fps=fps, on_bad=bad)
    return found and found()


def show(sight: Sight, times: list[float], frames: int, fps: float = 10.0, size: int = 0) -> None:
    for number, at in enumerate(times):
        sight.see(Frame(lambda n=number: frame(n), size, at), frames, fps)


def numbers(part: dict) -> list[int]:
    return part["video"][:, 0, 0, 0].tolist()


def test_the_last_frames_with_the_rate_at_which_they_came():
    sight = Sight()
    show(sight, [n * 0.125 for n in range(20)], 5)
    part = look(sight, 2.5, 5)
    assert numbers(part) == [15, 16, 17, 18, 19] and part["fps"] == 8.0 and part["type"] == "video"
    assert len(sight._frames) == 5
    assert look(sight, 3.5, 5) is None  # too old


def test_a_fast_camera_is_thinned_and_the_newest_is_always_there():
    sight = Sight()
    show(sight, [n / 30 for n in range(100)], 4, fps=2.0)
    part = look(sight, 3.3, 4, fps=2.0)
    assert numbers(part)[-1] == 99 and len(part["video"]) == 4
    assert all(gap >= 15 for gap in np.diff(numbers(part))[:-1])
    assert part["fps"] == pytest.approx(3 / ((99 - numbers(part)[0]) / 30))


def test_a_camera_that_had_stopped_shows_one_scene_only():
    sight = Sight()
    show(sight, [0.0, 0.1, 0.2, 9.0, 9.1], 5)
    assert numbers(look(sight, 9.2, 5)) == [3, 4]
    slow = Sight()
    show(slow, [0.0, 0.8, 1.6], 5, fps=2.0)  # slower than was asked for
    part = look(slow, 1.6, 5, fps=2.0)
    assert numbers(part) == [0, 1, 2] and part["fps"] == 1.25


def test_one_frame_is_a_picture_and_so_is_everything_without_video():
    sight = Sight()
    show(sight, [0.0], 5)
    assert look(sight, 0.1, 5)["type"] == "image"
    show(sight, [0.1, 0.2, 0.3], 0)
    part = look(sight, 0.3, 0, max_pixels=5)
    assert part["type"] == "image" and part["max_pixels"] == 5 and part["image"][0, 0, 0] == 2 and len(sight._frames) == 1
    assert look(Sight(), 0.0, 5) is None


def test_what_is_seen_is_decoded_once():
    sight = Sight()
    show(sight, [0.0, 0.1], 2)
    found = sight.look(0.1, max_age=1.0, max_pixels=10**6, frames=2, fps=10.0, on_bad=pytest.fail)
    assert found()["video"] is found()["video"]


def test_a_video_has_together_as_many_pixels_as_a_picture_may():
    sight = Sight()
    for number in range(8):
        sight.see(Frame(lambda n=number: frame(n, 480, 640), 0, number * 0.1), 8, 10.0)
    video = look(sight, 0.8, 8, max_pixels=307200)["video"]
    assert video.shape == (8, 240, 320, 3)  # a token holds two frames


def test_frames_that_cannot_be_decoded_are_missing_and_told():
    sight, bad = Sight(), []

    def broken() -> np.ndarray:
        raise InputError("half a JPEG")

    show(sight, [0.0, 0.1], 4)
    sight.see(Frame(broken, 0, 0.2), 4, 10.0)
    show(sight, [0.3], 4)
    part = look(sight, 0.3, 4, bad=bad.append)
    assert len(part["video"]) == 3 and part["fps"] == pytest.approx(2 / 0.3) and len(bad) == 1
    for at in (0.4, 0.5, 0.6, 0.7):
        sight.see(Frame(broken, 0, at), 4, 10.0)
    assert look(sight, 0.7, 4, bad=bad.append) is None


def test_another_size_begins_another_video_and_equal_times_are_no_fault():
    sight = Sight()
    show(sight, [0.0, 0.1, 0.2], 9)
    for number in (5, 6):
        sight.see(Frame(lambda n=number: frame(n, 4, 4), 0, 0.3), 9, 1e6)
    part = look(sight, 0.3, 9)
    assert numbers(part) == [5, 6] and np.isfinite(part["fps"])


def test_large_frames_are_bounded_by_their_bytes():
    sight = Sight()
    show(sight, [n * 0.1 for n in range(50)], 32, size=MOST_BYTES // 4)
    assert len(sight._frames) == 4
    show(sight, [5.0], 32, size=MOST_BYTES * 2)
    assert len(sight._frames) == 1


def test_a_turn_gets_the_video_and_the_history_does_not():
    world = World()
    world.dialogue.settings = Settings(video_frames=3, video_fps=5.0)
    for number in range(10):
        world.dialogue.see(frame(number))
        world.clock.sleep(0.25)
    world.dialogue.ask("What happens?")
    world.idle()
    video, text = world.model.requests[0].messages[-1]["content"]
    assert numbers(video) == [7, 8, 9] and video["fps"] == pytest.approx(4.0) and text["text"] == "What happens?"
    assert world.remembered()[0] == "user: What happens?"
    world.dialogue.settings = Settings(video_frames=0, image_max_age=60.0)
    world.dialogue.ask("And now?")
    world.idle()
    assert world.model.requests[1].messages[-1]["content"][0]["type"] == "image"
    world.dialogue.settings = Settings(video_frames=3, use_camera=False)
    world.dialogue.ask("And now?")
    world.idle()
    assert len(world.model.requests[2].messages[-1]["content"]) == 1
    world.close()


def test_the_model_takes_it(open_pipeline):
    sight = Sight()
    show(sight, [n * 0.1 for n in range(6)], 4)
    content = [look(sight, 0.6, 4), {"type": "text", "text": "what happens"}]
    request = Request([{"role": "user", "content": content}], max_generate_length=3, max_audio_length=3)
    assert list(open_pipeline("plain", "onnxruntime").generate(request))[-1].reason == "length"
