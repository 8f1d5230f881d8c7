import numpy as np
import pytest

from evaluation.usage import codebook_usage


def test_uniform_ids_use_everything():
    usage = codebook_usage(np.arange(160).reshape(4, 40) % 16, 16)
    assert usage["usage"] == 1
    assert usage["perplexity"] == pytest.approx(16, rel=1e-12)


def test_a_constant_uses_one_code():
    usage = codebook_usage(np.full((3, 5, 1), 7), 8)
    assert usage == {"usage": 1 / 8, "perplexity": pytest.approx(1)}


def test_perplexity_of_unequal_shares():
    # Shares 1/2, 1/4, 1/4 of 5 codes: the entropy is 1.5 bits.
    usage = codebook_usage(np.array([0, 0, 3, 4]), 5)
    assert usage == {"usage": 3 / 5, "perplexity": pytest.approx(2**1.5)}


@pytest.mark.parametrize("wrong", [-1, 4])
def test_an_id_outside_the_codebook_is_refused(wrong):
    with pytest.raises(ValueError):  # noqa: PT011
        codebook_usage(np.array([0, wrong]), 4)
