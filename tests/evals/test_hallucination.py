"""Closed-domain hallucination: the detector's rules, its precision and recall on labelled pairs,
and the suite.
"""

import json

import numpy as np
import pytest

from instructjax import settings
from instructjax.errors import UserError
from instructjax.evals import english, grounding, hallucination, paper, rows, summary
from instructjax.evals.tasks import Completion, Generate, Look, Reply

SOURCE = (
  "On 4 March 2021 the World Health Office (WHO) in Geneva asked twenty-five towns to measure "
  "noise. Maria Lund of Oslo said "
  "that 3,187,000 people, 45.3 percent of all, sleep badly. "
  "The report costs two hundred euros and describes Canada's quiet streets."
)


@pytest.fixture
def config():
  return settings.load("eval")


@pytest.fixture(scope="module")
def labelled():
  return rows.read(str(hallucination.LABELLED), hallucination._labelled_row)


def answer_of(text):
  return Reply(((Completion(text, 3, True),),))


# --- the detector ---


@pytest.mark.parametrize(
  "text",
  [
    "25 towns measure noise.",
    "About 3.2 million people sleep badly.",
    "45 % sleep badly.",
    "The report costs 200 euros.",
    "Lund of Oslo described Canadian streets.",
    "In March 2021, the WHO asked towns.",
    "The reported noises were measured.",
    "The text does not say.",
    "Maria Lund",
    "25",
    "- noise\n- streets",
    "",
  ],
)
def test_supported(text):
  assert not any(finding.why for finding in grounding.check(SOURCE, text))


@pytest.mark.parametrize(
  "text, why",
  [
    ("26 towns measure noise.", "number 26"),
    ("The report is from 2020.", "number 2020"),
    ("3.3 million people sleep badly.", "number 3.3e+06"),
    ("Thirty-five towns measure noise.", "number 35"),
    ("They asked in May 2021.", "date May"),
    ("It was a Monday in March.", "date Monday"),
    ("Maria Berg of Oslo said so.", "name Berg"),
    ("The towns asked the UNO.", "name UNO"),
    ("A helicopter rescued the frightened sailors.", "words helicopter rescued frightened sailors"),
    ("helicopter", "words helicopter"),
    ("noise, streets, helicopter", "words helicopter"),
  ],
)
def test_unsupported(text, why):
  assert [why] == [reason for finding in grounding.check(SOURCE, text) for reason in finding.why]


def test_sentences_know_abbreviations_and_lists():
  text = 'Dr. Lund came. She left! "Why?" asked J. Berg.\n1. First point\n- second\n\n...'
  assert grounding.sentences(text) == [
    "Dr. Lund came.",
    "She left!",
    '"Why?" asked J. Berg.',
    "First point",
    "second",
  ]


@pytest.mark.parametrize(
  "text, values",
  [
    ("sixty five", [65]),
    ("two hundred thousand", [200_000]),
    ("3.2 million and 7", [3.2e6, 7]),
    ("1,050", [1050]),
    ("three hundred twenty", [320]),
    ("half a dozen", [0.5, 12]),
    ("nine eleven", [9, 11]),
    ("none", []),
  ],
)
def test_numbers_in_words_and_digits(text, values):
  assert [value for value, _ in english.numbers(english.TOKEN.findall(text))] == values


def test_a_year_is_never_rounded():
  assert grounding.check("It was built in 1931.", "Built in 1930.")[0].why == ("number 1930",)


def test_precision_and_recall_on_labelled_pairs(labelled):
  """The numbers of docs/evaluation/hallucination.md.  The rules were made on `dev` and fixed before
  `test` was measured.
  """
  test = [each for each in labelled if each.part == "test"]
  assert sum(len(each.supported) + len(each.unsupported) for each in test) == 159
  rates = hallucination.measure(hallucination.detector, test)
  assert (rates["precision"]["value"], rates["precision"]["n"]) == (pytest.approx(62 / 69), 69)
  assert (rates["recall"]["value"], rates["recall"]["n"]) == (pytest.approx(62 / 80), 80)
  assert rates["precision"]["low"] < 62 / 69 < rates["precision"]["high"]


def test_a_judge_that_flags_everything_has_the_precision_of_the_base_rate(labelled):
  every = lambda pairs: [[True] for _ in pairs]
  rates = hallucination.measure(every, labelled)
  bad, good = (
    sum(len(texts) for texts in part)
    for part in zip(*((each.unsupported, each.supported) for each in labelled))
  )
  assert rates["recall"]["value"] == 1.0 and rates["precision"]["value"] == pytest.approx(
    bad / (bad + good)
  )


# --- the suite ---


def test_the_shipped_prompts_run_without_data(config):
  suite = hallucination.open_suite(config)
  (task,) = suite.tasks
  item = task.items[0]
  (request,) = task.ask(item)
  assert request._replace(is_over=None) == Generate(item.data["prompt"], 128, stop=())
  assert item.data["source"] in item.data["prompt"] and item.data["prompt"].endswith("\n\nAnswer:")
  assert (
    len({item.cluster for item in task.items}) < len(task.items) == 42
  )  # questions on one source hang together
  config = settings.replaced(config, {"limit": 5})
  assert len(hallucination.open_suite(config).tasks[0].items) == 5


def test_scores_by_hand(config):
  (task,) = hallucination.open_suite(config).tasks
  items = task.items[:3]  # Velmora's pool, its visitors, a recipe
  texts = [
    "Velmora reopened its pool. It cost 7 euros. Mayor Calder cut the ribbon.",
    "",
    "Rye flour",
  ]
  scores = task.score(items, [answer_of(text) for text in texts])
  assert [row["hallucination"] for row in scores] == [1.0, 0.0, 0.0]
  assert [row["unsupported sentences"] for row in scores] == [[1.0, 3.0], [0.0, 0.0], [0.0, 1.0]]
  assert [row["answered"] for row in scores] == [1.0, 0.0, 1.0]
  assert [row["supported"] for row in scores] == [0.0, 0.0, 1.0]
  assert scores[2]["reference recall"] == pytest.approx(2 / 5)
  table = summary.table(task._replace(items=items), {"m": scores})["m"]
  assert table["hallucination"].value == pytest.approx(1 / 3) and table[
    "unsupported sentences"
  ].value == pytest.approx(1 / 4)


def test_silence_is_told_from_support(config):
  """The outputs that once made a model look supported: letters, "No." and nothing."""
  (task,) = hallucination.open_suite(config).tasks
  items = task.items[:4]
  texts = ["A.", "A. No.", "", "Rye flour and 12 eggs"]
  scores = task.score(items, [answer_of(text) for text in texts])
  estimates = summary.table(task._replace(items=items), {"m": scores})["m"]
  values = {name: (each.value, each.n) for name, each in estimates.items()}
  assert values["answered"] == (1 / 4, 4) and values["supported"] == (0.0, 4)
  assert values["hallucination"] == (1 / 4, 4)
  assert values["hallucination of answered"] == (1.0, 1)
  assert values["unsupported sentences"] == (pytest.approx(1 / 3), 4)
  assert values["unsupported sentences of answered"] == (1.0, 1)
  assert values["words"] == (2.0, 4) and values["words of answered"] == (5.0, 1)
  recall, of_answered = values["reference recall"], values["reference recall of answered"]
  assert of_answered[1] == 1 and of_answered[0] == pytest.approx(4 * recall[0])


@pytest.mark.parametrize(
  ("text", "answers"),
  [
    ("", False),
    ("A.", False),
    ("A. No.", False),
    ("It is so.", False),
    ("The figures are:", False),
    ("Here is the summary:\n- a pool", True),
    ("The text does not say.", False),
    ("The text does not say who. The pool cost 7 euros.", True),
    ("25", True),
    ("one", False),
    ("Seven.", True),
    ("WHO", True),
    ("水", True),
    ("Rye flour", True),
  ],
)
def test_an_answer_has_content(text, answers):
  assert grounding.is_answer(text) == answers


def test_a_reference_word_for_word_is_an_answer():
  item = hallucination._item("Is it?", "It is.", "", ["No."], "x")
  assert hallucination.answers_item(item, "no") and not hallucination.answers_item(item, "yes")
  silent = hallucination._item("Is it?", "It is.", "", ["The text does not say."], "x")
  assert not hallucination.answers_item(silent, "The text does not say.")


@pytest.mark.parametrize(
  ("text", "kept"),
  [
    ("The figures are:\n\n12 lamps\n\nQ: more", "The figures are:\n\n12 lamps"),
    ("\n\nThe pool.\n\nmore", "\n\nThe pool."),
    ("A.\n\n- rye\n- salt\n\nmore", "A.\n\n- rye\n- salt"),
    ("The pool.\n\nmore", "The pool."),
    ("The figures are: \n\n", "The figures are: \n\n"),
    ("The pool.", "The pool."),
    ("", ""),
  ],
)
def test_an_empty_line_ends_an_output_after_its_content(config, text, kept):
  assert grounding.until(text, "\n\n") == kept
  (task,) = hallucination.open_suite(config).tasks
  (row,) = task.score(task.items[:1], [answer_of(text)])
  assert row["words"] == len(kept.split())


def test_own_rows_and_public_layouts(config, tmp_path):
  own, squad, news = (tmp_path / name for name in ("own.jsonl", "squad.jsonl", "news.jsonl"))
  own.write_text(
    '{"prompt": "Sum up: It rains.", "source": "It rains."}\n{"prompt": "Sum up.", "source": '
    '"Sun.", "use_case": "x"}\n'
  )
  answers = {"text": ["Rome", "Rome"], "answer_start": [0, 0]}
  squad.write_text(
    "".join(
      json.dumps({"title": "T", "context": "In Rome.", "question": "Where?", "id": i, "answers": a})
      + "\n"
      for i, a in (("a", answers), ("b", {"text": [], "answer_start": []}))
    )
  )
  news.write_text('{"article": "Long.", "highlights": "Short."}\n')
  sources = {"own": own, "squad": squad, "cnn_dailymail": news}
  config = settings.replaced(
    config, {f"hallucination.{name}": str(path) for name, path in sources.items()}
  )
  ours, summaries, questions = hallucination.open_suite(config).tasks
  assert [item.data["prompt"] for item in ours.items] == [
    "Sum up: It rains.",
    "Sum up.\n\nSun.\n\nAnswer:",
  ]
  assert ours.items[0].data["references"] == [] and ours.items[1].slices == {"use_case": "x"}
  assert (
    hallucination.score(hallucination.detector, "\n\n", ours.items[:1], [answer_of("Rain")])[0][
      "reference recall"
    ]
    is None
  )
  assert summaries.items[0].data["prompt"] == "Long.\n\nTL;DR:"
  (row,) = summaries.score(summaries.items, [answer_of("\nIn short:\nShort.\nmore")])
  assert row["words"] == 3
  assert (
    questions.items[0]
    .data["prompt"]
    .endswith("Title: T\n\nBackground: In Rome.\n\nQ: Where?\n\nA:")
  )
  assert [item.data["references"] for item in questions.items] == [["Rome"], ["Not in background."]]


def test_a_draw_of_a_large_data_set_is_the_same_for_a_seed():
  items = hallucination._numbered(
    [hallucination._item(str(i), str(i), "", [], "x") for i in range(100)]
  )
  assert (
    hallucination.sample(items, 10, 1)
    == hallucination.sample(items, 10, 1)
    != hallucination.sample(items, 10, 2)
  )
  assert hallucination.sample(items, 0, 1) == items


def test_the_judge_can_be_measured_on_pairs_of_ones_own(config, tmp_path):
  rows = [
    {
      "source": "Ann beat Bob in May.",
      "supported": ["Ann beat Bob."],
      "unsupported": ["Bob beat Ann.", "Ann beat Bob twice."],
    },
    {
      "source": "It rains.",
      "prompt": "Weather in Rome?",
      "supported": ["It rains in Rome."],
      "unsupported": ["It shines."],
    },
  ]
  config = settings.replaced(config, {"hallucination.labelled": str(tmp_path / "pairs.jsonl")})
  (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  suite = hallucination.open_suite(config)
  results = suite.together(tmp_path, {}, {suite.tasks[0].name: {"sft": []}})
  assert results["judge"]["recall"]["value"] == 2 / 3  # exchanged roles are not seen
  assert (
    results["judge"]["precision"]["n"] == 2
    and results["notes"][-1] == f"The judge was measured on {tmp_path}/pairs.jsonl."
  )
  (tmp_path / "pairs.jsonl").write_text('{"source": "x", "supported": "y", "unsupported": []}\n')
  with pytest.raises(UserError, match=r"pairs.jsonl:1: supported: a list of texts"):
    hallucination.open_suite(config)


def test_a_reward_can_judge_each_sentence(config, tmp_path):
  (tmp_path / "nli.py").write_text(
    "def supported(prompts, responses):\n  return [float(r in p) for p, r in zip(prompts, "
    "responses)]\n"
    "def logit(prompts, responses):\n  return [-3.0 for _ in responses]\n"
  )
  config = settings.replaced(
    config, {"hallucination.judge": f"python:{tmp_path / 'nli.py'}:supported"}
  )
  judge, about = hallucination.open_judge(config.hallucination.judge, config.model)
  assert (
    judge([("It rains. Sun.", "It rains. Snow."), ("a", "")]) == [[False, True], []]
    and "sentence by sentence" in about
  )
  judge, _ = hallucination.open_judge(f"python:{tmp_path / 'nli.py'}:logit", config.model)
  with pytest.raises(UserError, match="scores from 0 to 1"):
    judge([("a", "b")])


def test_sft_is_asked_for_and_the_papers_numbers_stand_beside(config, tmp_path):
  suite = hallucination.open_suite(config)
  assert suite.together is not None
  scores = lambda *names: {suite.tasks[0].name: {name: [] for name in names}}
  without, with_sft = (
    suite.together(tmp_path, {}, scores(*names)) for names in (("base", "ptx"), ("base", "sft"))
  )
  assert any("No model here is called sft" in note for note in without["notes"])
  assert not any("called sft" in note for note in with_sft["notes"])
  assert with_sft["paper_fig4"]["SFT"] == 0.084
  assert paper.beside("sft", suite.tasks[0].metrics[0].paper) == [0.287, 0.247, 0.137]
  drawn = hallucination.draw(with_sft, {"sft": Look("sft")})
  assert "8.4" in drawn and json.dumps(without)


def test_the_page_shows_what_the_detector_misses_on_pairs_of_others(config, tmp_path):
  suite = hallucination.open_suite(config)
  part = suite.together(tmp_path, {}, {suite.tasks[0].name: {"sft": []}})
  drawn = hallucination.draw(part, {"sft": Look("sft")})
  recall = part["detector_elsewhere"]["recall"]
  assert round(recall["value"], 3) == 0.041 and recall["n"] == 246
  for number in ("4.1", "246", "83.3", "77.5", "89.9"):
    assert number in drawn
  # Of another judge these numbers say nothing.
  other = hallucination.together(
    lambda pairs: [[True] for _ in pairs], [], "shipped", tmp_path, {}, {"x": {"sft": []}}
  )
  assert "detector_elsewhere" not in other and "others labelled" not in "".join(other["notes"])


def test_a_classifier_of_pairs_reads_long_sources_in_pieces():
  pair = "classifier:some/nli#entailment,as=probability,input=pair"
  assert hallucination.in_pieces(pair) == f"{pair},long=pieces"
  for source in (f"{pair},long=cut", "classifier:a/b#0", "python:a.py:f", f"{pair} + {pair}"):
    assert hallucination.in_pieces(source) == source


def test_a_judge_that_flags_nothing_has_no_precision(labelled):
  quiet = lambda pairs: [[False] for _ in pairs]
  rates = hallucination.measure(quiet, labelled)
  assert (
    rates["precision"] == {"value": None, "low": None, "high": None, "n": 0, "clusters": 0}
    and rates["recall"]["value"] == 0
  )
  json.dumps(rates, allow_nan=False)
  assert "nan" not in hallucination.draw({"judge": rates, "paper_fig4": {}, "notes": []}, {})


def test_nothing_to_run_is_an_error(config):
  config = settings.replaced(config, {"hallucination.own": ""})
  with pytest.raises(UserError, match="the suite hallucination has no data"):
    hallucination.open_suite(config)


def test_a_ratio_without_a_count_is_nan():
  assert np.isnan(hallucination.ratio(np.array([0.0, 0.0]))) and hallucination.ratio(
    np.array([[1.0, 4.0]])
  ).tolist() == [0.25]
