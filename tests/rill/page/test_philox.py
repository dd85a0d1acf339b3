"""shared/philox.js gives NumPy's values."""

import numpy as np
import pytest
from hypothesis import strategies as st
from node import drawn, modules, run_node

from rill.sampling import uniforms

SEEDS = st.one_of(st.integers(0, 100), st.integers(0, 2**64 - 1), st.integers(2**53 - 2, 2**53 + 2))
STARTS = st.one_of(st.integers(0, 20), st.integers(0, 2**40))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return modules(tmp_path_factory.mktemp("node"))


def test_values_are_numpys(folder):
    cases = [(7, 0, 4), (0, 0, 3), (2**64 - 1, 0, 20), *drawn(st.tuples(SEEDS, STARTS, st.integers(1, 20)), 100)]
    program = """
    import { Uniforms } from "./shared/philox.js";
    report(data.map(([seed, start, count]) => {
      const uniforms = new Uniforms(BigInt(seed));
      return Array.from({ length: count }, (_, index) => uniforms.at(start + index));
    }));
    """
    found = run_node(folder, program, [(str(seed), start, count) for seed, start, count in cases])
    for (seed, start, count), values in zip(cases, found, strict=True):
        assert np.array_equal(np.array(values, np.float32), uniforms(seed, start, count)), (seed, start, count)


def test_seeds_as_people_type_them(folder):
    program = """
    import { Uniforms, seedOf } from "./shared/philox.js";
    const result = (call) => { try { return String(call()); } catch (error) { return error.name; } };
    const makers = [() => new Uniforms(7), () => new Uniforms(-1n)];
    report([...data.map((text) => () => seedOf(text)), ...makers].map(result));
    """
    texts = ["0", " 7 ", str(2**64 - 1), str(2**64), "-1", "1.5", "1e3", "", "seed", "9" * 10_000]
    found = run_node(folder, program, texts)
    assert found == ["0", "7", str(2**64 - 1), *["RangeError"] * 9]
