// What forms cannot do alone.

const $ = (selector) => document.querySelector(selector);
const $$ = (selector) => document.querySelectorAll(selector);
const on = (event, act, early) => document.addEventListener(event, act, early);
const typing = (node) => node.matches?.("input, textarea, select");
const scroller = $(".scroller");

// ---- what is said is heard in one place

const tell = (text) => ($("#status").textContent = text);

function say(text, code = "") {
  tell(text);
  const notice = $("#notice");
  notice.className = "notice refusal";
  notice.dataset.code = code;
  notice.textContent = text;
}

const undo = $(".undo > span");
if (undo) setTimeout(() => tell(undo.textContent), 500);

// ---- keys; layout/_keys.html lists them

// on a screen keyboard there is no Shift Enter: Enter is a new line, and the button sends
const touch = matchMedia("(pointer: coarse)");
const keys = {
  "?": () => $("#keys").togglePopover(),
  "/": () => ($(".composer-text") ?? $("#q"))?.focus(),
};
const chords = {
  k: () => {
    const field = $("#q, [type=search]");
    if (!field) return;
    field.closest("details")?.setAttribute("open", "");
    // where it is narrow the side is a drawer
    if (!field.checkVisibility()) $("#side").showPopover();
    field.select();
  },
  O: () => $("a.new").click(),
  M: () => {
    const button = $("button.model");
    button?.focus();
    button?.click();
    $(".picker :popover-open :is([type=search], :checked)")?.focus();
  },
};

on("keydown", (event) => {
  const { target, key, shiftKey } = event;
  const chord = event.ctrlKey || event.metaKey;
  // The Enter that ends a word in WebKit comes after the word, and only its number tells.
  if (event.isComposing || event.keyCode === 229 || event.altKey) return;
  const { filter } = target.dataset ?? {};
  const step = { ArrowDown: 1, ArrowUp: -1 }[key];
  let act = chord ? chords[shiftKey ? key.toUpperCase() : key] : !typing(target) && keys[key];
  if (key === "Enter" && !shiftKey && (chord ? target.matches("textarea") : target.matches(".composer-text") && !touch.matches))
    act = () => target.value.trim() && target.form.requestSubmit();
  else if (filter && (key === "Enter" || step > 0)) {
    const shown = [...target.form.querySelectorAll(`${filter}:not([hidden]) :enabled`)];
    const one = shown.find((choice) => choice.checked) ?? shown[0];
    if (one) one.checked = true;
    if (one && key === "Enter") return;
    act = () => one?.focus();
  } else if (step && target.matches("#q, a.row-line")) {
    // through the list of sessions, from where one types on
    const stops = [...$$("#q, a.row-line")];
    act = () => stops[stops.indexOf(target) + step]?.focus();
  } else if (key === "Escape" && filter) {
    // once, and not first the text in it
    act = () => target.closest(".menu").hidePopover();
  } else if (key === "Escape" && !$(":popover-open")) {
    const edit = $(".edit[open] > summary");
    (edit ?? $("[data-stop]"))?.click();
    edit?.focus();
  }
  if (!act) return;
  event.preventDefault();
  act();
});

// ---- the days of the list are those of whoever reads it

document.cookie = `tz=${new Date().getTimezoneOffset()}; path=/; max-age=31536000; samesite=lax`;

// ---- copying: code, an element, or what the server has as Markdown

async function fetched(url) {
  const answer = await fetch(url, { headers: { Accept: "application/json" } }).catch(() => {
    throw new Error("The server cannot be reached.");
  });
  // a proxy in front may answer with a page of its own
  const kind = answer.headers.get("Content-Type") ?? "";
  if (answer.ok && kind.startsWith("text/markdown")) return answer.text();
  const found = kind.includes("json") ? await answer.json() : {};
  // also where the login has ended
  if (answer.status === 404) throw new Error("It is no longer there, or no longer yours.");
  if (!answer.ok || typeof found.reply !== "string") throw new Error(found.detail ?? "The server does not give the text.");
  return found.reply;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // on plain http, or where it was forbidden: the way of before
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "unseen";
    const before = document.activeElement;
    if (before === document.body) before.append(area);
    else before.after(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    before.focus({ preventScroll: true });
    return done;
  }
}

on("click", async ({ target }) => {
  const copy = target.closest("[data-copy], .copy");
  if (!copy) return;
  const from = copy.dataset.copy;
  const reply = copy.closest(".turn")?.querySelector(".reply > .text");
  const there = from ? reply : copy.closest(".code").querySelector("code");
  const shown = from?.startsWith("#") ? $(from) : (there ?? $(".log"));
  let why = "Your browser does not allow it.";
  try {
    if (await copied(from && shown.id !== from.slice(1) ? await fetched(from) : shown.textContent)) {
      const label = copy.querySelector("span") ?? copy;
      label.dataset.said ??= label.textContent;
      tell((label.textContent = "Copied"));
      setTimeout(() => (label.textContent = label.dataset.said), 2000);
      return;
    }
  } catch (error) {
    why = error.message;
  }
  getSelection().selectAllChildren(shown);
  say(`Not copied. ${why} The text shown here is selected instead: copy it with Ctrl+C.`);
});

// ---- a message that is edited has the keyboard

on(
  "toggle",
  ({ target }) => {
    if (target.matches(".edit[open]")) target.querySelector("textarea").focus();
    else if (target.matches(".edit")) forget(target.querySelector("form"));
  },
  true,
);

// ---- reasoning folds once the reply begins, else stays as its reader left it

const folds = new Map();

on("click", ({ target }) => {
  const fold = target.closest(".thoughts > summary")?.parentElement;
  if (fold) folds.set(fold.id, !fold.open);
});

// ---- what is swapped hands the keyboard on

const reachable = "summary, button, input:not([type=hidden]), textarea, select, a[href]";
let held;

function hold(node) {
  const places = [];
  for (let place = node; place; place = place.parentElement) places.push(place.id || place.getAttribute("popovertarget"));
  held = { node, places };
}
on("focusin", ({ target }) => hold(target));
// a field may have it before this script runs
if (document.activeElement !== document.body) hold(document.activeElement);

/** What can have the keyboard where this stands, or opens it. */
function inPlaceOf(place) {
  const below = place.closest(".composer");
  const text = ".composer-text, .unsent > textarea:not(:placeholder-shown)";
  const own = place.matches(reachable) ? place : place.querySelector(reachable);
  const shut = place.closest("details:not([open])")?.querySelector("summary");
  const opener = $(`[popovertarget="${CSS.escape(place.id)}"]`);
  const field = below?.querySelector(text) ?? below?.querySelector(".ended-note > p");
  return [field, opener, shut, own].find((node) => node?.checkVisibility());
}

/** Give the keyboard back, unless somebody has it: at last to where it is said what was done. */
function handOn() {
  if (document.activeElement !== document.body) return;
  if (held.node.isConnected && held.node.checkVisibility()) return held.node.focus();
  const notice = $("#notice");
  notice.tabIndex = -1;
  const places = held.places.map((id) => id && id !== "main" && document.getElementById(id)).filter(Boolean);
  (places.map(inPlaceOf).find(Boolean) ?? notice).focus({ preventScroll: true });
}

on("htmx:after:swap", () => {
  for (const fold of $$(".thoughts")) fold.open = folds.get(fold.id) ?? "open" in fold.firstElementChild.dataset;
  for (const room of $$(".room")) {
    room.classList.toggle("writing", !!$("[data-stop]"));
    room.classList.toggle("ended", !!$(".ended-note"));
    room.classList.toggle("held", !$("button.model"));
    // in the side, the session that is shown is marked
    for (const row of $$(`.side [href^="${location.pathname}"]`)) row.ariaCurrent = "page";
  }
  for (const form of $$("[data-composer]")) restore(form, form.matches(".unsent"));
  if (held && !held.node.isConnected) handOn();
});
// a button that was pressed may be disabled meanwhile, and its menu closed
on("htmx:finally:request", ({ target }) => {
  if (held?.node.matches("button") && target.contains?.(held.node)) queueMicrotask(handOn);
});
$(".row-line[aria-current]")?.scrollIntoView({ block: "nearest" });

// ---- a list that shortens while one types; a text that is too long

on("input", ({ target }) => {
  const { filter, most } = target.dataset;
  if (filter) {
    const words = target.value.toLowerCase().split(/\s+/);
    for (const node of target.form.querySelectorAll(filter))
      node.hidden = !words.every((word) => node.textContent.toLowerCase().includes(word));
  }
  if (most) measure(target);
});

function measure(field) {
  const over = [...field.value].length - field.dataset.most;
  const most = Number(field.dataset.most).toLocaleString("en");
  const count = `${over.toLocaleString("en")} character${over === 1 ? "" : "s"}`;
  field.setCustomValidity(over > 0 ? `${count} over the ${most} limit.` : "");
}

// ---- typed text outlives a reload and the way back

// a form refused without htmx is shown at its own address
const at = document.body.dataset.at;
if (at) history.replaceState(null, "", at);

// nobody is shown what another account typed
const shelfOf = (who) => `kept ${who} ${location.pathname}`;
const shelf = shelfOf(document.body.dataset.who ?? "");
const kept = JSON.parse(sessionStorage.getItem(shelf) ?? sessionStorage.getItem(shelfOf("")) ?? "{}");
const again = performance.getEntriesByType("navigation")[0].type !== "navigate";

/** Which form it is: where it goes, and with what. */
const formId = (form) => {
  if (form.dataset.kept) return form.dataset.kept;
  const told = [...form.elements].filter(({ type, name }) => type === "hidden" && name !== "idempotency_key");
  return [form.getAttribute("action"), ...told.map((field) => field.value)].join(" ");
};
const fieldId = ({ name, type, value }) =>
  name && !/hidden|password|file|submit|button/.test(type) && (type === "checkbox" ? `${name} ${value}` : name);

function save() {
  try {
    sessionStorage.setItem(shelf, JSON.stringify(kept));
  } catch {
    // a browser that keeps nothing, or is full
  }
}

function forget(form) {
  delete kept[formId(form)];
  save();
}

const keep = ({ target: field }) => {
  const name = field.form?.getAttribute("method") === "post" && fieldId(field);
  if (!name) return;
  (kept[formId(field.form)] ??= {})[name] = field.type === "checkbox" ? field.checked : field.value;
  save();
};
on("input", keep);
on("change", keep);

function restore(form, all) {
  const values = kept[formId(form)];
  // the browser would bring back another account's text
  for (const field of form.querySelectorAll("textarea")) field.autocomplete = "off";
  // what a message was to be comes back however one returns
  if (!values || !(all || form.matches("[data-composer]"))) return;
  for (const field of form.elements) {
    const value = values[fieldId(field)];
    if (value === undefined || (field.value && !all && field.type === "textarea")) continue;
    if (field.type === "checkbox") field.checked = value;
    else if (field.type === "radio") field.checked = field.value === value;
    else if (![...(field.options ?? [])].length || [...field.options].some((one) => one.value === value)) field.value = value;
    field.closest("details")?.setAttribute("open", "");
  }
}

for (const form of document.forms) restore(form, again);

for (const box of $$("[data-composer] textarea")) {
  // typed before this script ran
  if (box.value !== box.defaultValue) keep({ target: box });
  measure(box);
  box.setSelectionRange(box.value.length, box.value.length);
}

on("submit", ({ target }) => {
  if (target.matches("[action='/logout']")) sessionStorage.clear();
  else if (!target.matches("[hx-post]")) forget(target);
});

// fields whose message is on its way: what is in them is no draft
const sent = new Map();
const open = ".menu:popover-open";
const composer = (form) => form.matches?.("[data-composer]") && form.elements.prompt;

on("htmx:before:request", (event) => {
  const field = composer(event.target);
  if (!field) return sent.has(event.target) && event.preventDefault();
  sent.set(field, field.value);
  // now, and not when the answer comes: by then one may read elsewhere
  if (scroller) scroller.scrollTop = 0;
});

on("htmx:after:request", ({ detail }) => {
  // the event of a form that was swapped meanwhile comes from the document
  const { sourceElement: asked, response, text } = detail.ctx;
  const field = composer(asked);
  const was = sent.get(field);
  sent.delete(field);
  // what a menu was asked for is told beneath it
  const menu = asked.closest(open) ?? asked.querySelector(open);
  // what was refused is told in the form, where it has a place for that
  if (response.status < 400 || !menu?.querySelector(".wrong")) menu?.hidePopover();
  if (response.status >= 400) {
    if ((field || !typing(asked)) && !text.includes("<hx-partial"))
      say("The server did not accept this. What you wrote is still here.");
  } else if (!field) {
    if (asked.matches("form")) forget(asked);
  } else if (field.value === was) {
    // Typed on meanwhile? Then it is another message.
    field.value = "";
    forget(asked);
  }
});

on("htmx:error", ({ target }) => {
  sent.delete(composer(target));
  if (target.matches?.("[data-live]")) lost(true);
  else if (!typing(target)) say("The server cannot be reached. What you wrote is still here.", "unreachable");
});

// ---- the live stream: say when it is cut, back, or gone

const lost = (is) => {
  const node = $("[data-lost]");
  if (node?.hidden !== is) return;
  tell(is ? node.textContent : "The connection is back.");
  node.hidden = !is;
};
const reached = () => {
  const notice = $("#notice[data-code=unreachable]");
  if (notice) notice.className = notice.textContent = "";
};
addEventListener("online", reached);
on("htmx:sse:error", () => lost(true));
on("htmx:sse:after:connection", () => (lost(false), reached()));
on("gone", ({ detail }) => detail.data && say(detail.data));

// ---- WebKit does not hold the place where one reads while the end of the log grows

if (scroller && !CSS.supports("overflow-anchor", "auto")) {
  const log = scroller.firstElementChild;
  let height = log.offsetHeight;
  new ResizeObserver(() => {
    const grown = log.offsetHeight - height;
    height += grown;
    if (scroller.scrollTop < 0) scroller.scrollTop -= grown;
  }).observe(log);
}

// ---- the same with another model

on("click", ({ target: { form, dataset } }) => dataset.pick && (form.elements.model.value = dataset.pick));

// ---- a page to print

const print = $("[data-print]");
if (print) print.hidden = false;
on("click", ({ target }) => target.matches("[data-print]") && window.print());

// ---- what was asked for is done: the form is for the next

on("done", ({ target }) => target.reset());

// ---- one tick for all of them

on("change", ({ target: { checked, dataset } }) => {
  if (dataset.all) for (const one of document.getElementsByName(dataset.all)) one.checked = checked;
});

const wait = (seconds) => {
  const minutes = Math.floor(seconds / 60);
  if (minutes >= 2880) return `${Math.floor(minutes / 1440)} days`;
  if (minutes > 59) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${minutes ? `${minutes} min ` : ""}${seconds % 60} s`;
};

setInterval(() => {
  for (const node of $$("[data-countdown]")) {
    const left = node.dataset.countdown - 1;
    if (left < 0) continue;
    node.dataset.countdown = left;
    node.textContent = left ? `Try again in ${wait(left)}.` : tell("You can try again now.");
  }
}, 1000);
