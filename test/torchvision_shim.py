"""Import this before transformers: it lets torchvision be imported beside any torch.

torchvision registers fake kernels for two operators of its compiled library on import. Where that library loads (both from
one build), it defines them itself, and a second definition would end the process. Where it does not (PyPI's torchvision,
a CUDA build, beside a CPU-only torch), declaring the operators is enough: transformers uses only torchvision's resize and
normalize, which are plain torch.
"""

import ctypes
import importlib.util
from pathlib import Path

import torch

FOUND = importlib.util.find_spec("torchvision")
LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
if FOUND and FOUND.origin:
    try:
        for compiled in Path(FOUND.origin).parent.glob("_C*.so"):
            ctypes.CDLL(str(compiled))
    except OSError:  # a library that it was linked with is not here
        pass
if not hasattr(torch.ops.torchvision, "nms"):
    for operator in ("nms", "qnms"):
        LIBRARY.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
