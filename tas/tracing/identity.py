"""Channel identities: which positions of which tensors live and die together.

An *atom* stands for one unit that can be kept or removed; atom 0 is always kept. A position along a dimension of a
tensor is a *conjunction* of atoms: it is kept when all of them are (a channel of a grouped convolution belongs to a
group and has a place inside it). The identities of a dimension of size n are an int array [n, k], one row a position
(k is almost always 1), or None where every position is always kept. Sums (concatenation, slices, padding) are explicit,
since positions are explicit; numpy indexing does all the algebra.

Atoms are merged by union-find. An atom found later to be a product is replaced by the conjunction of its factors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Array = np.ndarray
Rows = Array | None


class Identities:
    """The atoms of one trace: a union-find forest with substitutions, frozen classes and the reasons for them."""

    def __init__(self) -> None:
        self._used = 1
        self._parent = np.arange(1 << 12)
        self._frozen = np.zeros(1 << 12, bool)
        self._frozen[0] = True
        self._product = np.zeros(1 << 12, bool)
        self._factors = np.arange(1 << 12)[:, None] * [1, 0]  # [atoms, most factors], itself where it is no product
        self._reason: dict[int, str] = {}
        self._tied: dict[int, str] = {}  # what first made positions of one dimension the same atom

    def fresh(self, n: int) -> Array:
        """Rows [n, 1] of n new atoms."""
        while self._used + n > len(self._parent):
            size = len(self._parent)
            self._parent = np.concatenate([self._parent, np.arange(size, 2 * size)])
            self._frozen = np.concatenate([self._frozen, np.zeros(size, bool)])
            self._product = np.concatenate([self._product, np.zeros(size, bool)])
            self._factors = np.pad(self._factors, ((0, size), (0, 0)))
            self._factors[size:, 0] = np.arange(size, 2 * size)
        atoms = np.arange(self._used, self._used + n)
        self._used += n
        return atoms[:, None]

    @property
    def capacity(self) -> int:
        """One more than the largest atom."""
        return self._used

    def find(self, atoms: Array) -> Array:
        """The root of every atom, whether frozen or not."""
        roots = self._parent[atoms]
        if (roots == atoms).all():
            return atoms
        while ((above := self._parent[roots]) != roots).any():
            roots = above
        self._parent[atoms.ravel()] = roots.ravel()
        return roots

    def canonical(self, rows: Rows) -> Rows:
        """Roots only, products expanded, frozen atoms 0, no repeats in a row, no empty columns; None if all is kept."""
        if rows is None:
            return None
        found = self._roots(rows)
        used = found.any(0)
        if not used.any():
            return None
        found = found if used.all() else found[:, used]
        return rows if found.shape == rows.shape and (found == rows).all() else found  # the same array can be shared

    def _roots(self, rows: Array) -> Array:
        """Like `canonical`, but an array in any case."""
        while True:
            rows = self.find(rows)
            rows = np.where(self._frozen[rows], 0, rows)
            if not self._product[rows].any():
                break
            rows = self._factors[rows].reshape(len(rows), -1)
            rows = rows[:, rows.any(0)]
        for i in range(rows.shape[1]):
            for j in range(i + 1, rows.shape[1]):
                rows[rows[:, i] == rows[:, j], j] = 0
        return rows

    def freeze(self, rows: Rows, why: str) -> None:
        """Keep every atom of these rows for ever."""
        rows = self.canonical(rows)
        if rows is not None:
            atoms = np.unique(rows[rows > 0])
            self._frozen[atoms] = True
            self._reason.update((int(atom), why) for atom in atoms)

    def reason(self, rows: Array) -> str:
        """Why a dimension is kept: the reason of its first frozen atom."""
        waiting = [int(atom) for atom in rows[0]]
        while waiting:
            root = int(self.find(np.array([waiting.pop(0)]))[0])
            if root in self._reason:
                return self._reason[root]
            waiting += [int(atom) for atom in self._factors[root] if atom and self._product[root]]
        return "no part of it is free"

    def unify(self, left: Rows, right: Rows, why: str) -> None:
        """Make two dimensions live and die together, position by position."""
        if left is right:
            return
        left, right = self.canonical(left), self.canonical(right)
        if left is None or right is None:
            self.freeze(right if left is None else left, f"it meets a size that cannot change: {why}")
            return
        assert len(left) == len(right), f"{why}: {len(left)} positions against {len(right)}"
        mine, others = _without_common([*left.T], [*right.T])
        if not mine or not others:
            for column in mine + others:
                self.freeze(column[:, None], f"it meets a size that cannot change: {why}")
        elif len(mine) == len(others) == 1:
            self._merge(mine[0], others[0], why)
        elif len(mine) > 1 and len(others) > 1:
            self._unify_products(mine, others, why)
        else:
            self._unify_rows(mine, others, why)

    def _merge(self, left: Array, right: Array, why: str) -> None:
        """Merge atoms pairwise; all are roots. Every round hooks each root to the lowest one that it meets."""
        self._hook(left, right, why)
        roots = np.sort(self.find(left))
        if (roots[1:] != roots[:-1]).all():  # every position is still one of its own, on the right as well
            return
        for side in (left, right):
            roots, counts = np.unique(self.find(np.unique(side)), return_counts=True)
            for root in roots[counts > 1]:
                self._tied.setdefault(int(root), why)

    def tied(self, atom: int) -> str:
        """What first made positions of one dimension this atom; empty where nothing did."""
        root = self.find(np.array([atom]))
        return next((why for other, why in self._tied.items() if self.find(np.array([other])) == root), "")

    def _hook(self, left: Array, right: Array, why: str) -> None:
        while True:
            differ = left != right
            left, right = left[differ], right[differ]
            kept = (left == 0) | (right == 0)
            if kept.any():
                self.freeze(np.maximum(left, right)[kept, None], f"it meets a size that cannot change: {why}")
                left, right = (np.where(self._frozen[side], 0, side)[~kept] for side in (left, right))
            elif len(left):
                np.minimum.at(self._parent, np.maximum(left, right), np.minimum(left, right))
                left, right = self.find(left), self.find(right)
            else:
                return

    def _unify_products(self, mine: list[Array], others: list[Array], why: str) -> None:
        """Pair columns that show the same pattern of equal positions; treat what is left position by position."""
        left: list[Array] = []
        others = list(others)
        paired = False
        for column in mine:
            match = next((o for o in others if np.array_equal(_pattern(column), _pattern(o))), None)
            if match is None:
                left.append(column)
            else:
                paired = True
                others = [o for o in others if o is not match]
                self._merge(column, match, why)
        if not paired:
            self._unify_rows(mine, others, why)
        elif left or others:
            self.unify(np.stack(left, 1) if left else None, np.stack(others, 1) if others else None, why)

    def _unify_rows(self, mine: list[Array], others: list[Array], why: str) -> None:
        """Position by position: a lone atom on one side becomes the product of those on the other. Every round takes
        the positions that do not touch one another."""
        left, right = np.stack(mine, 1), np.stack(others, 1)
        while len(left):
            left, right = self._roots(left), self._roots(right)
            same = (left[:, :, None] == right[:, None, :]) & (left[:, :, None] > 0)
            left, right = np.where(same.any(2), 0, left), np.where(same.any(1), 0, right)
            few, many = (left > 0).sum(1), (right > 0).sum(1)
            stuck = ((few != 1) & (many != 1)) | (few * many == 0)
            for side in (left[stuck], right[stuck]):
                self.freeze(side, f"it would have to be two products of other sizes at once: {why}")
            width = max(left.shape[1], right.shape[1])
            left, right = (np.pad(side, ((0, 0), (0, width - side.shape[1])))[~stuck] for side in (left, right))
            swap = (few != 1)[~stuck, None]
            lone, factors = np.where(swap, right, left).max(1, initial=0), np.where(swap, left, right)
            chosen = _independent(lone, factors)
            self._substitute(lone[chosen], factors[chosen], why)
            left, right = lone[~chosen, None], factors[~chosen]

    def _substitute(self, lone: Array, factors: Array, why: str) -> None:
        """Each of the distinct atoms `lone` [n] becomes the conjunction of its row of `factors` [n, k]."""
        single = (factors > 0).sum(1) == 1
        self._merge(lone[single], factors[single].max(1, initial=0), why)
        lone, factors = lone[~single], factors[~single]
        more = factors.shape[1] - self._factors.shape[1]
        if more > 0:
            self._factors = np.pad(self._factors, ((0, 0), (0, more)))
        self._factors[lone] = np.pad(factors, ((0, 0), (0, max(0, -more))))
        self._product[lone] = True

    def outer(self, rows: Sequence[Rows], sizes: Sequence[int]) -> Rows:
        """Rows of the dimension that merges dimensions of these sizes (row-major)."""
        columns = []
        for axis, part in enumerate(rows):
            if part is not None:
                shape = [1] * len(sizes) + [part.shape[1]]
                shape[axis] = sizes[axis]
                spread = np.broadcast_to(part.reshape(shape), (*sizes, part.shape[1]))
                columns.append(spread.reshape(-1, part.shape[1]))
        return np.concatenate(columns, 1) if columns else None

    def factor(self, rows: Rows, sizes: Sequence[int], why: str, free: Sequence[bool] | None = None) -> list[Rows]:
        """Split a dimension into dimensions of these sizes. A column that varies along one axis goes to that axis; one
        that varies along several is refined into new atoms an axis. `free` names the axes that may be cut: by default
        the innermost, and outer ones of more than two (an outer axis of two is a gate or a shuffle, not a group)."""
        rows = self.canonical(rows)
        if rows is None:
            return [None] * len(sizes)
        grid = rows.reshape(*sizes, rows.shape[1])
        parts: list[list[Array]] = [[] for _ in sizes]
        entangled: list[tuple[int, list[int]]] = []
        for column in range(rows.shape[1]):
            values = grid[..., column]
            varies = [a for a, n in enumerate(sizes) if n > 1 and not (values == np.take(values, [0], a)).all()]
            if not varies:
                self.freeze(values.reshape(-1, 1), f"{why}: one unit fills the whole dimension")
            elif len(varies) == 1:
                along = np.moveaxis(values, varies[0], 0).reshape(sizes[varies[0]], -1)
                parts[varies[0]].append(along[:, :1])
            else:
                entangled.append((column, varies))
        axes = sorted({axis for _, varies in entangled for axis in varies})
        new: list[Rows] = [None] * len(sizes)
        for axis in axes:
            if free[axis] if free is not None else (axis == axes[-1] or sizes[axis] > 2):
                new[axis] = self.fresh(sizes[axis])
                parts[axis].append(new[axis])  # type: ignore[arg-type]
        for column, varies in entangled:
            product = self.outer([new[a] if a in varies else None for a in range(len(sizes))], sizes)
            self.unify(grid[..., column].reshape(-1, 1), product, why)
        return [self.canonical(np.concatenate(columns, 1)) if columns else None for columns in parts]

    def view(self, before: Sequence[int], rows: Sequence[Rows], after: Sequence[int], why: str) -> list[Rows]:
        """Rows of a reshaped tensor: dimensions are cut where both shapes agree, merged and split in between."""
        if list(before) == list(after):
            return list(rows)
        out: list[Rows] = [None] * len(after)
        source = [(n, r) for n, r in zip(before, rows, strict=True) if n != 1]
        target = [axis for axis, n in enumerate(after) if n != 1]
        i = j = 0
        while i < len(source) and j < len(target):
            last_i, last_j, a, b = i, j, source[i][0], after[target[j]]
            while a != b:
                if a < b:
                    last_i += 1
                    a *= source[last_i][0]
                else:
                    last_j += 1
                    b *= after[target[last_j]]
            merged, split = source[i : last_i + 1], target[j : last_j + 1]
            i, j = last_i + 1, last_j + 1
            if len(merged) == len(split) == 1:
                out[split[0]] = merged[0][1]
            elif any(r is not None for _, r in merged):
                whole = self.outer([r for _, r in merged], [n for n, _ in merged])
                pieces = [whole] if len(split) == 1 else self.factor(whole, [after[k] for k in split], why)
                for axis, piece in zip(split, pieces, strict=True):
                    out[axis] = piece
        return out


def _without_common(left: list[Array], right: list[Array]) -> tuple[list[Array], list[Array]]:
    rest = list(right)
    mine = []
    for column in left:
        match = next((index for index, other in enumerate(rest) if np.array_equal(column, other)), None)
        if match is None:
            mine.append(column)
        else:
            rest.pop(match)
    return mine, rest


def _independent(lone: Array, factors: Array) -> Array:
    """Which substitutions can be made at once: the first of every atom, unless it is a factor of another; one at
    least."""
    first = np.zeros(len(lone), bool)
    first[np.unique(lone, return_index=True)[1]] = True
    chosen = first & ~np.isin(lone, factors)
    chosen[:1] |= not chosen.any()
    return chosen


def _pattern(column: Array) -> Array:
    _, first, inverse = np.unique(column, return_index=True, return_inverse=True)
    return first[inverse]


def same(left: Rows, right: Rows) -> bool:
    """Whether two canonical rows are equal position by position."""
    return left is right or (left is not None and right is not None and np.array_equal(left, right))
