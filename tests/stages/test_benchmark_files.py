"""Answers to the questions of AlpacaEval, Arena-Hard and MT-bench, as their programs read them.

The question files here have the layout of the published ones and were written for this test.
"""

import json

import pytest
from stage_runs import run

from instructjax.data.tokens import tokenizers
from instructjax.stages import benchmarks
from instructjax.stages.benchmarks import Question

BYTES = tokenizers.of_bytes()
SMALL = [
  "--config.data.prompt=120",
  "--config.sampling.response=4",
  "--config.batch=2",
  "--config.model.tokenizer=bytes",
]


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def test_alpaca_eval(tmp_path, base):
  """A JSON list, in the order of the questions, with their fields and our generator."""
  questions = [
    {
      "instruction": f"say {n}",
      "dataset": "helpful_base",
      "output": "the reference",
      "generator": "reference",
    }
    for n in range(10)
  ]
  file = tmp_path / "alpaca_eval.json"
  file.write_text(json.dumps(questions))
  command = ["sample", tmp_path / "run", "--format=alpaca_eval", f"--config.data.prompts={file}"]
  assert run(*command, f"--model=mine={base}", *SMALL) == 0
  rows = json.loads((tmp_path / "run" / "alpaca_eval" / "mine.json").read_text())
  # All ten, although the preset of `sample` takes eight prompts.
  assert [row["instruction"] for row in rows] == [f"say {n}" for n in range(10)]
  assert {row["generator"] for row in rows} == {"mine"}
  assert {row["dataset"] for row in rows} == {"helpful_base"}
  assert all(isinstance(row["output"], str) and row["output"] != "the reference" for row in rows)
  # A second command asks nothing anew.
  turns = (tmp_path / "run" / "turns.jsonl").read_text()
  assert run(*command, f"--model=mine={base}", *SMALL) == 0
  assert (tmp_path / "run" / "turns.jsonl").read_text() == turns
  assert json.loads((tmp_path / "run" / "alpaca_eval" / "mine.json").read_text()) == rows


def test_mt_bench_asks_the_second_turn_after_its_own_first_answer(tmp_path, base, monkeypatch):
  file = write(
    tmp_path / "question.jsonl",
    [
      {"question_id": 81, "category": "writing", "turns": ["first a", "then a"]},
      {"question_id": 101, "category": "math", "turns": ["first b", "then b"]},
      {"question_id": 7, "category": "mine", "turns": ["only c"]},
    ],
  )
  asked = []
  real = benchmarks.draw_responses

  def draw(settings, policy, template, prompts, *more, temperature, **options):
    asked.append((temperature, [prompt.prompt for prompt in prompts]))
    return real(settings, policy, template, prompts, *more, temperature=temperature, **options)

  monkeypatch.setattr(benchmarks, "draw_responses", draw)
  command = ["sample", tmp_path / "run", "--format=mt_bench", f"--config.data.prompts={file}"]
  options = [f"--model=mine={base}", "--config.sampling.temperature=0.3", *SMALL]
  assert run(*command, *options) == 0
  path = tmp_path / "run" / "mt_bench" / "model_answer" / "mine.jsonl"
  rows = lines(path)
  assert [row["question_id"] for row in rows] == [81, 101, 7]
  assert {row["model_id"] for row in rows} == {"mine"}
  assert len({row["answer_id"] for row in rows}) == 3
  assert all(isinstance(row["tstamp"], float) for row in rows)
  choices = [row["choices"] for row in rows]
  assert [[choice["index"] for choice in each] for each in choices] == [[0]] * 3
  turns = [each[0]["turns"] for each in choices]
  assert [len(each) for each in turns] == [2, 2, 1]
  # math is greedy, writing has .7, and a category that FastChat does not name has ours.
  second = lambda first, answer, then: (
    f"\n\nHuman: {first}\n\nAssistant: {answer or '...'}\n\nHuman: {then}\n\nAssistant:"
  )
  assert asked == [
    (0.0, ["first b"]),
    (0.3, ["only c"]),
    (0.7, ["first a"]),
    (0.0, [second("first b", turns[1][0], "then b")]),
    (0.7, [second("first a", turns[0][0], "then a")]),
  ]

  # Where the second turns were not finished, the first ones are not asked again.
  stored = lines(tmp_path / "run" / "turns.jsonl")
  write(tmp_path / "run" / "turns.jsonl", [row for row in stored if row["turn"] == 0])
  del asked[:]
  assert run(*command, *options) == 0
  assert [temperature for temperature, _ in asked] == [0.0, 0.7]
  assert [row["choices"] for row in lines(path)] == choices


def test_arena_hard(tmp_path):
  """The messages end with the answer as an object; marks within code are not counted."""
  row = {"uid": "u1", "category": "hard_prompt", "subcategory": "code", "prompt": "Q?"}
  question = benchmarks.question_of("arena_hard", row, 0.5)
  assert question == Question(("Q?",), row, 0.5)
  text = "# Head\n- one\n* two\n1. three\n**bold** and __bold__\n```\n# no\n- no\n```"
  path = benchmarks.write("arena_hard", tmp_path, [question], "mine", {0: [text]}, BYTES)
  assert path == tmp_path / "arena_hard" / "model_answer" / "mine.jsonl"
  (line,) = lines(path)
  assert line["uid"] == "u1" and line["model"] == "mine" and line["ans_id"]
  assert line["messages"] == [
    {"role": "user", "content": "Q?"},
    {"role": "assistant", "content": {"answer": text}},
  ]
  assert line["metadata"] == {
    "token_len": len(text),
    "header_count": {"h1": 1, "h2": 0, "h3": 0, "h4": 0, "h5": 0, "h6": 0},
    "list_count": {"ordered": 1, "unordered": 2},
    "bold_count": {"**": 1, "__": 1},
  }


def test_a_later_turn_is_a_chat():
  prompt = benchmarks.prompt_of(Question(("a", "b"), {}, 0.0), ["x"])
  assert [(turn["role"], turn["content"]) for turn in prompt.turns] == [
    ("user", "a"),
    ("assistant", "x"),
    ("user", "b"),
  ]
  assert benchmarks.prompt_of(Question(("a", "b"), {}, 0.0), []).turns is None


@pytest.mark.parametrize(
  ("format_", "row", "message"),
  [
    ("alpaca_eval", {"prompt": "p"}, "instruction: a question of alpaca_eval"),
    ("arena_hard", {"prompt": "p"}, "uid: missing"),
    ("arena_hard", {"prompt": ["p"], "uid": "u"}, "prompt: a question of arena_hard"),
    ("mt_bench", {"turns": ["p"]}, "question_id: missing"),
    ("mt_bench", {"turns": ["p", ""], "question_id": 1}, "turns: a turn is no text"),
    ("mt_bench", {"turns": [], "question_id": 1}, "turns: a question"),
  ],
)
def test_another_layout_is_an_error(tmp_path, format_, row, message):
  with pytest.raises(ValueError, match=message):
    benchmarks.question_of(format_, row, 1.0)


def test_a_benchmark_has_one_answer_to_a_question(tmp_path, base, capsys):
  file = write(tmp_path / "q.jsonl", [{"prompt": "p", "uid": "u"}])
  command = ["sample", tmp_path / "run", "--format=arena_hard", f"--config.data.prompts={file}"]
  assert run(*command, f"--model={base}", *SMALL, "--config.n=2") == 2
  assert "one answer to each question" in capsys.readouterr().err
