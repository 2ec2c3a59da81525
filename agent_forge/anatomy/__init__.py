"""What a model is made of: its blocks and matrices, its head, its calls; one answer for every kind.

    stack.py    the blocks of a model, their matrices and roles, and the stream between them
    watch.py    hooks that remove themselves, the calls of a block, a pass that stops early
    head.py     heads whose logits are one product of the stream
    moments.py  sums of x xᵀ over the inputs of a layer
    swap.py     a module in another's place
    reach.py    the weights that something reaches
    cross_entropy.py, chunks.py  losses over a large vocabulary without its logits

This room imports no model of ours: it reads `nn.Module`s, whoever wrote them.
"""
