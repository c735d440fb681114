"""CHITA's second half: within each block of weights, refine the support and solve for its optimum exactly.

Blocks never cross a layer; many are solved at once. All algebra is float64: with small lambda the systems are
ill-conditioned. On a support S the optimum needs one n x n system only,
    d_S = -A_S' (A_S A_S' + mu I)^-1 (A_P d_P + 1/B),     d_P = -w_P for the pruned P,
which avoids the cancellation of large numbers in the usual Woodbury form.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from pruners.chita_problem import Problem

STEPS = (4.0, 1.0)
"""Step lengths tried, as multiples of 1 / L. A step of 1 / L never increases the objective; a longer one often gains
more.
"""


class Block(NamedTuple):
    """A batch of q blocks: A [q, n, m], w and d [q, m], support [q, m], v = A d [q, n], objective [q].

    empty [q, m]: columns without any gradient, such as the padding of the last block.
    """

    a: Tensor
    w: Tensor
    empty: Tensor
    d: Tensor
    support: Tensor
    v: Tensor
    objective: Tensor


def solve_layer(problem: Problem, name: str, support: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Refine the support and weights [o, i] of a layer, block by block; as many survive as before.

    Where the support is fixed, since each row or group keeps a given number of weights, only the weights are refined.
    Returns boolean support and updated weights (zero where pruned), both of the layer's shape, float64 weights.
    """
    flat_support, flat_weights = support.reshape(-1).copy(), weights.reshape(-1).astype(np.float64)
    original = problem.original(name).reshape(-1)
    for columns, a in problem.blocks(name):
        m = min(problem.block, a.shape[1])
        blocks = _start(problem, a, original[columns], flat_weights[columns], flat_support[columns], m)
        blocks = solve_exactly(problem, blocks if problem.settled else refine(problem, blocks))
        size = a.shape[1]
        flat_support[columns] = blocks.support.reshape(-1)[:size].cpu().numpy()
        flat_weights[columns] = (blocks.w + blocks.d).reshape(-1)[:size].cpu().numpy()
    flat_weights[~flat_support] = 0
    return flat_support.reshape(support.shape), flat_weights.reshape(support.shape)


def _start(problem: Problem, a: Tensor, w: np.ndarray, b: np.ndarray, support: np.ndarray, m: int) -> Block:
    """Cut columns [n, size] into blocks of m; the last is padded with weights that are zero and not in the support."""
    n, size = a.shape
    padding = -size % m

    def split(values: np.ndarray) -> Tensor:
        padded = np.concatenate([values, np.zeros(padding, dtype=values.dtype)])
        return torch.from_numpy(padded).to(a.device).reshape(-1, m)

    if padding:
        a = torch.nn.functional.pad(a, (0, padding))
    a = a.reshape(n, -1, m).transpose(0, 1).to(torch.float64, memory_format=torch.contiguous_format)  # one copy
    original = split(w.astype(np.float64))
    empty = ~a.any(dim=1)
    return _evaluated(problem, a, original, empty, [(split(b) - original, split(support))])[0]


def _evaluated(
    problem: Problem, a: Tensor, w: Tensor, empty: Tensor, candidates: list[tuple[Tensor, Tensor]]
) -> list[Block]:
    """Pairs of d and support as blocks; A, which is much larger than they, is read once for all of them."""
    together = torch.einsum("qnm,sqm->sqn", a, torch.stack([d for d, _ in candidates]))
    found = []
    for (d, support), v in zip(candidates, together, strict=True):
        objective = v.square().sum(1) / 2 + problem.inverse_batch * v.sum(1) + problem.mu / 2 * d.square().sum(1)
        found.append(Block(a, w, empty, d, support, v, objective))
    return found


def refine(problem: Problem, blocks: Block) -> Block:
    """Iterative hard thresholding in each block: gradient steps, keep as many of the largest as before."""
    kept = blocks.support.sum(dim=1).tolist()
    curvature = torch.linalg.eigvalsh(blocks.a @ blocks.a.transpose(1, 2))[:, -1:] + problem.mu
    for _ in range(problem.iterations):
        factors = blocks.v + problem.inverse_batch
        # A batched matmul: einsum takes twice as long.
        gradient = (factors[:, None] @ blocks.a)[:, 0] + problem.mu * blocks.d
        before, candidates = blocks.objective, []
        b = blocks.w + blocks.d
        for step in STEPS:
            u = b - step / curvature * gradient
            support = _largest(u, kept, blocks.empty)
            candidates.append((u.masked_fill_(~support, 0).sub_(blocks.w), support))
        start = blocks
        for candidate in reversed(_evaluated(problem, start.a, start.w, start.empty, candidates)):
            # In reversed order, so that the longest step that helps wins.
            blocks = _chosen(candidate.objective < start.objective, candidate, blocks)
        if not (blocks.objective < before).any():
            break
    return blocks


def _largest(u: Tensor, kept: list[int], empty: Tensor) -> Tensor:
    """Support of the `kept` [q] largest |u| of each row [q, m]; of equal values the later are kept."""
    size = u.abs()
    if empty.any():  # columns without gradient and weight must not enter the support
        size.masked_fill_(empty & (u == 0), -1.0)
    # numpy's partition takes a sixth of torch's kthvalue; a row that keeps nothing gets an infinite threshold.
    rows, m = size.cpu().numpy(), u.shape[1]
    cuts = [np.partition(row, m - k)[m - k] if k else np.inf for row, k in zip(rows, kept, strict=True)]
    cut = torch.from_numpy(np.array(cuts)).to(u.device)[:, None]
    enough = size >= cut
    if enough.sum(dim=1).tolist() == kept:
        return enough  # the usual case: no ties at the threshold
    above, equal = size > cut, size == cut
    wanted = torch.tensor(kept, device=u.device)[:, None] - above.sum(dim=1, keepdim=True)
    last = equal.sum(dim=1, keepdim=True) - equal.cumsum(dim=1) < wanted
    return above | (equal & last)


def _chosen(take: Tensor, one: Block, other: Block) -> Block:
    """Block by block `one` where `take` [q], else `other`."""
    if take.all():
        return one

    def pick(x: Tensor, y: Tensor) -> Tensor:
        return torch.where(take.reshape(-1, *[1] * (x.dim() - 1)), x, y)

    return Block(*one[:3], *(pick(x, y) for x, y in zip(one[3:], other[3:], strict=True)))


def solve_exactly(problem: Problem, blocks: Block) -> Block:
    """The minimum on each block's support, pruned weights at zero."""
    alive = blocks.support.double()
    fixed = torch.einsum("qnm,qm->qn", blocks.a, -blocks.w * (1 - alive))
    seen = (a[:, support] for a, support in zip(blocks.a, blocks.support, strict=True))
    gram = torch.stack([a @ a.t() for a in seen])
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    # n x n with n rows of A, far fewer than the m weights of a block: see the formula above.
    z = torch.linalg.solve(gram + problem.mu * eye, fixed + problem.inverse_batch)
    d = torch.where(blocks.support, -(z[:, None] @ blocks.a)[:, 0], -blocks.w)
    exact = _evaluated(problem, blocks.a, blocks.w, blocks.empty, [(d, blocks.support)])[0]
    return _chosen(exact.objective < blocks.objective, exact, blocks)
