"""One worker of `test_criterion`: the losses of its share of a batch, in a process of its own."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed

from glipv2.losses.criterion import Criterion


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    cfg, regions, batch = torch.load(folder / f"share{rank}.pt", weights_only=False)
    losses = Criterion(cfg).grounding(regions, batch)
    (folder / f"losses{rank}.json").write_text(json.dumps({k: v.item() for k, v in losses.items()}), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
