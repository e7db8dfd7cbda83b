"""Which runtime is chosen, what is said when a wish cannot be met, and what an engine's cache key holds.

No GPU is needed: the runtimes are fakes that keep the contract, and the real ones are asked on a machine without.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import detect_graphs
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from firsttouch.detect import Wish, load_detector, ort
from firsttouch.detect.choose import choose_among, runtimes_for
from firsttouch.detect.native import NativeDetector, NativeLayout
from firsttouch.detect.openvino import OpenVino
from firsttouch.detect.ort import OrtCpu, OrtCuda, OrtTensorRt, OrtTensorRtRtx, engine_folder, is_out_of_memory
from firsttouch.detect.session import ModelFile, OutOfDeviceMemory, Problem
from firsttouch.detect.yolo import CombinedDetector, YoloModel
from firsttouch.errors import ModelMismatch, ModelNotFound, RuntimeUnavailable, SettingsError

BOXES = np.array([[100, 60, 140, 90]], np.float32)
SCORES = np.array([[0, 0.1, 0.8, 0.05]], np.float32)
POINTS = np.zeros((32, 3), np.float32)
LAYOUT = NativeLayout(160)


@dataclass
class FakeSession:
    """Answers the outputs of `OrtCpu`'s session, after as long as it is told to take."""

    inner: object
    device: str
    runtime: str
    precision: str
    seconds: float
    memory: int = 1000
    on_calling_thread: bool = False

    def run(self, values):
        if len(values) > self.memory:
            raise OutOfDeviceMemory("too many frames")
        time.sleep(self.seconds)
        return self.inner.run(values)


@dataclass
class FakeRuntime:
    """A runtime on a device we do not have."""

    device: str = "cuda"
    name: str = "onnxruntime"
    seconds: float = 0.0
    problem_: Problem | None = None
    fails: Exception | None = None
    memory: int = 1000
    opened: list = field(default_factory=list)

    def problem(self, precision):
        return self.problem_

    def open(self, model, outputs, shape, precision):
        self.opened.append((model.path.name, precision, shape))
        if self.fails is not None:
            raise self.fails
        inner = OrtCpu().open(model, outputs, shape, "fp32")
        return FakeSession(inner, self.device, self.name, precision, self.seconds, self.memory)


@pytest.fixture
def model(tmp_path) -> Path:
    return detect_graphs.native(tmp_path / "tiny.onnx", BOXES, SCORES, POINTS)


def test_device_cuda_without_a_gpu_runs_the_fastest_precision_of_the_cpu(model, monkeypatch):
    model.with_suffix(".int8.onnx").write_bytes(model.read_bytes())
    monkeypatch.setattr("firsttouch.detect.choose.has_int8_instructions", lambda: True)
    missing, cpu = FakeRuntime(problem_=Problem("no driver", "install it")), FakeRuntime("cpu")
    choose_among([missing], model, Wish(device="cuda"), LAYOUT, fallback=cpu)
    assert [precision for _, precision, _ in cpu.opened] == ["fp32", "int8"]


def test_the_fastest_of_what_works_is_chosen(model):
    fast, slow = FakeRuntime("cuda"), FakeRuntime("cpu", seconds=0.05)
    chosen = choose_among([fast, slow], model, Wish(), LAYOUT)
    assert chosen.runtime is fast
    assert (
        choose_among(
            [FakeRuntime("cuda", seconds=0.05), slow_free := FakeRuntime("cpu")], model, Wish(), LAYOUT
        ).runtime
        is slow_free
    )


def test_a_wish_that_cannot_be_met_is_one_warning_with_reason_and_remedy(model, caplog):
    missing = FakeRuntime(problem_=Problem("no NVIDIA driver answers", "install the driver"))
    with caplog.at_level(logging.WARNING):
        chosen = choose_among([missing], model, Wish(device="cuda"), LAYOUT)
    assert (chosen.runtime.name, chosen.runtime.device, chosen.precision) == ("onnxruntime", "cpu", "fp32")
    assert len(caplog.records) == 1
    said = caplog.records[0].getMessage()
    assert "DEVICE=cuda cannot be met: no NVIDIA driver answers" in said
    assert "Running onnxruntime fp32 on cpu instead" in said
    assert "install the driver" in said


def test_a_runtime_that_falls_back_silently_is_found_out(model, caplog):
    liar = FakeRuntime(fails=RuntimeUnavailable("ONNX Runtime fell back to CPUExecutionProvider", hint="check CUDA"))
    with caplog.at_level(logging.WARNING):
        chosen = choose_among([liar], model, Wish(device="cuda"), LAYOUT)
    assert chosen.runtime.device == "cpu"
    assert "fell back to CPUExecutionProvider" in caplog.text
    assert "check CUDA" in caplog.text


def test_what_runs_instead_is_as_fast_as_this_machine_can(model, monkeypatch, caplog):
    model.with_suffix(".int8.onnx").write_bytes(model.read_bytes())
    monkeypatch.setattr("firsttouch.detect.choose.has_int8_instructions", lambda: True)
    cpu = FakeRuntime("cpu")
    missing = FakeRuntime(problem_=Problem("no NVIDIA driver answers", "install the driver"))
    choose_among([missing], model, Wish(device="cuda"), LAYOUT, fallback=cpu)
    assert [(name, precision) for name, precision, _ in cpu.opened] == [
        ("tiny.onnx", "fp32"),
        ("tiny.int8.onnx", "int8"),
    ]


def test_auto_says_nothing_when_there_is_no_gpu(model, caplog):
    missing = FakeRuntime(problem_=Problem("no driver", "none"))
    with caplog.at_level(logging.WARNING):
        chosen = choose_among([missing, OrtCpu()], model, Wish(), LAYOUT)
    assert chosen.runtime.device == "cpu"
    assert not caplog.records


def test_tensorrt_that_does_not_work_is_said_though_cuda_does(model, caplog):
    tensorrt = FakeRuntime(name="tensorrt", problem_=Problem("libnvinfer is missing", "pip install tensorrt-cu13"))
    cuda = FakeRuntime("cuda")
    with caplog.at_level(logging.WARNING):
        chosen = choose_among([tensorrt, cuda], model, Wish(tensorrt=True), LAYOUT)
    assert chosen.runtime is cuda
    assert "TENSORRT=1 cannot be met: libnvinfer is missing" in caplog.text


def test_precision_files_are_chosen_by_device(model, monkeypatch):
    for suffix in (".int8.onnx", ".fp16.onnx"):
        model.with_suffix(suffix).write_bytes(model.read_bytes())
    monkeypatch.setattr("firsttouch.detect.choose.has_int8_instructions", lambda: True)
    cuda, cpu = FakeRuntime("cuda", seconds=0.02), FakeRuntime("cpu")
    choose_among([cuda, cpu], model, Wish(), LAYOUT)
    assert [(n, p) for n, p, _ in cuda.opened] == [("tiny.fp16.onnx", "fp16")]
    assert [(n, p) for n, p, _ in cpu.opened] == [("tiny.onnx", "fp32"), ("tiny.int8.onnx", "int8")]
    monkeypatch.setattr("firsttouch.detect.choose.has_int8_instructions", lambda: False)
    old = FakeRuntime("cpu")
    assert choose_among([old], model, Wish(), LAYOUT).precision == "fp32"
    assert old.opened == []  # nothing to choose: nothing to test


def test_int8_without_its_file_is_refused(model):
    with pytest.raises(ModelNotFound, match=r"tiny\.int8\.onnx"):
        choose_among([OrtCpu()], model, Wish(precision="int8"), LAYOUT)


def test_what_an_operator_may_wish_for_is_checked():
    with pytest.raises(SettingsError, match="device is 'gpu'"):
        Wish(device="gpu")


@pytest.mark.parametrize(
    ("wish", "kinds"),
    [
        (Wish(device="cpu"), [OrtCpu]),
        (Wish(device="cuda"), [OrtCuda]),
        (Wish(device="cuda", tensorrt=True), [OrtTensorRt, OrtCuda]),
        (Wish(device="cpu", runtime="openvino"), [OpenVino]),
        (Wish(runtime="tensorrt"), [OrtTensorRt]),
        (Wish(runtime="tensorrt-rtx"), [OrtTensorRtRtx]),
        (Wish(device="cuda", runtime="tensorrt-rtx"), [OrtTensorRtRtx]),
    ],
)
def test_only_what_is_wished_for_is_tried(wish, kinds):
    assert [type(r) for r in runtimes_for(wish)] == kinds


def test_on_a_machine_without_a_gpu_cuda_is_refused_with_the_plainest_reason(monkeypatch):
    monkeypatch.setattr(ort, "_nvidia_smi", lambda _: "")
    assert "no NVIDIA driver" in OrtCuda().problem("fp32").reason
    monkeypatch.setattr(ort, "_nvidia_smi", lambda _: "NVIDIA H200")
    monkeypatch.setattr(ort.onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    problem = OrtCuda().problem("fp32")
    assert "built without CUDAExecutionProvider" in problem.reason
    assert "pip uninstall onnxruntime" in problem.remedy
    monkeypatch.setattr(ort.onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert OrtCuda().problem("fp16") is None
    assert "int8 is not run on the GPU" in OrtCuda().problem("int8").reason


def test_device_cuda_on_this_machine_still_answers(model, monkeypatch, caplog):
    monkeypatch.setattr(ort, "_nvidia_smi", lambda _: "")
    with caplog.at_level(logging.WARNING):
        detector = load_detector(model=model, device="cuda", img_size=160)
    assert (detector.device, detector.runtime, detector.precision) == ("cpu", "onnxruntime", "fp32")
    assert sum("DEVICE=cuda" in r.getMessage() for r in caplog.records) == 1


def test_the_engine_of_another_gpu_driver_library_model_or_shape_is_never_found(model, tmp_path):
    file = ModelFile.read(model)
    facts = {"gpu": "A", "driver": "1", "onnxruntime": "1.31", "tensorrt": "10.9", "cudnn": "9"}

    def folder(shape=(1, 368, 640, 6), outputs=("boxes",), precision="fp16", source=file, **changed):
        return engine_folder(tmp_path, source, outputs, shape, precision, lambda: facts | changed)

    other = detect_graphs.native(tmp_path / "tiny2.onnx", BOXES + 1, SCORES, POINTS)
    folders = [
        folder(),
        folder(shape=(8, 368, 640, 6)),
        folder(outputs=("boxes", "keypoints")),
        folder(precision="fp32"),
        folder(source=ModelFile.read(other)),
        *(folder(**{name: "other"}) for name in facts),
    ]
    assert len(set(folders)) == len(folders)
    assert folder() == folders[0]
    assert folder().parent == tmp_path / "engines"


def test_a_built_engine_is_found_by_its_file(model, tmp_path):
    file, arguments = ModelFile.read(model), (("boxes",), (1, 96, 160, 6), "fp16")
    runtime = OrtTensorRt(tmp_path)
    assert not runtime.has_engine(file, *arguments)
    with pytest.raises(RuntimeUnavailable, match="no TensorRT engine of tiny") as refused:
        runtime.open(file, *arguments)
    assert "engine build --batch 1" in refused.value.hint
    folder = engine_folder(tmp_path, file, *arguments)
    folder.mkdir(parents=True)
    assert not runtime.has_engine(file, *arguments)
    (folder / "TensorrtExecutionProvider_1.engine").write_bytes(b"x")
    assert runtime.has_engine(file, *arguments)


def test_tensorrt_gets_its_cache_and_cuda_its_graph(model, tmp_path, monkeypatch):
    asked = []

    def opened(file, outputs, options, providers):
        asked.append(providers)
        raise RuntimeUnavailable("stop here")

    monkeypatch.setattr(ort, "open_session", opened)
    file = ModelFile.read(model)
    for runtime in (OrtTensorRt(tmp_path, build=True), OrtCuda()):
        with pytest.raises(RuntimeUnavailable):
            runtime.open(file, ("boxes",), (4, 96, 160, 6), "fp16")
    (tensorrt, options), after = asked[0]
    assert (tensorrt, after) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert options["trt_fp16_enable"] == "1"
    assert Path(options["trt_engine_cache_path"]).is_dir()
    assert Path(options["trt_engine_cache_path"]).parent == tmp_path / "engines"
    graphs = [providers[0][1].get("trt_cuda_graph_enable") for providers in asked[:2]]
    graphs += [providers[0][1].get("enable_cuda_graph") for providers in asked[2:]]
    assert graphs == ["1", "0", "1", "0"]
    assert asked[2][0][0] == "CUDAExecutionProvider"


def test_libraries_are_loaded_once_and_what_is_printed_then_is_no_answer(monkeypatch, capsys, caplog):
    asked = []

    def preload():
        asked.append("cuda")
        print("Failed to load libcudart.so.13")

    monkeypatch.setattr(ort.onnxruntime, "preload_dlls", preload)
    monkeypatch.setattr(ort.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(ort.importlib, "import_module", asked.append)
    ort.load_libraries.cache_clear()
    with caplog.at_level(logging.DEBUG):
        for tensorrt in (True, False, False, True):
            ort.load_libraries(tensorrt=tensorrt)
    assert asked == ["cuda", "tensorrt_libs", "cuda"]
    assert capsys.readouterr().out == ""
    assert "Failed to load libcudart.so.13" in caplog.text
    ort.load_libraries.cache_clear()


def test_a_missing_library_is_a_reason_with_its_remedy_and_is_not_tried_twice(model, monkeypatch):
    """The plain build of ONNX Runtime knows no CUDA; that of the GPU without a driver falls back to the CPU."""
    opened = []
    real = ort.open_session
    monkeypatch.setattr(
        ort, "open_session", lambda *rest: opened.append(1) or real(*rest[:3], ["CPUExecutionProvider"])
    )
    with pytest.raises(RuntimeUnavailable, match="fell back to CPUExecutionProvider") as refused:
        OrtCuda().open(ModelFile.read(model), ("boxes",), (1, 96, 160, 6), "fp32")
    assert opened == [1]
    assert "firsttouch[gpu]" in refused.value.hint


@pytest.fixture
def gpu(monkeypatch):
    """Sessions of the CPU that say they run on CUDA, with a CUDA graph as far as `refuses` lets them."""

    class Session:
        refuses: dict = {}  # noqa: RUF012
        threads: set = set()  # noqa: RUF012

        def __init__(self, inner, graph):
            self._inner, self._graph = inner, graph

        def __getattr__(self, name):
            return getattr(self._inner, name)

        def get_providers(self):
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

        def run_with_iobinding(self, binding):
            self.threads.add(threading.get_ident())
            if reason := self.refuses.get(f"run {self._graph}"):
                raise RuntimeError(reason)
            self._inner.run_with_iobinding(binding)

    def opened(file, outputs, options, providers):
        graph = providers[0][1]["enable_cuda_graph"]
        Session.opened.append(graph)
        if reason := Session.refuses.get(f"open {graph}"):
            raise reason
        return Session(real(file, outputs, options, ["CPUExecutionProvider"]), graph)

    real, bound = ort.open_session, ort.DeviceSession
    Session.opened, Session.refuses, Session.threads = [], {}, set()
    monkeypatch.setattr(ort, "open_session", opened)
    monkeypatch.setattr(ort, "DeviceSession", lambda *arguments: bound(*arguments, memory="cpu"))
    return Session


@pytest.mark.parametrize(
    ("refused", "opened", "said"),
    [
        ({}, ["1"], ""),
        ({"open 1": ModelMismatch("nodes are left to the CPU")}, ["1", "0"], "nodes are left to the CPU"),
        ({"run 1": "not permitted when stream is capturing"}, ["1", "0"], "does not run on the GPU: not permitted"),
    ],
)
def test_a_model_that_cannot_be_captured_runs_without_a_graph(model, gpu, caplog, refused, opened, said):
    gpu.refuses = refused
    file, shape = ModelFile.read(model), (2, 96, 160, 6)
    with caplog.at_level(logging.INFO):
        session = OrtCuda().open(file, ("boxes", "scores"), shape, "fp32")
    assert gpu.opened == opened
    assert (said in caplog.text) if said else ("no CUDA graph" not in caplog.text)
    values = np.random.default_rng(0).integers(0, 200, shape, np.uint8)
    plain = detect_graphs.native(model.with_name("same.onnx"), BOXES, SCORES, POINTS)
    expected = onnxruntime.InferenceSession(plain).run(["boxes", "scores"], {"planes": values})
    for mine, other in zip(session.run(values), expected, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_an_output_whose_size_comes_from_the_picture_is_not_captured(tmp_path, gpu, caplog):
    nodes = [helper.make_node("NonZero", ["images"], ["places"]), helper.make_node("Abs", ["images"], ["same"])]
    info = helper.make_tensor_value_info
    inputs = [info("images", TensorProto.FLOAT, [1, 3, 8, 8])]
    outputs = [info("places", TensorProto.INT64, [4, "n"]), info("same", TensorProto.FLOAT, [1, 3, 8, 8])]
    path = detect_graphs.save(tmp_path / "places.onnx", nodes, inputs, outputs, {}, {})
    with caplog.at_level(logging.INFO):
        session = OrtCuda().open(ModelFile.read(path), ("places", "same"), (1, 3, 8, 8), "fp32")
    assert gpu.opened == ["1", "0"]
    assert "no CUDA graph of places.onnx: the size of an output comes from the picture" in caplog.text
    for count in (3, 0, 7):
        values = np.zeros((1, 3, 8, 8), np.float32)
        values[0, 0, 0, :count] = 1
        places, same = session.run(values)
        assert places.shape == (4, count)
        np.testing.assert_array_equal(same, values)


def test_an_output_in_half_precision_gets_memory_of_its_own(tmp_path, gpu):
    nodes = [helper.make_node("Cast", ["images"], ["halves"], to=TensorProto.FLOAT16)]
    info = helper.make_tensor_value_info
    inputs = [info("images", TensorProto.FLOAT, [1, 3, 8, 8])]
    outputs = [info("halves", TensorProto.FLOAT16, [1, 3, 8, 8])]
    path = detect_graphs.save(tmp_path / "halves.onnx", nodes, inputs, outputs, {}, {})
    session = OrtCuda().open(ModelFile.read(path), ("halves",), (1, 3, 8, 8), "fp16")
    values = np.random.default_rng(0).random((1, 3, 8, 8), np.float32)
    np.testing.assert_array_equal(session.run(values)[0], values.astype(np.float16))
    assert gpu.opened == ["1"]


@pytest.mark.parametrize(("graph", "opened"), [("1", ["1"]), ("0", ["1", "0"])])
def test_too_little_memory_while_opening_is_no_reason_to_go_without_a_graph(model, gpu, graph, opened):
    gpu.refuses = {f"open {graph}": OutOfDeviceMemory("full"), **({"run 1": "no"} if graph == "0" else {})}
    with pytest.raises(OutOfDeviceMemory):
        OrtCuda().open(ModelFile.read(model), ("boxes",), (1, 96, 160, 6), "fp32")
    assert gpu.opened == opened


def test_what_never_runs_on_the_gpu_is_a_typed_error(model, gpu):
    gpu.refuses = {"run 1": "no kernel image", "run 0": "no kernel image is available\nsecond line"}
    with pytest.raises(RuntimeUnavailable, match=r"does not run on the GPU: no kernel image is available$"):
        OrtCuda().open(ModelFile.read(model), ("boxes",), (1, 96, 160, 6), "fp32")


def test_all_runs_are_on_one_thread_whoever_asks(model, gpu):
    session = OrtCuda().open(ModelFile.read(model), ("boxes",), (1, 96, 160, 6), "fp32")
    values = np.zeros((1, 96, 160, 6), np.uint8)
    askers = [threading.Thread(target=session.run, args=(values,)) for _ in range(3)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert len(gpu.threads) == 1
    assert threading.get_ident() not in gpu.threads


def test_a_session_that_runs_elsewhere_is_not_taken(model):
    session = OrtCpu().open(ModelFile.read(model), ("boxes",), (1, 96, 160, 6), "fp32")
    assert session.device == "cpu"
    with pytest.raises(RuntimeUnavailable, match="fell back to CPUExecutionProvider"):
        ort._checked(session, "cuda")


def test_out_of_memory_halves_the_batch_and_goes_on(model, caplog):
    small = FakeRuntime(memory=2)
    detector = NativeDetector(
        ModelFile.read(model),
        lambda m, o, s: small.open(m, o, s, "fp16"),
        img_size=160,
        batch_size=8,
    )
    y, u, v = np.full((720, 1280), 200, np.uint8), *(np.full((360, 640), 128, np.uint8),) * 2
    inputs = [detector.prepare(y, u, v) for _ in range(7)]
    with caplog.at_level(logging.WARNING):
        found = detector.detect(inputs, range(7), 1280, 720, pitch=True)
    assert [d.frame_number for d in found] == list(range(7))
    assert all(len(d) == 1 for d in found)
    assert detector.batch_size == 2
    assert [shape[0] for _, _, shape in small.opened] == [8, 4, 2]
    assert len(caplog.records) == 2


def test_out_of_memory_while_opening_halves_the_batch_too(model, caplog):
    class Opening(FakeRuntime):
        def open(self, file, outputs, shape, precision):
            self.fails = OutOfDeviceMemory("too many frames") if shape[0] > 2 else None
            return super().open(file, outputs, shape, precision)

    small = Opening()
    with caplog.at_level(logging.WARNING):
        detector = NativeDetector(
            ModelFile.read(model), lambda m, o, s: small.open(m, o, s, "fp16"), img_size=160, batch_size=8
        )
    assert detector.batch_size == 2
    assert [shape[0] for _, _, shape in small.opened] == [8, 4, 2]
    assert len(caplog.records) == 2


def test_a_device_without_memory_for_one_frame_says_so(model):
    none = FakeRuntime(memory=0)
    detector = NativeDetector(ModelFile.read(model), lambda m, o, s: none.open(m, o, s, "fp16"), img_size=160)
    planes = [np.zeros(detector.canvas.shape, np.uint8)]
    with pytest.raises(OutOfDeviceMemory, match="one frame"):
        detector.detect(planes, [0], 1280, 720, pitch=False)


def test_out_of_memory_is_known_by_its_words():
    assert is_out_of_memory(RuntimeError("CUDA failure 2: out of memory ; GPU=0"))
    assert is_out_of_memory(RuntimeError("BFCArena: Failed to allocate memory for requested buffer of size 1"))
    assert not is_out_of_memory(RuntimeError("invalid shape"))


def test_on_a_gpu_an_operators_models_run_side_by_side():
    meeting = threading.Barrier(3, timeout=10)

    class Model:
        def __init__(self, role):
            self.role, self.name = role, role
            self.session = FakeSession(None, "cuda", "onnxruntime", "fp16", 0)

        def look(self, picture, confidence):
            meeting.wait()  # passes only when all three are here at once
            return np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32), np.zeros((32, 3), np.float32)

    detector = CombinedDetector(
        [Model(r) for r in ("player", "ball", "pitch")], None, confidence=0.3, max_detections=10
    )
    planes = np.zeros((64, 96), np.uint8), np.full((32, 48), 128, np.uint8), np.full((32, 48), 128, np.uint8)
    found = detector.detect([detector.prepare(*planes)], [0], 96, 64, pitch=True)
    assert len(found[0]) == 0


def test_side_by_side_gives_what_one_after_the_other_gives(tmp_path):
    """Real sessions of the CPU that say they are on a GPU: the same answer, from one thread for each model."""
    values = np.random.default_rng(3).random((1, 300, 6), np.float32)
    values[..., :2] *= 300
    values[..., 2:4] = values[..., :2] + 10 + 60 * values[..., 2:4]
    values[..., 5] = 0
    points = np.concatenate([values[:, :1], np.full((1, 1, 96), 50, np.float32)], axis=2)
    points[0, 0, 4] = 0.9
    pose = {"names": "{0: 'pitch'}", "kpt_shape": "[32, 3]", "task": "pose"}
    threads = set()

    class Elsewhere(FakeSession):
        def run(self, values):
            threads.add(threading.get_ident())
            return super().run(values)

    def detector(device):
        models = []
        for role, (output, facts) in {
            "player": (values, {"names": "{0: 'player'}"}),
            "ball": (values[:, ::-1] * np.float32(0.9), {"names": "{0: 'ball'}"}),
            "pitch": (points, pose),
        }.items():
            path = detect_graphs.constant(tmp_path / f"{role}.onnx", output, (640, 640), facts)
            models.append(
                YoloModel(
                    ModelFile.read(path),
                    role,
                    lambda m, o, s: Elsewhere(OrtCpu().open(m, o, s, "fp32"), device, "onnxruntime", "fp32", 0.01),
                    None,
                )
            )
        return CombinedDetector(models, None, confidence=0.3, max_detections=500)

    planes = np.full((640, 640), 90, np.uint8), *(np.full((320, 320), 128, np.uint8),) * 2
    answers, used = [], []
    for device in ("cpu", "cuda"):
        threads.clear()
        combined = detector(device)
        inputs = [combined.prepare(*planes)] * 2
        answers.append(combined.detect(inputs, [4, 5], 640, 640, pitch=True))
        used.append(len(threads))
    assert used[0] == 1
    assert used[1] > 1
    for one, other in zip(*answers, strict=True):
        assert one.frame_number == other.frame_number
        assert set(one.class_id) == {0, 2}
        assert (one.keypoints[:, 2] > 0).any()
        np.testing.assert_array_equal(one.xyxy, other.xyxy)
        np.testing.assert_array_equal(one.class_scores, other.class_scores)
        np.testing.assert_array_equal(one.keypoints, other.keypoints)


@pytest.fixture
def plugin(monkeypatch):
    """A machine with an RTX GPU and the plug-in, as far as ONNX Runtime shows them; what was asked of it."""
    asked = SimpleNamespace(registered=[], options=[], providers=["NvTensorRTRTXExecutionProvider"])
    name = "NvTensorRTRTXExecutionProvider"
    module = SimpleNamespace(get_ep_name=lambda: name, get_library_path=lambda: "/lib/plugin.so")
    monkeypatch.setattr(ort, "_nvidia_smi", lambda _: "NVIDIA GeForce RTX 4090")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    monkeypatch.setitem(sys.modules, ort.RTX_PACKAGE, module)
    runtime = ort.onnxruntime
    monkeypatch.setattr(runtime, "register_execution_provider_library", lambda *a: asked.registered.append(a))
    gpus = [SimpleNamespace(ep_name="CPUExecutionProvider"), SimpleNamespace(ep_name=name)]
    monkeypatch.setattr(runtime, "get_ep_devices", lambda: gpus)
    options = SimpleNamespace(add_provider_for_devices=lambda *a: asked.options.append(a))
    monkeypatch.setattr(ort, "session_options", lambda *_: options)

    def opened(file, outputs, given, providers):
        assert given is options
        assert providers is None
        return SimpleNamespace(get_providers=lambda: asked.providers, run=lambda *_: [np.zeros(1)])

    monkeypatch.setattr(ort, "open_session", opened)
    ort._register_plugin.cache_clear()
    asked.gpus = gpus
    yield asked
    ort._register_plugin.cache_clear()


def test_the_rtx_plug_in_is_registered_once_and_given_its_gpu_and_cache(model, tmp_path, plugin):
    runtime, file = OrtTensorRtRtx(tmp_path), ModelFile.read(model)
    assert runtime.problem("fp32") is None
    sessions = [runtime.open(file, ("boxes",), (batch, 6, 96, 160), "fp32") for batch in (1, 4)]
    assert plugin.registered == [("NvTensorRTRTXExecutionProvider", "/lib/plugin.so")]
    assert [devices for devices, _ in plugin.options] == [[plugin.gpus[1]]] * 2
    folders = {Path(options["nv_runtime_cache_path"]) for _, options in plugin.options}
    assert len(folders) == 2
    assert all(folder.is_dir() and folder.parent == tmp_path / "engines" for folder in folders)
    assert {(s.runtime, s.device, s.on_calling_thread) for s in sessions} == {("tensorrt-rtx", "cuda", False)}
    assert sessions[0].run(np.zeros(1))[0].shape == (1,)


def _broken_library(plugin, monkeypatch):
    def refuse(*_):
        raise RuntimeError("Failed to load library: libcuda.so.1\nmore")

    monkeypatch.setattr(ort.onnxruntime, "register_execution_provider_library", refuse)


def _no_gpu_it_drives(plugin, monkeypatch):
    del plugin.gpus[1]


def _silent(plugin, monkeypatch):
    plugin.providers = ["CPUExecutionProvider"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (_broken_library, "does not load: Failed to load library: libcuda.so.1."),
        (_no_gpu_it_drives, "finds no GPU that it drives"),
        (_silent, "fell back to CPUExecutionProvider"),
    ],
)
def test_an_rtx_plug_in_that_does_not_work_is_one_warning(model, tmp_path, plugin, monkeypatch, caplog, fault, reason):
    fault(plugin, monkeypatch)
    wish = Wish(runtime="tensorrt-rtx", cache_dir=tmp_path)
    with caplog.at_level(logging.WARNING):
        chosen = choose_among(runtimes_for(wish), model, wish, LAYOUT)
    assert (chosen.runtime.name, chosen.runtime.device) == ("onnxruntime", "cpu")
    assert len(caplog.records) == 1
    assert f"RUNTIME=tensorrt-rtx cannot be met: the TensorRT-RTX plug-in {reason}" in caplog.text or (
        fault is _silent and reason in caplog.text
    )


def test_an_rtx_plug_in_that_is_not_there_says_how_to_get_it(tmp_path, plugin, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "firsttouch[tensorrt-rtx]" in OrtTensorRtRtx(tmp_path).problem("fp32").remedy
    monkeypatch.setattr(ort, "_nvidia_smi", lambda _: "")
    assert "no NVIDIA driver" in OrtTensorRtRtx(tmp_path).problem("fp32").reason


def test_openvino_answers_as_onnx_runtime_does(model):
    pytest.importorskip("openvino")
    inputs = []
    for runtime in ("auto", "openvino"):
        detector = load_detector(model=model, wish=Wish(device="cpu", runtime=runtime), img_size=160)
        y, u, v = np.full((720, 1280), 200, np.uint8), *(np.full((360, 640), 128, np.uint8),) * 2
        inputs.append((detector, detector.detect([detector.prepare(y, u, v)], [0], 1280, 720, pitch=True)[0]))
    (_, expected), (openvino, found) = inputs
    assert openvino.runtime == "openvino"
    assert len(found) == 1
    np.testing.assert_allclose(found.xyxy, expected.xyxy, atol=1e-3)
    np.testing.assert_allclose(found.class_scores, expected.class_scores, atol=1e-3)
    with_two = [openvino.prepare(y, u, v)] * 4
    assert len(openvino.detect(with_two, range(4), 1280, 720, pitch=False)) == 4


def test_openvino_that_is_not_installed_says_how(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "firsttouch[openvino]" in OpenVino().problem("fp32").remedy


def test_bf16_on_this_processor_is_asked_of_openvino(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert "ARM only" in OrtCpu().problem("bf16").reason
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert OrtCpu().problem("bf16") is None


def test_models_lists_what_is_loaded(model, tmp_path, monkeypatch):
    import json

    from typer import Typer
    from typer.testing import CliRunner

    from firsttouch.commands import models as command

    values = np.zeros((1, 5, 8400), np.float32)
    ball = detect_graphs.constant(tmp_path / "ball.onnx", values, (640, 640), {"names": "{0: 'ball'}"})
    monkeypatch.setattr("firsttouch.detect.BUNDLED_MODEL", model)
    monkeypatch.setenv("MODEL_BALL", str(ball))
    monkeypatch.setenv("DEVICE", "cpu")
    monkeypatch.chdir(tmp_path)
    app = Typer()
    app.callback()(lambda: None)
    command.register(app)
    result = CliRunner().invoke(app, ["models", "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["models"]
    assert [(r["name"], r["role"], r["device"]) for r in rows] == [
        ("tiny", "boxes and pitch", "cpu"),
        ("ball", "ball", "cpu"),
    ]
    assert rows[0]["input"] == "368x640x6"
    assert rows[1]["megabytes"] == pytest.approx(ball.stat().st_size / 1e6)
    assert all(r["milliseconds_per_frame"] > 0 for r in rows)
    assert "onnxruntime" in CliRunner().invoke(app, ["models"]).stdout


def test_engine_compare_runs_what_works_and_says_why_the_rest_does_not(model, tmp_path, monkeypatch):
    import json

    import cv2
    from typer import Typer
    from typer.testing import CliRunner

    from firsttouch.commands import engine as command

    monkeypatch.setattr(ort, "_nvidia_smi", lambda _: "")
    cv2.imwrite(str(tmp_path / "frame.png"), np.full((720, 1280, 3), 255, np.uint8))
    app = Typer()
    app.callback()(lambda: None)
    command.register(app)
    result = CliRunner().invoke(app, ["engine", "compare", "--data", str(tmp_path), "--model", str(model), "--json"])
    assert result.exit_code == 0, result.output
    rows = {row["name"]: row for row in json.loads(result.stdout)["runtimes"]}
    assert rows["onnxruntime cpu fp32"]["boxes"] == 1
    assert rows["onnxruntime cpu fp32"]["f1"] == 1
    assert rows["onnxruntime cpu int8"]["problem"] == "no file tiny.int8.onnx"
    assert "no NVIDIA driver" in rows["tensorrt cuda fp16"]["problem"]
    assert "no NVIDIA driver" in rows["tensorrt-rtx cuda fp32"]["problem"]
    assert rows["torch cpu fp32"]["problem"]  # no PyTorch, or an operator of this model that it does not know
    refused = CliRunner().invoke(app, ["engine", "build", "--model", str(model)])
    assert isinstance(refused.exception, RuntimeUnavailable)


def test_engines_are_built_for_both_sets_of_outputs(model, tmp_path):
    from firsttouch.commands.engine import build_engines

    runtime = FakeRuntime(name="tensorrt")
    runtime.cache_dir = tmp_path
    folders = build_engines(runtime, model, batch=4, img_size=160)
    assert len(set(folders)) == 3
    assert [shape for _, _, shape in runtime.opened] == [(1, 96, 160, 6), (4, 96, 160, 6), (4, 96, 160, 6)]


@pytest.mark.parametrize("outputs", [("boxes", "scores"), ("keypoints", "scores", "boxes")])
def test_bound_memory_gives_what_plain_runs_give_and_keeps_nothing_of_the_run_before(model, outputs):
    file, shape = ModelFile.read(model), (2, 96, 160, 6)
    plain = OrtCpu().open(file, outputs, shape, "fp32")
    options = ort.session_options(file, shape)
    session = ort.open_session(file, outputs, options, ["CPUExecutionProvider"])
    bound = ort.DeviceSession(session, "planes", outputs, "fp32", np.zeros(shape, np.uint8), memory="cpu")
    random = np.random.default_rng(0)
    for _ in range(3):
        values = random.integers(0, 200, shape, np.uint8)
        kept = bound.run(values)
        for mine, expected in zip(kept, plain.run(values), strict=True):
            np.testing.assert_array_equal(mine, expected)
    first = [v.copy() for v in kept]
    bound.run(np.zeros(shape, np.uint8))
    for mine, before in zip(kept, first, strict=True):
        np.testing.assert_array_equal(mine, before)
