// The gradient through a stack of layers. The data are {start: {wiring, depth}, depths, wirings: [{name, runs}]}: of each
// depth {mean, low, high}, the shares of the top's gradient that arrive before the first layer and after each.

const HEIGHT = 240; // of the plot in pixels; its width is the page's
const DASHES = ["", "2 3", "8 3", "8 3 2 3", "14 4"]; // so that color is not the only sign
const COLORS = ["#757575", "#0072B2", "#CC79A7", "#D55E00", "#009E73"];

// 28, 0.85, 0.0012, 1.2·10⁻⁶
function few(number) {
  if (number >= 0.001 && number < 9999.5) return `${Number(number.toPrecision(2))}`;
  const [digits, power] = number.toExponential(1).split("e");
  return `${digits}·${tenTo(Number(power))}`;
}

const tenTo = (power) => `10${[...`${power}`].map((sign) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(sign)]).join("")}`;

function build({ start, depths, wirings }) {
  let { wiring, depth } = start;
  const runs = wirings.flatMap((of) => of.runs);
  const low = Math.floor(Math.log10(Math.min(...runs.flatMap((run) => run.low))));
  const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(...runs.flatMap((run) => run.high)))));
  const y = (share) => HEIGHT * (high - Math.log10(share)) / (high - low);
  const style = (line, i) => {
    line.style.stroke = `color-mix(in srgb, ${COLORS[i % COLORS.length]} 85%, currentColor)`;
    line.style.strokeDasharray = DASHES[i % DASHES.length];
    return line;
  };

  const plot = make("svg", { preserveAspectRatio: "none", "aria-hidden": "true" });
  const levels = make("div", { class: "tpp-levels", "aria-hidden": "true" });
  const every = Math.ceil((high - low) / 8); // powers of ten that are named
  for (let power = high; power >= low; power -= 1) {
    if (power % every) continue;
    const label = make("span", {}, tenTo(power));
    label.style.top = `${y(10 ** power)}px`;
    levels.append(label);
  }
  const ends = make("div", { class: "tpp-ends", "aria-hidden": "true" });
  const text = make("p", { class: "tpp-text tpp-share-text", "aria-live": "polite" });
  const bottoms = make("tbody");
  const heads = ["wiring", "at the bottom", "in the middle", "at the top"].map((name) => make("th", { scope: "col" }, name));
  const table = make("table", { class: "tpp-shares" }, make("caption", {}, "share of the gradient at the top"), make("thead", {}, make("tr", {}, ...heads)), bottoms);
  const all = make("table", { class: "tpp-shares" });
  const box = make("div", { class: "tpp-all", role: "region", tabindex: 0, "aria-label": "The gradient at every place" }, all);

  const depthBox = radios("number of layers", depths.map((number) => `${number}`), (place) => { depth = place; show(); });
  const wiringBox = radios("wiring", wirings.map(({ name }) => name), (place) => { wiring = place; show(); });
  wiringBox.buttons.forEach((button, i) => {
    button.prepend(make("svg", { width: 34, height: 10, "aria-hidden": "true" }, style(make("line", { x1: 1, x2: 33, y1: 5, y2: 5 }), i)));
  });

  function show() {
    const layers = depths[depth];
    plot.setAttribute("viewBox", `0 0 ${layers} ${HEIGHT}`);
    const fixed = { "vector-effect": "non-scaling-stroke" };
    const points = (shares) => shares.map((share, place) => `${place} ${y(share).toFixed(1)}`);
    const drawn = [];
    for (let power = low; power <= high; power += 1) {
      drawn.push(make("line", { ...fixed, x1: 0, x2: layers, y1: y(10 ** power), y2: y(10 ** power), class: power ? "tpp-grid" : "tpp-grid tpp-one" }));
    }
    const { mean, low: lowest, high: highest } = wirings[wiring].runs[depth];
    const band = make("path", { d: `M${[...points(lowest), ...points(highest).reverse()].join("L")}Z`, class: "tpp-band" });
    band.style.fill = COLORS[wiring % COLORS.length];
    drawn.push(band);
    wirings.forEach((of, i) => {
      const line = make("path", { ...fixed, d: `M${points(of.runs[depth].mean).join("L")}`, class: i === wiring ? "tpp-share tpp-shown" : "tpp-share" });
      drawn.push(style(line, i));
    });
    plot.replaceChildren(...drawn);
    ends.replaceChildren(make("span", {}, "bottom"), make("span", {}, `layers → ${layers}`), make("span", {}, "top: the loss"));
    text.textContent = `${wirings[wiring].name}, ${layers} layers: of a gradient of 1 at the top, ${few(mean[0])} arrives at the bottom (${few(lowest[0])} to ${few(highest[0])} in single draws).`;

    const row = (name, cells, isChosen) => {
      const made = make("tr", {}, make("th", { scope: "row" }, name), ...cells.map((cell) => make("td", {}, few(cell))));
      made.classList.toggle("tpp-chosen", isChosen);
      return made;
    };
    bottoms.replaceChildren(...wirings.map((of, i) => {
      const shares = of.runs[depth].mean;
      return row(of.name, [shares[0], shares[layers / 2 | 0], shares[layers]], i === wiring);
    }));
    const names = ["after layer", ...wirings.map(({ name }) => name)].map((name) => make("th", { scope: "col" }, name));
    const places = mean.map((_, place) => row(place ? `${place}` : "0 (bottom)", wirings.map((of) => of.runs[depth].mean[place]), false));
    all.replaceChildren(make("thead", {}, make("tr", {}, ...names)), make("tbody", {}, ...places.reverse()));
  }

  depthBox.choose(depth);
  wiringBox.choose(wiring);
  const named = (name, group) => make("div", { class: "tpp-named" }, make("span", { "aria-hidden": "true" }, name), group);
  const chart = make("div", { class: "tpp-chart" }, levels, plot, ends);
  const details = make("details", {}, make("summary", {}, "All numbers"), box);
  const measure = make("div", { class: "tpp-measure", "aria-hidden": "true" }, "share of the gradient at the top");
  return make("div", {}, named("layers", depthBox), named("wiring", wiringBox), text, measure, chart, table, details);
}
