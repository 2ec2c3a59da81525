"""Products with coded matrices, without making them dense.

`matrix.PackedMatrix` lays a codec's codes out for the vector unit. `native` runs engine.c on it,
which the machine's C compiler compiles on first use; without a compiler numpy multiplies the same
layout, in blocks of rows. `gpu` multiplies a few tokens on CUDA, with Triton. Only `gpu` imports
torch at module level: a packed model runs in a process without it.
"""
