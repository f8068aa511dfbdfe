"""The textbook's picture of vanishing gradients: tanh forgets, the identity-initialised ReLU network does not.

Pascanu et al. (2013), "On the difficulty of training recurrent neural networks"; Le, Jaitly and Hinton (2015),
"A simple way to initialize recurrent networks of rectified linear units".
"""

import torch

import prnn

T, B, I, H = 60, 2, 3, 32


def gradient_norm_by_lag(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """|d loss / d x_t| for a loss that looks at the last step alone, by its distance from it: [T], lag 0 first."""
    x = x.clone().requires_grad_()
    output, _ = module(x)
    direction = torch.ones(B, H) / (B * H) ** 0.5
    (gradient,) = torch.autograd.grad(output[-1], x, direction)
    return gradient.flatten(1).norm(dim=1).flip(0)


def test_tanh_forgets_exponentially():
    torch.manual_seed(0)
    module = prnn.RNN(I, H)
    norms = gradient_norm_by_lag(module, torch.randn(T, B, I))
    assert norms[40] < 1e-3 * norms[0]
    # A straight line in the logarithm: each ten steps cost about the same factor, which is under one.
    decades = norms[10:50:10].log().diff()
    assert (decades < -1).all() and decades.std() < 1.5


def test_identity_relu_remembers_while_its_units_are_active():
    torch.manual_seed(0)
    module = prnn.RNN(H, H, nonlinearity="relu")
    with torch.no_grad():
        torch.nn.init.eye_(module.weight_hh_l0)
        torch.nn.init.eye_(module.weight_ih_l0)
        module.bias_ih_l0.zero_()
        module.bias_hh_l0.zero_()
    positive = torch.rand(T, B, H)
    norms = gradient_norm_by_lag(module, positive)
    torch.testing.assert_close(norms, torch.ones(T), rtol=1e-6, atol=0)
    # One of H units switched off at step 20 passes nothing back beyond it; the others still pass everything.
    positive[20, :, 0] = -1000.0
    norms = gradient_norm_by_lag(module, positive)
    expected = torch.ones(T)
    expected[T - 1 - 20 :] = ((H - 1) / H) ** 0.5
    torch.testing.assert_close(norms, expected, rtol=1e-6, atol=0)
