"""What `instructjax export` writes, opened by transformers: ids, logits, greedy texts and scores
are those of the run.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from instructjax import models, rollout
from instructjax.data.tokens import tokenizers
from instructjax.models import heads
from instructjax.runs import origin
from instructjax.stages import export
from instructjax.types import Prompts

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CONFIG = origin.SHAPES["tiny"]
LM = models.build(CONFIG)
TEXT = "naïve “text” 🙂"


@pytest.fixture
def params():
  return tiny.perturb(LM.init(jax.random.key(0)), 0.1)


def exported(folder, params, kind="policy"):
  origin.finish(folder / "run", 1, params, origin.describe(CONFIG, tokenizers.BYTES), kind)
  return export.export(str(folder / "run"), folder / "out")


def test_a_policy_writes_the_same_text(tmp_path, params):
  folder = exported(tmp_path, params)
  model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  asked = tokenizer(TEXT, return_tensors="pt")
  tokens = jnp.asarray(asked["input_ids"].numpy(), jnp.int32)
  assert tokens.tolist() == [list(TEXT.encode())]
  valid = jnp.ones(tokens.shape, bool)
  with torch.no_grad():
    theirs = model(**asked).logits.numpy()
    text = model.generate(**asked, do_sample=False, max_new_tokens=12)[0].tolist()
  np.testing.assert_allclose(LM.logits(params, LM.hidden(params, tokens, valid)), theirs, atol=1e-4)
  cfg = rollout.Sampling(response=12, temperature=0.0, eos=(256,))
  ours = rollout.sample(LM, params, Prompts(tokens, valid), jax.random.key(0), cfg)
  assert text == [
    i for i, real in zip(ours.tokens[0].tolist(), ours.valid[0].tolist(), strict=True) if real
  ]
  assert model.generation_config.temperature == 1.0 and model.generation_config.eos_token_id == 256
  assert (
    tokenizer.eos_token_id == 256
    and tokenizer.decode([*TEXT.encode(), 256], skip_special_tokens=True) == TEXT
  )


def test_a_reward_model_gives_the_same_scores(tmp_path, params):
  head = heads.init_head(jax.random.key(5), LM.width) | {"b": jnp.float32(0.25)}
  folder = exported(tmp_path, {"lm": params, "head": head}, "reward")
  model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
  rows = [[*b"good text", 256], [*b"bad", 256]]
  tokens = np.full((2, 10), model.config.pad_token_id, np.int64)
  for row, ids in zip(tokens, rows):
    row[: len(ids)] = ids
  valid = np.arange(10) < np.asarray([[len(ids)] for ids in rows])
  with torch.no_grad():
    theirs = (
      model(torch.as_tensor(tokens), attention_mask=torch.as_tensor(valid.astype(np.int64)))
      .logits[:, 0]
      .numpy()
    )
  hidden = LM.hidden(params, jnp.asarray(tokens, jnp.int32), jnp.asarray(valid))
  np.testing.assert_allclose(heads.score(head, hidden, jnp.asarray(valid)), theirs, atol=1e-4)
