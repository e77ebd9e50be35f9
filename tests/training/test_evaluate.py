import torch
from torch import nn

from dst.training.evaluate import evaluate


def test_figures_and_no_trace():
    """Two batches of unequal size: every sample counts once; model, mode and randomness stay as they are."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2), nn.Dropout(0.5))
    model[0].weight.data = torch.eye(2)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    batches = [
        (torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1, 1])),
        (torch.tensor([[0.0, 1.0]]), torch.tensor([1])),
    ]
    result = evaluate(model, batches)
    assert result.accuracy == 0.75
    scaled = 1 / (1 + 1e-5) ** 0.5  # batch norm with its initial statistics
    right, wrong = (torch.log1p(torch.exp(torch.tensor(sign * scaled))).item() for sign in (-1, 1))
    assert abs(result.loss - (3 * right + wrong) / 4) < 1e-6
    assert model.training
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
