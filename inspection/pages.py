"""The pages that masks.py writes with --html: of one mask, of several against each other, of draws."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

from console.words import counted
from inspection.comparison import Comparison
from inspection.drawings import bar, colour, heat_map, keys, layer_chart, stacked
from inspection.layers import Counts, total
from inspection.page import bad, cards, heading, page, paragraph, row, table
from inspection.reading import MaskFile
from inspection.stability import Stability
from inspection.terminal import pct
from inspection.tree import layer_tree

CHANCE = (
    "By chance: what independent random masks would have that keep as many weights of every layer. "
    "Of a layer of which one keeps the share p and the other q, that is p q / (p + q − p q)."
)


def inspection_page(file: MaskFile, counts: Mapping[str, Counts], warnings: Sequence[str]) -> str:
    """Totals, warnings, a chart of all layers, modalities, and every layer."""
    modalities = file.mask.layers_by_modality()
    numbers = {name: number for number, names in enumerate(modalities.values()) for name in names}
    everything = total(counts.values())

    def cells(names: Iterable[str]) -> list[str]:
        found = total(counts[name] for name in names)
        return [
            f"{found.kept:,}",
            f"{found.size:,}",
            bad(f"{found.dead_outputs:,} of {found.outputs:,}", found.dead_outputs > 0),
            bad(f"{found.dead_inputs:,} of {found.inputs:,}", found.dead_inputs > 0),
        ]

    def measure(names: Sequence[str], number: int) -> list[str]:
        share = total(counts[name] for name in names).sparsity
        return [bar(share, number), pct(share, 2)]

    parts = [
        cards(
            [
                (pct(everything.sparsity, 3), "of the weights pruned"),
                (f"{everything.kept:,}", f"of {everything.size:,} weights kept"),
                (f"{everything.dead_outputs:,}", f"of {everything.outputs:,} outputs dead"),
                (f"{everything.dead_inputs:,}", f"of {everything.inputs:,} inputs dead"),
            ]
        ),
        *(paragraph(f"Warning: {warning}.", "warning") for warning in warnings),
        heading("Share of weights pruned in every layer"),
        keys([(colour(number), modality) for number, modality in enumerate(modalities)]),
        layer_chart({name: count.sparsity for name, count in counts.items()}, numbers, everything.sparsity),
        heading("Layers"),
        paragraph("A dead output has lost all weights of its row, a dead input all of its column.", "soft"),
        *layers_by_modality(modalities, measure, cells, ("", "pruned", "kept", "of", "dead outputs", "dead inputs")),
    ]
    return page(f"Mask {file.label}", file.origin or str(file.path), parts)


def comparison_page(comparison: Comparison) -> str:
    """The masks, how alike they are overall and by modality, and every layer."""
    many = len(comparison.pairs) > 1
    iou = comparison.iou()
    top = [(pct(iou.mean), "IoU of the weights kept" + (", mean over all pairs" if many else ""))]
    top.append((pct(comparison.chance()), "IoU by chance"))
    if many:
        top.append((f"{100 * iou.low:.1f} to {pct(iou.high)}", f"IoU of the {len(comparison.pairs)} pairs"))
    else:
        found = comparison.overlap((0, 1))
        top.append((pct(found.overlap), "of the sparser mask lie in the other"))
        top.append((pct(found.agreement), "of all decisions alike"))
    parts = [cards(top), files_table(comparison.files), paragraph(CHANCE, "soft")]
    if many:
        parts += [heading("All pairs"), *heat_maps(comparison)]
    parts += iou_by_layer(comparison)
    return page(f"{len(comparison.files)} masks compared", "IoU: kept by both among kept by either", parts)


def stability_page(stability: Stability) -> str:
    """How alike the draws are, and which share of the weights all of them keep."""
    compared, overall = stability.comparison, stability.overall
    k, iou = len(compared.files), stability.comparison.iou()
    top = [
        (pct(iou.mean, 2), f"IoU, mean over {counted(len(compared.pairs), 'pair')}"),
        (f"± {pct(iou.sd, 2)}", f"spread; from {100 * iou.low:.2f} to {pct(iou.high, 2)}"),
        (pct(compared.chance(), 2), "IoU by chance"),
        (pct(overall.core, 2), f"of what any draw keeps, all {k} keep (by chance {pct(overall.core_by_chance, 2)})"),
    ]
    places = [("all", overall, compared.layers)] + [(m, v, compared.modalities[m]) for m, v in stability.votes.items()]
    rows = []
    for number, (place, votes, names) in enumerate(places if len(stability.votes) > 1 else places[:1]):
        kind = "heat" if number == 0 else colour(number - 1)
        spread = compared.iou(names)
        drawn = stacked([(votes.by_all, kind), (votes.by_some, f"{kind} half")])
        shares = (votes.by_all, votes.by_some, votes.by_none, votes.core, votes.core_by_chance)
        shares += (spread.mean, spread.sd, compared.chance(names))
        rows.append(row([place, drawn, *(f"{100 * share:.2f}" for share in shares)]))
    head = ("", "", f"kept by all {k}", "by some", "by none", "all among any", "by chance")
    head += ("IoU", "spread", "by chance")
    parts = [
        cards(top),
        files_table(compared.files),
        heading("Weights by the draws that keep them, in percent"),
        keys([("heat", f"kept by all {k}"), ("heat half", "by some"), ("track", "by none")]),
        table(head, rows),
        *votes_table(stability),
        paragraph(CHANCE, "soft"),
    ]
    if stability.all_same:
        parts.insert(1, paragraph("All masks are the same: nothing in this pruning is left to the draw."))
    if k > 2:
        parts += [heading("All pairs"), *heat_maps(compared)]
    parts += iou_by_layer(compared)
    origin = compared.files[0].origin
    return page(f"{k} draws of one pruning", origin.rpartition(", seed")[0] or origin, parts)


def votes_table(stability: Stability) -> list[str]:
    """How many weights exactly j of the k draws keep, against chance."""
    votes = stability.overall
    k = len(votes.counts) - 1
    rows = [
        row(
            [
                f"{j} of {k}",
                bar(count / votes.size),
                f"{count:,}",
                pct(count / votes.size, 2),
                pct(chance / votes.size, 2),
            ]
        )
        for j, (count, chance) in enumerate(zip(votes.counts.tolist(), votes.expected.tolist(), strict=True))
    ]
    return [table(("kept by", "", "weights", "share", "by chance"), rows)]


def files_table(files: Sequence[MaskFile]) -> str:
    """Which masks these are."""
    rows = [
        row([f"{number} {file.label}", pct(file.mask.sparsity(), 3), file.origin or str(file.path)])
        for number, file in enumerate(files, 1)
    ]
    return table(("mask", "pruned", "origin"), rows, "texts")


def heat_maps(comparison: Comparison) -> list[str]:
    """Matrices of IoU: of all layers, and of each modality."""
    names = [file.label for file in comparison.files]
    maps = {"all layers": comparison.layers}
    if len(comparison.modalities) > 1:
        maps |= comparison.modalities
    drawn = "".join(heat_map(comparison.matrix(layers), names, title) for title, layers in maps.items())
    return [
        paragraph("IoU in percent; below the diagonal, what chance would give.", "soft"),
        f'<div class="maps">{drawn}</div>',
    ]


def iou_by_layer(comparison: Comparison) -> list[str]:
    """The section with IoU by modality, block and layer."""
    many = len(comparison.pairs) > 1

    def measure(names: Sequence[str], number: int) -> list[str]:
        iou, chance = comparison.iou(names), comparison.chance(names)
        return [bar(iou.mean, number, chance), pct(iou.mean)]

    def cells(names: Sequence[str]) -> list[str]:
        chance = pct(comparison.chance(names))
        if many:
            iou = comparison.iou(names)
            return [chance, f"{100 * iou.low:.1f} to {100 * iou.high:.1f}"]
        found = comparison.overlap((0, 1), names)
        return [chance, f"{found.a:,}", f"{found.b:,}", f"{found.both:,}", pct(found.overlap)]

    labels = [file.label for file in comparison.files]
    more = ("pairs",) if many else (*(f"kept by {label}" for label in labels), "by both", "of the sparser")
    head = ("", "IoU", "by chance", *more)
    text = f"The bar is the IoU{', mean over all pairs' if many else ''}; the stroke on it, what chance would give."
    return [
        heading("Layers"),
        paragraph(text, "soft"),
        *layers_by_modality(comparison.modalities, measure, cells, head),
    ]


def layers_by_modality(
    modalities: Mapping[str, Sequence[str]],
    measure: Callable[[Sequence[str], int], list[str]],
    cells: Callable[[Sequence[str]], list[str]],
    head: Sequence[str],
) -> list[str]:
    """A section a modality that opens and closes, with a row a block and a row a layer.

    measure: (layers, number of the modality) -> a bar and its number; cells: layers -> the other columns; head: names
    of all these columns.
    """
    parts = []
    for modality in layer_tree(modalities):
        rows = []
        for block in modality.children:
            kind = "block" if block.children else ""
            rows.append(row([block.label, *measure(block.layers, block.number), *cells(block.layers)], kind))
            for layer in block.children:
                values = [*measure(layer.layers, layer.number), *cells(layer.layers)]
                rows.append(row([layer.label, *values], "leaf"))
        drawn, number = measure(modality.layers, modality.number)
        opened = f"<details open><summary>{row_name(modality.label)}{drawn}{number}</summary>"
        parts.append(opened + table(("", *head), rows) + "</details>")
    return parts


def row_name(label: str) -> str:
    """A modality's name in its summary, as wide as the others so that bars stand below each other."""
    return f'<b style="display:inline-block;min-width:5rem">{escape(label)}</b>'
