"""mRoPE positions, as transformers' get_rope_index computes them: text and audio advance all three axes by one per
token; an image or video block lays its tokens out on (time, height, width) and the text goes on after its maximum."""

import numpy as np


def mrope_positions(
    ids: np.ndarray,
    image_id: int,
    video_id: int,
    image_grids: list[np.ndarray],
    video_grids: list[np.ndarray],
    seconds_per_grid: list[float],
    merge_size: int,
    positions_per_second: float,
) -> tuple[np.ndarray, float]:
    """ids int64 [S] with media placeholders already repeated; grids are (t, h, w) in patches, in order of appearance.

    Returns positions float32 [3, S] and the position of the next token. Video times may be fractional.
    """
    positions = np.empty((3, len(ids)), np.float32)
    images, videos = iter(image_grids), iter(zip(video_grids, seconds_per_grid))
    is_visual = (ids == image_id) | (ids == video_id)
    row, position = 0, np.float32(0)
    while row < len(ids):
        if not is_visual[row]:
            end = row + int(np.argmax(is_visual[row:])) if is_visual[row:].any() else len(ids)
            positions[:, row:end] = position + np.arange(end - row, dtype=np.float32)
        else:
            grid, seconds = (next(images), 1.0) if ids[row] == image_id else next(videos)
            t, h, w = int(grid[0]), int(grid[1]) // merge_size, int(grid[2]) // merge_size
            end = row + t * h * w
            time = np.arange(t, dtype=np.float32) * np.float32(seconds) * np.float32(positions_per_second)
            block = np.stack(np.broadcast_arrays(time[:, None, None], np.arange(h)[:, None], np.arange(w)))
            positions[:, row:end] = block.reshape(3, -1).astype(np.float32) + position
        position = positions[:, row:end].max() + np.float32(1)
        row = end
    return positions, float(position)
