"""The paper's tables on data small enough to count by hand."""

import numpy as np
import pytest

from instructjax.data.curation import statistics
from instructjax.data.curation.statistics import NONE, Part
from instructjax.data.records.records import Comparison, Demonstration, Prompt
from instructjax.system import tables

CUSTOMER = {"source": "customer", "user": "u"}
ASKED = [
  Prompt("a" * n, use_case="open_qa", source="customer", user=user)
  for n, user in ((1, "u"), (2, "u"), (4, "v"))
]
PARTS = [
  Part("PPO", "train", ASKED),
  Part("SFT", "valid", [Demonstration("abc", "de", use_case="Riddles", source="labeler")]),
  Part(
    "SFT", "train", [Demonstration("ab", "c", **CUSTOMER), Demonstration("abcd", "abc", **CUSTOMER)]
  ),
  Part(
    "SFT",
    "train",
    [Demonstration("abcdef", "ab", source="labeler", annotations={"ambiguous": True})],
  ),
  Part(
    "RM",
    "train",
    [
      Comparison(
        "p",
        tuple("abcd"),
        (1, 2, 2, 4),
        use_case="Chat",
        annotations={"ambiguous": False, "closed_domain": True},
      ),
      Comparison("p", tuple("abcd"), (1, 2, 3, 4), user="u", annotations={"ambiguous": True}),
      Comparison("q", tuple("ab"), (1, 1), user="u"),
    ],
  ),
]


@pytest.fixture(scope="module")
def tables_by_name():
  return {table.title.split(":")[0]: table for table in statistics.tables(PARTS, len, "letters")}


def test_all_tables_are_there(tables_by_name):
  assert list(tables_by_name) == [f"Table {i}" for i in (1, 6, 7, 8, 9, 10, 11)] + ["Rankings"]
  assert all(
    len(row) == len(table.columns) for table in tables_by_name.values() for row in table.rows
  )


def test_use_cases(tables_by_name):
  assert tables_by_name["Table 1"].columns == (
    "use case",
    "SFT",
    "SFT %",
    "RM",
    "RM %",
    "PPO",
    "PPO %",
    "paper's RM %",
  )
  rows = {row[0]: row[1:] for row in tables_by_name["Table 1"].rows}
  assert list(rows)[:10] == list(statistics.USE_CASES) and list(rows)[10:] == ["Riddles", NONE]
  assert rows["Open QA"] == (0, 0.0, 0, 0.0, 3, 100.0, 12.4)
  assert rows["Chat"] == (0, 0.0, 1, 33.3, 0, 0.0, 8.4)
  assert rows["Riddles"] == (1, 25.0, 0, 0.0, 0, 0.0, None)
  assert rows[NONE] == (3, 75.0, 2, 66.7, 0, 0.0, None)
  assert sum(statistics.USE_CASES.values()) == pytest.approx(99.9)


def test_sizes(tables_by_name):
  assert tables_by_name["Table 6"].rows == [
    ("SFT", "train", "customer", 2),
    ("SFT", "train", "labeler", 1),
    ("SFT", "train", "all sources", 3),
    ("SFT", "valid", "labeler", 1),
    ("RM", "train", NONE, 3),
    ("PPO", "train", "customer", 3),
  ]


def test_annotations(tables_by_name):
  assert tables_by_name["Table 7"].columns == (
    "annotation",
    "SFT train",
    "SFT valid",
    "RM train",
    "PPO train",
  )
  rows = {row[0]: row[1:] for row in tables_by_name["Table 7"].rows}
  assert rows["ambiguous"] == (100.0, None, 50.0, None)
  assert rows["closed_domain"] == (None, None, 100.0, None)
  (nothing,) = [
    table for table in statistics.tables(PARTS[:1], len) if table.title.startswith("Table 7")
  ]
  assert nothing.rows == [(NONE, None)]


def test_prompts_of_a_customer(tables_by_name):
  assert tables_by_name["Table 8"].rows == [
    ("SFT", "train", 1, 2.0, 2, 1),
    ("SFT", "valid", 0, None, None, 1),
    ("RM", "train", 1, 2.0, 2, 1),
    ("PPO", "train", 2, 1.5, 2, 0),
  ]


def test_lengths(tables_by_name):
  assert tables_by_name["Table 9"].title.endswith("in letters")
  # SFT train 2, 4, 6: mean 4, sd of a sample 2, quartiles 3, 4, 5
  assert tables_by_name["Table 9"].rows[0] == ("SFT", "train", 3, 4.0, 2.0, 2, 3.0, 4.0, 5.0, 6)
  assert tables_by_name["Table 9"].rows[1] == ("SFT", "valid", 1, 3.0, None, 3, 3.0, 3.0, 3.0, 3)
  assert ("Open QA", 3, 2.3, 1.5, 1, 1.5, 2.0, 3.0, 4) in tables_by_name["Table 10"].rows
  assert [row[:4] for row in tables_by_name["Table 11"].rows] == [
    ("customer", "prompt", 2, 3.0),
    ("customer", "demonstration", 2, 2.0),
    ("labeler", "prompt", 2, 4.5),
    ("labeler", "demonstration", 2, 2.0),
  ]


def test_measures_are_numpys():
  sizes = np.random.default_rng(0).integers(1, 2000, 101).tolist()
  count, mean, std, low, *quartiles, high = statistics.measures(sizes)
  assert (count, low, high) == (101, min(sizes), max(sizes))
  assert (mean, std) == pytest.approx((np.mean(sizes), np.std(sizes, ddof=1)), abs=0.05)
  assert quartiles == sorted(sizes)[25:76:25]
  assert statistics.measures([]) == (0, *[None] * 7)


def test_rankings(tables_by_name):
  # K = 4: 6 + 6 pairs, 1 of them tied; K = 2: 1 pair, tied
  assert tables_by_name["Rankings"].rows == [("2", 1, 0, 1), ("4", 2, 11, 1), ("all", 3, 11, 2)]


@pytest.mark.parametrize(
  ("path", "split"),
  [
    ("data/train.jsonl", "train"),
    ("rm_valid.jsonl.gz", "valid"),
    ("test/prompts.jsonl", "test"),
    ("prompts.jsonl", "all"),
    ("training.jsonl", "all"),
    ("test/train.jsonl", "train"),
    ("latest.jsonl", "all"),
  ],
)
def test_the_split_is_in_the_name(path, split):
  assert statistics.split_name(path) == split


def test_tables_are_aligned_and_show_markup_as_it_is(capsys):
  tables.show(
    [tables.Table("T [b]", ("name", "n"), [("[red]x", 1), ("a\x1b[31m\n", 12345), ("c", None)])]
  )
  lines = capsys.readouterr().out.split("\n")
  assert lines[0] == "T [b]"
  assert any(line.startswith("[red]x") for line in lines)
  assert "a\\x1b[31m\\n" in lines[4]
  numbers = [line.rstrip() for line in lines[3:6]]
  assert [line.split()[-1] for line in numbers] == ["1", "12,345", "-"]
  assert len({len(line) for line in numbers}) == 1
  assert tables.as_json([tables.Table("T", ("a", "b"), [("x", 1.5)])]) == [
    {"title": "T", "rows": [{"a": "x", "b": 1.5}]}
  ]
