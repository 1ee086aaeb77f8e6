"""Charts read back as XML: places against values, gaps, and histories of every kind."""

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from conve_tracin.errors import InputError, TerminatedError
from conve_tracin.report.charts import (
    Axis,
    draw_concentration,
    draw_training_curves,
    short_count,
    spread,
    write_training_curves,
)
from conve_tracin.training import loop as training_loop
from conve_tracin.training import run as training_run

SVG = "{http://www.w3.org/2000/svg}"


def record(epoch, loss, **metrics):
    valid = {"mean_reciprocal_rank": 0.3, "hits@1": 0.2, "hits@10": 0.6, "ranked": "tails only"} | metrics
    return {"epoch": epoch, "loss": loss, "valid": valid} if metrics else {"epoch": epoch, "loss": loss}


def curves_of(history):
    root = ElementTree.fromstring(draw_training_curves(history))
    return root, [path.get("d") for path in root.iter(f"{SVG}path")]


def points_of(path):
    return [tuple(map(float, pair)) for pair in re.findall(r"[ML]([\d.-]+),([\d.-]+)", path)]


def texts_of(root):
    return [text.text for text in root.iter(f"{SVG}text")]


def test_curves_have_a_point_for_each_record_at_the_place_of_its_value():
    history = [record(epoch, 1 / epoch, **{"hits@1": epoch / 10, "mean_reciprocal_rank": 0.5}) for epoch in range(1, 6)]
    history[2].pop("valid")
    root, (loss, mrr, hits_at_1, hits_at_10) = curves_of(history)
    assert [len(points_of(path)) for path in (loss, mrr, hits_at_1, hits_at_10)] == [5, 4, 4, 4]
    xs, ys = zip(*points_of(loss), strict=True)
    assert [x - xs[0] for x in xs] == pytest.approx([epoch * (xs[-1] - xs[0]) / 4 for epoch in range(5)], abs=0.2)
    assert [x for x, _ in points_of(mrr)] == [xs[0], xs[1], xs[3], xs[4]]
    # Linear from zero: the distance from the axis is in proportion to the loss.
    axis = float(root.find(f"{SVG}line[@class='axis']").get("y1"))
    assert [(axis - y) / (axis - ys[0]) for y in ys] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5], abs=0.002)
    assert "Training loss" in texts_of(root)


def test_the_best_epoch_is_named():
    rates = [0.2, 0.71, 0.4]
    history = [record(2 * n + 2, 0.5, mean_reciprocal_rank=rate) for n, rate in enumerate(rates)]
    root, _ = curves_of(history)
    (note,) = [text for text in root.iter(f"{SVG}text") if text.text == "best MRR 0.710 in epoch 4"]
    # Above the highest value that a curve can have.
    one = next(text for text in root.iter(f"{SVG}text") if text.text == "1" and float(text.get("y")) > 250)
    assert float(note.get("y")) < float(one.get("y")) - 12


def test_a_loss_that_falls_far_is_drawn_over_a_logarithmic_axis():
    root, (loss,) = curves_of([record(epoch, 10.0**-epoch) for epoch in range(1, 5)])
    steps = [b - a for (_, a), (_, b) in zip(points_of(loss), points_of(loss)[1:], strict=False)]
    assert steps == pytest.approx([steps[0]] * 3, abs=0.2)
    assert "Training loss, logarithmic" in texts_of(root)
    assert {"0.1", "0.01", "0.001", "0.0001"} <= set(texts_of(root))


def test_a_loss_that_is_no_number_leaves_a_gap():
    root, (loss,) = curves_of([record(epoch, math.nan if epoch == 3 else 0.5) for epoch in range(1, 6)])
    assert len(points_of(loss)) == 4
    assert loss.count("M") == 2
    assert "nan" not in draw_training_curves([record(1, math.nan), record(2, math.inf)])
    assert "not evaluated yet" in texts_of(root)


@pytest.mark.parametrize("length", [1, 2, 3, 1000])
def test_epochs_are_whole_numbers(length):
    root, _ = curves_of([record(epoch, 0.5, **{"hits@1": 0.5}) for epoch in range(4, 4 + length)])
    # The numbers below an axis are centred, those beside it are not.
    centred = [text.text for text in root.iter(f"{SVG}text") if text.get("text-anchor") == "middle"]
    ticks = [text for text in centred if re.fullmatch(r"[\d.e+]+", text)]
    assert 4 <= len(ticks) <= 24
    assert all(4 <= int(tick) <= max(5, 3 + length) for tick in ticks)


def test_the_picture_is_written_whole(tmp_path):
    write_training_curves(tmp_path / "new/curves.svg", [record(1, 0.5)])
    ElementTree.parse(tmp_path / "new/curves.svg")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["curves.svg"]


def epochs_drawn(path):
    return len(points_of(ElementTree.parse(path).find(f"{SVG}path").get("d")))


@pytest.mark.parametrize("error", [KeyboardInterrupt, TerminatedError, InputError, MemoryError])
def test_a_training_that_is_stopped_or_fails_is_drawn_up_to_there(run, tmp_path, monkeypatch, error):
    validate, evaluations = training_run.evaluate_model, iter(range(3))

    def fail_in_the_end(*arguments, **options):
        if next(evaluations, None) is None:
            raise error
        return validate(*arguments, **options)

    monkeypatch.setattr(training_run, "evaluate_model", fail_in_the_end)
    with pytest.raises(error):
        run("stopped", eval_frequency=2, num_epochs=20)
    # Epoch 8 was trained before its evaluation failed.
    assert epochs_drawn(tmp_path / "stopped/training_curves.svg") == 8


def test_a_picture_that_cannot_be_written_does_not_hide_what_stopped_training(run, tmp_path, monkeypatch):
    (tmp_path / "stopped/training_curves.svg").mkdir(parents=True)
    monkeypatch.setattr(training_run, "write_progress", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("stopped")


def test_a_resumed_run_that_has_nothing_to_do_leaves_its_curves(run, tmp_path):
    run("a", num_epochs=3)
    written = (tmp_path / "a/training_curves.svg").read_text()
    (tmp_path / "a/training_curves.svg").write_text("those of an earlier run")
    run("a", num_epochs=3, resume=tmp_path / "a/checkpoints/checkpoint_epoch_3.pt")
    assert (tmp_path / "a/training_curves.svg").read_text() == written


def test_curves_are_drawn_once_and_before_the_first_epoch_not_at_all(run, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("conftest.write_training_curves", lambda path, history: drawn.append((path, len(history))))
    run("a", num_epochs=4)
    assert drawn == [(tmp_path / "a/training_curves.svg", 4)]
    monkeypatch.setattr(training_loop, "run_epoch", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("b", num_epochs=4)
    assert len(drawn) == 1


def test_concentration_marks_where_half_is_reached():
    drawn = ElementTree.fromstring(draw_concentration((1, 10, 100), (0.2, 0.5, 1.0), 10))
    curve = points_of(drawn.find("path[@class='curve']").get("d"))
    circle = drawn.find("circle")
    assert (float(circle.get("cx")), float(circle.get("cy"))) == pytest.approx(curve[1], abs=0.1)
    assert curve[1][0] == pytest.approx((curve[0][0] + curve[2][0]) / 2, abs=0.1)
    assert "half: 10" in [text.text for text in drawn.iter("text")]
    ElementTree.fromstring(draw_concentration((1,), (1.0,), 1))


def test_axes():
    assert Axis(0, 10, 100, 200).at(2.5) == 125
    assert Axis(1, 100, 0, 10, logarithmic=True).at(10) == pytest.approx(5)
    assert Axis(0, 1, 0, 1).ticks() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert Axis(1, 16_000_000, 0, 1, logarithmic=True).ticks() == [1, 100, 10_000, 1_000_000]
    assert Axis(0.07, 1.1, 0, 1, logarithmic=True).ticks() == pytest.approx([0.1, 0.2, 0.5, 1])
    assert Axis(1, 12, 0, 1, logarithmic=True).ticks() == [1, 2, 5, 10]
    assert Axis(3, 4, 0, 1, whole=True).ticks() == [3, 4]


@pytest.mark.parametrize(
    ("value", "written"), [(1, "1"), (1000, "1000"), (10_000, "10k"), (100_000, "100k"), (1e6, "1M"), (1e9, "1G")]
)
def test_short_counts(value, written):
    assert short_count(value) == written


def test_labels_are_moved_apart_and_keep_their_order():
    moved = spread([10, 11, 50, 10.5], gap=15)
    assert moved[0] < moved[3] < moved[1] < moved[2]
    ordered = sorted(moved)
    assert all(b - a >= 14.99 for a, b in pairwise(ordered))
    assert spread([1, 100], gap=15) == [1, 100]
