"""An organised, coloured sensor_msgs/PointCloud2 as a picture, and how far away what it shows is.

Read by field, as sensor_msgs_py does, but checked: `data`, offsets and steps are whatever somebody sent.
"""

import numpy as np

from omni_ros.errors import InputError
from omni_ros.nodes.messages import shown
from omni_ros.preprocess.picture import MAX_PIXELS

DISTANCE = "distance of what I see"  # the fact's name
FLOATS = {7: "f4", 8: "f8"}  # sensor_msgs/PointField datatypes of coordinates
PACKED = (6, 7)  # UINT32 and FLOAT32: of a colour, four bytes 0xAARRGGBB
MOST_POINTS = 100_000  # that distances are taken from
NEAREST = 1.0  # per cent of the points may be nearer than what is called the nearest: some are noise


def check_cloud(msg) -> None:
    """Whether a PointCloud2 can be read, without touching a point. Raises InputError."""
    if msg.height < 2:
        raise InputError(
            f"point cloud of {msg.width} x {msg.height} points is not organised: publish it as rows of a picture, as "
            "depth_image_proc's point_cloud_xyzrgb does (RealSense: ordered_pc)"
        )
    if msg.width == 0 or msg.height * msg.width > MAX_PIXELS:
        raise InputError(f"point cloud of {msg.width} x {msg.height} points: empty, or more than {MAX_PIXELS}")
    x, y, z, rgb = (_field(msg, names) for names in (("x",), ("y",), ("z",), ("rgb", "rgba")))
    if any(field.datatype not in FLOATS or field.datatype != x.datatype for field in (x, y, z)):
        raise InputError(f"point cloud has coordinates of datatypes {x.datatype}, {y.datatype}, {z.datatype}, not one of floats")
    if rgb.datatype not in PACKED:
        raise InputError(f"point cloud has a colour of datatype {rgb.datatype}, not packed into FLOAT32 or UINT32")
    size = np.dtype(FLOATS[x.datatype]).itemsize
    needed = max(rgb.offset + 4, *(field.offset + size for field in (x, y, z)))
    if msg.point_step < needed:
        raise InputError(f"point cloud has points of {msg.point_step} bytes, its fields reach to {needed}")
    if msg.row_step < msg.point_step * msg.width:
        raise InputError(f"point cloud has rows of {msg.row_step} bytes, less than {msg.width} points of {msg.point_step}")
    if len(msg.data) != msg.row_step * msg.height:
        raise InputError(f"point cloud has {len(msg.data)} bytes, not row_step {msg.row_step} x height {msg.height}")


def cloud_to_rgb(msg) -> np.ndarray:
    """uint8 RGB [H, W, 3]; what has no colour is as it is sent, mostly black."""
    check_cloud(msg)
    packed = _points(msg)[..., _field(msg, ("rgb", "rgba")).offset :]
    return np.ascontiguousarray(packed[..., 1:4] if msg.is_bigendian else packed[..., 2::-1])


def distances(msg) -> str:
    """Metres from the sensor, in words: the nearest, and the median of what is left, in the middle and right."""
    check_cloud(msg)
    skip = max(1, int(np.ceil(np.sqrt(msg.height * msg.width / MOST_POINTS))))
    points = _points(msg)[::skip, ::skip]
    kind = np.dtype(FLOATS[_field(msg, ("x",)).datatype]).newbyteorder(">" if msg.is_bigendian else "<")
    offsets = [_field(msg, (axis,)).offset for axis in "xyz"]
    axes = [np.ascontiguousarray(points[..., at : at + kind.itemsize]).view(kind)[..., 0] for at in offsets]
    with np.errstate(all="ignore"):  # no point is NaN by convention, and garbage may be anything
        metres = np.sqrt(sum(axis.astype(np.float64) ** 2 for axis in axes))  # [h, w]
    measured = np.isfinite(metres) & (metres > 0)
    found: dict[str, float] = {}
    nearest: dict[str, float] = {}
    for side, part, known in zip(
        ("left", "middle", "right"), np.array_split(metres, 3, axis=1), np.array_split(measured, 3, axis=1), strict=True
    ):
        if known.size and known.mean() > NEAREST / 100:
            found[side] = float(np.median(part[known]))
            nearest[side] = float(np.percentile(part[known], NEAREST))
    if not found:
        return "unknown, nothing was measured"
    side = min(nearest, key=nearest.__getitem__)
    medians = ", ".join(f"{name} {_metres(found.get(name))}" for name in ("left", "middle", "right"))
    return f"nearest {_metres(nearest[side])} ({side}), around {medians}"


def _metres(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f} m" if value < 10 else f"{value:.0f} m"


def _points(msg) -> np.ndarray:  # uint8 [H, W, point_step]
    rows = np.frombuffer(msg.data, np.uint8).reshape(msg.height, msg.row_step)[:, : msg.width * msg.point_step]
    return rows.reshape(msg.height, msg.width, msg.point_step)


def _field(msg, names: tuple[str, ...]):
    found = [field for field in msg.fields if field.name in names]
    if len(found) != 1 or found[0].count not in (0, 1):
        have = shown(", ".join(field.name for field in msg.fields))
        raise InputError(f"point cloud needs one field {' or '.join(names)} of one value, it has {have}")
    return found[0]
