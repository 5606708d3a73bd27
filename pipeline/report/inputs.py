"""What a report is made from: the numbers and pictures of one run, gathered by whoever ran it."""

import json
import math
from dataclasses import dataclass, field

from glipv2.evaluation.errors import Calibration, Curve

ZERO_SHOT = "zero-shot"
MODES = (ZERO_SHOT, "prompt", "linear", "full")
"""Ways of a trial: the model as it is, the prompt tuned, the prediction layers, everything."""
ALL_DATA = math.inf
"""Shots of a trial that has all training images."""

NOUN_GROUPS = ("base", "novel", "all")
"""Nouns the teacher had boxes for, nouns it had none for, and both together."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of the funnel, or the reading of one human-labelled set."""

    name: str
    """Name of the stage."""
    rows_in: int
    """Rows the stage was given. Equal to the previous stage's ``rows_out``, the two are drawn as one funnel."""
    rows_out: int
    """Rows the next stage can use."""
    rejects: dict[str, int]
    """Rows that ended here, by reason."""
    seconds: float
    """Wall time of the stage, seconds."""
    reused: bool
    """Whether a finished result was found and nothing had to be done; ``seconds`` is then of the first time."""

    def __post_init__(self) -> None:
        """Refuse accounts that do not add up."""
        if self.rows_in != self.rows_out + self.num_rejected:
            raise ValueError(
                f"stage {self.name}: {self.rows_in} rows in, but {self.rows_out} out and {self.num_rejected} rejected; "
                "in must equal out plus rejected; give every rejected row a reason"
            )

    @property
    def num_rejected(self) -> int:
        """Rows that ended here for any reason."""
        return sum(self.rejects.values())


@dataclass(frozen=True, kw_only=True)
class Score:
    """Accuracy of one model on one data set; percent from 0 to 100, nan where nothing could be measured."""

    model: str
    """Name of the model, for instance ``teacher``."""
    dataset: str
    """Name of the data set."""
    ap: float
    """COCO average precision over IoU 0.50 to 0.95, percent."""
    ap50: float
    """Average precision at IoU 0.50, percent."""
    ap50_base: float | None
    """``ap50`` over the base nouns, percent; None where the data set does not tell them apart."""
    ap50_novel: float | None
    """``ap50`` over the novel nouns, percent; None where the data set does not tell them apart."""
    num_images: int
    """Images the score was measured on."""

    def __post_init__(self) -> None:
        """Refuse fractions below zero and percentages above 100."""
        _check_percent(f"score of {self.model} on {self.dataset}", self.ap, self.ap50, self.ap50_base, self.ap50_novel)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How one model was trained."""

    model: str
    """Name of the model, the same as in its scores."""
    steps: int
    """Optimizer steps."""
    images_seen: int
    """Images over all steps and workers, repeats included."""
    train_images: int
    """Different images in the training set."""
    seconds: float
    """Wall time, seconds."""
    workers: int
    """Training processes."""
    data_wait: float
    """Part of the time in which a worker waited for data, 0 to 1."""
    history: list[dict[str, float]]
    """Logged rows: ``step``, ``loss``, its parts ``loss_*``, ``lr``, ``images_per_s``; keys may be missing."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial of the few-shot sweep; percent from 0 to 100."""

    dataset: str
    """Name of the data set."""
    mode: str
    """One of `MODES`."""
    shots: float
    """Training images per class; 0 for zero-shot, `ALL_DATA` for all there are."""
    seed: int
    """Seed that chose the training images."""
    ap: float
    """COCO average precision over IoU 0.50 to 0.95, percent."""
    ap50: float
    """Average precision at IoU 0.50, percent."""
    seconds: float
    """Wall time, seconds."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Evaluations while it was tuned: ``epoch``, ``val_ap`` and, if known, ``val_ap50`` and ``loss``."""
    averages: list[dict[str, float]] = field(default_factory=list)
    """Averages with the original weights, from ``tuned_part`` 0 to 1: ``ap`` and, if there is a probe, ``probe_ap``."""

    def __post_init__(self) -> None:
        """Refuse unknown modes, shots of a zero-shot trial and scores that are no percentages."""
        if self.mode not in MODES:
            raise ValueError(f"mode of a trial is {self.mode!r}; allowed: {', '.join(MODES)}; correct the trial")
        if (self.shots == 0) != (self.mode == ZERO_SHOT) or self.shots < 0:
            raise ValueError(
                f"a {self.mode} trial has {self.shots:g} shots; allowed: 0 for {ZERO_SHOT}, 1 or more otherwise; "
                "correct the trial"
            )
        _check_percent(f"trial on {self.dataset}", self.ap, self.ap50)


@dataclass(frozen=True, kw_only=True)
class LabelQuality:
    """Pseudo-labels compared with the truth where it is known; percent from 0 to 100."""

    precision: float
    """Share of the labels that are right, percent."""
    recall: float
    """Share of the true boxes that were labelled, percent."""
    num_labels: int
    """Labels counted."""
    group: str
    """One of `NOUN_GROUPS`."""
    selection: str
    """Which labels were counted, in words; for instance ``score >= 0.5``."""

    def __post_init__(self) -> None:
        """Refuse unknown groups and values that are no percentages."""
        if self.group not in NOUN_GROUPS:
            raise ValueError(f"group is {self.group!r}; allowed: {', '.join(NOUN_GROUPS)}; correct the label quality")
        _check_percent(f"label quality of {self.group} nouns", self.precision, self.recall)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image and the boxes to be drawn over it."""

    image: bytes
    """The image as stored: JPEG or PNG, upright."""
    title: str
    """Name of the image. Pictures of one title in different groups are shown side by side."""
    boxes: list[list[float]]
    """``[x1, y1, x2, y2]`` per box, pixels of the image."""
    phrases: list[str]
    """Phrase of each box; boxes of one phrase share a colour."""
    scores: list[float]
    """Confidence of each box from 0 to 1 (1 is not written: human labels); empty where there is none."""
    group: str
    """Where the boxes come from, for instance ``Truth``, ``Teacher``, ``Student`` or ``Pseudo-labels``."""
    caption: str = ""
    """Text of the image; its phrases are marked in the colours of their boxes."""

    def __post_init__(self) -> None:
        """Refuse boxes that cannot be matched with their phrases and scores."""
        if len(self.phrases) != len(self.boxes) or (self.scores and len(self.scores) != len(self.boxes)):
            raise ValueError(
                f"picture {self.title!r} has {len(self.boxes)} boxes, {len(self.phrases)} phrases and "
                f"{len(self.scores)} scores; allowed: as many of each, or no scores; correct the picture"
            )


@dataclass(frozen=True, kw_only=True)
class ClassResult:
    """How one class of a data set is detected."""

    name: str
    """Name of the class."""
    measures: dict[str, float]
    """Fractions named in `glipv2.evaluation.errors.MEASURES`; nan where there is no truth."""
    curve: Curve
    """Right and wrong detections at every score."""


@dataclass(frozen=True, kw_only=True)
class SizeResult:
    """How objects of one size are found."""

    name: str
    """One of COCO's sizes."""
    num_truth: int
    """Boxes of this size."""
    num_found: int
    """Those found at the deployed threshold."""
    ap: float
    """COCO AP over this size, a fraction; nan where there is no truth."""


@dataclass(frozen=True, kw_only=True)
class NameRate:
    """How often a name finds something in pictures without and with it."""

    name: str
    """What was asked for."""
    listed: bool
    """Whether it is of the list of further names instead of the data set's."""
    num_absent: int
    """Pictures without it that were asked for it."""
    num_absent_found: int
    """Those in which something was found at the deployed threshold."""
    num_present: int
    """Pictures with it that were asked for it."""
    num_present_found: int
    """Those in which something was found at the deployed threshold."""


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What a detector gets right and wrong on one data set."""

    dataset: str
    """Name of the data set."""
    num_images: int
    """Images of the data set."""
    threshold: float
    """Deployed threshold: a user sees detections of at least this score."""
    measures: dict[str, float]
    """Means over the classes, as each class has them."""
    overall: Curve
    """All classes together."""
    classes: list[ClassResult]
    """The one with the most truth first."""
    kinds: dict[str, int]
    """False positives at the deployed threshold by kind."""
    sizes: list[SizeResult]
    """COCO's sizes, the smallest first."""
    calibration: Calibration | None
    """Scores against the share that is right; None if scores are no fractions."""
    absent: list[NameRate] = field(default_factory=list)
    """Outcome of asking for what is not there; empty if not asked."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of ready text under named columns."""

    caption: str
    """What the table shows, one line."""
    columns: list[str]
    """Column names."""
    rows: list[list[str]]
    """One text per column in every row."""
    num_names: int = 1
    """Leading columns that hold names; those after it hold numbers and are aligned to the right."""
    folded: bool = False
    """Whether the table is long and starts folded where the medium can do so."""


@dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """Everything a report shows. Any list may be empty; its section is then left out."""

    title: str
    """What the run was, one line."""
    created: str
    """When the report was made, UTC time."""
    command: str
    """Command line that made the run."""
    run_id: str
    """MLflow run."""
    git_commit: str
    """Commit of the code."""
    hardware: str
    """Machine the run used, one line."""
    config_json: str
    """Resolved configuration as JSON."""
    input_hashes: dict[str, str]
    """Name of each input and the hash that pins it."""
    mlflow_uri: str
    """Where the run's metrics and artifacts are."""
    stages: list[Stage] = field(default_factory=list)
    """Stages in the order of the data's way."""
    scores: list[Score] = field(default_factory=list)
    """Scores; the model named first (the teacher) is the one the others are compared with."""
    trainings: list[Training] = field(default_factory=list)
    """Trainings in the order they ran."""
    trials: list[Trial] = field(default_factory=list)
    """Trials of the few-shot sweep."""
    details: list[Table] = field(default_factory=list)
    """Tables of the job's own."""
    analysis: Analysis | None = None
    """What one detector gets right and wrong."""
    label_quality: list[LabelQuality] = field(default_factory=list)
    """Quality of the pseudo-labels."""
    pictures: list[Picture] = field(default_factory=list)
    """Pictures in the order to show them."""
    notes: list[str] = field(default_factory=list)
    """Remarks about this run, a sentence each."""
    limits: list[str] = field(default_factory=list)
    """What the numbers do not show, a sentence each."""

    @property
    def config_text(self) -> str:
        """The configuration, indented for reading; as given if it is no JSON."""
        try:
            return json.dumps(json.loads(self.config_json), indent=2, ensure_ascii=False)
        except json.JSONDecodeError:
            return self.config_json


def _check_percent(what: str, *values: float | None) -> None:
    for value in values:
        if value is not None and not math.isnan(value) and not 0 <= value <= 100:
            raise ValueError(f"{what} is {value}; allowed: percent from 0 to 100, or nan; multiply fractions by 100")
