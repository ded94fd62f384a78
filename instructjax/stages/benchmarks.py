"""`instructjax sample --format=alpaca_eval`, `arena_hard` or `mt_bench`: answers for their judges.

The questions are read from the file that the benchmark's authors distribute (config.data.prompts),
and the answers are written as their own programs read them, so that their judges can judge a model
of ours:

  alpaca_eval   alpaca_eval/NAME.json, a JSON list of instruction, output, generator and whatever
                else the question has (dataset), for `alpaca_eval --model_outputs`
  arena_hard    arena_hard/model_answer/NAME.jsonl, a line of uid, ans_id, model, messages, tstamp
                and metadata a question, as Arena-Hard-Auto has them since its version 2
  mt_bench      mt_bench/model_answer/NAME.jsonl, a line of question_id, answer_id, model_id,
                choices and tstamp a question, as FastChat's llm_judge has them

A question of several turns is asked turn by turn: the second turn follows the model's own first
answer. MT-bench has a temperature for each of its categories (`TEMPERATURES`), everything else is
sampled at config.sampling.temperature. turns.jsonl keeps what was answered, and a stopped run goes
on with the turn that was not finished.
"""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from instructjax import rewards
from instructjax.data.records import places, records, sources, validation
from instructjax.data.records.places import Row
from instructjax.data.records.records import Prompt
from instructjax.data.records.validation import chat, transcript
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.errors import UserError
from instructjax.runs import provenance, writers
from instructjax.settings.sampling import SampleSettings
from instructjax.stages import running, sample
from instructjax.stages.drawing import draw_responses
from instructjax.stages.sample import Model
from instructjax.stages.wiring import require_multiple
from instructjax.system import jsons, keys
from instructjax.system.places import AnyPath

TURNS = "turns.jsonl"
# The temperatures of MT-bench's categories (Zheng et al. 2023, in FastChat).
TEMPERATURES = {
  "writing": 0.7,
  "roleplay": 0.7,
  "extraction": 0.0,
  "math": 0.0,
  "coding": 0.0,
  "reasoning": 0.0,
  "stem": 0.1,
  "humanities": 0.1,
}
# Where each benchmark has its question, and the name of the question.
FIELDS = {
  "alpaca_eval": ("instruction", ""),
  "arena_hard": ("prompt", "uid"),
  "mt_bench": ("turns", "question_id"),
}
CODE = re.compile("```[^`]*```")


class Question(NamedTuple):
  """A question: its turns, the row of the file, and the temperature of its answers."""

  turns: tuple[str, ...]
  row: Mapping[str, Any]
  temperature: float


# By the number of the question, the answers to its turns so far.
Answers = dict[int, list[str]]


def run(settings: SampleSettings, workdir: AnyPath, sinks: tuple[str, ...] = ()) -> None:
  """Answers every question with every model and writes the files of the benchmark.

  Raises UserError for a question file of another layout, and for what else is wrong.
  """
  with running.devices(settings.mesh) as shards, writers.holding(workdir):
    require_multiple(settings.batch * settings.n, shards, "config.batch x config.n", "devices")
    questions = read_questions(settings)
    models = sample.named_models(settings.model.source, settings.model.shape)
    texts = ["\n".join(question.turns) for question in questions]
    prints = running.fingerprints(prompts=[Prompt(text) for text in texts])
    running.check_same_run(settings, workdir, prints)
    with running.open_run(settings, workdir, sinks, prints):
      stored = writers.rows(workdir / TURNS)
      for model in models:
        answers, tokenizer = answer(settings, workdir, questions, model, stored)
        path = write(settings.format, workdir, questions, model.name, answers, tokenizer)
        running.show(f"{path}: {len(questions)} answers of {model.name}")


# --- the questions ---


def read_questions(settings: SampleSettings) -> list[Question]:
  """Returns the questions of config.data.prompts, the first config.prompts of them.

  Raises UserError where a row is not of the benchmark's layout.
  """
  source, format_ = settings.data.prompts, settings.format
  temperature = settings.sampling.temperature[0]
  questions, problems = [], []
  for place, row in rows_of(source):
    try:
      fields = validation.json_object(row)
      questions.append(question_of(format_, fields, temperature))
    except ValueError as problem:
      problems.append(places.problem(place, str(problem)))
  records.report(problems)
  if not questions:
    raise UserError(f"config.data.prompts={source}: holds no questions")
  return questions[: settings.prompts or None]


def rows_of(source: str) -> Iterator[Row]:
  """Yields the rows of a question file with their places.

  Raises UserError where it cannot be read.
  """
  for part in sources.parts(source):
    yield from part.rows()


def question_of(format_: str, row: Mapping[str, Any], temperature: float) -> Question:
  """Returns the question of a row.  Raises ValueError where it is of another layout."""
  field, name = FIELDS[format_]
  value = row.get(field)
  turns = [value] if isinstance(value, str) else value
  is_list = isinstance(turns, list) and len(turns) > 0
  if not is_list or (format_ != "mt_bench" and not isinstance(value, str)):
    raise ValueError(f"{field}: a question of {format_} is expected; give its own question file")
  if not all(isinstance(turn, str) and turn.strip() for turn in turns):
    raise ValueError(f"{field}: a turn is no text")
  if name and not isinstance(row.get(name), str | int):
    raise ValueError(f"{name}: missing; the answers are matched by it")
  if format_ == "mt_bench":
    temperature = TEMPERATURES.get(row.get("category", ""), temperature)
  return Question(tuple(turns), row, temperature)


# --- asking ---


def answer(
  settings: SampleSettings,
  workdir: AnyPath,
  questions: Sequence[Question],
  model: Model,
  stored: Sequence[Mapping[str, Any]],
) -> tuple[Answers, Tokenizer]:
  """Returns a model's answers to all turns of all questions, and its tokenizer."""
  policy = running.open_policy(model.source, settings.model, settings.seed)
  about = provenance.about(model.source, policy)
  if any(row["model"] == model.name for row in stored):
    provenance.compare(workdir, model.name, about)
  writers.note(workdir, models=provenance.noted(workdir) | {model.name: about})
  policy, template = running.with_template(settings.data.template, policy)
  answers: Answers = {number: [] for number in range(len(questions))}
  for turn in range(max(len(question.turns) for question in questions)):
    for temperature in sorted({question.temperature for question in questions}):
      numbers = [
        number
        for number, question in enumerate(questions)
        if question.temperature == temperature and len(question.turns) > turn
      ]
      if not numbers:
        continue
      before = {
        row["question"]: row["response"]
        for row in stored
        if row["model"] == model.name and row["turn"] == turn and row["question"] in numbers
      }
      if len(before) == len(numbers):
        for number in numbers:
          answers[number].append(before[number])
        continue
      prompts = [prompt_of(questions[number], answers[number]) for number in numbers]
      cell = zlib.crc32(f"{model.name} {turn} {temperature:g}".encode())
      responses = draw_responses(
        settings,
        policy,
        template,
        prompts,
        {},
        temperature=temperature,
        key=keys.run_key(settings.seed, "samples", cell),
        name=f"{settings.format} {model.name} turn {turn + 1}",
      )
      rows = []
      for number, (drawn_rows, _) in zip(numbers, responses, strict=True):
        (text,) = rewards.responses(policy.tokenizer, drawn_rows)
        answers[number].append(text.strip())
        rows.append(
          {"model": model.name, "turn": turn, "question": number, "response": text.strip()}
        )
      writers.append(workdir / TURNS, rows)
  return answers, policy.tokenizer


def prompt_of(question: Question, answers: Sequence[str]) -> Prompt:
  """Returns the prompt of the next turn: the turns so far with the model's own answers.

  A first turn is a plain prompt; later ones are chats, and transcripts where there is no template.
  """
  if not answers:
    return Prompt(question.turns[0])
  messages: list[dict[str, str]] = []
  for turn, text in zip(question.turns, answers, strict=False):
    messages.append({"role": "user", "content": turn})
    # An answer may be empty, and a message may not.
    messages.append({"role": "assistant", "content": text or "..."})
  messages.append({"role": "user", "content": question.turns[len(answers)]})
  turns = chat("turns", messages)
  return Prompt(transcript(turns), turns=turns)


# --- the files ---


def write(
  format_: str,
  workdir: AnyPath,
  questions: Sequence[Question],
  name: str,
  answers: Answers,
  tokenizer: Tokenizer,
) -> AnyPath:
  """Writes the answers of a model as the benchmark's program reads them, and returns the path."""
  folder = workdir / format_
  now = time.time()
  rows: list[dict[str, Any]] = []
  for number, question in enumerate(questions):
    texts = answers[number]
    about = (name, number, texts)
    if format_ == "alpaca_eval":
      # Some question files hold the reference's output and generator, which are replaced.
      rows.append({**question.row, "output": texts[0], "generator": name})
    elif format_ == "arena_hard":
      rows.append(
        {
          "uid": question.row["uid"],
          "ans_id": answer_id(about),
          "model": name,
          "messages": [
            {"role": "user", "content": question.turns[0]},
            {"role": "assistant", "content": {"answer": texts[0]}},
          ],
          "tstamp": now,
          "metadata": style(texts[0], len(tokenizer.encode(texts[0]))),
        }
      )
    else:
      rows.append(
        {
          "question_id": question.row["question_id"],
          "answer_id": answer_id(about),
          "model_id": name,
          "choices": [{"index": 0, "turns": texts}],
          "tstamp": now,
        }
      )
  if format_ == "alpaca_eval":
    path = folder / f"{name}.json"
    text = jsons.text(rows, indent=1) + "\n"
  else:
    path = folder / "model_answer" / f"{name}.jsonl"
    text = jsons.lines(rows)
  path.parent.mkdir(parents=True, exist_ok=True)
  writers.replace(path, text)
  return path


def answer_id(about: tuple[str, int, list[str]]) -> str:
  """Returns the name of an answer, which is the same for the same answer."""
  return records.fingerprint([Prompt(jsons.text(list(about)))])[:22]


def style(text: str, tokens: int) -> dict[str, Any]:
  """Returns Arena-Hard's counts of tokens and of marks outside of code, for its style control.

  The tokens are those of the model's own tokenizer. The counts of marks are the benchmark's:
  headers by level, items of lists, and bold phrases.
  """
  plain = CODE.sub("", text)
  headers = {
    f"h{level}": len(re.findall(rf"^#{{{level}}}\s", plain, re.MULTILINE)) for level in range(1, 7)
  }
  return {
    "token_len": tokens,
    "header_count": headers,
    "list_count": {
      "ordered": len(re.findall(r"^\s*\d+\.\s", plain, re.MULTILINE)),
      "unordered": len(re.findall(r"^\s*[-*+]\s", plain, re.MULTILINE)),
    },
    "bold_count": {
      "**": len(re.findall(r"\*\*[^*\n]+\*\*", plain)),
      "__": len(re.findall(r"__[^_\n]+__", plain)),
    },
  }
