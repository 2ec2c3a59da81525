"""Products with coded matrices, without making them dense.

`matrix.PackedMatrix` lays a codec's codes out for the vector unit; `native` runs engine.c on it, which is compiled on
first use with the machine's C compiler; without one the same layout is multiplied by numpy, in blocks of rows.
`gpu` does the same for a few tokens on CUDA, with Triton. Nothing else here imports torch at module level: a packed
model runs in a process without it.
"""
