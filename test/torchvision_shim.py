"""Import this before transformers: it lets the PyPI torchvision (a CUDA build) load beside a CPU-only torch.

torchvision registers fake kernels for two operators of its CUDA library on import; declaring the operators is enough,
since transformers uses only its resize and normalize, which are plain torch.
"""

import torch

LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
for operator in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, operator):
        LIBRARY.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
