// Masks over a typed sentence. The data are {words, query, key, pads}: the last word is the padding, the others are the
// sentence at the start, and each has a row in `query` and in `key`.

const MOST = 10; // words of a sentence
const MASKS = ["none", "padding", "causal", "both"];

function build({ words, query, key, pads }) {
  const pad = words[words.length - 1];
  let tokens = []; // words, and pads before or after them
  let where = 1; // the pads: 0 nowhere, 1 at the end, 2 in front
  let mask = 3; // its place in MASKS
  let showing = 0; // 0 weights, 1 scores
  let chosen = -1; // the row that is told in words
  const rows = [[]]; // buttons of the queries, all in one lane

  // The query and key of a word: the ones given, or, for a new word, random ones that its letters choose.
  function vectors(word) {
    const known = words.indexOf(word);
    if (known >= 0) return [query[known], key[known]];
    let seed = 0;
    for (const letter of word) seed = (Math.imul(seed, 31) + letter.codePointAt(0)) >>> 0;
    const entry = () => {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      return (seed >>> 24) / 64 - 2; // from -2 to 2
    };
    return [query[0].map(entry), key[0].map(entry)];
  }

  // Why query i may not look at key j; "" if it may.
  function why(i, j) {
    if (mask & 1 && tokens[j] === pad) return "padding";
    return mask & 2 && j > i ? "later" : "";
  }

  function weightsOf(scores, i) {
    const allowed = scores.map((_, j) => !why(i, j));
    const largest = Math.max(...scores.filter((_, j) => allowed[j]));
    const exponentials = scores.map((score, j) => (allowed[j] ? Math.exp(score - largest) : 0));
    const sum = exponentials.reduce((a, b) => a + b);
    return exponentials.map((exponential) => (sum ? exponential / sum : 0)); // nothing allowed: zeros
  }

  const input = make("input", { type: "text", value: words.slice(0, -1).join(" "), autocomplete: "off", spellcheck: "false", maxlength: 120, "aria-label": "sentence" });
  const text = make("p", { class: "tpp-text", "aria-live": "polite" });
  const table = make("table", { class: "tpp-matrix" });
  const box = make("div", { class: "tpp-scroll" }, table);
  const choices = [
    ["padding", ["none", "at the end", "in front"], (place) => { where = place; read(); }],
    ["mask", MASKS, (place) => { mask = place; draw(); }],
    ["numbers", ["weights in %", "scores"], (place) => { showing = place; draw(); }],
  ].map(([label, names, choose]) => radios(label, names, choose));
  useArrows(table, rows, ["ArrowUp", "ArrowDown"], ["ArrowLeft", "ArrowRight"], (_, place) => pick(place));
  input.addEventListener("input", read);

  function read() {
    const typed = input.value.split(/\s+/).filter((word) => word && word !== pad).slice(0, MOST);
    const filling = where ? Array(pads).fill(pad) : [];
    tokens = where === 2 ? [...filling, ...typed] : [...typed, ...filling];
    chosen = -1;
    draw();
  }

  function draw() {
    const all = tokens.map(vectors);
    const width = Math.sqrt(query[0].length);
    rows[0] = tokens.map((word, i) => {
      const button = make("button", { type: "button", "aria-pressed": i === chosen }, word);
      button.addEventListener("click", () => pick(i === chosen ? -1 : i));
      return button;
    });
    rows[0].forEach((button, i) => { button.tabIndex = i === Math.max(0, chosen) ? 0 : -1; });
    const lines = tokens.map((_, i) => {
      const scores = all.map(([, k]) => all[i][0].reduce((sum, entry, d) => sum + entry * k[d], 0) / width);
      const weights = weightsOf(scores, i);
      const cells = tokens.map((_, j) => {
        const forbidden = why(i, j);
        const cell = make("td", { class: forbidden && "tpp-forbidden" });
        if (!forbidden) cell.style.backgroundColor = orange(weights[j], 0.55);
        if (showing) cell.textContent = forbidden ? "−∞" : scores[j].toFixed(1);
        else cell.append(...(forbidden ? [make("span", { class: "tpp-unseen" }, "forbidden"), make("span", { "aria-hidden": "true" }, "×")] : [String(Math.round(100 * weights[j]))]));
        return cell;
      });
      const line = make("tr", { class: i === chosen ? "tpp-shown" : "" }, make("th", { scope: "row" }, rows[0][i]), ...cells);
      line.addEventListener("click", (event) => { if (!event.target.closest("button")) pick(i); });
      return line;
    });
    const heads = tokens.map((word) => make("th", { scope: "col" }, make("span", {}, word)));
    table.replaceChildren(
      make("caption", {}, `each row looks at the columns; ${showing ? "−∞" : "×"} is forbidden`),
      make("thead", {}, make("tr", {}, make("td"), ...heads)), make("tbody", {}, ...lines),
    );
    tell();
  }

  function pick(i) {
    chosen = i;
    rows[0].forEach((button, place) => {
      button.setAttribute("aria-pressed", place === chosen);
      button.tabIndex = place === Math.max(0, chosen) ? 0 : -1;
      button.closest("tr").classList.toggle("tpp-shown", place === chosen);
    });
    tell();
  }

  function tell() {
    const named = (places) => places.map((j) => `"${tokens[j]}"`).join(", ");
    const of = (reason) => tokens.map((_, j) => j).filter((j) => why(chosen, j) === reason);
    if (!tokens.length) text.textContent = "Type some words.";
    else if (chosen < 0) text.textContent = "Choose a word on the left: this line then says what it may look at.";
    else {
      const [seen, later, filling] = ["", "later", "padding"].map(of);
      const parts = [`Position ${chosen}, "${tokens[chosen]}", may look at ${seen.length ? named(seen) : "nothing: all its weights are 0"}.`];
      if (later.length) parts.push(`Not at ${named(later)}: ${later.length > 1 ? "they come" : "it comes"} later.`);
      if (filling.length) parts.push(`Not at ${filling.length} ${pad}: padding.`);
      text.textContent = parts.join(" ");
    }
  }

  const fields = choices.map((group) => make("div", { class: "tpp-field" }, make("span", { "aria-hidden": "true" }, group.getAttribute("aria-label")), group));
  choices[0].choose(where);
  choices[1].choose(mask);
  choices[2].choose(showing);
  return make("div", {}, make("label", { class: "tpp-field" }, make("span", {}, "sentence"), input), ...fields, text, box);
}
