"""timeline.js keeps texts, their states and their forks apart."""

from node import modules, run_node

PROGRAM = """
import { Timeline } from "./standalone/timeline.js";
const message = (first, count, given) => {
  const ids = Uint32Array.from({ length: count }, (_, index) => first + index);
  return {
    ids,
    given,
    logprobs: Float32Array.from(ids, (id) => (id ? -id : NaN)),
    alternatives: Uint32Array.from({ length: 2 * count }, (_, index) => index % 2),
    alternativeLogprobs: Float32Array.from({ length: 2 * count }, (_, index) => (index % 2 ? NaN : -1)),
    states: Float32Array.from({ length: 3 * count }, (_, index) => first + Math.floor(index / 3)),
  };
};
const text = new Timeline(3, 2, 4 * 3 * 256 * 4); // keeps the states of four chunks
text.origin = Float32Array.of(7, 7, 7);
text.add(message(0, 10, true));
for (let first = 10; first < 600; first += 59) text.add(message(first, 59, false));
const fork = text.fork(300);
const again = text.fork(600);
fork.add(message(1000, 5, false));
text.add(message(600, 2000, false));
const about = (text, position) => [
  text.id(position), text.logprob(position), text.alternatives(position), text.state(position)?.[2] ?? null,
];
report({
  lengths: [text.length, fork.length, again.length],
  generated: [text.generated(), fork.generated(), text.generated(4), text.generated(12)],
  first: about(text, 0), old: about(text, 5), late: about(text, 2599),
  fork: [about(fork, 299), about(fork, 300), about(fork, 5)], again: [about(again, 300), about(again, 5)],
  origin: fork.state(-1)[0],
});
"""


def test_texts_forks_and_what_is_kept(tmp_path):
    found = run_node(modules(tmp_path), PROGRAM, None)
    assert found["lengths"] == [2600, 305, 600]
    assert found["generated"] == [2590, 295, 0, 2]
    assert found["first"] == [0, None, [[0, -1]], None]
    assert found["old"] == [5, -5, [[0, -1]], None]  # its state is no longer kept
    assert found["late"] == [2599, -2599, [[0, -1]], 2599]
    assert found["fork"] == [[299, -299, [[0, -1]], 299], [1000, -1000, [[0, -1]], 1000], [5, -5, [[0, -1]], 5]]
    assert found["again"] == [[300, -300, [[0, -1]], 300], [5, -5, [[0, -1]], 5]]
    assert found["origin"] == 7
