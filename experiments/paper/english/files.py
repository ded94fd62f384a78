"""Everything of the world that commands read, as files: records, the tokenizer, random models.

  corpus.jsonl, corpus_valid.jsonl      text
  demonstrations.jsonl, ..._valid       demonstrations with slips
  mixture_flan.jsonl, mixture_t0.jsonl  demonstrations of public tasks, as many
  reward_prompts.jsonl                  prompts whose samples are ranked
  prompts.jsonl, prompts_valid.jsonl    prompts of PPO, and for choosing checkpoints
  test.jsonl                            plain prompts, held-out wordings and the held-out family
  test_oro.jsonl                        prompts in Oro
  closed.jsonl                          closed tasks with their choices
  prefix0.txt ...                       candidates for the prompted base model
  tokenizer.json

Prompts carry their task in a field of that name, which gold and the labelers read.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from english import corpus, drafts, facts, mixtures, oro, tasks
from english.tasks import Task
from instructjax.models import gpt
from instructjax.models.hf import writing

END, UNKNOWN = "<|endoftext|>", "<unk>"
# The share of instructions in Oro: the paper's data were 4 % in other languages.
FOREIGN = 0.04
PREFIXES, SHOTS, LONGEST_SHOT = 4, 4, 30
CONTEXT = 256


class Sizes(NamedTuple):
  """How many records of each kind to write."""

  documents: int = 400_000
  documents_valid: int = 1_000
  demonstrations: int = 2_000
  demonstrations_valid: int = 200
  reward_prompts: int = 3_000
  prompts: int = 10_240
  prompts_valid: int = 128
  test: int = 384
  held_out: int = 64  # test prompts in held-out wordings, and as many of the held-out family
  test_oro: int = 128
  closed: int = 400


SIZES = Sizes()


class Shape(NamedTuple):
  """The size of a model."""

  width: int
  depth: int
  heads: int


# L has more than 20 times the parameters of S.
SHAPES = {"S": Shape(64, 4, 2), "M": Shape(160, 4, 5), "L": Shape(288, 6, 6)}


# --- records ---


def write(folder: Path, seed: int, sizes: Sizes = SIZES) -> None:
  """Writes all files of a seed but the corpus and the models, which all seeds share."""
  folder.mkdir(parents=True, exist_ok=True)
  rng = random.Random(f"test {seed}")
  test = different(sizes.test, lambda: tasks.tested(rng))
  test += different(sizes.held_out, lambda: tasks.some_task(rng, "wording"))
  test += different(sizes.held_out, lambda: tasks.some_task(rng, "family"))
  write_rows(folder / "test.jsonl", prompt_rows(test))
  foreign = different(sizes.test_oro, lambda: tasks.tested(rng))
  foreign = [tasks.in_oro(task) for task in foreign if in_both(task)]
  write_rows(folder / "test_oro.jsonl", prompt_rows(foreign))

  for name in ("prompts_valid", "reward_prompts", "prompts"):
    some = training_tasks(f"{name} {seed}", getattr(sizes, name))
    write_rows(folder / f"{name}.jsonl", prompt_rows(some))
  for name in ("demonstrations_valid", "demonstrations"):
    rng = random.Random(f"slips {name} {seed}")
    some = training_tasks(f"{name} {seed}", getattr(sizes, name))
    write_rows(folder / f"{name}.jsonl", [demonstration_row(rng, task) for task in some])
  for style in ("flan", "t0"):
    rng = random.Random(f"{style} {seed}")
    examples = [mixtures.some_example(rng, style) for _ in range(sizes.demonstrations)]
    rows = [{"prompt": one.prompt, "completion": one.answer, "source": style} for one in examples]
    write_rows(folder / f"mixture_{style}.jsonl", rows)
  write_rows(folder / "closed.jsonl", closed_rows(seed, sizes.closed))
  for number in range(PREFIXES):
    (folder / f"prefix{number}.txt").write_text(prefix(seed, number))
  write_tokenizer(folder / "tokenizer.json")


def write_corpus(folder: Path, sizes: Sizes = SIZES) -> None:
  """Writes the text that all seeds share, and the random models of all sizes."""
  folder.mkdir(parents=True, exist_ok=True)
  for name, count in (("corpus", sizes.documents), ("corpus_valid", sizes.documents_valid)):
    rng = random.Random(name)
    rows = ({"text": corpus.document(rng)} for _ in range(count))
    write_rows(folder / f"{name}.jsonl", rows)
  for name in SHAPES:
    write_model(folder / name, name)


def different(count: int, draw: Callable[[], Task]) -> list[Task]:
  """Returns tasks of which no two have the same prompt."""
  by_prompt: dict[str, Task] = {}
  while len(by_prompt) < count:
    task = draw()
    by_prompt.setdefault(task.prompt, task)
  return list(by_prompt.values())


def training_tasks(name: str, count: int) -> list[Task]:
  """Returns tasks of training, of which a few are in Oro.

  Where a prompt comes again, it has the same task: `name two colours .` has many good answers.
  """
  rng = random.Random(name)
  by_prompt: dict[str, Task] = {}
  some = []
  for _ in range(count):
    task = tasks.trained(rng)
    if in_both(task) and rng.random() < FOREIGN:
      task = tasks.in_oro(task)
    some.append(by_prompt.setdefault(task.prompt, task))
  return some


def in_both(task: Task) -> bool:
  """Returns whether a task makes sense in Oro too: a translation into Oro does not."""
  return task.kind != "translate"


def prompt_rows(some: list[Task]) -> list[dict[str, Any]]:
  """Returns the records of prompts, each with an id."""
  return [{"id": str(number), **prompt_row(task)} for number, task in enumerate(some)]


def prompt_row(task: Task) -> dict[str, Any]:
  """Returns the record of a prompt, with its task for gold and labelers."""
  return {
    "prompt": task.prompt,
    "use_case": task.use_case,
    "source": task.held_out or "plain",
    "task": tasks.as_fields(task),
  }


def demonstration_row(rng: random.Random, task: Task) -> dict[str, Any]:
  """Returns the record of a demonstration as a person writes it."""
  english = task.language == "english"
  completion = drafts.demonstration(rng, task) if english else task.answer
  return {"prompt": task.prompt, "completion": completion, "use_case": task.use_case}


def closed_rows(seed: int, count: int) -> list[dict[str, Any]]:
  """Returns closed tasks of the evaluation."""
  rng = random.Random(f"closed {seed}")
  rows: dict[str, dict[str, Any]] = {}
  while len(rows) < count:
    task = corpus.some_closed(rng)
    if tasks.is_test(task.prompt):
      rows[task.prompt + task.answer] = task._asdict()
  return list(rows.values())


def prefix(seed: int, number: int) -> str:
  """Returns the examples that a candidate for the prompted base model begins with."""
  rng = random.Random(f"prefix {number} {seed}")
  shots: list[Task] = []
  while len(shots) < SHOTS:
    task = tasks.trained(rng)
    # All of them and a prompt have to fit the context.
    if len(f"{task.prompt} {task.answer}".split()) <= LONGEST_SHOT:
      shots.append(task)
  return "".join(f"{task.prompt} {task.answer} # " for task in shots)


def write_rows(path: Path, rows: Any) -> None:
  """Writes rows of JSON, one a line."""
  with path.open("w", encoding="utf-8") as file:
    for row in rows:
      file.write(json.dumps(row, ensure_ascii=False) + "\n")


# --- the tokenizer ---


def words() -> list[str]:
  """Returns every word of the world in both languages, in order.

  The words of sentences are read off the functions that make them. Names, objects and numbers are
  all listed, so that rare ones are not missed.
  """
  found = {"#", ",", ".", "?", "!", ":", oro.NAME, *facts.world().kinds, *corpus.DIGITS}
  rng = random.Random("vocabulary")
  makers: tuple[Callable[[], str], ...] = (
    lambda: corpus.document(rng),
    lambda: " ".join(tasks.some_task(rng)[2:4]),
    lambda: " ".join(tasks.some_task(rng, "wording")[2:4]),
    lambda: " ".join(tasks.some_task(rng, "family")[2:4]),
    lambda: " ".join(mixtures.some_example(rng, "t0")[:2]),
    lambda: " ".join(drafts.several(rng, tasks.some_task(rng), 4)),
  )
  for make in makers:
    for _ in range(4_000):
      found.update(make().split())
  # Words of Oro come back in English, and English words go into Oro.
  english = {oro.to_english(word) for word in found}
  english = {word for word in english if not word.startswith("~")}
  english |= {word for word in found if oro.to_english(word).startswith("~")}
  return sorted(english | {oro.word_in_oro(word) for word in english})


def write_tokenizer(path: Path) -> None:
  """Writes the tokenizer of words, as the `tokenizers` package reads it."""
  vocabulary = {word: number for number, word in enumerate([END, UNKNOWN, *words()])}
  special = [
    {
      "id": vocabulary[name],
      "content": name,
      "single_word": False,
      "lstrip": False,
      "rstrip": False,
      "normalized": False,
      "special": True,
    }
    for name in (END, UNKNOWN)
  ]
  content = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": special,
    "normalizer": None,
    "pre_tokenizer": {"type": "WhitespaceSplit"},
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": UNKNOWN},
  }
  path.write_text(json.dumps(content, ensure_ascii=False, indent=0))


# --- models ---


def config_of(name: str, vocab_size: int) -> gpt.GPTConfig:
  """Returns the sizes of a model; the vocabulary is rounded up to a multiple of 64."""
  shape = SHAPES[name]
  return gpt.GPTConfig(
    vocab_size=-(-vocab_size // 64) * 64,
    context=CONTEXT,
    width=shape.width,
    depth=shape.depth,
    heads=shape.heads,
  )


def write_model(folder: Path, name: str) -> None:
  """Writes a model of random weights with the tokenizer, as a folder that `--model` reads."""
  folder.mkdir(parents=True, exist_ok=True)
  write_tokenizer(folder / "tokenizer.json")
  config = config_of(name, len(words()) + 2)
  lm = gpt.gpt(config)
  params = jax.jit(lm.init)(jax.random.key(0))
  writing.save(folder, config, params, extra={"eos_token_id": 0})
