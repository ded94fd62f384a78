"""Stages on files in public layouts, on labels of pairs that are no ranking, and on empty texts."""

import json

import pytest
from stage_runs import TUNE, files, metrics, run

WORDS = ["good", "bad", "fine"]
NOTHING_ELSE = ["--config.data.demonstrations=", "--config.data.valid="]


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def losses_of(stage, workdir, *options):
  assert run(stage, workdir, *options) == 0
  return [row["loss"] for row in metrics(workdir) if "loss" in row]


# --- layouts ---


@pytest.fixture
def transcripts(tmp_path):
  rows = [
    {
      "chosen": f"\n\nHuman: say {i}\n\nAssistant: good",
      "rejected": f"\n\nHuman: say {i}\n\nAssistant: bad",
      "margin": i,
    }
    for i in range(8)
  ]
  return write(tmp_path / "hh.jsonl", rows)


LONG = ["--config.data.prompt=48", "--config.data.response=12", *TUNE[2:]]


def test_transcripts_beside_our_own_demonstrations(data, base, tmp_path, capsys, transcripts):
  common = [f"--config.data.comparisons={transcripts}", f"--model={base}", *LONG]
  common += [*files(data, "demonstrations"), "--config.data.valid="]
  by_itself = losses_of("reward", tmp_path / "a", *common)
  err = capsys.readouterr().err
  assert f"{transcripts}: read as config.data.spelling=hh (fields chosen, rejected)" in err
  assert f"{transcripts}: left out: margin (7 of 8 rows)" not in err
  assert f"{transcripts}: left out: margin (8 of 8 rows)" in err
  assert "demonstrations.jsonl: read as" not in err
  spelling = "--config.data.spelling=comparisons=hh,demonstrations=native"
  assert losses_of("reward", tmp_path / "b", *common, spelling) == by_itself
  assert "read as" not in capsys.readouterr().err
  assert run("reward", tmp_path / "c", *common, "--config.data.spelling=tasks=hh") == 2
  assert "config.data has no field 'tasks'" in capsys.readouterr().err


def test_a_file_of_another_layout_has_one_sentence(base, tmp_path, capsys):
  questions = write(tmp_path / "q.jsonl", [{"question": "q", "answer": "a"}] * 5)
  options = [f"--config.data.demonstrations={questions}", f"--model={base}", *TUNE]
  assert run("sft", tmp_path / "run", *options) == 2
  err = capsys.readouterr().err
  assert err.count("read it with") == 1
  fields = "--config.data.fields=prompt=question,completion=answer"
  assert fields.removeprefix("--") in err
  assert run("sft", tmp_path / "run", *options, fields) == 0


# --- labels of pairs ---


def pairs_of(ranks):
  """The pairs that ranks order, ties included, in the order of the completions."""
  pairs = []
  for i in range(len(ranks)):
    for j in range(i + 1, len(ranks)):
      if ranks[i] == ranks[j]:
        pairs.append([i, j, 0])
      else:
        pairs.append([i, j] if ranks[i] < ranks[j] else [j, i])
  return pairs


RANKS = [[1, 2, 2], [2, 1, 3], [3, 1, 1], [1, 2, 3]]


@pytest.mark.parametrize("stage", ["reward", "dpo"])
@pytest.mark.parametrize("pairs", ["remaining", "all"])
def test_pairs_of_a_ranking_train_as_the_ranking_does(base, tmp_path, stage, pairs):
  rows = [
    {"prompt": f"say {i}", "completions": WORDS, "ranks": ranks} for i, ranks in enumerate(RANKS)
  ]
  # Only every other record has pairs: a batch may hold both.
  mixed = [dict(row) for row in rows]
  for row in mixed[::2]:
    row["pairs"] = pairs_of(row.pop("ranks"))
  common = [f"--model={base}", *TUNE, "--config.epochs=3", f"--config.pairs={pairs}"]
  if stage == "reward":
    common.append("--config.data.demonstrations=")
  measured = []
  for name, part in (("ranks", rows), ("pairs", mixed)):
    file = write(tmp_path / f"{name}.jsonl", part)
    options = [f"--config.data.comparisons={file}", f"--config.data.valid={file}", *common]
    losses = losses_of(stage, tmp_path / name, *options)
    accuracies = [
      row["eval/accuracy"] for row in metrics(tmp_path / name) if "eval/accuracy" in row
    ]
    assert accuracies
    measured.append((losses, accuracies))
  assert measured[0][0] == pytest.approx(measured[1][0], rel=1e-6)
  assert measured[0][1] == measured[1][1]


def test_labels_in_a_circle_train_and_need_no_ranks(base, tmp_path, capsys):
  rows = [
    {"prompt": f"say {i}", "completions": WORDS, "pairs": [[0, 1], [1, 2], [2, 0]]}
    for i in range(4)
  ]
  file = write(tmp_path / "circles.jsonl", rows)
  common = [f"--config.data.comparisons={file}", *NOTHING_ELSE, f"--model={base}", *TUNE]
  # Whatever the scores are, they cannot order a circle: the loss is log 2 at best.
  assert losses_of("reward", tmp_path / "run", *common)[0] > 0.69
  for option, name in (
    (["--config.loss=best_of_k"], "config.loss=best_of_k"),
    (["--config.margin=1", "--config.margin_by=rank"], "config.margin_by=rank"),
  ):
    assert run("reward", tmp_path / "none", *common, *option) == 2
    assert (
      f"circles.jsonl: 4 of 4 comparisons have pairs in place of ranks, and {name} needs ranks"
      in capsys.readouterr().err
    )


# --- empty texts ---


@pytest.mark.parametrize("stage", ["reward", "dpo"])
def test_a_model_may_say_nothing(base, tmp_path, capsys, stage):
  rows = [{"prompt": f"say {i}", "chosen": "good", "rejected": ""} for i in range(4)]
  file = write(tmp_path / "c.jsonl", rows)
  common = [f"--config.data.comparisons={file}", f"--model={base}", *TUNE]
  common += NOTHING_ELSE if stage == "reward" else ["--config.data.valid="]
  assert run(stage, tmp_path / "none", *common) == 2
  assert "c.jsonl:1: completions[1]: empty" in capsys.readouterr().err
  assert run(stage, tmp_path / "run", *common, "--config.data.empty_completions=true") == 0
  assert "4 empty" in capsys.readouterr().err
