"""The optimizer kernel against torch's Adam."""

import torch
from kernels.triton_device import DEVICE

from saelab.kernels import reference
from saelab.kernels.triton.step.adam import scale_kernel, vector_kernel


def test_three_steps_equal_the_reference_and_torch():
    lr, betas, eps = 1e-2, (0.9, 0.99), 1e-8
    gradients = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    p = torch.ones(5, device=DEVICE)
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    expected, first, second = p.clone(), m.clone(), v.clone()
    weights = torch.nn.Parameter(p.clone())
    adam = torch.optim.Adam([weights], lr=lr, betas=betas, eps=eps)
    for step, gradient in enumerate(gradients, start=1):
        rates = [lr / (1 - betas[0] ** step), (1 - betas[1] ** step) ** 0.5]
        vector_kernel[(1,)](
            p, m, v, gradient, torch.zeros_like(p), torch.tensor(rates, device=DEVICE),
            torch.tensor([0.5], device=DEVICE), 4.0, 5, CLIP=True,
            B1=betas[0], B2=betas[1], EPS=eps, BLOCK=8,
        )  # fmt: skip
        expected, first, second = reference.adam(
            expected, 2 * gradient, (first, second), step, lr=lr, betas=betas
        )
        weights.grad = 2 * gradient
        adam.step()
    torch.testing.assert_close(p, expected)
    torch.testing.assert_close(p, weights.detach())


def test_the_scale_makes_rows_unit_and_survives_a_row_of_zeros():
    squares = torch.tensor([[9.0, 16.0], [0.0, 0.0], [0.25, 0.0]], device=DEVICE)
    scale = torch.empty(3, device=DEVICE)
    scale_kernel[(1,)](squares, scale, 3, CHUNKS=2, BLOCK=4)
    torch.testing.assert_close(scale.cpu(), torch.tensor([0.2, 1e12, 2.0]))
