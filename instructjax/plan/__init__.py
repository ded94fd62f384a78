"""Planning and timing: what a stage needs on a pod that is not there, and how fast it runs here.

`planning` traces the stages as they are wired on shapes, `counting` counts their costs, `aot`
compiles them for TPU topologies where libtpu is installed, and `bench` runs them on random
weights.
"""
