"""What each kernel computes, in plain torch: the meaning, with no thought of speed.

Everything is computed in float64 from the inputs as they are and returned in float64, so that a comparison shows the kernel's own rounding.
"""

from __future__ import annotations

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0) -> torch.Tensor:
    """x [rows, hidden] / rms(x) * (weight + offset) (arXiv:1910.07467)."""
    x = x.double()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * (weight.double() + offset)


def layer_norm(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias (arXiv:1607.06450)."""
    return torch.nn.functional.layer_norm(
        x.double(), x.shape[-1:], None if weight is None else weight.double(), None if bias is None else bias.double(), eps
    )


def gated(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """activation(gate) * up of gate_up [rows, 2 * width], gate first. activation: silu, gelu, gelu_tanh."""
    gate, up = gate_up.double().chunk(2, dim=-1)
    if activation == "silu":
        return torch.nn.functional.silu(gate) * up
    return torch.nn.functional.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none") * up


def rotate(x: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor, dim: int, interleaved: bool) -> torch.Tensor:
    """x [tokens, heads, head_dim] with its first `dim` dimensions turned (arXiv:2104.09864).

    cos_sin [positions, 2, dim / 2]. Halves turn against each other, or neighbours when interleaved.
    """
    x = x.double().clone()
    cos, sin = cos_sin.double()[positions].unsqueeze(2).unbind(1)
    first, second = (slice(0, dim, 2), slice(1, dim, 2)) if interleaved else (slice(0, dim // 2), slice(dim // 2, dim))
    a, b = x[..., first].clone(), x[..., second].clone()
    x[..., first] = a * cos - b * sin
    x[..., second] = b * cos + a * sin
    return x


def decode_attention(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    window: int = 0,
    soft_cap: float = 0.0,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of one query [heads, head_dim] over keys and values [tokens, kv_heads, head_dim], itself the last token.

    Groups of heads / kv_heads query heads share a KV head. window: the last so many tokens only, 0 all. soft_cap c > 0: scores become
    c * tanh(score / c). sinks [heads]: a further score per head that has no value.
    """
    if window:
        keys, values = keys[-window:], values[-window:]
    heads, head_dim = q.shape
    grouped = q.double().view(keys.shape[1], -1, head_dim)
    scores = torch.einsum("hgd,nhd->hgn", grouped, keys.double()) * scale
    if soft_cap:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    if sinks is not None:
        scores = torch.cat((scores, sinks.double().view(keys.shape[1], -1, 1)), -1)
    weights = scores.softmax(-1)[..., : len(keys)]
    return torch.einsum("hgn,nhd->hgd", weights, values.double()).reshape(heads, head_dim)


def prefill_attention(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    window: int = 0,
    soft_cap: float = 0.0,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of queries [new, heads, head_dim], the last of the tokens that keys and values [tokens, kv_heads, head_dim] are of.

    The options are decode_attention's, each query being the last token of what it sees.
    """
    new, heads, head_dim = q.shape
    tokens, kv_heads, _ = keys.shape
    scores = torch.einsum("qhgd,nhd->hgqn", q.double().view(new, kv_heads, heads // kv_heads, head_dim), keys.double()) * scale
    if soft_cap:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    ahead = torch.arange(tokens, device=q.device) - torch.arange(tokens - new, tokens, device=q.device)[:, None]
    scores = scores.masked_fill((ahead > 0) | (ahead <= -(window or tokens)), float("-inf"))
    if sinks is not None:
        scores = torch.cat((scores, sinks.double().view(kv_heads, -1, 1, 1).expand(-1, -1, new, 1)), -1)
    weights = scores.softmax(-1)[..., :tokens]
    return torch.einsum("hgqn,nhd->qhgd", weights, values.double()).reshape(new, heads, head_dim)


def mla_attention(q_latent: torch.Tensor, q_rope: torch.Tensor, cached: torch.Tensor, scale: float) -> torch.Tensor:
    """Latent attention of one query, q_latent [heads, latent] and q_rope [heads, rope], over cached tokens [tokens, latent + rope].

    The latent is the value of all heads. The result [heads, latent] is in the latent's space (arXiv:2405.04434, weights absorbed).
    """
    cached = cached.double()
    scores = torch.cat((q_latent, q_rope), -1).double() @ cached.T * scale
    return scores.softmax(-1) @ cached[:, : q_latent.shape[1]]


def gather_inputs(
    row: list[int],
    num_new: list[int],
    start: list[int],
    device_token: list[bool],
    given: list[int],
    tables: torch.Tensor,
    last_token: torch.Tensor,
    block_size: int,
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Token ids, positions, slots and plan rows of a step's tokens, in order (see src/rows.cu)."""
    token_ids, positions, slots, rows = [], [], [], []
    unread = iter(given)
    for at, (place, count, before, remembered) in enumerate(zip(row, num_new, start, device_token)):
        for position in range(before, before + count):
            token_ids.append(int(last_token[place]) if remembered else next(unread))
            positions.append(position)
            slots.append(int(tables[place, position // block_size]) * block_size + position % block_size)
            rows.append(at)
    return token_ids, positions, slots, rows
