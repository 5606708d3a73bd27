from pathlib import Path

import pytest
from PIL import Image

from glipv2.evaluation.flickr30k import read_entities
from pipeline import schema
from pipeline.miniature.world import World
from pipeline.sources.coco import MISSING_IMAGE, SIZE_MISMATCH, Row
from pipeline.sources.flickr30k import BROKEN_MARKUP, Flickr30kSource, read_flickr30k

WIDTH, HEIGHT = 20, 10
SENTENCE = "[/EN#7/people A man] and [/EN#9/people/clothing his dog] near [/EN#8/scene a lake] ."
TEXT = "A man and his dog near a lake ."
MAN, DOG, LAKE = [0, 5], [10, 17], [23, 29]


def thing(*chains: int, box: tuple[object, ...] = (3, 4, 6, 8)) -> str:
    names = "".join(f"<name>{chain}</name>" for chain in chains)
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object>{names}<bndbox>{corners}</bndbox></object>"


def scene(chain: int) -> str:
    return f"<object><name>{chain}</name><scene>1</scene><nobndbox>1</nobndbox></object>"


def xml(*things: str, width: object = WIDTH) -> str:
    size = f"<size><width>{width}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    return f"<annotation><filename>5.jpg</filename>{size}{''.join(things)}</annotation>"


def write(folder: Path, sentences: str, annotation: str) -> Flickr30kSource:
    for name in ("Sentences", "Annotations", "images"):
        (folder / name).mkdir()
    (folder / "Sentences" / "5.txt").write_text(sentences, encoding="utf-8")
    (folder / "Annotations" / "5.xml").write_text(annotation, encoding="utf-8")
    (folder / "test.txt").write_text("5\n", encoding="utf-8")
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images" / "5.jpg")
    images, ids = folder / "images", folder / "test.txt"
    return Flickr30kSource(annotations=folder, images=images, ids=ids, source="flickr", split="test")


def read(folder: Path, sentence: str, *things: str) -> Row:
    (row,) = read_flickr30k(write(folder, sentence, xml(*things)))
    return row


def test_sentence_becomes_a_grounding_row_without_marks(tmp_path: Path) -> None:
    row = read(tmp_path, SENTENCE, thing(9), thing(7), scene(8))
    assert (row["kind"], row["text"], row["sample_id"]) == (schema.GROUND, TEXT, "flickr/test/5_0")
    assert row["phrases"] == [MAN, DOG, LAKE]
    assert (row["tokens_positive"], row["phrase_index"]) == ([[DOG], [MAN]], [1, 0])
    assert (row["score"], row["category_id"], row["category"]) == ([1.0, 1.0], [-1, -1], ["", ""])
    assert schema.to_table([row], schema.GROUNDING).num_rows == 1


def test_pixels_are_counted_from_one_and_the_last_is_inside(tmp_path: Path) -> None:
    row = read(tmp_path, SENTENCE, thing(7, box=(1, 1, WIDTH, HEIGHT)), thing(9, box=(3, 4, 3, 4)))
    assert row["boxes"] == [[0, 0, WIDTH, HEIGHT], [2, 3, 3, 4]]


def test_sentences_are_rows_numbered_in_the_file(tmp_path: Path) -> None:
    rows = list(read_flickr30k(write(tmp_path, f"{SENTENCE}\n\nNobody .\n", xml(thing(7)))))
    assert [(row["sample_id"], len(row["boxes"])) for row in rows] == [("flickr/test/5_0", 1), ("flickr/test/5_1", 0)]


def test_box_belongs_to_every_mention_of_its_chain(tmp_path: Path) -> None:
    row = read(tmp_path, "[/EN#7/people A man] ties [/EN#7/people his] shoe", thing(7))
    assert (row["tokens_positive"], row["phrase_index"], row["entity"]) == ([[[0, 5], [11, 14]]], [0], [0, 0])


def test_box_of_two_chains_belongs_to_the_mentions_of_both(tmp_path: Path) -> None:
    row = read(tmp_path, SENTENCE, thing(9, 7))
    assert (row["tokens_positive"], row["phrase_index"]) == ([[MAN, DOG]], [0])


def test_chain_may_have_several_boxes(tmp_path: Path) -> None:
    row = read(tmp_path, SENTENCE, thing(9), thing(9, box=(1, 1, 2, 2)))
    assert row["tokens_positive"] == [[DOG], [DOG]]


def test_box_of_a_chain_that_is_not_mentioned_is_left_to_other_sentences(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read(tmp_path, SENTENCE, thing(4))["boxes"] == []
    assert caplog.text == ""


def test_entities_are_numbered_by_first_mention(tmp_path: Path) -> None:
    row = read(tmp_path, "[/EN#9/people A] [/EN#3/people B] [/EN#9/people A] [/EN#1/people C]")
    assert row["entity"] == [0, 1, 0, 2]


def test_phrases_that_cannot_be_seen_are_entities_of_their_own_without_boxes(tmp_path: Path) -> None:
    row = read(tmp_path, "[/EN#0/notvisual It] and [/EN#0/notvisual that]", thing(0))
    assert (row["phrases"], row["entity"], row["boxes"]) == ([[0, 2], [7, 11]], [0, 1], [])


def test_needless_blanks_are_dropped(tmp_path: Path) -> None:
    assert read(tmp_path, "[/EN#7/people  A   man]  sits \r\n")["text"] == "A man sits"


def test_box_without_an_area_is_left_out_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    row = read(tmp_path, SENTENCE, thing(7, box=(WIDTH + 1, 1, WIDTH + 5, 5)), thing(9))
    assert row["tokens_positive"] == [[DOG]]
    assert "left out 1 boxes without an area" in caplog.text


def test_mark_that_does_not_close_rejects_its_sentence(tmp_path: Path) -> None:
    rows = read_flickr30k(write(tmp_path, f"[/EN#7/people A man sits\n{SENTENCE}", xml(thing(7))))
    assert [row.get("reason") for row in rows] == [BROKEN_MARKUP, None]


def test_missing_image_rejects_every_sentence(tmp_path: Path) -> None:
    source = write(tmp_path, f"{SENTENCE}\n{SENTENCE}", xml(thing(7)))
    (tmp_path / "images" / "5.jpg").unlink()
    rows = list(read_flickr30k(source))
    assert [(row["status"], row["reason"], row["text"]) for row in rows] == [(schema.REJECTED, MISSING_IMAGE, TEXT)] * 2


def test_image_of_another_size_is_rejected(tmp_path: Path) -> None:
    (row,) = read_flickr30k(write(tmp_path, SENTENCE, xml(thing(7), width=WIDTH + 1)))
    assert row["reason"] == SIZE_MISMATCH


BOMB = '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (BOMB, "it has a DTD"),
        ("<annotation>", "cannot be read"),
        ("<annotation/>", "cannot be read"),
        (xml(thing(7, box=("a", 1, 2, 3))), "could not convert string to float: 'a'"),
    ],
)
def test_annotation_that_is_none_is_named_in_one_line(tmp_path: Path, annotation: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        list(read_flickr30k(write(tmp_path, SENTENCE, annotation)))
    assert str(tmp_path / "Annotations" / "5.xml") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["test.txt", "Sentences/5.txt", "Annotations/5.xml"])
def test_absent_file_is_named(tmp_path: Path, name: str) -> None:
    source = write(tmp_path, SENTENCE, xml())
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
        list(read_flickr30k(source))


def test_real_sentences_are_read_without_a_mark_left(test_data: Path, tmp_path: Path) -> None:
    folder = test_data / "grounding" / "flickr30k_entities"
    sentences = sorted((folder / "Sentences").glob("*.txt"))
    (tmp_path / "Sentences").symlink_to(folder / "Sentences")
    (tmp_path / "Annotations").mkdir()
    for path in sentences:
        with Image.open(folder / "images" / f"{path.stem}.jpg") as image:
            size = f"<size><width>{image.width}</width><height>{image.height}</height></size>"
        (tmp_path / "Annotations" / f"{path.stem}.xml").write_text(f"<annotation>{size}</annotation>")
    ids = tmp_path / "train.txt"
    ids.write_text("\n".join(path.stem for path in sentences))
    source = Flickr30kSource(annotations=tmp_path, images=folder / "images", ids=ids, source="flickr", split="train")
    rows = list(read_flickr30k(source))
    marks = sum(path.read_text(encoding="utf-8").count("[/EN#") for path in sentences)
    assert [row["status"] for row in rows] == [schema.LABELLED] * 5 * len(sentences)
    assert sum(len(row["phrases"]) for row in rows) == marks
    assert not any(set("[]") & set(row["text"]) for row in rows)
    words = {row["text"][begin:end] for row in rows for begin, end in row["phrases"]}
    assert {"A little girl", "a man 's arm", "it"} <= words


def test_miniature_set_has_the_phrases_that_evaluation_asks_for(world: World) -> None:
    folder, images = world.flickr30k.annotations, world.flickr30k.images
    ids = folder / "test.txt"
    rows = read_flickr30k(Flickr30kSource(annotations=folder, images=images, ids=ids, source="flickr", split="test"))
    boxed = {row["sample_id"]: {tuple(span) for spans in row["tokens_positive"] for span in spans} for row in rows}
    truth = read_entities(folder, ids.read_text(encoding="utf-8").split())
    asked = {f"flickr/test/{image}_{number}": len(phrases) for (image, number), phrases in truth.items()}
    assert {name: len(spans) for name, spans in boxed.items() if spans} == asked
