"""What a LoRA adds to the outputs of linear layers. All are computed from factors, never as a matrix of the layer's
size, and added to the output in place."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from lightx2v.errors import InvalidCheckpoint
from lightx2v.weights.layout import Entry

TOKENS = 4096
"""Tokens that are multiplied at a time: enough to fill a GPU, few enough to keep the products small."""

HADAMARD_RANK = 256
"""The rank of the products that a Hadamard product is computed by: enough to fill a GPU's tiles."""

NORM_ROWS = 256
"""Strip of a weight whose norms are computed at a time."""

Hook = Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]
Add = Callable[[torch.Tensor, torch.Tensor], None]
"""Adds to sums, [tokens, rows], what follows from inputs, [tokens, entering]."""

States = Mapping[str, torch.Tensor]
"""The tensors of a LoRA file, on the device."""


class Strip(NamedTuple):
    """The rows from `first` up to `last` of a product, which are added to a layer's output from column `start` on."""

    first: int
    last: int
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.last - self.first


class Product(ABC):
    """A change of a linear layer, or of several with one name in common."""

    @property
    @abstractmethod
    def entries(self) -> tuple[Entry, ...]:
        """Its tensors."""

    @property
    def rank(self) -> int | None:
        """The rank by which an alpha is divided; None if it consists of whole matrices."""
        return None

    @abstractmethod
    def check(self, leaving: int, entering: int) -> None:
        """Raises InvalidCheckpoint unless it changes a matrix of [leaving, entering]."""

    @property
    def values(self) -> int:
        """Values that are held for each token while it is computed."""
        return 0

    @property
    def scratch(self) -> int:
        """Values that are held besides while it is computed."""
        return 0

    @property
    def kept(self) -> int:
        """Values that are held from its first use to the end of the run."""
        return 0

    @abstractmethod
    def adder(self, states: States, strip: Strip, scale: float) -> Add:
        """Adds `scale` times the strip of the product."""

    def hook(self, states: States, strip: Strip, scale: float) -> Hook:
        """A hook that adds to a linear layer's output in place: nothing else refers to the output."""
        add = self.adder(states, strip, scale)

        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            for entering, sums in _pieces(inputs[0], output, strip):
                add(entering, sums)

        return hook


@dataclass(frozen=True, slots=True)
class LowRank(Product):
    """up (down x), and a bias if there is one."""

    down: Entry
    up: Entry
    bias: Entry | None = None

    @property
    def entries(self) -> tuple[Entry, ...]:
        return (self.down, self.up) if self.bias is None else (self.down, self.up, self.bias)

    @property
    def rank(self) -> int:
        return self.down.shape[0] if self.down.shape else 0

    def check(self, leaving: int, entering: int) -> None:
        require(self.down, max(1, self.rank), entering)
        require(self.up, leaving, self.rank)
        if self.bias is not None:
            require(self.bias, leaving)

    @property
    def values(self) -> int:
        return self.rank

    def adder(self, states: States, strip: Strip, scale: float) -> Add:
        down, up = states[self.down.name], states[self.up.name][strip.first : strip.last]
        bias = None if self.bias is None else states[self.bias.name][strip.first : strip.last]

        def add(entering: torch.Tensor, sums: torch.Tensor) -> None:
            sums.addmm_(F.linear(entering, down), up.t(), alpha=scale)
            if bias is not None:
                sums.add_(bias, alpha=scale)

        return add


@dataclass(frozen=True, slots=True)
class Decomposed(LowRank):
    """DoRA (arXiv:2402.09353): the rows of the sum of weight and product get the norms in `magnitude`. As in PEFT, a
    scale multiplies the product before the norms are taken."""

    magnitude: Entry = field(kw_only=True)

    @property
    def entries(self) -> tuple[Entry, ...]:
        return (*super(Decomposed, self).entries, self.magnitude)

    def check(self, leaving: int, entering: int) -> None:
        LowRank.check(self, leaving, entering)
        if self.magnitude.shape not in ((leaving,), (leaving, 1)):
            raise InvalidCheckpoint(
                f"{self.magnitude.ref.file}: {self.magnitude.name} has shape {list(self.magnitude.shape)}; supported "
                f"are the norms of the {leaving} rows"
            )

    @property
    def scratch(self) -> int:
        """Rows of the sum with those of the weight, and both factors in fp32."""
        leaving, entering = self.up.shape[0], self.down.shape[1]
        return 2 * NORM_ROWS * entering + self.rank * (leaving + entering)

    @property
    def kept(self) -> int:
        return self.up.shape[0]

    def hook(self, states: States, strip: Strip, scale: float) -> Hook:
        add, gains = self.adder(states, strip, scale), list[torch.Tensor]()

        def hook(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if not gains:  # the weight is on the device only while its layer is called
                gains.append(self._gains(layer.get_parameter("weight"), states, strip, scale))
            bias = layer._parameters.get("bias")
            offset = torch.zeros_like(gains[0]) if bias is None else bias[strip.start : strip.stop]
            for entering, sums in _pieces(inputs[0], output, strip):
                add(entering, sums.sub_(offset))
                sums.mul_(gains[0]).add_(offset)

        return hook

    def _gains(self, weight: torch.Tensor, states: States, strip: Strip, scale: float) -> torch.Tensor:
        """[rows]: the wanted norm of each row of the sum by the norm that it has. fp32."""
        down, up = states[self.down.name].float(), states[self.up.name][strip.first : strip.last].float()
        parts = zip(weight[strip.start : strip.stop].split(NORM_ROWS), up.split(NORM_ROWS), strict=True)
        norms = torch.cat([torch.addmm(part.float(), above, down, alpha=scale).norm(dim=1) for part, above in parts])
        return states[self.magnitude.name].flatten()[strip.first : strip.last].float() / norms


@dataclass(frozen=True, slots=True)
class Factor:
    """A matrix that is stored whole, or as a product of two."""

    entries: tuple[Entry, ...]

    @property
    def rank(self) -> int | None:
        """The rank of a product, or None."""
        below = self.entries[-1]
        return (below.shape[0] if below.shape else 0) if len(self.entries) > 1 else None

    @property
    def shape(self) -> tuple[int, int]:
        """Raises InvalidCheckpoint if it is no matrix."""
        first, last = self.entries[0], self.entries[-1]
        if len(last.shape) != 2:
            raise InvalidCheckpoint(f"{last.ref.file}: {last.name} has shape {list(last.shape)} and is no matrix")
        require(last, *last.shape)
        require(first, *first.shape[:1], last.shape[1] if self.rank is None else max(1, self.rank))
        return first.shape[0], last.shape[1]

    def matrix(self, states: States) -> torch.Tensor:
        return reduce(torch.matmul, (states[entry.name] for entry in self.entries))


@dataclass(frozen=True, slots=True)
class Pair(Product):
    """A product of two factors."""

    left: Factor
    right: Factor

    @property
    def entries(self) -> tuple[Entry, ...]:
        return (*self.left.entries, *self.right.entries)


@dataclass(frozen=True, slots=True)
class Kronecker(Pair):
    """LoKr (LyCORIS, arXiv:2309.14859): the Kronecker product of `left`, [a, b], and `right`, [c, d]: with x as
    [b, d], its output is left x right^T, [a, c]."""

    @property
    def rank(self) -> int | None:
        return self.right.rank or self.left.rank

    def check(self, leaving: int, entering: int) -> None:
        (above, before), (below, behind) = self.left.shape, self.right.shape
        if (above * below, before * behind) != (leaving, entering):
            first = self.left.entries[0]
            raise InvalidCheckpoint(
                f"{first.ref.file}: {first.name} and its neighbours change a matrix of "
                f"{[above * below, before * behind]}, the model has room for {[leaving, entering]}"
            )

    @property
    def values(self) -> int:
        (above, before), (below, _) = self.left.shape, self.right.shape
        return before * (below + (self.right.rank or 0)) + above * below

    @property
    def scratch(self) -> int:
        return math.prod(self.left.shape)

    def adder(self, states: States, strip: Strip, scale: float) -> Add:
        height, before = self.right.shape[0], self.left.shape[1]
        top, skipped = divmod(strip.first, height)
        left = self.left.matrix(states)[top : -(-strip.last // height)]
        right = [states[entry.name] for entry in reversed(self.right.entries)]

        def add(entering: torch.Tensor, sums: torch.Tensor) -> None:
            inner = reduce(F.linear, right, entering.unflatten(-1, (before, -1)))
            product = torch.matmul(left, inner).flatten(-2)
            sums.add_(product[:, skipped : skipped + sums.shape[1]], alpha=scale)

        return add


@dataclass(frozen=True, slots=True)
class Hadamard(Pair):
    """LoHa (LyCORIS, arXiv:2108.06098): the elementwise product of two low-rank matrices. It has the rank of both
    ranks' product, and is computed as a sum of products of a smaller rank."""

    @property
    def rank(self) -> int | None:
        return self.left.rank

    def check(self, leaving: int, entering: int) -> None:
        for factor in (self.left, self.right):
            above, below = factor.entries
            rank = below.shape[0] if below.shape else 0
            require(below, max(1, rank), entering)
            require(above, leaving, rank)

    @property
    def values(self) -> int:
        return self._columns * self.right.entries[1].shape[0]

    @property
    def scratch(self) -> int:
        return self.values * (self.left.entries[0].shape[0] + self.left.entries[1].shape[1])

    @property
    def _columns(self) -> int:
        """Columns of the left matrix that are taken at a time."""
        return min(self.left.entries[1].shape[0], max(1, HADAMARD_RANK // self.right.entries[1].shape[0]))

    def adder(self, states: States, strip: Strip, scale: float) -> Add:
        (above, below), (up, down) = (
            (states[factor.entries[0].name][strip.first : strip.last], states[factor.entries[1].name])
            for factor in (self.left, self.right)
        )

        def add(entering: torch.Tensor, sums: torch.Tensor) -> None:
            pairs = zip(above.split(self._columns, dim=1), below.split(self._columns), strict=True)
            for columns, lines in pairs:
                inner = F.linear(entering, (lines[:, None] * down).flatten(0, 1))
                sums.addmm_(inner, (columns[:, :, None] * up[:, None]).flatten(1).t(), alpha=scale)

        return add


@dataclass(frozen=True, slots=True)
class Whole(Product):
    """A difference of weights as it is stored."""

    weight: Entry

    @property
    def entries(self) -> tuple[Entry, ...]:
        return (self.weight,)

    def check(self, leaving: int, entering: int) -> None:
        require(self.weight, leaving, entering)

    def adder(self, states: States, strip: Strip, scale: float) -> Add:
        weight = states[self.weight.name][strip.first : strip.last]

        def add(entering: torch.Tensor, sums: torch.Tensor) -> None:
            sums.addmm_(entering, weight.t(), alpha=scale)

        return add


@dataclass(frozen=True, slots=True)
class Offset(Product):
    """A difference of biases."""

    bias: Entry

    @property
    def entries(self) -> tuple[Entry, ...]:
        return (self.bias,)

    def check(self, leaving: int, entering: int) -> None:
        require(self.bias, leaving)

    def adder(self, states: States, strip: Strip, scale: float) -> Add:
        bias = states[self.bias.name][strip.first : strip.last]

        def add(_: torch.Tensor, sums: torch.Tensor) -> None:
            sums.add_(bias, alpha=scale)

        return add


def require(entry: Entry, *shape: int) -> None:
    """Raises InvalidCheckpoint unless the tensor has this shape and holds weights."""
    if entry.shape != shape:
        raise InvalidCheckpoint(
            f"{entry.ref.file}: {entry.name} has shape {list(entry.shape)}, the model has room for {list(shape)}"
        )
    if not entry.dtype.is_floating_point:
        raise InvalidCheckpoint(f"{entry.ref.file}: {entry.name} holds {entry.dtype}, which is no weight")


def scratch_bytes(products: Sequence[Product], itemsize: int) -> int:
    """Device bytes that the products need beside their factors. Norms and gains are in fp32."""
    tokens = max((product.values for product in products), default=0)
    fixed = max((product.scratch for product in products), default=0)
    kept = sum(product.kept for product in products)
    return TOKENS * tokens * itemsize + (fixed + kept) * torch.float32.itemsize


def _pieces(entering: torch.Tensor, leaving: torch.Tensor, strip: Strip) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What enters and the columns of what leaves, a number of tokens at a time."""
    inputs = entering.reshape(-1, entering.shape[-1])
    sums = leaving.view(-1, leaving.shape[-1])[:, strip.start : strip.stop]
    return zip(inputs.split(TOKENS), sums.split(TOKENS), strict=True)
