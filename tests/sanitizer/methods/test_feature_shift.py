import pytest
import torch
from torch import nn
from torch.nn import functional

from sanitizer.errors import InvalidSpec
from sanitizer.methods.feature_shift import FeatureShiftStep, draw_anew
from sanitizer.methods.plan import check_applies
from sanitizer.randomness import make_generator
from sanitizer.spec import METHOD_ADAPTER
from tests.sanitizer.methods import runs
from tests.sanitizer.methods.networks import SHAPE, batch, fresh, in_doubles, share_right, trained

TRAINING = {
    "least_epoch_images": 0,
    "phases": [{"epochs": 4, "learning_rate": 0.02}, {"epochs": 2, "learning_rate": 0.005}],
    "batch_size": 20,
    **runs.PLAIN,
}
# What it is hardened against has tests of its own, and takes most of the time.
NOT_HARDENED = {"rho": 0, "random_triggers": False}
METHOD = {
    "name": "argd",
    "teacher": TRAINING,
    "student": TRAINING,
    "hardening": NOT_HARDENED,
    "student_hardening": NOT_HARDENED,
    "node_weights": [0, 0, 0],
    "student_from": "teacher",
    "classifier_shift": 0.01,
}


def classifier(network: nn.Module) -> nn.Linear:
    layer = network.get_submodule("fc")
    assert isinstance(layer, nn.Linear)
    return layer


def test_the_loss_is_cross_entropy_and_the_weighted_inner_product_with_the_old_classifier() -> None:
    network = in_doubles()
    old = classifier(network).weight.detach().clone()
    step = FeatureShiftStep(network, 0.3, make_generator(2))

    losses = step(*batch()).losses

    images, labels = batch()
    assert losses["shift"].item() == pytest.approx(
        0.3 * (classifier(network).weight * old).sum().item()
    )
    torch.testing.assert_close(
        losses["cross_entropy"], functional.cross_entropy(network(images), labels)
    )


def test_the_new_classifier_is_drawn_and_keeps_the_length_of_the_old_one() -> None:
    network = in_doubles()
    old = classifier(network).weight.detach().clone()

    step = FeatureShiftStep(network, 0.3, make_generator(2))

    new = classifier(network).weight.detach().clone()
    assert new.norm().item() == pytest.approx(old.norm().item())
    assert abs(functional.cosine_similarity(new.flatten(), old.flatten(), dim=0).item()) < 0.2
    with torch.no_grad():
        classifier(network).weight.mul_(3)
    step.updated()
    torch.testing.assert_close(classifier(network).weight, nn.Parameter(new))


def test_weights_and_biases_are_drawn_as_torch_draws_those_of_a_new_layer() -> None:
    layer = nn.Linear(400, 300)
    draw_anew(layer, make_generator(2))
    for values in (layer.weight, layer.bias):
        assert 0.98 / 20 < values.abs().max().item() <= 1 / 20
        assert abs(values.mean().item()) < 0.01


def test_of_a_classifier_of_several_layers_the_one_that_gives_the_logits_is_drawn_anew() -> None:
    network = fresh("mobilenet_v3_small")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    FeatureShiftStep(network, 0.3, make_generator(2))
    after = network.state_dict()
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert changed == ["classifier.3.weight", "classifier.3.bias"]


def test_the_same_generator_gives_the_same_classifier() -> None:
    first, second = in_doubles(), in_doubles()
    for network in (first, second):
        FeatureShiftStep(network, 0.3, make_generator(2))
    assert torch.equal(classifier(first).weight, classifier(second).weight)
    assert torch.equal(classifier(first).bias, classifier(second).bias)


def test_a_network_without_a_known_classifier_is_refused_before_anything_is_trained() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(InvalidSpec, match="no layer called"):
        check_applies(METHOD_ADAPTER.validate_python(METHOD), network, SHAPE)
    without = METHOD_ADAPTER.validate_python({"name": "argd", "preset": "paper"})
    check_applies(without, network, SHAPE)
    check_applies(METHOD_ADAPTER.validate_python(METHOD), fresh(), SHAPE)


def test_trained_network_learns_its_classes_again_with_another_classifier() -> None:
    network = trained()
    old = classifier(network).weight.detach().clone()
    state, _figures = runs.run(METHOD, network)
    network.load_state_dict(state)
    assert share_right(network) > 0.8
    turned = functional.cosine_similarity(
        classifier(network).weight.flatten(), old.flatten(), dim=0
    )
    assert turned.item() < 0.5


@pytest.mark.parametrize("die_after", [2, 5])
def test_run_that_is_killed_ends_in_the_same_bits(die_after: int) -> None:
    whole, figures = runs.run(METHOD, trained())
    killed, again = runs.run(METHOD, trained(), die_after=die_after)
    assert runs.same(whole, killed)
    assert figures == again
