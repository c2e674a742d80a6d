// The book's Transformer in plain JavaScript: tokenizer, encoder, cached decoder, greedy decoding, beam search, sampling.
// It computes what transformer_lib computes, from weights of 8 bits, with sums in 64 bits: the same tokens come out.
// Vectors are Float64Arrays; several of them stand one after the other in one array. No page is needed: see try.js.
(() => {
  "use strict";
  const BOS = 1, EOS = 2;

  // ---- Text to ids and back: byte-level BPE (chapter 13) ---------------------------------------------------

  const SPACES = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"; // as Unicode defines white space
  const OUTER = `[${SPACES}\\x1c-\\x1f]+`; // what Python strips
  const ENDS = new RegExp(`^${OUTER}|${OUTER}$`, "g");
  const WORDS = new RegExp( // a word with the space before it, a number, signs, or spaces
    `'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^${SPACES}\\p{L}\\p{N}]+|[${SPACES}]+(?![^${SPACES}])|[${SPACES}]+`, "gu");
  const LETTERS = []; // a visible letter for each byte: its own, or one from 256 on
  for (let byte = 0, next = 256; byte < 256; byte++) {
    const visible = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
    LETTERS.push(String.fromCharCode(visible ? byte : next++));
  }
  const UTF8 = new TextDecoder("utf-8", { ignoreBOM: true }); // bytes that are no letter become U+FFFD, as in Python
  const BYTES = new Map(LETTERS.map((letter, byte) => [letter, byte]));

  class Tokenizer {
    // tokens: the text of each id; merges: pairs "a b", the first learned first.
    constructor({ tokens, merges }) {
      this.tokens = tokens;
      this.ids = new Map(tokens.map((token, id) => [token, id]));
      this.ranks = new Map(merges.map((pair, rank) => [pair, rank]));
      this.known = new Map(); // words that were cut before
    }

    encode(text) {
      const words = text.replace(ENDS, "").normalize("NFC").match(WORDS) ?? [];
      return words.flatMap((word) => {
        if (!this.known.has(word)) this.known.set(word, this.cut(word));
        return this.known.get(word);
      });
    }

    // Join the neighbors whose merge was learned first, until no two neighbors are a merge.
    cut(word) {
      const parts = Array.from(new TextEncoder().encode(word), (byte) => LETTERS[byte]);
      for (;;) {
        let best = Infinity, place = -1;
        for (let i = 0; i + 1 < parts.length; i++) {
          const rank = this.ranks.get(`${parts[i]} ${parts[i + 1]}`);
          if (rank < best) [best, place] = [rank, i];
        }
        if (place < 0) return parts.map((part) => this.ids.get(part));
        parts.splice(place, 2, parts[place] + parts[place + 1]);
      }
    }

    decode(ids) {
      const letters = ids.filter((id) => id > EOS).map((id) => this.tokens[id]).join("");
      const bytes = Uint8Array.from(letters, (letter) => BYTES.get(letter));
      return UTF8.decode(bytes);
    }
  }

  // ---- Arithmetic ------------------------------------------------------------------------------------------

  // x W^T + b. Two rows of W for four vectors at a time, and four rows for one vector, so that each number that is fetched
  // is used several times, and no sum waits for another. Where the last rows are too few, the last one is computed again.
  function linear(x, { data, rows, columns }, bias) {
    const count = x.length / columns, y = new Float64Array(count * rows), last = rows - 1;
    const vector = vectors(x, columns), result = vectors(y, rows);
    let n = 0;
    for (; n + 4 <= count; n += 4) {
      const [p, q, r, s] = vector.slice(n, n + 4), [out, out2, out3, out4] = result.slice(n, n + 4);
      for (let row = 0; row < rows; row += 2) {
        const row2 = Math.min(row + 1, last), at = row * columns, at2 = row2 * columns;
        let a = bias ? bias[row] : 0, b = a, c = a, d = a, e = bias ? bias[row2] : 0, f = e, g = e, h = e;
        for (let k = 0; k < columns; k++) {
          const w = data[at + k], v = data[at2 + k], pk = p[k], qk = q[k], rk = r[k], sk = s[k];
          a += w * pk, b += w * qk, c += w * rk, d += w * sk;
          e += v * pk, f += v * qk, g += v * rk, h += v * sk;
        }
        out[row] = a, out2[row] = b, out3[row] = c, out4[row] = d;
        out[row2] = e, out2[row2] = f, out3[row2] = g, out4[row2] = h;
      }
    }
    for (; n < count; n++) {
      const p = vector[n], out = result[n];
      for (let row = 0; row < rows; row += 4) {
        const row2 = Math.min(row + 1, last), row3 = Math.min(row + 2, last), row4 = Math.min(row + 3, last);
        const at = row * columns, at2 = row2 * columns, at3 = row3 * columns, at4 = row4 * columns;
        let a = 0, b = 0, c = 0, d = 0;
        for (let k = 0; k < columns; k++) {
          const pk = p[k];
          a += data[at + k] * pk, b += data[at2 + k] * pk, c += data[at3 + k] * pk, d += data[at4 + k] * pk;
        }
        out[row] = a, out[row2] = b, out[row3] = c, out[row4] = d;
      }
      if (bias) for (let row = 0; row < rows; row++) out[row] += bias[row];
    }
    return y;
  }

  const add = (x, y) => x.map((value, i) => value + y[i]);
  const relu = (x) => x.map((value) => (value > 0 ? value : 0));
  const vectors = (x, width) => Array.from({ length: x.length / width }, (_, n) => x.subarray(n * width, (n + 1) * width));

  function layerNorm(x, gain, shift) {
    const width = gain.length, y = new Float64Array(x.length);
    for (let start = 0; start < x.length; start += width) {
      let mean = 0, variance = 0;
      for (let k = 0; k < width; k++) mean += x[start + k] / width;
      for (let k = 0; k < width; k++) variance += (x[start + k] - mean) ** 2 / width;
      const scale = 1 / Math.sqrt(variance + 1e-5);
      for (let k = 0; k < width; k++) y[start + k] = (x[start + k] - mean) * scale * gain[k] + shift[k];
    }
    return y;
  }

  function softmax(scores) {
    const most = scores.reduce((a, b) => Math.max(a, b), -Infinity);
    const powers = scores.map((score) => Math.exp(score - most)), sum = powers.reduce((a, b) => a + b, 0);
    return powers.map((power) => power / sum);
  }

  // One query, the keys and values that it may see: softmax(q K^T / sqrt(d_k)) V in each head, and the weights of each head.
  function attend(query, keys, values, heads) {
    const width = query.length / heads, output = new Float64Array(query.length), weights = [];
    for (let start = 0; start < query.length; start += width) {
      const scores = new Float64Array(keys.length);
      keys.forEach((key, j) => {
        let score = 0;
        for (let k = start; k < start + width; k++) score += query[k] * key[k];
        scores[j] = score / Math.sqrt(width);
      });
      const ofHead = softmax(scores);
      values.forEach((value, j) => {
        for (let k = start; k < start + width; k++) output[k] += ofHead[j] * value[k];
      });
      weights.push(ofHead);
    }
    return { output, weights };
  }

  // ---- The model (chapters 6 to 12) ------------------------------------------------------------------------

  class Transformer {
    // tensors: [name, shape] of each; bytes: all numbers of 32 bits, then all of 8, as transformer_lib.book.in_the_browser
    // writes them. A matrix has a scale for each row.
    constructor({ config, tensors }, bytes) {
      this.config = config;
      const floats = (start, count) => new Float32Array(bytes.buffer, start, count);
      const size = ([, shape]) => shape.reduce((a, b) => a * b);
      let float = 0, whole = 4 * tensors.reduce((sum, tensor) => sum + (tensor[1].length > 1 ? tensor[1][0] : size(tensor)), 0);
      this.weights = {};
      for (const tensor of tensors) {
        const [name, [rows, columns]] = tensor;
        const numbers = floats(float, rows);
        float += 4 * rows;
        if (columns === undefined) this.weights[name] = numbers;
        else {
          const data = new Float32Array(rows * columns), small = new Int8Array(bytes.buffer, whole, rows * columns);
          for (let i = 0; i < data.length; i++) data[i] = small[i] * numbers[Math.floor(i / columns)];
          whole += data.length;
          this.weights[name] = { data, rows, columns };
        }
      }
    }

    map(x, name) {
      return linear(x, this.weights[`${name}.weight`], this.weights[`${name}.bias`]);
    }

    norm(x, name) {
      const gain = this.weights[`${name}.weight`];
      return gain ? layerNorm(x, gain, this.weights[`${name}.bias`]) : x; // a post-norm stack has none at its end
    }

    // x + sublayer(x), with the norm before (pre-norm) or after.
    residual(x, name, sublayer) {
      if (this.config.norm_first) return add(x, sublayer(this.norm(x, `${name}.norm`)));
      return this.norm(add(x, sublayer(x)), `${name}.norm`);
    }

    feedForward(x, layer) {
      return this.map(relu(this.map(x, `${layer}.feed_forward.inner`)), `${layer}.feed_forward.outer`);
    }

    // The vector of each token, and where it stands.
    embed(tokens, position) {
      const { data, columns: width } = this.weights["embedding.weight"];
      const x = new Float64Array(tokens.length * width);
      tokens.forEach((token, n) => {
        for (let k = 0; k < width; k += 2) {
          const angle = position(n) * 10000 ** (-k / width), from = token * width + k, to = n * width + k;
          x[to] = data[from] * Math.sqrt(width) + Math.sin(angle);
          x[to + 1] = data[from + 1] * Math.sqrt(width) + Math.cos(angle);
        }
      });
      return x;
    }

    // The keys and values of an attention, a vector for each position.
    keysAndValues(x, name) {
      const [keys, values] = ["key", "value"].map((of) => vectors(this.map(x, `${name}.${of}_projection`), this.config.d_model));
      return { keys, values };
    }

    // What every position of x finds: see(n) gives the keys and values that position n may see, keep(n, weights) gets its
    // weights.
    attention(x, name, see, keep) {
      const queries = vectors(this.map(x, `${name}.query_projection`), this.config.d_model), found = new Float64Array(x.length);
      queries.forEach((query, n) => {
        const { keys, values } = see(n), { output, weights } = attend(query, keys, values, this.config.num_heads);
        found.set(output, n * query.length);
        keep(n, weights);
      });
      return this.map(found, `${name}.output_projection`);
    }

    // Read a source, ids with <eos> at their end. attention[layer][head][query] are the encoder's weights, cross[layer] the
    // keys and values that the decoder sees, projected once.
    read(ids) {
      const { num_encoder_layers: layers, num_decoder_layers: decoderLayers, num_heads: heads } = this.config;
      let x = this.embed(ids, (n) => n);
      const attention = [];
      for (let l = 0; l < layers; l++) {
        const name = `encoder.layers.${l}`, maps = Array.from({ length: heads }, () => []);
        x = this.residual(x, `${name}.residual_1`, (y) => {
          const all = this.keysAndValues(y, `${name}.self_attention`);
          const keep = (_, weights) => maps.forEach((map, h) => map.push(weights[h]));
          return this.attention(y, `${name}.self_attention`, () => all, keep);
        });
        x = this.residual(x, `${name}.residual_2`, (y) => this.feedForward(y, name));
        attention.push(maps);
      }
      const memory = this.norm(x, "encoder.norm");
      const cross = Array.from({ length: decoderLayers }, (_, l) =>
        this.keysAndValues(memory, `decoder.layers.${l}.cross_attention`));
      return { ids, attention, cross };
    }

    // Let the decoder read the last token of some beginnings of equal length. A beginning is a node that knows the one before
    // it, and the nodes are the cache: each keeps its token's keys and values. It is given `logits` of the token that follows,
    // and its attention: decoder[layer][head] to the tokens before it and itself, cross[layer][head] to the source.
    step(source, nodes) {
      const length = nodes[0].length, before = nodes.map(path);
      let x = this.embed(nodes.map((node) => node.token), () => length);
      for (const node of nodes) Object.assign(node, { kept: [], decoder: [], cross: [] });
      source.cross.forEach((memory, l) => {
        const name = `decoder.layers.${l}`;
        x = this.residual(x, `${name}.residual_1`, (y) => {
          const { keys, values } = this.keysAndValues(y, `${name}.self_attention`);
          nodes.forEach((node, n) => node.kept.push({ key: keys[n], value: values[n] }));
          const kept = (n, what) => before[n].map((node) => node.kept[l][what]);
          const see = (n) => ({ keys: kept(n, "key"), values: kept(n, "value") });
          return this.attention(y, `${name}.self_attention`, see, (n, weights) => nodes[n].decoder.push(weights));
        });
        x = this.residual(x, `${name}.residual_2`, (y) =>
          this.attention(y, `${name}.cross_attention`, () => memory, (n, weights) => nodes[n].cross.push(weights)));
        x = this.residual(x, `${name}.residual_3`, (y) => this.feedForward(y, name));
      });
      const logits = linear(this.norm(x, "decoder.norm"), this.weights["embedding.weight"]), size = this.config.vocab_size;
      // Of 32 bits, as in Python: what is equal there is equal here.
      nodes.forEach((node, n) => { node.logits = Float32Array.from(logits.subarray(n * size, (n + 1) * size)); });
    }
  }

  // ---- Beginnings of a translation: <bos>, and what goes on from there -------------------------------------

  const begin = () => ({ parent: null, token: BOS, length: 0, logProbability: 0 });
  const goOn = (parent, token, logProbability) => ({ parent, token, length: parent.length + 1, logProbability });

  // The nodes from <bos> to this one.
  function path(node) {
    const nodes = [];
    for (; node; node = node.parent) nodes.unshift(node);
    return nodes;
  }

  // The ids that a node has written, without <bos> and <eos>.
  const written = (node) => path(node).map(({ token }) => token).filter((token) => token > EOS || token < BOS);

  function logSumExp(logits) {
    let most = -Infinity, sum = 0;
    for (const logit of logits) if (logit > most) most = logit;
    for (const logit of logits) sum += Math.exp(logit - most);
    return Math.fround(most + Math.log(sum));
  }

  // The places of the largest numbers, the largest first.
  function largest(numbers, count) {
    const places = [];
    for (let i = 0; i < numbers.length; i++) {
      if (places.length === count && !(numbers[i] > numbers[places[count - 1]])) continue;
      let at = places.length;
      while (at > 0 && numbers[i] > numbers[places[at - 1]]) at--;
      places.splice(at, 0, i);
      if (places.length > count) places.pop();
    }
    return places;
  }

  // ---- Decoding (chapter 16): generators, which stop after each token so that a page can show it ------------

  // Token after token: choose turns logits into a token. `forced` tokens come first.
  function* writeTokens(model, source, limit, choose, forced = []) {
    let node = begin();
    do {
      model.step(source, [node]);
      const token = forced[node.length] ?? choose(node.logits);
      node = goOn(node, token, node.logProbability + node.logits[token] - logSumExp(node.logits));
      yield { kept: [node], finished: [] };
    } while (node.token !== EOS && node.length < limit);
    return [{ node, score: node.logProbability }];
  }

  const likeliest = (logits) => largest(logits, 1)[0];

  // The next tokens, likeliest first, as [token, probability]; those beyond the first that together have probability topP are 0.
  function nextTokens(logits, temperature, topP) {
    const probabilities = softmax(Float64Array.from(logits, (logit) => logit / temperature));
    const order = Array.from(probabilities.keys()).sort((a, b) => probabilities[b] - probabilities[a]);
    let before = 0;
    return order.map((token) => {
      const allowed = before < topP;
      before += probabilities[token];
      return { token, probability: probabilities[token], allowed };
    });
  }

  // A choice for writeTokens: draw from the allowed.
  const draw = (temperature, topP, random = Math.random) => (logits) => {
    const allowed = nextTokens(logits, temperature, topP).filter((next) => next.allowed);
    let rest = random() * allowed.reduce((sum, next) => sum + next.probability, 0);
    return (allowed.find((next) => (rest -= next.probability) < 0) ?? allowed[0]).token;
  };

  // Keep the `size` likeliest beginnings. A finished translation of n tokens, <eos> counted, has the score
  // log p / ((5 + n) / 6)^alpha, and the search ends when nothing unfinished can beat the best of them.
  function* beamSearch(model, source, limit, size = 4, alpha = 0.6) {
    const penalty = (length) => ((5 + length) / 6) ** alpha;
    const finished = [];
    let beam = [begin()];
    for (let length = 1; ; length++) {
      model.step(source, beam);
      const candidates = beam.flatMap((node) => {
        const all = logSumExp(node.logits);
        return largest(node.logits, 2 * size).map((token) => // sums of 32 bits, as in Python
          goOn(node, token, Math.fround(Math.fround(node.logits[token] - all) + node.logProbability)));
      });
      const best = largest(candidates.map((node) => node.logProbability), 2 * size).map((place) => candidates[place]);
      const scored = (node) => ({ node, score: node.logProbability / penalty(length) });
      const ended = best.filter((node) => node.token === EOS).map(scored);
      finished.push(...ended);
      finished.sort((a, b) => b.score - a.score);
      beam = best.filter((node) => node.token !== EOS).slice(0, size);
      yield { kept: beam, finished: ended };
      const reachable = beam[0].logProbability / penalty(limit); // it can only get less likely
      if (finished.length && (length === limit || finished[0].score >= reachable)) return finished.slice(0, size);
      if (length === limit) return beam.map(scored);
    }
  }

  // The most tokens that a translation may have: 50 more than its source (paper, section 6.1).
  const limitOf = (model, source) => Math.min(source.ids.length + 50, model.config.max_length);

  globalThis.tppTranslator = {
    BOS, EOS, Tokenizer, Transformer, beamSearch, draw, likeliest, limitOf, nextTokens, path, writeTokens, written,
  };
})();
