from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import schema
from pipeline.download import DownloadConfig, download
from pipeline.flow import reaching
from pipeline.miniature.server import serve
from pipeline.miniature.world import World
from pipeline.pseudo_label import LabelPlan, PseudoLabelConfig, downloaded, pseudo_label
from pipeline.shards import Manifest, open_rows, read_manifest
from pipeline.sources.pairs import PairsConfig, import_pairs
from pipeline.storage import Place

pytestmark = pytest.mark.ray

LABEL = PseudoLabelConfig(source="web", min_score=0.3, rows_per_block=16)


@pytest.fixture(scope="module")
def images(ray_session: None, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captions")
    import_pairs(PairsConfig(path=world.web_pairs), folder / "pairs.parquet")
    with serve(world, world.config.port):
        place = Place.of(folder)
        download(reaching(world, DownloadConfig(image_size_px=128)), place / "pairs.parquet", place / "images")
    return folder / "images"


def label(cfg: PseudoLabelConfig, teacher: Path, images: Path, out: Path, run_id: str = "") -> Manifest:
    plan = LabelPlan(cfg=cfg, teacher=str(teacher))
    return pseudo_label(plan, downloaded(Place.of(images)), Place.of(out), run_id=run_id)


@pytest.fixture(scope="module")
def labelled(images: Path, eager_model: Path) -> tuple[Manifest, Path]:
    out = images.parent / "labels"
    return label(LABEL, eager_model, images, out, "run"), out


def labels_files(out: Path) -> list[Path]:
    return sorted(out.rglob("*.parquet"))


def rows(folder: Path, status: str) -> list[dict[str, object]]:
    return [row for row in open_rows(folder).to_table().to_pylist() if row["status"] == status]


def test_every_row_of_the_download_ends_labelled_or_rejected_with_a_reason(
    labelled: tuple[Manifest, Path], images: Path
) -> None:
    manifest, out = labelled
    given = read_manifest(images)
    assert given is not None
    assert manifest.rows_in == given.rows_in == open_rows(out).count_rows()
    assert sorted(row["key"] for row in open_rows(out).to_table(["key"]).to_pylist()) == list(range(given.rows_in))
    assert manifest.rows_out > 0
    assert all(row["reason"] for row in rows(out, schema.REJECTED))


def test_download_failures_keep_their_reason(labelled: tuple[Manifest, Path]) -> None:
    assert labelled[0].rejects["failed_to_download:http_404"] >= 1


def test_a_caption_without_a_phrase_is_rejected_for_that(labelled: tuple[Manifest, Path]) -> None:
    rejects = labelled[0].rejects
    assert rejects.keys() & {"no_phrase", "empty_caption", "caption_too_short"}


def test_labels_are_written_in_the_schema_and_apart_from_rejects(labelled: tuple[Manifest, Path]) -> None:
    out = labelled[1]
    assert open_rows(out).schema.equals(schema.GROUNDING)
    assert schema.GROUNDING.metadata.items() <= open_rows(out).schema.metadata.items()
    assert {row["status"] for row in open_rows(out / "outcome=labelled").to_table().to_pylist()} == {schema.LABELLED}


def test_boxes_lie_inside_the_stored_image_and_reach_the_stored_score(labelled: tuple[Manifest, Path]) -> None:
    for row in rows(labelled[1], schema.LABELLED):
        for x1, y1, x2, y2 in row["boxes"]:  # type: ignore[attr-defined]
            assert 0 <= x1 <= x2 <= row["width"]  # type: ignore[operator]
            assert 0 <= y1 <= y2 <= row["height"]  # type: ignore[operator]
        assert min(row["score"]) >= LABEL.min_score  # type: ignore[call-overload]


def test_a_box_is_tied_to_the_characters_of_its_phrase(labelled: tuple[Manifest, Path]) -> None:
    for row in rows(labelled[1], schema.LABELLED):
        owners = [row["phrases"][index] for index in row["phrase_index"]]  # type: ignore[attr-defined,index]
        assert [spans[0] for spans in row["tokens_positive"]] == owners  # type: ignore[attr-defined]


def test_every_label_says_where_it_came_from(labelled: tuple[Manifest, Path]) -> None:
    row = rows(labelled[1], schema.LABELLED)[0]
    assert all(row[name] for name in ("image_uri", "image_sha256", "teacher", "teacher_sha256", "parser", "run_id"))
    assert row["score_threshold"] == pytest.approx(LABEL.min_score)


def test_the_same_labels_are_not_made_twice(labelled: tuple[Manifest, Path], images: Path, eager_model: Path) -> None:
    before = [path.stat().st_mtime_ns for path in labels_files(labelled[1])]
    assert label(LABEL, eager_model, images, labelled[1]).files == labelled[0].files
    assert [path.stat().st_mtime_ns for path in labels_files(labelled[1])] == before


def test_the_same_inputs_give_the_same_rows(
    labelled: tuple[Manifest, Path], images: Path, eager_model: Path, tmp_path: Path
) -> None:
    again = label(replace(LABEL, num_teachers=2), eager_model, images, tmp_path / "again", "run")
    assert again.content_hash == labelled[0].content_hash


def test_another_threshold_is_not_mixed_into_the_same_output(
    labelled: tuple[Manifest, Path], images: Path, eager_model: Path
) -> None:
    with pytest.raises(ValueError, match=r"label\.min_score was 0.3, now 0.5"):
        label(replace(LABEL, min_score=0.5), eager_model, images, labelled[1])


def test_a_folder_that_is_no_teacher_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model folder"):
        label(LABEL, tmp_path, images, tmp_path / "out")


def test_labels_begun_for_machines_that_are_not_there_go_on_on_others(
    images: Path, eager_model: Path, tmp_path: Path
) -> None:
    elsewhere = replace(LABEL, node_resource="label")
    with pytest.raises(ValueError, match="no machine with the resource 'label'"):
        label(elsewhere, eager_model, images, tmp_path / "labels")
    assert not labels_files(tmp_path / "labels")
    made = label(LABEL, eager_model, images, tmp_path / "labels")
    assert label(elsewhere, eager_model, images, tmp_path / "labels") == made  # finished: read, wherever it was made
