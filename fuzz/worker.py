"""Tries cases, one after the other, in a process that may die of them.

    python -m fuzz.worker TARGET

Reads paths of case files from stdin; answers each with one JSON line: what it ended in, seconds, MB of memory.
"""

import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path

from fuzz.bombs import forget_peak, memory
from fuzz.targets import TARGETS
from omni_ros.errors import OmniError


def attempt(target: str, path: Path) -> dict[str, object]:
    forget_peak()
    idle, start = memory("VmRSS"), time.monotonic()
    ended, text = "taken", ""
    try:
        TARGETS[target].attempt(path)
    except OmniError as e:
        ended, text = "refused", f"{type(e).__name__}: {e}"
    except BaseException as e:  # SystemExit and KeyboardInterrupt of a library count, too
        ended, text = "untyped", "".join(traceback.format_exception(e, limit=-4))
    seconds, peak = time.monotonic() - start, memory("VmHWM") - idle
    forget_peak()
    return {"ended": ended, "text": text, "seconds": seconds, "peak_mb": peak, "rss_mb": memory("VmRSS")}


def main() -> int:
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")  # libraries may print
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    for line in sys.stdin:
        print(json.dumps(attempt(sys.argv[1], Path(line.rstrip("\n")))), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
