"""The order and content of a report, the same for every medium."""

from dataclasses import dataclass, field

from pipeline.report import analysis_figures, analysis_tables, figures, tables, tuning_figures
from pipeline.report.canvas import Chart
from pipeline.report.findings import Tile, sentences, tiles
from pipeline.report.inputs import Analysis, ReportInputs, Table
from pipeline.report.pictures import Drawing, draw_all


@dataclass(frozen=True, kw_only=True)
class Section:
    """Charts and tables under one heading."""

    name: str
    """Address within the page."""
    title: str
    """Heading."""
    intro: str
    """How to read what follows, one or two sentences."""
    charts: list[Chart] = field(default_factory=list)
    """Panels, in order."""
    tables: list[Table] = field(default_factory=list)
    """Tables, in order."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """A report ready to be written in any medium."""

    inputs: ReportInputs
    """What it was made from."""
    findings: list[str]
    """What was found, a sentence each."""
    tiles: list[Tile]
    """Numbers to be seen first."""
    sections: list[Section]
    """Sections that have something to show."""
    drawings: dict[str, list[Drawing]]
    """Pictures by heading."""


def compose(inputs: ReportInputs) -> Report:
    """Draw, count and arrange everything a report shows; what has no content is left out."""
    return Report(
        inputs=inputs,
        findings=sentences(inputs),
        tiles=tiles(inputs),
        sections=[section for section in _sections(inputs) if section.charts or section.tables],
        drawings=draw_all(inputs.pictures),
    )


def _sections(inputs: ReportInputs) -> list[Section]:
    return [
        Section(
            name="rows",
            title="Rows",
            intro="Every row is accounted for: it comes out of a stage or is rejected for one reason.",
            charts=figures.funnel_charts(inputs.stages),
            tables=tables.stage_tables(inputs.stages) if inputs.stages else [],
        ),
        Section(
            name="labels",
            title="Quality of the pseudo-labels",
            intro="Precision is the share of labels that are right, recall the share of true boxes that have a label.",
            tables=[tables.label_quality_table(inputs.label_quality)] if inputs.label_quality else [],
        ),
        Section(
            name="training",
            title="Training",
            intro="Thick lines are running means over a twentieth of the steps, pale lines the logged values.",
            charts=figures.training_charts(inputs.trainings),
            tables=[tables.training_table(inputs.trainings)] if inputs.trainings else [],
        ),
        Section(
            name="scores",
            title="Scores",
            intro="Base nouns had human boxes in training; novel nouns occurred in captions only.",
            charts=figures.score_charts(inputs.scores),
            tables=[tables.score_table(inputs.scores)] if inputs.scores else [],
        ),
        Section(
            name="few-shot",
            title="Few-shot",
            intro="AP over training images per class: the line is the mean over seeds, the band their range; "
            "0 and the dotted line are zero-shot. The mean over data sets is taken per seed.",
            charts=figures.trial_charts(inputs.trials),
            tables=tables.trial_tables(inputs.trials),
        ),
        Section(
            name="tuning",
            title="Tuning",
            intro="Validation AP (line), AP50 (dotted) and training loss by epoch; epoch 0 is the untuned model. "
            "The best epoch is the one measured on the test split.",
            charts=tuning_figures.tuning_charts(inputs.trials),
        ),
        Section(
            name="averaging",
            title="Forgetting",
            intro="Tuned weights averaged with the original ones: AP on what was tuned to and on the probe, means over "
            "data sets and draws. 0 is the untuned model, 1 the tuned one.",
            charts=tuning_figures.averaging_charts(inputs.trials),
        ),
        Section(
            name="details",
            title="In detail",
            intro="What the job itself has to tell; AP in percent.",
            tables=inputs.details,
        ),
        *(_analysis_sections(inputs.analysis) if inputs.analysis else []),
    ]


def _analysis_sections(analysis: Analysis) -> list[Section]:
    return [
        Section(
            name="classes",
            title="Classes",
            intro="COCO's average precision over IoU .50 to .95; a class without truth has none.",
            charts=analysis_figures.class_charts(analysis),
            tables=analysis_tables.class_tables(analysis),
        ),
        Section(
            name="errors",
            title="Errors",
            intro="A box is right if it overlaps truth of its class by IoU .50 that no better box has taken. Wrong "
            "ones are sorted as TIDE does: a poor box has the right class and IoU .10 to .50, a wrong class IoU .50 "
            "with another class's truth, background less than .10 with any.",
            charts=analysis_figures.kind_charts(analysis),
            tables=analysis_tables.error_tables(analysis),
        ),
        Section(
            name="threshold",
            title="Precision and recall",
            intro="At IoU .50. All classes means all detections together, not the mean over classes.",
            charts=analysis_figures.curve_charts(analysis),
            tables=analysis_tables.threshold_tables(analysis),
        ),
        Section(
            name="calibration",
            title="Calibration",
            intro="If scores were chances, the bars would end at the dashed line: above it the detector is too modest, "
            "below it too sure. The expected error is the mean distance, weighted by counts.",
            charts=analysis_figures.calibration_charts(analysis),
            tables=analysis_tables.calibration_tables(analysis),
        ),
        Section(
            name="absent",
            title="Asked for what is not there",
            intro="Every picture is asked for names it does not show, in prompts of nothing else; whatever is found is "
            "wrong. Beside it the same names, asked of pictures that show them.",
            charts=analysis_figures.absent_charts(analysis),
            tables=analysis_tables.absent_tables(analysis),
        ),
    ]
