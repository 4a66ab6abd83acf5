"""The curve of a training job as a picture and as a file."""

from __future__ import annotations

import csv
import io
import math
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.cli.curve_svg import HEIGHT, WIDTH, curve_svg, ticks
from microkernel.cli.jobs_curve import COLUMNS, curve_csv

SVG = "{http://www.w3.org/2000/svg}"


def point(step: int, **fields: Any) -> dict[str, Any]:
    empty = dict.fromkeys(("loss", "evaluation_loss", "rate", "norm", "seconds", "event"))
    return {"step": step, "at": 0.0, "tokens": 0} | empty | fields


def drawn(*points: dict[str, Any], title: str = "tiny") -> ET.Element:
    return ET.fromstring(curve_svg(title, points))


def of_class(picture: ET.Element, tag: str, name: str) -> list[ET.Element]:
    return [each for each in picture.iter(SVG + tag) if each.get("class") == name]


def test_losses_held_out_losses_and_events_are_in_the_picture():
    curve = [point(step, loss=5.0 - step / 20) for step in range(1, 60)]
    picture = drawn(*curve, point(20, evaluation_loss=4.2), point(40, evaluation_loss=3.5), point(30, event="worker 2"))
    assert len(of_class(picture, "polyline", "mean")) == 1
    assert len(of_class(picture, "circle", "dot")) == 2
    assert [mark.text for mark in of_class(picture, "text", "mark")] == ["1"]
    assert any(each.text == "1  step 30: worker 2" for each in picture.iter(SVG + "text"))


def test_the_words_of_a_picture_are_never_its_marks():
    picture = drawn(point(1, event="<script>&\"'"), title="</svg><b>")
    assert [each.tag for each in picture.iter() if "script" in each.tag or each.tag == "b"] == []


def test_more_events_than_can_be_told_are_counted():
    picture = drawn(*(point(step, event=f"worker {step} ended") for step in range(11)))
    assert any(each.text == "and 3 more events" for each in picture.iter(SVG + "text"))
    assert len(of_class(picture, "text", "mark")) == 11


numbers = st.floats(allow_nan=True, allow_infinity=True) | st.none()
points = st.lists(
    st.builds(
        lambda step, loss, held: point(step, loss=loss, evaluation_loss=held), st.integers(0, 9999), numbers, numbers
    ),
    max_size=20,
)


@given(points)
def test_every_picture_is_well_formed_and_within_its_frame(given_points):
    picture = drawn(*given_points)
    for line in picture.iter(SVG + "polyline"):
        for place in (line.get("points") or "").split():
            x, y = map(float, place.split(","))
            assert -1 <= x <= WIDTH + 1
            assert -1 <= y <= HEIGHT + 1


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_enclose_the_values_and_are_few(low, span):
    found = ticks(low, low + span)
    assert found[0] <= low + span * 1e-6
    assert found[-1] >= low + span - span * 1e-6
    assert 2 <= len(found) <= 9


@pytest.mark.parametrize(("low", "high", "expected"), [(0.0, 5.0, [0, 1, 2, 3, 4, 5]), (2.0, 2.0, [2.0, 2.5])])
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high)[: len(expected)] == expected


def test_the_file_has_every_number_and_leaves_empty_what_was_not_measured():
    text = curve_csv([point(1, loss=2.5, tokens=64), point(2, event='worker 1 ended, "SIGKILL"')])
    rows = list(csv.DictReader(io.StringIO(text)))
    assert tuple(rows[0]) == COLUMNS
    assert (rows[0]["loss"], rows[0]["evaluation_loss"]) == ("2.5", "")
    assert rows[1]["event"] == 'worker 1 ended, "SIGKILL"'
    assert math.isclose(float(rows[0]["tokens"]), 64)
