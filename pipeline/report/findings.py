"""What a run found, in neutral sentences and a few large numbers, computed from its tables' numbers."""

import math
import statistics
from dataclasses import dataclass

from pipeline.report.analysis_tables import in_percent, score_text, total
from pipeline.report.inputs import ZERO_SHOT, Analysis, LabelQuality, ReportInputs, Score, Stage, Training, Trial
from pipeline.report.tables import (
    chains,
    count,
    difference,
    duration,
    mean_and_spread,
    percent,
    share,
    shots_name,
    unique,
    with_mean,
)

MAX_NAMED_DATASETS = 3
"""With more data sets than this, scores are averaged instead of told one by one."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One large number and what it is."""

    label: str
    """What was measured."""
    value: str
    """The number."""
    note: str
    """What it is to be compared with."""


@dataclass(frozen=True)
class _Comparison:
    model: str
    reference: str
    nouns: str
    dataset: str
    value: float
    reference_value: float


def sentences(inputs: ReportInputs) -> list[str]:
    """Say what the run found, a sentence per finding, in the order of the data's way."""
    return [
        *map(_rows_sentence, _funnels(inputs.stages)),
        *_label_sentences(inputs.label_quality),
        *map(_training_sentence, inputs.trainings),
        *map(_score_sentence, _comparisons(inputs.scores)),
        *map(_trial_sentence, _sweeps(inputs.trials)),
        *(_analysis_sentences(inputs.analysis) if inputs.analysis else []),
    ]


def tiles(inputs: ReportInputs) -> list[Tile]:
    """Choose the numbers to be seen first: rows kept, the last model's main score and training, the largest shots."""
    found = []
    if funnels := _funnels(inputs.stages):
        first, last = funnels[0][0], funnels[0][-1]
        note = f"of {count(first.rows_in)} ({share(last.rows_out, first.rows_in)})"
        found.append(Tile(label=f"Rows out of {last.name}", value=count(last.rows_out), note=note))
    if comparisons := _comparisons(inputs.scores):
        best = comparisons[-1]
        note = f"{best.reference} {percent(best.reference_value)} ({difference(best.value, best.reference_value)})"
        found.append(Tile(label=f"AP50 {best.nouns}, {best.model}", value=percent(best.value), note=note))
    if sweeps := _sweeps(inputs.trials):
        tuned, zero = sweeps[-1]
        note = f"{ZERO_SHOT} {mean_and_spread([t.ap for t in zero])}"
        label = f"AP {tuned[0].mode}, {shots_name(tuned[0].shots)}"
        found.append(Tile(label=label, value=percent(statistics.fmean(t.ap for t in tuned)), note=note))
    if inputs.trainings:
        training = inputs.trainings[-1]
        note = f"images in {duration(training.seconds)}, {count(training.steps)} steps"
        found.append(Tile(label=f"Training, {training.model}", value=count(training.images_seen), note=note))
    if inputs.analysis:
        found += _analysis_tiles(inputs.analysis)
    return found


def _funnels(stages: list[Stage]) -> list[list[Stage]]:
    """List the longest funnel first: it is the data's way; the others are sets read beside it."""
    return sorted(chains(stages), key=len, reverse=True)


def _rows_sentence(chain: list[Stage]) -> str:
    first, last = chain[0], chain[-1]
    reasons = [(rows, reason) for stage in chain for reason, rows in stage.rejects.items() if rows]
    start = "" if first is last else f"given to {first.name} "
    text = f"Of {count(first.rows_in)} rows {start}{count(last.rows_out)} ({share(last.rows_out, first.rows_in)}) "
    text += f"came out of {last.name}"
    if not reasons:
        return f"{text}."
    rows, reason = max(reasons)
    return f"{text}; the most frequent reason of rejection was {reason} ({count(rows)} rows)."


def _label_sentences(qualities: list[LabelQuality]) -> list[str]:
    first = qualities[0].selection if qualities else ""
    return [
        f"Pseudo-labels on {q.group} nouns ({q.selection}): precision {percent(q.precision)}, "
        f"recall {percent(q.recall)}, {count(q.num_labels)} labels."
        for q in qualities
        if q.selection == first
    ]


def _training_sentence(training: Training) -> str:
    workers = "1 worker" if training.workers == 1 else f"{training.workers} workers"
    return (
        f"Training of {training.model}: {count(training.steps)} steps over {count(training.images_seen)} images "
        f"in {duration(training.seconds)} on {workers}."
    )


def _comparisons(scores: list[Score]) -> list[_Comparison]:
    """Compare every model with the one named first; novel nouns last, all nouns where there are no groups."""
    found = []
    reference = scores[0].model if scores else ""
    for model in unique(score.model for score in scores)[1:]:
        for attribute, nouns in (("ap50", "all nouns"), ("ap50_base", "base nouns"), ("ap50_novel", "novel nouns")):
            pairs = {
                dataset: (ours, theirs)
                for dataset in unique(score.dataset for score in scores)
                if (ours := _value(scores, model, dataset, attribute)) is not None
                and (theirs := _value(scores, reference, dataset, attribute)) is not None
            }
            if len(pairs) > MAX_NAMED_DATASETS:
                means = (statistics.fmean(column) for column in zip(*pairs.values(), strict=True))
                pairs = {f"mean of {len(pairs)} data sets": (next(means), next(means))}
            found += [_Comparison(model, reference, nouns, name, *pair) for name, pair in pairs.items()]
    return found


def _value(scores: list[Score], model: str, dataset: str, attribute: str) -> float | None:
    for score in scores:
        value: float | None = getattr(score, attribute)
        if (score.model, score.dataset) == (model, dataset) and value is not None and not math.isnan(value):
            return value
    return None


def _score_sentence(c: _Comparison) -> str:
    return (
        f"{c.model.capitalize()} AP50 on {c.nouns} ({c.dataset}): {percent(c.value)}, {c.reference} "
        f"{percent(c.reference_value)} ({difference(c.value, c.reference_value)})."
    )


def _sweeps(trials: list[Trial]) -> list[tuple[list[Trial], list[Trial]]]:
    """Pair the trials of most shots of every way of tuning with the zero-shot trials, over all data sets."""
    rows = with_mean(trials)
    over_all = [trial for trial in rows if trial.dataset == rows[0].dataset]
    zero = [trial for trial in over_all if trial.mode == ZERO_SHOT]
    found = []
    for mode in sorted({trial.mode for trial in over_all} - {ZERO_SHOT}):
        most = max(trial.shots for trial in over_all if trial.mode == mode)
        found.append(([t for t in over_all if (t.mode, t.shots) == (mode, most)], zero))
    return found


def _trial_sentence(sweep: tuple[list[Trial], list[Trial]]) -> str:
    tuned, zero = sweep
    text = f"Few-shot ({tuned[0].mode}, {shots_name(tuned[0].shots)}, {tuned[0].dataset}): "
    text += f"AP {mean_and_spread([t.ap for t in tuned])}"
    if not zero:
        return f"{text}."
    gain = difference(statistics.fmean(t.ap for t in tuned), statistics.fmean(t.ap for t in zero))
    return f"{text}, {ZERO_SHOT} {mean_and_spread([t.ap for t in zero])} ({gain})."


def _analysis_sentences(analysis: Analysis) -> list[str]:
    deployed, best = analysis.overall.at(analysis.threshold), analysis.overall.best()
    told = [
        f"AP {in_percent(analysis.measures['AP'])}, AP50 {in_percent(analysis.measures['AP50'])} over "
        f"{count(analysis.num_images)} images and {count(deployed.num_truth)} truth boxes of {analysis.dataset}.",
        f"At the deployed threshold {score_text(analysis.threshold)}: precision "
        f"{in_percent(deployed.precision)}, recall "
        f"{in_percent(deployed.recall)}, F1 {in_percent(deployed.f1)}; the best F1, {in_percent(best.f1)}, is at "
        f"{score_text(best.threshold)}.",
    ]
    if any(analysis.kinds.values()):
        kind = max(analysis.kinds, key=lambda kind: analysis.kinds[kind])
        part = share(analysis.kinds[kind], sum(analysis.kinds.values()))
        told.append(f"Of {count(deployed.num_wrong)} false positives there most are of kind {kind} ({part}).")
    for listed in (False, True):
        rate = total(analysis.absent, listed=listed)
        if rate.num_absent:
            found = share(rate.num_absent_found, rate.num_absent)
            beside = f", where present {share(rate.num_present_found, rate.num_present)}" if rate.num_present else ""
            told.append(f"Asked for what is not there, {rate.name} find something in {found} of pictures{beside}.")
    return told


def _analysis_tiles(analysis: Analysis) -> list[Tile]:
    deployed, best = analysis.overall.at(analysis.threshold), analysis.overall.best()
    at = f"at {score_text(analysis.threshold)}"
    found = [
        Tile(
            label="AP", value=in_percent(analysis.measures["AP"]), note=f"AP50 {in_percent(analysis.measures['AP50'])}"
        ),
        Tile(label=f"Precision {at}", value=in_percent(deployed.precision), note=f"{count(deployed.num_wrong)} wrong"),
        Tile(label=f"Recall {at}", value=in_percent(deployed.recall), note=f"of {count(deployed.num_truth)} boxes"),
        Tile(
            label=f"F1 {at}",
            value=in_percent(deployed.f1),
            note=f"best {in_percent(best.f1)} at {score_text(best.threshold)}",
        ),
    ]
    rate = total(analysis.absent, listed=False)
    if rate.num_absent:
        value, beside = (
            share(part, whole)
            for part, whole in (
                (rate.num_absent_found, rate.num_absent),
                (rate.num_present_found, rate.num_present),
            )
        )
        found.append(Tile(label="Found though absent", value=value, note=f"where present {beside}"))
    return found
