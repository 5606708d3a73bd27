"""The paper's ablations in miniature (Tables 4 and 5): which losses help, how many captions, and masking or not.

Per seed: a teacher is trained on human labels and labels the captions; then a student per row of the table goes on from
the teacher for as many steps as every other, so that rows differ in nothing but what they are about. Every training is
a folder of its own that is only read once it is finished: a run cut short goes on with the same command.
"""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray

from glipv2.losses.criterion import LossConfig
from pipeline import summary
from pipeline.ablation_table import BASE, LONGER, tables, write_tables
from pipeline.download import DownloadConfig
from pipeline.flow import fetch_images, reaching, store_human_labels, write_vocabulary
from pipeline.lineage import record_model, record_stage
from pipeline.miniature.config import MiniatureConfig
from pipeline.miniature.server import serve
from pipeline.miniature.world import World, build_world
from pipeline.paths import NOT_GIVEN, require
from pipeline.pretrain import PretrainConfig, TrainingInputs, pretrain, read_record
from pipeline.pseudo_label import LabelPlan, PseudoLabelConfig, downloaded, pseudo_label
from pipeline.report import ReportInputs
from pipeline.row_index import SourceConfig, require_manifest
from pipeline.shards import MANIFEST_NAME, config_hash, write_atomically
from pipeline.sources.pairs import PairsConfig
from pipeline.storage import Place
from pipeline.summary import Outcome, publish, ui_command
from pipeline.tracking import Run, open_run
from pipeline.zero_shot import zero_shot

logger = logging.getLogger(__name__)

TEACHER = "teacher"
SCORES = "scores.json"


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one row of the table is trained with."""

    captions: float = 1.0
    """Share of the captions; 0 trains on human labels alone."""
    inter: bool = False
    """With L_inter."""
    mlm: bool = False
    """With L_mlm."""
    mask_unboxed: bool = True
    """Leave phrases without a box out of the loss, instead of teaching them as absent."""
    labels_of: str = TEACHER
    """Row whose model made the labels."""


ROWS = {
    "no captions": Row(captions=0),
    "no captions, L_inter": Row(captions=0, inter=True),
    "some captions": Row(captions=0.3),
    "some captions, L_inter": Row(captions=0.3, inter=True),
    BASE: Row(),
    "many captions, L_inter": Row(inter=True),
    "many captions, L_mlm": Row(mlm=True),
    "many captions, L_inter, L_mlm": Row(inter=True, mlm=True),
    "many captions, unboxed phrases taught as absent": Row(mask_unboxed=False),
    LONGER: Row(labels_of="no captions"),
    "second generation": Row(labels_of=BASE),
}
"""Rows of the table. The longer trained teacher is the one that went on with human labels alone, for as many steps as a
student; the second generation learns from labels that a first student made."""


@dataclass(frozen=True, kw_only=True)
class AblateConfig:
    """What is trained, how often, and for how long at a time."""

    out: Path = NOT_GIVEN
    """Folder for everything, absolute."""
    world: MiniatureConfig
    """The drawn world."""
    download: DownloadConfig
    """How its captioned pictures are fetched."""
    label: PseudoLabelConfig
    """How they are labelled."""
    teacher: PretrainConfig
    """How a teacher is trained, on human labels."""
    student: PretrainConfig
    """How every row goes on from it; losses, seed and captions are the row's."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One teacher and one model per row for each."""
    rows: tuple[str, ...] = ()
    """Rows to train; none given, all of them."""
    side_by_side: int = 2
    """Trainings at a time."""
    minutes: float = 0.0
    """Stop after so long, to go on when the same command is given again; 0 goes on to the end."""

    def __post_init__(self) -> None:
        """Check the rows."""
        if unknown := sorted(set(self.rows) - ROWS.keys()):
            raise ValueError(f"rows {unknown} are not known; allowed: {', '.join(ROWS)}")
        if not self.seeds or self.side_by_side < 1 or self.minutes < 0:
            raise ValueError(
                f"seeds {self.seeds}, side_by_side {self.side_by_side}, minutes {self.minutes}; give one seed or more, "
                "1 or more side by side, and 0 or more minutes"
            )

    def check(self) -> None:
        """Refuse a command line that lacks what no recipe can know."""
        require(out=self.out)

    @property
    def wanted(self) -> list[str]:
        """The rows to train, and those whose labels they need, before them."""
        names = self.rows or tuple(ROWS)
        needed = {ROWS[name].labels_of for name in names} - {TEACHER}
        return [name for name in ROWS if name in needed or name in names]


def ablate(cfg: AblateConfig) -> Outcome:
    """Train and measure every row with every seed, and set the table beside the paper's."""
    deadline = time.monotonic() + 60 * cfg.minutes if cfg.minutes else float("inf")
    world, out = build_world(cfg.world, cfg.out / "world"), cfg.out
    decided = {name: value for name, value in asdict(cfg).items() if name not in ("minutes", "side_by_side", "rows")}
    with open_run(out, "ablate", config_hash(decided), decided) as run:
        words = write_vocabulary(out / "vocab.txt")
        store_human_labels(world, out)
        with serve(world, cfg.world.port):
            fetch_images(PairsConfig(path=world.web_pairs), reaching(world, cfg.download), out, run)
        jobs = [_Job(cfg, world, words, run, seed) for seed in cfg.seeds]
        left = _carry_out(jobs, cfg, deadline)
        table = write_tables(out, _scores(cfg))
        for path in (out / "ablation.md", out / "ablation.json"):
            run.artifact(path)
        state = f"\n{left} trainings left: give the same command again" if left else ""
        header = summary.header("The paper's ablations in miniature", run, decided)
        report = ReportInputs(**header, input_hashes=_input_hashes(out), details=tables(_scores(cfg)))
        shown = publish(report, out, run).report
        text = f"{table}\n\ntable      {out / 'ablation.md'}\nMLflow UI  {ui_command(run.uri)}{state}"
        return Outcome(text=text, report=shown)


@dataclass(frozen=True)
class _Job:
    """All trainings of one seed, in an order in which each finds what it needs."""

    cfg: AblateConfig
    world: World
    words: Path
    run: Run
    seed: int

    @property
    def out(self) -> Path:
        return self.cfg.out / f"seed-{self.seed}"

    def names(self) -> list[str]:
        return [TEACHER, *self.cfg.wanted]

    def waits_for(self, name: str) -> list[str]:
        """Tell what must be finished before."""
        return [] if name == TEACHER else [TEACHER, ROWS[name].labels_of]

    def labels(self, name: str) -> Path | None:
        """Tell where the labels lie that it learns from; the first to need them writes them."""
        if name == TEACHER or not ROWS[name].captions:
            return None
        return self.out / f"labels by {ROWS[name].labels_of}"

    def done(self, name: str) -> bool:
        return (self.out / name / SCORES).exists()

    def carry_out(self, name: str) -> None:
        """Label what is to be learned from, train, and measure."""
        human = tuple(SourceConfig(path=self.cfg.out / source) for source in ("objects365", "gold"))
        if name == TEACHER:
            training, sources, init = self.cfg.teacher, human, NOT_GIVEN
        else:
            training, sources = self._student(ROWS[name]), (*human, *self._captions(name))
            init = self.out / TEACHER / "model"
        training = replace(training, seed=self.seed, ingest=replace(training.ingest, seed=self.seed))
        inputs = TrainingInputs(name=name, sources=sources, vocabulary=self.words, init=init)
        child = self.run.child(f"{name} {self.seed}", f"{self.seed}/{name}", asdict(training))
        inputs.record(child)
        record = read_record(self.out / name) or pretrain(training, inputs, self.out / name, child)
        found = zero_shot(record.model, self.world)
        child.metrics(found)
        record_model(child, record.model)
        if labels := self.labels(name):
            record_stage(child, require_manifest(labels), labels)
        child.finish()
        write_atomically(self.out / name / SCORES, json.dumps(found))

    def _student(self, row: Row) -> PretrainConfig:
        start = self.cfg.student
        return replace(
            start,
            model=replace(start.model, contrast="paper" if row.inter else "none", word_head=row.mlm),
            losses=LossConfig(inter=float(row.inter), mlm=float(row.mlm)),
            ingest=replace(start.ingest, mask_words=0.15 if row.mlm else 0.0, mask_unboxed_phrases=row.mask_unboxed),
        )

    def _captions(self, name: str) -> Sequence[SourceConfig]:
        labels, row = self.labels(name), ROWS[name]
        if labels is None:
            return ()
        plan = LabelPlan(cfg=self.cfg.label, teacher=str(self.out / row.labels_of / "model"))
        pseudo_label(plan, downloaded(Place.of(self.cfg.out / "images")), Place.of(labels), run_id=self.run.run_id)
        return (SourceConfig(path=labels, share=row.captions),)


def _carry_out(jobs: Sequence[_Job], cfg: AblateConfig, deadline: float) -> int:
    """Run the trainings as processes of their own, some at a time; give the number of those left."""
    task = ray.remote(num_cpus=0, max_retries=0, max_calls=1)(_Job.carry_out)
    left = [(job, name) for job in jobs for name in job.names() if not job.done(name)]
    running: dict[Any, tuple[_Job, str]] = {}
    while (left or running) and time.monotonic() < deadline:
        at_work = {job.labels(name) for job, name in running.values() if not _labelled(job, name)}
        for job, name in left[:]:
            ready = all(job.done(before) for before in job.waits_for(name))
            # Labels have one writer: the first that needs them. Others wait until they are there.
            alone = _labelled(job, name) or job.labels(name) not in at_work
            if len(running) < cfg.side_by_side and ready and alone:
                running[task.remote(job, name)] = job, name
                left.remove((job, name))
                at_work.add(job.labels(name))
        finished, _ = ray.wait(list(running), timeout=min(5.0, max(0.1, deadline - time.monotonic())))
        for reference in finished:
            ray.get(reference)
            job, name = running.pop(reference)
            write_tables(cfg.out, _scores(cfg))  # whatever comes, what is known can be read
            logger.info("%s, seed %d: done, %d left", name, job.seed, len(left) + len(running))
    for reference in running:
        ray.cancel(reference, force=True)
    return len(left) + len(running)


def _labelled(job: _Job, name: str) -> bool:
    labels = job.labels(name)
    return labels is None or (labels / MANIFEST_NAME).exists()


def _input_hashes(out: Path) -> dict[str, str]:
    """Pin what all seeds share: the human labels and the captioned pictures."""
    return {name: require_manifest(out / name).content_hash for name in ("objects365", "gold", "images")}


def _scores(cfg: AblateConfig) -> dict[str, list[dict[str, float]]]:
    """Read what was measured: per row, the scores of the seeds that are finished, in order."""
    return {
        name: [
            {"seed": float(seed), **json.loads(path.read_text(encoding="utf-8"))}
            for seed in cfg.seeds
            if (path := cfg.out / f"seed-{seed}" / name / SCORES).exists()
        ]
        for name in (TEACHER, *cfg.wanted)
    }
