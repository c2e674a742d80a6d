// What all interactive views share. Python puts this file, KIND-view.js and a call of `showAll` into one function, in a
// <figure class="tpp-view" data-kind="KIND"> with the view's data and a <div class="tpp-static"> that the view replaces.

const DRAWN = ["svg", "g", "line", "path", "rect", "circle", "text"]; // elements of a drawing, not of a page

function make(tag, attributes = {}, ...children) {
  const element = DRAWN.includes(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Orange that lets the page shine through; how dense it is: small weights are not lost.
const shade = (weight) => weight ** 0.6;
const orange = (weight, most = 1) => `rgba(213, 94, 0, ${most * shade(weight)})`;

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

// A group of buttons of which one is chosen, by a click or by arrows: `choose` is given its place. Returns the group,
// whose `choose(place)` does the same, and whose `buttons` can be shown to `mark`.
function radios(label, names, choose) {
  const buttons = names.map((name, place) => {
    const button = make("button", { type: "button", role: "radio" }, name);
    button.addEventListener("click", () => group.choose(place));
    return button;
  });
  const group = make("div", { class: "tpp-radios", role: "radiogroup", "aria-label": label }, ...buttons);
  group.buttons = buttons;
  group.choose = (place) => {
    mark([buttons], buttons[place], "aria-checked");
    choose(place);
  };
  useArrows(group, [buttons], ["ArrowLeft", "ArrowRight"], ["ArrowUp", "ArrowDown"], (_, place) => group.choose(place));
  return group;
}

// A slider over the whole numbers from `min` to `max`; `say(place)` is what stands beside it and is read aloud, and
// `change(place)` is called when it moves.
function slider(label, { min = 0, max, value }, say, change) {
  const input = make("input", { type: "range", min, max, step: 1, value, "aria-label": label });
  const told = make("output", { "aria-hidden": "true" });
  const tell = () => {
    told.textContent = say(Number(input.value));
    input.setAttribute("aria-valuetext", told.textContent);
  };
  input.addEventListener("input", () => {
    tell();
    change(Number(input.value));
  });
  tell();
  return make("label", { class: "tpp-slider" }, make("span", {}, label), input, told);
}

// Show every figure of the kind that is not shown yet: `build` makes its element of its data.
function showAll(kind, build) {
  for (const figure of document.querySelectorAll(`figure.tpp-view[data-kind="${kind}"]:not([data-ready])`)) {
    const data = figure.querySelector('script[type="application/json"]');
    if (!data) continue; // the page is not yet read to its end: the figure's own script comes later
    figure.dataset.ready = "";
    const view = build(JSON.parse(data.textContent));
    view.classList.add("tpp-interactive");
    view.dataset.lmSuppressShortcuts = "true"; // JupyterLab's own keys, such as Enter to edit a cell, stay away
    figure.querySelector(".tpp-static").replaceWith(view);
  }
}
