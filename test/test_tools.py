"""What a robot does when its model asks for it: on simulated time, with a model that writes what the test wants."""

import json

import pytest
from simulated_clock import SimulatedClock
from test_dialogue import World

from omni_ros.dialogue.call_text import parse
from omni_ros.dialogue.settings import Settings
from omni_ros.dialogue.structured import ResponseSchema
from omni_ros.dialogue.tools import ASK, CONFIRM_WITHIN, MAX_RESULT, Tool, Tools
from omni_ros.errors import EngineError, InputError, ToolError
from omni_ros.pipeline.request import ToolCall

PLACE = {"type": "object", "properties": {"place": {"type": "string", "enum": ["left", "right"]}}, "required": ["place"]}
NOTHING = {"type": "object", "properties": {}}
HURDLES = '{"name": "go_to", "arguments": {"place": "left"}}'


def call(name: str, **arguments: object) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


class Robot:
    """The tools of a robot: what was begun, and what was stopped."""

    def __init__(self, clock, seconds: float | None = 0.5, result: str = '{"success": true}', **options) -> None:
        self.clock, self.seconds, self.result = clock, seconds, result
        self.begun: list[tuple[float, str, dict]] = []
        self.stopped: list[str] = []
        self.fault: Exception | None = None
        self.tools = [
            Tool("wave", "Wave a hand.", NOTHING, lambda a, done: self.start("wave", a, done), **options),
            Tool("go_to", "Go to a place.", PLACE, lambda a, done: self.start("go_to", a, done), **options),
            Tool("forget", "Delete the map.", NOTHING, lambda a, done: self.start("forget", a, done), confirm=True, **options),
        ]

    def start(self, name: str, arguments: dict, done):
        if self.fault is not None:
            raise self.fault
        self.begun.append((self.clock.now(), name, arguments))

        def work():
            self.clock.sleep(self.seconds)
            done(self.result, '"success": false' not in self.result)

        if self.seconds is not None:
            self.clock.start(work, name)
        return lambda: self.stopped.append(name)

    @property
    def did(self) -> list[tuple[str, dict]]:
        return [(name, arguments) for _, name, arguments in self.begun]


def make(answers: list[str], seconds: float | None = 0.5, result: str = '{"success": true}', timeout: float = 10.0, **options):
    clock = SimulatedClock()
    robot = Robot(clock, seconds, result, timeout=timeout)
    world = World(answers, clock=clock, tools=robot.tools, **options)
    world.robot, world.reports = robot, []
    world.face.tool = lambda report: world.reports.append((report.name, report.ended, report.result))
    return world


def turn(world, words: str) -> None:
    world.dialogue.ask(words)
    world.idle()


def test_a_call_is_made_its_result_read_and_nothing_of_it_heard():
    world = make([call("wave"), "I waved."])
    turn(world, "wave")
    assert world.robot.did == [("wave", {})]
    assert [text for _, text in world.face.of("text")] == ["I ", "waved."]
    assert [text for _, text in world.face.of("response")] == ["I waved."]
    assert {value for _, value, _ in world.face.of("speech")} == {0.02}  # of the second pass only
    first, second = (request.messages for request in world.model.requests)
    assert second == [
        *first,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "wave", "arguments": "{}"}}],
        },
        {"role": "tool", "content": '{"success": true}'},
    ]
    assert [request.tools for request in world.model.requests] == [[tool.offer for tool in world.robot.tools]] * 2
    assert world.reports == [("wave", "done", '{"success": true}')]
    history = world.dialogue.history.messages("")
    assert history[:3] == second and history[3]["content"][0]["text"] == "I waved."
    assert world.dialogue.history.last_answer == "I waved."
    world.clock.sleep(1.0)
    assert [messages for _, messages, _ in world.model.fed][-1] == history  # the next turn begins with rows that are there
    world.close()


def test_words_around_a_call_are_one_answer():
    world = make(["Well then. " + call("wave"), "I waved."])
    turn(world, "wave")
    assert "".join(text for _, text in world.face.of("text")) == "Well then. I waved."
    assert [text for _, text in world.face.of("response")] == ["Well then. I waved."]
    roles = [(message["role"], message["content"]) for message in world.dialogue.history.messages("")[1:]]
    assert roles[0] == ("assistant", "Well then.") and roles[2] == ("assistant", [{"type": "text", "text": "I waved."}])
    assert world.dialogue.history.last_answer == "Well then. I waved."
    world.close()


def test_parallel_calls_run_side_by_side_and_chained_ones_in_turn():
    world = make([call("wave") + call("go_to", place="left"), call("go_to", place="right"), "Done."], seconds=2.0)
    turn(world, "do all of it")
    (first, *_), (second, *_), (third, *_) = world.robot.begun
    assert second - first < 0.1 and third - first > 2.0
    assert world.robot.did[1:] == [("go_to", {"place": "left"}), ("go_to", {"place": "right"})]
    roles = [message["role"] for message in world.model.requests[2].messages]
    assert roles == ["user", "assistant", "tool", "tool", "assistant", "tool"]
    world.close()


REFUSED = {
    "not json": ("<tool_call>\n{name: wave}\n</tool_call>", "not valid JSON"),
    "cut off": ('<tool_call>\n{"name": "wave"', "cut off"),
    "unknown": (call("explode"), "no tool 'explode', only wave, go_to, forget"),
    "wrong value": (call("go_to", place="up"), "place: 'up' is not one of"),
    "missing": (call("go_to"), "'place' is a required property"),
    "too many": (call("wave", speed=9), "Additional properties are not allowed"),
    "no object": ('<tool_call>["wave"]</tool_call>', "a call is"),
    "list": ('<tool_call>{"name": "wave", "arguments": []}</tool_call>', "are an object"),
    "text": ('<tool_call>{"name": "wave", "arguments": "{}"}</tool_call>', "are an object"),
    "twice": ('<tool_call>{"name": "wave", "name": "forget", "arguments": {}}</tool_call>', "comes twice"),
    "extra": ('<tool_call>{"name": "wave", "arguments": {}, "confirmed": true}</tool_call>', "a call is"),
    "surrogate": ('<tool_call>{"name": "go_to", "arguments": {"place": "\\ud83d"}}</tool_call>', "not valid JSON"),
    "no number": ('<tool_call>{"name": "go_to", "arguments": {"place": NaN}}</tool_call>', "no number"),
    "infinite": ('<tool_call>{"name": "go_to", "arguments": {"place": 1e999}}</tool_call>', "too large"),
    "digits": (f'<tool_call>{{"name": "go_to", "arguments": {{"place": {"9" * 5000}}}}}</tool_call>', "not valid JSON"),
    "deep": (f'<tool_call>{{"name": "wave", "arguments": {"[" * 9000}</tool_call>', "not valid JSON"),
    "long": (f'<tool_call>{{"name": "wave", "arguments": {{}}}}{" " * 30000}</tool_call>', "more than 20000"),
    "nested": (f"<tool_call><tool_call>{HURDLES}</tool_call>", "not valid JSON"),
    "empty": ("<tool_call></tool_call>", "not valid JSON"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_told_and_never_done(name):
    written, reason = REFUSED[name]
    world = make([written, "Sorry."])
    turn(world, "do something")
    assert world.robot.did == []
    assert [ended for _, ended, _ in world.reports] == ["refused"]
    told = world.model.requests[1].messages[-1]
    assert told["role"] == "tool" and reason in json.loads(told["content"])["error"]
    assert "nothing was done" in told["content"]
    assert [text for _, text in world.face.of("response")] == ["Sorry."]
    turn(world, "and again")  # answers go round: the next turn is as good as the first
    assert len(world.face.of("outcome")) == 2 and world.face.of("failed") == []
    world.close()


def test_a_right_call_beside_a_wrong_one():
    world = make([call("go_to", place="up") + call("wave"), "Half of it."])
    turn(world, "go up and wave")
    assert world.robot.did == [("wave", {})]
    results = [message["content"] for message in world.model.requests[1].messages if message["role"] == "tool"]
    assert "error" in results[0] and results[1] == '{"success": true}'
    world.close()


def test_a_model_that_cannot_stop_calling_is_stopped():
    world = make(["Hm. " + call("wave")], max_tool_calls=3, seconds=0.1)
    turn(world, "wave")
    assert len(world.robot.did) == 3 and len(world.model.requests) == 4
    assert [ended for _, ended, _ in world.reports] == ["done"] * 3 + ["refused"]
    assert [text for _, text in world.face.of("response")] == ["Hm. Hm. Hm. Hm."]
    assert world.face.of("outcome")[0][1:] == ("stop", "stop", "")
    world.close()


def test_more_calls_at_once_than_are_allowed():
    world = make([call("wave") * 5, "Enough."], max_tool_calls=2, seconds=0.1)
    turn(world, "wave five times")
    assert len(world.robot.did) == 2
    results = [message["content"] for message in world.model.requests[1].messages if message["role"] == "tool"]
    assert len(results) == 5 and all("only 2 calls" in result for result in results[2:])
    world.close()


def test_calls_where_no_tools_are_offered_are_neither_done_nor_spoken():
    world = World(["Yes. " + call("wave")])
    turn(world, "wave")
    assert [text for _, text in world.face.of("response")] == ["Yes."]
    assert world.remembered() == ["user: wave", "assistant: Yes."]
    world.close()


# ---- confirmation -------------------------------------------------------------------------------------------------------
def test_a_dangerous_call_waits_for_a_yes():
    world = make([call("forget"), "Shall I really?", call("forget"), "Deleted."])
    turn(world, "delete the map")
    assert world.robot.did == []
    assert json.loads(world.model.requests[1].messages[-1]["content"])["error"] == ASK
    turn(world, "yes")
    assert world.robot.did == [("forget", {})]
    assert [ended for _, ended, _ in world.reports] == ["asked", "done"]
    assert [text for _, text in world.face.of("response")] == ["Shall I really?", "Deleted."]
    world.close()


def test_a_model_cannot_say_yes_itself():
    world = make([call("forget"), call("forget"), call("forget") + call("forget"), "Well?"])
    turn(world, "delete the map")
    assert world.robot.did == [] and {ended for _, ended, _ in world.reports} == {"asked"}
    world.close()


@pytest.mark.parametrize("how", ["another turn", "late", "interrupted", "cancelled", "reset", "skipped", "twice", "other words"])
def test_a_yes_that_does_not_count(how):
    answers = [call("forget"), "Shall I really delete all of it?", "Fine.", call("forget"), "Shall I?", call("forget"), "Done."]
    if how != "another turn":
        del answers[2]
    if how == "twice":
        answers[2:] = [call("forget") * 2, "Once."]
    if how == "other words":
        answers[0] = call("go_to", place="left")
    world = make(answers)
    world.dialogue.ask("delete the map")
    if how == "interrupted":
        world.until(lambda: world.face.of("speech"))
        world.say(1.2)
    elif how == "skipped":
        world.idle()
        world.dialogue.ask("no wait")
        world.dialogue.ask("yes")  # before an answer to that has begun
    elif how == "cancelled":
        world.until(lambda: world.face.of("speech"))
        world.dialogue.cancel()
    world.idle()
    if how == "another turn":
        turn(world, "how are you")
    if how == "late":
        world.clock.sleep(CONFIRM_WITHIN + 1)
    if how == "reset":
        world.dialogue.reset()
    if how not in ("interrupted", "skipped"):
        turn(world, "yes")
    count = {"twice": 1}.get(how, 0)
    assert [name for name, _ in world.robot.did].count("forget") == count, world.reports
    world.close()


# ---- answers that are begun before the user has ended -----------------------------------------------------------------------
def test_an_answer_that_was_begun_early_acts_only_once_the_turn_is_closed():
    world = make([call("wave"), "I waved."], settings=Settings(eager=True))
    world.model.number = lambda request: int(request.messages[-1]["role"] == "tool")
    for count in (1, 2):
        world.hear(1.0, 0.5)
        world.hear(0.44)  # a pause, long enough for the call to be written
        assert len(world.model.requests) == count and world.robot.did == [] and world.reports == []
    closing = world.clock.now()
    world.hear(1.0)
    world.idle()
    assert world.robot.did == [("wave", {})] and world.robot.begun[0][0] > closing
    assert len(world.model.requests) == 3  # the second beginning stood
    assert [text for _, text in world.face.of("response")] == ["I waved."]
    world.close()


# ---- what can go wrong while a tool works ---------------------------------------------------------------------------------
def test_a_tool_that_never_ends_is_given_up():
    world = make([call("go_to", place="left"), "That did not work."], seconds=None, timeout=5.0)
    turn(world, "go left")
    assert world.robot.stopped == ["go_to"]
    assert "timeout after 5 s" in world.model.requests[1].messages[-1]["content"]
    assert world.reports[0][1] == "timeout"
    assert [text for _, text in world.face.of("response")] == ["That did not work."]
    world.close()


def test_one_that_ends_too_late_changes_nothing():
    world = make([call("wave"), "It took too long.", "Still here."], seconds=8.0, timeout=5.0)
    turn(world, "wave")
    world.clock.sleep(10)
    turn(world, "are you there")
    assert [ended for _, ended, _ in world.reports] == ["timeout"]
    assert "timeout" in world.dialogue.history.messages("")[2]["content"]
    world.close()


@pytest.mark.parametrize("how", ["speech", "cancel", "reset", "close"])
def test_stopped_while_a_tool_works(how):
    world = make(["On my way. " + call("go_to", place="left"), "Yes?", "Hello."], seconds=None, timeout=60.0)
    world.dialogue.ask("go left")
    world.until(lambda: world.robot.begun)
    if how == "close":
        world.close()
        assert world.robot.stopped == ["go_to"]
        return
    before = world.clock.now()
    if how == "speech":
        world.hear(1.2, 0.5)
    else:
        world.dialogue.cancel() if how == "cancel" else world.dialogue.reset()
    world.until(lambda: world.robot.stopped, 0.1)
    assert world.clock.now() - before < 1.3
    if how == "speech":
        world.hear(0.7)
        world.idle()
    assert [ended for _, ended, _ in world.reports] == ["cancelled"]
    world.idle()
    turn(world, "hello")
    if how == "reset":
        assert world.remembered() == ["user: hello", "assistant: Yes?"]
    else:  # what it has begun is not forgotten
        roles = [message["role"] for message in world.dialogue.history.messages("")]
        assert roles[:3] == ["user", "assistant", "tool"]
        assert "may or may not" in world.dialogue.history.messages("")[2]["content"]
    reasons = [reason for _, reason, *_ in world.face.of("outcome")]
    assert reasons[0] == "cancelled" and reasons[-1] == "stop"
    world.close()


def test_nothing_is_begun_for_a_turn_that_was_stopped_while_it_was_written():
    world = make(["one two three four five six seven eight nine ten " + call("wave"), "Yes?"])
    world.dialogue.ask("wave")
    world.until(lambda: len(world.face.of("text")) > 3)
    world.dialogue.cancel()
    world.idle()
    assert world.robot.did == [] and world.reports == []
    world.close()


def test_the_answer_is_interrupted_after_a_tool_has_worked():
    world = make(["Wait a moment please. " + call("wave"), "I have waved with both of my hands.", "Yes?"], seconds=0.1)
    world.dialogue.ask("wave")
    world.until(lambda: len(world.model.requests) == 2)
    world.until(lambda: world.face.of("speech") and world.face.of("speech")[-1][1] == 0.02)
    world.hear(1.0)
    world.hear(1.2, 0.5)
    world.hear(0.7)
    world.idle()
    messages = world.dialogue.history.messages("")
    assert [message["role"] for message in messages[:3]] == ["user", "assistant", "tool"]
    heard = " ".join(m["content"] if isinstance(m["content"], str) else m["content"][0]["text"] for m in messages[1:-2:2])
    assert "Wait a moment please. I have waved with both of my hands.".startswith(heard.strip().rstrip("—"))
    assert heard.endswith("—")
    world.close()


@pytest.mark.parametrize("fault", [ToolError("not available"), RuntimeError("broken")])
def test_a_tool_that_cannot_begin(fault):
    world = make([call("wave"), "I cannot."])
    world.robot.fault = fault
    turn(world, "wave")
    assert str(fault) in world.model.requests[1].messages[-1]["content"] and world.reports[0][1] == "failed"
    assert world.face.of("outcome")[0][1] == "stop"
    world.close()


def test_a_failure_after_a_call_does_not_make_the_robot_forget_it():
    world = make([call("wave"), "never said", "I did wave."])
    world.dialogue.ask("wave")
    world.until(lambda: world.robot.begun)
    world.model.fault = EngineError("the engine is broken")
    world.idle()
    assert world.face.of("outcome")[0][1:] == ("error", "none", "the engine is broken")
    assert [m["role"] for m in world.dialogue.history.messages("")] == ["user", "assistant", "tool"]
    turn(world, "did you wave")
    assert len(world.robot.did) == 1
    world.close()


def test_whoever_listens_to_reports_may_fail():
    world = make([call("wave"), "I waved."])

    def fail(report):
        raise RuntimeError("nobody listens")

    world.face.tool = fail
    turn(world, "wave")
    assert [text for _, text in world.face.of("response")] == ["I waved."]
    assert world.face.of("failed")[0][1:] == ("nobody listens",)
    world.close()


def test_a_long_result_is_cut():
    world = make([call("wave"), "So much."], result="x" * 100_000)
    turn(world, "wave")
    assert len(world.model.requests[1].messages[-1]["content"]) == MAX_RESULT + 1
    world.close()


def test_a_prompt_without_room_drops_the_oldest_turns_and_keeps_the_calls():
    world = make(["One.", "Two.", call("wave"), "I waved."], room=6)
    for words in ("one", "two", "wave"):
        turn(world, words)
    assert [message["role"] for message in world.model.requests[-1].messages] == [
        "user",
        "assistant",
        "user",
        "assistant",
        "tool",
    ]
    assert len(world.robot.did) == 1 and world.face.of("response")[-1][1] == "I waved."
    world.close()


def test_it_repeats_exactly():
    logs = []
    for _ in range(2):
        world = make(["Well. " + call("wave") + call("go_to", place="left"), "Done."])
        world.say()
        world.idle()
        world.close()
        logs.append((world.face.log, world.reports))
    assert logs[0] == logs[1]


# ---- parts ----------------------------------------------------------------------------------------------------------------
def test_arguments_as_models_write_them():
    assert parse('\n{"name": "wave"}\n') == ("wave", {})
    assert parse('{"name": "say", "arguments": {"text": "日本 ☃ \\u00fc"}}') == ("say", {"text": "日本 ☃ ü"})


def test_a_call_stands_in_the_history_as_it_was_written():
    """Word for word, so that its rows in the KV cache are found again."""
    odd = '<tool_call>\n{"name": "go_to", "arguments": {"place":  "left" }}\n</tool_call>'
    world = make([odd, "Done."])
    turn(world, "go left")
    function = world.dialogue.history.messages("")[1]["tool_calls"][0]["function"]
    assert function == {"name": "go_to", "arguments": '{"place":  "left" }'}
    assert world.robot.did == [("go_to", {"place": "left"})]
    world.close()


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"pattern": "("}, {"$ref": "#/nowhere"}, {"$ref": "http://a.b/c"}, 3])
def test_schemas_that_are_none(schema):
    tool = Tool("a", "b", {"type": "object", "properties": {"x": schema}}, lambda a, done: lambda: None)
    with pytest.raises(InputError, match="JSON schema"):
        Tools([tool], max_calls=1, on_report=print, clock=SimulatedClock())


def test_a_schema_without_end():
    tool = Tool("a", "b", {"type": "object", "properties": {"x": {"$ref": "#/properties/x"}}}, lambda a, done: lambda: None)
    tools = Tools([tool], max_calls=1, on_report=print, clock=SimulatedClock())
    with pytest.raises(ToolError, match="too deeply"):
        tools.read(ToolCall('{"name": "a", "arguments": {"x": 1}}', True))


# ---- structured answers ---------------------------------------------------------------------------------------------------
SCHEMA = '{"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}'


@pytest.mark.parametrize(
    "answer,published",
    [
        ('{"colour": "red"}', '{"colour": "red"}'),
        ('{"colour": "green"}', ""),
        ('{"colour": "red"', ""),
        ('Sure: {"colour": "red"}', ""),
        ('{"colour": "red", "x": NaN}', ""),
        ("words", ""),
    ],
)
def test_only_an_answer_that_fits_is_published(answer, published):
    world = World([answer], response_schema=ResponseSchema(SCHEMA))
    found = []
    world.face.response_json = found.append
    turn(world, "which colour")
    assert found == [published] * bool(published)
    assert len(world.face.of("bad")) == (not published)
    assert SCHEMA in world.model.requests[0].messages[0]["content"]
    world.close()


def test_an_answer_that_was_cut_is_not_published():
    schema = ResponseSchema('{"type": "integer"}')
    assert schema.read("12", "stop") == schema.read("```json\n12\n```\n", "stop") == "12"
    with pytest.raises(InputError, match="cut short"):
        schema.read("12", "length")


def test_where_a_response_schema_comes_from(tmp_path):
    (tmp_path / "schema.json").write_text(SCHEMA)
    assert ResponseSchema(str(tmp_path / "schema.json")).schema == json.loads(SCHEMA)
    (tmp_path / "schema.json").write_text("{")
    for source in (str(tmp_path / "schema.json"), str(tmp_path / "none"), "{", '{"type": "nonsense"}', '{"$ref": "other.json"}'):
        with pytest.raises(InputError, match="response_schema"):
            ResponseSchema(source)
