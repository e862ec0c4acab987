// What forms cannot do alone.

const $ = (selector) => document.querySelector(selector);
const $$ = (selector) => document.querySelectorAll(selector);
const typing = (node) => node.matches?.("input, textarea, select, [contenteditable]");
const openMenus = () => $$("details.menu[open], details.edit[open]");

// ---- keys; layout/_keys.html lists them

const keys = {
  "?": () => $("#keys")?.togglePopover(),
  "/": () => ($(".composer-text") ?? $("#q"))?.focus(),
};
const chords = {
  k: () => {
    const field = $("#q") ?? $("[type=search]");
    // where the window is narrow the side is a drawer
    if (field?.checkVisibility() === false) $("#side").showPopover();
    field?.select();
  },
  O: () => $("a.new, a.brand")?.click(),
  M: () => {
    $("summary.model")?.click();
    $(".picker[id] [open] :is([type=search], :checked)")?.focus();
    $(".picker[id] [open] [type=search]")?.select();
  },
};

document.addEventListener("keydown", (event) => {
  const field = event.target;
  const chord = event.ctrlKey || event.metaKey;
  // The Enter that ends a word in WebKit comes after the word, and only its number tells.
  if (event.isComposing || event.keyCode === 229 || event.altKey) return;
  if (event.key === "Enter" && !chord && !event.shiftKey && field.matches?.(".composer-text")) {
    event.preventDefault();
    if (field.value.trim()) field.form.requestSubmit();
  } else if (field.dataset?.filter && ["Enter", "ArrowDown"].includes(event.key)) {
    const shown = [...field.form.querySelectorAll(`${field.dataset.filter}:not([hidden]) :enabled`)];
    const one = shown.find((choice) => choice.checked) ?? shown[0];
    if (one) one.checked = true;
    if (one && event.key === "Enter") return;
    event.preventDefault();
    one?.focus();
  } else if (event.key === "Escape") {
    if ($("[popover]:popover-open")) return;
    const [menu] = openMenus();
    if (menu) {
      event.preventDefault();
      menu.open = false;
      menu.querySelector("summary").focus();
    } else $("[data-stop]")?.click();
  } else {
    const act = chord ? chords[event.shiftKey ? event.key.toUpperCase() : event.key] : !typing(field) && keys[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }
});

// ---- arrows go through the list of sessions, from where one types on

const steps = { ArrowDown: 1, ArrowUp: -1 };
document.addEventListener("keydown", (event) => {
  const step = steps[event.key];
  if (!step || !event.target.matches?.("#q, a.row-line")) return;
  const stops = [$("#q"), ...$$("a.row-line")];
  event.preventDefault();
  stops[stops.indexOf(event.target) + step]?.focus();
});

// ---- the days of the list are those of whoever reads it

document.cookie = `tz=${new Date().getTimezoneOffset()}; path=/; max-age=31536000; samesite=lax`;

// ---- menus close by a click elsewhere; copying: code, an element, or Markdown

async function copied({ dataset: { copy } }, code) {
  if (!copy) return code.querySelector("code").textContent;
  if (copy.startsWith("#")) return $(copy).textContent;
  const answer = await fetch(copy, { headers: { Accept: "application/json" } });
  return answer.headers.get("Content-Type").includes("json") ? (await answer.json()).reply : answer.text();
}

document.addEventListener("click", async ({ target }) => {
  for (const menu of $$("details.menu[open]")) if (!menu.contains(target)) menu.open = false;
  const copy = target.closest?.("[data-copy], .copy");
  if (!copy) return;
  await navigator.clipboard?.writeText(await copied(copy, copy.closest(".code")));
  const label = copy.querySelector("span") ?? copy;
  label.dataset.said ??= label.textContent;
  label.textContent = "Copied";
  setTimeout(() => (label.textContent = label.dataset.said), 2000);
});

// ---- a menu opens where there is room; a message that is edited has the keyboard

document.addEventListener(
  "toggle",
  ({ target }) => {
    if (target.matches(".edit[open]")) target.querySelector("textarea").focus();
    const log = target.matches(".menu.up[open]") && target.closest(".scroller");
    if (!log) return;
    const room = target.getBoundingClientRect().top - log.getBoundingClientRect().top;
    target.classList.toggle("down", target.lastElementChild.offsetHeight > room);
  },
  true,
);

// ---- reasoning folds once the reply begins, and otherwise stays as its reader has left it

const folds = new Map();

document.addEventListener("click", ({ target }) => {
  const fold = target.closest?.(".thoughts > summary")?.parentElement;
  if (fold) folds.set(fold.id, !fold.open);
});

document.addEventListener("htmx:after:swap", () => {
  for (const fold of $$(".thoughts")) fold.open = folds.get(fold.id) ?? "open" in fold.firstElementChild.dataset;
});

// ---- in the side, the session that is shown is marked, and in sight

document.addEventListener("htmx:after:swap", () => {
  if (location.pathname === "/") return;
  for (const row of $$(`.side .row-line[href^="${location.pathname}"]:not([aria-current])`)) row.ariaCurrent = "page";
});
$(".row-line[aria-current]")?.scrollIntoView({ block: "nearest" });

// ---- what has the keyboard may be swapped: then what stands in its place has it

const reachable = "summary, button, input:not([type=hidden]), textarea, select, a[href]";
let held;

document.addEventListener("focusin", ({ target }) => {
  const places = [];
  for (let node = target; node; node = node.parentElement) if (node.id) places.push(node.id);
  held = { node: target, places };
});

document.addEventListener("htmx:after:swap", () => {
  if (!held || held.node.isConnected || document.activeElement !== document.body) return;
  const place = held.places.map((id) => document.getElementById(id)).find(Boolean);
  const field = place.closest(".composer")?.querySelector(".composer-text");
  (field ?? (place.matches(reachable) ? place : place.querySelector(reachable)))?.focus();
});

// ---- a list that shortens while one types

document.addEventListener("input", ({ target }) => {
  const { filter, most } = target.dataset;
  if (filter) {
    const words = target.value.toLowerCase().split(/\s+/);
    for (const node of target.form.querySelectorAll(filter))
      node.hidden = !words.every((word) => node.textContent.toLowerCase().includes(word));
  }
  if (most) {
    const over = [...target.value].length - most;
    target.setCustomValidity(over > 0 ? `Too long by ${over.toLocaleString("en")}.` : "");
  }
});

// ---- the composer: what was typed outlives a reload until it was accepted

const draft = `draft ${location.pathname}`;
const remember = (text) => (text ? sessionStorage.setItem(draft, text) : sessionStorage.removeItem(draft));

document.addEventListener("input", ({ target }) => {
  if (target.matches(".composer-text")) remember(target.value);
});

for (const field of $$(".composer-text")) {
  field.value ||= sessionStorage.getItem(draft) ?? "";
  field.setSelectionRange(field.value.length, field.value.length);
}

document.addEventListener("submit", ({ target }) => {
  if (target.matches("[action='/logout']")) sessionStorage.clear();
  else if (!target.hasAttribute("hx-post") && target.querySelector(".composer-text")) remember("");
});

const sent = new WeakMap();
// those whose message is on its way: what is in them is no draft
const busy = new WeakSet();
const composer = (node) => (node.matches?.("[data-composer]") ? node.elements.prompt : null);

document.addEventListener("htmx:before:request", (event) => {
  const field = composer(event.target);
  if (field) {
    sent.set(field, field.value);
    busy.add(field);
  } else if (busy.has(event.target)) event.preventDefault();
});

document.addEventListener("htmx:after:request", ({ target, detail }) => {
  const { response, text } = detail.ctx;
  const field = composer(target);
  busy.delete(field);
  if (response.status >= 400) {
    if (field || !typing(target))
      if (!text.includes("<hx-partial")) say("The server did not accept this. What you wrote is still here.");
    return;
  }
  // Typed on meanwhile? Then it is another message already.
  if (!field || field.value !== sent.get(field)) return;
  field.value = "";
  remember("");
  $(".scroller").scrollTop = 0;
});

document.addEventListener("htmx:error", ({ target }) => {
  busy.delete(composer(target));
  if (!typing(target)) say("The server cannot be reached. What you wrote is still here.");
});

function say(text) {
  const notice = document.getElementById("notice");
  if (!notice) return;
  notice.className = "notice refusal";
  notice.role = "alert";
  notice.textContent = text;
}

// ---- the live stream: say when it is cut, and when it is back

const lost = (is) => {
  for (const node of $$("[data-lost]")) node.hidden = !is;
};
document.addEventListener("htmx:sse:error", () => lost(true));
document.addEventListener("htmx:sse:after:connection", () => lost(false));

// ---- WebKit does not hold the place where one reads while the end of the log grows

if (!CSS.supports("overflow-anchor", "auto"))
  for (const log of $$(".scroller > .log")) {
    let height = log.offsetHeight;
    new ResizeObserver(() => {
      const grown = log.offsetHeight - height;
      height += grown;
      if (log.parentNode.scrollTop < 0) log.parentNode.scrollTop -= grown;
    }).observe(log);
  }

// ---- one tick for all of them

for (const all of $$("[data-all]")) {
  all.hidden = false;
  all.addEventListener("change", () => {
    for (const one of $$(`[name="${all.dataset.all}"]`)) one.checked = all.checked;
  });
}

const wait = (seconds) => {
  const minutes = Math.floor(seconds / 60);
  if (minutes > 59) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${minutes ? `${minutes} min ` : ""}${seconds % 60} s`;
};

setInterval(() => {
  for (const node of $$("[data-countdown]")) {
    const left = Math.max(node.dataset.countdown - 1, 0);
    node.dataset.countdown = left;
    node.textContent = left ? `Try again in ${wait(left)}.` : "You can try again now.";
  }
}, 1000);
