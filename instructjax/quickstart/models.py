"""The models of the quickstart: the base that it starts from, and what its runs left.

Every trained model has the same trunk, the embeddings and the lower blocks of the base, under top
blocks of its own. The evaluation holds that trunk once, in `trunk_dtype`. With `top=none` all
blocks are trained, and the trunk is empty.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from instructjax import models
from instructjax.data.tokens import chat, tokenizers
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.errors import UserError
from instructjax.models import freeze
from instructjax.quickstart.recipe import model_folder
from instructjax.runs import origin
from instructjax.runs.origin import Origin
from instructjax.settings.fields import replaced
from instructjax.settings.quickstart import QuickstartSettings
from instructjax.settings.subjects import ModelSettings
from instructjax.system import download
from instructjax.types import LM, Params

# The models that answer the test prompts. `rl_init`, which PPO is held to, is their reference.
POLICIES = ("base", "sft", "ppo", "ptx")
REFERENCE = "rl_init"
# The first one trains the policies, the second one judges them.
REWARD_MODELS = ("reward", "gold")


class Trained(NamedTuple):
  """The models as one trunk and the trained part of each.

  lm              the functions that all of them share
  tokenizer       ends a response at a new line
  template        the chat template of the prompts, None for plain text
  dtype           the type of matrix products
  trunk           what no stage has trained
  reference       the trained part of REFERENCE
  policies        the trained part of each of POLICIES, by its name
  reward_models   {"lm", "head"} of each of REWARD_MODELS, by its name
  """

  lm: LM
  tokenizer: Tokenizer
  template: chat.Template | None
  dtype: str
  trunk: Params
  reference: Params
  policies: dict[str, Params]
  reward_models: dict[str, Params]


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
  tokenizer = tokenizers.load(loaded.tokenizer)
  tokenizer = tokenizers.fit(tokenizer, loaded.lm.vocab_size)
  tokenizer = one_line(tokenizer)
  reference = origin.reference(loaded.tokenizer, str(source))
  about = origin.describe(loaded.config, reference)
  # What a run says about its model, later stages say about theirs.
  about["eos"] = tokenizer.eos
  about["banned"] = tokenizer.banned
  origin.finish(folder, 0, loaded.params, about, "policy")
  return tokenizer


def one_line(tokenizer: Tokenizer) -> Tokenizer:
  """Returns the tokenizer with responses of one line.

  A new line ends a response, and no other token with a line break is ever sampled.

  Raises:
    UserError: the tokenizer spells a new line in several tokens.
  """
  newline = tokenizer.encode_next("\n")
  if len(newline) != 1:
    raise UserError(
      "the quickstart ends responses with a new line, which this tokenizer spells in several tokens"
    )
  # The new line comes first, because the first end-of-text token is the one that closes rows.
  eos = [newline[0]]
  eos += [token for token in tokenizer.eos if token != newline[0]]
  # A token such as ".\n" would end the line without ending the response.
  banned = {*tokenizer.banned}
  for token in range(tokenizer.vocab_size):
    if "\n" in tokenizer.decode_next([token]):
      banned.add(token)
  banned -= {*eos}
  return tokenizer._replace(eos=tuple(eos), banned=tuple(sorted(banned)))


# --- what the runs left ---


def model_settings(settings: QuickstartSettings) -> ModelSettings:
  """Returns how the models of finished runs are opened."""
  changes = {
    "dtype": settings.dtype,
    "unroll": settings.unroll,
    # Nothing is trained here, so there is nothing to compute again.
    "remat": "none",
  }
  return replaced(ModelSettings(), changes)


def open_trained(settings: QuickstartSettings, workdir: Path) -> Trained:
  """Opens all finished runs, and keeps one trunk of them.

  Raises:
    UserError: a run is not finished.
  """
  opened_as = model_settings(settings)

  def open_policy(name: str) -> Origin:
    source = str(model_folder(workdir, name))
    return origin.open_model(source, opened_as, settings.seed)

  def split(params: Params) -> tuple[Params, Params]:
    return freeze.split(params, settings.top, dtype=settings.trunk_dtype)

  # A whole model is 0.5 GB in float32, so one is let go before the next is opened.
  base = open_policy("base")
  lm, tokenizer = base.lm, base.tokenizer
  template = origin.chat_template(settings.template, base.about, tokenizer)
  trunk, base_part = split(base.params)
  del base
  trained_parts = {"base": base_part}
  for name in (REFERENCE, "sft", "ppo", "ptx"):
    policy = open_policy(name)
    _, trained_parts[name] = split(policy.params)
    del policy

  reward_models = {}
  for name in REWARD_MODELS:
    source = str(model_folder(workdir, name))
    model = origin.open_reward_model(source, opened_as)
    _, body = split(model.params)
    reward_models[name] = {"lm": body, "head": model.head}
    del model
  return Trained(
    lm=lm,
    tokenizer=tokenizer,
    template=template,
    dtype=settings.dtype,
    trunk=trunk,
    reference=trained_parts.pop(REFERENCE),
    policies={name: trained_parts[name] for name in POLICIES},
    reward_models=reward_models,
  )
