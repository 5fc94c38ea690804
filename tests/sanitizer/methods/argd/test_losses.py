from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from sanitizer.methods.argd.graph import edges
from sanitizer.methods.argd.losses import RelationEmbedding, edge_loss, node_loss
from sanitizer.methods.attention import attention_map, pool_to, weights_per_tap
from sanitizer.randomness import make_generator
from tests.sanitizer.methods.argd import plain

AUTHORS_WEIGHTS = (2000.0, 5000.0, 2000.0)


def authors_embedding(golden: dict[str, Tensor]) -> RelationEmbedding:
    """Our projections with the parameters of the authors' modules in them."""
    embedding = RelationEmbedding(3, 3, 6, make_generator(0))
    module = "param.attention.linear_trans_"
    for ours, theirs in (("query", "t.query_layer"), ("key", "s.key_layer")):
        for part, name in (
            ("weight", "linear.weight"),
            ("bias", "linear.bias"),
            ("scale", "bn.weight"),
            ("shift", "bn.bias"),
        ):
            rows = [golden[f"{module}{theirs}.{i}.{name}"].reshape(-1) for i in range(3)]
            getattr(embedding, f"{ours}_{part}").copy_(torch.stack(rows))
    bilinear = f"{module}s.bilinear."
    embedding.bilinear_weight.copy_(golden[f"{bilinear}linear.weight"])
    embedding.bilinear_bias.copy_(golden[f"{bilinear}linear.bias"])
    embedding.bilinear_scale.copy_(golden[f"{bilinear}bn.weight"])
    embedding.bilinear_shift.copy_(golden[f"{bilinear}bn.bias"])
    embedding.teacher_position.copy_(golden["param.attention.p_t"])
    embedding.student_position.copy_(golden["param.attention.p_s"])
    return embedding


@pytest.mark.real_data
def test_values_and_gradients_are_those_of_the_authors_code(shared: Path) -> None:
    golden = load_file(shared / "golden" / "argd_loss.safetensors")

    def close(name: str, value: Tensor) -> None:
        wanted = golden[name].reshape(value.shape)
        # 1e-5 relative, for gradients relative to their largest component.
        torch.testing.assert_close(
            value, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()), msg=name
        )

    features = [golden[f"student_{i}"].requires_grad_() for i in range(3)]
    student = [attention_map(f) for f in features]
    teacher = [attention_map(golden[f"teacher_{i}"]) for i in range(3)]
    for i in range(3):
        close(f"attention_student_{i}", student[i])
        close(f"attention_teacher_{i}", teacher[i])
    for side, nodes in (("student", student), ("teacher", teacher)):
        for pair, edge in zip(("01", "02", "12"), edges(nodes), strict=True):
            close(f"edge_{side}_{pair}", edge)
    node = node_loss(student, teacher, AUTHORS_WEIGHTS)
    edge = edge_loss(student, teacher)
    terms = authors_embedding(golden)(student, teacher)
    close("node", node)
    close("edge", edge)
    close("embedding_terms", terms)
    close("embedding", terms.sum())
    total = node + edge + terms.sum()
    close("total", total)
    gradients = torch.autograd.grad(total, features)
    for i in range(3):
        close(f"grad_student_{i}", gradients[i])


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[Tensor], list[Tensor], int]:
    """Feature maps of student and teacher over 1 to 4 taps of any sizes."""
    generator = make_generator(draw(st.integers(0, 2**32)))
    images = draw(st.integers(2, 4))
    sizes = st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 7))
    shapes = draw(st.lists(sizes, min_size=1, max_size=4))
    sides = [
        [torch.randn(images, *shape, generator=generator).double() for shape in shapes]
        for _ in range(2)
    ]
    return sides[0], sides[1], draw(st.integers(1, 5))


@settings(deadline=None, max_examples=60)
@given(graphs())
def test_vectorised_losses_equal_the_plain_ones_on_any_shapes(
    graph: tuple[list[Tensor], list[Tensor], int],
) -> None:
    features, teacher_features, dim = graph
    student = [attention_map(f).float() for f in features]
    teacher = [attention_map(f).float() for f in teacher_features]
    weights = [1.0 + i for i in range(len(student))]
    embedding = RelationEmbedding(len(teacher), len(student), dim, make_generator(dim))

    for mine, f in zip(student, features, strict=True):
        torch.testing.assert_close(mine, plain.attention_map(f).float(), rtol=1e-4, atol=1e-6)
    assert node_loss(student, teacher, weights).item() == pytest.approx(
        plain.node_loss(student, teacher, weights), rel=1e-4, abs=1e-7
    )
    # An edge is a ratio of distances, so rounding shows where all of them are tiny.
    assert edge_loss(student, teacher).item() == pytest.approx(
        plain.edge_loss(student, teacher), rel=1e-2, abs=1e-3
    )
    assert embedding(student, teacher).tolist() == pytest.approx(
        plain.embedding_terms(embedding, student, teacher), rel=1e-2, abs=1e-4
    )


def test_attention_over_student_nodes_sums_to_one() -> None:
    generator = make_generator(3)
    nodes = [attention_map(torch.randn(4, 3, s, s, generator=generator)) for s in (8, 4)]
    shares = RelationEmbedding(2, 2, 5, generator).attention(nodes, nodes)
    assert shares.shape == (4, 2, 2)
    torch.testing.assert_close(shares.sum(dim=2), torch.ones(4, 2))


def test_projections_are_drawn_as_the_authors_layers_are_and_by_the_generator_alone() -> None:
    """Those of a number uniform in [-1, 1], that of a query within 1 / sqrt(d) (torch's default of
    a linear layer), positions normal with Xavier's variance of 2 / (nodes + d)."""
    torch.manual_seed(1)
    drawn = RelationEmbedding(3, 5, 512, make_generator(7)).state_dict()
    torch.manual_seed(2)
    again = RelationEmbedding(3, 5, 512, make_generator(7)).state_dict()
    other = RelationEmbedding(3, 5, 512, make_generator(8)).state_dict()

    bounds = {"query": 1.0, "key": 1.0, "bilinear": 512**-0.5}
    for name, bound in bounds.items():
        for part in ("weight", "bias"):
            largest = drawn[f"{name}_{part}"].abs().max().item()
            assert 0.98 * bound < largest <= bound
        assert drawn[f"{name}_scale"].eq(1).all()
        assert drawn[f"{name}_shift"].eq(0).all()
    for name, nodes in (("teacher_position", 3), ("student_position", 5)):
        assert drawn[name].std().item() == pytest.approx((2 / (nodes + 512)) ** 0.5, rel=0.1)
    for name, value in drawn.items():
        assert torch.equal(value, again[name])
        assert torch.equal(value, other[name]) == name.endswith(("scale", "shift"))


def test_a_student_equal_to_its_teacher_has_neither_node_nor_edge_loss() -> None:
    nodes = [attention_map(torch.randn(4, 3, s, s, generator=make_generator(s))) for s in (8, 4)]
    assert node_loss(nodes, nodes, (1.0, 1.0)).item() == 0
    assert edge_loss(nodes, nodes).item() == 0


@pytest.mark.parametrize("size", [(2, 2), (4, 2), (8, 8), (3, 5), (8, 3), (16, 16), (8, 24)])
def test_pooling_equals_adaptive_average_pooling(size: tuple[int, int]) -> None:
    maps = torch.randn(2, 1, 8, 8, generator=make_generator(0))
    torch.testing.assert_close(
        pool_to(maps, size), torch.nn.functional.adaptive_avg_pool2d(maps, size)
    )


@pytest.mark.parametrize(
    ("taps", "weights"),
    [
        (1, (9000.0,)),
        (2, (4500.0, 4500.0)),
        (3, AUTHORS_WEIGHTS),
        (4, pytest.approx((9 / 7 * 1000, 22500 / 7, 22500 / 7, 9 / 7 * 1000))),
    ],
)
def test_published_weights_are_stretched_over_any_number_of_taps(
    taps: int, weights: tuple[float, ...]
) -> None:
    assert weights_per_tap(None, AUTHORS_WEIGHTS, taps) == weights


def test_node_weights_of_another_number_than_taps_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 4 node weights, one per tap, got 3"):
        weights_per_tap((1, 2, 3), AUTHORS_WEIGHTS, 4)
