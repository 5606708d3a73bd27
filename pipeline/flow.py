"""The whole way, in order: from captioned URLs to a compared few-shot sweep.

Read `demo` from top to bottom and you know the product. Each line is a stage that can be run alone (``jobs/``), writes
one directory, and is skipped when that directory is already finished, so a killed flow goes on where it stopped.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from glipv2.checkpoint import weights_sha256
from glipv2.text.tokenizer import make_vocabulary
from pipeline import summary, sweep_summary
from pipeline.download import DownloadConfig, download
from pipeline.evaluate import Benchmark, EvaluateConfig, evaluate, measure_folder
from pipeline.lineage import record_model, record_stage
from pipeline.miniature.config import MiniatureConfig
from pipeline.miniature.grammar import vocabulary as miniature_words
from pipeline.miniature.server import serve
from pipeline.miniature.world import World, build_world
from pipeline.paths import NOT_GIVEN, require, require_places
from pipeline.placement import unplaced
from pipeline.pretrain import PretrainConfig, TrainingInputs, TrainingRecord, Validation, pretrain, read_record
from pipeline.protocol import read_protocol
from pipeline.pseudo_label import LabelPlan, PseudoLabelConfig, downloaded, pseudo_label
from pipeline.report import ReportInputs, Score, Trial
from pipeline.row_index import SourceConfig
from pipeline.shards import Manifest, config_hash, file_sha256, write_atomically
from pipeline.sources.coco import CocoSource, categories, read_coco
from pipeline.sources.mdetr import read_mdetr
from pipeline.sources.pairs import PairsConfig, import_pairs
from pipeline.sources.store import store_source
from pipeline.storage import Place
from pipeline.summary import Outcome, publish, ui_command
from pipeline.sweep import SweepConfig, SweepInputs, choose, find_datasets, sweep
from pipeline.tracking import Input, Run, open_run
from pipeline.trial import TrialInputs
from pipeline.trial_checks import check_benchmark, check_protocol

TEACHER, STUDENT = "teacher", "student"


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The whole way on the miniature world."""

    out: Path = NOT_GIVEN
    """Folder for everything the demo makes, absolute."""
    world: MiniatureConfig
    """Size of the drawn world."""
    download: DownloadConfig
    """How captioned images are fetched."""
    label: PseudoLabelConfig
    """How the teacher labels them."""
    teacher: PretrainConfig
    """How the teacher is trained, from nothing, on the human-labelled sets."""
    student: PretrainConfig
    """How the student is trained, from its teacher's weights, on those sets and the pseudo-labelled captions."""
    caption_copies: int = 1
    """How often each pseudo-labelled caption occurs in an epoch of the student."""
    evaluate: EvaluateConfig
    """How both models are measured."""
    sweep: SweepConfig
    """The few-shot trials."""
    sweep_datasets: tuple[str, ...]
    """Miniature ODinW sets to transfer to; empty takes all 13."""

    def check(self) -> None:
        """Refuse a command line that lacks what no recipe can know."""
        require(out=self.out)


def demo(cfg: DemoConfig) -> Outcome:
    """Walk the whole way on the miniature world."""
    out = cfg.out
    world = build_world(cfg.world, out / "world")
    # The web is up from the start: a port that is taken should not be news after the teacher's training.
    with serve(world, cfg.world.port), open_run(out, "demo", config_hash(asdict(cfg)), asdict(cfg)) as run:
        words = write_vocabulary(out / "vocab.txt")
        run.inputs(world_inputs(world))
        boxes, gold = store_human_labels(world, out)
        for manifest, name in ((boxes, "objects365"), (gold, "gold")):
            record_stage(run, manifest, out / name)
        human = (SourceConfig(path=out / "objects365"), SourceConfig(path=out / "gold"))

        teacher = train(cfg.teacher, TrainingInputs(name=TEACHER, sources=human, vocabulary=words), out, run)
        images = fetch_images(PairsConfig(path=world.web_pairs), reaching(world, cfg.download), out, run)
        source = downloaded(Place.of(out / "images"))
        plan = LabelPlan(cfg=cfg.label, teacher=str(teacher.model))
        labels = pseudo_label(plan, source, Place.of(out / "labels"), run_id=run.run_id)
        record_stage(run, labels, out / "labels")
        captions = SourceConfig(path=out / "labels", copies=cfg.caption_copies)
        more = TrainingInputs(name=STUDENT, sources=(*human, captions), vocabulary=words, init=teacher.model)
        student = train(cfg.student, more, out, run)

        scores = evaluate(cfg.evaluate, {r.name: r.model for r in (teacher, student)}, benchmarks(world), out)
        transfer = SweepInputs(
            trial=TrialInputs(model=student.model, root=world.odinw),
            datasets=cfg.sweep_datasets,
            store=Place.of(out / "trials"),
        )
        trials = sweep_summary.trials(choose(sweep(cfg.sweep, transfer, run)))
        return report_demo(cfg, run, [boxes, gold, images, labels], [teacher, student], (scores, trials))


def fetch_images(pairs: PairsConfig, cfg: DownloadConfig, out: Path, run: Run) -> Manifest:
    """Read a list of pairs and download its images into ``<out>/images``."""
    import_pairs(pairs, out / "pairs.parquet")
    manifest = download(cfg, Place.of(out / "pairs.parquet"), Place.of(out / "images"), run_id=run.run_id)
    record_stage(run, manifest, out / "images")
    return manifest


def reaching(world: World, cfg: DownloadConfig) -> DownloadConfig:
    """Let a download reach the miniature world's own server: loopback is closed to it otherwise."""
    return replace(cfg, fetch=replace(cfg.fetch, allow_hosts=(f"127.0.0.1:{world.config.port}",)))


def train(cfg: PretrainConfig, inputs: TrainingInputs, out: Path, run: Run) -> TrainingRecord:
    """Train a model into ``<out>/<name>``, as a run of its own inside the job's."""
    if (done := read_record(out / inputs.name)) is not None:
        child = Run(run.uri, done.run_id)
    else:
        child = run.child(inputs.name, inputs.name, {**asdict(cfg), "sources": [str(s.path) for s in inputs.sources]})
    inputs.record(child)
    record = pretrain(cfg, inputs, out / inputs.name, child)
    record_model(child, record.model)
    child.finish()
    return record


def write_vocabulary(path: Path) -> Path:
    """Write the vocabulary of the miniature world: its words, and letters for all others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "\n".join(make_vocabulary(miniature_words())) + "\n")
    return path


def store_human_labels(world: World, out: Path) -> tuple[Manifest, Manifest]:
    """Turn the world's human-labelled sets into shards."""
    boxes, gold = (
        CocoSource(annotations=place.annotations, images=place.images, source=name, split="train")
        for place, name in ((world.objects365_train, "objects365"), (world.gold, "gold"))
    )
    return (
        store_source(
            read_coco(boxes),
            out / "objects365",
            name="objects365",
            inputs={"objects365": file_sha256(boxes.annotations)},
            categories=categories(boxes.annotations),
        ),
        store_source(read_mdetr(gold), out / "gold", name="gold", inputs={"gold": file_sha256(gold.annotations)}),
    )


def world_inputs(world: World) -> list[Input]:
    """Pin what the demo is made of, named as the stages' manifests name it."""
    given = {"objects365": world.objects365_train.annotations, "gold": world.gold.annotations, "pairs": world.web_pairs}
    return [Input.of(path, file_sha256(path), role) for role, path in given.items()]


def benchmarks(world: World) -> list[Benchmark]:
    """Name what the demo's models are measured on."""
    return [
        Benchmark(name=name, annotations=place.annotations, images=place.images)
        for name, place in (("Objects365 val", world.objects365_val), ("novel test", world.novel_test))
    ]


def report_demo(
    cfg: DemoConfig,
    run: Run,
    manifests: Sequence[Manifest],
    trainings: Sequence[TrainingRecord],
    results: tuple[Sequence[Score], Sequence[Trial]],
) -> Outcome:
    """Gather the demo's numbers and pictures, record them, and write the report."""
    scores, trials = results
    world = World(root=cfg.out / "world", config=cfg.world)
    selection = cfg.student.ingest.selection
    inputs = ReportInputs(
        **summary.header("From captions to a detector, in miniature", run, asdict(cfg)),
        input_hashes={key: value for m in manifests for key, value in m.inputs.items()},
        stages=[summary.stage(m, run) for m in manifests],
        scores=list(scores),
        trainings=[summary.training(r, run.uri) for r in trainings],
        trials=list(trials),
        label_quality=summary.label_quality(cfg.out / "labels", world.web_truth, selection),
        pictures=[
            *summary.label_pictures(cfg.out / "labels", selection, 8),
            *summary.detection_pictures({r.name: r.model for r in trainings}, benchmarks(world)[-1], 6),
        ],
        notes=[
            "The student starts from its teacher's weights and goes on for its own steps, so part of its gain on base "
            "nouns is more training. Novel nouns have no box in any human-labelled set: theirs come from captions.",
        ],
        limits=[
            "The world is drawn: it shows that the way works, not how well it works on photographs.",
            "One seed per model; differences of a few points are within what another seed would give.",
        ],
    )
    for score in scores:
        name = f"{score.model}/{score.dataset}".replace(" ", "_")
        parts = {"ap": score.ap, "ap50": score.ap50, "ap50_base": score.ap50_base, "ap50_novel": score.ap50_novel}
        run.metrics({f"{name}/{key}": value for key, value in parts.items() if value is not None})
    return publish(inputs, cfg.out, run)


@dataclass(frozen=True, kw_only=True)
class PretrainJob:
    """One pre-training on finished shards."""

    name: str = "model"
    """Name of the model."""
    sources: tuple[str, ...] = ()
    """Finished directories of grounding shards, absolute or ``s3://``."""
    copies: tuple[int, ...] = ()
    """How often each source occurs in an epoch, in the same order; empty means once each."""
    shares: tuple[float, ...] = ()
    """Part of each source's samples that is used at all, in the same order; empty means all of each."""
    vocabulary: Path = NOT_GIVEN
    """``vocab.txt`` of the tokenizer, or a folder with a CLIP tokenizer's files; absolute."""
    init: Path = NOT_GIVEN
    """Model folder to start from, absolute; without it training starts from nothing."""
    val_annotations: Path = NOT_GIVEN
    """COCO json that checkpoints are measured on, absolute; the best becomes the model, without it the last."""
    val_images: Path = NOT_GIVEN
    """Folder its file names are relative to, absolute."""
    out: Path = NOT_GIVEN
    """Folder for checkpoints and the model, absolute."""
    pretrain: PretrainConfig
    """How to train."""

    def check(self) -> None:
        """Refuse a command line that lacks what no recipe can know."""
        require(out=self.out, vocabulary=self.vocabulary)
        require_places(**{f"sources.{i}": place for i, place in enumerate(self.sources)})
        if self.val_annotations != NOT_GIVEN or self.val_images != NOT_GIVEN:
            require(val_annotations=self.val_annotations, val_images=self.val_images)
        if not self.sources:
            raise ValueError("--sources is missing; give finished directories of grounding shards")
        for name, given in (("copies", self.copies), ("shares", self.shares)):
            if given and len(given) != len(self.sources):
                raise ValueError(f"{len(self.sources)} --sources, but {len(given)} --{name}; give one for each")


def pretrain_alone(cfg: PretrainJob) -> Outcome:
    """Pre-train a model into ``<out>/<name>/model``."""
    copies, shares = cfg.copies or (1,) * len(cfg.sources), cfg.shares or (1.0,) * len(cfg.sources)
    sources = tuple(
        SourceConfig(path=Place.of(path), copies=n, share=share)
        for path, n, share in zip(cfg.sources, copies, shares, strict=True)
    )
    validation = None
    if cfg.val_annotations != NOT_GIVEN:
        benchmark = Benchmark(name="validation", annotations=cfg.val_annotations, images=cfg.val_images)
        if read_record(cfg.out / cfg.name) is None:
            check_benchmark(benchmark)
        measure = partial(measure_folder, benchmark, "cuda" if cfg.pretrain.use_gpu else "cpu")
        validation = Validation(key=file_sha256(cfg.val_annotations), measure=measure)
    inputs = TrainingInputs(
        name=cfg.name, sources=sources, vocabulary=cfg.vocabulary, init=cfg.init, validation=validation
    )
    with open_run(cfg.out, "pretrain", config_hash([unplaced(asdict(cfg)), inputs.hashes]), asdict(cfg)) as run:
        inputs.record(run)
        record = pretrain(cfg.pretrain, inputs, cfg.out / cfg.name, run)
        record_model(run, record.model)
        return Outcome(text=f"model      {record.model}\nMLflow UI  {ui_command(run.uri)}")


@dataclass(frozen=True, kw_only=True)
class SweepJob:
    """A few-shot sweep over data sets in ODinW's layout."""

    checkpoint: Path = NOT_GIVEN
    """Model folder, absolute."""
    data: Path = NOT_GIVEN
    """Folder of the data sets, absolute."""
    datasets: tuple[str, ...] = ()
    """Names of the data sets; empty takes all that are found."""
    protocol: str = ""
    """Benchmark whose data sets all must be there, and whose mean is given; none, any data sets will do."""
    probe_annotations: Path = NOT_GIVEN
    """COCO json of a fixed probe that is measured zero-shot before and after tuning, absolute: what is forgotten."""
    probe_images: Path = NOT_GIVEN
    """Folder its file names are relative to, absolute."""
    store: str = ""
    """Folder of finished trials, absolute or ``s3://``, which several sweeps may share; none given, the sweep's own."""
    out: Path = NOT_GIVEN
    """Folder for trials and report, absolute."""
    sweep: SweepConfig
    """Modes, shots, seeds and rates."""

    def check(self) -> None:
        """Refuse a command line that lacks what no recipe can know."""
        require(checkpoint=self.checkpoint, data=self.data, out=self.out)
        require_places(store=self.store or None)
        if self.probe_annotations != NOT_GIVEN or self.probe_images != NOT_GIVEN:
            require(probe_annotations=self.probe_annotations, probe_images=self.probe_images)


def sweep_alone(cfg: SweepJob) -> Outcome:
    """Run the sweep and report on it."""
    protocol = read_protocol(cfg.protocol) if cfg.protocol else None
    names = cfg.datasets or (tuple(d.name for d in protocol.datasets) if protocol else ())
    probe = None
    if cfg.probe_annotations != NOT_GIVEN:
        probe = Benchmark(name="probe", annotations=cfg.probe_annotations, images=cfg.probe_images)
    inputs = SweepInputs(
        trial=TrialInputs(model=cfg.checkpoint, root=cfg.data, probe=probe),
        datasets=names,
        store=Place.of(cfg.store or cfg.out / "trials"),
    )
    hashes = {"model": weights_sha256(cfg.checkpoint), **({"protocol": protocol.hash} if protocol else {})}
    with open_run(cfg.out, "sweep", config_hash([unplaced(asdict(cfg)), hashes]), asdict(cfg)) as run:
        inputs.record(run)
        run.tags({"protocol_hash": protocol.hash} if protocol else {})
        if protocol and not cfg.datasets:
            check_protocol(protocol, find_datasets(inputs), cfg.sweep.trial.prompts)
        results = sweep(cfg.sweep, inputs, run)
        # The mean of a benchmark is over all its data sets or none.
        whole = protocol if protocol and not cfg.datasets else None
        found = sweep_summary.summarize(results, cfg.sweep, whole)
        write_atomically(cfg.out / "sweep.json", json.dumps(found, indent=1))
        run.metrics(sweep_summary.overall(choose(results)))
        run.artifact(cfg.out / "sweep.json")
        header = summary.header("Few-shot sweep", run, asdict(cfg))
        trials, details = sweep_summary.trials(choose(results)), sweep_summary.tables(found)
        return publish(ReportInputs(**header, input_hashes=hashes, trials=trials, details=details), cfg.out, run)
