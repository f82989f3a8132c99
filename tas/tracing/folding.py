"""Where a factor on channels can be folded into parameters.

A supernet mixes candidate widths by zero extension: channel c counts with m_c, the summed weight of the candidates that
have it. A factor before a norm is normalised away, so it belongs on the last affine before the channel is summed over
by a convolution or product: gamma and beta of the norm, or rows and bias of the layer itself where no norm follows.
Where no such place serves (an operator in between does not keep zero at zero), the columns of the reading layer do; and
where these are computed (a spectral norm, a mask, a sum of matrices), what its module is given,
or the function of torch that sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tas.tracing.factors import Course, Factor, Read, scaled_by, upstream, uses_of
from tas.tracing.feeds import find_feeds
from tas.tracing.identity import Rows
from tas.tracing.recording import Recorder
from tas.tracing.records import Feed, Record, Site, Value
from tas.tracing.regions import Region
from tas.tracing.units import Units


@dataclass(frozen=True)
class Fold:
    """What the channel factors of a choice multiply: dimensions of parameters, and of what modules are given."""

    sites: tuple[Site, ...] = ()
    feeds: tuple[Feed, ...] = ()


def fold_widths(recorder: Recorder, units: Units) -> tuple[dict[str, Fold], list[tuple[Rows, str]]]:
    """For every width choice, what its channel factors multiply; and the identities of the choices for which nothing
    takes them everywhere, with the reason."""
    course = Course(recorder, units)
    folds: dict[str, Fold] = {}
    unmixable: list[tuple[Rows, str]] = []
    for number, group in enumerate(units.groups):
        folds[group.name], why = _fold_width(Factor(course, group.name))
        if why:
            unmixable.append((units.atoms(number), why))
    return folds, unmixable


def fold_regions(recorder: Recorder, regions: list[Region]) -> dict[str, tuple[Site, ...]]:
    """For every residual region the parameter dimensions whose scaling scales all its branches; empty where there are
    none."""
    uses = uses_of(recorder)
    return {region.module: _fold_region(recorder, uses, region) for region in regions}


def _fold_region(recorder: Recorder, uses: Mapping[Site, set[int]], region: Region) -> tuple[Site, ...]:
    makers: dict[int, Record] = {}
    for branch in region.branches:
        found = upstream(recorder, branch, lambda value: True, lambda site: True)
        if not found or any(not region.first <= r.index < region.last for r in found):
            return ()
        makers |= {record.index: record for record in found}
    sites = {site for record in makers.values() for site in scaled_by(record, lambda site: True)}
    if not all(uses[site] <= makers.keys() for site in sites):
        return ()
    return tuple(sorted({name: (name, dim) for name, dim in sorted(sites)}.values()))  # once, whichever the dimension


def _fold_width(factor: Factor) -> tuple[Fold, str]:
    """The fold of a choice, and why there is none that serves."""
    recorder, uses = factor.recorder, factor.course.uses
    reads: dict[Read, Site | None] = {
        read: next(filter(factor.scales, columns), None) for met in factor.met for read, columns in met.reads.items()
    }
    put_out = [value for value in recorder.freed if factor.on(value)]
    marked, reached, bare = _marked(factor, reads, put_out)
    if any(value.made_by not in reached for value in put_out):
        return Fold(), "no parameter takes its factor when candidates are mixed: it is an output of the network"
    feeds: list[Feed] = []
    while (lacking := _without_column(bare, uses)) is not None:
        found = find_feeds(factor, lacking, bare, reached.keys())
        if found is None:
            where = recorder.records[lacking[0]].where()
            return Fold(), f"no parameter of its own takes its factor when candidates are mixed: {where}"
        feeds += found[0]
        bare = {read: column for read, column in bare.items() if read not in found[1]}
    rows = [site for index in sorted(marked) for site in factor.sites(index)]
    sites = tuple(dict.fromkeys([*rows, *(column for column in bare.values() if column is not None)]))
    why = "" if sites or feeds else "it is never summed over: nothing takes its factor when candidates are mixed"
    return Fold(sites, tuple(feeds)), why


def _marked(
    factor: Factor, reads: Mapping[Read, Site | None], put_out: list[Value]
) -> tuple[set[int], dict[int, set[int]], dict[Read, Site | None]]:
    """The records that apply the factor of a choice, which records' outputs carry it then (`Factor.spread`), and the
    reads that still lack it."""
    recorder, uses = factor.recorder, factor.course.uses
    # for these, others are sought, and else those that read behind take the factor in their columns
    unfit: set[int] = set()
    sides = {read: _sides(recorder, read) for read in reads}
    while True:
        of_reads = [next(filter(None, (factor.makers(v, unfit) for v in values)), set()) for values in sides.values()]
        marked = set[int]().union(*of_reads, *(factor.makers(value, unfit) for value in put_out)) - unfit
        # where several apply one parameter (parts of it, as torch's attention does), all may bring the factor
        layers = [index for index in marked if recorder.records[index].flow != "norm"]  # one norm twice: its square
        applied = {site for index in layers for site in factor.sites(index)}
        users = {index for site in applied for index in uses[site] if site in factor.sites(index)}
        together = marked | users - unfit
        reached, conflict = factor.spread(marked)
        if together > marked and (joint := factor.spread(together))[1] <= conflict:
            marked, (reached, conflict) = together, joint
        brought = {read: [value.made_by for value in sides[read] if value.made_by in reached] for read in reads}
        bare = {read: column for read, column in reads.items() if not brought[read]}
        # a parameter that others use too would bring them the factor
        conflict |= {index for index in marked if any(not uses[site] <= marked for site in factor.sites(index))}
        for read, column in reads.items():  # one layer, called with the factor and without
            if column in bare.values():
                conflict |= set().union(*(reached[made_by] for made_by in brought[read]))
        if not conflict:
            return marked, reached, bare
        unfit |= conflict


def _sides(recorder: Recorder, read: Read) -> list[Value]:
    """What is summed over, and what it is multiplied with: it is enough where one has the factor. (Where both have it,
    as in products of a tensor with itself, the mixture has its square.)"""
    record = recorder.records[read[0]]
    return [record.inputs[place] for place in (read[1], record.met_by) if place is not None]


def _without_column(bare: Mapping[Read, Site | None], uses: Mapping[Site, set[int]]) -> Read | None:
    """The first of the reads without the factor whose layer has no column of its own to take it."""
    for read, column in bare.items():
        if column is None or not uses[column] <= {at for (at, *_), other in bare.items() if other == column}:
            return read
    return None
