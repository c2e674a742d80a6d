// Makes every view of attention on the page interactive that is not so yet. Beside this script stand, in one <figure>, a
// table that it replaces and its data: {start: {group, layer, head}, groups: [{name, queries, keys, layers}]}, where
// layers[layer][head] holds the weights in thousandths, one row of keys after the other.
(() => {
  "use strict";

  const ROW = 26; // height of a token in pixels, as in the style sheet
  const shade = (weight) => weight ** 0.6; // how dense the color is: small weights are not lost

  function make(tag, attributes = {}, ...children) {
    const drawn = tag === "svg" || tag === "line";
    const element = drawn ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  // A token in quotes, with its number if there are several of it.
  function quote(tokens, i) {
    const again = tokens.indexOf(tokens[i]) !== tokens.lastIndexOf(tokens[i]);
    return `"${tokens[i]}"` + (again ? ` (${i})` : "");
  }

  // Lanes of buttons, of which one is reached by Tab and the others by arrows: two keys go along a lane, two across.
  function useArrows(box, lanes, [back, forth], [up, down], choose) {
    box.addEventListener("keydown", (event) => {
      const lane = lanes.findIndex((buttons) => buttons.includes(document.activeElement));
      if (lane < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
      const place = lanes[lane].indexOf(document.activeElement);
      const moves = { [back]: [0, -1], [forth]: [0, 1], [up]: [-1, 0], [down]: [1, 0], Home: [0, -place], End: [0, 1e9] };
      if (!(event.key in moves)) return;
      event.preventDefault();
      event.stopPropagation();
      const inside = (number, length) => Math.max(0, Math.min(number, length - 1));
      const newLane = inside(lane + moves[event.key][0], lanes.length);
      const newPlace = inside(place + moves[event.key][1], lanes[newLane].length);
      choose(newLane, newPlace);
      lanes[newLane][newPlace].focus();
    });
  }

  // Let one button of the lanes be the chosen one, for the eye, for a screen reader and for Tab.
  function mark(lanes, chosen, attribute) {
    for (const button of lanes.flat()) {
      button.tabIndex = button === chosen ? 0 : -1;
      button.setAttribute(attribute, button === chosen);
    }
  }

  // One head, a pixel for each weight.
  function thumbnail(weights, rows, columns) {
    const canvas = make("canvas", { width: columns, height: rows, "aria-hidden": "true" });
    const context = canvas.getContext("2d");
    weights.forEach((weight, i) => {
      context.fillStyle = `rgba(213, 94, 0, ${shade(weight / 1000)})`;
      context.fillRect(i % columns, Math.floor(i / columns), 1, 1);
    });
    return canvas;
  }

  function build(figure, { start, groups }) {
    let { group, layer, head } = start;
    let pinned = null; // the token that was clicked or focused: {side: 0 for queries or 1 for keys, index}
    let pointed = null; // the token under the mouse, which comes first
    let lines; // an <svg>
    const groupLanes = [[]]; // buttons of the groups, all in one lane
    const heads = []; // buttons of the heads, a lane for each layer
    const tokens = []; // buttons of the queries, and of the keys

    const groupBox = make("div", { class: "tpp-groups", role: "radiogroup", "aria-label": "Attention" });
    const headBox = make("div", { class: "tpp-heads", role: "radiogroup", "aria-label": "Layer and head" });
    const title = make("p", { class: "tpp-title" });
    const text = make("p", { class: "tpp-text", "aria-live": "polite" });
    const tokenBox = make("div", { class: "tpp-tokens" });
    const left = make("div", { class: "tpp-left" }, groupBox, headBox);
    const right = make("div", { class: "tpp-right" }, title, text, tokenBox);
    // JupyterLab's own keys, such as Enter to edit a cell, must not take ours away.
    const view = make("div", { class: "tpp-interactive", "data-lm-suppress-shortcuts": "true" }, left, right);

    groupLanes[0] = groups.map(({ name }, i) => {
      const button = make("button", { type: "button", role: "radio" }, name);
      button.addEventListener("click", () => chooseGroup(0, i));
      return button;
    });
    groupBox.append(...groupLanes[0]);
    groupBox.hidden = groups.length === 1;
    // The tallest group decides, so that nothing below moves when another is chosen.
    const mostTokens = Math.max(...groups.flatMap(({ queries, keys }) => [queries.length, keys.length]));
    tokenBox.style.minHeight = `${(1 + mostTokens) * ROW}px`;
    useArrows(groupBox, groupLanes, ["ArrowLeft", "ArrowRight"], ["ArrowUp", "ArrowDown"], chooseGroup);
    useArrows(headBox, heads, ["ArrowLeft", "ArrowRight"], ["ArrowUp", "ArrowDown"], chooseHead);
    useArrows(tokenBox, tokens, ["ArrowUp", "ArrowDown"], ["ArrowLeft", "ArrowRight"], pin);
    tokenBox.addEventListener("keydown", (event) => {
      if (event.key === "Escape") unpin();
    });

    function chooseGroup(_, i) {
      group = i;
      pinned = pointed = null;
      mark(groupLanes, groupLanes[0][group], "aria-checked");
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
        button.style.backgroundColor = value ? `rgba(213, 94, 0, ${0.55 * shade(value)})` : "";
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

    chooseGroup(0, group);
    figure.querySelector(".tpp-static").replaceWith(view);
  }

  for (const figure of document.querySelectorAll("figure.tpp-view:not([data-ready])")) {
    const data = figure.querySelector('script[type="application/json"]');
    if (!data) continue; // the page is not yet read to its end: the figure's own script comes later
    figure.dataset.ready = "";
    build(figure, JSON.parse(data.textContent));
  }
})();
