# What must be set before jax starts; sourced by the scripts beside it.
#
# By itself jax takes 75 % of a GPU's memory.  `instructjax plan` says that a program fits up to 85 % of it; the rest
# of these 90 % is for what fragments, and what is left beside them for NCCL and CUDA.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
