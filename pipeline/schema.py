"""The one place for everything on disk: columns, types, units and the schema version.

Three tables follow the data's way (DESIGN, section 2):

``PAIRS``      what a person brings: a caption and the address of its image
``IMAGES``     the outcome of downloading each pair: an image, or the reason there is none
``GROUNDING``  what everything trains on: an image, its text or categories, and boxes tied to both

Conventions. Boxes are ``xyxy`` in absolute pixels of the stored image, float32, with ``x2`` and ``y2``
exclusive (a box covering a whole ``w`` x ``h`` image is ``[0, 0, w, h]``). ``tokens_positive`` (the name is
MDETR's and GLIP's, and misleads) are ``[begin, end)`` *character* spans of ``text``. Pixels are stored upright:
EXIF orientation is applied before storing. Image bytes never compress, so they carry neither dictionary nor codec.
"""

import json

import pyarrow as pa

SCHEMA_VERSION = 3

SUCCESS, FAILED_TO_DOWNLOAD, FAILED_TO_RESIZE = "success", "failed_to_download", "failed_to_resize"
"""Top-level download statuses; img2dataset's own words, known to its users."""

LABELLED, REJECTED = "labelled", "rejected"
"""Statuses of a pseudo-labelled row. A rejected row keeps its reason and is never dropped."""

OUTCOME = "outcome"
"""Folder name of labels, ``outcome=labelled`` and ``outcome=rejected``: readers of labels need not open rejects."""

DETECTION, GROUND, CAPTION = "det", "ground", "caption"
"""Kinds of grounding row: human boxes with categories, human boxes with phrases, pseudo-labelled caption."""

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""Hugging Face ``Image``: exactly these two fields. ``path`` stays null: readers open it when bytes are null."""

BOX_TYPE = pa.list_(pa.float32(), 4)
SPAN_TYPE = pa.list_(pa.int32(), 2)

ROWS_PER_ROW_GROUP = 128
"""Rows of a parquet row group: bounds the memory of a reader (128 JPEGs of 70 kB are 9 MB)."""

_HUGGING_FACE = {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})}
_VERSION = {"glipv2_schema_version": str(SCHEMA_VERSION)}

PAIRS = pa.schema(
    [
        pa.field("key", pa.int64(), nullable=False),  # position in the pairs file, from 0
        pa.field("url", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("stored", pa.string()),  # where the image already lies, see pipeline.sources.stored; null: fetch url
    ],
    metadata=_VERSION,
)

IMAGES = pa.schema(
    [
        *PAIRS,
        pa.field("status", pa.string(), nullable=False),  # SUCCESS | FAILED_TO_DOWNLOAD | FAILED_TO_RESIZE
        pa.field("reason", pa.string()),  # short_snake_case cause of a failure, null on success
        pa.field("image", IMAGE_TYPE),  # null unless SUCCESS
        pa.field("width", pa.int32()),  # px of the stored image
        pa.field("height", pa.int32()),
        pa.field("original_width", pa.int32()),  # px of the image as fetched, after EXIF transpose
        pa.field("original_height", pa.int32()),
        pa.field("sha256", pa.string()),  # hex digest of the stored bytes
        pa.field("source_sha256", pa.string()),  # hex digest of the bytes as they came; also of a refused image
        pa.field("phash", pa.int64()),  # perceptual hash of the pixels, 64 bits, see pipeline.phash
    ],
    metadata={**_VERSION, **_HUGGING_FACE},
)

GROUNDING = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),  # "<source>/<split>/<id>", unique in a data set
        pa.field("source", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("image", IMAGE_TYPE),  # null only in a row rejected before it had an image
        pa.field("image_uri", pa.string()),  # where the image came from: URL or file name inside the data set
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("kind", pa.string(), nullable=False),  # DETECTION | GROUND | CAPTION
        pa.field("text", pa.string()),  # caption; null for DETECTION, whose prompts are built at load time
        pa.field("phrases", pa.list_(SPAN_TYPE)),  # every noun phrase of text as [begin, end), boxed or not
        pa.field("entity", pa.list_(pa.int32())),  # per phrase: mentions of one entity share a number, counted from 0
        pa.field("boxes", pa.list_(BOX_TYPE)),
        pa.field("tokens_positive", pa.list_(pa.list_(SPAN_TYPE))),  # per box, every mention; null for DETECTION
        pa.field("phrase_index", pa.list_(pa.int32())),  # per box, into phrases; -1 where there is none
        pa.field("category_id", pa.list_(pa.int32())),  # per box, id of the source's vocabulary; -1 otherwise
        pa.field("category", pa.list_(pa.string())),  # per box, its name; "" otherwise
        pa.field("score", pa.list_(pa.float32())),  # per box; 1.0 for human labels
        pa.field("iscrowd", pa.list_(pa.bool_())),
        # Per box its polygons, each x1, y1, x2, y2, … in px of the stored image; none for a box without a mask.
        pa.field("segmentation", pa.list_(pa.list_(pa.list_(pa.float32())))),
        pa.field("neg_category_ids", pa.list_(pa.int32())),  # federated sets: verified absent (LVIS, OpenImages)
        pa.field("not_exhaustive_ids", pa.list_(pa.int32())),  # federated sets: present, not fully boxed
        pa.field("status", pa.string(), nullable=False),  # LABELLED | REJECTED
        pa.field("reason", pa.string()),  # cause of a rejection, null when labelled
        # Provenance of a pseudo-labelled row; null for human labels.
        pa.field("key", pa.int64()),
        pa.field("image_sha256", pa.string()),
        pa.field("source_sha256", pa.string()),  # of the image's bytes as they came
        pa.field("phash", pa.int64()),
        pa.field("teacher", pa.string()),
        pa.field("teacher_sha256", pa.string()),
        pa.field("parser", pa.string()),
        pa.field("parser_version", pa.string()),
        pa.field("score_threshold", pa.float32()),  # boxes below it were not stored
        pa.field("nms_iou", pa.float32()),  # overlap above which the worse of two boxes of one entity was dropped
        pa.field("cross_nms_iou", pa.float32()),  # the same between entities; null: not applied
        pa.field("run_id", pa.string()),
        pa.field("schema_version", pa.int32(), nullable=False),
    ],
    metadata={**_VERSION, **_HUGGING_FACE},
)


def to_table(rows: list[dict[str, object]], schema: pa.Schema) -> pa.Table:
    """Build a table from row dictionaries; a column a row lacks is null.

    Raises:
        ValueError: a row carries a column the schema does not know (a misspelt name would be lost in silence).
    """
    known = set(schema.names)
    for row in rows:
        if unknown := row.keys() - known:
            raise ValueError(f"columns {sorted(unknown)} are not in the schema; allowed: {schema.names}")
    return pa.Table.from_pylist(rows, schema=schema)
