"""The shape of the code: one door for each heavy library, no import cycles, the clock in one place."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "firsttouch"

DOORS = {
    "pycurl": {"source.connections"},
    "av": {"index", "decode.frame", "decode.gop", "decode.stream", "video"},
    "cv2": {"decode.frame", "detect.planes", "detect.yolo", "motion", "pitch", "score", "subnet", "video"},
    "onnxruntime": {"detect.ort", "subnet"},
    "openvino": {"detect.openvino"},
    "torch": {"detect.pytorch", "detect.surfaces", "detect.torchgraph"},
    "onnx": {"detect.torchgraph"},
    "ray": set(),
    "fastapi": {"server.app", "server.problems"},
    "scipy": {"motion", "track"},
    "pydantic_settings": {"settings"},
    "sr25519": {"auth"},
    "faster_coco_eval": {"measure"},
    "trackeval": {"measure"},
}
CLOCKS = {"time", "perf_counter", "monotonic", "time_ns", "monotonic_ns"}


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__") or "firsttouch"] = path
    return found


def imports(name: str, path: Path, *, at_top: bool = False) -> set[str]:
    """Full names of what a module imports; `at_top`: only when it is itself imported."""
    tree = ast.parse(path.read_text())
    package = ["firsttouch", *name.split(".")][: None if path.name == "__init__.py" else -1]
    found = set()
    for node in tree.body if at_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            found |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
    return found


def test_every_heavy_library_has_one_door() -> None:
    for name, path in modules().items():
        for library in {imported.split(".")[0] for imported in imports(name, path)} & DOORS.keys():
            assert name in DOORS[library], f"{name} imports {library}; its doors are {sorted(DOORS[library])}"


def test_every_door_is_used() -> None:
    used = {name: {imported.split(".")[0] for imported in imports(name, path)} for name, path in modules().items()}
    for library, doors in DOORS.items():
        for door in doors:
            assert library in used.get(door, set()), f"{door} no longer imports {library}: take it out of the list"


def test_the_import_graph_has_no_cycle() -> None:
    known = modules()
    graph = {
        name: {
            imported.removeprefix("firsttouch.")
            for imported in imports(name, path, at_top=True)
            if imported.removeprefix("firsttouch.") in known
        }
        - {name}
        for name, path in known.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            pytest.fail(" -> ".join((*trail[trail.index(name) :], name)))
        if name not in done:
            for other in sorted(graph[name]):
                # A package's own modules may import the package's other modules, not the package itself.
                if not name.startswith(other + "."):
                    visit(other, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_only_the_clock_reads_the_clock() -> None:
    for name, path in modules().items():
        if name == "clock":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time":
                assert node.attr not in CLOCKS, f"{path.name}:{node.lineno} reads time.{node.attr}"


def test_the_package_imports_nothing_that_stands_beside_it() -> None:
    for name, path in modules().items():
        outside = {imported.split(".")[0] for imported in imports(name, path)} & {
            "bench",
            "train",
            "scripts",
            "deploy",
            "tests",
        }
        assert not outside, f"{name} imports {outside}"
