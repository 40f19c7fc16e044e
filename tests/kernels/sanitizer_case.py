"""One small case of every kernel, for `compute-sanitizer`; run by `test_triton_sanitizer.py`.

Lengths, widths and slots that fill no block: a mask that lets too much through then touches memory that is not ours.
"""

import torch

from dla_kernels import dynamic_linear_attention


def main(device: str = "cuda") -> None:
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device).to(torch.bfloat16).requires_grad_()

    time, heads, groups, slots = 131, 2, 1, 5
    for delta in (False, True):
        q, k, v = draw(1, time, groups, 24), draw(1, time, groups, 24), draw(1, time, heads, 40)
        weight = draw(1, time, heads, slots)
        log_decay = -torch.rand(1, time, heads, generator=generator, device=device)
        beta = torch.rand(1, time, heads, generator=generator, device=device) if delta else None
        k_unit = torch.nn.functional.normalize(k.float(), dim=-1).to(torch.bfloat16)
        options = {"capacity": slots, "threshold": 1.2, "backend": "triton", "return_cache": True}
        o, cache = dynamic_linear_attention(q, k_unit, v, weight, log_decay=log_decay, beta=beta, **options)
        o.float().square().sum().backward()
        with torch.no_grad():
            for t in range(3):
                at = slice(t, t + 1)
                _, cache = dynamic_linear_attention(
                    q[:, at], k_unit[:, at], v[:, at], weight[:, at], log_decay=log_decay[:, at],
                    beta=None if beta is None else beta[:, at], cache=cache, **options,
                )  # fmt: skip
    if device == "cuda":
        torch.cuda.synchronize()
    print("every kernel ran")


if __name__ == "__main__":
    main()
