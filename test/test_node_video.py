"""Short videos over real DDS."""
# ruff: noqa: F811 - fixtures are imported, and named again where they are used

import time

from omni_process import PHOTO, engine_dir, omni, ros, running, wait  # noqa: F401 - some are fixtures
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger
from test_node import prompt_tokens


def test_the_last_frames_go_with_a_turn_as_a_video(omni):
    def asked(frames: int) -> int:
        """Tokens of a first turn."""
        assert omni.call(Trigger, "omni/reset").success
        omni.set(video_frames=frames, video_fps=20.0, image_max_age=5.0)
        for number in range(8):
            omni.show(PHOTO // (number + 1))
            if number == 3:
                omni.image.publish(Image(height=2, width=2, encoding="strange"))  # garbage between two frames
            time.sleep(0.1)
        return prompt_tokens(omni, "What happens?")

    try:
        picture, two, six = asked(0), asked(2), asked(6)
        words = picture - 12  # 4 x 3 merged patches of the picture
        # Two frames share their tokens, so six have three times as many; a busy machine may lose frames on the way.
        assert (six - words) / (two - words) in (2, 3) and two > picture
        for number in range(3):  # a camera that changes its size
            omni.show(PHOTO[: 32 * (number + 1)])
        wait(lambda: omni.values()["picture age s"] < "1", 5)
        assert prompt_tokens(omni, "And now?") > 0
    finally:
        omni.set(video_frames=0, video_fps=2.0)
