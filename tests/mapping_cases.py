"""Rows of public TFDS data sets with the features of the real builders, and their records."""

import numpy as np
import tensorflow_datasets as tfds

from instructjax.data.records.records import Demonstration, Prompt, Text

F = tfds.features
TEXT, INT = F.Text(), np.int32


def label(*names):
  return F.ClassLabel(names=list(names))


NO_YES = label("False", "True")
ENTAILS = label("entailment", "not_entailment")
SPANS = F.Sequence({"answer_start": INT, "text": TEXT})
SCORED = {"text": TEXT, "toxicity": np.float32}
SQUAD = {"id": TEXT, "title": TEXT, "context": TEXT, "question": TEXT, "answers": SPANS}
PARAGRAPH = (
  "Answer each question using information in the preceding background paragraph. "
  'If there is not enough information provided, answer with "Not in background."\n\n'
)
RTE = "Passage: P.\n\nQuestion: From this passage can one reasonably conclude that h?\n\nAnswer:"
WSC = {"text": TEXT, "span1_text": TEXT, "span2_text": TEXT, "span1_index": INT, "label": NO_YES}

# By the name of the data set: its features, a row, and the record that the row becomes.
CASES = {
  "c4/en": (
    {"text": TEXT, "url": TEXT, "timestamp": TEXT},
    {"text": "t", "url": "u", "timestamp": "x"},
    Text("t"),
  ),
  "lm1b": ({"text": TEXT}, {"text": "t"}, Text("t")),
  "wikipedia/20230601.en": ({"title": TEXT, "text": TEXT}, {"title": "T", "text": "é"}, Text("é")),
  "reddit": (
    {"content": TEXT, "summary": TEXT, "body": TEXT},
    {"content": "long", "summary": "short", "body": "all"},
    Demonstration("long\n\nTL;DR:", "short"),
  ),
  "cnn_dailymail": (
    {"article": TEXT, "highlights": TEXT, "id": TEXT},
    {"article": "a", "highlights": "h", "id": "i"},
    Demonstration("a\n\nTL;DR:", "h"),
  ),
  "squad/v1.1": (
    SQUAD,
    {
      "id": "i",
      "title": "T",
      "context": "C",
      "question": "Q",
      "answers": {"answer_start": [1, 2], "text": ["a", "b"]},
    },
    Demonstration(f"{PARAGRAPH}Title: T\n\nBackground: C\n\nQ: Q\n\nA:", "a"),
  ),
  "squad/v2.0": (
    SQUAD | {"is_impossible": np.bool_},
    {
      "id": "i",
      "title": "T",
      "context": "C",
      "question": "Q",
      "answers": {"answer_start": [], "text": []},
      "is_impossible": True,
    },
    Demonstration(f"{PARAGRAPH}Title: T\n\nBackground: C\n\nQ: Q\n\nA:", "Not in background."),
  ),
  "drop": (
    {
      "passage": TEXT,
      "question": TEXT,
      "answer": TEXT,
      "query_id": TEXT,
      "validated_answers": F.Sequence(TEXT),
    },
    {"passage": "P", "question": "Q", "answer": "7", "query_id": "i", "validated_answers": ["7"]},
    Demonstration(
      "Answer each question using information in the preceding passage.\n\n"
      "Passage: P\nQuestion: Q\nAnswer:",
      "7",
    ),
  ),
  "hellaswag": (
    {"activity_label": TEXT, "context": TEXT, "endings": F.Sequence(TEXT), "label": INT},
    {"activity_label": "Ice", "context": "A man", "endings": ["w", "x", "y", "z"], "label": 2},
    Demonstration(
      "Complete each independent paragraph using common-sense reasoning.\n\nIce: A man", "y"
    ),
  ),
  "glue/sst2": (
    {"sentence": TEXT, "label": label("negative", "positive"), "idx": INT},
    {"sentence": "s", "label": "positive", "idx": 0},
    Demonstration(
      "For each snippet of text, label the sentiment of the text as positive or negative.\n\n"
      "Text: s\nLabel:",
      "positive",
    ),
  ),
  "glue/rte": (
    {"sentence1": TEXT, "sentence2": TEXT, "label": ENTAILS},
    {"sentence1": "P.", "sentence2": "h.", "label": "entailment"},
    Demonstration(RTE, "Yes"),
  ),
  "super_glue/rte": (
    {"premise": TEXT, "hypothesis": TEXT, "label": ENTAILS},
    {"premise": "P.", "hypothesis": "h.", "label": "not_entailment"},
    Demonstration(RTE, "No"),
  ),
  "super_glue/cb": (
    {"premise": TEXT, "hypothesis": TEXT, "label": label("entailment", "contradiction", "neutral")},
    {"premise": "P.", "hypothesis": "h", "label": "neutral"},
    Demonstration(RTE, "Maybe"),
  ),
  "super_glue/boolq": (
    {"passage": TEXT, "question": TEXT, "label": NO_YES},
    {"passage": "P", "question": "is it", "label": "True"},
    Demonstration("Passage: P\n\nQuestion: is it?\n\nAnswer:", "Yes"),
  ),
  "super_glue/copa": (
    {
      "premise": TEXT,
      "question": TEXT,
      "choice1": TEXT,
      "choice2": TEXT,
      "label": label("choice1", "choice2"),
    },
    {
      "premise": "It fell.",
      "question": "cause",
      "choice1": "x",
      "choice2": "y",
      "label": "choice2",
    },
    Demonstration("It fell.\n\nQuestion: What was the cause of this?\n- x\n- y\n\nAnswer:", "y"),
  ),
  "super_glue/wic": (
    {"word": TEXT, "sentence1": TEXT, "sentence2": TEXT, "start1": INT, "label": NO_YES},
    {"word": "bed", "sentence1": "a", "sentence2": "b", "start1": 0, "label": "False"},
    Demonstration(
      'a\nb\n\nQuestion: Does the word "bed" have the same meaning in both sentences?\n\nAnswer:',
      "No",
    ),
  ),
  "super_glue/wsc": (
    WSC,
    {
      "text": "Ann saw her.",
      "span1_text": "Ann",
      "span2_text": "her",
      "span1_index": 0,
      "label": "False",
    },
    Demonstration(
      "Passage: Ann saw her.\n\n"
      'Question: In the passage above, does the pronoun "her" refer to Ann?\n\nAnswer:',
      "No",
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
    Demonstration(
      "Passage: P\n\n@placeholder won.\n\nQuestion: What does @placeholder stand for?\n\nAnswer:",
      "B",
    ),
  ),
  "wmt15_translate/fr-en": (
    F.Translation(languages=("fr", "en")),
    {"fr": "oui", "en": "yes"},
    Demonstration(
      "Translate the following sentences from French into English.\n\nFrench: oui\nEnglish:", "yes"
    ),
  ),
  "real_toxicity_prompts": (
    {"prompt": SCORED, "continuation": SCORED, "challenging": np.bool_},
    {
      "prompt": {"text": "So", "toxicity": 0.5},
      "continuation": {"text": "x", "toxicity": 0.1},
      "challenging": False,
    },
    Prompt("So"),
  ),
}
