"""People write demonstrations, rate outputs and rank them, on a page of this machine.

Their answers become records to train on. tasks.py and answers.py define what is asked and what
is answered, store.py keeps it in one SQLite file, server.py and guard.py serve page.html and its
scripts, and exchange.py reads and writes files (labelstudio.py and argilla.py those of other
tools). How far labelers agree is measured in data/records/agreement.py. The command line is in
commands/label.py. Nothing here imports jax, so the page starts at once on a machine without an
accelerator.
"""
