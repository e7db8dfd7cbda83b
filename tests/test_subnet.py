"""The subnet's public track: the package stands alone, passes the judge's scan, and sees what our detector sees."""

from __future__ import annotations

import ast
import asyncio
import json
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from firsttouch import subnet
from firsttouch.clock import Deadline
from firsttouch.commands.export import MAX_PACKAGE_BYTES, PARTS, export_package
from firsttouch.detect import BUNDLED_MODEL, load_detector
from firsttouch.engine import Engine, Job
from firsttouch.errors import ModelMismatch, ModelNotFound, NotAVideo, SettingsError
from firsttouch.settings import Settings
from train.render import make_scene, render_frame

# What the judge's own scan of miner.py refuses.
FORBIDDEN_IMPORTS = {
    "socket", "subprocess", "ctypes", "multiprocessing", "requests", "urllib", "http", "ftplib", "telnetlib",
    "paramiko",
}  # fmt: skip
FORBIDDEN_CALLS = {"eval", "exec", "__import__", "open"}
ALLOWED_SUFFIXES = {".onnx", ".py", ".json", ".txt", ".md", ".yml", ".yaml", ".labels", ".csv"}


def picture(width: int = 1280, height: int = 720) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A drawn view of a pitch, in BGR."""
    drawn, _ = render_frame(make_scene(seed=3, frames=1), 0)
    return np.ascontiguousarray(cv2.resize(drawn, (width, height)))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not BUNDLED_MODEL.is_file():
        pytest.skip("the bundled model is not there")
    folder = tmp_path_factory.mktemp("package") / "repo"
    export_package(folder)
    return folder


def test_the_package_is_one_file_and_one_model_within_the_judges_limits(package: Path) -> None:
    files = sorted(path.name for path in package.iterdir())
    assert files == ["firsttouch.onnx", "miner.py"]
    assert {path.suffix for path in package.iterdir()} <= ALLOWED_SUFFIXES
    assert sum(path.stat().st_size for path in package.iterdir()) <= MAX_PACKAGE_BYTES


def test_the_file_passes_the_judges_scan(package: Path) -> None:
    for node in ast.walk(ast.parse((package / "miner.py").read_text())):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & FORBIDDEN_IMPORTS
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.module.split(".")[0] not in FORBIDDEN_IMPORTS | {"firsttouch"}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS


def test_no_part_of_the_file_hides_a_name_of_another() -> None:
    names = [
        name
        for part in PARTS
        for node in ast.parse(Path(str(part.__file__)).read_text()).body
        for name in defined(node)
        if name not in SHARED
    ]
    assert len(names) == len(set(names))


SHARED = {"Float", "Array"}  # aliases of numpy's types


def defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)]


RUN_ALONE = """
import importlib.util, json, sys
sys.modules["firsttouch"] = None  # an import of us would fail
spec = importlib.util.spec_from_file_location("scorevision_hf_miner", sys.argv[1] + "/miner.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)  # as the judge does: not in sys.modules
import cv2
miner = module.Miner(path_hf_repo=sys.argv[1])
rows = miner.predict_batch(batch_images=[cv2.imread(sys.argv[2])] * 2, offset=7, n_keypoints=40)
print(repr(miner), file=sys.stderr)
print(json.dumps([row.model_dump() for row in rows]))
"""


def test_the_package_runs_without_ours_as_the_judge_loads_it(package: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "p.png"), picture())
    command = [sys.executable, "-c", RUN_ALONE, str(package), str(tmp_path / "p.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "firsttouch.onnx" in done.stderr
    rows = json.loads(done.stdout)
    assert [row["frame_id"] for row in rows] == [7, 8]
    for row in rows:
        assert row.keys() == {"frame_id", "boxes", "polygons", "keypoints"}
        assert len(row["keypoints"]) == 40
        assert row["keypoints"][32:] == [[0, 0]] * 8
        for box in row["boxes"]:
            assert box.keys() == {"x1", "y1", "x2", "y2", "cls_id", "conf"}
            assert 0 <= box["x1"] < box["x2"] <= 1280
            assert 0 <= box["y1"] < box["y2"] <= 720
            assert box["cls_id"] in (0, 1, 2, 3)
            assert 0 <= box["conf"] <= 1


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (1920, 1080), (854, 480), (641, 361), (720, 1280)])
def test_the_miner_sees_what_our_detector_sees(package: Path, width: int, height: int) -> None:
    seen = picture(width, height)
    (row,) = subnet.Miner(package).predict_batch([seen], 0, 32)
    detector = load_detector(model=package / "firsttouch.onnx", precision="fp32", confidence=subnet.CONFIDENCE)
    planes = subnet.planes_of(seen)
    padded = planes[0].shape[::-1]
    (ours,) = detector.detect([detector.prepare(*planes)], [0], *padded, pitch=True)
    assert [box["cls_id"] for box in row["boxes"]] == ours.class_id.tolist()
    boxes = np.array([[box[side] for side in ("x1", "y1", "x2", "y2")] for box in row["boxes"]]).reshape(-1, 4)
    assert np.abs(boxes - ours.xyxy).max(initial=0) <= 1.0  # whole pixels, and at most one of padding
    assert np.abs(np.array(row["keypoints"]) - ours.keypoints[:, :2]).max() <= 1.0


def test_the_planes_are_those_of_the_picture() -> None:
    """Grey has no chroma, and odd sizes keep every pixel: judged by OpenCV's own way back."""
    for size in ((720, 1280), (361, 641), (2, 2), (1, 1)):
        grey = np.full((*size, 3), 90, np.uint8)
        y, u, v = subnet.planes_of(grey)
        assert y.shape == (size[0] + size[0] % 2, size[1] + size[1] % 2)
        assert u.shape == v.shape == (y.shape[0] // 2, y.shape[1] // 2)
        assert set(u.ravel()) == set(v.ravel()) == {128}
    drawn = picture()
    y, u, v = subnet.planes_of(drawn)
    packed = np.concatenate([y.ravel(), u.ravel(), v.ravel()]).reshape(1080, 1280)
    back = cv2.cvtColor(packed, cv2.COLOR_YUV2BGR_I420)
    assert np.abs(back.astype(int) - drawn).mean() < 4


def test_an_export_that_would_not_work_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        export_package(tmp_path / "a", tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelMismatch):
        export_package(tmp_path / "b", tmp_path / "bad.onnx")
    with (tmp_path / "big.onnx").open("wb") as big:
        big.truncate(MAX_PACKAGE_BYTES)
    with pytest.raises(ModelMismatch, match="more than"):
        export_package(tmp_path / "c", tmp_path / "big.onnx")
    with pytest.raises(SettingsError):
        export_package(tmp_path / "bad.onnx", BUNDLED_MODEL) if BUNDLED_MODEL.is_file() else export_package(
            tmp_path / "bad.onnx", tmp_path / "bad.onnx"
        )


def test_bytes_that_are_no_picture_are_none() -> None:
    assert subnet.decode_picture(b"") is None
    assert subnet.decode_picture(b"<html>") is None
    encoded = cv2.imencode(".png", picture(64, 36))[1].tobytes()
    decoded = subnet.decode_picture(encoded)
    assert decoded is not None
    assert decoded.shape == (36, 64, 3)


def test_pictures_are_looked_at_in_the_cage() -> None:
    """The real engine: bytes go in, numbers come out, and what is no picture is a typed error."""
    if not BUNDLED_MODEL.is_file():
        pytest.skip("the bundled model is not there")
    encoded = cv2.imencode(".png", picture())[1].tobytes()

    async def look() -> None:
        async with Engine(Settings(), spares=0) as engine:
            assert await engine.wait_ready(Deadline.after(100))
            job = Job("pictures", Deadline.after(60), pictures=((4, None, encoded), (9, None, encoded)))
            async with aclosing(engine.run(job)) as answers:
                (analysis,) = [answer async for answer in answers]
            assert [frame.frame_number for frame in analysis.frames] == [4, 9]
            assert (analysis.width, analysis.height) == (1280, 720)
            broken = Job("pictures", Deadline.after(60), pictures=((1, None, b"<html>"),))
            with pytest.raises(NotAVideo, match="frame 1"):
                async with aclosing(engine.run(broken)) as answers:
                    [answer async for answer in answers]

    asyncio.run(look())
