"""Sequence models in the style of public libraries: histories, lengths, masks, odd names.

Embeddings are drawn large, so that every position has an influence on the outputs.
"""

import io
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Interest(nn.Module):
    """Attention over a history with its length, as in DIN. An empty history gives NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(20, 4), nn.Embedding(30, 4, padding_idx=0)
        self.score = nn.Linear(8, 1)
        self.dropout = nn.Dropout(0.0)
        self.top = nn.Linear(14, 1)

    def forward(
        self, user: Tensor, item: Tensor, hist_item: Tensor, seq_length: Tensor, dense: Tensor
    ) -> Tensor:
        history, target = self.items(hist_item), self.items(item)  # [B, L, 4], [B, 4]
        pairs = torch.cat([history, target.unsqueeze(1).expand_as(history)], 2)
        inside = torch.arange(hist_item.size(1)).unsqueeze(0) < seq_length.unsqueeze(1)
        weights = self.score(pairs).squeeze(2).masked_fill(~inside, float("-inf")).softmax(1)
        interest = (weights.unsqueeze(2) * history).sum(1)  # [B, 4]
        x = torch.cat([self.users(user), target, interest, dense], 1)
        return torch.sigmoid(self.dropout(self.top(x))).squeeze(1)


class SelfAttention(nn.Module):
    """Positions, a padding mask, and the state at the last item, as in SASRec; at most 6 items."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.positions = nn.Embedding(30, 8, padding_idx=0), nn.Embedding(6, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(
        self, item_seq: Tensor, item_seq_len: Tensor, key_padding_mask: Tensor, item_id: Tensor
    ) -> Tensor:
        place = torch.arange(item_seq.size(1)).expand_as(item_seq)
        x = self.items(item_seq) + self.positions(place)
        mixed = self.attention(x, x, x, key_padding_mask=key_padding_mask, need_weights=False)[0]
        last = (item_seq_len.long() - 1).view(-1, 1, 1).expand(-1, 1, 8)
        score: Tensor = ((x + mixed).gather(1, last).squeeze(1) * self.items(item_id)).sum(1)
        return score


class Scores(NamedTuple):
    """Two tasks by name."""

    ctr: Tensor
    watch_time: Tensor


class DoubleFields(nn.Module):
    """Float64 weights and a named tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(30, 4, padding_idx=0)
        self.towers = nn.Linear(11, 2)
        self.double()

    def forward(self, behaviours: Tensor, adgroup_id: Tensor, context: Tensor) -> Scores:
        known = (behaviours != 0).to(context.dtype).unsqueeze(2)
        pooled = (self.items(behaviours) * known).sum(1) / known.sum(1).clamp(min=1)
        z = self.towers(torch.cat([pooled, self.items(adgroup_id), context], 1))
        return Scores(z[:, 0], z[:, 1])


class OtherNames(nn.Module):
    """Keys with spaces, a leading underscore and another script. A mask by argument."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(30, 4)
        self.top = nn.Linear(9, 2)

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        mask = x["hist mask"].float().unsqueeze(2)
        pooled = (self.items(x["hist items"]) * mask).sum(1) / mask.sum(1)
        wage = x["wage per hour"].unsqueeze(1)
        z = self.top(torch.cat([self.items(x["_item"]), pooled, wage], 1))
        return {"p(click)": torch.sigmoid(z[:, 0]), "停留": z[:, 1]}


class OneMatrix(nn.Module):
    """Columns: user, two numbers, a list of 4, its length."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(20, 3), nn.Embedding(30, 3, padding_idx=0)
        self.top = nn.Linear(8, 1)

    def forward(self, X: Tensor) -> Tensor:
        length = X[:, 7].long()
        inside = (torch.arange(4).unsqueeze(0) < length.unsqueeze(1)).float().unsqueeze(2)
        pooled = (self.items(X[:, 3:7].long()) * inside).sum(1) / length.unsqueeze(1)
        logit: Tensor = self.top(torch.cat([self.users(X[:, 0].long()), X[:, 1:3], pooled], 1))
        return logit


def scripted(module: nn.Module) -> bytes:
    """The file of a module, with the same weights every time."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random))
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module.eval()), buffer)
    return buffer.getvalue()
