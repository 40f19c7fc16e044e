"""An estimate as text: Markdown tables that are aligned on a terminal."""

from __future__ import annotations

from dla_train.distributed.config import FSDPConfig
from dla_train.distributed.drawbacks import drawbacks
from dla_train.estimate.devices import SAFE_SHARE
from dla_train.estimate.estimate import Estimate
from dla_train.estimate.longest import MOST
from dla_train.estimate.replicas import replicas_of
from dla_train.report.text import duration

GROWS_WITH = {
    "parameters": "the model",
    "gradients": "the model",
    "optimizer": "the model",
    "exchange of gradients": "the model, where a device has several micro-batches",
    "activations": "micro_batch x window x layers",
    "the op at work": "micro_batch x window x slots x head sizes; one layer at a time",
    "logits": "vocabulary; 1,024 tokens at a time",
}

GROWS_WITH_FSDP = {
    "gathered weights": "two blocks, embedding and head",
    "exchange of gradients": "two blocks, embedding and head",
}
GROWS_WITH_DEEPSPEED = {
    "gathered weights": "stage3_max_live_parameters",
    "exchange of gradients": "reduce_bucket_size",
}

LAUNCH_BOUND = 0.05
"""Step time in seconds below which launching thousands of small kernels takes longer than running them."""


def render(found: Estimate) -> str:
    """The whole estimate as text."""
    parts = [_headline(found), _parameters(found), _work(found), _memory(found), _longest(found), _time(found)]
    return "\n\n".join(parts) + "\n"


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]], right: frozenset[int]) -> str:
    """A Markdown table; columns whose index is in `right` are right-aligned."""
    widths = [max(3, *(len(row[column]) for row in [heads, *rows])) for column in range(len(heads))]

    def line(cells: tuple[str, ...]) -> str:
        padded = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (width + 1) + (":" if i in right else "-") for i, width in enumerate(widths)) + "|"
    return "\n".join([line(heads), rule, *(line(row) for row in rows)])


def gigabytes(size: float) -> str:
    """`12.34 GB`, with 10^9 bytes per GB, as makers of accelerators count; small sizes in MB."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e8 else f"{size / 1e6:,.2f} MB"


def _headline(found: Estimate) -> str:
    training, group = found.recipe.training, found.recipe.strategy.context_parallel
    where = "a device" if group == 1 else f"{group} devices that share them"
    return (
        f"# {found.name}\n\n"
        f"{_count(found.tokens)} tokens: {training.steps:,} steps of {training.global_batch} windows of "
        f"{found.recipe.data.window:,}, {training.micro_batch} at a time on {where}\n"
        f"on {found.devices} x {found.device.name}, {training.precision}"
        + (f", {_division(found)}" if found.devices > 1 else "")
    )


def _division(found: Estimate) -> str:
    strategy = found.recipe.strategy
    if strategy.kind in ("single", "ddp"):
        return "every device with a whole replica"
    everything = "weights, gradients and optimizer states"
    if (replicas := _sharded_replicas(found)) > 1:
        shards = found.devices // replicas
        where = f"divided among {shards} devices" if shards > 1 else "on a device of its own"
        return f"{replicas} replicas of {everything}, each {where} ({strategy.kind})"
    what = {1: "optimizer states", 2: "gradients and optimizer states"}.get(getattr(strategy, "stage", 3), everything)
    return f"each with a share of {what} ({strategy.kind})"


def _sharded_replicas(found: Estimate) -> int:
    strategy = found.recipe.strategy
    return replicas_of(strategy, found.devices) if isinstance(strategy, FSDPConfig) else 1


def _parameters(found: Estimate) -> str:
    total = sum(found.parameters.values())
    rows = [(part, f"{count:,}", f"{count / total:.1%}") for part, count in found.parameters.items()]
    return table(("parameters", "number", "share"), [*rows, ("total", f"{total:,}", "")], frozenset({1, 2}))


def _work(found: Estimate) -> str:
    total = found.flops_per_token
    unit, name = (1e6, "MFLOPs") if total >= 1e8 else (1e3, "kFLOPs")

    def figure(flops: float) -> str:
        return f"{flops / unit:,.1f}"

    rows = [
        (part, figure(one.forward), figure(one.training), f"{one.training / total:.1%}", found.bounds[part])
        for part, one in found.work.items()
    ]
    forward = sum(one.forward for one in found.work.values())
    rows.append(("total", figure(forward), figure(total), "", ""))
    return table((f"{name} per token", "forward", "training", "share", "bound by"), rows, frozenset({1, 2, 3}))


def _memory(found: Estimate) -> str:
    sizes = found.footprint
    further = {"fsdp": GROWS_WITH_FSDP, "deepspeed": GROWS_WITH_DEEPSPEED}.get(found.recipe.strategy.kind, {})
    grows_with = {**GROWS_WITH, **further}
    rows = []
    for name, size in sizes.on_device.items():
        if size:
            rows.append((name, gigabytes(size), grows_with[name]))
        if name == "activations":
            rows += [(f"- {part}", gigabytes(share), "") for part, share in sizes.activations.items()]
    rows.append(("total", gigabytes(sizes.total), f"{sizes.total / found.device.memory:.0%} of {found.device.name}"))
    if sizes.in_main_memory:
        rows.append(("main memory, for each device", gigabytes(sizes.in_main_memory), "the model, over all devices"))
    text = table(("memory of a device", "bytes", "grows with"), rows, frozenset({1}))
    room = f"the {gigabytes(found.device.memory)} of {found.device.name}"
    if sizes.total > found.device.memory:
        text += f"\n\nThis does not fit into {room}. {_way_out(found)}"
    elif sizes.total > SAFE_SHARE * found.device.memory:
        text += (
            f"\n\nThis may not fit into {room}: what is left is hardly enough for CUDA itself and the gaps that its "
            f"allocator leaves. {_way_out(found)}"
        )
    if found.path == "torch":
        text += "\n\nHeads or slots are larger than the Triton kernels take: the op runs in plain PyTorch, slowly."
    return text


def _longest(found: Estimate) -> str:
    rows = [(way, _tokens(longest)) for way, longest in found.longest.items()]
    heads = ("training.activation_checkpointing", "longest window that fits, with micro_batch 1")
    return table(heads, rows, frozenset({1}))


def _tokens(longest: int) -> str:
    if not longest:
        return "none fits"
    return f"{longest:,} or longer" if longest >= MOST else f"{longest:,}"


def _way_out(found: Estimate) -> str:
    sizes, training = found.footprint, found.recipe.training
    fixed = sizes.parameters + sizes.gradients + sizes.optimizer + sizes.buckets
    if fixed > 0.8 * found.device.memory:
        if found.recipe.strategy.kind in ("single", "ddp"):
            return (
                "Weights and optimizer alone nearly fill it: share them out among several devices with strategy=fsdp "
                'or strategy="{kind: deepspeed, stage: 3}", or take a device with more memory.'
            )
        fewer = (
            f"fewer replicas than {number} (strategy.replicas), " if (number := _sharded_replicas(found)) > 1 else ""
        )
        return f"Weights and optimizer alone nearly fill it: {fewer}more devices, or ones with more memory, are needed."
    if training.micro_batch > 1:
        return f"Lower training.micro_batch (now {training.micro_batch}); the result of training stays the same."
    full = (
        "training.activation_checkpointing=full keeps the inputs of blocks alone and computes the rest again: a third "
        "more work, the same result."
    )
    if training.activation_checkpointing == "none" and not training.compile:
        return f"training.activation_checkpointing=selective saves activations and computes little twice. {full}"
    if training.activation_checkpointing != "full":
        return full
    return (
        f"What remains: a shorter data.window (now {found.recipe.data.window:,}), more devices to share each window "
        f"(strategy.context_parallel, now {found.recipe.strategy.context_parallel}), or devices with more memory."
    )


def _time(found: Estimate) -> str:
    sizes, recipe = found.footprint, found.recipe
    checkpoint = sizes.checkpoint
    seconds = found.tokens / found.tokens_per_second
    kept = recipe.checkpoint.keep_last
    if recipe.checkpoint.keep_every:
        kept += recipe.training.steps // recipe.checkpoint.keep_every
    rows = [
        ("tokens per second", f"{found.tokens_per_second:,.0f}"),
        ("a step", f"{_seconds(found.step_seconds)}, {_seconds(found.optimizer_seconds)} of it the optimizer"),
        *([("sent to share windows", f"{gigabytes(found.sent)} by each device, a step")] if found.sent else []),
        ("the whole run", _length(seconds, found.devices)),
        ("FLOPs of the whole run", f"{found.flops_per_token * found.tokens:.2e}"),
        ("a checkpoint", f"{gigabytes(checkpoint)}; up to {kept} on disk, {gigabytes(kept * checkpoint)}"),
    ]
    peak = found.device.peak(recipe.training.precision) / 1e12
    notes = [
        f"Assumed: {found.utilization:.0%} of the {peak:,.0f} TFLOP/s of {found.device.name} (--utilization); "
        "the exchange between devices is not counted."
    ]
    if recipe.training.activation_checkpointing != "none":
        notes.append("Nor is what is computed again: expect a lower share than without.")
    if sizes.in_main_memory:
        notes.append("Nor is the optimizer's step, which the CPU does.")
    notes += drawbacks(recipe.strategy, recipe.model, nodes=1, devices=found.devices)
    if found.step_seconds < LAUNCH_BOUND:
        notes.append(
            "So short a step waits for kernels to be launched, not for products: expect a fraction of that speed."
        )
    if recipe.training.accelerator == "cpu":
        notes.append(f"The recipe itself trains on the CPU (training.accelerator), not on {found.device.name}.")
    return "\n".join([table(("time and disk", ""), rows, frozenset()), "", *notes])


def _length(seconds: float, devices: int) -> str:
    if seconds < 60:
        return _seconds(seconds)
    if seconds < 86_400:
        return duration(seconds)
    return f"{seconds / 86_400:,.1f} days, {seconds * devices / 3600:,.0f} device hours"


def _seconds(time: float) -> str:
    return f"{time:,.3f} s" if time >= 0.1 else f"{time * 1e3:,.2f} ms"


def _count(tokens: int) -> str:
    return f"{tokens / 1e9:,.1f}B" if tokens >= 1e9 else f"{tokens / 1e6:,.1f}M"
