// The page on which a translator translates, and the strip of it on the landing page. It fills each <div class="tpp-try">
// and <div class="tpp-try-strip">. What it computes is in translator.js; model.js and weights-N.js, which lie beside this
// file, are loaded at the first click, one after the other: a page that is a file may load scripts, and nothing else.
(() => {
  "use strict";
  const { BOS, EOS, Tokenizer, Transformer, beamSearch, draw, likeliest, limitOf } = tppTranslator;
  const { nextTokens, path, writeTokens, written } = tppTranslator;
  const HERE = document.currentScript.src;
  const BEAM = 4, SHOWN = 10; // beginnings kept; next pieces shown
  const ROW = 22; // height of a token in the picture of attention, as in the style sheet

  // ---- Small helpers -------------------------------------------------------------------------------------

  function make(tag, attributes = {}, ...children) {
    const drawn = ["svg", "path", "line"].includes(tag);
    const element = drawn ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children);
    return element;
  }

  const button = (attributes, ...children) => make("button", { type: "button", ...attributes }, ...children);
  const small = (text) => make("p", { class: "tpp-small" }, text);

  // Until the page has been painted; a page that nobody sees is not.
  const painted = () => new Promise((go) => (document.hidden ? setTimeout(go) : requestAnimationFrame(() => setTimeout(go))));
  const percent = (share) => (share < 0.0005 ? "<0.1 %" : `${(100 * share).toFixed(share >= 0.0995 ? 0 : 1)} %`);
  const number = (count) => count.toLocaleString("en-US");

  // Scroll inside of a box so that a child can be seen; the page itself stays where it is.
  function reveal(box, child) {
    const outer = box.getBoundingClientRect(), inner = child.getBoundingClientRect();
    const down = (inner.top + inner.bottom - outer.top - outer.bottom) / 2;
    const right = (inner.left + inner.right - outer.left - outer.right) / 2;
    if (inner.top < outer.top + ROW || inner.bottom > outer.bottom - ROW) box.scrollTop += down;
    if (inner.left < outer.left || inner.right > outer.right) box.scrollLeft += right;
  }

  // ---- Loading: at the first call, and once for the whole page ------------------------------------------------

  let loading = null;

  function load(progress) {
    loading ??= fetchModel(progress).catch((error) => {
      loading = null; // the next click tries again
      throw error;
    });
    return loading;
  }

  async function fetchModel(progress) {
    let about, bytes, filled = 0;
    globalThis.tppTry = {
      model(found) { [about, bytes] = [found, new Uint8Array(found.bytes)]; },
      weights(_, text) {
        const letters = atob(text);
        for (let i = 0; i < letters.length; i++) bytes[filled++] = letters.charCodeAt(i);
      },
    };
    await runScript("model.js");
    for (let piece = 0; piece < about.pieces; piece++) {
      progress(filled, about.bytes);
      await runScript(`weights-${piece}.js`);
    }
    progress(filled, about.bytes);
    await painted();
    return { about, model: new Transformer(about, bytes), tokenizer: new Tokenizer(about) };
  }

  function runScript(name) {
    return new Promise((loaded, failed) => {
      const script = make("script", { src: new URL(name, HERE).href, onload: done, onerror: done });
      function done(event) {
        script.remove();
        if (event.type === "load") loaded();
        else failed(new Error(`The file ${name}, a part of the translator, could not be loaded.`));
      }
      document.head.append(script);
    });
  }

  // ---- What a reader may type ----------------------------------------------------------------------------------

  // The ids of a text with <eos>, or an Error that says what is wrong with it.
  function readText(text, { about, tokenizer }) {
    if (/[\ud800-\udfff]/u.test(text)) throw new Error("The text holds half of a surrogate pair, which is no character.");
    const letters = 20 * about.limit, most = `this page takes at most ${about.limit} pieces`; // more letters are not even cut
    if (text.length > letters) {
      throw new Error(`The text has ${number(text.length)} characters; ${most}, in at most ${number(letters)} characters.`);
    }
    const ids = [...tokenizer.encode(text), EOS];
    if (ids.length === 1) throw new Error("There is nothing to translate: type a sentence first.");
    if (ids.length > about.limit) throw new Error(`The text has ${ids.length} pieces, its end counted; ${most}.`);
    return ids;
  }

  // What a token is called: its text, with "…" where it goes on inside of a word.
  function nameTokens(tokenizer, ids) {
    let before = " ";
    return ids.map((id) => {
      if (id === BOS || id === EOS) return id === BOS ? "<bos>" : "<eos>";
      let text = tokenizer.decode([id]);
      if (text.includes("\ufffd") || !text) text = tokenizer.tokens[id]; // some bytes of a letter
      const inside = /[\p{L}\p{N}]$/u.test(before) && /^[\p{L}\p{N}]/u.test(text);
      before = text;
      return inside ? `…${text}` : text.trim() || text.replace(/\s/g, "␣");
    });
  }

  // ---- Progress and messages, of the page and of the strip ---------------------------------------------------

  function makeStatus() {
    const bar = make("progress", { max: 1, value: 0, "aria-label": "The translator is loaded", class: "tpp-hidden" });
    const line = make("p", { class: "tpp-status", role: "status" });
    return {
      box: make("div", { class: "tpp-messages" }, bar, line),
      // A message, and what is heard but not seen, because it stands elsewhere on the page.
      say(text, wrong = false, heard = "") {
        bar.classList.add("tpp-hidden");
        line.classList.toggle("tpp-wrong", wrong);
        line.replaceChildren(wrong ? `⚠ ${text}` : text, make("span", { class: "tpp-away" }, heard));
      },
      progress(done, all) {
        bar.classList.remove("tpp-hidden");
        bar.value = done / all;
        if (done) return; // said once, not at each piece
        line.textContent = `Loading the translator, ${(all / 1e6).toFixed(1)} MB, once.`;
      },
    };
  }

  // ---- The strip ----------------------------------------------------------------------------------------------

  function buildStrip(box) {
    const { source = "German", target = "English", example = "Diese Datei kann nicht geöffnet werden." } = box.dataset;
    const input = make("input", { id: "tpp-strip-input", lang: "de", value: example, autocomplete: "off", spellcheck: "false" });
    const result = make("div", { class: "tpp-strip-result", lang: "en" }); // no live region: only the whole is read out
    const status = makeStatus();
    const submit = button({ type: "submit", class: "tpp-main" }, "Translate");
    const link = make("a", { href: box.dataset.page ?? new URL("../../book/try.html", HERE).href }, "See how it does it");
    const form = make("form", { onsubmit: translate },
      make("label", { for: "tpp-strip-input", class: "tpp-label" }, source), make("div", { class: "tpp-line" }, input, submit),
      make("span", { class: "tpp-label" }, target), result, make("div", { class: "tpp-line" }, status.box, link));
    box.replaceChildren(form);
    let busy = false;

    async function translate(event) {
      event.preventDefault();
      if (busy) return;
      busy = true;
      try {
        const loaded = await load(status.progress), ids = readText(input.value, loaded);
        const memory = loaded.model.read(ids), search = beamSearch(loaded.model, memory, limitOf(loaded.model, memory), BEAM);
        status.say("");
        for (let step = search.next(); ; step = search.next()) {
          const node = step.done ? step.value[0].node : step.value.kept[0];
          result.textContent = loaded.tokenizer.decode(written(node)).trim();
          if (step.done) break;
          await painted();
        }
        status.say("Translated in this page: nothing was sent anywhere.", false, ` ${target}: ${result.textContent}`);
      } catch (error) {
        status.say(error.message, true);
      }
      busy = false;
    }
  }

  // ---- The page -----------------------------------------------------------------------------------------------

  const HINT = "Translate a sentence, and you see it here.";

  function buildPage(box) {
    const { source: from = "Source", target: to = "Translation" } = box.dataset;
    const examples = JSON.parse(box.dataset.examples || "[]");
    const german = from === "German" && "de", english = to === "English" && "en"; // what a screen reader should speak
    let loaded = null; // {about, model, tokenizer}
    let run = null; // what is shown: {source, names, steps, finished, kind}
    let leaf = null; // the beginning that is followed, and the step of it that is looked at, from 1
    let step = 0;
    let latest = 0; // number of the run, so that an older one stops
    let playing = null; // a timer
    let chosen = { group: "cross", layer: 0, head: 0 }; // the head
    let asking = null; // the token that looks: in the encoder the one that was clicked, in the decoder that of the step; or all

    // The upper part: what goes in, what comes out.
    const input = make("textarea", {
      id: "tpp-input", rows: 3, lang: german, spellcheck: "false", "aria-describedby": "tpp-count", oninput: showPieces,
    });
    const count = make("span", { id: "tpp-count", class: "tpp-small" }, "Enter translates.");
    // No live region: the status reads the whole out, once.
    const output = make("div", { class: "tpp-output", role: "group", tabindex: 0, "aria-labelledby": "tpp-to", lang: english });
    const status = makeStatus();
    const pieces = (kind, language) =>
      make("div", { class: `tpp-pieces tpp-${kind}`, role: "group", tabindex: 0, "aria-label": `Pieces of the ${language} text` });
    const piecesIn = pieces("in", from), piecesOut = pieces("out", to);
    const methods = [["beam", "Beam search"], ["greedy", "Greedy"], ["sample", "Sampling"]].map(([value, name]) =>
      make("label", {}, make("input", { type: "radio", name: "tpp-method", value, checked: value === "beam" }), name));
    const method = () => form.querySelector("[name=tpp-method]:checked").value;
    const form = make("form", { class: "tpp-talk", onsubmit: (event) => { event.preventDefault(); translate(); } },
      make("div", {}, make("label", { for: "tpp-input", class: "tpp-label" }, from), count, input, piecesIn),
      make("div", {}, make("span", { id: "tpp-to", class: "tpp-label" }, to), output, piecesOut),
      make("div", { class: "tpp-controls" },
        make("fieldset", {}, make("legend", {}, "How"), ...methods),
        button({ type: "submit", class: "tpp-main" }, "Translate"), status.box));
    input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      translate();
    });
    const tries = make("div", { class: "tpp-examples", role: "group", "aria-label": "Examples" }, ...examples.map((text) =>
      button({ lang: german, onclick: () => { input.value = text; translate(); } }, text)));

    // The steps.
    const look = (wanted) => { stop(); goTo(wanted); }; // what a reader does ends the playing
    const slider = make("input", {
      type: "range", id: "tpp-step", min: 0, max: 0, value: 0, oninput: () => look(Number(slider.value)),
    });
    const stepText = make("p", { class: "tpp-step-text" });
    const play = button({ onclick: () => (playing ? stop() : start()) }, "▶ Play");
    const steps = make("div", { class: "tpp-steps", role: "group", "aria-label": "Steps" },
      play, button({ "aria-label": "Step back", onclick: () => look(step - 1) }, "◀"), slider,
      button({ "aria-label": "Step on", onclick: () => look(step + 1) }, "▶"),
      make("label", { for: "tpp-step", class: "tpp-away" }, "Step"), stepText);

    // The panels.
    const heads = make("div", { class: "tpp-heads", role: "radiogroup", "aria-label": "Attention: kind, layer and head" });
    const headTitle = make("p", { class: "tpp-title" }, HINT);
    const tokens = make("div", {
      class: "tpp-tokens", role: "region", tabindex: 0, "aria-label": "Attention of the chosen head", onkeydown: moveQuery,
    });
    const looks = make("p", { class: "tpp-looks tpp-small", "aria-live": "polite" });
    const range = (id, min, max, step) => make("input", { type: "range", id, min, max, step, value: 1, oninput: showNext });
    const temperature = range("tpp-temperature", 0.1, 2, 0.1), topP = range("tpp-top-p", 0.05, 1, 0.05);
    const temperatureText = make("span"), topPText = make("span");
    const next = make("ol", { class: "tpp-next", "aria-label": "The likeliest next pieces" });
    const left = make("p", { class: "tpp-small tpp-left", "aria-live": "polite" });
    const tree = make("div", {
      class: "tpp-tree", role: "group", tabindex: -1, "aria-label": "Beginnings that were kept, step by step", onkeydown: moveNode,
    });
    const nodeText = make("p", { class: "tpp-small tpp-node-text", "aria-live": "polite" }, HINT);
    const results = make("ol", { class: "tpp-results", "aria-label": "Finished translations, best first" });
    const panel = (name, title, ...children) =>
      make("section", { class: `tpp-panel tpp-panel-${name}`, "aria-labelledby": `tpp-${name}` },
        make("h2", { id: `tpp-${name}` }, title), ...children);
    box.replaceChildren(tries, form, steps, make("div", { class: "tpp-panels" },
      panel("attention", "Where it looks",
        make("div", { class: "tpp-split" }, heads, make("div", {}, headTitle, tokens)), looks),
      panel("next", "What could come next",
        make("div", { class: "tpp-sliders" },
          make("label", { for: "tpp-temperature" }, "Temperature"), temperature, temperatureText,
          make("label", { for: "tpp-top-p" }, "Top-p"), topP, topPText),
        next, left,
        small("Choose a piece: it is written here, and the translator goes on from it. Sampling draws with these settings.")),
      panel("beam", "The beam", make("div", { class: "tpp-split" },
        make("div", {}, tree, nodeText, small("Step by step, the likeliest beginning first. Dashed: went no further. " +
          "■ finished, with its score. Choose one to follow it.")),
        make("div", {}, make("h3", {}, "Finished"), results, small("Score: log p / ((5 + pieces) / 6)^0.6"))))));
    heads.addEventListener("keydown", moveHead);
    addEventListener("resize", () => run && drawTree());
    showNext();

    // ---- Running ------------------------------------------------------------------------------------------

    async function translate(forced = []) {
      const mine = ++latest;
      stop();
      try {
        loaded ??= await load(status.progress);
        if (mine !== latest) return;
        const { model, tokenizer } = loaded, ids = forced.length ? run.source.ids : readText(input.value, loaded);
        input.removeAttribute("aria-invalid");
        showPieces();
        status.say("Translating …");
        await painted();
        const kind = forced.length && method() === "beam" ? "greedy" : method();
        const source = model.read(ids), limit = limitOf(model, source);
        const choose = kind === "sample" ? draw(Number(temperature.value), Number(topP.value)) : likeliest;
        const writing = kind === "beam" ? beamSearch(model, source, limit, BEAM)
          : writeTokens(model, source, limit, choose, forced);
        run = { source, names: nameTokens(tokenizer, ids), steps: [], finished: [], kind };
        if (chosen.group === "encoder") asking = null;
        drawHeads();
        for (let found = writing.next(); ; found = writing.next()) {
          if (mine !== latest) return;
          if (found.done) run.finished = found.value;
          else run.steps.push(found.value);
          leaf = found.done ? found.value[0].node : found.value.kept[0] ?? found.value.finished[0].node;
          if (found.done) break;
          goTo(leaf.length, true);
          await painted();
        }
        const unsure = leastSure();
        goTo(unsure, true);
        const told = `Written, ${leaf.length} pieces. It was least sure at step ${unsure}: look there first.`;
        status.say(told, false, ` ${to}: ${textOf(leaf) || "an empty translation"}`);
      } catch (error) {
        if (mine !== latest) return;
        if (loaded) input.setAttribute("aria-invalid", "true");
        status.say(error.message, true);
      }
    }

    const textOf = (node) => loaded.tokenizer.decode(written(node)).trim();

    // What the token of a node is called.
    function nameOf(node) {
      node.name ??= nameTokens(loaded.tokenizer, [node.parent?.token ?? BOS, node.token])[1];
      return node.name;
    }

    // ---- Showing ------------------------------------------------------------------------------------------

    // The step whose likeliest piece had the smallest probability.
    function leastSure() {
      const sure = path(leaf).slice(0, -1).map(({ logits }) => {
        const most = logits.reduce((a, b) => Math.max(a, b));
        return 1 / logits.reduce((sum, logit) => sum + Math.exp(logit - most), 0);
      });
      return sure.indexOf(Math.min(...sure)) + 1;
    }

    // Look at a step: attention and the next pieces are drawn as they were when its piece was written.
    function goTo(wanted, writing = false) {
      if (!leaf) return;
      step = Math.max(1, Math.min(wanted, leaf.length));
      if (chosen.group !== "encoder") asking = step - 1;
      for (const line of [looks, nodeText, left]) line.setAttribute("aria-live", writing || playing ? "off" : "polite");
      showStep();
      showAttention();
      showNext();
      drawTree();
    }

    function start() {
      if (!leaf) return;
      playing = setInterval(() => (step < leaf.length ? goTo(step + 1) : stop()), 500);
      play.textContent = "❚❚ Pause";
      goTo(step === leaf.length || step === leastSure() ? 1 : step);
    }

    function stop() {
      clearInterval(playing);
      playing = null;
      play.textContent = "▶ Play";
    }

    const idOf = (id) => make("small", {}, String(id));

    function showPieces() {
      if (!loaded) return;
      const { tokenizer, about } = loaded, ids = input.value.length > 20 * about.limit ? [] : tokenizer.encode(input.value);
      count.textContent = `${ids.length + 1} of at most ${about.limit} pieces, with <eos>`;
      const names = nameTokens(tokenizer, ids.slice(0, about.limit));
      const chip = (name, id) => make("span", { class: "tpp-chip" }, name, idOf(id));
      piecesIn.replaceChildren(...names.map((name, i) => chip(name, ids[i])), chip("<eos>", EOS));
    }

    function showStep() {
      const nodes = path(leaf).slice(1), names = nodes.map(nameOf);
      output.textContent = textOf(playing ? nodes[step - 1] : leaf);
      slider.min = 1;
      slider.max = leaf.length;
      slider.value = step;
      slider.setAttribute("aria-valuetext", `${step} of ${leaf.length}, writes ${names[step - 1]}`);
      const read = step > 1 ? names[step - 2] : "<bos>";
      stepText.textContent = `Step ${step} of ${leaf.length}: reads “${read}”, writes “${names[step - 1]}”`;
      piecesOut.replaceChildren(...names.map((name, i) => button({
        class: "tpp-chip", tabindex: -1, "data-later": i >= step, "aria-pressed": String(i === step - 1),
        onclick: () => look(i + 1),
      }, name, idOf(nodes[i].token))));
      reveal(piecesOut, piecesOut.children[step - 1]);
    }

    // The kinds of attention up to this step: names of the tokens that look and that are looked at, and the weights,
    // layers[layer][head][query].
    function groups() {
      const nodes = path(leaf), reading = nodes.slice(0, step), names = nodes.map(nameOf), read = names.slice(0, step);
      const of = (kind) => reading[0][kind].map((maps, l) => maps.map((_, h) => reading.map((node) => node[kind][l][h])));
      return {
        encoder: { title: `${from} looks at ${from}`, queries: run.names, keys: run.names, layers: run.source.attention },
        decoder: { title: `${to} looks at ${to}`, queries: read, keys: read, layers: of("decoder") },
        cross: { title: `${to} looks at ${from}`, queries: names.slice(1, step + 1), keys: run.names, layers: of("cross") },
      };
    }

    function drawHeads() {
      if (heads.childElementCount) return;
      const { config } = loaded.about, { num_encoder_layers: encoder, num_decoder_layers: decoder } = config;
      const layers = { encoder, decoder, cross: decoder };
      heads.style.gridTemplateColumns = `auto repeat(${config.num_heads}, minmax(2rem, 3.2rem))`;
      for (const [group, amount] of Object.entries(layers)) {
        for (let layer = 0; layer < amount; layer++) {
          heads.append(make("span", { class: "tpp-small", "aria-hidden": "true" }, `${group} ${layer}`));
          for (let head = 0; head < config.num_heads; head++) {
            const name = `${group}, layer ${layer}, head ${head}`;
            heads.append(button({
              role: "radio", "aria-label": name, title: name, "data-head": `${group} ${layer} ${head}`,
              onclick: () => choose(group, layer, head),
            }, make("canvas")));
          }
        }
      }
      chosen.layer = decoder - 1;
    }

    function choose(group, layer, head) {
      if (group !== chosen.group) asking = group === "encoder" ? null : step - 1;
      chosen = { group, layer, head };
      showAttention();
    }

    function moveHead(event) {
      const buttons = [...heads.querySelectorAll("button")], at = buttons.indexOf(document.activeElement);
      const across = loaded?.about.config.num_heads, moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across };
      const target = buttons[at + moves[event.key]];
      if (at < 0 || !target) return;
      event.preventDefault();
      target.click();
      target.focus();
    }

    function showAttention() {
      if (!leaf) return;
      const all = groups();
      for (const picture of heads.querySelectorAll("button")) {
        const [group, layer, head] = picture.dataset.head.split(" ");
        const isChosen = group === chosen.group && +layer === chosen.layer && +head === chosen.head;
        picture.setAttribute("aria-checked", String(isChosen));
        picture.tabIndex = isChosen ? 0 : -1;
        paint(picture.firstChild, all[group].layers[layer][head], all[group].keys.length);
      }
      const { title, queries, keys, layers } = all[chosen.group], map = layers[chosen.layer][chosen.head];
      const name = `${chosen.group}, layer ${chosen.layer}, head ${chosen.head}`;
      headTitle.replaceChildren(name, make("br"), make("span", { class: "tpp-small" }, title));
      const left = queries.map((query, i) =>
        button({ tabindex: -1, "aria-pressed": String(i === asking), onclick: () => ask(i === asking ? null : i) }, query));
      const right = keys.map((key, j) => {
        const weight = asking === null ? 0 : map[asking][j] ?? 0, seen = weight >= 0.005;
        const box = make("span", {}, make("span", {}, key), make("b", {}, seen ? weight.toFixed(2) : ""));
        if (seen) box.style.backgroundColor = `rgba(213, 94, 0, ${0.55 * weight ** 0.6})`;
        return box;
      });
      const lines = drawLines(map, ROW * Math.max(queries.length, keys.length));
      tokens.replaceChildren(make("div", { class: "tpp-queries" }, ...left), lines, make("div", { class: "tpp-keys" }, ...right));
      if (asking === null) {
        looks.textContent = "Each line is a weight. Click a piece on the left, or press arrow keys here, to see where it looks.";
      } else {
        reveal(tokens, left[asking]);
        const weights = map[asking], most = Array.from(weights.keys()).sort((a, b) => weights[b] - weights[a]).slice(0, 3);
        const words = most.map((j) => `“${keys[j]}” ${weights[j].toFixed(2)}`);
        looks.textContent = `“${queries[asking]}” looks at: ${words.join(", ")}`;
      }
    }

    // A line from each token that looks to each that it looks at.
    function drawLines(map, height) {
      const lines = make("svg", { viewBox: `0 0 100 ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
      lines.style.height = `${height}px`;
      map.forEach((weights, i) => weights.forEach((weight, j) => {
        if (weight < 0.02 || (asking !== null && i !== asking)) return;
        const ends = { x1: 0, y1: (i + 0.5) * ROW, x2: 100, y2: (j + 0.5) * ROW };
        const line = make("line", { ...ends, "vector-effect": "non-scaling-stroke" });
        line.style.strokeOpacity = weight ** 0.6;
        line.style.strokeWidth = 1 + 3 * weight;
        lines.append(line);
      }));
      return lines;
    }

    // Let a token look; in the decoder that is to go to its step.
    function ask(query) {
      if (chosen.group !== "encoder" && query !== null) return look(query + 1);
      stop();
      asking = query;
      return showAttention();
    }

    function moveQuery(event) {
      const move = { ArrowUp: -1, ArrowDown: 1 }[event.key], length = tokens.firstChild?.childElementCount;
      if (!move || !length) return;
      event.preventDefault();
      ask(asking === null ? 0 : Math.max(0, Math.min(length - 1, asking + move)));
    }

    // A head as a small picture, a pixel for each weight.
    function paint(canvas, map, columns) {
      [canvas.width, canvas.height] = [columns, Math.max(map.length, columns === run.names.length ? 1 : columns)];
      const picture = canvas.getContext("2d"), image = picture.createImageData(canvas.width, canvas.height);
      map.forEach((weights, i) => weights.forEach((weight, j) => {
        const at = 4 * (i * columns + j);
        image.data[at] = 213, image.data[at + 1] = 94, image.data[at + 3] = 255 * weight ** 0.6;
      }));
      picture.putImageData(image, 0, 0);
    }

    function showNext() {
      temperatureText.textContent = Number(temperature.value).toFixed(1);
      topPText.textContent = Number(topP.value).toFixed(2);
      if (!leaf) {
        next.replaceChildren(make("li", { class: "tpp-hint" }, HINT));
        return;
      }
      const nodes = path(leaf), settings = [Number(temperature.value), Number(topP.value)];
      const all = nextTokens(nodes[step - 1].logits, ...settings);
      const kept = all.filter((entry) => entry.allowed), sum = kept.reduce((total, entry) => total + entry.probability, 0);
      const before = nodes.slice(1, step).map((node) => node.token);
      next.replaceChildren(...all.slice(0, SHOWN).map(({ token, probability, allowed }) => {
        const name = nameTokens(loaded.tokenizer, [nodes[step - 1].token, token])[1], isWritten = token === nodes[step].token;
        const share = allowed ? probability / sum : 0, bar = make("i", { "aria-hidden": "true" });
        bar.style.width = `${100 * (allowed ? share : probability)}%`;
        const words = `${name}, ${allowed ? percent(share) : "cut by top-p"}${isWritten ? ", written here" : ""}`;
        const shown = [make("b", {}, allowed ? percent(share) : "cut"), make("em", {}, isWritten ? "written" : "")];
        return make("li", {}, button(
          { class: allowed ? "" : "tpp-cut", "aria-label": words, onclick: () => translate([...before, token]) },
          make("span", {}, name), make("span", { class: "tpp-bar" }, bar), ...shown));
      }));
      const counts = `${number(kept.length)} of ${number(all.length)}`;
      left.textContent = `Step ${step}: ${counts} pieces may come, the ten likeliest are shown.`;
    }

    // ---- The tree -----------------------------------------------------------------------------------------

    // Arrow keys: along the steps to the nearest lane, across them to the next beginning.
    function moveNode(event) {
      const nodes = [...tree.querySelectorAll("button")], from = document.activeElement.at;
      if (!from || !event.key.startsWith("Arrow")) return;
      event.preventDefault();
      const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      const [along, aside] = tree.dataset.down === "true" ? [move[1], move[0]] : move;
      const [target] = nodes.map(({ at }) => at)
        .filter(({ node, lane }) => node.length === from.node.length + along && (along || (lane - from.lane) * aside > 0))
        .sort((a, b) => Math.abs(a.lane - from.lane) - Math.abs(b.lane - from.lane));
      if (!target?.node.parent) return;
      follow(target.node);
      [...tree.querySelectorAll("button")].find(({ at }) => at.node === target.node).focus();
    }

    // Each step a column (on a phone a row), each beginning that was kept a lane, likeliest first; finished ones come below.
    function drawTree() {
      const narrow = tree.clientWidth < 440, [wide, high] = narrow ? [84, 46] : [96, 36], lanes = run.kind === "beam" ? BEAM : 1;
      const trail = path(leaf), here = trail[step], last = playing ? step : run.steps.length;
      const nodes = [{ node: trail[0], lane: 0 }];
      run.steps.slice(0, last).forEach(({ kept, finished }) => {
        kept.forEach((node, lane) => nodes.push({ node, lane }));
        finished.forEach(({ node, score }, i) => nodes.push({ node, lane: lanes + i, score }));
      });
      for (const at of nodes) {
        const { node, lane } = at;
        Object.assign(at, { x: wide * (narrow ? lane : node.length), y: high * (narrow ? node.length : lane) });
        at.isOn = trail.includes(node) && (!playing || node.length <= step);
      }
      const place = new Map(nodes.map((at) => [at.node, at])), parents = new Set(nodes.map(({ node }) => node.parent));
      const newest = Math.max(...nodes.map(({ node }) => node.length));
      const width = Math.max(...nodes.map(({ x }) => x)) + wide, height = Math.max(...nodes.map(({ y }) => y)) + high;
      const edges = make("svg", { width, height, "aria-hidden": "true" });
      for (const at of nodes) {
        const from = place.get(at.node.parent);
        if (!from) continue;
        const [x1, y1] = narrow ? [from.x + wide / 2, from.y + 30] : [from.x + wide - 10, from.y + high / 2];
        const [x2, y2] = narrow ? [at.x + wide / 2, at.y + 4] : [at.x + 4, at.y + high / 2];
        const bend = narrow ? `C${x1} ${y1 + 12} ${x2} ${y2 - 12}` : `C${x1 + 10} ${y1} ${x2 - 10} ${y2}`;
        edges.append(make("path", { d: `M${x1} ${y1} ${bend} ${x2} ${y2}`, class: at.isOn ? "tpp-on" : "" }));
      }
      const buttons = nodes.map((at) => {
        const { node, lane, score, x, y, isOn } = at, name = nameOf(node), done = score !== undefined;
        const state = done ? "finished" : parents.has(node) || node.length === newest ? "kept" : "dropped";
        const told = done ? `, finished, score ${score.toFixed(2)}` : state === "dropped" ? ", went no further" : "";
        const sum = node.logProbability.toFixed(2);
        const drawn = button({
          class: `tpp-${state}${isOn ? " tpp-on" : ""}${node === here ? " tpp-here" : ""}`, tabindex: node === here ? 0 : -1,
          style: `left: ${x + 4}px; top: ${y + 4}px`, onclick: () => node.parent && follow(node),
          "aria-label": `step ${node.length}, place ${lane + 1}: ${name}, log-probability ${sum}${told}`,
        }, done ? `■ ${score.toFixed(2)}` : name);
        drawn.at = at;
        return drawn;
      });
      tree.dataset.down = narrow;
      tree.replaceChildren(make("div", { style: `width: ${width}px; height: ${height}px` }, edges, ...buttons));
      reveal(tree, buttons.find(({ at }) => at.node === here) ?? buttons[0]);
      const hint = run.kind === "beam" ? "" : ". Only one beginning is kept here; beam search keeps four.";
      nodeText.textContent = `Step ${step}, log p ${here.logProbability.toFixed(2)}: “${textOf(here)}”${hint}`;
      const finished = last < run.steps.length ? [] : run.finished;
      results.replaceChildren(...finished.map(({ node, score }) => make("li", {}, button(
        { "aria-pressed": String(node === leaf), onclick: () => follow(node) },
        make("b", {}, score.toFixed(2)), ` ${textOf(node)}`))));
    }

    // Follow another beginning: the other panels show how it was written.
    function follow(node) {
      stop();
      leaf = node;
      goTo(node.length);
    }
  }

  for (const box of document.querySelectorAll(".tpp-try")) buildPage(box);
  for (const box of document.querySelectorAll(".tpp-try-strip")) buildStrip(box);
})();
