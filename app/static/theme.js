// Puts the remembered theme on <html> before the first paint. "system" leaves it to the browser.
(() => {
  const THEMES = ["system", "light", "dark"];
  const root = document.documentElement;
  const show = (theme) => {
    root.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) button.textContent = `Theme: ${theme}`;
  };
  let saved = null;
  try {
    saved = localStorage.getItem("supertonic.theme"); // storage.js would come after the first paint
  } catch {
    // The browser blocks site data.
  }
  show(THEMES.includes(saved) ? saved : "system");

  document.addEventListener("DOMContentLoaded", () => {
    show(root.dataset.theme);
    document.getElementById("theme").addEventListener("click", async () => {
      const next = THEMES[(THEMES.indexOf(root.dataset.theme) + 1) % THEMES.length];
      show(next);
      // The canvas is painted by hand and does not follow the style sheet by itself.
      window.dispatchEvent(new Event("resize"));
      const { local } = await import("/static/storage.js");
      local.set("supertonic.theme", next);
    });
  });
})();
