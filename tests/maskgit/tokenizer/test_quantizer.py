"""The codebook's search, and how it follows the encoder."""

from __future__ import annotations

import torch

from maskgit.tokenizer.quantizer import Codebook, CodebookTracker


def test_nearest_is_nearest() -> None:
    codebook = Codebook(100, 7)
    codebook.weight.normal_()
    vectors = torch.randn(500, 7)
    distances = (vectors.double()[:, None] - codebook.weight.double()).square().sum(-1)
    smallest, second = distances.topk(2, dim=1, largest=False).values.unbind(1)
    tokens = codebook.nearest(vectors)
    clear = second - smallest > 1e-4
    assert clear.sum() > 450
    assert torch.equal(tokens[clear], distances.argmin(1)[clear])
    chosen = distances.gather(1, tokens[:, None])[:, 0]
    assert (chosen - smallest).max() < 1e-4  # where two are equally near, either
    torch.testing.assert_close(codebook(tokens.view(5, 100)), codebook.weight[tokens].view(5, 100, 7))


def test_nearest_is_exact_under_autocast() -> None:
    codebook = Codebook(2, 1)
    codebook.weight.copy_(torch.tensor([[1000.0], [1001.0]]))  # the same number in bfloat16
    vectors = torch.tensor([[1000.4], [1000.6]])
    with torch.autocast("cpu", torch.bfloat16):
        assert codebook.nearest(vectors).tolist() == [0, 1]


def test_moving_average() -> None:
    """van den Oord et al. (2017), appendix A.1, by hand over two batches; a count of zero is not revived at 0 %."""
    codebook = Codebook(2, 1)
    tracker = CodebookTracker(codebook, decay=0.9, dead_fraction=0.0)
    batches = [([1.0, 2.0, 3.0, 10.0], [0, 0, 0, 1]), ([5.0, 20.0, 30.0, 40.0], [0, 1, 1, 1])]
    count, total = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for values, choice in batches:
        vectors, tokens = torch.tensor(values)[:, None], torch.tensor(choice)
        assert tracker.update(codebook, vectors, tokens) == 0
        for code in range(2):
            own = vectors[tokens == code].double()
            count[code] = 0.9 * count[code] + 0.1 * len(own)
            total[code] = 0.9 * total[code] + 0.1 * own.sum()
        torch.testing.assert_close(codebook.weight[:, 0].double(), total / count, rtol=1e-5, atol=0)


def test_dead_codes_are_revived() -> None:
    codebook = Codebook(4, 2)
    tracker = CodebookTracker(codebook, decay=0.5, dead_fraction=0.1)
    vectors = torch.randn(40, 2)
    everyone = torch.arange(40) % 4
    assert tracker.update(codebook, vectors, everyone) == 0
    # From now on code 3 attracts nothing: its mean count of 5 halves each time, and is dead below 1.
    revived = [int(tracker.update(codebook, vectors, torch.arange(40) % 3)) for _ in range(4)]
    assert revived == [0, 0, 1, 0]
    # It was put on one of the vectors with the count of a fair share, of which one update has left a half.
    assert (codebook.weight[3] - vectors).abs().amax(1).min() < 1e-6
    assert float(tracker.count[3]) == 5
    assert codebook.weight.isfinite().all()


def test_first_batch_spreads_the_codes() -> None:
    """Where 99 % of the vectors are nearly the same, most codes still go to the rest."""
    codebook = Codebook(20, 3)
    tracker = CodebookTracker(codebook)
    vectors = torch.cat([0.01 * torch.randn(990, 3), 5 * torch.randn(10, 3) + 20])[torch.randperm(1000)]
    tracker.start(codebook, vectors)
    assert (codebook.weight[:, None] - vectors).abs().amax(-1).amin(1).max() == 0
    assert (codebook.weight.norm(dim=1) > 5).sum() == 10
    tracker.start(codebook, vectors + 1)  # only the first batch counts
    assert (codebook.weight[:, None] - vectors).abs().amax(-1).amin(1).max() == 0


def test_revived_codes_go_where_they_are_missed() -> None:
    codebook = Codebook(2, 1)
    codebook.weight.copy_(torch.tensor([[0.0], [-100.0]]))
    tracker = CodebookTracker(codebook, decay=0.0)
    vectors = torch.cat([torch.zeros(999, 1), torch.full((1, 1), 50.0)])
    assert tracker.update(codebook, vectors, codebook.nearest(vectors)) == 1
    assert float(codebook.weight[1]) == 50


def test_codes_converge_to_clusters() -> None:
    centres = torch.tensor([[4.0, 0.0], [-4.0, 0.0], [0.0, 4.0], [0.0, -4.0]])
    codebook = Codebook(8, 2)
    tracker = CodebookTracker(codebook, decay=0.9)
    for _ in range(200):
        vectors = centres[torch.randint(4, (64,))] + 0.1 * torch.randn(64, 2)
        tracker.update(codebook, vectors, codebook.nearest(vectors))
    vectors = centres.repeat(50, 1) + 0.1 * torch.randn(200, 2)
    tokens = codebook.nearest(vectors)
    assert (codebook(tokens) - vectors).square().sum(1).mean() < 0.03  # the clusters' own variance is 0.02
    assert len(tokens.unique()) == 8


def test_the_tracker_is_saved_with_its_state() -> None:
    codebook = Codebook(4, 2)
    tracker = CodebookTracker(codebook)
    tracker.update(codebook, torch.randn(40, 2), torch.arange(40) % 4)
    assert set(tracker.state_dict()) == {"count", "total", "started"}
    assert not codebook.weight.requires_grad
