// Before anything is drawn: the colours that were chosen here, else the system's.
"use strict";
(() => {
  let chosen = "";
  try {
    chosen = localStorage.getItem("farthing-theme") ?? "";
  } catch {
    // A browser that keeps nothing: then it is the system's.
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
