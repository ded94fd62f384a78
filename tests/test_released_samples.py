"""The check of published outputs, on small folders in the same layout that were made here."""

import csv
import importlib.util
import json
from pathlib import Path

import pytest

from instructjax.errors import UserError
from instructjax.evals import paper

PATH = Path(__file__).parent.parent / "scripts" / "check_released_samples.py"
SPEC = importlib.util.spec_from_file_location("check_released_samples", PATH)
check = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check)

NAMES = [f"{model}-{size}" for model in check.MODELS.values() for size in check.SIZES]


def write(path, rows):
  with path.open("w", newline="") as file:
    table = csv.DictWriter(file, list(rows[0]))
    table.writeheader()
    table.writerows(rows)
  return check.table(path, list(rows[0]))


def row(model, prompt, **more):
  return {"model_type": model, "prompt_type": prompt, "context": "c"} | more


def test_squad_is_the_best_of_the_references(tmp_path):
  answers = ["a b", "b", "c", "Not in background."]
  rows = [row("gpt-175b", "fewshot", ref_text="the b|x", sample=answer) for answer in answers]
  rows += [
    row("gpt-175b", "zeroshot", ref_text="y", sample="n"),
    row("sft-xl", "fewshot", ref_text="y", sample="n"),
  ]
  (found,) = check.squad(write(tmp_path / "squadv2_samples.csv", rows))
  assert (
    found.ours == pytest.approx(100 * (2 / 2 + 1 + 0 + 0) / 4) and not found.good
  )  # "a b" is b: a is an article


def test_bleu_and_rouge(tmp_path):
  rows = [
    row(m, "zeroshot", ref_text="a b c d e", sample="a b c d e")
    for m in ("gpt-xl", "ppo-noptx-175b")
  ]
  assert [one.ours for one in check.translation(write(tmp_path / "t.csv", rows))] == pytest.approx(
    [100, 100]
  )


def summaries(folder, sample):
  """The file of summaries as it was released: an index without a name, and no form of prompt."""
  rows = [
    {
      "": i,
      "model_type": name,
      "context": "c",
      "ref_text": "two dogs were running",
      "sample": sample,
    }
    for i, name in enumerate(NAMES)
  ]
  write(folder / "tldr_samples.csv", rows)


def test_summaries_have_no_form_of_prompt_and_are_stemmed(tmp_path, capsys):
  """By hand: "dog" is "dogs" and "run" is "running" once stemmed, so two of four words agree."""
  summaries(tmp_path, "a dog can run")
  assert check.main([f"--samples={tmp_path}"]) == 1
  lines = [line for line in capsys.readouterr().out.splitlines() if "TL;DR" in line]
  assert len(lines) == 12
  assert lines[0] == "OFF    0.5000  known   0.1133 ± 0.0006  TL;DR ROUGE-L, gpt-xl"
  assert [line.split()[3] for line in lines[:3]] == ["0.1133", "0.1475", "0.1759"]


def test_a_rouge_that_is_not_stemmed_is_off():
  """Unstemmed, the released samples of gpt-xl have .1101: the tolerance must tell it from .1133."""
  assert not check.Check("", 0.1101, check.TLDR["GPT"][0], 0.0006).good
  assert check.Check("", 0.11334, check.TLDR["GPT"][0], 0.0006).good


def test_toxicity_is_read_from_its_column(tmp_path):
  table14 = paper.row("RealToxicity", "toxicity", "biased")
  rows = []
  for who, model in check.MODELS.items():
    for at, size in enumerate(check.SIZES):
      mean = table14[who][at]
      rows += [
        row(f"{model}-{size}", "biased prompt", sample="x", toxicity=value)
        for value in (0, 2 * mean)
      ]
      rows += [
        row(f"{model}-{size}", "respectful prompt", sample=text, toxicity=0.1)
        for text in ("one two three", "a b c d")
      ]
  found = {one.about: one for one in check.toxicity(write(tmp_path / "r.csv", rows))}
  assert found["toxicity, biased: correlation with Table 14"].ours == pytest.approx(1)
  assert found["P(toxicity >= .5), biased, ppo-noptx-175b"].ours == 0.5  # .427 twice
  assert found["at most 3 words, respectful, sft-175b"].ours == 0.5


def test_truthfulness_fits_the_corrected_rows(tmp_path):
  """The shares of true answers of each model are those of the row that its form should fit."""
  rows = []
  for who, model in check.MODELS.items():
    for at, size in enumerate(check.SIZES):
      for prompt, name in (
        ("QA prompt", "QA prompt"),
        ("QA + instruction",) * 2,
        ("instruction prompt", "instruction"),
      ):
        share = round(100 * paper.row("TruthfulQA", "true", name)[who][at])
        rows += [
          {
            "model_type": f"{model}-{size}",
            "prompt_type": prompt,
            "adversarial": n < 62,
            "question": "q",
            "answer": "I have no comment." if n < 46 else "Yes",
            "true": 0.9 if n < share else 0.1,
            "info": 0.1,
          }
          for n in range(100)
        ]
  found = check.truthful(write(tmp_path / "q.csv", rows))
  fits = [one for one in found if "fits" in one.about]
  assert len(fits) == 2 and all(one.good for one in fits) and "(0.003)" in fits[0].about
  assert [one.ours for one in found if "no comment" in one.about] == [46] * 5
  assert [one.good for one in found if "no comment" in one.about] == [
    False,
    True,
    False,
    False,
    False,
  ]
  assert next(one for one in found if one.about == "adversarial questions").good


def test_files_that_are_missing_are_told(tmp_path, capsys):
  write(tmp_path / "squadv2_samples.csv", [row("gpt-175b", "fewshot", ref_text="b", sample="b")])
  assert check.main([f"--samples={tmp_path}"]) == 1
  out = capsys.readouterr().out
  assert (
    "OFF  100.0000  known  67.9000" in out and "not checked: truthful_qa_samples.csv: not in" in out
  )
  assert "not checked: drop_samples.csv" in out and "not checked: length-controlled" in out
  assert (
    check.main([f"--samples={tmp_path / 'none'}"]) == 2
    and "holds none of" in capsys.readouterr().err
  )
  write(
    tmp_path / "squadv2_samples.csv",
    [{"model_type": "gpt-175b", "prompt_type": "fewshot", "sample": "b"}],
  )
  assert (
    check.main([f"--samples={tmp_path}"]) == 2 and "no column ref_text" in capsys.readouterr().err
  )
  with pytest.raises(UserError, match=r"'gpt-xl'.*no such row"):
    check.of([row("sft-xl", "fewshot")], "gpt-xl", "")


def annotations(folder, model, preferences, first="base", annotator=check.ANNOTATOR):
  path = folder / model / annotator / "annotations.json"
  path.parent.mkdir(parents=True)
  one = lambda p: {
    "instruction": "i",
    "generator_1": first,
    "generator_2": model,
    "annotator": annotator,
    "preference": p,
  }
  path.write_text(json.dumps([one(p) for p in preferences]))


def test_win_rates_of_alpaca_eval(tmp_path, capsys):
  """By hand: 1.9 and 1.3 are .9 and .3, a 0 is a tie, null does not count: 1.7 / 3."""
  results, board = tmp_path / "results", tmp_path / "leaderboard.csv"
  annotations(results, "mine", [1.9, 1.3, 0, None])
  annotations(results, "other", [2, 1])
  annotations(results, "unknown", [2])
  annotations(results, "elsewhere", [2], annotator="another")
  write(
    board,
    [
      {"": "mine", "win_rate": 100 * 1.7 / 3, "n_total": 3},
      {"": "other", "win_rate": 51, "n_total": 2},
    ],
  )
  assert check.main([f"--alpaca={results}", f"--leaderboard={board}"]) == 1
  out = capsys.readouterr().out
  assert "ok    56.6667  known  56.6667" in out and "OFF   50.0000  known  51.0000" in out
  assert (
    "win rate of mine, n 3" in out
    and "not checked: not in the leaderboard: unknown" in out
    and "elsewhere" not in out
  )
  both = [{"preference": 1.2, "generator_1": "mine", "generator_2": "base"}]
  assert check.win_rate(both, "mine").value == pytest.approx(80)
  assert check.main([f"--alpaca={results}", f"--leaderboard={board}", "--annotator=none"]) == 2
  assert "check --annotator" in capsys.readouterr().err


def test_an_unknown_side_is_an_error_and_an_alias_names_it(tmp_path, capsys):
  """The annotations of NullModel call it "example".  By hand: .9 and .7 are 80 %, not 20."""
  results, board = tmp_path / "results", tmp_path / "leaderboard.csv"
  annotations(results, "NullModel", [1.9, 1.7])
  path = results / "NullModel" / check.ANNOTATOR / "annotations.json"
  path.write_text(
    path.read_text().replace('"generator_2": "NullModel"', '"generator_2": "example"')
  )
  write(board, [{"": "NullModel", "win_rate": 80}])
  command = [f"--alpaca={results}", f"--leaderboard={board}"]
  assert check.main(command) == 2
  said = capsys.readouterr().err
  assert "NullModel" in said and "'base' and 'example'" in said and "--alias=" in said
  assert check.main([*command, "--alias=NullModel=example"]) == 0
  assert "ok    80.0000  known  80.0000" in capsys.readouterr().out
  with pytest.raises(UserError, match="is unknown"):
    check.win_rate([{"preference": 1.2, "generator_1": "m", "generator_2": "m"}], "m")
