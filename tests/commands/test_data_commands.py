"""`instructjax data ...`: exit codes, what is written and printed, and never a traceback."""

import contextlib
import gzip
import io
import json
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instructjax.commands import cli
from instructjax.commands import data as data_command
from instructjax.data.curation import hygiene
from instructjax.data.records import records
from instructjax.data.records.records import Comparison, Demonstration, Prompt


@pytest.fixture
def data(capsys):
  """Returns a function that runs `instructjax data`: it gives (exit code, stdout, stderr)."""

  def call(*arguments):
    code = cli.main(["data", *map(str, arguments)])
    return code, *capsys.readouterr()

  return call


def prompts(path, users=40):
  rows = [
    Prompt(
      f"{'Write' if i % 2 else 'Name'} {u} x {i}",
      user=f"u{u}",
      use_case=("Chat", "Extract")[i % 2],
      source="customer",
    )
    for u in range(users)
    for i in range(3)
  ]
  rows += [
    Prompt("mail x@y.org", user="u1", consent=True),
    Prompt("mail z@y.org", user="u1", consent=False),
  ]
  records.write(path, rows)
  return rows


# --- check ---


def test_check_of_several_kinds_of_files(data, tmp_path):
  texts = {
    "a": '{"prompt": "p"}\n',
    "b": '{"prompt": "p", "completion": "c"}\n',
    "t": '{"text": "t"}\n{"text": "u"}\n',
    "c": '{"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2]}\n',
    "f": (
      '{"instruction": "i", "pairs": '
      '[{"input": "x", "output": "y"}, {"input": "z", "output": "y"}]}\n'
    ),
  }
  files = [tmp_path / name for name in texts]
  for file, text in zip(files, texts.values(), strict=True):
    file.write_text(text)
  code, out, err = data("check", *files)
  assert (code, err) == (0, "")
  assert [line.removeprefix(f"{tmp_path}/") for line in out.splitlines()] == [
    "a: 1 prompt, no problem",
    "b: 1 demonstration, no problem",
    "t: 2 texts, no problem",
    "c: 1 comparison, no problem",
    "f: 1 few_shot, no problem",
  ]


def test_check_with_a_tokenizer_says_what_the_stages_would_cut(data, tmp_path):
  rows = {
    "d": [{"prompt": "p", "completion": "abc"}, {"prompt": "ppp", "completion": "a"}],
    "c": [{"prompt": "p", "completions": ["abcd", "abce", "x"], "ranks": [1, 2, 3]}],
    "p": [{"prompt": "p"}],
    "t": [{"text": "abc"}],
    "bad": [{"text": "a"}, {"text": "a<|endoftext|>b"}],
  }
  for name, records_of_file in rows.items():
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in records_of_file))
  tokens = ["--tokenizer=bytes", "--prompt-tokens=2", "--response-tokens=4"]
  code, out, err = data("check", *(tmp_path / name for name in "dcpt"), *tokens)
  assert (code, err) == (0, "")
  assert [line.removeprefix(f"{tmp_path}/") for line in out.splitlines()] == [
    "d: 2 demonstrations, no problem",
    "  1 completions, 1 cut (none ends, so the model never learns to stop: raise "
    "config.data.response); 0 pairs equal, 0 empty; 2 prompts, 1 too long",
    "c: 1 comparison, no problem",
    "  3 completions, 2 cut; 1 pairs equal, 0 empty; 1 prompts, 0 too long",
    "p: 1 prompt, no problem",
    "  1 prompts, 0 too long",
    "t: 1 text, no problem",
  ]
  code, out, err = data("check", tmp_path / "bad", *tokens)
  assert code == 2
  assert f"{tmp_path}/bad:2: text: holds the special tokens '<|endoftext|>'; take" in err


def test_check_names_equal_texts_with_different_ranks(data, tmp_path):
  same = ["same", "other", "same"]
  rows = [
    {"prompt": "p", "completions": same, "ranks": [1, 1, 2]},
    {"prompt": "p", "completions": same, "ranks": [1, 2, 1]},
  ]
  file = tmp_path / "c.jsonl"
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  code, _, err = data("check", file)
  problem = "completions[2]: the same text as completions[0], with another rank"
  assert code == 2
  assert f"{file}:1: {problem}" in err
  assert f"{file}:2" not in err


def test_check_lists_every_problem_of_every_file(data, tmp_path):
  good, bad, worse, none = (tmp_path / name for name in ("good", "bad", "worse", "none"))
  good.write_text('{"prompt": "p"}\n')
  bad.write_text('{"prompt": "p"}\n' + '{"prompt": "", "usr": "x"}\n' * 30 + '{"prompt": 1}\n')
  worse.write_text("not JSON\n")
  code, out, err = data("check", bad, good, worse, none)
  assert code == 2
  assert out == f"{good}: 1 prompt, no problem\n"
  lines = err.splitlines()
  more = "(and 29 more like this)"
  assert lines == [
    f"{bad}:2: usr: unknown field; did you mean 'user'? {more}",
    f"{bad}:2: prompt: empty; give a text or take the record out {more}",
    f"{bad}:32: prompt: text is expected, this is a number",
    f"{worse}:1: not JSON, it begins 'not JSON'; give one JSON object a line",
    f"{none}: no such file; give one JSON object a line",
    "error: 63 problems in 3 of 4 files; correct the lines above",
  ]
  assert data("check", worse, "--kind=prompt")[2].startswith(f"{worse}:1: not JSON")


def test_check_counts_what_it_does_not_list(data, tmp_path):
  """The 999 objects of an array were 4,997 lines once."""
  file = tmp_path / "x.json"
  rows = [{"prompt": f"p{i}", "usr": "red"} for i in range(999)]
  file.write_text(json.dumps(rows, indent=2))
  code, out, err = data("check", file)
  assert (code, out) == (2, "")
  assert err.splitlines() == [
    f"{file}[0].usr: unknown field; did you mean 'user'? (and 998 more like this)",
    "error: 999 problems in 1 of 1 file; correct the lines above",
  ]


def test_check_and_convert_read_arrays_and_tables(data, tmp_path):
  array, table, out = tmp_path / "a.json", tmp_path / "a.csv", tmp_path / "out.jsonl"
  array.write_text('[\n  {"prompt": "a"},\n  {"prompt": "b"}\n]')
  table.write_text("prompt,completion\na,b\n")
  code, printed, err = data("check", array, table)
  assert (code, err) == (0, "")
  assert printed == f"{array}: 2 prompts, no problem\n{table}: 1 demonstration, no problem\n"
  assert data("convert", array, f"--out={out}")[1] == f"{out}: 2 prompts; 0 problems\n"
  assert out.read_text() == '{"prompt": "a"}\n{"prompt": "b"}\n'


def test_convert_keeps_what_comes_before_the_end_of_a_file_that_is_cut_off(data, tmp_path):
  source, out = tmp_path / "x.json", tmp_path / "out.jsonl"
  source.write_text('[{"prompt": "a"}, {"prompt": "b"}, {"prom')
  code, _, err = data("convert", source, f"--out={out}")
  assert code == 2 and f"{source}[2]: not JSON" in err
  assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
  code, printed, err = data("convert", source, f"--out={out}", "--leave-out")
  assert (code, printed) == (0, f"{out}: 2 prompts; 1 problem\n")
  assert err.startswith(f"left out: {source}[2]: not JSON")


def test_check_counts_tokens_of_more_than_a_batch(data, tmp_path, monkeypatch):
  """Places and numbers are those of the file, not of a batch."""
  monkeypatch.setattr(data_command, "BATCH", 2)
  file = tmp_path / "d.jsonl"
  rows = [{"prompt": "p" * (1 + i), "completion": "c"} for i in range(5)]
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  code, out, _ = data("check", file, "--tokenizer=bytes", "--prompt-tokens=3")
  assert code == 0 and out.endswith("5 prompts, 2 too long\n")
  file.write_text(file.read_text() + '{"prompt": "<|endoftext|>", "completion": "c"}\n')
  assert f"{file}:6: prompt: holds" in data("check", file, "--tokenizer=bytes")[2]


def test_check_says_how_a_file_is_read_and_what_it_leaves_out(data, tmp_path):
  file = tmp_path / "d.jsonl"
  rows = [
    {"instruction": "q", "context": "passage", "response": "a", "category": "closed_qa"},
    {"instruction": "q", "context": "", "response": "a", "category": ""},
  ]
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  code, out, err = data("check", file)
  assert (code, out) == (0, f"{file}: 2 demonstrations, no problem\n")
  assert err.splitlines() == [
    f"{file}: read as --spelling=dolly (fields instruction, context, response)",
    f"{file}: left out: category (1 of 2 rows)",
  ]
  assert data("convert", file, f"--out={tmp_path}/out.jsonl")[2] == err
  prompts = [record.prompt for record in records.read(tmp_path / "out.jsonl", "demonstration")]
  assert prompts == ["q\n\npassage", "q"]


def test_check_of_unknown_columns_is_one_sentence(data, tmp_path):
  file = tmp_path / "q.jsonl"
  file.write_text('{"question": "q", "answer": "a"}\n' * 100)
  code, out, err = data("check", file)
  assert (code, out) == (2, "")
  assert err.splitlines() == [
    f"{file}: its fields are question, answer; read it with "
    "--fields=prompt=question,completion=answer",
    "error: 1 problem in 1 of 1 file; correct the lines above",
  ]
  assert data("check", file, "--fields=prompt=question,completion=answer")[0] == 0
  # The other columns of a prompt reach a reward, so nothing is left out.
  code, _, err = data("check", file, "--fields=prompt=question", "--kind=prompt")
  assert (code, err) == (0, "")


def test_bad_answers_are_left_out_of_demonstrations_and_listed(data, tmp_path):
  file, kept = tmp_path / "kto.jsonl", tmp_path / "kept.jsonl"
  rows = [{"prompt": "p", "completion": text, "label": text == "good"} for text in ("good", "bad")]
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  code, _, err = data("convert", file, f"--out={kept}")
  assert code == 2
  assert f"{file}:2: label: false, so the completion is a bad answer" in err
  assert data("convert", file, f"--out={kept}", "--leave-out")[0] == 0
  assert records.read(kept, "demonstration") == [Demonstration("p", "good")]


def test_empty_completions_are_an_option(data, tmp_path):
  file = tmp_path / "c.jsonl"
  file.write_text('{"prompt": "p", "completions": ["a", ""], "ranks": [1, 2]}\n')
  assert f"{file}:1: completions[1]: empty" in data("check", file)[2]
  assert data("check", file, "--empty-completions")[0] == 0


def test_check_of_a_spelling(data, tmp_path):
  file = tmp_path / "x.jsonl"
  file.write_text('{"instruction": "i", "output": "o"}\n')
  assert data("check", file, "--spelling=alpaca")[:2] == (
    0,
    f"{file}: 1 demonstration, no problem\n",
  )
  assert data("check", file, "--spelling=hh")[0] == 2


def test_convert_maps_fields_and_lists_what_it_leaves_out(data, tmp_path):
  source, out = tmp_path / "x.jsonl", tmp_path / "out.jsonl"
  source.write_text('{"q": "Q", "a": ["A"]}\n{"q": "R", "a": []}\n')
  options = [source, "--fields=prompt=q,completion=a.0", f"--out={out}"]
  code, _, err = data("convert", *options)
  assert code == 2 and f"{source}:2: a.0: missing" in err and not out.exists()
  code, printed, err = data("convert", *options, "--leave-out")
  assert (code, printed) == (0, f"{out}: 1 demonstration; 1 problem\n")
  assert err.startswith(f"left out: {source}:2: a.0")
  assert records.read(out, "demonstration") == [Demonstration("Q", "A")]
  assert "give OURS=THEIRS" in data("check", source, "--fields=q")[2]


LINES = [
  '{"prompt": "a"}',
  r'{"prompt": "a", "user": "\ud800"}',
  '{"completion": 1}',
  '{"ranks": 1e99}',
  "[[",
  "\ufeff{}",
  "\0",
]


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
@settings(
  deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
  content=st.binary(max_size=200)
  | st.lists(st.sampled_from(LINES)).map(lambda lines: "\n".join(lines).encode())
)
def test_no_file_makes_a_traceback(tmp_path, name, content):
  path = tmp_path / name
  path.write_bytes(content if name.endswith("l") or len(content) % 2 else gzip.compress(content))
  for arguments in (["check"], ["stats"], ["clean", f"--out={tmp_path / 'out'}", "--in"]):
    with (
      contextlib.redirect_stdout(io.StringIO()),
      contextlib.redirect_stderr(io.StringIO()) as err,
    ):
      code = cli.main(["data", *arguments, str(path)])
    assert code in (0, 2)
    assert (code == 2) == ("error: " in err.getvalue())


# --- clean ---


def test_clean_writes_the_splits_and_a_report(data, tmp_path):
  rows = prompts(tmp_path / "in.jsonl")
  options = (
    "--in",
    tmp_path / "in.jsonl",
    "--valid=0.3",
    "--test=0.2",
    "--cap=2",
    "--tokenizer=bytes",
    "--seed=3",
  )
  code, out, err = data("clean", *options, f"--out={tmp_path / 'out'}")
  assert (code, err) == (0, "")
  report = json.loads((tmp_path / "out" / "report.json").read_text())
  assert (
    report["settings"] | {"cap": 2, "seed": 3, "valid": 0.3, "prefix": 128} == report["settings"]
  )
  assert [rule["rule"] for rule in report["rules"]] == [
    "consent",
    "near-duplicates",
    "cap per user",
    "PII, train",
    "prompt length",
    "response length",
  ]
  # The user u1 has 4 prompts left, and the others have 3.
  assert [rule["removed"] for rule in report["rules"]][:3] == [1, 0, 41]
  splits = {
    name: records.read(tmp_path / "out" / f"{name}.jsonl", "prompt") for name in hygiene.SPLITS
  }
  assert {name: len(part) for name, part in splits.items()} == {
    n: s["records"] for n, s in report["splits"].items()
  }
  users = [{row.user for row in part} for part in splits.values()]
  assert sum(map(len, users)) == len(set().union(*users)) == 40
  assert {row for part in splits.values() for row in part} <= set(rows)
  assert "near-duplicates" in out and "train.jsonl" in out
  files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
  assert set(files) == {"train.jsonl", "valid.jsonl", "test.jsonl", "report.json"}
  assert data("clean", *options, f"--out={tmp_path / 'out'}")[0] == 0
  assert files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def test_clean_touches_no_file_that_it_did_not_write(data, tmp_path):
  """`valid.jsonl` and `test.jsonl` are names that a user's own files have, too."""
  prompts(tmp_path / "in.jsonl")
  out = tmp_path / "out"
  out.mkdir()
  (out / "valid.jsonl").write_text("mine\n")
  (out / "notes.txt").write_text("mine\n")
  options = ["clean", "--in", tmp_path / "in.jsonl", f"--out={out}", "--test=0"]
  before = {path.name: path.read_bytes() for path in out.iterdir()}

  code, _, err = data(*options, "--valid=0.5")
  assert code == 2 and "valid.jsonl in" in err and "replace what is there with --force" in err
  # An empty split has no file, and does not take the one that is there, whatever is forced.
  for force in ([], ["--force"]):
    code, _, err = data(*options, "--valid=0", *force)
    assert code == 2 and "puts nothing into valid" in err and "move it away" in err
  assert {path.name: path.read_bytes() for path in out.iterdir()} == before

  assert data(*options, "--valid=0.5", "--force")[0] == 0
  names = {path.name for path in out.iterdir()}
  assert names == {"train.jsonl", "valid.jsonl", "report.json", "notes.txt"}
  assert (out / "valid.jsonl").read_text() != "mine\n"
  (out / "valid.jsonl").unlink()
  code, printed, _ = data(*options, "--valid=0", "--force")
  assert code == 0 and "valid: nothing, no file" in printed and "not applied" in printed


@pytest.mark.parametrize("action", ["expand", "convert", "tone", "benchmarks"])
def test_no_action_overwrites_what_differs(data, tmp_path, action, monkeypatch):
  """The same command again changes nothing, and needs no --force."""
  from instructjax.data.public import benchmarks, tone

  source = tmp_path / "source.jsonl"
  source.write_text('{"prompt": "p"}\n')
  few_shot = {"instruction": "i", "pairs": [{"input": "x", "output": "y"}] * 2}
  out = tmp_path / "out"
  options = {
    "convert": [source, f"--out={out / 'x.jsonl'}"],
    "expand": [tmp_path / "f.jsonl", f"--out={out / 'x.jsonl'}"],
    "tone": [f"--out={out}"],
    "benchmarks": [f"--out={out}"],
  }[action]
  few_shot["pairs"][1] = {"input": "z", "output": "w"}
  (tmp_path / "f.jsonl").write_text(json.dumps(few_shot) + "\n")

  def write(folder):
    (folder / "quac.jsonl").write_text("{}\n")
    return []

  monkeypatch.setattr(benchmarks, "write", write)
  few = tone.Sizes(demonstrations=8, comparisons=4, gold=4, prompts=8, test_prompts=2)
  monkeypatch.setattr(tone, "tasks", partial(tone.tasks, sizes=few._replace(test_comparisons=2)))
  assert data(action, *options)[0] == 0
  written = {path.name: path.read_bytes() for path in out.iterdir()}
  assert data(action, *options)[0] == 0
  name = min(written)
  (out / name).write_text("mine\n")
  code, _, err = data(action, *options)
  assert code == 2 and name in err and "--force" in err and err.count("\n") == 1
  assert (out / name).read_text() == "mine\n"
  assert data(action, *options, "--force")[0] == 0
  assert {path.name: path.read_bytes() for path in out.iterdir()} == written


def test_what_clean_refuses(data, tmp_path):
  prompts(tmp_path / "train.jsonl")
  (tmp_path / "t.jsonl").write_text('{"text": "t"}\n')
  (tmp_path / "d.jsonl").write_text('{"prompt": "p", "completion": "c"}\n')
  (tmp_path / "file").write_text("")
  before = (tmp_path / "train.jsonl").read_bytes()
  for options, message in [
    (["--in", tmp_path / "train.jsonl", f"--out={tmp_path}"], "would write over the input"),
    (["--in", tmp_path / "train.jsonl", f"--out={tmp_path / 'file'}"], "cannot be written"),
    (["--in", tmp_path / "t.jsonl", f"--out={tmp_path}/o"], "holds documents without prompts"),
    (
      ["--in", tmp_path / "train.jsonl", tmp_path / "d.jsonl", f"--out={tmp_path}/o"],
      "demonstration and prompt files",
    ),
    (
      ["--in", tmp_path / "train.jsonl", f"--out={tmp_path}/o", "--cap=-1"],
      "cap -1: give a positive number",
    ),
    (
      ["--in", tmp_path / "train.jsonl", f"--out={tmp_path}/o", "--tokenizer=none.json"],
      "none.json",
    ),
  ]:
    code, out, err = data("clean", *options)
    assert (code, out) == (2, "") and message in err
    assert not (tmp_path / "o").exists()
  assert (tmp_path / "train.jsonl").read_bytes() == before


# --- stats, compare, expand ---


def test_stats_prints_tables_or_json(data, tmp_path):
  prompts(tmp_path / "train.jsonl")
  records.write(tmp_path / "sft_valid.jsonl", [Demonstration("ab", "c", source="labeler")])
  files = (tmp_path / "train.jsonl", tmp_path / "sft_valid.jsonl")
  code, out, err = data("stats", *files)
  assert (code, err) == (0, "")
  assert all(f"Table {i}:" in out for i in (1, 6, 7, 8, 9, 10, 11)) and "UTF-8 bytes" in out
  code, out, _ = data("stats", *files, "--json", "--tokenizer=bytes")
  tables = {table["title"].split(":")[0]: table for table in json.loads(out)["tables"]}
  assert tables["Table 9"]["title"].endswith("in tokens of bytes")
  assert [(row["data"], row["split"], row["count"]) for row in tables["Table 9"]["rows"]] == [
    ("SFT", "valid", 1),
    ("PPO", "train", 122),
  ]


def test_compare(data, tmp_path):
  records.write(
    tmp_path / "a", [Prompt(f"{i}", use_case="Chat" if i % 4 else "Extract") for i in range(40)]
  )
  records.write(
    tmp_path / "b", [Comparison(f"{i}", ("x", "y"), (1, 2), use_case="Extract") for i in range(40)]
  )
  code, out, _ = data("compare", tmp_path / "a", tmp_path / "b")
  assert code == 0 and "total variation distance 0.750" in out
  assert next(line.split() for line in out.splitlines() if line.startswith("Chat"))[1:4] == [
    "75.0",
    "0.0",
    "75.0",
  ]
  comparison = json.loads(data("compare", tmp_path / "a", tmp_path / "b", "--json")[1])
  assert comparison["distance"] == 0.75
  assert comparison["shares"]["Chat"]["difference"]["value"] == 0.75
  (tmp_path / "t").write_text('{"text": "t"}\n')
  assert data("compare", tmp_path / "a", tmp_path / "t")[0] == 2
  (tmp_path / "none").write_text('{"prompt": "p"}\n')
  for files in (("a", "none"), ("none", "a"), ("none", "none")):
    code, out, err = data("compare", *(tmp_path / name for name in files))
    assert code == 2 and "0.000" not in out
    assert f"{tmp_path / 'none'}: no record names a use case, so there is nothing to compare" in err


def test_clean_keeps_the_turns_of_a_chat_together(data, tmp_path):
  """Forty chats of two turns, as messages; no user is named, and turns are no duplicates."""
  rows = []
  for number in range(40):
    first = {"role": "user", "content": f"Question {number}: where is it?"}
    reply = {"role": "assistant", "content": "There."}
    more = {"role": "user", "content": "And then?"}
    answers = {"completions": ["x", "y"], "ranks": [1, 2]}
    rows += [{"prompt": [first]} | answers, {"prompt": [first, reply, more]} | answers]
  (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  options = ("--in", tmp_path / "c.jsonl", f"--out={tmp_path / 'out'}", "--valid=.3", "--test=.3")
  assert data("clean", *options)[0] == 0
  total, messages = 0, []
  for name in ("train", "valid", "test"):
    part = records.read(tmp_path / "out" / f"{name}.jsonl", "comparison")
    total += len(part)
    messages.append({record.turns[0]["content"] for record in part})
  assert total == 80
  assert sum(map(len, messages)) == len(set.union(*messages)) == 40


def test_expand(data, tmp_path):
  pairs = ", ".join(f'{{"input": "{i}", "output": "o{i}"}}' for i in range(4))
  (tmp_path / "f.jsonl").write_text(f'{{"instruction": "i", "pairs": [{pairs}], "user": "u"}}\n')
  code, out, _ = data(
    "expand", tmp_path / "f.jsonl", f"--out={tmp_path}/d.jsonl", "--shots=2", "--samples=3"
  )
  assert code == 0 and out.endswith("12 demonstrations from 1 few-shot prompt\n")
  rows = records.read(tmp_path / "d.jsonl", "demonstration")
  assert len(rows) == 12 and {row.user for row in rows} == {"u"}


def test_the_kinds_with_prompts_have_tables():
  from instructjax.data.curation import statistics

  assert set(data_command.KINDS) == set(statistics.DATA_SETS)
