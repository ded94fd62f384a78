"""Damaged model files: nothing loads that the official parser refuses, and no NaN."""

import json
import math
import struct

import gguf as package
import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors import numpy as st

from instructjax.errors import UserError
from instructjax.models import gguf, gguf_layout, hf, peft
from instructjax.models.hf import reading
from instructjax.models.llama import LlamaConfig

LLAMA = LlamaConfig(vocab_size=8, context=8, width=8, depth=1, heads=2, kv_heads=1, mlp=8)


def safetensors_file(path, *descriptions, data=b"\0" * 16):
  """A file whose header says what it is given: (name, dtype, shape, offsets) of each tensor."""
  header = {}
  for name, dtype, shape, offsets in descriptions:
    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
  text = json.dumps(header).encode()
  path.write_bytes(struct.pack("<Q", len(text)) + text + data)
  return path


@pytest.mark.parametrize(
  "descriptions",
  [
    [("a", "F32", [2], [0, 16])],  # longer than its shape
    [("a", "F32", [8], [0, 16])],  # shorter
    [("a", "F32", [2], [-8, 0]), ("b", "F32", [4], [0, 16])],
    [("a", "F32", [4], [16, 0])],
    [("a", "F32", [4], [0, 16]), ("b", "F32", [4], [0, 16])],  # one lies over the other
    [("a", "F32", [2], [0, 8]), ("b", "F32", [1], [12, 16])],  # a gap
    [("a", "F32", [3], [1, 13]), ("b", "F32", [1], [12, 16])],  # not where it should begin
    [("a", "F32", [-4], [0, 16])],
    [("a", "F32", 4, [0, 16])],
    [("a", "F32", [4], [0])],
    [("a", 3, [4], [0, 16])],
    [("a", "F32", [2.0, 2], [0, 16])],
    [("a", "F32", [2**40, 2**40], [0, 16])],
  ],
)
def test_a_header_that_the_official_parser_refuses_is_refused(tmp_path, descriptions):
  path = safetensors_file(tmp_path / "m.safetensors", *descriptions)
  with pytest.raises(SafetensorError):
    st.load_file(path)
  with pytest.raises(UserError, match=r"m\.safetensors: not a readable safetensors file"):
    reading.header(path)


def test_a_whole_header_is_read(tmp_path):
  path = safetensors_file(
    tmp_path / "m.safetensors", ("a", "F32", [2], [0, 8]), ("b", "BF16", [2, 2], [8, 16])
  )
  entries = reading.header(path)
  assert {name: entry.shape for name, entry in entries.items()} == {"a": (2,), "b": (2, 2)}
  assert entries["b"].start - entries["a"].start == 8


def test_an_empty_tensor_of_any_size_is_refused(tmp_path):
  """The official parser takes it, and numpy fails."""
  path = safetensors_file(tmp_path / "m.safetensors", ("a", "F32", [0, 2**62], [0, 0]), data=b"")
  with pytest.raises(UserError, match=r"m\.safetensors: tensor 'a' has shape"):
    reading.header(path)


def model(folder, config=LLAMA):
  from instructjax import models

  rng = np.random.default_rng(0)
  params = {}
  for path, leaf in _leaves(models.build(config).table):
    node = params
    for key in path[:-1]:
      node = node.setdefault(key, {})
    node[path[-1]] = rng.standard_normal(leaf.shape, np.float32)
  hf.save(folder, config, params)
  return folder


def _leaves(tree, path=()):
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from _leaves(value, (*path, key))
    else:
      yield (*path, key), value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300])
def test_numbers_that_are_not_finite_name_the_tensor_and_the_file(tmp_path, value):
  model(tmp_path)
  tensors = st.load_file(tmp_path / hf.SINGLE)
  name = "model.layers.0.mlp.up_proj.weight"
  tensors[name] = tensors[name].astype(np.float64)
  tensors[name][3, 2] = value
  st.save_file(tensors, tmp_path / hf.SINGLE)
  message = rf"model\.safetensors: tensor '{name}': 1 of 64 numbers are NaN, infinite or beyond"
  with pytest.raises(UserError, match=message):
    hf.load(tmp_path)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      {"rms_norm_eps": -1e308},
      r"'rms_norm_eps' is -1e.308; it must be a number above 0 and below 1",
    ),
    ({"rms_norm_eps": 0}, "'rms_norm_eps' is 0"),
    ({"rms_norm_eps": True}, "'rms_norm_eps' is True"),
    ({"rope_theta": 0}, "'rope_theta' is 0"),
    ({"rope_theta": -1e308}, "'rope_theta' is -1e"),
    ({"rope_scaling": [1]}, r"'rope_scaling' is \[1\]; it must be an object"),
    ({"rope_parameters": 3}, "'rope_parameters' is 3; it must be an object"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "'factor' is 0"),
    ({"rope_scaling": {"rope_type": ["linear"]}}, "'rope_type' is "),
    ({"num_hidden_layers": True}, "'num_hidden_layers' is True"),
    ({"num_hidden_layers": 10**9}, r"'num_hidden_layers' is 1000000000.*at most 10,000"),
    ({"num_key_value_heads": 10**8}, "kv_heads the heads"),
    ({"head_dim": 3, "partial_rotary_factor": 1}, "features rotate in pairs"),
    ({"partial_rotary_factor": 7}, "'partial_rotary_factor' is 7"),
    (
      {"tie_word_embeddings": "false"},
      "'tie_word_embeddings' is 'false'; it must be true or false",
    ),
    ({"mlp_bias": 1}, "'mlp_bias' is 1"),
    ({"model_type": ["llama"]}, "model_type is "),
    ({"hidden_act": ["silu"]}, "'hidden_act' is "),
    ({"model_type": "gemma2", "attn_logit_softcapping": "x"}, "'attn_logit_softcapping' is 'x'"),
    ({"model_type": "gemma2", "sliding_window_pattern": 0}, "'sliding_window_pattern' is 0"),
    ({"model_type": "gemma2", "layer_types": [["x"]]}, "'layer_types' is "),
    ({"model_type": "smollm3", "no_rope_layer_interval": 0}, "'no_rope_layer_interval' is 0"),
    ({"model_type": "smollm3", "no_rope_layers": [2]}, "'no_rope_layers' is "),
    ({"model_type": "gemma3", "text_config": [1]}, "'text_config' is "),
  ],
)
def test_a_configuration_out_of_range_is_refused(tmp_path, change, message):
  model(tmp_path)
  path = tmp_path / hf.CONFIG
  raw = json.loads(path.read_text())
  del raw["rope_parameters"], raw["head_dim"]
  path.write_text(json.dumps({"hidden_activation": "gelu_pytorch_tanh", **raw, **change}))
  with pytest.raises(UserError, match=rf"config\.json: .*{message}"):
    hf.load(tmp_path)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ('{"a": 1e999}', "1e999 is larger than float64 holds"),
    ('{"a": NaN}', "NaN is no number of JSON"),
    ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
    ("[" * 100_000, "malformed JSON"),
    ('{"a": ' + "[" * 80 + "]" * 80 + "}", "more than 64 objects and lists"),
    ('{"a": ' + "9" * 5000 + "}", "5000 digits"),
    ('{"a": "\\ud800"}', "surrogates not allowed"),
    ("[]", "holds no JSON object"),
  ],
)
def test_what_is_no_plain_json_is_refused(tmp_path, text, message):
  model(tmp_path)
  (tmp_path / hf.CONFIG).write_text(text)
  with pytest.raises(UserError, match=rf"config\.json: .*{message}"):
    hf.load(tmp_path)


def test_a_large_configuration_takes_no_memory_of_its_own(tmp_path):
  """The shapes are compared with the file before anything is made."""
  model(tmp_path)
  path = tmp_path / hf.CONFIG
  raw = json.loads(path.read_text()) | {"num_hidden_layers": 10_000, "intermediate_size": 10**9}
  path.write_text(json.dumps(raw))
  with pytest.raises(UserError, match=r"they belong to different models|no tensor"):
    hf.load(tmp_path)


@pytest.mark.parametrize(
  ("weight_map", "message"),
  [
    ({"a": 3}, "'weight_map' has 3 for tensor 'a'"),
    ({"a": "../m.safetensors"}, "must be the name of a file in the folder"),
    ({"a": "model.safetensors"}, "tensor 'a' is not in model.safetensors"),
    ([1], "'weight_map' is .*must be an object"),
    ({}, "no 'weight_map'"),
    ({"a": "none.safetensors"}, r"none\.safetensors: not a readable"),
  ],
)
def test_an_index_names_files_of_its_folder(tmp_path, weight_map, message):
  model(tmp_path)
  (tmp_path / hf.INDEX).write_text(json.dumps({"weight_map": weight_map}))
  with pytest.raises(UserError, match=message):
    hf.load(tmp_path)


def test_a_tensor_in_two_files_of_a_folder_is_refused(tmp_path):
  model(tmp_path)
  for name in ("x.safetensors", "y.safetensors"):
    st.save_file({"a": np.ones(1, np.float32), name: np.ones(1, np.float32)}, tmp_path / name)
  weight_map = {"a": "x.safetensors", "y.safetensors": "y.safetensors"}
  (tmp_path / hf.INDEX).write_text(json.dumps({"weight_map": weight_map}))
  with pytest.raises(UserError, match=r"tensor 'a' is in x\.safetensors and in y\.safetensors"):
    hf.load(tmp_path)


# --- GGUF ---


def gguf_file(path):
  writer = package.GGUFWriter(path, "llama")
  writer.add_block_count(1)
  writer.add_token_list(["a", "b"])
  for name in ("first", "second"):
    writer.add_tensor(name, np.full(8, len(name), np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def test_the_layout_that_the_package_writes_is_right(tmp_path):
  gguf_layout.check(memoryview(gguf_file(tmp_path / "m.gguf").read_bytes()))


@pytest.mark.parametrize("offset", [0, 16, 31, 64, 2**62])
def test_tensors_that_lie_elsewhere_are_refused(tmp_path, offset):
  """The offset of the second tensor, which should be 32, is the last number before the padding."""
  path = gguf_file(tmp_path / "m.gguf")
  content = bytearray(path.read_bytes())
  place = content.index(b"second") + len("second") + 4 + 8 + 4
  assert struct.unpack_from("<Q", content, place)[0] == 32
  struct.pack_into("<Q", content, place, offset)
  path.write_bytes(content)
  with pytest.raises(UserError, match=rf"m\.gguf: .*'second' begins at {offset} .* is 32"):
    gguf.opened(path)


@pytest.mark.parametrize("count", [2**20, 2**60, 2**64 - 1])
def test_a_list_that_claims_more_than_the_file_has_is_refused(tmp_path, count):
  path = gguf_file(tmp_path / "m.gguf")
  content = bytearray(path.read_bytes())
  place = content.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens") + 8
  assert struct.unpack_from("<Q", content, place)[0] == 2
  for element in (4, 8):  # of whole numbers, which have one size, and of texts
    struct.pack_into("<IQ", content, place - 4, element, count)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"m\.gguf: not a readable GGUF file"):
      gguf.opened(path)


def metadata(**changes):
  keys = {
    "general.architecture": "llama",
    "llama.vocab_size": 8,
    "llama.context_length": 8,
    "llama.embedding_length": 8,
    "llama.block_count": 1,
    "llama.attention.head_count": 2,
    "llama.feed_forward_length": 8,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
  }
  return keys | {name.replace("__", "."): value for name, value in changes.items()}


@pytest.mark.parametrize(
  "change",
  [
    {"llama__attention__head_count": 0},
    {"llama__attention__head_count": [2]},
    {"llama__block_count": 2**60},
    {"llama__rope__freq_base": 0.0},
    {"llama__rope__freq_base": math.nan},
    {"llama__rope__dimension_count": 6},
    {"llama__rope__scaling__type": ["linear"]},
    {"llama__attention__layer_norm_rms_epsilon": math.inf},
    {"tokenizer__ggml__tokens": 3},
    {"general__architecture": ["llama"]},
  ],
)
def test_metadata_out_of_range_are_refused(tmp_path, change):
  assert gguf.read_config(metadata(), tied=True, path=tmp_path).heads == 2
  with pytest.raises(UserError, match=str(tmp_path)):
    gguf.read_config(metadata(**change), tied=True, path=tmp_path)


# --- adapters ---


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"lora_alpha": math.nan}, "NaN is no number of JSON"),
    ({"lora_alpha": True}, "'lora_alpha' is True"),
    ({"alpha_pattern": {"(": 1}}, "'alpha_pattern' has"),
    ({"alpha_pattern": [1]}, "'alpha_pattern' is"),
    ({"base_model_name_or_path": 3}, "'base_model_name_or_path' is 3"),
  ],
)
def test_an_adapter_out_of_range_is_refused(tmp_path, change, message):
  raw = {"peft_type": "LORA", "lora_alpha": 1, "base_model_name_or_path": "m"}
  (tmp_path / peft.CONFIG).write_text(json.dumps(raw | change))
  pair = {}
  for part, shape in (("A", (2, 8)), ("B", (8, 2))):
    name = f"{peft.PREFIX}model.layers.0.self_attn.q_proj.lora_{part}.weight"
    pair[name] = np.ones(shape, np.float32)
  st.save_file(pair, tmp_path / peft.WEIGHTS)
  with pytest.raises(UserError, match=message):
    peft.base(tmp_path)
    peft.load(tmp_path, LLAMA)
