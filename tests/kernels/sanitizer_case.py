"""Every kernel on one small case, for memory checkers: NVIDIA's compute-sanitizer on a GPU, which
`test_triton_sanitizer.py` calls, and our own in the interpreter (`test_triton_memory.py`).

Lengths, widths and slots fill no block, so that a mask that lets too much through touches foreign memory. Several
chunks, a cache, packed documents and the straight-through gate each have kernels, or branches, of their own.
"""

from typing import Any

import torch

from dla_kernels import (
    Cache,
    add_skip,
    dynamic_linear_attention,
    fenwick_plan,
    fixed_plan,
    gated_rms_norm,
    l2_normalize,
    multi_state_attention,
    rms_norm,
    scale_heads,
    shifted_softplus,
    short_convolution,
    swiglu,
)
from dla_kernels.decode.positions import plan_token
from dla_kernels.documents import positions
from dla_kernels.reader.fused import configs


def every_kernel(
    device: str, dtype: torch.dtype, *, delta: bool, time: int = 131, groups: int = 1, heads: int = 2, slots: int = 5,
    key_dim: int = 24, value_dim: int = 40, documents: tuple[int, ...] = (0, 60, 61, 131), **sizes: int,
) -> None:  # fmt: skip
    """Prefill, decode, and training on one sequence and on documents that continue from caches; `sizes` as in
    `Tiles`."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype).requires_grad_()

    q, k, v = draw(1, time, groups, key_dim), draw(1, time, groups, key_dim), draw(1, time, heads, value_dim)
    weight = draw(1, time, heads, slots)
    log_decay = -torch.rand(1, time, heads, generator=generator, device=device)
    beta = torch.rand(1, time, heads, generator=generator, device=device) if delta else None
    inputs = {"q": q, "k": torch.nn.functional.normalize(k.float(), dim=-1).to(dtype), "v": v, "slot_weight": weight}
    inputs |= {"log_decay": log_decay} if beta is None else {"log_decay": log_decay, "beta": beta}
    options: dict[str, Any] = {"capacity": slots, "threshold": 1.2, "backend": "triton", "return_cache": True}
    cu = torch.tensor(documents, device=device)
    with configs.override(**sizes):
        with torch.no_grad():
            _, cache = dynamic_linear_attention(**inputs, **options, cu_seqlens=cu)
            for t in range(2):
                token = {name: x[:, t : t + 1].expand(len(cu) - 1, *x[:, :1].shape[1:]) for name, x in inputs.items()}
                _, cache = dynamic_linear_attention(**token, **options, cache=cache)
            _decode_for_plans(token, cache)
        options["gate"] = "straight_through"
        one, _ = dynamic_linear_attention(**inputs, **options)
        packed, after = dynamic_linear_attention(**inputs, **options, cu_seqlens=cu, cache=cache)
        assert after is not None
        ((one + packed).float().square().sum() + after.state.square().sum()).backward()
    around_the_op(v, cu)


def _decode_for_plans(token: dict[str, torch.Tensor], cache: Cache) -> None:
    """A token of each sequence of the cache, with all plans by position."""
    (n, _, heads, slots), device = token["slot_weight"].shape, cache.state.device
    start = cache.tokens.to(device)
    for plan in (
        fixed_plan(n, 1, heads, block=2, capacity=slots, start=start, device=device),
        fenwick_plan(n, 1, heads, capacity=slots, start=start, device=device),
    ):
        for past in (cache.settled(), cache.settled().donated()):
            multi_state_attention(**token, plan=plan, cache=past, backend="triton")
    plan_token(start, heads, slots, 0)
    plan_token(start, heads, slots, 2)


def around_the_op(v: torch.Tensor, cu: torch.Tensor) -> None:
    """The kernels of `dla_kernels.layers`, forward and backward."""
    weight = torch.ones(v.shape[2] * v.shape[3], 4, device=v.device)
    x = v.flatten(2)
    for given in (None, positions(cu, x.shape[1], x.device)):
        x = short_convolution(x, weight, weight[:, 0], activation="silu", positions=given, backend="triton")
    x = gated_rms_norm(x, v.flatten(2), weight[:, 0], 1e-5, gate_first=True, backend="triton")
    y = gated_rms_norm(
        x.unflatten(-1, v.shape[2:]), v, weight[: v.shape[3], 0], 1e-5, gate_first=False, backend="triton"
    )
    y = add_skip(
        scale_heads(y, weight[: v.shape[2], 0].expand(y.shape[:3]), backend="triton"),
        v,
        weight[: v.shape[2], 0],
        backend="triton",
    )
    y = rms_norm(y, weight[: y.shape[-1], 0], 1e-5, dtype=torch.float32, backend="triton")
    y = shifted_softplus(l2_normalize(y, backend="triton"), 0.5, backend="triton").to(v.dtype)
    swiglu(torch.cat((y, v), -1), backend="triton").float().sum().backward()
    with torch.no_grad():
        short_convolution(x[:, :1], weight, history=x[:, :3], backend="triton")


def main(device: str, dtype: torch.dtype) -> None:
    for delta in (False, True):
        every_kernel(device, dtype, delta=delta, tile=32, long=64, block_k=16, block_v=32)
    torch.cuda.synchronize()
    print("every kernel ran")


if __name__ == "__main__":
    main("cuda", torch.bfloat16)
