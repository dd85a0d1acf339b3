"""The peer of `rill.bench.sampling`: a plain PyTorch loop over a whole batch, as chemical language models are sampled.

The shape of the loop is that of REINVENT's published description: an embedding, a GRU of several layers and a linear
layer; a step of all rows is one call of each, a softmax and one `multinomial`; it ends when every row has ended.
For each line with a number of seconds on standard input it samples for about as long, and prints how many symbols the
texts had, how many texts there were, the seconds, and those of CPU time.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import nn

from rill.train.record.run import Run, load_run


class SamplingLoop:
    """The weights of a run in plain PyTorch. `length` is that of every text; None: up to the model's end symbol."""

    def __init__(self, run: Run, batch: int, length: int | None, most: int = 256) -> None:
        config, size = run.model, len(run.vocabulary)
        self._embedding = nn.Embedding(size, config.embedding)
        self._rnn = nn.GRU(config.embedding, config.hidden, config.layers, batch_first=True)
        self._linear = nn.Linear(config.hidden, size)
        for name, module in (("embedding", self._embedding), ("rnn", self._rnn), ("linear", self._linear)):
            weights = {key.removeprefix(f"{name}."): value for key, value in run.weights.items()}
            module.load_state_dict({key: weights[key] for key in module.state_dict()})
        self._start, self._ends = run.vocabulary.start_id, torch.tensor(run.vocabulary.end_ids)
        self._never = list(run.vocabulary.never_ids)
        self._batch, self._length, self._most = batch, length, most

    @torch.inference_mode()
    def sample(self) -> int:
        """Sample a batch of texts; return how many symbols they have, ends not counted."""
        tokens, state = torch.full((self._batch, 1), self._start), None
        ended, symbols = torch.zeros(self._batch, dtype=torch.bool), 0
        for _ in range(self._length or self._most):
            output, state = self._rnn(self._embedding(tokens), state)
            logits = self._linear(output[:, -1])
            logits[:, self._never] = -torch.inf
            tokens = torch.multinomial(torch.softmax(logits, dim=-1), 1)
            if self._length is None:
                ended |= torch.isin(tokens[:, 0], self._ends)
            symbols += self._batch - int(ended.sum())
            if ended.all():
                break
        return symbols


def main() -> None:
    """Answer the lines of standard input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--length", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    loop = SamplingLoop(load_run(options.run), options.batch, options.length)
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
