"""Cutting a network: kept positions of every parameter and buffer, and the attributes of layers that are sizes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tas.tracing.attributes import enclosing
from tas.tracing.identity import Array, Rows

Cut = dict[int, Tensor | int]  # by dimension: kept positions, or how many of the first ones
_SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")  # of attention over keys of another width
UnitRows = Mapping[str, tuple[Rows, ...]]  # tensor name -> units of every dimension


def kept_positions(rows: Rows, keep: Array) -> Array | None:
    """Indices of the kept positions of a dimension, or None for all; `keep` is a mask over units and a final True."""
    if rows is None:
        return None
    mask = keep[rows].all(1)
    return None if mask.all() else np.flatnonzero(mask)


def cuts_of(tensors: UnitRows, keep: Array) -> dict[str, Cut]:
    """What to keep of every tensor that loses something. Dimensions with the same units share their array (see
    `Traced.rows`), so each is worked out once."""
    known: dict[int, Tensor | int | None] = {}

    def kept(rows: Rows) -> Tensor | int | None:
        if id(rows) not in known:
            positions = kept_positions(rows, keep)
            leads = positions is not None and len(positions) > 0 and int(positions[-1]) == len(positions) - 1
            known[id(rows)] = None if positions is None else len(positions) if leads else torch.from_numpy(positions)
        return known[id(rows)]

    cuts: dict[str, Cut] = {}
    for name, dims in tensors.items():
        for dim, rows in enumerate(dims):
            if rows is not None and (part := kept(rows)) is not None:
                cuts.setdefault(name, {})[dim] = part
    return cuts


def apply_cut(tensor: Tensor, cut: Cut) -> Tensor:
    """A view where the kept positions lead, a copy elsewhere: of no more than what stays of the other dimensions."""
    for dim, kept in sorted(cut.items(), key=lambda item: not isinstance(item[1], int)):
        tensor = (
            tensor.narrow(dim, 0, kept) if isinstance(kept, int) else tensor.index_select(dim, kept.to(tensor.device))
        )
    return tensor


def write_cut(tensor: Tensor, cut: Cut, part: Tensor) -> None:
    """Write the kept part back where `apply_cut` took it from."""
    places = []
    for dim, size in enumerate(tensor.shape):
        kept = cut.get(dim, size)
        positions = torch.arange(kept) if isinstance(kept, int) else kept
        places.append(positions.to(part.device).reshape([-1 if d == dim else 1 for d in range(tensor.dim())]))
    tensor[tuple(places)] = part


def cut_size(size: int, kept: Tensor | int | None) -> int:
    return size if kept is None else kept if isinstance(kept, int) else len(kept)


def layer_attributes(module: nn.Module, shapes: Mapping[str, tuple[int, ...]], groups: int | None) -> dict[str, Any]:
    """The attributes of a torch layer that must follow the shapes of its parameters; `groups` of a
    grouped convolution, or heads."""
    weight = shapes.get("weight")
    if isinstance(module, nn.modules.conv._ConvNd) and weight is not None:
        count = groups if groups is not None else module.groups
        makes, reads = (weight[1] * count, weight[0]) if module.transposed else (weight[0], weight[1] * count)
        return {"in_channels": reads, "out_channels": makes, "groups": count}
    if isinstance(module, nn.Linear) and weight is not None:
        return {"out_features": weight[0], "in_features": weight[1]}
    if isinstance(module, nn.modules.batchnorm._NormBase):
        known = weight or shapes.get("running_mean")
        return {} if known is None else {"num_features": known[0]}
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and weight is not None:
        return {"normalized_shape": tuple(weight)}
    if isinstance(module, nn.GroupNorm) and weight is not None:
        return {"num_channels": weight[0]}
    if isinstance(module, nn.Bilinear) and weight is not None:
        return {"out_features": weight[0], "in1_features": weight[1], "in2_features": weight[2]}
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and weight is not None:
        return {"num_embeddings": weight[0], "embedding_dim": weight[1]}
    if isinstance(module, nn.MultiheadAttention):
        read = ("in_proj_weight",) * 3 if "in_proj_weight" in shapes else _SEPARATE
        (width, keys, values), heads = (
            (shapes[name][1] for name in read),
            module.num_heads if groups is None else groups,
        )
        return {"embed_dim": width, "kdim": keys, "vdim": values, "num_heads": heads, "head_dim": width // heads}
    if isinstance(module, nn.PReLU) and weight is not None:
        return {"num_parameters": weight[0]}
    return _recurrent_attributes(module, shapes)


def unfused(network: nn.Module, parts: Collection[str]) -> dict[str, dict[str, int]]:
    """By module, attributes with which torch's own transformer does not look for its operators for whole layers, which
    ask for the weights of all parts and for an even number of heads, around these parts. Whole numbers, as students on
    disk keep no others."""
    fused = ((nn.TransformerEncoderLayer, "activation_relu_or_gelu"), (nn.TransformerEncoder, "use_nested_tensor"))
    around = dict.fromkeys(name for part in parts for name in enclosing(part))
    return {
        name: {attribute: 0}
        for name in around
        for kind, attribute in fused
        if isinstance(network.get_submodule(name), kind)
    }


def _recurrent_attributes(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    if isinstance(module, nn.RNNBase) and "weight_ih_l0" in shapes:
        hidden = shapes["weight_ih_l0"][0] // {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
        projected = shapes["weight_hr_l0"][0] if module.proj_size else 0
        return {"input_size": shapes["weight_ih_l0"][1], "hidden_size": hidden, "proj_size": projected}
    if isinstance(module, nn.RNNCellBase) and "weight_ih" in shapes:
        return {"input_size": shapes["weight_ih"][1], "hidden_size": shapes["weight_hh"][1]}
    return {}


def cut_parameters(network: nn.Module, cuts: Mapping[str, Cut], share: bool) -> None:
    """Replace parameters and buffers by their kept part, in place; what was shared stays shared. With `share`, a
    parameter may be a view of the whole one."""
    done: dict[int, Tensor] = {}
    for module_name, module in network.named_modules():
        for store in (module._parameters, module._buffers):
            for key, tensor in list(store.items()):
                cut = cuts.get(f"{module_name}.{key}" if module_name else key)
                if tensor is None or cut is None:
                    continue
                if id(tensor) not in done:
                    is_parameter = isinstance(tensor, nn.Parameter)
                    part = apply_cut(tensor.detach(), cut)
                    copied = not all(isinstance(kept, int) for kept in cut.values())
                    if copied or (share and is_parameter):
                        part = part.contiguous()
                    else:
                        part = part.clone(memory_format=torch.contiguous_format)
                    done[id(tensor)] = nn.Parameter(part, tensor.requires_grad) if is_parameter else part
                store[key] = done[id(tensor)]
        if isinstance(module, nn.RNNBase):  # it keeps a list of its weights, which only follows assignments
            for key, parameter in module.named_parameters(recurse=False):
                setattr(module, key, parameter)
