"""Log-probabilities of recorded responses under the trainer's weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dart_gui.errors import DataError
from dart_gui.model.policy_model import Pixels, PolicyModel
from dart_gui.train.samples import Sample, distinct_images


def response_logprobs(
    policy: PolicyModel, samples: Sequence[Sample], pixels: Callable[[str], Pixels]
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of each response token, ``[T]`` each, the samples end to end.

    Exactly the recorded ids go in, nothing is tokenised here. The distribution is the one that the
    engine sampled from: each sample's temperature, without its masked ids.
    """
    hidden = response_hidden(policy, samples, pixels)
    logits = policy.network.lm_head(hidden).float()
    lengths = [len(sample.response_ids) for sample in samples]
    chosen = torch.tensor([i for s in samples for i in s.response_ids], device=policy.device)
    logprobs = torch.cat(
        [
            policy.log_softmax(part, sample.temperature, sample.masked_token_ids)
            for part, sample in zip(logits.split(lengths), samples, strict=True)
        ]
    )
    probs = logprobs.exp()
    entropy = -(probs * logprobs.masked_fill(probs == 0, 0.0)).sum(-1)
    return logprobs.gather(1, chosen[:, None])[:, 0], entropy


def response_hidden(
    policy: PolicyModel, samples: Sequence[Sample], pixels: Callable[[str], Pixels]
) -> Tensor:
    """Hidden states [T, H] from which each response token is predicted."""
    names = list(distinct_images(samples))
    images = {name: pixels(name) for name in names}
    features = dict(zip(names, policy.encode_images(list(images.values())), strict=True))
    rows, positions = [], []
    for sample in samples:
        if not sample.response_ids:
            raise DataError(f"a step of {sample.trajectory_id} has an empty response")
        ids = torch.tensor(sample.prompt_ids + sample.response_ids, device=policy.device)
        num_prompt = len(sample.prompt_ids)
        rows.append(policy.embed(ids, num_prompt, [features[n] for n in sample.image_hashes]))
        grids = [images[name].grid for name in sample.image_hashes]
        positions.append(policy.positions(ids, num_prompt, grids))
    hidden = policy.text(
        inputs_embeds=torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
        position_ids=torch.nn.utils.rnn.pad_sequence([p.T for p in positions], batch_first=True)
        .permute(2, 0, 1)
        .contiguous(),
        # Padding stands at the right of a causal sequence: no real token can see it.
        attention_mask={"full_attention": _causal_mask(rows)},
        use_cache=False,
    ).last_hidden_state
    return torch.cat(
        [
            row[len(sample.prompt_ids) - 1 : sample.num_tokens - 1]
            for row, sample in zip(hidden, samples, strict=True)
        ]
    )


def _causal_mask(rows: Sequence[Tensor]) -> Tensor:
    length = max(len(row) for row in rows)
    mask = torch.ones(length, length, dtype=torch.bool, device=rows[0].device).tril()
    return mask[None, None].expand(len(rows), 1, length, length)
