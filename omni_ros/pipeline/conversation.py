"""One conversation on a set of engines. Each turn computes only what is new in it.

What was read stays in the engines' states: rows of the KV caches of Thinker and Talker. The rows that a prompt shares with
them, from the first on, are never computed again: the system prompt, earlier turns, pictures. A row is the same if its token
is, or its media; what came before decides the rest, positions included.
"""

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from omni_ros.engines.engine import Engine, State
from omni_ros.errors import InputError, OmniError
from omni_ros.pipeline.media import Media
from omni_ros.pipeline.models import Models
from omni_ros.pipeline.prompt import Prompt
from omni_ros.pipeline.request import Event, Request
from omni_ros.pipeline.streaming import Cancelled, Turn

Check = Callable[[], None]  # called between runs of engines; raises Cancelled to stop there


class Conversation:
    """One turn at a time; `cancel` may be called from any thread. Several conversations may share one set of engines.

    Arrays in messages are recognised by being the same object as before, files by path, time and size: keep the array of a
    picture or a sound that stays in the history, and do not write into it.
    """

    def __init__(self, models: Models):
        """Raises EngineError when the engines were built for fewer conversations than are open."""
        self.models = models
        self._busy = threading.Lock()
        self._cancelled = threading.Event()  # of the turn or feed that runs
        self._states: list[State] = []
        try:
            self.thinker_state = self._state(models.thinker.engine)
            if models.voice is not None:
                self.talker_state = self._state(models.voice.talker.engine)
                self.code2wav_state = self._state(models.voice.code2wav.engine)
        except OmniError:
            self.close()
            raise
        capacity = models.thinker.capacity
        # Of each row in the Thinker's cache: its key, whether it is the user's, and what the Talker sees of it if it is media.
        self._keys = np.empty(capacity, np.int64)
        self._user_mask = np.zeros(capacity, bool)
        self._accept_hidden = np.empty((capacity, models.thinker.config.hidden_size), np.float32)
        self._talker_rows = 0  # so many of the user's rows are in the Talker's cache, from the first on
        self._media: list[Media] = []  # of the last prompt, encoded
        self._serials = itertools.count()
        self._seeds = np.random.SeedSequence()

    def _state(self, engine: Engine) -> State:
        state = engine.new_state()
        self._states.append(state)
        return state

    # ---- for callers --------------------------------------------------------------------------------------------------
    def generate(self, request: Request, fresh: bool = False) -> Iterator[Event]:
        """TextDelta, TextFinished and AudioChunk events while they are made, then Finished.

        `cancel` works from this call on. Reading the events raises InputError, PromptTooLongError, UnknownSpeakerError,
        RunawayError or EngineError; the next turn works after each. `fresh` forgets everything first.
        """
        cancelled = threading.Event()
        if not self._busy.locked():
            self._cancelled = cancelled
        return self._play(request, cancelled, fresh)

    def _play(self, request: Request, cancelled: threading.Event, fresh: bool) -> Iterator[Event]:
        with self._alone():
            self._cancelled = cancelled
            if fresh:
                self.reset()
            try:
                yield from Turn(request, self, cancelled).run()
            finally:
                self._cancelled = threading.Event()

    def feed(
        self, messages: list[dict[str, Any]], special_tokens: bool = True, tools: list[dict[str, Any]] | None = None
    ) -> None:
        """Compute ahead of the next turn what is known of it: its history, or an open user message whose parts so far are
        final, but for sound that is {"unfinished": True}: of that only the rows are computed that later sound cannot change,
        unless it is louder. The turn gives the same tokens and codes as without. Returns early when cancelled; raises as
        `generate`."""
        with self._alone():
            try:
                check = checker(self._cancelled)  # a cancel() since the last turn, when this was about to begin, counts
                prompt = self.build(messages, check, answer=False, special_tokens=special_tokens, tools=tools)
                self.read(prompt, self.keep(prompt), check)
                if self.models.voice is not None:
                    self.models.voice.talker.check(prompt)
                    self.read_user_rows(prompt, check)
            except Cancelled:
                return
            except InputError:
                raise
            except BaseException:
                self.reset()  # rows of a run that failed may hold anything
                raise
            finally:
                self._cancelled = threading.Event()

    def cancel(self) -> None:
        """End the turn or feed that runs or is about to, before its next run of an engine."""
        self._cancelled.set()

    def reset(self) -> None:
        """Forget everything; the next turn computes all of its prompt."""
        for state in self._states:
            state.reset()
        self._talker_rows = 0
        self._media = []

    def close(self) -> None:
        """Cancel and give back what it has in the engines; it cannot be used afterwards."""
        self.cancel()
        with self._busy:
            for state in self._states:
                state.close()
            self._states = []

    @property
    def closed(self) -> bool:
        return not self._states

    def _alone(self) -> "_Claim":
        if self.closed:
            raise OmniError("the conversation was closed; open another one")
        return _Claim(self._busy)

    # ---- for its turn -------------------------------------------------------------------------------------------------
    def seed(self, seed: int | None) -> np.random.SeedSequence:
        return self._seeds.spawn(1)[0] if seed is None else np.random.SeedSequence(seed)

    def build(
        self,
        messages: list[dict[str, Any]],
        check: Check,
        *,
        answer: bool,
        special_tokens: bool,
        tools: list[dict[str, Any]] | None = None,
    ) -> Prompt:
        """The prompt of `messages`, its media encoded; see PromptBuilder.build."""

        def read(kind: str, part: dict[str, Any], max_tokens: int) -> Media:
            check()
            media = self.models.media.read(kind, part, self._media, self._serials, max_tokens)
            if media not in self._media:
                self._media.append(media)
            return media

        prompt = self.models.prompts.build(messages, read, answer=answer, special_tokens=special_tokens, tools=tools)
        self._media = [media for _, media in prompt.media]
        for media in self._media:
            self.models.media.encode(media, check)
        return prompt

    def keep(self, prompt: Prompt) -> int:
        """Drop the rows that `prompt` does not begin with; returns how many stay. Where an answer is to follow, one row is always
        left to read."""
        n = min(self.thinker_state.length, len(prompt) - (prompt.assistant_start >= 0))
        differs = np.flatnonzero(self._keys[:n] != prompt.keys[:n])
        common = int(differs[0]) if len(differs) else n
        common = _shorten(self.thinker_state, common)
        # The role of a row `<|im_start|>` is known from the next one, so the last common row may have another now.
        user_rows = min(int(mask[:common].sum()) for mask in (self._user_mask, prompt.user_mask))
        self._talker_rows = min(self._talker_rows, user_rows)
        if self.models.voice is not None:
            self._talker_rows = _shorten(self.talker_state, self._talker_rows)
        return common

    def read(self, prompt: Prompt, start: int, check: Check) -> np.ndarray:
        """Run the Thinker over the rows from `start` on; returns the logits [V] after the last."""
        thinker, logits = self.models.thinker, np.zeros(0, np.float32)
        for row in range(start, len(prompt), thinker.engine.max_rows):
            check()
            rows = slice(row, min(row + thinker.engine.max_rows, len(prompt)))
            logits, self._accept_hidden[rows] = thinker.read(self.thinker_state, prompt, rows)
            self._keys[rows], self._user_mask[rows] = prompt.keys[rows], prompt.user_mask[rows]
        return logits

    def step(self, token: int, position: float) -> np.ndarray:
        """Feed a reply token to the Thinker; returns the logits [V] of the next."""
        logits = self.models.thinker.step(self.thinker_state, token, position)
        row = self.thinker_state.length - 1
        self._keys[row], self._user_mask[row] = token, False
        return logits

    def user_text(self, prompt: Prompt) -> np.ndarray:
        """The Talker's text rows [n, H] of the user's new tokens that are not media; needs nothing of the Thinker."""
        new = np.flatnonzero(prompt.user_mask)[self._talker_rows :]
        return self.models.speak().talker.text(prompt.ids[new[~prompt.media_mask[new]]])

    def read_user_rows(
        self, prompt: Prompt, check: Check, user_text: np.ndarray | None = None, assistant_rows: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Run the Talker over the user's new rows, then `assistant_rows` [9, H]; `user_text` as above, if it is there.

        Returns the logits [V] of the first frame's code 0, last_hidden [1, H], and the position of the first frame.
        """
        talker = self.models.speak().talker
        positions, next_position = talker.positions(prompt)
        new = np.flatnonzero(prompt.user_mask)[self._talker_rows :]
        is_media = prompt.media_mask[new]
        rows = np.empty((len(new), talker.config.hidden_size), np.float32)
        rows[~is_media] = self.user_text(prompt) if user_text is None else user_text
        if is_media.any():
            rows[is_media] = talker.hidden_projection(self._accept_hidden[new[is_media]])
        last = self._talker_rows + len(new)
        if assistant_rows is not None:
            rows = np.concatenate([rows, assistant_rows])
        positions = positions[:, self._talker_rows :]
        logits = last_hidden = np.zeros(0, np.float32)
        for row in range(0, len(rows), talker.engine.max_rows):
            check()
            piece = slice(row, row + talker.engine.max_rows)
            logits, last_hidden = talker.read(self.talker_state, rows[piece], positions[:, piece][:, : len(rows[piece])])
            self._talker_rows = min(last, self.talker_state.length)
        return logits, last_hidden, next_position


class _Claim:
    """Enters only if nobody else is in."""

    def __init__(self, lock: threading.Lock):
        self.lock = lock

    def __enter__(self) -> None:
        if not self.lock.acquire(blocking=False):
            raise OmniError("a turn is running; cancel() it and read its events to the end first")

    def __exit__(self, *error: object) -> None:
        self.lock.release()


def _shorten(state: State, rows: int) -> int:
    """Keep the first `rows` rows of a state, or none where rows cannot be taken back; returns how many there are now."""
    if rows < state.length and not state.truncates:
        state.reset()
    elif rows < state.length:
        state.truncate(rows)
    return state.length


def checker(cancelled: threading.Event) -> Check:
    def check() -> None:
        if cancelled.is_set():
            raise Cancelled

    return check
