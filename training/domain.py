"""What the micro model knows: scenes of coloured shapes, questions about them, answers. No torch.

`sample(random)` draws one training item; `questions()` and `answers()` list every string that has to be spoken. A scene is a
list of (slot, colour, shape), left to right, at most one for each of three slots; or a crowd of four to nine equal shapes, whose
slot is "crowd". Some colour-shape pairs are never the subject of a training question of some kinds (`held_out`), and some word
orders are never heard or read in training (`UNSEEN`): what the model makes of them is measured.
"""

import itertools
import random
import zlib
from random import Random

from training import strange
from training.forms import ASK, CHAT, COLOURS, CROWDS, FOLLOW, NO_PICTURE, NOT_UNDERSTOOD, NUMBERS, PLACE, SHAPES, SLOTS, UNSEEN
from training.replies import (
    SAYABLE,
    a,
    answer_colour,
    answer_colour_at,
    answer_count,
    answer_count_to,
    answer_exists,
    answer_exists_colour,
    answer_is_it,
    answer_position,
    answer_see,
    answer_sum,
    answer_where,
    answer_which,
    sentence,
)
from training.tools import CANNOT, DID_NOT, DO, FAILED, WORKED, offered, tool_call, tool_result


# ---- drawing ----------------------------------------------------------------------------------------------------------
def draw_scene(rnd, n=None):
    n = rnd.choices((0, 1, 2, 3), (1, 6, 7, 7))[0] if n is None else n
    scene = []
    for s in sorted(rnd.sample(range(3), n)):
        while (o := (SLOTS[s], rnd.choice(COLOURS), rnd.choice(SHAPES))) and o[1:] in [p[1:] for p in scene]:
            pass
        scene.append(o)
    return scene


def draw_crowd(rnd):
    return [("crowd", rnd.choice(COLOURS), rnd.choice(SHAPES))] * rnd.choice(CROWDS)


def held_out(kind, colour, shape):
    """This colour and shape are never the subject of a training question of this kind."""
    return zlib.crc32(f"{kind} {colour} {shape}".encode()) % 8 == 0


HELD_KINDS = ("see", "colour", "position", "exists", "where", "where_exact", "which")


def subject(kind, scene, slots):
    """The (colour, shape) pairs that a question is about."""
    if kind == "see":
        return [o[1:] for o in scene]
    if kind == "position":
        return [o[1:] for o in scene if o[0] == slots["slot"]]
    if kind in ("colour", "where"):
        return [o[1:] for o in scene if o[2] == slots["shape"]]
    if kind in ("exists", "where_exact"):
        return [(slots["colour"], slots["shape"])]
    if kind == "which":
        return [o[1:] for o in scene if o[1] == slots["colour"]]
    return []


PICTURE_KINDS = (
    "see", "colour", "count", "count_all", "position", "exists", "exists_shape", "exists_colour", "where", "where_exact", "which",
    "count_colour", "colour_at", "is_it",
)  # fmt: skip
# How often each kind is asked in training.
KINDS = {
    "see": 14, "colour": 10, "count": 6, "count_all": 3, "position": 11, "exists": 9, "exists_shape": 3, "exists_colour": 3,
    "where": 7, "where_exact": 5, "which": 6, "count_colour": 3, "colour_at": 4,
    "is_it": 4, "crowd": 6, "plus": 5, "minus": 4, "count_to": 2,
    "say": 6, "chat": 4, "no_picture": 2, "follow": 10, "cannot": 2, "strange": 9,
}  # fmt: skip
TOOL_KINDS = {"tool": 10, "tool_result": 4, "other": 6}  # where tools are offered


def ask(rnd, kind, scene, forms=ASK):
    """One question of a kind about a scene -> (question, answer, slots), or None where the answer would be ambiguous."""
    shapes, colours = [o[2] for o in scene], [o[1] for o in scene]
    slots = {}
    if kind in ("colour", "where", "is_it"):
        single = [s for s in SHAPES if shapes.count(s) <= 1]
        present = [s for s in single if s in shapes]
        slots["shape"] = rnd.choice(present) if present and rnd.random() < 0.85 else rnd.choice(single)
        if kind == "is_it":
            right = [o[1] for o in scene if o[2] == slots["shape"]]
            slots["colour"] = right[0] if right and rnd.random() < 0.5 else rnd.choice(COLOURS)
    elif kind in ("count", "exists_shape"):
        slots["shape"] = rnd.choice(shapes) if shapes and rnd.random() < 0.7 else rnd.choice(SHAPES)
    elif kind in ("exists", "where_exact"):
        here = rnd.random() < (0.5 if kind == "exists" else 0.8)
        if scene and here:
            slots["colour"], slots["shape"] = rnd.choice(scene)[1:]
        elif scene and rnd.random() < 0.6:  # near misses
            o = rnd.choice(scene)
            slots["colour"], slots["shape"] = (o[1], rnd.choice(SHAPES)) if rnd.random() < 0.5 else (rnd.choice(COLOURS), o[2])
        else:
            slots["colour"], slots["shape"] = rnd.choice(COLOURS), rnd.choice(SHAPES)
    elif kind in ("which", "exists_colour", "count_colour"):
        usable = [c for c in COLOURS if kind != "which" or colours.count(c) <= 1]
        present = [c for c in usable if c in colours]
        slots["colour"] = rnd.choice(present) if present and rnd.random() < 0.7 else rnd.choice(usable)
    elif kind in ("position", "colour_at"):
        slots["slot"] = rnd.choice(scene)[0] if scene and rnd.random() < 0.8 else rnd.choice(SLOTS)
        slots["place"] = PLACE[slots["slot"]]
    elif kind in ("plus", "minus"):
        x, y = rnd.randrange(11), rnd.randrange(11)
        x, y = (y, x) if kind == "minus" and y > x else (x, y)
        slots = {"x": NUMBERS[x], "y": NUMBERS[y], "result": x + y if kind == "plus" else x - y}
        return rnd.choice(forms[kind]).format(**slots), answer_sum(x, y, kind), slots
    elif kind == "count_to":
        n = rnd.randrange(1, 10)
        return rnd.choice(forms[kind]).format(n=NUMBERS[n]), answer_count_to(n), {}
    elif kind == "say":
        words = rnd.choice(SAYABLE)
        return rnd.choice(forms[kind]).format(words=words), sentence(words), {}
    if "colour" in slots:
        slots["a"] = a(slots["colour"])
    answer = {
        "see": lambda: answer_see(scene),
        "colour": lambda: answer_colour(scene, slots["shape"]),
        "count": lambda: answer_count(scene, slots["shape"]),
        "count_all": lambda: answer_count(scene),
        "position": lambda: answer_position(scene, slots["slot"]),
        "exists": lambda: answer_exists(scene, slots["shape"], slots["colour"]),
        "exists_shape": lambda: answer_exists(scene, slots["shape"]),
        "exists_colour": lambda: answer_exists_colour(scene, slots["colour"]),
        "where": lambda: answer_where(scene, slots["shape"]),
        "where_exact": lambda: answer_where(scene, slots["shape"], slots["colour"]),
        "which": lambda: answer_which(scene, slots["colour"]),
        "count_colour": lambda: answer_count(scene, None, slots["colour"]),
        "colour_at": lambda: answer_colour_at(scene, slots["slot"]),
        "is_it": lambda: answer_is_it(scene, slots["shape"], slots["colour"]),
    }[kind]()
    return rnd.choice(forms[kind]).format(**slots), answer, slots


def sample(rnd=random, want_held_out=False, kind=None, forms=ASK, tools=False) -> dict:
    """One item: kind, scene (None: no picture), tools (None: none offered), history [(question, answer)], question, answer.

    Training never meets a held-out combination; `want_held_out` draws only those. With `tools`, some are offered, and most
    questions are about them. "strange" items have question None where the question is a sound that is no speech.
    """
    while True:
        k = kind or rnd.choices(list(TOOL_KINDS), TOOL_KINDS.values())[0] if tools else kind
        item = _sample(rnd, want_held_out, None if k == "other" else k, forms)
        if item is None or (tools and item["kind"] == "cannot"):
            continue
        item = {"scene": None, "tools": None, "history": [], **item}
        if tools and item["tools"] is None:
            item["tools"] = offered(rnd)
        if item["kind"] not in ("follow", "tool_result") and not want_held_out and rnd.random() < 0.25:  # of no consequence
            item["history"] = [small_talk(rnd) for _ in range(rnd.choice((1, 1, 2)))]
        return item


def small_talk(rnd):
    """A question and its answer about a picture that is gone."""
    kind = rnd.choice(("see", "colour", "count", "position", "exists", "where", "which", "plus", "chat", "strange", "say"))
    if kind == "chat":
        answer = rnd.choice(list(CHAT))
        return rnd.choice(CHAT[answer]), answer
    if kind == "strange":
        return strange.sentence(rnd), NOT_UNDERSTOOD
    while True:
        question, answer, slots = ask(rnd, kind, scene := draw_scene(rnd))
        if not any(held_out(kind, *s) for s in subject(kind, scene, slots)):
            return question, answer


def _sample(rnd, want_held_out, kind, forms):
    if want_held_out:
        k = kind or rnd.choice(HELD_KINDS)
    else:
        k = kind or rnd.choices(list(KINDS), KINDS.values())[0]
    scene = draw_scene(rnd, n=rnd.choice((1, 2)) if want_held_out and k == "see" else None)
    maybe = scene if rnd.random() < 0.6 else None  # of questions that need no picture
    if k == "chat":
        answer = rnd.choice(list(CHAT))
        return {"kind": k, "scene": maybe, "question": rnd.choice(CHAT[answer]), "answer": answer}
    if k == "no_picture":
        return {"kind": k, "question": ask(rnd, rnd.choice(PICTURE_KINDS), scene)[0], "answer": NO_PICTURE}
    if k == "strange":
        question = None if rnd.random() < 0.25 else strange.sentence(rnd)
        if question is not None and known(question):
            return None
        return {"kind": k, "scene": maybe, "question": question, "answer": NOT_UNDERSTOOD}
    if k == "crowd":
        scene = draw_crowd(rnd)
        question, answer, _ = ask(rnd, rnd.choice(("see", "count", "count_all")), scene)
        return {"kind": k, "scene": scene, "question": question, "answer": answer}
    if k in ("tool", "tool_result", "cannot"):
        return _tool_item(rnd, k, maybe)
    if k == "follow":
        return _follow_item(rnd, scene)
    question, answer, slots = ask(rnd, k, scene, forms)
    held = [held_out(k, *s) for s in subject(k, scene, slots)] if k in HELD_KINDS else []
    if (want_held_out and not any(held)) or (not want_held_out and any(held)):
        return None
    return {
        "kind": k,
        "scene": maybe if k in ("plus", "minus", "count_to", "say") else scene,
        "question": question,
        "answer": answer,
    }


def _tool_item(rnd, kind, scene):
    name, slot = rnd.choice(("wave", "go_to", "go_to")), rnd.choice(SLOTS)
    question = rnd.choice(DO[name]).format(slot=slot)
    if kind == "cannot":
        return {"kind": kind, "scene": scene, "question": question, "answer": CANNOT}
    call = tool_call(name) if name == "wave" else tool_call(name, place=slot)
    tools = offered(rnd)
    can = any(t["function"]["name"] == name for t in tools)
    if kind == "tool":
        return {"kind": kind, "scene": scene, "tools": tools, "question": question, "answer": call if can else CANNOT}
    if not can:
        return None
    worked = rnd.random() < 0.6
    answer = ("I waved." if name == "wave" else f"I am {PLACE[slot]}.") if worked else FAILED
    result = tool_result(rnd.choice(WORKED if worked else DID_NOT))
    return {"kind": kind, "tools": tools, "history": [(question, call)], "question": result, "answer": answer}


def _follow_item(rnd, scene):
    """A question that its predecessors explain, one or two of them."""
    form = rnd.choice(("colour", "shape", "place", "place", "plus", "where"))
    if form == "plus":
        kind = rnd.choice(("plus", "minus"))
        *first, slots = ask(rnd, kind, scene)
        history, result = [tuple(first)], slots["result"]
        for _ in range(rnd.choice((0, 0, 1))):  # one more in between
            y = rnd.randrange(1, 6)
            if result + y <= 15:
                history.append((rnd.choice(FOLLOW["plus"]).format(y=NUMBERS[y]), answer_sum(result, y, "plus")))
                result += y
        y = rnd.randrange(1, 6)
        if result + y > 20:
            return None
        question, answer = rnd.choice(FOLLOW["plus"]).format(y=NUMBERS[y]), answer_sum(result, y, "plus")
        return {
            "kind": "follow",
            "scene": scene if rnd.random() < 0.6 else None,
            "history": history,
            "question": question,
            "answer": answer,
        }
    if not scene:
        return None
    if form == "where":
        o = rnd.choice(scene)
        if [p[2] for p in scene].count(o[2]) > 1:
            return None
        asked = rnd.choice(("exists", "exists_shape", "colour"))
        slots = {"colour": o[1], "shape": o[2], "a": a(o[1])}
        first = {
            "exists": lambda: answer_exists(scene, o[2], o[1]),
            "exists_shape": lambda: answer_exists(scene, o[2]),
            "colour": lambda: answer_colour(scene, o[2]),
        }[asked]()
        history = [(rnd.choice(ASK[asked]).format(**slots), first)]
        return {
            "kind": "follow",
            "scene": scene,
            "history": history,
            "question": rnd.choice(FOLLOW["where"]),
            "answer": f"It is {PLACE[o[0]]}.",
        }
    seen = rnd.choice(scene)
    history = []
    if rnd.random() < 0.4:  # the place itself was a follow-up
        other = rnd.choice([s for s in SLOTS if s != seen[0]])
        history.append((rnd.choice(ASK["position"]).format(place=PLACE[other]), answer_position(scene, other)))
    forms = FOLLOW["place"] if history else ASK["position"]
    history.append((rnd.choice(forms).format(place=PLACE[seen[0]]), answer_position(scene, seen[0])))
    if form == "place":
        other = rnd.choice([s for s in SLOTS if s != seen[0]])
        if any(held_out("position", *o[1:]) for o in scene if o[0] == other):
            return None
        question, answer = rnd.choice(FOLLOW["place"]).format(place=PLACE[other]), answer_position(scene, other)
    else:
        question = rnd.choice(FOLLOW[form])
        answer = f"It is {seen[1]}." if form == "colour" else f"It is a {seen[2]}."
    return {"kind": "follow", "scene": scene, "history": history[-2:], "question": question, "answer": answer}


# ---- every string -----------------------------------------------------------------------------------------------------
def fill(form: str, kind: str) -> list[str]:
    """Every question of a form."""
    numbers = NUMBERS[:11]
    sums = (
        [(x, y) for x, y in itertools.product(range(11), range(11)) if kind != "minus" or x >= y] if "{x}" in form else [(0, 0)]
    )
    return [
        form.format(shape=s, colour=c, a=a(c), place=p, x=numbers[x], y=numbers[y], n=n, words=w)
        for s in (SHAPES if "{shape}" in form else [""])
        for c in (COLOURS if "{colour}" in form else ["x"])
        for p in (PLACE.values() if "{place}" in form else [""])
        for n in (NUMBERS[1:10] if "{n}" in form else [""])
        for w in (SAYABLE if "{words}" in form else [""])
        for x, y in sums
    ]


def questions(forms=ASK) -> list[str]:
    """Every question inside the domain, without decoration; `forms=UNSEEN`: those of word orders never trained."""
    out = [q for kind, some in forms.items() for form in some for q in fill(form, kind)]
    if forms is ASK:
        out += itertools.chain(*CHAT.values())
        for form in itertools.chain(*FOLLOW.values()):
            out += [form.format(place=p, y=y) for p in (PLACE.values() if "{place}" in form else [""])
                    for y in (NUMBERS[1:6] if "{y}" in form else [""])]  # fmt: skip
        out += [form.format(slot=s) for form in itertools.chain(*DO.values()) for s in (SLOTS if "{slot}" in form else [""])]
    return list(dict.fromkeys(out))


def answers(triples: int = 1500, seed: int = 1) -> list[str]:
    """Every answer that is spoken (tool calls are not), of the lists of three shapes only `triples`."""
    rnd = Random(seed)
    pairs = list(itertools.product(COLOURS, SHAPES))
    out = [*CHAT, NO_PICTURE, NOT_UNDERSTOOD, CANNOT, FAILED, "I waved.", answer_see([])]
    out += [f"I am {p}." for p in PLACE.values()] + [f"It is {p}." for p in PLACE.values()]
    out += [answer_see([("left", *p)]) for p in pairs]
    out += [answer_see([("left", *p), ("right", *q)]) for p in pairs for q in pairs if p != q]
    out += [answer_see([(s, *p) for s, p in zip(SLOTS, rnd.sample(pairs, 3))]) for _ in range(triples)]
    out += [answer_see([("crowd", c, s)] * n) for c, s in pairs for n in CROWDS]
    for s in SHAPES:
        out += [answer_colour([], s), answer_exists([], s), answer_exists([("left", "red", s)], s), f"It is a {s}."]
        out += [answer_count([("left", "red", s)] * n, s) for n in range(10)] + [answer_where([(p, "red", s)], s) for p in SLOTS]
    out += [answer_count([("left", "red", "star")] * n) for n in range(10)] + [answer_position([], p) for p in SLOTS]
    for c in COLOURS:
        out += [answer_count([("left", c, "star")] * n, None, c) for n in range(4)]
        out += [answer_exists_colour([], c), answer_exists_colour([("left", c, "star")], c), answer_which([], c), f"It is {c}."]
    for c, s in pairs:
        o = ("left", c, s)
        out += [f"Yes, the {s} is {c}.", f"No, the {s} is {c}."]
        out += [answer_colour([o], s), answer_exists([o], s, c), answer_exists([], s, c), answer_where([], s, c)]
        out += [answer_position([(p, c, s)], p) for p in SLOTS] + [answer_where([(p, c, s)], s, c) for p in SLOTS]
    out += [answer_sum(x, y, "plus") for x in range(20) for y in range(11) if x + y <= 20 and (x < 11 or 0 < y < 6)]
    out += [answer_sum(x, y, "minus") for x in range(11) for y in range(x + 1)]
    out += [answer_count_to(n) for n in range(1, 10)] + [sentence(w) for w in SAYABLE]
    return list(dict.fromkeys(out))


_known: set[str] = set()


def known(text: str) -> bool:
    """Whether a question is one of the domain's, however it is written."""
    if not _known:
        _known.update(q.replace(",", "") for q in questions() + questions(UNSEEN))
    return text.lower().replace(",", "").strip(" ?.!") in _known
