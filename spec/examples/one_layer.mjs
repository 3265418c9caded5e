// A program for: pytest spec --stdio "node spec/examples/one_layer.mjs". One layer, no gradients.
import { createInterface } from "node:readline";

const sigmoid = (z) => 1 / (1 + Math.exp(-z));
const number = (v) => ({ nan: NaN, inf: Infinity, "-inf": -Infinity })[v] ?? v;
const text = (v) => (Number.isFinite(v) ? v : Number.isNaN(v) ? "nan" : v > 0 ? "inf" : "-inf");

function layer({ input_size: I, hidden_size: H, reverse, lengths }, a, [T, B]) {
  const h = a.h_0.slice(), c = a.c_0.slice(), y = new Array(T * B * H).fill(0);
  for (let b = 0; b < B; b++) {
    const steps = lengths ? lengths[b] : T;
    for (let step = 0; step < steps; step++) {
      const t = reverse ? steps - 1 - step : step;
      const z = Array.from({ length: 4 * H }, (_, row) => {
        let sum = a.bias_ih[row] + a.bias_hh[row];
        for (let k = 0; k < I; k++) sum += a.weight_ih[row * I + k] * a.x[(t * B + b) * I + k];
        for (let k = 0; k < H; k++) sum += a.weight_hh[row * H + k] * h[b * H + k];
        return sum;
      });
      for (let k = 0; k < H; k++) {
        const [i, f, g, o] = [0, 1, 2, 3].map((gate) => z[gate * H + k]);
        c[b * H + k] = sigmoid(f) * c[b * H + k] + sigmoid(i) * Math.tanh(g);
        y[(t * B + b) * H + k] = h[b * H + k] = sigmoid(o) * Math.tanh(c[b * H + k]);
      }
    }
  }
  const made = (shape, data) => ({ shape, data: data.map(text) });
  return { arrays: { y: made([T, B, H], y), h_n: made([B, H], h), c_n: made([B, H], c) } };
}

function answer({ op, config, arrays }) {
  const known = ["input_size", "hidden_size", "bias", "reverse", "lengths"];
  const absent = Object.keys(config).filter((name) => config[name] && !known.includes(name));
  if (op !== "layer" || absent.length || !config.bias) return { unsupported: `no ${absent.join(", ") || op}` };
  const [T, B] = arrays.x.shape;
  const wrong = (config.lengths ?? []).find((length) => length < 0 || length > T);
  if (wrong !== undefined) return { refused: "other", message: `length ${wrong} is not in 0 to ${T}` };
  const missing = ["bias_ih", "bias_hh"].find((name) => !(name in arrays));
  if (missing) return { refused: "other", message: `${missing} is missing` };
  const [I, H] = [config.input_size, config.hidden_size];
  const shapes = { x: [T, B, I], h_0: [B, H], c_0: [B, H], weight_ih: [4 * H, I], weight_hh: [4 * H, H], bias_ih: [4 * H], bias_hh: [4 * H] };
  const strange = Object.keys(shapes).find((name) => `${arrays[name].shape}` !== `${shapes[name]}`);
  if (strange) return { refused: "shape", message: `${strange} is (${arrays[strange].shape}), expected (${shapes[strange]})` };
  if (config.lengths && config.lengths.length !== B) return { refused: "shape", message: `${config.lengths.length} lengths for ${B} rows` };
  return layer(config, Object.fromEntries(Object.entries(arrays).map(([n, v]) => [n, v.data.map(number)])), [T, B]);
}

createInterface({ input: process.stdin }).on("line", (line) => console.log(JSON.stringify(answer(JSON.parse(line)))));
