"""The troubleshooting pages: each trouble is found, with evidence and something to change."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
import typer
from typer.testing import CliRunner

from bench.origin import Origin
from firsttouch.commands import doctor as doctor_command
from firsttouch.doctor import (
    Finding,
    connection_findings,
    core_findings,
    examine,
    installed_runtimes,
    load_findings,
    machine_findings,
    settings_findings,
)
from firsttouch.settings import Settings, load
from firsttouch.source import Facts
from tests.clips import Recipe, make_clip
from tests.toy import toy_clip, toy_model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("clips")
    return {
        "first.mp4": toy_clip(folder, "first").read_bytes(),
        "last.mp4": toy_clip(folder, "last", faststart=False).read_bytes(),
        "long.mp4": toy_clip(folder, "long", frames=130, gop=130).read_bytes(),
        "clip.mkv": make_clip(Recipe("clip", suffix="mkv"), folder).read_bytes(),
        "page.mp4": b"<!doctype html><title>gone</title>" * 50,
    }


@pytest.fixture(scope="module")
def origin(files: dict[str, bytes]) -> Iterator[Origin]:
    with Origin(files) as running:
        yield running


@pytest.fixture(autouse=True)
def _toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {n.upper() for n in Settings.model_fields} & set(os.environ):
        monkeypatch.delenv(name)
    monkeypatch.setenv("MODEL_PLAYER", str(toy_model(tmp_path / "toy.onnx")))
    monkeypatch.setenv("TIME_BUDGET_S", "none")  # this machine may be busy
    monkeypatch.chdir(tmp_path)


def named(findings: list[Finding], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


def test_a_good_source_has_nothing_wrong(origin: Origin) -> None:
    findings = examine(origin.url("first.mp4"), load({"warm_origins": origin.base}))
    wrong = [f for f in findings if f.state == "wrong" and f.name != "time"]
    assert wrong == []
    assert named(findings, "range").state == "ok"
    assert named(findings, "connection").state == "ok"
    assert "moov is first" in named(findings, "index").evidence
    assert "4 GOPs, the longest 1.0 s" in named(findings, "GOPs").evidence
    assert "100 of 100 frames" in named(findings, "answer").evidence


def test_moov_last_is_found_and_is_no_trouble(origin: Origin) -> None:
    finding = named(examine(origin.url("last.mp4"), load()), "index")
    assert finding.state == "ok"
    assert "moov is last" in finding.evidence


def test_a_server_that_ignores_range_is_found(files: dict[str, bytes]) -> None:
    with Origin(files, ranges=False) as origin:
        findings = examine(origin.url("first.mp4"), load())
    assert named(findings, "range").state == "wrong"
    assert named(findings, "fetch").state == "wrong"
    assert "stream" in named(findings, "fetch").evidence


def test_a_prefix_that_ends_early_is_found_with_the_size_that_would_do(origin: Origin, files: dict[str, bytes]) -> None:
    size = len(files["first.mp4"]) / 1024 / 1024
    settings = load({"partial_download": True, "partial_download_mb": max(0.05, size / 3), "frame_stride": 5})
    finding = named(examine(origin.url("first.mp4"), settings), "answer")
    assert finding.state == "wrong"
    assert "ends early" in finding.evidence
    assert "PARTIAL_DOWNLOAD=0" in finding.change


def test_long_gops_and_other_containers_are_found(origin: Origin) -> None:
    long = named(examine(origin.url("long.mp4"), load()), "GOPs")
    assert (long.state, "5.2 s" in long.evidence) == ("note", True)
    assert named(examine(origin.url("clip.mkv"), load()), "index").state == "wrong"


@pytest.mark.parametrize(("name", "error"), [("none.mp4", "SourceNotFound"), ("page.mp4", "NotAVideo")])
def test_a_source_that_fails_is_a_finding_with_its_hint(origin: Origin, name: str, error: str) -> None:
    finding = named(examine(origin.url(name), load()), "source")
    assert finding.state == "wrong"
    assert error in finding.evidence
    assert finding.change


def test_a_missing_model_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_PLAYER", "nowhere.onnx")
    assert named(examine(None, load()), "networks").state == "wrong"


def test_settings_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAME_STRIDES", "5")
    findings = settings_findings(load({"partial_download": "1", "streaming_download": "1"}))
    assert [f.state for f in findings].count("wrong") == 2
    assert any(f.state == "note" and "predicted" in f.evidence for f in findings)
    assert settings_findings(Settings())[0].state == "ok"


@pytest.mark.parametrize(
    ("wish", "device", "gpu", "packages", "state"),
    [
        ("auto", "cpu", False, {"onnxruntime": "1"}, "ok"),
        ("auto", "cuda", True, {"onnxruntime-gpu": "1"}, "ok"),
        ("auto", "cpu", True, {"onnxruntime": "1"}, "wrong"),
        ("cuda", "cpu", False, {"onnxruntime": "1"}, "wrong"),
        ("cuda", "cpu", True, {"onnxruntime": "1"}, "wrong"),
        ("cuda", "cuda", True, {"onnxruntime": "1", "onnxruntime-gpu": "1"}, "wrong"),
        ("cpu", "cpu", True, {"onnxruntime": "1"}, "ok"),
    ],
)
def test_why_not_the_better_device(wish: str, device: str, gpu: bool, packages: dict[str, str], state: str) -> None:
    [finding] = machine_findings(Settings(device=wish), device, "onnxruntime", gpu, packages)  # type: ignore[arg-type]
    assert finding.state == state
    assert bool(finding.change) == (state == "wrong")


def test_an_engine_that_is_not_built_yet_is_noted() -> None:
    settings = Settings(device="cuda", tensorrt=True)
    [meanwhile] = machine_findings(settings, "cuda", "onnxruntime", True, {"onnxruntime-gpu": "1"})
    assert (meanwhile.state, meanwhile.change) == ("note", "firsttouch engine build")
    assert "no TensorRT engine runs yet, it is built beside what runs" in meanwhile.evidence
    [built] = machine_findings(settings, "cuda", "tensorrt", True, {"onnxruntime-gpu": "1"})
    assert built.state == "ok"


def test_a_busy_machine_is_noted() -> None:
    assert load_findings(6.0, 2)[0].state == "note"
    assert load_findings(0.5, 2)[0].state == "ok"


def test_cores_that_others_or_a_limit_take_are_noted() -> None:
    (busy,), (free,) = core_findings(0.5), core_findings(0.95)
    assert busy.state == "note"
    assert "50%" in busy.evidence
    assert free.state == "ok"


def test_installed_runtimes_are_those_of_this_environment() -> None:
    assert any(name.startswith("onnxruntime") for name in installed_runtimes())


def test_a_connection_that_does_not_stay_open_is_found() -> None:
    cold = Facts("http://a/x.mp4", 1, True, None, None, 0.2, False)
    settings = Settings(warm_origins=("http://a",))
    kept = connection_findings("http://a/x.mp4", settings, cold, replace(cold, warm=True, connect_seconds=0.0))
    closed = connection_findings("http://a/x.mp4", settings, cold, cold)
    assert [f.state for f in kept] == ["ok", "ok"]
    assert [f.state for f in closed] == ["ok", "wrong"]
    assert "200 ms" in closed[1].evidence


def test_exit_code_and_json(origin: Origin) -> None:
    app = typer.Typer()
    doctor_command.register(app)
    bad = CliRunner().invoke(app, [origin.url("none.mp4"), "--json"])
    assert bad.exit_code == 1
    body = orjson.loads(bad.stdout)
    assert body["wrong"] == 1
    assert body["findings"][-1]["change"]
    good = CliRunner().invoke(app, [])
    assert good.exit_code == 0, good.output
    assert "nothing is wrong" in good.output
