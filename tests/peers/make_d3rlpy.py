"""Files of d3rlpy: ``save_model`` and ``save``, with pixels scaled and, which is its default, not.

python tests/peers/make_d3rlpy.py FOLDER [--small]
"""

from __future__ import annotations

import torch
from d3rlpy.algos import DQNConfig
from d3rlpy.models.encoders import PixelEncoderFactory
from d3rlpy.models.q_functions import QRQFunctionFactory
from d3rlpy.preprocessing import PixelObservationScaler
from recording import Recording, balance, draw

RECORDING = Recording("d3rlpy", "gymnasium")


def save(name, *, scaler=None, files=("pt", "d3"), **options):
    """Save with both of the library's ways."""
    filters, units = ([[4, 8, 4], [4, 4, 2], [4, 3, 1]], 8) if RECORDING.small else (None, 512)
    encoder = PixelEncoderFactory(filters=filters, feature_size=units)
    algorithm = DQNConfig(observation_scaler=scaler, encoder_factory=encoder, **options).create(device="cpu:0")
    frames = RECORDING.frames
    algorithm.create_impl(frames.shape[1:], RECORDING.actions)
    (network,) = algorithm.impl.q_function
    draw(network, reads_bytes=scaler is None)
    draw(algorithm.impl.modules.targ_q_funcs[0])
    pixels = torch.as_tensor(frames).float()
    outputs = []
    hook = network._fc.register_forward_hook(lambda module, args, output: outputs.append(output.detach()))
    with torch.no_grad():
        network(pixels if scaler is None else scaler.transform(pixels))
    hook.remove()
    balance(network._fc, outputs[0])
    actions = algorithm.predict(frames)
    if "pt" in files:
        algorithm.save_model(str(RECORDING.out / f"d3rlpy_{name}.pt"))
        RECORDING.add(f"d3rlpy_{name}_model", f"d3rlpy_{name}.pt", actions)
    if "d3" in files:
        algorithm.save(str(RECORDING.out / f"d3rlpy_{name}.d3"))
        RECORDING.add(f"d3rlpy_{name}", f"d3rlpy_{name}.d3", actions)


torch.set_num_threads(1)
save("dqn", scaler=PixelObservationScaler())
if not RECORDING.small:
    save("bytes")
    save("qrdqn", scaler=PixelObservationScaler(), q_func_factory=QRQFunctionFactory(n_quantiles=32), files=("d3",))
