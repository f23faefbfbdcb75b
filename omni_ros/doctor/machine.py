"""Clocks, memory, and the devices that a robot hears, speaks and sees with."""

import glob
import importlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from omni_ros.doctor.finding import FAILURE, OK, WARNING, Finding, Subject

MEMINFO = Path("/proc/meminfo")
SOUND_CARDS = Path("/dev/snd")
EARLIEST = 1_764_000_000  # s: this was written at the end of November 2025 or later
LOOK = 0.2  # seconds for which the clocks are compared
APART = 0.02  # seconds by which they may differ afterwards
BESIDES = 1 << 30  # bytes that the node, its caches and the system need beside the weights


def clocks(subject: Subject) -> Iterator[Finding]:
    """Turns are timed by the steady clock; stamps and bags have the wall clock's time."""
    wall, steady = time.time(), time.monotonic()
    time.sleep(LOOK)
    apart = abs((time.time() - wall) - (time.monotonic() - steady))
    sync = "set it: timedatectl set-ntp true; a Jetson without a battery for its clock needs a time server at every start"
    if wall < EARLIEST:
        yield Finding("clocks", FAILURE, f"the wall clock says {time.strftime('%Y-%m-%d', time.gmtime(wall))}", sync)
    elif apart > APART:
        text = f"the wall clock moved {apart:.2f} s in {LOOK} s against the steady one: stamps of messages jump"
        yield Finding("clocks", WARNING, text, sync)
    else:
        yield Finding("clocks", OK, f"wall and steady clock agree within {1000 * apart:.1f} ms")
    if subject.values.get("use_sim_time"):
        text = "use_sim_time is set: without a publisher of /clock, stamps stand still (turns go on, by the steady clock)"
        yield Finding("clocks", WARNING, text, "false on a robot; in a simulation, see that ros2 topic hz /clock answers")


def memory(subject: Subject) -> Iterator[Finding]:
    """Weights of engines on a CPU lie in memory; those for a GPU pass through it, and stay there on a Jetson."""
    lines = (line.partition(":") for line in MEMINFO.read_text().splitlines())
    sizes = {name: int(rest.split()[0]) << 10 for name, _, rest in lines}  # bytes
    total, free = sizes["MemTotal"], sizes["MemAvailable"]
    text = f"{_gb(free)} of {_gb(total)} are free"
    if not subject.engine_bytes:
        yield Finding("memory", OK, text)
        return
    need = subject.engine_bytes + BESIDES
    subject.too_large = need > free
    text += f"; the engines have {_gb(subject.engine_bytes)}"
    if need > total:
        fix = "smaller engines: --weights int4 for a CPU, NVFP4 for a GPU; or a machine with more memory"
        yield Finding("memory", FAILURE, f"{text}, too much for this machine", fix)
    elif need > free:
        yield Finding(
            "memory", WARNING, f"{text}: with what runs now they do not fit", "end other programs before the node starts"
        )
    else:
        yield Finding("memory", OK, text)


def sound(subject: Subject) -> Iterator[Finding]:
    if SOUND_CARDS.is_dir() and (cards := list(SOUND_CARDS.iterdir())) and not any(os.access(card, os.R_OK) for card in cards):
        yield Finding("sound", FAILURE, f"{SOUND_CARDS} is not for this user", "sudo usermod -aG audio $USER, then log in again")
        return
    try:
        devices = importlib.import_module("sounddevice").query_devices()
    except ImportError:
        yield Finding("sound", OK, "sounddevice is not installed: only microphones and loudspeakers of this machine need it")
        return
    except Exception as error:  # noqa: BLE001 - PortAudio is missing (OSError), or raises its own
        yield Finding("sound", WARNING, f"PortAudio does not work ({error})", "sudo apt install libportaudio2")
        return
    ins, outs = (sum(1 for device in devices if device[f"max_{way}_channels"]) for way in ("input", "output"))
    if ins and outs:
        yield Finding("sound", OK, f"{ins} microphones and {outs} loudspeakers")
    else:
        text = f"{ins} microphones and {outs} loudspeakers are known to PortAudio"
        yield Finding(
            "sound", WARNING, text, "plug them in; in a container: docker run --device /dev/snd; arecord -l lists cards"
        )


def camera(subject: Subject) -> Iterator[Finding]:
    cameras = sorted(glob.glob("/dev/video*"))
    if closed := [name for name in cameras if not os.access(name, os.R_OK | os.W_OK)]:
        text = f"{', '.join(closed)}: not for this user"
        yield Finding("camera", WARNING, text, "sudo usermod -aG video $USER, then log in again")
    else:
        yield Finding("camera", OK, ", ".join(cameras) or "none at this machine")


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
