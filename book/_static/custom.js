// What the theme leaves out for readers who do not use a mouse or a screen.
document.addEventListener("DOMContentLoaded", () => {
  // The sidebar is a landmark, so that a screen reader can jump to it and over it.
  const sidebar = document.querySelector(".bd-sidebar-primary");
  if (sidebar && !sidebar.matches("dialog")) {
    sidebar.setAttribute("role", "complementary");
    sidebar.setAttribute("aria-label", "The book");
  }
  // Sphinx sets the arguments of a long signature, a line for each, as a list of definitions without terms.
  for (const list of document.querySelectorAll("dt.sig dl")) list.setAttribute("role", "presentation");
  // What scrolls sideways must be reachable by keyboard.
  const focusable = () => {
    for (const box of document.querySelectorAll(".bd-article pre, .bd-article div.math, .cell_output .output, .pst-scrollable-table-container")) {
      if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
      else if (box.tabIndex === 0) box.removeAttribute("tabindex");
    }
  };
  window.addEventListener("load", focusable);
  window.addEventListener("resize", focusable);
});

// Formulas are set a few at a time, from the top: the page can be scrolled and clicked meanwhile.
if (window.MathJax) {
  MathJax.startup = {
    typeset: false,
    pageReady: async () => {
      const formulas = [...document.querySelectorAll(".math")];
      while (formulas.length) {
        await MathJax.typesetPromise(formulas.splice(0, 10));
        await new Promise((resume) => setTimeout(resume));
      }
    },
  };
}
