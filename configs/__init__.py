"""The configurations as `ml_collections.ConfigDict`s, one file a stage, for a user's own to begin
with:

  from instructjax.configs import ppo

  def get_config():
    config = ppo.get_config("6b")
    config.ppo.clip = 0.1
    config.kl.coef = 0.05
    return config

`instructjax ppo --config=my_ppo.py` reads the file, and `instructjax config my_ppo.py` prints it.
"""
