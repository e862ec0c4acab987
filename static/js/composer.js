// The composer: Enter sends, Shift+Enter breaks the line, Esc stops; what was typed goes only once it was accepted.

const composer = (node) => node.closest?.("[data-composer]");

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.target.matches?.(".composer-text")) {
    event.preventDefault();
    event.target.form.requestSubmit();
  }
  if (event.key === "Escape") document.querySelector("[data-stop]")?.click();
});

const sent = new WeakMap();

document.addEventListener("htmx:before:request", (event) => {
  const form = composer(event.target);
  if (form) sent.set(form, form.elements.prompt.value);
});

document.addEventListener("htmx:after:request", (event) => {
  const form = composer(event.target);
  const status = event.detail.ctx.response?.status ?? 0;
  // Typed on meanwhile? Then it is another message already.
  if (form && status < 400 && form.elements.prompt.value === sent.get(form)) form.elements.prompt.value = "";
});

setInterval(() => {
  for (const node of document.querySelectorAll("[data-countdown]")) {
    const left = node.dataset.countdown - 1;
    node.dataset.countdown = Math.max(left, 0);
    node.textContent = left > 0 ? `Try again in ${left} s.` : "You can try again now.";
  }
}, 1000);
