"""Topic `points` over real DDS: one cloud gives the picture and the distances, garbage a report."""
# ruff: noqa: F811 - fixtures are imported, and named again where they are used

import time

import numpy as np
from omni_process import SHORT, Client, OmniProcess, answer, engine_dir, ros, wait  # noqa: F401 - two are fixtures
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import String
from test_point_cloud import cloud, colours, scene


def test_a_cloud_is_seen_and_measured_and_garbage_is_told(ros, engine_dir, tmp_path):
    client = Client("cloud")
    settings = {"image_transport": "points", "image_max_age": 60.0, "facts_max_age": 60.0, "history_turns": 0, **SHORT}
    process = OmniProcess(tmp_path / "log", "cloud", engine_dir=engine_dir, vad="energy", **settings)

    def asked(count: int) -> int:
        """Tokens of a turn."""
        client.prompt.publish(String(data="What is there?"))
        answer(client, count)
        return int(client.values()["pipeline prompt_tokens"])

    try:
        wait(lambda: client.state == "idle" and client.connected, 60)
        points = client.node.create_publisher(PointCloud2, "points", 10)
        wait(points.get_subscription_count, 10)
        without = asked(1)
        points.publish(cloud(scene(96, 128), colours(96, 128)))
        wait(lambda: client.values()["facts known"] == "1", 5)
        seen = asked(2)
        assert without + 12 + 2 + 20 < seen < without + 12 + 2 + 250  # 4 x 3 merged patches, and a line of distances
        flat = cloud(scene(), colours())
        flat.height, flat.width = 1, flat.height * flat.width
        flat.row_step = len(flat.data)
        cut = cloud(scene(), colours())
        cut.data = cut.data[:100]
        for _ in range(30):
            points.publish(flat)
            points.publish(cut)
            time.sleep(0.02)  # the newest wins
        wait(lambda: int(client.values().get("bad messages camera", 0)) > 1, 5)
        assert asked(3) >= seen  # the last good one is still what is seen
        log = process.log.read_text()
        assert 1 <= log.count("point cloud") <= 4
        points.publish(cloud(np.full((96, 128, 3), np.nan), colours(96, 128)))
        assert asked(4) > without + 12
        assert process.process.poll() is None
    finally:
        process.stop()
        client.close()
