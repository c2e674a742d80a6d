// The page on which a translator translates, and the strip of it on the landing page. It fills each <div class="tpp-try">
// and <div class="tpp-try-strip">. What it computes is in translator.js; model.js and weights-N.js, which lie beside this
// file, are loaded at the first click, one after the other: a page that is a file may load scripts, and nothing else.
(() => {
  "use strict";
  const { BOS, EOS, Tokenizer, Transformer, beamSearch, draw, likeliest, limitOf, nextTokens, path, writeTokens, written } = tppTranslator;
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

  // Until the page has been painted; a page that nobody sees is not.
  const painted = () => new Promise((go) => (document.hidden ? setTimeout(go) : requestAnimationFrame(() => setTimeout(go))));
  const percent = (share) => (share < 0.0005 ? "< 0.1 %" : `${(100 * share).toFixed(share >= 0.0995 ? 0 : 1)} %`);
  const number = (count) => count.toLocaleString("en-US");

  // Scroll inside of a box so that a child can be seen; the page itself stays where it is.
  function reveal(box, child) {
    const outer = box.getBoundingClientRect(), inner = child.getBoundingClientRect();
    if (inner.top < outer.top + ROW || inner.bottom > outer.bottom - ROW) box.scrollTop += (inner.top + inner.bottom - outer.top - outer.bottom) / 2;
    if (inner.left < outer.left || inner.right > outer.right) box.scrollLeft += (inner.left + inner.right - outer.left - outer.right) / 2;
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
    const letters = 20 * about.limit; // more of them are not even cut into pieces
    if (text.length > letters) throw new Error(`The text has ${number(text.length)} characters; this page takes at most ${number(letters)}, and ${about.limit} pieces.`);
    const ids = [...tokenizer.encode(text), EOS];
    if (ids.length === 1) throw new Error("There is nothing to translate: type a sentence first.");
    if (ids.length > about.limit) throw new Error(`The text has ${ids.length} pieces, its end counted; this page takes at most ${about.limit}.`);
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
        if (!done) line.textContent = `Loading the translator, ${(all / 1e6).toFixed(1)} MB, once.`; // said once, not at each piece
      },
    };
  }

  // ---- The strip ----------------------------------------------------------------------------------------------

  function buildStrip(box) {
    const { source = "German", target = "English", example = "Klicken Sie auf OK, um das Dokument zu speichern." } = box.dataset;
    const input = make("input", { id: "tpp-strip-input", lang: "de", value: example, autocomplete: "off", spellcheck: "false" });
    const result = make("output", { for: "tpp-strip-input", lang: "en" });
    const status = makeStatus();
    const button = make("button", { type: "submit", class: "tpp-main" }, "Translate");
    const link = make("a", { href: box.dataset.page ?? new URL("../../book/try.html", HERE).href }, "See how it does it");
    const form = make("form", { onsubmit: translate },
      make("label", { for: "tpp-strip-input" }, source), make("div", { class: "tpp-line" }, input, button),
      make("span", { class: "tpp-label" }, target), result, make("div", { class: "tpp-line" }, status.box, link));
    box.replaceChildren(form);
    let busy = false;

    async function translate(event) {
      event.preventDefault();
      if (busy) return;
      busy = true;
      try {
        const loaded = await load(status.progress), ids = readText(input.value, loaded);
        const source = loaded.model.read(ids), search = beamSearch(loaded.model, source, limitOf(loaded.model, source), BEAM);
        status.say("");
        for (let step = search.next(); ; step = search.next()) {
          const node = step.done ? step.value[0].node : step.value.kept[0];
          result.textContent = loaded.tokenizer.decode(written(node)).trim();
          if (step.done) break;
          await painted();
        }
        status.say("Translated in this page: nothing was sent anywhere.");
      } catch (error) {
        status.say(error.message, true);
      }
      busy = false;
    }
  }

  // ---- The page -----------------------------------------------------------------------------------------------

  const HINT = "Translate a sentence, and you see it here.";

  function buildPage(box) {
    const { source: from = "Source", target: to = "Translation" } = box.dataset, examples = JSON.parse(box.dataset.examples || "[]");
    let loaded = null; // {about, model, tokenizer}
    let run = null; // what is shown: {source, names, steps, finished, method}
    let leaf = null; // the beginning that is followed, and the step of it that is looked at, from 1
    let step = 0;
    let latest = 0; // number of the run, so that an older one stops
    let playing = null; // a timer
    let chosen = { group: "cross", layer: 0, head: 0 }; // the head
    let asking = null; // the token that looks: in the encoder the one that was clicked, in the decoder that of the step; or all

    // The upper part: what goes in, what comes out.
    const input = make("textarea", { id: "tpp-input", rows: 3, lang: from === "German" ? "de" : false, spellcheck: "false", "aria-describedby": "tpp-count", oninput: showPieces });
    const count = make("span", { id: "tpp-count", class: "tpp-small" }, "Enter translates.");
    const output = make("output", { class: "tpp-output", for: "tpp-input", lang: to === "English" ? "en" : false });
    const status = makeStatus();
    const piecesIn = make("div", { class: "tpp-pieces tpp-in", role: "group", tabindex: 0, "aria-label": `Pieces of the ${from} text` });
    const piecesOut = make("div", { class: "tpp-pieces tpp-out", role: "group", tabindex: 0, "aria-label": `Pieces of the ${to} text` });
    const methods = [["beam", "Beam search"], ["greedy", "Greedy"], ["sample", "Sampling"]].map(([value, name]) =>
      make("label", {}, make("input", { type: "radio", name: "tpp-method", value, checked: value === "beam" }), name));
    const method = () => form.querySelector("[name=tpp-method]:checked").value;
    const form = make("form", { class: "tpp-talk", onsubmit: (event) => { event.preventDefault(); translate(); } },
      make("div", {}, make("label", { for: "tpp-input", class: "tpp-label" }, from), count, input, piecesIn),
      make("div", {}, make("span", { class: "tpp-label" }, to), output, piecesOut),
      make("div", { class: "tpp-controls" },
        make("fieldset", {}, make("legend", {}, "How"), ...methods),
        make("button", { type: "submit", class: "tpp-main" }, "Translate"), status.box));
    input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      translate();
    });
    const tries = make("div", { class: "tpp-examples", role: "group", "aria-label": "Examples" }, ...examples.map((text) =>
      make("button", { type: "button", lang: from === "German" ? "de" : false, onclick: () => { input.value = text; showPieces(); translate(); } }, text)));

    // The steps.
    const slider = make("input", { type: "range", id: "tpp-step", min: 0, max: 0, value: 0, oninput: () => { stop(); goTo(Number(slider.value)); } });
    const stepText = make("p", { class: "tpp-step-text" });
    const play = make("button", { type: "button", onclick: () => (playing ? stop() : start()) }, "▶ Play");
    const steps = make("div", { class: "tpp-steps", role: "group", "aria-label": "Steps" },
      play, make("button", { type: "button", "aria-label": "Step back", onclick: () => { stop(); goTo(step - 1); } }, "◀"), slider,
      make("button", { type: "button", "aria-label": "Step on", onclick: () => { stop(); goTo(step + 1); } }, "▶"),
      make("label", { for: "tpp-step", class: "tpp-away" }, "Step"), stepText);

    // The panels.
    const heads = make("div", { class: "tpp-heads", role: "radiogroup", "aria-label": "Attention: kind, layer and head" });
    const headTitle = make("p", { class: "tpp-title" }, HINT);
    const tokens = make("div", { class: "tpp-tokens", role: "region", tabindex: 0, "aria-label": "Attention of the chosen head" });
    const looks = make("p", { class: "tpp-looks tpp-small", "aria-live": "polite" });
    const temperature = make("input", { type: "range", id: "tpp-temperature", min: 0.1, max: 2, step: 0.1, value: 1, oninput: showNext });
    const topP = make("input", { type: "range", id: "tpp-top-p", min: 0.05, max: 1, step: 0.05, value: 1, oninput: showNext });
    const temperatureText = make("output", { for: "tpp-temperature" }), topPText = make("output", { for: "tpp-top-p" });
    const next = make("ol", { class: "tpp-next", "aria-label": "The likeliest next pieces" });
    const left = make("p", { class: "tpp-small tpp-left", "aria-live": "polite" });
    const tree = make("div", { class: "tpp-tree", role: "group", tabindex: -1, "aria-label": "Beginnings that were kept, step by step" });
    const nodeText = make("p", { class: "tpp-small tpp-node-text", "aria-live": "polite" }, HINT);
    const results = make("ol", { class: "tpp-results", "aria-label": "Finished translations, best first" });
    const panel = (name, title, ...children) => make("section", { class: `tpp-panel tpp-panel-${name}`, "aria-labelledby": `tpp-${name}` }, make("h2", { id: `tpp-${name}` }, title), ...children);
    box.replaceChildren(tries, form, steps, make("div", { class: "tpp-panels" },
      panel("attention", "Where it looks", make("div", { class: "tpp-split" }, heads, make("div", {}, headTitle, tokens)), looks),
      panel("next", "What could come next",
        make("div", { class: "tpp-sliders" },
          make("label", { for: "tpp-temperature" }, "Temperature"), temperature, temperatureText,
          make("label", { for: "tpp-top-p" }, "Top-p"), topP, topPText),
        next, left, make("p", { class: "tpp-small" }, "Choose a piece, and the translator writes it here and goes on from there. Sampling draws with these settings.")),
      panel("beam", "The beam", make("div", { class: "tpp-split" },
        make("div", {}, tree, nodeText, make("p", { class: "tpp-small" }, "Step by step, the likeliest beginning first. Dashed: went no further. ■ finished, with its score. Choose one to follow it.")),
        make("div", {}, make("h3", {}, "Finished"), results, make("p", { class: "tpp-small" }, "Score: log p / ((5 + pieces) / 6)^0.6"))))));
    heads.addEventListener("keydown", moveHead);
    tree.addEventListener("keydown", moveNode);
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
        const source = model.read(ids), limit = limitOf(model, source), kind = forced.length && method() === "beam" ? "greedy" : method();
        const choose = kind === "sample" ? draw(Number(temperature.value), Number(topP.value)) : likeliest;
        const writing = kind === "beam" ? beamSearch(model, source, limit, BEAM) : writeTokens(model, source, limit, choose, forced);
        run = { source, names: nameTokens(tokenizer, ids), steps: [], finished: [], kind };
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
        const text = tokenizer.decode(written(leaf)).trim();
        status.say(`Written, ${leaf.length} pieces. It was least sure at step ${unsure}: look there first.`, false, ` ${to}: ${text || "an empty translation"}`);
      } catch (error) {
        if (mine !== latest) return;
        if (loaded) input.setAttribute("aria-invalid", "true");
        status.say(error.message, true);
      }
    }

    // ---- Showing ------------------------------------------------------------------------------------------

    // The step whose likeliest piece had the smallest probability.
    function leastSure() {
      const sure = path(leaf).slice(0, -1).map(({ logits }) => nextTokens(logits, 1, 1)[0].probability);
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

    function chip(name, id, attributes = {}) {
      return make(attributes.onclick ? "button" : "span", { class: "tpp-chip", ...attributes }, name, make("small", {}, String(id)));
    }

    function showPieces() {
      if (!loaded) return;
      const { tokenizer, about } = loaded, ids = input.value.length > 20 * about.limit ? [] : tokenizer.encode(input.value);
      count.textContent = `${ids.length + 1} of at most ${about.limit} pieces, with <eos>`;
      const names = nameTokens(tokenizer, ids.slice(0, about.limit));
      piecesIn.replaceChildren(...names.map((name, i) => chip(name, ids[i])), chip("<eos>", EOS));
    }

    function showStep() {
      const { tokenizer } = loaded, nodes = path(leaf).slice(1), names = nameTokens(tokenizer, nodes.map((node) => node.token));
      output.textContent = tokenizer.decode(written(playing ? nodes[step - 1] : leaf)).trim();
      slider.min = 1;
      slider.max = leaf.length;
      slider.value = step;
      slider.setAttribute("aria-valuetext", `${step} of ${leaf.length}, writes ${names[step - 1]}`);
      stepText.textContent = `Step ${step} of ${leaf.length}: reads “${step > 1 ? names[step - 2] : "<bos>"}”, writes “${names[step - 1]}”`;
      piecesOut.replaceChildren(...names.map((name, i) => chip(name, nodes[i].token, { type: "button", tabindex: -1, "data-later": i >= step,
        "aria-pressed": String(i === step - 1), onclick: () => { stop(); goTo(i + 1); } })));
      reveal(piecesOut, piecesOut.children[step - 1]);
    }

    // The kinds of attention up to this step: names of the tokens that look and are looked at, layers[layer][head][query] weights.
    function groups() {
      const nodes = path(leaf), reading = nodes.slice(0, step), names = nameTokens(loaded.tokenizer, nodes.map((node) => node.token));
      const of = (kind) => reading[0][kind].map((maps, l) => maps.map((_, h) => reading.map((node) => node[kind][l][h])));
      return {
        encoder: { title: `${from} looks at ${from}`, queries: run.names, keys: run.names, layers: run.source.attention },
        decoder: { title: `${to} looks at ${to}`, queries: names.slice(0, step), keys: names.slice(0, step), layers: of("decoder") },
        cross: { title: `${to} looks at ${from}`, queries: names.slice(1, step + 1), keys: run.names, layers: of("cross") },
      };
    }

    function drawHeads() {
      const { config } = loaded.about, layers = { encoder: config.num_encoder_layers, decoder: config.num_decoder_layers, cross: config.num_decoder_layers };
      if (heads.childElementCount) return;
      heads.style.gridTemplateColumns = `auto repeat(${config.num_heads}, minmax(2rem, 3.2rem))`;
      for (const [group, amount] of Object.entries(layers)) {
        for (let layer = 0; layer < amount; layer++) {
          heads.append(make("span", { class: "tpp-small", "aria-hidden": "true" }, `${group} ${layer}`));
          for (let head = 0; head < config.num_heads; head++) {
            const name = `${group}, layer ${layer}, head ${head}`;
            heads.append(make("button", { type: "button", role: "radio", "aria-label": name, title: name, "data-head": `${group} ${layer} ${head}`, onclick: () => choose(group, layer, head) }, make("canvas", {})));
          }
        }
      }
      chosen.layer = config.num_decoder_layers - 1;
    }

    function choose(group, layer, head) {
      if (group !== chosen.group) asking = group === "encoder" ? null : step - 1;
      chosen = { group, layer, head };
      showAttention();
    }

    function moveHead(event) {
      const buttons = [...heads.querySelectorAll("button")], at = buttons.indexOf(document.activeElement), across = loaded?.about.config.num_heads;
      const target = buttons[at + ({ ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[event.key] ?? NaN)];
      if (at < 0 || !target) return;
      event.preventDefault();
      target.click();
      target.focus();
    }

    function showAttention() {
      if (!leaf) return;
      const all = groups();
      for (const button of heads.querySelectorAll("button")) {
        const [group, layer, head] = button.dataset.head.split(" "), isChosen = group === chosen.group && +layer === chosen.layer && +head === chosen.head;
        button.setAttribute("aria-checked", String(isChosen));
        button.tabIndex = isChosen ? 0 : -1;
        paint(button.firstChild, all[group].layers[layer][head], all[group].keys.length);
      }
      const { title, queries, keys, layers } = all[chosen.group], map = layers[chosen.layer][chosen.head];
      const query = asking;
      headTitle.textContent = `${chosen.group}, layer ${chosen.layer}, head ${chosen.head}: ${title}`;
      const height = ROW * Math.max(queries.length, keys.length), lines = make("svg", { viewBox: `0 0 100 ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
      lines.style.height = `${height}px`;
      map.forEach((weights, i) => weights.forEach((weight, j) => {
        if (weight < 0.02 || (query !== null && i !== query)) return;
        const line = make("line", { x1: 0, y1: (i + 0.5) * ROW, x2: 100, y2: (j + 0.5) * ROW, "vector-effect": "non-scaling-stroke" });
        line.style.strokeOpacity = weight ** 0.6;
        line.style.strokeWidth = 1 + 3 * weight;
        lines.append(line);
      }));
      const pick = (i) => { stop(); if (chosen.group === "encoder") { asking = asking === i ? null : i; showAttention(); } else goTo(i + 1); };
      const column = (names, className, name) => make("div", { class: className }, ...names.map(name));
      tokens.replaceChildren(
        column(queries, "tpp-queries", (name, i) => make("button", { type: "button", tabindex: -1, "aria-pressed": String(i === query), onclick: () => pick(i) }, name)), lines,
        column(keys, "tpp-keys", (name, j) => {
          const weight = query === null ? 0 : map[query][j] ?? 0, key = make("span", {}, make("span", {}, name), make("b", {}, weight >= 0.005 ? weight.toFixed(2) : ""));
          key.style.backgroundColor = weight >= 0.005 ? `rgba(213, 94, 0, ${0.55 * weight ** 0.6})` : "";
          return key;
        }));
      if (query === null) looks.textContent = "Each line is a weight. Click a piece on the left to see where it looks, or use the arrow keys in this picture.";
      else {
        reveal(tokens, tokens.firstChild.children[query]);
        const most = Array.from(map[query].keys()).sort((a, b) => map[query][b] - map[query][a]).slice(0, 3);
        looks.textContent = `“${queries[query]}” looks at: ${most.map((j) => `“${keys[j]}” ${map[query][j].toFixed(2)}`).join(", ")}`;
      }
      tokens.onkeydown = (event) => {
        const move = { ArrowUp: -1, ArrowDown: 1 }[event.key];
        if (!move) return;
        event.preventDefault();
        const wanted = (query ?? (move > 0 ? -1 : queries.length)) + move;
        if (chosen.group !== "encoder") goTo(wanted + 1);
        else if (wanted >= 0 && wanted < queries.length) { asking = wanted; showAttention(); }
      };
    }

    // A head as a small picture, a pixel for each weight.
    function paint(canvas, map, columns) {
      [canvas.width, canvas.height] = [columns, Math.max(map.length, columns === run.names.length ? 1 : columns)];
      const picture = canvas.getContext("2d"), image = picture.createImageData(canvas.width, canvas.height);
      map.forEach((weights, i) => weights.forEach((weight, j) => image.data.set([213, 94, 0, 255 * weight ** 0.6], 4 * (i * columns + j))));
      picture.putImageData(image, 0, 0);
    }

    function showNext() {
      temperatureText.textContent = Number(temperature.value).toFixed(1);
      topPText.textContent = Number(topP.value).toFixed(2);
      if (!leaf) {
        next.replaceChildren(make("li", { class: "tpp-hint" }, HINT));
        return;
      }
      const nodes = path(leaf), { logits } = nodes[step - 1], all = nextTokens(logits, Number(temperature.value), Number(topP.value));
      const kept = all.filter((entry) => entry.allowed), sum = kept.reduce((total, entry) => total + entry.probability, 0);
      const before = nodes.slice(1, step).map((node) => node.token);
      next.replaceChildren(...all.slice(0, SHOWN).map(({ token, probability, allowed }) => {
        const name = nameTokens(loaded.tokenizer, [...before, token]).at(-1), isWritten = token === nodes[step].token;
        const share = allowed ? probability / sum : 0, bar = make("i", { "aria-hidden": "true" });
        bar.style.width = `${100 * (allowed ? share : probability)}%`;
        const words = `${name}, ${allowed ? percent(share) : "cut by top-p"}${isWritten ? ", written here" : ""}`;
        return make("li", {}, make("button", { type: "button", class: allowed ? "" : "tpp-cut", "aria-label": words, onclick: () => translate([...before, token]) },
          make("span", {}, name), make("span", { class: "tpp-bar" }, bar), make("b", {}, allowed ? percent(share) : "cut"), make("em", {}, isWritten ? "written" : "")));
      }));
      left.textContent = `Step ${step}: ${number(kept.length)} of ${number(all.length)} pieces may come, the ten likeliest are shown.`;
    }

    // ---- The tree -----------------------------------------------------------------------------------------

    function moveNode(event) {
      const buttons = [...tree.querySelectorAll("button")], from = buttons.indexOf(document.activeElement);
      if (from < 0 || !event.key.startsWith("Arrow")) return;
      event.preventDefault();
      const at = document.activeElement.at, across = tree.dataset.down === "true";
      const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      const [along, aside] = across ? [move[1], move[0]] : move;
      const near = (b) => (along ? Math.abs(b.at.lane - at.lane) : Math.abs(b.at.lane - at.lane - aside));
      const others = buttons.filter((b) => (along ? b.at.node.length === at.node.length + along : b.at.node.length === at.node.length && (b.at.lane - at.lane) * aside > 0));
      const target = others.sort((a, b) => near(a) - near(b))[0];
      if (!target) return;
      const { node } = target.at;
      target.click();
      [...tree.querySelectorAll("button")].find((button) => button.at.node === node)?.focus();
    }

    // Each step a column (on a phone a row), each beginning that was kept a lane, likeliest first; finished ones come below.
    function drawTree() {
      const narrow = tree.clientWidth < 440, [wide, high] = narrow ? [84, 46] : [96, 36], lanes = run.kind === "beam" ? BEAM : 1;
      const nodes = [{ node: path(leaf)[0], lane: 0 }], onPath = new Set(path(leaf)), last = playing ? step : run.steps.length;
      run.steps.slice(0, last).forEach(({ kept, finished }) => {
        kept.forEach((node, lane) => nodes.push({ node, lane }));
        finished.forEach(({ node, score }, i) => nodes.push({ node, lane: lanes + i, score }));
      });
      const here = path(leaf)[step], place = new Map(nodes.map((at) => [at.node, at])), parents = new Set(nodes.map(({ node }) => node.parent));
      const newest = Math.max(...nodes.map(({ node }) => node.length));
      const x = ({ node, lane }) => (narrow ? lane : node.length) * wide, y = ({ node, lane }) => (narrow ? node.length : lane) * high;
      const size = [Math.max(...nodes.map(x)) + wide, Math.max(...nodes.map(y)) + high];
      const edges = make("svg", { width: size[0], height: size[1], "aria-hidden": "true" });
      const buttons = nodes.map((at) => {
        const { node, score } = at, parent = place.get(node.parent), isOn = onPath.has(node) && (!playing || node.length <= step);
        if (parent) {
          const [x1, y1, x2, y2] = narrow ? [x(parent) + wide / 2, y(parent) + 30, x(at) + wide / 2, y(at) + 4] : [x(parent) + wide - 6, y(parent) + high / 2, x(at) + 4, y(at) + high / 2];
          const bend = narrow ? `C${x1} ${y1 + 12} ${x2} ${y2 - 12}` : `C${x1 + 10} ${y1} ${x2 - 10} ${y2}`;
          edges.append(make("path", { d: `M${x1} ${y1} ${bend} ${x2} ${y2}`, class: isOn ? "tpp-on" : "" }));
        }
        const name = nameTokens(loaded.tokenizer, path(node).map(({ token }) => token)).at(-1);
        const state = score !== undefined ? "finished" : parents.has(node) || node.length === newest ? "kept" : "dropped";
        const told = score !== undefined ? `, finished, score ${score.toFixed(2)}` : state === "dropped" ? ", went no further" : "";
        const button = make("button", { type: "button", class: `tpp-${state}${isOn ? " tpp-on" : ""}${node === here ? " tpp-here" : ""}`, tabindex: node === here ? 0 : -1,
          "aria-label": `step ${node.length}, place ${at.lane + 1}: ${name}, log-probability ${node.logProbability.toFixed(2)}${told}`,
          onclick: () => { if (node.parent) follow(node); } }, score === undefined ? name : `■ ${score.toFixed(2)}`);
        Object.assign(button.style, { left: `${x(at) + 4}px`, top: `${y(at) + 4}px` });
        button.at = at;
        return button;
      });
      tree.dataset.down = narrow;
      const inner = make("div", { style: `width: ${size[0]}px; height: ${size[1]}px` }, edges, ...buttons);
      tree.replaceChildren(inner);
      reveal(tree, buttons.find((button) => button.at.node === here) ?? buttons[0]);
      const text = loaded.tokenizer.decode(written(here)).trim();
      nodeText.textContent = `Step ${step}, log p ${here.logProbability.toFixed(2)}: “${text}”` + (run.kind === "beam" ? "" : ". Only one beginning is kept here; beam search keeps four.");
      results.replaceChildren(...(last < run.steps.length ? [] : run.finished).map(({ node, score }) =>
        make("li", {}, make("button", { type: "button", "aria-pressed": String(node === leaf), onclick: () => follow(node) }, make("b", {}, score.toFixed(2)), " ", loaded.tokenizer.decode(written(node)).trim()))));
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
