// What the forms cannot do alone: keys, a draft that outlives a reload, countdowns, and a word where the server is silent.

const modified = (event) => event.shiftKey || event.ctrlKey || event.altKey || event.metaKey;
const openMenus = () => document.querySelectorAll("details.menu[open]");

// Enter sends, Shift+Enter breaks the line; Escape closes a menu, else stops the reply.
document.addEventListener("keydown", (event) => {
  const field = event.target;
  if (event.key === "Enter" && !modified(event) && !event.isComposing && field.matches?.(".composer-text")) {
    event.preventDefault();
    if (field.value.trim()) field.form.requestSubmit();
  }
  if (event.key !== "Escape") return;
  const [menu] = openMenus();
  if (menu) {
    menu.open = false;
    menu.querySelector("summary").focus();
  } else document.querySelector("[data-stop]")?.click();
});

document.addEventListener("click", async (event) => {
  for (const menu of openMenus()) if (!menu.contains(event.target)) menu.open = false;
  const copy = event.target.closest?.("[data-copy]");
  if (!copy) return;
  await navigator.clipboard?.writeText(document.getElementById(copy.dataset.copy).textContent);
  copy.textContent = "Copied";
});

// A draft is kept for this tab until it was accepted.
const draft = `draft ${location.pathname}`;

document.addEventListener("input", ({ target }) => {
  if (target.matches?.(".composer-text")) sessionStorage.setItem(draft, target.value);
});

for (const field of document.querySelectorAll(".composer-text"))
  if (!field.value) field.value = sessionStorage.getItem(draft) ?? "";

document.addEventListener("submit", ({ target }) => {
  if (target.matches("[action='/logout']")) sessionStorage.clear();
  else if (!target.hasAttribute("hx-post") && target.querySelector(".composer-text")) sessionStorage.removeItem(draft);
});

const sent = new WeakMap();

document.addEventListener("htmx:before:request", ({ target }) => {
  const field = target.closest?.("[data-composer]")?.elements.prompt;
  if (field) sent.set(field, field.value);
});

document.addEventListener("htmx:after:request", ({ target, detail }) => {
  const { response, text } = detail.ctx;
  if (response.status >= 400) {
    if (!text.includes("<hx-partial")) say("The server did not accept this. What you wrote is still here.");
    return;
  }
  const field = target.closest?.("[data-composer]")?.elements.prompt;
  // Typed on meanwhile? Then it is another message already.
  if (!field || field.value !== sent.get(field)) return;
  field.value = "";
  sessionStorage.removeItem(draft);
  document.querySelector(".scroller").scrollTop = 0;
});

document.addEventListener("htmx:error", () => say("The server cannot be reached. What you wrote is still here."));

function say(text) {
  const notice = document.getElementById("notice");
  if (!notice) return;
  notice.className = "notice refusal";
  notice.role = "alert";
  notice.textContent = text;
}

// The live stream: say when it is cut, and when it is back.
const lost = (is) => {
  for (const node of document.querySelectorAll("[data-lost]")) node.hidden = !is;
};
document.addEventListener("htmx:sse:error", () => lost(true));
document.addEventListener("htmx:sse:after:connection", () => lost(false));

setInterval(() => {
  for (const node of document.querySelectorAll("[data-countdown]")) {
    const left = Math.max(node.dataset.countdown - 1, 0);
    node.dataset.countdown = left;
    node.textContent = left ? `Try again in ${left} s.` : "You can try again now.";
  }
}, 1000);
