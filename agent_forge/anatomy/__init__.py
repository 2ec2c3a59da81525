"""What a model is made of: its blocks, matrices, head and calls; one answer for every model.

    stack.py    the blocks of a model, their matrices and roles, and the stream between them
    watch.py    hooks that remove themselves, the calls of a block, a pass that stops early
    head.py     heads whose logits are one product of the stream
    moments.py  sums of x xᵀ over the inputs of a layer
    swap.py     replace a module by another
    reach.py    count the weights that a method reaches
    cross_entropy.py, chunks.py  losses over a large vocabulary without its logits

This room does not import models of this project: it reads `nn.Module`s, whoever wrote them.
"""
