"""A robot to talk to: microphone, speaker and omni node, brought up in order.

ros2 launch omni_ros robot.launch.py engine_dir:=/path/to/engines [microphone:=USB speaker:=USB echo:=aec]
"""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, EmitEvent, LogInfo, OpaqueFunction, RegisterEventHandler, Shutdown, TimerAction
from launch.event_handlers import OnProcessStart
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.substitutions import FindPackageShare
from lifecycle_msgs.msg import Transition

KNOWN_AFTER = 4.0  # seconds until a process that was started again has been discovered
PATIENCE = 8.0  # seconds without news of a node after which it is asked again
ORDER = ("speaker", "microphone", "omni")  # each is active before the next one is: the echo's reference, the ears, the voice


def shared(*path: str) -> PathJoinSubstitution:
    return PathJoinSubstitution([FindPackageShare("omni_ros"), *path])


ARGUMENTS = (
    DeclareLaunchArgument("engine_dir", default_value="", description="engines; empty: as in params_file"),
    DeclareLaunchArgument("microphone", default_value="default", description="its device: ros2 run omni_ros devices lists them"),
    DeclareLaunchArgument("speaker", default_value="default", description="its device"),
    DeclareLaunchArgument(
        "echo", default_value="mute", choices=["none", "aec", "mute"], description="the robot's own voice in its microphone"
    ),
    DeclareLaunchArgument("params_file", default_value="", description="parameters and qos_overrides of the three nodes"),
    DeclareLaunchArgument("namespace", default_value="", description="of the nodes and of their relative topics"),
    DeclareLaunchArgument(
        "remap", default_value="", description="FROM:=TO of topics, with spaces between: image_raw:=/camera/color/image_raw"
    ),
    DeclareLaunchArgument(
        "autostart", default_value="true", choices=["true", "false"], description="false: a lifecycle manager brings them up"
    ),
    DeclareLaunchArgument(
        "respawn",
        default_value="true",
        choices=["true", "false"],
        description="start a node that ended again after 2 s; false: end the launch",
    ),
    DeclareLaunchArgument("log_level", default_value="info", description="debug, info, warn, error or fatal"),
)


def nodes(context: LaunchContext) -> list:
    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    respawn = value("respawn") == "true"
    # `device: 1` is a number in YAML and a text to the node, which takes either.
    own = {
        "speaker": {"device": value("speaker")},
        "microphone": {"device": value("microphone"), "echo": value("echo")},
        "omni": {"engine_dir": value("engine_dir")} if value("engine_dir") else {},
    }
    made = {name: node(context, name, own[name], value, respawn) for name in ORDER}
    return [*made.values(), *(bring_up(made) if value("autostart") == "true" else [])]


def node(context: LaunchContext, name: str, own: dict, value, respawn: bool) -> LifecycleNode:
    files = [shared("config", "omni.yaml"), shared("config", "devices.yaml")]
    given = [value("params_file")] if value("params_file") else []
    # What is said on the command line counts for more than a file, its defaults for less.
    said = {key: text for key, text in own.items() if given == [] or text not in ("", "default", "mute")}
    return LifecycleNode(
        package="omni_ros",
        executable=name,
        name=name,
        namespace=value("namespace"),
        parameters=[*files, *given, said, {"autostart": False}],
        remappings=[tuple(pair.split(":=", 1)) for pair in value("remap").split()],
        ros_arguments=["--log-level", value("log_level")],
        respawn=respawn,
        respawn_delay=2.0,
        output="screen",
        on_exit=None if respawn else lambda event, context: None if context.is_shutdown else Shutdown(reason=f"{name} has ended"),
    )


def bring_up(made: dict[str, LifecycleNode]) -> list:
    """Configure and activate one after the other; a node that is started again, as soon as it is there."""
    waiting = list(ORDER)  # nodes that are not to be configured yet
    started: set[str] = set()
    heard: set[str] = set()  # that do what they were asked for

    def ask(name: str, transition: int) -> EmitEvent:
        return EmitEvent(event=ChangeState(lifecycle_node_matcher=matches_action(made[name]), transition_id=transition))

    def configure(name: str) -> list:
        return attempt(name) if name in started and name not in waiting else []

    def attempt(name: str) -> list:
        """DDS may lose a request, or the news of a transition, between ends that have just met: ask until it is heard of."""
        heard.discard(name)
        return [ask(name, Transition.TRANSITION_CONFIGURE), TimerAction(period=PATIENCE, actions=[again(name)])]

    def again(name: str) -> OpaqueFunction:
        def act(context: LaunchContext) -> list:
            if name in heard or context.is_shutdown:
                return []
            # What is not possible any more is refused by the node, and changes nothing.
            activate = TimerAction(period=1.0, actions=[ask(name, Transition.TRANSITION_ACTIVATE)])
            later = TimerAction(period=PATIENCE, actions=[again(name)])
            return [ask(name, Transition.TRANSITION_CONFIGURE), activate, later]

        return OpaqueFunction(function=act)

    def mark(name: str) -> OpaqueFunction:
        return OpaqueFunction(function=lambda context: heard.add(name))

    def on_start(name: str):
        def act(event, context: LaunchContext) -> list:
            restarted = name in started
            started.add(name)
            # The dead process's services are still known, and would get what the new one is to hear.
            return [TimerAction(period=KNOWN_AFTER, actions=configure(name))] if restarted else configure(name)

        return act

    def on_active(name: str):
        def act(context: LaunchContext) -> list:
            following = waiting.pop(0) if waiting else ""
            return [LogInfo(msg=f"{name} is active"), *configure(following)]

        return act

    waiting.pop(0)
    handlers = []
    for name, action in made.items():
        failed = f"{name} cannot be configured or activated: its log says why"
        handlers += [
            OnProcessStart(target_action=action, on_start=on_start(name)),
            transition(action, "unconfigured", "configuring", [mark(name)]),
            transition(action, "configuring", "inactive", [mark(name), ask(name, Transition.TRANSITION_ACTIVATE)]),
            transition(action, "activating", "active", [mark(name), OpaqueFunction(function=on_active(name))]),
            transition(action, "configuring", "unconfigured", [Shutdown(reason=failed)]),
            transition(action, "activating", "inactive", [Shutdown(reason=failed)]),
        ]
    return [RegisterEventHandler(handler) for handler in handlers]


def transition(action: LifecycleNode, start: str, goal: str, entities: list) -> OnStateTransition:
    return OnStateTransition(target_lifecycle_node=action, start_state=start, goal_state=goal, entities=entities)


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=nodes)])
