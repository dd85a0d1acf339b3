"""The sampler agrees with a second implementation of its rules, one character at a time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rill.train.config import ModelConfig
from rill.train.nets.model import CharacterModel
from rill.train.nets.sample import choose, generate, uniforms_of_seed
from rill.vocabulary import UnknownCharacterError, Vocabulary

MARGIN = 1e-5  # closer to a boundary than this, f32 and f64 may fairly differ


def contract(
    logits: list[float],
    u: float,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    never_ids: tuple[int, ...],
) -> int:
    """The sampling rules for one row, in float64 and plain Python; rejects examples close to a boundary."""
    allowed = [i for i in range(len(logits)) if i not in never_ids]
    best = max(logits[i] for i in allowed)
    if temperature == 0:
        return next(i for i in allowed if logits[i] == best)
    mass = {i: math.exp((logits[i] - best) / temperature) for i in allowed}

    def renormalised(kept: dict[int, float]) -> dict[int, float]:
        total = sum(kept.values())
        return {i: p / total for i, p in kept.items()}

    p = renormalised(mass)
    if top_k:
        p = renormalised({i: p[i] for i in p if sum(q > p[i] for q in p.values()) < top_k})
    if top_p < 1:
        above = {i: sum(q for q in p.values() if q > p[i]) for i in p}
        assume(all(abs(m - top_p) > MARGIN for m in above.values()))
        p = renormalised({i: p[i] for i in p if above[i] < top_p})
    if min_p:
        floor = min_p * max(p.values())
        assume(all(abs(q - floor) > MARGIN * floor or min_p == 1 for q in p.values()))
        p = renormalised({i: q for i, q in p.items() if q >= floor})
    cumulative = 0.0
    for i, q in sorted(p.items()):
        cumulative += q
        assume(abs(cumulative - u) > MARGIN)
        if cumulative > u:
            return i
    return max(p)


# A coarse grid makes ties common and near-ties impossible.
GRID = st.integers(-12, 12).map(lambda n: n / 4)
ROW = st.tuples(
    st.integers(0, 2**24 - 1).map(lambda n: n / 2**24),
    st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    st.integers(0, 9),
    st.sampled_from([0.01, 0.1, 0.5, 0.9, 1.0, 1.5]),
    st.sampled_from([0.0, 0.05, 0.3, 1.0]),
)


@settings(max_examples=400)
@given(st.integers(3, 8), st.sampled_from([(), (0,), (1,), (0, 2)]), st.data())
def test_choose_is_the_contract(vocabulary: int, never_ids: tuple[int, ...], data: st.DataObject) -> None:
    rows = data.draw(st.lists(ROW, min_size=1, max_size=3))
    logits = [data.draw(st.lists(GRID, min_size=vocabulary, max_size=vocabulary)) for _ in rows]
    expected = [contract(row, *parameters, never_ids) for row, parameters in zip(logits, rows, strict=True)]
    u, temperature, top_k, top_p, min_p = zip(*rows, strict=True)
    chosen = choose(
        torch.tensor(logits),
        torch.tensor(u),
        torch.tensor(temperature),
        torch.tensor(top_k),
        torch.tensor(top_p),
        torch.tensor(min_p),
        never_ids,
    )
    assert chosen.dtype == torch.int64
    assert chosen.tolist() == expected


def one(logits: list[float], u: float, *, temperature: float = 1.0, k: int = 0, p: float = 1.0, m: float = 0.0) -> int:
    values = [torch.tensor([value]) for value in (u, temperature, k, p, m)]
    return int(choose(torch.tensor([logits]), *values))


def test_ties_are_kept_together_and_drawn_in_vocabulary_order() -> None:
    # two equal seconds: top-k 2 keeps all three
    assert [one([1.0, 2.0, 1.0, -9.0], u, k=2) for u in (0.0, 0.3, 0.999)] == [0, 1, 2]
    assert [one([1.0, 2.0, 1.0, -9.0], u, k=1) for u in (0.0, 0.999)] == [1, 1]
    # a third each: with 0.4 the first of them fills it, and its equals stay
    assert {one([0.0, 0.0, 0.0], u, p=0.2) for u in (0.1, 0.5, 0.9)} == {0, 1, 2}


def test_greedy_takes_the_first_of_equals_whatever_the_filters() -> None:
    assert one([0.0, 3.0, 3.0], 0.999, temperature=0.0, k=5, p=0.5, m=0.5) == 1


def test_extreme_temperatures_stay_finite() -> None:
    assert one([0.0, 1.0, 80.0], 0.999999, temperature=1e-6) == 2
    assert one([-1e30, 0.0, 1e30], 0.5) == 2


def test_uniforms_are_the_contracts() -> None:
    np.testing.assert_allclose(uniforms_of_seed(7, 4), [0.16372651, 0.8720734, 0.97226334, 0.29536533])
    np.testing.assert_allclose(uniforms_of_seed(0, 3), [0.03474188, 0.01154673, 0.6119502], rtol=1e-6)
    torch.testing.assert_close(uniforms_of_seed(7, 20)[:5], uniforms_of_seed(7, 5), rtol=0, atol=0)


@pytest.fixture
def model() -> CharacterModel:
    torch.manual_seed(2)
    return CharacterModel(ModelConfig(hidden=16), 5).eval()


def test_a_text_depends_on_the_seed_and_begins_with_its_shorter_self(model: CharacterModel) -> None:
    vocabulary = Vocabulary.of_text("\nabcd")
    text = generate(model, vocabulary, "ab", 60, seed=7)
    assert len(text) == 60
    assert text[:20] == generate(model, vocabulary, "ab", 20, seed=7)
    assert text != generate(model, vocabulary, "ab", 60, seed=8)
    assert generate(model, vocabulary, "", 30, seed=7) == generate(model, vocabulary, "\n", 30, seed=7)


def test_the_prompt_can_be_fed_in_parts(model: CharacterModel) -> None:
    vocabulary = Vocabulary.of_text("\nabcd")
    greedy = generate(model, vocabulary, "abc", 20, temperature=0)
    assert generate(model, vocabulary, "abc" + greedy[:7], 13, temperature=0) == greedy[7:]


def test_unknown_is_read_but_never_produced(model: CharacterModel) -> None:
    with torch.no_grad():
        model.linear.bias[0] = 50.0  # the model's favourite
    vocabulary = Vocabulary(("<unk>", "a", "b", "c", "d"))
    assert set(generate(model, vocabulary, "azb", 50)) <= set("abcd")


def test_a_prompt_outside_the_vocabulary_is_refused(model: CharacterModel) -> None:
    with pytest.raises(UnknownCharacterError, match="'z'"):
        generate(model, Vocabulary.of_text("\nabcd"), "az", 5)
