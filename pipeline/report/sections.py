"""The order and content of a report, the same for every medium."""

from dataclasses import dataclass, field

from pipeline.report import figures, tables
from pipeline.report.figures import Chart
from pipeline.report.findings import Tile, sentences, tiles
from pipeline.report.inputs import ReportInputs
from pipeline.report.pictures import Drawing, draw_all
from pipeline.report.tables import Table


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
    ]
