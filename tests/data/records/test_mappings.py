"""Ready mappings on small prepared TFDS copies with the features of the real builders, and no TensorFlow anywhere."""

import sys

import pytest

pytest.importorskip("tensorflow_datasets")

import numpy as np
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import prepare

from instructjax.data.records import mappings, records, sources
from instructjax.data.records.records import Demonstration, Prompt, Text
from instructjax.errors import UserError

F = tfds.features
TEXT, INT = F.Text(), np.int32
LABEL = lambda *names: F.ClassLabel(names=list(names))
NO_YES = LABEL("False", "True")
ENTAILS = LABEL("entailment", "not_entailment")
SPANS = F.Sequence({"answer_start": INT, "text": TEXT})
SCORED = {"text": TEXT, "toxicity": np.float32}
SQUAD = {"id": TEXT, "title": TEXT, "context": TEXT, "question": TEXT, "answers": SPANS}
PARAGRAPH = (
  "Answer each question using information in the preceding background paragraph. If there is not enough information "
  'provided, answer with "Not in background."\n\n'
)
RTE = "Passage: P.\n\nQuestion: From this passage can one reasonably conclude that h?\n\nAnswer:"
WSC = {"text": TEXT, "span1_text": TEXT, "span2_text": TEXT, "span1_index": INT, "label": NO_YES}

CASES = {  # name: (features, row, the first record)
  "c4/en": ({"text": TEXT, "url": TEXT, "timestamp": TEXT}, {"text": "t", "url": "u", "timestamp": "x"}, Text("t")),
  "lm1b": ({"text": TEXT}, {"text": "t"}, Text("t")),
  "wikipedia/20230601.en": ({"title": TEXT, "text": TEXT}, {"title": "T", "text": "é"}, Text("é")),
  "reddit": (
    {"content": TEXT, "summary": TEXT, "body": TEXT}, {"content": "long", "summary": "short", "body": "all"},
    Demonstration("long\n\nTL;DR:", "short"),
  ),
  "cnn_dailymail": (
    {"article": TEXT, "highlights": TEXT, "id": TEXT}, {"article": "a", "highlights": "h", "id": "i"},
    Demonstration("a\n\nTL;DR:", "h"),
  ),
  "squad/v1.1": (
    SQUAD, {"id": "i", "title": "T", "context": "C", "question": "Q", "answers": {"answer_start": [1, 2], "text": ["a", "b"]}},
    Demonstration(f"{PARAGRAPH}Title: T\n\nBackground: C\n\nQ: Q\n\nA:", "a"),
  ),
  "squad/v2.0": (
    SQUAD | {"is_impossible": np.bool_},
    {
      "id": "i", "title": "T", "context": "C", "question": "Q", "answers": {"answer_start": [], "text": []},
      "is_impossible": True,
    },
    Demonstration(f"{PARAGRAPH}Title: T\n\nBackground: C\n\nQ: Q\n\nA:", "Not in background."),
  ),
  "drop": (
    {"passage": TEXT, "question": TEXT, "answer": TEXT, "query_id": TEXT, "validated_answers": F.Sequence(TEXT)},
    {"passage": "P", "question": "Q", "answer": "7", "query_id": "i", "validated_answers": ["7"]},
    Demonstration(
      "Answer each question using information in the preceding passage.\n\nPassage: P\nQuestion: Q\nAnswer:", "7"
    ),
  ),
  "hellaswag": (
    {"activity_label": TEXT, "context": TEXT, "endings": F.Sequence(TEXT), "label": INT},
    {"activity_label": "Ice", "context": "A man", "endings": ["w", "x", "y", "z"], "label": 2},
    Demonstration("Complete each independent paragraph using common-sense reasoning.\n\nIce: A man", "y"),
  ),
  "glue/sst2": (
    {"sentence": TEXT, "label": LABEL("negative", "positive"), "idx": INT}, {"sentence": "s", "label": "positive", "idx": 0},
    Demonstration(
      "For each snippet of text, label the sentiment of the text as positive or negative.\n\nText: s\nLabel:", "positive"
    ),
  ),
  "glue/rte": (
    {"sentence1": TEXT, "sentence2": TEXT, "label": ENTAILS}, {"sentence1": "P.", "sentence2": "h.", "label": "entailment"},
    Demonstration(RTE, "Yes"),
  ),
  "super_glue/rte": (
    {"premise": TEXT, "hypothesis": TEXT, "label": ENTAILS}, {"premise": "P.", "hypothesis": "h.", "label": "not_entailment"},
    Demonstration(RTE, "No"),
  ),
  "super_glue/cb": (
    {"premise": TEXT, "hypothesis": TEXT, "label": LABEL("entailment", "contradiction", "neutral")},
    {"premise": "P.", "hypothesis": "h", "label": "neutral"}, Demonstration(RTE, "Maybe"),
  ),
  "super_glue/boolq": (
    {"passage": TEXT, "question": TEXT, "label": NO_YES}, {"passage": "P", "question": "is it", "label": "True"},
    Demonstration("Passage: P\n\nQuestion: is it?\n\nAnswer:", "Yes"),
  ),
  "super_glue/copa": (
    {"premise": TEXT, "question": TEXT, "choice1": TEXT, "choice2": TEXT, "label": LABEL("choice1", "choice2")},
    {"premise": "It fell.", "question": "cause", "choice1": "x", "choice2": "y", "label": "choice2"},
    Demonstration("It fell.\n\nQuestion: What was the cause of this?\n- x\n- y\n\nAnswer:", "y"),
  ),
  "super_glue/wic": (
    {"word": TEXT, "sentence1": TEXT, "sentence2": TEXT, "start1": INT, "label": NO_YES},
    {"word": "bed", "sentence1": "a", "sentence2": "b", "start1": 0, "label": "False"},
    Demonstration('a\nb\n\nQuestion: Does the word "bed" have the same meaning in both sentences?\n\nAnswer:', "No"),
  ),
  "super_glue/wsc": (
    WSC,
    {"text": "Ann saw her.", "span1_text": "Ann", "span2_text": "her", "span1_index": 0, "label": "False"},
    Demonstration(
      'Passage: Ann saw her.\n\nQuestion: In the passage above, does the pronoun "her" refer to Ann?\n\nAnswer:', "No"
    ),
  ),
  "super_glue/multirc": (
    {"paragraph": TEXT, "question": TEXT, "answer": TEXT, "label": NO_YES, "idx": {"answer": INT}},
    {"paragraph": "P", "question": "Q?", "answer": "x", "label": "True", "idx": {"answer": 1}},
    Demonstration('Passage: P\n\nQuestion: Q?\nIs "x" a right answer?\n\nAnswer:', "Yes"),
  ),
  "super_glue/record": (
    {"passage": TEXT, "query": TEXT, "entities": F.Sequence(TEXT), "answers": F.Sequence(TEXT)},
    {"passage": "P", "query": "@placeholder won.", "entities": ["A", "B"], "answers": ["B", "A"]},
    Demonstration("Passage: P\n\n@placeholder won.\n\nQuestion: What does @placeholder stand for?\n\nAnswer:", "B"),
  ),
  "wmt15_translate/fr-en": (
    F.Translation(languages=("fr", "en")), {"fr": "oui", "en": "yes"},
    Demonstration("Translate the following sentences from French into English.\n\nFrench: oui\nEnglish:", "yes"),
  ),
  "real_toxicity_prompts": (
    {"prompt": SCORED, "continuation": SCORED, "challenging": np.bool_},
    {"prompt": {"text": "So", "toxicity": 0.5}, "continuation": {"text": "x", "toxicity": 0.1}, "challenging": False},
    Prompt("So"),
  ),
}  # fmt: skip


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
  found = sources.load("tfds:lm1b:1.0.0@train[:30%]", "text", folder=str(tmp_path))
  assert len(found) == 3
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
  ("name", "row", "what"),
  [
    ("glue/sst2", {"sentence": "s", "label": -1}, "label: -1, the answers of this split are not public"),
    ("glue/sst2", {"sentence": "s", "label": 2}, "label: a whole number from 0 to 1"),
    ("squad", {"title": "T", "context": "C", "question": "Q", "answers": {"text": []}}, "answers.text.0: missing"),
    ("wmt15_translate", {"de": "a", "fr": "b", "en": "c"}, "cs, de, fi, fr, ru: one of them"),
    ("super_glue/copa", {"question": "why", "premise": "p"}, "question: 'cause' or 'effect'"),
    ("drop", {"passage": 3, "question": "Q", "answer": "x"}, "passage: text is expected"),
  ],
)
def test_rows_that_do_not_fit(name, row, what):
  with pytest.raises(UserError) as caught:
    records.parse([row], "demonstration", mappings.of(name).spell, name="x")
  assert str(caught.value).startswith("x:1: ") and what in str(caught.value)


VALUES = st.recursive(
  st.none() | st.integers(-2, 3) | st.text(max_size=3) | st.sampled_from(["cause", "effect"]),
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "toxicity"]), inner),
  max_leaves=4,
)
FIELDS = sorted({field for _, row, _ in CASES.values() for field in row})


@settings(deadline=None, max_examples=150)
@given(data=st.data(), name=st.sampled_from(sorted(CASES)), kind=st.sampled_from(sorted(records.KINDS)))
def test_any_row_is_a_record_or_a_problem(data, name, kind):
  row = dict(CASES[name][1])
  row |= data.draw(st.dictionaries(st.sampled_from([*row, *FIELDS]), VALUES, max_size=3))
  good, problems = records.scan([row], kind, mappings.of(name).spell, name="x")
  assert len(good) + bool(problems) == 1 and all(problem.startswith("x:1: ") for problem in problems)
