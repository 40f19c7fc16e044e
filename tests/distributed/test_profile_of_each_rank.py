"""`profile` where several processes train."""


def test_each_rank_writes_its_own_trace(fit_on, tmp_path):
    said = fit_on(2, "two", "strategy=ddp", "training.steps=3", "profile={start: 3, steps: 1}")
    traces = sorted(path.name for path in (tmp_path / "two/profile").glob("*.gz"))
    assert traces == [f"step-00000003-rank-{rank}.trace.json.gz" for rank in (0, 1)]
    assert said.count("profile from step 3 on: ") == 1, "the other rank says so in its own log"
    for rank in (0, 1):
        assert (
            (tmp_path / f"two/profile/step-00000003-rank-{rank}.operators.txt").read_text().startswith(f"rank {rank},")
        )
