"""One of two processes that train together; run by test_trainer."""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.text.test_trainer import SHARED, pair, trainer, weights, without_dropout

    training = without_dropout(trainer(folder / "two", pair(), **SHARED, per_device_train_batch_size=2))
    training.train()
    assert isinstance(training.model_wrapped, DistributedDataParallel)
    if training.is_world_process_zero():
        save_file(weights(training.distiller), folder / "two.safetensors")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    # All is said. At the interpreter's own end, threads of the process group were seen to abort it now and then.
    os._exit(0)
