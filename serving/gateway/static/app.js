// The playground: the list of models, the chosen model with a form for its task, and the code of each call.

import { apiKey, ask, setApiKey } from "./api.js";
import { chatPanel } from "./chat.js";
import { codePanel } from "./code.js";
import { byId, el, showError } from "./dom.js";
import { formOf, valueOf } from "./forms.js";
import { about, hashOf, link, taskName } from "./models.js";
import { shown } from "./results.js";

const main = byId("main");
const problem = byId("problem");
const key = byId("key");
let models = [];
let open = null; // the panel that is shown

/** Say what fails; where the key is missing or wrong, go to its field. */
function failed(error) {
  showError(problem, error);
  if (error.status !== 401) return;
  byId("key-panel").open = true;
  key.focus();
}

async function load() {
  showError(problem, null);
  main.setAttribute("aria-busy", "true");
  try {
    models = (await ask("/v1/models")).data;
    show();
  } catch (error) {
    models = [];
    show();
    failed(error);
  } finally {
    main.removeAttribute("aria-busy");
  }
}

function show() {
  const wanted = location.hash;
  const model = models.find((each) => hashOf(each) === wanted) ?? models[0];
  byId("models").replaceChildren(...models.map((each) => link(each, each === model)));
  const list = byId("models");
  list.scrollLeft = list.querySelector("[aria-current]")?.parentElement.offsetLeft - list.offsetLeft || 0;
  open?.close?.();
  open = null;
  if (!model) {
    main.replaceChildren(el("p", { class: "muted" }, "No model is listed."));
    return;
  }
  document.title = `${model.id} · Shoal`;
  const code = codePanel();
  const panel = "text_input" in model.shoal.inputs ? chatPanel(model, code.show, failed) : taskPanel(model, code.show);
  open = panel;
  const head = el("header", { class: "title" }, el("h1", { id: "model", tabindex: "-1" }, model.id), el("span", { class: "chip" }, taskName(model.shoal.task)));
  main.replaceChildren(head, panel.element, code.element, about(model));
  panel.update();
}

function control(field, changed) {
  const id = `field-${field.name}`;
  const given = { id, autocomplete: "off", on: { input: changed } };
  switch (field.kind) {
    case "lines":
    case "text":
      return el("textarea", { ...given, rows: "4" }, field.value);
    case "json":
      return el("textarea", { ...given, rows: "8", class: "code", spellcheck: "false" }, field.value);
    case "file":
      return el("input", { ...given, type: "file", accept: "image/png,image/jpeg" });
    case "choice":
      return el("select", given, ...field.options.map((name) => el("option", { value: name }, name || "none")));
    default: {
      const decimal = ["number", "cell"].includes(field.kind);
      return el("input", { ...given, value: field.value, inputmode: decimal ? "decimal" : null });
    }
  }
}

/** A form for a task, and what comes back. */
function taskPanel(model, changed) {
  const form = formOf(model);
  const controls = form.fields.map((field) => control(field, update));
  const alert = el("p", { class: "error", role: "alert", hidden: true });
  const status = el("p", { class: "muted status", role: "status" });
  const result = el("div", { class: "result" });
  const run = el("button", { type: "submit", class: "primary" }, form.run);
  const stop = el("button", { type: "button", class: "stop", hidden: true, on: { click: () => running?.abort() } }, "Stop");
  let running = null;

  function call() {
    const values = Object.fromEntries(form.fields.map((field, index) => [field.name, valueOf(field, controls[index].value)]));
    const file = controls.find((each) => each.type === "file");
    return { path: form.path, body: form.body(values), file: file && (file.files[0]?.name ?? "picture.png") };
  }

  function update() {
    try {
      changed(call());
      showError(alert, null);
    } catch (error) {
      showError(alert, error);
    }
  }

  async function submit(event) {
    event.preventDefault();
    if (running) return;
    const aborted = new AbortController();
    running = aborted;
    run.hidden = true;
    stop.hidden = false;
    status.textContent = "Working…";
    const began = performance.now();
    try {
      const asked = call();
      const body = { ...asked.body };
      if (asked.file) body.image = await content(controls[0].files[0]);
      const answer = await ask(asked.path, body, aborted.signal);
      result.replaceChildren(...shown(asked.path, answer, body).filter(Boolean));
      status.textContent = `Answered in ${Math.round(performance.now() - began)} ms.`;
      showError(alert, null);
    } catch (error) {
      status.textContent = error.name === "AbortError" ? "Stopped." : "";
      if (error.name !== "AbortError") {
        showError(alert, error);
        if (error.status === 401) failed(error);
      }
    } finally {
      running = null;
      const focused = document.activeElement === stop;
      run.hidden = false;
      stop.hidden = true;
      if (focused) run.focus();
    }
  }

  const narrow = (field) => ["cell", "word"].includes(field.kind);
  const fields = form.fields.map((field, index) =>
    el("div", { class: "field" }, el("label", { for: controls[index].id }, field.label), controls[index]),
  );
  const grid = form.fields.every(narrow) ? "fields" : "stack";
  const hint = form.hint ? el("p", { class: "muted hint" }, form.hint) : null;
  const element = el(
    "section",
    { class: "card", "aria-labelledby": "try-title" },
    el("h2", { id: "try-title" }, form.title),
    el("form", { on: { submit } }, el("div", { class: grid }, ...fields), hint, el("div", { class: "bar" }, run, stop)),
    status,
    alert,
    result,
  );
  return { element, update, close: () => running?.abort() };
}

/** A file in base64. */
function content(file) {
  if (!file) throw new Error("Choose a file first.");
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result.slice(reader.result.indexOf(",") + 1)));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
}

key.value = apiKey();
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setApiKey(key.value.trim());
  byId("key-panel").open = false;
  load();
});
window.addEventListener("hashchange", () => {
  show();
  byId("model")?.focus();
});
load();
