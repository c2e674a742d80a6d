// Bars of a softmax: a slider goes over the steps. The data are {slider, steps, start, keys, colors, charts}, where each
// chart has a title and its scores, steps x keys; colors holds red, green and blue of each key, or is null.

function softmax(scores) {
  const largest = Math.max(...scores);
  const exponentials = scores.map((score) => Math.exp(score - largest));
  const sum = exponentials.reduce((a, b) => a + b);
  return exponentials.map((exponential) => exponential / sum);
}

// The largest entry of the derivative a_i (delta_ij - a_j). It stands on the diagonal: the others are a_i a_j, and a_j is
// one of the terms of 1 - a_i. Those are added up, since 1 - a_i loses its digits where a_i is nearly 1.
function steepest(weights) {
  const rest = (i) => weights.reduce((sum, weight, j) => (i === j ? sum : sum + weight), 0);
  return Math.max(...weights.map((weight, i) => weight * rest(i)));
}

// 0.213, 0.00042, 3e-12
const few = (number) => (number >= 0.01 || !number ? number.toFixed(3) : number >= 1e-5 ? number.toFixed(5) : number.toExponential(0));

const rgb = (parts) => `rgb(${parts.map((part) => Math.round(255 * part)).join(", ")})`;

function build({ slider: label, steps, start, keys, colors, charts }) {
  const text = make("p", { class: "tpp-told", "aria-live": "polite" });
  const drawn = charts.map(({ title }) => {
    const rows = keys.map((name, j) => {
      const bar = make("i", { "aria-hidden": "true" });
      if (colors) bar.style.backgroundColor = rgb(colors[j]);
      return make("tr", {}, make("th", { scope: "row" }, name), make("td"), make("td", { class: "tpp-bar" }, bar), make("td"));
    });
    const heads = ["key", "score", "", "weight"].map((name) => make(name ? "th" : "td", name ? { scope: "col" } : {}, name));
    const caption = title ? [make("caption", {}, title)] : [];
    return { rows, table: make("table", { class: "tpp-bars" }, ...caption, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows)) };
  });
  const swatch = make("span", { class: "tpp-swatch", "aria-hidden": "true" });
  const mixture = make("p", { class: "tpp-mixture" }, swatch, make("span"));
  mixture.hidden = !colors;

  function show(step) {
    const told = charts.map(({ title, scores }, c) => {
      const weights = softmax(scores[step]);
      drawn[c].rows.forEach((row, j) => {
        const [, score, bar, weight] = row.children;
        score.textContent = scores[step][j].toFixed(2);
        bar.firstChild.style.width = `${100 * weights[j]}%`;
        weight.textContent = weights[j].toFixed(2);
      });
      if (colors) {
        const mixed = [0, 1, 2].map((part) => weights.reduce((sum, weight, j) => sum + weight * colors[j][part], 0));
        swatch.style.backgroundColor = rgb(mixed);
        mixture.lastChild.textContent = `mixture: red ${mixed[0].toFixed(2)}, green ${mixed[1].toFixed(2)}, blue ${mixed[2].toFixed(2)}`;
      }
      const largest = Math.max(...weights);
      const which = keys[weights.indexOf(largest)];
      return `${title && `${title}: `}${which} has the largest weight, ${largest.toFixed(2)}; the largest derivative is ${few(steepest(weights))}.`;
    });
    text.replaceChildren(...told.map((sentence) => make("span", {}, sentence)));
  }

  show(start);
  const control = slider(label, { max: steps.length - 1, value: start }, (step) => steps[step], show);
  return make("div", {}, control, text, make("div", { class: "tpp-side-by-side" }, ...drawn.map(({ table }) => table)), mixture);
}
