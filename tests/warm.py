"""Imported by the server of forked commands, and by the suite: what a training command imports late, and the first
call on the meta device, for which torch takes a quarter of a second in each process.

None of it ever goes, and accelerate has the garbage collector look through everything after each training."""

import gc

from accelerate import Accelerator  # noqa: F401
from diffusers import AutoencoderKL, StableDiffusionPipeline  # noqa: F401
from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

from asdm.distill import run  # noqa: F401
from asdm.models.families import load_family
from asdm.models.loading import meta_unet

meta_unet(load_family("mini"))
gc.freeze()
