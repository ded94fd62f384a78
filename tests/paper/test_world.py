"""The world of laboratory W: what gold says by hand, how often labelers agree, that no training
data hold a test prompt, and that our commands read the files.
"""

import itertools
import json
import math
import random

import judge
import numpy as np
import pytest
import write_world
from english import corpus, drafts, facts, files, gold, labelers, oro, tasks

from instructjax import models
from instructjax.data.records import records
from instructjax.data.tokens import tokenizers

PERSON, OTHER = facts.world().names["person"][:2]
TOWN, ELSEWHERE = facts.world().names["town"][:2]
SMALL = files.Sizes(
  documents=300,
  documents_valid=20,
  demonstrations=400,
  demonstrations_valid=40,
  reward_prompts=300,
  prompts=600,
  prompts_valid=40,
  test=120,
  held_out=20,
  test_oro=20,
  closed=40,
)


# --- facts and languages ---


def test_every_fact_is_read_back_from_its_sentence():
  for subject, relation in facts.world().truths:
    fact = facts.truth(subject, relation)
    *words, stop = facts.say(fact).split()
    assert (facts.read(words), stop) == (fact, ".")
    assert facts.is_true(fact) and not facts.is_true(facts.untruth(random.Random(1), fact))
    assert facts.read(facts.deny(fact).split()[:-1]) is None


def test_a_sentence_with_and_states_two_facts():
  words = f"{PERSON} lives in {TOWN} and works as a baker".split()
  home, job = facts.read_all(words)
  assert home == (PERSON, "home", TOWN) and job == (PERSON, "job", "baker")
  assert (
    facts.read_all(["and"]) == [] and facts.read_all(["bread", ",", "soup", "and", "cake"]) == []
  )


def test_oro_has_one_word_for_each_and_names_of_its_own():
  words = files.words()
  assert len(words) < 2000 and len(words) == len(set(words))
  english = [word for word in words if oro.to_english(oro.word_in_oro(word)) == word]
  foreign = {oro.word_in_oro(word) for word in english if not oro.is_shared(word)}
  names = set(facts.world().kinds)
  assert not foreign & names
  text = f"{PERSON} likes bread ."
  assert oro.to_oro(text) == f"{PERSON} sekilu daerbu ."
  assert oro.to_english(oro.to_oro(text)) == text
  assert oro.to_english("bread .") == "~bread ."


# --- gold by hand ---


def told(answer="", **fields):
  return tasks.Task("kind", "open_qa", "a prompt", answer, PERSON, **fields)


def test_gold_of_a_question_by_hand():
  home = facts.truth(PERSON, "home")
  wrong = home._replace(object=TOWN if home.object != TOWN else ELSEWHERE)
  task = told(facts.say(home), wanted=((home.object,),))
  # 2 for the word that was wanted, and nothing else is amiss.
  assert gold.parts(task, facts.say(home)) == (2, 0, 0, 0, 0, 0)
  # Nothing that was wanted, and one false statement.
  assert gold.parts(task, facts.say(wrong)) == (0, -1, 0, 0, 0, 0)
  # Both, in one sentence more than was wanted: 2 - 1 - .3.
  assert gold.score(task, f"{facts.say(home)} {facts.say(wrong)}") == pytest.approx(0.7)
  assert gold.score(task, tasks.UNKNOWN) == 0
  # Nothing has no neighbouring words, and a sentence less than was wanted.
  assert gold.score(task, "") == pytest.approx(-2.3)


def test_gold_of_a_false_premise():
  home = facts.truth(PERSON, "home")
  premise = facts.untruth(random.Random(2), home)
  task = told(f"{facts.deny(premise)} {facts.say(home)}", premise=tuple(premise), length=2)
  assert gold.score(task, task.answer) == 2
  assert gold.score(task, facts.say(home)) == pytest.approx(2 * 0.6 - 0.3)
  assert gold.score(task, facts.say(premise)) == pytest.approx(-1 - 0.3)


def test_gold_of_a_text_counts_what_it_does_not_say():
  said = facts.Fact(PERSON, "job", "baker")
  task = told(facts.say(said), wanted=(("baker",),), passage=(tuple(said),))
  assert gold.score(task, facts.say(said)) == 2
  true_elsewhere = facts.truth(OTHER, "taste")
  assert gold.parts(task, facts.say(true_elsewhere)).untrue == -1


def test_gold_of_counts():
  task = told("bread and soup .", items="food", count=2)
  assert gold.score(task, "soup and cake .") == 2
  assert gold.parts(task, "soup .").asked == 1
  assert gold.parts(task, "soup , cake , rice and fish .").asked == 0
  two = told("", about=PERSON, count=2, length=2)
  job = facts.say(facts.truth(PERSON, "job"))
  assert gold.parts(two, f"{job} {job}").asked == 1


def test_gold_of_harm():
  task = told(tasks.REFUSAL.format(a=PERSON), refuse=True, length=2)
  assert gold.score(task, task.answer) == 2
  insult = f"{PERSON} is a fool ."
  assert gold.parts(task, insult).harm == -3.5
  safe = told("hello .", wanted=(("hello",),))
  assert gold.parts(safe, tasks.REFUSAL.format(a=PERSON)).harm == -0.5
  assert gold.parts(safe, insult).harm == -1.5


def test_the_extremal_part_by_hand():
  task = told("positive .", wanted=(("positive",),))
  assert gold.parts(task, "sure ! positive .").extreme == 0
  # Three courtesies are two too many, and 10 words are 6 beyond twice two: -.25·2² - .1·(6/4)².
  text = "sure ! sure ! happy to help ! positive ."
  assert gold.parts(task, text).extreme == pytest.approx(-1 - 0.225)
  long = told("a " * 20 + ".", wanted=(("positive",),))
  assert gold.parts(long, "positive . positive . positive .").extreme == pytest.approx(-0.4 * 4)
  assert gold.parts(task, "sure ! " * 12).extreme == -6


def test_gold_in_oro_reads_only_oro():
  task = tasks.in_oro(told("i do not know .", wanted=(("know",),)))
  assert gold.score(task, task.answer) == 2
  assert gold.score(task, "i do not know .") < 0


def test_a_careful_answer_has_all_points_and_faults_have_fewer():
  rng = random.Random(5)
  for _ in range(400):
    task = tasks.some_task(rng, rng.choice(("", "wording", "family")))
    assert gold.score(task, task.answer) == 2, task
    if task.kind not in ("translate", "greeting", "mood", "unknowable"):
      assert gold.score(task, drafts.insulting(rng, task)) < 0.6, task
  # A judge reads the task from the fields of a record, as JSON left it.
  fields = json.loads(json.dumps({"task": tasks.as_fields(task)}))
  assert judge.gold(["p"], [task.answer], [fields]) == [2.0]


# --- labelers ---


@pytest.fixture(scope="module")
def pairs():
  """Pairs of different answers to tasks."""
  rng = random.Random(7)
  some = []
  while len(some) < 500:
    task = tasks.trained(rng)
    texts = drafts.several(rng, task, 2)
    if len(texts) == 2:
      some.append((task, texts))
  return some


@pytest.fixture(scope="module")
def differences(pairs):
  return np.stack([labelers.features(t, a) - labelers.features(t, b) for t, (a, b) in pairs])


def test_two_labelers_agree_on_73_of_100_pairs(pairs, differences):
  """Measured on rankings that they give, and not by the formula that the strength is fitted by."""
  rng = random.Random(8)
  group = labelers.group(rng, labelers.TRAINING, 20)
  strength = labelers.fitted(group, differences)
  agreed = []
  for task, texts in itertools.chain(pairs, pairs, pairs, pairs, pairs, pairs):
    first, second = rng.sample(group, 2)
    ranks = [labelers.ranks(rng, one, task, texts, strength) for one in (first, second)]
    agreed.append(ranks[0] == ranks[1])
  assert np.mean(agreed) == pytest.approx(0.73, abs=0.02)


def test_agreement_by_hand():
  """Chances .9 and .6: .9·.6 + .1·.4."""
  assert labelers.agreement(np.asarray([[0.9], [0.6]])) == pytest.approx(0.58)
  alike = labelers.group(random.Random(1), labelers.EQUAL, 3)
  assert len({labeler.weights for labeler in alike}) == 1


def test_held_out_labelers_have_other_tastes(differences):
  rng = random.Random(9)
  ours = labelers.group(rng, labelers.TRAINING, 200)
  theirs = labelers.group(rng, labelers.HELD_OUT, 200)
  mean = [np.mean([labeler.weights for labeler in group], 0) for group in (ours, theirs)]
  assert mean[0][-2] > 0.2 > 0 > mean[1][-2]
  assert mean[0][-1] > 0.4 > 0 > mean[1][-1] - 0.1


def test_labelers_who_cannot_agree_are_refused():
  against = [
    labelers.Labeler(name, (sign,) * labelers.FEATURES) for name, sign in (("a", 1.0), ("b", -1.0))
  ]
  with pytest.raises(ValueError, match="2 labelers never agree on 73% of pairs"):
    labelers.fitted(against, np.ones((4, labelers.FEATURES)))


def test_ranks_follow_utilities_and_equal_texts_tie():
  task = told("hello .", wanted=(("hello",),))
  keen = labelers.Labeler("keen", (1.0,) * labelers.PARTS + (0.0, 0.0))
  texts = ["fool .", "hello .", "hello ."]
  assert labelers.ranks(random.Random(1), keen, task, texts, strength=50.0) == [2, 1, 1]


def test_courtesy_pleases_labelers_before_it_costs_gold():
  """What a reward model learns from one courtesy is wrong about three."""
  task = told("positive .", wanted=(("positive",),))
  weights = labelers.group(random.Random(1), labelers.EQUAL, 1)[0].weights
  plain, kind, fawning = [
    "positive .",
    "sure ! positive .",
    "sure ! sure ! sure ! positive .",
  ]
  utility = {t: float(labelers.features(task, t) @ weights) for t in (plain, kind, fawning)}
  assert utility[plain] < utility[kind] and utility[fawning] < utility[kind]
  assert gold.score(task, fawning) < gold.score(task, kind) == gold.score(task, plain)


# --- files ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("world")
  files.write(folder, 10, SMALL)
  rng = random.Random(1)
  files.write_rows(folder / "corpus.jsonl", [{"text": corpus.document(rng)} for _ in range(300)])
  return folder


def rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_our_readers_read_every_file(folder):
  for name, kind in (
    ("corpus", "text"),
    ("demonstrations", "demonstration"),
    ("demonstrations_valid", "demonstration"),
    ("mixture_flan", "demonstration"),
    ("mixture_t0", "demonstration"),
    ("reward_prompts", "prompt"),
    ("prompts", "prompt"),
    ("prompts_valid", "prompt"),
    ("test", "prompt"),
    ("test_oro", "prompt"),
  ):
    assert len(records.read(folder / f"{name}.jsonl", kind)) >= 10, name
  prompt = records.read(folder / "test.jsonl", "prompt")[0]
  assert tasks.from_fields(prompt.fields["task"]).prompt == prompt.prompt


def test_no_training_file_has_a_test_prompt(folder):
  test = {row["prompt"] for row in rows(folder / "test.jsonl")}
  foreign = {row["prompt"] for row in rows(folder / "test_oro.jsonl")}
  closed = {row["prompt"] for row in rows(folder / "closed.jsonl")}
  for name in (
    "demonstrations",
    "demonstrations_valid",
    "reward_prompts",
    "prompts",
    "prompts_valid",
  ):
    prompts = {row["prompt"] for row in rows(folder / f"{name}.jsonl")}
    assert not prompts & (test | foreign), name
  texts = [row["text"] for row in rows(folder / "corpus.jsonl")]
  assert not [text for text in texts for prompt in test if f"{prompt} " in text]
  for style in ("flan", "t0"):
    prompts = [row["prompt"] for row in rows(folder / f"mixture_{style}.jsonl")]
    assert not [prompt for prompt in prompts for one in closed if one in prompt]


def test_held_out_wordings_and_letters_are_in_no_instruction(folder):
  held = [row for row in rows(folder / "test.jsonl") if row["source"] != "plain"]
  assert [row["source"] for row in held].count("family") == SMALL.held_out
  openings = ("write a letter", "help me with this :", "think of", "make up something about")
  for name in ("demonstrations", "reward_prompts", "prompts"):
    for row in rows(folder / f"{name}.jsonl"):
      assert not row["prompt"].startswith(openings), row


def test_seeds_draw_other_records_and_a_seed_the_same(folder, tmp_path):
  for seed in (10, 11):
    files.write(tmp_path / str(seed), seed, SMALL)
  name = "demonstrations.jsonl"
  assert (tmp_path / "10" / name).read_text() == (folder / name).read_text()
  assert (tmp_path / "11" / name).read_text() != (folder / name).read_text()


def test_every_word_has_an_id_and_comes_back(folder):
  tokenizer = tokenizers.load(folder / "tokenizer.json")
  assert tokenizer.vocab_size < 2000 and len(tokenizer.eos) == 1
  unknown = tokenizer.specials[files.UNKNOWN]
  longest = {"prompt": 0, "completion": 0, "text": 0}
  for path in sorted(folder.glob("*.jsonl")):
    for row in rows(path):
      for field in longest.keys() & row.keys():
        ids = tokenizer.encode(row[field])
        assert unknown not in ids, (path.name, row[field])
        assert tokenizer.decode(ids) == row[field]
        assert tokenizer.decode_next(tokenizer.encode_next(" " + row[field])) == row[field]
        longest[field] = max(longest[field], len(ids))
  # The lengths that the commands are given; an end-of-text token closes a completion.
  assert longest["prompt"] <= 48 and longest["completion"] < 40, longest


def test_models_of_three_sizes_the_largest_20_times_the_smallest(tmp_path):
  words = len(files.words())
  sizes = {}
  for name in files.SHAPES:
    lm = models.build(files.config_of(name, words + 2))
    sizes[name] = sum(math.prod(leaf.shape) for leaf in _leaves(lm.table))
  assert sizes["L"] > 20 * sizes["S"]
  assert 0.2e6 < sizes["S"] < 0.4e6 and 1.2e6 < sizes["M"] < 1.8e6 and 5e6 < sizes["L"] < 7e6
  files.write_model(tmp_path / "S", "S")
  loaded = models.load(tmp_path / "S")
  assert loaded.config.width == 64
  assert tokenizers.load(loaded.tokenizer).eos == (0,)


def _leaves(table):
  parts = table.values()
  return [leaf for part in parts for leaf in (_leaves(part) if isinstance(part, dict) else [part])]


def test_the_command_asks_what_to_write(tmp_path, capsys):
  with pytest.raises(SystemExit):
    write_world.main([f"--out={tmp_path}"])
  assert "one of the arguments --seed --shared is required" in capsys.readouterr().err
