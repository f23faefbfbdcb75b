"""The logs of a training (OUT/*.jsonl) -> one picture.  python -m training.plot OUT PICTURE"""

import json
import sys
from pathlib import Path


def losses(out: Path, picture: Path) -> None:
    """A row of axes: losses of each program on a logarithmic scale, and shares (accuracy) on a linear one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    logs: dict[str, list[dict]] = {}
    for file in sorted(out.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            logs.setdefault(entry.pop("name"), []).append(entry)
    if not logs:
        return
    figure, axes = pyplot.subplots(1, len(logs), figsize=(5 * len(logs), 4), squeeze=False)
    for ax, (name, entries) in zip(axes[0], logs.items()):
        for key in dict.fromkeys(k for e in entries for k in e if k not in ("seconds", "step", "lr")):
            points = [(e["step"], e[key]) for e in entries if key in e]
            ax.plot(*zip(*points), label=key, marker="." if len(points) < 20 else None)
        if any(v > 1.5 for e in entries for k, v in e.items() if k not in ("seconds", "step", "lr")):
            ax.set_yscale("log")
        ax.set_title(name)
        ax.set_xlabel("step")
        ax.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(picture, dpi=70)
    pyplot.close(figure)


if __name__ == "__main__":
    losses(Path(sys.argv[1]), Path(sys.argv[2]))
