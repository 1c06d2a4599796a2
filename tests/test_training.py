"""The training computes the product's own networks, only in another order."""

import torch

from supertonic.layers import Span
from supertonic.model import Supertonic
from training import fast
from training.loop import initialise
from training.plan import CONFIG


def model() -> Supertonic:
    torch.manual_seed(1)
    network = Supertonic(CONFIG)
    initialise(network)
    return network


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def test_the_fast_forms_equal_the_modules() -> None:
    network, lengths = model(), torch.tensor([23, 11, 17])
    ids = torch.randint(0, 162, (3, 23))
    style = torch.randn(3, CONFIG.n_style, CONFIG.style_dim)
    latent, t = torch.randn(3, 19, CONFIG.latent_dim), torch.rand(3)
    sizes, real = CONFIG.vector_estimator, torch.arange(23) < lengths[:, None]
    with torch.no_grad():
        expected = network.text_encoder(ids, lengths, style)
        encoder = network.text_encoder
        letters = fast.characters(encoder.text_encoder, ids, lengths, CONFIG.text_encoder.dilations)
        text_emb = fast.prompted(encoder.speech_prompted_text_encoder, letters, style)
        assert difference(text_emb[real], expected.mT[real]) < 1e-5

        field = network.vector_estimator.vector_field
        heard = network.vector_estimator.listen(expected, lengths, style)
        span = Span.of(torch.full((3,), 19), 19, torch.float32)
        velocity, _ = fast.velocity(
            field, sizes.dilations, sizes.last_dilations, latent, text_emb, lengths, style, t
        )
        assert difference(velocity.mT, field(latent.mT, span, heard, t)) < 1e-5

        style_dp = torch.randn(3, 8, 16)
        seconds = fast.sentence_seconds(
            network.duration_predictor, ids, lengths, style_dp, CONFIG.duration_predictor.dilations
        )
        assert difference(seconds, network.duration_predictor(ids, lengths, style_dp)) < 1e-5

        network.vocoder.normalizer.scale.fill_(1.0)
        frames = latent.unflatten(2, (CONFIG.ldim, -1)).mT.flatten(1, 2)
        decoder = network.eval().vocoder.decoder
        samples = fast.waveform(decoder, frames, CONFIG.vocoder.dilations)
        assert difference(samples, network.vocoder(latent.mT)) < 1e-5


def test_the_depthwise_gradient_is_right() -> None:
    torch.manual_seed(1)
    x, taps, bias = torch.randn(2, 7, 3), torch.randn(3, 5), torch.randn(3)
    inputs = [tensor.double().requires_grad_() for tensor in (x, taps, bias)]
    for dilation, before, after in ((1, 2, 2), (2, 4, 4), (2, 8, 0)):
        assert torch.autograd.gradcheck(
            lambda *args, d=dilation, b=before, a=after: fast.Depthwise.apply(*args, d, b, a),
            inputs,
        )
