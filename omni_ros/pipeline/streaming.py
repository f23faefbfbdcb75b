"""One turn as three concurrent stages: Thinker -> text rows -> Talker -> codec frames -> Code2Wav -> events.

What a stage computes depends only on the data it receives, never on when it arrives, so streaming and offline give
identical tokens and codes. A reply token is handed to the Talker, as its text row, only once it is known not to be the
last one, which is the moment it is generated: transformers never feeds the last token of a reply.
"""

import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from omni_ros.engines.calls import Call
from omni_ros.errors import InputError, LowMemoryError, RunawayError
from omni_ros.pipeline.channel import Channel, ChannelClosed
from omni_ros.pipeline.prompt import Prompt
from omni_ros.pipeline.request import AudioChunk, Event, Finished, Request, TextDelta, TextFinished, ToolCall
from omni_ros.pipeline.runaway import RunawayGuard
from omni_ros.pipeline.sampling import Sampler
from omni_ros.pipeline.tool_calls import CallFilter, Piece

if TYPE_CHECKING:
    from omni_ros.pipeline.conversation import Conversation

EVENT_BACKLOG = 64  # events a slow consumer may leave unread before the stages wait for it
# Reply tokens, as text rows, that may wait for the Talker. The stages share one device: a Thinker that runs on to the end of
# the reply takes from the Talker what the first second of speech needs, and that is heard as gaps.
TOKEN_LEAD = 8


class Cancelled(Exception):
    """Raised between two runs of an engine, once cancel() was called."""


class Turn:
    """Answers one request in a conversation, whose states belong to its three stages until it ends."""

    def __init__(self, request: Request, conversation: "Conversation", cancelled: threading.Event):
        self.request, self.conversation, self.cancelled = request, conversation, cancelled
        self.thinker, self.prompts = conversation.models.thinker, conversation.models.prompts
        voice = conversation.models.speak() if request.audio_output else None
        self.max_frames = min(request.max_audio_length, voice.code2wav.capacity) if voice else 0
        self.to_say = [] if request.say is None else self.prompts.words(request.say)
        longest = max(request.max_generate_length, len(self.to_say))
        self.texts: Channel[np.ndarray] = Channel(TOKEN_LEAD if request.streaming else longest)
        self.frames: Channel[np.ndarray] = Channel(self.max_frames + 1)
        self.events: Channel[Event] = Channel(EVENT_BACKLOG)
        self.prompt_ready: Channel[Prompt] = Channel(1)  # what it does not share with the conversation is still to be read
        self.prompt_read: Channel[Prompt] = Channel(1)
        self.error: BaseException | None = None
        self.reason, self.audio_reason = "cancelled", "none"
        self.token_ids: list[int] = []
        self.text, self.text_ended = "", False
        self.calls = CallFilter(self.prompts.tokenizer.cut) if request.tools is not None else None
        self.codes: list[np.ndarray] = []
        self.metrics: dict[str, Any] = {}
        self.guard = RunawayGuard(request.runaway_limit)
        seeds = conversation.seed(request.seed).spawn(3)
        self.thinker_rng, self.talker_rng, self.predictor_rng = map(np.random.default_rng, seeds)
        if voice:
            self.talker, self.code2wav = voice.talker, voice.code2wav
            self.speaker = self.talker.speaker_id(request.speaker)

    # ---- driving ------------------------------------------------------------------------------------------------
    def run(self) -> Iterator[Event]:
        """Yields the events in order; raises the first stage's error. Leaving the iterator cancels the turn."""
        stages = [self.think] + ([self.talk, self.vocode] if self.request.audio_output else [])
        self.started = time.perf_counter()
        threads = [threading.Thread(target=self._guard, args=(stage,), name=stage.__name__, daemon=True) for stage in stages]
        closer = threading.Thread(target=self._close_events, args=(threads,), name="turn", daemon=True)
        try:
            self._start(*threads, closer)
            yield from self.events
        finally:
            self.cancelled.set()
            self.events.abort()
            for thread in (*threads, closer):
                if thread.ident is not None:
                    thread.join()
        error, self.error = self.error, None  # which keeps alive what it passed through
        if isinstance(error, MemoryError):
            error = LowMemoryError(f"there is not enough memory for this turn ({error or 'MemoryError'}): end other programs")
        if error is not None:
            if not isinstance(error, InputError):
                self.conversation.reset()  # rows of a run that failed may hold anything
            try:
                raise error
            finally:
                del error  # it and this frame would keep each other alive, and with them the request's pictures
        yield Finished(self.text, self.token_ids, self._codes(), self.reason, self.audio_reason, self._metrics())

    def _start(self, *threads: threading.Thread) -> None:
        try:
            with Call("the start of a turn's threads"):  # CPython waits for ever for one that had no memory to begin
                for thread in threads:
                    thread.start()
        except RuntimeError as e:
            self._abort()
            raise LowMemoryError(f"the turn's threads cannot be started ({e}): end other programs, or raise the limit") from e

    def check(self) -> None:
        if self.cancelled.is_set():
            raise Cancelled

    def _guard(self, stage) -> None:
        try:
            stage()
        except Cancelled:
            return
        except ChannelClosed:
            self.cancelled.set()
        except RunawayError as e:  # nothing aborts: what was made until then is still handed on
            self.error = self.error or e
            self.cancelled.set()
        except BaseException as e:  # noqa: BLE001 - whatever a stage dies of belongs to the caller of run()
            self.error = self.error or e
            self._abort()

    def _abort(self) -> None:
        for channel in (self.texts, self.frames, self.prompt_ready, self.prompt_read, self.events):
            channel.abort()

    def _close_events(self, threads: list[threading.Thread]) -> None:
        for thread in threads:
            thread.join()
        self.events.close()

    # ---- Thinker --------------------------------------------------------------------------------------------------
    def think(self) -> None:
        r, c = self.request, self.conversation
        try:
            prompt = c.build(r.messages, self.check, answer=True, special_tokens=r.special_tokens, tools=r.tools)
            if r.audio_output:
                self.talker.check(prompt)  # before any text is out
            start = c.keep(prompt)
            self.prompt_ready.put(prompt)
            self._mark("inputs_s")
            logits = c.read(prompt, start, self.check)
            self._mark("prefill_s")
            self.metrics["prompt_tokens"], self.metrics["reused_tokens"] = len(prompt), start
            self.prompt_read.put(prompt)
            if r.say is not None:
                self._recite()
                return
            position = prompt.next_position
            sampler = Sampler(self.thinker.config.vocab_size, r.temperature, r.top_k, r.top_p, self.thinker_rng)
            stream = self.prompts.tokenizer.stream()
            runaway: RunawayError | None = None
            while not self.cancelled.is_set():
                token = sampler(logits)
                self.token_ids.append(token)
                self._mark("first_token_s", once=True)
                last = self._why_last(token)
                runaway = None if last else self.guard.token(token)
                if last != "stop":
                    # The last token is not spoken. transformers cannot speak a reply of one token; ours is heard.
                    spoken = not (last or runaway) or len(self.token_ids) == 1
                    self._write(stream(token), [token], spoken)
                if last:
                    self.reason = last
                    break
                if runaway:
                    if self.calls is not None and self.calls.inside:
                        runaway.repeated = 0  # nothing of that was said
                    break
                logits = c.step(token, position)
                position += 1
            self._mark("last_token_s")
            if rest := stream.rest():
                self._write(rest, [], spoken=False)
            if runaway or (self.reason == "cancelled" and isinstance(self.error, RunawayError)):
                self.reason = "runaway"
            if self.reason != "cancelled":
                for one in self.calls.end() if self.calls is not None else ():
                    self._put(one)
                self.events.put(TextFinished(self.text, list(self.token_ids), self.reason))
            if runaway:
                raise runaway
        finally:
            for channel in (self.texts, self.prompt_ready, self.prompt_read):
                channel.close()

    def _recite(self) -> None:
        """Speak the given words as if the Thinker had written them, and then its end token."""
        stream = self.prompts.tokenizer.stream()
        for token in self.to_say:
            self.check()
            self.token_ids.append(token)
            self._mark("first_token_s", once=True)
            self._put(Piece(stream(token), [token], [token]))
        self._mark("last_token_s")
        if rest := stream.rest():
            self._put(Piece(rest, [], []))
        self.reason = "stop"
        self.events.put(TextFinished(self.text, list(self.token_ids), self.reason))

    def _write(self, text: str, token_ids: list[int], spoken: bool) -> None:
        """More of the reply, out of which tool calls are taken."""
        if self.calls is None:
            self._put(Piece(text, token_ids, token_ids if spoken else []))
            return
        text = text or "".join(self.prompts.tokenizer.marks.get(token, "") for token in token_ids)
        for one in self.calls(Piece(text, token_ids, token_ids if spoken else [])):
            self._put(one)

    def _put(self, one: Piece | ToolCall) -> None:
        """Tell what is said or called, and hand words on as the Talker's text rows [1, H]: made here, because the Talker has less
        time to spare."""
        if isinstance(one, ToolCall):
            self.events.put(one)
            return
        self.text += one.text
        self.events.put(TextDelta(one.text, one.token_ids))
        for token in one.spoken if self.request.audio_output else ():
            self.texts.put(self.talker.text([token]))

    def _why_last(self, token: int) -> str | None:
        if token == self.thinker.config.im_end_token_id:
            return "stop"
        if len(self.token_ids) >= self.request.max_generate_length:
            return "length"
        return "kv_cache_full" if self.conversation.thinker_state.length >= self.thinker.capacity else None

    # ---- Talker + CodePredictor -----------------------------------------------------------------------------------
    def talk(self) -> None:
        r, c, talker = self.request, self.conversation, self.talker
        try:
            prompt = self.prompt_ready.get()
            if prompt is None:
                return
            user_text = c.user_text(prompt)  # while the Thinker reads the prompt
            read = self.prompt_read.get()
            if not r.streaming:
                self.texts.wait_closed()
            first = self.texts.get()
            if read is None or first is None:
                return
            self.audio_reason = "cancelled"
            greedy = r.talker_temperature == 0
            sampler = talker.sampler(r.talker_temperature, r.talker_top_k, r.talker_top_p, r.repetition_penalty, self.talker_rng)
            answer = talker.assistant_rows(prompt, first, self.speaker)
            logits, last_hidden, position = c.read_user_rows(prompt, self.check, user_text, answer)
            while not self.cancelled.is_set():
                code0 = sampler(logits)
                if code0 == talker.eos:
                    self.audio_reason = "stop"
                    break
                codes, embed_sum = talker.frame(code0, last_hidden, None if greedy else self.predictor_rng)
                self.codes.append(codes)
                self._mark("first_code_s", once=True)
                self.frames.put(codes)
                if runaway := self.guard.frame(code0, len(self.codes), len(self.token_ids)):
                    raise runaway
                if len(self.codes) >= self.max_frames:
                    self.audio_reason = "length"
                    break
                if c.talker_state.length >= talker.capacity:
                    self.audio_reason = "kv_cache_full"
                    break
                logits, last_hidden = talker.step(c.talker_state, embed_sum, self._next_text(), position)
                position += 1
            self._mark("last_code_s")
        finally:
            self.texts.abandon()  # the Talker may end before the text does
            self.frames.close()

    def _next_text(self) -> np.ndarray:
        """The text row [1, H] of the next frame: a reply token, then tts_eos once, then tts_pad."""
        if self.text_ended:
            return self.talker.tts_pad
        text = self.texts.get()
        if text is not None:
            return text
        self.text_ended = True
        return self.talker.tts_eos

    # ---- Code2Wav ---------------------------------------------------------------------------------------------------
    def vocode(self) -> None:
        r, samples, chunks = self.request, 0, 0
        self.conversation.code2wav_state.reset()
        size = r.first_chunk_frames
        pending: list[np.ndarray] = []
        if not r.streaming:
            self.frames.wait_closed()
        for frame in self.frames:
            pending.append(frame)
            if not r.streaming:
                pending += self.frames.drain()
            if len(pending) >= size or not r.streaming:
                samples += self._emit(pending)
                pending, chunks = [], chunks + 1
                if chunks % 2 == 0:  # twice each size: a chunk must be ready before the one ahead of it is played
                    size = min(size * 2, r.chunk_frames)
        if self.cancelled.is_set():
            return
        if pending:
            samples += self._emit(pending)
        self.events.put(AudioChunk(np.zeros(0, np.float32), is_last=True))
        self.metrics["audio_samples"] = samples

    def _emit(self, frames: list[np.ndarray]) -> int:
        if self.cancelled.is_set():
            return 0
        pcm = self.code2wav.decode(self.conversation.code2wav_state, np.stack(frames, axis=1))
        self._mark("first_pcm_s", once=True)
        self._mark("last_pcm_s")
        self.events.put(AudioChunk(pcm, is_last=False))
        if runaway := self.guard.sound(pcm, self.code2wav.samples_per_frame):
            raise runaway
        return len(pcm)

    # ---- results ----------------------------------------------------------------------------------------------------
    def _mark(self, name: str, once: bool = False) -> None:
        if not (once and name in self.metrics):
            self.metrics[name] = time.perf_counter() - self.started

    def _codes(self) -> np.ndarray:
        if not self.codes:
            voice = self.conversation.models.voice
            return np.zeros((voice.code2wav.num_quantizers if voice else 0, 0), np.int64)
        return np.stack(self.codes, axis=1)

    def _metrics(self) -> dict[str, Any]:
        """Times in seconds since the request arrived, then rates."""
        m = {k: round(v, 6) if isinstance(v, float) else v for k, v in self.metrics.items()}
        m["reply_tokens"], m["frames"] = len(self.token_ids), len(self.codes)
        decode = m.get("last_token_s", 0) - m.get("first_token_s", 0)
        if m["reply_tokens"] > 1 and decode > 0:
            m["tokens_per_s"] = round((m["reply_tokens"] - 1) / decode, 2)
        if m.get("audio_samples"):
            m["audio_s"] = m["audio_samples"] / self.code2wav.sample_rate
            m["rtf"] = round(m["last_pcm_s"] / m["audio_s"], 4)
            m["ms_per_frame"] = round(1e3 * (m["last_code_s"] - m["first_code_s"]) / max(1, m["frames"] - 1), 3)
        m["total_s"] = round(time.perf_counter() - self.started, 6)
        return m
