"""Near-duplicates: signatures against the similarity itself and against datasketch, the index against all pairs."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metier.data import minhash
from metier.data.near import Near, NearIndex, groups, jaccard, signatures

WORDS = [f"word{i}" for i in range(5000)]
UNIGRAMS = Near(ngram=1)


def text(rng: random.Random, words: int = 200) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def changed(source: str, every: int) -> str:
    """One word in `every` becomes another."""
    return " ".join("other" + word if i % every == every // 2 else word for i, word in enumerate(source.split()))


def test_the_same_text_has_the_same_signature_everywhere():
    """The numbers themselves: a change of the scheme, which would drop other texts, cannot go unseen."""
    (found,) = signatures(
        ["Diabetes is a disease in which blood glucose levels are above normal."], Near(permutations=32)
    )
    assert found.dtype == np.uint16
    assert found[:4].tolist() == [40837, 7649, 32323, 15801]


def test_case_spacing_and_punctuation_do_not_count():
    one, two = signatures(["The  heart\nbeats: twice!", "the heart BEATS twice"], Near())
    assert (one == two).all()


def test_texts_without_words_are_near_nothing():
    found = signatures(["", "...", "a b c"], Near())
    assert not found[:2].any()
    index: NearIndex[int] = NearIndex(Near())
    assert [index.add(i, row) for i, row in enumerate(found)] == [None, None, None]
    assert len(index) == 1
    assert groups(found, Near()) == [0, 1, 2]


def test_a_text_shorter_than_a_run_is_one_run():
    near = Near()
    assert jaccard("yes", "Yes.", near) == 1
    assert jaccard("yes", "no", near) == 0
    assert jaccard("", "", near) == 0


def test_no_texts_no_rows():
    assert signatures([], Near()).shape == (0, 128)


@pytest.mark.parametrize("every", [100, 20, 8])
def test_estimates_stand_around_the_similarity(every: int):
    """The error of one estimate is sqrt(J (1 - J) / 128); 60 pairs narrow it by 7.7, and three of that are allowed."""
    rng, near, errors = random.Random(every), Near(), []
    for _ in range(60):
        one = text(rng)
        two = changed(one, every)
        a, b = signatures([one, two], near)
        errors.append((a == b).mean() - jaccard(one, two, near))
    assert abs(np.mean(errors)) < 3 * 0.045 / np.sqrt(60)


def test_estimates_are_as_good_as_datasketch():
    datasketch = pytest.importorskip("datasketch")
    rng, near, ours, theirs = random.Random(5), Near(), [], []
    for _ in range(80):
        one = text(rng)
        two = changed(one, 40)
        exact = jaccard(one, two, near)
        a, b = signatures([one, two], near)
        ours.append((a == b).mean() - exact)
        hashed = []
        for source in (one, two):
            words = source.split()
            peer = datasketch.MinHash(num_perm=128, seed=1)
            peer.update_batch([" ".join(words[i : i + 5]).encode() for i in range(len(words) - 4)])
            hashed.append(peer)
        theirs.append(hashed[0].jaccard(hashed[1]) - exact)
    assert np.std(ours) < 1.3 * np.std(theirs)


def test_bands_find_what_the_threshold_asks_for():
    for threshold in (0.5, 0.7, 0.8, 0.9, 1.0):
        bands, rows = Near(jaccard=threshold).bands
        assert bands * rows <= 128
        assert 1 - (1 - threshold**rows) ** bands >= 0.98


def test_the_index_finds_pairs_above_the_threshold_and_no_others():
    rng, near = random.Random(0), Near()
    originals = [text(rng) for _ in range(300)]
    index: NearIndex[str] = NearIndex(near)
    for i, row in enumerate(signatures(originals, near)):
        assert index.add(f"original {i}", row) is None
    close = signatures([changed(t, 200) for t in originals], near)  # J about 0.95
    assert [index.add("copy", row) for row in close] == [f"original {i}" for i in range(300)]
    far = signatures([changed(t, 10) for t in originals], near)  # J about 0.33
    assert not any(index.matches(row) for row in far)
    assert len(index) == 300


def test_a_match_carries_its_estimate():
    near = Near()
    index: NearIndex[str] = NearIndex(near)
    (row,) = signatures(["one two three four five six seven"], near)
    index.insert("a", row)
    (match,) = index.matches(row)
    assert (match.key, match.jaccard) == ("a", 1.0)


def test_the_table_keeps_everything_while_it_grows():
    """Ten times the first size, and a thousand texts of one template, which all share the same bands."""
    rng, near = random.Random(1), Near(ngram=1, permutations=32)
    rows = np.array([[rng.randrange(2**16) for _ in range(32)] for _ in range(12000)], np.uint16)
    rows[5000:6000, :24] = rows[0, :24]
    index: NearIndex[int] = NearIndex(near)
    for i, row in enumerate(rows):
        index.insert(i, row)
    for i in range(0, 12000, 97):
        assert i in [match.key for match in index.matches(rows[i])]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.data())
def test_the_table_agrees_with_looking_at_everything(picks: list[int], data: st.DataObject):
    """Few different values, so that bands collide in every way."""
    table = minhash.Table(permutations=32, bands=16, rows=2)
    rng = np.random.default_rng(data.draw(st.integers(0, 100)))
    kinds = rng.integers(0, 3, (7, 32), dtype=np.uint16)
    for number, pick in enumerate(picks):
        assert table.insert(kinds[pick]) == number
    asked = rng.integers(0, 3, 32, dtype=np.uint16)
    stored = kinds[picks]
    shares_a_band = (stored == asked).reshape(len(picks), 16, 2).all(axis=2).any(axis=1)
    agrees = (stored == asked).mean(axis=1)
    expected = [(i, agrees[i]) for i in range(len(picks)) if shares_a_band[i] and agrees[i] >= 0.5]
    assert [pair for pair in table.near(asked, 0.5) if shares_a_band[pair[0]]] == expected


def test_what_is_dropped_is_near_something_kept():
    """a ~ b ~ c in a chain, a and c apart: c stays, because what it is near to is gone itself."""
    base = [f"w{i}" for i in range(100)]
    a = " ".join(base)
    b = " ".join(base[10:] + [f"x{i}" for i in range(10)])
    c = " ".join(base[20:] + [f"x{i}" for i in range(20)])
    near = Near(ngram=1)
    rows = signatures([a, b, c], near)
    index: NearIndex[str] = NearIndex(near)
    assert [index.add(key, row) for key, row in zip("abc", rows, strict=True)] == [None, "a", None]
    assert groups(rows, near) == [0, 0, 0]


def test_clusters_hold_every_near_pair_and_are_numbered_by_their_first():
    rng, near = random.Random(3), Near()
    texts = []
    for _ in range(40):
        one = text(rng)
        texts += [one, changed(one, 200), one]
    order = list(range(len(texts)))
    rng.shuffle(order)
    found = groups(signatures([texts[i] for i in order], near), near)
    by_family: dict[int, set[int]] = {}
    for place, i in enumerate(order):
        by_family.setdefault(i // 3, set()).add(found[place])
    assert all(len(numbers) == 1 for numbers in by_family.values())
    assert all(found[number] == number for number in found)
    assert len(set(found)) == 40


def test_settings_that_make_no_sense_are_refused():
    for wrong in ({"jaccard": 0.3}, {"jaccard": 1.2}, {"ngram": 0}, {"permutations": 8}, {"threshold": 0.8}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Near(**wrong)
