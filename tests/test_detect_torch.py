"""The PyTorch runtime against ONNX Runtime on the shipped files, and what is said where it cannot run."""

from __future__ import annotations

import importlib.util
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import detect_graphs
import numpy as np
import pytest
from onnx import TensorProto, helper

from firsttouch.detect import BUNDLED_MODEL, Wish, load_detector
from firsttouch.detect.choose import choose_among, runtimes_for
from firsttouch.detect.native import ALL_OUTPUTS, BOX_OUTPUTS, NativeLayout
from firsttouch.detect.ort import OrtCpu
from firsttouch.detect.planes import planes_of_picture
from firsttouch.detect.pytorch import Torch, TorchCudaSession
from firsttouch.detect.session import ModelFile, OutOfDeviceMemory
from firsttouch.errors import ModelMismatch, RuntimeUnavailable
from firsttouch.evaluate import labels_of
from firsttouch.measure import agreement
from train.render import make_scene, render_frame

HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is an extra, and not installed")
needs_model = pytest.mark.skipif(not BUNDLED_MODEL.is_file(), reason="the bundled model is not there")
LITE = BUNDLED_MODEL.with_name("firsttouch-lite.onnx")


def looks(runtime: str, precision: str = "fp32", path: Path = BUNDLED_MODEL) -> list:
    detector = load_detector(model=path, wish=Wish(device="cpu", runtime=runtime, precision=precision))
    assert (detector.runtime, detector.device, detector.precision) == (runtime, "cpu", precision)
    found = []
    for number in range(3):
        picture, _ = render_frame(make_scene(number, 1, (1280, 720)), 0)
        made = detector.prepare(*planes_of_picture(picture))
        found += detector.detect([made], [number], 1280, 720, pitch=True)
    assert sum(len(look) for look in found) > 20  # otherwise there is nothing to compare
    return found


@needs_torch
@needs_model
@pytest.mark.parametrize("path", [BUNDLED_MODEL, LITE], ids=lambda p: p.stem)
def test_pytorch_answers_as_onnx_runtime_does(path):
    for mine, expected in zip(looks("torch", path=path), looks("onnxruntime", path=path), strict=True):
        assert len(mine) == len(expected)
        np.testing.assert_allclose(mine.xyxy, expected.xyxy, atol=0.05)
        np.testing.assert_allclose(mine.class_scores, expected.class_scores, atol=1e-4)
        np.testing.assert_allclose(mine.keypoints, expected.keypoints, atol=0.05)


@needs_torch
@needs_model
def test_half_precision_changes_hardly_a_box():
    half, full = (
        labels_of([(d.class_id, d.xyxy, d.confidence) for d in looks("torch", precision)])
        for precision in ("bf16", "fp32")
    )
    assert agreement(half, full).f1 > 0.95


@needs_torch
@needs_model
def test_boxes_alone_batches_and_threads_give_the_same_as_one_by_one():
    file, rng = ModelFile.read(LITE), np.random.default_rng(0)
    values = rng.integers(0, 255, (4, 96, 160, 6), np.uint8)
    whole = Torch("cpu").open(file, ALL_OUTPUTS, (4, 96, 160, 6), "fp32").run(values)
    session = Torch("cpu").open(file, BOX_OUTPUTS, (1, 96, 160, 6), "fp32")
    with ThreadPoolExecutor(2) as pool:
        single = list(pool.map(session.run, [row[None] for row in values]))
    for row, (_, scores) in enumerate(single):
        np.testing.assert_allclose(scores[0], whole[1][row], atol=1e-5)


@needs_torch
def test_an_operator_that_our_network_does_not_have_is_named(tmp_path):
    model = detect_graphs.native(tmp_path / "tiny.onnx", *(np.zeros(s, np.float32) for s in ((1, 4), (1, 4), (32, 3))))
    with pytest.raises(ModelMismatch, match="does not know the operator ReduceMean") as refused:
        Torch("cpu").open(ModelFile.read(model), ALL_OUTPUTS, (1, 96, 160, 6), "fp32")
    assert "RUNTIME=onnxruntime" in refused.value.hint


@needs_torch
def test_a_shape_that_comes_from_the_picture_is_refused(tmp_path):
    nodes = [helper.make_node("Reshape", ["images", "images"], ["output0"])]
    info = helper.make_tensor_value_info
    inputs, outputs = [info("images", TensorProto.INT64, [1])], [info("output0", TensorProto.INT64, [None])]
    path = detect_graphs.save(tmp_path / "odd.onnx", nodes, inputs, outputs, {}, {})
    with pytest.raises(ModelMismatch, match="takes images from the picture"):
        Torch("cpu").open(ModelFile.read(path), ("output0",), (1,), "fp32")


def graph_of(nodes: list, weights: dict, shape: tuple[int, ...], path: Path) -> ModelFile:
    rank = {"Gather": 5, "Reshape": 3, "Flatten": 2}.get(nodes[-1].op_type, 4)
    info = helper.make_tensor_value_info
    inputs, outputs = [info("x", TensorProto.FLOAT, list(shape))], [info("y", TensorProto.FLOAT, [None] * rank)]
    return ModelFile.read(detect_graphs.save(path, nodes, inputs, outputs, weights, {}))


@needs_torch
@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ([("Conv", ["x", "k"], {"pads": [0, 1, 1, 0], "strides": [2, 1]})], {"k": np.ones((2, 3, 2, 2), np.float32)}),
        ([("Pad", ["x", "p", "f"], {})], {"p": np.array([0, 0, 1, 2, 0, 0, 3, 0]), "f": np.array(7, np.float32)}),
        (
            [("Slice", ["x", "s", "e", "a", "b"], {})],
            {n: np.array([v]) for n, v in zip("seab", (-1, -9, 3, -2), strict=True)},
        ),
        ([("Gather", ["x", "i"], {"axis": 2})], {"i": np.array([[0, -1], [2, 1]])}),
        ([("Clip", ["x", "", "h"], {})], {"h": np.array(0.5, np.float32)}),
        ([("Unsqueeze", ["x", "a"], {}), ("Squeeze", ["y0", "a"], {})], {"a": np.array([0, -1])}),
        ([("Reshape", ["x", "s"], {})], {"s": np.array([0, -1, 2])}),
        ([("Flatten", ["x"], {"axis": 2})], {}),
        ([("Softmax", ["x"], {"axis": 1}), ("Transpose", ["y0"], {"perm": [0, 2, 3, 1]})], {}),
        ([("Mod", ["x", "m"], {"fmod": 1})], {"m": np.array(-0.3, np.float32)}),
    ],
    ids=lambda value: "-".join(n[0] for n in value) if isinstance(value, list) else "",
)
def test_an_operator_does_what_onnx_says(nodes, weights, tmp_path):
    names = [*(f"y{at}" for at in range(len(nodes) - 1)), "y"]
    made = [
        helper.make_node(kind, inputs, [name], **attributes)
        for (kind, inputs, attributes), name in zip(nodes, names, strict=True)
    ]
    shape = (1, 3, 4, 6)
    file = graph_of(made, weights, shape, tmp_path / "one.onnx")
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected = OrtCpu().open(file, ("y",), shape, "fp32").run(values)[0]
    found = Torch("cpu").open(file, ("y",), shape, "fp32").run(values)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@needs_torch
def test_pytorch_without_a_gpu_says_so_and_runs_what_it_can(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "sees no CUDA GPU" in Torch("cuda").problem("fp16").reason
    assert Torch("cpu").problem("fp32") is None
    assert "use one of fp32, bf16" in Torch("cpu").problem("fp16").remedy


@pytest.fixture
def fake_cuda(monkeypatch):
    """Streams and CUDA graphs that only note what is asked of them; tensors stay on the CPU."""
    import torch

    asked = SimpleNamespace(captures=[], graphs=[])

    class Captured:
        def __init__(self):
            self.replay = lambda: None
            asked.graphs.append(self)

    def capture(graph, stream, capture_error_mode):
        asked.captures.append((graph, capture_error_mode))
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "Stream", lambda: SimpleNamespace(synchronize=lambda: None))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Captured)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(TorchCudaSession, "device", "cpu")
    return asked


@needs_torch
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_on_a_gpu_a_graph_is_captured_once_and_replayed_on_the_same_memory(fake_cuda, cuda_graph):
    import torch

    calls = []

    def graph(planes):
        calls.append(planes)
        return [planes.float().sum().reshape(1), planes.float().mean().reshape(1)]

    session = TorchCudaSession(graph, np.zeros((2, 3), np.uint8), "fp16", cuda_graph)
    if cuda_graph:
        assert fake_cuda.captures == [(fake_cuda.graphs[0], "thread_local")]
        answer = session._outputs

        def replay():
            for kept, new in zip(answer, graph(session._input), strict=True):
                kept.copy_(new)

        fake_cuda.graphs[0].replay = replay
    else:
        assert fake_cuda.captures == fake_cuda.graphs == []
    first = session.run(np.full((2, 3), 2, np.uint8))
    second = session.run(torch.full((2, 3), 5, dtype=torch.uint8))  # one that lies on the device is taken too
    assert [float(v[0]) for v in first] == [12, 2]  # and the second run has not written over it
    assert [float(v[0]) for v in second] == [30, 5]
    assert len({planes.data_ptr() for planes in calls}) == 1


def fail_with(error):
    raise error


@needs_torch
@needs_model
def test_what_goes_wrong_on_a_gpu_is_typed(fake_cuda, monkeypatch):
    import torch

    from firsttouch.detect import torchgraph

    def opening(error):
        monkeypatch.setattr(torchgraph, "TorchGraph", lambda *_: lambda planes: fail_with(error))
        return Torch("cuda").open(ModelFile.read(LITE), BOX_OUTPUTS, (1, 96, 160, 6), "fp16")

    with pytest.raises(OutOfDeviceMemory):
        opening(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"))
    session = TorchCudaSession(lambda planes: [], np.zeros(1, np.uint8), "fp16", cuda_graph=True)
    full = SimpleNamespace(replay=lambda: fail_with(torch.OutOfMemoryError("CUDA out of memory")))
    monkeypatch.setattr(session, "_captured", full)
    with pytest.raises(OutOfDeviceMemory):
        session.run(np.zeros(1, np.uint8))
    with pytest.raises(RuntimeUnavailable, match="on the GPU: no kernel image"):
        opening(RuntimeError("no kernel image is available\nmore"))


def test_pytorch_that_is_not_installed_is_one_warning_with_the_remedy(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    model = detect_graphs.native(tmp_path / "tiny.onnx", *(np.zeros(s, np.float32) for s in ((1, 4), (1, 4), (32, 3))))
    wish = Wish(device="cpu", runtime="torch")
    with caplog.at_level(logging.WARNING):
        chosen = choose_among(runtimes_for(wish), model, wish, NativeLayout(160))
    assert (chosen.runtime.name, chosen.precision) == ("onnxruntime", "fp32")
    assert len(caplog.records) == 1
    said = caplog.records[0].getMessage()
    assert "RUNTIME=torch cannot be met: PyTorch cannot run a model here: no package torch" in said
    assert "firsttouch[torch]" in said


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
def test_pytorch_runs_only_where_it_is_asked_for(device):
    assert not any(isinstance(runtime, Torch) for runtime in runtimes_for(Wish(device=device)))
    asked = runtimes_for(Wish(device=device, runtime="torch"))
    assert [runtime.device for runtime in asked] == (["cuda", "cpu"] if device == "auto" else [device])


def test_pytorch_on_a_gpu_makes_half_of_the_one_file(tmp_path, monkeypatch):
    model = detect_graphs.native(tmp_path / "tiny.onnx", *(np.zeros(s, np.float32) for s in ((1, 4), (1, 4), (32, 3))))
    opened = []

    def open_(self, file, outputs, shape, precision):
        opened.append((file.path.name, precision))
        return OrtCpu().open(file, outputs, shape, "fp32")

    monkeypatch.setattr(Torch, "problem", lambda self, precision: None)
    monkeypatch.setattr(Torch, "open", open_)
    wish = Wish(device="cuda", runtime="torch")
    assert choose_among(runtimes_for(wish), model, wish, NativeLayout(160)).precision == "fp16"
    assert opened == [("tiny.onnx", "fp16")]
