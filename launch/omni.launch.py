"""Start the omni node: `ros2 launch omni_ros omni.launch.py engine_dir:=/path/to/engines`."""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, Shutdown
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

ARGUMENTS = (
    DeclareLaunchArgument("engine_dir", default_value="", description="engines; empty: as in params_file"),
    DeclareLaunchArgument(
        "params_file",
        default_value=PathJoinSubstitution([FindPackageShare("omni_ros"), "config", "omni.yaml"]),
        description="parameters of the node",
    ),
    DeclareLaunchArgument("namespace", default_value="", description="of the node and of its relative topics"),
    DeclareLaunchArgument(
        "autostart",
        default_value="true",
        choices=["true", "false"],
        description="false: a lifecycle manager configures and activates the node",
    ),
    DeclareLaunchArgument("log_level", default_value="info", description="debug, info, warn, error or fatal"),
)


def omni_node(context: LaunchContext) -> list[LifecycleNode]:
    overrides = {"autostart": ParameterValue(LaunchConfiguration("autostart"), value_type=bool)}
    if engine_dir := LaunchConfiguration("engine_dir").perform(context):
        overrides["engine_dir"] = engine_dir
    node = LifecycleNode(
        package="omni_ros",
        executable="omni",
        name="omni",
        namespace=LaunchConfiguration("namespace"),
        parameters=[LaunchConfiguration("params_file"), overrides],
        ros_arguments=["--log-level", LaunchConfiguration("log_level")],
        output="screen",
        # Without this, launch waits for ever for a lifecycle node that ended before it could be reached.
        on_exit=lambda event, context: None if context.is_shutdown else Shutdown(reason="omni has ended"),
    )
    return [node]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=omni_node)])
