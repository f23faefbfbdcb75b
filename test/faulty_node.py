"""The omni node with a defect, for tests: `python -m faulty_node --ros-args ...`, environment FAULT says which."""

import os
import sys
import time

import numpy as np

from omni_ros.dialogue.dialogue import Dialogue
from omni_ros.engines import verify
from omni_ros.nodes import omni_node
from omni_ros.pipeline.conversation import Conversation
from omni_ros.pipeline.pipeline import Pipeline
from omni_ros.pipeline.talker import Talker
from omni_ros.pipeline.thinker import Thinker


def once(owner: type, name: str) -> None:
    """`owner.name` raises when it is called for the first time."""
    original, calls = getattr(owner, name), []

    def method(*args, **kwargs):
        calls.append(name)
        if len(calls) == 1:
            raise RuntimeError(f"{name} is broken")
        return original(*args, **kwargs)

    setattr(owner, name, method)


def always(owner: type, name: str, choice: str) -> None:
    """The logits that `owner.name` returns first have their maximum at owner.config's id `choice`, or at 7."""
    original = getattr(owner, name)

    def method(self, *args):
        logits, *more = original(self, *args)
        logits = np.zeros_like(logits)
        logits[getattr(self.config, choice, 7)] = 1e4
        return logits, *more

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
        once(Dialogue, "hear")  # a stream's
        once(Dialogue, "cancel")  # a service's
        once(omni_node.Health, "status")  # a timer's
    elif fault == "loading":
        Pipeline.open = lambda *_, **__: time.sleep(60)
    elif fault == "computing":
        Pipeline.open = for_ever
    elif fault == "prefill":
        Conversation.generate = for_ever
    elif fault == "no words":
        always(Thinker, "read", "im_end_token_id")
    elif fault == "one sound":
        always(Talker, "read", "")
    elif fault == "large":
        verify.QUICK_S = -1.0  # reading any engine takes longer
    sys.exit(omni_node.main())
