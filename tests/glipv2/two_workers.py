"""One worker of `test_criterion`: forward and backward of its shares of some batches, in a process of its own."""

import sys
from pathlib import Path

import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

from glipv2.losses.criterion import Criterion
from glipv2.model.glipv2 import GLIPv2
from glipv2.train import backward, freeze_untaught


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = []
    for cfg, losses, weights, shares in torch.load(folder / "cases.pt", weights_only=False):
        model, criterion = GLIPv2(cfg).eval(), Criterion(cfg, losses)
        model.load_state_dict(weights)
        freeze_untaught(model, criterion)
        values = backward(DistributedDataParallel(model), criterion, shares[rank])
        found.append((values, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}))
    torch.save(found, folder / f"found{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
