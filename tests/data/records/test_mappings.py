"""Ready mappings, on small prepared TFDS copies with the features of the real builders.

TensorFlow is never imported.
"""

import sys

import pytest

pytest.importorskip("tensorflow_datasets")

from hypothesis import given, settings
from hypothesis import strategies as st
from mapping_cases import CASES, TEXT
from prepared import prepare

from instructjax.data.records import mappings, records, sources
from instructjax.data.records.records import Prompt, Text
from instructjax.errors import UserError


def test_every_mapping_has_a_case():
  names = {name if name in mappings.TFDS else name.partition("/")[0] for name in CASES}
  assert names == mappings.TFDS.keys() - {"super_glue/wsc.fixed"}


@pytest.mark.parametrize("name", CASES)
def test_a_prepared_copy_gives_the_record(name, tmp_path):
  features, row, record = CASES[name]
  file_format = "parquet" if name == "squad/v1.1" else "array_record"
  place = prepare(tmp_path, name, features, [row], file_format)
  kind = mappings.of(name).kind
  assert sources.kind_of(place) == kind
  assert sources.load(place, kind) == [record] == sources.load(f"tfds-dir:{place}@train", kind)
  assert "tensorflow" not in sys.modules


def test_by_name_and_by_slices(tmp_path):
  prepare(tmp_path, "lm1b", {"text": TEXT}, [{"text": str(i)} for i in range(10)])
  rows = sources.load("tfds:lm1b:1.0.0@train[:30%]", "text", folder=str(tmp_path))
  assert len(rows) == 3
  with pytest.raises(UserError, match=r"tfds:lm1b:1.0.0@nothing: cannot be opened"):
    sources.load("tfds:lm1b:1.0.0@nothing", "text", folder=str(tmp_path))


def test_other_kinds_of_one_data_set():
  spell = mappings.of("reddit/1.0.0").spell
  row = {"content": "long", "summary": "short", "body": "all"}
  assert records.parse([row], "text", spell) == [Text("all")]
  assert records.parse([row], "prompt", spell) == [Prompt("long\n\nTL;DR:")]
  with pytest.raises(UserError, match="holds demonstrations, prompts and texts, no comparisons"):
    records.parse([row], "comparison", spell)


@pytest.mark.parametrize(
  ("name", "row", "message"),
  [
    (
      "glue/sst2",
      {"sentence": "s", "label": -1},
      "label: -1, the answers of this split are not public",
    ),
    ("glue/sst2", {"sentence": "s", "label": 2}, "label: a whole number from 0 to 1"),
    (
      "squad",
      {"title": "T", "context": "C", "question": "Q", "answers": {"text": []}},
      "answers.text.0: missing",
    ),
    ("wmt15_translate", {"de": "a", "fr": "b", "en": "c"}, "cs, de, fi, fr, ru: one of them"),
    ("super_glue/copa", {"question": "why", "premise": "p"}, "question: 'cause' or 'effect'"),
    ("drop", {"passage": 3, "question": "Q", "answer": "x"}, "passage: text is expected"),
  ],
)
def test_rows_that_do_not_fit(name, row, message):
  with pytest.raises(UserError) as caught:
    records.parse([row], "demonstration", mappings.of(name).spell, name="x")
  assert str(caught.value).startswith("x:1: ") and message in str(caught.value)


VALUES = st.recursive(
  st.none() | st.integers(-2, 3) | st.text(max_size=3) | st.sampled_from(["cause", "effect"]),
  lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "toxicity"]), inner)
  ),
  max_leaves=4,
)
FIELDS = sorted({field for _, row, _ in CASES.values() for field in row})


@settings(deadline=None, max_examples=150)
@given(
  data=st.data(), name=st.sampled_from(sorted(CASES)), kind=st.sampled_from(sorted(records.KINDS))
)
def test_any_row_is_a_record_or_a_problem(data, name, kind):
  row = dict(CASES[name][1])
  row |= data.draw(st.dictionaries(st.sampled_from([*row, *FIELDS]), VALUES, max_size=3))
  good, problems = records.scan([row], kind, mappings.of(name).spell, name="x")
  assert len(good) + bool(problems) == 1
  assert all(problem.startswith("x:1: ") for problem in problems)
