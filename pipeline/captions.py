"""The caption engine as a job: a list of URLs, or a folder of images, to grounding shards and a report.

``<out>/pairs.parquet`` is what was given, ``<out>/labels`` what came of it. By default images go from the network
straight to the teacher; ``--staged`` keeps them in ``<out>/images`` first.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from glipv2 import checkpoint
from glipv2.text.tokenizer import Tokenizer, load_tokenizer
from pipeline import placement, summary
from pipeline.download import DownloadConfig, collecting, download
from pipeline.guards import EvaluationIndex, GuardConfig, load_index
from pipeline.lineage import record_stage
from pipeline.lint import LintConfig, lint
from pipeline.paths import require_places
from pipeline.pseudo_label import LabelPlan, PseudoLabelConfig, downloaded, pseudo_label
from pipeline.report import ReportInputs
from pipeline.retry import retry_failed
from pipeline.selection import SelectionConfig
from pipeline.shards import Manifest, config_hash, place_sha256, read_manifest
from pipeline.sources.pairs import PairsConfig, import_pairs
from pipeline.sources.stored_index import StoredConfig, index_stored
from pipeline.storage import Place
from pipeline.summary import Outcome, publish
from pipeline.teachers import teacher_identity
from pipeline.tracking import Input, Run, open_run

MAX_TOKENS = 256
"""Longest text of a teacher that does not say."""


@dataclass(frozen=True, kw_only=True)
class CaptionsConfig:
    """Captioned images to grounding shards. Places are absolute paths or ``s3://`` addresses."""

    pairs: str = ""
    """List of URLs and captions as published: tsv, csv, json, jsonl, parquet, text also gzipped."""
    images: str = ""
    """Folder of images already there: of img2dataset, webdataset tars, Hugging Face parquet, an earlier ``--staged``
    run's ``images``; with ``--pairs``, where the file names of the list lie."""
    teacher: str = ""
    """Model folder, or a grounding detector of transformers by folder or hub id."""
    out: str = ""
    """Folder for labels and report."""
    url_column: str = "url"
    """Column of the address."""
    caption_column: str = "caption"
    """Column of the caption."""
    file_column: str = "file_name"
    """Column of the file name, for a list given together with ``--images``."""
    columns: tuple[str, ...] = ()
    """Names of the columns of a file without a header line, where looking does not tell: ``caption url``."""
    mix_rows: int = 0
    """Mix the list within stretches of so many rows, so that one host is not asked in a burst; 0 leaves its order."""
    dry_run: bool = False
    """Look at the list and tell what it will cost; nothing is fetched or labelled."""
    staged: bool = False
    """Store the images in ``<out>/images`` before they are labelled, so that other labels need no second download."""
    retry: Literal["none", "failed"] = "none"
    """``failed`` fetches again what failed for a passing reason, and nothing else."""
    download: DownloadConfig
    """How images are fetched."""
    label: PseudoLabelConfig
    """How they are labelled."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """Evaluation images that must not be labelled. Duplicates are ``jobs.guard``'s, on the finished labels."""
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    """Which boxes the report shows: those training would use."""
    lint: LintConfig = field(default_factory=LintConfig)
    """Rates that ``--dry-run`` reckons with."""
    num_pictures: int = 12
    """Labelled images shown in the report."""

    def check(self) -> None:
        """Refuse a command line that lacks what no recipe can know."""
        if not self.pairs and not self.images:
            raise ValueError("--pairs and --images are missing; give a list, a folder of images, or both")
        require_places(pairs=self.pairs or None, images=self.images or None, out=self.out)
        if not self.teacher and not self.dry_run:
            raise ValueError("--teacher is missing; give a model folder or a hub id")
        if self.retry == "failed" and self.staged:
            raise ValueError("--retry failed goes with labels that were streamed; leave out --staged")

    @property
    def is_download(self) -> bool:
        """Whether ``images`` is a finished directory of our own."""
        given = read_manifest(Place.of(self.images)) if self.images and not self.pairs else None
        return given is not None and given.stage == "download"


def label_captions(cfg: CaptionsConfig) -> Outcome:
    """Turn captioned images into grounding shards in ``<out>/labels``, and report on them."""
    out = Place.of(cfg.out)
    if cfg.dry_run:
        return look(cfg)
    _require_machines(cfg)
    name, teacher_sha256 = teacher_identity(cfg.teacher)
    with open_run(
        out, "pseudo_label", config_hash([placement.unplaced(asdict(cfg)), teacher_sha256]), asdict(cfg)
    ) as run:
        teacher = Input(name=name, hash=teacher_sha256, place=cfg.teacher, role="teacher")
        run.inputs([teacher, _list_input(cfg)])
        stages = make_labels(cfg, out, run)
        return report_labels(cfg, out, stages, run)


def _require_machines(cfg: CaptionsConfig) -> None:
    """Find out whether there are machines for it before the list is read, which may take long."""
    if read_manifest(Place.of(cfg.out) / "labels") is None:
        placement.require(cfg.label.node_resource, cfg.label.num_gpus)
        placement.require("" if cfg.is_download else cfg.download.node_resource)


def look(cfg: CaptionsConfig) -> Outcome:
    """Tell what a list is like and what it will cost."""
    with TemporaryDirectory() as folder:
        pairs = import_list(cfg, Place.of(folder) / "pairs.parquet")
        looked = replace(
            cfg.lint,
            phrases=cfg.label.phrases,
            num_actors=cfg.download.num_actors,
            num_teachers=cfg.label.num_teachers,
        )
        report = lint(pairs, looked, _tokenizer(cfg.teacher))
        return Outcome(text=str(replace(report, pairs=cfg.pairs or cfg.images)))


def _tokenizer(teacher: str) -> Tokenizer | None:
    """Read the tokenizer that lies with a teacher, to count the captions that are too long for it."""
    if not Path(teacher).is_dir() or not teacher:
        return None
    settings = Path(teacher) / checkpoint.CONFIG
    told = json.loads(settings.read_text(encoding="utf-8")) if settings.exists() else {}
    return load_tokenizer(Path(teacher), int(told.get("max_tokens", told.get("max_text_len", MAX_TOKENS))))


def make_labels(cfg: CaptionsConfig, out: Place, run: Run) -> list[Manifest]:
    """Make the labels, and the images before them if they are to be kept; give the account of each stage."""
    stages = []
    given = downloaded(Place.of(cfg.images)) if cfg.is_download else None
    source = given or collecting(cfg.download, prepare_pairs(cfg, out))
    if cfg.staged and not given:
        stages.append(download(cfg.download, out / "pairs.parquet", out / "images", run_id=run.run_id))
        record_stage(run, stages[-1], out / "images")
        source = downloaded(out / "images")
    plan = LabelPlan(cfg=cfg.label, teacher=cfg.teacher, guard=evaluation_index(cfg, out))
    label = pseudo_label if cfg.retry == "none" else retry_failed
    labels = label(plan, source, out / "labels", run_id=run.run_id)
    record_stage(run, labels, out / "labels")
    return [*stages, labels]


def evaluation_index(cfg: CaptionsConfig, out: Place) -> EvaluationIndex | None:
    """Hash the evaluation images, once per output."""
    if not cfg.guard.eval_images:
        return None
    if out.is_local:
        return load_index(cfg.guard, out.local / "evaluation.parquet")
    with TemporaryDirectory() as folder:
        return load_index(cfg.guard, Path(folder) / "evaluation.parquet")


def prepare_pairs(cfg: CaptionsConfig, out: Place) -> Place:
    """Write ``<out>/pairs.parquet``, unless it is there already and of the same list."""
    pairs, note = out / "pairs.parquet", out / "pairs.json"
    given = [cfg.url_column, cfg.caption_column, cfg.file_column, *cfg.columns, cfg.mix_rows, cfg.images]
    wanted = config_hash([_list_hash(cfg), given])
    if note.exists() and json.loads(note.read_text())["list"] == wanted and pairs.exists():
        return pairs
    if (out / "labels.ledger" / "claim.json").exists():
        raise ValueError(
            f"{out} was begun with another list or other columns than {cfg.pairs or cfg.images}; give the same, or "
            f"another --out"
        )
    import_list(cfg, pairs)
    note.write_text(json.dumps({"list": wanted}))
    return pairs


def import_list(cfg: CaptionsConfig, pairs: Place) -> Place:
    """Write what was given as one parquet file of pairs."""
    if cfg.pairs:
        import_pairs(
            PairsConfig(
                path=Place.of(cfg.pairs),
                url_column=cfg.url_column,
                caption_column=cfg.caption_column,
                file_column=cfg.file_column,
                columns=cfg.columns,
                images=Place.of(cfg.images) if cfg.images else None,
                mix_rows=cfg.mix_rows,
            ),
            pairs,
        )
    else:
        index_stored(StoredConfig(path=Place.of(cfg.images)), pairs)
    return pairs


def _list_hash(cfg: CaptionsConfig) -> str:
    """Pin the list by its bytes; a folder of images by the names and sizes of what lies in it."""
    place = Place.of(cfg.pairs or cfg.images)
    if place.is_file():
        return place_sha256(place)
    return config_hash(place.listing())


def _list_input(cfg: CaptionsConfig) -> Input:
    """Name what is labelled, as the manifest of the labels does."""
    place = Place.of(cfg.pairs or cfg.images)
    if cfg.is_download and (given := read_manifest(place)) is not None:
        return Input.of(place, given.content_hash, "images")
    return Input.of(place, _list_hash(cfg), "pairs")


def report_labels(cfg: CaptionsConfig, out: Place, stages: list[Manifest], run: Run) -> Outcome:
    """Show what came of it."""
    inputs = ReportInputs(
        **summary.header(f"Pseudo-labels for {Place.of(cfg.pairs or cfg.images).name}", run, asdict(cfg)),
        input_hashes={key: value for stage in stages for key, value in stage.inputs.items()},
        stages=[summary.stage(stage, run) for stage in stages],
        pictures=summary.label_pictures(out / "labels", cfg.selection, cfg.num_pictures),
        limits=[
            "No truth is known for these images: the boxes are as good as the teacher. Look at the pictures.",
            "A nano teacher has seen nothing but drawn shapes: on photographs its boxes are poor.",
        ],
    )
    return publish(inputs, out, run)
