"""The contrastive loss: the formula by hand, its gradients, its corners."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.loss import contrastive_loss, pair_distances


def unit(points: list[list[float]]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(points), dim=1).requires_grad_()


def test_the_loss_is_the_formula_worked_out_by_hand() -> None:
    """Two identities at right angles: every impostor pair is sqrt(2) apart, the one genuine pair 0.6."""
    embeddings = torch.tensor([[0.0, 0.0], [0.6, 0.0], [0.0, 0.8]])
    genuine, impostor = contrastive_loss(embeddings, torch.tensor([7, 7, 9]), margin=1.5, impostors="all")
    assert float(genuine) == pytest.approx(0.6**2 / 2, abs=1e-6)
    # pairs (0, 2) at 0.8 and (1, 2) at 1.0
    assert float(impostor) == pytest.approx((0.7**2 + 0.5**2) / 2 / 2, abs=1e-6)


def test_active_averages_over_impostors_inside_the_margin_only() -> None:
    """A solved pair neither pushes nor thins out the push of the others."""
    embeddings = torch.tensor([[0.0, 0.0], [0.8, 0.0], [0.0, 5.0]])
    identity = torch.tensor([0, 1, 2])
    _, active = contrastive_loss(embeddings, identity, margin=1.0, impostors="active")
    _, every = contrastive_loss(embeddings, identity, margin=1.0, impostors="all")
    assert float(active) == pytest.approx(0.2**2 / 2, abs=1e-6)
    assert float(every) == pytest.approx(0.2**2 / 2 / 3, abs=1e-6)


def test_gradients_are_finite_where_embeddings_coincide() -> None:
    """Identical images, genuine and impostor: the square root's infinite slope must not become NaN."""
    embeddings = unit([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    genuine, impostor = contrastive_loss(embeddings, torch.tensor([0, 0, 1]), margin=1.0)
    (gradient,) = torch.autograd.grad(genuine + impostor, embeddings)
    assert torch.isfinite(gradient).all()


def test_a_step_downhill_draws_genuine_pairs_together_and_pushes_impostors_apart() -> None:
    """The loss's whole purpose."""
    embeddings = unit([[1.0, 0.2], [1.0, -0.2], [0.9, 0.5]])
    genuine, impostor = contrastive_loss(embeddings, torch.tensor([0, 0, 1]), margin=1.0)
    (gradient,) = torch.autograd.grad(genuine + impostor, embeddings)
    before, after = pair_distances(embeddings), pair_distances(embeddings - 0.05 * gradient)
    assert after[0, 1] < before[0, 1]
    assert after[0, 2] > before[0, 2]


@pytest.mark.parametrize("identity", [[0, 0, 0], [0, 1, 2]])
def test_a_batch_without_one_kind_of_pair_has_zero_for_it(identity: list[int]) -> None:
    """Not NaN."""
    genuine, impostor = contrastive_loss(unit([[1.0, 0], [0, 1.0], [1.0, 1.0]]), torch.tensor(identity), margin=0.5)
    assert torch.isfinite(genuine + impostor)
    assert (genuine if identity[0] != identity[1] else impostor).item() == 0


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 12), st.integers(1, 4), st.floats(0.1, 2), st.integers(0, 10_000))
def test_the_loss_over_all_pairs_is_the_mean_of_each_pairs_loss(
    count: int, kinds: int, margin: float, seed: int
) -> None:
    """Vectorised against a plain double loop."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(count, 5)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    identity = rng.integers(0, kinds, count)
    genuine, impostor = [], []
    for i in range(count):
        for j in range(i):
            distance = float(np.linalg.norm(points[i].astype(float) - points[j]))
            if identity[i] == identity[j]:
                genuine.append(distance**2 / 2)
            else:
                impostor.append(max(0.0, margin - distance) ** 2 / 2)
    found = contrastive_loss(torch.from_numpy(points), torch.from_numpy(identity), margin, "all")
    assert float(found[0]) == pytest.approx(np.mean(genuine) if genuine else 0, abs=1e-5)
    assert float(found[1]) == pytest.approx(np.mean(impostor) if impostor else 0, abs=1e-5)
