"""`python -m bench classes`: bodies counted by what they are and what they are called."""

from __future__ import annotations

import numpy as np

from bench import classes
from firsttouch import track
from firsttouch.labels import read_truth


def test_bodies_that_both_box_are_counted_by_their_two_classes(tmp_path):
    said, true = tmp_path / "said", tmp_path / "true"
    for folder, lines in ((said, ("2 0.2 0.5 0.02 0.1", "2 0.5 0.5 0.02 0.1")), (true, ("2 0.2 0.5 0.02 0.1",))):
        folder.mkdir()
        (folder / "b_5.txt").write_text("\n".join(lines))
    (true / "b_5.txt").write_text("2 0.2 0.5 0.02 0.1\n3 0.5 0.5 0.02 0.1\n1 0.8 0.5 0.02 0.1")
    counts = classes.confusion(read_truth(said), read_truth(true))
    expected = np.zeros((4, 4), np.int64)
    expected[2, 2] = expected[3, 2] = 1  # the referee is called a player, the goalkeeper is not found
    np.testing.assert_array_equal(counts, expected)


def test_the_labels_of_one_clip_are_read_in_its_pixels_and_clothes_count_again_afterwards(tmp_path):
    found = classes.labelled(tmp_path / "b_720p30.mp4", 1280, 720)
    assert len(found.frame_numbers) == len(list(classes.LABELS.glob("*/b_*.txt")))
    assert found.xyxy.max() > 2
    before = track.STRANGER
    with classes._weighing(0.0):
        assert track.STRANGER == 0.0
    assert before == track.STRANGER > 0
