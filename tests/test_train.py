"""The training code: geometry, targets and the shipped graph, on tiny inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
cv2 = pytest.importorskip("cv2")

from firsttouch.pitch import POINTS  # noqa: E402
from train import data, losses, measure, pitch, targets  # noqa: E402
from train.augment import CROP, View, _move_boxes, _move_points, augmented_view, stack_planes  # noqa: E402
from train.decode import WIDER, Shipped, decode_boxes, decode_keypoints  # noqa: E402
from train.network import CELL, KEYPOINT_CELL, Network, Widths, normalised  # noqa: E402

SMALL = Widths(stem=8, s8=8, s16=16, s32=16, s64=16, box=8, keypoint=16)
SHARED = Path("../shared/data")


def _camera() -> np.ndarray:
    """A plausible broadcast homography, metres to pixels of 1280x720."""
    corners = np.array([(20, 0), (85, 0), (85, 68), (20, 68)], np.float32)
    return cv2.getPerspectiveTransform(
        corners, np.array([(150, 200), (1130, 190), (1500, 700), (-250, 710)], np.float32)
    )


def _labels() -> np.ndarray:
    xy = pitch.project(_camera(), POINTS)
    inside = (xy >= 0).all(1) & (xy < (1280, 720)).all(1)
    return np.column_stack((np.where(inside[:, None], xy, 0), inside)).astype(np.float32)


def test_mirroring_the_pitch_permutes_the_points_onto_themselves() -> None:
    mirrored = POINTS.copy()
    mirrored[:, 0] = 105 - mirrored[:, 0]
    np.testing.assert_allclose(mirrored[pitch.FLIP], POINTS, atol=1e-9)


def test_a_mirrored_view_still_fits_a_homography_of_the_unmirrored_pitch() -> None:
    flip = np.array([[-1.0, 0, 1280], [0, 1, 0]])
    moved = _move_points(_labels(), flip, mirrored=True, size=(1280, 736))
    fitted = pitch.fit_homography(moved.astype(np.float64), threshold=3)
    assert fitted is not None
    seen = moved[:, 2] > 0
    np.testing.assert_allclose(pitch.project(fitted, POINTS[seen]), moved[seen, :2], atol=0.5)


def test_dense_points_come_back_from_a_few_labels() -> None:
    full = _labels()
    few = full.copy()
    seen = np.flatnonzero(full[:, 2])
    few[seen[::3]] = 0
    dense = data.dense_keypoints(few)
    np.testing.assert_array_equal(dense[:, 2] > 0, full[:, 2] > 0)
    np.testing.assert_allclose(dense[seen, :2], full[seen, :2], atol=0.5)


def test_points_without_a_homography_are_unknown_not_absent() -> None:
    three = np.zeros((32, 3), np.float32)
    three[[0, 5, 9]] = [(10, 10, 1), (20, 400, 1), (300, 200, 1)]
    dense = data.dense_keypoints(three)
    assert (dense[[0, 5, 9], 2] == 1).all()
    assert (np.delete(dense[:, 2], [0, 5, 9]) == -1).all()


def test_luma_phases_and_chroma_keep_every_sample() -> None:
    luma = np.arange(16 * 24, dtype=np.uint16).reshape(16, 24).astype(np.uint8)
    chroma = np.zeros((2, 8, 12), np.uint8)
    planes = stack_planes(luma, chroma)
    assert planes.shape == (8, 12, 6)
    assert planes[3, 5, 1] == luma[6, 11]
    assert planes[3, 5, 2] == luma[7, 10]


def test_a_box_that_leaves_the_canvas_is_gone_and_one_at_the_edge_is_cut() -> None:
    boxes = np.array([[2, 10, 10, 30, 60], [2, 630, 100, 660, 160], [2, 700, 100, 720, 160]], np.float32)
    moved = _move_boxes(boxes, np.array([[1.0, 0, -8], [0, 1, 0]]), (640, 384))
    np.testing.assert_allclose(moved[:, 1:], [[2, 10, 22, 60], [622, 100, 640, 160]], atol=1e-4)


def _maps_of(view: View) -> tuple[object, object, object]:
    """What a perfect network would answer: logits whose decoding is the label."""
    _, t = targets.encode([view])
    logit = torch.logit(t.heat.clamp(1e-4, 1 - 1e-4))
    kinds = torch.nn.functional.one_hot(t.kind, 3).permute(0, 3, 1, 2) * 12.0
    person = torch.cat((logit[:, :1], kinds, t.box[:, 0]), 1)
    ball = torch.cat((logit[:, 1:], t.box[:, 1]), 1)
    h, w = view.planes.shape[0] * 2 // KEYPOINT_CELL, view.planes.shape[1] * 2 // KEYPOINT_CELL
    xs, ys = torch.arange(w) + 0.5, torch.arange(h) + 0.5
    px, py, state = t.points.unbind(-1)
    dx, dy = px[..., None, None] - xs[None, :], py[..., None, None] - ys[:, None]
    heat = torch.exp(-(dx**2 + dy**2) / 2) * (state > 0)[..., None, None]
    points = torch.cat((torch.logit(heat.clamp(1e-4, 1 - 1e-4)), dx.expand_as(heat), dy.expand_as(heat)), 1)
    return person, ball, points


def widened(box: Sequence[float]) -> np.ndarray:
    """A person's box as it is answered."""
    x0, y0, x1, y1 = box
    more = (WIDER - 1) * (x1 - x0) / 2
    return np.array((x0 - more, y0, x1 + more, y1))


def test_targets_decode_to_the_labels_they_came_from() -> None:
    boxes = np.array([[0, 401, 205, 411, 215], [1, 62, 80, 86, 142], [2, 300, 90, 330, 170], [2, 318, 120, 346, 200],
                      [3, 500, 300, 520, 350]], np.float32)  # fmt: skip
    points = np.zeros((32, 3), np.float32)
    points[[4, 20]] = [(100.3, 50.7, 1), (633.0, 377.5, 1)]
    view = View(np.zeros((192, 320, 6), np.uint8), boxes, points, np.zeros((0, 4), np.float32))
    person, ball, maps = _maps_of(view)
    found, scores = decode_boxes(torch.cat((person, ball), 1), torch.zeros(1, 3, 24, 40))
    sure = scores[0].amax(-1) > 0.5
    assert int(sure.sum()) == len(boxes)
    got = {int(c): b.numpy() for c, b in zip(scores[0][sure].argmax(-1), found[0][sure], strict=True) if c != 2}
    for kind, *box in boxes[[0, 1, 4]]:
        np.testing.assert_allclose(got[int(kind)], widened(box) if kind else box, atol=0.05)
    keypoints = decode_keypoints(maps)[0].numpy()
    assert set(np.flatnonzero(keypoints[:, 2] > 0.5)) == {4, 20}
    np.testing.assert_allclose(keypoints[[4, 20], :2], points[[4, 20], :2], atol=0.05)


@pytest.mark.parametrize(("centres", "people"), [((11.0, 11.0), 1), ((10.4, 11.6), 2)])
def test_people_of_neighbouring_cells_are_told_apart_by_their_boxes(centres: tuple[float, float], people: int) -> None:
    person = torch.full((1, 8, 24, 40), -9.0)
    person[:, 4:] = 0
    size = torch.log(torch.tensor((1.6, 4.0)))
    for column, centre, logit in ((10, centres[0], 3.0), (11, centres[1], 2.0)):
        person[0, 0, 10, column] = logit
        person[0, 4, 10, column] = centre - column - 0.5
        person[0, 6:, 10, column] = size
    _, scores = decode_boxes(torch.cat((person, torch.full((1, 5, 24, 40), -9.0)), 1), torch.zeros(1, 3, 12, 20))
    assert int((scores[0].sum(-1) > 0.5).sum()) == people


def test_a_box_is_the_mean_of_what_the_cells_above_and_below_say_of_it_too() -> None:
    person = torch.full((1, 8, 24, 40), -9.0)
    person[:, 4:] = 0
    person[0, 6:, 9:12, 10] = torch.log(torch.tensor((2.0, 5.0)))[:, None]
    person[0, 0, 9:12, 10] = torch.tensor((1.0, 3.0, 1.0))
    person[0, 5, 9:12, 10] = torch.tensor((1.0, 0.0, 9.0))  # above: the same centre; below: somebody else's
    person[0, 4, 9, 10] = 0.3
    boxes, scores = decode_boxes(torch.cat((person, torch.full((1, 5, 24, 40), -9.0)), 1), torch.zeros(1, 3, 12, 20))
    own, above = torch.sigmoid(torch.tensor((3.0, 1.0)))
    centre = 10.5 + 0.3 * float(above / (own + above))
    assert float(scores[0, 0].sum()) > 0.9
    np.testing.assert_allclose(boxes[0, 0].numpy() / 8, widened((centre - 1, 8, centre + 1, 13)), atol=1e-3)


def test_a_network_taught_by_another_comes_to_answer_as_it_does() -> None:
    torch.manual_seed(0)
    teacher, pupil = Network(SMALL).eval(), Network(SMALL).eval()
    with torch.no_grad():
        for out, count in ((teacher.person_out, 1), (teacher.ball_out, 1), (teacher.keypoint_out, 32)):
            out.weight *= 30
            out.bias[:count] = -1.0
    shown = torch.randn(2, 6, 48, 80)
    with torch.no_grad():
        answer = teacher(shown)
    assert float(losses.taught(answer, answer)) < 1e-6
    optimiser = torch.optim.Adam(pupil.parameters(), 3e-3)
    course = []
    for _ in range(40):
        lesson = losses.taught(pupil(shown), answer)
        optimiser.zero_grad()
        lesson.backward()
        optimiser.step()
        course.append(lesson.item())
    assert course[-1] < 0.5 * course[0]


@pytest.mark.parametrize("part", ["person", "box"])
def test_a_referee_overlooked_or_wrongly_boxed_costs_more_than_a_player(part: str) -> None:
    def cost(kinds: tuple[int, int]) -> float:
        """Of answers that are right about the first person and know nothing of the second."""
        boxes = np.array([[kinds[0], 100, 90, 130, 170], [kinds[1], 400, 90, 430, 170]], np.float32)
        view = View(np.zeros((192, 320, 6), np.uint8), boxes, None, np.zeros((0, 4), np.float32))
        _, t = targets.encode([view])
        maps = torch.cat((torch.logit(t.heat[:, :1].clamp(1e-4, 1 - 1e-4)), torch.zeros(1, 3, 48, 80), t.box[:, 0]), 1)
        maps[..., 40:] = 0
        maps[:, 0, :, 40:] = -9
        outputs = (
            torch.cat((maps, torch.zeros(1, 5, 48, 80)), 1),
            torch.zeros(1, 96, 24, 40),
            torch.zeros(1, 3, 24, 40),
        )
        return losses.total(outputs, t, whole=True)[1][part]

    assert cost((2, 3)) > 1.2 * cost((2, 2)) > 1.2 * cost((3, 2))


def test_scores_fall_and_rows_are_a_hundred() -> None:
    boxes, scores, points = Shipped(Network(SMALL).eval())(torch.randint(0, 255, (2, 96, 160, 6), dtype=torch.uint8))
    assert boxes.shape == scores.shape == (2, 100, 4)
    assert points.shape == (2, 32, 3)
    best = scores.amax(-1)
    assert bool((best[:, 1:] <= best[:, :-1] + 1e-7).all())


def test_the_exported_graph_equals_torch_at_other_sizes_too(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="export needs onnx")
    from train import export

    torch.manual_seed(0)
    network = Network(SMALL).eval()
    with torch.no_grad():  # an untrained net is sure of nothing: lift the heat so that rows compare
        for out, count in ((network.person_out, 1), (network.ball_out, 1), (network.keypoint_out, 32)):
            out.weight *= 30
            out.bias[:count] = -1.0
    path = tmp_path / "small.onnx"
    export.write(network, path, {"seed": 0})
    assert export.check(network, path) < 0.05
    session = export.session(path)
    layout = __import__("json").loads(session.get_modelmeta().custom_metadata_map["firsttouch"])
    assert layout["classes"] == ["ball", "goalkeeper", "player", "referee"]
    assert layout["precision"] == "fp32"


def test_a_graph_that_ships_opens_again_as_the_network_it_was(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="export needs onnx")
    from train import export
    from train.reopen import reopen

    torch.manual_seed(1)
    network = Network(SMALL).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -1, 1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.bias, -1, 1)
    export.write(network, tmp_path / "small.onnx", {})
    planes = torch.randint(0, 255, (2, 64, 96, 6), dtype=torch.uint8)
    again = reopen(tmp_path / "small.onnx", [planes], SMALL)
    inputs = (planes.permute(0, 3, 1, 2).float() - 128) / 64
    with torch.inference_mode():
        for mine, theirs in zip(again(inputs), network(inputs), strict=True):
            assert torch.allclose(mine, theirs, atol=1e-3)
        # the statistics are those of the views: training mode says the same as evaluation
        for mine, theirs in zip(again.train()(inputs), network(inputs), strict=True):
            assert torch.allclose(mine, theirs, atol=0.05)


def test_the_mean_of_two_networks_has_their_weights_and_statistics_of_its_own() -> None:
    from train import average

    torch.manual_seed(2)
    networks = [Network(SMALL) for _ in range(2)]
    one, two = (network.stem[0].weight.detach().clone() for network in networks)
    planes = torch.randint(0, 255, (2, 64, 96, 6), dtype=torch.uint8)
    found = average.mean(networks, [planes])
    assert torch.allclose(found.stem[0].weight, (one + two) / 2)
    assert torch.allclose(found.stem[1].running_mean, found.stem[0](normalised(planes)).mean((0, 2, 3)), atol=1e-4)
    assert not found.training


def test_keypoints_alone_do_not_hold_back_boxes(tmp_path: Path) -> None:
    """The runtime may skip the pitch head: nothing that `boxes` needs may come through it."""
    onnx = pytest.importorskip("onnx")
    from train import export

    path = tmp_path / "small.onnx"
    export.write(Network(SMALL).eval(), path, {})
    model = onnx.load(path)
    makers = {o: n for n in model.graph.node for o in n.output}
    todo, seen = ["boxes", "scores"], set()
    while todo:
        node = makers.get(todo.pop())
        if node is not None and node.name not in seen:
            seen.add(node.name)
            todo.extend(node.input)
    assert not any("keypoint" in name for name in seen)


def test_the_int8_graph_multiplies_bytes_to_the_end_and_answers_as_the_float_one(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from train import export, quantise

    torch.manual_seed(3)
    network = Network(Widths(stem=16, s8=16, s16=16, s32=16, s64=16, box=16, keypoint=16, role=16)).eval()
    rng = np.random.default_rng(0)
    views = [np.kron(rng.integers(16, 235, (1, 6, 10, 6)), np.ones((1, 16, 16, 1))).astype(np.uint8) for _ in range(4)]
    with torch.no_grad():  # an untrained net says nearly the same everywhere
        spread = network(normalised(torch.from_numpy(np.concatenate(views))))[1][:, :32].std((0, 2, 3))
        network.keypoint_out.weight[:32] *= (2 / spread)[:, None, None, None]
    whole, small = tmp_path / "whole.onnx", tmp_path / "small.onnx"
    export.write(network, whole, {"seed": 3})
    quantise.quantise(whole, small, views)
    graph = onnx.load(small).graph
    kinds = [n.op_type for n in graph.node]
    assert kinds.count("Gemm") == len(quantise.HEADS)
    assert not {n.name for n in graph.node} & set(quantise.HEADS)
    read = {name for n in graph.node for name in n.input} | {o.name for o in graph.output}
    assert all(read & set(n.output) for n in graph.node)
    assert {i.name for i in graph.initializer} <= read
    two = np.concatenate(views[:2])  # of another batch than it was calibrated with
    expected, found = (export.session(path).run(["keypoints"], {"planes": two})[0] for path in (whole, small))
    assert np.abs(expected[..., 2] - found[..., 2]).max() < 0.1
    assert np.abs(expected[..., 2] - found[::-1][..., 2]).max() > 0.2  # the pictures are told apart at all


def test_pruning_takes_the_idle_channels_and_leaves_every_layer_half() -> None:
    pytest.importorskip("torch_pruning", reason="pruning needs torch-pruning")
    from train import prune

    def prune_to_the_end(*state: Any) -> None:
        while True:
            prune.prune_once(*state)

    torch.manual_seed(4)
    network = Network().eval()
    scores = {m: torch.ones(m.num_features) for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    widths = {m: m.out_channels for m in network.modules() if isinstance(m, torch.nn.Conv2d)}
    conv, norm = network.box_conv[0], network.box_conv[1]
    idle = torch.zeros(32, dtype=torch.bool)
    idle[torch.randperm(32)[:16]] = True
    scores[norm][idle] = 0
    kept, before = conv.weight[~idle].clone(), prune.cost(network)
    prune.prune_once(network, scores, widths)
    assert torch.equal(conv.weight, kept)
    assert len(scores[norm]) == 16
    assert prune.cost(network) < before
    with pytest.raises(SystemExit, match="no layer can lose more"):
        prune_to_the_end(network, scores, widths)
    assert all(m.out_channels >= max(widths[m] / 2, 3) for m in widths)
    boxes, keypoints, role = network(torch.zeros(1, 6, 96, 160))
    assert (boxes.shape[1], keypoints.shape[1], role.shape[1]) == (13, 96, 3)


def test_a_gate_on_a_channel_that_does_nothing_scores_nothing() -> None:
    pytest.importorskip("torch_pruning", reason="pruning needs torch-pruning")
    from train import prune

    torch.manual_seed(5)
    network = Network().eval()
    with torch.no_grad():
        network.box_conv[1].weight[:3] = 0
        network.box_conv[1].bias[:3] = 0
    frame = data.Frame(
        "x", "t", np.full((720, 1280), 90, np.uint8), np.full((2, 360, 640), 128, np.uint8),
        boxes=np.array([[2, 600, 300, 640, 400], [0, 700, 380, 708, 388]], np.float32),
    )  # fmt: skip
    view = augmented_view(frame, CROP, np.random.default_rng(0))
    scores = prune.gate_scores(network, [targets.encode([view])])
    of_box = scores[network.box_conv[1]]
    assert (of_box[:3] == 0).all()
    assert (of_box[3:] > 0).any()


def test_average_precision_of_a_perfect_and_of_a_half_answer() -> None:
    truth = np.array([[2, 0, 0, 20, 40], [2, 100, 0, 120, 40]], np.float32)
    luma, chroma = np.zeros((720, 1280), np.uint8), np.zeros((2, 360, 640), np.uint8)
    frame = data.Frame("x", "t", luma, chroma, boxes=truth)
    scores = np.array([[0, 0, 0.9, 0], [0, 0, 0.8, 0]], np.float32)
    points = np.zeros((32, 3), np.float32)
    assert measure.average_precision([frame], [(truth[:, 1:], scores, points)], 2) == pytest.approx(1.0)
    half = measure.average_precision([frame], [(truth[:1, 1:], scores[:1], points)], 2)
    assert half == pytest.approx(51 / 101)


def test_cell_sizes_follow_the_network() -> None:
    boxes, keypoint, role = Network(SMALL).eval()(torch.zeros(1, 6, 112, 192))
    assert boxes.shape[2:] == (2 * 112 // CELL, 2 * 192 // CELL)
    assert keypoint.shape[2:] == role.shape[2:] == (2 * 112 // KEYPOINT_CELL, 2 * 192 // KEYPOINT_CELL)


@pytest.mark.skipif(not (SHARED / "pitch" / "val").is_dir(), reason="needs ../shared/data")
def test_real_labels_agree_with_a_homography_and_views_keep_them_on_the_lines() -> None:
    folder = SHARED / "pitch" / "val"
    image = data.list_images(folder)[0]
    luma, chroma = data.read_planes(image)
    assert luma.shape == (720, 1280)
    assert chroma.shape == (2, 360, 640)
    assert luma.min() >= 16
    assert luma.max() <= 235
    _, points = data.read_labels(folder / "labels" / f"{image.stem}.txt")
    assert points is not None
    dense = data.dense_keypoints(points)
    assert not (dense[:, 2] < 0).any()
    assert (dense[:, 2] > 0).sum() >= (points[:, 2] > 0).sum() - 1
    boxes = np.array([[2, 400, 300, 420, 350]], np.float32)
    view = augmented_view(data.Frame("x", "pitch", luma, chroma, boxes, dense), CROP, np.random.default_rng(0))
    assert view.planes.shape == (CROP[1] // 2, CROP[0] // 2, 6)
    assert view.planes.dtype == np.uint8


def test_each_label_is_one_bodys_the_surest_first() -> None:
    from train import roles

    boxes = np.array([(0, 0, 10, 20), (1, 0, 11, 20), (50, 50, 60, 70), (200, 0, 210, 20)], np.float32)
    scores = np.array([(0, 0, 0.4, 0), (0, 0, 0.6, 0), (0, 0, 0.1, 0.5), (0, 0, 0.9, 0)], np.float32)
    labels = np.array([(2, 0, 0, 10, 20), (3, 50, 50, 60, 70), (0, 200, 0, 210, 20)], np.float32)
    assert roles.true_classes(boxes, scores, labels).tolist() == [0, 2, 3, 0]


def test_roles_learn_from_the_others_shirts_what_the_network_got_wrong() -> None:
    """Players in two colours and one referee in a third, of whom the network knows nothing at all."""
    from firsttouch.detect.roles import Scene, facts
    from train import roles

    rng = np.random.default_rng(0)

    def scene() -> roles.Judged:
        classes = np.array([2] * 16 + [3])
        team = np.array([0] * 8 + [1] * 8 + [2])
        shirts = rng.uniform(30, 220, (3, 3))[team][:, None].repeat(2, 1) + rng.normal(0, 2, (17, 2, 3))
        boxes = rng.uniform(0, 600, (17, 2)).astype(np.float32)
        scores = np.full((17, 3), (0.01, 0.4, 0.4), np.float32)
        box = np.concatenate([boxes, boxes + np.array((20, 50))], 1).astype(np.float32)
        nowhere = np.zeros((17, 2)), np.array(False)
        return Scene(box, (1280, 736), scores, shirts, np.ones(17, np.float32), *nowhere), classes

    fitted = roles.fitted([scene() for _ in range(60)], doubts=2, epochs=30, rng=rng, seed=0)
    shown, classes = scene()
    assert (fitted.shares(facts(shown)).argmax(1) == classes).mean() > 0.9


def test_a_camera_is_found_from_the_points_it_shows_and_from_no_others() -> None:
    from firsttouch.camera import EXPECTED, homographies
    from train.cameras import fitted

    camera = EXPECTED + np.array([0.2, 0.4, -0.03, 0.01, 2.0, -4.0, 3.0])
    xy = pitch.project(homographies(camera, 1280, 720), POINTS)
    seen = pitch.inside(xy)
    assert seen.sum() >= 9
    rng = np.random.default_rng(0)
    labels = np.column_stack((np.where(seen[:, None], xy + rng.normal(0, 0.5, xy.shape), 0), seen))
    found = fitted(labels)
    assert found is not None
    assert np.abs(found - camera).max() < 1.0
    shown = pitch.project(homographies(found, 1280, 720), POINTS)
    assert np.abs(shown - xy)[seen].max() < 2.0
    labels[seen, :2] = rng.uniform(0, 720, (int(seen.sum()), 2))
    assert fitted(labels) is None
