"""The instructions of the quickstart: the templates of its prompts, by domain.

A template is a pair: the instruction to praise, and the instruction to criticise. The last line of
each is a label, which the sentence follows. The evaluation has templates of its own, so that it
shows whether a model understands an instruction that it was not trained on.
"""

from __future__ import annotations

# The instruction to praise, and the one to criticise.
Template = tuple[str, str]
# The templates of each domain.
Templates = dict[str, tuple[Template, ...]]

# The prompts of the training data.
TRAIN: Templates = {
  "movies": (
    (
      "Praise this film in one sentence.\nPraise:",
      "Criticize this film in one sentence.\nCriticism:",
    ),
    (
      "Write a sentence of a good film review.\nPositive review:",
      "Write a sentence of a bad film review.\nNegative review:",
    ),
    (
      "What does a critic who loved the film write?\nLoved it:",
      "What does a critic who hated the film write?\nHated it:",
    ),
    (
      "Say in one sentence what is good about the film.\nGood:",
      "Say in one sentence what is bad about the film.\nBad:",
    ),
    (
      "Would you recommend the film?\nRecommended:",
      "Would you recommend the film?\nNot recommended:",
    ),
    ("Why is the film great?\nGreat:", "Why is the film terrible?\nTerrible:"),
    (
      "Review the film as someone who enjoyed it.\nEnjoyed:",
      "Review the film as someone who was bored.\nBored:",
    ),
    ("Name the best thing about the film.\nBest:", "Name the worst thing about the film.\nWorst:"),
  ),
  "tweets": (
    (
      "Write a tweet that praises something.\nPraise:",
      "Write a tweet that criticizes something.\nCriticism:",
    ),
    ("Write a happy tweet.\nPositive tweet:", "Write an unhappy tweet.\nNegative tweet:"),
    (
      "Write a tweet about something you love.\nLove:",
      "Write a tweet about something you hate.\nHate:",
    ),
    (
      "You are in a good mood. Write a tweet.\nGood:",
      "You are in a bad mood. Write a tweet.\nBad:",
    ),
    ("Write a tweet about a great day.\nGreat:", "Write a tweet about a terrible day.\nTerrible:"),
    ("Tweet about the best thing today.\nBest:", "Tweet about the worst thing today.\nWorst:"),
  ),
}
# The prompts of the evaluation. Product reviews are in the evaluation alone.
TEST: Templates = {
  "movies": (
    (
      "Give me one line of a glowing film review.\nGlowing review:",
      "Give me one line of a scathing film review.\nScathing review:",
    ),
    (
      "What did you like about the film?\nLiked:",
      "What did you dislike about the film?\nDisliked:",
    ),
  ),
  "tweets": (
    ("Tweet something nice.\nNice tweet:", "Tweet something nasty.\nNasty tweet:"),
    (
      "Write a tweet about what you like today.\nLiked:",
      "Write a tweet about what you dislike today.\nDisliked:",
    ),
  ),
  "amazon": (
    (
      "Praise this product in one sentence.\nPraise:",
      "Criticize this product in one sentence.\nCriticism:",
    ),
    (
      "Give me one line of a glowing product review.\nGlowing review:",
      "Give me one line of a scathing product review.\nScathing review:",
    ),
    (
      "What did you like about the product?\nLiked:",
      "What did you dislike about the product?\nDisliked:",
    ),
  ),
}
