"""A chain as C99: one header and one source, no heap, no library, in float or in 8-bit integers.

Results of a layer lie channels last, so that the innermost loop runs over output channels, whose weights lie side by
side: compilers make vector instructions of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np

from torchrl_rtpd.deploy.chain import Chain, ChainLayer
from torchrl_rtpd.deploy.quantised import QuantisedChain
from torchrl_rtpd.deploy.selfcheck import C_COUNT

__all__ = ["c_header", "c_identifier", "c_source"]


def c_identifier(stem: str) -> str:
    """Return a file's name as a C identifier.

    Raises:
        ValueError: a name that no ``#include`` can hold.

    Examples:
        >>> c_identifier("net17-best.v2"), c_identifier("17")
        ('net17_best_v2', 'student_17')
    """
    if any(letter in stem for letter in '"\\\n\r'):
        raise ValueError(f"format c needs a name without quotes, backslashes and line breaks: got {stem!r}.")
    name = re.sub(r"\W", "_", stem, flags=re.ASCII)
    return name if name[:1].isalpha() else f"student_{name}"


def c_header(name: str, chain: Chain, contract: str, quantised: QuantisedChain | None) -> str:
    """Return the header: the contract as a comment, sizes and two functions."""
    upper, kind = name.upper(), _input_type(chain)
    comment = "\n".join(f" * {line}".rstrip() for line in contract.replace("*/", "* /").splitlines())
    integers = f"Define {upper}_INT8 for 8-bit integers." if quantised else "There are no 8-bit integers in it."
    return f"""/*
{comment}
 *
 * C99, no heap, no library. Static working memory: not for two threads at once. {integers}
 */
#ifndef {upper}_H
#define {upper}_H

#include <stdint.h>

#define {upper}_INPUTS {int(np.prod(chain.shape))}
#define {upper}_ACTIONS {len(chain.layers[-1].bias)}

/* Values of all actions for one observation, whose numbers lie in the order of the contract's shape. */
void {name}_values(const {kind} *observation, float *values);

/* The action of the largest value. */
int {name}_action(const {kind} *observation);

/* Number of values that are not the recorded ones; 0 if all is well. Compiled with {upper}_SELF_CHECK only. */
int {name}_self_check(void);

#endif
"""


def c_source(name: str, chain: Chain, quantised: QuantisedChain | None, recorded: dict[str, np.ndarray]) -> str:
    """Return the source.

    Args:
        name: prefix of what it exports.
        chain: the layers.
        quantised: the same in integers; None leaves them out.
        recorded: values ``[N, A]`` of the self-check's inputs under "c" and "c_int8".
    """
    upper = name.upper()
    parts = [f'#include "{name}.h"\n']
    if quantised is None:
        parts += [f"#ifdef {upper}_INT8\n#error no 8-bit integers: export with calibration states\n#endif\n"]
        parts += [_float_part(name, chain), *_check_part(name, chain, {"c": recorded["c"]})]
    else:
        parts += [f"#ifdef {upper}_INT8\n", _integer_part(name, quantised), "#else\n", _float_part(name, chain)]
        parts += ["#endif\n", *_check_part(name, chain, recorded)]
    return "\n".join(parts)


def _float_part(name: str, chain: Chain) -> str:
    tables, functions = [], []
    for place, layer in enumerate(chain.layers):
        source = _input_type(chain) if place == 0 else "float"
        weight = _in_c_order(layer, chain, place)
        tables += [_table("float", f"weight{place}", weight), _table("float", f"bias{place}", layer.bias)]
        store = "sum[o] > 0.0f ? sum[o] : 0.0f" if layer.relu else "sum[o]"
        functions.append(_function(place, chain, source, "float", "float", "float", store))
    return "\n".join([*tables, *functions, _run(name, chain, ["float"] * (len(chain.layers) - 1))])


def _integer_part(name: str, quantised: QuantisedChain) -> str:
    chain, tables, functions, kinds = quantised.chain, [], [], []
    for place, layer in enumerate(quantised.hidden):
        last = layer.out_scale is None
        source = ChainLayer(layer.weight, layer.bias, layer.source.stride, True, layer.source.size)
        scale = layer.weight_scale.astype(np.float64) * layer.in_scale / (layer.out_scale or 1.0)
        tables += [
            _table("int8_t", f"weight{place}", _in_c_order(source, chain, place)),
            _table("int32_t", f"bias{place}", layer.bias),
            _table("float", f"scale{place}", scale),
        ]
        kinds.append("float" if last else "uint8_t")
        rounded = f"cut((float)sum[o] * scale{place}[o])" if last else f"to_byte((float)sum[o] * scale{place}[o])"
        functions.append(_function(place, chain, "uint8_t", "int8_t", "int32_t", kinds[-1], rounded))
    head = len(quantised.hidden)
    tables += [
        _table("float", f"weight{head}", _in_c_order(quantised.head, chain, head)),
        _table("float", f"bias{head}", quantised.head.bias),
    ]
    functions.append(_function(head, chain, "float", "float", "float", "float", "sum[o]"))
    cutting = "static float cut(float value) { return value > 0.0f ? value : 0.0f; }\n"
    byte = """static uint8_t to_byte(float value) {
  if (value <= 0.0f) return 0;
  return value >= 254.5f ? 255 : (uint8_t)(value + 0.5f);
}
"""
    helpers = [cutting, *([byte] if "uint8_t" in kinds else [])]
    return "\n".join([*tables, *helpers, *functions, _run(name, chain, kinds)])


def _function(place: int, chain: Chain, source: str, weight: str, sums: str, result: str, store: str) -> str:
    """One layer; ``store`` is the result for output ``o``."""
    layer = chain.layers[place]
    outputs = len(layer.bias)
    begin = f"{sums} sum[{outputs}];\n{{indent}}for (o = 0; o < {outputs}; ++o) sum[o] = bias{place}[o];"
    shape = _dense if layer.weight.ndim == 2 else _conv
    step = partial(_step, weight=f"const {weight} *w = weight{place}", outputs=outputs, sums=sums)
    body = shape(place, chain, begin, step, store, 1 if sums == "int32_t" else 4)
    return f"static void layer{place}(const {source} *in, {result} *out) {{\n{body}}}\n"


def _step(inputs: Sequence[str], row: str, indent: str, *, weight: str, outputs: int, sums: str) -> str:
    """Add some inputs, whose weights lie in rows one behind the other, to all sums: they are read and written once."""
    values = [f"const {sums} value{number} = ({sums}){place};" for number, place in enumerate(inputs)]
    cast = "(int32_t)" if sums == "int32_t" else ""
    products = [f"value{number} * {cast}w[{number * outputs} + o]" for number in range(len(inputs))]
    lines = [*values, f"{weight} + {outputs} * {row};", f"for (o = 0; o < {outputs}; ++o) {{"]
    return f"\n{indent}".join([*lines, f"  sum[o] += {' + '.join(products)};", "}"])


def _together(count: int, most: int) -> int:
    """Number of inputs that are added at once."""
    return next(number for number in range(most, 0, -1) if count % number == 0)


def _dense(place: int, chain: Chain, begin: str, step: Callable[..., str], store: str, most: int) -> str:
    outputs, inputs = chain.layers[place].weight.shape
    together = _together(inputs, most)
    added = step([f"in[i + {number}]" for number in range(together)], "i", "    ")
    return f"""  int i, o;
  {begin.format(indent="  ")}
  for (i = 0; i < {inputs}; i += {together}) {{
    {added}
  }}
  for (o = 0; o < {outputs}; ++o) out[o] = {store};
"""


def _conv(place: int, chain: Chain, begin: str, step: Callable[..., str], store: str, most: int) -> str:
    """A convolution; the first one reads channels first, as observations have them."""
    layer = chain.layers[place]
    outputs, channels, rows, columns = layer.weight.shape
    height, width = chain.shape[1:] if place == 0 else chain.layers[place - 1].size
    down, across = layer.stride
    at, together = f"(y * {down} + i) * {width} + x * {across} + j", _together(channels, most)
    inputs = [
        f"in[(c + {number}) * {height * width} + {at}]" if place == 0 else f"in[({at}) * {channels} + c + {number}]"
        for number in range(together)
    ]
    added = step(inputs, f"((i * {columns} + j) * {channels} + c)", "            ")
    return f"""  int y, x, i, j, c, o;
  for (y = 0; y < {layer.size[0]}; ++y) {{
    for (x = 0; x < {layer.size[1]}; ++x) {{
      {begin.format(indent="      ")}
      for (i = 0; i < {rows}; ++i) {{
        for (j = 0; j < {columns}; ++j) {{
          for (c = 0; c < {channels}; c += {together}) {{
            {added}
          }}
        }}
      }}
      for (o = 0; o < {outputs}; ++o) out[(y * {layer.size[1]} + x) * {outputs} + o] = {store};
    }}
  }}
"""


def _run(name: str, chain: Chain, kinds: list[str]) -> str:
    """The functions of the header, and the memory between the layers."""
    sizes = [len(layer.bias) * layer.size[0] * layer.size[1] for layer in chain.layers[:-1]]
    memory = [
        f"static {kind} between{place}[{size}];" for place, (kind, size) in enumerate(zip(kinds, sizes, strict=True))
    ]
    names = ["observation", *(f"between{place}" for place in range(len(sizes))), "values"]
    calls = [f"  layer{place}({names[place]}, {names[place + 1]});" for place in range(len(chain.layers))]
    actions = len(chain.layers[-1].bias)
    body = "\n".join(calls)
    return f"""{chr(10).join(memory)}

void {name}_values(const {_input_type(chain)} *observation, float *values) {{
{body}
}}

int {name}_action(const {_input_type(chain)} *observation) {{
  float values[{actions}];
  int o, best = 0;
  {name}_values(observation, values);
  for (o = 1; o < {actions}; ++o) {{
    if (values[o] > values[best]) best = o;
  }}
  return best;
}}
"""


def _check_part(name: str, chain: Chain, recorded: dict[str, np.ndarray]) -> Iterable[str]:
    """Inputs drawn as in selfcheck.py, their values as recorded."""
    upper, actions = name.upper(), len(chain.layers[-1].bias)
    draw = "(uint8_t)(state >> 24)" if chain.dtype == "uint8" else "(float)(state >> 8) / 8388608.0f - 1.0f"
    yield f"#ifdef {upper}_SELF_CHECK\n"
    for kind, values in sorted(recorded.items()):
        spread = float(np.ptp(values))
        limit = max(spread, 1e-6) * (0.05 if kind == "c_int8" else 1e-3)
        guard = f"#ifdef {upper}_INT8" if kind == "c_int8" else f"#ifndef {upper}_INT8"
        table = _table("float", "recorded", values[:C_COUNT])
        yield f"{guard}\n{table}static const float limit = {_float(limit)};\n#endif\n"
    yield f"""int {name}_self_check(void) {{
  static {_input_type(chain)} observation[{upper}_INPUTS];
  float values[{actions}];
  int wrong = 0, n, i, o;
  for (n = 0; n < {C_COUNT}; ++n) {{
    uint32_t state = (uint32_t)n + 1u;
    for (i = 0; i < {upper}_INPUTS; ++i) {{
      state ^= state << 13;
      state ^= state >> 17;
      state ^= state << 5;
      observation[i] = {draw};
    }}
    {name}_values(observation, values);
    for (o = 0; o < {actions}; ++o) {{
      const float difference = values[o] - recorded[n * {actions} + o];
      if (!(difference <= limit && difference >= -limit)) ++wrong;
    }}
  }}
  return wrong;
}}
#endif
"""


def _in_c_order(layer: ChainLayer, chain: Chain, place: int) -> np.ndarray:
    """Weights ``[kernel, kernel, in, out]`` of a convolution; of a dense layer ``[in, out]``, inputs channels last."""
    if layer.weight.ndim == 4:
        return layer.weight.transpose(2, 3, 1, 0)
    weight = layer.weight
    before = chain.layers[place - 1] if place else None
    if before is not None and before.size != (1, 1):
        weight = weight.reshape(len(weight), len(before.bias), -1).transpose(0, 2, 1).reshape(len(weight), -1)
    return weight.T


def _input_type(chain: Chain) -> str:
    return "uint8_t" if chain.dtype == "uint8" else "float"


def _table(kind: str, name: str, values: np.ndarray) -> str:
    numbers = [_float(value) if kind == "float" else str(int(value)) for value in np.ravel(values)]
    lines = [", ".join(numbers[start : start + 12]) for start in range(0, len(numbers), 12)]
    return f"static const {kind} {name}[{len(numbers)}] = {{\n  " + ",\n  ".join(lines) + "\n};\n"


def _float(value: float) -> str:
    text = f"{np.float32(value):.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"
