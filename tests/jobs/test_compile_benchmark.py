"""The benchmark that compiles for pods: a row of what fits, and of what does not."""

from benchmarks.compile import HEAD, cells

KNOWN = {"images": 2048, "bytes_per_chip": 9 * 2**30, "hbm_bytes": 2**34, "compile_seconds": 41.6}


def test_a_row_has_the_columns_of_the_head():
    fits = KNOWN | {"fits": True, "seconds": {"memory": 0.2, "compute": 0.0504, "links": 0.01}, "mfu_bound": 0.252}
    row = cells("VAR-d30", "v6e:16x16", fits)
    assert row == ["VAR-d30", "v6e:16x16", "2048", "9.0 of 16.0", "50, 200, 10", "25%", "42 s"]
    assert len(row) == len(HEAD)


def test_what_does_not_fit_has_no_bounds():
    row = cells("VAR-d30", "v6e:16x16", KNOWN | {"fits": False, "bytes_per_chip": 60 * 2**30})
    assert row == ["VAR-d30", "v6e:16x16", "2048", "60.0 of 16.0", "does not fit", "", "42 s"]
