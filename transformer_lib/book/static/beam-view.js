// Beam search as a tree. The data are {source, start, alpha, limit, greedy: {text, p, length}, trees: [{size, steps}]}:
// for each width the candidates of each step, best first, {parent, name, text, p, fate, greedy}, where parent is the place
// in the step before, p the log-probability of everything up to here, and fate "kept", "finished" or "dropped".

const [COLUMN, NODE, LANE, BOX, ROOT] = [100, 78, 34, 30, 42]; // pitch and width of a node, pitch and height, width of <bos>
const BEST_SHOWN = 4; // finished translations in the table

const signed = (number) => number.toFixed(2).replace("-", "−");
const fates = { kept: "goes on", finished: "finished", dropped: "dropped" };

// The length penalty of n tokens, equation 16.2.
const penalty = (n, alpha) => ((5 + n) / 6) ** alpha;

// Where the search stops, by the bound of equation 16.3, and what it has found by then, best first.
function verdict(steps, alpha) {
  const limit = steps.length;
  let found = [];
  for (let step = 1; step <= limit; step += 1) {
    found = finished(steps, step, alpha);
    const reachable = likeliest(steps, step) / penalty(limit, alpha);
    if (found.length && (step === limit || found[0].score >= reachable)) return { step, found, reachable };
  }
  const open = steps[limit - 1].map((candidate, place) => ({ candidate, place, step: limit, score: candidate.p / penalty(limit, alpha) }));
  return { step: limit, found: open.filter(({ candidate }) => candidate.fate === "kept"), reachable: null };
}

// The log-probability of the likeliest candidate that goes on.
const likeliest = (steps, step) => steps[step - 1].find(({ fate }) => fate === "kept").p;

function finished(steps, upTo, alpha) {
  const found = steps.slice(0, upTo).flatMap((candidates, i) => candidates.map((candidate, place) => (
    { candidate, place, step: i + 1, score: candidate.p / penalty(i + 1, alpha) }
  )));
  return found.filter(({ candidate }) => candidate.fate === "finished").sort((one, other) => other.score - one.score);
}

// A candidate's way from the beginning: its place in each step.
function pathTo(steps, step, place) {
  const path = [];
  for (let i = step; i >= 1; i -= 1) {
    path[i] = place;
    place = steps[i - 1][place].parent;
  }
  return path;
}

function build({ start, alpha, limit, greedy, trees }) {
  let tree = trees[start];
  let step = 1;
  let chosen = null; // the candidate that was clicked or focused: {step, place}
  let end; // the verdict
  const lanes = []; // buttons of the candidates, a lane for each step

  const text = make("p", { class: "tpp-text tpp-beam-text", "aria-live": "polite" });
  const drawing = make("div", { class: "tpp-tree" });
  const scroll = make("div", { class: "tpp-tree-box", role: "region", tabindex: 0, "aria-label": "The beam as a tree" }, drawing);
  const rows = make("tbody");
  const head = ["translation", "log p", "tokens", "score"].map((name) => make("th", { scope: "col" }, name));
  const caption = make("caption");
  const table = make("table", { class: "tpp-found" }, caption, make("thead", {}, make("tr", {}, ...head)), rows);

  const widths = radios("beam width", trees.map(({ size }) => `beam ${size}`), (place) => change(() => { tree = trees[place]; }));
  const penalties = slider("length penalty α", { max: 20, value: Math.round(10 * alpha) }, (tenths) => (tenths / 10).toFixed(1), (tenths) => change(() => { alpha = tenths / 10; }));
  const moves = { Back: () => step - 1, Next: () => step + 1, "To the end": () => end.step };
  const stepButtons = Object.entries(moves).map(([name, to]) => {
    const button = make("button", { type: "button" }, name);
    button.addEventListener("click", () => goTo(to()));
    return button;
  });
  const stepper = make("div", { class: "tpp-radios tpp-stepper", role: "group", "aria-label": "Steps of the search" }, ...stepButtons);
  stepper.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: step - 1, ArrowRight: step + 1, Home: 1, End: end.step }[event.key];
    if (to === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    goTo(to);
  });
  useArrows(drawing, lanes, ["ArrowUp", "ArrowDown"], ["ArrowLeft", "ArrowRight"], (lane, place) => lanes[lane][place].choose());
  drawing.addEventListener("keydown", (event) => {
    if (event.key === "Escape") choose(null);
  });

  // A search that was seen to its end is seen to its new one.
  function change(how) {
    const whole = end && step === end.step;
    how();
    end = verdict(tree.steps, alpha);
    goTo(whole ? end.step : step);
  }

  function goTo(wanted) {
    step = Math.max(1, Math.min(wanted, end.step));
    chosen = null;
    stepButtons[0].setAttribute("aria-disabled", step === 1);
    for (const button of stepButtons.slice(1)) button.setAttribute("aria-disabled", step === end.step);
    draw();
    tell();
    showFound();
  }

  function choose(candidate) {
    chosen = candidate;
    for (const button of lanes.flat()) button.setAttribute("aria-pressed", Boolean(candidate) && button.step === candidate.step && button.place === candidate.place);
    tell();
  }

  const best = () => end.found[0];
  const atEnd = () => step === end.step;

  function draw() {
    const { size, steps } = tree;
    const winner = atEnd() ? pathTo(steps, best().step, best().place) : [];
    const alive = new Set(); // what leads to a candidate of this step or to a finished one
    steps.slice(0, step).forEach((candidates, i) => candidates.forEach(({ fate }, place) => {
      if (fate === "finished" || (i + 1 === step && fate === "kept")) pathTo(steps, i + 1, place).forEach((at, of) => alive.add(`${of} ${at}`));
    }));
    const height = 2 * size * LANE;
    const x = (column) => ROOT + 22 + (column - 1) * COLUMN;
    const y = {}; // the middle of each candidate that is shown
    const edges = [];
    const buttons = [];
    for (let column = 1; column <= step; column += 1) {
      const candidates = steps[column - 1];
      const kept = candidates.map((_, place) => place).filter((place) => candidates[place].fate === "kept");
      const others = candidates.map((_, place) => place).filter((place) => candidates[place].fate === "finished" || (candidates[place].fate === "dropped" && column === step));
      const shown = [...kept, ...others];
      lanes[column - 1] = shown.map((place) => {
        const { parent, name, p, fate, greedy: isGreedy } = candidates[place];
        const lane = fate === "kept" ? kept.indexOf(place) : size + others.indexOf(place);
        y[`${column} ${place}`] = (lane + 0.5) * LANE;
        const dead = fate === "kept" && !alive.has(`${column} ${place}`);
        const wins = winner[column] === place;
        const from = column === 1 ? [ROOT, (size / 2) * LANE] : [x(column - 1) + NODE, y[`${column - 1} ${parent}`]];
        const [to, level] = [x(column), y[`${column} ${place}`]];
        const line = (kind) => edges.push(make("path", { class: `tpp-edge ${kind}`, d: `M${from}C${(from[0] + to) / 2} ${from[1]} ${(from[0] + to) / 2} ${level} ${to} ${level}` }));
        if (wins) line("tpp-best");
        line(dead || fate === "dropped" ? "tpp-lost" : "");
        if (isGreedy) line("tpp-greedy");
        const words = [dead ? "went on, its successors fell out" : fates[fate], ...(isGreedy ? ["greedy decoding's choice"] : []), ...(wins ? ["on the best path"] : [])];
        const button = make("button", { type: "button", tabindex: -1, "aria-pressed": "false", "aria-label": `${name} ${signed(p)}, ${words.join(", ")}`, class: `tpp-node tpp-${dead ? "dead" : fate}${wins ? " tpp-wins" : ""}` });
        button.append(make("span", {}, name), make("b", {}, (isGreedy ? "G " : "") + (fate === "dropped" ? "✕ " : "") + signed(p)));
        button.style.left = `${to}px`;
        button.style.top = `${level - BOX / 2}px`;
        button.choose = () => {
          mark(lanes, button, "aria-pressed");
          choose({ step: column, place });
        };
        Object.assign(button, { step: column, place });
        button.addEventListener("focus", () => {
          if (button.matches(":focus-visible")) button.choose();
        });
        button.addEventListener("click", () => {
          if (button.getAttribute("aria-pressed") === "true") choose(null);
          else button.choose();
        });
        return button;
      });
      buttons.push(make("div", { role: "group", "aria-label": `step ${column}` }, ...lanes[column - 1]));
    }
    lanes.length = step;
    lanes[step - 1][0].tabIndex = 0;
    const right = x(step) + NODE + 4;
    const svg = make("svg", { width: right, height, "aria-hidden": "true" }, ...edges.filter((edge) => edge.matches(".tpp-lost")), ...edges.filter((edge) => !edge.matches(".tpp-lost")));
    const root = make("span", { class: "tpp-root" }, "<bos>");
    root.style.top = `${(size / 2) * LANE - 11}px`;
    // Between those that go on, and those that end or drop out.
    const border = make("i", { "aria-hidden": "true" });
    Object.assign(border.style, { top: `${size * LANE}px`, left: `${x(step) - 6}px`, width: `${NODE + 12}px` });
    drawing.style.cssText = `width: ${right}px; height: ${height}px`;
    drawing.replaceChildren(svg, root, ...buttons, border);
    scroll.scrollLeft = right;
  }

  function tell() {
    text.textContent = chosen ? aboutCandidate(chosen) : aboutStep();
  }

  function aboutCandidate({ step: of, place }) {
    const { name, text: written, p, fate, parent } = tree.steps[of - 1][place];
    const before = of === 1 ? 0 : tree.steps[of - 2][parent].p;
    const sum = `log p ${signed(p)} (“${name}” here: ${signed(p - before)}).`;
    const rank = tree.steps[of - 1].filter((other, i) => i < place && other.fate === "kept").length;
    const last = tree.steps[of - 1].filter((other) => other.fate === "kept").pop().p;
    const verdicts = {
      kept: `It goes on: number ${rank + 1} of those that do not end.`,
      finished: `It ends: ${signed(p)} / ${penalty(of, alpha).toFixed(2)} = ${signed(p / penalty(of, alpha))} is its score.`,
      dropped: `It drops out: ${tree.size} that go on are likelier, the last of them with ${signed(last)}.`,
    };
    return `“${written}”: ${sum} ${verdicts[fate]}`;
  }

  function aboutStep() {
    const candidates = tree.steps[step - 1];
    const of = (fate) => candidates.filter((candidate) => candidate.fate === fate);
    if (atEnd()) return `Step ${step}: ${aboutEnd()}`;
    const said = [`Step ${step}: of all continuations, the ${of("kept").length} likeliest that do not end go on.`];
    for (const { text: written, p } of of("finished")) said.push(`“${written}” ends, with the score ${signed(p / penalty(step, alpha))}.`);
    if (of("dropped").length) said.push(`The likeliest that drops out: “${of("dropped")[0].text}”, ${signed(of("dropped")[0].p)}.`);
    return said.join(" ");
  }

  function aboutEnd() {
    const said = [];
    if (end.reachable === null) said.push("the limit is reached, and nothing has ended.");
    else if (step === limit) said.push("the limit is reached.");
    else said.push(`the search stops. No beginning can score more than ${signed(likeliest(tree.steps, step))} / ${penalty(limit, alpha).toFixed(2)} = ${signed(end.reachable)}, and the best has ${signed(best().score)}.`);
    const path = pathTo(tree.steps, best().step, best().place);
    const leaves = path.findIndex((place, of) => of && !tree.steps[of - 1][place].greedy);
    if (leaves < 0) return `${said[0]} Greedy decoding finds the same.`;
    const candidate = tree.steps[leaves - 1][path[leaves]];
    const other = tree.steps[leaves - 1].find(({ greedy: isGreedy }) => isGreedy);
    const before = leaves === 1 ? 0 : tree.steps[leaves - 2][candidate.parent].p;
    const greedyTakes = other ? `takes “${other.name}” (${signed(other.p - before)}), the best “${candidate.name}” (${signed(candidate.p - before)})` : "has ended";
    said.push(`Greedy decoding leaves the best path at step ${leaves}: it ${greedyTakes}.`);
    return said.join(" ");
  }

  function showFound() {
    const found = end.reachable === null && atEnd() ? end.found : finished(tree.steps, step, alpha);
    const row = (first, p, length) => make("tr", {}, make("th", { scope: "row" }, first), ...[signed(p), `${length}`, signed(p / penalty(length, alpha))].map((cell) => make("td", {}, cell)));
    const shown = found.slice(0, BEST_SHOWN).map(({ candidate, step: length }, i) => {
      const drawn = row((i ? "" : "★ ") + candidate.text + (candidate.greedy ? " (greedy)" : ""), candidate.p, length);
      drawn.classList.toggle("tpp-first", !i);
      return drawn;
    });
    if (!found.some(({ candidate }) => candidate.greedy)) shown.push(row(`greedy: ${greedy.text}`, greedy.p, greedy.length));
    const left = found.length - BEST_SHOWN;
    caption.textContent = `Finished${atEnd() ? "" : " so far"}, best first: score = log p / ((5 + tokens) / 6)^${alpha.toFixed(1)}${left > 0 ? `; ${left} more` : ""}`;
    rows.replaceChildren(...shown);
  }

  const key = make("p", { class: "tpp-key" });
  for (const [kind, name] of [["kept", "goes on"], ["finished", "ends"], ["dropped", "drops out"], ["dead", "went on, fell out later"]]) {
    key.append(make("span", { class: `tpp-node tpp-${kind}`, "aria-hidden": "true" }, kind === "dropped" ? "✕ abc" : "abc"), ` ${name} `);
  }
  const sample = (kind) => make("svg", { width: 28, height: 10, "aria-hidden": "true" }, make("path", { class: `tpp-edge ${kind}`, d: "M1 5L27 5" }));
  key.append(sample("tpp-greedy"), " G greedy decoding ", sample("tpp-best"), " best path, at the end");
  widths.choose(start);
  return make("div", {}, widths, penalties, stepper, text, scroll, key, make("div", { class: "tpp-found-box" }, table));
}
