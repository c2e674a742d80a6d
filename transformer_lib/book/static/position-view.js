// Sinusoidal positions: a pair of entries as two waves and as the hand of a clock, and the dot product of two rows. The
// data are {d_model, positions, offsets}: the largest position p and offset k that the sliders reach.

const [WIDTH, HEIGHT, MARGIN] = [380, 140, 26]; // of a plot, in units of its viewBox

function build({ d_model: width, positions, offsets }) {
  const pairs = width / 2;
  let [p, pair, k] = [10, Math.min(2, pairs - 1), 4];
  const frequency = (i) => 10000 ** (-2 * i / width);
  const row = (position) => Array.from({ length: pairs }, (_, i) => [Math.sin(frequency(i) * position), Math.cos(frequency(i) * position)]);
  const dot = (one, other) => one.reduce((sum, [sine, cosine], i) => sum + sine * other[i][0] + cosine * other[i][1], 0);

  const text = make("p", { class: "tpp-text", "aria-live": "polite" });
  const cells = [["row p"], ["turned"], ["row p + k"]].map(([name]) => make("tr", {}, make("th", { scope: "row" }, name), make("td"), make("td")));
  const heads = ["", "sine", "cosine"].map((name) => make(name ? "th" : "td", name ? { scope: "col" } : {}, name));
  const table = make("table", { class: "tpp-pair" }, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...cells));

  // A plot: `x` and `y` bring numbers to their places in it.
  function plot(title, name, [left, right], [low, high]) {
    const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, "aria-hidden": "true" });
    const x = (number) => MARGIN + (number - left) / (right - left) * (WIDTH - MARGIN - 8);
    const y = (number) => HEIGHT - 18 - (number - low) / (high - low) * (HEIGHT - 40);
    const show = (...parts) => {
      const zero = make("line", { x1: x(left), x2: x(right), y1: y(0), y2: y(0), class: "tpp-axis" });
      const ticks = [left, right].map((at) => make("text", { x: x(at), y: HEIGHT - 4, "text-anchor": at === left ? "start" : "end" }, `${at}`));
      const levels = [low, high].map((at) => make("text", { x: MARGIN - 4, y: y(at) + 4, "text-anchor": "end" }, `${Math.round(at)}`));
      ticks.push(make("text", { x: x((left + right) / 2), y: HEIGHT - 4, "text-anchor": "middle" }, name));
      svg.replaceChildren(make("text", { x: MARGIN, y: 11 }, title), zero, ...ticks, ...levels, ...parts);
    };
    return { svg, x, y, show };
  }
  const curve = (plot, of, to, kind) => {
    const places = Array.from({ length: 4 * to + 1 }, (_, i) => i / 4);
    return make("path", { d: `M${places.map((at) => `${plot.x(at).toFixed(1)} ${plot.y(of(at)).toFixed(1)}`).join("L")}`, class: kind });
  };
  const dot2 = (plot, at, level, kind) => make("circle", { cx: plot.x(at), cy: plot.y(level), r: 4.5, class: kind });

  const clock = make("svg", { viewBox: "-29 -2 188 136", "aria-hidden": "true", class: "tpp-clock" });
  const waves = plot("the pair along the positions: sine (line), cosine (dashes)", "position", [0, positions + offsets], [-1, 1]);
  const origin = row(0);
  const product = (offset) => dot(origin, row(offset));
  const least = Math.min(0, ...Array.from({ length: offsets + 1 }, (_, offset) => product(offset)));
  const products = plot("dot product of rows p and p + k, for every k", "offset k", [0, offsets], [least, pairs]);

  function hand(angle, kind, name) {
    const [x, y] = [Math.sin(angle), -Math.cos(angle)]; // upwards at angle 0, then clockwise
    const line = make("line", { x1: 65, y1: 65, x2: 65 + 44 * x, y2: 65 + 44 * y, class: kind });
    const anchor = x > 0.3 ? "start" : x < -0.3 ? "end" : "middle"; // beside the rim, not across it
    return [line, make("text", { x: 65 + 49 * x, y: 69 + 55 * y, "text-anchor": anchor }, name)];
  }

  function show() {
    const turn = frequency(pair) * k;
    const [sine, cosine] = row(p)[pair];
    const there = row(p + k);
    const turned = [sine * Math.cos(turn) + cosine * Math.sin(turn), cosine * Math.cos(turn) - sine * Math.sin(turn)];
    [[sine, cosine], turned, there[pair]].forEach((numbers, i) => {
      numbers.forEach((number, j) => { cells[i].children[j + 1].textContent = number.toFixed(3); });
    });
    cells[0].firstChild.textContent = `row ${p}`;
    cells[2].firstChild.textContent = `row ${p + k}`;
    const degrees = turn * 180 / Math.PI;
    text.textContent = `Pair ${pair}, entries ${2 * pair} and ${2 * pair + 1}, comes round once in ${(2 * Math.PI / frequency(pair)).toFixed(1)} positions; ${k} positions turn it by ${degrees.toFixed(1)} degrees. Row ${p} · row ${p + k} = ${dot(row(p), there).toFixed(2)}.`;

    const rim = make("circle", { cx: 65, cy: 65, r: 44, class: "tpp-axis" });
    const near = k && sine * there[pair][0] + cosine * there[pair][1] > 0.9; // one label for two hands
    clock.replaceChildren(rim, ...hand(frequency(pair) * p, "tpp-here", near ? "" : "p"), ...(k ? hand(frequency(pair) * (p + k), "tpp-there", near ? "p, p+k" : "p+k") : []));
    const last = positions + offsets;
    const marks = [[p, sine, "tpp-here"], [p, cosine, "tpp-here"], [p + k, there[pair][0], "tpp-there"], [p + k, there[pair][1], "tpp-there"]];
    waves.show(
      curve(waves, (at) => Math.sin(frequency(pair) * at), last, "tpp-curve"),
      curve(waves, (at) => Math.cos(frequency(pair) * at), last, "tpp-curve tpp-dashed"),
      ...[[p, "tpp-here"], [p + k, "tpp-there"]].map(([at, kind]) => make("line", { x1: waves.x(at), x2: waves.x(at), y1: waves.y(-1), y2: waves.y(1), class: `${kind} tpp-thin` })),
      ...marks.map(([at, level, kind]) => dot2(waves, at, level, kind)),
    );
    products.show(curve(products, product, offsets, "tpp-curve"), dot2(products, k, dot(row(p), there), "tpp-there"));
  }

  const sliders = [
    slider("position p", { max: positions, value: p }, String, (value) => { p = value; show(); }),
    slider("pair i", { max: pairs - 1, value: pair }, String, (value) => { pair = value; show(); }),
    slider("offset k", { max: offsets, value: k }, String, (value) => { k = value; show(); }),
  ];
  show();
  const left = make("div", { class: "tpp-turn" }, clock, table);
  return make("div", {}, ...sliders, text, make("div", { class: "tpp-side-by-side" }, left, make("div", { class: "tpp-plots" }, waves.svg, products.svg)));
}
