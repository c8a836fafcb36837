"""Run by itself, with no torch and no blockkd: what onnxruntime says of some batches.

usage: python run_onnx.py MODEL INPUTS OUTPUTS; the files are numpy's .npz, their arrays are called BATCH/NAME.
"""

import sys

import numpy as np
import onnxruntime


def main(model: str, inputs: str, outputs: str) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    batches: dict[str, dict[str, np.ndarray]] = {}
    with np.load(inputs, allow_pickle=False) as file:
        for key in file.files:
            batch, _, name = key.partition("/")
            batches.setdefault(batch, {})[name] = file[key]
    np.savez(outputs, **{batch: session.run(None, named)[0] for batch, named in batches.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
    strange = {"torch", "blockkd"} & sys.modules.keys()
    sys.exit(f"{', '.join(strange)} had to be imported" if strange else 0)
