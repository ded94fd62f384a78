"""Public NLP tasks without a model: the paper's prompts to the letter, every layout of data, scores
of answers made up here.
"""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from prepared import prepare

from instructjax.data.records import mappings
from instructjax.errors import UserError
from instructjax.evals import nlp, paper, rows, run, tax, truthfulqa
from instructjax.evals.nlp import choice, prompts, reading, writing
from instructjax.evals.tasks import (
  Completion,
  Generate,
  Item,
  Likelihood,
  Logp,
  Look,
  Metric,
  Reply,
  limited,
)
from instructjax.intervals import NOTHING, Estimate
from instructjax.settings import reading as settings

F = tfds.features
TEXT = F.Text()
READING = (
  "Answer each question using information in the preceding background paragraph. If there is not "
  "enough information provided, answer with "
)


def squad_row(at, question, answers, title="T", context="C"):
  return {
    "id": str(at),
    "title": title,
    "context": context,
    "question": question,
    "answers": {"text": answers},
  }


SQUAD = [
  squad_row(1, "One?", ["a b", "b"]),
  squad_row(2, "Two?", []),
  squad_row(3, "Three?", ["c"], context="D"),
]
QUAC = {
  "dialogue_id": "d",
  "wikipedia_page_title": "Ann",
  "section_title": "Life",
  "context": "She ran. CANNOTANSWER",
  "turn_ids": ["d#0", "d#1"],
  "questions": ["What?", "Why?"],
  "answers": {"texts": [["She ran.", "ran"], ["CANNOTANSWER", "CANNOTANSWER", "x"]]},
  "orig_answers": {"texts": ["She ran.", "CANNOTANSWER"]},
}
DROP = {
  "passage": "P",
  "question": "How many?",
  "query_id": "q",
  "answer": "7",
  "validated_answers": ["7", "seven"],
}
HELLASWAG = {
  "activity_label": "Surfing",
  "ctx": "He stands",
  "endings": ["up.", "on a board.", "x", "y"],
  "label": "1",
  "source_id": "activitynet~v_1",
}
WSC = {
  "text": "Ann told her: she won, she said.",
  "span1_text": "Ann",
  "span2_text": "she",
  "span2_index": 3,
  "label": 1,
}


def words(*texts):
  return Reply(tuple((Completion(text, 3, True),) for text in texts))


def opened(tmp_path, *options, **data):
  """The tasks of rows, by name."""
  for name, lines in data.items():
    (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    field = f"nlp.shots.{name.removesuffix('_train')}" if name.endswith("_train") else f"nlp.{name}"
    options = (*options, (field, str(tmp_path / f"{name}.jsonl")))
  suite = nlp.open_suite(settings.override(settings.load("eval"), list(options)))
  return {task.name: task for task in suite.tasks}


def requests_of(task, at=0):
  return task.ask(task.items[at])


# --- prompts ---


def test_squad_shows_earlier_gold_answers(tmp_path):
  task = opened(tmp_path, squad=SQUAD)["SQuADv2 zero-shot"]
  passage = "Title: T\n\nBackground: C\n\nQ: One?\n\nA:"
  head = f'{READING}"Not in background."\n\n{passage}'
  assert requests_of(task) == [Generate(head, 64)]
  assert requests_of(task, 1) == [Generate(f"{head} a b\n\nQ: Two?\n\nA:", 64)]
  assert (
    "D\n\nQ: Three?" in requests_of(task, 2)[0].prompt
    and "One?" not in requests_of(task, 2)[0].prompt
  )
  assert (
    [item.cluster for item in task.items][:2]
    == [task.items[0].cluster] * 2
    != [task.items[2].cluster] * 2
  )
  assert [item.slices["answerable"] for item in task.items] == ["yes", "no", "yes"]


def test_squad_few_shot(tmp_path):
  train = [
    squad_row(10 * n + k, f"q{n}{k}?", [f"a{n}{k}"], context=f"c{n}")
    for n in range(6)
    for k in range(2)
  ]
  task = opened(tmp_path, squad=SQUAD, squad_train=train)["SQuADv2 few-shot"]
  first, *exemplars, last = requests_of(task)[0].prompt.split("Title: T\n\nBackground: ")
  assert first.endswith('"Not in background."\n\n') and last == "C\n\nQ: One?\n\nA:"
  assert len(exemplars) == 4 and len({text[:2] for text in exemplars}) == 4
  assert all(
    text == f"c{n}\n\nQ: q{n}0?\n\nA: a{n}0\n\nQ: q{n}1?\n\nA: a{n}1\n\n"
    for text in exemplars
    for n in text[1]
  )
  again = opened(tmp_path, squad=SQUAD, squad_train=train)["SQuADv2 few-shot"]
  another_seed = opened(tmp_path, ("seed", "1"), squad=SQUAD, squad_train=train)["SQuADv2 few-shot"]
  assert requests_of(again) == requests_of(task) != requests_of(another_seed)
  few = opened(tmp_path, ("nlp.shot_questions", "1"), squad=SQUAD, squad_train=train)[
    "SQuADv2 few-shot"
  ]
  assert "q10?" not in requests_of(few)[0].prompt or "q11?" not in requests_of(few)[0].prompt


def test_quac_in_the_layout_of_the_hub(tmp_path):
  task = opened(tmp_path, quac=[QUAC])["QuAC zero-shot"]
  passage = "TITLE: Ann - Life\n\nPARAGRAPH: She ran.\n\nQ: What?\n\nA:"
  head = f'{READING}"I don\'t know."\n\n{passage}'
  assert [requests_of(task, at)[0].prompt for at in (0, 1)] == [
    head,
    f"{head} She ran.\n\nQ: Why?\n\nA:",
  ]
  assert [item.id for item in task.items] == ["d#0", "d#1"]
  scores = task.score(task.items, [words(" ran"), words(" I don't know.")])
  assert (
    scores[0]["F1"] == pytest.approx(100 * (1 + 2 / 3) / 2) and scores[1]["F1"] == 100
  )  # "she ran" has two words
  assert task.score(task.items[1:], [words(" x")])[0]["F1"] == 0  # most say that there is no answer


def test_quac_of_our_own_closes_with_what_is_not_known(tmp_path):
  row = {
    "title": "T",
    "context": "C",
    "questions": ["a?", "b?"],
    "answers": [["CANNOTANSWER"], ["b"]],
  }
  task = opened(tmp_path, quac=[row])["QuAC zero-shot"]
  assert requests_of(task, 1)[0].prompt.endswith("Q: a?\n\nA: I don't know.\n\nQ: b?\n\nA:")
  task = opened(tmp_path, quac=[row | {"title": ""}])[
    "QuAC zero-shot"
  ]  # of a copy that has no titles
  assert requests_of(task, 0)[0].prompt.endswith('"I don\'t know."\n\nPARAGRAPH: C\n\nQ: a?\n\nA:')


def test_drop_shows_no_earlier_questions(tmp_path):
  second = DROP | {
    "query_id": "r",
    "question": "Who?",
    "answers_spans": {"spans": ["Ann", "Bob"], "types": ["span"] * 2},
  }
  train = [DROP | {"passage": f"p{n}", "query_id": f"t{n}"} for n in range(4)]
  tasks = opened(tmp_path, drop=[DROP, second], drop_train=train)
  head = "Answer each question using information in the preceding passage.\n\n"
  assert (
    requests_of(tasks["DROP zero-shot"], 1)[0].prompt
    == f"{head}Passage: P\nQuestion: Who?\nAnswer:"
  )
  few = requests_of(tasks["DROP few-shot"])[0].prompt
  assert few.startswith(head) and few.count("\nQuestion: How many?\nAnswer: 7\n\nPassage: ") == 4
  assert tasks["DROP zero-shot"].items[1].slices == {"answer": "span"}
  first, second = tasks["DROP zero-shot"].items
  assert first.data["references"] == [["7"], ["seven"]] and second.data["references"] == [
    ["Ann"],
    ["Bob"],
  ]


def test_drop_of_our_own_has_several_spans():
  passage = reading.drop({"passage": "P", "question": "Who?", "answers": [["Ann", "Bob"], "both"]})
  assert (
    passage.turns[0].references == [["Ann", "Bob"], ["both"]]
    and passage.turns[0].answer == "Ann, Bob"
  )


def test_choices_stand_after_the_prompt(tmp_path):
  tasks = opened(
    tmp_path,
    hellaswag=[HELLASWAG],
    sst=[{"sentence": "fun ", "label": 1}],
    rte=[{"premise": "It rained.", "hypothesis": "It was wet.", "label": 0}],
  )
  start = "Complete each independent paragraph using common-sense reasoning.\n\nSurfing: He stands"
  assert requests_of(tasks["HellaSwag zero-shot"]) == [
    Likelihood(start, f" {e}") for e in HELLASWAG["endings"]
  ]
  start = (
    "For each snippet of text, label the sentiment of the text as positive or negative.\n\n"
    "Text: fun\nLabel:"
  )
  assert requests_of(tasks["SST zero-shot"]) == [
    Likelihood(start, " negative"),
    Likelihood(start, " positive"),
  ]
  start = (
    "Passage: It rained.\n\n"
    "Question: From this passage can one reasonably conclude that It was wet?\n\nAnswer:"
  )
  assert requests_of(tasks["RTE zero-shot"]) == [
    Likelihood(start, " Yes"),
    Likelihood(start, " No"),
  ]


def test_a_choice_shot_is_the_right_ending(tmp_path):
  train = [HELLASWAG | {"ctx": f"He {n}", "source_id": f"s{n}", "label": n % 4} for n in range(20)]
  task = opened(tmp_path, hellaswag=[HELLASWAG], hellaswag_train=train)["HellaSwag few-shot"]
  shots = requests_of(task)[0].context.split("\n\n")[1:-1]
  numbers = [int(shot.split()[2]) for shot in shots]
  assert len(set(numbers)) == 15
  assert shots == [f"Surfing: He {n} {HELLASWAG['endings'][n % 4]}" for n in numbers]


def test_wsc(tmp_path):
  false = WSC | {"span1_text": "her", "label": 0}
  train = [false, *[WSC | {"text": f"{n} she won", "span2_index": 1} for n in range(15)]]
  tasks = opened(tmp_path, wsc=[WSC, false], wsc_train=train)
  task = tasks["WSC zero-shot"]
  assert requests_of(task)[0].prompt == (
    "Final Exam with Answer Key\nInstructions: Please carefully read the following passages. For "
    "each passage, you must "
    "identify which noun the pronoun marked in bold refers to.\n\nPassage: Ann told her: **she** "
    "won, she said.\n"
    'Question: In the passage above, what does the pronoun "she" refer to?\nAnswer:'
  )
  few = requests_of(tasks["WSC few-shot"])[0].prompt
  assert few.count("Answer: Ann\n\n") == 15 and "Answer: her" not in few
  assert task.items[0].cluster == task.items[1].cluster
  texts = [" Ann Lee", " the Ann", " An", "", " Bob"]
  assert [choice.wsc_score(text, task.items[0].data)["accuracy"] for text in texts] == [
    1,
    1,
    0,
    0,
    0,
  ]
  assert [choice.wsc_score(text, task.items[1].data)["accuracy"] for text in texts] == [1] * 5


def test_texts_are_written(tmp_path):
  tasks = opened(
    tmp_path,
    wmt=[{"translation": {"fr": "Le chat.", "en": "The cat."}}],
    cnn_dm=[{"article": "Long.", "highlights": "Short."}],
    tldr=[{"prompt": "SUBREDDIT: r/x\nPOST: Long.\nTL;DR:", "label": " Short."}],
  )
  start = "Translate the following sentences from French into English.\n\n"
  assert requests_of(tasks["WMT15 Fr-En zero-shot"]) == [
    Generate(f"{start}French: Le chat.\nEnglish:", 128)
  ]
  assert requests_of(tasks["CNN/DM"]) == [Generate("Long.\n\nTL;DR:", 128)]
  assert requests_of(tasks["TL;DR"]) == [Generate("SUBREDDIT: r/x\nPOST: Long.\n\nTL;DR:", 128)]
  task = tasks["CNN/DM"]
  assert task.score(task.items, [words(" short\nand more")]) == [{"ROUGE-L": 1.0, "words": 1.0}]
  assert {t.metrics[0].paper for t in tasks.values()} == {
    ("WMT15 Fr-En", "BLEU", "zero-shot"),
    ("CNN/DM", "ROUGE-L", "-"),
    None,
  }


@pytest.mark.parametrize(
  ("name", "form", "read", "row"),
  [
    ("drop", reading.DROP, reading.drop, DROP),
    ("squad", reading.SQUAD, reading.squad, {**SQUAD[0], "is_impossible": False}),
    (
      "hellaswag",
      choice.HELLASWAG,
      choice.hellaswag,
      {**HELLASWAG, "context": "He stands", "label": 1},
    ),
    ("glue/sst2", choice.SST, choice.sst, {"sentence": "fun", "label": 1}),
    (
      "super_glue/rte",
      choice.RTE,
      choice.rte,
      {"premise": "It rained.", "hypothesis": "It was wet.", "label": 0},
    ),
    (
      "glue/rte",
      choice.RTE,
      choice.rte,
      {"sentence1": "It rained.", "sentence2": "It was wet.", "label": 1},
    ),
    ("wmt15_translate/fr-en", writing.WMT, writing.wmt, {"fr": "Le chat.", "en": "The cat."}),
    (
      "cnn_dailymail",
      writing.SUMMARY,
      writing.cnn_dm,
      {"article": "Long.", "highlights": "Short."},
    ),
    ("reddit", writing.SUMMARY, writing.tldr, {"content": "Long.", "summary": "Short."}),
  ],
)
def test_prompts_are_those_of_the_demonstrations(name, form, read, row):
  """What a FLAN-like baseline is trained on is what the task asks."""
  passage = read(row)
  theirs = mappings.of(name).spell(row, "demonstration")
  assert prompts.preamble(form, []) + prompts.query(form, passage, 0) == theirs["prompt"]
  assert passage.turns[0].answer == theirs["completion"]


def test_every_paper_row_is_there(tmp_path):
  for benchmark in nlp.BENCHMARKS.values():
    for shots in ("zero-shot", "few-shot") if benchmark.shots else ("-",):
      if benchmark.title != "TL;DR":
        assert len(paper.row(benchmark.title, benchmark.metrics[0].name, shots)) == 4


# --- prepared TFDS copies ---


# The rows of one data set: its features, the row, the answer that is shown and the references
COPIES = {
  "squad/v2.0": (
    {
      "id": TEXT,
      "title": TEXT,
      "context": TEXT,
      "question": TEXT,
      "is_impossible": np.bool_,
      "answers": F.Sequence({"answer_start": np.int32, "text": TEXT}),
    },
    {
      "id": "i",
      "title": "T",
      "context": "é",
      "question": "Q",
      "is_impossible": False,
      "answers": {"answer_start": [1, 2], "text": ["a", "b"]},
    },
    "squad",
    "a",
    ("a", "b"),
  ),
  "drop": (
    {
      "passage": TEXT,
      "question": TEXT,
      "answer": TEXT,
      "query_id": TEXT,
      "validated_answers": F.Sequence(TEXT),
    },
    DROP,
    "drop",
    "7",
    [["7"], ["seven"]],
  ),
  "hellaswag": (
    {
      "context": TEXT,
      "activity_label": TEXT,
      "endings": F.Sequence(TEXT),
      "label": np.int32,
      "source_id": TEXT,
    },
    {
      "context": "He",
      "activity_label": "A",
      "endings": ["a", "b", "c", "d"],
      "label": 2,
      "source_id": "wikihow~1",
    },
    "hellaswag",
    "c",
    (),
  ),
  "super_glue/wsc": (
    {
      "text": TEXT,
      "span1_text": TEXT,
      "span2_text": TEXT,
      "span1_index": np.int32,
      "span2_index": np.int32,
      "label": F.ClassLabel(names=["False", "True"]),
    },
    {
      "text": "Ann ran; she won",
      "span1_text": "Ann",
      "span2_text": "she",
      "span1_index": 0,
      "span2_index": 2,
      "label": 1,
    },
    "wsc",
    "Ann",
    ("Ann",),
  ),
  "wmt15_translate/fr-en": (
    F.Translation(languages=("fr", "en")),
    {"fr": "oui", "en": "yes"},
    "wmt",
    "yes",
    ("yes",),
  ),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_prepared_copy(tmp_path, name):
  features, row, benchmark, answer, references = COPIES[name]
  place = prepare(tmp_path, name, features, [row])
  (passage,) = rows.read(f"{place}@train", nlp.BENCHMARKS[benchmark].read)
  assert passage.turns[0].answer == answer and passage.turns[0].references == references
  suite = nlp.open_suite(
    settings.override(settings.load("eval"), [(f"nlp.{benchmark}", str(place))])
  )
  assert len(suite.tasks) == 1 and len(suite.tasks[0].items) == 1


# --- scores ---


def test_the_highest_mean_wins_not_the_lowest_and_not_the_sum():
  """E9, by hand: -4 over 4 tokens is -1 each and wins over -3 over 2, which has the higher sum."""
  answer = Reply((Logp(-4.0, 4, False), Logp(-3.0, 2, False)))
  assert choice.choice_score(answer, {"choices": ["a", "b"], "label": 0})["accuracy"] == 1
  assert choice.choice_score(answer, {"choices": ["a", "b"], "label": 1})["accuracy"] == 0


def test_squad_scores_in_points():
  data = {"references": ("Not in background.",)}
  assert reading.squad_score("not in background", data) == {"F1": 100, "EM": 100}
  assert reading.squad_score("background", data)["F1"] == pytest.approx(100 * 2 / 4)
  assert reading.drop_score("12 yards", {"references": [["12"]]})["F1"] == pytest.approx(
    100 * 2 / 3
  )


def test_bleu_counts_are_kept_for_each_item():
  scores = writing.wmt_score("The cat.", {"references": ["The cat."]})
  assert scores["BLEU"] == [3, 3, 3, 2, 1, 0, 3, 2, 1, 0] and scores["words"] == 2


def test_a_run_leaves_the_tax_and_the_ratios(tmp_path):
  """The whole way with a tiny model: its answers are noise, the tables are there."""
  files = {
    "nlp.sst": [{"sentence": "fun", "label": 1}, {"sentence": "dull", "label": 0}],
    "nlp.wmt": [{"fr": "oui", "en": "yes"}],
    "truthfulqa.data": [
      {"question": "q?", "best_answer": "a", "correct_answers": [], "incorrect_answers": ["b"]}
    ],
  }
  for name, lines in files.items():
    (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
  options = [(name, str(tmp_path / f"{name}.jsonl")) for name in files]
  options += [
    ("nlp.long_tokens", "4"),
    ("truthfulqa.tokens", "4"),
    ("truthfulqa.prompts", "instruction"),
  ]
  config = settings.override(settings.load("eval"), [("model.dtype", "float32"), *options])
  suites = {"nlp": nlp, "truthfulqa": truthfulqa}
  opened, draws = (
    {name: suite.open_suite for name, suite in suites.items()},
    {name: suite.draw for name, suite in suites.items()},
  )
  run.main(config, tmp_path / "run", {"base": "", "ptx": ""}, opened, draws)
  suites = json.loads((tmp_path / "run" / "results.json").read_text())["suites"]
  assert [row["task"] for row in suites["nlp"]["together"]["tax"]] == [
    "SST zero-shot",
    "WMT15 Fr-En zero-shot",
  ]
  assert suites["nlp"]["tasks"]["SST zero-shot"]["models"]["base"]["accuracy"]["n"] == 2
  assert suites["truthfulqa"]["together"]["ratios"][0]["judge"]["ptx"] == [1.11, 1.49, 1.3]
  page = (tmp_path / "run" / "report.html").read_text()
  assert "The alignment tax" in page and "How many times as often as base" in page


# --- data that do not fit ---


@pytest.mark.parametrize(
  ("name", "row", "message"),
  [
    ("drop", {"passage": "P", "question": "Q", "answers": []}, "drop.jsonl:1: answers: empty"),
    (
      "drop",
      {"passage": "P", "question": "Q", "answers": [1]},
      "drop.jsonl:1: answers: a list is expected",
    ),
    (
      "quac",
      {"context": "C", "question": "Q"},
      "quac.jsonl:1: question: a whole dialogue a row is expected; TFDS",
    ),
    (
      "quac",
      QUAC | {"questions": ["What?"]},
      "answers: one list of texts for each of the 1 questions",
    ),
    ("squad", squad_row(1, "", ["a"]), "squad.jsonl:1: question: a text is expected"),
    (
      "hellaswag",
      HELLASWAG | {"label": ""},
      "label: a whole number from 0 to 3 is expected, this is ''",
    ),
    ("sst", {"sentence": "x", "label": -1}, "label: .* the answers of this split are not public"),
    ("wsc", WSC | {"span2_text": "it"}, "span2_text: 'it' does not stand in the text"),
    ("wsc", WSC | {"span2_index": None}, "span2_index: the number of the pronoun"),
    ("wmt", {"fr": "x"}, "wmt.jsonl:1: en: a text is expected"),
  ],
)
def test_bad_rows_are_named(tmp_path, name, row, message):
  with pytest.raises(UserError, match=message):
    opened(tmp_path, **{name: [row]})


def test_what_cannot_be_asked_is_refused(tmp_path):
  with pytest.raises(UserError, match=r"no data: set one of config\.nlp\.drop"):
    opened(tmp_path)
  with pytest.raises(UserError, match="1 exemplars with answers, the paper shows 4"):
    opened(tmp_path, squad=SQUAD, squad_train=SQUAD[2:])
  train = [squad_row(n, "One?", ["a"], context="C" if n == 3 else f"c{n}") for n in range(4)]
  with pytest.raises(UserError, match=r"the exemplar 'Q: One.*is also a question of the test"):
    opened(tmp_path, squad=SQUAD, squad_train=train)
  with pytest.raises(UserError, match="tokens=0"):
    opened(tmp_path, ("nlp.tokens", "0"), squad=SQUAD)


def test_a_limit_takes_whole_clusters():
  items = [Item(str(i), {}, cluster=str(i // 3)) for i in range(30)]
  limited_items = limited(items, 7, seed=0)
  assert len(limited_items) == 9 and len({item.cluster for item in limited_items}) == 3
  assert [int(item.id) for item in limited_items] == sorted(int(item.id) for item in limited_items)
  assert limited(items, 7, seed=0) == limited_items != limited(items, 7, seed=1)
  assert limited(items, 0, 0) == items and limited(items, 99, 0) == items


# --- the alignment tax ---


def test_the_table_of_the_tax_has_the_papers_differences():
  metric = Metric("F1", decimals=2, paper=("SQuADv2", "F1", "few-shot"))
  e = lambda value: Estimate(value, value - 1, value + 1, 9)
  values = {"SQuADv2 few-shot": {"mine": NOTHING, "ptx": e(60.0), "base": e(50.0), "ppo": e(40.0)}}
  behind = {"SQuADv2 few-shot": {"mine": NOTHING, "ptx": e(10.0), "ppo": e(-10.0)}}
  bases = tax.bases(["mine", "ptx", "base", "ppo"])
  (row,) = tax.table(values, behind, {"SQuADv2 few-shot": metric}, bases)
  assert list(row["models"]) == ["base", "ppo", "ptx", "mine"] and list(row["differences"]) == [
    "ppo",
    "ptx",
    "mine",
  ]
  assert (
    row["paper_differences"]["ppo"][2] == -17.8 and row["paper_differences"]["ptx"][2] == 0.18
  )  # spec of Table 14
  assert row["models"]["mine"]["value"] is None and json.dumps(row)
  page = tax.draw(
    {"bases": bases, "tax": [row]}, dict.fromkeys(values["SQuADv2 few-shot"], Look("base"))
  )
  assert "ptx − base" in page and "10.00" in page and "paper −10.75 / −9.99 / −17.80" in page


def test_the_tax_of_a_size_is_to_the_base_of_that_size(tmp_path):
  assert tax.bases(["base@6b", "SFT@6B", "ptx@6b", "base@1.3b", "sft@1.3b", "sft@2b"]) == {
    "SFT@6B": "base@6b",
    "ptx@6b": "base@6b",
    "sft@1.3b": "base@1.3b",
  }
  assert tax.bases(["gpt", "sft@6b", "mine"]) == {"sft@6b": "gpt", "mine": "gpt"}
  (task,) = opened(
    tmp_path, hellaswag=[HELLASWAG | {"source_id": f"s{n}"} for n in range(4)]
  ).values()
  right = lambda count: [{"accuracy": float(at < count)} for at in range(4)]
  scores = {
    task.name: {
      "base@6b": right(4),
      "sft@6b": right(1),
      "base@1.3b": right(2),
      "sft@1.3b": right(2),
    }
  }
  (row,) = tax.together([task], tmp_path, {}, scores, 0)["tax"]
  assert {model: difference["value"] for model, difference in row["differences"].items()} == {
    "sft@6b": -0.75,
    "sft@1.3b": 0,
  }
  theirs = paper.row("HellaSwag", "accuracy", "zero-shot")
  assert row["paper_differences"]["sft@6b"] == [round(theirs["SFT"][1] - theirs["GPT"][1], 4)]


def test_the_tax_is_paired(tmp_path):
  (task,) = opened(
    tmp_path, hellaswag=[HELLASWAG | {"source_id": f"s{n}"} for n in range(8)]
  ).values()
  good, bad = (
    [{"accuracy": float(x)} for x in right] for right in ([1] * 6 + [0] * 2, [1] * 4 + [0] * 4)
  )
  scores = {task.name: {"sft": bad, "base": good}}
  results = tax.together([task], tmp_path, {}, scores, 0)
  (row,) = results["tax"]
  assert results["bases"] == {"sft": "base"} and row["differences"]["sft"]["value"] == -0.25
  # Two of eight answers were lost: two equal models come to that, too.
  assert row["differences"]["sft"]["low"] < -0.5 and 0 < row["differences"]["sft"]["high"] < 0.35
  assert tax.together([task], tmp_path, {}, {task.name: {"sft": bad, "mine": good}}, 0) == {}
