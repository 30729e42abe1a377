"""The contrastive loss: the formula by hand, its gradients, its corners."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.run.loss import centre_loss, contrastive_loss, mine_impostors, pair_distances, supervised_loss


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


# One anchor at 0, its genuine partner at 0.5, impostors at 0.2, 0.7 and 1.3.
LINE = torch.tensor([[0.0], [0.5], [0.2], [0.7], [1.3]])
WHO = torch.tensor([0, 0, 1, 2, 3])


@pytest.mark.parametrize(
    ("how", "chosen"),
    [("all", [2, 3, 4]), ("active", [2, 3]), ("semi-hard", [3]), ("hardest", [2])],
)
def test_mining_chooses_an_anchors_impostors(how: str, chosen: list[int]) -> None:
    """All; those inside the margin; of these the ones behind the genuine partner; the nearest."""
    distance = pair_distances(LINE)
    same = WHO[:, None] == WHO[None, :]
    genuine = same & ~torch.eye(5, dtype=torch.bool)
    found = mine_impostors(distance, genuine, ~same, 1.0, how)  # type: ignore[arg-type]
    assert found[0].nonzero().flatten().tolist() == chosen
    assert not (found & same).any()


def test_an_anchor_without_genuine_partner_still_has_semi_hard_impostors() -> None:
    """A single image pushes the others away as well."""
    distance = pair_distances(LINE)
    same = WHO[:, None] == WHO[None, :]
    found = mine_impostors(distance, same & ~torch.eye(5, dtype=torch.bool), ~same, 1.0, "semi-hard")
    assert found[2].nonzero().flatten().tolist() == [0, 1, 3]


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 10), st.integers(1, 4), st.floats(0.03, 1), st.integers(0, 10_000))
def test_the_supervised_loss_is_the_formula_pair_by_pair(count: int, kinds: int, temperature: float, seed: int) -> None:
    """Vectorised against a plain double loop."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(count, 5)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    identity = rng.integers(0, kinds, count)
    cosine = points.astype(float) @ points.T / temperature
    terms = [
        np.log(sum(np.exp(cosine[i, k]) for k in range(count) if k != i)) - cosine[i, j]
        for i in range(count)
        for j in range(count)
        if i != j and identity[i] == identity[j]
    ]
    found = supervised_loss(torch.from_numpy(points), torch.from_numpy(identity), temperature)
    assert float(found) == pytest.approx(np.mean(terms) if terms else 0, rel=1e-3, abs=1e-3)


def test_the_supervised_loss_has_finite_gradients_also_where_embeddings_coincide() -> None:
    """And without genuine pairs none."""
    embeddings = unit([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    (gradient,) = torch.autograd.grad(supervised_loss(embeddings, torch.tensor([0, 0, 1]), 0.05), embeddings)
    assert torch.isfinite(gradient).all()
    assert supervised_loss(unit([[1.0, 0], [0, 1.0]]), torch.tensor([0, 1]), 0.1).item() == 0


def test_a_centre_draws_its_own_and_pushes_other_identities_only() -> None:
    """Two identities with two symmetries each: the turned sister of one's own is no impostor."""
    centres = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.0]]), dim=1)
    image = torch.tensor([[1.0, 0.0]])
    alone = centre_loss(image, centres, torch.tensor([0]), symmetries=2, margin=1.0)
    assert float(alone) == pytest.approx(0, abs=1e-6)
    near = centre_loss(image, centres, torch.tensor([0]), symmetries=1, margin=1.0)
    shortfall = 1 - float(torch.linalg.norm(centres[0] - centres[1]))
    assert float(near) == pytest.approx(shortfall**2 / 2, abs=1e-5)
