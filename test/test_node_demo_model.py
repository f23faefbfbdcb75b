"""The trained model behind the node: a spoken question from a bag, over DDS, gets the right answer, in words and aloud."""

import omni_process  # noqa: F401 - a DDS domain of our own, before rclpy is loaded

# isort: split
from demo import check, outcome
from demo.make_bag import read_mono
from demo.run import play
from demo.script import TURNS


def test_a_spoken_question_from_a_bag_is_answered_rightly(demo_engine_dir, tmp_path):
    turns = TURNS[:1]
    recorder, facts = play(turns, demo_engine_dir, tmp_path / "bag")
    assert facts["node_exit_code"] == 0
    answers = outcome.answers(recorder)
    assert [answer.text for answer in answers] == ["I see a red circle and a blue star."]
    assert check.wrong(turns, answers) == []
    assert check.unheard(recorder.microphone, recorder.user_speaking, [read_mono(turn.sound) for turn in turns]) == []
    assert outcome.interruptions(recorder) == []
    assert "".join(text for _, text in recorder.deltas) == answers[0].text
