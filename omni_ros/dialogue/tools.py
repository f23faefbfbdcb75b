"""What the robot may do when the model asks for it: which calls are carried out, and what the model is told. No ROS.

Nothing that a model writes is trusted: a call is carried out only if it is well formed, names a tool of the operator's list,
fits that tool's JSON schema, is within the turn's limit, and was confirmed where the tool asks for that. Every call has one
outcome, which the model reads as a message of role "tool".
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from omni_ros.dialogue.call_text import as_written, mismatch, parse, validator
from omni_ros.dialogue.clock import Clock
from omni_ros.dialogue.turn import describe
from omni_ros.errors import ToolError
from omni_ros.pipeline.request import ToolCall

MAX_RESULT = 2000  # characters of a result that the model is given: its prompt has room for so much
CONFIRM_WITHIN = 60.0  # seconds after the question was heard in which a yes counts
ASK = "not done yet: ask the user whether it shall be done, and if the user says yes, make exactly the same call again"
Message = dict[str, Any]
Done = Callable[[str, bool], None]  # what the model is to read, and whether it worked; may be called from any thread


@dataclass(frozen=True)
class Tool:
    """`start(arguments, done)` begins to carry a call out, and returns at once what stops it; `done` is called once it is over.
    It raises ToolError when it cannot begin."""

    name: str
    description: str
    parameters: dict[str, Any]  # JSON schema of the arguments: an object; others than its properties are refused
    start: Callable[[dict[str, Any], Done], Callable[[], None]]
    confirm: bool = False  # only after the user has said yes
    timeout: float = 10.0  # seconds

    @property
    def offer(self) -> dict[str, Any]:
        """As chat templates take it."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class ToolReport:
    """How a call ended: done | failed (says the tool) | timeout | cancelled | refused (not begun) | asked (not confirmed)."""

    name: str
    arguments: str
    ended: str
    result: str  # as the model reads it
    seconds: float


@dataclass(eq=False)
class _Run:
    """One call."""

    name: str = ""
    arguments: str = ""
    ended: str = ""  # as ToolReport's; "" while it runs
    result: str = ""
    began: float = 0.0
    deadline: float = 0.0
    stop: Callable[[], None] | None = None

    def end(self, ended: str, result: str) -> None:
        if not self.ended:
            self.ended, self.result = ended, result


class Tools:
    """The robot's tools, and which calls wait for the user's yes.

    A call of a tool with `confirm` is held back, and the model is told to ask. It is carried out when the model makes the very
    same call in the user's next turn, if the question was heard to its end, and that turn began within CONFIRM_WITHIN.
    """

    def __init__(self, tools: Iterable[Tool], *, max_calls: int, on_report: Callable[[ToolReport], None], clock: Clock) -> None:
        """`max_calls` per turn of the user, refused ones included."""
        self._tools = {tool.name: tool for tool in tools}
        self._check = {tool.name: validator({**tool.parameters, "additionalProperties": False}) for tool in self._tools.values()}
        self.offer = [tool.offer for tool in self._tools.values()]
        self.max_calls = max_calls
        self._on_report = on_report
        self.clock = clock
        self._changed = clock.condition()  # guards the runs
        self._asked: tuple[frozenset[str], float] = frozenset(), 0.0  # what may be confirmed now, and since when

    def turn(self) -> "ToolTurn":
        """A turn of the user begins to be answered."""
        return ToolTurn(self)

    def turn_over(self, turn: "ToolTurn", heard: bool) -> None:
        """The turn has become part of the conversation; `heard`: all that the robot said in it was."""
        self._asked = (frozenset(turn.held) if heard else frozenset()), self.clock.now()

    def forget(self) -> None:
        """No yes counts any more for what was asked so far."""
        self._asked = frozenset(), 0.0

    def wake(self) -> None:
        """Look again at whether to stop: see `run`."""
        with self._changed:
            self._changed.notify_all()

    def run(self, calls: list[_Run | tuple[str, dict[str, Any]]], held: set[str], stopped: Callable[[], bool]) -> list[_Run]:
        """Carry calls out side by side, begun in their order, until all have ended or `stopped()`. A _Run has ended already."""
        runs = [call if isinstance(call, _Run) else self._begin(*call, held, stopped) for call in calls]
        with self._changed:
            while (running := [run for run in runs if not run.ended]) and not stopped():
                left = min(run.deadline for run in running) - self.clock.now()
                if left > 0:
                    self._changed.wait(left)
                    continue
                for run in running:
                    if run.deadline <= self.clock.now():
                        run.end(
                            "timeout", error(f"timeout after {run.deadline - run.began:g} s: it may or may not have been done")
                        )
            for run in runs:
                run.end("cancelled", error("cancelled by the user: it may or may not have been done"))
        for run in runs:
            if run.ended in ("timeout", "cancelled") and run.stop is not None:
                run.stop()
            report = ToolReport(run.name, run.arguments, run.ended, run.result, self.clock.now() - run.began)
            self._on_report(report)
        return runs

    def read(self, call: ToolCall) -> tuple[str, dict[str, Any]]:
        """Name and arguments of a call that may be carried out. Raises ToolError, which says to the model what is wrong."""
        if not call.whole:
            raise ToolError("the call was cut off before </tool_call>")
        name, arguments = parse(call.text)
        if name not in self._tools:
            raise ToolError(f"there is no tool {name[:80]!r}, only {', '.join(self._tools) or 'none'}")
        if wrong := mismatch(self._check[name], arguments):
            raise ToolError(f"wrong arguments: {wrong}")
        return name, arguments

    def _begin(self, name: str, arguments: dict[str, Any], held: set[str], stopped: Callable[[], bool]) -> _Run:
        tool, now = self._tools[name], self.clock.now()
        run = _Run(name, json.dumps(arguments, ensure_ascii=False), began=now, deadline=now + tool.timeout)
        if stopped():
            run.end("cancelled", error("cancelled by the user; nothing was done"))
            return run
        if tool.confirm:
            key = json.dumps([name, arguments], sort_keys=True)
            asked, since = self._asked
            if key not in asked or now - since > CONFIRM_WITHIN:
                held.add(key)
                run.end("asked", error(ASK))
                return run
            self._asked = asked - {key}, since  # one yes, one call

        def done(result: str, worked: bool) -> None:
            with self._changed:
                run.end("done" if worked else "failed", result if len(result) <= MAX_RESULT else result[:MAX_RESULT] + "…")
                self._changed.notify_all()

        try:
            run.stop = tool.start(arguments, done)
        except Exception as failure:  # noqa: BLE001 - whatever the operator's tool does, it costs this call only
            done(error(describe(failure)), False)
        return run


@dataclass
class ToolTurn:
    """The calls of one turn of the user: as many passes of the model as it takes until it calls nothing."""

    tools: Tools
    steps: list[Message] = field(default_factory=list)  # what is between the user's message and the rest of the answer
    said: str = ""  # all text of the answer that is in the steps
    held: set[str] = field(default_factory=set)  # calls that the user has to be asked about
    count: int = 0
    seconds: float = 0.0

    @property
    def metrics(self) -> dict[str, Any]:
        return {"tool_calls": self.count, "tool_s": round(self.seconds, 3)} if self.count else {}

    def take(self, answer: str, calls: list[ToolCall], stopped: Callable[[], bool]) -> bool:
        """A pass of the model is over, in which it made `calls`: carry them out. Whether it gets another pass.

        `answer` is all the text of this turn so far. When the limit is reached, the model is told so once; calls that it makes
        nevertheless end the turn.
        """
        room = self.tools.max_calls - self.count
        pending: list[_Run | tuple[str, dict[str, Any]]] = []
        for number, call in enumerate(calls):
            try:
                if number >= room:
                    raise ToolError(f"only {self.tools.max_calls} calls are allowed in a turn: answer the user now")
                pending.append(self.tools.read(call))
            except ToolError as refusal:
                run = _Run(*as_written(call.text), began=self.tools.clock.now())
                run.end("refused", error(f"{refusal}; nothing was done"))
                pending.append(run)
        began = self.tools.clock.now()
        runs = self.tools.run(pending, self.held, stopped)
        self.seconds += self.tools.clock.now() - began
        self.count += len(calls)
        if room <= 0 or not self.tools.offer:
            return False
        written = [as_written(call.text) for call in calls]
        functions = [{"type": "function", "function": {"name": name, "arguments": text}} for name, text in written]
        self.steps.append({"role": "assistant", "content": answer[len(self.said) :].strip(), "tool_calls": functions})
        self.steps += [{"role": "tool", "content": run.result} for run in runs]
        self.said = answer
        return not stopped()


def error(reason: str) -> str:
    """As the model reads it. Whether it worked comes last: small models go by what they have just read (docs/tools.md)."""
    return json.dumps({"error": reason, "success": False}, ensure_ascii=False)
