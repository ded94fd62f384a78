"""Model folders: written and read back bit for bit, the errors of broken ones, and `models.load`."""

import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors import numpy as st

from instructjax import models, sharding
from instructjax.errors import UserError
from instructjax.models import freeze, hf
from instructjax.models.gpt import GPTConfig
from instructjax.models.llama import LlamaConfig

GPT = GPTConfig(vocab_size=48, context=16, width=32, depth=3, heads=4, norm_eps=1e-6)
LLAMA = LlamaConfig(
  vocab_size=48, context=16, width=32, depth=3, heads=4, kv_heads=2, mlp=64, rope_base=5e5, norm_eps=1e-6
)
UNTIED = LlamaConfig(vocab_size=48, context=16, width=32, depth=3, heads=4, kv_heads=4, mlp=64, tied=False)
UNTIED_GPT = GPTConfig(vocab_size=48, context=16, width=32, depth=3, heads=2, tied=False)
CONFIGS = {"gpt": GPT, "llama": LLAMA, "llama-untied": UNTIED, "gpt-untied": UNTIED_GPT}


@cache
def weights(config):
  return tiny.perturb(models.build(config).init(jax.random.key(0)), 0.1)


def saved(folder, config, **kw):
  hf.save(folder, config, weights(config), **kw)
  return folder


def edit(folder, change):
  """Rewrites the tensors of a folder."""
  tensors = st.load_file(folder / hf.SINGLE)
  change(tensors)
  st.save_file(tensors, folder / hf.SINGLE)


def edit_config(folder, **changes):
  raw = json.loads((folder / hf.CONFIG).read_text()) | changes
  (folder / hf.CONFIG).write_text(json.dumps({k: v for k, v in raw.items() if v != "absent"}))


@pytest.mark.parametrize("shard_bytes", [2**30, 20_000])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_was_saved_is_loaded_bit_for_bit(tmp_path, name, shard_bytes):
  config = CONFIGS[name]
  saved(tmp_path, config, shard_bytes=shard_bytes)
  assert (tmp_path / hf.INDEX).is_file() == (shard_bytes < 2**30)
  found, params = hf.load(tmp_path)
  assert found == config
  tiny.assert_trees_equal(params, weights(config))
  assert not list(tmp_path.glob(".*"))


def test_an_index_names_the_file_of_every_tensor(tmp_path):
  saved(tmp_path, LLAMA, shard_bytes=20_000)
  index = json.loads((tmp_path / hf.INDEX).read_text())
  assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(weights(LLAMA)))
  files = sorted(set(index["weight_map"].values()))
  assert files == sorted(p.name for p in tmp_path.glob("*.safetensors"))
  for file in files:
    assert (tmp_path / file).stat().st_size < 22_000
    assert set(st.load_file(tmp_path / file)) == {k for k, v in index["weight_map"].items() if v == file}


def test_saving_again_leaves_nothing_of_the_model_before(tmp_path):
  saved(tmp_path, UNTIED, shard_bytes=20_000)
  saved(tmp_path, GPT)
  assert sorted(p.name for p in tmp_path.iterdir()) == [hf.CONFIG, hf.SINGLE]
  saved(tmp_path, LLAMA, shard_bytes=20_000)
  assert hf.load(tmp_path)[0] == LLAMA


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_a_model_in_two_parts_is_saved_whole(tmp_path, name):
  config = CONFIGS[name]
  params = weights(config)
  trunk, trained = freeze.split(params, 1, dtype="bfloat16")
  hf.save(tmp_path, config, trunk | trained)
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params)
  _, loaded = hf.load(tmp_path)
  tiny.assert_trees_equal(loaded["embed"], rounded["embed"])
  below = lambda tree: jax.tree.map(lambda x: x[:2], tree["blocks"])
  tiny.assert_trees_equal(below(loaded), below(rounded))
  tiny.assert_trees_equal(jax.tree.map(lambda x: x[2:], loaded["blocks"]), trained["blocks"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files_become_float32(tmp_path, dtype):
  saved(tmp_path, LLAMA)
  edit(tmp_path, lambda t: t.update({name: x.astype(jnp.dtype(dtype)) for name, x in t.items()}))
  _, params = hf.load(tmp_path)
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  tiny.assert_trees_equal(params, jax.tree.map(lambda x: x.astype(dtype).astype(jnp.float32), weights(LLAMA)))


def test_the_first_gpt2_checkpoints_have_names_without_a_prefix(tmp_path):
  saved(tmp_path, GPT)

  def strip(tensors):
    bare = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    tensors.clear()
    tensors.update(bare | {"h.0.attn.bias": np.ones((1, 1, 16, 16), np.float32)})  # their causal mask, ignored

  edit(tmp_path, strip)
  tiny.assert_trees_equal(hf.load(tmp_path)[1], weights(GPT))


def test_loading_places_the_parameters_on_the_mesh(tmp_path):
  saved(tmp_path, LLAMA)
  with jax.set_mesh(sharding.make_mesh(1, 2, 4)):
    _, params = hf.load(tmp_path)
    q = params["blocks"]["q"]["w"]
    assert jax.typeof(q).sharding.spec == jax.P(None, "fsdp", "model", None)
    assert q.addressable_shards[0].data.size == q.size // 8
    hf.save(tmp_path / "again", LLAMA, params)
  tiny.assert_trees_equal(hf.load(tmp_path / "again")[1], weights(LLAMA))


# --- broken folders ---


@pytest.mark.parametrize(
  "config, name",
  [(GPT, "transformer.h.2.attn.c_attn.bias"), (LLAMA, "model.layers.1.mlp.up_proj.weight"), (UNTIED, "lm_head.weight")],
)
def test_a_missing_or_misshapen_tensor_is_named(tmp_path, config, name):
  saved(tmp_path, config)
  right = st.load_file(tmp_path / hf.SINGLE)[name].shape
  edit(tmp_path, lambda t: t.update({name: np.zeros((*right[:-1], 7), np.float32)}))
  with pytest.raises(UserError, match=f"tensor '{name}' has shape .*7.*asks for") as error:
    hf.load(tmp_path)
  assert str(right) in str(error.value)
  edit(tmp_path, lambda t: t.pop(name))
  with pytest.raises(UserError, match=f"no tensor '{name}'"):
    hf.load(tmp_path)


def test_a_matrix_stored_the_other_way_round_is_not_taken(tmp_path):
  saved(tmp_path, GPT)
  name = "transformer.h.0.mlp.c_fc.weight"
  edit(tmp_path, lambda t: t.update({name: np.ascontiguousarray(t[name].T)}))
  with pytest.raises(UserError, match=rf"'{name}' has shape \(128, 32\).*asks for \(32, 128\)"):
    hf.load(tmp_path)


@pytest.mark.parametrize(
  "config, change, message",
  [
    (LLAMA, {"model_type": "mistral"}, "model_type is 'mistral'; only 'gpt2' and 'llama'"),
    (LLAMA, {"hidden_size": "absent"}, "'hidden_size' is None; it must be a positive whole number"),
    (LLAMA, {"attention_bias": True}, "'attention_bias' is True; this variant is not implemented"),
    (LLAMA, {"head_dim": 16}, "'head_dim' is 16"),
    (LLAMA, {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "'rope_type' is 'llama3'"),
    (GPT, {"activation_function": "relu"}, "'activation_function' is 'relu'"),
    (GPT, {"n_inner": 100}, "'n_inner' is 100"),
    (GPT, {"n_layer": "12"}, "'n_layer' is '12'"),
  ],
)
def test_a_configuration_that_would_be_computed_differently_is_refused(tmp_path, config, change, message):
  saved(tmp_path, config)
  edit_config(tmp_path, **change)
  with pytest.raises(UserError, match=message):
    hf.load(tmp_path)


def test_older_configurations_are_read(tmp_path):
  saved(tmp_path, LLAMA)
  edit_config(tmp_path, rope_parameters="absent", head_dim="absent")
  assert hf.load(tmp_path)[0] == LLAMA
  saved(tmp_path, UNTIED)
  edit_config(
    tmp_path, num_key_value_heads="absent", tie_word_embeddings="absent", rope_parameters="absent", rope_theta="absent"
  )
  assert hf.load(tmp_path)[0] == UNTIED


def test_unreadable_files_are_named(tmp_path):
  with pytest.raises(UserError, match=r"config\.json: cannot be read"):
    hf.load(tmp_path)
  saved(tmp_path, LLAMA)
  content = (tmp_path / hf.SINGLE).read_bytes()
  (tmp_path / hf.SINGLE).write_bytes(content[: len(content) // 2])
  with pytest.raises(UserError, match=r"model\.safetensors: not a readable safetensors file"):
    hf.load(tmp_path)
  (tmp_path / hf.SINGLE).unlink()
  with pytest.raises(UserError, match=r"holds neither model\.safetensors nor"):
    hf.load(tmp_path)
  saved(tmp_path, LLAMA, shard_bytes=20_000)
  next(tmp_path.glob("model-00002-of-*.safetensors")).unlink()
  with pytest.raises(UserError, match=r"model-00002-of-\d+\.safetensors: not a readable"):
    hf.load(tmp_path)
  (tmp_path / hf.CONFIG).write_text("{")
  with pytest.raises(UserError, match=r"config\.json: malformed JSON"):
    hf.load(tmp_path)


def test_parameters_of_another_shape_are_not_saved(tmp_path):
  params = weights(LLAMA)
  with pytest.raises(UserError, match=r"'blocks/k/w' has shape \(3, 32, 2, 8\), but the configuration asks for"):
    hf.save(tmp_path / "a", LlamaConfig(**{**vars(LLAMA), "kv_heads": 4}), params)
  with pytest.raises(UserError, match="'head/w' is missing"):
    hf.save(tmp_path / "a", LlamaConfig(**{**vars(LLAMA), "tied": False}), params)
  assert not (tmp_path / "a").exists()


def test_a_full_disk_leaves_the_model_before_as_it_was(tmp_path, monkeypatch):
  saved(tmp_path, LLAMA, shard_bytes=20_000)
  before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
  write, calls = st.save_file, []

  def full(tensors, path, **kw):
    calls.append(path)
    if len(calls) == 3:
      raise OSError(28, "No space left on device")
    write(tensors, path, **kw)

  monkeypatch.setattr(st, "save_file", full)
  with pytest.raises(UserError, match=r"could not be written \(.*No space left on device\); make room"):
    hf.save(tmp_path, UNTIED, weights(UNTIED), shard_bytes=20_000)
  assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


# --- models.load ---


def test_load_opens_a_folder_with_overrides(tmp_path):
  loaded = models.load(saved(tmp_path, GPT), dropout=0.2, remat="blocks", dtype="bfloat16")
  assert loaded.config == GPTConfig(**{**vars(GPT), "dropout": 0.2, "remat": "blocks", "dtype": "bfloat16"})
  assert loaded.tokenizer == tmp_path
  assert loaded.lm.width == 32
  tiny.assert_trees_equal(loaded.params, weights(GPT))


@pytest.mark.parametrize(
  "override, message",
  [
    ({"droput": 0.1}, "a model has no setting 'droput': did you mean 'dropout'?"),
    ({"zzz": 1}, "no setting 'zzz': known are vocab_size, context"),
    ({"width": 64}, "'width' is 32 in the weights and cannot be set to 64"),
    ({"dtype": "float64"}, "dtype is 'float64': choose one of float32, bfloat16"),
  ],
)
def test_overrides_that_cannot_be(tmp_path, override, message):
  with pytest.raises(UserError, match=message):
    models.load(saved(tmp_path, GPT), **override)


def test_names_that_are_no_model(tmp_path):
  for name in ("./nowhere", "a/b/c", "model.gguf", str(tmp_path / "nowhere")):
    with pytest.raises(UserError, match=r"no such file or folder; give a \.gguf file, a model folder or a hub id"):
      models.load(name)
  (tmp_path / "model.bin").write_text("")
  with pytest.raises(UserError, match=r"model\.bin: a model is a \.gguf file"):
    models.load(tmp_path / "model.bin")


def test_a_hub_id_is_fetched_and_its_failures_are_told_apart(tmp_path, monkeypatch):
  import huggingface_hub
  from huggingface_hub import errors

  saved(tmp_path, LLAMA)
  monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **kw: str(tmp_path))
  assert models.load("someone/model").config == LLAMA

  def offline(name, **kw):
    raise errors.LocalEntryNotFoundError("cannot find the files on the disk\nand more")

  monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
  with pytest.raises(UserError, match=r"someone/model: .*hub cannot be reached \(cannot find the files on the disk\)"):
    models.load("someone/model")

  class Unknown(errors.RepositoryNotFoundError):
    def __init__(self):
      pass

  def unknown(name, **kw):
    raise Unknown

  monkeypatch.setattr(huggingface_hub, "snapshot_download", unknown)
  with pytest.raises(UserError, match="the hub has no model of that name"):
    models.load("someone/model")
