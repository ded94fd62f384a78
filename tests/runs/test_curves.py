"""Figures over model sizes: where points and ticks stand, and what is left out."""

import itertools
import math
import re

import pytest

from instructjax.intervals import Estimate
from instructjax.runs.report.curves import APART, ASIDE, Line, curves, spell_size
from instructjax.runs.report.figures import WIDTH


def figure(*lines, **options):
  return curves("a < b", lines, "win rate", **options)


def line(look, *points, **options):
  return Line(
    look,
    look,
    [(size, Estimate(value, value - 0.1, value + 0.1, 9)) for size, value in points],
    **options,
  )


def marks(html, shape="circle"):
  return [
    (float(x), float(y)) for x, y in re.findall(rf'<{shape} cx="([\d.]+)" cy="([\d.]+)"', html)
  ]


@pytest.mark.parametrize(
  "parameters, text",
  [
    (1.3e9, "1.3B"),
    (134_515_008, "135M"),
    (175e9, "175B"),
    (6_000_000_000, "6B"),
    (999, "999"),
    (5_300_000, "5.3M"),
    (9_960_000, "10M"),
    (999_900_000, "1B"),
    (27_001, "27k"),
    (1.1e12, "1.1T"),
  ],
)
def test_parameters_in_few_letters(parameters, text):
  assert spell_size(parameters) == text


def test_a_tenfold_of_parameters_is_always_as_wide():
  html = figure(line("ppo", (1e6, 0.2), (1e7, 0.5), (1e8, 0.8)))
  (a, low), (b, middle), (c, high) = marks(html)[1:]  # the first one is the key
  assert b - a == pytest.approx(c - b, abs=0.2) and low - middle == pytest.approx(
    middle - high, abs=0.2
  )
  assert 0 < a < c < WIDTH and html.count('class="bar ppo"') == 3
  assert [f">{text}<" in html for text in ("1M", "10M", "100M")] == [
    True
  ] * 3 and "a &lt; b" in html


def test_lines_of_the_same_sizes_stand_apart_and_those_of_others_do_not_move():
  html = figure(
    line("ppo", (1e6, 0.5), (1e7, 0.5), published=[(1e6, 0.4)]),
    line("none", (1e6, 0.5), (1e7, 0.5)),
  )
  places = [x for x, _ in marks(html.partition("</div>")[2])]
  published, first_line, second_line = places[0], places[1], places[3]
  assert second_line - first_line == pytest.approx(ASIDE, abs=0.11) and published == pytest.approx(
    (first_line + second_line) / 2, abs=0.11
  )
  assert html.count("the paper&#x27;s") == 2  # its key, and the title of its point


@pytest.mark.parametrize("largest, is_shown", [(1e9, True), (2e9, False)])
def test_published_numbers_are_left_out_where_ours_would_run_together(largest, is_shown):
  html = figure(line("ppo", (1e5, 0.5), (1e6, 0.5), published=[(1e6, 0.1), (largest, 0.9)]))
  assert ("dashed" in html) == ("the paper&#x27;s" in html) == is_shown
  assert (">1B<" in html) == is_shown and "90\u00a0%" not in html


def test_ticks_never_run_into_each_other():
  html = figure(
    line(
      "ppo", *((10 ** (6 + i / 9), 0.5) for i in range(40)), published=[(1.3e9, 0.5), (175e9, 0.5)]
    )
  )
  ticks = sorted(
    float(x)
    for x in re.findall(r'<text x="([\d.]+)" y="209.0" text-anchor="middle" class="tick">', html)
  )
  assert len(ticks) > 3 and all(b - a >= APART - 0.11 for a, b in itertools.pairwise(ticks))


def test_what_has_no_number_is_left_out():
  nothing = Line(
    "b",
    "sft",
    [(1e6, Estimate(math.nan, math.nan, math.nan, 0)), (1e7, Estimate(0.5, math.nan, math.nan, 1))],
  )
  html = figure(line("ppo", (1e6, 0.5)), nothing, level=0.5)
  assert (
    "nan" not in html
    and html.count("<title>b") == 1
    and html.count('class="bar') == 1
    and "reference" in html
  )
