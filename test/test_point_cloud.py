"""RGB-D: organised coloured clouds as pictures with distances, and everything that is none."""

import array

import numpy as np
import pytest
from sensor_msgs.msg import PointCloud2, PointField

from omni_ros.errors import InputError
from omni_ros.nodes.point_cloud import check_cloud, cloud_to_rgb, distances

HEIGHT, WIDTH = 24, 32


def colours(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def scene(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """float [H, W, 3]: 1 m left, 2 m in the middle with something at 0.5 m, nothing measured right."""
    points = np.zeros((height, width, 3))
    points[..., 2] = np.linspace(0, 3, width, endpoint=False).astype(int) + 1.0
    points[height // 2 - 2 : height // 2 + 2, width // 2 - 2 : width // 2 + 2, 2] = 0.5
    points[:, -(-2 * width // 3) :] = np.nan
    return points


def cloud(points: np.ndarray, rgb: np.ndarray, kind: str = "<f4", step: int = 32, row_padding: int = 0, name: str = "rgb"):
    """As depth_image_proc and cameras send it: x, y, z, and the colour packed into four bytes."""
    height, width = rgb.shape[:2]
    size, big = np.dtype(kind).itemsize, kind[0] == ">"
    rows = np.zeros((height, width, step), np.uint8)
    for axis in range(3):
        rows[..., axis * size : (axis + 1) * size] = points[..., axis, None].astype(kind).view(np.uint8)
    packed = rows[..., 3 * size : 3 * size + 4]
    packed[..., 1:4] = rgb if big else 0
    packed[..., :3] = packed[..., :3] if big else rgb[..., ::-1]
    data = np.pad(rows.reshape(height, -1), ((0, 0), (0, row_padding)))
    coordinate = 7 if size == 4 else 8
    fields = [PointField(name=axis, offset=i * size, datatype=coordinate, count=1) for i, axis in enumerate("xyz")]
    fields.append(PointField(name=name, offset=3 * size, datatype=7 if name == "rgb" else 6, count=1))
    return PointCloud2(
        height=height,
        width=width,
        fields=fields,
        is_bigendian=big,
        point_step=step,
        row_step=data.shape[1],
        data=array.array("B", data.tobytes()),
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"step": 16}, {"step": 20, "row_padding": 7}, {"kind": "<f8"}, {"kind": ">f4"}, {"kind": ">f8", "name": "rgba"}],
)
def test_picture_and_distances(options):
    msg = cloud(scene(), colours(), **options)
    check_cloud(msg)
    rgb = cloud_to_rgb(msg)
    np.testing.assert_array_equal(rgb, colours())
    assert rgb.dtype == np.uint8 and rgb.flags.c_contiguous
    assert distances(msg) == "nearest 0.50 m (middle), around left 1.00 m, middle 2.00 m, right unknown"


def test_distance_is_along_the_line_of_sight():
    points = np.broadcast_to([3.0, 0.0, 4.0], (HEIGHT, WIDTH, 3))
    assert distances(cloud(points, colours())) == "nearest 5.00 m (left), around left 5.00 m, middle 5.00 m, right 5.00 m"


def test_single_points_that_are_near_are_noise():
    points = np.full((HEIGHT, WIDTH, 3), 20.0)
    points[3, 3] = 0.01
    assert distances(cloud(points, colours())).startswith("nearest 35 m")


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_where_nothing_was_measured(value):
    assert distances(cloud(np.full((HEIGHT, WIDTH, 3), value), colours())) == "unknown, nothing was measured"


def test_values_without_sense_harm_nobody():
    points = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 24), dtype=np.uint8).view("<f8")
    assert distances(cloud(points, colours(), kind="<f8"))


def test_two_columns_and_large_clouds():
    assert "right unknown" in distances(cloud(scene()[:, :2], colours()[:, :2]))
    large = cloud(scene(720, 1280), colours(720, 1280), step=16)
    assert distances(large).endswith("around left 1.00 m, middle 2.00 m, right unknown")  # what is near is less than 1 % of it


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"height": 1, "width": HEIGHT * WIDTH}, "not organised"),
        ({"height": 0}, "not organised"),
        ({"width": 0}, "empty"),
        ({"height": 2**31, "width": 2**31}, "more than"),
        ({"point_step": 0}, "points of 0 bytes"),
        ({"point_step": 12}, "fields reach to 16"),
        ({"row_step": 3}, "rows of 3 bytes"),
        ({"row_step": 2**32 - 1}, "bytes, not row_step"),
        ({"data": array.array("B", b"short")}, "has 5 bytes"),
        ({"data": array.array("B")}, "has 0 bytes"),
        ({"fields": []}, "one field x"),
        ({"fields": 3}, "one field rgb"),
        ({"datatype": 2}, "datatypes 2"),
        ({"offset": 2**32 - 1}, "fields reach to"),
        ({"count": 3}, "one field x of one value"),
        ({"colour": 2}, "colour of datatype 2"),
        ({"twice": True}, "one field x"),
    ],
)
def test_garbage_is_refused_with_its_reason(change, reason):
    msg = cloud(scene(), colours(), step=32)
    for name, value in change.items():
        if name in ("datatype", "offset", "count"):
            setattr(msg.fields[0], name, value)
        elif name == "colour":
            msg.fields[3].datatype = value
        elif name == "twice":
            msg.fields[1].name = "x"
        elif name == "fields":
            msg.fields = msg.fields[: value or 0]
        else:
            setattr(msg, name, value)
    for read in (check_cloud, cloud_to_rgb, distances):
        with pytest.raises(InputError, match=reason):
            read(msg)
