"""The models of the quickstart: the base that it starts from, and what its runs left.

Every trained model has the same trunk, the embeddings and the lower blocks of the base, under top
blocks of its own. The evaluation holds that trunk once, in `trunk_dtype`. With `top=none` all
blocks are trained, and the trunk is empty.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from instructjax import models
from instructjax.data.tokens import tokenizers
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.errors import UserError
from instructjax.models import freeze
from instructjax.quickstart.recipe import model_folder
from instructjax.runs import origin
from instructjax.settings.fields import replaced
from instructjax.settings.quickstart import QuickstartSettings
from instructjax.settings.subjects import ModelSettings
from instructjax.system import download
from instructjax.types import LM, Params

# The models that answer the test prompts. `rl_init`, which PPO is held to, is their reference.
POLICIES = ("base", "sft", "ppo", "ptx")
REFERENCE = "rl_init"
REWARD_MODELS = ("reward", "gold")


class Trained(NamedTuple):
  """The models as one trunk and the trained part of each.

  lm              the functions that all of them share
  tokenizer       where a new line ends a response
  trunk           what no stage has trained
  policies        the trained part of each of POLICIES, by its name
  reference       the trained part of REFERENCE
  reward_models   {"lm", "head"} of each of REWARD_MODELS, by its name
  dtype           the type of matrix products
  """

  lm: LM
  tokenizer: Tokenizer
  trunk: Params
  policies: dict[str, Params]
  reference: Params
  reward_models: dict[str, Params]
  dtype: str


# --- the base ---


def leave_base(settings: QuickstartSettings, folder: Path) -> Tokenizer:
  """Leaves the base model as a finished run, which every stage can start from.

  Returns:
    Its tokenizer, where a new line ends a response. The run says so too, and with it every model
    that is made from it.

  Raises:
    UserError: the model cannot be fetched or read, or spells a new line in several tokens.
  """
  source = settings.model or download.fetch()
  loaded = models.load(source)
  whole_tokenizer = tokenizers.fit(tokenizers.load(loaded.tokenizer), loaded.lm.vocab_size)
  tokenizer = one_line(whole_tokenizer)
  reference = origin.reference(loaded.tokenizer, str(source))
  about = origin.describe(loaded.config, reference)
  about |= {"eos": tokenizer.eos, "banned": tokenizer.banned}
  origin.finish(folder, 0, loaded.params, about, "policy")
  return tokenizer


def one_line(tokenizer: Tokenizer) -> Tokenizer:
  """Returns the tokenizer with responses of one line.

  A new line ends a response, and no other token with a line break is ever sampled.

  Raises:
    UserError: the tokenizer spells a new line in several tokens.
  """
  newline = tokenizer.encode("\n")
  if len(newline) != 1:
    raise UserError(
      "the quickstart ends responses with a new line, which this tokenizer spells in several tokens"
    )
  # The new line comes first, because the first end-of-text token is the one that closes rows.
  eos = [newline[0]]
  eos += [token for token in tokenizer.eos if token != newline[0]]
  with_line_break = [
    token for token in range(tokenizer.vocab_size) if "\n" in tokenizer.decode([token])
  ]
  banned = {*tokenizer.banned, *with_line_break} - {*eos}
  return tokenizer._replace(eos=tuple(eos), banned=tuple(sorted(banned)))


# --- what the runs left ---


def open_trained(settings: QuickstartSettings, workdir: Path) -> Trained:
  """Opens all finished runs, and keeps one trunk of them.

  Raises:
    UserError: a run is not finished.
  """
  changes = {"dtype": settings.dtype, "unroll": settings.unroll, "remat": "none"}
  how = replaced(ModelSettings(), changes)

  def open_policy(name: str) -> origin.Origin:
    return origin.open_model(str(model_folder(workdir, name)), how, settings.seed)

  def split(params: Params) -> tuple[Params, Params]:
    return freeze.split(params, settings.top, dtype=settings.trunk_dtype)

  base = open_policy("base")
  trunk, base_part = split(base.params)
  lm, tokenizer = base.lm, base.tokenizer
  # The whole float32 model is let go before the next one is opened.
  del base
  policies = {"base": base_part}
  for name in POLICIES:
    if name != "base":
      policies[name] = split(open_policy(name).params)[1]
  reference = split(open_policy(REFERENCE).params)[1]
  reward_models = {}
  for name in REWARD_MODELS:
    model = origin.open_reward_model(str(model_folder(workdir, name)), how)
    reward_models[name] = {"lm": split(model.params)[1], "head": model.head}
    del model
  return Trained(lm, tokenizer, trunk, policies, reference, reward_models, settings.dtype)
