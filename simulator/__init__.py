"""A CPU implementation of the `nki` API: specialise, check and execute NKI kernels.

A kernel is run once on tensors without data, which yields a flat list of instructions (a
*Program*); the Program is checked against what the hardware and the real compiler refuse,
and then replayed on data. `import nki` finds this implementation wherever the real SDK is
not installed (see `simulator.finder`).

This package imports nothing of the rest of the project.
"""
