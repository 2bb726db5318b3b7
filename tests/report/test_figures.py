"""The charts: their numbers, and that no data makes them warn."""

from __future__ import annotations

import base64
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from attunet3d.report.figures import MINUS, Agreement, agreement, agreement_chart, dice_chart, signed

SVG = "{http://www.w3.org/2000/svg}"


def svg(uri: str) -> ElementTree.Element:
    kind, data = uri.split(",")
    assert kind == "data:image/svg+xml;base64"
    return ElementTree.fromstring(base64.b64decode(data))


def points(uri: str) -> list[tuple[float, float]]:
    """Where the points of a chart's scatter lie, in the picture: (x, y), y downwards."""
    groups = [g for g in svg(uri).iter(f"{SVG}g") if g.get("id", "").startswith("PathCollection")]
    return [(float(use.get("x", "")), float(use.get("y", ""))) for use in groups[0].iter(f"{SVG}use")]


def texts(uri: str) -> list[str]:
    """What is written in a chart: letters are drawn as outlines, and a comment before them says what they spell."""
    return re.findall(r"<!-- (.*?) -->", base64.b64decode(uri.split(",")[1]).decode(), flags=re.DOTALL)


def test_agreement_worked_out_by_hand() -> None:
    found = agreement([1.0, 2.0, 3.0, 6.0])  # mean 3; deviations -2, -1, 0, 3: sd = sqrt(14 / 3)
    sd = (14 / 3) ** 0.5
    assert (found.mean, found.sd) == pytest.approx((3, sd))
    assert (found.lower, found.upper) == pytest.approx((3 - 1.96 * sd, 3 + 1.96 * sd))


def test_one_difference_has_no_limits() -> None:
    assert agreement([-2.5]) == Agreement(-2.5, None, None, None)


@pytest.mark.parametrize(("value", "text"), [(1.25, "+1.2"), (-3.0, f"{MINUS}3.0"), (0.0, "0.0"), (-0.01, "0.0")])
def test_signs(value: float, text: str) -> None:
    assert signed(value) == text


def test_dice_lies_where_it_belongs() -> None:
    chart = dice_chart([0.0, 0.5, 1.0])
    (x0, y0), (x1, y1), (x2, y2) = points(chart.light)
    assert x1 - x0 == pytest.approx(x2 - x1)
    assert x0 < x1
    assert y0 - y1 == pytest.approx(y1 - y2)
    assert y0 > y1
    assert points(chart.dark) == points(chart.light)


def test_agreement_is_the_difference_over_the_mean() -> None:
    chart = agreement_chart([10.0, 30.0, 50.0], [10.0, 20.0, 60.0])  # means 10, 25, 55; differences 0, 10, -10
    (x0, y0), (x1, y1), (x2, y2) = points(chart.light)
    assert (x2 - x1) / (x1 - x0) == pytest.approx(30 / 15, rel=1e-4)
    assert y0 - y1 == pytest.approx(y2 - y0, rel=1e-4)
    assert y0 > y1
    written = texts(chart.light)
    assert "+19.6" in written  # mean 0, sd 10
    assert f"{MINUS}19.6" in written
    assert {"1", "2", "3"} <= set(written), "each of a few points has its number"


def test_of_many_points_those_outside_the_limits_are_numbered() -> None:
    reference = np.linspace(50, 100, 40)
    prediction = reference + np.where(np.arange(40) == 16, 30.0, 0.0)
    written = texts(agreement_chart(prediction.tolist(), reference.tolist()).light)
    assert "17" in written
    assert "16" not in written


@pytest.mark.parametrize("cases", [1, 2, 13, 60, 300])
@pytest.mark.parametrize("dice", [0.0, 1.0, 0.7])
def test_data_without_spread_are_drawn_without_a_warning(cases: int, dice: float) -> None:
    assert len(points(dice_chart([dice] * cases).light)) == cases
    chart = agreement_chart([80.0] * cases, [80.0] * cases)
    assert len(points(chart.light)) == cases
    assert not any("sd" in text for text in texts(chart.light)), "limits that are the mean are not drawn over it"


def test_rounding_is_not_spread() -> None:
    chart = agreement_chart([10.1, 20.2, 30.3], [10.0, 20.1, 30.2])
    assert not any("sd" in text or f"e{MINUS}" in text for text in texts(chart.light))
