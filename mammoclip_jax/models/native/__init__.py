"""Passes over maps that XLA's CPU backend does not fuse, in C++ through JAX's FFI: an option, never a need.

`python -m mammoclip_jax.models.native.build` compiles mbconv.cc, where a compiler is; passes.py calls it.
"""
