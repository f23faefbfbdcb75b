"""Batches for the Thinker: typed questions, spoken ones, and prompts that offer tools, each group with rows of its own length."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training import domain, layout, replies, scenes, strange, wording

TOKENS = 14  # of what is said, at most, for CTC
LABELS = 20  # of an answer, on average at most
GROUPS = {"typed": (112, 128), "spoken": (128, 216), "tools": (24, 416)}  # items, rows of each
FAMILY_WEIGHTS = (0.4, 0.36, 0.24)  # espeak-ng, flite, festival


def groups_of(batch: int) -> dict[str, tuple[int, int]]:
    """GROUPS for about `batch` items."""
    total = sum(n for n, _ in GROUPS.values())
    return {name: (max(2, round(n * batch / total)), rows) for name, (n, rows) in GROUPS.items()}


def clips_of(groups: dict) -> tuple[int, int]:
    """Clips of a batch: of speech, with spare ones for earlier turns, and of sounds that are no speech (after them)."""
    spoken, tools = groups["spoken"][0], groups["tools"][0]
    return spoken + spoken // 5 + tools // 2 + max(1, tools // 6), max(2, spoken // 20)


class Batches(torch.utils.data.IterableDataset):
    """Endless batches, dicts of tensors of fixed shapes. R rows of all groups one after another, B items, N clips.

    ids, positions [3, R]; label_rows, labels, label_items [L]: where each token of the answers is predicted; clip_rows [N, rows],
    picture_rows [B, rows]: where features go, R is nowhere; heard [N, 6]: clip, start, length, ratio, mel frames, backwards;
    tokens [N, 14], token_count [N]: what is said; figures [B, 9, 7], crowds: pictures with more than three; sight [B, 7]: colour
    and shape of each slot (0: nothing there) and the number of figures, -100 where not to be learnt; kinds [B].
    """

    def __init__(self, base: Path, bank: dict, batch: int, seed: int, held: bool = False, spoil: bool = True, forms=domain.ASK):
        self.base, self.meta, self.texts = base, bank["meta"], [str(t) for t in bank["texts"]]
        self.groups, self.seed, self.held, self.spoil, self.forms = groups_of(batch), seed, held, spoil, forms

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        info = torch.utils.data.get_worker_info()
        self.rnd = random.Random(self.seed * 1000 + (info.id if info else 0))
        self.build = layout.Builder(self.base)
        number = {q: i for i, q in enumerate(domain.questions())}
        clips: dict[int, dict[int, list[int]]] = {}
        for row, (question, family, _, _) in enumerate(self.meta.tolist()):
            clips.setdefault(question, {}).setdefault(family, []).append(row)
        self.clips = {q: clips[i] for q, i in number.items() if i in clips}
        self.strange = clips.get(-1, {})
        # " red" -> all colours, " star" -> all shapes: for spoiling what an answer has said already
        one = lambda words: [i for w in words if len(i := self.build.encode(f" {w}")) == 1]  # noqa: E731
        self.swap = {}
        for words in (domain.COLOURS, domain.SHAPES, [f"{s}s" for s in domain.SHAPES]):
            tokens = [i[0] for i in one(words)]
            self.swap.update({t: tokens for t in tokens})
        while True:
            yield self.batch()

    def batch(self) -> dict[str, Tensor]:
        groups = self.groups
        rows, items = sum(n * s for n, s in groups.values()), sum(n for n, _ in groups.values())
        speech, sounds = clips_of(groups)
        n = speech + sounds
        ids, positions = np.zeros(rows, np.int64), np.zeros((3, rows), np.float32)
        labels = [np.zeros(items * LABELS, np.int64) for _ in range(3)]
        labels[1][:] = -100
        clip_rows, picture_rows = np.full((n, layout.CLIP_ROWS), rows, np.int64), np.full((items, 20), rows, np.int64)
        heard = np.zeros((n, 6), np.float32)
        heard[:, 2:5] = 16000, 1, 100
        heard[speech:, 1] = layout.CLIP_SAMPLES + 1
        tokens, token_count = np.zeros((n, TOKENS), np.int64), np.zeros(n, np.int64)
        figures, sight, kinds = (
            np.zeros((items, 9, 7), np.float32),
            np.full((items, 7), -100, np.int64),
            np.zeros(items, np.int64),
        )
        crowds = np.zeros(max(8, items // 10), np.int64)
        used, sounded, labelled, crowded, at, j = 0, speech, 0, 0, 0, 0
        kind_number = {k: i for i, k in enumerate([*domain.KINDS, *domain.TOOL_KINDS])}
        for group, (count, s) in groups.items():
            for m in range(count):
                spoken = group == "spoken" or (group == "tools" and m % 2 == 0)
                later = count - m if group == "spoken" else 0
                later += (
                    (groups["tools"][0] + 1) // 2 if group != "tools" else (count - m + 1) // 2
                )  # clips that others still need
                while True:
                    item = domain.sample(self.rnd, self.held and group != "tools", forms=self.forms, tools=group == "tools")
                    if item["kind"] == "crowd" and crowded == len(crowds):
                        continue
                    if item["question"] is None and not (spoken and sounded < n):
                        continue
                    spare = speech - used - later
                    made = self.lay_out(item, spoken, spare, sounded)
                    if made is None:
                        continue
                    (row, pos, places, picture, start), new = made
                    if len(row) <= s and labelled + len(row) - start <= len(labels[0]):
                        break
                k = len(row)
                ids[at : at + k], positions[:, at : at + k] = row, pos
                some = slice(labelled, labelled := labelled + k - start)
                labels[0][some], labels[1][some], labels[2][some] = np.arange(start - 1, k - 1) + at, row[start:], j
                if (
                    self.spoil and self.rnd.random() < 0.3
                ):  # so that a word is taken from the picture, not from the word before it
                    for i in range(start, k):
                        if row[i] in self.swap and self.rnd.random() < 0.6:
                            ids[at + i] = self.rnd.choice(self.swap[row[i]])
                for (values, said, sound), where in zip(new, places):
                    c = sounded if sound else used
                    sounded, used = sounded + sound, used + (not sound)
                    heard[c] = values
                    if not sound and 0 < len(said) <= TOKENS:
                        tokens[c, : len(said)], token_count[c] = said, len(said)
                    clip_rows[c, : len(where)] = np.array(where) + at
                if picture:
                    picture_rows[j] = np.array(picture) + at
                    figures[j] = scenes.describe(self.rnd, item["scene"])
                    sight[j] = self.look(item["scene"])
                    if replies.is_crowd(item["scene"]):
                        crowds[crowded], crowded = j, crowded + 1
                kinds[j] = kind_number[item["kind"]]
                at, j = at + s, j + 1
        crowds[crowded:] = crowds[0] if crowded else 0
        out = dict(ids=ids, positions=positions, label_rows=labels[0], labels=labels[1], label_items=labels[2],
                   clip_rows=clip_rows, picture_rows=picture_rows, heard=heard, tokens=tokens, token_count=token_count,
                   figures=figures, crowds=crowds, sight=sight, kinds=kinds)  # fmt: skip
        return {k: torch.from_numpy(v) for k, v in out.items()}

    def lay_out(self, item: dict, spoken: bool, spare: int, sounded: int):
        """-> what Builder.layout returns, and for each clip (row of `heard`, tokens said, is it a sound); None: try another"""
        rnd, new, said = self.rnd, [], []
        for i, question in enumerate([q for q, _ in item["history"]] + [item["question"]]):
            last = i == len(item["history"])
            hear = spoken and (last or (spare > len(new) and rnd.random() < 0.5))
            if question is not None and question.startswith("<tool_response>"):
                hear = False
            if not hear:
                said.append(("text", wording.typed(rnd, question)))
                continue
            clip = self.hear(question)
            if clip is None:
                return None
            new.append(clip)
            said.append(("audio", int(clip[0][4])))
        system = rnd.choice(strange.SYSTEM_PROMPTS) if rnd.random() < 0.06 else ""
        return self.build.layout(item, said, system=system), new

    def hear(self, question: str | None):
        """A clip of the question (None: of what is no speech) somewhere in some seconds of sound."""
        rnd = self.rnd
        if question is None and rnd.random() < 0.6:  # a sound
            total = rnd.randrange(16000, layout.CLIP_SAMPLES) // 160 * 160
            return (0, layout.CLIP_SAMPLES + 1, total, 1, total // 160, 0), [], 1
        backwards = question is None
        if backwards:
            question = rnd.choice(list(self.clips))
        families = self.clips.get(question) or (None if question in self.clips else self.strange)
        if not families:
            return None
        family = rnd.choices(list(families), [FAMILY_WEIGHTS[f] for f in families])[0]
        clip = rnd.choice(families[family])
        ratio = rnd.uniform(0.88, 1.15)
        length = self.meta[clip, 2] / ratio
        room = layout.CLIP_SAMPLES - 1000 - length
        if room < 0:
            return None
        start = rnd.uniform(0, min(10000, room))
        total = int(min(layout.CLIP_SAMPLES, max(16000, start + length + rnd.uniform(500, 12000)))) // 160 * 160
        said = [] if backwards else self.build.encode(self.texts[self.meta[clip, 3]])
        return (clip, start, total, ratio, total // 160, backwards), said, 0

    @staticmethod
    def look(scene: list) -> np.ndarray:
        out = np.zeros(7, np.int64)
        out[6] = len(scene)
        if replies.is_crowd(scene):
            out[:6] = -100
            return out
        for slot, colour, shape in scene:
            i = domain.SLOTS.index(slot)
            out[2 * i : 2 * i + 2] = domain.COLOURS.index(colour) + 1, domain.SHAPES.index(shape) + 1
        return out
