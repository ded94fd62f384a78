"""`instructjax tokenizer`: training, the check against models of each kind, and bad files."""

import contextlib
import dataclasses
import io
import json

import jax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instructjax import models
from instructjax.commands import cli
from instructjax.data.tokens import tokenizers
from instructjax.runs import origin

TEXT = "The film is a joy, 2001 times over.\nla la land\n" * 5
CHATML = (
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def tokenizer(capsys):
  """Runs `instructjax tokenizer` with the arguments: (exit code, stdout, stderr)."""

  def call(*arguments):
    code = cli.main(["tokenizer", *map(str, arguments)])
    return code, *capsys.readouterr()

  return call


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A model of 304 rows with a SentencePiece tokenizer of 300 ids that knows ChatML."""
  home = tmp_path_factory.mktemp("model")
  (home / "text.txt").write_text(TEXT)
  config = dataclasses.replace(origin.SHAPES["tiny"], vocab_size=304, depth=1, width=8, heads=2)
  models.save(home / "m", config, models.build(config).init(jax.random.key(0)))
  options = [
    f"--input={home / 'text.txt'}",
    f"--out={home / 'm' / 'tokenizer.model'}",
    "--vocab-size=300",
  ]
  assert (
    cli.main(["tokenizer", "train", *options, "--eos=<|im_end|>", "--control=<|im_start|>"]) == 0
  )
  ids = {"eos_token_id": 1, "bos_token_id": None, "pad_token_id": 0}
  config = json.loads((home / "m" / "config.json").read_text()) | ids
  (home / "m" / "config.json").write_text(json.dumps(config))
  (home / "m" / "chat_template.jinja").write_text(CHATML)
  return home / "m"


def test_train_reads_several_files_of_several_kinds(tokenizer, tmp_path):
  (tmp_path / "a.txt").write_text(TEXT)
  (tmp_path / "b.jsonl").write_text('{"content": "zebra quagga zebra quagga"}\n' * 9)
  out = tmp_path / "new" / "x.model"
  options = [
    "--fields=text=content",
    f"--out={out}",
    "--vocab-size=310",
    "--model-type=bpe",
    "--coverage=.999",
  ]
  more = [
    "--normalization=nmt_nfkc",
    "--symbol=<a>",
    "--symbol=<b>",
    "--bos=<s>",
    "--pad=[PAD]",
    "--unk=[UNK]",
    "--threads=2",
  ]
  code, shown, err = tokenizer(
    "train", "--input", tmp_path / "a.txt", tmp_path / "b.jsonl", *options, *more
  )
  assert (code, shown, err) == (0, f"{out}: 310 pieces\n", "")
  trained = tokenizers.load(out)
  assert dict(trained.specials) == {
    "[PAD]": 0,
    "</s>": 1,
    "[UNK]": 2,
    "<s>": 3,
  } and trained.bos == (3,)
  assert len(trained.encode("<a>")) == len(trained.encode("<b>")) == 1
  assert len(trained.encode("zebra quagga")) < 5 and trained.decode(trained.encode("ﬁ")) == "fi"


def test_train_says_what_is_wrong(tokenizer, tmp_path):
  (tmp_path / "a.txt").write_bytes(b"text\n\xff\n")
  for file, problem in (
    ("a.txt", "a.txt:2: not UTF-8 at byte 0"),
    ("b.txt", "b.txt: no such file"),
  ):
    code, out, err = tokenizer(
      "train", f"--input={tmp_path / file}", f"--out={tmp_path / 'x.model'}"
    )
    assert (code, out) == (2, "") and problem in err and not (tmp_path / "x.model").exists()


def test_check_of_a_model_that_fits(tokenizer, folder):
  code, out, err = tokenizer("check", f"--model={folder}", folder.parent / "text.txt")
  assert (code, err) == (0, "")
  rows = {line[:28].strip(): line[28:].split() for line in out.splitlines() if line[:1].isalpha()}
  assert rows["ids"] == ["300"] and rows["rows of the embedding"] == ["304"]
  assert rows["rows without an id"] == ["4", "never", "sampled"]
  assert rows["unknown tokens, %"] == ["0.00"] and rows["texts that come back, %"] == ["100.00"]
  assert "closes a reply with 1 '<|im_end|>'" in out and "not SentencePiece's space" in out
  report = json.loads(
    tokenizer("check", f"--model={folder}", folder.parent / "text.txt", "--json")[1]
  )
  count = {name: figure["value"] for name, figure in report["figures"].items()}
  own = tokenizers.load(folder)
  tokens = sum(len(own.encode(line)) for line in TEXT.splitlines())
  assert count["texts"] == 10 and count["tokens"] == tokens
  assert count["tokens a word"] == pytest.approx(tokens / len(TEXT.split()))
  assert count["bytes a token"] == pytest.approx((len(TEXT) - TEXT.count("\n")) / tokens)
  assert report["problems"] == []


@pytest.mark.parametrize(
  ("change", "problem"),
  [
    (
      {"config.json": {"eos_token_id": 5}},
      "config.json: eos_token_id is 5, a response ends here with 1 '<|im_end|>'",
    ),
    (
      {"config.json": {"pad_token_id": 304}},
      "config.json: pad_token_id is 304, the model has 304 rows",
    ),
    (
      {"config.json": {"pad_token_id": 303}},
      "config.json: pad_token_id is 303, the tokenizer has 300 ids",
    ),
    (
      {"generation_config.json": {"eos_token_id": [7, 9]}},
      "generation_config.json: eos_token_id is 7, 9, a response ends",
    ),
    (
      {"config.json": {"eos_token_id": "x"}},
      "config.json: eos_token_id is 'x', an integer or a list of them",
    ),
    (
      {"chat_template.jinja": CHATML.replace("<|im_end|>", "")},
      "closes a reply with 'no special token', the stop ids are",
    ),
  ],
)
def test_files_of_a_model_that_disagree(tokenizer, folder, tmp_path, change, problem):
  import shutil

  shutil.copytree(folder, tmp_path / "m")
  for name, new in change.items():
    path = tmp_path / "m" / name
    old = json.loads(path.read_text()) if path.suffix == ".json" and path.is_file() else {}
    path.write_text(new if isinstance(new, str) else json.dumps(old | new))
  code, _, err = tokenizer("check", f"--model={tmp_path / 'm'}")
  assert code == 2 and problem in err, err


def test_another_tokenizer_for_a_model(tokenizer, folder, tmp_path):
  (tmp_path / "t.txt").write_text("quite another text for other pieces\n" * 9)
  for size, problem in (
    (300, "the model's own tokenizer gives other ids"),
    (310, "the tokenizer has 310 ids, the model's embedding 304 rows: 6 ids have none"),
  ):
    train = [
      "train",
      f"--input={tmp_path / 't.txt'}",
      f"--out={tmp_path / 'x.model'}",
      f"--vocab-size={size}",
    ]
    assert tokenizer(*train)[0] == 0
    code, _, err = tokenizer("check", f"--model={folder}", f"--tokenizer={tmp_path / 'x.model'}")
    assert code == 2 and problem in err and err.splitlines()[-1].startswith("error: ")
  assert (
    tokenizer("check", f"--model={folder}", f"--tokenizer={folder / 'tokenizer.model'}")[0] == 0
  )


def test_what_texts_lose(tokenizer, tmp_path):
  (tmp_path / "t.txt").write_text(TEXT)
  (tmp_path / "u.txt").write_text("la la\nlaé\n</s>\n")
  train = [
    f"--input={tmp_path / 't.txt'}",
    f"--out={tmp_path / 'x.model'}",
    "--vocab-size=50",
    "--no-byte-fallback",
  ]
  assert tokenizer("train", *train)[0] == 0
  code, out, err = tokenizer("check", f"--tokenizer={tmp_path / 'x.model'}", tmp_path / "u.txt")
  assert code == 2 and "1 more name special tokens" in out
  assert "tokens are unknown, the first in text 2" in err
  assert "1 of 2 texts do not come back: in text 2, 'laé' becomes 'la'" in err
  assert err.splitlines()[-1] == f"error: 2 problems with {tmp_path / 'x.model'}; see above"
  assert tokenizer("check", f"--tokenizer={tmp_path / 'x.model'}", tmp_path / "t.txt")[0] == 0


def test_check_of_a_run_and_of_a_function(tokenizer, tmp_path):
  about = origin.describe(origin.SHAPES["tiny"], tokenizers.BYTES)
  origin.finish(tmp_path / "run", 1, {"w": jax.numpy.zeros(1)}, about, "policy")
  code, out, err = tokenizer("check", f"--model={tmp_path / 'run'}")
  assert (code, err) == (0, "") and "rows of the embedding" in out
  about |= {"eos": [10, 256], "banned": [7]}  # as the quickstart leaves its models
  origin.finish(tmp_path / "line", 1, {"w": jax.numpy.zeros(1)}, about, "policy")
  figures = json.loads(tokenizer("check", f"--model={tmp_path / 'line'}", "--json")[1])["figures"]
  assert (
    figures["end a text"] == {"value": 2, "note": "10, 256 '<|endoftext|>'"}
    and figures["never sampled"]["value"] == 1
  )
  (tmp_path / "m.py").write_text(
    "from instructjax import models; from instructjax.runs import origin\nimport jax\n"
    "def make():\n  lm = models.build(origin.SHAPES['tiny'])\n  return lm, "
    "lm.init(jax.random.key(0)), 'bytes'\n"
  )
  assert tokenizer("check", f"--model={tmp_path / 'm.py'}:make")[0] == 0
  (tmp_path / "half" / "checkpoints").mkdir(parents=True)
  assert "this run is not finished" in tokenizer("check", f"--model={tmp_path / 'half'}")[2]


def test_what_check_refuses(tokenizer, tmp_path):
  (tmp_path / "e.txt").write_text("")
  (tmp_path / "x.gguf").write_bytes(b"GGUF and no more")
  (tmp_path / "f").mkdir()
  for arguments, problem in [
    ([], "give --tokenizer, --model or both"),
    (["--tokenizer=none.model"], "none.model: no such tokenizer"),
    (["--tokenizer=bytes", tmp_path / "e.txt"], "e.txt: no texts"),
    (["--tokenizer=bytes", tmp_path / "none.jsonl"], "none.jsonl: no such file"),
    ([f"--tokenizer={tmp_path / 'x.gguf'}"], "x.gguf: not a readable GGUF file"),
    ([f"--model={tmp_path / 'x.gguf'}"], "x.gguf: not a readable GGUF file"),
    ([f"--model={tmp_path / 'f'}"], "f: holds no tokenizer; give --tokenizer"),
    ([f"--model={tmp_path / 'f'}", "--tokenizer=bytes"], "f: holds neither model.safetensors nor"),
  ]:
    code, _, err = tokenizer("check", *arguments)
    assert code == 2 and problem in err, err


FUZZ = settings(
  deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
values = st.recursive(
  st.none() | st.booleans() | st.integers(-9, 400) | st.text(max_size=4),
  lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
  ),
  max_leaves=5,
)
NAMED = (
  "eos_token_id",
  "bos_token_id",
  "pad_token_id",
  "eos_token",
  "chat_template",
  "vocab_size",
  "model_type",
)


def quiet(*arguments) -> int:
  """The exit code; every failure ends with a message, not with a traceback."""
  with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
    code = cli.main(["tokenizer", *map(str, arguments)])
  assert code in (0, 2) and (code == 2) == ("error: " in err.getvalue())
  return code


@FUZZ
@given(
  content=st.binary(max_size=40) | st.dictionaries(st.sampled_from(NAMED), values, max_size=4),
  name=st.sampled_from(
    [
      "config.json",
      "generation_config.json",
      "tokenizer_config.json",
      "tokenizer.json",
      "tokenizer.model",
    ]
  ),
)
def test_no_file_of_a_model_makes_a_traceback(folder, tmp_path, content, name):
  copy = tmp_path / "m"
  copy.mkdir(exist_ok=True)
  for path in folder.iterdir():
    (copy / path.name).write_bytes(path.read_bytes())
  for path in {*copy.iterdir()} - {copy / path.name for path in folder.iterdir()}:
    path.unlink()
  (copy / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
  quiet("check", f"--model={copy}")
  quiet("check", f"--tokenizer={copy}", copy / name)


@FUZZ
@given(
  content=st.binary(max_size=60) | st.text(max_size=30).map(str.encode),
  name=st.sampled_from(["x.txt", "x.jsonl", "x.txt.gz"]),
)
def test_no_text_makes_a_traceback(tmp_path, content, name):
  (tmp_path / name).write_bytes(content)
  quiet("check", "--tokenizer=bytes", tmp_path / name)
  quiet("train", f"--input={tmp_path / name}", f"--out={tmp_path / 'x.model'}", "--vocab-size=262")
