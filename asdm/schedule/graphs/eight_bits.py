"""Graphs in 8 bits by the runtimes' own quantisers: NNCF for OpenVINO, ONNX Runtime's dynamic one for itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asdm.records.build import PassGraphFile
from asdm.utils import registry

SAMPLES = 4  # calls whose ranges NNCF takes
Feeds = Mapping[str, Sequence[Mapping[str, Any]]]  # file → what it was called with


def check(runtime: str) -> None:
    """Raises ValueError for a runtime without a quantiser, and where NNCF is not installed."""
    if runtime not in ("onnxruntime", "openvino"):
        raise ValueError(f"{runtime} has no 8 bits here; choose from onnxruntime, openvino.")
    if runtime == "openvino":
        try:
            import nncf  # noqa: F401
        except ImportError:
            raise ValueError("8 bits in OpenVINO need the package nncf: pip install 'asdm-prof[quantize]'.") from None


def quantise(
    runtime: str, source: Path, files: Sequence[PassGraphFile], feeds: Feeds, folder: Path
) -> tuple[PassGraphFile, ...]:
    """Write the graphs of `source` in 8 bits into `folder`.

    OpenVINO: weights and activations of convolutions and products, their ranges from `feeds`, by NNCF without its
    correction of biases, which takes an inference per layer. ONNX Runtime: weights of products, and their activations
    as they come; its convolutions in 8 bits are slower than in fp32 on a CPU.
    """
    check(runtime)
    return tuple(
        file.model_copy(update={"file": _written(runtime, source / file.file, feeds[file.file], folder / f"pass-{n}"),
                                "difference": None})
        for n, file in enumerate(files)
    )  # fmt: skip


def _written(runtime: str, model: Path, feeds: Sequence[Mapping[str, Any]], folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    if runtime == "onnxruntime":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        target = folder / model.name
        quantize_dynamic(
            model, target, op_types_to_quantize=["MatMul", "Gemm"], weight_type=QuantType.QInt8,
            use_external_data_format=True, extra_options={"MatMulConstBOnly": True},
        )  # fmt: skip
    else:
        import nncf

        backend: Any = registry.load("asdm.measure.backends", "openvino")
        target = folder / backend.IR
        quantised = nncf.quantize(
            backend.ov.Core().read_model(model),
            nncf.Dataset(list(feeds)),
            subset_size=len(feeds),
            model_type=nncf.ModelType.TRANSFORMER,
            advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=True),
        )
        backend.ov.save_model(quantised, target, compress_to_fp16=False)
    return f"{folder.name}/{target.name}"
