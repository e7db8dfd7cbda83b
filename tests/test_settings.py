"""The configuration: layers, errors, misspelt names, contradictions, costs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from firsttouch.errors import SettingsError
from firsttouch.predict import BUDGETS, Choice, Rates, best_deadline, predict
from firsttouch.settings import PROFILES, Settings, env_text, load, shown


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = {name.upper() for name in Settings.model_fields}
    for name in list(os.environ):
        if name.upper() in known:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_defaults_are_the_complete_profile() -> None:
    assert load().model_dump() == Settings().model_dump() == load(profile="complete").model_dump()
    assert Settings().fetch_mode == "sparse"
    assert Settings().stride is None


def test_layers_beat_each_other_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("PROFILE=guide\nFRAME_STRIDE=7\nIMG_SIZE=448\nBATCH_SIZE=16\n")
    monkeypatch.setenv("IMG_SIZE", "512")
    monkeypatch.setenv("BATCH_SIZE", "4")
    settings = load({"batch_size": 2, "max_detections": None})
    assert (settings.conf_threshold, settings.origin("conf_threshold")) == (0.5, "profile")
    assert (settings.frame_stride, settings.origin("frame_stride")) == (7, ".env")
    assert (settings.img_size, settings.origin("img_size")) == (512, "environment")
    assert (settings.batch_size, settings.origin("batch_size")) == (2, "command line")
    assert (settings.netuid, settings.origin("netuid")) == (44, "default")
    assert (settings.max_detections, settings.origin("max_detections")) == (80, "profile")


def test_profile_of_the_command_line_beats_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROFILE", "guide")
    assert load().frame_stride == 5
    assert load(profile="extreme").frame_stride == 6


@pytest.mark.parametrize("text", ["false", "False", "0", "no", "off"])
def test_false_means_false(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("LOAD_OLD_NODES", text)
    assert load().load_old_nodes is False


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("FRAME_STRIDE", "abc", "auto or a whole number from 1 to 1000"),
        ("FRAME_STRIDE", "0", "auto or a whole number from 1 to 1000"),
        ("PARTIAL_DOWNLOAD_MB", "-4", "a number from 0.01 to 1000"),
        ("PARTIAL_DOWNLOAD_MB", "nan", "a number from 0.01 to 1000"),
        ("DEVICE", "tpu", "auto, cuda, cpu or mps"),
        ("SKIP_PITCH", "maybe", "1 or 0"),
        ("CONF_THRESHOLD", "1.5", "a number from 0.01 to 0.99"),
        ("TIME_BUDGET_S", "soon", "auto, a number from 0.05 to 240 or none"),
        ("PROFILE", "fast", "guide, extreme, balanced, complete or accurate"),
        ("NETUID", "4.5", "a whole number from 0 to 65535"),
    ],
)
def test_wrong_value_names_variable_value_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load()
    for part in (name, repr(value), "environment", words):
        assert part in str(caught.value)


def test_every_wrong_value_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMG_SIZE", "big")
    Path(".env").write_text("BATCH_SIZE=many\n")
    with pytest.raises(SettingsError, match=r"(?s)IMG_SIZE.*BATCH_SIZE.*\.env|BATCH_SIZE.*\.env.*IMG_SIZE"):
        load()


def test_unknown_override_is_an_error() -> None:
    with pytest.raises(SettingsError, match="FRAME_STEP"):
        load({"frame_step": 3})


def test_misspelt_name_is_warned_about_and_a_foreign_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARTIAL_DOWNLOADS", "1")
    monkeypatch.setenv("JAVA_HOME_DIRECTORY", "x")
    Path(".env").write_text("CONF_TRESH=0.5\nPATH_TO_CHEESE=brie\n")
    notes = [note for note in load().notes() if note.kind == "unknown"]
    assert {note.names[0] for note in notes} == {"PARTIAL_DOWNLOADS", "CONF_TRESH"}
    assert "CONF_THRESHOLD" in " ".join(map(str, notes))


def test_fractions_of_a_megabyte_are_allowed() -> None:
    assert load({"partial_download_mb": "1.5"}).partial_bytes == 1_572_864


@pytest.mark.parametrize(
    ("switch", "mode"),
    [("partial_download", "head"), ("streaming_download", "stream"), ("direct_url_stream", "direct")],
)
def test_the_guides_switches_choose_the_fetch(switch: str, mode: str) -> None:
    assert load({switch: "1"}).fetch_mode == mode
    assert load({switch: "1", "fetch": "full"}).fetch_mode == "full"


def test_time_budget_may_be_a_number_auto_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIME_BUDGET_S", "auto")
    assert load().deadline_is_auto
    assert load().choice.budget_seconds == best_deadline()
    assert load().deadline_seconds == BUDGETS[-1]  # the latest it may choose once it has seen the clip
    assert best_deadline(rates=Rates(bytes_per_second=1.65e6)) > best_deadline()
    monkeypatch.setenv("TIME_BUDGET_S", "none")
    assert load().time_budget_s is None
    assert not load().deadline_is_auto
    monkeypatch.setenv("TIME_BUDGET_S", "1.5")
    assert load().deadline_seconds == 1.5


def test_a_command_has_no_deadline_unless_somebody_set_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load().deadline_seconds == 2.0
    assert load().deadline_if_set is None
    assert load(profile="guide").deadline_if_set == 2.0
    monkeypatch.setenv("TIME_BUDGET_S", "1.5")
    assert load().deadline_if_set == 1.5
    assert load({"time_budget_s": "none"}).deadline_if_set is None


def test_lists_have_commas_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARM_ORIGINS", "https://a.example, https://b.example:8443")
    assert load().warm_origins == ("https://a.example", "https://b.example:8443")


@pytest.mark.parametrize(
    "values",
    [
        {"partial_download": "1", "streaming_download": "1"},
        {"partial_download": "1", "fetch": "stream"},
        {"partial_download_mb": "4"},
        {"partial_download": "1", "partial_download_mb": "500"},
        {"ramp_up_first_batch": "64"},
        {"ramp_up": "0", "ramp_up_first_batch": "2"},
        {"prefetch_frames": "4", "batch_size": "32"},
        {"device": "cpu", "use_nvdec": "1"},
        {"device": "cpu", "tensorrt": "1"},
        {"verify_enabled": "0"},
        {"start_budget_after_first_frame": "1", "time_budget_s": "none"},
    ],
)
def test_contradictions_are_said(values: dict[str, str]) -> None:
    notes = [note for note in load(values).notes() if note.kind == "contradiction"]
    assert len(notes) == 1
    assert set(notes[0].names) & {name.upper() for name in values}
    assert notes[0].change


def test_defaults_say_nothing() -> None:
    assert load().notes() == []


def test_a_setting_that_costs_score_says_so_with_the_number() -> None:
    settings = load({"partial_download": "1"})
    [note] = settings.notes()
    assert note.kind == "cost"
    assert note.names == ("PARTIAL_DOWNLOAD",)
    now, better = predict(settings.choice), predict(Choice())
    assert f"{now.final:.2f}" in note.message
    assert f"{better.final:.2f}" in note.message
    assert now.final < better.final


def test_skipping_the_pitch_costs_about_a_quarter() -> None:
    lost = predict(Choice()).final - predict(Choice(pitch=False)).final
    assert lost == pytest.approx(0.325 * predict(Choice()).keypoints)
    assert 0.2 < lost < 0.26


def test_prediction_agrees_with_the_judges_figures_for_a_short_start() -> None:
    """SCORING.md: the first 40 of 750 frames score at most about 0.035."""
    first_40 = predict(Choice(fetch="head", megabytes=14 * 40 / 750, stride=1, budget_seconds=None))
    assert first_40.bbox <= 0.08
    assert first_40.speed == 0.0
    assert 0.02 < first_40.final <= 0.035


def test_one_second_costs_about_a_tenth() -> None:
    """SCORING.md: with tmin = 1 s."""
    one = predict(Choice(stride=5, budget_seconds=None), fastest=1.0)
    assert one.coverage == 1.0
    late = [0.35 * predict(Choice(), fastest=f).speed for f in (1.0, 2.0)]
    assert late[1] - late[0] == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("name", list(PROFILES))
def test_every_profile_is_valid_and_a_ready_env_file(name: str, tmp_path: Path) -> None:
    from_profile = load(profile=name)
    file = tmp_path / "ready.env"
    file.write_text(env_text({"profile": name} | {f: getattr(from_profile, f) for f in PROFILES[name].values}))
    assert load(env_file=file).model_dump() == from_profile.model_dump()


def test_values_are_shown_as_an_environment_would_hold_them() -> None:
    assert [shown(v) for v in (True, 2.0, None, ("a", "b"), "auto")] == ["1", "2", "none", "a,b", "auto"]


def test_the_example_env_file_holds_every_setting_with_its_default() -> None:
    example = Path(__file__).parent.parent / ".env.example"
    lines = [line[2:].partition("#")[0].strip() for line in example.read_text().splitlines() if "=" in line[:40]]
    found = dict(line.split("=", 1) for line in lines if line)
    assert found == {name.upper(): shown(getattr(Settings(), name)) for name in Settings.model_fields}
