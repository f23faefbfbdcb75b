"""The omni node with a Thinker that writes what environment FORCED says: a JSON list of replies, one after the other."""

import json
import os
import sys

from omni_ros.nodes import omni_node
from omni_ros.pipeline import streaming
from omni_ros.pipeline.conversation import Conversation

REPLIES = json.loads(os.environ["FORCED"])
LEFT: list[int] = []  # tokens of the reply that is being written


class Forced:
    """In place of the Thinker's sampler."""

    def __init__(self, *_: object) -> None:
        return

    def __call__(self, logits) -> int:
        return LEFT.pop(0)


def keep(self: Conversation, prompt):
    """A turn begins with it: take the next reply."""
    if prompt.assistant_start >= 0 and not WARM_UP.pop():
        tokenizer = self.models.prompts.tokenizer
        LEFT[:] = [*tokenizer.cut(REPLIES.pop(0)), tokenizer.tokenizer.token_to_id("<|im_end|>")]
    else:
        LEFT[:] = [self.models.thinker.config.im_end_token_id]
    WARM_UP.append(False)
    return original(self, prompt)


WARM_UP = [True]
if __name__ == "__main__":
    original, Conversation.keep = Conversation.keep, keep
    streaming.Sampler = Forced
    sys.exit(omni_node.main())
