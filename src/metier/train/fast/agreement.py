"""Whether kernels of our own (`kernels` on a GPU, `native` on a CPU) give what torch's own operations give: asked once,
before any is used, on the machine that is to use them.
"""

from types import ModuleType

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

NEAR = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""The largest difference that counts as none, of numbers around 1."""


def agree(kernels: ModuleType, device: torch.device, dtype: torch.dtype = torch.float32) -> bool:
    """Whether each of the kernels does, on numbers of that type."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        return all(
            a is not None and a.shape == b.shape and bool((a.float() - b.float()).abs().max() <= near)
            for a, b, near in _compared(kernels, device, dtype)
        )


def _compared(
    kernels: ModuleType, device: torch.device, dtype: torch.dtype
) -> list[tuple[Tensor | None, Tensor, float]]:
    """What a kernel gave, what torch gives, and how far they may be apart."""
    own = torch.Generator().manual_seed(0)
    x, y, g = (torch.randn(5, 24, generator=own).to(device, dtype) for _ in range(3))
    weight = (torch.rand(24, generator=own) + 0.5).to(device).requires_grad_()
    targets, half = torch.tensor([0, 7, 23, 5, 1], device=device), x[:, :12]
    cos, sin = (f(torch.cat([half, half], 1)) for f in (torch.cos, torch.sin))
    turned = x * cos + torch.cat([-x[:, 12:], x[:, :12]], 1) * sin
    rounded, scales = kernels.quantized_together([x[:, :8], x[:, 8:]], [weight.detach()[:8], weight.detach()[8:]])
    scores = x.clone()
    one, two, three, four = (t.detach().float().requires_grad_() for t in (x, x, y, x))
    norm = F.rms_norm(one, (24,), weight, 1e-5)
    gated = F.silu(two) * three
    loss = F.cross_entropy(four, targets, reduction="sum", label_smoothing=0.1)
    of_x, of_weight = torch.autograd.grad(norm, (one, weight), g.float())
    of_loss = kernels.to_gradient(scores, targets, None, 0.1, needed=True)
    near = NEAR[dtype]
    pairs = [
        (kernels.rms(x, weight.detach(), 1e-5, dtype), norm),
        *zip(kernels.rms_again(g, x, weight, 1e-5), (norm, of_x, of_weight), strict=True),
        (kernels.swiglu(x, y), gated),
        *zip(kernels.swiglu_again(g, x, y), (gated, *torch.autograd.grad(gated, (two, three), g.float())), strict=True),
        (kernels.rotated(x[:, None], cos, sin, back=False)[:, 0], turned),
        (of_loss / len(x), loss / len(x)),
        (scores, torch.autograd.grad(loss, four)[0]),
    ]
    if hasattr(kernels, "softmax_"):  # of attention in strips, which is for CPUs
        visible = torch.tensor([[1, 24, 16, 17, 3]], dtype=torch.int32)
        hidden = torch.arange(24) >= visible[..., None]
        seen = torch.softmax((x[None].float() * 0.5).masked_fill(hidden, float("-inf")), -1)
        pairs.append((kernels.softmax_(x[None].clone(), visible, 0.5), seen))
    back = kernels.scaled(rounded.int(), scales, None, dtype) / scales
    found = [(a, b, near) for a, b in pairs] + [(back, x * weight.detach() / scales, 1.0)]
    if hasattr(kernels, "carried"):  # of the head's gradient, likewise
        kept, scale = kernels.carried(x, weight.detach())
        exact = x * weight.detach() / scale
        lanes = [one[:, :8] + one[:, 16:] for one in (kept.float(), exact)]  # what one lost, the one 16 further has
        found += [(kept, exact, 1.001), (lanes[0], lanes[1], 0.501)]
    return found
