"""One trial of transfer: tune a model to a data set, choose by validation, measure once on the test split.

For what tuning takes away, a fixed probe is measured too: zero-shot on data that has nothing to do with the set tuned
to. Averaging the tuned weights with the original ones trades one for the other.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal, overload

import torch

from glipv2.checkpoint import load, weights_sha256
from glipv2.checkpoint import save as save_model
from glipv2.config import ModelConfig
from glipv2.image import prepare, scale_boxes
from glipv2.inference.predictor import Predictor
from glipv2.model.glipv2 import GLIPv2
from glipv2.sample import GroundingSample, covers
from glipv2.text.prompts import Prompt
from glipv2.text.tokenizer import Tokenizer
from glipv2.transfer.averaging import interpolate
from glipv2.transfer.feature_cache import FeatureCache
from glipv2.transfer.protocol import TuningConfig
from glipv2.transfer.tune import tune
from glipv2.transfer.tuned_prompt import make_tuned_prompt
from pipeline import placement
from pipeline.evaluate import Benchmark, measure, open_image, read_annotations
from pipeline.protocol import Prompts
from pipeline.report.inputs import ZERO_SHOT
from pipeline.shards import config_hash, file_sha256
from pipeline.sources.coco import file_name
from pipeline.sources.odinw import (
    OdinwDataset,
    few_shot_images,
    few_shot_validation,
    make_prompt,
    prepared_draw,
)
from pipeline.storage import Place

ALL: Final = "all"
Shots = int | Literal["all"]
"""Training images per category; `ALL` there are, or 0 for none."""
PROMPT_FILE, MODEL_FOLDER = "prompt.safetensors", "model"
Report = Callable[[dict[str, float]], None]
"""Is told of every evaluation while a trial goes on."""


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """What all trials share."""

    batch_size: int = 16
    """Images per forward pass when measuring."""
    num_gpus: float = 0.0
    """GPUs per trial, or a part of one; 0 runs on the CPU."""
    threads: int = 1
    """CPU threads of a trial."""
    node_resource: str = ""
    """Custom resource of the machines trials run on: ``label`` on a cluster of ours. Empty runs them on any machine."""
    short_side_px: int = 0
    """Short side images are resized to, the longest side growing alike; 0 is the model's own."""
    use_paper_prompts: bool = True
    """Use the prompts that were written by hand for six of the data sets."""
    averages: tuple[float, ...] = ()
    """Parts of the tuned weights, between 0 and 1, at which their average with the original ones is measured as well;
    for ``full`` and ``linear``."""
    strict: bool = True
    """Refuse a data set where too few training images show a category; else it has all of them."""
    keep_models: bool = False
    """Keep the model of every ``full`` and ``linear`` trial; tuned prompts are always kept."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.batch_size < 1 or self.threads < 1 or self.num_gpus < 0:
            raise ValueError(
                f"batch_size {self.batch_size}, threads {self.threads}, num_gpus {self.num_gpus}; give 1 or more, and "
                "0 GPUs or more"
            )
        if self.short_side_px < 0:
            raise ValueError(f"short_side_px is {self.short_side_px}; give pixels, or 0 for the model's own")
        if any(not 0 <= part <= 1 for part in self.averages):
            raise ValueError(f"averages is {self.averages}; give parts between 0 (original) and 1 (tuned)")

    @property
    def prompts(self) -> Prompts:
        """Variant of the prompts, as protocols name it."""
        return "manual" if self.use_paper_prompts else "raw"

    @property
    def device(self) -> str:
        """Where the model runs."""
        return "cuda" if self.num_gpus else "cpu"


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """What one trial is: tuned on what, with which rates."""

    dataset: str
    """Name of the data set; `PROBE` for the probe."""
    mode: str = ZERO_SHOT
    """``zero-shot``, or a mode of tuning."""
    shots: Shots = 0
    """0 for zero-shot."""
    seed: int = 0
    """Draw of the training images and all other chance."""
    tuning: TuningConfig | None = None
    """How it is tuned."""

    @property
    def group(self) -> str:
        """Name of the trials it is to be compared with."""
        drawn = f"-{self.shots}-seed{self.seed}" if self.tuning else ""
        return f"{self.dataset}-{self.mode}{drawn}"

    @property
    def name(self) -> str:
        """Name in charts and tables."""
        rates = f"-lr{self.tuning.lr:.3g}-wd{self.tuning.weight_decay:.3g}" if self.tuning else ""
        return self.group + rates

    @property
    def params(self) -> dict[str, Any]:
        """All that it is, flat."""
        return self.compared | (asdict(self.tuning) if self.tuning else {})

    @property
    def compared(self) -> dict[str, Any]:
        """What trials are compared by, and nothing else: columns of MLflow's views."""
        own = {"dataset": self.dataset, "mode": self.mode, "shots": self.shots, "seed": self.seed}
        return own | ({"lr": self.tuning.lr, "weight_decay": self.tuning.weight_decay} if self.tuning else {})


MACHINERY = frozenset({"num_gpus", "threads", "keep_models", "cache_mib", "cache_folder", placement.FIELD})
"""What decides no outcome, of `TrialConfig` and `TuningConfig`."""
PROBE = "probe"
"""In place of a data set: the model as it is, on the probe alone."""


@dataclass(frozen=True, kw_only=True)
class TrialInputs:
    """What trials work on."""

    model: Path
    """Model folder, absolute."""
    root: Path
    """Folder of the data sets, absolute."""
    probe: Benchmark | None = None
    """Measured zero-shot before and after tuning: what a model forgets."""


@dataclass
class Outcome:
    """What a trial came to; all AP in percent."""

    ap: float
    ap50: float
    seconds: float = 0.0
    val_ap: float | None = None
    probe_ap: float | None = None
    steps: int = 0
    best_epoch: int = 0
    cache_mib: float = 0.0
    offset_norm: float | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    averages: list[dict[str, float]] = field(default_factory=list)
    images: list[str] = field(default_factory=list)


def trial_key(spec: TrialSpec, cfg: TrialConfig, inputs: TrialInputs) -> str:
    """Name what decides a trial's outcome, by content: two trials of one key come to the same."""
    probe = [] if inputs.probe is None else [file_sha256(inputs.probe.annotations)]
    decided = [{n: v for n, v in part.items() if n not in MACHINERY} for part in (asdict(cfg), spec.params)]
    return config_hash([weights_sha256(inputs.model), _data_hashes(spec, cfg, inputs), probe, *decided])


def _data_hashes(spec: TrialSpec, cfg: TrialConfig, inputs: TrialInputs) -> list[str]:
    """Pin what a trial is tuned to and measured on: annotations, the words of the prompt, and prepared draws."""
    if spec.dataset == PROBE:
        return []
    dataset = OdinwDataset(name=spec.dataset, root=inputs.root)
    words = make_prompt(dataset, use_paper_prompts=cfg.use_paper_prompts).text
    prepared = []
    if isinstance(spec.shots, int) and spec.shots:
        prepared = [prepared_draw(dataset, spec.shots, spec.seed), few_shot_validation(dataset, spec.shots, spec.seed)]
    return [*dataset_hashes(dataset), words, *(file_sha256(path) for path in prepared if path)]


def dataset_hashes(dataset: OdinwDataset) -> list[str]:
    """Pin the annotations of a data set's splits."""
    return [dataset.name, *(file_sha256(dataset.annotations(split)) for split in ("train", "valid", "test"))]


def run_trial(spec: TrialSpec, cfg: TrialConfig, inputs: TrialInputs, out: Place, report: Report) -> Outcome:
    """Run one trial in this process.

    Args:
        spec: what it is.
        cfg: what all trials share.
        inputs: model, data sets and probe.
        out: folder for the tuned prompt or model.
        report: told ``epoch`` and ``val_ap`` of every evaluation.
    """
    started = time.perf_counter()
    torch.set_num_threads(cfg.threads)
    model, tokenizer = load(inputs.model, cfg.device)
    if side := cfg.short_side_px:
        longest = round(side * model.cfg.max_size_px / model.cfg.min_size_px)
        model.cfg = replace(model.cfg, min_size_px=side, max_size_px=longest)
    trial = _Trial(spec, cfg, inputs, model, tokenizer)
    if spec.dataset == PROBE:
        ap = trial.probe()
        assert ap is not None
        outcome = Outcome(ap=ap, ap50=0.0, probe_ap=ap)
    else:
        outcome = trial.zero_shot() if spec.tuning is None else trial.tuned(spec.tuning, out, report)
    outcome.seconds = time.perf_counter() - started
    return outcome


class _Trial:
    """A model, and the data set it is tuned to."""

    def __init__(
        self, spec: TrialSpec, cfg: TrialConfig, inputs: TrialInputs, model: GLIPv2, tokenizer: Tokenizer
    ) -> None:
        self.spec, self.cfg, self.inputs = spec, cfg, inputs
        self.model, self.tokenizer = model, tokenizer
        self.dataset = OdinwDataset(name=spec.dataset, root=inputs.root)
        self.features = FeatureCache(spec.tuning.cache_mib if spec.tuning else 0)

    @property
    def prompt(self) -> Prompt:
        return make_prompt(self.dataset, use_paper_prompts=self.cfg.use_paper_prompts)

    def zero_shot(self) -> Outcome:
        ap, ap50 = self.measure(self.benchmark("test"))
        return Outcome(ap=ap, ap50=ap50)

    def tuned(self, tuning: TuningConfig, out: Place, report: Report) -> Outcome:
        images = self.images()
        original = {name: value.clone() for name, value in self.model.state_dict().items()}
        epochs = iter(range(0, tuning.max_epochs, tuning.evaluate_every))
        seen: list[dict[str, float]] = []

        def validate(offset: torch.Tensor | None) -> float:
            ap, ap50 = self.measure(self.validation(), offset)
            seen.append({"epoch": float(next(epochs, tuning.max_epochs)), "val_ap": ap, "val_ap50": ap50})
            report(seen[-1])
            return ap

        samples = Samples(self.dataset, images, self.prompt, self.model.cfg)
        result = tune(self.model, self.tokenizer, samples, tuning, validate, seed=self.spec.seed)
        ap, ap50 = self.measure(self.benchmark("test"), result.offset)
        self.keep(result.offset, out)
        return Outcome(
            ap=ap,
            ap50=ap50,
            val_ap=result.best_val_ap,
            probe_ap=self.probe(),
            steps=result.steps,
            best_epoch=result.best_epoch,
            cache_mib=(result.memory_bytes + result.mapped_bytes) / 2**20,
            offset_norm=None if result.offset is None else float(result.offset.norm()),
            history=[
                {**told, **{name: value for name, value in asdict(known).items() if value is not None}}
                for told, known in zip(seen, result.history, strict=True)
            ],
            averages=[] if result.offset is not None else list(self.averages(original)),
            images=images,
        )

    def images(self) -> list[str]:
        """Choose the training images, by file name."""
        if isinstance(self.spec.shots, int):
            return few_shot_images(self.dataset, self.spec.shots, self.spec.seed, strict=self.cfg.strict)
        content = read_annotations(self.dataset.annotations("train"))
        return [file_name(image) for image in content["images"]]

    def benchmark(self, split: str) -> Benchmark:
        return Benchmark(
            name=self.dataset.name, annotations=self.dataset.annotations(split), images=self.dataset.images(split)
        )

    def validation(self) -> Benchmark:
        """Take the validation list prepared for this draw, where the data set brings one."""
        whole = self.benchmark("valid")
        prepared = None
        if isinstance(self.spec.shots, int):
            prepared = few_shot_validation(self.dataset, self.spec.shots, self.spec.seed)
        return whole if prepared is None else replace(whole, annotations=prepared, images=prepared.parent)

    def measure(self, benchmark: Benchmark, offset: torch.Tensor | None = None) -> tuple[float, float]:
        """Give AP and AP50, in percent, with the data set's own prompt."""
        # A new one each time: it remembers text features, and weights may have changed since.
        predictor = Predictor(self.model, self.tokenizer, batch_size=self.cfg.batch_size)
        if offset is not None:  # the image encoder stays as it is
            predictor.image_cache = self.features
        found, _ = measure(predictor, benchmark, self.cfg.batch_size, offset, self.prompt)
        return found.ap, found.ap50

    def probe(self) -> float | None:
        """Measure zero-shot what has nothing to do with the data set, if there is such a thing."""
        if self.inputs.probe is None:
            return None
        predictor = Predictor(self.model, self.tokenizer, batch_size=self.cfg.batch_size)
        found, _ = measure(predictor, self.inputs.probe, self.cfg.batch_size)
        return found.ap

    def averages(self, original: dict[str, torch.Tensor]) -> Iterator[dict[str, float]]:
        """Measure averages of the original and the tuned weights."""
        tuned = {name: value.clone() for name, value in self.model.state_dict().items()}
        for part in self.cfg.averages:
            self.model.load_state_dict(interpolate(original, tuned, part))
            ap, _ = self.measure(self.benchmark("test"))
            probe = self.probe()
            yield {"tuned_part": part, "ap": ap} | ({} if probe is None else {"probe_ap": probe})
        self.model.load_state_dict(tuned)

    def keep(self, offset: torch.Tensor | None, out: Place) -> None:
        """Save what was learned: a tuned prompt is small, a model only if asked for."""
        tags = {"dataset": self.spec.dataset, "shots": str(self.spec.shots), "seed": str(self.spec.seed)}
        with TemporaryDirectory() as folder:
            if offset is not None:
                path = Path(folder) / PROMPT_FILE
                make_tuned_prompt(self.model, self.tokenizer, self.prompt, offset, tags).save(path)
            elif self.cfg.keep_models:
                save_model(self.model, self.tokenizer, Path(folder) / MODEL_FOLDER)
            for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
                (out / file.relative_to(folder).as_posix()).write_bytes(file.read_bytes())


class Samples(Sequence[GroundingSample]):
    """Training images of a data set with its prompt; a picture is read when it is asked for."""

    def __init__(self, dataset: OdinwDataset, images: Sequence[str], prompt: Prompt, model: ModelConfig) -> None:
        """Take the images of the training split that are named, in the order of its json."""
        path = dataset.annotations("train")
        content, wanted = read_annotations(path), set(images)
        self._folder, self._prompt, self._model = path.parent, prompt, model
        self._images = [image for image in content["images"] if file_name(image) in wanted]
        self._boxes: dict[Any, list[dict[str, Any]]] = {}
        for box in content["annotations"]:
            if not box.get("iscrowd"):
                self._boxes.setdefault(box["image_id"], []).append(box)

    def __len__(self) -> int:
        """Count the images."""
        return len(self._images)

    @overload
    def __getitem__(self, index: int) -> GroundingSample: ...
    @overload
    def __getitem__(self, index: slice) -> list[GroundingSample]: ...

    def __getitem__(self, index: int | slice) -> GroundingSample | list[GroundingSample]:
        """Read a picture, or several."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        image = self._images[index]
        boxes = self._boxes.get(image["id"], [])
        picture = prepare(open_image(self._folder / file_name(image)), self._model)
        corners = [[x, y, x + w, y + h] for x, y, w, h in (box["bbox"] for box in boxes)]
        xyxy = torch.tensor(corners, dtype=torch.float32).view(-1, 4)  # a json may have whole numbers alone
        xyxy = scale_boxes(xyxy, picture)
        keep = covers(xyxy, picture.size)  # public sets hold boxes without area
        # A blank name has no characters: its boxes teach where something is, and that it is none of the others.
        spans = {
            category: [(begin, end)] if begin < end else [] for category, (begin, end) in self._prompt.spans.items()
        }
        categories = [box["category_id"] for box, kept in zip(boxes, keep.tolist(), strict=True) if kept]
        return GroundingSample(
            picture=picture,
            text=self._prompt.text,
            boxes_xyxy=xyxy[keep],
            tokens_positive=[spans[category] for category in categories],
            categories=categories,
            category_spans=spans,
        )
