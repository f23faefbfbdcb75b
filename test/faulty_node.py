"""The omni node with a defect, for tests: `python -m faulty_node --ros-args ...`, environment FAULT says which."""

import os
import sys
import time

from omni_ros.dialogue.dialogue import Dialogue
from omni_ros.engines import verify
from omni_ros.nodes import omni_node
from omni_ros.pipeline.conversation import Conversation
from omni_ros.pipeline.pipeline import Pipeline


def once(owner: type, name: str) -> None:
    """`owner.name` raises when it is called for the first time."""
    original, calls = getattr(owner, name), []

    def method(*args, **kwargs):
        calls.append(name)
        if len(calls) == 1:
            raise RuntimeError(f"{name} is broken")
        return original(*args, **kwargs)

    setattr(owner, name, method)


def for_ever(*_, **__) -> None:
    """Something that cannot be interrupted from outside."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        sum(range(10000))


if __name__ == "__main__":
    fault = os.environ["FAULT"]
    if fault == "callbacks":
        once(Dialogue, "ask")  # a subscription's
        once(Dialogue, "cancel")  # a service's
        once(omni_node.Health, "status")  # a timer's
    elif fault == "loading":
        Pipeline.open = lambda *_, **__: time.sleep(60)
    elif fault == "computing":
        Pipeline.open = for_ever
    elif fault == "prefill":
        Conversation.generate = for_ever
    elif fault == "large":
        verify.QUICK_S = -1.0  # reading any engine takes longer
    sys.exit(omni_node.main())
