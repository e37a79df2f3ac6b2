// The code of a call in curl, Python and JavaScript, with the values of the form.

import { el } from "./dom.js";

/** Stands in a body for the content of a file in base64, of which only the name is shown. */
export const FILE = "@@the content of the file@@";

const LANGUAGES = { curl, Python: python, JavaScript: javascript };
const OPENAI = {
  "/v1/chat/completions": "chat.completions",
  "/v1/completions": "completions",
  "/v1/embeddings": "embeddings",
};

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** A call of curl. `call` has `path`, `body` and, with a file, its name in `file`. */
export function curl(call, origin) {
  const body = quoted(json(call.body, "  "));
  const head = [
    `curl -sN ${quoted(origin + call.path)} \\`,
    '  -H "Authorization: Bearer $SHOAL_API_KEY" \\',
    "  -H 'Content-Type: application/json' \\",
  ];
  if (!call.file) return [...head, `  -d ${body}`].join("\n");
  // A file is longer than an argument may be.
  const [before, after] = body.split(FILE);
  const parts = [`printf %s ${before}'`, `base64 -w0 ${quoted(call.file)}`, `printf %s '${after}`];
  return [`(${parts.join("; ")}) |`, ...head, "  -d @-"].join("\n");
}

/** A call in Python: of OpenAI's SDK where it has the path, else of requests. */
export function python(call, origin) {
  const name = OPENAI[call.path];
  if (name) return sdk(name, call, origin);
  const head = call.file ? ["import base64", "import os", "from pathlib import Path"] : ["import os"];
  const content = `base64.b64encode(Path(${JSON.stringify(call.file)}).read_bytes()).decode()`;
  return [
    ...head,
    "",
    "import requests",
    "",
    "answer = requests.post(",
    `    ${JSON.stringify(origin + call.path)},`,
    '    headers={"Authorization": f"Bearer {os.environ.get(\'SHOAL_API_KEY\', \'\')}"},',
    `    json=${literal(call.body, "    ").replace(JSON.stringify(FILE), () => content)},`,
    "    timeout=600,",
    ")",
    "answer.raise_for_status()",
    "print(answer.json())",
  ].join("\n");
}

function sdk(name, call, origin) {
  const fields = Object.entries(call.body).map(([key, value]) => `    ${key}=${literal(value, "    ")},`);
  const lines = [
    "import os",
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(`${origin}/v1`)}, api_key=os.environ.get("SHOAL_API_KEY", "none"))`,
    `answer = client.${name}.create(`,
    ...fields,
    ")",
  ];
  if (name === "embeddings") return [...lines, "print([vector.embedding[:4] for vector in answer.data])"].join("\n");
  const text = name === "completions" ? "text" : "delta.content";
  return [
    ...lines,
    "for chunk in answer:",
    "    if chunk.choices:",
    `        print(chunk.choices[0].${text} or "", end="", flush=True)`,
  ].join("\n");
}

/** A value of JSON as Python writes it. */
const literal = (value, indent) => written(value, indent, 4, { null: "None", true: "True", false: "False" }, ",");

/** A value as JSON, short lists in one line. */
const json = (value, indent) => written(value, indent, 2, {}, "");

function written(value, indent, step, constants, trailing) {
  if (value === null || typeof value === "boolean") return constants[value] ?? String(value);
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = indent + " ".repeat(step);
  const one = (each) => written(each, inner, step, constants, trailing);
  const entries = Array.isArray(value)
    ? value.map(one)
    : Object.entries(value).map(([key, each]) => `${JSON.stringify(key)}: ${one(each)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const line = open + entries.join(", ") + close;
  const numbers = Array.isArray(value) && value.every((each) => typeof each === "number");
  if ((line.length <= 72 || numbers) && !line.includes("\n")) return line;
  return `${open}\n${entries.map((each) => inner + each).join(",\n")}${trailing}\n${indent}${close}`;
}

/** A call by `fetch`, for browsers, Node 20 and Deno. */
export function javascript(call, origin) {
  const body = json(call.body, "  ");
  const content = `(await readFile(${JSON.stringify(call.file)})).toString("base64")`;
  const lines = [
    ...(call.file ? ['import { readFile } from "node:fs/promises";', ""] : []),
    'const key = globalThis.process?.env.SHOAL_API_KEY ?? "";',
    `const answer = await fetch(${JSON.stringify(origin + call.path)}, {`,
    '  method: "POST",',
    '  headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },',
    `  body: JSON.stringify(${body.replace(JSON.stringify(FILE), () => content)}),`,
    "});",
    "if (!answer.ok) throw new Error(await answer.text());",
  ];
  if (!call.body.stream) return [...lines, "console.log(await answer.json());"].join("\n");
  const text = call.path === "/v1/completions" ? "text" : "delta.content";
  return [
    ...lines,
    'let said = "";',
    'let rest = "";',
    "for await (const part of answer.body.pipeThrough(new TextDecoderStream())) {",
    '  const lines = (rest + part).split("\\n");',
    "  rest = lines.pop();",
    "  for (const line of lines) {",
    '    if (!line.startsWith("data: {")) continue;',
    "    const chunk = JSON.parse(line.slice(6));",
    "    if (chunk.error) throw new Error(chunk.error.message);",
    `    said += chunk.choices[0]?.${text} ?? "";`,
    "  }",
    "}",
    "console.log(said);",
  ].join("\n");
}

/** A panel with the code of a call in each language. Gives the element, and a function that shows a call. */
export function codePanel() {
  const code = el("code");
  const block = el("pre", { tabindex: "0", id: "code", role: "tabpanel", "aria-label": "Code" }, code);
  const told = el("span", { class: "muted", role: "status" });
  const copy = el("button", { type: "button", class: "quiet", on: { click: copied } }, "Copy");
  const tabs = Object.keys(LANGUAGES).map((name) =>
    el("button", { type: "button", role: "tab", "aria-controls": "code", on: { click: () => choose(name) } }, name),
  );
  let chosen = "curl";
  let shown = null;

  async function copied() {
    try {
      await navigator.clipboard.writeText(code.textContent);
      told.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      told.textContent = "Selected: copy it with your keyboard";
    }
  }

  function choose(name) {
    chosen = name;
    for (const tab of tabs) {
      const current = tab.textContent === name;
      tab.setAttribute("aria-selected", String(current));
      tab.tabIndex = current ? 0 : -1;
    }
    told.textContent = "";
    code.textContent = shown ? LANGUAGES[chosen](shown, location.origin) : "";
  }

  function moved(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(tabs.indexOf(event.target) + step + tabs.length) % tabs.length];
    choose(next.textContent);
    next.focus();
  }

  const list = el("div", { role: "tablist", "aria-label": "Language", class: "tabs", on: { keydown: moved } }, ...tabs);
  const title = el("h2", { id: "code-title" }, "Code");
  const bar = el("div", { class: "bar" }, list, told, copy);
  const element = el("section", { class: "card", "aria-labelledby": "code-title" }, title, bar, block);
  choose(chosen);
  return {
    element,
    show(call) {
      shown = call;
      choose(chosen);
    },
  };
}
