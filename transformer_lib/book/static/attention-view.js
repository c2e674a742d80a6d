// Attention: choose a head, point at a token, see where it looks. The data are {start: {group, layer, head},
// groups: [{name, queries, keys, layers}]}, where layers[layer][head] holds the weights in thousandths, one row of keys
// after the other.

const ROW = 26; // height of a token in pixels, as in the style sheet

// A token in quotes, with its number if there are several of it.
function quote(tokens, i) {
  const again = tokens.indexOf(tokens[i]) !== tokens.lastIndexOf(tokens[i]);
  return `"${tokens[i]}"` + (again ? ` (${i})` : "");
}

// One head, a pixel for each weight.
function thumbnail(weights, rows, columns) {
  const canvas = make("canvas", { width: columns, height: rows, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  weights.forEach((weight, i) => {
    context.fillStyle = orange(weight / 1000);
    context.fillRect(i % columns, Math.floor(i / columns), 1, 1);
  });
  return canvas;
}

function build({ start, groups }) {
  let { group, layer, head } = start;
  let pinned = null; // the token that was clicked or focused: {side: 0 for queries or 1 for keys, index}
  let pointed = null; // the token under the mouse, which comes first
  let lines; // an <svg>
  const heads = []; // buttons of the heads, a lane for each layer
  const tokens = []; // buttons of the queries, and of the keys

  const groupBox = radios("Attention", groups.map(({ name }) => name), chooseGroup);
  const headBox = make("div", { class: "tpp-heads", role: "radiogroup", "aria-label": "Layer and head" });
  const title = make("p", { class: "tpp-title" });
  const text = make("p", { class: "tpp-text", "aria-live": "polite" });
  const tokenBox = make("div", { class: "tpp-tokens" });
  const left = make("div", { class: "tpp-left" }, groupBox, headBox);
  const right = make("div", { class: "tpp-right" }, title, text, tokenBox);
  const view = make("div", { class: "tpp-side-by-side" }, left, right);

  groupBox.hidden = groups.length === 1;
  // The tallest group decides, so that nothing below moves when another is chosen.
  const mostTokens = Math.max(...groups.flatMap(({ queries, keys }) => [queries.length, keys.length]));
  tokenBox.style.minHeight = `${(1 + mostTokens) * ROW}px`;
  useArrows(headBox, heads, ["ArrowLeft", "ArrowRight"], ["ArrowUp", "ArrowDown"], chooseHead);
  useArrows(tokenBox, tokens, ["ArrowUp", "ArrowDown"], ["ArrowLeft", "ArrowRight"], pin);
  tokenBox.addEventListener("keydown", (event) => {
    if (event.key === "Escape") unpin();
  });

  function chooseGroup(i) {
    group = i;
    pinned = pointed = null;
    drawHeads();
    drawTokens();
    layer = Math.min(layer, heads.length - 1);
    chooseHead(layer, Math.min(head, heads[layer].length - 1));
  }

  function drawHeads() {
    const { layers, queries, keys } = groups[group];
    const buttons = layers.map((ofLayer, l) => ofLayer.map((weights, h) => {
      const name = `layer ${l}, head ${h}`;
      const button = make("button", { type: "button", role: "radio", "aria-label": name, title: name });
      button.append(thumbnail(weights, queries.length, keys.length));
      button.addEventListener("click", () => chooseHead(l, h));
      return button;
    }));
    heads.splice(0, Infinity, ...buttons);
    const most = Math.max(...heads.map((lane) => lane.length));
    const many = most > 6; // then they are smaller, with a number above in place of a name
    const names = Array.from({ length: most }, (_, h) => make("span", { "aria-hidden": "true" }, many ? `${h}` : `head ${h}`));
    const rows = heads.map((lane, l) => [make("i", { "aria-hidden": "true" }, `layer ${l}`), ...lane]);
    headBox.style.gridTemplateColumns = `46px repeat(${most}, minmax(26px, ${many ? 38 : 54}px))`;
    headBox.replaceChildren(make("i", { "aria-hidden": "true" }, many ? "head" : ""), ...names, ...rows.flat());
  }

  function drawTokens() {
    const { queries, keys } = groups[group];
    const titles = ["looks", "is looked at"];
    const buttons = [queries, keys].map((words, side) => words.map((word, index) => {
      const button = make("button", { type: "button", "aria-pressed": "false", tabindex: -1 });
      button.append(make("span", {}, word), make("b"));
      button.addEventListener("pointerenter", (event) => {
        if (event.pointerType === "mouse") point({ side, index });
      });
      button.addEventListener("pointerleave", () => point(null));
      button.addEventListener("focus", () => {
        if (button.matches(":focus-visible")) pin(side, index);
      });
      button.addEventListener("click", () => {
        if (button.getAttribute("aria-pressed") === "true") unpin();
        else pin(side, index);
      });
      return button;
    }));
    tokens.splice(0, Infinity, ...buttons);
    tokens[0][0].tabIndex = 0;
    const height = ROW * Math.max(queries.length, keys.length);
    lines = make("svg", { viewBox: `0 0 100 ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    lines.style.height = `${height}px`;
    const [looking, looked] = titles.map((name, side) => make(
      "div", { role: "group", "aria-label": `token that ${name}` }, make("i", {}, name), ...tokens[side],
    ));
    tokenBox.replaceChildren(looking, lines, looked);
  }

  function chooseHead(l, h) {
    [layer, head] = [l, h];
    mark(heads, heads[layer][head], "aria-checked");
    title.textContent = (groups[group].name && `${groups[group].name}, `) + `layer ${layer}, head ${head}`;
    show();
  }

  function pin(side, index) {
    pinned = { side, index };
    pointed = null; // what was done last counts, even where the mouse rests on a token
    mark(tokens, tokens[side][index], "aria-pressed");
    show();
  }

  function unpin() {
    pinned = pointed = null;
    for (const button of tokens.flat()) button.setAttribute("aria-pressed", "false");
    show();
  }

  function point(token) {
    pointed = token;
    show();
  }

  // Lines, shading and numbers of the chosen head, for one token or for all.
  function show() {
    const { queries, keys, layers } = groups[group];
    const weight = (query, key) => layers[layer][head][query * keys.length + key] / 1000;
    const token = pointed || pinned;
    const drawn = [];
    queries.forEach((_, query) => keys.forEach((_, key) => {
      const wanted = !token || token.index === [query, key][token.side];
      if (!wanted || weight(query, key) < 0.01) return;
      const ends = { x1: 0, y1: (query + 0.5) * ROW, x2: 100, y2: (key + 0.5) * ROW };
      const line = make("line", { ...ends, "vector-effect": "non-scaling-stroke" });
      line.style.strokeOpacity = shade(weight(query, key));
      line.style.strokeWidth = 1 + 3 * weight(query, key);
      drawn.push(line);
    }));
    lines.replaceChildren(...drawn);

    // The weights that the token gives to each key, or gets from each query.
    const others = token ? [keys, queries][token.side] : [];
    const values = others.map((_, i) => (token.side ? weight(i, token.index) : weight(token.index, i)));
    tokens.forEach((buttons, side) => buttons.forEach((button, i) => {
      const value = token && side !== token.side ? values[i] : 0;
      button.style.backgroundColor = value ? orange(value, 0.55) : "";
      button.lastChild.textContent = value >= 0.005 ? value.toFixed(2) : "";
      button.classList.toggle("tpp-shown", Boolean(token) && token.side === side && token.index === i);
    }));
    text.textContent = token
      ? sentence(quote([queries, keys][token.side], token.index), token.side, values, others)
      : "Point at a token, tap it or focus it to see where it looks. Escape shows all again.";
  }

  function sentence(name, side, values, others) {
    const large = others.map((_, i) => i).filter((i) => values[i] >= 0.005).sort((i, j) => values[j] - values[i]);
    const named = large.slice(0, 5).map((i) => `${quote(others, i)} ${values[i].toFixed(2)}`);
    if (large.length > 5) named.push(`${large.length - 5} more`);
    return `${name} ${side ? "is looked at by" : "looks at"}: ${named.join(", ") || "nothing"}`;
  }

  groupBox.choose(group);
  return view;
}
