"""Published kernels, written anew in current `nki`, and which published latency each stands for.

One module per family. Every kernel has the published algorithm, tiling, loop order, shapes and
dtypes; the code is ours. Kernels published for the old compiler (`neuronxcc.nki`) are written as
the instructions that compiler makes of them, by the rules in `legacy`. `rows` says which rows of
published_latencies.csv are taken, and by which rule the others are not.
"""
