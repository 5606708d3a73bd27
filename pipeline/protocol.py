"""Benchmarks as data: which files, which words, which metric, and the numbers of the paper to stand beside.

A protocol is a file in ``pipeline/protocols``, or one of your own in the same form. Its hash covers everything that
decides a number: a protocol that was changed is another benchmark, and scores of two are never averaged. What the files
of its data sets hold is pinned apart from it, at first use (`pipeline.pins`).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from glipv2.text.prompts import Prompt, Wording, build_prompt, chunk_prompts
from glipv2.text.tokenizer import Tokenizer
from pipeline.score import Metric
from pipeline.shards import config_hash

FOLDER = Path(__file__).parent / "protocols"
KINDS: Mapping[Metric, str] = {
    "coco-bbox": "coco",
    "lvis": "coco",
    "lvis-fixed": "coco",
    "flickr30k-any": "flickr30k",
    "flickr30k-merged": "flickr30k",
    "voc": "voc",
}
"""What a benchmark can be judged by (boxes only), and the form of the truth that each of them reads."""
SHOWN = frozenset({"title", "source", "paper"})
"""Fields of a protocol that decide no number, and are not hashed."""
MEAN, NO_MEAN = "unweighted mean", "none"
Prompts = Literal["raw", "manual"]


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where a split lies, relative to the root of the data, or absolute."""

    annotations: str
    """The json of COCO or LVIS; for flickr30k and voc the folder of the set, which holds the list of each split."""
    images: str
    """Folder that the names of images are relative to."""


@dataclass(frozen=True, kw_only=True)
class ProtocolDataset:
    """One data set of a benchmark."""

    name: str
    """Column of the paper's tables, and folder of the results."""
    files: Mapping[str, Files]
    """Its splits."""
    folder: str = ""
    """Where all of it lies, relative to the root."""
    split: str
    """The one that is measured."""
    metrics: tuple[Metric, ...]
    """How it is judged; the first one gives the number that is shown."""
    score: str
    """Which of the metric's numbers that is, by the official name: AP, R@1, mAP07."""
    max_detections: int = 100
    """Boxes kept per image or prompt, best first."""
    limit_per: Literal["image", "prompt"] = "image"
    """What ``max_detections`` is a limit of."""
    max_categories: int | None = None
    """Names in a prompt at most; None packs as many as fit."""
    categories: tuple[str, ...] = ()
    """Names in the json by ascending id; if given, a json with others is refused. For voc its classes."""
    wordings: Mapping[str, Wording] = field(default_factory=dict)
    """How the prompt written by hand speaks of a category, by its name in ``categories``."""
    by_supercategory: bool = False
    """Give AP50 also for the categories of each supercategory (COCO's metric)."""

    def __post_init__(self) -> None:
        """Check what can be checked without the data."""
        if not self.name or Path(self.name).name != self.name:
            raise ValueError(f"a data set is called {self.name!r}; give a name that can be that of a folder")
        if not self.metrics or not KINDS.keys() >= set(self.metrics):
            given = ", ".join(self.metrics)
            raise ValueError(f"{self.name}: metrics is [{given}], allowed: {', '.join(KINDS)}; give one or more")
        if len({KINDS[metric] for metric in self.metrics}) > 1:
            raise ValueError(f"{self.name}: {', '.join(self.metrics)} read different forms of truth; give one form")
        if self.kind == "voc" and not self.categories:
            raise ValueError(f"{self.name}: categories is empty, but voc has no other list of its classes; name them")
        if self.split not in self.files:
            raise ValueError(f"{self.name}: split is {self.split!r}, allowed: {', '.join(self.files)}; choose one")
        if self.limit_per not in ("image", "prompt"):
            raise ValueError(f"{self.name}: limit_per is {self.limit_per!r}, allowed: image, prompt")
        for limit in ("max_detections", "max_categories"):
            if (value := getattr(self, limit)) is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{self.name}: {limit} is {value!r}; give a whole number from 1 up")
        if unknown := sorted(self.wordings.keys() - set(self.categories)):
            raise ValueError(f"{self.name}: wordings speak of {unknown}, which categories lacks; name them there")

    @property
    def kind(self) -> str:
        """Form of its truth."""
        return KINDS[self.metrics[0]]

    def place(self, root: Path, split: str = "") -> Files:
        """Give the files of a split, by default the measured one, as absolute paths.

        Raises:
            ValueError: there is no such split.
        """
        wanted = split or self.split
        if wanted not in self.files:
            raise ValueError(f"{self.name} has no split {wanted!r}, allowed: {', '.join(self.files)}; choose one")
        found = self.files[wanted]
        return Files(annotations=str(root / found.annotations), images=str(root / found.images))


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """What a paper reports for a model."""

    model: str
    """Its name there."""
    source: str
    """Where the numbers stand."""
    scores: tuple[float, ...] = ()
    """Percent, in the order of the data sets; empty if only the mean is known."""
    mean: float | None = None
    """Percent, as printed."""
    note: str = ""
    """What one should know before comparing."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A benchmark."""

    name: str
    """Name of its file."""
    title: str
    """Shown above tables."""
    source: str
    """Where the protocol is from."""
    prompts: Prompts
    """``manual``: a data set's own wordings, in one prompt; ``raw``: its names as they are, in as many as it takes."""
    average: str
    """``unweighted mean`` of all data sets, or ``none``."""
    datasets: tuple[ProtocolDataset, ...]
    """In the order of the paper's tables."""
    paper: tuple[PaperRow, ...] = ()
    """What is known of others."""

    def __post_init__(self) -> None:
        """Check that the parts fit."""
        if self.prompts not in get_args(Prompts):
            raise ValueError(f"prompts is {self.prompts!r}, allowed: {', '.join(get_args(Prompts))}")
        if self.average not in (MEAN, NO_MEAN):
            raise ValueError(f"average is {self.average!r}, allowed: {MEAN}, {NO_MEAN}")
        if not self.datasets:
            raise ValueError("datasets is empty; give one or more")
        if twice := [name for name, n in Counter(d.name for d in self.datasets).items() if n > 1]:
            raise ValueError(f"the data set {twice[0]} is there twice; give each a name of its own")
        for row in self.paper:
            if row.scores and len(row.scores) != len(self.datasets):
                raise ValueError(f"paper: {row.model} has {len(row.scores)} scores for {len(self.datasets)} data sets")

    @property
    def hash(self) -> str:
        """Name everything that decides a number."""
        return config_hash({name: value for name, value in _content(self).items() if name not in SHOWN})

    def dataset(self, name: str) -> ProtocolDataset:
        """Find a data set.

        Raises:
            ValueError: there is none of this name.
        """
        for found in self.datasets:
            if found.name == name:
                return found
        raise ValueError(f"{self.name} has no data set {name!r}, allowed: {', '.join(d.name for d in self.datasets)}")


@dataclass(frozen=True, kw_only=True)
class Score:
    """A number and what it is a number of."""

    dataset: str
    """Name in the protocol."""
    split: str
    """Split it was measured on."""
    prompts: str
    """Variant of the prompts, see `Protocol.prompts`."""
    protocol: str
    """Hash of the protocol."""
    value: float
    """Percent."""


def mean(scores: Sequence[Score], protocol: Protocol) -> float:
    """Average the scores of a benchmark, each data set counting alike.

    Raises:
        ValueError: they are not exactly those of the protocol; the message says what is missing or too much.
    """
    if protocol.average != MEAN:
        raise ValueError(f"{protocol.name} has no mean: its data sets stand alone")
    counts = Counter(score.dataset for score in scores)
    wanted = {d.name: d for d in protocol.datasets}
    faults = [
        *(f"{name} is missing" for name in wanted if name not in counts),
        *(f"{name} is not part of it" for name in counts if name not in wanted),
        *(f"{name} is there {n} times" for name, n in counts.items() if n > 1),
        *(fault for score in scores if score.dataset in wanted for fault in _faults(score, protocol)),
    ]
    if faults:
        more = f" (and {len(faults) - 3} more faults)" if len(faults) > 3 else ""
        raise ValueError(
            f"no mean of {protocol.name}: {'; '.join(faults[:3])}{more}; give one score for each of its {len(wanted)} "
            f"data sets, all by its own rules"
        )
    return sum(score.value for score in scores) / len(scores)


def make_prompts(
    dataset: ProtocolDataset, names: Sequence[str], tokenizer: Tokenizer, prompts: Prompts = "raw"
) -> list[Prompt]:
    """Write the prompts of a data set; the label of a name is its position.

    Wordings make one prompt, however long: what does not fit is reported by whoever tokenizes it.
    """
    numbered = list(enumerate(names))
    if prompts == "manual" and dataset.wordings:
        return [build_prompt(numbered, wordings=own_wordings(numbered, dataset.wordings))]
    return chunk_prompts(numbered, tokenizer, dataset.max_categories)


def own_wordings(names: Iterable[tuple[int, str]], wordings: Mapping[str, Wording]) -> dict[int, Wording]:
    """Find the wording of each name that has one; a json may write it with other capitals than the protocol."""
    known = {name.casefold(): wording for name, wording in wordings.items()}
    return {label: known[name.casefold()] for label, name in names if name.casefold() in known}


def list_protocols() -> list[str]:
    """List the protocols that come with the code."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_protocol(name: str | Path) -> Protocol:
    """Read a protocol by its name, or by the path of a file of one's own.

    Raises:
        ValueError: there is none, or it is not of the form; one line names the place.
    """
    path = Path(name) if Path(name).suffix == ".yaml" else FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(list_protocols())
        raise ValueError(f"there is no protocol {str(name)!r}, allowed: {known}, or a path ending in .yaml")
    try:
        return _build(path.stem, _read(path))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


@cache
def odinw() -> Mapping[str, ProtocolDataset]:
    """Give the data sets of ODinW-13 by the paper's names, in its order."""
    return {dataset.name: dataset for dataset in read_protocol("odinw13").datasets}


def _faults(score: Score, protocol: Protocol) -> list[str]:
    dataset = protocol.dataset(score.dataset)
    pairs = [
        ("split", score.split, dataset.split),
        ("prompts", score.prompts, protocol.prompts),
        ("protocol", score.protocol, protocol.hash),
    ]
    faults = [f"{score.dataset} has {what} {given}, not {right}" for what, given, right in pairs if given != right]
    return faults or ([] if score.value >= 0 else [f"{score.dataset} has no score ({score.value})"])


def _content(item: Any) -> Any:
    """Take a dataclass apart; what is as by default is left out, so that a field added later changes no hash."""
    if is_dataclass(item):
        given = {f.name: getattr(item, f.name) for f in fields(item)}
        usual = {f.name: f.default_factory() if f.default_factory is not MISSING else f.default for f in fields(item)}
        return {name: _content(value) for name, value in given.items() if value != usual[name]}
    if isinstance(item, Mapping):
        return {name: _content(value) for name, value in item.items()}
    return [_content(value) for value in item] if isinstance(item, tuple) else item


_TOP = {"title", "source", "prompts", "average", "defaults", "layouts", "datasets", "same_data_as", "change", "paper"}
_DATASET = {f.name for f in fields(ProtocolDataset)} - {"files"} | {"layout"}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"it cannot be read as YAML: {' '.join(str(error).split())}") from error
    given = _check(content, _TOP, {"title", "source", "prompts", "average"}, "it")
    for key, kind in {"datasets": list, "paper": list, "defaults": dict, "layouts": dict, "change": dict}.items():
        if not isinstance(given.setdefault(key, kind()), kind):
            raise ValueError(f"{key} is {given[key]!r:.60}; expected a {kind.__name__}")
    if "same_data_as" in given:
        if given["same_data_as"] not in list_protocols():
            known = ", ".join(list_protocols())
            raise ValueError(f"same_data_as is {given['same_data_as']!r}, allowed: {known}")
        shared = _read(FOLDER / f"{given['same_data_as']}.yaml")
        given["layouts"] = shared["layouts"] | given["layouts"]
        given["datasets"] = [*shared["datasets"], *given["datasets"]]
    return given


def _build(name: str, content: dict[str, Any]) -> Protocol:
    entries = [_check(entry, _DATASET, {"name"}, f"datasets[{n}]") for n, entry in enumerate(content["datasets"])]
    if strange := sorted(content["change"].keys() - {entry["name"] for entry in entries}):
        raise ValueError(f"change speaks of {', '.join(strange)}, which is none of the data sets")
    rows = [
        _check(row, {f.name for f in fields(PaperRow)}, {"model", "source"}, f"paper[{n}]")
        for n, row in enumerate(content["paper"])
    ]
    return Protocol(
        **{key: content[key] for key in ("title", "source", "prompts", "average")},
        name=name,
        datasets=tuple(
            _dataset({**content["defaults"], **entry, **content["change"].get(entry["name"], {})}, content["layouts"])
            for entry in entries
        ),
        paper=tuple(PaperRow(**{**row, "scores": tuple(row.get("scores", ()))}) for row in rows),
    )


def _dataset(entry: dict[str, Any], layouts: dict[str, Any]) -> ProtocolDataset:
    name = entry["name"]
    _check(entry, _DATASET, {"layout", "split", "metrics", "score"}, name)
    if (layout := entry["layout"]) not in layouts:
        raise ValueError(f"{name} has layout {layout!r}, allowed: {', '.join(layouts)}")
    files = {}
    for split, place in _check(layouts[layout], None, set(), f"layouts.{layout}").items():
        _check(place, {"annotations", "images"}, {"annotations", "images"}, f"layouts.{layout}.{split}")
        files[split] = Files(**{k: str(path).replace("{folder}", entry.get("folder", "")) for k, path in place.items()})
    wordings = {}
    for category, wording in _check(entry.get("wordings", {}), None, set(), f"wordings of {name}").items():
        _check(wording, {f.name for f in fields(Wording)}, {"name"}, f"the wording of {category} of {name}")
        wordings[category] = Wording(**wording)
    rest = {key: value for key, value in entry.items() if key != "layout"}
    rest |= {key: tuple(entry[key]) for key in ("metrics", "categories") if key in entry}
    return ProtocolDataset(**{**rest, "files": files, "wordings": wordings})


def _check(content: Any, allowed: set[str] | None, needed: set[str], where: str) -> dict[str, Any]:
    """Refuse what is no mapping, or one with other keys."""
    if not isinstance(content, dict):
        raise ValueError(f"{where} is {content!r:.60}; expected keys and values")
    if allowed is not None and (unknown := sorted(map(str, content.keys() - allowed))):
        raise ValueError(f"{where} has {', '.join(unknown)}; allowed: {', '.join(sorted(allowed))}")
    if missing := sorted(needed - content.keys()):
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    return content
