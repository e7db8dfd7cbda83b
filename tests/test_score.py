"""The judge's formula against its known figures and hand-made cases; plain measures against independent judges."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import orjson
import pytest
import score_scene as scene

from firsttouch.errors import SettingsError
from firsttouch.labels import parse_answer, read_answer, read_truth
from firsttouch.measure import agreement, average_precision, hota, match
from firsttouch.score import FORMULAS, TEMPLATE, find_lines, judge, line_score, valid_points

FORMULA = FORMULAS["score-vision-2025-08"]


@pytest.fixture(scope="module")
def truth():
    return scene.answer()


@pytest.fixture(scope="module")
def pictures():
    picture = scene.picture()
    return lambda _: picture


def score(answer, truth, pictures, seconds=1.0):
    return judge(answer, truth, seconds, 1.0, pictures=pictures, line_frames=6)


@pytest.mark.parametrize(
    ("frames", "carried_from", "known"),
    [
        (range(750), None, 0.77),
        (range(525), None, 0.55),
        (range(40), None, 0.02),
        (range(750), lambda frame: frame // 5 * 5, 0.78),
    ],
    ids=["all frames", "the first 525", "the first 40", "every fifth carried to all"],
)
def test_key_point_scores_are_those_measured_with_the_judges_own_code(truth, pictures, frames, carried_from, known):
    answer = scene.answer(frames, carried_from)
    assert score(answer, truth, pictures).keypoints.value == pytest.approx(known, abs=0.03)


def test_every_fifth_frame_alone_has_next_to_no_key_point_score(truth, pictures):
    assert score(scene.answer(range(0, 750, 5)), truth, pictures).keypoints.value == pytest.approx(0.0007, abs=0.0001)


def test_lines_found_earlier_are_as_good_as_pictures(truth, pictures):
    lines = {frame: find_lines(pictures(frame)) for frame in range(0, 750, 125)}
    with_lines = judge(scene.answer(), truth, 1.0, 1.0, lines=lines)
    assert with_lines.keypoints.lines == pytest.approx(score(scene.answer(), truth, pictures).keypoints.lines, abs=0.01)
    assert judge(scene.answer(), truth, 1.0, 1.0, lines={}).keypoints.lines is None


def test_the_first_40_frames_score_next_to_nothing_and_it_says_why(truth, pictures):
    result = score(scene.answer(range(40)), truth, pictures)
    assert result.final <= 0.035
    assert result.bbox.value <= 0.08
    assert result.speed == 0
    assert result.losses[0].term == "coverage"
    assert result.losses[0].why == "70 % coverage missed: 40 of 750 frames have objects"
    assert any("bbox 0.08 is not above 0.2" in loss.why for loss in result.losses)


def test_a_loss_is_what_the_final_score_would_gain(truth, pictures):
    result = score(scene.answer(), truth, pictures, seconds=3.0)
    speed = next(loss for loss in result.losses if loss.term == "speed")
    assert result.speed == pytest.approx(math.exp(-5 * 2 / 14))
    assert speed.points == pytest.approx(0.35 * (1 - result.speed))
    assert speed.why == "3.00 s, 2.00 s after the fastest"


def test_no_coverage_is_lost_where_70_percent_are_answered(truth):
    for classes in ([2], [0, 2], [1, 2], [2, 3], [0, 3]):  # their mean is rounded up or down
        document = scene.document(range(600))
        for frame in document["frames"]:
            frame["objects"] = [thing for thing in frame["objects"] if thing["class_id"] in classes]
            frame["objects"][-1]["class_id"] = 1
        result = judge(parse_answer(document), truth)
        assert result.bbox.coverage == pytest.approx(0.8)
        assert "coverage" not in {loss.term for loss in result.losses}


def test_final_is_the_weighted_sum_of_its_parts(truth, pictures):
    result = score(scene.answer(), truth, pictures, seconds=2.0)
    parts = 0.65 * (0.5 * result.bbox.value + 0.5 * result.keypoints.value) + 0.35 * result.speed
    assert result.final == pytest.approx(parts)


@pytest.mark.parametrize(
    ("seconds", "fastest", "bbox", "expected"),
    [(1, 1, 0.9, 1), (2, 1, 0.9, math.exp(-5 / 14)), (15, 1, 0.9, 0), (1, 1, 0.2, 0), (16, 16, 0.9, 0)],
)
def test_speed(seconds, fastest, bbox, expected):
    assert FORMULA.speed(seconds, fastest, bbox) == pytest.approx(expected)


# --- bbox by hand --------------------------------------------------------------------------------------


def one_frame(*objects, frame_count=1, keypoints=()):
    listed = [{"id": i, "class_id": kind, "xyxy": list(box)} for i, (kind, box) in enumerate(objects)]
    return parse_answer(
        {
            "source": {"width": 1280, "height": 720, "frame_count": frame_count},
            "frames": [{"frame_number": 0, "objects": listed, "keypoints": list(keypoints)}],
        }
    )


PLAYER, OTHER = (100, 300, 130, 380), (400, 300, 430, 380)
REFEREE, BALL = (700, 300, 730, 380), (900, 300, 915, 315)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([(2, PLAYER), (3, REFEREE), (0, BALL)], 3 / 4),  # three classes right, divided by one more
        ([(2, PLAYER), (2, OTHER)], (1 + 1 / 2) / 2),  # the second player counts half
        ([(2, PLAYER), (2, REFEREE)], (1 + 0.5) / 3),  # a referee called player: half
        ([(2, PLAYER), (2, (1000, 500, 1030, 580))], 0),  # a box on grass takes one point away
        ([(2, PLAYER), (0, BALL), (0, BALL)], (1 + 1 - 1) / 4),  # only one ball
        ([(2, PLAYER), (2, (400, 300, 414, 339))], 1 / 2),  # too small: not looked at
        ([(2, PLAYER), (2, (400, 100, 430, 180))], 1 / 2),  # touches the score board's rows
        ([(2, (400, 100, 430, 180))], 0),  # nothing left
        ([(0, PLAYER)], 0),  # a player called ball
        ([(2, PLAYER), (2, (100, 302, 130, 382))], (1 + 1 / 2) / 2),  # twice the same body is not punished
    ],
)
def test_a_frames_box_score_by_hand(found, expected):
    truth = one_frame((2, PLAYER), (2, OTHER), (3, REFEREE), (0, BALL))
    result = judge(one_frame(*found), truth)
    assert result.bbox.value == pytest.approx(round(max(0, expected), 2))


@pytest.mark.parametrize(
    ("box", "factor"),
    [((0, 200, 200, 500), math.exp(-80 * (60000 / 921600 - 0.015))), ((0, 200, 100, 330), 1.0)],
)
def test_large_boxes_are_damped(box, factor):
    truth = one_frame((2, box))
    assert judge(truth, truth).bbox.value == pytest.approx(round(factor / 2, 2))


def test_many_boxes_that_cover_the_picture_are_damped():
    boxes = [(2, (x, y, x + 100, y + 120)) for x in range(0, 1200, 100) for y in (200, 320, 440)]
    truth = one_frame(*boxes)
    area = len(boxes) * 100 * 120 / 921600
    assert area > 0.15
    expected = (2 - 2.0 ** (1 - len(boxes))) / 2 * math.exp(-3 * (area - 0.15))
    assert judge(truth, truth).bbox.quality == pytest.approx(expected, abs=1e-6)


def test_coverage_counts_frames_with_objects_and_70_percent_is_enough(truth):
    enough = judge(scene.answer(range(525)), truth).bbox
    half = judge(scene.answer(range(375)), truth).bbox
    assert enough.coverage == pytest.approx(0.7)
    assert half.value == pytest.approx(round(min(1, half.quality) * 0.5 / 0.7, 2))


def test_empty_frames_are_not_coverage(truth):
    document = scene.document()
    for frame in document["frames"][43:]:
        frame["objects"] = []
    result = judge(parse_answer(document), truth)
    assert result.bbox.frames_with_objects == 43
    assert result.losses[0].why == "70 % coverage missed: 43 of 750 frames have objects"


# --- key points by hand ---------------------------------------------------------------------------------


def test_without_a_video_the_line_term_is_unknown_and_neutral(truth):
    result = judge(scene.answer(), truth)
    assert result.keypoints.lines is None
    assert any("give --video" in loss.why for loss in result.losses)


def test_all_zero_key_points_score_next_to_nothing(truth):
    document = scene.document()
    for frame in document["frames"]:
        frame["keypoints"] = [[0, 0]] * 32
    result = judge(parse_answer(document), truth)
    [loss] = [loss for loss in result.losses if "SKIP_PITCH" in loss.why]
    assert loss.points == pytest.approx(0.325 * (1 - result.keypoints.value))
    terms = result.keypoints
    assert terms.frames_with_homography == 0
    assert terms.continuity == 1
    assert terms.value < 0.02


def test_points_nearer_than_25_px_to_a_kept_one_do_not_count():
    points = np.zeros((32, 2))
    points[3], points[7], points[9], points[12] = (100, 300), (110, 310), (130, 300), (1500, 300)
    valid = valid_points(one_frame(keypoints=points.tolist()))
    assert np.flatnonzero(valid[0]).tolist() == [3, 9]


def test_31_key_points_break_the_continuity(truth):
    document = scene.document(range(4))
    document["source"]["frame_count"] = 4
    document["frames"][2]["keypoints"].pop()
    whole = parse_answer(scene.document(range(4)) | {"source": document["source"]})
    assert judge(parse_answer(document), whole).keypoints.continuity < 0.51
    assert judge(whole, whole).keypoints.continuity > 0.98


def test_players_that_jump_are_not_plausible():
    def moved(by):
        frames = []
        for number in range(4):
            objects = [
                {"id": i, "class_id": 2, "xyxy": [300 * i + by * (i == 0) * number + d for d in (10, 300, 40, 380)]}
                for i in range(4)
            ]
            for thing in objects:
                thing["xyxy"][1], thing["xyxy"][3] = 300, 380
            frames.append({"frame_number": number, "objects": objects, "keypoints": points})
        return parse_answer({"source": {"width": 1280, "height": 720, "frame_count": 4}, "frames": frames})

    points = scene.keypoints(np.random.default_rng(0))
    calm, wild, medium = (judge(moved(by), moved(by)).keypoints for by in (1, 40, 5))
    assert (calm.plausibility, calm.jumps) == (1.0, 100.0)
    assert (wild.plausibility, wild.jumps) == (pytest.approx(0.75), 100.0)
    assert (medium.plausibility, medium.jumps) == (1.0, pytest.approx(87.5))


def test_a_frame_whose_players_all_jump_ends_its_segment():
    from firsttouch.score import _segments

    def frame(number, shift):
        box = [shift, 300, shift + 30, 380]
        return {"frame_number": number, "objects": [{"id": 1, "class_id": 2, "xyxy": box}]}

    frames = [frame(0, 0), frame(1, 2), frame(2, 50), frame(3, 52), frame(4, 90)]
    assert _segments(parse_answer({"frames": frames})).tolist() == [0, 0, 0, 1, 1]


def test_drawn_lines_are_found_and_near_points_score():
    lines = find_lines(scene.picture())
    size = np.array([scene.WIDTH, scene.HEIGHT])
    assert len(lines) >= 8
    on = scene.to_picture(TEMPLATE[[1, 4, 9, 12]]) / size
    off = on + np.array([0.04, 0])
    assert line_score(on, lines / np.tile(size, 2)) > 0.95
    assert line_score(off, lines / np.tile(size, 2)) < 0.6
    assert line_score(np.zeros((0, 2)), lines) == 0.5
    assert line_score(on, np.zeros((0, 4))) == 0.0
    assert len(find_lines(np.full((720, 1280, 3), (60, 140, 50), np.uint8))) == 0


def test_an_unknown_version_is_refused(truth):
    with pytest.raises(SettingsError, match="score-vision-1999"):
        judge(truth, truth, version="score-vision-1999")


# --- plain measures ---------------------------------------------------------------------------------------


def test_f1_by_hand_with_and_without_the_frames_that_were_not_answered():
    def two(frames):
        box = {"class_id": 2, "xyxy": [10, 200, 40, 280]}
        far = {"class_id": 2, "xyxy": [500, 200, 540, 290]}
        objects = {0: [box, far], 1: [box], 2: [box]}
        listed = [{"frame_number": f, "objects": objects[f]} for f in frames]
        return parse_answer({"source": {"frame_count": 3}, "frames": listed})

    answer, truth = two([0]), two([0, 1, 2])
    result = agreement(answer, truth)
    assert (result.precision, result.recall, result.f1) == (1, 1, 1)
    assert result.covered_f1 == pytest.approx(2 * 2 / (2 * 2 + 0 + 2))


def test_class_aware_matching_wants_the_same_class():
    found, truth = one_frame((3, PLAYER)), one_frame((2, PLAYER))
    assert agreement(found, truth).f1 == 0
    assert agreement(found, truth, class_aware=False).f1 == 1


def test_matching_takes_pairs_by_falling_overlap_and_each_box_once():
    random = np.random.default_rng(3)

    def crowd():
        corner = random.uniform((0, 160), (300, 300), (40, 2))
        return one_frame(*((2, (*c, *(c + np.array([60, 90])))) for c in corner))

    answer, truth = crowd(), crowd()
    pairs = {tuple(pair) for pair in match(answer, truth, iou=0.3).tolist()}
    assert pairs == greedy_pairs(answer.xyxy, truth.xyxy, 0.3)
    assert len(pairs) > 10


def greedy_pairs(mine, theirs, least):
    def iou(a, b):
        w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        inside = max(w, 0) * max(h, 0)
        return inside / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside)

    mine, theirs = mine.astype(float), theirs.astype(float)
    ranked = sorted(((iou(a, b), i, j) for i, a in enumerate(mine) for j, b in enumerate(theirs)), reverse=True)
    pairs, used = set(), set()
    for overlap, i, j in ranked:
        if overlap >= least and (0, i) not in used and (1, j) not in used:
            pairs.add((i, j))
            used |= {(0, i), (1, j)}
    return pairs


def test_average_precision_equals_pycocotools(truth):
    coco = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    from firsttouch.measure import _coco_found, _coco_truth

    random = np.random.default_rng(1)
    document = scene.document(range(0, 60, 3))
    for frame in document["frames"]:
        frame["objects"] = [o for o in frame["objects"] if random.random() > 0.2]
        for thing in frame["objects"]:
            thing["bbox"] = [v + random.normal(0, 4) for v in thing["bbox"]]
            thing["confidence"] = float(random.random())
            thing["class_id"] = 2 if random.random() < 0.1 else thing["class_id"]
    found, labelled = parse_answer(document), truth.only(range(0, 60, 3))
    mine = average_precision(found, labelled)
    judge = coco.COCO()
    judge.dataset = _coco_truth(labelled)
    judge.createIndex()
    evaluation = COCOeval(judge, judge.loadRes(_coco_found(found, labelled)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    for i, name in enumerate(("ball", "goalkeeper", "player", "referee")):
        precision = evaluation.eval["precision"][:, :, i, 0, -1]
        assert mine.map50[name] == pytest.approx(precision[0].mean(), abs=1e-6)
        assert mine.map50_95[name] == pytest.approx(precision.mean(), abs=1e-6)
    assert 0 < mine.map50["player"] < 1
    assert mine.by_size["medium"]["ball"] is None
    assert mine.by_size["small"]["ball"] == pytest.approx(mine.map50["ball"])


def test_an_answer_without_boxes_has_no_precision_at_all(truth):
    nothing = parse_answer({"source": {"frame_count": 750}, "frames": [{"frame_number": 0, "objects": []}]})
    assert average_precision(nothing, truth).map50["player"] == 0
    assert agreement(nothing, truth).covered_f1 == 0
    assert judge(nothing, truth).final < 0.01


def test_hota_falls_when_identities_are_swapped(truth):
    pytest.importorskip("trackeval")
    few = range(40)
    same = hota(truth.only(few), truth.only(few))
    document = scene.document(few)
    for frame in document["frames"][20:]:
        for thing in frame["objects"]:
            thing["id"] += 100
    swapped = hota(parse_answer(document), truth.only(few))
    assert same["HOTA"] == pytest.approx(1)
    assert swapped["DetA"] == pytest.approx(1)
    assert swapped["AssA"] == pytest.approx(0.5, abs=0.01)


def test_hota_is_unknown_without_identities(tmp_path, truth):
    (tmp_path / "clip_000.txt").write_text("2 0.5 0.5 0.05 0.1\n")
    assert hota(truth, read_truth(tmp_path)) is None


# --- files ---------------------------------------------------------------------------------------------------


def test_our_schema_and_the_challenges_read_alike(tmp_path):
    ours = scene.document(range(3))
    for frame in ours["frames"]:
        for thing in frame["objects"]:
            thing["xyxy"] = thing.pop("bbox")
        frame["keypoints"] = [[x, y, 0.9 if x or y else 0] for x, y in frame["keypoints"]]
    challenge = {"challenge_id": "1", "frames": scene.document(range(3))["frames"], "processing_time": 1.0}
    for name, document in (("ours", ours), ("challenge", challenge)):
        (tmp_path / name).write_bytes(orjson.dumps(document))
    a, b = read_answer(tmp_path / "ours"), read_answer(tmp_path / "challenge")
    assert (a.xyxy == b.xyxy).all()
    assert (a.keypoints[..., :2] == b.keypoints[..., :2]).all()
    assert (a.frame_count, b.frame_count) == (750, 3)


def test_yolo_labels_are_scaled_and_numbered_by_name(tmp_path):
    (tmp_path / "match2_frame_000012.txt").write_text("2 0.5 0.5 0.1 0.2\n0 0.25 0.75 0.01 0.02\n")
    (tmp_path / "match2_frame_000007.txt").write_text("")
    labels = read_truth(tmp_path, width=1000, height=500)
    assert labels.frame_numbers.tolist() == [7, 12]
    np.testing.assert_allclose(labels.xyxy[0], [450, 200, 550, 300])
    assert labels.class_ids.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>", "not JSON"),
        (b"[]", "not an answer"),
        (b'{"frames": [{"objects": []}]}', "not an answer"),
        (b'{"frames": [{"frame_number": 0, "objects": [{"class_id": 2, "xyxy": [1, 2, 3]}]}]}', "3 numbers"),
        (b'{"frames": [{"frame_number": 0, "objects": []}, {"frame_number": 0, "objects": []}]}', "twice"),
    ],
)
def test_a_file_that_is_no_answer_is_refused_with_its_reason(tmp_path, content, message):
    path = tmp_path / "answer.json"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=message):
        read_answer(path)


def test_f1_of_750_frames_is_fast_enough_to_call_in_a_loop(truth):
    from firsttouch.clock import Stopwatch

    watch = Stopwatch()
    for _ in range(3):
        agreement(truth, truth)
    assert watch.elapsed / 3 < 1.0


def test_the_template_is_the_subnets():
    assert TEMPLATE.shape == (32, 2)
    flip = json.loads("[24,25,26,27,28,29,22,23,21,17,18,19,20,13,14,15,16,9,10,11,12,8,6,7,0,1,2,3,4,5,31,30]")
    np.testing.assert_array_equal(TEMPLATE[flip], [12000, 0] + TEMPLATE * [-1, 1])


def test_score_of_real_files_runs_from_the_command_line(tmp_path: Path):
    from typer import Typer
    from typer.testing import CliRunner

    from firsttouch.commands import score as command

    app = Typer()
    app.callback()(lambda: None)
    command.register(app)
    for name, frames in (("all.json", range(60)), ("head.json", range(20))):
        document = scene.document(frames)
        document["source"]["frame_count"] = 60
        (tmp_path / name).write_bytes(orjson.dumps(document))
    answer, truth = str(tmp_path / "head.json"), str(tmp_path / "all.json")
    result = CliRunner().invoke(app, ["score", answer, "--every-frame", truth, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["version"] == "score-vision-2025-08"
    assert found["bbox"]["frames_with_objects"] == 20
    assert found["plain"]["f1"] == pytest.approx(1)
    assert found["plain"]["covered_f1"] == pytest.approx(0.5, abs=0.01)
    text = CliRunner().invoke(app, ["score", answer, "--truth", truth, "--seconds", "2", "--fastest", "1"])
    assert text.exit_code == 0
    assert "70 % coverage missed: 20 of 60 frames have objects" in text.stdout
    both = CliRunner().invoke(app, ["score", answer])
    assert both.exit_code != 0
