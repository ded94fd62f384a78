"""Throws damaged settings, files, templates and replies at the package, and counts the outcomes.

  python scripts/fuzz.py                             2,500 cases of each kind
  python scripts/fuzz.py --seed=1 --cases=100000     other cases, and more: 12,500 of each kind
  python scripts/fuzz.py --kind=gguf --case=17       one case again, with its traceback

A case is accepted, or refused by a `UserError` of one line. Everything else is a fault: another
exception, a case that takes longer than PATIENCE, weights that the official parser would not load
or would load as other numbers, and a message of several lines. Each case has a generator of random
numbers of its own, from the seed, the kind and its number.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import json
import math
import random
import signal
import socketserver
import struct
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from instructjax import models, rewards, settings
from instructjax.data.records import files, sources
from instructjax.data.tokens import chat, tokenizers
from instructjax.errors import UserError
from instructjax.models import gguf, hf, weights
from instructjax.models.hf import configs, reading
from instructjax.models.llama import LlamaConfig
from instructjax.rewards import endpoint
from instructjax.settings import fields

CASES = 20_000
PATIENCE = 30.0  # seconds of a case
LONGEST_MESSAGE = 3000  # characters

# What takes the place of a value. JSON has no NaN and no infinity, but Python writes them.
NASTY: tuple[Any, ...] = (
  None,
  True,
  False,
  0,
  -1,
  1,
  3,
  2**31,
  2**63,
  -(10**30),
  10**400,
  0.0,
  1.5,
  -1e308,
  1e308,
  math.nan,
  math.inf,
  "",
  "x",
  "1",
  "false",
  "\0",
  "\ud800",
  "../x",
  "x" * 500,
  [],
  {},
  [1],
  [[]],
  ["x"],
  {"x": 1},
  {"type": "linear"},
)


class WrongError(Exception):
  """What was accepted is not what it should be."""


class HangError(KeyboardInterrupt):
  """A case takes too long. Nothing in the package catches a KeyboardInterrupt."""


# --- damage ---


def damaged_json(rng: random.Random, value: Any, times: int = 3) -> Any:
  """Returns a copy of a value in which up to `times` places are changed, removed or added."""
  value = copy.deepcopy(value)
  for _ in range(rng.randint(0, times)):
    node = value
    while isinstance(node, dict | list) and node:
      key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
      # Go down, or stop here and do some damage.
      if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.6:
        node = node[key]
        continue
      _damage(rng, node, key)
      break
  return value


def _damage(rng: random.Random, node: Any, key: Any) -> None:
  """Changes, removes or adds one entry of an object or a list."""
  way = rng.randrange(4)
  nasty = copy.deepcopy(rng.choice(NASTY))
  if way == 0:
    del node[key]
  elif way == 1 and isinstance(node, list):
    node.append(nasty)
  elif way == 1:
    node[rng.choice(["x", "", "id", "type"])] = nasty
  elif way == 2 and isinstance(node[key], int | float) and not isinstance(node[key], bool):
    node[key] = rng.choice([-node[key], node[key] + 1, node[key] * 2, node[key] - 8, 0])
  else:
    node[key] = nasty


def damaged_bytes(rng: random.Random, content: bytes, first: int = 0) -> bytes:
  """Returns bytes of which a few, from `first` on, are others, missing or repeated."""
  changed = bytearray(content)
  for _ in range(rng.randint(1, 3)):
    if len(changed) <= first:
      break
    place = rng.randrange(first, len(changed))
    way = rng.randrange(5)
    if way == 0:
      changed[place] = rng.randrange(256)
    elif way == 1:
      del changed[place:]
    elif way == 2:
      del changed[place : place + rng.randint(1, 16)]
    elif way == 3:
      changed[place:place] = changed[place : place + rng.randint(1, 16)]
    else:
      number = rng.choice([0, 1, 2**16, 2**31, 2**32 - 1, 2**60, 2**64 - 1])
      changed[place : place + 8] = struct.pack("<Q", number)
  return bytes(changed)


def json_bytes(rng: random.Random, value: Any) -> bytes:
  """Returns a value as JSON, now and then damaged as a text too."""
  content = json.dumps(value).encode()
  if rng.random() < 0.1:
    content = damaged_bytes(rng, content)
  if rng.random() < 0.02:
    content = rng.choice([b"[" * 50_000, b'{"a":' * 5000, b"9" * 5000, b"\xff", b"", b"null"])
  return content


# --- the kinds: each function is one case, in a folder of its own ---


def fuzz_settings(rng: random.Random, folder: Path) -> None:
  """Sets random fields of a preset to random texts."""
  stage = rng.choice(list(settings.PRESETS))
  base = settings.preset(stage)
  paths = [field.path for field in fields.walk(base)]
  words = []
  for _ in range(rng.randint(1, 3)):
    path = rng.choice(paths)
    if rng.random() < 0.1:
      path = rng.choice([path + ".x", path[:-1], "", ".", "__class__", path.replace(".", "..")])
    words.append(f"--config.{path}={_random_text(rng)}")
  changed = settings.override(base, settings.assignments(words))
  for field in fields.walk(changed):
    numbers = field.value if isinstance(field.value, tuple) else [field.value]
    for number in numbers:
      if isinstance(number, float) and not math.isfinite(number):
        raise WrongError(f"{field.path} is {number}")


def _random_text(rng: random.Random) -> str:
  """Returns a text that may be a number, several, or nonsense."""
  number = rng.choice([0, 1, 2, 8, 0.5, -1, 10**9, 1e-5, 1e300])
  texts = [
    str(number),
    str(-number),
    f"{number},{number}",
    rng.choice(["true", "false", "none", "None", "nan", "inf", "-inf", "1e999", "1_000", "0x10"]),
    rng.choice(["", " ", ",", "()", "[]", "{[]:1}", "1+1", "x" * 5000, "9" * 5000, "-" * 5000]),
    rng.choice(["cosine", "adamw", "float32", "bytes", "runs/x", "a*b + c", "1e999*x", "\0", "é"]),
  ]
  return rng.choice(texts)


def fuzz_safetensors(rng: random.Random, folder: Path) -> None:
  """Damages a safetensors file, and compares what is read with the official parser."""
  from safetensors import SafetensorError
  from safetensors.numpy import load_file, save

  tensors = {}
  for i in range(rng.randint(1, 4)):
    shape = [rng.randint(0, 3) for _ in range(rng.randint(0, 3))]
    kind = rng.choice(["float32", "float16", "float64"])
    tensors[f"t{i}"] = np.full(shape, i + 0.5, kind)
  content = save(tensors)
  if rng.random() < 0.7:
    length = int.from_bytes(content[:8], "little")
    header = damaged_json(rng, json.loads(content[8 : 8 + length]))
    text = json_bytes(rng, header)
    stated = len(text) + rng.choice([0, 0, 0, 0, 1, -1, 8, 2**40])
    content = struct.pack("<Q", max(stated, 0)) + text + content[8 + length :]
  else:
    content = damaged_bytes(rng, content)
  path = folder / "m.safetensors"
  path.write_bytes(content)
  ours = {}
  for name, entry in reading.header(path).items():
    stored = reading.stored(name, entry)
    ours[name] = weights.finite(stored.read(), stored.place)
  try:
    theirs = load_file(path)
  except SafetensorError as error:
    raise WrongError(f"the official parser refuses it: {error}") from error
  if ours.keys() != theirs.keys():
    raise WrongError(f"the official parser has {sorted(theirs)}, ours {sorted(ours)}")
  for name, numbers in ours.items():
    if not np.array_equal(numbers, theirs[name].astype(np.float32)):
      raise WrongError(f"tensor {name} has other numbers than the official parser gives")


SMALL = LlamaConfig(vocab_size=8, context=8, width=8, depth=1, heads=2, kv_heads=1, mlp=8)


@cache
def gguf_content() -> bytes:
  """The bytes of a whole GGUF file with a tokenizer."""
  import gguf as package

  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "m.gguf")
    writer = package.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(8)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(8)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*"abcdef", "ab", "<e>"])
    writer.add_token_types([1] * 7 + [3])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(7)
    writer.add_chat_template("{{ messages[0].content }}")
    for tensor in gguf.tensors(SMALL):
      shapes = [weights.layout(SMALL)[name].shape[tensor.stacked :] for name in tensor.leaves]
      numbers = np.full(weights.file_shape(tensor, shapes), 0.5, np.float32)
      writer.add_tensor(tensor.name.format(0), numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def fuzz_gguf(rng: random.Random, folder: Path) -> None:
  """Damages the bytes of a GGUF file, mostly in its head, and reads all of it."""
  content = gguf_content()
  head = content.rindex(b"ffn_down.weight") + 64
  if rng.random() < 0.8:
    content = damaged_bytes(rng, content[:head]) + content[head:]
  else:
    content = damaged_bytes(rng, content)
  path = folder / "m.gguf"
  path.write_bytes(content)
  reader = gguf.opened(path)
  metadata = gguf.contents(reader, path)
  places = []
  for tensor in reader.tensors:
    stored = gguf._stored(path, tensor)
    weights.finite(stored.read(), stored.place)
    places.append((int(tensor.data_offset), int(tensor.data_offset + tensor.n_bytes)))
  places.sort()
  for (_, end), (start, _) in itertools.pairwise(places):
    if start < end:
      raise WrongError(f"a tensor begins at {start}, before another ends at {end}")
  models.build(gguf.read_config(metadata, tied=True, path=path))
  tokenizers.from_gguf(metadata)
  chat.find(metadata)


@cache
def model_folder() -> dict[str, Any]:
  """The files of whole model folders by their names: JSON as values, and bytes."""
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    params = weights.nest(
      {path: np.full(leaf.shape, 0.5, np.float32) for path, leaf in weights.layout(SMALL).items()}
    )
    hf.save(folder, SMALL, params)
    config = json.loads((folder / hf.CONFIG).read_text())
    content = (folder / hf.SINGLE).read_bytes()
    names = list(reading.header(folder / hf.SINGLE))
  return {
    hf.CONFIG: config,
    hf.SINGLE: content,
    hf.INDEX: {"metadata": {}, "weight_map": dict.fromkeys(names, hf.SINGLE)},
    "generation_config.json": {"eos_token_id": [7, 6]},
    "tokenizer_config.json": {
      "eos_token": {"content": "<e>"},
      "chat_template": [{"name": "default", "template": "{{ messages[0].content }}"}],
    },
    "special_tokens_map.json": {"bos_token": "a", "eos_token": {"content": "<e>"}},
    "tokenizer.json": tokenizer_json(),
  }


def tokenizer_json() -> Any:
  """A small tokenizer.json as a value."""
  from tokenizers import AddedToken, Tokenizer, models

  tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate("abcdef")}, []))
  tokenizer.add_special_tokens([AddedToken("g"), AddedToken("<e>")])
  return json.loads(tokenizer.to_str())


# Settings of the families, of which the damage takes some into a config.json.
MORE_OF_CONFIG = {
  "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0},
  "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
  "layer_types": ["full_attention"],
  "sliding_window": 4,
  "sliding_window_pattern": 2,
  "attn_logit_softcapping": 5.0,
  "no_rope_layers": [1],
  "partial_rotary_factor": 0.5,
  "n_embd": 8,
  "n_layer": 1,
  "n_head": 2,
  "n_positions": 8,
  "architectures": ["x"],
  "text_config": {"hidden_size": 8},
}


def fuzz_model_json(rng: random.Random, folder: Path) -> None:
  """Damages one of the JSON files of a model folder, and opens what can be opened of it."""
  files = copy.deepcopy(model_folder())
  if rng.random() < 0.5:
    files[hf.CONFIG]["model_type"] = rng.choice(list(configs.CLASSES))
    for key in rng.sample(list(MORE_OF_CONFIG), 4):
      files[hf.CONFIG][key] = copy.deepcopy(MORE_OF_CONFIG[key])
  damaged = rng.choice([name for name in files if name.endswith(".json")])
  for name, value in files.items():
    if name == hf.INDEX and rng.random() < 0.5 and damaged != name:
      continue
    if isinstance(value, bytes):
      content = value
    elif name == damaged:
      content = json_bytes(rng, damaged_json(rng, value))
    else:
      content = json.dumps(value).encode()
    (folder / name).write_bytes(content)
  path = folder / hf.CONFIG
  if damaged in (hf.CONFIG, hf.INDEX):
    raw = configs.read_json(path)
    reading.is_classifier(raw)
    models.build(configs.parse(raw, path))
    reading.index(folder)
    # To place weights takes longer than all the rest.
    if rng.random() < 0.05:
      _check_loaded(folder)
  else:
    tokenizer = tokenizers.load(folder)
    tokenizer.decode(tokenizer.encode("abc"))
    chat.find(folder)


def _check_loaded(folder: Path) -> None:
  """Loads a model whose weights are all 0.5."""
  import jax

  _, params = hf.load(folder)
  if any(not (np.asarray(leaf) == 0.5).all() for leaf in jax.tree.leaves(params)):
    raise WrongError("weights are not what the file holds")


PIECES = (
  "{% for m in messages %}",
  "{% for i in range(99999) %}",
  "{% for x in [1, 2] recursive %}",
  "{% endfor %}",
  "{% if m.role == 'user' %}",
  "{% elif loop.first %}",
  "{% else %}",
  "{% endif %}",
  "{% set x = x ~ x %}",
  "{% set x = 'ab' * 9 %}",
  "{% set ns = namespace(x='ab') %}",
  "{% set ns.x = ns.x ~ ns.x %}",
  "{% macro f(n) %}",
  "{% endmacro %}",
  "{% generation %}",
  "{% endgeneration %}",
  "{{ f(1) }}{{ f(f(2)) }}",
  "{{ loop(x) }}",
  "{{ m.content }}",
  "{{ m['content']|trim|upper }}",
  "{{ messages }}",
  "{{ messages|tojson(indent=99999999) }}",
  "{{ eos_token }}",
  "{{ '<|endoftext|>' }}",
  "{{ raise_exception('no') }}",
  "{{ 1 / 0 }}",
  "{{ 9 ** 9 ** 9 }}",
  "{{ 'x' * 10 ** 9 }}",
  "{{ '%999999999d' % 1 }}",
  "{{ x.y.z }}",
  "{{ ''.__class__.__mro__[1].__subclasses__() }}",
  "{{ '\\ud800' }}",
  "{{ strftime_now('%Y') }}",
  "{{ x|replace('a', x)|list|join(x) }}",
  "{% break %}",
  "{% include 'x' %}",
  "{{ " + "(" * 300 + "1" + ")" * 300 + " }}",
  "{{",
  "%}",
  "text\n",
)
WHOLE = (
  "{% for m in messages %}{{ m.role[0] + m.content }}HERE"
  "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def fuzz_template(rng: random.Random, folder: Path) -> None:
  """Renders a chat by a template of random pieces, or by one that is nearly whole."""
  chance = rng.random()
  if chance < 0.3:
    text = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 12)))
    # Most pieces want an end, without which they are a syntax error and no test.
    text += "".join(
      "{% end" + word + " %}" * (text.count("{% " + word) > text.count("{% end" + word))
      for word in ("if", "for", "macro", "generation")
      if text.count("{% " + word) > text.count("{% end" + word)
    )
  elif chance < 0.5:
    text = damaged_bytes(rng, WHOLE.encode()).decode(errors="replace")
  else:
    text = WHOLE.replace("HERE", rng.choice(PIECES)) + rng.choice(["", rng.choice(PIECES)])
  template = chat.load("t.jinja", text, {}, tokenizers.of_bytes())
  chat.render(template, chat.PROBE, prompt=True)


class Replies(NamedTuple):
  """A server on this machine whose next reply is `content[0]`."""

  url: str
  content: list[bytes]


@cache
def reply_server() -> Replies:
  """A server that sends the bytes that it is given, and closes the connection."""
  content = [b""]

  class Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
      with contextlib.suppress(OSError):
        self.request.recv(65_536)
        self.request.sendall(content[0])

  server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
  server.daemon_threads = True
  threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
  return Replies(f"http://127.0.0.1:{server.server_address[1]}/score", content)


def fuzz_http_reply(rng: random.Random, folder: Path) -> None:
  """Answers a request for two scores with a damaged head or body."""
  body = json_bytes(rng, damaged_json(rng, {"scores": [1.5, -2]}))
  size = len(body) if rng.random() < 0.8 else rng.choice([0, -1, len(body) + 9, 10**30])
  head = [b"HTTP/1.1 200 OK", b"Content-Type: application/json", b"Content-Length: %d" % size]
  if rng.random() < 0.2:
    head[2] = b"Transfer-Encoding: chunked"
    body = rng.choice([b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body), b"-1\r\n", b"zz\r\n", body])
  if rng.random() < 0.2:
    status = rng.choice(
      [b"204 x", b"302 x", b"400 x", b"500 x", b"-1", b"x", b"429 x\r\nRetry-After: x"]
    )
    head[0] = b"HTTP/1.1 " + status
  content = b"\r\n".join(head) + b"\r\n\r\n" + body
  if rng.random() < 0.2:
    content = damaged_bytes(rng, content)
  server = reply_server()
  server.content[0] = content
  options = {
    "token": "",
    "header": "",
    "batch": 2,
    "concurrent": 1,
    "timeout": 1.0,
    "retries": 0,
    "wait": 0.0,
  }
  score = endpoint.open_endpoint(server.url, options)
  scores = score(["p", "q"], ["a", "b"])
  if not np.isfinite(rewards.check_scores("fuzz", scores, ["p", "q"], ["a", "b"])).all():
    raise WrongError(f"scores {scores} are not finite")


LINES = (
  "import sys",
  "import no_such_module",
  "from instructjax import settings",
  "sys.exit()",
  "raise SystemExit(0)",
  "raise KeyError('x')",
  "1 / 0",
  "x = [",
  "get_config = 3",
  "def get_config(a, b): pass",
  "class E(BaseException): pass",
  "raise E",
)
RETURNS = (
  "settings.config_dict('sft')",
  "settings.config_dict('none')",
  "settings.config_dict(preset)",
  "None",
  "3",
  "{}",
  "{1: 2}",
  "{'stage': 'sft'}",
  "{'stage': ['sft']}",
  "{'stage': 'sft', 'batch': float('nan')}",
  "{'stage': 'sft', 'batch': 10 ** 5000}",
  "{'stage': 'sft', 'optimizer': 3}",
  "{'stage': 'sft', 'optimizer': {'lr': open}}",
  "{'stage': 'sft', 'x': {}}",
  "{}['preset']",
  "exit(0)",
  "get_config()",
  "type('C', (), {'to_dict': lambda self: 1 / 0})()",
)


def fuzz_config_file(rng: random.Random, folder: Path) -> None:
  """Reads a configuration file of random lines."""
  lines = ["from instructjax import settings"]
  lines += [rng.choice(LINES) for _ in range(rng.choice([0, 0, 0, 1, 2]))]
  argument = rng.choice(["", "preset='sft'", "preset"])
  result = rng.choice([RETURNS[0], rng.choice(RETURNS)])
  lines += [f"def get_config({argument}):", f"  return {result}"]
  content = "\n".join(lines).encode()
  if rng.random() < 0.2:
    content = damaged_bytes(rng, content)
  path = folder / "config.py"
  path.write_bytes(content)
  # Modules are compiled anew, whatever an earlier case has left beside them.
  sys.dont_write_bytecode = True
  settings.load(str(path) + rng.choice(["", ":sft", ":none"]))


ROWS: dict[str, Any] = {
  "demonstration": {"prompt": "p", "completion": "c", "user": "u"},
  "comparison": {"prompt": "p", "completions": ["x", "y"], "ranks": [1, 2], "labeler": "l"},
  "prompt": {"prompt": [{"role": "user", "content": "q"}], "id": "1"},
  "text": {"text": "t", "source": "s"},
}


def fuzz_records(rng: random.Random, folder: Path) -> None:
  """Reads a file of records in which some rows are damaged."""
  kind = rng.choice(list(ROWS))
  rows = [json_bytes(rng, damaged_json(rng, ROWS[kind])) for _ in range(rng.randint(1, 3))]
  path = folder / "d.jsonl"
  path.write_bytes(b"\n".join(rows))
  count = len(sources.load(str(path), kind))
  # Every row gives a record; a file that happens to be an array has another number of rows.
  if count != len(list(files.rows(path))):
    raise WrongError(f"{count} records of {len(rows)} lines")


KINDS: dict[str, Callable[[random.Random, Path], None]] = {
  "settings": fuzz_settings,
  "safetensors": fuzz_safetensors,
  "gguf": fuzz_gguf,
  "model_json": fuzz_model_json,
  "template": fuzz_template,
  "http_reply": fuzz_http_reply,
  "config_file": fuzz_config_file,
  "records": fuzz_records,
}
# The problems of a file of records are listed, each on its line.
LISTS = ("records",)


# --- running ---


class Outcome(NamedTuple):
  """What became of a case: accepted, refused or fault, and what was said."""

  word: str
  message: str = ""


def attempt(kind: str, seed: int, number: int) -> Outcome:
  """Runs one case."""
  rng = random.Random(f"{seed} {kind} {number}")
  try:
    with tempfile.TemporaryDirectory() as folder, _limited():
      KINDS[kind](rng, Path(folder))
  except UserError as error:
    return _checked_refusal(kind, str(error))
  except BaseException as error:
    if isinstance(error, KeyboardInterrupt) and not isinstance(error, HangError):
      raise
    return Outcome("fault", traceback.format_exc())
  return Outcome("accepted")


def _checked_refusal(kind: str, message: str) -> Outcome:
  """Returns the outcome of a refusal, whose message must be a short line."""
  if "\n" in message and kind not in LISTS:
    return Outcome("fault", f"a message of several lines: {message!r}")
  if len(message) > LONGEST_MESSAGE:
    return Outcome("fault", f"a message of {len(message)} characters: {message[:200]!r}")
  return Outcome("refused", message)


@contextlib.contextmanager
def _limited() -> Iterator[None]:
  """Ends a case that takes too long."""

  def end(number: int, frame: Any) -> None:
    raise HangError(f"longer than {PATIENCE:g} seconds")

  before = signal.signal(signal.SIGALRM, end)
  signal.setitimer(signal.ITIMER_REAL, PATIENCE)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def run(kind: str, seed: int, cases: int) -> tuple[Counter[str], list[str]]:
  """Runs the cases of a kind; returns the counts of their outcomes, and the faults in words."""
  counts: Counter[str] = Counter()
  faults = []
  for number in range(cases):
    outcome = attempt(kind, seed, number)
    counts[outcome.word] += 1
    if outcome.word == "fault":
      faults.append(f"--kind={kind} --seed={seed} --case={number}\n{outcome.message}")
  return counts, faults


def main() -> int:
  """Prints the counts by kind and every fault; returns 1 where there is one."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--cases", type=int, default=CASES, help="in all; default 20000")
  parser.add_argument("--kind", choices=KINDS, help="only this kind")
  parser.add_argument("--case", type=int, help="only this case of the kind, with what was said")
  args = parser.parse_args()
  if args.case is not None:
    outcome = attempt(args.kind, args.seed, args.case)
    print(outcome.word, outcome.message)
    return int(outcome.word == "fault")
  kinds = [args.kind] if args.kind else list(KINDS)
  print(f"{'kind':12} {'cases':>7} {'accepted':>9} {'refused':>8} {'faults':>7} {'seconds':>8}")
  all_faults = []
  for kind in kinds:
    begun = time.monotonic()
    cases = args.cases // len(kinds)
    counts, faults = run(kind, args.seed, cases)
    seconds = time.monotonic() - begun
    row = f"{counts['accepted']:9,} {counts['refused']:8,} {counts['fault']:7,} {seconds:8.1f}"
    print(f"{kind:12} {cases:7,} {row}", flush=True)
    all_faults += faults
  for fault in all_faults[:20]:
    print(f"\n{fault}")
  return int(bool(all_faults))


if __name__ == "__main__":
  sys.exit(main())
