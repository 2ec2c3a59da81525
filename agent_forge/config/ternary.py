"""The settings of ternary layers, in one class: what `forge bitnet` is given, what layers are built
from, and what config.json of a ternary model says. Checked when an object is made; reads and writes
no file.
"""

from dataclasses import dataclass, field
from typing import Annotated

from agent_forge.config.limits import MANY, CountOrNone, OneOf, Range, Text
from agent_forge.core.errors import ConfigError, did_you_mean

ROW, TENSOR = 0, -1  # group sizes that stand for one scale per row and one per tensor
PACKINGS = ("five_trits", "two_bit")
TERNARY_BITS = 2  # Embeddings of so many bits have the codes -1, 0 and 1.
EMBEDDING_BITS = (0, TERNARY_BITS, 4, 8)


@dataclass(frozen=True, slots=True)
class CodeGrid:
    """Where rounded weights may lie. bits: of integers, 2 is ternary, 0 is float; columns: that
    share a step, 0 is the row.
    """

    bits: int = 0
    columns: int = 0

    def __post_init__(self) -> None:
        if self.bits not in EMBEDDING_BITS:
            raise ConfigError(
                f"embedding_bits must be 0 (float), 2 (ternary), 4 or 8, got {self.bits}; try embedding_bits=8"
            )
        if self.columns < 0:
            raise ConfigError(
                f"embedding_group must be at least 0 (0: a row has one step), got {self.columns}; try 64"
            )

    def __bool__(self) -> bool:
        return bool(self.bits)


@dataclass(slots=True, kw_only=True)
class TernarySettings:
    """How linears become ternary. skip: patterns of module names, or of one part of a dotted name,
    that stay float.
    """

    group_size: Annotated[int, Range(TENSOR, MANY)]
    activation_bits: Annotated[int, Range(0, 16)]
    packing: Annotated[str, OneOf(PACKINGS)]
    skip: list[Text]
    embedding_bits: Annotated[int, OneOf(EMBEDDING_BITS)] = 0
    embedding_group: CountOrNone = 0
    sub_norm: list[Text] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not isinstance(self.group_size, int) or self.group_size < TENSOR:
            raise ConfigError(
                f"group_size must be a whole number from 1, 0 (a row) or -1 (a tensor), got {self.group_size}; "
                "try group_size=128"
            )
        self.embedding_grid()
        if self.activation_bits != 0 and not 2 <= self.activation_bits <= 16:
            raise ConfigError(
                f"activation_bits must be 0 (off) or 2 to 16, got {self.activation_bits}; try 8"
            )
        if self.packing not in PACKINGS:
            raise unknown_packing(self.packing)

    def embedding_grid(self) -> CodeGrid:
        """Return where the weights of embedding and head may lie."""
        return CodeGrid(self.embedding_bits, self.embedding_group)


def unknown_packing(name: str) -> ConfigError:
    """Return the error that names the nearest packing and all."""
    return ConfigError(
        f"no ternary packing '{name}'{did_you_mean(name, PACKINGS)}; known: {', '.join(PACKINGS)}"
    )


def no_codewords(where: str, vector: int) -> ConfigError:
    """Return the error for a model whose embedding lies on codewords, which lost to 4 bits and are
    gone.
    """
    return ConfigError(
        f"{where} has an embedding of codewords (embedding_vector={vector}), which this forge no longer opens; make the "
        "float model ternary again, with linear.embedding_bits=4 linear.embedding_group=64"
    )
