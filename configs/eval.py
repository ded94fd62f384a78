"""The paper's evaluations of any set of models, side by side.

  instructjax eval --models base=MODEL,sft=runs/sft,ppo=runs/ppo,ptx=runs/ptx --suite
  nlp,truthfulqa \
    --workdir=runs/eval --config.nlp.drop=tfds:drop@dev

Answers and scores are kept item by item: run the command again to go on, or to add models and
suites.  docs/evaluation.md says what each suite needs; a task whose data is "" is left out.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "paper") -> ConfigDict:
  if arg != "paper":
    raise KeyError(arg)
  c = ConfigDict({"stage": "eval", "seed": 0})
  c.baseline = "sft"  # the model that win rates and differences are against
  # About so many items of each task: the first, or whole passages and articles drawn by the seed; 0
  # takes all
  c.limit = 0
  c.model = {
    "shape": "tiny",  # origin.SHAPES, for random weights
    "tokenizer": "",  # "" is each source's own
    "dtype": "bfloat16",
    "remat": "none",
    "unroll": 1,  # layers a step of the scan; on a CPU more compile longer and run faster
    "sequence": False,
    # Of whole rows: a kernel of the platform where there is one; or xla, splash, cudnn
    "attention": "auto",
    "dropout": 0.0,
  }
  # Chat template: "" is plain text, as in the paper; "chat" is the tokenizer's own; or a .jinja
  # file
  c.template = ""
  c.tokens = 16384  # of a batch, padding included, over all devices
  c.folder = ""  # where TFDS data sets were prepared; "" is TFDS's own default
  c.nlp = {  # sources of the test sets, as of data; docs/evaluation/nlp.md has what each task reads
    "drop": "",  # tfds:drop@dev
    "quac": "",  # hub:allenai/quac@validation
    "squad": "",  # tfds:squad/v2.0@validation
    "hellaswag": "",  # tfds:hellaswag@validation
    "sst": "",  # tfds:glue/sst2@validation
    "rte": "",  # tfds:super_glue/rte@validation
    "wsc": "",  # tfds:super_glue/wsc.fixed@validation
    "wmt": "",  # tfds:wmt15_translate/fr-en@test
    "cnn_dm": "",  # tfds:cnn_dailymail@validation
    "tldr": "",
    # training sets that exemplars are drawn from; "" leaves few-shot out
    "shots": {
      "drop": "",
      "quac": "",
      "squad": "",
      "hellaswag": "",
      "sst": "",
      "rte": "",
      "wsc": "",
      "wmt": "",
    },
    # Of a passage that is an exemplar; 0 shows all, which in DROP may be more than 2k tokens
    "shot_questions": 0,
    "tokens": 64,  # of an answer; the paper says only: to the first newline
    "long_tokens": 128,  # of a summary or a translation
  }
  c.truthfulqa = {
    # TruthfulQA.csv, hub:truthfulqa/truthful_qa/generation@validation (or multiple_choice), JSONL
    "data": "",
    "prompts": "qa,instruction,qa+instruction",
    "qa_prompt": "",  # a text of question-answer pairs; "" is six of our own
    "tokens": 50,  # of an answer; the paper's released answers end there
    "true_judge": "",  # a reward (docs/rewards.md) that sees "Q: ...\nA:" and the answer
    "info_judge": "",
    "threshold": 0.5,  # of both judges: at least this is true, informative
  }
  c.preference = {
    # Held-out prompts with user, use_case, source: valid.jsonl, or instruct=a.jsonl; gpt=b.jsonl
    "prompts": "",
    # Runs/reward, openai:URL#MODEL, lm:MODEL, python:my.py:f, labels:FILE; train=labels:..;
    # heldout=labels:..
    "judges": "",
    # Of Likert 1 to 7 and Table 3's flags: openai:URL#MODEL, python:my.py:f, labels:FILE
    "raters": "",
    "pairs": "baseline",  # every model against config.baseline; or all, head to head as well
    "check": "",  # comparisons by people: how far does each judge agree with them?
    "response": 1024,  # tokens
    "temperature": 1.0,  # the paper's for InstructGPT; .7 for GPT-3
    "stop": (),  # texts that end an answer beside the end-of-text token
    "margin": 0.0,  # scores no further apart than this tie
  }
  c.toxicity = {
    # Tfds:real_toxicity_prompts, its prompts.jsonl, or yours: {"prompt", "toxicity"}
    "prompts": "",
    "count": 5000,  # prompts, about equally many of each toxicity; 0 takes all
    "forms": "basic,respectful,biased",
    # A prompt: 1 is greedy, as in the paper; 25 at temperature 1 give the expected maximum
    "samples": 1,
    # Of several samples, as Gehman et al. 2020 draw them; 1 leaves the distribution whole
    "top_p": 0.9,
    "tokens": 20,  # of a continuation: what the paper's released samples stop at
    # Or "stand-in", offline; or a reward from 0 to 1
    "scorer": "perspective:TOXICITY#cache=runs/perspective.jsonl",
    "labels": "",  # what people said of the suite's tasks.jsonl: docs/evaluation/toxicity.md
  }
  c.bias = {
    # Templates.tsv of rudinger/winogender-schemas, tfds:super_glue/axg@test, or yours:
    # {"sentences": [a, b]}
    "winogender": "",
    # Crows_pairs_anonymized.csv, or yours: {"sentences": [stereotyping, less so], "type"}
    "crows": "",
    "pairs": "",  # others: NAME=FILE; NAME=FILE, of {"sentences": [stereotyping, less so], "type"}
    "forms": "basic,respectful,biased",
  }
  c.hallucination = {
    "own": "shipped",  # or your file: {"prompt", "source", "references", "use_case"}
    "cnn_dailymail": "",  # tfds:cnn_dailymail@test
    "squad": "",  # tfds:squad/v2.0@validation
    "count": 500,  # items of each public data set, drawn at random; 0 takes all
    "tokens": 128,
    "judge": "",  # "" is the detector; or a reward that gives P(the source supports the sentence)
    # What the judge is measured on; or yours: {"source", "supported": [...], "unsupported": [...]}
    "labelled": "shipped",
  }
  c.behaviours = {  # "shipped" are our items, or your file of the same fields; "" leaves one out
    "false_premises": "shipped",
    "hedging": "shipped",
    "constraints": "shipped",
    "languages": "shipped",
    "code": "shipped",
    "harmful": "shipped",
    "perturbations": "shipped",
  }
  c.mesh = {"data": 1, "fsdp": 1, "model": 1}
  return c
