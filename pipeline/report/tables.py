"""The tables of a report, built once and written as HTML, Markdown or plain text, so that all say the same."""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable
from typing import TypeVar

from pipeline.report.inputs import ALL_DATA, ZERO_SHOT, LabelQuality, ReportInputs, Score, Stage, Table, Training, Trial

K = TypeVar("K")
Measure = Callable[[Trial], float]


def count(value: int) -> str:
    """Write a whole number with thousands apart."""
    return f"{value:,}"


def percent(value: float | None) -> str:
    """Write a percentage with one decimal, or a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.1f}"


def difference(value: float | None, reference: float | None) -> str:
    """Write the signed difference of two percentages as they are written, or a dash where one is missing."""
    if percent(value) == "–" or percent(reference) == "–":
        return "–"
    return f"{float(percent(value)) - float(percent(reference)):+.1f}".replace("-", "−")


def share(part: int, whole: int) -> str:
    """Write a part of a whole in percent."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def duration(seconds: float) -> str:
    """Write a time in the two largest units that matter."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def shorten(text: str, limit: int) -> str:
    """Cut a text to at most ``limit`` characters."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def unique(values: Iterable[str]) -> list[str]:
    """List different values in the order of their first appearance."""
    return list(dict.fromkeys(values))


def shots_name(shots: float) -> str:
    """Name a number of training images per class."""
    return {0: ZERO_SHOT, 1: "1 shot", ALL_DATA: "all data"}.get(shots, f"{shots:g} shots")


def shots_mark(shots: float) -> str:
    """Write a number of training images per class where there is little room."""
    return "all" if shots == ALL_DATA else f"{shots:g}"


def chains(stages: list[Stage]) -> list[list[Stage]]:
    """Split stages into funnels: a stage belongs to the one before if it was given exactly what that one let out."""
    found: list[list[Stage]] = []
    for stage in stages:
        if found and found[-1][-1].rows_out == stage.rows_in:
            found[-1].append(stage)
        else:
            found.append([stage])
    return found


def stage_tables(stages: list[Stage]) -> list[Table]:
    """Build the account of rows: one line per stage, and one per stage and reason of rejection."""
    kept = [
        [
            stage.name,
            "reused" if stage.reused else "made",
            count(stage.rows_in),
            count(stage.rows_out),
            count(stage.num_rejected),
            share(stage.rows_out, stage.rows_in),
            duration(stage.seconds),
        ]
        for stage in stages
    ]
    rejected = [
        [stage.name, reason, count(rows), share(rows, stage.rows_in)]
        for stage in stages
        for reason, rows in sorted(stage.rejects.items(), key=lambda item: (-item[1], item[0]))
    ]
    tables = [
        Table(
            caption="Rows of every stage; rows in = rows out + rejected",
            columns=["Stage", "Result", "Rows in", "Rows out", "Rejected", "Kept", "Time"],
            rows=kept,
            num_names=2,
        )
    ]
    if rejected:
        names = ["Stage", "Reason", "Rows", "Of rows in"]
        tables.append(Table(caption="Rejected rows by reason", columns=names, rows=rejected, num_names=2))
    return tables


def label_quality_table(qualities: list[LabelQuality]) -> Table:
    """Build the table of how right and how complete the pseudo-labels are."""
    return Table(
        caption="Pseudo-labels compared with the truth, percent",
        columns=["Nouns", "Labels counted", "Labels", "Precision", "Recall"],
        rows=[[q.group, q.selection, count(q.num_labels), percent(q.precision), percent(q.recall)] for q in qualities],
        num_names=2,
    )


def score_table(scores: list[Score]) -> Table:
    """Build the table of scores, with the differences from the model named first."""
    rows = []
    for dataset in unique(score.dataset for score in scores):
        here = [score for score in scores if score.dataset == dataset]
        rows += [[dataset, s.model, *map(percent, _values(s)), count(s.num_images)] for s in here]
        reference = next((score for score in here if score.model == scores[0].model), None)
        for score in here:
            if reference is not None and score.model != scores[0].model:
                pairs = zip(_values(score), _values(reference), strict=True)
                rows.append([dataset, f"{score.model} − {scores[0].model}", *itertools.starmap(difference, pairs), ""])
    return Table(
        caption="Average precision, percent",
        columns=["Data set", "Model", "AP", "AP50", "AP50 base", "AP50 novel", "Images"],
        rows=rows,
        num_names=2,
    )


def training_table(trainings: list[Training]) -> Table:
    """Build the table of how long and on what each model was trained."""
    columns = ["Model", "Steps", "Images seen", "Different images", "Workers", "Time", "Data wait", "Images/s", "Loss"]
    return Table(
        caption="Training; data wait is the part of the time; the loss is the mean of the last ten logged rows",
        columns=columns,
        rows=[
            [
                t.model,
                *map(count, (t.steps, t.images_seen, t.train_images, t.workers)),
                duration(t.seconds),
                f"{100 * t.data_wait:.1f} %",
                f"{t.images_seen / t.seconds:.1f}" if t.seconds else "–",
                _last_loss(t),
            ]
            for t in trainings
        ],
    )


def with_mean(trials: list[Trial]) -> list[Trial]:
    """Put the mean over the data sets first, as trials of their own.

    A combination of mode, shots and seed counts only if every data set has it, so that the means compare.
    """
    datasets = unique(trial.dataset for trial in trials)
    if len(datasets) < 2:
        return trials
    means = []
    for (mode, shots, seed), found in _grouped(trials, lambda t: (t.mode, t.shots, t.seed)).items():
        if {trial.dataset for trial in found} == set(datasets):
            means.append(
                Trial(
                    dataset=f"mean of {len(datasets)}",
                    mode=mode,
                    shots=shots,
                    seed=seed,
                    ap=statistics.fmean(trial.ap for trial in found),
                    ap50=statistics.fmean(trial.ap50 for trial in found),
                    seconds=sum(trial.seconds for trial in found),
                )
            )
    return means + trials


def trial_tables(trials: list[Trial]) -> list[Table]:
    """Build a table of AP by shots for every way of tuning, zero-shot in each, and the list of all trials."""
    if not trials:
        return []
    rows = with_mean(trials)
    tuned = sorted({trial.mode for trial in trials} - {ZERO_SHOT}) or [ZERO_SHOT]
    measures: dict[str, Measure] = {"AP": lambda trial: trial.ap, "AP50": lambda trial: trial.ap50}
    return [
        _shots_table([t for t in rows if t.mode in (mode, ZERO_SHOT)], f"{name} by shots, {mode}", measure)
        for mode in tuned
        for name, measure in measures.items()
    ] + [
        Table(
            caption=f"All {len(trials)} trials",
            columns=["Data set", "Mode", "Shots", "Seed", "AP", "AP50", "Time"],
            rows=[
                [
                    t.dataset,
                    t.mode,
                    shots_mark(t.shots),
                    str(t.seed),
                    percent(t.ap),
                    percent(t.ap50),
                    duration(t.seconds),
                ]
                for t in trials
            ],
            num_names=2,
            folded=True,
        )
    ]


def mean_and_spread(values: list[float]) -> str:
    """Write the mean and, from two values on, the sample standard deviation; a dash where there is no value."""
    if not values:
        return "–"
    mean = percent(statistics.fmean(values))
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def run_table(inputs: ReportInputs) -> Table:
    """Build the table that says where the numbers come from."""
    return Table(
        caption="The run",
        columns=["", "Value"],
        rows=[
            ["Command", inputs.command],
            ["MLflow run", inputs.run_id],
            ["MLflow store", inputs.mlflow_uri],
            ["Git commit", inputs.git_commit],
            ["Hardware", inputs.hardware],
            ["Report made", inputs.created],
        ],
        num_names=2,
    )


def input_table(input_hashes: dict[str, str]) -> Table:
    """Build the table of the inputs and the hashes that pin them."""
    rows = [[name, digest] for name, digest in input_hashes.items()]
    return Table(caption="Inputs", columns=["Input", "Hash"], rows=rows, num_names=2)


def _values(score: Score) -> tuple[float, float, float | None, float | None]:
    return score.ap, score.ap50, score.ap50_base, score.ap50_novel


def _last_loss(training: Training) -> str:
    losses = [row["loss"] for row in training.history if "loss" in row][-10:]
    return f"{statistics.fmean(losses):.3f}" if losses else "–"


def _shots_table(trials: list[Trial], what: str, measure: Measure) -> Table:
    shots = sorted({trial.shots for trial in trials})
    by_cell = _grouped(trials, lambda t: (t.dataset, t.shots))
    num_seeds = max(len(found) for found in by_cell.values())
    return Table(
        caption=f"{what}: mean ± standard deviation over up to {num_seeds} seeds, percent",
        columns=["Data set", *map(shots_name, shots)],
        rows=[
            [name, *(mean_and_spread([measure(t) for t in by_cell.get((name, n), [])]) for n in shots)]
            for name in unique(trial.dataset for trial in trials)
        ],
    )


def _grouped(trials: list[Trial], key: Callable[[Trial], K]) -> dict[K, list[Trial]]:
    groups: dict[K, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(key(trial), []).append(trial)
    return groups
