"""Model folders: written and read back bit for bit, errors of broken ones, and `models.load`."""

import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from families import FAMILIES
from safetensors import numpy as st

from instructjax import models, sharding
from instructjax.errors import UserError
from instructjax.models import freeze, hf
from instructjax.models.gpt import GPTConfig
from instructjax.models.llama import LlamaConfig

GPT = GPTConfig(vocab_size=48, context=16, width=32, depth=3, heads=4, norm_eps=1e-6)
LLAMA = LlamaConfig(
  vocab_size=48,
  context=16,
  width=32,
  depth=3,
  heads=4,
  kv_heads=2,
  mlp=64,
  rope_base=5e5,
  norm_eps=1e-6,
)
UNTIED = LlamaConfig(
  vocab_size=48, context=16, width=32, depth=3, heads=4, kv_heads=4, mlp=64, tied=False
)
UNTIED_GPT = GPTConfig(vocab_size=48, context=16, width=32, depth=3, heads=2, tied=False)
CONFIGS = {"gpt": GPT, "llama": LLAMA, "llama-untied": UNTIED, "gpt-untied": UNTIED_GPT}


@cache
def weights(config):
  """Random numbers of the shapes of a model; nothing is compiled."""
  rng = np.random.default_rng(0)
  table = models.build(config).table
  return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape, np.float32)), table)


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


@pytest.mark.parametrize(
  "name, shard_bytes", [*((name, 2**30) for name in FAMILIES), ("gemma2", 40_000), ("gpt2", 40_000)]
)
def test_what_was_saved_is_loaded_bit_for_bit(tmp_path, name, shard_bytes):
  config = FAMILIES[name]
  saved(tmp_path, config, shard_bytes=shard_bytes)
  assert (tmp_path / hf.INDEX).is_file() == (shard_bytes < 2**30)
  read_config, params = hf.load(tmp_path)
  assert read_config == config
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
    assert set(st.load_file(tmp_path / file)) == {
      k for k, v in index["weight_map"].items() if v == file
    }


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
  tiny.assert_trees_equal(
    params, jax.tree.map(lambda x: x.astype(dtype).astype(jnp.float32), weights(LLAMA))
  )


def test_the_first_gpt2_checkpoints_have_names_without_a_prefix(tmp_path):
  saved(tmp_path, GPT)

  def strip(tensors):
    bare = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    tensors.clear()
    tensors.update(
      bare | {"h.0.attn.bias": np.ones((1, 1, 16, 16), np.float32)}
    )  # their causal mask, ignored

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
  [
    (GPT, "transformer.h.2.attn.c_attn.bias"),
    (LLAMA, "model.layers.1.mlp.up_proj.weight"),
    (UNTIED, "lm_head.weight"),
  ],
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
    (
      LLAMA,
      {"model_type": "bloom"},
      "model_type is 'bloom'; the families that can be read are gpt2, gpt_neox",
    ),
    (LLAMA, {"hidden_size": "absent"}, "'hidden_size' is None; it must be a positive whole number"),
    (
      LLAMA,
      {"quantization_config": {"bits": 4}},
      "'quantization_config' is .*; this variant is not implemented",
    ),
    (LLAMA, {"hidden_act": "mish"}, "'hidden_act' is 'mish'"),
    (
      LLAMA,
      {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}},
      "'rope_type' is 'dynamic'",
    ),
    (LLAMA, {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'rope_type' is 'yarn'"),
    (
      LLAMA,
      {"rope_scaling": {"rope_type": "llama3", "factor": 8}},
      "'low_freq_factor' is None; it must be a number",
    ),
    (GPT, {"activation_function": "quick_gelu"}, "'activation_function' is 'quick_gelu'"),
    (GPT, {"scale_attn_by_inverse_layer_idx": True}, "'scale_attn_by_inverse_layer_idx' is True"),
    (GPT, {"n_layer": "12"}, "'n_layer' is '12'"),
    (FAMILIES["phi"], {"qk_layernorm": True}, "'qk_layernorm' is True"),
    (FAMILIES["gpt_neox"], {"attention_bias": False}, "'attention_bias' is False"),
    (
      FAMILIES["gemma3"],
      {"use_bidirectional_attention": True},
      "'use_bidirectional_attention' is True",
    ),
    (
      FAMILIES["gemma2"],
      {"layer_types": ["full_attention", "chunked_attention"]},
      "'layer_types' is .*chunked",
    ),
    (FAMILIES["smollm3"], {"use_sliding_window": True}, "'use_sliding_window' is True"),
  ],
)
def test_a_configuration_that_would_be_computed_differently_is_refused(
  tmp_path, config, change, message
):
  saved(tmp_path, config)
  edit_config(tmp_path, **change)
  with pytest.raises(UserError, match=message):
    hf.load(tmp_path)


def test_a_tensor_that_the_model_has_no_place_for_is_named(tmp_path):
  saved(tmp_path, LLAMA)
  name = "model.layers.1.self_attn.q_proj.bias"
  edit(
    tmp_path,
    lambda t: t.update(
      {name: np.ones(32, np.float32), "model.rotary_emb.inv_freq": np.ones(4, np.float32)}
    ),
  )
  with pytest.raises(
    UserError, match=f"a model of type 'llama' has no place for its tensors '{name}'; without"
  ):
    hf.load(tmp_path)


def test_a_quantised_tensor_is_refused(tmp_path):
  saved(tmp_path, LLAMA)
  edit(tmp_path, lambda t: t.update({"model.norm.weight": t["model.norm.weight"].astype(np.int8)}))
  with pytest.raises(
    UserError, match=r"tensor 'model\.norm\.weight' is of type I8; numbers of F64, F32, F16, BF16"
  ):
    hf.load(tmp_path)


def test_a_family_has_no_words_for_the_settings_of_another(tmp_path):
  config = LlamaConfig(**{**vars(LLAMA), "pattern": "LG", "window": 4, "qk_norm": True})
  with pytest.raises(
    UserError, match="type 'llama' cannot have qk_norm=True, pattern='LG', window=4: set another"
  ):
    hf.save(tmp_path / "a", config, weights(config))
  assert not (tmp_path / "a").exists()


def test_gemma3_with_pictures_gives_its_language_model(tmp_path):
  """The names and the sparse text_config of the public 4B checkpoint; of what is absent, the
  family's defaults hold.
  """
  config = FAMILIES["gemma3"]
  saved(tmp_path, config)
  raw = json.loads((tmp_path / hf.CONFIG).read_text())
  whole = {
    "model_type": "gemma3",
    "architectures": ["Gemma3ForConditionalGeneration"],
    "text_config": raw,
  }
  (tmp_path / hf.CONFIG).write_text(json.dumps(whole))

  def inside(tensors):
    named = {f"language_model.{name}": x for name, x in tensors.items()}
    tensors.clear()
    tensors.update(
      named
      | {
        "vision_tower.x": np.ones(2, np.float32),
        "multi_modal_projector.y": np.ones(2, np.float32),
      }
    )

  edit(tmp_path, inside)
  read_config, params = hf.load(tmp_path)
  assert read_config == config
  tiny.assert_trees_equal(params, weights(config))
  sparse = {
    "model_type": "gemma3_text",
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 34,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
  }
  c = hf.configs.parse({"model_type": "gemma3", "text_config": sparse}, tmp_path)
  assert (c.vocab_size, c.heads, c.kv_heads, c.head_width, c.pattern) == (
    262_208,
    8,
    4,
    256,
    "LLLLLG",
  )
  assert (c.rope_base, c.local_rope_base, c.rope_factor, c.window, c.query_width) == (
    1e6,
    1e4,
    8.0,
    1024,
    0,
  )


def test_bfloat16_files_are_half_as_long_and_read_back(tmp_path):
  config = FAMILIES["qwen3"]
  saved(tmp_path / "f", config)
  saved(tmp_path / "h", config, dtype="bfloat16", extra={"eos_token_id": 7})
  size = lambda name: (tmp_path / name / hf.SINGLE).stat().st_size
  assert size("h") < 0.6 * size("f")
  raw = json.loads((tmp_path / "h" / hf.CONFIG).read_text())
  assert (raw["dtype"], raw["eos_token_id"]) == ("bfloat16", 7)
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), weights(config))
  tiny.assert_trees_equal(hf.load(tmp_path / "h")[1], rounded)
  with pytest.raises(UserError, match="dtype is 'float16': choose one of float32, bfloat16"):
    saved(tmp_path / "g", config, dtype="float16")


@pytest.mark.parametrize("name", ["gpt_neox", "phi3", "gemma2"])
def test_fused_tensors_are_read_and_written_on_a_mesh(tmp_path, name):
  config = FAMILIES[name]
  with jax.set_mesh(sharding.make_mesh(1, 2, 2)):
    params = sharding.place(weights(config), sharding.shardings(models.build(config).table))
    hf.save(tmp_path, config, params)
    _, again = hf.load(tmp_path)
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(params)):
      assert jax.typeof(ours).sharding.spec == jax.typeof(theirs).sharding.spec
  tiny.assert_trees_equal(again, weights(config))


# --- reward models ---


def reward(config, bias=0.7):
  params = {name: part for name, part in weights(config).items() if name != "head"}
  return params, {"w": jnp.linspace(-1, 1, config.width), "b": jnp.float32(bias)}


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2-untied", "phi"])
def test_a_reward_model_is_read_back(tmp_path, name):
  """An RMSNorm keeps the bias in the configuration; a LayerNorm takes it into its own: w . (beta' -
  beta) = b.
  """
  config = FAMILIES[name]
  params, head = reward(config)
  hf.save_reward(tmp_path, config, params, head, pad_token_id=5)
  read_config, again, again_head = hf.load_reward(tmp_path)
  raw = json.loads((tmp_path / hf.CONFIG).read_text())
  assert read_config == config
  assert (raw["pad_token_id"], raw["num_labels"]) == (5, 1)
  np.testing.assert_array_equal(again_head["w"], head["w"])
  if isinstance(config, LlamaConfig):
    assert again_head["b"] == head["b"]
    assert raw["auto_map"]["AutoModelForSequenceClassification"].startswith("score_bias.Biased")
    assert (tmp_path / "score_bias.py").is_file()
  else:
    assert again_head["b"] == 0
    moved = again["norm"]["bias"] - params["norm"]["bias"]
    assert float(moved @ head["w"]) == pytest.approx(0.7, abs=1e-5)
    again["norm"] = again["norm"] | {"bias": params["norm"]["bias"]}
  tiny.assert_trees_equal(again, params)


def test_language_models_and_reward_models_are_told_apart(tmp_path):
  params, head = reward(LLAMA)
  hf.save_reward(tmp_path / "r", LLAMA, params, head, pad_token_id=0)
  with pytest.raises(
    UserError,
    match=r"r: holds a reward model \(a sequence classifier\); a language model is needed",
  ):
    hf.load(tmp_path / "r")
  with pytest.raises(UserError, match="holds no reward model"):
    hf.load_reward(saved(tmp_path / "m", LLAMA))
  edit(tmp_path / "r", lambda t: t.update({"score.weight": np.ones((3, 32), np.float32)}))
  with pytest.raises(
    UserError, match=r"tensor 'score\.weight' has shape \(3, 32\); a reward model has one label"
  ):
    hf.load_reward(tmp_path / "r")
  with pytest.raises(
    UserError, match="pad_token_id is 48: choose an id below the vocabulary of 48"
  ):
    hf.save_reward(tmp_path / "x", LLAMA, params, head, pad_token_id=48)


def test_older_configurations_are_read(tmp_path):
  saved(tmp_path, LLAMA)
  edit_config(tmp_path, rope_parameters="absent", head_dim="absent")
  assert hf.load(tmp_path)[0] == LLAMA
  saved(tmp_path, UNTIED)
  edit_config(
    tmp_path,
    num_key_value_heads="absent",
    tie_word_embeddings="absent",
    rope_parameters="absent",
    rope_theta="absent",
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
  with pytest.raises(
    UserError, match=r"'blocks/k/w' has shape \(3, 32, 2, 8\), but the configuration asks for"
  ):
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
  with pytest.raises(
    UserError, match=r"could not be written \(.*No space left on device\); make room"
  ):
    hf.save(tmp_path, UNTIED, weights(UNTIED), shard_bytes=20_000)
  assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


# --- models.load ---


def test_load_opens_a_folder_with_overrides(tmp_path):
  loaded = models.load(saved(tmp_path, GPT), dropout=0.2, remat="blocks", dtype="bfloat16")
  assert loaded.config == GPTConfig(
    **{**vars(GPT), "dropout": 0.2, "remat": "blocks", "dtype": "bfloat16"}
  )
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
    with pytest.raises(
      UserError, match=r"no such file or folder; give a \.gguf file, a model folder or a hub id"
    ):
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
  with pytest.raises(
    UserError, match=r"someone/model: .*hub cannot be reached \(cannot find the files on the disk\)"
  ):
    models.load("someone/model")

  class Unknown(errors.RepositoryNotFoundError):
    def __init__(self):
      pass

  def unknown(name, **kw):
    raise Unknown

  monkeypatch.setattr(huggingface_hub, "snapshot_download", unknown)
  with pytest.raises(UserError, match="the hub has no model of that name"):
    models.load("someone/model")
