"""The peer of `rill.bench.sampling`: a plain PyTorch loop over a whole batch, as chemical language models are sampled.

The shape of the loop is that of REINVENT's published description: an embedding, a GRU of several layers and a linear
layer; a step of all rows is one call of each, a softmax and one `multinomial`; it ends when every row has ended.
For each line with a number of seconds on standard input it samples for about as long, and prints how many symbols the
texts had, how many texts there were, the seconds, and those of CPU time.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from rill.train.record.run import Run, load_run


class SamplingLoop:
    """The weights of a run in plain PyTorch.

    Each text has one of `lengths`, drawn evenly; None: it ends with the model's end symbol, after `most` at the latest.
    """

    def __init__(self, run: Run, batch: int, lengths: Sequence[int] | None, most: int = 256) -> None:
        config, size = run.model, len(run.vocabulary)
        self._embedding = nn.Embedding(size, config.embedding)
        self._rnn = nn.GRU(config.embedding, config.hidden, config.layers, batch_first=True)
        self._linear = nn.Linear(config.hidden, size)
        for name, module in (("embedding", self._embedding), ("rnn", self._rnn), ("linear", self._linear)):
            weights = {key.removeprefix(f"{name}."): value for key, value in run.weights.items()}
            module.load_state_dict({key: weights[key] for key in module.state_dict()})
        self._start, self._ends = run.vocabulary.start_id, torch.tensor(run.vocabulary.end_ids)
        self._never = list(run.vocabulary.never_ids)
        self._batch, self._most = batch, most
        self._lengths = None if lengths is None else torch.tensor(lengths)

    @torch.inference_mode()
    def sample(self) -> int:
        """Sample a batch of texts; return how many symbols they have, ends not counted."""
        tokens, state = torch.full((self._batch, 1), self._start), None
        lengths = torch.full((self._batch,), self._most)
        if self._lengths is not None:
            lengths = self._lengths[torch.randint(len(self._lengths), (self._batch,))]
        ended, symbols = torch.zeros(self._batch, dtype=torch.bool), 0
        for position in range(self._most):
            output, state = self._rnn(self._embedding(tokens), state)
            logits = self._linear(output[:, -1])
            logits[:, self._never] = -torch.inf
            tokens = torch.multinomial(torch.softmax(logits, dim=-1), 1)
            if self._lengths is None:
                ended |= torch.isin(tokens[:, 0], self._ends)
            symbols += self._batch - int(ended.sum())
            ended |= lengths == position + 1
            if ended.all():
                break
        return symbols


def main() -> None:
    """Answer the lines of standard input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--lengths", type=int, nargs="+")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    loop = SamplingLoop(load_run(options.run), options.batch, options.lengths)
    loop.sample()
    print("ready", flush=True)
    for line in sys.stdin:
        symbols = texts = 0
        started, cpu = time.perf_counter(), time.process_time()
        while (seconds := time.perf_counter() - started) < float(line):
            symbols += loop.sample()
            texts += options.batch
        print(symbols, texts, seconds, time.process_time() - cpu, flush=True)


if __name__ == "__main__":
    main()
