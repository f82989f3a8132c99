"""Proof by replay: networks cut at several architectures are run, and every operator must give the predicted shape.

Where one does not, the attribute that holds the size is looked for (`attributes`); where there is none, identities give
way (`repair`) and everything is worked out again. What comes out has run at every architecture that was tried.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from functools import partial
from itertools import chain, islice, tee
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tas.tracing.attributes import AttributeRule, candidates, for_peers, in_units
from tas.tracing.copying import copy_sharing
from tas.tracing.dynamic import outputs_under
from tas.tracing.identity import Array
from tas.tracing.lookups import noting_lookups
from tas.tracing.places import Key, set_integer
from tas.tracing.recording import Recorder, plain_attention
from tas.tracing.records import Axis, Record
from tas.tracing.repair import SIZED, Told, give_way
from tas.tracing.replay import Replay
from tas.tracing.traced import Traced
from tas.tracing.trials import first_masks, more_masks
from tas.tracing.undoing import unchanged
from tas.tracing.units import Units

_TRIES = 60  # attributes tried at one operator before identities give way
_FRESH = 2  # architectures more that rules have to hold at and were not searched at: 1 s each on swin_b
_ASKED = 4  # architectures more that tell what size the code asks for where an operator fails


def prove(
    recorder: Recorder, units: Units, traced: Traced, rules: list[AttributeRule], doubted: list[AttributeRule]
) -> bool:
    """Replay the smallest and some random architectures until all of them hold with the same attribute rules. New
    rules are added to `rules`, and to `doubted` until a replay without them says that they are needed; False where
    identities changed, so that the widths have to be worked out anew."""
    disproved: list[AttributeRule] = []
    masks, others = deque(first_masks(traced)), more_masks(traced, 1)
    held = fresh = 0
    while held < len(masks) or (rules and fresh < _FRESH):
        if held < len(masks):
            mask = masks.popleft()
        else:  # what a rule was searched at is no proof of it: a coincidence fits there as well
            mask, fresh = next(others), fresh + 1
            if any(np.array_equal(mask, known) for known in masks):
                continue
        masks.append(mask)
        under, before = replace(traced, attribute_rules=in_units(rules, units)), list(rules)
        proof = _Proof(recorder, units, under, mask, rules, disproved, doubted)
        if not proof.holds(islice(more_masks(traced, 2), _ASKED)):
            return False
        held, fresh = (1, 0) if rules != before else (held + 1, fresh)
    return True


class _Proof:
    """The replay of one architecture, and what it takes to make it run."""

    def __init__(
        self,
        recorder: Recorder,
        units: Units,
        traced: Traced,
        mask: Array,
        rules: list[AttributeRule],
        disproved: list[AttributeRule],
        doubted: list[AttributeRule],
    ) -> None:
        self.recorder, self.units, self.traced, self.mask = recorder, units, traced, mask
        self.rules, self.disproved = rules, disproved  # those in force; those that failed at some architecture
        self.doubted = doubted  # those in force that may be coincidences
        self.network = traced.cut(mask, share=not recorder.overwrites).eval()
        self._sizes: dict[int, tuple[Any, int]] = {}

    def kept(self, axis: Axis) -> int:
        n, rows = axis
        if rows is None:
            return n
        if id(rows) not in self._sizes:
            units = self.units.rows(rows)
            self._sizes[id(rows)] = (rows, n if units is None else int(self.mask[units].all(1).sum()))
        return self._sizes[id(rows)][1]

    def holds(self, others: Iterator[Array]) -> bool:
        """Whether the architecture runs as predicted, with rules found on the way; False where identities changed: what
        the code asks for at `others` then tells what it reads."""
        with noting_lookups(self.network) as seen:  # code may go another way, and fill caches again, in a cut network
            replay = self._replay()
        for name, names in seen.items():
            self.recorder.lookups[name] |= names
        while replay.error is not None or (replay.strayed and not self._equals_masked(replay)):
            found = self._mend(replay)
            if found is None and (further := self._without_a_coincidence(replay)):
                replay = further
                continue
            if found is None:
                record, error = replay.at(), replay.error or "its values differ from those of the masked network"
                first = [] if replay.asked is None else [(replay.asked, self.kept)]
                (told,) = tee(chain(first, self._told(record, others) if first else ()), 1)  # a copy knows what it met
                changed = give_way(self.recorder, record, partial(copy, told), self.kept, self.rules, error)
                return not (changed or self._keep_everything(f"{error}: {record.where()}"))
            rules, replay = found
            self.doubted += rules
        self._drop_coincidences(replay)
        return True

    def _told(self, record: Record, masks: Iterator[Array]) -> Iterator[Told]:
        """What the code asks for at an operator in other architectures, with the sizes that tensors have there."""
        traced = replace(self.traced, attribute_rules=in_units(self.rules, self.units))
        for mask in masks if record.operator in SIZED else ():
            other = _Proof(self.recorder, self.units, traced, mask, self.rules, self.disproved, self.doubted)
            replay = other._replay()
            if replay.error is not None and replay.at() is record and replay.asked is not None:
                yield replay.asked, other.kept

    def _keep_everything(self, why: str) -> bool:
        """Where nothing is cut at the operator that fails, nor before it. Whether anything was left to keep."""
        units = [part for rows in self.recorder.tensors.values() for part in rows if self.recorder.carries(part)]
        for part in units:
            self.recorder.identities.freeze(part, f"a cut network does not run: {why}")
        return bool(units)

    def _replay(self) -> Replay:
        replay = Replay(self.recorder, self.kept)
        with torch.no_grad(), plain_attention(), unchanged(self.network.modules()):
            replay.run(self.network, self.traced.args, self.traced.kwargs)
        return replay

    def _equals_masked(self, replay: Replay) -> bool:
        """Where operators could not be compared to the end: whether the cut network computes what the whole one does
        with zeros for what is cut. Norms and means over channels do not, by their nature."""
        if self.traced.space.notes:
            return True
        masked = copy_sharing(self.traced.network).eval()
        tensors = {**dict(masked.named_parameters()), **dict(masked.named_buffers())}
        with torch.no_grad():
            for name, tensor in tensors.items():
                for dim, rows in enumerate(self.traced.rows.get(name, ())):
                    if rows is not None:
                        keep = torch.from_numpy(self.mask[rows].all(1)).to(tensor)
                        tensor.mul_(keep.reshape([-1 if d == dim else 1 for d in range(tensor.dim())]))
            with plain_attention(), unchanged(self.network.modules()):
                given = self.recorder.decisions, self.traced.args, self.traced.kwargs
                outputs = [outputs_under(given[0], n, *given[1:]) for n in (masked, self.network)]
        pairs = [(a, b) for a, b in zip(*outputs, strict=True) if isinstance(a, Tensor)]
        same = all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True) for a, b in pairs)
        replay.error = None if same else "the cut network computes something else"
        return same

    def _mend(self, failed: Replay) -> tuple[list[AttributeRule], Replay] | None:
        """Rules, new or taken back, with which the replay comes further; they are in force afterwards."""
        original = self.traced.network
        tried = {frozenset[tuple[str, Key, int]]()}
        for number, rules in enumerate(candidates(self.recorder, original, failed.at(), self.kept)):
            if number >= _TRIES:
                break
            values = frozenset(
                (r.module, r.key, r.value(self.kept)) for r in rules if r.value(self.kept) != self._in_force(r)
            )
            if values in tried:  # sizes differ, what is set does not
                continue
            tried.add(values)
            if any(r.says(known) for r in rules for known in self.disproved) or any(map(self._is_written, rules)):
                continue
            before = [(r, self._in_force(r)) for r in rules]
            self._set(rules)
            replay = self._replay()
            if replay.error is None or replay.position > failed.position:
                joint, rules = rules, self._needed(dict(before), replay)
                if not rules:
                    continue
                peers = [p for rule in rules for p in for_peers(self.recorder, original, rule, failed.at())]
                peers = [
                    p
                    for p in peers
                    if not self._is_written(p) and not any(p.same_place(known) for known in (*self.rules, *rules))
                ]
                self.disproved += [k for k in self.rules if any(k.same_place(r) for r in rules)]
                self.rules[:] = [k for k in self.rules if not any(k.same_place(r) for r in rules)] + rules + peers
                self._set(peers)
                return rules + peers, replay if rules + peers == joint else self._replay()
            for rule, value in before:
                set_integer(self.network.get_submodule(rule.module), rule.key, value)
        return None

    def _needed(self, before: dict[AttributeRule, int], found: Replay) -> list[AttributeRule]:
        """Several rules found together, but for those without which the replay comes further: a shift of 3 is no number
        of heads, and 4 steps are not 4 registers. These go back to what they were `before`."""
        needed = list(before)
        for rule in needed[:] if len(needed) > 1 else []:
            if found.error is None and not found.strayed:
                break
            set_integer(self.network.get_submodule(rule.module), rule.key, before[rule])
            replay = self._replay()
            if replay.comes_further_than(found):
                needed.remove(rule)
                found = replay
            else:
                self._set([rule])
        return needed

    def _without_a_coincidence(self, failed: Replay) -> Replay | None:
        """The replay that comes further without a doubted rule, which is dropped: 4 steps that went with 4 slots are
        missed only after the first of them."""
        for group in self._doubted_groups():
            self._reset(group)
            replay = self._replay()
            if replay.comes_further_than(failed):
                self._drop(group)
                self.disproved += group
                return replay
            self._set(group)
        return None

    def _drop_coincidences(self, found: Replay) -> None:
        """An attribute that merely had the same value goes back: where the replay holds without it, and compares as
        much."""
        groups = list(self._doubted_groups())
        self.doubted.clear()
        for group in groups:
            self._reset(group)
            replay = self._replay()
            if replay.error is None and (replay.strayed <= found.strayed or replay.compared > found.compared):
                self._drop(group)
                found = replay
            else:
                self._set(group)

    def _doubted_groups(self) -> Iterator[list[AttributeRule]]:
        """Of every class and key that doubted rules are about, the rules in force."""
        modules: Any = dict(self.traced.network.named_modules())
        for kind, key in dict.fromkeys((type(modules[rule.module]), rule.key) for rule in self.doubted):
            group = [rule for rule in self.rules if rule.key == key and type(modules[rule.module]) is kind]
            yield from [group] if group else []

    def _reset(self, rules: list[AttributeRule]) -> None:
        for rule in rules:
            set_integer(self.network.get_submodule(rule.module), rule.key, rule.was)

    def _drop(self, rules: list[AttributeRule]) -> None:
        self.rules[:] = [rule for rule in self.rules if rule not in rules]

    def _is_written(self, rule: AttributeRule) -> bool:
        return (rule.module, rule.key[0]) in self.recorder.written

    def _in_force(self, rule: AttributeRule) -> int:
        known = next((k for k in self.rules if k.same_place(rule)), None)
        return rule.was if known is None else known.value(self.kept)

    def _set(self, rules: list[AttributeRule]) -> None:
        for rule in rules:
            set_integer(self.network.get_submodule(rule.module), rule.key, rule.value(self.kept))
