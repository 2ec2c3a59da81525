"""The memory of a training step of a plain decoder (Llama's block), counted in closed form.

Per token and layer autograd keeps, in floats: of each of the two norms its input, its normalised
input (where the gains are trained) and its output; of attention queries, keys, values, the output
and one sum per head; of the SwiGLU gate, its activation, the other factor and the product. The
tests compare these sums with the bytes that autograd really saves.
"""

from agent_forge.config import StepMemory
from agent_forge.pipeline.step_time import ModelShape

FLOAT = 4  # Bytes; also in the residual stream where products are in bfloat16.
MOMENTS = 2  # Numbers of the optimiser per trained one.
# Floats per token and word where two distributions are compared: both logits, both logarithms, and
# two intermediate results.
COMPARED = 6


def step_bytes(shape: ModelShape, step: StepMemory, product_bytes: int, parts: int = 1) -> int:
    """Return the bytes of the models, the optimiser and one step's activations or gradients.

    product_bytes: of one number of a product. parts: in which a step is taken. Gradients grow as
    activations are given back, so the larger of both counts.
    """
    trained = adapter_size(shape, step.rank) if step.rank else shape.parameters
    held = step.models * shape.parameters + (MOMENTS + step.averages) * trained
    held += trained if step.rank else 0
    layers = shape.layers * token_bytes(shape, step.rank, product_bytes)
    compared = COMPARED * shape.words * FLOAT
    activations = (step.tokens * layers + step.compared_tokens * compared) / parts
    if product_bytes < FLOAT:
        activations += product_bytes * shape.parameters  # autocast keeps the weights it converted
    return round(FLOAT * held + max(activations, FLOAT * trained))


def token_bytes(shape: ModelShape, rank: int, product_bytes: int) -> int:
    """Return the bytes that one layer keeps for the backward pass, per token.

    rank: of adapters; their products of that width are kept, and what only the gains' gradients
    need is not.
    """
    width, keys, inner = shape.hidden, shape.keys, shape.inner
    streams = 2 * width if rank else 4 * width
    products = 4 * width + 2 * keys + 4 * inner
    if product_bytes < FLOAT:
        products += 3 * width  # inputs of products, converted
    sums = 2 + shape.heads
    return FLOAT * (streams + sums + 7 * rank) + product_bytes * products


def adapter_size(shape: ModelShape, rank: int) -> int:
    """Return the parameters of adapters on the seven linear layers of every block."""
    ends = 9 * shape.hidden + 2 * shape.keys + 3 * shape.inner
    return shape.blocks * rank * ends
