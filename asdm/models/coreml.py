"""A UNet as a Core ML program, with a script beside it that compares and times it on a Mac.

coremltools converts on Linux too, but only macOS runs the result.
"""

import contextlib
import importlib.util
import io
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._decomp import get_decompositions

from asdm.measure.backends._onnx import OUTPUT, Call
from asdm.utils import console

MODEL, SCRIPT, CHECK = "model.mlpackage", "latency.py", "check.npz"
PRECISIONS = {"fp32": "FLOAT32", "fp16": "FLOAT16"}


def check(dtype: str) -> None:
    """Raises ValueError for a dtype that Core ML does not compute in, and where coremltools is not installed."""
    if dtype not in PRECISIONS:
        raise ValueError(f"coreml computes in {' or '.join(PRECISIONS)}, got {dtype}.")
    if importlib.util.find_spec("coremltools") is None:
        raise ValueError(
            "coreml needs the package 'coremltools', which is not installed; pip install 'asdm-prof[coreml]'."
        )


def write(unet: nn.Module, inputs: dict[str, Any], folder: Path, dtype: str, metadata: Mapping[str, str]) -> None:
    """Convert one call of `unet`, in fp32 on the CPU, to a program that computes in `dtype` at these shapes.

    The folder gets the program, PyTorch's output for these inputs, and the script. Raises ValueError where the
    conversion fails.
    """
    call = Call(unet, inputs).eval()
    with torch.no_grad():
        expected = call(*call.tensors)
        # not strict, as torch 2.8 is by default: Dynamo cannot trace the hooks of a student
        exported = torch.export.export(call, call.tensors, strict=False).run_decompositions(
            get_decompositions([torch.ops.aten.addcmul])  # which coremltools has no operation for
        )
    with _quiet():
        import coremltools

        try:
            model = coremltools.convert(
                exported,
                outputs=[coremltools.TensorType(name=OUTPUT)],
                convert_to="mlprogram",
                compute_precision=getattr(coremltools.precision, PRECISIONS[dtype]),
                minimum_deployment_target=coremltools.target.macOS14,
                skip_model_load=True,
            )
        except Exception as error:  # coremltools has no errors of its own
            first = console.first_line(error)
            raise ValueError(f"coremltools cannot convert {type(unet).__name__}: {first[:200]}.") from None
        spec = model.get_spec()
        for i, name in enumerate(call.names):
            coremltools.utils.rename_feature(spec, spec.description.input[i].name, name, rename_outputs=False)
        model = coremltools.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True)
        model.user_defined_metadata.update(metadata)
        model.save(str(folder / MODEL))
    np.savez(folder / CHECK, **call.feed(), **{OUTPUT: expected.numpy()})
    shutil.copyfile(Path(__file__).with_name("coreml_latency.py"), folder / SCRIPT)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep coremltools' progress bars and its warnings about untested versions off the terminal."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    with contextlib.redirect_stderr(io.StringIO()):
        yield
