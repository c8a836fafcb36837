"""Run by itself, with torch and nothing else: what a program of torch.export says of some batches.

usage: python run_pt2.py MODEL INPUTS OUTPUTS; the files are numpy's .npz, their arrays are called BATCH/NAME. A batch
whose only array is called ``images`` is given as it is, others by their names.
"""

import sys

import numpy as np
import torch


def main(model: str, inputs: str, outputs: str) -> None:
    torch.set_num_threads(1)
    network = torch.export.load(model).module()
    batches: dict[str, dict[str, torch.Tensor]] = {}
    with np.load(inputs, allow_pickle=False) as file:
        for key in file.files:
            batch, _, name = key.partition("/")
            batches.setdefault(batch, {})[name] = torch.from_numpy(file[key])
    with torch.no_grad():
        said = {
            batch: (network(named["images"]) if list(named) == ["images"] else network(**named)).numpy()
            for batch, named in batches.items()
        }
    np.savez(outputs, **said)


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.exit("blockkd had to be imported" if "blockkd" in sys.modules else 0)
