"""Curves lie where their values are, and axes can be read."""

import numpy as np
import pytest
from pages import Page

from evaluation.report.charts import BINS, Axis, Series, line_chart, log_ticks
from evaluation.report.markup import Html


def paths(chart):
    return [attributes for attributes, _ in Page(chart).all("path", class_="line")]


def test_curve_lies_where_its_values_are():
    steps, values = np.array([0.0, 50.0, 100.0]), np.array([0.0, 1.0, 0.5])
    (line,) = paths(line_chart("t", [Series("a", steps, values)]))
    points = np.array([point.split(",") for point in line["d"].removeprefix("M").split("L")], float)
    x, y = points.T
    np.testing.assert_allclose(x[1] - x[0], x[2] - x[1], atol=0.11)
    np.testing.assert_allclose((y[0] - y[2]) * 2, y[0] - y[1], atol=0.21)
    assert y[1] < y[2] < y[0]  # upwards is up
    assert line["data-at"] == "0 50 100"
    assert line["data-value"] == "0 1 0.5"


@pytest.mark.parametrize(("values", "log"), [([1, 11], True), ([1, 9], False), ([0, 100], False), ([-1, 100], False)])
def test_scale_is_logarithmic_where_it_helps(values, log):
    chart = line_chart("t", [Series("a", np.array([1.0, 2.0]), np.array(values, np.float64))])
    assert ("log scale" in chart) == log


def test_gaps_are_not_drawn_over_and_lone_points_are_seen():
    nan = float("nan")
    (line,) = paths(chart := line_chart("t", [Series("a", np.arange(6.0), np.array([1, 2, nan, 3, nan, 4]))]))
    assert line["d"].count("M") == 3
    assert len(Page(chart).all("circle")) == 2
    assert "nan" not in line["d"]
    assert line_chart("t", [Series("a", np.arange(2.0), np.array([nan, nan]))]) == Html()


def test_long_curves_are_reduced_and_keep_their_range():
    steps = np.arange(10_000.0)
    values = np.where(steps == 5000, 9.0, 1.0)
    chart = line_chart("t", [Series("a", steps, values)], log=False)
    (line,) = paths(chart)
    assert len(line["data-at"].split()) == BINS
    assert max(map(float, line["data-value"].split())) < 2  # a mean
    (band,) = Page(chart).all("path", class_="band")
    highest = min(float(point.split(",")[1]) for point in band[0]["d"].strip("MZ").split("L"))
    assert highest < 25  # the spike reaches the top of the frame


def labels_of(low, high, **options):
    return [label for _, label in Axis(low, high, 0.0, 1.0, **options).ticks()]


def test_ticks_are_round_and_few():
    assert log_ticks(0.011, 4.0) == pytest.approx([0.03, 0.1, 0.3, 1, 3])
    for low, high in ((1e-9, 1e9), (1.0, 12.0), (0.9, 1100.0)):
        ticks = log_ticks(low, high)
        assert 2 <= len(ticks) <= 6
        assert all(low <= tick <= high for tick in ticks)
    ticks = Axis(3.0, 1900.0, 0.0, 1.0).ticks()
    assert ticks == [(500.0, "500"), (1000.0, "1k"), (1500.0, "1.5k")]


@pytest.mark.parametrize(
    ("low", "high", "options", "labels"),
    [
        (0.0, 1.0, {}, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (999.5, 1000.5, {"whole": True}, ["1,000"]),
        (27345.0, 27355.0, {"whole": True}, ["27,346", "27,348", "27,350", "27,352", "27,354"]),
        (27345.0, 27355.0, {}, ["27,346", "27,348", "27,350", "27,352", "27,354"]),
        (1.0, 2.0, {"whole": True}, ["1", "2"]),
        (0.0, 12.0, {"whole": True}, ["0", "5", "10"]),
        (0.0, 100_000.0, {"whole": True}, ["0", "20k", "40k", "60k", "80k", "100k"]),
        (1e6, 2.2e6, {"whole": True}, ["1M", "1.25M", "1.5M", "1.75M", "2M"]),
        (23.1, 23.3, {}, ["23.1", "23.15", "23.2", "23.25", "23.3"]),
        (0.0, 5e-5, {}, ["0", "1e-5", "2e-5", "3e-5", "4e-5", "5e-5"]),
        (-2.0, 2.0, {}, ["-2", "-1", "0", "1", "2"]),
        (0.02, 30.0, {"log": True}, ["0.1", "1", "10"]),
    ],
)
def test_ticks_tell_neighbours_apart(low, high, options, labels):
    assert labels_of(low, high, **options) == labels


def test_axis_places_values_by_their_logarithm():
    axis = Axis(1.0, 100.0, 200.0, 0.0, log=True)
    np.testing.assert_allclose(axis(np.array([1.0, 10.0, 100.0])), [200, 100, 0])
