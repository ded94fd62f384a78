"""Small GGUF files written with the gguf package, read back."""

import dataclasses

import gguf as package
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from families import FAMILIES

from instructjax import models
from instructjax.errors import UserError
from instructjax.models import gguf, llama, weights

CONFIG = llama.LlamaConfig(
  vocab_size=48,
  context=64,
  width=32,
  depth=2,
  heads=4,
  kv_heads=2,
  mlp=64,
  rope_base=5000.0,
  norm_eps=1e-5,
)
KINDS = {
  "F32": package.GGMLQuantizationType.F32,
  "F16": package.GGMLQuantizationType.F16,
  "Q8_0": package.GGMLQuantizationType.Q8_0,
  "Q4_1": package.GGMLQuantizationType.Q4_1,
}


def interleaved(w, heads):
  """A [D, H, C] matrix as GGUF has it: [H * C, D], the two halves of each head as neighbours."""
  rows = w.reshape(w.shape[0], -1).T
  return rows.reshape(heads, 2, -1, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def tensors(params, config):
  p = jax.tree.map(np.asarray, params)
  yield "token_embd.weight", p["embed"]["tokens"]
  yield "output_norm.weight", p["norm"]["scale"]
  if "head" in p:
    yield "output.weight", p["head"]["w"].T
  for i in range(config.depth):
    b = jax.tree.map(lambda x, i=i: x[i], p["blocks"])
    yield f"blk.{i}.attn_norm.weight", b["attn_norm"]["scale"]
    yield f"blk.{i}.ffn_norm.weight", b["mlp_norm"]["scale"]
    yield f"blk.{i}.attn_q.weight", interleaved(b["q"]["w"], config.heads)
    yield f"blk.{i}.attn_k.weight", interleaved(b["k"]["w"], config.kv_heads)
    yield f"blk.{i}.attn_v.weight", b["v"]["w"].reshape(config.width, -1).T
    yield f"blk.{i}.attn_output.weight", b["o"]["w"].reshape(-1, config.width).T
    for ours, theirs in [("gate", "ffn_gate"), ("up", "ffn_up"), ("down", "ffn_down")]:
      yield f"blk.{i}.{theirs}.weight", b[ours]["w"].T


def write(path, config, params, kind="F32", architecture="llama", skip=(), change=None, keys=()):
  writer = package.GGUFWriter(path, architecture)
  c = config
  values = {
    "block_count": c.depth,
    "context_length": c.context,
    "embedding_length": c.width,
    "feed_forward_length": c.mlp,
    "head_count": c.heads,
    "head_count_kv": c.kv_heads,
    "vocab_size": c.vocab_size,
  }
  for name, value in values.items():
    if name not in keys:
      getattr(writer, f"add_{name}")(value)
  writer.add_rope_freq_base(c.rope_base)
  writer.add_layer_norm_rms_eps(c.norm_eps)
  writer.add_token_list([f"t{i}" for i in range(c.vocab_size)])
  for name, x in tensors(params, c):
    if name in skip:
      continue
    x = np.ascontiguousarray((change or {}).get(name, x), np.float32)
    quantised = KINDS[kind] if x.ndim == 2 else KINDS["F32"]
    writer.add_tensor(name, package.quantize(x, quantised), raw_dtype=quantised)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.fixture(scope="module")
def params():
  return tiny.perturb(llama.llama(CONFIG).init(jax.random.key(0)), 0.1)


# The largest error, as a share of the largest weight: none, half a unit in the last place, and half
# a step of a block (1/127 of its largest weight, or 1/15 of its range) plus the rounding of its
# float16 scale.
ERRORS = {"F32": 0.0, "F16": 2**-11, "Q8_0": 0.5 / 127 + 0.001, "Q4_1": 1 / 15 + 0.001}


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_written_is_read(tmp_path, params, kind):
  config, loaded, metadata = gguf.load(write(tmp_path / "m.gguf", CONFIG, params, kind))
  assert config == CONFIG
  assert metadata["tokenizer.ggml.tokens"][7] == "t7"
  largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(params) if x.ndim > 2)
  tiny.assert_trees_close(loaded, params, rtol=0, atol=ERRORS[kind] * largest)
  if kind != "F32":
    assert any(
      (np.asarray(a) != np.asarray(b)).any()
      for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(params))
    )


def test_an_untied_head_is_read(tmp_path):
  config = dataclasses.replace(CONFIG, tied=False)
  params = llama.llama(config).init(jax.random.key(0))
  path = write(tmp_path / "m.gguf", config, params)
  read_config, loaded, _ = gguf.load(path)
  assert models.configuration(path) == read_config  # of the metadata alone
  assert read_config == config
  tiny.assert_trees_equal(loaded, params)


def test_load_builds_the_model_and_hands_on_the_metadata(tmp_path, params):
  path = write(tmp_path / "m.gguf", CONFIG, params)
  loaded = models.load(path, dtype="bfloat16", dropout=0.1)
  assert loaded.config == dataclasses.replace(CONFIG, dtype="bfloat16", dropout=0.1)
  assert loaded.tokenizer["general.architecture"] == "llama"
  assert loaded.lm.vocab_size == 48


def test_a_missing_tensor_is_named(tmp_path, params):
  path = write(tmp_path / "m.gguf", CONFIG, params, skip=("blk.1.ffn_up.weight",))
  with pytest.raises(UserError, match=r"m\.gguf: no tensor 'blk\.1\.ffn_up\.weight'"):
    gguf.load(path)


def test_a_misshapen_tensor_is_named(tmp_path, params):
  path = write(
    tmp_path / "m.gguf", CONFIG, params, change={"blk.0.attn_v.weight": np.zeros((16, 64))}
  )
  with pytest.raises(
    UserError, match=r"tensor 'blk\.0\.attn_v\.weight' has shape \(16, 64\).*asks for \(16, 32\)"
  ):
    gguf.load(path)


def test_another_architecture_and_a_missing_key_are_refused(tmp_path, params):
  with pytest.raises(
    UserError, match="architecture 'bloom'; those read from GGUF are llama, qwen2"
  ):
    gguf.load(write(tmp_path / "a.gguf", CONFIG, params, architecture="bloom"))
  with pytest.raises(UserError, match=r"no key 'llama\.block_count'"):
    gguf.load(write(tmp_path / "b.gguf", CONFIG, params, keys=("block_count",)))


def test_a_file_that_is_no_gguf_or_is_cut_short_is_refused(tmp_path, params):
  (tmp_path / "text.gguf").write_text("not a model, " * 10)
  with pytest.raises(UserError, match="not a readable GGUF file"):
    gguf.load(tmp_path / "text.gguf")
  whole = write(tmp_path / "m.gguf", CONFIG, params).read_bytes()
  for size in (0, 3, 200, len(whole) // 2, len(whole) - 40):
    (tmp_path / "cut.gguf").write_bytes(whole[:size])
    with pytest.raises(UserError, match=r"cut\.gguf"):
      gguf.load(tmp_path / "cut.gguf")


OTHERS = {
  "gpt2": "gpt2",
  "gpt2-untied": "gpt2",
  "gpt_neox": "gptneox",
  "qwen2": "qwen2",
  "qwen3": "qwen3",
  "gemma": "gemma",
  "gemma2": "gemma2",
}


def write_other(path, config, params, architecture, extra=()):
  """A file of another architecture: its tensors in the order [O, I], Gemma's norms with 1 added."""
  writer, c = package.GGUFWriter(path, architecture), config
  gpt = architecture in gguf.GPTS
  writer.add_block_count(c.depth)
  writer.add_context_length(c.context)
  writer.add_embedding_length(c.width)
  writer.add_feed_forward_length(c.mlp or 4 * c.width)
  writer.add_head_count(c.heads)
  writer.add_vocab_size(c.vocab_size)
  if gpt:
    writer.add_layer_norm_eps(c.norm_eps)
    writer.add_parallel_residual(c.parallel)
    writer.add_rope_dimension_count(c.rotary)
  else:
    writer.add_head_count_kv(c.kv_heads)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_rope_freq_base(c.rope_base)
    writer.add_key_length(llama.head_width(c))
  if architecture == "gemma2":
    writer.add_sliding_window(c.window)
    writer.add_attn_logit_softcapping(c.softcap)
    writer.add_final_logit_softcapping(c.logit_softcap)
  for tensor in gguf.tensors(c):
    for i in range(c.depth if tensor.stacked else 1):
      x = weights.extract(tensor, i, params) + np.float32(tensor.shift)
      writer.add_tensor(tensor.name.format(i), np.ascontiguousarray(x))
  for name in extra:
    writer.add_tensor(name, np.ones(4, np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_are_read(tmp_path, name):
  config = dataclasses.replace(FAMILIES[name], **({"query_width": 0} if name == "gemma2" else {}))
  rng = np.random.default_rng(0)
  table = models.build(config).table
  params = jax.tree.map(
    lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape, np.float32)), table
  )
  path = write_other(tmp_path / "m.gguf", config, params, OTHERS[name])
  read_config, loaded, _ = gguf.load(path)
  assert read_config == config
  tiny.assert_trees_close(loaded, params, rtol=0, atol=1e-6 if "gemma" in name else 0)


def test_a_tensor_that_would_change_the_model_is_refused(tmp_path):
  """Llama 3.1 in GGUF has its stretched frequencies as a tensor."""
  config = FAMILIES["qwen2"]
  params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), models.build(config).table)
  with pytest.raises(
    UserError, match=r"holds tensor 'rope_freqs\.weight', which is not implemented"
  ):
    gguf.load(
      write_other(tmp_path / "m.gguf", config, params, "qwen2", extra=["rope_freqs.weight"])
    )
