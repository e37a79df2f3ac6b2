// Text that streams: a conversation, or a text that goes on.

import { events } from "./api.js";
import { el, number, showError } from "./dom.js";
import { valueOf } from "./forms.js";

const SETTINGS = [
  { name: "max_tokens", label: "Most tokens", kind: "number", value: "256" },
  { name: "temperature", label: "Temperature", kind: "number", value: "0.7" },
  { name: "seed", label: "Seed", kind: "number", value: "" },
];

/** The panel of a decoder.
 *
 * @param {object} model - As /v1/models lists it.
 * @param {(call: object) => void} changed - Is told each call that the form stands for.
 * @param {(error: Error) => void} failed - Is told what fails.
 */
export function chatPanel(model, changed, failed) {
  const talks = "messages" in model.shoal.inputs;
  const path = talks ? "/v1/chat/completions" : "/v1/completions";
  const messages = [];
  let running = null;
  let last = null; // the call that was sent last, whose code stays until there is another text

  const log = el("div", { class: "log", role: "log", "aria-live": "polite", "aria-label": "Conversation", tabindex: "0" });
  const status = el("p", { class: "muted status", role: "status" });
  const alert = el("p", { class: "error", role: "alert", hidden: true });
  const text = el("textarea", { id: "prompt", rows: "3", on: { keydown: typed, input: update } }, talks ? "Why do fish swim in shoals?" : "Fish swim in shoals because");
  const system = el("textarea", { id: "system", rows: "2", on: { input: update } });
  const inputs = SETTINGS.map((field) => el("input", { id: `set-${field.name}`, inputmode: "decimal", autocomplete: "off", value: field.value, on: { input: update } }));
  const send = el("button", { type: "submit", class: "primary" }, talks ? "Send" : "Go on");
  const stop = el("button", { type: "button", class: "stop", hidden: true, on: { click: () => running?.abort() } }, "Stop");
  const clear = el("button", { type: "button", class: "quiet", on: { click: restart } }, talks ? "New conversation" : "Clear");

  function settings() {
    const given = {};
    SETTINGS.forEach((field, index) => {
      const value = valueOf(field, inputs[index].value);
      if (value !== "") given[field.name] = value;
    });
    return given;
  }

  function body() {
    const head = { model: model.id };
    if (!talks) return { ...head, prompt: text.value, ...settings(), stream: true };
    const first = system.value.trim() ? [{ role: "system", content: system.value }] : [];
    const last = text.value.trim() ? [{ role: "user", content: text.value }] : [];
    return { ...head, messages: [...first, ...messages, ...last], ...settings(), stream: true };
  }

  function update() {
    try {
      changed({ path, body: (!text.value.trim() && last) || body() });
      showError(alert, null);
    } catch (error) {
      showError(alert, error);
    }
  }

  function typed(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    event.target.form.requestSubmit();
  }

  function restart() {
    running?.abort();
    messages.length = 0;
    last = null;
    log.replaceChildren();
    status.textContent = "";
    showError(alert, null);
    update();
    text.focus();
  }

  function bubble(who, kind, content) {
    const said = el("div", { class: "said" }, content);
    log.append(el("div", { class: `message ${kind}` }, el("span", { class: "who" }, who), said));
    log.scrollTop = log.scrollHeight;
    return said;
  }

  async function submit(event) {
    event.preventDefault();
    if (running || !text.value.trim()) return;
    let asked;
    try {
      asked = body();
    } catch (error) {
      showError(alert, error);
      return;
    }
    const prompt = text.value;
    last = asked;
    showError(alert, null);
    bubble(talks ? "You" : "Text", "user", prompt);
    if (talks) {
      messages.push({ role: "user", content: prompt });
      text.value = "";
    }
    await answer(asked, prompt);
  }

  async function answer(asked, prompt) {
    const aborted = new AbortController();
    running = aborted;
    const place = bubble(model.id, "assistant", "");
    busy(true);
    const began = performance.now();
    const all = { text: "", thought: "", first: 0, usage: null, reason: "" };
    try {
      const request = { ...asked, stream_options: { include_usage: true } };
      for await (const event of events(path, request, aborted.signal)) take(event, all, place, began);
      status.textContent = told(all, began);
    } catch (error) {
      if (error.name === "AbortError") status.textContent = "Stopped. The model has stopped, too.";
      else fail(error);
    } finally {
      busy(false);
      running = null;
      kept(all, place, prompt);
      if (log.isConnected) text.focus();
    }
  }

  function take(event, all, place, began) {
    const [choice] = event.choices;
    all.usage = event.usage ?? all.usage;
    if (!choice) return;
    all.reason = choice.finish_reason ?? all.reason;
    const thought = choice.delta?.reasoning_content ?? "";
    const said = choice.delta?.content ?? choice.text ?? "";
    if ((thought || said) && !all.first) all.first = performance.now() - began;
    const near = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    if (thought) thoughts(place).append(thought);
    place.append(said);
    all.text += said;
    if (near) log.scrollTop = log.scrollHeight;
  }

  function thoughts(place) {
    let held = place.parentElement.querySelector(".thought");
    if (!held) {
      held = el("div", { class: "thought said" });
      place.before(el("details", { class: "muted" }, el("summary", {}, "What it thought"), held));
    }
    return held;
  }

  function told(all, began) {
    const seconds = (performance.now() - began) / 1000;
    const parts = [all.reason === "length" ? "Cut off at the limit of tokens" : "Done"];
    if (all.usage) parts.push(`${number(all.usage.completion_tokens)} tokens in ${number(seconds)} s`);
    if (all.first) parts.push(`first text after ${number(all.first / 1000)} s`);
    return `${parts.join(", ")}.`;
  }

  function kept(all, place, prompt) {
    if (!talks) return;
    if (all.text) {
      messages.push({ role: "assistant", content: all.text });
    } else {
      messages.pop(); // a question without an answer is asked again
      if (!text.value) text.value = prompt;
      if (!place.textContent) place.parentElement.remove();
    }
    update();
  }

  function fail(error) {
    status.textContent = "";
    showError(alert, error);
    failed(error);
  }

  function busy(now) {
    log.setAttribute("aria-busy", String(now)); // a screen reader reads the answer when it is whole
    send.hidden = now;
    stop.hidden = !now;
    if (now) {
      status.textContent = "The model writes…";
      stop.focus();
    }
  }

  const options = SETTINGS.map((field, index) => el("div", { class: "field" }, el("label", { for: `set-${field.name}` }, field.label), inputs[index]));
  const before = talks ? el("div", { class: "field" }, el("label", { for: "system" }, "System message"), system) : null;
  const form = el(
    "form",
    { on: { submit } },
    el("div", { class: "field" }, el("label", { for: "prompt" }, talks ? "Message" : "Text to go on with"), text),
    el("div", { class: "bar" }, send, stop, clear, el("span", { class: "muted hint" }, "Enter sends, Shift+Enter makes a new line")),
    el("details", {}, el("summary", {}, "Settings"), before, el("div", { class: "fields" }, ...options)),
  );
  const title = el("h2", { id: "try-title" }, talks ? "Chat" : "Write on");
  const element = el("section", { class: "card", "aria-labelledby": "try-title" }, title, log, status, alert, form);
  return { element, update, close: () => running?.abort() };
}
