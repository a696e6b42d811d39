// Light, dark, or as the system has it. Runs before the page is painted, so that it never flashes.
"use strict";

(() => {
  const KEY = "leveret.theme";
  const root = document.documentElement;
  const saved = () => {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null;
    }
  };
  const apply = (theme) => {
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
    else delete root.dataset.theme;
  };
  apply(saved());
  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const isDark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
    const name = () => button.setAttribute("aria-label", isDark() ? "Light colours" : "Dark colours");
    name();
    button.addEventListener("click", () => {
      apply(isDark() ? "light" : "dark");
      name();
      try {
        localStorage.setItem(KEY, root.dataset.theme);
      } catch {
        // Without storage the choice lasts as long as the page.
      }
    });
  });
})();
