"""One worker of `test_trainer`: trains as Ray Train would have it, in a process of its own, by each plan in turn.

In a plan that begins with ``skips`` the second worker's second forward pass gives no numbers.
"""

import math
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed
from ray.train import Checkpoint

import pipeline.trainer
from pipeline.trainer import Trainee


def main(folder: Path, rank: int) -> None:
    plans: dict[str, Any] = pickle.loads((folder / "plans.pickle").read_bytes())
    pipeline.trainer.get_device = lambda: torch.device("cpu")
    alone = {name: plan for name, plan in plans.items() if name.startswith("alone")}
    if rank == 0:
        carry_out(folder, alone, (0, 1))
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    carry_out(folder, {name: plan for name, plan in plans.items() if name not in alone}, (rank, 2))
    os._exit(0)  # torch 2.15 spins for ever in the interpreter's end where a device mesh was made over gloo


def carry_out(folder: Path, plans: dict[str, Any], place: tuple[int, int]) -> None:
    for name, (cfg, inputs, start) in plans.items():
        losses, skipped = [], []

        def keep(metrics: dict[str, Any], checkpoint: Checkpoint | None, name: str = name, **_: object) -> None:
            if checkpoint is not None:
                shutil.copytree(checkpoint.path, folder / name / str(metrics["step"]), dirs_exist_ok=True)
                shutil.rmtree(checkpoint.path)  # as Ray does

        ray.train.report = keep
        given = Checkpoint.from_directory(str(folder / start)) if start else None
        ray.train.get_checkpoint = lambda given=given: given
        trainee = Trainee(cfg, inputs, place)
        if name.startswith("skips") and place[0] == 1:
            spoil(trainee)
        for account in trainee.train():
            losses.append(account["loss"])
            skipped.append(account["skipped_steps"])
            if trainee.step % cfg.checkpoint_every == 0:
                trainee.report({"step": trainee.step}, validation=False)
        (folder / f"{name}-{place[0]}.pickle").write_bytes(pickle.dumps((losses, skipped)))
        if place[1] > 1:
            torch.distributed.barrier()


def spoil(trainee: Trainee) -> None:
    def no_number(_: object, __: object, output: torch.Tensor) -> torch.Tensor:
        return output * math.nan if trainee.step == 1 else output

    trainee.model.text_encoder.register_forward_hook(no_number)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
