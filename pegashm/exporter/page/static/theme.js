// Light or dark? As the system says until the reader chooses; the choice is kept in this browser.
//
// A classic script in the head, run before the first paint, so that the page never flashes in the other theme.
// Sets data-theme on <html> (light, dark, or nothing: the system's) and tells the plots by the event "themechange".
"use strict";

(() => {
  const STORED = "pegashm-theme";
  const CHOICES = ["system", "light", "dark"];
  const NAMES = { system: "auto", light: "light", dark: "dark" };
  const root = document.documentElement;
  let choice = "system";
  try {
    choice = localStorage.getItem(STORED) ?? "system";
  } catch {
    // No storage in a private window: the choice lasts as long as the page.
  }
  if (!CHOICES.includes(choice)) choice = "system";

  function apply() {
    if (choice === "system") root.removeAttribute("data-theme");
    else root.setAttribute("data-theme", choice);
    const button = document.getElementById("theme");
    if (button) {
      button.textContent = `Theme: ${NAMES[choice]}`;
    }
    document.dispatchEvent(new Event("themechange"));
  }

  function next() {
    choice = CHOICES[(CHOICES.indexOf(choice) + 1) % CHOICES.length];
    try {
      localStorage.setItem(STORED, choice);
    } catch {
      // As above.
    }
    apply();
  }

  apply();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);
  document.addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", next);
    apply();
  });
})();
