"""Topic `facts` over real DDS."""
# ruff: noqa: F811 - fixtures are imported, and named again where they are used

import json

from omni_process import answer, engine_dir, omni, ros, running, wait  # noqa: F401 - some are fixtures
from std_msgs.msg import String
from std_srvs.srv import Trigger
from test_node import prompt_tokens


def test_facts_reach_the_model_while_they_are_young_and_garbage_reaches_nobody(omni):
    publisher = omni.node.create_publisher(String, "facts", 10)
    wait(publisher.get_subscription_count, 10)
    tell = lambda content: publisher.publish(String(data=content))  # noqa: E731

    def asked() -> int:
        """Tokens of a first turn."""
        assert omni.call(Trigger, "omni/reset").success
        return prompt_tokens(omni, "What is it?")

    without = asked()
    tell(json.dumps({"battery": 0.4, "door": "open"}))
    wait(lambda: omni.values()["facts known"] == "2", 5)
    told = asked()
    assert without + 15 < told < without + 200
    before = int(omni.values().get("bad messages facts", 0))
    garbage = ['{"a": 1', "{" * 50_000, "x" * 1_000_000, r'{"a": "\ud83d"}', json.dumps({str(n): 1 for n in range(1000)})]
    for content in garbage:
        tell(content)
    wait(lambda: int(omni.values().get("bad messages facts", 0)) == before + len(garbage), 10)
    omni.set(facts_max_age=600.0)
    assert abs(asked() - told) < 6  # the ages have other digits
    tell(json.dumps({"battery": None, "door": None}))
    wait(lambda: omni.values()["facts known"] == "0", 5)
    assert asked() == without
    omni.node.destroy_publisher(publisher)
