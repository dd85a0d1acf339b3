"""units.js finds the unit that follows something in a text."""

from node import modules, run_node

PROGRAM = """
import { FEATURES, unitFor } from "./standalone/units.js";
const symbols = Array.from(data.text);
const [symbol, state] = [symbols, data.states].map((list) => (position) => list[position]);
const about = { length: symbols.length, symbol, state };
report({
  values: Object.fromEntries(Object.entries(FEATURES).map(([name, { values }]) => [name, values(symbols)])),
  found: Object.fromEntries(Object.keys(FEATURES).map((name) => [name, unitFor(name, about)])),
});
"""


def test_units_are_found_by_correlation(tmp_path):
    text = "Ab, é\ncd 😀!\n"
    line = [1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0]
    capital = [1] + [0] * 11
    states = [[0.5, -0.1 * a, 0.3 * b + 0.01 * a, 0.1] for a, b in zip(line, capital, strict=True)]
    states[4] = None  # not kept
    result = run_node(modules(tmp_path), PROGRAM, {"text": text, "states": states})
    assert result["values"]["line"] == line
    assert result["values"]["capital"] == capital
    assert result["values"]["word"] == [1, 2, 0, 0, 1, 0, 1, 2, 0, 0, 0, 0]
    assert result["values"]["mark"] == [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0]
    assert result["found"]["line"]["place"] == 1
    assert result["found"]["line"]["correlation"] < -0.99
    assert result["found"]["capital"]["place"] == 2
    assert result["found"]["capital"]["correlation"] > 0.98

    empty = run_node(modules(tmp_path), PROGRAM, {"text": "aa", "states": [[1], [2]]})
    assert set(empty["found"].values()) == {None}
    same = run_node(modules(tmp_path), PROGRAM, {"text": "aaaa", "states": [[1], [2], [1], [2]]})
    assert same["found"]["capital"] is None
