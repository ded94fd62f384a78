"""No input file makes a traceback or a silent skip: good rows with something broken in them,
through the commands.
"""

import contextlib
import copy
import gzip
import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instructjax.commands import cli
from instructjax.data.records import records
from instructjax.data.records.named import LAYOUTS
from instructjax.errors import UserError
from instructjax.label import exchange, store, tasks

FUZZ = settings(
  deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
USER, REPLY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
NATIVE = {
  "demonstration": {
    "prompt": "p",
    "completion": "c",
    "user": "u",
    "annotations": {"ambiguous": True},
  },
  "comparison": {
    "prompt": [USER],
    "completions": ["x", "y", "z"],
    "ranks": [1, 2, 2],
    "labeler": "l",
    "sources": ["m", {"model": "n"}, "m"],
    "ratings": [{"overall": 3}, {}, {"hallucination": True}],
  },
  "prompt": {"prompt": [USER, REPLY, USER], "consent": True, "id": "1"},
  "few_shot": {
    "instruction": "i",
    "pairs": [{"input": "1", "output": "2"}, {"input": "3", "output": "4"}],
  },
  "text": {"text": "t", "source": "s"},
}
PUBLIC = {
  "native": NATIVE["demonstration"],
  "preference": {
    "prompt": "p",
    "chosen": [USER, REPLY],
    "rejected": [USER, REPLY | {"content": "b"}],
  },
  "alpaca": {"instruction": "i", "input": "x", "output": "o"},
  "messages": {"messages": [USER, REPLY]},
  "hh": {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
  "ultrafeedback": {
    "instruction": "i",
    "completions": [{"response": "x", "overall_score": 3.0}, {"response": "y", "overall_score": 7}],
  },
  "summarize_feedback": {
    "info": {"post": "p", "subreddit": "s", "title": "t"},
    "summaries": [{"text": "x"}, {"text": "y"}],
    "choice": 1,
    "worker": "w",
  },
  "dolly": {"instruction": "q", "context": "c", "response": "a", "category": "closed_qa"},
  "conversations": {
    "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
  },
  "prompt_completion": {
    "prompt": [{"role": "user", "content": "q"}],
    "completion": [{"role": "assistant", "content": "a"}],
  },
  "shp": {"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1, "score_A": 5},
  "webgpt": {
    "question": {"full_text": "q"},
    "answer_0": "a",
    "answer_1": "b",
    "score_0": 0.5,
    "score_1": -0.5,
  },
  "pandalm": {
    "instruction": "q",
    "input": "",
    "response1": "a",
    "response2": "b",
    "annotator1": 1,
    "annotator2": 0,
  },
  "fine_grained": {
    "question": "q",
    "passages": [["t", "s"]],
    "prediction 1": "a",
    "prediction 2": "b",
    "prediction 3": "c",
    "preference": [1, 2, 1],
  },
  "arena": {
    "conversation_a": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
    "conversation_b": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}],
    "model_a": "x",
    "model_b": "y",
    "winner": "model_b",
  },
  "helpsteer": {
    "prompt": "q",
    "response_1": "a",
    "response_2": "b",
    "preference_strength": -2,
  },
  "oasst": {
    "message_id": "1",
    "parent_id": None,
    "role": "prompter",
    "text": "q",
    "replies": [
      {"message_id": "2", "role": "assistant", "text": "a", "rank": 0, "replies": []},
      {"message_id": "3", "role": "assistant", "text": "b", "rank": 1, "replies": []},
    ],
  },
}
FOREIGN = {
  "labelstudio": {
    "data": {
      "prompt": "p",
      "items": [{"id": "1", "body": "x"}, {"id": "2", "body": "y"}],
      "user": "u",
    },
    "annotations": [
      {
        "completed_by": {"email": "a@b.c"},
        "was_cancelled": False,
        "result": [
          {
            "type": "ranker",
            "from_name": "ranks",
            "to_name": "items",
            "value": {"ranker": {"rank_1": ["2"], "rank_2": ["1"]}},
          },
          {
            "type": "rating",
            "from_name": "overall_1",
            "to_name": "output_1",
            "value": {"rating": 3},
          },
          {
            "type": "choices",
            "from_name": "flags_1",
            "to_name": "output_1",
            "value": {"choices": ["opinion"]},
          },
          {
            "type": "textarea",
            "from_name": "notes_1",
            "to_name": "output_1",
            "value": {"text": ["n"]},
          },
        ],
      }
    ],
  },
  "argilla": {
    "id": "task-1",
    "fields": {"prompt": "p", "response_1": "x", "response_2": "y"},
    "metadata": {
      "labelers": ["ana"],
      "consent": "true",
      "annotations": '{"ambiguous": true}',
      "user": "u",
    },
    "responses": {
      "ranking": [
        {
          "value": [{"value": "response_1", "rank": 1}, {"value": "response_2", "rank": 1}],
          "user_id": "u1",
        }
      ],
      "overall_1": [{"value": 3, "user_id": "u1"}],
      "flags_1": [{"value": ["opinion"], "user_id": "u1"}],
      "notes_2": [{"value": "n", "user_id": "u1"}],
    },
  },
}
values = st.recursive(
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats()
  | st.text(max_size=4)
  | st.sampled_from(["\ud800", "\0", "", " ", "x" * 1000, 10**400, "1", "rank_x"]),
  lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
  ),
  max_leaves=5,
)


@st.composite
def broken(draw, row):
  """A copy of a row in which up to three places hold something else, nothing, or more."""
  row = copy.deepcopy(row)
  for _ in range(draw(st.integers(0, 3))):
    at = row
    while True:
      keys = [*at] if isinstance(at, dict) else [*range(len(at))]
      if not keys:
        break
      key = draw(st.sampled_from(keys))
      if isinstance(at[key], dict | list) and draw(st.booleans()):
        at = at[key]
        continue
      match draw(st.integers(0, 2)):
        case 0:
          at[key] = draw(values)
        case 1:
          del at[key]
        case _:
          more = draw(values)
          at.append(more) if isinstance(at, list) else at.update(
            {draw(st.sampled_from([*keys, "x", "id"])): more}
          )
      break
  return row


def file_of(row):
  """The bytes of a file with rows like this one, and now and then a line that is none.

  No such line opens a bracket, with which the file might be an array.
  """
  line = broken(row).map(lambda row: json.dumps(row).encode()) | st.binary(max_size=12).filter(
    lambda line: not set(b"\n[{") & set(line)
  )
  return st.lists(line, min_size=1, max_size=4).map(b"\n".join)


def command(*arguments) -> tuple[int, list[str], list[str]]:
  """(exit code, lines of stdout, lines of stderr): it fails with a message that ends in an error,
  or not at all.
  """
  with (
    contextlib.redirect_stdout(io.StringIO()) as out,
    contextlib.redirect_stderr(io.StringIO()) as err,
  ):
    code = cli.main([*map(str, arguments)])
  assert code in (0, 2) and (code == 2) == ("error: " in err.getvalue())
  return code, out.getvalue().split("\n")[:-1], err.getvalue().split("\n")[:-1]


def lines_of(content: bytes) -> int:
  """The lines of a file but for the empty ones at its end."""
  return len(content.removeprefix(b"\xef\xbb\xbf").rstrip().split(b"\n"))


@pytest.mark.parametrize("kind", records.KINDS)
@FUZZ
@given(data=st.data(), name=st.sampled_from(["x.jsonl", "x.jsonl.gz"]))
def test_check_accounts_for_every_line_of_every_kind(tmp_path, kind, name, data):
  content = data.draw(file_of(NATIVE[kind]))
  path = tmp_path / name
  path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
  code, out, err = command("data", "check", path, f"--kind={kind}")
  places = [line.removeprefix(f"{path}:").split(":")[0] for line in err[:-1]]
  # What is said of the whole file has no number of a line.
  bad = {place for place in places if place.isdigit()}
  if code == 0:
    count = lines_of(content)
    assert out == [f"{path}: {count} {kind}{'' if count == 1 else 's'}, no problem"]
  else:
    assert all(line.startswith(f"{path}:") and line.isprintable() for line in err[:-1]) and places
  kept = tmp_path / "kept.jsonl"
  kept.unlink(missing_ok=True)
  if command("data", "convert", path, f"--kind={kind}", f"--out={kept}", "--leave-out")[0] == 0:
    assert len(records.read(kept, kind)) + (len(bad) if code else 0) == lines_of(content)


def test_every_spelling_is_fuzzed():
  assert set(PUBLIC) == set(LAYOUTS) and set(NATIVE) == set(records.KINDS)


@pytest.mark.parametrize("spelling", PUBLIC)
@FUZZ
@given(data=st.data())
def test_check_of_every_spelling(tmp_path, spelling, data):
  path = tmp_path / "x.jsonl"
  path.write_bytes(data.draw(file_of(PUBLIC[spelling])))
  kind = data.draw(
    st.sampled_from(["", "--kind=demonstration", "--kind=comparison", "--kind=prompt"])
  )
  code, out, err = command(
    "data", "check", path, f"--spelling={spelling}", *([kind] if kind else [])
  )
  assert len(out) == 1 - code // 2 and all(line.startswith(f"{path}:") for line in err[:-1])


@pytest.mark.parametrize("spelling", PUBLIC)
def test_the_good_rows_are_good(tmp_path, spelling):
  path = tmp_path / "x.jsonl"
  path.write_text(json.dumps(PUBLIC[spelling]) + "\n")
  assert command("data", "check", path, f"--spelling={spelling}")[0] == 0


@FUZZ
@given(data=st.data(), kind=st.sampled_from(["demonstration", "comparison", "prompt", "few_shot"]))
def test_the_other_data_commands(tmp_path, data, kind):
  path, out = tmp_path / "x.jsonl", tmp_path / "out"
  path.write_bytes(data.draw(file_of(NATIVE[kind])))
  command("data", "stats", path)
  command("data", "compare", path, path)
  command("data", "clean", "--in", path, f"--out={out}", "--valid=0.3", "--pii=mask")
  command("data", "expand", path, f"--out={out}.jsonl")


# --- labeling ---


LABELLED = {kind: NATIVE[kind] for kind in ("demonstration", "comparison")} | {
  "continuation": NATIVE["comparison"]
  | {"ratings": [{"continuity": 3, "toxicity": 1, "relative_toxicity": -1}, {}, {}]}
}


@pytest.mark.parametrize("kind", tasks.KINDS)
@pytest.mark.parametrize("form", ["records", *FOREIGN])
@FUZZ
@given(data=st.data())
def test_label_import_takes_all_or_says_why_not(tmp_path, kind, form, data):
  row = LABELLED[kind] if form == "records" else FOREIGN[form]
  if form == "records":
    content, count = data.draw(file_of(row)), None
  else:
    rows = data.draw(st.lists(broken(row), min_size=1, max_size=3))
    content, count = json.dumps(rows).encode(), len(rows)
  path, db = tmp_path / "x.json", tmp_path / "l.sqlite"
  path.write_bytes(content)
  for old in tmp_path.glob("l.sqlite*"):
    old.unlink()
  code, _, err = command(
    "label", "import", f"--db={db}", f"--file={path}", f"--format={form}", f"--kind={kind}"
  )
  if code:
    assert all(f"{path}" in line or line.startswith("...") for line in err), err
    return
  assert kind != "continuation" or form == "records"  # other tools have no form for them
  found, answers, _ = exchange.load(path, kind, form)
  assert len(found) == (count or lines_of(content))
  others = () if kind == "continuation" else ("labelstudio", "argilla")
  for target in ("answers", *others, *(["records"] if any(a.value for a in answers) else [])):
    assert (
      command(
        "label", "export", f"--db={db}", f"--out={tmp_path / 'o.json'}", f"--format={target}"
      )[0]
      == 0
    )


BREAKERS = [
  b"[" * 100_000,
  b'{"a":' * 50_000,
  b"\xff",
  b'["\\ud800"]',
  b"{}",
  b"[]",
  b"",
  b"[1e999]",
  b"[" + b"9" * 5000 + b"]",
]


@pytest.mark.parametrize("content", BREAKERS, ids=range(len(BREAKERS)))
@pytest.mark.parametrize("form", ["records", *FOREIGN])
def test_label_import_of_what_breaks_readers(tmp_path, form, content):
  (tmp_path / "x.json").write_bytes(content)
  with pytest.raises(UserError, match=r"x\.json"):
    exchange.load(tmp_path / "x.json", "comparison", form)


@pytest.mark.parametrize("kind", tasks.KINDS)
@FUZZ
@given(data=st.data())
def test_tasks_are_read_or_left_out_or_refused(tmp_path, kind, data):
  texts = (
    {"completions": ["x", "y"]}
    if data.draw(st.booleans())
    else {"responses": ["x", " x", "", "y"], "scores": {"r": [1]}}
  )
  texts["sources"] = ["m"] * len(next(iter(texts.values())))
  row = {"prompt": "p", "user": "u"} | (texts if kind == "comparison" else {})
  path = tmp_path / "x.jsonl"
  path.write_bytes(data.draw(file_of(row)))
  try:
    found, left_out = tasks.read(path, kind)
  except UserError as error:
    assert all(str(path) in line or line.startswith("...") for line in str(error).split("\n"))
    return
  few = sum(int(line.split()[2]) for line in left_out if "prompts with fewer" in line)
  assert len(found) + few == lines_of(path.read_bytes())
  for old in tmp_path.glob("l.sqlite*"):
    old.unlink()
  db = store.create(tmp_path / "l.sqlite", kind)
  store.add(db, found)
  assert {store.digest(task) for task in store.tasks(db)} == {store.digest(task) for task in found}
  db.close()
