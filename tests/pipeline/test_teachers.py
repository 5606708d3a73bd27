import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from safetensors.torch import load_file, save_file

from glipv2 import checkpoint
from glipv2.text.tokenizer import CharSpan
from pipeline.teachers import Found, Teacher, TeacherConfig, load_teacher, teacher_identity

ANYTHING = TeacherConfig(min_score=0.0, nms_iou=1.0, max_boxes=1000)
FAMILIES = ("grounding-dino", "mm-grounding-dino")
WORDS = ["a", "red", "ring", "left", "of", "blue", "star", "moon"]
SPECIAL = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
"""Where BERT has them: the models know them by these numbers."""
QUERIES, MAX_TOKENS = 20, 24
CAPTION = "A red ring left of a blue star"
RING: list[CharSpan] = [(2, 10)]
STAR: list[CharSpan] = [(21, 30)]


def noise(seed: int, size: tuple[int, int]) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def write_vocabulary(file: Path) -> None:
    lines = [f"[unused{i}]" for i in range(1100)]
    for word, number in {**SPECIAL, **{word: 200 + i for i, word in enumerate(WORDS)}}.items():
        lines[number] = word
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def save_detector(family: str, folder: Path) -> Path:
    """Save a small detector with random weights as a person would save a real one."""
    import transformers as hf

    folder.mkdir(parents=True)
    write_vocabulary(folder / "vocab.txt")
    tokenizer = hf.BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=True)
    text = hf.BertConfig(
        vocab_size=1100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    image = hf.SwinConfig(
        image_size=32, embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=4, out_indices=[2, 3, 4]
    )
    config, model = {
        "grounding-dino": (hf.GroundingDinoConfig, hf.GroundingDinoForObjectDetection),
        "mm-grounding-dino": (hf.MMGroundingDinoConfig, hf.MMGroundingDinoForObjectDetection),
    }[family]
    torch.manual_seed(0)
    small = config(
        backbone_config=image,
        text_config=text,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=QUERIES,
        max_text_len=MAX_TOKENS,
    )
    model(small).save_pretrained(folder)
    processor = hf.GroundingDinoImageProcessor(size={"shortest_edge": 96, "longest_edge": 150})
    hf.GroundingDinoProcessor(processor, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("detectors")
    return {family: save_detector(family, root / family) for family in FAMILIES}


@pytest.fixture(scope="module", params=[*FAMILIES, "ours"])
def folder(request: pytest.FixtureRequest, folders: dict[str, Path], eager_model: Path) -> Path:
    return eager_model if request.param == "ours" else folders[request.param]


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Teacher:
    return load_teacher(str(folder), ANYTHING)


@pytest.fixture(scope="module")
def dino(folders: dict[str, Path]) -> Any:
    return load_teacher(str(folders["grounding-dino"]), ANYTHING)


def assert_same(first: Found, second: Found) -> None:
    """Each box has its like in the other; of equal scores, which is first hangs on the processor's last digit."""
    torch.testing.assert_close(torch.tensor(first.scores), torch.tensor(second.scores), rtol=1e-4, atol=1e-5)
    one, other = (
        torch.tensor([(*box, 1e3 * score) for box, score in zip(f.boxes_xyxy, f.scores, strict=True)])
        for f in (first, second)
    )
    near = torch.isclose(one[:, None], other[None], rtol=1e-4, atol=1e-2).all(2)
    near &= torch.tensor(first.entities)[:, None] == torch.tensor(second.entities)[None]
    assert near.any(0).all()
    assert near.any(1).all()


def test_a_teacher_answers_best_first_within_the_image(teacher: Teacher) -> None:
    [found] = teacher.ground([noise(0, (120, 70))], [CAPTION], [[RING, STAR]])
    assert isinstance(teacher, Teacher)
    assert found.finite
    assert found.scores == sorted(found.scores, reverse=True)
    assert {*found.entities} == {0, 1}
    for x1, y1, x2, y2 in found.boxes_xyxy:
        assert 0 <= x1 <= x2 <= 120
        assert 0 <= y1 <= y2 <= 70


def test_what_is_found_depends_on_no_other_image_or_text(teacher: Teacher) -> None:
    images = [noise(1, (100, 90)), noise(2, (100, 80)), noise(3, (60, 100)), noise(4, (100, 86))]
    captions = [CAPTION, "a moon", CAPTION, "a star? a moon. red"]
    entities = [[RING, STAR], [[(2, 6)]], [STAR], [[(2, 6)], [(10, 14)]]]
    together = teacher.ground(images, captions, entities)
    assert len({teacher.padded_size(image.size) for image in images}) == 2
    for alone, found in zip(zip(images, captions, entities, strict=True), together, strict=True):
        assert_same(teacher.ground(*([one] for one in alone))[0], found)


def test_an_entity_is_scored_by_all_its_mentions(teacher: Teacher) -> None:
    caption = "a red ring left of a red ring"
    image, first, second = noise(0, (90, 90)), (2, 10), (21, 29)
    whole = teacher.ground([image], [caption], [[[first, second]]])[0]
    apart = [teacher.ground([image], [caption], [[[span]]])[0] for span in (first, second)]
    assert whole.scores[0] != pytest.approx(apart[0].scores[0], abs=1e-7)
    assert max(whole.scores) <= max(apart[0].scores[0], apart[1].scores[0]) + 1e-6


def test_mentions_beyond_the_longest_text_are_left_out(teacher: Teacher) -> None:
    caption = "a ring " + "left of a " * 100 + "star"
    star = (len(caption) - 4, len(caption))
    both, none = teacher.ground([noise(0, (90, 90))] * 2, [caption] * 2, [[[(2, 6)], [star]], [[star]]])
    assert {*both.entities} == {0}
    assert (none.boxes_xyxy, none.scores, none.finite) == ([], [], True)
    assert_same(both, teacher.ground([noise(0, (90, 90))], [caption], [[[(2, 6), star]]])[0])


def test_suppression_is_by_entity(folder: Path) -> None:
    strict = load_teacher(str(folder), TeacherConfig(min_score=0.0, nms_iou=0.0))
    [found] = strict.ground([noise(0, (90, 90))], [CAPTION], [[RING, STAR]])
    for entity in (0, 1):
        own = torch.tensor([box for box, n in zip(found.boxes_xyxy, found.entities, strict=True) if n == entity])
        assert len(own)
        corners = torch.maximum(own[:, None, :2], own[None, :, :2]), torch.minimum(own[:, None, 2:], own[None, :, 2:])
        shared = (corners[1] - corners[0]).clamp(min=0).prod(2).fill_diagonal_(0)
        assert shared.max() < 1e-3


def test_broken_weights_are_told(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(folders["grounding-dino"], folder)
    weights = load_file(folder / "model.safetensors")
    broken = {k: v * float("nan") if k.startswith("model.text_projection") else v for k, v in weights.items()}
    save_file(broken, folder / "model.safetensors", {"format": "pt"})
    [found] = load_teacher(str(folder), ANYTHING).ground([noise(0, (90, 90))], [CAPTION], [[RING]])
    assert not found.finite


def test_bfloat16_finds_about_the_same(folders: dict[str, Path]) -> None:
    wishes = [TeacherConfig(min_score=0.0, nms_iou=1.0, bf16=on) for on in (False, True)]
    best = [
        load_teacher(str(folders["mm-grounding-dino"]), cfg).ground([noise(0, (90, 90))], [CAPTION], [[RING]])[0]
        for cfg in wishes
    ]
    assert best[0].scores[0] == pytest.approx(best[1].scores[0], rel=0.2)
    assert best[0].scores != best[1].scores


def test_captions_become_the_tokens_their_processor_would_make(dino: Any) -> None:
    encoding = dino._encode(CAPTION)
    assert encoding.ids == dino.tokenizer(CAPTION.lower() + ".")["input_ids"]
    assert dino._encode(CAPTION + ".").ids[:-2] == encoding.ids[:-1]
    assert [CAPTION[b:e] for b, e in encoding.offsets[1:-2]] == CAPTION.split()


def test_letters_that_grow_in_lower_case_shift_no_span(dino: Any) -> None:
    caption = "İİ red ring"
    assert dino._encode(caption).offsets[-4:-2] == [(3, 6), (7, 11)]


def test_a_cut_caption_still_ends_in_a_full_stop(dino: Any) -> None:
    encoding = dino._encode("red ring " * 40)
    assert encoding.cut
    assert len(encoding.ids) == MAX_TOKENS
    assert encoding.ids[-2:] == [SPECIAL["."], SPECIAL["[SEP]"]]


def test_a_phrase_is_scored_by_the_mean_of_its_tokens_in_pixels_of_the_image(dino: Any) -> None:
    logits = torch.full((2, MAX_TOKENS), -20.0)
    logits[0, [2, 3]] = torch.tensor([0.0, 20.0])
    boxes = torch.tensor([[0.5, 0.5, 0.5, 1.0], [0.5, 0.5, 1.0, 1.0]])
    found = dino._choose(logits, boxes, [[], [2, 3]], (200, 100))
    assert found.scores[0] == pytest.approx(0.75)
    assert found.boxes_xyxy[0] == [50, 0, 150, 100]
    assert {*found.entities} == {1}


def test_pixels_are_those_of_the_processor(dino: Any) -> None:
    image = noise(0, (50, 50))
    expected = dino.processor(images=image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(dino._prepare(image), expected)
    assert dino.padded_size((50, 50)) == (96, 96)


def test_the_network_is_told_what_is_padding(dino: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    forward = dino.model.forward

    def listen(**given: torch.Tensor) -> Any:
        seen.update(given)
        return forward(**given)

    monkeypatch.setattr(dino.model, "forward", listen)
    images = [noise(0, (100, 90)), noise(1, (100, 86))]
    dino.ground(images, [CAPTION, "a moon"], [[RING], [[(2, 6)]]])
    assert seen["pixel_values"].shape[2:] == (96, 128)
    assert [mask.any(1).sum().item() for mask in seen["pixel_mask"]] == [96, 96]
    assert [mask.any(0).sum().item() for mask in seen["pixel_mask"]] == [106, 111]
    assert seen["attention_mask"].sum(1).tolist() == [len(dino._encode(text).ids) for text in (CAPTION, "a moon")]


def test_a_teacher_is_known_by_its_weights_without_loading_it(
    folders: dict[str, Path], eager_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.Module, "__init__", lambda *_: pytest.fail("built a model"))
    for family, folder in folders.items():
        weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        assert teacher_identity(str(folder)) == (family, weights)
    assert teacher_identity(str(eager_model)) == (eager_model.parent.name, checkpoint.weights_sha256(eager_model))


def test_weights_in_several_files_have_one_hash(folders: dict[str, Path], tmp_path: Path) -> None:
    one = folders["grounding-dino"]
    for number in (1, 2):
        shutil.copytree(one, tmp_path / "two", dirs_exist_ok=True)
        (tmp_path / "two" / f"model-0000{number}.safetensors").write_bytes(bytes([number]))
    first = teacher_identity(str(tmp_path / "two"))[1]
    (tmp_path / "two" / "model-00002.safetensors").write_bytes(b"other")
    assert len({teacher_identity(str(one))[1], first, teacher_identity(str(tmp_path / "two"))[1]}) == 3


def test_a_repository_on_the_hub_is_a_teacher(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision))
        return str(folders["mm-grounding-dino"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert load_teacher("owner/detector@v1.0", ANYTHING).name == "owner/detector"
    assert teacher_identity("owner/detector") == ("owner/detector", teacher_identity(snapshot("", None, []))[1])
    assert asked[:2] == [("owner/detector", "v1.0"), ("owner/detector", None)]


def test_a_hub_out_of_reach_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("Cannot find the requested files.\nTry again.")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(
        OSError, match=r"^cannot get the teacher owner/detector from the hub: .* give the folder"
    ) as told:
        teacher_identity("owner/detector")
    assert "\n" not in str(told.value)


Spoil = Callable[[Path], object]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: (f / "config.json").write_text(json.dumps({"model_type": "detr"})),
            r"of type 'detr', but .* only grounding-dino and mm-grounding-dino .*; give one of those",
        ),
        (lambda f: (f / "config.json").write_text("{"), r"config.json is damaged: .*; save the model again"),
        (lambda f: (f / "config.json").unlink(), r"is no model folder: it lacks config.json"),
        (lambda f: (f / "model.safetensors").unlink(), r"holds no weights in safetensors; save the model again"),
        (
            lambda f: [p.unlink() for p in (*f.glob("*token*"), f / "vocab.txt")],
            r"holds no tokenizer \(tokenizer.json or vocab.txt\); save the processor beside",
        ),
        (lambda f: (f / "processor_config.json").unlink(), r"cannot be loaded: .*again"),
    ],
)
def test_a_folder_that_is_no_teacher_is_refused_in_one_line(
    folders: dict[str, Path], tmp_path: Path, spoil: Spoil, message: str
) -> None:
    shutil.copytree(folders["grounding-dino"], tmp_path / "spoilt")
    spoil(tmp_path / "spoilt")
    with pytest.raises(ValueError, match=message) as told:
        load_teacher(str(tmp_path / "spoilt"), ANYTHING)
    assert "\n" not in str(told.value)


def test_a_file_of_weights_is_sent_to_the_converter(tmp_path: Path) -> None:
    (tmp_path / "glip.pth").touch()
    with pytest.raises(ValueError, match=r"is a file; make a model folder of weights with jobs.convert"):
        teacher_identity(str(tmp_path / "glip.pth"))


@pytest.mark.parametrize("ref", ["", "/not/there", "tests", "s3://bucket/model", "teacher"])
def test_what_is_nowhere_is_refused(ref: str) -> None:
    with pytest.raises(ValueError, match=r"there is no teacher at .*; give a model folder's absolute path"):
        teacher_identity(ref)
