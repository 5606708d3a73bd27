"""Our download stage in a process of its own, as `processes.run_ours` starts it; it loads no more than a download."""

import time
from collections.abc import Sequence

from pipeline.download import DownloadConfig
from pipeline.download import download as run_download
from pipeline.fetch import FetchConfig
from pipeline.isolation import Limits
from pipeline.progress import Report
from pipeline.session import ray_session
from pipeline.storage import Place
from tests.bench.processes import answer

REPORT_EVERY_S = 10.0


def download(
    pairs: str, out: str, places: Sequence[str], num_actors: int, decoders: int, blocks: tuple[int, int]
) -> dict[str, float]:
    """Download as img2dataset is told to: short side 384, nothing about the long one, quality 95."""
    cfg = collecting_config(places, num_actors=num_actors, decoders=decoders, blocks=blocks)
    with ray_session():
        manifest = run_download(cfg, Place.of(pairs), Place.of(out), on_progress=shout("ours"))
    return {"kept": manifest.rows_out, "stage_s": manifest.seconds}


def collecting_config(
    places: Sequence[str], num_actors: int = 1, decoders: int = 2, blocks: tuple[int, int] = (500, 4)
) -> DownloadConfig:
    return DownloadConfig(
        image_size_px=384,
        max_side_px=100_000,
        encode_quality=95,
        fetch=FetchConfig(allow_hosts=tuple(places), max_per_host=128),
        decode=Limits(processes=decoders),
        num_actors=num_actors,
        rows_per_block=blocks[0],
        blocks_per_actor=blocks[1],
    )


def shout(name: str) -> Report:
    """Make a report that prints now and then."""
    last = time.monotonic()

    def report(done: int, total: int, note: str) -> None:
        nonlocal last
        if time.monotonic() - last > REPORT_EVERY_S:
            last = time.monotonic()
            print(f"    {name}: {done}/{total} {note}", flush=True)

    return report


if __name__ == "__main__":
    answer(download)
