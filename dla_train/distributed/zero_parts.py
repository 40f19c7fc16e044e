"""Where DeepSpeed keeps a rank's part of each parameter, by ZeRO stage."""

from __future__ import annotations

from typing import Any

import torch
from deepspeed import comm as dist
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from dla_train.distributed.sharded_state import Part


def parts_of_zero_1_and_2(zero: DeepSpeedZeroOptimizer, names: dict[int, str]) -> list[Part]:
    """The parts for stages 1 and 2: each parameter group is one flat buffer, cut into as many pieces as there are
    ranks.

    Args:
        names: of the parameters, by id.
    """
    parts = []
    for index, flat in enumerate(zero.single_partition_of_fp32_groups):
        # Not from `_hp_mapping`, which is wrong with round_robin_gradients (0.19), but in the buffer's own order.
        begin = dist.get_rank(zero.real_dp_process_group[index]) * len(flat)
        places = zip(zero.round_robin_bit16_groups[index], zero.round_robin_bit16_offsets[index], strict=True)
        for parameter, place in places:
            first = min(max(begin - place, 0), parameter.numel())
            last = min(max(begin + len(flat) - place, 0), parameter.numel())
            offset = place + first - begin if first < last else 0
            weights = flat.detach()[offset : offset + last - first]
            parts.append(Part(names[id(parameter)], tuple(parameter.shape), first, weights, flat, offset))
    return parts


def parts_of_zero_3(zero: DeepSpeedZeroOptimizer_Stage3, names: dict[int, str]) -> list[Part]:
    """The parts for stage 3: each parameter is cut into as many pieces of equal length as there are ranks, the last
    ones padded."""
    parts = []
    for group in zero.fp16_groups:
        for parameter in group:
            index, offset, length = zero.grad_position[zero.get_param_id(parameter)]
            flat = zero.fp32_partitioned_groups_flat[index]
            shape = tuple(parameter.ds_shape)
            start = min(zero._get_param_partition_rank(parameter) * length, parameter.ds_numel)
            count = min(length, parameter.ds_numel - start)
            parts.append(Part(names[id(parameter)], shape, start, flat.detach()[offset : offset + count], flat, offset))
    return parts


@torch.no_grad()
def rebuild_weights(zero: Any) -> None:
    """Rebuild the model's weights from the pieces of all ranks, which must all call this."""
    if not isinstance(zero, DeepSpeedZeroOptimizer_Stage3):
        zero.update_lp_params()
        return
    zero._partition_all_parameters()
    for index in range(len(zero.fp16_groups)):
        zero._reassign_or_swap_out_partitioned_parameters(index)
    if zero.persistent_parameters:
        zero.persistent_parameters[0].partition(zero.persistent_parameters, has_been_updated=False)
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
